//! Phase 7: call `closed` and free slots.

use std::mem;

use super::EventLoop;
use crate::base::reason::{CloseReason, ClosedInfo};
use crate::connection::table::REFUSED;
use crate::connection::{Connection, Flag};
use crate::parts::listener::Listener;
use crate::service::Event;
use crate::sys::System;

/// Connections whose `closed` is called in one turn. A callback may send to every member of a room: a thousand that are
/// reset together would be a million sends in one phase.
const CLOSED_PER_TURN: usize = 256;

impl<S: System> EventLoop<S> {
    /// Frees the slots of those who have ended; nothing else frees one. A connection closed from a `closed` callback
    /// waits for the next turn.
    pub(super) fn reap(&mut self) {
        if self.table.to_reap.is_empty() {
            return;
        }
        let mut line = mem::replace(&mut self.table.to_reap, mem::take(&mut self.spare_to_reap));
        let mut reaped = 0;
        // At least one, whatever the arena holds: else nothing would ever empty it.
        while reaped < line.len().min(CLOSED_PER_TURN) && (reaped == 0 || !self.table.arena.is_full()) {
            self.reap_one(line[reaped]);
            reaped += 1;
        }
        // What is left goes before those that the callbacks have closed.
        line.drain(..reaped);
        line.append(&mut self.table.to_reap);
        self.spare_to_reap = mem::replace(&mut self.table.to_reap, line);
        // A listener that ran out of descriptors is told by nobody else that there are some again.
        self.listeners.iter_mut().flatten().for_each(Listener::resume_accepts);
        self.system.reserve_descriptor();
    }

    fn reap_one(&mut self, slot: u32) {
        let id = self.table.id(slot);
        let why = self.table.at(slot).close_reason.unwrap_or(CloseReason::Local);
        let (peer, local) = (self.table.peer(slot), self.table.local(slot));
        let dial_error = self.end_attempts(slot);
        let again = if self.drain_deadline.is_none() { self.table.wants_redial(slot, why) } else { None };
        self.close_kernel_pipe(slot);
        if self.table.at(slot).flags.contains(Flag::Handshaking) {
            self.table.handshakes.remove(id);
        }
        let mut connection = self.table.remove(slot);
        if let Some(stream) = self.streams.get_mut(slot as usize).and_then(Option::take) {
            match why {
                CloseReason::Aborted => self.system.reset(stream),
                _ => drop(stream),
            }
        }
        if connection.service == REFUSED {
            return;
        }
        if let Some(lookup) = connection.dial().and_then(|dial| dial.lookup) {
            self.cancel_lookup(lookup, id);
        }
        self.on_pipe_peer_closed(&connection, why);
        self.restore_reserved_slot(&connection);
        self.table.stats.closed[why.index()] += 1;
        log::debug!("{id} {peer} closed: {}", why.word());
        let (bytes_in, bytes_out) = (connection.bytes_in, connection.bytes_out);
        let duration = self.table.now.since_start() - connection.created.since_start();
        let filter_error = connection.tls_mut().and_then(|tls| tls.error.take());
        let gone = ClosedInfo {
            id,
            reason: why,
            peer,
            local,
            bytes_in,
            bytes_out,
            duration,
            dial_error,
            filter_error,
        };
        let service = usize::from(connection.service);
        self.services[service].call(&mut self.table, Event::Closed(&gone));
        if let Some(again) = again {
            self.table.redial_later(again);
        }
    }

    /// Whoever was let in with a second slot has it back when the connection in it has gone, to dial another.
    fn restore_reserved_slot(&mut self, gone: &Connection) {
        let Some(dialed_by) = gone.optional.as_ref().and_then(|optional| optional.dialed_by) else { return };
        let holder = self
            .table
            .find(dialed_by)
            .filter(|&slot| self.table.at(slot).flags.contains(Flag::UsedReservedSlot));
        if let Some(slot) = holder.filter(|&slot| self.table.at(slot).is_live()) {
            self.table.reserve(slot);
        }
    }
}
