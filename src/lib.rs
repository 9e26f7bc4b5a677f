//! tidemill: a single-threaded TCP reactor.
//!
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub, rust_2018_idioms)]
#![doc(test(attr(deny(warnings))))]

// In the order of the layers: a file imports from the files above it, and never from those below.

// Nouns.
mod closed;
mod id;
mod limits;
mod shared;
mod stats;
mod time;
// Parts: pure, without I/O and without a clock.
mod arena;
mod inbox;
mod outbox;
mod wheel;
// One connection, and all of them.
mod connection;
mod table;
// What a user holds.
mod service;
mod socket;
// The loop.
mod handle;
mod kernel;
mod listener;
mod reactor;
#[cfg(test)]
mod sim;
mod system;
mod turn;

pub use closed::{Closed, OsError};
pub use handle::Handle;
pub use id::ConnId;
pub use inbox::Input;
pub use limits::{Limits, Pace, SocketLimits};
pub use listener::{ListenOptions, Overflow};
pub use reactor::{ListenerId, Reactor};
pub use service::{Service, ServiceId};
pub use shared::Shared;
pub use socket::{Origin, Socket, Sockets};
pub use stats::Stats;
pub use turn::Turn;
