//! `System`: the operating system as the loop needs it, a trait at the level of system calls.
//!
//! [`mio::Kernel`] implements it for the real kernel, and `sim::Sim` for tests, with simulated sockets and a simulated
//! clock. It is a type parameter of the loop; no public type has it.

// For WebAssembly the loop is built with the simulated kernel only.
#[cfg(not(target_family = "wasm"))]
pub(crate) mod handed_over;
#[cfg(not(target_family = "wasm"))]
pub(crate) mod mio;
#[cfg(not(target_family = "wasm"))]
mod resolver;
#[cfg(any(test, feature = "testing", target_family = "wasm"))]
pub(crate) mod sim;
#[cfg(not(target_family = "wasm"))]
mod splice;
#[cfg(not(target_family = "wasm"))]
pub(crate) mod stream;
#[cfg(not(target_family = "wasm"))]
mod timerfd;

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
#[cfg(not(target_family = "wasm"))]
use std::os::fd::OwnedFd;
#[cfg(not(target_family = "wasm"))]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
#[cfg(not(target_family = "wasm"))]
use std::time::Instant;

use crate::base::address::{Address, PeerAddress};
#[cfg(not(target_family = "wasm"))]
use crate::base::credentials::{CredentialsError, PeerCredentials};
use crate::base::id::{Interest, Token};
use crate::base::leaving::Leaving;
use crate::base::tick::Tick;
use crate::config::dial::{DialOptions, SocketOption};
use crate::config::listen::ListenOptions;

/// The stream of a connection: a descriptor of the kernel, or one of the simulation where that is built in. One type
/// for both, so that the table of connections, and with it all that a service sees, has no type parameter.
pub(crate) enum Stream {
    #[cfg(not(target_family = "wasm"))]
    Kernel(stream::Stream),
    #[cfg(any(test, feature = "testing", target_family = "wasm"))]
    Simulated(sim::Fd),
}

/// The socket of a listener: one type for the kernel and the simulation, for the same reason.
pub(crate) enum ListenSocket {
    #[cfg(not(target_family = "wasm"))]
    Kernel(stream::ListenSocket),
    #[cfg(any(test, feature = "testing", target_family = "wasm"))]
    Simulated(sim::Fd),
}

/// The system calls that a callback can make: the table has this, because it has no access to the [`System`].
pub(crate) trait Registrar {
    /// Binds a socket and listens on it; returns its address with the real port.
    fn bind(&self, at: &Address, options: &ListenOptions) -> io::Result<(ListenSocket, Address)>;

    /// Registers a listener for accepting, edge-triggered.
    fn register(&self, listener: &mut ListenSocket, token: Token) -> io::Result<()>;

    /// Registers a descriptor that is not of the reactor. With `again` it was registered before: one that is ready has
    /// another event.
    fn watch(&self, descriptor: &Watched, token: Token, interest: Interest, again: bool) -> io::Result<()>;

    /// Ends the registration: the descriptor may stay open.
    fn unwatch(&self, descriptor: &Watched) -> io::Result<()>;
}

/// A descriptor that a service has given to be watched.
pub(crate) enum Watched {
    #[cfg(not(target_family = "wasm"))]
    Kernel(OwnedFd),
}

#[cfg(not(target_family = "wasm"))]
impl Stream {
    /// The descriptor. A simulated stream has none.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Stream::Kernel(stream) => Some(stream.as_fd()),
            #[cfg(any(test, feature = "testing"))]
            Stream::Simulated(_) => None,
        }
    }

    /// The process at the other end. In the simulation it is process 1 of user and group 1000, if it is on a
    /// Unix-domain socket.
    pub(crate) fn peer_credentials(&self) -> Result<PeerCredentials, CredentialsError> {
        match self {
            Stream::Kernel(stream) => stream.peer_credentials(),
            #[cfg(any(test, feature = "testing"))]
            Stream::Simulated(fd) if fd.is_unix() => Ok(PeerCredentials { uid: 1000, gid: 1000, pid: 1 }),
            #[cfg(any(test, feature = "testing"))]
            Stream::Simulated(_) => Err(CredentialsError::NotUnix),
        }
    }

    /// The descriptor, for the system that has made it.
    fn kernel(&self) -> &stream::Stream {
        match self {
            Stream::Kernel(stream) => stream,
            #[cfg(any(test, feature = "testing"))]
            Stream::Simulated(_) => unreachable!("a simulated stream is not given to the kernel"),
        }
    }

    fn kernel_mut(&mut self) -> &mut stream::Stream {
        match self {
            Stream::Kernel(stream) => stream,
            #[cfg(any(test, feature = "testing"))]
            Stream::Simulated(_) => unreachable!("a simulated stream is not given to the kernel"),
        }
    }
}

