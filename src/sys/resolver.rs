//! Name resolution by the system's resolver. It blocks, so it runs on threads of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::Answer;

/// What looks up a name: a host and a port to any number of addresses, in the order of preference.
pub(crate) type LookUp = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The threads that ask the system's resolver.
///
/// ```text
///     the loop        look_up ──▶ queue ──▶ ┌ thread ┐  getaddrinfo(3), for as long as it takes
///                                           │  …     │
///                     answers ◀── done  ◀── └────────┘ ──▶ wakes the loop's poll
/// ```
///
/// At most [`FRESH_MAX`] lookups run at once. A lookup that has taken longer than [`HUNG_AFTER`], or that no dial waits
/// for any more, is not counted: its name server does not answer, and other names must not wait for it. Such lookups
/// keep their threads, because getaddrinfo(3) cannot be cancelled; all threads together are at most [`THREADS_MAX`].
///
/// A thread is started when a name is to be looked up and no thread is free, and ends when it had nothing to do for ten
/// seconds. The process does not wait for these threads when it ends.
pub(crate) struct Resolver {
    shared: Arc<Pool>,
    /// Lookups that are in the queue or under way, and that a dial waits for.
    pending: usize,
}

struct Pool {
    state: Mutex<PoolState>,
    work: Condvar,
    wake: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
}

struct PoolState {
    look_up: LookUp,
    queue: VecDeque<Request>,
    running: Vec<Running>,
    done: Vec<Answer>,
    threads: usize,
    /// Threads that wait for a request, or for leave to begin one.
    idle: usize,
    shut_down: bool,
}

struct Request {
    number: u64,
    host: Box<str>,
    port: u16,
}

struct Running {
    number: u64,
    began: Instant,
    /// No dial waits for the answer.
    abandoned: bool,
}

/// Lookups at once that are expected to answer. More would help against slow resolvers, and cost memory and requests
/// that a resolver drops; libuv has as many threads.
const FRESH_MAX: usize = 4;
/// An answer from a cache or a name server in the same network takes 1 to 50 ms, and one that needs the whole tree
/// seldom 500 ms.
const HUNG_AFTER: Duration = Duration::from_millis(500);
/// The hard cap. A thread that waits in getaddrinfo(3) has about 100 KiB resident and one or two descriptors.
const THREADS_MAX: usize = 32;
const IDLE_TIME: Duration = Duration::from_secs(10);

impl Resolver {
    pub(crate) fn new(wake: Box<dyn Fn() -> io::Result<()> + Send + Sync>) -> Resolver {
        let system = |host: &str, port: u16| (host, port).to_socket_addrs().map(Iterator::collect);
        let state = PoolState {
            look_up: Arc::new(system),
            queue: VecDeque::new(),
            running: Vec::new(),
            done: Vec::new(),
            threads: 0,
            idle: 0,
            shut_down: false,
        };
        Resolver {
            shared: Arc::new(Pool { state: Mutex::new(state), work: Condvar::new(), wake }),
            pending: 0,
        }
    }

    /// Replaces the system's resolver by another function, for lookups that begin from now on.
    pub(crate) fn set_look_up(&mut self, look_up: LookUp) {
        self.shared.lock().look_up = look_up;
    }

    pub(crate) fn look_up(&mut self, number: u64, host: &str, port: u16) {
        self.pending += 1;
        let mut state = self.shared.lock();
        state.queue.push_back(Request { number, host: host.into(), port });
        self.shared.provide_thread(state);
    }

    /// Nothing waits for this lookup any more. One that is still queued is dropped; says whether it was. One that is
    /// under way goes on, and its answer is dropped.
    pub(crate) fn cancel(&mut self, number: u64) -> bool {
        let mut state = self.shared.lock();
        let before = state.queue.len();
        state.queue.retain(|request| request.number != number);
        let was_queued = state.queue.len() < before;
        let running = state.running.iter_mut().find(|running| running.number == number);
        let was_running = running.map(|running| running.abandoned = true).is_some();
        let done = state.done.len();
        state.done.retain(|answer| answer.number != number);
        let was_done = state.done.len() < done;
        self.pending -= usize::from(was_queued || was_running || was_done);
        if was_running {
            self.shared.work.notify_one(); // Its place is free for a queued one.
        }
        was_queued
    }

