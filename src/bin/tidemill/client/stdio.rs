//! stdin and stdout on threads of their own, so that neither direction of a connection blocks the other.
//!
//! Another process may have made the descriptors non-blocking (the flag belongs to the open file, which is shared), so
//! EAGAIN is answered with a poll. The threads cannot be avoided: regular files and pipes cannot both be polled.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::locked::locked;

/// Waits until the descriptor is ready for this.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads some of stdin; 0 bytes are its end.
pub fn read(chunk: &mut [u8]) -> io::Result<usize> {
    let fd = rustix::stdio::stdin();
    loop {
        match rustix::io::read(fd, &mut *chunk) {
            Ok(n) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd, PollFlags::IN)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes all of it to stdout.
pub fn write(mut bytes: &[u8]) -> io::Result<()> {
    let fd = rustix::stdio::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Bytes on their way to stdout: the loop puts them in, the thread of stdout takes them out.
#[derive(Clone, Default)]
pub struct Output(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes that were put in and are not written yet.
    bytes: usize,
    /// The loop has paused the socket and is to be told when there is room.
    paused: bool,
    /// Nothing more will come.
    ended: bool,
}

/// The socket is paused while more than this waits for stdout.
const OUTPUT_MAX: usize = 1 << 20;

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.0.0)
    }

    /// Queues bytes. True: enough waits, pause the socket.
    pub fn put(&self, bytes: Vec<u8>) -> bool {
        let mut state = self.lock();
        state.bytes += bytes.len();
        state.pieces.push_back(bytes);
        state.paused = state.bytes > OUTPUT_MAX;
        self.0.1.notify_all();
        state.paused
    }

    pub fn end(&self) {
        self.lock().ended = true;
        self.0.1.notify_all();
    }

    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// The next piece; waits for it. None: there is none, and none will come.
    pub fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(piece) = state.pieces.pop_front() {
                return Some(piece);
            }
            if state.ended {
                return None;
            }
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// This many bytes are written. True: there is room again, resume the socket.
    pub fn written(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        state.bytes -= bytes;
        let resumes = state.paused && state.bytes <= OUTPUT_MAX / 2;
        state.paused &= !resumes;
        resumes
    }

    /// Waits at most this long for a next piece; says whether there is one.
    pub fn has_more_within(&self, span: std::time::Duration) -> bool {
        let state = self.lock();
        if !state.pieces.is_empty() || state.ended {
            return !state.pieces.is_empty();
        }
        let (state, _) = self.0.1.wait_timeout(state, span).unwrap_or_else(PoisonError::into_inner);
        !state.pieces.is_empty()
    }
}
