//! Names to addresses, by the system's resolver, which blocks: so on threads of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::Answer;

/// What looks up a name: a host and a port to any number of addresses, in the order of preference.
pub(crate) type LookUp = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The threads that ask the system's resolver.
///
/// ```text
///     the loop        look_up ──▶ queue ──▶ ┌ thread ┐  getaddrinfo(3), for as long as it takes
///                                           │  …  4  │
///                     answers ◀── done  ◀── └────────┘ ──▶ wakes the loop's poll
/// ```
///
/// A thread is started when a name is to be looked up and none is free, and ends when there was nothing to do for ten
/// seconds: a program that dials no names has none. A lookup cannot be called off once it has begun (getaddrinfo(3) has
/// no such thing), so nobody waits for a thread, not even the process when it ends.
pub(crate) struct Resolver {
    shared: Arc<Pool>,
    look_up: LookUp,
    /// Lookups that are in the queue or under way.
    pending: usize,
}

struct Pool {
    state: Mutex<PoolState>,
    work: Condvar,
    wake: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<Request>,
    done: Vec<Answer>,
    threads: usize,
    idle: usize,
    shut_down: bool,
}

struct Request {
    number: u64,
    host: Box<str>,
    port: u16,
}

/// More would help against slow resolvers, and cost descriptors and memory; libuv has as many.
const THREADS_MAX: usize = 4;
const IDLE_TIME: Duration = Duration::from_secs(10);

impl Resolver {
    pub(crate) fn new(wake: Box<dyn Fn() -> io::Result<()> + Send + Sync>) -> Resolver {
        let shared = Pool { state: Mutex::default(), work: Condvar::new(), wake };
        let system = |host: &str, port: u16| (host, port).to_socket_addrs().map(Iterator::collect);
        Resolver { shared: Arc::new(shared), look_up: Arc::new(system), pending: 0 }
    }

    /// Has another function asked than the system's resolver.
    pub(crate) fn set_look_up(&mut self, look_up: LookUp) {
        self.look_up = look_up;
    }

    pub(crate) fn look_up(&mut self, number: u64, host: &str, port: u16) {
        self.pending += 1;
        let mut state = self.shared.lock();
        state.queue.push_back(Request { number, host: host.into(), port });
        if state.idle >= state.queue.len() {
            self.shared.work.notify_one();
            return;
        }
        if state.threads >= THREADS_MAX {
            return;
        }
        state.threads += 1;
        drop(state);
        let (shared, look_up) = (self.shared.clone(), self.look_up.clone());
        let started = thread::Builder::new().name("resolver".into()).spawn(move || shared.work(&look_up));
        if let Err(error) = started {
            self.on_spawn_error(number, error);
        }
    }

    /// Without a single thread nobody would ever answer.
    fn on_spawn_error(&self, number: u64, error: io::Error) {
        let mut state = self.shared.lock();
        state.threads -= 1;
        if state.threads == 0 {
            state.queue.retain(|question| question.number != number);
            state.done.push(Answer { number, result: Err(error) });
            drop(state);
            // The poll that this would wake has not begun.
            let _ = (self.shared.wake)();
        }
    }

    /// Takes a question out of the queue, if it is still there.
    pub(crate) fn cancel(&mut self, number: u64) -> bool {
        let mut state = self.shared.lock();
        let before = state.queue.len();
        state.queue.retain(|question| question.number != number);
        let forgotten = state.queue.len() < before;
        self.pending -= usize::from(forgotten);
        forgotten
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

impl Pool {
    /// A panic while the lock is held can only come from running out of memory; the state is whole all the same.
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn work(&self, look_up: &LookUp) {
        let mut state = self.lock();
        loop {
            if state.shut_down {
                break;
            }
            let Some(Request { number, host, port }) = state.queue.pop_front() else {
                state.idle += 1;
                let (woken, wait) =
                    self.work.wait_timeout(state, IDLE_TIME).unwrap_or_else(PoisonError::into_inner);
                state = woken;
                state.idle -= 1;
                if wait.timed_out() && state.queue.is_empty() {
                    break;
                }
                continue;
            };
            drop(state);
            // A function of the user's may panic; a thread that ended without an answer would never be replaced.
            let result = catch_unwind(AssertUnwindSafe(|| look_up(&host, port)))
                .unwrap_or_else(|_| Err(io::Error::other("the lookup function panicked")));
            state = self.lock();
            if state.shut_down {
                break;
            }
            state.done.push(Answer { number, result });
            // It fails only when the poll is gone, and with it whoever has asked.
            let _ = (self.wake)();
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};

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

    #[test]
    fn four_stuck_lookups_hold_four_threads_and_a_queued_one_can_be_cancelled() {
        let (mut resolver, wakes) = resolver();
        let (begun, begins) = channel();
        let (let_go, stuck) = channel::<()>();
        let stuck = Mutex::new(stuck);
        let max = Arc::new(AtomicUsize::new(0));
        let running = max.clone();
        resolver.set_look_up(Arc::new(move |_, _| {
            running.fetch_add(1, Ordering::SeqCst);
            begun.send(()).map_err(io::Error::other)?;
            let _ = stuck.lock().map(|stuck| stuck.recv());
            Ok(Vec::new())
        }));
        for number in 0..10 {
            resolver.look_up(number, "name", 1);
        }
        (0..4).for_each(|_| begins.recv_timeout(PATIENCE).expect("a lookup begins"));
        assert!(resolver.cancel(9) && !resolver.cancel(9) && !resolver.cancel(0));
        assert_eq!(max.load(Ordering::SeqCst), 4);
        drop(let_go);
        let mut numbers: Vec<u64> =
            answers(&mut resolver, &wakes, 9).iter().map(|answer| answer.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..9).collect::<Vec<_>>());
        assert_eq!(resolver.pending, 0);
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
