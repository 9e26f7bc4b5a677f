//! The invariants of the loop, for its own tests and for services under test. They go through all connections.

use std::time::Duration;

use super::{EventLoop, Turn};
use crate::connection::Connection;
use crate::connection::dial::Attempts;
use crate::connection::state::Flag;
use crate::sys::sim::Sim;

impl EventLoop<Sim> {
    /// Turns once without moving the clock.
    pub(crate) fn turn_and_check(&mut self) -> Turn {
        self.turn_for_and_check(Some(Duration::ZERO))
    }

    /// Turns once; a poll without events moves the clock.
    pub(crate) fn turn_for_and_check(&mut self, wait: Option<Duration>) -> Turn {
        #[cfg(test)]
        Self::count_turn();
        let turn = self.turn(wait).expect("a simulated poll does not fail");
        self.check();
        turn
    }

    /// Asserts that no wake-up was lost, when neither the loop nor the kernel has anything more to do at this time: no
    /// stream is left readable, writable or to be ended, and no backlog to be accepted from. Then the descriptors in
    /// use are those of the connections and listeners.
    pub(crate) fn check_at_rest(&self) {
        let streams = self.table.slots.iter().filter_map(|(_, it)| Some((it, it.stream.as_ref()?)));
        for (connection, stream) in streams.clone() {
            let (readable, writable) = self.system.readiness(stream);
            connection.check_at_rest(readable, writable);
        }
        for listener in self.table.listeners.open() {
            let accepts = self.has_place(listener) && listener.retry_at().is_none();
            let waits = accepts && self.system.has_backlog(&listener.socket);
            assert!(!waits, "{}: connections are left in the backlog", listener.address);
        }
        let dials = self.attempts().map(|attempts| attempts.count()).sum::<usize>();
        let listeners = self.table.listeners.open().count();
        assert_eq!(self.system.descriptors(), streams.count() + dials + listeners, "descriptors in use");
    }

    /// What the next turn has to do, for a message: the parts of [`has_work`](EventLoop::has_work).
    pub(crate) fn unfinished(&self) -> String {
        let (table, cx) = (&self.table, &self.table.cx);
        let parts = [
            ("to read", cx.ready.len()),
            ("to write", cx.dirty.len()),
            ("drained", cx.drained.len()),
            ("poked", cx.pokes.len()),
            ("to close", cx.to_reap.len()),
            ("dials to start", table.pending_dials.len()),
            ("posts", self.posts.len() + usize::from(self.handle.mailbox().has_posts())),
            ("put off with `later`", table.later.len()),
            ("deadlines due", usize::from(self.next_tick().is_some_and(|tick| tick <= cx.now))),
        ];
        let some: Vec<String> =
            parts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
        format!("{} connections; {}", table.connections(), some.join(", "))
    }

    fn attempts(&self) -> impl Iterator<Item = &Attempts> {
        self.table.slots.iter().filter_map(|(_, connection)| connection.attempts())
    }

    /// Asserts the invariants that hold between any two turns.
    pub(super) fn check(&self) {
        let table = &self.table;
        let inboxes: usize =
            table.slots.iter().filter_map(|(_, c)| c.inbox.as_ref()).map(|i| i.charge()).sum();
        let outboxes = || table.slots.iter().filter_map(|(_, c)| c.outbox.as_ref());
        let queued: usize = outboxes().map(|outbox| outbox.buffered()).sum();
        assert!(table.cx.memory >= inboxes, "inboxes hold more than was charged");
        assert!(queued == 0 || table.cx.memory > inboxes, "queues hold what was not charged");
        assert!(queued > 0 || outboxes().next().is_some() || table.cx.memory == inboxes);
        let stats = &table.cx.stats;
        let there = table.connections() as u64;
        assert!(
            table.connections() + table.reserved <= table.cx.limits.connections,
            "more connections than the limit"
        );
        let kept = table.slots.iter().filter(|(_, c)| c.flags.contains(Flag::HoldsReservedSlot)).count();
        for (index, group) in table.cx.groups.iter().enumerate() {
            let member = |c: &&Connection| c.group() == Some(index as u16);
            let waiting = table
                .slots
                .iter()
                .map(|(_, c)| c)
                .filter(member)
                .filter(|c| c.flags.contains(Flag::Throttled))
                .count();
            assert_eq!(group.throttled(), waiting, "the throttled members of a group are counted");
        }
        assert_eq!(table.reserved, kept, "reserved slots belong to connections");
        let under_way: usize = self.attempts().map(|attempts| attempts.extra()).sum();
        assert_eq!(self.extra_attempts, under_way, "attempts are counted");
        assert_eq!(
            stats.accepted + stats.dialed + stats.adopted,
            there + stats.closed_total(),
            "connections are conserved"
        );
        for (_, connection) in &table.slots {
            connection.check(&table.cx);
            let is_piped = connection.flags.contains(Flag::Piped);
            assert_eq!(is_piped, table.pipe_peer_of(connection).is_some(), "a pipe without its other end");
            let in_line = table.cx.ready.iter().filter(|&&id| id == connection.id).count();
            assert!(in_line <= 1, "in line twice");
            assert!(!connection.wants_turn() || in_line == 1, "a wake-up was lost: {}", connection.id);
            let stuck =
                connection.flags.contains(Flag::Writable) && connection.is_live() && connection.can_write();
            assert!(
                !stuck || table.cx.dirty.iter().any(|dirty| dirty.id == connection.id),
                "a queue was forgotten"
            );
        }
    }
}
