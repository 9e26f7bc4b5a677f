//! The loop, one phase after the other.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::inspect::Snapshot;
use super::scenario::Scenario;
use super::scenario_run::{Next, PeerState, Playback};
use crate::base::observer::{Observer, Phase, Source, Step};

/// Plays a scenario and stops after each act and each phase. It is an iterator over [`Moment`]s.
///
/// ```
/// use tidemill::observer::Phase;
/// use tidemill::testing::{Cause, Scenario, Stepper};
///
/// let scenario: Scenario = "serve echo\nann connects\nann says \"hello\"".parse().unwrap();
/// let moments: Vec<_> = Stepper::new(&scenario).collect();
/// // Turn 1 accepts; the new socket is writable in turn 2.
/// let read = moments.iter().find(|moment| moment.happened.iter().any(|it| it.kind == "data")).unwrap();
/// assert_eq!((read.cause.clone(), read.snapshot.turn), (Cause::Phase(Phase::Read), 3));
/// assert_eq!(read.snapshot.dirty[0].1, 5, "the answer waits for phase 6");
/// ```
///
/// The simulation is deterministic: to go back, play again and take one moment less.
pub struct Stepper {
    play: Playback,
    happened: Rc<RefCell<Vec<Happened>>>,
    /// The phase that comes next, within a turn.
    phase: usize,
    number: usize,
    is_over: bool,
}

/// One point of a scenario: after an act, or after a phase of the loop.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Moment {
    /// Its number, from 1.
    pub number: usize,
    /// What was done since the moment before.
    pub cause: Cause,
    /// What the loop did in it, in order.
    pub happened: Vec<Happened>,
    /// The peers.
    pub peers: Vec<PeerState>,
    /// The kernel and the loop.
    pub snapshot: Snapshot,
    /// What the loop has forgotten, if it is at rest: see [`Snapshot::stuck`].
    pub stuck: Option<String>,
}

/// What leads to a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// The service was added, and listens.
    Start,
    /// A line of the script.
    Act(String),
    /// The clock has moved to the next deadline, or as far as the script says.
    Clock,
    /// A phase.
    Phase(Phase),
    /// The script is at its end, and nothing is left to do.
    Over,
    /// The scenario cannot go on: an act that is not possible here, or a loop that does not become quiet.
    Failed(String),
}

/// One step of the loop.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Happened {
    /// What it was, in a word: `event`, `stale event`, `read`, `send`, `write`, `fin`, `deadline`, `accept`, `refuse`,
    /// `dial`, `attempt`, `attempt failed`, `connected`, `close` (a slot is freed), or the name of a callback.
    pub kind: &'static str,
    /// The line that tells it.
    pub text: String,
}

/// Points to stop at: what a reader calls them, and the [kind](Happened::kind) of the step.
pub const BREAKPOINTS: &[(&str, &str)] = &[
    ("an event comes", "event"),
    ("a stale event comes", "stale event"),
    ("bytes are read", "read"),
    ("data is delivered", "data"),
    ("bytes are written", "write"),
    ("a FIN is sent", "fin"),
    ("a deadline fires", "deadline"),
    ("a connection is accepted", "accept"),
    ("a peer is refused", "refuse"),
    ("an attempt starts", "attempt"),
    ("a dial is connected", "connected"),
    ("a queue has drained", "drained"),
    ("a slot is freed", "close"),
];

/// Moments of one scenario at most: more is no lesson, and each holds a snapshot.
const MOMENTS_MAX: usize = 10_000;

impl Stepper {
    /// Begins a scenario.
    pub fn new(scenario: &Scenario) -> Stepper {
        let happened = Rc::new(RefCell::new(Vec::new()));
        let play = Playback::observed(scenario, Some(Box::new(Teller(happened.clone()))));
        Stepper { play, happened, phase: 0, number: 0, is_over: false }
    }

    /// A hash of all that happened so far: see [`Bench::trace_hash`](super::Bench::trace_hash).
    pub fn trace_hash(&self) -> u64 {
        self.play.bench.trace_hash()
    }

    fn advance(&mut self) -> Cause {
        if self.number == 0 {
            return Cause::Start;
        }
        if self.phase > 0 {
            return self.run_phase();
        }
        match self.play.next() {
            Ok(Next::Acted(line)) => Cause::Act(line),
            Ok(Next::ClockMoved) => Cause::Clock,
            Ok(Next::Turn) => self.run_phase(),
            Ok(Next::Over) => Cause::Over,
            Err(why) => Cause::Failed(why),
        }
    }

