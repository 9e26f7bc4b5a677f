//! The binary in a terminal.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::server::{Process, TIDEMILL, until};

const ROWS: u16 = 24;

/// `tidemill` in a terminal of its own.
pub struct Terminal {
    pub process: Process,
    keys: File,
    line: File,
    columns: u16,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub fn start(columns: u16, words: &[&str]) -> Terminal {
        // Closed in the programs that other tests start meanwhile: some of them count their descriptors.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("it is ours");
        let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("text");
        let open = || OpenOptions::new().read(true).write(true).open(&name).expect("the terminal");
        let line = open();
        let size = Winsize { ws_row: ROWS, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&line, size).expect("a size");
        let mut command = Command::new(TIDEMILL);
        command.args(words).env("TERM", "xterm").stdin(open()).stdout(open()).stderr(open());
        let process = Process(command.spawn().expect("it"));
        let keys = File::from(master);
        let (mut reads, output) =
            (keys.try_clone().expect("a second handle"), Arc::new(Mutex::new(Vec::new())));
        let copy = output.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(n @ 1..) = reads.read(&mut buffer) {
                copy.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]);
            }
        });
        Terminal { process, keys, line, columns, output }
    }

    /// All that was written to the terminal so far, control sequences included.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The screens that a user saw one after the other: the lines that are not empty, whenever the cursor had returned
    /// to the first column or a line was complete.
    pub fn screens(&self) -> Vec<Vec<String>> {
        let size = |n| NonZeroU16::new(n).expect("a size");
        let mut emulator = vt100::Parser::new(size(ROWS), size(self.columns), 0);
        let output = self.output();
        let mut screens = Vec::new();
        for piece in output.split_inclusive(['\r', '\n']) {
            emulator.process(piece.trim_end_matches(['\r', '\n']).as_bytes());
            let rows = emulator.screen().rows(0, self.columns);
            screens.push(rows.filter(|row| !row.is_empty()).collect());
            emulator.process(&piece.as_bytes()[piece.trim_end_matches(['\r', '\n']).len()..]);
        }
        screens
    }

    #[track_caller]
    pub fn shows(&self, text: &str) {
        let what = format!("{text:?} on the screen: {:?}", self.output());
        until(&what, Duration::from_secs(20), || self.output().contains(text));
    }

    pub fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("a terminal");
    }

    pub fn edits_lines(&self) -> bool {
        !tcgetattr(&self.line).expect("settings").local_modes.contains(LocalModes::ICANON)
    }
}
