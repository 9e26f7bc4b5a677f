//! Names to addresses, by the system's resolver. It blocks, so it is called on threads of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::Answer;
use crate::sys::locked;

/// The function that looks up a name: a host and a port to any number of addresses, in the order of preference.
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
/// When many names hang, the last threads are kept for the names that are likely to be answered ([`NameClass`]), and
/// these also go first in the queue. So however many dead names there are, a name that has been answered before is
/// looked up at once, and a new name does not wait for names that are known to hang. What remains: while 28 *different*
/// names that were never asked before hang, a new name waits until one of them is given up, which the system's resolver
/// does after 10 s by default (resolv.conf(5), `timeout` and `attempts`).
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
    /// How the last lookup of a name went; the most recent is last, and at most [`HISTORY_MAX`] are kept.
    history: VecDeque<(Box<str>, NameClass)>,
    done: Vec<Answer>,
    threads: usize,
    /// Threads that wait for a request, or until one may begin.
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
    host: Box<str>,
    began: Instant,
    /// No dial waits for the answer.
    abandoned: bool,
}

/// What the last lookup of a name says about the next. In the order in which names of each class are looked up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum NameClass {
    /// It was answered within [`HUNG_AFTER`].
    Answered,
    /// It was not asked before, or too long ago.
    New,
    /// It took longer, or is still under way.
    Hung,
}

/// Lookups at once that are expected to be answered. More would help with slow name servers, and would cost memory and
/// requests that a name server drops. libuv has as many threads.
const FRESH_MAX: usize = 4;
/// An answer from a cache or a name server in the same network takes 1 to 50 ms, and one that needs the whole tree
/// seldom 500 ms.
const HUNG_AFTER: Duration = Duration::from_millis(500);
/// The maximum number of threads. One that waits in getaddrinfo(3) has about 100 KiB resident, and one or two
/// descriptors.
const THREADS_MAX: usize = 32;
/// Names whose last lookup is remembered: 256 host names take about 10 KiB.
const HISTORY_MAX: usize = 256;
const IDLE_TIME: Duration = Duration::from_secs(10);

