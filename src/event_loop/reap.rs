//! Phase 7: call `closed` and free slots.

use std::mem;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::reason::{CloseReason, ClosedInfo};
use crate::connection::Connection;
use crate::connection::state::Flag;
use crate::connection::table::REFUSED;
use crate::parts::listener::Listener;
use crate::service::Event;
use crate::sys::System;

/// Connections whose `closed` is called in one turn. A callback may send to every member of a room: a thousand that are
/// reset together would be a million sends in one phase.
const CLOSED_PER_TURN: usize = 256;

impl<S: System> EventLoop<S> {
    /// Frees the slots of connections that have ended; nothing else frees one. A connection closed from within a
    /// `closed` callback is reaped in the next turn.
    pub(super) fn reap(&mut self) {
        if self.table.cx.to_reap.is_empty() {
            return;
        }
        let mut line = mem::replace(&mut self.table.cx.to_reap, mem::take(&mut self.spare_to_reap));
        let mut reaped = 0;
        // At least one, whatever the arena holds: else nothing would ever empty it.
        while reaped < line.len().min(CLOSED_PER_TURN) && (reaped == 0 || !self.table.cx.arena.is_full()) {
            self.reap_one(line[reaped]);
            reaped += 1;
        }
        // What is left goes before those that the callbacks have closed.
        line.drain(..reaped);
        line.append(&mut self.table.cx.to_reap);
        self.spare_to_reap = mem::replace(&mut self.table.cx.to_reap, line);
        // A listener that ran out of descriptors gets no event when some are free again.
        self.listeners.iter_mut().flatten().for_each(Listener::resume_accepts);
        self.system.reserve_descriptor();
    }

    /// The order matters. What the connection held elsewhere (attempts, a kernel pipe, a place for a handshake) is
    /// given back while its id is still valid; then the slot is freed, so that the callbacks of others no longer find
    /// it; then the connections that depend on it are told; and `closed` comes last, when a dial in it finds the slot
    /// free.
    fn reap_one(&mut self, id: ConnId) {
        let dial_error = self.end_attempts(id);
        self.close_kernel_pipe(id);
        let (connection, cx) = self.table.at(id.slot);
        cx.handshakes.remove(id);
        let reason = connection.close_reason.unwrap_or(CloseReason::Local);
        let peer = connection.peer_address();
        let leaving = self.drain_deadline.is_some() || self.table.stop.is_some();
        let connection = self.table.find(id);
        let local = connection.and_then(|connection| self.table.local(connection));
        let undelivered = connection.map_or(0, |connection| connection.unread().len());
        let mut connection = self.table.remove(id);
        if let Some(stream) = connection.stream.take() {
            match reason.drops_queue() {
                true => self.system.reset(stream),
                false => drop(stream),
            }
        }
        if connection.service == REFUSED {
            return;
        }
        if let Some(lookup) = connection.dial().and_then(|dial| dial.lookup) {
            self.cancel_lookup(lookup, id);
        }
        self.on_pipe_peer_closed(&connection, reason);
        self.restore_reserved_slot(&connection);
        self.table.cx.stats.closed[reason.index()] += 1;
        log::debug!("{id} {peer} closed: {}", reason.word());
        let gone = ClosedInfo {
            id,
            reason,
            peer,
            local,
            bytes_in: connection.bytes_in,
            bytes_out: connection.bytes_out,
            undelivered,
            duration: self.table.cx.now.since_start() - connection.created.since_start(),
            dial_error,
            filter_error: connection.tls_mut().and_then(|tls| tls.error.take()),
        };
        self.call(connection.service, Event::Closed(&gone));
        if let Some(again) = connection.wants_redial(reason).filter(|_| !leaving) {
            self.table.redial_later(again);
        }
    }

    /// The upstream that used a client's reserved slot has closed: a slot is reserved again, so that the client can
    /// dial another.
    fn restore_reserved_slot(&mut self, gone: &Connection) {
        let Some(dialed_by) = gone.optional.as_ref().and_then(|optional| optional.dialed_by) else { return };
        let holder = self.table.find(dialed_by);
        if holder.is_some_and(|holder| holder.flags.contains(Flag::UsedReservedSlot) && holder.is_live()) {
            self.table.reserve(dialed_by);
        }
    }
}
