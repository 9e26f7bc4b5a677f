//! The world, as far as the loop needs it: about a dozen calls.
//!
//! One small trait at the level of system calls, so that a simulated world with a clock of its own can stand in for the
//! kernel. It is a type parameter of the loop and of nothing that a user sees.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::id::Token;
use crate::listener::ListenOptions;

/// Everything the loop asks of the world. No call blocks but [`poll`](System::poll).
pub(crate) trait System {
    type Listener;
    type Stream;

    /// When it began.
    fn started(&self) -> Instant;

    /// Time since it began, by a clock that never goes back.
    fn now(&mut self) -> Duration;

    /// Sleeps until something is ready, or for `wait`, and reports what is. May come back early and empty-handed.
    fn poll(&mut self, ready: &mut Vec<Ready>, wait: Option<Duration>) -> io::Result<()>;

    fn listen(&mut self, at: SocketAddr, options: &ListenOptions, token: Token)
    -> io::Result<Self::Listener>;

    fn local_addr(&self, listener: &Self::Listener) -> io::Result<SocketAddr>;

    fn accept(&mut self, listener: &Self::Listener) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Begins to connect; [`connected`](System::connected) says how it went, after the stream was writable.
    fn connect(&mut self, to: SocketAddr) -> io::Result<Self::Stream>;

    /// Whether it is connected; an error is why it never will be.
    fn connected(&mut self, stream: &Self::Stream) -> io::Result<bool>;

    /// Watches a stream, for reading and writing, edge-triggered, once and for all.
    fn register(&mut self, stream: &mut Self::Stream, token: Token) -> io::Result<()>;

    fn read(&mut self, stream: &Self::Stream, into: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, stream: &Self::Stream, from: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends our end (FIN).
    fn finish(&mut self, stream: &Self::Stream) -> io::Result<()>;

    /// Closes with a reset.
    fn reset(&mut self, stream: Self::Stream);

    /// Opens the descriptor that is held back for the moment when there is no other. Says whether it is held now.
    fn hold_reserve(&mut self) -> bool;

    /// Closes that descriptor; says whether there was one.
    fn release_reserve(&mut self) -> bool;

    /// Something another thread can call to end a `poll`.
    fn waker(&mut self) -> io::Result<Waker>;
}

/// Ends a [`poll`](System::poll) from another thread.
pub(crate) type Waker = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// One event: what a token's owner may now be able to do. All of it is a hint; only the call itself tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    pub(crate) token: Token,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer's end or an error is on its way.
    pub(crate) end: bool,
}
