//! Phase 4: read what has arrived and deliver it.

use std::mem;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::config::limits::CALLS_MAX;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::parts::arena::READ_MAX;
use crate::parts::inbox::{Inbox, Input};
use crate::service::Event;
use crate::sys::System;

/// The beginning of a message that is no longer than this is copied in front of the next read, so that the service sees
/// both in one piece. A longer one stays where it is and the read is appended to it: copying 4 KiB a read is cheaper
/// than losing the path without copies, copying a megabyte a read is not.
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

/// What one step of reading a connection came to.
enum Step {
    /// Nothing more is to be done with it, or it is in line for that.
    Done,
    /// There may be more to read, and so much of the budget is left.
    More(usize),
    /// It is not simply open and readable.
    Uncommon,
}

/// Where the input of a connection goes.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Service(u16),
    Pipe,
}

impl Target {
    /// Where the input goes, and the unread input that goes first: it leaves its place.
    pub(super) fn of(connection: &mut Connection) -> (Target, Option<Box<Inbox>>) {
        let target = match connection.flags.contains(Flag::Piped) {
            true => Target::Pipe,
            false => Target::Service(connection.service),
        };
        (target, connection.inbox.take())
    }
}

/// What a service has done with the bytes of one call.
struct Delivered {
    taken: usize,
    /// How far the rest was searched without a match.
    scanned: usize,
    /// Whether the budget of the delivery hides a rest.
    is_cut: bool,
}

impl<S: System> EventLoop<S> {
    /// Each connection gets one budget; one that has more is put in line again. Connections that became ready since the
    /// last turn come first, all of them; then those that an earlier turn's budget had cut off, in their order and as
    /// far as the budget for them reaches. So two hundred that send all they can make the others wait for a moment, and
    /// not for a whole round of theirs.
    ///
    /// When all have had theirs, a few get some budgets more, one connection after the other: to ask the kernel for
    /// events after each 64 KiB of a bulk echo, and to read another connection then, would cost a tenth of its rate.
    pub(super) fn read(&mut self) {
        self.start_handshakes();
        let extra = EXTRA_BUDGETS.saturating_mul(self.table.cx.limits.read_budget) as u64;
        let max = self.table.cx.stats.bytes_in.saturating_add(extra);
        let all = self.read_ready();
        while all && self.table.cx.stats.bytes_in < max {
            // The last in line is the one that was just read, if it has more.
            let Some(id) = self.table.cx.ready.pop() else { return };
            let before = self.table.cx.stats.bytes_in;
            let mut block = self.table.cx.arena.take_block();
            self.read_connection(id, &mut block);
            self.table.cx.arena.put_block(block);
            if self.table.cx.stats.bytes_in == before {
                return;
            }
        }
    }

    /// Returns whether all had their share.
    fn read_ready(&mut self) -> bool {
        let mut line = mem::replace(&mut self.table.cx.ready, mem::take(&mut self.spare_ready));
        let mut block = self.table.cx.arena.take_block();
        for &id in &line[self.carried_over..] {
            self.read_connection(id, &mut block);
        }
        line.truncate(self.carried_over);
        let budget = self.table.cx.limits.carried_over_budget as u64;
        let before = self.table.cx.stats.bytes_in;
        self.redelivered = 0;
        let mut served = 0;
        for &id in &line {
            // What was read from them, and what they have queued for others.
            if self.table.cx.stats.bytes_in - before + self.redelivered >= budget {
                break;
            }
            self.read_connection(id, &mut block);
            served += 1;
        }
        self.table.cx.arena.put_block(block);
        // What is left of the line goes before the connections that have just had their share.
        let all = served == line.len();
        line.drain(..served);
        line.append(&mut self.table.cx.ready);
        self.spare_ready = mem::replace(&mut self.table.cx.ready, line);
        self.table.evict();
        all
    }

    fn read_connection(&mut self, id: ConnId, block: &mut Vec<u8>) {
        if self.table.cx.arena.is_full() {
            self.table.cx.arena.put_block(mem::take(block));
            self.write();
            *block = self.table.cx.arena.take_block();
        }
        let mut budget = self.table.cx.limits.read_budget;
        for _ in 0..CALLS_MAX {
            match self.read_once(id, block, budget) {
                Step::Done => return,
                Step::Uncommon => return self.read_uncommon(id, block),
                Step::More(left) => budget = left,
            }
            if budget == 0 || self.table.cx.arena.is_full() {
                break;
            }
        }
        let (connection, cx) = self.table.at(id.slot);
        connection.push_ready(cx); // It has used up its budget, and stands in line again.
    }

