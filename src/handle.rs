//! The way in for other threads.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::connection::sockets::Sockets;
use crate::sys::Waker;

/// A way for other threads to have something done on the loop. Cheap to clone.
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

/// Where posts wait for the loop.
pub(crate) struct Mailbox {
    posts: Mutex<Vec<Post>>,
    max: usize,
    /// Whether the loop has been woken for what is waiting: a burst of posts costs one wake-up.
    woken: AtomicBool,
    closed: AtomicBool,
    wake: Waker,
}

impl Handle {
    /// Has `work` run by the loop, in the order of posting, at the third phase of a coming turn.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the reactor is gone, and
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when [`Limits::posts`](crate::Limits::posts) are waiting already.
    pub fn post(&self, work: impl FnOnce(&mut Sockets<'_>) + Send + 'static) -> io::Result<()> {
        let mailbox = &self.0;
        let mut posts = mailbox.lock();
        if mailbox.closed.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "cannot post: the reactor is gone"));
        }
        if posts.len() >= mailbox.max {
            let max = mailbox.max;
            let text =
                format!("cannot post: {max} requests are waiting for the loop already (Limits::posts)");
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
    /// A panic while the lock is held can only come from running out of memory; the posts are whole all the same.
    fn lock(&self) -> MutexGuard<'_, Vec<Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what was posted.
    pub(crate) fn take(&self, into: &mut Vec<Post>) {
        // First the flag, then the posts: the other way round, a post in between would neither be taken nor wake.
        if self.has_posts() && self.woken.swap(false, Ordering::AcqRel) {
            into.append(&mut self.lock());
        }
    }

    pub(crate) fn has_posts(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    /// The loop goes; nothing will run any more.
    pub(crate) fn close(&self) {
        let mut posts = self.lock();
        self.closed.store(true, Ordering::Release);
        let unrun = std::mem::take(&mut *posts);
        // What they hold is dropped without the lock: it may well post.
        drop(posts);
        drop(unrun);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({} posts waiting)", self.0.lock().len())
    }
}