#[cfg(not(target_family = "wasm"))]
impl ListenSocket {
    fn kernel(&self) -> &stream::ListenSocket {
        match self {
            ListenSocket::Kernel(listener) => listener,
            #[cfg(any(test, feature = "testing"))]
            ListenSocket::Simulated(_) => unreachable!("a simulated listener is not given to the kernel"),
        }
    }

    fn kernel_mut(&mut self) -> &mut stream::ListenSocket {
        match self {
            ListenSocket::Kernel(listener) => listener,
            #[cfg(any(test, feature = "testing"))]
            ListenSocket::Simulated(_) => unreachable!("a simulated listener is not given to the kernel"),
        }
    }
}

/// The instant from which ticks and durations inside the loop are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch {
    /// A page in a browser has no such clock.
    #[cfg(not(target_family = "wasm"))]
    instant: Instant,
}

impl Epoch {
    /// Reads the clock.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn from_now() -> Epoch {
        Epoch { instant: Instant::now() }
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn from_now() -> Epoch {
        Epoch {}
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn at(self, elapsed: Duration) -> Instant {
        self.instant + elapsed
    }

    /// How many ticks later than another one it is; negative if it is earlier.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn ticks_after(self, other: Epoch) -> i64 {
        let ticks = |later: Epoch, earlier: Epoch| {
            Tick::at(later.instant.saturating_duration_since(earlier.instant)).0 as i64
        };
        ticks(self, other) - ticks(other, self)
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn ticks_after(self, _: Epoch) -> i64 {
        0
    }

    /// How long ago it was.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn elapsed(self) -> Duration {
        self.instant.elapsed()
    }
}

