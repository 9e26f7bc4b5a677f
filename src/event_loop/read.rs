//! Phase 4: read what has arrived and deliver it.

use std::io;
use std::mem;

use super::{Loop, is_open};
use crate::base::id::ConnId;
use crate::base::reason::Closed;
use crate::config::limits::CALLS_MAX;
use crate::connection::{Flag, Stage};
use crate::parts::arena::READ_MAX;
use crate::parts::inbox::Input;
use crate::sys::System;

/// A message's beginning that is no longer than this is put in front of the next read, so that the service sees both
/// in one piece. A longer one stays where it is and the read is added to it: copying 4 KiB a read is cheaper than
/// losing the way without copies, copying a megabyte a read is not.
const PREFIX_MAX: usize = 4 * 1024;

/// Budgets that all together may use up in one turn beyond the first of each: some hundred microseconds.
const EXTRA: usize = 8;

/// What became of one attempt to read.
pub(super) enum Got {
    /// So many bytes, and perhaps more to come.
    Some(usize),
    /// So many, and no more for now.
    Last(usize),
    /// None, and no further attempt makes sense.
    Nothing,
}

impl<S: System> Loop<S> {
    /// Each connection gets one budget; who has more stands in line again. Newcomers to the line go first, all of
    /// them; then come those whom an earlier turn's budget had cut off, in their order and as far as the budget for
    /// them reaches. So two hundred who send all they can make others wait for a moment, and not for their whole round.
    ///
    /// When all have had theirs, a few get some budgets more, one connection after the other: to ask the kernel for
    /// events after each 64 KiB of a bulk echo, and to serve another connection then, would cost a tenth of its rate.
    pub(super) fn serve(&mut self) {
        self.begin_handshakes();
        let most = self.table.stats.bytes_in + (EXTRA * self.table.limits.read_budget) as u64;
        let all = self.serve_line();
        while all && self.table.stats.bytes_in < most {
            // The last in line is the one that was just served, if it has more.
            let Some(id) = self.table.ready.pop() else { return };
            let before = self.table.stats.bytes_in;
            let mut block = self.table.arena.lend();
            self.serve_one(id, &mut block);
            self.table.arena.restore(block);
            if self.table.stats.bytes_in == before {
                return;
            }
        }
    }

    /// Says whether all had their share.
    fn serve_line(&mut self) -> bool {
        let mut line = mem::replace(&mut self.table.ready, mem::take(&mut self.spare_ready));
        let mut block = self.table.arena.lend();
        for &id in &line[self.carried..] {
            self.serve_one(id, &mut block);
        }
        line.truncate(self.carried);
        let most = self.table.stats.bytes_in + self.table.limits.carried_budget.max(1) as u64;
        let mut served = 0;
        for &id in &line {
            if self.table.stats.bytes_in >= most {
                break;
            }
            self.serve_one(id, &mut block);
            served += 1;
        }
        self.table.arena.restore(block);
        // Whoever is left stands before those who have just had their share.
        let all = served == line.len();
        line.drain(..served);
        line.append(&mut self.table.ready);
        self.spare_ready = mem::replace(&mut self.table.ready, line);
        self.table.evict();
        all
    }

    fn serve_one(&mut self, id: ConnId, block: &mut Vec<u8>) {
        if self.table.arena.is_full() {
            self.table.arena.restore(mem::take(block));
            self.flush();
            *block = self.table.arena.lend();
        }
        let Some(slot) = self.table.find(id) else { return };
        let connection = self.table.at_mut(slot);
        connection.flags.lower(Flag::Ready);
        match connection.stage {
            Stage::Connecting => self.settle_dial(slot),
            Stage::Open => self.serve_open(slot, block),
            Stage::Closing | Stage::Lingering => self.discard(slot, block),
            Stage::Doomed => return,
        }
        if self.table.at(slot).wants_serving() {
            self.table.push_ready(slot);
        }
    }

