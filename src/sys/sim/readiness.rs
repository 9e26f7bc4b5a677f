//! When the simulated kernel reports that a socket is ready, and what an event says.
//!
//! ```text
//!     arrival, room, end ──▶ edge of the socket ── poll ──▶ Ready      one profile decides on both arrows
//! ```

use super::faults::Fault;
use super::{Edge, SimSocket, World};
use crate::base::id::Token;
use crate::sys::Ready;

/// What a kernel reports is bounded by its contract on both sides: some events must come, others may. A program that is
/// right in all three profiles relies on the contract alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Profile {
    /// As little as epoll may report: one edge for each arrival, for new space after a refused write, and for an end;
    /// never a second one for the same thing, and no flag that says more.
    #[default]
    Strict,
    /// As kqueue reports: reading and writing are separate events, an end is announced with the bytes before it and
    /// before those are read, and an event is left out when nothing is ready any more.
    Kqueue,
    /// What the contract of mio promises, and no more: the next event comes only after `WouldBlock`. A read that was
    /// short has not said that, so new bytes, and an end, may not be announced.
    Contract,
}

/// Events for closed sockets are made of the last so many tokens.
const GONE_MAX: usize = 8;

impl SimSocket {
    /// Something can be read now that could not before.
    pub(super) fn announce_readable(&mut self, profile: Profile) {
        if profile != Profile::Contract || std::mem::take(&mut self.read_armed) {
            self.edge.readable = true;
        }
    }

    /// The peer's end has arrived.
    pub(super) fn announce_end(&mut self, profile: Profile) {
        self.announce_readable(profile);
        self.edge.end = self.edge.readable;
    }

    /// The connection has failed.
    pub(super) fn announce_failure(&mut self, profile: Profile) {
        if profile != Profile::Contract {
            self.edge = Edge { readable: true, writable: true, end: true, error: true, priority: false };
            return;
        }
        self.announce_end(profile);
        self.edge.writable |= std::mem::take(&mut self.write_refused);
        self.edge.error = self.edge.readable || self.edge.writable;
    }

    /// Urgent data has arrived, if its mark is among the received bytes.
    pub(super) fn announce_urgent(&mut self, profile: Profile) {
        if self.urgent.is_some_and(|at| at <= self.inbound.len()) {
            self.announce_readable(profile);
            self.edge.priority = true;
        }
    }
}

impl World {
    /// The events of one poll.
    pub(super) fn take_events(&mut self, ready: &mut Vec<Ready>) {
        ready.append(&mut self.stale);
        for index in 0..self.listeners.len() {
            self.refill_backlog(index);
            let late = self.listeners[index].edge && self.draw_fault(Fault::LateEvent);
            let listener = &mut self.listeners[index];
            let Some(token) = listener.token.filter(|_| listener.is_open && !late) else { continue };
            if std::mem::take(&mut listener.edge) {
                ready.push(Edge { readable: true, ..Edge::default() }.ready(token));
            }
        }
        let live = std::mem::take(&mut self.live);
        for &key in &live {
            self.take_events_of(key, ready);
        }
        self.keep_live(live);
        self.fail_one();
        self.report_stale(ready);
        if let Some(faults) = &mut self.faults {
            faults.shuffle(ready);
        }
    }

    fn take_events_of(&mut self, key: usize, ready: &mut Vec<Ready>) {
        let socket = &self.sockets[key];
        if socket.released.is_some() {
            return;
        }
        let (arrives, has_edge) = (self.has_arrival(key), socket.edge.any());
        let late = (arrives || has_edge) && self.draw_fault(Fault::LateEvent);
        if arrives && !late {
            self.arrive(key);
        }
        let Some(token) = self.sockets[key].token else { return };
        if self.sockets[key].edge.any() && !late {
            let edge = std::mem::take(&mut self.sockets[key].edge);
            self.report(key, token, edge, ready);
        } else if self.draw_fault(Fault::SpuriousEvent) {
            ready.push(Edge::SPURIOUS.ready(token));
        }
    }

