//! What a socket can be asked to do.

use std::time::Duration;

use super::table::{Dirty, REFUSED, Table};
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::base::shared::Shared;
use crate::config::dial::SocketOption;
use crate::connection::optional::{Alarm, IdleTimer};
use crate::connection::{Flag, NOT_DIRTY, Stage};
use crate::parts::arena::{Arena, SegmentList};

impl Table {
    pub(crate) fn send(&mut self, slot: u32, bytes: &[u8]) {
        self.queue(slot, bytes.len(), |arena, segments| arena.push(segments, bytes));
    }

    pub(crate) fn send_shared(&mut self, slot: u32, shared: &Shared) {
        self.queue(slot, shared.bytes().len(), |arena, segments| arena.push_shared(segments, shared));
    }

    /// Adds to what is sent in this turn, if that is still possible. A peer whose kernel buffer is known to be full is
    /// closed as soon as its queue would pass the cap; one that has not been tried in this turn gets its chance at the
    /// flush.
    fn queue(&mut self, slot: u32, length: usize, push: impl FnOnce(&mut Arena, &mut SegmentList)) {
        let connection = &mut self.slots[slot as usize];
        if !connection.is_live() || connection.flags.contains(Flag::Finishing) {
            self.stats.sent_too_late += length as u64;
            return;
        }
        let limits = &self.socket_limits[usize::from(connection.service)];
        if connection.dirty == NOT_DIRTY {
            connection.dirty = self.dirty.len() as u32;
            let id = ConnId { slot, generation: connection.generation };
            self.dirty.push(Dirty { id, segments: SegmentList::EMPTY });
        }
        let segments = &mut self.dirty[connection.dirty as usize].segments;
        let queued = connection.queued() + segments.len() + length;
        let stuck =
            !connection.flags.contains(Flag::Writable) || connection.flags.contains(Flag::Handshaking);
        if stuck && queued > limits.queue {
            return self.close_now(slot, CloseReason::SlowReader);
        }
        // Full from here on, even if the kernel takes it all a moment later: who was told so waits for `drained`.
        let under_pressure = self.memory > self.memory_pressure;
        connection.flags.insert_if(Flag::Full, under_pressure || queued >= limits.high_water.max(1));
        if connection.inbox.is_some() {
            connection.update_message_clocks(self.now);
        }
        push(&mut self.arena, segments);
    }

    /// The one thing a refused peer is told, or nothing.
    pub(crate) fn reply_to_refused(&mut self, slot: u32, busy: Option<&Shared>) {
        if let Some(busy) = busy {
            self.send_shared(slot, busy);
        }
        self.close(slot, CloseReason::Local);
    }

