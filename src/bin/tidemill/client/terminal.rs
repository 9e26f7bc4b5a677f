//! A terminal on both sides: a prompt with line editing, which arriving lines do not break.

use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor, ExternalPrinter};

use super::stdio::{self, Output};

const PROMPT: &str = "> ";
/// An arriving line without its end (a question, for example) is shown when nothing follows it for this long.
const UNFINISHED: Duration = Duration::from_millis(50);

/// How reading a line ended.
pub enum Typed {
    Line(String),
    End,
    /// Ctrl-C.
    Interrupt,
}

/// Lines that the user edits.
pub struct LineEditor(Editor<(), MemHistory>);

impl LineEditor {
    /// The editor, and what prints above its prompt.
    pub fn new() -> Result<(LineEditor, Box<dyn ExternalPrinter + Send>), String> {
        let failed = |error: ReadlineError| format!("cannot edit lines: {error}");
        let mut editor = Editor::with_history(Config::default(), MemHistory::new()).map_err(failed)?;
        editor.set_auto_add_history(true);
        let printer = editor.create_external_printer().map_err(failed)?;
        Ok((LineEditor(editor), Box::new(printer)))
    }

    pub fn read(&mut self) -> Result<Typed, String> {
        match self.0.readline(PROMPT) {
            Ok(line) => Ok(Typed::Line(line)),
            Err(ReadlineError::Eof) => Ok(Typed::End),
            Err(ReadlineError::Interrupted) => Ok(Typed::Interrupt),
            Err(error) => Err(format!("cannot read the terminal: {error}")),
        }
    }
}

/// Prints whole lines above the prompt.
pub fn print_lines(output: &Output, printer: &mut (dyn ExternalPrinter + Send)) -> std::io::Result<()> {
    let mut unfinished = Vec::new();
    while let Some(piece) = output.take() {
        output.written(piece.len());
        unfinished.extend_from_slice(&piece);
        let whole = match unfinished.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            None => 0,
        };
        let whole = if output.has_more_within(UNFINISHED) { whole } else { unfinished.len() };
        if whole > 0 {
            let text: Vec<u8> = unfinished.drain(..whole).collect();
            if output.has_ended() {
                // The editor prints on its own thread and does not confirm: the process could end before it has.
                stdio::write(b"\r\x1b[K")?;
                stdio::write(&text)?;
                continue;
            }
            let text = String::from_utf8_lossy(&text).into_owned();
            printer.print(text).map_err(std::io::Error::other)?;
        }
    }
    Ok(())
}

/// The terminal's settings from before: line editing changes them while it waits for a key.
pub struct Settings(Option<Termios>);

impl Settings {
    pub fn of_stdin() -> Settings {
        Settings(tcgetattr(rustix::stdio::stdin()).ok())
    }

    /// Puts them back, and removes the prompt.
    pub fn restore(&self) {
        if let Some(settings) = &self.0 {
            // The terminal may be gone.
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, settings);
            let _ = stdio::write(b"\r\x1b[K");
        }
    }
}
