//! tidemill: a single-threaded TCP reactor.
//!
//! It runs servers and clients in one event loop on one thread, on [mio](https://docs.rs/mio): epoll on Linux, kqueue
//! on the BSDs and macOS (type-checked, but not run there). It brings framing, timeouts, backpressure, TLS (feature
//! `tls`) and a limit on every resource.
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
//! The pages of the folder `docs` are in [`guide`]: patterns for services, embedding, TLS, how the loop works.
//!
//! - To **use** it: implement [`Service`]; its callbacks get a [`Socket`] to send with. [`Reactor`] runs services,
//!   [`Limits`] bounds them, and [`CloseReason`] tells why a connection ended. [`framing`] cuts bytes into messages;
//!   [`services`] are complete examples.
//! - To **embed** it in another event loop: see [`guide::embedding`]; [`Handle`] is for other threads.
//! - To **study** it: `docs/one-turn.md`, then `src/event_loop/mod.rs`.
//!
//! # Limits
//!
//! Each of these has a limit with a default, one place where it is enforced, and a counter: a peer that sends one byte
//! a minute, a peer that never reads, a message that announces 4 GiB, ten thousand simultaneous connects, a process
//! without free descriptors. See [`Limits`] and [`SocketLimits`].
//!
//! # Surprises
//!
//! - **Methods of [`Socket`] do not return I/O errors.** They queue; an error ends the connection, and
//!   [`Service::closed`] gets it, once.
//! - **Output is written at the end of the turn**, with one call for all that a connection was sent. A callback that
//!   computes for a second delays all output of that turn by a second.
//! - **A connection is not read while its output queue is full** ([`SocketLimits::high_water`]), unless
//!   [`SocketLimits::read_when_full`] is set: a peer that does not read answers gets no further requests processed.
//! - **A panic in a callback unwinds out of [`Reactor::turn`]**; the reactor must not be used afterwards.
//! - **SIGPIPE** is ignored by every Rust program from its start. Where `main` is written in another language, that
//!   program must ignore it: a write to a peer that has closed would otherwise end the process.

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub, rust_2018_idioms)]
// For WebAssembly the loop is built without `Reactor`, so the functions that only `Reactor` calls are unused.
#![cfg_attr(target_family = "wasm", allow(dead_code))]
#![doc(test(attr(deny(warnings), allow(dead_code))))]

// The layers, in alphabetical order; `tests/tidy.rs` has them from the lowest to the highest, and checks that a file
// imports only from its own layer and from lower ones.
mod base;
mod config;
mod connection;
mod event_loop;
pub mod framing;
mod parts;
pub mod services;
mod sys;
#[cfg(any(test, feature = "testing"))]
#[doc = include_str!("../docs/testing.md")]
pub mod testing;
#[cfg(feature = "tls")]
pub mod tls;

// The public layer. The loop calls `Service` and runs what a `Handle` posts; `Reactor` is the loop on the real kernel.
mod handle;
#[cfg(not(target_family = "wasm"))]
mod reactor;
mod service;

pub use base::address::{Address, AddressError};
pub use base::credentials::{CredentialsError, PeerCredentials};
pub use base::filter::{Filter, FilterConfig, FilterFactory, FilterInfo, Opened};
pub use base::id::{ConnId, GroupId, Interest, Key, ListenerId, ServiceId, WatchId};
pub use base::leaving::Leaving;
pub use base::observer;
pub use base::post_error::PostError;
pub use base::reason::{Attempt, CloseReason, ClosedInfo, ConnectError, OsError, Refusal, Refused};
pub use base::setup_error::{AdoptError, DialError, ListenError};
pub use base::shared::Shared;
pub use base::stats::Stats;
pub use base::text;
pub use config::access::AccessPolicy;
pub use config::dial::{Backoff, DialOptions, Family, KeepAlive};
pub use config::limits::{Limits, MinRate, SocketLimits};
pub use config::listen::{ListenOptions, Overflow};
pub use config::rules::{Action, IpRange, RangeError, RefuseMode, Rule, Rules};
pub use connection::optional::IdleKind;
pub use connection::rate::shared::SharedRate;
pub use connection::socket::Socket;
pub use connection::sockets::Sockets;
pub use connection::state::{Origin, State};
pub use event_loop::Turn;
pub use handle::Handle;
pub use parts::inbox::Input;
pub use parts::timers::TimerId;
#[cfg(not(target_family = "wasm"))]
pub use reactor::{Peers, Reactor, Shards};
pub use service::{Service, ServiceSockets};
#[cfg(not(target_family = "wasm"))]
pub use sys::mio::{Adopted, AdoptedStream};

/// Compiles the examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The pages of the folder `docs`, in the order in which one may want to read them.
///
/// Pictures and links to source files work where the package or its repository is read, and not here.
#[cfg(doc)]
pub mod guide {
    #[doc = include_str!("../docs/patterns.md")]
    pub mod patterns {}

    #[doc = include_str!("../docs/embedding.md")]
    pub mod embedding {}

    #[doc = include_str!("../docs/observing.md")]
    pub mod observing {}

    #[doc = include_str!("../docs/shards.md")]
    pub mod shards {}

    #[doc = include_str!("../docs/backplane.md")]
    pub mod backplane {}

    #[doc = include_str!("../docs/faults.md")]
    pub mod faults {}

    #[cfg(feature = "tls")]
    #[doc = include_str!("../docs/tls.md")]
    pub mod tls {}

    #[doc = include_str!("../docs/from-node.md")]
    pub mod from_node {}

    #[doc = include_str!("../docs/api.md")]
    pub mod api {}

    #[doc = include_str!("../docs/one-turn.md")]
    pub mod one_turn {}

    #[doc = include_str!("../docs/architecture.md")]
    pub mod architecture {}

    #[doc = include_str!("../docs/reading-path.md")]
    pub mod reading_path {}

    #[doc = include_str!("../docs/echo-path.md")]
    pub mod echo_path {}

    #[doc = include_str!("../docs/glossary.md")]
    pub mod glossary {}

    #[doc = include_str!("../docs/simulation.md")]
    pub mod simulation {}

    #[doc = include_str!("../docs/seeded-bugs.md")]
    pub mod seeded_bugs {}

    #[doc = include_str!("../docs/load.md")]
    pub mod load {}

    #[doc = include_str!("../docs/benchmarks.md")]
    pub mod benchmarks {}
}
