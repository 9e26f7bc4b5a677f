//! Everything that a user sets: limits, how to listen, how to dial, and who is admitted.

pub(crate) mod access;
pub(crate) mod dial;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod rules;
