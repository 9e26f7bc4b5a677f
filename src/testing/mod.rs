// The module's documentation is docs/testing.md: see src/lib.rs.

mod filter;
mod inspect;
mod kernel;
mod outcome;
mod peer;
mod recorder;
mod report;
mod scenario;
mod scenario_find;
mod scenario_orders;
mod scenario_parse;
mod scenario_peaks;
mod scenario_run;
mod scenario_services;
mod scenarios;
mod services;
mod step;
mod step_source;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use self::filter::PeerFilter;
pub use self::inspect::{ConnectionState, KernelListener, KernelSocket, KernelState, Snapshot};
pub use self::kernel::{DialAnswer, NameAnswer};
pub use self::outcome::Outcome;
pub use self::peer::{Peer, PeerEnd};
use self::recorder::{Record, recorder};
pub use self::scenario::{Scenario, ScenarioError};
pub use self::scenario_find::Search;
pub use self::scenario_run::PeerState;
pub use self::scenarios::{NamedScenario, SCENARIOS};
pub use self::step::{BREAKPOINTS, Cause, Happened, Moment, Stepper};
pub use self::step_source::{PhaseSource, phase_source};
use crate::base::address::Address;
use crate::base::observer::Phase;
pub use crate::base::seeded_bug::{SeededBug, SwitchedOn};
use crate::config::limits::Limits;
use crate::event_loop::{EventLoop, Turn};
use crate::sys::sim::{PeerId, Script, Sim};
pub use crate::sys::sim::{Tape, seeds};

/// A reactor on a simulated kernel, its peers, and the clock of both.
///
/// ```text
///     peers ── say, end, reset ──▶ ┌──────────────────┐ ──▶ ┌────────────┐ ──▶ services
///     played by the test           │ simulated kernel │     │ event loop │     under test
///           ◀── heard, ended ───── └──────────────────┘ ◀── └────────────┘ ◀──
///                                    seed, clock, names, dials, descriptors
/// ```
///
/// Whatever a test does to it, the loop turns until it has nothing left to do, so the next line of the test sees the
/// result. [`together`](Bench::together) does several things before the loop turns. Time stands still except in
/// [`advance`](Bench::advance). After each turn the invariants of the loop are checked.
///
/// When a test panics, the bench prints the last steps of the simulation and, if it has a seed, the command that
/// replays it.
pub struct Bench {
    event_loop: EventLoop<Sim>,
    script: Script,
    record: Rc<RefCell<Record>>,
    /// The other side of the filter (TLS) of a connection, for the peers that have one.
    filters: BTreeMap<PeerId, PeerFilter>,
    /// The dials that [`upstream`](Bench::upstream) has given out.
    dials_taken: Vec<PeerId>,
    /// The addresses of the listeners, in the order in which they were added.
    listening: Vec<Address>,
    seed: Option<u64>,
    max_turns: usize,
    /// Where a page plays the same, if what happens is a scenario.
    page_link: Option<String>,
    /// Within [`together`](Bench::together), where the loop does not turn.
    is_held: bool,
}

/// Turns after which a bench stops waiting for the loop to become quiet.
const TURNS_MAX: usize = 100_000;
/// Deadlines in a row at the same time, after which a bench stops waiting for them to pass.
const SAME_DEADLINE_MAX: usize = 100;

impl Bench {
    /// A bench with [`Limits::default`], whose kernel makes no trouble of its own.
    pub fn new() -> Bench {
        Bench::new_with(Limits::default())
    }

    /// A bench with these limits, whose kernel makes no trouble of its own.
    pub fn new_with(limits: Limits) -> Bench {
        let (sim, script) = Sim::new();
        script.answer_by_network();
        let mut event_loop = EventLoop::new(sim, limits).expect("a simulated kernel has room for a loop");
        let record = Rc::new(RefCell::new(Record::default()));
        event_loop.observe(recorder(record.clone(), script.clone()));
        Bench {
            event_loop,
            record,
            script,
            filters: BTreeMap::new(),
            dials_taken: Vec::new(),
            listening: Vec::new(),
            seed: None,
            max_turns: TURNS_MAX,
            page_link: None,
            is_held: false,
        }
    }

