//! `step`: the loop on a simulated kernel, forward and back by phase and turn.
//!
//! It reads commands, as a debugger does, so it works in every terminal; without one it prints all steps.

mod view;

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::tcgetwinsize;
use tidemill::testing::{BREAKPOINTS, Cause, Moment, SCENARIOS, Scenario, Stepper};

use crate::args::CommandError;
use crate::args::step::StepArgs;

/// The page that shows the same in a browser, from the root of the repository.
pub const PAGE: &str = "docs/page/index.html";

const HELP: &str = "\
n, Enter    the next phase                   b         back one phase
e           to where something happens       be        back to there
t           the next turn                    bt        back one turn
a           the next act of the script       g N       to step N
until WORD  to a breakpoint: until 4, or a word of what happens: until close
break       the breakpoints                  s         the source of the phase
script      the script                       list      the scenarios
h           this help                        q         end
";

/// Columns where there is no terminal.
const COLUMNS: usize = 100;

pub fn step(options: &StepArgs) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    let written = match &options.scenario {
        _ if options.page => page(options.scenario.as_deref(), &mut out),
        None => list(&mut out),
        Some(name) => {
            let (text, scenario) = read(name, options.seed).map_err(CommandError::Usage)?;
            let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal() && !options.all;
            match is_interactive {
                true => Session::new(name, &text, &scenario).run(&mut out),
                false => print_all(&text, &scenario, options.state, &mut out),
            }
        }
    };
    match written {
        // A closed pipe is the reader's decision, not an error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CommandError::Run(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// The text of a scenario of the crate, or of a file.
fn read(name: &str, seed: Option<u64>) -> Result<(String, Scenario), String> {
    let own = SCENARIOS.iter().find(|named| named.name == name);
    let text = match own {
        Some(named) => named.text.to_string(),
        None => std::fs::read_to_string(name).map_err(|error| {
            let all: Vec<&str> = SCENARIOS.iter().map(|named| named.name).collect();
            format!("{name} is no scenario ({}) and no file: {error}", all.join(", "))
        })?,
    };
    let text = seed.map_or(text.clone(), |seed| format!("{text}seed {seed}\n"));
    let scenario = text.parse().map_err(|error| format!("{name}: {error}"))?;
    Ok((text, scenario))
}

fn list(out: &mut dyn Write) -> io::Result<()> {
    for named in SCENARIOS {
        writeln!(out, "{:<18} {}", named.name, named.scenario().title())?;
    }
    writeln!(out, "\nExample: tidemill step echo")
}

fn page(scenario: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
    let here = std::env::current_dir().map(|folder| folder.join(PAGE)).unwrap_or_else(|_| PAGE.into());
    let hash = scenario.map_or(String::new(), |name| format!("#scenario={name}"));
    match here.is_file() {
        true => writeln!(out, "file://{}{hash}", here.display()),
        false => writeln!(out, "{PAGE}{hash} in the repository of tidemill"),
    }
}

fn print_all(text: &str, scenario: &Scenario, state: bool, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{text}")?;
    for moment in Stepper::new(scenario) {
        let is_quiet = matches!(moment.cause, Cause::Phase(_)) && moment.happened.is_empty();
        if !is_quiet || state {
            view::step(&moment, COLUMNS, out)?;
        }
        if state {
            view::state(&moment, COLUMNS, out)?;
        }
    }
    Ok(())
}

/// A reader at a terminal.
struct Session<'a> {
    name: &'a str,
    text: &'a str,
    stepper: Stepper,
    /// All that was played so far: to go back is to look at an earlier one.
    moments: Vec<Moment>,
    at: usize,
}

/// What a command leads to.
enum Go {
    Moved,
    Stay,
    Quit,
}

