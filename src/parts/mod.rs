//! Data structures of the loop, without I/O and without a clock. Each is tested against a plain model of itself.

pub(crate) mod admission;
pub(crate) mod arena;
pub(crate) mod handshake_queue;
pub(crate) mod happy_eyeballs;
pub(crate) mod inbox;
pub(crate) mod leases;
pub(crate) mod listener;
pub(crate) mod log_limit;
pub(crate) mod lookups;
pub(crate) mod outbox;
pub(crate) mod timers;
pub(crate) mod token_bucket;
pub(crate) mod wheel;