    fn report(&mut self, key: usize, token: Token, edge: Edge, ready: &mut Vec<Ready>) {
        let Edge { readable, writable, end, error, priority } = edge;
        let flags = [readable, writable, end, error, priority].map(i64::from);
        self.note("event", Some(key), flags.iter().fold(0, |all, flag| 2 * all + flag));
        if self.profile != Profile::Kqueue {
            return ready.push(edge.ready(token));
        }
        let socket = &self.sockets[key];
        let failed = socket.reset || socket.dialed.is_some_and(|result| result.is_err());
        let ended = socket.inbound_end || failed;
        let quiet = Edge::default();
        if (edge.readable || edge.end) && (ended || !socket.inbound.is_empty()) {
            ready.push(Edge { readable: true, end: ended, error: failed, ..quiet }.ready(token));
        }
        match edge.writable {
            true if failed || self.space(key) > 0 => {
                ready.push(Edge { writable: true, end: failed, error: failed, ..quiet }.ready(token));
            }
            // The room is gone again: the next room is an event.
            true => self.sockets[key].write_refused = true,
            false => {}
        }
    }

    /// Forgets the sockets that were closed since the last poll, but for their tokens.
    fn keep_live(&mut self, mut live: Vec<usize>) {
        live.retain(|&key| {
            let closed = self.sockets[key].released.is_some();
            if let (true, Some(token)) = (closed, self.sockets[key].token) {
                self.gone.push_back(token);
                self.gone.truncate(GONE_MAX);
            }
            !closed
        });
        live.append(&mut self.live);
        self.live = live;
    }

    /// One connection fails, if the tape says so.
    fn fail_one(&mut self) {
        if self.live.is_empty() || !self.draw_fault(Fault::ConnectionFails) {
            return;
        }
        let Some(faults) = &mut self.faults else { return };
        let key = self.live[faults.part(self.live.len()) - 1];
        let socket = &mut self.sockets[key];
        if socket.token.is_some() && !socket.reset && socket.dialed.is_none_or(|result| result.is_ok()) {
            socket.failure = faults.failure();
            socket.transit_reset = true;
        }
    }

    fn report_stale(&mut self, ready: &mut Vec<Ready>) {
        if self.gone.is_empty() || !self.draw_fault(Fault::StaleEvent) {
            return;
        }
        let Some(faults) = &mut self.faults else { return };
        let token = self.gone[faults.part(self.gone.len()) - 1];
        // The attempts of a dial share a token. A closed one has no events, and the one that is left is not stale.
        if self.live.iter().any(|&key| self.sockets[key].token == Some(token)) {
            return;
        }
        self.note("stale event", None, 0);
        ready.push(Edge { end: true, error: true, ..Edge::SPURIOUS }.ready(token));
    }
}

impl Edge {
    /// A spurious edge, as a kernel may raise one.
    pub(super) const SPURIOUS: Edge =
        Edge { readable: true, writable: true, end: false, error: false, priority: false };

    pub(super) fn ready(self, token: Token) -> Ready {
        let Edge { readable, writable, end, error, priority } = self;
        Ready { token, readable, writable, end, error, priority }
    }

    pub(super) fn any(self) -> bool {
        self.readable || self.writable || self.end
    }
}