    /// Those who are held in silence do not hold up the end.
    pub(crate) fn close_tarpitted(&mut self) {
        let tarpitted =
            self.slots.iter().filter(|(_, c)| c.service == REFUSED && c.flags.contains(Flag::Paused));
        for slot in tarpitted.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.close_now(slot, CloseReason::Shutdown);
        }
    }

    /// A refused peer is neither read nor told anything, until its time is up.
    pub(crate) fn tarpit(&mut self, slot: u32) {
        self.at_mut(slot).flags.insert(Flag::Paused);
        self.tarpitted += 1;
    }

    /// Bytes sent and not yet taken by the kernel.
    pub(crate) fn queued(&self, slot: u32) -> usize {
        let connection = self.at(slot);
        let this_turn = self.dirty.get(connection.dirty as usize).map_or(0, |dirty| dirty.segments.len());
        connection.queued() + this_turn
    }

    /// The mark from which on a connection is full. While memory is scarce, any queue at all is too much.
    pub(crate) fn high_water(&self, slot: u32) -> usize {
        if self.memory > self.memory_pressure { 1 } else { self.limits_of(slot).high_water.max(1) }
    }

    pub(crate) fn finish(&mut self, slot: u32) {
        if self.at(slot).is_live() {
            self.at_mut(slot).flags.insert(Flag::Finishing);
            self.push_dirty(slot);
        }
    }

    /// Flush, then both ways.
    pub(crate) fn close(&mut self, slot: u32, why: CloseReason) {
        let now = self.now;
        let connection = self.at_mut(slot);
        match connection.stage {
            Stage::Connecting => self.close_now(slot, why),
            Stage::Open => {
                connection.stage = Stage::Closing;
                connection.close_reason = Some(why);
                connection.last_activity = now;
                self.drop_inbox(slot);
                if self.at(slot).flags.contains(Flag::Handshaking) {
                    self.handshakes.remove(self.id(slot));
                    self.stop_encrypting(slot);
                }
                self.push_dirty(slot);
                self.push_ready(slot);
                self.rearm(slot);
            }
            Stage::Closing | Stage::Lingering | Stage::Dead => {}
        }
    }

    pub(crate) fn pause(&mut self, slot: u32) {
        let now = self.now;
        let connection = self.at_mut(slot);
        connection.flags.insert(Flag::Paused);
        connection.update_message_clocks(now);
    }

    pub(crate) fn resume(&mut self, slot: u32) {
        let now = self.now;
        let connection = self.at_mut(slot);
        if connection.flags.contains(Flag::Paused) {
            connection.flags.remove(Flag::Paused);
            // While `data` runs the inbox is out of the table, and what the callback leaves is known after it.
            connection.flags.insert(Flag::Redeliver);
            connection.update_message_clocks(now);
            self.push_ready(slot);
            self.rearm(slot);
        }
    }

    // -- clocks of its own -----------------------------------------------------------------------

    pub(crate) fn set_idle(&mut self, slot: u32, idle: Option<Duration>) {
        let now = self.now;
        let connection = self.at_mut(slot);
        connection.optional().overrides().idle = Some(idle);
        connection.last_activity = now;
        self.rearm(slot);
    }

    pub(crate) fn set_read_idle(&mut self, slot: u32, idle: Option<Duration>) {
        let since = self.now;
        self.at_mut(slot).optional().overrides().read_idle = idle.map(|span| IdleTimer { span, since });
        self.rearm(slot);
    }

    pub(crate) fn set_write_idle(&mut self, slot: u32, idle: Option<Duration>) {
        let since = self.now;
        self.at_mut(slot).optional().overrides().write_idle = idle.map(|span| IdleTimer { span, since });
        self.rearm(slot);
    }

    pub(crate) fn set_alarm(&mut self, slot: u32, after: Option<Duration>, every: Option<Duration>) {
        let now = self.now;
        let alarm = after.map(|after| Alarm { when: now.after(after), every });
        self.at_mut(slot).optional().overrides().alarm = alarm;
        self.rearm(slot);
    }

    // -- the system ------------------------------------------------------------------------------

    /// Has an option set: at the end of the turn, or as soon as there is a stream to set it on.
    pub(crate) fn set_option(&mut self, slot: u32, option: SocketOption) {
        let id = self.id(slot);
        let connection = self.at_mut(slot);
        match connection.stage {
            Stage::Connecting => {
                let asked = &mut connection.dial_mut().pending_options;
                asked.retain(|before| std::mem::discriminant(before) != std::mem::discriminant(&option));
                asked.push(option);
            }
            Stage::Open => self.pending_options.push((id, option)),
            Stage::Closing | Stage::Lingering | Stage::Dead => {}
        }
    }

    // -- pipes -----------------------------------------------------------------------------------

    /// Joins two connections: what arrives at the one is sent to the other. What waits in their inboxes goes first.
    pub(crate) fn pipe(&mut self, a: u32, b: u32) {
        self.unpipe(a);
        self.unpipe(b);
        for (from, to) in [(a, b), (b, a)] {
            let pipe_peer = self.id(to);
            let connection = self.at_mut(from);
            connection.optional().pipe_peer = Some(pipe_peer);
            connection.flags.insert(Flag::Piped);
        }
        for (from, to) in [(a, b), (b, a)] {
            if let Some(inbox) = self.at_mut(from).inbox.take() {
                self.memory -= inbox.charge();
                self.send(to, inbox.unread());
                self.set_undecrypted(from, inbox.undecrypted, 0);
            }
            self.update_pipe_peer_full(from, to);
            if self.at(from).flags.contains(Flag::Ended) {
                self.finish(to);
            }
            self.push_ready(from);
            self.rearm(from);
        }
    }

    /// Parts them again; each one's service gets what arrives from now on.
    pub(crate) fn unpipe(&mut self, slot: u32) -> Option<ConnId> {
        let pipe_peer = self.unlink(slot)?;
        if let Some(other) = self.find(pipe_peer) {
            self.unlink(other);
            self.push_ready(other);
        }
        self.push_ready(slot);
        Some(pipe_peer)
    }

    fn unlink(&mut self, slot: u32) -> Option<ConnId> {
        self.unpiped = true;
        let now = self.now;
        let connection = self.at_mut(slot);
        for flag in [Flag::Piped, Flag::PipePeerFull, Flag::Spliced] {
            connection.flags.remove(flag);
        }
        connection.update_message_clocks(now);
        let pipe_peer = connection.optional.as_mut()?.pipe_peer.take();
        self.rearm(slot);
        pipe_peer
    }

    /// The other end of its pipe, if bytes can still be sent there.
    pub(crate) fn pipe_peer(&self, slot: u32) -> Option<u32> {
        let pipe_peer = self.at(slot).optional.as_ref()?.pipe_peer?;
        self.live(pipe_peer)
    }

    /// A full end is not fed: its feeder is not read until it has drained.
    pub(crate) fn update_pipe_peer_full(&mut self, from: u32, to: u32) {
        let (blocked, now) = (self.at(to).flags.contains(Flag::Full), self.now);
        let connection = self.at_mut(from);
        connection.flags.set(Flag::PipePeerFull, blocked);
        connection.update_message_clocks(now);
    }
}
