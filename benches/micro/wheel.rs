//! Timers: the wheel, tokio-util's `DelayQueue`, and a binary heap in which cancelled timers stay.
//!
//! A round begins with a number of timers, due in 1 to 60,000 ms, in random order. An eighth of them is cancelled, and
//! as many are inserted into the freed slots, the last one first, as `slab` reuses them. Then as many are refreshed and
//! moved, and at the end all expire.
//!
//! The operations:
//!
//! - insert, cancel: for an accepted and for a closed connection. The heap's cancel only marks the entry; its cost is
//!   paid when the entry comes to the front.
//! - refresh: a byte has arrived, and the timeout of 60 s starts again. Tidemill stores the tick in the connection (120
//!   bytes), which is in no cache here; in the loop, the read before has fetched it already. The peers have to move the
//!   entry.
//! - refresh, all told: the stores and the deferred work, for a tenth of a timeout, tick by tick: an entry whose old
//!   deadline fires is armed again for the rest. Each connection is used once a second, so there are sixty refreshes
//!   per firing. The peers defer nothing, so their figures are those of the row above.
//! - move: the deadline changes, and the entry is moved at once; a refresh avoids that.
//! - expire: the clock advances until no timer is left. The wheel is driven as by the loop, with [`Wheel::next`] and
//!   [`Wheel::pop_due`]. The `DelayQueue`'s clock is paused and advances in one step, so it does not pay for wake-ups
//!   of its runtime.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use crate::base::tick::Tick;
use crate::parts::wheel::Wheel;
use crate::{Contest, Operation, Random, nanoseconds_each};

const TIMEOUT: Duration = Duration::from_secs(60);
/// A tenth of the timeout, in ticks (10 ms).
const WHILE: u64 = 600;
const TICKS_A_SECOND: usize = 100;

/// A paused clock, advanced by the benchmark.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

pub fn contests(runtime: &Runtime, smoke: bool) -> Vec<Contest<'_>> {
    let sizes: &[(usize, &str, usize)] = match smoke {
        true => &[(1_000, "1,000", 5), (100_000, "100,000", 1)],
        false => &[(1_000, "1,000", 301), (100_000, "100,000", 51), (1_000_000, "1,000,000", 9)],
    };
    sizes.iter().map(|&(live, name, rounds)| contest(runtime, live, name, rounds)).collect()
}

fn contest<'a>(runtime: &'a Runtime, live: usize, name: &str, rounds: usize) -> Contest<'a> {
    let plan = || Plan::new(live);
    let (own, queue, heap) = (plan(), plan(), plan());
    let goal = |max: f64| (live == 100_000).then_some((max, "DelayQueue"));
    let operation = |name: &str, goal| Operation { goal, ..Operation::new(name) };
    Contest {
        title: format!("timers, {name} live"),
        operations: vec![
            operation("insert", goal(30.0)),
            operation("cancel", goal(30.0)),
            operation("refresh", goal(5.0)),
            operation("refresh, all told", goal(5.0)),
            operation("move", None),
            operation("expire", goal(60.0)),
        ],
        own: Box::new(move || round(&own, Tidemill::new(live))),
        peers: vec![
            ("DelayQueue", Box::new(move || round(&queue, Tokio::new(live, runtime)))),
            ("BinaryHeap", Box::new(move || round(&heap, Heap::new(live)))),
        ],
        rounds,
        repeats: 1,
    }
}

/// The operations of a round: the same for all candidates, and in all rounds.
struct Plan {
    live: usize,
    /// Deadlines in milliseconds: one per slot, then those to move to.
    deadlines: Vec<u64>,
    cancelled: Vec<u32>,
    used: Vec<u32>,
    /// All slots, in random order.
    everyone: Vec<u32>,
}

