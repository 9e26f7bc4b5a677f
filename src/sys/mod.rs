//! The world, as far as the loop needs it: about a dozen calls.
//!
//! One small trait at the level of system calls, so that a simulated world with a clock of its own can stand in for the
//! kernel. It is a type parameter of the loop and of nothing that a user sees.

// The library without a kernel is the loop on the simulated one.
#[cfg(not(target_family = "wasm"))]
pub(crate) mod mio;
#[cfg(not(target_family = "wasm"))]
mod resolver;
#[cfg(any(test, target_family = "wasm"))]
pub(crate) mod sim;
#[cfg(not(target_family = "wasm"))]
mod splice;
#[cfg(not(target_family = "wasm"))]
mod stream;
#[cfg(not(target_family = "wasm"))]
mod timerfd;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::address::{Address, PeerAddress};
use crate::base::id::Token;
use crate::config::dial::{DialOptions, SocketOption};
use crate::config::listen::ListenOptions;
use crate::connection::sockets::Epoch;

/// Everything the loop asks of the world. No call blocks but [`poll`](System::poll).
pub(crate) trait System {
    type Listener;
    type Stream;
    /// A pipe of the kernel's that bytes go through from one stream to another, without being copied.
    type KernelPipe;

    /// When it began.
    fn epoch(&self) -> Epoch;

    /// Time since it began, by a clock that never goes back.
    fn now(&mut self) -> Duration;

    /// Sleeps until something is ready, or for `wait`, or `until` a moment since it began, and reports what is ready.
    /// May come back early and empty-handed.
    fn poll(
        &mut self,
        ready: &mut Vec<Ready>,
        wait: Option<Duration>,
        until: Option<Duration>,
    ) -> io::Result<()>;

    fn listen(&mut self, at: &Address, options: &ListenOptions, token: Token) -> io::Result<Self::Listener>;

    fn listener_address(&self, listener: &Self::Listener) -> io::Result<Address>;

    fn accept(&mut self, listener: &Self::Listener) -> Result<(Self::Stream, PeerAddress), AcceptError>;

    /// Begins to connect; [`check_connected`](System::check_connected) says how it went, after the stream was writable.
    fn connect(&mut self, to: &Address, options: &DialOptions) -> io::Result<Self::Stream>;

    /// Whether it is connected; an error is why it never will be.
    fn check_connected(&mut self, stream: &Self::Stream) -> io::Result<bool>;

    /// Its own IP address and port, if it has one.
    fn local_address(&self, stream: &Self::Stream) -> Option<SocketAddr>;

    fn set_option(&mut self, stream: &Self::Stream, option: SocketOption) -> io::Result<()>;

    /// Watches a stream, for reading and writing, edge-triggered, once and for all.
    fn register(&mut self, stream: &mut Self::Stream, token: Token) -> io::Result<()>;

    fn read(&mut self, stream: &Self::Stream, into: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, stream: &Self::Stream, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Makes a kernel pipe; not every system has them. Of its errors `Unsupported` says that the system has none, or
    /// not for such streams.
    fn new_pipe(&mut self) -> io::Result<Self::KernelPipe>;

    /// Moves at most so many bytes that have arrived into an empty kernel pipe; none when the peer has ended.
    fn splice_in(&mut self, from: &Self::Stream, pipe: &Self::KernelPipe, max: usize) -> io::Result<usize>;

    /// Moves at most so many bytes out of a kernel pipe that holds as many.
    fn splice_out(&mut self, pipe: &Self::KernelPipe, to: &Self::Stream, max: usize) -> io::Result<usize>;

    /// Copies bytes out of a kernel pipe.
    fn read_pipe(&mut self, pipe: &Self::KernelPipe, into: &mut [u8]) -> io::Result<usize>;

    /// Sends our end (FIN).
    fn shutdown_write(&mut self, stream: &Self::Stream) -> io::Result<()>;

    /// Closes with a reset.
    fn reset(&mut self, stream: Self::Stream);

    /// Opens the descriptor that is held back for the moment when there is no other. Says whether it is held now.
    fn reserve_descriptor(&mut self) -> bool;

    /// Closes that descriptor; says whether there was one.
    fn release_descriptor(&mut self) -> bool;

    /// Begins to look up a name. The answer wakes the poll, and [`next_answer`](System::next_answer) has it then.
    fn look_up(&mut self, number: u64, host: &str, port: u16);

    /// Takes back a lookup; says whether that was in time: whether it had not begun.
    fn cancel_look_up(&mut self, number: u64) -> bool;

    /// A lookup that has been answered: any of them, those included that nobody waits for any more.
    fn next_answer(&mut self) -> Option<Answer>;

    /// A number that differs from one run to the next, where it should.
    fn seed(&mut self) -> u64;

    /// Something another thread can call to end a `poll`.
    fn waker(&mut self) -> io::Result<Waker>;
}

/// Ends a [`poll`](System::poll) from another thread.
pub(crate) type Waker = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// What a failed accept(2) means.
#[derive(Debug)]
pub(crate) enum AcceptError {
    /// Nobody is waiting.
    Empty,
    /// That one peer is gone already; Linux also passes on pending network errors here (accept(2), "Error handling").
    PeerGone,
    /// The process or the system is out of descriptors. Reported even when nobody is waiting, because the kernel takes
    /// the descriptor first; so it must end the loop just as `Empty` does.
    NoDescriptor,
    /// The kernel is out of memory for sockets.
    NoMemory,
    /// The listener itself is broken.
    Broken(io::Error),
}

/// The end of a lookup.
pub(crate) struct Answer {
    pub(crate) number: u64,
    pub(crate) result: io::Result<Vec<SocketAddr>>,
}

/// One event: what a token's owner may now be able to do. All of it is a hint; only the call itself tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    pub(crate) token: Token,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer's end or an error is on its way.
    pub(crate) end: bool,
    /// The socket has failed (EPOLLERR): the peer has reset it, or is out of reach.
    pub(crate) error: bool,
    /// Urgent data: a read stops at its mark, although more may lie behind it (tcp(7), SO_OOBINLINE).
    pub(crate) priority: bool,
}
