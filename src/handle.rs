//! `Handle`: how other threads run work on the loop.

use std::any::Any;
use std::fmt;
#[cfg(doc)]
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{self, ThreadId};

use crate::base::id::{Key, ReactorId};
use crate::base::post_error::{PostError, PostRefusal};
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::sockets::Sockets;
use crate::connection::table::Table;
use crate::service::{Service, ServiceSockets, run_with};
use crate::sys::Waker;

// The tests run the mailbox in every order of its steps, so these are theirs, which are `std`'s with steps.
#[cfg(not(test))]
use std::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool};
#[cfg(test)]
use tests::stepped::{AtomicBool, Condvar, Mutex, MutexGuard};

/// Lets other threads run work on the loop's thread. Cheap to clone; [`Reactor::handle`](crate::Reactor::handle) makes
/// one.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tidemill::{Limits, Reactor};
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// let handle = reactor.handle();
/// std::thread::spawn(move || handle.post(|sockets| sockets.shutdown(Duration::ZERO)));
/// while !reactor.is_shutting_down() {
///     reactor.turn(None)?;
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Handle(Arc<Mailbox>);

/// As [`Work`](crate::connection::deferred::Work), from another thread.
type ServiceWork = Box<dyn FnOnce(&mut dyn Any, &mut Table) + Send>;