    pub(crate) fn next_answer(&mut self) -> Option<Answer> {
        if self.pending == 0 {
            return None;
        }
        let answer = self.shared.lock().done.pop();
        self.pending -= usize::from(answer.is_some());
        answer
    }
}

impl PoolState {
    /// How long until one more lookup may begin; zero when it may now.
    fn wait_for_place(&self, now: Instant) -> Duration {
        let ages = self.running.iter().filter(|running| !running.abandoned);
        let mut fresh: Vec<Duration> = ages
            .map(|running| now.saturating_duration_since(running.began))
            .filter(|age| *age < HUNG_AFTER)
            .collect();
        if fresh.len() < FRESH_MAX {
            return Duration::ZERO;
        }
        fresh.sort_unstable();
        // The oldest of them is the first that no longer counts.
        HUNG_AFTER - fresh[fresh.len() - 1]
    }
}

impl Pool {
    /// A panic while the lock is held can only come from running out of memory; the state is whole all the same.
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a thread takes what is queued: a free one, else a new one.
    fn provide_thread(self: &Arc<Pool>, mut state: MutexGuard<'_, PoolState>) {
        if state.queue.is_empty() {
            return;
        }
        if state.idle > 0 {
            self.work.notify_one();
            return;
        }
        if state.threads >= THREADS_MAX {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = self.clone();
        let started = thread::Builder::new().name("resolver".into()).spawn(move || shared.work());
        if let Err(error) = started {
            self.on_spawn_error(&error);
        }
    }

    /// Without a single thread no request would ever be answered.
    fn on_spawn_error(&self, error: &io::Error) {
        let mut state = self.lock();
        state.threads -= 1;
        if state.threads > 0 {
            return;
        }
        while let Some(Request { number, .. }) = state.queue.pop_front() {
            let error = io::Error::new(error.kind(), format!("cannot start a resolver thread: {error}"));
            state.done.push(Answer { number, result: Err(error) });
        }
        drop(state);
        // The poll that this would wake has not begun.
        let _ = (self.wake)();
    }

    /// What each thread does.
    fn work(self: &Arc<Pool>) {
        let mut state = self.lock();
        while !state.shut_down {
            let began = Instant::now();
            let wait = if state.queue.is_empty() { IDLE_TIME } else { state.wait_for_place(began) };
            if !wait.is_zero() {
                state.idle += 1;
                let (woken, result) =
                    self.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
                state = woken;
                state.idle -= 1;
                if result.timed_out() && wait == IDLE_TIME && state.queue.is_empty() {
                    break;
                }
                continue;
            }
            let Some(Request { number, host, port }) = state.queue.pop_front() else { continue };
            state.running.push(Running { number, began, abandoned: false });
            let look_up = state.look_up.clone();
            self.provide_thread(state);
            // A function of the user's may panic; a thread that ended without an answer would never be replaced.
            let result = catch_unwind(AssertUnwindSafe(|| look_up(&host, port)))
                .unwrap_or_else(|_| Err(io::Error::other("the lookup function panicked")));
            state = self.lock();
            let place = state.running.iter().position(|running| running.number == number);
            let abandoned =
                place.map(|place| state.running.swap_remove(place)).is_none_or(|was| was.abandoned);
            if !state.shut_down && !abandoned {
                state.done.push(Answer { number, result });
                // It fails only when the poll is gone, and with it whatever has asked.
                let _ = (self.wake)();
            }
        }
        state.threads -= 1;
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.shared.lock().shut_down = true;
        self.shared.work.notify_all();
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolver({} pending)", self.pending)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn resolver() -> (Resolver, Receiver<()>) {
        let (woken, wakes) = channel();
        let wake = move || woken.send(()).map_err(io::Error::other);
        (Resolver::new(Box::new(wake)), wakes)
    }

    fn answers(resolver: &mut Resolver, wakes: &Receiver<()>, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        while answers.len() < count {
            wakes.recv_timeout(PATIENCE).expect("a wake-up");
            answers.extend(std::iter::from_fn(|| resolver.next_answer()));
        }
        answers
    }

    #[test]
    fn an_answer_wakes_the_poll_and_carries_its_number() {
        let (mut resolver, wakes) = resolver();
        resolver.look_up(7, "127.0.0.1", 80);
        let answer = answers(&mut resolver, &wakes, 1).remove(0);
        assert_eq!((answer.number, answer.result.unwrap()), (7, vec!["127.0.0.1:80".parse().unwrap()]));
    }

    /// A resolver whose lookups hang until the sender is dropped; names beginning with `good` are answered at once.
    fn hanging() -> (Resolver, Receiver<()>, Receiver<String>, Sender<()>) {
        let (mut resolver, wakes) = resolver();
        let (begun, begins) = channel();
        let (let_go, stuck) = channel::<()>();
        let stuck = Arc::new(Mutex::new(stuck));
        resolver.set_look_up(Arc::new(move |host, _| {
            begun.send(host.to_string()).map_err(io::Error::other)?;
            if !host.starts_with("good") {
                let _ = stuck.lock().map(|stuck| stuck.recv());
            }
            Ok(Vec::new())
        }));
        (resolver, wakes, begins, let_go)
    }

    #[test]
    fn at_most_four_lookups_run_until_they_count_as_hung_and_never_more_than_32() {
        let (mut resolver, wakes, begins, let_go) = hanging();
        let start = Instant::now();
        for number in 0..40 {
            resolver.look_up(number, "dead", 1);
        }
        (0..4).for_each(|_| drop(begins.recv_timeout(PATIENCE).expect("a lookup begins")));
        let fifth = begins.recv_timeout(PATIENCE).map(|_| start.elapsed()).expect("the fifth begins");
        assert!(fifth >= HUNG_AFTER, "after {fifth:?}");
        (5..THREADS_MAX).for_each(|_| drop(begins.recv_timeout(PATIENCE).expect("a lookup begins")));
        assert!(begins.recv_timeout(2 * HUNG_AFTER).is_err(), "a 33rd lookup began");
        assert!(resolver.cancel(39) && !resolver.cancel(39), "a queued one is dropped once");
        drop(let_go);
        let mut numbers: Vec<u64> =
            answers(&mut resolver, &wakes, 39).iter().map(|answer| answer.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..39).collect::<Vec<_>>());
        assert_eq!(resolver.pending, 0);
    }

