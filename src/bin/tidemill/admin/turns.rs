//! The last turns of a loop, as an observer sees them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemill::Stats;
use tidemill::observer::{Observer, Step};

use crate::locked::locked;

/// Turns that are kept.
const KEPT: usize = 64;

/// One turn: when it began and ended, and the counters at its end.
#[derive(Clone, Default)]
struct Turn {
    number: u64,
    /// From when the loop was made to the end of its sleep.
    woken: Duration,
    events: usize,
    took: Duration,
    counts: Counts,
}

/// What happened: differences of counters.
#[derive(Clone, Copy, Default)]
struct Counts {
    reads: u64,
    bytes_in: u64,
    writes: u64,
    bytes_out: u64,
    accepts: u64,
    dials: u64,
    closes: u64,
}

impl Counts {
    fn of(stats: &Stats, closes: u64) -> Counts {
        Counts {
            reads: stats.reads,
            bytes_in: stats.bytes_in,
            writes: stats.writes,
            bytes_out: stats.bytes_out,
            accepts: stats.accepted,
            dials: stats.dialed,
            closes,
        }
    }

    fn since(self, before: Counts) -> Counts {
        Counts {
            reads: self.reads - before.reads,
            bytes_in: self.bytes_in - before.bytes_in,
            writes: self.writes - before.writes,
            bytes_out: self.bytes_out - before.bytes_out,
            accepts: self.accepts - before.accepts,
            dials: self.dials - before.dials,
            closes: self.closes - before.closes,
        }
    }
}

/// The last turns, the oldest first.
#[derive(Default)]
struct Ring(VecDeque<Turn>);

/// The ring, shared with the observer that fills it, which may be on another thread.
#[derive(Clone, Default)]
pub struct Turns(Arc<Mutex<Ring>>);

/// Fills the ring. It gets no step of a message: the counters at the end of a turn have what happened.
pub struct Recorder {
    turns: Turns,
    current: Turn,
    before: Counts,
    /// Connections that have ended.
    closes: u64,
    began: Instant,
}

impl Turns {
    /// What fills it, for the loop of which it is.
    pub fn recorder(&self) -> Recorder {
        let (current, before) = (Turn::default(), Counts::default());
        Recorder { turns: self.clone(), current, before, closes: 0, began: Instant::now() }
    }
}

impl Observer for Recorder {
    fn wants_messages(&self) -> bool {
        false
    }

    fn observe(&mut self, step: &Step<'_>) {
        match step {
            Step::Woken { turn, events, now } => {
                self.began = Instant::now();
                let (took, counts) = Default::default();
                self.current = Turn { number: *turn, events: *events, woken: *now, took, counts };
            }
            Step::Close { .. } => self.closes += 1,
            Step::TurnEnd { stats, .. } => {
                let counts = Counts::of(stats, self.closes);
                self.current.took = self.began.elapsed();
                self.current.counts = counts.since(std::mem::replace(&mut self.before, counts));
                let ring = &mut locked(&self.turns.0).0;
                if ring.len() == KEPT {
                    ring.pop_front();
                }
                ring.push_back(self.current.clone());
            }
            _ => {}
        }
    }
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for turn in &locked(&self.0).0 {
            let counts = turn.counts;
            writeln!(
                f,
                "turn={} at={:.6} took_us={} events={} reads={} bytes_in={} writes={} bytes_out={} accepts={} dials={} \
                 closes={}",
                turn.number,
                turn.woken.as_secs_f64(),
                turn.took.as_micros(),
                turn.events,
                counts.reads,
                counts.bytes_in,
                counts.writes,
                counts.bytes_out,
                counts.accepts,
                counts.dials,
                counts.closes
            )?;
        }
        Ok(())
    }
}