impl Resolver {
    pub(crate) fn new(wake: Box<dyn Fn() -> io::Result<()> + Send + Sync>) -> Resolver {
        let system = |host: &str, port: u16| (host, port).to_socket_addrs().map(Iterator::collect);
        let state = PoolState {
            look_up: Arc::new(system),
            queue: VecDeque::new(),
            running: Vec::new(),
            history: VecDeque::new(),
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

    /// No dial waits for this lookup any more. If it is still queued, it is dropped; returns whether it was. If it is
    /// under way, it goes on, and its answer is dropped.
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
            self.shared.work.notify_one(); // A queued lookup may begin in its place.
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

impl NameClass {
    /// How many lookups may be under way, hung ones included, after one of this class has begun.
    fn running_max(self) -> usize {
        match self {
            NameClass::Answered => THREADS_MAX,
            NameClass::New => THREADS_MAX - FRESH_MAX,
            NameClass::Hung => THREADS_MAX - 2 * FRESH_MAX,
        }
    }
}

impl PoolState {
    fn class(&self, host: &str, now: Instant) -> NameClass {
        let hangs = |running: &Running| {
            *running.host == *host && now.saturating_duration_since(running.began) >= HUNG_AFTER
        };
        if self.running.iter().any(hangs) {
            return NameClass::Hung;
        }
        self.history.iter().find(|(known, _)| **known == *host).map_or(NameClass::New, |(_, class)| *class)
    }

    fn remember(&mut self, host: Box<str>, class: NameClass) {
        self.history.retain(|(known, _)| *known != host);
        if self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back((host, class));
    }

    /// Takes the request that may begin now: the oldest of the best class.
    fn next_request(&mut self, now: Instant) -> Option<Request> {
        let classes = self.queue.iter().map(|request| self.class(&request.host, now)).enumerate();
        let (place, class) = classes.min_by_key(|(place, class)| (*class, *place))?;
        (self.running.len() < class.running_max()).then(|| self.queue.remove(place)).flatten()
    }

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
        // The oldest is the first that counts as hung.
        HUNG_AFTER - fresh[fresh.len() - 1]
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        locked(&self.state)
    }

    /// Makes sure that a thread takes what is queued: a free one, else a new one.
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

    /// Without any thread the requests would never be answered, so they fail.
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
            let place_in = state.wait_for_place(began);
            let next = if place_in.is_zero() { state.next_request(began) } else { None };
            let Some(Request { number, host, port }) = next else {
                // Where the threads are kept for a better class, lookups under way take the queue when they end.
                let waits_for_place = !state.queue.is_empty() && !place_in.is_zero();
                let wait = if waits_for_place { place_in } else { IDLE_TIME };
                state.idle += 1;
                let waited = self.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
                state = waited.0;
                state.idle -= 1;
                if waited.1.timed_out() && !waits_for_place && state.queue.is_empty() {
                    break;
                }
                continue;
            };
            state.running.push(Running { number, host: host.clone(), began, abandoned: false });
            let look_up = state.look_up.clone();
            self.provide_thread(state);
            // A function of the user's may panic; a thread that ended without an answer would never be replaced.
            let result = catch_unwind(AssertUnwindSafe(|| look_up(&host, port)))
                .unwrap_or_else(|_| Err(io::Error::other("the lookup function panicked")));
            state = self.lock();
            match (began.elapsed() < HUNG_AFTER, &result) {
                (true, Ok(_)) => state.remember(host, NameClass::Answered),
                (true, Err(_)) => {}
                (false, _) => state.remember(host, NameClass::Hung),
            }
            let place = state.running.iter().position(|running| running.number == number);
            let abandoned =
                place.map(|place| state.running.swap_remove(place)).is_none_or(|was| was.abandoned);
            if !state.shut_down && !abandoned {
                state.done.push(Answer { number, result });
                // It fails only when the poll is gone, and with it the loop that has asked.
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
    fn at_most_four_lookups_run_until_they_count_as_hung_and_never_more_than_28() {
        let (mut resolver, wakes, begins, let_go) = hanging();
        let start = Instant::now();
        for number in 0..40 {
            resolver.look_up(number, &format!("dead{number}"), 1);
        }
        (0..4).for_each(|_| drop(begins.recv_timeout(PATIENCE).expect("a lookup begins")));
        let fifth = begins.recv_timeout(PATIENCE).map(|_| start.elapsed()).expect("the fifth begins");
        assert!(fifth >= HUNG_AFTER, "after {fifth:?}");
        (5..28).for_each(|_| drop(begins.recv_timeout(PATIENCE).expect("a lookup begins")));
        assert!(begins.recv_timeout(2 * HUNG_AFTER).is_err(), "a 29th lookup began");
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
    fn however_many_names_hang_those_that_were_answered_before_are_answered_at_once() {
        let (mut resolver, wakes, begins, let_go) = hanging();
        let begun = |names: usize| -> Vec<String> {
            (0..names).map(|_| begins.recv_timeout(PATIENCE).expect("a lookup begins")).collect()
        };
        resolver.look_up(100, "good-known", 1);
        assert_eq!(answers(&mut resolver, &wakes, 1)[0].number, 100);
        begun(1);
        // All threads that new names may have hang, and one more name waits.
        for number in 0..29 {
            resolver.look_up(number, &format!("dead{number}"), 1);
        }
        begun(28);
        for _ in 0..8 {
            resolver.look_up(101, "good-known", 1);
            assert_eq!(answers(&mut resolver, &wakes, 1)[0].number, 101);
            assert_eq!(begun(1), ["good-known"]);
        }
        // A name that hangs is not asked again beside itself, and goes behind a new one.
        resolver.look_up(102, "dead0", 1);
        resolver.look_up(103, "good-new", 1);
        {
            let mut state = resolver.shared.lock();
            let classes = ["good-known", "good-new", "dead0"].map(|host| state.class(host, Instant::now()));
            assert_eq!(classes, [NameClass::Answered, NameClass::New, NameClass::Hung]);
            assert!(state.next_request(Instant::now()).is_none());
            state.running.truncate(23);
            let next = std::iter::from_fn(|| state.next_request(Instant::now()));
            let next: Vec<u64> = next.map(|request| request.number).collect();
            assert_eq!(next, [28, 103, 102], "new names first, in their order");
        }
        drop(let_go);
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
