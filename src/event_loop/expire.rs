//! Phase 5: deadlines that have passed.

use std::mem;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::connection::deadline::Due;
use crate::connection::optional::IdleKind;
use crate::connection::state::Stage;
use crate::connection::table::Stop;
use crate::parts::timers::Expired;
use crate::service::Event;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// At most a budget of deadlines. It comes after `read`, so that bytes which arrived in time save their
    /// connection.
    pub(super) fn expire(&mut self) {
        self.handle_shutdown();
        self.fire_timers();
        self.table.check_receivers();
        for _ in 0..self.table.cx.limits.expirations_per_turn {
            let cx = &mut self.table.cx;
            let Some(slot) = cx.wheel.pop_due(cx.now) else { return };
            let id = self.table.slots[slot as usize].id;
            self.check_deadlines(id);
            let (connection, cx) = self.table.at(slot);
            if let Some((when, _)) = connection.deadline(cx.limits_of(connection.service)) {
                cx.wheel.arm(slot, when);
            }
        }
    }

    fn fire_timers(&mut self) {
        for _ in 0..self.table.cx.limits.expirations_per_turn {
            match self.table.timers.pop_due(self.table.cx.now) {
                Some(Expired::Notify(service, timer)) => self.call(service, Event::Timer(timer)),
                Some(Expired::Redial(again)) => self.table.redial(*again),
                None => return,
            }
        }
    }

    /// An entry fired. Most often nothing is due: there was activity since it was armed, and activity is only noted.
    fn check_deadlines(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        let Some((when, due)) = connection.deadline(cx.limits_of(connection.service)) else { return };
        if when > cx.now {
            return;
        }
        match due {
            Due::Connect => connection.close_now(CloseReason::ConnectTimeout, cx),
            Due::Attempt => self.next_attempt(id),
            Due::Handshake if connection.filter_mut().is_some() => {
                connection.close(CloseReason::HandshakeTimeout, cx);
            }
            // Nothing was said that needs an answer, and what the peer has said is unread: it is reset.
            Due::Handshake => connection.close_now(CloseReason::HandshakeTimeout, cx),
            Due::Idle => self.idle(id, IdleKind::Both),
            Due::ReadIdle => self.idle(id, IdleKind::Reading),
            Due::WriteIdle => self.idle(id, IdleKind::Writing),
            Due::Alarm => self.alarm(id),
            Due::Refill => connection.unthrottle(cx),
            Due::FirstByte => connection.close(CloseReason::FirstByte, cx),
            // Already closing: a graceful close would change nothing.
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

    /// The next span begins here, and again with whatever the callback sets.
    fn idle(&mut self, id: ConnId, which: IdleKind) {
        let (connection, cx) = self.table.at(id.slot);
        connection.restart_idle(which, cx.now);
        let service = connection.service;
        self.call(service, Event::Idle(id.slot, which));
        let (connection, _) = self.table.at(id.slot);
        if !connection.is_open() && connection.close_reason == Some(CloseReason::Local) {
            connection.close_reason = Some(CloseReason::Idle);
        }
    }

    /// The next alarm is set before the service hears of this one, so that it can set another or none.
    fn alarm(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        connection.restart_alarm(cx.now);
        let service = connection.service;
        self.call(service, Event::Alarm(id.slot));
    }

    fn check_min_rate(&mut self, id: ConnId, due: Due) {
        let (connection, cx) = self.table.at(id.slot);
        if connection.met_min_rate(due, &cx.socket_limits[usize::from(connection.service)], cx.now) {
            return;
        }
        match due {
            // A peer that sends too slowly may still read what was sent to it; one that does not read will not.
            Due::MinReadRate => connection.close(CloseReason::TooSlow, cx),
            _ => connection.close_now(CloseReason::TooSlow, cx),
        }
    }

    /// Shutting down: the listeners close at once, and what is left ends when the grace has passed.
    fn handle_shutdown(&mut self) {
        for listener in mem::take(&mut self.table.listeners_to_close) {
            self.close_listener(listener);
        }
        if let Some(stop) = self.table.stop.take() {
            self.listeners.iter_mut().for_each(|listener| drop(listener.take()));
            self.table.timers.clear();
            // Shutdown does not wait for refused peers that are held without an answer.
            self.table.close_all_now(true);
            self.drain_deadline = Some(match stop {
                Stop::Shutdown(grace) => self.table.cx.now.after(grace),
                Stop::Now => self.table.cx.now,
            });
        }
        if self.drain_deadline.is_some_and(|by| by <= self.table.cx.now) {
            // A `closed` callback of this shutdown may have set new ones.
            self.table.timers.clear();
            self.table.close_all_now(false);
        }
    }
}
