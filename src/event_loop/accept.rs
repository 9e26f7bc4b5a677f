//! Phase 8: start dials and accept connections.
//!
//! Read before: `event_loop/reap.rs`. This is the end of the reading path; `docs/reading-path.md` says what to read
//! then. Access rules are in `connection/admission.rs`, dials in `event_loop/dial.rs`.

use std::mem;

use log::Level;

use super::EventLoop;
use crate::base::address::{Address, PeerAddress};
use crate::base::filter::FilterConfig;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::observer::{Phase, Step};
use crate::base::reason::{CloseReason, OsError, Refusal, Refused};
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::config::rules::RefuseMode;
use crate::connection::admission::Rejection;
use crate::connection::state::{Flag, Stage};
use crate::connection::table::REFUSED;
use crate::service::Event;
use crate::sys::{AcceptError, Stream, System};

/// Connections that are accepted and closed at once, in one turn, when no descriptor is left for them.
const SHED_MAX: usize = 64;

impl<S: System> EventLoop<S> {
    /// Starts the dials of this turn, then accepts. It follows `reap`, so that a slot freed in this turn is used before
    /// a peer is refused. Dials come first: they are made for connections that exist already.
    pub(super) fn accept(&mut self) {
        self.enter(Phase::Accept);
        self.poll_resolver();
        let asked = !self.table.pending_dials.is_empty() || !self.table.pending_adoptions.is_empty();
        if !asked && !self.table.listeners.any_acceptable {
            return;
        }
        let before = self.table.cx.stats.accepted + self.table.cx.stats.refused;
        mem::take(&mut self.table.pending_dials).into_iter().for_each(|id| self.start_dial(id));
        let greets = !self.table.pending_adoptions.is_empty();
        if greets {
            mem::take(&mut self.table.pending_adoptions).into_iter().for_each(|id| self.start_adopted(id));
        }
        // Always in the same order, and fair in spite of that: each listener has a budget of its own, so a flood on one
        // takes no turn from the next.
        (0..self.table.listeners.all.len()).for_each(|index| self.accept_from(index));
        self.table.listeners.find_acceptable();
        let after = self.table.cx.stats.accepted + self.table.cx.stats.refused;
        // The greeting of a new connection must not wait for the next turn's `write`, which may follow a sleep.
        if (after > before || greets) && !self.table.cx.dirty.is_empty() {
            mark!("a greeting is written at once");
            self.write();
        }
    }

    /// Accepts from one listener until its backlog is empty, its budget ends, or there is no place. Readiness of a
    /// listener is edge-triggered too, so `acceptable` stays set until accept(2) says that the backlog is empty.
    fn accept_from(&mut self, index: usize) {
        let times = if seeded(SeededBug::AcceptsUnbounded) { 1_000 } else { 1 };
        for _ in 0..times * self.table.cx.limits.accepts_per_turn {
            // Looked up in each round: `judge` calls services, and a callback may close the listener or take the last
            // slot.
            let Some(Some(listener)) = self.table.listeners.all.get(index) else { return };
            if !self.can_accept(listener) {
                return;
            }
            match self.system.accept(&listener.socket) {
                Ok((stream, peer)) => self.judge(index, stream, peer),
                Err(error) => match error {
                    // Only this peer is gone; the next in the backlog may be fine. It uses up one accept of the
                    // budget, so a flood of such peers ends too.
                    AcceptError::PeerGone => self.table.cx.stats.accept_aborted += 1,
                    AcceptError::Empty => return self.on_backlog_empty(index),
                    AcceptError::NoDescriptor => return self.out_of_descriptors(index),
                    AcceptError::NoMemory => return self.pause_accepts(index, "kernel memory"),
                    AcceptError::Broken(error) => {
                        log::error!("a listener failed and was closed: {error}");
                        self.table.listeners.all[index] = None;
                        return;
                    }
                },
            }
        }
    }

