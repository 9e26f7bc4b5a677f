//! What a socket can be asked to do.

use std::time::Duration;

use super::table::{DOORMAN, Dirty, Table};
use crate::base::id::ConnId;
use crate::base::reason::Closed;
use crate::base::shared::Shared;
use crate::config::dial::SocketOption;
use crate::connection::optional::{Alarm, Quiet};
use crate::connection::{Flag, NOT_DIRTY, Stage};
use crate::parts::arena::{Arena, Chain};

impl Table {
    pub(crate) fn send(&mut self, slot: u32, bytes: &[u8]) {
        self.queue(slot, bytes.len(), |arena, chain| arena.push(chain, bytes));
    }

    pub(crate) fn send_shared(&mut self, slot: u32, shared: &Shared) {
        self.queue(slot, shared.bytes().len(), |arena, chain| arena.push_shared(chain, shared));
    }

    /// Adds to what is sent in this turn, if that is still possible. A peer whose kernel buffer is known to be full is
    /// closed as soon as its queue would pass the cap; one that has not been tried in this turn gets its chance at the
    /// flush.
    fn queue(&mut self, slot: u32, length: usize, push: impl FnOnce(&mut Arena, &mut Chain)) {
        let connection = &mut self.slots[slot as usize];
        if !connection.is_live() || connection.flags.has(Flag::Finishing) {
            self.stats.sent_too_late += length as u64;
            return;
        }
        let limits = &self.socket_limits[usize::from(connection.host)];
        if connection.dirty == NOT_DIRTY {
            connection.dirty = self.dirty.len() as u32;
            let id = ConnId { slot, generation: connection.generation };
            self.dirty.push(Dirty { id, chain: Chain::EMPTY });
        }
        let chain = &mut self.dirty[connection.dirty as usize].chain;
        let queued = connection.queued() + chain.len() + length;
        let stuck = !connection.flags.has(Flag::Writable) || connection.flags.has(Flag::Securing);
        if stuck && queued > limits.queue {
            return self.doom(slot, Closed::SlowReader);
        }
        // Full from here on, even if the kernel takes it all a moment later: who was told so waits for `drained`.
        let scarce = self.memory > self.scarce;
        connection.flags.raise_if(Flag::Full, scarce || queued >= limits.high_water.max(1));
        push(&mut self.arena, chain);
    }

    /// The one thing a refused peer is told, or nothing.
    pub(crate) fn send_to_refused(&mut self, slot: u32, busy: Option<&Shared>) {
        if let Some(busy) = busy {
            self.send_shared(slot, busy);
        }
        self.close(slot, Closed::Local);
    }

