//! Services to run as they are, and to learn from: the worked examples of this crate.
//!
//! They use nothing but what the crate offers to everyone.

mod chat;
mod echo;
mod frames;
mod proxy;
#[cfg(test)]
mod testing;

pub use chat::Chat;
pub use echo::Echo;
pub use frames::Frames;
pub use proxy::{Proxy, Role};