    fn serve_open(&mut self, slot: u32, block: &mut [u8]) {
        if self.table.at(slot).flags.any(&[Flag::Redeliver, Flag::Securing, Flag::Spliced]) {
            if self.table.at(slot).flags.has(Flag::Securing) && self.begins_handshake(slot) {
                return;
            }
            if self.table.at_mut(slot).flags.take(Flag::Redeliver) {
                self.deliver_kept(slot, &[]);
            }
            if self.table.at(slot).flags.has(Flag::Spliced) {
                return self.fill(slot);
            }
        }
        let mut budget = self.table.limits.read_budget.max(1).min(self.table.allowance(slot));
        for _ in 0..CALLS_MAX {
            match self.read_and_deliver(slot, block, budget) {
                Got::Some(n) if n < budget && !self.table.arena.is_full() => budget -= n,
                Got::Some(_) | Got::Last(_) | Got::Nothing => return,
            }
        }
    }

    /// One read into the arena's block, and one call of `data` if anything came.
    fn read_and_deliver(&mut self, slot: u32, block: &mut [u8], budget: usize) -> Got {
        let connection = self.table.at(slot);
        if connection.stage != Stage::Open || !connection.wants_read() || budget == 0 {
            return Got::Nothing;
        }
        let kept = connection.inbox.as_ref().map_or(0, |inbox| inbox.kept().len());
        let prefix = if kept <= PREFIX_MAX.min(READ_MAX / 2) { kept } else { 0 };
        if connection.flags.has(Flag::Sealed) {
            return self.read_sealed(slot, block, prefix, budget);
        }
        let at = self.table.arena.place();
        let got = self.read(slot, &mut block[at + prefix..][..budget.min(READ_MAX - prefix)]);
        if let Got::Some(n) | Got::Last(n) = got {
            self.deliver_arrived(slot, &mut block[at..], prefix, n);
        }
        got
    }

    /// Delivers `n` bytes behind room for what is kept; or, where there is no such room, behind what is kept where it
    /// is. In place at both its calls: for a small message the call would be a thirtieth of the whole way.
    #[inline(always)]
    pub(super) fn deliver_arrived(&mut self, slot: u32, bytes: &mut [u8], prefix: usize, n: usize) {
        let arrived = ..prefix + n;
        match &self.table.at(slot).inbox {
            None => self.deliver(slot, &bytes[arrived], 0, n),
            Some(inbox) if prefix == inbox.kept().len() => {
                let scanned = inbox.scanned();
                bytes[..prefix].copy_from_slice(inbox.kept());
                self.deliver(slot, &bytes[arrived], scanned, n);
            }
            Some(_) => self.deliver_kept(slot, &bytes[arrived]),
        }
    }

    /// Reads, and keeps the readiness flags true to what the kernel said.
    #[inline]
    pub(super) fn read(&mut self, slot: u32, into: &mut [u8]) -> Got {
        let Some(stream) = &self.streams[slot as usize] else { return Got::Nothing };
        let table = &mut self.table;
        let connection = &mut table.slots[slot as usize];
        let result = self.system.read(stream, into);
        table.stats.reads += 1;
        match result {
            Ok(0) => {
                match connection.flags.has(Flag::Sealed) {
                    true => self.cut_off(slot),
                    false => self.ended(slot),
                }
                Got::Nothing
            }
            Ok(n) => {
                connection.heard(n, table.now);
                table.stats.bytes_in += n as u64;
                // epoll and kqueue raise a new edge for what arrives after a short read. But an end that has been
                // announced already is not announced again: then only reading on finds it.
                let last = n < into.len() && !connection.flags.has(Flag::EndAnnounced);
                connection.flags.lower_if(Flag::Readable, last);
                if connection.extra.as_ref().is_some_and(|extra| extra.is_limited()) {
                    table.spend(slot, n);
                }
                if last { Got::Last(n) } else { Got::Some(n) }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.run_dry();
                Got::Nothing
            }
            // A signal came first; the connection stays in line.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Got::Nothing,
            Err(error) => {
                table.doom(slot, Closed::from_io(&error));
                Got::Nothing
            }
        }
    }

