//! The synchronisation of the mailbox in steps, and every order in which threads can take them.
//!
//! Each operation on an [`AtomicBool`], a [`Mutex`], a [`Condvar`] or an [`Event`] is one step. In [`explore`] one
//! thread at a time takes a step, and which one is a choice. A run notes its choices; the next run repeats all but the
//! last that had another option. The memory of one step is seen by the next: orders that only a weaker memory model
//! allows are not explored. Outside of `explore` these are the types of `std`.
//!
//! ```text
//!     thread 0   ●──●     ●──────●            a run: the choices 0 0 1 0 1 1 0 …
//!     thread 1         ●      ●    …          the next one differs in the last choice that had another option
//! ```

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::panic::resume_unwind;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LockResult, PoisonError, atomic};
use std::thread;

thread_local! {
    /// The run that this thread belongs to, and its number in it.
    static RUN: RefCell<Option<(Arc<Run>, usize)>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Ready,
    /// Until the mutex, the condition variable or the event at this address is free, notified or set.
    Waits(usize),
    Done,
}

#[derive(Default)]
struct State {
    threads: Vec<Status>,
    running: usize,
    /// The choices to repeat, and those made: which of how many.
    repeat: Vec<usize>,
    made: Vec<(usize, usize)>,
    /// How many times a thread was stopped that could have gone on.
    preemptions: usize,
    max_preemptions: usize,
    /// All threads that are left wait for each other.
    is_stuck: bool,
}

#[derive(Default)]
struct Run {
    state: std::sync::Mutex<State>,
    changed: std::sync::Condvar,
}

impl State {
    /// Chooses the thread that takes the next step. The one that runs comes first: to go on is no preemption.
    fn choose(&mut self, own: usize) {
        let is_ready = |&thread: &usize| self.threads[thread] == Status::Ready;
        let mut options: Vec<usize> = Some(own).into_iter().filter(is_ready).collect();
        let goes_on = !options.is_empty();
        if !goes_on || self.preemptions < self.max_preemptions {
            options.extend((0..self.threads.len()).filter(|&thread| thread != own).filter(is_ready));
        }
        if options.is_empty() {
            self.is_stuck |= self.threads.iter().any(|&thread| thread != Status::Done);
            return;
        }
        let choice = self.repeat.get(self.made.len()).copied().unwrap_or(0);
        self.made.push((choice, options.len()));
        self.running = options[choice];
        self.preemptions += usize::from(goes_on && choice > 0);
    }
}

impl Run {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the status of a thread, lets the next one go on, and waits for its turn.
    fn yield_as(&self, own: usize, status: Status) {
        let mut state = self.state();
        state.threads[own] = status;
        state.choose(own);
        self.changed.notify_all();
        while status != Status::Done && (state.running != own || state.threads[own] != Status::Ready) {
            if state.is_stuck {
                drop(state);
                resume_unwind(Box::new("stuck")); // Ends the thread without a message: `explore` reports it.
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake(&self, at: usize) {
        for thread in self.state().threads.iter_mut().filter(|thread| **thread == Status::Waits(at)) {
            *thread = Status::Ready;
        }
    }
}

/// The run of this thread, unless it unwinds: then nothing has an order any more.
fn run() -> Option<(Arc<Run>, usize)> {
    RUN.with_borrow(Clone::clone).filter(|_| !thread::panicking())
}

fn step() {
    if let Some((run, own)) = run() {
        run.yield_as(own, Status::Ready);
    }
}

fn address<T>(of: &T) -> usize {
    std::ptr::from_ref(of).addr()
}

pub(crate) struct AtomicBool(atomic::AtomicBool);

impl AtomicBool {
    pub(crate) fn new(value: bool) -> AtomicBool {
        AtomicBool(atomic::AtomicBool::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> bool {
        step();
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        step();
        self.0.store(value, order);
    }

    pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
        step();
        self.0.swap(value, order)
    }
}

pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T> {
    inner: Option<std::sync::MutexGuard<'a, T>>,
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        step();
        if let Some((run, own)) = run() {
            while self.0.try_lock().is_err() {
                run.yield_as(own, Status::Waits(address(self)));
            }
        }
        Ok(MutexGuard { inner: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)), mutex: self })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("it is locked")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("it is locked")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        drop(self.inner.take());
        if let Some((run, _)) = run() {
            run.wake(address(self.mutex));
        }
    }
}

pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar(std::sync::Condvar::new())
    }

    pub(crate) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let Some((run, own)) = run() else {
            let inner = guard.inner.take().expect("it is locked");
            guard.inner = Some(self.0.wait(inner).unwrap_or_else(PoisonError::into_inner));
            return Ok(guard);
        };
        let mutex = guard.mutex;
        drop(guard);
        run.yield_as(own, Status::Waits(address(self)));
        mutex.lock()
    }

    pub(crate) fn notify_all(&self) {
        step();
        self.0.notify_all();
        if let Some((run, _)) = run() {
            run.wake(address(self));
        }
    }
}

/// What a thread sleeps on until another sets it: the kernel's part of a waker.
#[derive(Default)]
pub(crate) struct Event(atomic::AtomicBool);

impl Event {
    pub(crate) fn set(&self) {
        step();
        self.0.store(true, Ordering::SeqCst);
        if let Some((run, _)) = run() {
            run.wake(address(self));
        }
    }

    /// Sleeps until it is set, and clears it.
    pub(crate) fn wait(&self) {
        step();
        while !self.0.swap(false, Ordering::SeqCst) {
            let (run, own) = run().expect("a thread of a run");
            run.yield_as(own, Status::Waits(address(self)));
        }
    }
}

pub(crate) type Threads = Vec<Box<dyn FnOnce() + Send>>;

/// Runs threads in every order of their steps with at most so many preemptions. `start` makes the threads of one run.
/// Returns how many orders there are. Panics with the choices of the first run in which a thread panics, or in which
/// all threads that are left wait.
pub(crate) fn explore(max_preemptions: usize, start: impl Fn() -> Threads) -> usize {
    let (mut repeat, mut orders) = (Vec::new(), 0);
    loop {
        let threads = start();
        let state = State {
            threads: vec![Status::Ready; threads.len()],
            repeat,
            max_preemptions,
            ..State::default()
        };
        let run = Arc::new(Run { state: std::sync::Mutex::new(state), ..Run::default() });
        run.state().choose(0);
        let bug = crate::base::seeded_bug::SeededBug::current();
        let spawn = |(own, work): (usize, Box<dyn FnOnce() + Send>)| {
            let run = Arc::clone(&run);
            thread::spawn(move || {
                let _on = bug.map(|bug| bug.switch_on());
                let first = run.state();
                drop(run.changed.wait_while(first, |state| state.running != own && !state.is_stuck));
                RUN.set(Some((Arc::clone(&run), own)));
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                RUN.set(None);
                run.yield_as(own, Status::Done);
                outcome.is_ok()
            })
        };
        let handles: Vec<_> = threads.into_iter().enumerate().map(spawn).collect();
        let ended: Vec<_> = handles.into_iter().map(|handle| handle.join().is_ok_and(|ok| ok)).collect();
        let state = run.state();
        let choices: Vec<usize> = state.made.iter().map(|(choice, _)| *choice).collect();
        assert!(!state.is_stuck, "all threads wait, after the choices {choices:?}");
        assert!(ended.iter().all(|&ok| ok), "a thread failed, after the choices {choices:?}");
        orders += 1;
        let Some(last) = state.made.iter().rposition(|&(choice, options)| choice + 1 < options) else {
            return orders;
        };
        repeat = choices[..=last].to_vec();
        repeat[last] += 1;
    }
}