    /// One read into the arena's block, and one call of `data` if anything came: all that happens to most connections
    /// in most turns, with one look-up before the callback and none after it.
    #[inline]
    fn read_once(&mut self, id: ConnId, block: &mut [u8], budget: usize) -> Step {
        let Some((connection, cx)) = self.table.get(id) else { return Step::Done };
        connection.flags.remove(Flag::Ready);
        if !connection.wants_turn() {
            return Step::Done; // A callback has paused, throttled or closed it since it was put into the list.
        }
        if !connection.is_open()
            || connection.is_filtered()
            || connection.flags.any(&[Flag::Redeliver, Flag::Spliced])
        {
            return Step::Uncommon;
        }
        let budget = budget.min(connection.allowance(cx));
        if budget == 0 {
            return Step::Done;
        }
        let prefix = prefix(connection);
        let at = cx.arena.write_offset();
        let into = &mut block[at + prefix..][..budget.min(READ_MAX - prefix)];
        match Self::read_stream(&mut self.system, connection, into, cx) {
            ReadOutcome::Drained(n) => {
                let target = Target::of(connection);
                self.deliver(id, target, &mut block[at..], prefix, n);
                Step::Done
            }
            ReadOutcome::More(n) => {
                let target = Target::of(connection);
                self.deliver(id, target, &mut block[at..], prefix, n);
                Step::More(budget.saturating_sub(n))
            }
            ReadOutcome::None => {
                self.after_failed_read(id);
                Step::Done
            }
        }
    }

    /// What has to be done to a connection that is not simply open and readable.
    #[inline(never)]
    fn read_uncommon(&mut self, id: ConnId, block: &mut [u8]) {
        let (connection, _) = self.table.at(id.slot);
        match connection.stage {
            Stage::Connecting => self.check_attempts(id),
            Stage::Open => self.read_open(id, block),
            Stage::Closing | Stage::Lingering => self.discard_input(id, block),
            Stage::Tarpitted | Stage::Dead => {}
        }
        let (connection, cx) = self.table.at(id.slot);
        connection.push_ready(cx);
    }

    /// A handshake, or what an earlier delivery has left, comes before a read; and what is read may be ciphertext.
    fn read_open(&mut self, id: ConnId, block: &mut [u8]) {
        let (connection, _) = self.table.at(id.slot);
        if connection.filter == FilterStage::Asked {
            return self.start_or_queue_handshake(id);
        }
        if connection.flags.take(Flag::Redeliver) {
            if !connection.unread().is_empty() {
                let target = Target::of(connection);
                self.deliver(id, target, &mut [], 0, 0);
            }
            self.redelivered += self.budget.spent() as u64;
            self.end_after_delivery(id);
        }
        let mut budget = self.table.cx.limits.read_budget;
        for _ in 0..CALLS_MAX {
            let (connection, cx) = self.table.at(id.slot);
            if !connection.is_open() || !connection.wants_read() || cx.arena.is_full() {
                return;
            }
            if connection.flags.contains(Flag::Spliced) {
                return self.splice_in(id);
            }
            if !connection.is_filtered() {
                return; // It is read by the next turn, as any other.
            }
            let allowed = budget.min(connection.allowance(cx));
            let prefix = prefix(connection);
            match self.read_ciphertext(id, block, prefix, allowed) {
                ReadOutcome::More(n) if n < budget => budget -= n,
                _ => return,
            }
        }
    }

    /// Reads, and keeps the readiness true to what the kernel said. An end or an error is noted in the connection.
    #[inline]
    pub(super) fn read_stream(
        system: &mut S,
        connection: &mut Connection,
        into: &mut [u8],
        cx: &mut Context,
    ) -> ReadOutcome {
        let Some(stream) = &connection.stream else { return ReadOutcome::None };
        let result = system.read(stream, into);
        cx.stats.reads += 1;
        match result {
            Ok(0) => {
                connection.on_end_read();
                ReadOutcome::None
            }
            Ok(n) => {
                cx.stats.bytes_in += n as u64;
                connection.on_received(n, cx.now);
                let last = n < into.len() && connection.is_short_read_final();
                connection.flags.remove_if(Flag::Readable, last);
                // What is discarded while closing takes no rate from the others of a group.
                if connection.optional.is_some() && connection.is_open() {
                    connection.spend_rate(n, cx);
                }
                if last { ReadOutcome::Drained(n) } else { ReadOutcome::More(n) }
            }
            Err(error) => {
                connection.on_read_error(&error, cx);
                ReadOutcome::None
            }
        }
    }

    /// A read has brought nothing: if it has found the peer's end, the service hears of that.
    #[inline(never)]
    pub(super) fn after_failed_read(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        if connection.incoming != Half::Ended {
            return connection.push_ready(cx); // A signal came first.
        }
        match connection.stage {
            Stage::Open if connection.is_filtered() => connection.on_truncated(cx),
            Stage::Open => self.on_peer_end(id),
            Stage::Lingering => connection.close_now(CloseReason::Local, cx),
            Stage::Connecting | Stage::Tarpitted | Stage::Closing | Stage::Dead => {}
        }
    }

