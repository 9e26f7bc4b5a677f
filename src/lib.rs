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
//!   bounds it, and [`CloseReason`] says how it ended. [`framing`] cuts bytes into messages; [`services`] are worked
//!   examples.
//! - To **embed** it in a loop of your own: "In a loop of your own" at [`Reactor`], and [`Handle`] for other threads.
//! - To **study** it: `docs/one-turn.md`, then `src/event_loop/mod.rs`.
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
// Without a kernel there is no reactor, and what only it calls is not called.
#![cfg_attr(target_family = "wasm", allow(dead_code))]
#![doc(test(attr(deny(warnings), allow(dead_code))))]

// By layer: a file imports from the layers above its own, never from those below. `tests/tidy.rs` checks it.
mod base;
mod config;
mod connection;
mod event_loop;
pub mod framing;
mod parts;
pub mod services;
mod sys;
#[cfg(feature = "tls")]
pub mod tls;

// The public face. The loop calls a service and takes posts from a handle; a reactor is a loop on the real kernel.
mod handle;
#[cfg(not(target_family = "wasm"))]
mod reactor;
mod service;

pub use base::address::{Address, AddressError};
pub use base::filter::{Filter, FilterConfig, FilterFactory, FilterInfo, Opened};
pub use base::id::{ConnId, GroupId, ListenerId, ServiceId};
pub use base::reason::{Attempt, CloseReason, ClosedInfo, DialError, OsError, Refusal, Refused};
pub use base::shared::Shared;
pub use base::stats::Stats;
pub use base::text;
pub use config::access::AccessPolicy;
pub use config::dial::{Backoff, DialOptions, Family, KeepAlive};
pub use config::limits::{Limits, MinRate, SocketLimits};
pub use config::listen::{ListenOptions, Overflow};
pub use config::rules::{Action, IpRange, RangeError, RefuseMode, Rule, Rules};
pub use connection::optional::IdleKind;
pub use connection::socket::Socket;
pub use connection::sockets::Sockets;
pub use connection::{Origin, State};
pub use event_loop::Turn;
pub use handle::Handle;
pub use parts::inbox::Input;
pub use parts::timers::TimerId;
#[cfg(not(target_family = "wasm"))]
pub use reactor::Reactor;
pub use service::Service;
#[cfg(not(target_family = "wasm"))]
pub use sys::mio::Adopted;

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