/// Posted work: for all connections, or for the service with this number.
pub(crate) enum Post {
    All(Box<dyn FnOnce(&mut Sockets<'_>) + Send>),
    Service(u16, ServiceWork),
}

/// The queue of posted work, shared by all handles and the loop.
pub(crate) struct Mailbox {
    posts: Mutex<Vec<Post>>,
    /// Notified when the loop has taken the posts, and when it is dropped.
    room: Condvar,
    max: usize,
    /// Whether the loop has been woken for the queued posts. A burst of posts then costs one wake-up.
    woken: AtomicBool,
    /// Whether the loop has been dropped.
    closed: AtomicBool,
    /// The thread that made the reactor, which is the one that turns it.
    loop_thread: ThreadId,
    wake: Waker,
    /// Of which reactor keys must be.
    reactor: ReactorId,
}

impl Handle {
    /// Queues `work` for the loop and wakes it. It runs in phase 3 of one of the next turns, in the order of posting;
    /// at most [`Limits::posts_per_turn`](crate::Limits::posts_per_turn) run in one turn. If the reactor is dropped
    /// before, `work` is dropped without being run.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the reactor has been dropped, and
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when [`Limits::posts`](crate::Limits::posts) are queued already. The
    /// error gives `work` back.
    pub fn post<F>(&self, work: F) -> Result<(), PostError<F>>
    where
        F: FnOnce(&mut Sockets<'_>) + Send + 'static,
    {
        self.0.push(work, |work| Post::All(Box::new(work)), false)
    }

    /// As [`post`](Handle::post), but when [`Limits::posts`](crate::Limits::posts) are queued already, blocks the
    /// thread until the loop has taken them, or the reactor is dropped.
    ///
    /// ```
    /// use std::sync::mpsc::channel;
    /// use tidemill::{Limits, Reactor};
    ///
    /// let mut reactor = Reactor::new(Limits { posts: 1, ..Limits::default() })?;
    /// let (handle, (sender, receiver)) = (reactor.handle(), channel());
    /// let worker = std::thread::spawn(move || {
    ///     for number in 0..100 {
    ///         let sender = sender.clone();
    ///         handle.post_wait(move |_| sender.send(number).expect("a receiver")).expect("a loop");
    ///     }
    /// });
    /// let mut all = Vec::new();
    /// while all.len() < 100 {
    ///     reactor.turn(None)?;
    ///     all.extend(receiver.try_iter());
    /// }
    /// assert!(all.into_iter().eq(0..100));
    /// # worker.join().expect("a thread");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the reactor has been dropped. On the thread that made the
    /// reactor, it does not wait but fails as `post` does: that thread is the one that would take the posts.
    pub fn post_wait<F>(&self, work: F) -> Result<(), PostError<F>>
    where
        F: FnOnce(&mut Sockets<'_>) + Send + 'static,
    {
        self.0.push(work, |work| Post::All(Box::new(work)), true)
    }

    /// As [`post`](Handle::post), for one service: `work` gets the service and its sessions. So a worker thread can
    /// give a result to the session that asked for it, and no map beside the sessions is needed.
    ///
    /// ```
    /// use std::collections::VecDeque;
    /// use std::thread;
    /// use tidemill::{Handle, Input, Key, Service, ServiceId, Socket, Sockets};
    ///
    /// /// Answers each line with its checksum, from a thread of its own, in the order of the lines.
    /// struct Sums { handle: Handle, own: Option<Key<Sums>> }
    ///
    /// /// The requests of one connection that have no answer yet, and the answers that wait for an earlier one.
    /// #[derive(Default)]
    /// struct InFlight { answered: usize, asked: usize, waiting: VecDeque<Option<u32>> }
    ///
    /// impl Service for Sums {
    ///     type Session = InFlight;
    ///     fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) { self.own = sockets.key(own) }
    ///     fn open(&mut self, _: &mut Socket<'_>) -> InFlight { InFlight::default() }
    ///     fn data(&mut self, in_flight: &mut InFlight, socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         let Some(own) = self.own else { return };
    ///         while let Some(line) = input.take_line() {
    ///             let (handle, id, line, number) = (self.handle.clone(), socket.id(), line.to_vec(), in_flight.asked);
    ///             in_flight.asked += 1;
    ///             in_flight.waiting.push_back(None);
    ///             thread::spawn(move || {
    ///                 let sum = line.iter().map(|&byte| u32::from(byte)).sum();
    ///                 let _ = handle.post_to_wait(own, move |_, sockets| {
    ///                     let Some((in_flight, mut socket)) = sockets.session(id) else { return };
    ///                     in_flight.waiting[number - in_flight.answered] = Some(sum);
    ///                     while let Some(Some(sum)) = in_flight.waiting.front() {
    ///                         socket.send(format!("{sum}\n").as_bytes());
    ///                         in_flight.waiting.pop_front();
    ///                         in_flight.answered += 1;
    ///                     }
    ///                 });
    ///             });
    ///         }
    ///     }
    /// }
    /// # let mut reactor = tidemill::Reactor::new(tidemill::Limits::default()).unwrap();
    /// # let handle = reactor.handle();
    /// # reactor.add(Sums { handle, own: None });
    /// ```
    ///
    /// # Errors
    ///
    /// As [`post`](Handle::post), and [`InvalidInput`](io::ErrorKind::InvalidInput) when the key is of another reactor.
    pub fn post_to<S, F>(&self, key: Key<S>, work: F) -> Result<(), PostError<F>>
    where
        S: Service,
        F: FnOnce(&mut S, &mut ServiceSockets<'_, S>) + Send + 'static,
    {
        self.push_to(key, work, false)
    }

    /// As [`post_to`](Handle::post_to), and waits for a place as [`post_wait`](Handle::post_wait).
    ///
    /// # Errors
    ///
    /// As [`post_wait`](Handle::post_wait), and [`InvalidInput`](io::ErrorKind::InvalidInput) when the key is of
    /// another reactor.
    pub fn post_to_wait<S, F>(&self, key: Key<S>, work: F) -> Result<(), PostError<F>>
    where
        S: Service,
        F: FnOnce(&mut S, &mut ServiceSockets<'_, S>) + Send + 'static,
    {
        self.push_to(key, work, true)
    }

    fn push_to<S, F>(&self, key: Key<S>, work: F, may_wait: bool) -> Result<(), PostError<F>>
    where
        S: Service,
        F: FnOnce(&mut S, &mut ServiceSockets<'_, S>) + Send + 'static,
    {
        if key.id.reactor != self.0.reactor {
            return Err(PostError::new(work, PostRefusal::OtherReactor));
        }
        let make =
            |work: F| Post::Service(key.id.number, Box::new(|service, table| run_with(service, table, work)));
        self.0.push(work, make, may_wait)
    }

    pub(crate) fn new(max: usize, wake: Waker, reactor: ReactorId) -> Handle {
        Handle(Arc::new(Mailbox {
            posts: Mutex::new(Vec::new()),
            room: Condvar::new(),
            max,
            woken: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            loop_thread: thread::current().id(),
            wake,
            reactor,
        }))
    }

    pub(crate) fn mailbox(&self) -> &Mailbox {
        &self.0
    }
}

impl Mailbox {
    /// Ignores poisoning: a panic while the lock is held can only come from a failed allocation, which leaves the
    /// vector intact.
    fn lock(&self) -> MutexGuard<'_, Vec<Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues work, as the post that `make` makes of it; waits for a place if it `may_wait`.
    ///
    /// The loop is woken before the post is in the queue, so that work of which the loop would not learn can be given
    /// back. The loop finds it all the same: the queue is locked until the post is in it.
    fn push<F>(&self, work: F, make: impl FnOnce(F) -> Post, may_wait: bool) -> Result<(), PostError<F>> {
        let mut posts = self.lock();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(PostError::new(work, PostRefusal::Dropped));
            }
            if posts.len() < self.max {
                break;
            }
            if !may_wait || self.max == 0 || thread::current().id() == self.loop_thread {
                return Err(PostError::new(work, PostRefusal::Full(self.max)));
            }
            posts = self.room.wait(posts).unwrap_or_else(PoisonError::into_inner);
        }
        if !self.woken.swap(true, Ordering::AcqRel) {
            if let Err(error) = (self.wake)() {
                self.woken.store(false, Ordering::Release);
                return Err(PostError::new(work, PostRefusal::Wake(error)));
            }
        }
        posts.push(make(work));
        Ok(())
    }

    /// Moves all posts into `into`.
    pub(crate) fn take(&self, into: &mut Vec<Post>) {
        // Clear the flag first, then take the posts. In the other order, a post that is queued in between would find
        // the flag set, and so neither be taken nor wake the loop.
        if self.has_posts() && self.woken.swap(false, Ordering::AcqRel) {
            into.append(&mut self.lock());
            #[cfg(any(test, feature = "testing"))]
            BETWEEN_STEPS.take().into_iter().for_each(|act| act());
            let _ = seeded(SeededBug::WakeUpLost) && self.woken.swap(false, Ordering::AcqRel);
            self.room.notify_all();
        }
    }

    pub(crate) fn has_posts(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    /// Called when the loop is dropped: drops all posts, and refuses further ones.
    pub(crate) fn close(&self) {
        let mut posts = self.lock();
        self.closed.store(true, Ordering::Release);
        let unrun = std::mem::take(&mut *posts);
        // Dropped without the lock: a destructor may call `post`.
        drop(posts);
        self.room.notify_all();
        drop(unrun);
    }
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static BETWEEN_STEPS: std::cell::Cell<Option<Box<dyn FnOnce()>>> = const { std::cell::Cell::new(None) };
}

/// What another thread does between the two steps of the next [`Mailbox::take`] of this thread, for a simulation that
/// has one thread.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn between_steps(act: Box<dyn FnOnce()>) {
    BETWEEN_STEPS.set(Some(act));
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({} posts waiting)", self.0.lock().len())
    }
}

#[cfg(test)]
pub(crate) mod tests;
