//! Phase 5: deadlines that have passed.

use std::mem;

use super::EventLoop;
use crate::base::reason::CloseReason;
use crate::connection::Stage;
use crate::connection::deadline::Due;
use crate::connection::optional::IdleKind;
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
        for _ in 0..self.table.limits.expirations_per_turn {
            let Some(slot) = self.table.wheel.pop_due(self.table.now) else { return };
            self.check_deadlines(slot);
            if let Some((when, _)) = self.table.at(slot).deadline(self.table.limits_of(slot)) {
                self.table.wheel.arm(slot, when);
            }
        }
    }

    fn fire_timers(&mut self) {
        for _ in 0..self.table.limits.expirations_per_turn {
            match self.table.timers.pop_due(self.table.now) {
                Some(Expired::Notify(service, timer)) => {
                    self.services[usize::from(service)].call(&mut self.table, Event::Timer(timer))
                }
                Some(Expired::Redial(again)) => self.table.redial(*again),
                None => return,
            }
        }
    }

    /// An entry fired. Most often nothing is due: there was activity since it was armed, and activity is only noted.
    fn check_deadlines(&mut self, slot: u32) {
        let now = self.table.now;
        let Some((when, due)) = self.table.at(slot).deadline(self.table.limits_of(slot)) else { return };
        if when > now {
            return;
        }
        match due {
            Due::Connect => self.table.close_now(slot, CloseReason::ConnectTimeout),
            Due::Attempt => self.next_attempt(slot),
            Due::Handshake => self.on_handshake_timeout(slot),
            Due::Idle => self.idle(slot, IdleKind::Both),
            Due::ReadIdle => self.idle(slot, IdleKind::Reading),
            Due::WriteIdle => self.idle(slot, IdleKind::Writing),
            Due::Alarm => self.alarm(slot),
            Due::Refill => self.table.unthrottle(slot),
            Due::FirstByte => self.table.close(slot, CloseReason::FirstByte),
            Due::Lifetime if self.table.at(slot).stage == Stage::Closing => {
                self.table.close_now(slot, CloseReason::Lifetime);
            }
            Due::Lifetime => self.table.close(slot, CloseReason::Lifetime),
            Due::MessageTimeout => self.table.close(slot, CloseReason::Unfinished),
            Due::Linger => self.table.close_now(slot, CloseReason::Local),
            Due::Broken => self.table.close_now(slot, CloseReason::Reset),
            // In `Closing` nobody is left to be kind to.
            Due::HalfClosed if self.table.at(slot).stage == Stage::Closing => {
                self.table.close_now(slot, CloseReason::HalfClosed);
            }
            Due::HalfClosed => self.table.close(slot, CloseReason::HalfClosed),
            Due::MinReadRate | Due::MinWriteRate => self.check_min_rate(slot, due),
        }
    }

    /// One that has not begun has nothing to be told; and what it has said is unread, so it is reset.
    fn on_handshake_timeout(&mut self, slot: u32) {
        let begun = self.table.filter(slot).is_some();
        match begun {
            true => self.table.close(slot, CloseReason::HandshakeTimeout),
            false => self.table.close_now(slot, CloseReason::HandshakeTimeout),
        }
    }

    fn idle(&mut self, slot: u32, silent: IdleKind) {
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        let service = usize::from(connection.service);
        // The next span begins here, and again with whatever the callback sets.
        if silent == IdleKind::Both {
            connection.last_activity = now;
        }
        if let Some(overrides) = connection.overrides_mut() {
            match silent {
                IdleKind::Both => {}
                IdleKind::Reading => overrides.read_idle.iter_mut().for_each(|quiet| quiet.since = now),
                IdleKind::Writing => overrides.write_idle.iter_mut().for_each(|quiet| quiet.since = now),
            }
        }
        self.services[service].call(&mut self.table, Event::Idle(slot, silent));
        let connection = self.table.at_mut(slot);
        if connection.stage != Stage::Open && connection.close_reason == Some(CloseReason::Local) {
            connection.close_reason = Some(CloseReason::Idle);
        }
    }

    /// The next one is set before the service hears of this one, so that it can set another or none.
    fn alarm(&mut self, slot: u32) {
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        let service = usize::from(connection.service);
        if let Some(overrides) = connection.overrides_mut() {
            overrides.alarm = overrides.alarm.filter(|alarm| alarm.every.is_some()).map(|mut alarm| {
                alarm.when = alarm.every.map_or(now, |every| now.after(every));
                alarm
            });
        }
        self.services[service].call(&mut self.table, Event::Alarm(slot));
    }

    fn check_min_rate(&mut self, slot: u32, due: Due) {
        let (now, service) = (self.table.now, usize::from(self.table.at(slot).service));
        let connection = &mut self.table.slots[slot as usize];
        if connection.met_min_rate(due, &self.table.socket_limits[service], now) {
            return;
        }
        match due {
            // A peer that sends too slowly may still hear what was said to it; one that does not read will not.
            Due::MinReadRate => self.table.close(slot, CloseReason::TooSlow),
            _ => self.table.close_now(slot, CloseReason::TooSlow),
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
            self.table.close_tarpitted();
            self.drain_deadline = Some(match stop {
                Stop::Shutdown(grace) => self.table.now.after(grace),
                Stop::Now => self.table.now,
            });
        }
        if self.drain_deadline.is_some_and(|by| by <= self.table.now) {
            // A `closed` callback of this shutdown may have set new ones.
            self.table.timers.clear();
            let all: Vec<u32> = self.table.slots.iter().map(|(slot, _)| slot as u32).collect();
            for slot in all {
                self.table.close_now(slot, CloseReason::Shutdown);
            }
        }
    }
}