    fn run_phase(&mut self) -> Cause {
        let phase = Phase::ALL[self.phase];
        self.phase = (self.phase + 1) % Phase::ALL.len();
        self.play.bench.run_phase(phase);
        Cause::Phase(phase)
    }
}

impl Iterator for Stepper {
    type Item = Moment;

    fn next(&mut self) -> Option<Moment> {
        if self.is_over {
            return None;
        }
        let mut cause = self.advance();
        if self.number == MOMENTS_MAX {
            cause = Cause::Failed(format!("the scenario has more than {MOMENTS_MAX} steps"));
        }
        self.is_over = matches!(cause, Cause::Over | Cause::Failed(_));
        self.number += 1;
        let snapshot = self.play.bench.snapshot();
        let is_at_rest = self.phase == 0 && self.play.bench.is_quiet();
        Some(Moment {
            number: self.number,
            cause,
            stuck: is_at_rest.then(|| snapshot.stuck()).flatten(),
            happened: std::mem::take(&mut *self.happened.borrow_mut()),
            peers: self.play.peers(),
            snapshot,
        })
    }
}

impl std::fmt::Debug for Stepper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepper").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Writes each step of the loop as a line.
struct Teller(Rc<RefCell<Vec<Happened>>>);

impl Observer for Teller {
    fn observe(&mut self, step: &Step<'_>) {
        if let Some((kind, text)) = tell(step) {
            self.0.borrow_mut().push(Happened { kind, text });
        }
    }
}

fn tell(step: &Step<'_>) -> Option<(&'static str, String)> {
    Some(match step {
        Step::Event { source, readable, writable, end, error } => {
            let words = [(readable, " readable"), (writable, " writable"), (end, " end"), (error, " error")];
            let what: String = words.iter().filter(|(on, _)| **on).map(|(_, word)| *word).collect();
            match source {
                Source::Connection(id) => ("event", format!("event: {id}{what}")),
                Source::Listener(_) => ("event", format!("event: listener{what}")),
                Source::Waker => ("event", "event: waker".to_string()),
                Source::Stale => ("stale event", format!("stale event{what}: dropped")),
            }
        }
        Step::Call(call) => {
            let on = call.connection.map_or(String::new(), |id| format!(" {id}"));
            (call.callback.word(), format!("call {}{on}", call.callback.word()))
        }
        Step::Read { connection, result } => {
            ("read", format!("read {connection}: {}", moved(*result, "FIN")))
        }
        Step::Send { connection, bytes } => ("send", format!("send {connection}: {bytes} B queued")),
        Step::Write { connection, result } => {
            ("write", format!("write {connection}: {}", moved(*result, "0 B")))
        }
        Step::Fin { connection, result: Ok(()) } => ("fin", format!("FIN {connection}")),
        Step::Fin { connection, result: Err(error) } => {
            ("fin", format!("FIN {connection}: {}", error.kind()))
        }
        Step::Deadline { connection, due: Some(due) } => {
            ("deadline", format!("deadline {connection}: {due:?}"))
        }
        Step::Deadline { connection, due: None } => {
            ("deadline", format!("wheel entry {connection}: there was activity; set again"))
        }
        Step::Accept { connection, peer, .. } => ("accept", format!("accept {connection} from {peer}")),
        Step::Refuse { refused, .. } => {
            ("refuse", format!("refuse {}: {}", refused.peer, refused.reason.word()))
        }
        Step::Dial { connection, to, .. } => ("dial", format!("dial {connection} to {to}")),
        Step::Attempt { connection, to } => ("attempt", format!("attempt {connection} to {to}")),
        Step::AttemptFailed { connection, to, error } => {
            ("attempt failed", format!("attempt {connection} to {to} failed: {}", error.kind()))
        }
        Step::Connected { connection, to } => ("connected", format!("connected {connection} to {to}")),
        Step::Close { gone, .. } => {
            ("close", format!("close {}: {}; slot {} is free", gone.id, gone.reason.word(), gone.id.slot))
        }
        Step::Phase(_) | Step::Woken { .. } | Step::Return(_) | Step::TurnEnd { .. } => return None,
    })
}

fn moved(result: Result<usize, &io::Error>, zero: &str) -> String {
    match result {
        Ok(0) => zero.to_string(),
        Ok(n) => format!("{n} B"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => "would block".to_string(),
        Err(error) => error.kind().to_string(),
    }
}