    /// Those who are held in silence do not hold up the end.
    pub(crate) fn let_go_of_held(&mut self) {
        let held = self.slots.iter().filter(|(_, c)| c.host == DOORMAN && c.flags.has(Flag::Paused));
        for slot in held.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.doom(slot, Closed::Shutdown);
        }
    }

    /// A refused peer is neither read nor told anything, until its time is up.
    pub(crate) fn hold(&mut self, slot: u32) {
        self.at_mut(slot).flags.raise(Flag::Paused);
        self.held += 1;
    }

    /// Bytes sent and not yet taken by the kernel.
    pub(crate) fn queued(&self, slot: u32) -> usize {
        let connection = self.at(slot);
        let this_turn = self.dirty.get(connection.dirty as usize).map_or(0, |dirty| dirty.chain.len());
        connection.queued() + this_turn
    }

    /// The mark from which on a connection is full. While memory is scarce, any queue at all is too much.
    pub(crate) fn high_water(&self, slot: u32) -> usize {
        if self.memory > self.scarce { 1 } else { self.limits_of(slot).high_water.max(1) }
    }

    pub(crate) fn finish(&mut self, slot: u32) {
        if self.at(slot).is_live() {
            self.at_mut(slot).flags.raise(Flag::Finishing);
            self.push_dirty(slot);
        }
    }

    /// Flush, then both ways.
    pub(crate) fn close(&mut self, slot: u32, why: Closed) {
        let now = self.now;
        let connection = self.at_mut(slot);
        match connection.stage {
            Stage::Connecting => self.doom(slot, why),
            Stage::Open => {
                connection.stage = Stage::Closing;
                connection.why = Some(why);
                connection.touched = now;
                self.drop_inbox(slot);
                if self.at(slot).flags.has(Flag::Securing) {
                    self.handshakes.over(self.id(slot));
                    self.give_up_sealing(slot);
                }
                self.push_dirty(slot);
                self.push_ready(slot);
                self.rearm(slot);
            }
            Stage::Closing | Stage::Lingering | Stage::Doomed => {}
        }
    }

    pub(crate) fn pause(&mut self, slot: u32) {
        self.at_mut(slot).flags.raise(Flag::Paused);
    }

    pub(crate) fn resume(&mut self, slot: u32) {
        let now = self.now;
        let connection = self.at_mut(slot);
        if connection.flags.has(Flag::Paused) {
            connection.flags.lower(Flag::Paused);
            let kept = connection.inbox.as_ref().is_some_and(|inbox| !inbox.kept().is_empty());
            connection.flags.set(Flag::Redeliver, kept);
            if let Some(inbox) = &mut connection.inbox {
                // A message's clocks do not run while nobody wants it.
                inbox.begin(now);
            }
            self.push_ready(slot);
            self.rearm(slot);
        }
    }

    // -- clocks of its own -----------------------------------------------------------------------

    pub(crate) fn set_idle(&mut self, slot: u32, idle: Option<Duration>) {
        let now = self.now;
        let connection = self.at_mut(slot);
        connection.extra().clocks().idle = Some(idle);
        connection.touched = now;
        self.rearm(slot);
    }

    pub(crate) fn set_read_idle(&mut self, slot: u32, idle: Option<Duration>) {
        let since = self.now;
        self.at_mut(slot).extra().clocks().reading = idle.map(|span| Quiet { span, since });
        self.rearm(slot);
    }

    pub(crate) fn set_write_idle(&mut self, slot: u32, idle: Option<Duration>) {
        let since = self.now;
        self.at_mut(slot).extra().clocks().writing = idle.map(|span| Quiet { span, since });
        self.rearm(slot);
    }

    pub(crate) fn set_alarm(&mut self, slot: u32, after: Option<Duration>, every: Option<Duration>) {
        let now = self.now;
        let alarm = after.map(|after| Alarm { when: now.after(after), every });
        self.at_mut(slot).extra().clocks().alarm = alarm;
        self.rearm(slot);
    }

    // -- the system ------------------------------------------------------------------------------

    /// Has an option set: at the end of the turn, or as soon as there is a stream to set it on.
    pub(crate) fn ask(&mut self, slot: u32, option: SocketOption) {
        let id = self.id(slot);
        let connection = self.at_mut(slot);
        match connection.stage {
            Stage::Connecting => {
                let asked = &mut connection.dial_mut().asked;
                asked.retain(|before| std::mem::discriminant(before) != std::mem::discriminant(&option));
                asked.push(option);
            }
            Stage::Open => self.asked.push((id, option)),
            Stage::Closing | Stage::Lingering | Stage::Doomed => {}
        }
    }

    // -- pipes -----------------------------------------------------------------------------------

    /// Joins two connections: what arrives at the one is sent to the other. What waits in their inboxes goes first.
    pub(crate) fn pipe(&mut self, a: u32, b: u32) {
        self.unpipe(a);
        self.unpipe(b);
        for (from, to) in [(a, b), (b, a)] {
            let leg = self.id(to);
            let connection = self.at_mut(from);
            connection.extra().leg = Some(leg);
            connection.flags.raise(Flag::Piped);
        }
        for (from, to) in [(a, b), (b, a)] {
            if let Some(inbox) = self.at_mut(from).inbox.take() {
                self.memory -= inbox.charge();
                self.send(to, inbox.kept());
                self.note_behind(from, inbox.behind, 0);
            }
            self.block(from, to);
            if self.at(from).flags.has(Flag::Ended) {
                self.finish(to);
            }
            self.push_ready(from);
            self.rearm(from);
        }
    }

    /// Parts them again; each one's service gets what arrives from now on.
    pub(crate) fn unpipe(&mut self, slot: u32) -> Option<ConnId> {
        let leg = self.part(slot)?;
        if let Some(other) = self.find(leg) {
            self.part(other);
            self.push_ready(other);
        }
        self.push_ready(slot);
        Some(leg)
    }

    fn part(&mut self, slot: u32) -> Option<ConnId> {
        let flags = &mut self.at_mut(slot).flags;
        flags.lower(Flag::Piped);
        flags.lower(Flag::Blocked);
        flags.lower(Flag::Spliced);
        self.at_mut(slot).extra.as_mut()?.leg.take()
    }

    /// The other end of its pipe, if bytes can still be sent there.
    pub(crate) fn leg(&self, slot: u32) -> Option<u32> {
        let leg = self.at(slot).extra.as_ref()?.leg?;
        self.live(leg)
    }

    /// A full end is not fed: its feeder is not read until it has drained.
    pub(crate) fn block(&mut self, from: u32, to: u32) {
        let blocked = self.at(to).flags.has(Flag::Full);
        self.at_mut(from).flags.set(Flag::Blocked, blocked);
    }
}
