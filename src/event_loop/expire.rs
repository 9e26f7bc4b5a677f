//! Phase 5: deadlines that have passed.

use std::mem;

use super::Loop;
use crate::base::reason::Closed;
use crate::connection::Stage;
use crate::connection::deadline::Due;
use crate::connection::optional::Silent;
use crate::connection::table::Stop;
use crate::parts::timers::Fired;
use crate::sys::System;

impl<S: System> Loop<S> {
    /// At most a budget of deadlines. It comes after `serve`, so that bytes which arrived in time save their
    /// connection.
    pub(super) fn expire(&mut self) {
        self.heed_stop();
        self.fire_timers();
        for _ in 0..self.table.limits.expirations.max(1) {
            let Some(slot) = self.table.wheel.pop_due(self.table.now) else { return };
            self.look_at_clocks(slot);
            if let Some((when, _)) = self.table.at(slot).deadline(self.table.limits_of(slot)) {
                self.table.wheel.arm(slot, when);
            }
        }
    }

    fn fire_timers(&mut self) {
        for _ in 0..self.table.limits.expirations.max(1) {
            match self.table.timers.pop_due(self.table.now) {
                Some(Fired::Tell(host, timer)) => self.hosts[usize::from(host)].timer(&mut self.table, timer),
                Some(Fired::Redial(again)) => self.table.redial(*again),
                None => return,
            }
        }
    }

    /// An entry fired. Most often nothing is due: there was activity since it was armed, and activity is only noted.
    fn look_at_clocks(&mut self, slot: u32) {
        let now = self.table.now;
        let Some((when, due)) = self.table.at(slot).deadline(self.table.limits_of(slot)) else { return };
        if when > now {
            return;
        }
        match due {
            Due::Connect => self.table.doom(slot, Closed::ConnectTimeout),
            Due::Attempt => self.next_attempt(slot),
            Due::Handshake => self.late_handshake(slot),
            Due::Idle => self.idle(slot, Silent::Both),
            Due::ReadIdle => self.idle(slot, Silent::Reading),
            Due::WriteIdle => self.idle(slot, Silent::Writing),
            Due::Alarm => self.alarm(slot),
            Due::Refill => self.table.quench(slot),
            Due::FirstByte => self.table.close(slot, Closed::FirstByte),
            Due::Lifetime => self.table.close(slot, Closed::Lifetime),
            Due::Unfinished => self.table.close(slot, Closed::Unfinished),
            Due::Linger => self.table.doom(slot, Closed::Local),
            // In `Closing` nobody is left to be kind to.
            Due::HalfClosed if self.table.at(slot).stage == Stage::Closing => {
                self.table.doom(slot, Closed::HalfClosed);
            }
            Due::HalfClosed => self.table.close(slot, Closed::HalfClosed),
            Due::ReadPace | Due::WritePace => self.judge_pace(slot, due),
        }
    }

    /// One that has not begun has nothing to be told; and what it has said is unread, so it is reset.
    fn late_handshake(&mut self, slot: u32) {
        let begun = self.table.filter(slot).is_some();
        match begun {
            true => self.table.close(slot, Closed::HandshakeTimeout),
            false => self.table.doom(slot, Closed::HandshakeTimeout),
        }
    }

    fn idle(&mut self, slot: u32, silent: Silent) {
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        let host = usize::from(connection.host);
        // The next span begins here, and again with whatever the callback sets.
        if silent == Silent::Both {
            connection.touched = now;
        }
        if let Some(clocks) = connection.clocks_mut() {
            clocks.silent = silent;
            match silent {
                Silent::Both => {}
                Silent::Reading => clocks.reading.iter_mut().for_each(|quiet| quiet.since = now),
                Silent::Writing => clocks.writing.iter_mut().for_each(|quiet| quiet.since = now),
            }
        }
        self.hosts[host].idle(&mut self.table, slot);
        let connection = self.table.at_mut(slot);
        if connection.stage != Stage::Open && connection.why == Some(Closed::Local) {
            connection.why = Some(Closed::Idle);
        }
    }

    /// The next one is set before the service hears of this one, so that it can set another or none.
    fn alarm(&mut self, slot: u32) {
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        let host = usize::from(connection.host);
        if let Some(clocks) = connection.clocks_mut() {
            clocks.alarm = clocks.alarm.filter(|alarm| alarm.every.is_some()).map(|mut alarm| {
                alarm.when = alarm.every.map_or(now, |every| now.after(every));
                alarm
            });
        }
        self.hosts[host].alarm(&mut self.table, slot);
    }

    fn judge_pace(&mut self, slot: u32, due: Due) {
        let (now, host) = (self.table.now, usize::from(self.table.at(slot).host));
        let connection = &mut self.table.slots[slot as usize];
        if connection.kept_pace(due, &self.table.socket_limits[host], now) {
            return;
        }
        match due {
            // A peer that sends too slowly may still hear what was said to it; one that does not read will not.
            Due::ReadPace => self.table.close(slot, Closed::TooSlow),
            _ => self.table.doom(slot, Closed::TooSlow),
        }
    }

    /// Shutting down: the listeners close at once, and what is left ends when the grace has passed.
    fn heed_stop(&mut self) {
        for listener in mem::take(&mut self.table.closing) {
            self.close_listener(listener);
        }
        if let Some(stop) = self.table.stop.take() {
            self.doors.iter_mut().for_each(|door| drop(door.take()));
            self.table.timers.clear();
            self.table.let_go_of_held();
            self.drained_by = Some(match stop {
                Stop::Shutdown(grace) => self.table.now.after(grace),
                Stop::Now => self.table.now,
            });
        }
        if self.drained_by.is_some_and(|by| by <= self.table.now) {
            let all: Vec<u32> = self.table.slots.iter().map(|(slot, _)| slot as u32).collect();
            for slot in all {
                self.table.doom(slot, Closed::Shutdown);
            }
        }
    }
}
