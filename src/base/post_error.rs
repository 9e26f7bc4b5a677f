//! `PostError`: work that the loop did not take, and why.

use std::error::Error;
use std::fmt;
use std::io;

/// Work that was not queued for the loop. It is given back by [`into_inner`](PostError::into_inner), with all that it
/// owns.
///
/// # Examples
///
/// ```
/// use std::io::ErrorKind;
/// use tidemill::{Limits, Reactor};
///
/// let handle = Reactor::new(Limits::default())?.handle();
/// let result = vec![1, 2, 3];
/// // The reactor has been dropped, so the work is refused.
/// let refused = handle.post(move |_| drop(result)).expect_err("no loop");
/// assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
/// let _work = refused.into_inner();
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PostError<F> {
    work: F,
    reason: PostRefusal,
}

/// Why work was not queued.
#[derive(Debug)]
pub(crate) enum PostRefusal {
    /// The reactor has been dropped.
    Dropped,
    /// So many are queued already.
    Full(usize),
    /// The key is of another reactor.
    OtherReactor,
    /// The loop could not be woken.
    Wake(io::Error),
}

impl<F> PostError<F> {
    pub(crate) fn new(work: F, reason: PostRefusal) -> PostError<F> {
        PostError { work, reason }
    }

    /// The work, to be posted again or to be done in another way.
    pub fn into_inner(self) -> F {
        self.work
    }

    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the reactor has been dropped,
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) when [`Limits::posts`](crate::Limits::posts) are queued already,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) when the key is of another reactor, else an error of the system.
    pub fn kind(&self) -> io::ErrorKind {
        match &self.reason {
            PostRefusal::Dropped => io::ErrorKind::BrokenPipe,
            PostRefusal::Full(_) => io::ErrorKind::WouldBlock,
            PostRefusal::OtherReactor => io::ErrorKind::InvalidInput,
            PostRefusal::Wake(error) => error.kind(),
        }
    }
}

impl<F> fmt::Display for PostError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            PostRefusal::Dropped => f.write_str("cannot post: the reactor has been dropped"),
            PostRefusal::Full(max) => {
                write!(f, "cannot post: {max} posts are queued for the loop already (Limits::posts)")
            }
            PostRefusal::OtherReactor => f.write_str("cannot post: the service is of another reactor"),
            PostRefusal::Wake(error) => write!(f, "cannot post: the loop cannot be woken: {error}"),
        }
    }
}

impl<F> fmt::Debug for PostError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<F> Error for PostError<F> {}

impl<F> From<PostError<F>> for io::Error {
    fn from(error: PostError<F>) -> io::Error {
        io::Error::new(error.kind(), error.to_string())
    }
}