    /// A bench whose kernel makes all the trouble that a kernel may make, as this seed decides: bytes arrive in pieces,
    /// writes are short, calls are interrupted or would block after all, events are late, spurious and in any order. A
    /// service must not notice. See [`seeds`] for running one test with many.
    pub fn seeded(seed: u64) -> Bench {
        Bench::seeded_with(seed, Limits::default())
    }

    /// As [`seeded`](Bench::seeded), with limits.
    pub fn seeded_with(seed: u64, limits: Limits) -> Bench {
        let mut bench = Bench::on_tape_with(&Tape::seeded(seed), limits);
        bench.seed = Some(seed);
        bench
    }

    /// A bench whose kernel makes the trouble that the tape decides; the test may draw from the same tape what its
    /// peers do.
    pub fn on_tape(tape: &Tape) -> Bench {
        Bench::on_tape_with(tape, Limits::default())
    }

    /// As [`on_tape`](Bench::on_tape), with limits.
    pub fn on_tape_with(tape: &Tape, limits: Limits) -> Bench {
        let bench = Bench::new_with(limits);
        bench.script.inject_faults(tape);
        bench
    }

    /// Splits what peers and services send: from now on at most this many bytes arrive in one read, and are accepted by
    /// one write. `split_every(1)` delivers each byte alone.
    pub fn split_every(&mut self, bytes: usize) {
        self.script.split(bytes);
    }

    /// How many turns the loop may take until it is quiet, for one call of the bench. Default 100,000. Beyond that the
    /// bench panics, and says what is left to do.
    pub fn set_max_turns(&mut self, turns: usize) {
        self.max_turns = turns;
    }

    /// Does several things before the loop turns, so that it sees them in one turn.
    ///
    /// ```
    /// use tidemill::services::Echo;
    /// use tidemill::testing::Bench;
    ///
    /// let mut bench = Bench::new();
    /// bench.serve(Echo::raw());
    /// let (ann, bob) = (bench.connect(), bench.connect());
    /// let before = bench.turns();
    /// bench.together(|bench| {
    ///     bench.say(ann, "one");
    ///     bench.say(bob, "two");
    /// });
    /// assert_eq!(bench.turns(), before + 1);
    /// ```
    pub fn together<R>(&mut self, act: impl FnOnce(&mut Bench) -> R) -> R {
        self.is_held = true;
        let result = act(self);
        self.is_held = false;
        self.run();
        result
    }

    /// Turns the loop until neither it nor the kernel has anything to do at this time. All that a test does calls this;
    /// a test that queues something by itself, through a [`Handle`](crate::Handle) for example, calls it afterwards.
    ///
    /// # Panics
    ///
    /// After [`set_max_turns`](Bench::set_max_turns) turns, with what is left to do.
    #[track_caller]
    pub fn run(&mut self) {
        let mut left = self.max_turns;
        while !self.is_held && !self.is_quiet() {
            assert!(
                left > 0,
                "after {} turns there is still something to do: {}",
                self.max_turns,
                self.unfinished()
            );
            left -= 1;
            self.turn();
        }
        if !self.is_held {
            self.event_loop.check_at_rest();
        }
    }

    /// One turn of the loop, without moving the clock; then the check of its invariants.
    pub fn turn(&mut self) -> Turn {
        let turn = self.event_loop.turn_and_check();
        self.run_filters();
        turn
    }

    /// One phase of a turn; after the last one the turn has ended.
    fn run_phase(&mut self, phase: Phase) {
        if self.event_loop.run_phase(phase).is_some() {
            self.run_filters();
        }
    }