    /// Decides about a connection that the kernel has accepted. The rules come first, so that a denied peer does not
    /// learn whether the server is at capacity. The limits of its address come last, because a pass is counted: a
    /// connection that is refused for another reason must not use up the rate of its address.
    fn judge(&mut self, index: usize, stream: Stream, peer: PeerAddress) {
        let Some(Some(listener)) = self.table.listeners.all.get_mut(index) else { return };
        // An accept has succeeded, so the next failure pauses for the shortest time again.
        listener.resume_accepts();
        // One accept says nothing about the rest of the backlog, so the listener stays acceptable.
        listener.acceptable &= !seeded(SeededBug::AcceptStopsAfterOne);
        let (service, slots) = (listener.service, listener.slots());
        let ip = peer.ip();
        let full = Err((Refusal::Full, RefuseMode::Reply));
        let judged = self.table.check_rules(service, ip).and_then(|()| {
            let room = self.table.has_room_for_service(service, slots);
            if room { self.table.admit_address(service, ip) } else { full }
        });
        match judged {
            Ok(counted) => self.add_accepted(index, stream, peer, counted),
            Err(refusal) => self.refuse(index, stream, peer, refusal),
        }
    }

    /// Gives an accepted connection a slot, and calls `open`; with TLS, that is called after the handshake.
    fn add_accepted(&mut self, index: usize, stream: Stream, peer: PeerAddress, counted: bool) {
        let Some(Some(listener)) = self.table.listeners.all.get(index) else { return };
        let (service, dials, filter) = (listener.service, listener.reserve_slot, listener.filter.clone());
        // Only a listener on the unspecified address asks the kernel: that is a system call for each connection.
        let (listener, local) = (listener.id, listener.local.or_else(|| self.system.local_address(&stream)));
        let id = self.table.insert(service, Stage::Open, peer);
        self.table.set_place(id, listener, local);
        let owner = self.table.service_id(service);
        let accepted =
            || Step::Accept { connection: id, service: owner, listener, peer: Address::from(peer) };
        self.table.cx.observers.tell(accepted);
        if dials {
            self.table.reserve(id);
        }
        self.table.cx.stats.accepted += 1;
        self.table.at(id.slot).0.flags.set(Flag::Counted, counted);
        log::debug!("{id} {} accepted", Address::from(peer));
        self.start_connected(id, stream, filter);
    }

    /// Starts a connection whose stream was adopted in this turn; ends it if it was closed meanwhile.
    fn start_adopted(&mut self, id: ConnId) {
        let Some((connection, cx)) = self.table.get(id) else { return };
        match connection.stream.take().filter(|_| connection.is_open()) {
            Some(stream) => self.start_connected(id, stream, None),
            None => connection.close_now(CloseReason::Local, cx),
        }
    }

    /// Registers the stream of a connection that has a slot, and calls `open`; with TLS, after the handshake.
    fn start_connected(&mut self, id: ConnId, stream: Stream, filter: Option<FilterConfig>) {
        let registered = self.register(id, stream);
        let (connection, cx) = self.table.at(id.slot);
        let service = connection.service;
        // A new socket has an empty send buffer. Without this the first write would wait for an event.
        connection.flags.insert(Flag::Writable);
        if let Err(error) = registered {
            // No event would ever come for it. It is closed before `open`, so its service does not see it.
            log::debug!("{id}: cannot be watched and is closed: {error}");
            mark!("a stream was not registered");
            return connection.close_now(CloseReason::Error(OsError::from(error)), cx);
        }
        match filter {
            // No TLS state is allocated before the first byte: a peer that only connects costs a slot and not 4 KB.
            Some(config) => {
                let deadline = cx.handshake_deadline(service);
                connection.start_filter_first(config, deadline, cx);
            }
            None => self.call(service, Event::Open(id.slot)),
        }
    }