/// Reads a file at an offset, until the buffer is full or the file ends; returns how much was read.
#[cfg(unix)]
pub(crate) fn read_file(file: &File, start: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match std::os::unix::fs::FileExt::read_at(file, &mut into[read..], start + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// A page in a browser has no files.
#[cfg(not(unix))]
pub(crate) fn read_file(_: &File, _: u64, _: &mut [u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// All system calls that the loop makes. Only [`poll`](System::poll) blocks.
pub(crate) trait System {
    /// A pipe in the kernel, through which bytes go from one stream to another without being copied (splice(2)).
    type KernelPipe;

    /// When it was created. All times are counted from here.
    fn epoch(&self) -> Epoch;

    /// The time since the epoch, by a monotonic clock.
    fn now(&mut self) -> Duration;

    /// Sleeps until there is an event, or for `wait`, or until the tick `until`; appends the events to `ready`. May
    /// return early without an event.
    fn poll(&mut self, ready: &mut Vec<Ready>, wait: Option<Duration>, until: Option<Tick>)
    -> io::Result<()>;

    /// What callbacks need of it.
    fn registrar(&self) -> io::Result<Box<dyn Registrar>>;

    fn accept(&mut self, listener: &ListenSocket) -> Result<(Stream, PeerAddress), AcceptError>;

    /// Starts to connect. Once the stream is writable, [`check_connected`](System::check_connected) has the result.
    fn connect(&mut self, to: &Address, options: &DialOptions) -> io::Result<Stream>;

    /// Whether the stream is connected; an error if connecting has failed.
    fn check_connected(&mut self, stream: &Stream) -> io::Result<Connecting>;

    /// The local IP address and port; `None` for a Unix-domain socket.
    fn local_address(&self, stream: &Stream) -> Option<SocketAddr>;

    /// Whether the peer has sent a FIN, or the connection has failed, although received bytes may be unread.
    fn peer_left(&mut self, stream: &Stream) -> Option<Leaving>;

    fn set_option(&mut self, stream: &Stream, option: SocketOption) -> io::Result<()>;

    /// Registers a stream for reading and writing, edge-triggered. The registration lasts until the stream is closed,
    /// so there is one such call per connection.
    fn register(&mut self, stream: &mut Stream, token: Token) -> io::Result<()>;

    fn read(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, stream: &Stream, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Writes at most `max` bytes of a file, from `start` on; 0 at its end. The error `Unsupported` means that they
    /// must be read and written.
    fn send_file(&mut self, _file: &File, _start: u64, _to: &Stream, _max: usize) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes a kernel pipe. The error `Unsupported` means that the system has no splice(2).
    fn new_pipe(&mut self) -> io::Result<Self::KernelPipe>;

    /// Moves at most `max` received bytes into an empty kernel pipe; 0 when the peer has ended. The error `Unsupported`
    /// means that this kind of stream cannot be spliced.
    fn splice_in(&mut self, from: &Stream, pipe: &Self::KernelPipe, max: usize) -> io::Result<usize>;

    /// Moves at most `max` bytes out of a kernel pipe, which must hold as many.
    fn splice_out(&mut self, pipe: &Self::KernelPipe, to: &Stream, max: usize) -> io::Result<usize>;

    /// Copies bytes out of a kernel pipe.
    fn read_pipe(&mut self, pipe: &Self::KernelPipe, into: &mut [u8]) -> io::Result<usize>;

    /// Sends FIN.
    fn shutdown_write(&mut self, stream: &Stream) -> io::Result<()>;

    /// Closes with a reset (RST).
    fn reset(&mut self, stream: Stream);

    /// Opens the spare descriptor, which is kept for when the process has no other. Returns whether it is open now.
    fn reserve_descriptor(&mut self) -> bool;

    /// Closes the spare descriptor; returns whether it was open.
    fn release_descriptor(&mut self) -> bool;

    /// Starts a name look-up. Its answer ends a poll; [`next_answer`](System::next_answer) then returns it.
    fn look_up(&mut self, number: u64, host: &str, port: u16);

    /// Cancels a look-up; returns whether that was possible, that is, whether no thread had begun it.
    fn cancel_look_up(&mut self, number: u64) -> bool;

    /// An answered look-up, in any order. It may be one whose dial has ended meanwhile.
    fn next_answer(&mut self) -> Option<Answer>;

    /// A random number; always the same in the simulation.
    fn seed(&mut self) -> u64;

    /// A function with which another thread ends a `poll`.
    fn waker(&mut self) -> io::Result<Waker>;
}

/// Ends a [`poll`](System::poll); may be called from any thread.
pub(crate) type Waker = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// How far a dialed stream has come.
pub(crate) enum Connecting {
    InProgress,
    /// With its local address and port; none for a Unix-domain socket.
    Connected {
        local: Option<SocketAddr>,
    },
}

/// What a failed accept(2) means.
#[derive(Debug)]
pub(crate) enum AcceptError {
    /// The backlog is empty.
    Empty,
    /// This one peer has closed already. Linux also reports pending network errors here (accept(2), "Error handling").
    PeerGone,
    /// The process or the system is out of descriptors. Linux reports this also when the backlog is empty, because it
    /// allocates the descriptor first. So it must end the loop of accepts, as `Empty` does.
    NoDescriptor,
    /// The kernel is out of memory for sockets.
    NoMemory,
    /// The listener itself is broken.
    Broken(io::Error),
}

/// The result of a name look-up.
pub(crate) struct Answer {
    pub(crate) number: u64,
    pub(crate) result: io::Result<Vec<SocketAddr>>,
}

/// One event. Every field is a hint: whether a read or write succeeds is known only when it is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    pub(crate) token: Token,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has sent FIN or RST, or the socket has failed; a read will find it behind the received bytes.
    pub(crate) end: bool,
    /// The socket has failed (EPOLLERR): the peer has reset it, or is unreachable.
    pub(crate) error: bool,
    /// Urgent data (EPOLLPRI): a read stops at the urgent mark, although there may be bytes behind it (tcp(7)).
    pub(crate) priority: bool,
}

/// Locks a mutex, also after a thread has panicked with the lock: each change of what is behind a lock here is one
/// step, so no such thread leaves half of one.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