/// The edges that tests/kernel.rs finds on Linux.
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::address::Address;
    use crate::base::id::TokenKind;
    use crate::config::listen::ListenOptions;
    use crate::sys::sim::{PeerId, Script, Sim, address};
    use crate::sys::{Registrar, Stream, System};

    const TOKEN: Token = Token(1 << 32);

    struct Edges {
        sim: Sim,
        script: Script,
        near: Stream,
        far: PeerId,
    }

    impl Edges {
        fn new(profile: Profile) -> Edges {
            let (mut sim, script) = Sim::new();
            script.set_profile(profile);
            let (listener, _) = sim.bind(&Address::from(address()), &ListenOptions::default()).unwrap();
            let far = script.connect();
            let (mut near, _) = sim.accept(&listener).unwrap();
            System::register(&mut sim, &mut near, TOKEN).unwrap();
            let mut edges = Edges { sim, script, near, far };
            assert_eq!(edges.next(), [(false, true, false)]);
            edges
        }

        fn next(&mut self) -> Vec<(bool, bool, bool)> {
            let mut ready = Vec::new();
            self.sim.poll(&mut ready, Some(Duration::ZERO), None).unwrap();
            assert!(ready.iter().all(|ready| matches!(ready.token.kind(), Some(TokenKind::Connection(_)))));
            ready.iter().map(|ready| (ready.readable, ready.writable, ready.end)).collect()
        }

        fn read(&mut self, max: usize) -> Option<usize> {
            self.sim.read(&self.near, &mut vec![0; max]).ok()
        }

        fn say(&self, bytes: &[u8]) {
            self.script.feed(self.far, bytes);
        }
    }

    #[test]
    fn each_arrival_is_an_edge_and_a_partial_read_is_none() {
        let mut edges = Edges::new(Profile::Strict);
        edges.say(b"one");
        edges.say(b"two");
        assert_eq!(edges.next(), [(true, false, false)]);
        assert_eq!(edges.next(), []);
        edges.say(b"three");
        assert_eq!(edges.next(), [(true, false, false)]);
        assert_eq!((edges.read(4), edges.next()), (Some(4), vec![]));
        edges.say(b"!");
        assert_eq!((edges.next(), edges.read(100)), (vec![(true, false, false)], Some(8)));
        edges.say(b"after a short read");
        assert_eq!(edges.next(), [(true, false, false)]);
    }

    #[test]
    fn bytes_and_a_fin_are_one_edge_and_a_fin_alone_is_one_too() {
        for profile in [Profile::Strict, Profile::Kqueue] {
            let mut edges = Edges::new(profile);
            edges.say(b"hello");
            edges.script.end(edges.far);
            assert_eq!(edges.next(), [(true, false, true)]);
            assert_eq!((edges.read(100), edges.next(), edges.read(100)), (Some(5), vec![], Some(0)));
            let mut edges = Edges::new(profile);
            edges.say(b"hello");
            assert_eq!((edges.next(), edges.read(100)), (vec![(true, false, false)], Some(5)));
            edges.script.end(edges.far);
            assert_eq!(edges.next(), [(true, false, true)]);
        }
    }

    #[test]
    fn by_the_contract_the_next_event_comes_only_after_would_block() {
        let mut edges = Edges::new(Profile::Contract);
        edges.say(b"hello");
        assert_eq!((edges.next(), edges.read(100)), (vec![(true, false, false)], Some(5)));
        edges.say(b"again");
        edges.script.end(edges.far);
        assert_eq!(edges.next(), []);
        assert_eq!((edges.read(100), edges.read(100)), (Some(5), Some(0)));
        let mut edges = Edges::new(Profile::Contract);
        edges.say(b"hello");
        assert_eq!(
            (edges.next(), edges.read(100), edges.read(100)),
            (vec![(true, false, false)], Some(5), None)
        );
        edges.say(b"again");
        assert_eq!(edges.next(), [(true, false, false)]);
    }

    #[test]
    fn kqueue_reports_reading_and_writing_apart_and_nothing_that_is_over() {
        let mut edges = Edges::new(Profile::Kqueue);
        edges.say(b"hello");
        assert_eq!(edges.read(100), Some(5));
        assert_eq!(edges.next(), [], "the bytes were read before the event was");
        edges.script.reset(edges.far);
        assert_eq!(edges.next(), [(true, false, true), (false, true, true)]);
    }
}