    #[test]
    fn hung_lookups_do_not_delay_a_good_name_beyond_the_time_that_makes_them_hung() {
        let (mut resolver, wakes, _begins, _let_go) = hanging();
        for number in 0..6 {
            resolver.look_up(number, "dead", 1);
        }
        resolver.look_up(6, "good", 1);
        let asked = Instant::now();
        assert_eq!(answers(&mut resolver, &wakes, 1)[0].number, 6);
        // The first four and then the other two hang before it has its turn.
        println!("the good name was answered after {:?}", asked.elapsed());
        assert!(asked.elapsed() < 10 * HUNG_AFTER, "{:?}", asked.elapsed());
    }

    #[test]
    fn a_lookup_that_is_not_waited_for_gives_its_place_away_at_once_and_its_answer_is_dropped() {
        let (mut resolver, wakes, begins, let_go) = hanging();
        for number in 0..4 {
            resolver.look_up(number, "dead", 1);
        }
        (0..4).for_each(|_| drop(begins.recv_timeout(PATIENCE).expect("a lookup begins")));
        resolver.look_up(4, "good", 1);
        assert!(!resolver.cancel(0), "it is under way");
        assert_eq!(answers(&mut resolver, &wakes, 1)[0].number, 4);
        drop(let_go);
        let mut numbers: Vec<u64> =
            answers(&mut resolver, &wakes, 3).iter().map(|answer| answer.number).collect();
        numbers.sort_unstable();
        assert_eq!((numbers, resolver.pending), (vec![1, 2, 3], 0));
    }

    #[test]
    fn a_panic_in_a_lookup_function_is_an_error_and_costs_no_thread() {
        let (mut resolver, wakes) = resolver();
        resolver
            .set_look_up(Arc::new(|host, _| if host == "bad" { panic!("a bug") } else { Ok(Vec::new()) }));
        for number in 0..8 {
            resolver.look_up(number, "bad", 1);
        }
        assert!(answers(&mut resolver, &wakes, 8).iter().all(|answer| answer.result.is_err()));
        resolver.look_up(8, "good", 1);
        assert!(answers(&mut resolver, &wakes, 1)[0].result.is_ok());
    }
}