impl Plan {
    fn new(live: usize) -> Plan {
        let mut random = Random(live as u64);
        let some = live / 8;
        let deadlines = (0..live + 2 * some).map(|_| 1 + random.below(60_000) as u64).collect();
        let mut everyone: Vec<u32> = (0..live as u32).collect();
        random.shuffle(&mut everyone);
        let cancelled = everyone[..some].to_vec();
        random.shuffle(&mut everyone);
        let used = (0..some).map(|_| random.below(live) as u32).collect();
        Plan { live, deadlines, cancelled, used, everyone }
    }
}

trait Timers {
    type When: Copy;

    /// The deadline in the type of the candidate, so that converting it is not measured.
    fn when(&self, millis: u64) -> Self::When;
    fn insert(&mut self, slot: u32, when: Self::When);
    fn cancel(&mut self, slot: u32);
    fn refresh(&mut self, slot: u32);
    fn shift(&mut self, slot: u32, when: Self::When);
    fn expire(&mut self) -> usize;

    /// Nanoseconds per refresh, deferred work included; `None` if the candidate defers nothing.
    fn use_for_a_while(&mut self, _: &[u32]) -> Option<f64> {
        None
    }
}

fn round<T: Timers>(plan: &Plan, mut timers: T) -> Vec<f64> {
    let deadlines: Vec<T::When> = plan.deadlines.iter().map(|&millis| timers.when(millis)).collect();
    let (first, others) = deadlines.split_at(plan.live);
    for (slot, &when) in (0..).zip(first) {
        timers.insert(slot, when);
    }
    let some = plan.cancelled.len();
    let (new, moved) = others.split_at(some);
    let cancel = nanoseconds_each(some, || {
        for &slot in &plan.cancelled {
            timers.cancel(slot);
        }
    });
    let insert = nanoseconds_each(some, || {
        for (&slot, &when) in plan.cancelled.iter().rev().zip(new) {
            timers.insert(slot, when);
        }
    });
    let refresh = nanoseconds_each(some, || {
        for &slot in &plan.used {
            timers.refresh(slot);
        }
    });
    let shift = nanoseconds_each(some, || {
        for (&slot, &when) in plan.used.iter().rev().zip(moved) {
            timers.shift(slot, when);
        }
    });
    let all_told = timers.use_for_a_while(&plan.everyone).unwrap_or(refresh);
    let mut expired = 0;
    let expire = nanoseconds_each(plan.live, || expired = timers.expire());
    assert_eq!(expired, plan.live, "a timer was lost, or fired twice");
    vec![insert, cancel, refresh, all_told, shift, expire]
}

/// As large as the crate's `Connection`: see `src/connection/mod.rs`.
struct Connection {
    touched: Tick,
    _rest: [u64; 14],
}

struct Tidemill {
    wheel: Wheel,
    connections: Vec<Connection>,
    now: Tick,
}

impl Tidemill {
    fn new(live: usize) -> Tidemill {
        let connections = (0..live).map(|_| Connection { touched: Tick(0), _rest: [0; 14] }).collect();
        Tidemill { wheel: Wheel::new(), connections, now: Tick(0) }
    }

    /// As the loop does it, without computing the earliest of several deadlines.
    fn look_at_those_due(&mut self) {
        while let Some(slot) = self.wheel.pop_due(self.now) {
            let due = self.connections[slot as usize].touched.after(TIMEOUT);
            if due > self.now {
                self.wheel.arm(slot, due);
            }
        }
    }
}

impl Timers for Tidemill {
    type When = Tick;

    fn when(&self, millis: u64) -> Tick {
        Tick(0).after(Duration::from_millis(millis))
    }

    fn insert(&mut self, slot: u32, when: Tick) {
        self.wheel.arm(slot, when);
    }

    fn cancel(&mut self, slot: u32) {
        self.wheel.cancel(slot);
    }

    fn refresh(&mut self, slot: u32) {
        self.connections[slot as usize].touched = self.now;
    }