    /// The one delivery: `n` bytes have arrived behind room for the unread input (`prefix`), or, where there is no such
    /// room, are appended to the unread input where it is.
    ///
    /// The inbox leaves its connection for the length of the callback: what it holds stands in front of these bytes,
    /// and a pipe, a resume or a filter that the callback asks for must not find it a second time. Afterwards what is
    /// left is kept, relayed, given to the filter, put in line to be delivered again, or dropped.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        id: ConnId,
        (target, inbox): (Target, Option<Box<Inbox>>),
        block: &mut [u8],
        prefix: usize,
        n: usize,
    ) {
        if let Some(inbox) = inbox {
            return self.deliver_behind(id, target, inbox, block, prefix, n);
        }
        let bytes = &block[..prefix + n];
        let delivered = self.hand_over(id, target, bytes, 0);
        if delivered.taken < bytes.len() {
            let mut inbox = Box::<Inbox>::default();
            inbox.replace(&bytes[delivered.taken..], delivered.scanned);
            self.keep(id, inbox, 0, n, &delivered);
        }
    }

    /// The same behind unread input.
    fn deliver_behind(
        &mut self,
        id: ConnId,
        target: Target,
        mut inbox: Box<Inbox>,
        block: &mut [u8],
        prefix: usize,
        n: usize,
    ) {
        let before = inbox.charge();
        let delivered = if n > 0 && prefix == inbox.unread().len() {
            block[..prefix].copy_from_slice(inbox.unread());
            let bytes = &block[..prefix + n];
            let delivered = self.hand_over(id, target, bytes, inbox.scanned());
            inbox.replace(&bytes[delivered.taken..], delivered.scanned);
            delivered
        } else {
            inbox.append(&block[..n]);
            let delivered = self.hand_over(id, target, inbox.unread(), inbox.scanned());
            inbox.consume(delivered.taken, delivered.scanned);
            delivered
        };
        self.keep(id, inbox, before, n, &delivered);
    }

    /// Lends bytes to the service, or relays them.
    #[inline]
    fn hand_over(&mut self, id: ConnId, target: Target, bytes: &[u8], scanned: usize) -> Delivered {
        let Target::Service(service) = target else {
            self.relay(id, bytes);
            return Delivered { taken: bytes.len(), scanned: 0, is_cut: false };
        };
        let mut input = Input::with_scanned(bytes, scanned).within(&self.budget);
        // Not by `call`, because the input borrows the budget.
        self.table.cx.sender_waits.begin(id);
        self.services[usize::from(service) - 1].call(&mut self.table, Event::Data(id.slot, &mut input));
        if self.table.cx.sender_waits.end() {
            self.table.wait_for_receivers(id);
        }
        let is_cut = input.is_cut();
        let (taken, scanned) = input.finish();
        Delivered { taken, scanned, is_cut }
    }

    /// After a delivery, of which the last `arrived` bytes were new: `inbox` has what the service has left, and was
    /// charged with `before`.
    #[inline(never)]
    fn keep(&mut self, id: ConnId, inbox: Box<Inbox>, before: usize, arrived: usize, delivered: &Delivered) {
        let (connection, cx) = self.table.at(id.slot);
        if !connection.is_open() || inbox.is_empty() {
            cx.memory -= before;
        } else if connection.flags.contains(Flag::Piped) {
            cx.memory -= before;
            self.relay(id, inbox.unread());
        } else {
            let begins = before == 0 || delivered.taken > 0;
            connection.put_inbox(inbox, before, arrived, begins, cx);
            connection.after_delivery(delivered.is_cut, cx);
            connection.push_ready(cx);
            // Inboxes of a thousand connections may grow in one phase, and nothing is written in between.
            if cx.is_over_memory() {
                self.table.evict();
            }
        }
    }

    /// The peer's end has been read: everything it sent was delivered before.
    pub(super) fn on_peer_end(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        connection.on_end_read();
        connection.last_activity = cx.now;
        let finished = connection.outgoing == Half::Ended;
        if connection.flags.contains(Flag::Piped) {
            self.relay_fin(id);
        } else {
            let service = connection.service;
            self.call(service, Event::End(id.slot));
        }
        let (connection, cx) = self.table.at(id.slot);
        connection.drop_inbox(cx);
        if finished {
            connection.close_now(CloseReason::Finished, cx);
        } else {
            connection.rearm(cx);
        }
    }

    /// Reads and throws away: the service has closed, but a reset in the face of unread input would destroy its last
    /// reply on the way.
    fn discard_input(&mut self, id: ConnId, block: &mut [u8]) {
        let mut budget = self.table.cx.limits.read_budget.min(READ_MAX);
        for _ in 0..CALLS_MAX {
            let (connection, cx) = self.table.at(id.slot);
            if !connection.wants_read() || budget == 0 {
                return;
            }
            let at = cx.arena.write_offset();
            let outcome = Self::read_stream(&mut self.system, connection, &mut block[at..][..budget], cx);
            let (ReadOutcome::More(n) | ReadOutcome::Drained(n)) = outcome else {
                return self.after_failed_read(id);
            };
            budget -= n;
            let discarded = &mut connection.optional().overrides().discarded;
            *discarded += n;
            let is_too_much = *discarded > cx.limits_of(connection.service).linger_bytes;
            if connection.stage == Stage::Lingering && is_too_much {
                connection.close_now(CloseReason::Local, cx);
            }
        }
    }
}

/// How much room to leave in front of a read, for the unread input of the connection.
fn prefix(connection: &Connection) -> usize {
    let unread = connection.unread().len();
    if unread <= PREFIX_MAX.min(READ_MAX / 2) { unread } else { 0 }
}
