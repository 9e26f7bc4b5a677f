//! A trace as text: a line for each turn.
//!
//! ```text
//! 2.104513 turn 7 poll 3.1 ms → 2 events | read #4.9 64 B → data → send 64 B | write #4.9 64 B
//! ```

use std::fmt::{self, Display};
use std::io::Write;
use std::time::Duration;

use tidemill::observer::{Callback, Phase, Step};
use tidemill::{Address, CloseReason, ConnId};

/// The line of the current turn.
#[derive(Default)]
pub struct Text {
    /// When the poll began.
    began: Duration,
    line: String,
    /// The connection of the last step, which the next ones do not name again.
    last: Option<ConnId>,
    /// When the current callback began.
    called: Option<Duration>,
}

/// A callback that takes at least this is written with its time.
const LONG: Duration = Duration::from_millis(1);

impl Text {
    pub fn add(&mut self, step: &Step<'_>, now: Duration, out: &mut Vec<u8>) {
        match step {
            Step::Phase(Phase::Poll) => self.began = now,
            Step::Woken { turn, events, .. } => self.begin_line(*turn, *events, now),
            Step::Call(call) => {
                self.called = Some(now);
                self.called(call.callback, call.connection);
            }
            Step::Return(_) => {
                let took = self.called.take().map(|began| now - began);
                if let Some(took) = took.filter(|took| *took >= LONG) {
                    self.line += &format!(" {}", Short(took));
                }
            }
            Step::Send { connection, bytes } => self.sent(*connection, *bytes),
            Step::Read { connection, result } => self.moved("read", *connection, *result),
            Step::Write { connection, result } => self.moved("write", *connection, *result),
            Step::Fin { connection, .. } => self.step("FIN", *connection, ""),
            Step::Deadline { connection, due: Some(due) } => {
                self.step("due", *connection, format!("{due:?}"))
            }
            Step::Deadline { .. } | Step::Phase(_) | Step::Event { .. } => {}
            Step::Accept { connection, peer, .. } => self.step("accept", *connection, format!("from {peer}")),
            Step::Refuse { refused, .. } => {
                self.line += &format!(" | refuse {}: {}", refused.peer, refused.reason.word());
                self.last = None;
            }
            Step::Dial { connection, to, .. } => self.step("dial", *connection, to),
            Step::Attempt { connection, to } => self.step("attempt", *connection, to),
            Step::AttemptFailed { connection, to, error } => self.failed(*connection, to, error),
            Step::Connected { connection, to } => self.step("connected", *connection, to),
            Step::Close { gone, .. } => self.closed(gone.id, gone.reason),
            Step::TurnEnd { carried_over, .. } => self.end_line(*carried_over, out),
            _ => {}
        }
    }

    fn begin_line(&mut self, turn: u64, events: usize, now: Duration) {
        // What the owner of the reactor did between two turns comes first.
        let before = std::mem::take(&mut self.line);
        let s = if events == 1 { "" } else { "s" };
        let slept = Short(now - self.began);
        self.line = format!(
            "{}{}.{:06} turn {turn} poll {slept} → {events} event{s}",
            if before.is_empty() { String::new() } else { format!("between turns{before}\n") },
            now.as_secs(),
            now.subsec_micros()
        );
        self.last = None;
    }

    fn end_line(&mut self, carried_over: bool, out: &mut Vec<u8>) {
        let end = if carried_over { " | work left" } else { "" };
        // Writing to memory does not fail.
        let _ = writeln!(out, "{}{end}", self.line);
        self.line.clear();
        self.last = None;
    }

    fn step(&mut self, what: &str, id: ConnId, detail: impl Display) {
        let detail = detail.to_string();
        let space = if detail.is_empty() { "" } else { " " };
        self.line += &format!(" | {what} {id}{space}{detail}");
        self.last = Some(id);
    }

    fn moved(&mut self, what: &str, id: ConnId, result: Result<usize, &std::io::Error>) {
        match result {
            Ok(0) if what == "read" => self.step(what, id, "end"),
            Ok(n) => self.step(what, id, format!("{n} B")),
            Err(error) => self.step(what, id, error.kind()),
        }
    }

    fn called(&mut self, callback: Callback, id: Option<ConnId>) {
        let name = callback.word();
        match id.filter(|_| id != self.last) {
            Some(id) => self.step(name, id, ""),
            None if id.is_some() => self.line += &format!(" → {name}"),
            None => {
                self.line += &format!(" | {name}");
                self.last = None;
            }
        }
    }

    fn sent(&mut self, id: ConnId, bytes: usize) {
        let to = if self.last == Some(id) { String::new() } else { format!("{id} ") };
        let link = if self.called.is_some() || self.last.is_some() { "→" } else { "|" };
        self.line += &format!(" {link} send {to}{bytes} B");
    }

    fn failed(&mut self, id: ConnId, to: &Address, error: &std::io::Error) {
        self.step("failed", id, format!("{to}: {}", error.kind()));
    }

    fn closed(&mut self, id: ConnId, reason: CloseReason) {
        self.step("close", id, reason.word());
    }
}

/// A time in the unit that suits it, with two digits.
struct Short(Duration);

impl Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_secs_f64() * 1e6;
        match us {
            _ if us < 1_000.0 => write!(f, "{us:.0} µs"),
            _ if us < 1_000_000.0 => write!(f, "{:.1} ms", us / 1e3),
            _ => write!(f, "{:.1} s", us / 1e6),
        }
    }
}