    fn shift(&mut self, slot: u32, when: Tick) {
        self.wheel.arm(slot, when);
    }

    fn expire(&mut self) -> usize {
        let mut expired = 0;
        while let Some(now) = self.wheel.next() {
            while let Some(slot) = self.wheel.pop_due(now) {
                black_box(slot);
                expired += 1;
            }
        }
        expired
    }

    fn use_for_a_while(&mut self, everyone: &[u32]) -> Option<f64> {
        let mut a_tick = everyone.chunks(everyone.len() / TICKS_A_SECOND).cycle();
        let refreshes = everyone.len() * WHILE as usize / TICKS_A_SECOND;
        Some(nanoseconds_each(refreshes, || {
            for _ in 0..WHILE {
                self.now.0 += 1;
                for &slot in a_tick.next().unwrap_or_default() {
                    self.refresh(slot);
                }
                self.look_at_those_due();
            }
        }))
    }
}

struct Tokio<'a> {
    queue: DelayQueue<u32>,
    /// The keys of the timers, which the user of a `DelayQueue` has to store.
    keys: Vec<Option<Key>>,
    start: Instant,
    anew: Instant,
    runtime: &'a Runtime,
}

impl Tokio<'_> {
    fn new(live: usize, runtime: &Runtime) -> Tokio<'_> {
        let start = Instant::now();
        let queue = DelayQueue::with_capacity(live);
        Tokio { queue, keys: vec![None; live], start, anew: start + TIMEOUT, runtime }
    }

    fn key(&self, slot: u32) -> Key {
        self.keys[slot as usize].expect("it was inserted")
    }
}

impl Timers for Tokio<'_> {
    type When = Instant;

    fn when(&self, millis: u64) -> Instant {
        self.start + Duration::from_millis(millis)
    }

    fn insert(&mut self, slot: u32, when: Instant) {
        self.keys[slot as usize] = Some(self.queue.insert_at(slot, when));
    }

    fn cancel(&mut self, slot: u32) {
        self.queue.remove(&self.key(slot));
    }

    fn refresh(&mut self, slot: u32) {
        self.queue.reset_at(&self.key(slot), self.anew);
    }

    fn shift(&mut self, slot: u32, when: Instant) {
        self.queue.reset_at(&self.key(slot), when);
    }

    fn expire(&mut self) -> usize {
        self.runtime.block_on(tokio::time::advance(2 * TIMEOUT));
        let mut context = Context::from_waker(Waker::noop());
        let mut expired = 0;
        while let Poll::Ready(Some(entry)) = self.queue.poll_expired(&mut context) {
            black_box(entry.into_inner());
            expired += 1;
        }
        expired
    }
}

struct Heap {
    heap: BinaryHeap<Reverse<(u64, u32, u32)>>,
    /// An entry is valid if it has the generation of its slot.
    generations: Vec<u32>,
}

impl Heap {
    fn new(live: usize) -> Heap {
        Heap { heap: BinaryHeap::with_capacity(2 * live), generations: vec![0; live] }
    }
}

impl Timers for Heap {
    type When = u64;

    fn when(&self, millis: u64) -> u64 {
        millis
    }

    fn insert(&mut self, slot: u32, when: u64) {
        self.heap.push(Reverse((when, slot, self.generations[slot as usize])));
    }

    fn cancel(&mut self, slot: u32) {
        self.generations[slot as usize] += 1;
    }

    fn refresh(&mut self, slot: u32) {
        self.shift(slot, TIMEOUT.as_millis() as u64);
    }

    fn shift(&mut self, slot: u32, when: u64) {
        self.cancel(slot);
        self.insert(slot, when);
    }

    fn expire(&mut self) -> usize {
        let mut expired = 0;
        while let Some(Reverse((_, slot, generation))) = self.heap.pop() {
            if self.generations[slot as usize] == generation {
                black_box(slot);
                expired += 1;
            }
        }
        expired
    }
}
