//! The last turns of a loop, as an observer sees them: one in sixteen, and all while a client is connected. To record
//! all the time would add a fifth to the instructions of a turn with one message.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemill::Stats;
use tidemill::observer::{Observer, Step};

use crate::locked::locked;
use crate::observe::next_sampled;

/// Turns that are kept.
const KEPT: usize = 64;

/// One turn. What it did is computed when it is shown: to record it is to copy some values.
#[derive(Clone, Copy)]
struct Turn {
    number: u64,
    /// From when the loop was made to the end of its sleep.
    woken: Duration,
    events: usize,
    began: Instant,
    ended: Instant,
    /// The counters at its end.
    counts: Counts,
}

/// Counters of the loop, or their differences: what happened meanwhile.
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

/// The last turns, the oldest first; one more than are shown, for the counters at its end.
#[derive(Default)]
struct Ring(VecDeque<Turn>);

/// The ring, shared with the observer that fills it, which may be on another thread.
#[derive(Clone)]
pub struct Turns {
    ring: Arc<Mutex<Ring>>,
    /// How many clients the admin socket has.
    pub clients: Arc<AtomicUsize>,
}

/// Fills the ring. It gets no step of a message: the counters at the end of a turn have what happened.
pub struct Recorder {
    turns: Turns,
    /// Of the turn whose beginning it got last.
    number: u64,
    woken: Duration,
    events: usize,
    /// Connections that have ended.
    closes: u64,
    began: Instant,
}

impl Turns {
    /// One for each loop. A client of the admin socket has all of them record all turns.
    pub fn of(loops: usize) -> Vec<Turns> {
        let clients = Arc::<AtomicUsize>::default();
        let one = |_| Turns { ring: Arc::default(), clients: clients.clone() };
        (0..loops).map(one).collect()
    }

    /// What fills it, for the loop of which it is.
    pub fn recorder(&self) -> Recorder {
        let (woken, began) = (Duration::ZERO, Instant::now());
        Recorder { turns: self.clone(), number: 0, woken, events: 0, closes: 0, began }
    }
}

impl Observer for Recorder {
    fn wants_messages(&self) -> bool {
        false
    }

    fn next_turn(&self, turn: u64) -> u64 {
        match self.turns.clients.load(Ordering::Relaxed) {
            0 => next_sampled(turn),
            _ => turn + 1,
        }
    }

    fn observe(&mut self, step: &Step<'_>) {
        match step {
            Step::Woken { turn, events, now } => {
                (self.number, self.woken, self.events, self.began) = (*turn, *now, *events, Instant::now());
            }
            Step::Close { .. } => self.closes += 1,
            // Of other turns in which a connection began or ended it gets the end, but not the beginning.
            Step::TurnEnd { turn, stats, .. } if *turn == self.number => {
                let Recorder { number, woken, events, began, closes, .. } = *self;
                let counts = Counts::of(stats, closes);
                let turn = Turn { number, woken, events, began, ended: Instant::now(), counts };
                let ring = &mut locked(&self.turns.ring).0;
                if ring.len() > KEPT {
                    ring.pop_front();
                }
                ring.push_back(turn);
            }
            _ => {}
        }
    }
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = &locked(&self.ring).0;
        let (mut before, mut last) = (Counts::default(), 0);
        for (index, turn) in ring.iter().enumerate() {
            let counts = turn.counts.since(std::mem::replace(&mut before, turn.counts));
            let turns = turn.number - std::mem::replace(&mut last, turn.number);
            if index == 0 && ring.len() > KEPT {
                continue;
            }
            writeln!(
                f,
                "turn={} turns={turns} at={:.6} took_us={} events={} reads={} bytes_in={} writes={} bytes_out={} \
                 accepts={} dials={} closes={}",
                turn.number,
                turn.woken.as_secs_f64(),
                (turn.ended - turn.began).as_micros(),
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
