//! `Handle`: how other threads run work on the loop.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::connection::sockets::Sockets;
use crate::sys::Waker;

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

pub(crate) type Post = Box<dyn FnOnce(&mut Sockets<'_>) + Send>;

/// The queue of posted work, shared by all handles and the loop.
pub(crate) struct Mailbox {
    posts: Mutex<Vec<Post>>,
    max: usize,
    /// Whether the loop has been woken for the queued posts. A burst of posts then costs one wake-up.
    woken: AtomicBool,
    /// Whether the loop has been dropped.
    closed: AtomicBool,
    wake: Waker,
}

impl Handle {
    /// Queues `work` for the loop and wakes it. It runs in phase 3 of one of the next turns, in the order of posting;
    /// at most [`Limits::posts_per_turn`](crate::Limits::posts_per_turn) run in one turn. If the reactor is dropped
    /// before, `work` is dropped without being run.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the reactor has been dropped, and
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when [`Limits::posts`](crate::Limits::posts) are queued already.
    /// `work` is dropped then.
    pub fn post(&self, work: impl FnOnce(&mut Sockets<'_>) + Send + 'static) -> io::Result<()> {
        let mailbox = &self.0;
        let mut posts = mailbox.lock();
        if mailbox.closed.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "cannot post: the reactor has been dropped",
            ));
        }
        if posts.len() >= mailbox.max {
            let max = mailbox.max;
            let text = format!("cannot post: {max} posts are queued for the loop already (Limits::posts)");
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        posts.push(Box::new(work));
        drop(posts);
        if mailbox.woken.swap(true, Ordering::AcqRel) { Ok(()) } else { (mailbox.wake)() }
    }

    pub(crate) fn new(max: usize, wake: Waker) -> Handle {
        let (woken, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        Handle(Arc::new(Mailbox { posts: Mutex::new(Vec::new()), max, woken, closed: gone, wake }))
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

    /// Moves all posts into `into`.
    pub(crate) fn take(&self, into: &mut Vec<Post>) {
        // Clear the flag first, then take the posts. In the other order, a post that is queued in between would find
        // the flag set, and so neither be taken nor wake the loop.
        if self.has_posts() && self.woken.swap(false, Ordering::AcqRel) {
            into.append(&mut self.lock());
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
        drop(unrun);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({} posts waiting)", self.0.lock().len())
    }
}
