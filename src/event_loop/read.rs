//! Phase 4: read what has arrived and deliver it.

use std::io;
use std::mem;

use super::{EventLoop, is_open};
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::config::limits::CALLS_MAX;
use crate::connection::{Flag, Stage};
use crate::parts::arena::READ_MAX;
use crate::parts::inbox::{Inbox, Input};
use crate::service::Event;
use crate::sys::System;

/// A message's beginning that is no longer than this is put in front of the next read, so that the service sees both
/// in one piece. A longer one stays where it is and the read is added to it: copying 4 KiB a read is cheaper than
/// losing the way without copies, copying a megabyte a read is not.
const PREFIX_MAX: usize = 4 * 1024;

/// Budgets that all together may use up in one turn beyond the first of each: some hundred microseconds.
const EXTRA_BUDGETS: usize = 8;

/// What became of one attempt to read.
pub(super) enum ReadOutcome {
    /// So many bytes, and perhaps more to come.
    More(usize),
    /// So many, and no more for now.
    Drained(usize),
    /// None, and no further attempt makes sense.
    None,
}

/// What a service has done with the bytes of one call.
struct Delivered {
    taken: usize,
    /// How far a search of it has gone through the rest in vain.
    scanned: usize,
    /// Whether the budget of the delivery hides a rest.
    is_cut: bool,
}

impl<S: System> EventLoop<S> {
    /// Each connection gets one budget; who has more stands in line again. Newcomers to the line go first, all of
    /// them; then come those whom an earlier turn's budget had cut off, in their order and as far as the budget for
    /// them reaches. So two hundred who send all they can make others wait for a moment, and not for their whole round.
    ///
    /// When all have had theirs, a few get some budgets more, one connection after the other: to ask the kernel for
    /// events after each 64 KiB of a bulk echo, and to serve another connection then, would cost a tenth of its rate.
    pub(super) fn read(&mut self) {
        self.start_handshakes();
        let extra = EXTRA_BUDGETS.saturating_mul(self.table.limits.read_budget) as u64;
        let max = self.table.stats.bytes_in.saturating_add(extra);
        let all = self.read_ready();
        while all && self.table.stats.bytes_in < max {
            // The last in line is the one that was just served, if it has more.
            let Some(id) = self.table.ready.pop() else { return };
            let before = self.table.stats.bytes_in;
            let mut block = self.table.arena.take_block();
            self.read_connection(id, &mut block);
            self.table.arena.put_block(block);
            if self.table.stats.bytes_in == before {
                return;
            }
        }
    }

    /// Says whether all had their share.
    fn read_ready(&mut self) -> bool {
        let mut line = mem::replace(&mut self.table.ready, mem::take(&mut self.spare_ready));
        let mut block = self.table.arena.take_block();
        for &id in &line[self.carried_over..] {
            self.read_connection(id, &mut block);
        }
        line.truncate(self.carried_over);
        let budget = self.table.limits.carried_over_budget as u64;
        let before = self.table.stats.bytes_in;
        self.redelivered = 0;
        let mut served = 0;
        for &id in &line {
            // What was read from them, and what they have queued for others.
            if self.table.stats.bytes_in - before + self.redelivered >= budget {
                break;
            }
            self.read_connection(id, &mut block);
            served += 1;
        }
        self.table.arena.put_block(block);
        // Whoever is left stands before those who have just had their share.
        let all = served == line.len();
        line.drain(..served);
        line.append(&mut self.table.ready);
        self.spare_ready = mem::replace(&mut self.table.ready, line);
        self.table.evict();
        all
    }

