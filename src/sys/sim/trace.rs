//! The trace of a simulation: every call of the loop, every event and every callback, as a hash and as the last lines.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::Duration;

/// What happened, and to which socket.
#[derive(Clone, Copy)]
struct Step {
    at: Duration,
    what: &'static str,
    /// The number of the socket, or of the slot for a callback; none for what concerns the whole kernel.
    of: Option<usize>,
    n: i64,
}

/// Two runs that took the same steps have the same hash.
pub(crate) struct Trace {
    last: VecDeque<Step>,
    count: u64,
    hash: u64,
}

/// Steps that are kept as text. Forty are about a screen.
const KEPT: usize = 40;

// As FNV-1a with 64 bits (RFC 9923), eight bytes at a time: the same on every machine and with every compiler, which
// `std`'s hash need not be.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Trace {
    pub(super) fn new() -> Trace {
        Trace { last: VecDeque::with_capacity(KEPT), count: 0, hash: FNV_OFFSET }
    }

    /// Adds a step; `n` is the result of a call: bytes, or 0 when it failed.
    pub(super) fn add(&mut self, at: Duration, what: &'static str, of: Option<usize>, n: i64) {
        let words = [at.as_nanos() as u64, of.map_or(u64::MAX, |of| of as u64), n as u64];
        let name = what.as_bytes().chunks(8).map(|bytes| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        });
        for word in name.chain(words) {
            // The high bits of a product depend on all bits of the word; the rotation brings them down.
            self.hash = (self.hash ^ word).wrapping_mul(FNV_PRIME).rotate_left(29);
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(Step { at, what, of, n });
        self.count += 1;
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The last steps, a line each.
    pub(crate) fn tail(&self) -> String {
        let mut text = format!("the last {} of {} steps:\n", self.last.len(), self.count);
        for Step { at, what, of, n } in &self.last {
            let of = of.map_or(String::new(), |of| format!(" {of}"));
            let _ = writeln!(text, "  {:>10.3} s  {what}{of}: {n}", at.as_secs_f64());
        }
        text
    }
}