    /// Refuses a connection in the way that the rule asks for. A reply, a FIN and a tarpit need a slot, because they
    /// take longer than this turn; those are bounded by [`Limits::refusals`](crate::Limits::refusals).
    fn refuse(&mut self, index: usize, stream: Stream, peer: PeerAddress, (why, how): Rejection) {
        self.table.cx.stats.refused += 1;
        mark!("refused");
        self.notify_refused(index, peer, why);
        let Some(Some(listener)) = self.table.listeners.all.get(index) else { return };
        let busy = listener.busy_reply.clone();
        // A tarpitted connection stays for 30 s, so it has a bound of its own, below the one of refusals: tarpits must
        // not take the slots in which other peers get their reply.
        let can_tarpit = self.table.tarpitted < self.table.cx.limits.tarpitted;
        let stage = match how {
            RefuseMode::Reset => return self.system.reset(stream),
            // No slot is left for the answer, so it is closed without one.
            _ if !self.table.can_refuse() => return drop(stream),
            RefuseMode::Tarpit if !can_tarpit => return self.system.reset(stream),
            RefuseMode::Tarpit => Stage::Tarpitted,
            RefuseMode::End | RefuseMode::Reply => Stage::Open,
        };
        let id = self.table.insert(REFUSED, stage, peer);
        let registered = self.register(id, stream);
        let (connection, cx) = self.table.at(id.slot);
        connection.flags.insert(Flag::Writable);
        if let Err(error) = registered {
            return connection.close_now(CloseReason::Error(OsError::from(error)), cx);
        }
        // It was refused before any handshake, so the reply is never encrypted; `Listener::new` leaves it out with TLS.
        match how {
            RefuseMode::Tarpit => return,
            RefuseMode::Reply => connection.send_shared(&busy, cx),
            RefuseMode::End | RefuseMode::Reset => {}
        }
        connection.close(CloseReason::Local, cx);
    }

    fn notify_refused(&mut self, index: usize, peer: PeerAddress, why: Refusal) {
        self.table.cx.stats.refused_by_reason[why as usize] += 1;
        let Some(Some(listener)) = self.table.listeners.all.get(index) else { return };
        let refused = Refused { peer: Address::from(peer), at: listener.address.clone(), reason: why };
        log::debug!("{} was refused: {}", refused.peer, why.word());
        let service = listener.service;
        let owner = self.table.service_id(service);
        self.table.cx.observers.tell(|| Step::Refuse { service: owner, refused: &refused });
        self.call(service, Event::Refused(&refused));
    }

    fn on_backlog_empty(&mut self, index: usize) {
        if let Some(Some(listener)) = self.table.listeners.all.get_mut(index) {
            listener.acceptable = false;
            listener.resume_accepts();
        }
    }

    /// accept(2) has failed for want of a descriptor. If the listener refuses excess connections, the spare descriptor
    /// is closed, and with its number up to `SHED_MAX` connections are accepted and closed, one after the other: their
    /// peers get an end at once, in place of a timeout. If it lets them wait, they stay in the backlog.
    ///
    /// Then the listener pauses. Neither a freed descriptor nor the failed accept raises an event, so only a deadline
    /// can bring the loop back to it.
    fn out_of_descriptors(&mut self, index: usize) {
        let Some(Some(listener)) = self.table.listeners.all.get(index) else { return };
        if listener.refuses_excess && self.system.release_descriptor() {
            mark!("shed with the spare descriptor");
            let mut empty = false;
            // Each round closes what it has accepted, so one free descriptor serves for all of them.
            for _ in 0..SHED_MAX {
                let Some(Some(listener)) = self.table.listeners.all.get(index) else { break };
                match self.system.accept(&listener.socket) {
                    Ok((stream, peer)) => {
                        drop(stream);
                        self.notify_refused(index, peer, Refusal::NoDescriptor);
                    }
                    Err(AcceptError::PeerGone) => continue,
                    Err(error) => {
                        empty = matches!(error, AcceptError::Empty);
                        break;
                    }
                }
                self.table.cx.stats.shed += 1;
            }
            // Another thread may have taken the number meanwhile. Then `reap` tries again, when a connection has ended.
            self.system.reserve_descriptor();
            if empty {
                return self.on_backlog_empty(index);
            }
        }
        self.pause_accepts(index, "descriptors");
    }

    /// Pauses a listener for 10 ms at first, and for up to 500 ms if it keeps failing. nginx always pauses for 500 ms
    /// (`accept_mutex_delay`); a shorter first pause is enough when a connection that is about to end frees a
    /// descriptor. At most one warning is logged in a second, because a flood causes a failure after each pause.
    fn pause_accepts(&mut self, index: usize, what: &str) {
        let now = self.table.cx.now;
        let Some(Some(listener)) = self.table.listeners.all.get_mut(index) else { return };
        self.table.cx.stats.starved += 1;
        mark!("a listener pauses");
        listener.pause_accepts(now);
        let (level, left_out) = self.table.cx.log_limits.accepts_paused.level(Level::Warn, now);
        log::log!(
            level,
            "cannot accept: out of {what} (raise the limit, or lower Limits::connections){left_out}"
        );
    }
}