impl<'a> Session<'a> {
    fn new(name: &'a str, text: &'a str, scenario: &Scenario) -> Session<'a> {
        let mut stepper = Stepper::new(scenario);
        let moments = stepper.next().into_iter().collect();
        Session { name, text, stepper, moments, at: 0 }
    }

    fn run(mut self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{}\n{HELP}", self.text)?;
        self.show(out)?;
        let mut last = "n".to_string();
        let mut lines = io::stdin().lock().lines();
        loop {
            write!(out, "{} {}> ", self.name, self.moments[self.at].number)?;
            out.flush()?;
            let Some(line) = lines.next().transpose()? else { return writeln!(out) };
            if !line.trim().is_empty() {
                last = line.trim().to_string();
            }
            match self.obey(&last, out)? {
                Go::Moved => self.show(out)?,
                Go::Stay => {}
                Go::Quit => return Ok(()),
            }
        }
    }

    fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = tcgetwinsize(rustix::stdio::stdout()).map_or(COLUMNS, |size| usize::from(size.ws_col));
        let columns = if columns == 0 { COLUMNS } else { columns };
        view::step(&self.moments[self.at], columns, out)?;
        view::state(&self.moments[self.at], columns, out)
    }

    fn obey(&mut self, line: &str, out: &mut dyn Write) -> io::Result<Go> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let turn = self.moments[self.at].snapshot.turn;
        let found = match words.as_slice() {
            ["n"] => self.forward(|_| true),
            ["e"] => self.forward(|it| !it.happened.is_empty()),
            ["t"] => self.forward(|it| it.snapshot.turn != turn),
            ["a"] => self.forward(|it| matches!(it.cause, Cause::Act(_))),
            ["b"] => self.back(|_| true),
            ["be"] => self.back(|it| !it.happened.is_empty()),
            ["bt"] => self.back(|it| it.snapshot.turn != turn),
            ["g", number] => {
                let number = number.parse().unwrap_or(0);
                if number <= self.at {
                    self.back(|it| it.number <= number)
                } else {
                    self.forward(|it| it.number == number)
                }
            }
            ["until", what @ ..] if !what.is_empty() => {
                let what = breakpoint(&what.join(" "));
                self.forward(|it| {
                    it.happened.iter().any(|step| step.kind == what || step.text.contains(&what))
                })
            }
            ["q"] => return Ok(Go::Quit),
            _ => return self.tell(&words, out).map(|()| Go::Stay),
        };
        if !found {
            writeln!(out, "no such step from here")?;
        }
        Ok(Go::Moved)
    }

    fn tell(&self, words: &[&str], out: &mut dyn Write) -> io::Result<()> {
        match words {
            ["s"] => view::source(&self.moments[self.at], out),
            ["script"] => write!(out, "{}", self.text),
            ["list"] => list(out),
            ["break"] => (1..)
                .zip(BREAKPOINTS)
                .try_for_each(|(number, (what, _))| writeln!(out, "{number:>3}  until {what}")),
            _ => write!(out, "{HELP}"),
        }
    }

    /// Plays on to the next moment that is wanted; stays at the last one if there is none.
    fn forward(&mut self, wanted: impl Fn(&Moment) -> bool) -> bool {
        loop {
            if self.at + 1 == self.moments.len() {
                let Some(moment) = self.stepper.next() else { return false };
                self.moments.push(moment);
            }
            self.at += 1;
            if wanted(&self.moments[self.at]) {
                return true;
            }
        }
    }

    fn back(&mut self, wanted: impl Fn(&Moment) -> bool) -> bool {
        let found = self.moments[..self.at].iter().rposition(wanted);
        self.at = found.unwrap_or(0);
        found.is_some()
    }
}

/// The kind of step that a breakpoint stands for: by its number, by its words, or as it is.
fn breakpoint(text: &str) -> String {
    let by_number = text.parse::<usize>().ok().and_then(|number| BREAKPOINTS.get(number.checked_sub(1)?));
    let by_words = || BREAKPOINTS.iter().find(|(what, _)| *what == text);
    by_number.or_else(by_words).map_or(text.to_string(), |(_, kind)| (*kind).to_string())
}