    fn read_connection(&mut self, id: ConnId, block: &mut Vec<u8>) {
        if self.table.arena.is_full() {
            self.table.arena.put_block(mem::take(block));
            self.write();
            *block = self.table.arena.take_block();
        }
        let Some(slot) = self.table.find(id) else { return };
        let connection = self.table.at_mut(slot);
        connection.flags.remove(Flag::Ready);
        if !connection.wants_turn() {
            return; // A callback of this turn has paused, throttled or closed it since it was put into the list.
        }
        match connection.stage {
            Stage::Connecting => self.check_attempts(slot),
            Stage::Open => self.read_open(slot, block),
            Stage::Closing | Stage::Lingering => self.discard_input(slot, block),
            Stage::Dead => {}
        }
        if self.table.at(slot).wants_turn() {
            self.table.push_ready(slot);
        }
    }

    fn read_open(&mut self, slot: u32, block: &mut [u8]) {
        let rare = self.table.at(slot).flags.any(&[Flag::Redeliver, Flag::Handshaking, Flag::Spliced]);
        if rare && !self.prepare_read(slot) {
            return;
        }
        let mut budget = self.table.limits.read_budget.min(self.table.allowance(slot));
        for _ in 0..CALLS_MAX {
            match self.read_and_deliver(slot, block, budget) {
                ReadOutcome::More(n) if n < budget && !self.table.arena.is_full() => budget -= n,
                ReadOutcome::More(_) | ReadOutcome::Drained(_) | ReadOutcome::None => return,
            }
            let connection = self.table.at(slot);
            if connection.stage != Stage::Open || !connection.wants_read() {
                return;
            }
        }
    }

    /// What goes before a read: a handshake, or what an earlier delivery has left. Says whether it is still to be read.
    #[inline(never)]
    fn prepare_read(&mut self, slot: u32) -> bool {
        if self.table.at(slot).flags.contains(Flag::Handshaking) && self.start_or_queue_handshake(slot) {
            return false;
        }
        if self.table.at_mut(slot).flags.take(Flag::Redeliver) {
            self.deliver_unread(slot);
            self.redelivered += self.budget.spent() as u64;
            self.end_after_delivery(slot);
        }
        let connection = self.table.at(slot);
        if connection.stage != Stage::Open || !connection.wants_read() {
            return false;
        }
        if connection.flags.contains(Flag::Spliced) {
            self.splice_in(slot);
            return false;
        }
        true
    }

    /// One read into the arena's block, and one call of `data` if anything came.
    fn read_and_deliver(&mut self, slot: u32, block: &mut [u8], budget: usize) -> ReadOutcome {
        if budget == 0 {
            return ReadOutcome::None;
        }
        let connection = self.table.at(slot);
        let unread = connection.inbox.as_ref().map_or(0, |inbox| inbox.unread().len());
        let prefix = if unread <= PREFIX_MAX.min(READ_MAX / 2) { unread } else { 0 };
        if connection.flags.contains(Flag::Filtered) {
            if connection.tls().is_some_and(|tls| tls.config.is_some()) {
                return ReadOutcome::None; // Its filter was asked for by the last delivery, and is not made yet.
            }
            return self.read_ciphertext(slot, block, prefix, budget);
        }
        let at = self.table.arena.write_offset();
        let outcome = self.read_stream(slot, &mut block[at + prefix..][..budget.min(READ_MAX - prefix)]);
        if let ReadOutcome::More(n) | ReadOutcome::Drained(n) = outcome {
            self.deliver_arrived(slot, &mut block[at..], prefix, n);
        }
        outcome
    }

    /// Delivers `n` bytes behind room for the unread input; or, where there is no such room, behind the unread input
    /// where it is. In place at both its calls: for a small message the call would be a thirtieth of the whole way.
    ///
    /// The inbox leaves the table for the length of the callback: what it holds stands in front of these bytes, and a
    /// pipe, a resume or a filter that the callback asks for must not find it a second time.
    #[inline(always)]
    pub(super) fn deliver_arrived(&mut self, slot: u32, bytes: &mut [u8], prefix: usize, n: usize) {
        let arrived = ..prefix + n;
        match self.table.at_mut(slot).inbox.take() {
            None => {
                let delivered = self.deliver(slot, &bytes[arrived], 0);
                if delivered.taken < n {
                    self.keep_rest(slot, &bytes[arrived], &delivered, n, None);
                }
            }
            Some(inbox) if prefix == inbox.unread().len() => {
                bytes[..prefix].copy_from_slice(inbox.unread());
                let delivered = self.deliver(slot, &bytes[arrived], inbox.scanned());
                self.keep_rest(slot, &bytes[arrived], &delivered, n, Some(inbox));
            }
            Some(inbox) => self.deliver_from_inbox(slot, inbox, &bytes[arrived]),
        }
    }

