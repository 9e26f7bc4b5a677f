//! Values that import nothing above them: addresses, ids, ticks, reasons, counters, bytes held once.

pub(crate) mod address;
pub(crate) mod filter;
pub(crate) mod id;
pub(crate) mod reason;
pub(crate) mod shared;
pub(crate) mod stats;
pub mod text;
pub(crate) mod tick;
