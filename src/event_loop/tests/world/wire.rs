//! What a peer sends and receives on the wire: its bytes as they are, or through its side of the listener's filter.

use super::super::test_filter;
use super::super::*;
use crate::base::filter::{Filter, FilterConfig};

/// The listener's filter, and that of its peers.
pub(crate) struct Filters {
    pub(crate) server: FilterConfig,
    pub(crate) client: FilterConfig,
}

/// Most often none; else one that can be read by eye.
pub(super) fn draw_filters(tape: &Tape) -> Option<Filters> {
    let filters = || Filters { server: test_filter::server(), client: test_filter::client() };
    tape.one_in(4).then(filters)
}

/// One peer's side of a filter.
pub(super) struct Wire {
    filter: Box<dyn Filter>,
    /// What is said before the handshake is complete.
    waiting: Vec<u8>,
    is_ready: bool,
    /// Whether the loop's side has announced its end, and whether it has failed, or was sent what it must refuse.
    pub(super) has_ended: bool,
    pub(super) has_failed: bool,
}

impl Wire {
    pub(super) fn new(filters: &Filters) -> Wire {
        let filter = filters.client.filter(&"localhost:1".parse().unwrap()).expect("a filter");
        Wire { filter, waiting: Vec::new(), is_ready: false, has_ended: false, has_failed: false }
    }

    /// Takes what has arrived; returns the plaintext. The answer of the filter is appended to `reply`.
    pub(super) fn receive(&mut self, bytes: &[u8], reply: &mut Vec<u8>) -> Vec<u8> {
        let mut plain = Vec::new();
        if self.has_failed {
            return plain;
        }
        let mut wire = vec![0; self.filter.buffered()];
        wire.extend_from_slice(bytes);
        let mut opened = self.filter.open(&mut wire, reply);
        plain.extend_from_slice(&wire[..opened.plaintext]);
        let mut room = [0; 4_096];
        while opened.more {
            opened = self.filter.more(&mut room, reply);
            plain.extend_from_slice(&room[..opened.plaintext]);
        }
        self.is_ready |= opened.ready;
        self.has_ended |= opened.peer_ended;
        self.has_failed |= opened.error.is_some();
        if self.is_ready && !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            self.say(&waiting, reply);
        }
        plain
    }

    /// Says something; before the handshake is complete, it waits for that.
    pub(super) fn say(&mut self, plain: &[u8], wire: &mut Vec<u8>) {
        match self.is_ready && !self.has_failed {
            // A filter takes at most 16 KiB at once.
            true => plain.chunks(16_000).for_each(|part| self.filter.seal(part, wire).expect("it is ready")),
            false => self.waiting.extend_from_slice(plain),
        }
    }

    /// Announces the end of its stream; whether it could.
    pub(super) fn end(&mut self, wire: &mut Vec<u8>) -> bool {
        let can = self.is_ready && !self.has_failed;
        if can {
            self.filter.seal_end(wire);
        }
        can
    }
}