    /// Reads, and keeps the readiness flags true to what the kernel said.
    #[inline]
    pub(super) fn read_stream(&mut self, slot: u32, into: &mut [u8]) -> ReadOutcome {
        let Some(stream) = &self.streams[slot as usize] else { return ReadOutcome::None };
        let table = &mut self.table;
        let connection = &mut table.slots[slot as usize];
        let result = self.system.read(stream, into);
        table.stats.reads += 1;
        match result {
            Ok(0) => {
                match connection.flags.contains(Flag::Filtered) {
                    true => self.on_truncated(slot),
                    false => self.on_peer_end(slot),
                }
                ReadOutcome::None
            }
            Ok(n) => {
                connection.on_received(n, table.now);
                table.stats.bytes_in += n as u64;
                // epoll raises a new edge for what arrives after a short read (epoll(7), question 9). But an end that
                // has been announced already is not announced again: then only reading on finds it.
                let proves_nothing = connection.flags.any(&[Flag::EndAnnounced, Flag::ReadsToWouldBlock]);
                let last = n < into.len() && !proves_nothing;
                connection.flags.remove_if(Flag::Readable, last);
                let limited = connection.optional.as_ref().is_some_and(|optional| optional.is_limited());
                // What is discarded while closing takes no rate from the others of a group.
                if limited && connection.stage == Stage::Open {
                    table.spend(slot, n);
                }
                if last { ReadOutcome::Drained(n) } else { ReadOutcome::More(n) }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.on_read_would_block();
                ReadOutcome::None
            }
            // A signal came first; the connection stays in line.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => ReadOutcome::None,
            Err(error) => {
                table.close_now(slot, CloseReason::from_io(&error));
                ReadOutcome::None
            }
        }
    }

    /// Lends bytes to the service, or relays them.
    fn deliver(&mut self, slot: u32, bytes: &[u8], scanned: usize) -> Delivered {
        if self.table.at(slot).flags.contains(Flag::Piped) {
            self.relay(slot, bytes);
            return Delivered { taken: bytes.len(), scanned: 0, is_cut: false };
        }
        let mut input = Input::with_scanned(bytes, scanned).within(&self.budget);
        let service = usize::from(self.table.at(slot).service);
        self.services[service].call(&mut self.table, Event::Data(slot, &mut input));
        let is_cut = input.is_cut();
        let (taken, scanned) = input.finish();
        Delivered { taken, scanned, is_cut }
    }

    /// After a delivery of `bytes`, of which the last `arrived` were new: what the service has left is kept, or relayed
    /// if it has laid a pipe meanwhile. `inbox` held what stood in front of them, and is charged.
    #[inline(never)]
    fn keep_rest(
        &mut self,
        slot: u32,
        bytes: &[u8],
        delivered: &Delivered,
        arrived: usize,
        inbox: Option<Box<Inbox>>,
    ) {
        let rest = &bytes[delivered.taken..];
        if rest.is_empty() || !is_open(&self.table, slot) {
            self.table.discharge(inbox);
        } else if self.table.at(slot).flags.contains(Flag::Piped) {
            self.table.discharge(inbox);
            self.relay(slot, rest);
        } else {
            self.table.at_mut(slot).inbox = inbox;
            self.table.keep_input(slot, rest, delivered.scanned, arrived, delivered.taken > 0);
            self.after_delivery(slot, delivered.is_cut);
        }
    }

