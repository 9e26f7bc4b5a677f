//! The lowest layer: addresses, ids, ticks, reasons, counters, shared bytes, and the interface of filters.

pub(crate) mod address;
pub(crate) mod credentials;
pub(crate) mod filter;
pub(crate) mod id;
pub(crate) mod leaving;
pub(crate) mod mark;
pub mod observer;
pub(crate) mod observers;
pub(crate) mod part;
pub(crate) mod post_error;
pub(crate) mod random;
pub(crate) mod reason;
pub(crate) mod seeded_bug;
pub(crate) mod setup_error;
pub(crate) mod shared;
pub(crate) mod stats;
pub mod text;
pub(crate) mod tick;
