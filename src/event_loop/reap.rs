//! Phase 7: call `closed` and free slots.
//!
//! Read before: `event_loop/expire.rs`. Next: `event_loop/accept.rs`.

use std::mem;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::observer::{Phase, Step};
use crate::base::reason::{CloseReason, ClosedInfo};
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::Connection;
use crate::connection::state::{Flag, Half};
use crate::connection::table::REFUSED;
use crate::parts::listener::Listener;
use crate::service::Event;
use crate::sys::System;

/// Connections whose `closed` is called in one turn. A `closed` callback may send to every member of a room: without
/// this limit, a thousand members that are reset together would cause a million sends in one phase.
const CLOSED_PER_TURN: usize = 256;

impl<S: System> EventLoop<S> {
    /// Frees the slots of connections that have ended. No other phase frees one: so an id keeps its meaning for the
    /// rest of the turn, whatever callbacks close. A connection closed by a `closed` callback is reaped in the next
    /// turn, which bounds this phase.
    pub(super) fn reap(&mut self) {
        self.enter(Phase::Reap);
        if self.table.cx.to_reap.is_empty() {
            return;
        }
        self.being_reaped.clear();
        mem::swap(&mut self.table.cx.to_reap, &mut self.being_reaped);
        let mut reaped = 0;
        // Stops when the arena is full of what the callbacks have sent; the next turn writes it. At least one
        // connection is reaped, so that every turn makes progress.
        let max = if seeded(SeededBug::ReapUnbounded) { usize::MAX } else { CLOSED_PER_TURN };
        while reaped < self.being_reaped.len().min(max) && (reaped == 0 || !self.table.cx.arena.is_full()) {
            self.reap_one(self.being_reaped[reaped]);
            reaped += 1;
        }
        // First in, first out: those that are left come before those that the callbacks have closed just now.
        self.being_reaped.drain(..reaped);
        self.being_reaped.append(&mut self.table.cx.to_reap);
        mem::swap(&mut self.table.cx.to_reap, &mut self.being_reaped);
        // The closed streams have freed descriptors, and no event reports that. So a listener that had run out of them
        // tries again, and the spare descriptor is opened again if it was used.
        self.table.listeners.all.iter_mut().flatten().for_each(Listener::resume_accepts);
        self.system.reserve_descriptor();
    }

    /// Ends one connection. The order matters:
    ///
    /// 1. What it holds elsewhere (attempts, a kernel pipe, a place for a handshake) is released while its id is valid.
    /// 2. The slot is freed, so that no later step or callback can find it.
    /// 3. The connections that depend on it (its pipe peer, the client of a proxy) are updated.
    /// 4. A redial is set, so that `closed` can tell of it and cancel it. It is a timer, so its `open` comes later.
    /// 5. `closed` is called last, so that a dial in it finds the slot free, and the state of all others is final.
    fn reap_one(&mut self, id: ConnId) {
        let dial_error = self.end_attempts(id);
        self.close_kernel_pipe(id);
        self.table.cx.handshakes.remove(id);
        let leaving = self.table.is_shutting_down();
        let (undelivered, mut connection) = self.table.remove(id);
        let reason = connection.close_reason.unwrap_or(CloseReason::Local);
        let (peer, local) = (connection.peer_address(), self.table.local(&connection));
        if let Some(stream) = connection.stream.take() {
            let incomplete = connection.is_incomplete() && connection.outgoing != Half::Ended;
            mark!("reaped with its stream");
            match reason.drops_queue() || incomplete {
                // An abort, an error or a limit dropped bytes: a FIN would tell the peer that the reply is complete.
                true => self.system.reset(stream),
                false => drop(stream),
            }
        }
        let again = connection.wants_redial(reason).filter(|_| !leaving);
        let redial_in = again.and_then(|again| self.table.redial_later(again));
        let gone = ClosedInfo {
            id,
            reason,
            peer,
            local,
            bytes_in: connection.bytes_in,
            bytes_out: connection.bytes_out,
            undelivered,
            tag: connection.tag(),
            redial_in,
            duration: self.table.cx.now.since_start() - connection.created.get().since_start(),
            dial_error,
            filter_error: connection.tls_mut().and_then(|tls| tls.error.take()),
        };
        let service = (connection.service != REFUSED).then(|| self.table.service_id(connection.service));
        self.table.cx.observers.tell(|| Step::Close { service, gone: &gone });
        if service.is_none() {
            mark!("a refused connection ends");
            return; // No service has seen it.
        }
        if let Some(lookup) = connection.dial().and_then(|dial| dial.lookup) {
            self.cancel_lookup(lookup, id);
        }
        self.on_pipe_peer_closed(&connection, reason);
        self.restore_reserved_slot(&connection);
        self.table.cx.stats.closed[reason.index()] += 1;
        log::debug!("{id} {} closed: {}", gone.peer, reason.word());
        self.call(connection.service, Event::Closed(&gone));
    }

    /// The upstream that used a client's reserved slot has closed: a slot is reserved again, so that the client can
    /// dial another.
    fn restore_reserved_slot(&mut self, gone: &Connection) {
        let Some(dialed_by) = gone.dialed_by() else { return };
        let holder = self.table.find(dialed_by);
        if holder.is_some_and(|holder| holder.flags.contains(Flag::UsedReservedSlot) && holder.is_live()) {
            mark!("a slot is reserved again");
            self.table.reserve(dialed_by);
        }
    }
}