    /// What the budget of a delivery has hidden is delivered again, from the back of the line, before anything else
    /// happens to the connection. Else what is left is the beginning of a message.
    fn after_delivery(&mut self, slot: u32, is_cut: bool) {
        if is_cut {
            self.table.at_mut(slot).flags.insert(Flag::Redeliver);
        } else {
            self.check_message_length(slot);
        }
    }

    /// Delivers the unread input again, because its service has resumed.
    fn deliver_unread(&mut self, slot: u32) {
        match self.table.at_mut(slot).inbox.take() {
            Some(inbox) if !inbox.unread().is_empty() => self.deliver_from_inbox(slot, inbox, &[]),
            inbox => self.table.at_mut(slot).inbox = inbox,
        }
    }

    /// As [`deliver`](EventLoop::deliver), for a long beginning of a message: what has `arrived` is added to it where
    /// it is.
    fn deliver_from_inbox(&mut self, slot: u32, mut inbox: Box<Inbox>, arrived: &[u8]) {
        let before = inbox.charge();
        inbox.append(arrived);
        let delivered = self.deliver(slot, inbox.unread(), inbox.scanned());
        inbox.consume(delivered.taken, delivered.scanned);
        if !is_open(&self.table, slot) || inbox.is_empty() {
            self.table.memory -= before;
        } else if self.table.at(slot).flags.contains(Flag::Piped) {
            self.table.memory -= before;
            self.relay(slot, inbox.unread());
        } else {
            self.table.put_inbox(slot, inbox, before, arrived.len(), delivered.taken > 0);
            self.after_delivery(slot, delivered.is_cut);
        }
    }

    /// A message may not grow beyond its limit. A paused service has not been asked yet whether it is complete.
    fn check_message_length(&mut self, slot: u32) {
        let (connection, limits) = (self.table.at(slot), self.table.limits_of(slot));
        let unread = connection.inbox.as_ref().map_or(0, |inbox| inbox.unread().len());
        if unread > limits.message && !connection.flags.contains(Flag::Paused) {
            self.table.close(slot, CloseReason::TooLong);
        }
    }

    /// The peer's end has been read: everything it sent was delivered before.
    pub(super) fn on_peer_end(&mut self, slot: u32) {
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        connection.flags.insert(Flag::Ended);
        connection.flags.remove(Flag::Readable);
        match connection.stage {
            Stage::Open => {
                connection.last_activity = now;
                let finished = connection.flags.contains(Flag::Finished);
                if connection.flags.contains(Flag::Piped) {
                    self.relay_fin(slot);
                } else {
                    let service = usize::from(connection.service);
                    self.services[service].call(&mut self.table, Event::End(slot));
                }
                self.table.drop_inbox(slot);
                if finished {
                    self.table.close_now(slot, CloseReason::Finished);
                } else {
                    self.table.rearm(slot);
                }
            }
            Stage::Lingering => self.table.close_now(slot, CloseReason::Local),
            Stage::Closing | Stage::Connecting | Stage::Dead => {}
        }
    }

    /// Reads and throws away: the service has closed, but a reset in the face of unread input would destroy its
    /// last reply on the way.
    fn discard_input(&mut self, slot: u32, block: &mut [u8]) {
        let mut budget = self.table.limits.read_budget.min(READ_MAX);
        for _ in 0..CALLS_MAX {
            let connection = self.table.at(slot);
            if !connection.wants_read() || budget == 0 {
                return;
            }
            let lingering = connection.stage == Stage::Lingering;
            let max = self.table.limits_of(slot).linger_bytes;
            let at = self.table.arena.write_offset();
            let (ReadOutcome::More(n) | ReadOutcome::Drained(n)) =
                self.read_stream(slot, &mut block[at..][..budget])
            else {
                return;
            };
            budget -= n;
            let discarded = &mut self.table.at_mut(slot).optional().overrides().discarded;
            *discarded += n;
            if lingering && *discarded > max {
                self.table.close_now(slot, CloseReason::Local);
            }
        }
    }
}
