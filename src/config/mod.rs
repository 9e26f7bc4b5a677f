//! All configuration: limits, options for listening and dialing, and which addresses are accepted.

pub(crate) mod access;
pub(crate) mod dial;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod rules;