    /// Moves the clock, with a turn at each deadline on the way. The loop counts deadlines in ticks of 10 ms, so one of
    /// 60 s has passed after 60.02 s at the latest, and never after less than 60 s.
    ///
    /// # Panics
    ///
    /// When a deadline does not pass, and within [`together`](Bench::together).
    #[track_caller]
    pub fn advance(&mut self, span: Duration) {
        assert!(!self.is_held, "time does not pass within `together`");
        self.run();
        let end = self.elapsed() + span;
        let mut at_this_time = 0;
        loop {
            let before = self.elapsed();
            let now = self.move_clock(end);
            at_this_time = if now == before { at_this_time + 1 } else { 0 };
            assert!(
                at_this_time < SAME_DEADLINE_MAX,
                "the deadline at {now:?} does not pass: {}",
                self.unfinished()
            );
            self.turn();
            self.run();
            if now == end && self.event_loop.next_deadline().is_none_or(|deadline| deadline > end) {
                return;
            }
        }
    }

    /// Moves the clock to the next deadline, or to `end` if there is none before it; returns the time then.
    fn move_clock(&mut self, end: Duration) -> Duration {
        let deadline = self.event_loop.next_deadline().unwrap_or(end).min(end);
        self.script.advance(deadline.saturating_sub(self.elapsed()));
        self.elapsed()
    }

    /// The simulated time since the bench was made.
    pub fn elapsed(&self) -> Duration {
        self.script.elapsed()
    }

    /// How many turns the loop has taken.
    pub fn turns(&self) -> u64 {
        self.event_loop.table.cx.stats.turns
    }

    /// A hash of all that happened so far: system calls with their results, events and callbacks with their times. Two
    /// runs of one test with the same seed have the same.
    ///
    /// TLS draws random numbers of its own, and some of its messages differ in length with them: with TLS the hash
    /// differs from run to run.
    pub fn trace_hash(&self) -> u64 {
        self.script.with_trace(|trace| trace.hash())
    }

    fn is_quiet(&self) -> bool {
        !self.event_loop.has_work() && self.script.is_quiet() && self.filters_are_quiet()
    }

    fn unfinished(&self) -> String {
        let kernel = self.script.pending_event().map_or(String::new(), |event| format!("; {event}"));
        format!("{}{kernel}", self.event_loop.unfinished())
    }
}

impl Default for Bench {
    fn default() -> Bench {
        Bench::new()
    }
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench")
            .field("elapsed", &self.elapsed())
            .field("turns", &self.turns())
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Echo;

    #[should_panic(expected = "inboxes hold more than was charged")]
    #[test]
    fn a_broken_invariant_fails_the_next_turn() {
        let mut bench = Bench::new();
        bench.serve(Echo::new());
        let peer = bench.connect();
        bench.say(peer, "qui");
        assert!(bench.sockets().memory() > 0, "a beginning of a line is kept");
        bench.event_loop.table.cx.memory = 0;
        bench.turn();
    }

    #[test]
    fn seeds_cause_every_fault() {
        let mut text = String::new();
        for seed in 0..20 {
            let mut bench = Bench::seeded(seed);
            bench.serve(Echo::raw());
            let peers = [bench.connect(), bench.connect(), bench.connect()];
            bench.together(|bench| peers.iter().for_each(|&peer| bench.say(peer, "hello")));
            assert!(peers.iter().all(|&peer| bench.heard(peer) == "hello"));
            text += &bench.script.with_trace(|trace| trace.tail());
        }
        for step in ["read failed", "write failed", "write 1: 1\n", "read 1: 2\n", "poll: 0\n"] {
            assert!(text.contains(step), "{step}: {text}");
        }
        // Later connections come before earlier ones.
        let order: Vec<&str> = text.lines().filter(|line| line.contains("data ")).collect();
        assert!(order.windows(2).any(|pair| pair[0].contains("data 2") && pair[1].contains("data 0")));
    }
}
