//! The services of the `tidemill` binary, also usable in other programs and as examples.
//!
//! They are written with the public API of this crate.

mod chat;
mod echo;
mod frames;
mod proxy;

pub use chat::{Chat, Elsewhere, RoomWork, ShardedRooms};
pub use echo::Echo;
pub use frames::Frames;
pub use proxy::{
    Balance, Chance, Fault, FaultAt, Faults, Proxy, Role, RouteChoice, Split, Upstream, UpstreamCounts,
    UpstreamMode, UpstreamStatus,
};
#[cfg(feature = "tls")]
pub use proxy::{RouteError, RouteMatch};
