//! The parts under test, compiled into this program once more: most are private to the crate, and remain so.

// Cargo builds benches as it builds tests, and a part comes whole: with what only the loop calls, and with what its own
// tests share. Neither has a use here.
#![allow(dead_code, unused_imports)]
// Of names that a crate exports clippy says nothing; from here nothing is exported.
#![allow(clippy::enum_variant_names)]

#[path = "../../src/arena.rs"]
pub mod arena;
#[path = "../../src/closed.rs"]
pub mod closed;
#[path = "../../src/framing/mod.rs"]
pub mod framing;
#[path = "../../src/inbox.rs"]
pub mod inbox;
#[path = "../../src/outbox.rs"]
pub mod outbox;
#[path = "../../src/shared.rs"]
pub mod shared;
#[path = "../../src/time.rs"]
pub mod time;
#[path = "../../src/wheel.rs"]
pub mod wheel;

/// Framings can send to a socket, which would need a table and a loop. Here they only receive.
pub mod socket {
    use std::marker::PhantomData;

    pub struct Socket<'a>(PhantomData<&'a ()>);

    impl Socket<'_> {
        pub fn send(&mut self, _: &[u8]) {}
    }
}
