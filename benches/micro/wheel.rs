//! Timers: the wheel, tokio-util's `DelayQueue`, and a binary heap that leaves the cancelled ones in it.
//!
//! A round begins with so many live timers, due in 1 to 60,000 ms, in an order without order. An eighth of them is
//! cancelled, and as many new ones are inserted into the slots that are free now, the last one first, as `slab` hands
//! them out. Then come refreshes and moves of as many, and at the end all expire.
//!
//! What an operation is:
//!
//! - insert, cancel: an accepted connection is armed, one that leaves takes its entry along. The heap's cancel is only
//!   a mark, and what it saves is paid when the entry comes to the front.
//! - refresh: a byte has come, and the timeout of 60 s starts anew. Tidemill stores the tick in the connection, among
//!   others of the same 120 bytes, at a place that is in no cache; in the loop, the read before it has fetched that
//!   place already. The peers have nothing but moving the entry.
//! - refresh, all told: the stores and what they put off, for a tenth of a timeout, tick by tick: an entry whose old
//!   deadline comes is taken out and armed again for what is left. Each connection is used once a second, so there are
//!   sixty refreshes to each such look. The peers put nothing off, so their figures are those of the row above.
//! - move: the deadline becomes another one, and the entry follows at once. It is what a refresh is spared.
//! - expire: the clock goes on until nobody is left. The wheel is driven as the loop drives it, from
//!   [`Wheel::next`] to [`Wheel::pop_due`]. The `DelayQueue`'s clock is paused and takes all of it in one leap, so it
//!   does not pay for a runtime that is woken.

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
/// A tenth of the timeout, in ticks of 10 ms.
const WHILE: u64 = 600;
const TICKS_A_SECOND: usize = 100;

/// A clock that stands still until it is told to go on.
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

/// What happens in a round: the same for all, and in all rounds.
struct Plan {
    live: usize,
    /// Deadlines in milliseconds, one for each slot, and after these others.
    deadlines: Vec<u64>,
    cancelled: Vec<u32>,
    used: Vec<u32>,
    /// All slots, in an order without order.
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

    /// A deadline as it is handed in, so that reckoning it is not part of the operation.
    fn when(&self, millis: u64) -> Self::When;
    fn insert(&mut self, slot: u32, when: Self::When);
    fn cancel(&mut self, slot: u32);
    fn refresh(&mut self, slot: u32);
    fn shift(&mut self, slot: u32, when: Self::When);
    fn expire(&mut self) -> usize;

    /// Nanoseconds for each refresh, with all that it puts off; none when it puts nothing off.
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

/// As long as the crate's own: see `src/connection/mod.rs`.
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

    /// As the loop does it, but for the question which of several clocks is the next.
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
    /// Whoever has a timer must keep its key.
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
    /// An entry counts if it has its slot's generation.
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
