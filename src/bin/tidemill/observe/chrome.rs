//! A trace in the JSON format of Chrome, which <https://ui.perfetto.dev> and `chrome://tracing` open.
//!
//! ```text
//!     turn 7  ├──────────────────────────────────────────┤     "X": from, and how long
//!     phases  ├── poll ──┤├───── read ──────┤├─ write ─┤
//!     calls                   ├─ echo.data ─┤
//!     steps                 ▴ read    ▴ send   ▴ write         "i": an instant
//! ```
//!
//! Phases in which nothing happened are left out, except `poll`.

use std::io::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tidemill::ConnId;
use tidemill::observer::{Phase, Source, Step};

use super::{Names, call_name};

/// The spans that are open.
pub struct Chrome {
    names: Names,
    turn: u64,
    turn_began: Duration,
    phase: Option<Phase>,
    phase_began: Duration,
    /// Whether the phase has done anything.
    is_worked: bool,
    called: Duration,
}

impl Chrome {
    /// Ends the list of events and the object.
    pub const ENDING: &'static [u8] = b"\n]}\n";

    pub fn new(names: Names) -> Chrome {
        let zero = Duration::ZERO;
        Chrome {
            names,
            turn: 0,
            turn_began: zero,
            phase: None,
            phase_began: zero,
            is_worked: false,
            called: zero,
        }
    }

    /// The beginning of the file, and the names of the process and of its thread. The last event before the ending must
    /// have no comma behind it, so each event but the first has one in front of it.
    pub fn write_header(&self, out: &mut Vec<u8>) {
        let named = |what, name| json!({"name": what, "ph": "M", "pid": 1, "tid": 1, "args": {"name": name}});
        // Writing to memory does not fail.
        let _ = write!(
            out,
            "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{},\n{}",
            named("process_name", "tidemill"),
            named("thread_name", "event loop")
        );
    }

    pub fn add(&mut self, step: &Step<'_>, now: Duration, out: &mut Vec<u8>) {
        match step {
            Step::Phase(phase) => {
                self.end_phase(now, out);
                if *phase == Phase::Poll {
                    self.turn_began = now;
                }
                (self.phase, self.phase_began, self.is_worked) = (Some(*phase), now, *phase == Phase::Poll);
            }
            Step::Woken { turn, .. } => self.turn = *turn,
            Step::Call(_) => self.called = now,
            Step::Return(call) => {
                self.is_worked = true;
                let mut args = Map::new();
                args.extend(call.connection.map(|id| ("connection".to_string(), text(id))));
                span(&call_name(call, &self.names), "callback", self.called, now, args, out);
            }
            Step::TurnEnd { carried_over, .. } => {
                self.end_phase(now, out);
                let args = Map::from_iter([("work left".to_string(), json!(carried_over))]);
                span(&format!("turn {}", self.turn), "turn", self.turn_began, now, args, out);
            }
            other => {
                if let Some((name, args)) = instant(other) {
                    self.is_worked = true;
                    // Writing to memory does not fail.
                    let _ = write!(
                        out,
                        ",\n{}",
                        json!({"name": name, "cat": "step", "ph": "i", "s": "t", "pid": 1, "tid": 1, "ts": us(now),
                               "args": args})
                    );
                }
            }
        }
    }

    fn end_phase(&mut self, now: Duration, out: &mut Vec<u8>) {
        if let Some(phase) = self.phase.take().filter(|_| self.is_worked) {
            span(phase.word(), "phase", self.phase_began, now, Map::new(), out);
        }
    }
}

fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn text(id: ConnId) -> Value {
    Value::String(id.to_string())
}

fn span(name: &str, kind: &str, from: Duration, to: Duration, args: Map<String, Value>, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = write!(
        out,
        ",\n{}",
        json!({"name": name, "cat": kind, "ph": "X", "pid": 1, "tid": 1, "ts": us(from), "dur": us(to - from),
               "args": args})
    );
}

/// A step that takes no time of its own: its name, and what is known of it.
fn instant(step: &Step<'_>) -> Option<(&'static str, Value)> {
    let moved = |id: &ConnId, result: &Result<usize, &std::io::Error>| match result {
        Ok(n) => json!({"connection": text(*id), "bytes": n}),
        Err(error) => json!({"connection": text(*id), "error": error.to_string()}),
    };
    Some(match step {
        Step::Event { source, readable, writable, end, error } => {
            let source = match source {
                Source::Connection(id) => id.to_string(),
                Source::Listener(_) => "listener".to_string(),
                Source::Waker => "waker".to_string(),
                _ => "stale".to_string(),
            };
            let args =
                json!({"of": source, "readable": readable, "writable": writable, "end": end, "error": error});
            ("event", args)
        }
        Step::Read { connection, result } => ("read", moved(connection, result)),
        Step::Write { connection, result } => ("write", moved(connection, result)),
        Step::Send { connection, bytes } => {
            ("send", json!({"connection": text(*connection), "bytes": bytes}))
        }
        Step::Fin { connection, .. } => ("FIN", json!({"connection": text(*connection)})),
        Step::Deadline { connection, due } => {
            let due = due.map_or("nothing".to_string(), |due| format!("{due:?}"));
            ("deadline", json!({"connection": text(*connection), "due": due}))
        }
        Step::Accept { connection, peer, .. } => {
            ("accept", json!({"connection": text(*connection), "peer": peer.to_string()}))
        }
        Step::Refuse { refused, .. } => {
            ("refuse", json!({"peer": refused.peer.to_string(), "reason": refused.reason.word()}))
        }
        Step::Dial { connection, to, .. } => {
            ("dial", json!({"connection": text(*connection), "to": to.to_string()}))
        }
        Step::Attempt { connection, to } => {
            ("attempt", json!({"connection": text(*connection), "to": to.to_string()}))
        }
        Step::AttemptFailed { connection, to, error } => {
            let args =
                json!({"connection": text(*connection), "to": to.to_string(), "error": error.to_string()});
            ("attempt failed", args)
        }
        Step::Connected { connection, to } => {
            ("connected", json!({"connection": text(*connection), "to": to.to_string()}))
        }
        Step::Close { gone, .. } => {
            ("close", json!({"connection": text(gone.id), "reason": gone.reason.word()}))
        }
        _ => return None,
    })
}
