//! tidemill: a single-threaded TCP reactor.
//!
//! Servers, clients, framing, timeouts, backpressure and a limit on everything, in one loop on one thread, on mio. It
//! is small enough to be read in an evening, and meant to be.
//!
//! # An echo server
//!
//! ```no_run
//! use tidemill::{Input, Limits, Reactor, Service, Socket};
//!
//! struct Echo;
//!
//! impl Service for Echo {
//!     type Session = ();
//!     fn open(&mut self, _: &mut Socket<'_>) {}
//!     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
//!         socket.send(input.take_all());
//!     }
//! }
//!
//! let mut reactor = Reactor::new(Limits::default())?;
//! let echo = reactor.add(Echo);
//! reactor.listen("127.0.0.1:9001", echo)?;
//! reactor.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Where to begin
//!
//! - To **use** it: [`Service`] is what you write, [`Socket`] is what you do it with, [`Reactor`] runs it, [`Limits`]
//!   bounds it, and [`Closed`] says how it ended. [`framing`] cuts bytes into messages; [`services`] are worked
//!   examples.
//! - To **embed** it in a loop of your own: "In a loop of your own" at [`Reactor`], and [`Handle`] for other threads.
//! - To **study** it: `docs/one-turn.md`, then `src/turn/mod.rs`.
//!
//! # What it does for you
//!
//! A peer that sends a byte a minute, one that never reads, one that announces four gigabytes, ten thousand that come
//! at once, a process out of descriptors: each has a limit with a default, a place where it is enforced, and a
//! counter. See [`Limits`] and [`SocketLimits`].
//!
//! # Surprises
//!
//! - **Nothing fails in a callback.** [`Socket`]'s methods queue; errors come once, in [`Service::closed`].
//! - **Answers leave at the end of the turn**, all of a connection's together. A service that computes for a second
//!   delays every answer of that turn.
//! - **A full socket is not read**, unless [`SocketLimits::read_when_full`] says so: a peer that does not read its
//!   answers is not asked for more questions.
//! - **A panic in a callback unwinds out of [`Reactor::turn`]**; the reactor must not be used afterwards.
//! - **SIGPIPE**: Rust programs ignore it from the start. Where another language owns `main`, ignore it yourself: a
//!   vectored write to a peer that is gone would end the process.

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub, rust_2018_idioms)]
#![doc(test(attr(deny(warnings), allow(dead_code))))]

// By layer: a file imports from the layers above its own, never from those below. `tests/tidy.rs` has the exact order.

// Nouns.
mod address;
mod closed;
mod departed;
mod id;
mod limits;
mod options;
mod rules;
mod shared;
mod stats;
mod time;

// Parts: pure, without I/O and without a clock.
mod arena;
mod bucket;
mod eager;
mod eyeballs;
mod filter;
mod guard;
mod handshakes;
mod inbox;
mod lookups;
mod outbox;
mod timers;
mod wheel;

// One connection, and all of them.
mod connection;
mod extra;
mod flags;
mod table;

// What a user holds.
mod service;
mod socket;

// The world: the door and its errors, the seam, and mio behind it.
mod kernel;
mod listener;
mod resolver;
#[cfg(test)]
mod sim;
mod system;

// The loop.
mod handle;
mod reactor;
mod turn;

// The shelf.
pub mod framing;
pub mod proxy_header;
pub mod services;
pub mod text;
#[cfg(feature = "tls")]
pub mod tls;

pub use address::{Address, AddressError};
pub use closed::{Closed, OsError};
pub use departed::Departed;
pub use extra::Silent;
pub use filter::{Filter, Opened, Secure, Secured, Security};
pub use guard::{Guard, Refusal, Refused};
pub use handle::Handle;
pub use id::{ConnId, GroupId, ListenerId, ServiceId};
pub use inbox::Input;
pub use kernel::Adopted;
pub use limits::{Limits, Pace, SocketLimits};
pub use listener::{ListenOptions, Overflow};
pub use options::{Attempt, Backoff, DialError, DialOptions, Family, KeepAlive};
pub use reactor::Reactor;
pub use rules::{IpRange, RangeError, Refuse, Rule, Rules, Verdict};
pub use service::Service;
pub use shared::Shared;
pub use socket::{Origin, Socket, Sockets, State};
pub use stats::Stats;
pub use timers::TimerId;
pub use turn::Turn;

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The programs of the guide for those who come from Node, compiled.
#[cfg(doctest)]
#[doc = include_str!("../docs/from-node.md")]
struct FromNode;

/// The programs of the page on TLS, compiled.
#[cfg(all(doctest, feature = "tls"))]
#[doc = include_str!("../docs/tls.md")]
struct Tls;