    /// Lends `bytes`, of which the last `arrived` are new, to the service; what it leaves is kept.
    fn deliver(&mut self, slot: u32, bytes: &[u8], scanned: usize, arrived: usize) {
        if self.table.at(slot).flags.has(Flag::Piped) {
            return self.relay(slot, bytes);
        }
        let mut input = Input::resumed(bytes, scanned);
        let host = usize::from(self.table.at(slot).host);
        self.hosts[host].data(&mut self.table, slot, &mut input);
        let (taken, scanned) = input.settle();
        if taken == bytes.len() {
            self.table.drop_inbox(slot);
        } else if is_open(&self.table, slot) {
            self.table.keep(slot, &bytes[taken..], scanned, arrived, taken > 0);
            self.bound_inbox(slot);
        }
    }

    /// The same for what is kept already, with what has `arrived` added to it. The inbox leaves the table for the
    /// length of the callback; its place is there afterwards, because only `reap` frees slots.
    fn deliver_kept(&mut self, slot: u32, arrived: &[u8]) {
        let Some(mut inbox) = self.table.at_mut(slot).inbox.take() else { return };
        let before = inbox.charge();
        inbox.append(arrived);
        let mut input = Input::resumed(inbox.kept(), inbox.scanned());
        let host = usize::from(self.table.at(slot).host);
        self.hosts[host].data(&mut self.table, slot, &mut input);
        let (taken, scanned) = input.settle();
        inbox.settle(taken, scanned);
        if is_open(&self.table, slot) && !inbox.is_empty() {
            self.table.put_back(slot, inbox, before, arrived.len(), taken > 0);
            self.bound_inbox(slot);
        } else {
            self.table.memory -= before;
        }
    }

    /// A message may not grow beyond its limit. A paused service has not been asked yet whether it is complete.
    fn bound_inbox(&mut self, slot: u32) {
        let (connection, limits) = (self.table.at(slot), self.table.limits_of(slot));
        let kept = connection.inbox.as_ref().map_or(0, |inbox| inbox.kept().len());
        if kept > limits.message && !connection.flags.has(Flag::Paused) {
            self.table.close(slot, Closed::TooLong);
        }
    }

    /// The peer's end has been read: everything it sent was delivered before.
    pub(super) fn ended(&mut self, slot: u32) {
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        connection.flags.raise(Flag::Ended);
        connection.flags.lower(Flag::Readable);
        match connection.stage {
            Stage::Open => {
                connection.touched = now;
                let finished = connection.flags.has(Flag::Finished);
                if connection.flags.has(Flag::Piped) {
                    self.relay_end(slot);
                } else {
                    let host = usize::from(connection.host);
                    self.hosts[host].end(&mut self.table, slot);
                }
                self.table.drop_inbox(slot);
                if finished {
                    self.table.doom(slot, Closed::Finished);
                } else {
                    self.table.rearm(slot);
                }
            }
            Stage::Lingering => self.table.doom(slot, Closed::Local),
            Stage::Closing | Stage::Connecting | Stage::Doomed => {}
        }
    }

    /// Reads and throws away: the service has closed, but a reset in the face of unread input would destroy its
    /// last reply on the way.
    fn discard(&mut self, slot: u32, block: &mut [u8]) {
        for _ in 0..CALLS_MAX {
            let connection = self.table.at(slot);
            if !connection.wants_read() {
                return;
            }
            let lingering = connection.stage == Stage::Lingering;
            let most = self.table.limits_of(slot).linger_bytes;
            let at = self.table.arena.place();
            let (Got::Some(n) | Got::Last(n)) = self.read(slot, &mut block[at..][..READ_MAX]) else { return };
            let discarded = &mut self.table.at_mut(slot).extra().clocks().discarded;
            *discarded += n;
            if lingering && *discarded > most {
                self.table.doom(slot, Closed::Local);
            }
        }
    }
}
