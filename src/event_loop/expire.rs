//! Phase 5: act on deadlines that have passed.
//!
//! Read before: `event_loop/write.rs`. Next: `event_loop/reap.rs`. `connection/deadline.rs` computes the deadlines;
//! `parts/wheel.rs` stores one for each connection.

use std::time::Duration;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::observer::{Due, Phase, Step};
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::optional::IdleKind;
use crate::connection::state::Stage;
use crate::connection::table::Stop;
use crate::parts::timers::Expired;
use crate::service::Event;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Carries out shutdowns, fires timers, and acts on at most
    /// [`Limits::expirations_per_turn`](crate::Limits::expirations_per_turn) deadlines. It follows `read`, so that
    /// bytes that arrived in time keep their connection open, even if the turn before was long.
    pub(super) fn expire(&mut self) {
        self.enter(Phase::Expire);
        self.handle_shutdown();
        self.fire_timers();
        self.expire_connections();
        self.tell_of_leavers();
        self.run_later();
        self.run_pokes();
    }

    fn expire_connections(&mut self) {
        for _ in 0..self.table.cx.limits.expirations_per_turn {
            let cx = &mut self.table.cx;
            let Some(slot) = cx.wheel.pop_due(cx.now) else { return };
            // The slot is in use: `Table::remove` cancels the entry of a slot that it frees.
            let id = self.table.slots[slot as usize].id;
            self.check_deadlines(id);
            // Armed again with what is due next, whether it was acted on or not: an entry that has fired is gone, and a
            // connection without one would never time out.
            let (connection, cx) = self.table.at(slot);
            let next = connection.deadline(cx.limits_of(connection.service));
            if let Some((when, _)) = next.filter(|_| !seeded(SeededBug::TimerNotRearmed)) {
                cx.wheel.arm(slot, when);
            }
        }
    }

    /// Fires timers of services and redials. Bounded, because a `timer` callback can set another that is due at once.
    fn fire_timers(&mut self) {
        for _ in 0..self.table.cx.limits.expirations_per_turn {
            match self.table.timers.pop_due(self.table.cx.now) {
                Some(Expired::Notify(service, timer)) => self.call(service, Event::Timer(timer)),
                Some(Expired::Redial(again)) => self.table.redial(*again),
                None => return,
            }
        }
    }

    /// An entry has fired. Most often nothing is due: activity stores a tick and does not move the entry, so the
    /// deadline is computed here from what the connection says now.
    fn check_deadlines(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        let deadline =
            connection.deadline(cx.limits_of(connection.service)).filter(|(when, _)| *when <= cx.now);
        cx.observers.tell(|| Step::Deadline { connection: id, due: deadline.map(|(_, due)| due) });
        let Some((_, due)) = deadline else { return };
        match due {
            Due::Connect => connection.close_now(CloseReason::ConnectTimeout, cx),
            Due::Attempt => self.next_attempt(id),
            Due::Handshake if connection.filter_mut().is_some() => {
                connection.close(CloseReason::HandshakeTimeout, cx);
            }
            // The handshake never started: no filter can make an alert, and the peer's bytes are unread, so a close
            // would be a reset in any case.
            Due::Handshake => connection.close_now(CloseReason::HandshakeTimeout, cx),
            Due::Idle => self.idle(id, IdleKind::Both),
            Due::ReadIdle => self.idle(id, IdleKind::Reading),
            Due::WriteIdle => self.idle(id, IdleKind::Writing),
            Due::Alarm => self.alarm(id),
            Due::Refill => connection.unthrottle(cx),
            Due::FirstByte => connection.close(CloseReason::FirstByte, cx),
            // It is closing already, so another graceful close would change nothing: drop it.
            Due::Lifetime if connection.stage == Stage::Closing => {
                connection.close_now(CloseReason::Lifetime, cx);
            }
            Due::Lifetime => connection.close(CloseReason::Lifetime, cx),
            Due::MessageTimeout => connection.close(CloseReason::Unfinished, cx),
            Due::Linger => connection.close_now(CloseReason::Local, cx),
            Due::Broken => connection.close_now(CloseReason::Reset, cx),
            Due::HalfClosed if connection.stage == Stage::Closing => {
                connection.close_now(CloseReason::HalfClosed, cx);
            }
            Due::HalfClosed => connection.close(CloseReason::HalfClosed, cx),
            Due::MinReadRate | Due::MinWriteRate => self.check_min_rate(id, due),
        }
    }

    /// Calls `idle`. The timeout is restarted before the call, so that a callback that does not close gets the next
    /// call after another whole timeout, and one that sets a new timeout is not overruled.
    fn idle(&mut self, id: ConnId, which: IdleKind) {
        let (connection, cx) = self.table.at(id.slot);
        connection.restart_idle(which, cx.now);
        let service = connection.service;
        self.call(service, Event::Idle(id.slot, which));
        // `Socket::close` notes `Local`. In this callback the cause is the timeout, and counters should say so.
        let (connection, _) = self.table.at(id.slot);
        if !connection.is_open() && connection.close_reason == Some(CloseReason::Local) {
            mark!("closed by idle");
            connection.close_reason = Some(CloseReason::Idle);
        }
    }

    /// Calls `alarm`. A repeating alarm is set again before the call, so that the callback can replace or cancel it.
    fn alarm(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        let Some(tag) = connection.pop_alarm(cx.now) else { return };
        let service = connection.service;
        self.call(service, Event::Alarm(id.slot, tag));
    }

    /// One span of a minimum rate has passed: closes the connection if fewer bytes have moved than it demands.
    fn check_min_rate(&mut self, id: ConnId, due: Due) {
        let (connection, cx) = self.table.at(id.slot);
        if connection.met_min_rate(due, &cx.socket_limits[usize::from(connection.service)], cx.now) {
            return;
        }
        match due {
            // A peer that sends too slowly may still read its reply, so it is closed gracefully. One that reads too
            // slowly would not read the rest of its queue either, so that is dropped.
            Due::MinReadRate => connection.close(CloseReason::TooSlow, cx),
            _ => connection.close_now(CloseReason::TooSlow, cx),
        }
    }

    /// Carries out a shutdown: listeners close at once, connections that are left when the grace has passed. Each
    /// service is told once, when the first shutdown begins: a later one can only bring the end nearer.
    fn handle_shutdown(&mut self) {
        if let Some(stop) = self.table.stop.take() {
            self.table.listeners.close_all();
            self.table.timers.clear();
            // Tarpitted connections would stay for 30 s and do nothing, so the shutdown does not wait for them.
            self.table.close_all_now(true);
            let begins = self.table.drain_deadline.is_none();
            let (deadline, grace) = match stop {
                Stop::Shutdown(grace) => (self.table.cx.now.after(grace), grace),
                Stop::Now => (self.table.cx.now, Duration::ZERO),
            };
            self.table.drain_deadline = Some(deadline);
            for service in 1..=self.services.len() * usize::from(begins) {
                self.call(service as u16, Event::Stopping(grace));
            }
        }
        if self.table.drain_deadline.is_some_and(|by| by <= self.table.cx.now) {
            mark!("the grace of a shutdown is over");
            // A `closed` callback of this shutdown may have set new timers, and `run` would wait for them.
            if !seeded(SeededBug::TimersOutliveShutdown) {
                self.table.timers.clear();
            }
            self.table.close_all_now(false);
        }
    }
}
