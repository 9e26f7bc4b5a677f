//! Phase 4: read what has arrived and deliver it.
//!
//! Read before: `connection/mod.rs`. Next: `parts/arena.rs`, which has the block that reads go into.

use std::mem;
use std::ops::Range;

use super::EventLoop;
use super::observe::call_service;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::observer::{Phase, Step as Observed};
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::config::limits::CALLS_MAX;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::parts::arena::READ_MAX;
use crate::parts::inbox::{Inbox, Input};
use crate::service::Event;
use crate::sys::System;

/// Read budgets given in one turn beyond the first of each connection, for all together: half a megabyte at 64 KiB
/// each.
const EXTRA_BUDGETS: usize = 8;

/// What became of one attempt to read.
pub(super) enum ReadOutcome {
    /// The number of bytes read; more may be left.
    More(usize),
    /// The number of bytes read; nothing is left until the next event.
    Drained(usize),
    /// No byte: the end, an error, `WouldBlock` or a signal. The connection has noted which.
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

/// Where the input of a connection goes. Determined before the callback, so that a pipe that the callback makes begins
/// with the next bytes.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Service(u16),
    Pipe,
}

impl Target {
    /// The target, and the unread input that goes before the new bytes and leaves the connection.
    pub(super) fn of(connection: &mut Connection) -> (Target, Option<Box<Inbox>>) {
        let is_piped = connection.flags.contains(Flag::Piped);
        let target = if is_piped { Target::Pipe } else { Target::Service(connection.service) };
        (target, connection.inbox.take())
    }
}

/// What a service did with the bytes of one call.
struct Delivered {
    taken: usize,
    /// How many of the bytes left were searched without a match; the next search begins there.
    scanned: usize,
    /// Whether the budget of the delivery was used up and hides the bytes left.
    is_cut: bool,
}

impl<S: System> EventLoop<S> {
    /// Reads the connections of the ready list, each at most [`Limits::read_budget`](crate::Limits::read_budget) bytes.
    /// One that has more is added to the list again.
    ///
    /// New ones come first, so that a small message does not wait for a round of two hundred bulk senders. All that are
    /// carried over share `Limits::carried_over_budget`, and keep their order, so that each of them is reached.
    ///
    /// When all had a budget, up to `EXTRA_BUDGETS` more are given to those that have more. Asking the kernel for
    /// events after each 64 KiB of a bulk echo would cost a tenth of its rate.
    pub(super) fn read(&mut self) {
        self.enter(Phase::Read);
        self.start_handshakes();
        let start = self.table.cx.stats.bytes_opened();
        let (carried_over, all) = (self.carried_over, self.table.cx.ready.len());
        self.read_listed(carried_over..all, u64::MAX);
        let mut served = 0;
        if carried_over > 0 {
            served = self.read_listed(0..carried_over, self.table.cx.limits.carried_over_budget as u64);
        }
        // Those that were not read stay in front of those that were added meanwhile: first in, first out.
        let ready = &mut self.table.cx.ready;
        if served == carried_over && all == ready.len() {
            ready.clear(); // Most often. What follows would do the same, with some fifty instructions.
        } else {
            ready.drain(carried_over..all);
            ready.drain(..served);
        }
        self.table.evict();
        if served == carried_over && !self.table.cx.ready.is_empty() {
            self.read_extra(start);
        }
    }

    /// Gives more budgets to those that have more. `start`: what had been read before this phase.
    #[inline(never)]
    fn read_extra(&mut self, start: u64) {
        let extra = EXTRA_BUDGETS.saturating_mul(self.table.cx.limits.read_budget) as u64;
        let mut before = u64::MAX;
        // The last of the list is the one that was just read, if it has more.
        while let Some(last) = self.table.cx.ready.len().checked_sub(1) {
            let now = self.table.cx.stats.bytes_opened();
            if now - start >= extra || now == before {
                return; // Without progress, another read would bring nothing either.
            }
            before = now;
            self.read_listed(last..last + 1, u64::MAX);
            self.table.cx.ready.remove(last);
        }
    }

    /// Reads connections of the ready list, until so many bytes have come from them. Returns how many it has read.
    fn read_listed(&mut self, listed: Range<usize>, budget: u64) -> usize {
        let mut block = self.table.cx.arena.take_block();
        let before = self.table.cx.stats.bytes_opened();
        self.redelivered = 0;
        let mut at = listed.start;
        // A redelivery reads no byte, so what it has queued is counted in place of that.
        while at < listed.end && self.table.cx.stats.bytes_opened() - before + self.redelivered < budget {
            self.read_connection(self.table.cx.ready[at], &mut block);
            at += 1;
        }
        self.table.cx.arena.put_block(block);
        at - listed.start
    }

    /// Reads one connection until nothing is left, its budget is used up, or `CALLS_MAX` reads were made. The number of
    /// calls is bounded too: a peer that sends single bytes would otherwise get 65,536 system calls.
    /// A full arena is written first: between two connections no slice of the block is in use.
    #[inline]
    fn read_connection(&mut self, id: ConnId, block: &mut Vec<u8>) {
        if self.table.cx.arena.is_full() {
            self.table.cx.arena.put_block(mem::take(block));
            self.write();
            self.enter(Phase::Read);
            *block = self.table.cx.arena.take_block();
        }
        let mut budget = self.table.cx.limits.read_budget;
        for round in 0..CALLS_MAX {
            match self.read_once(id, block, budget, round == 0) {
                Step::Done => return,
                Step::Uncommon => return self.read_uncommon(id, block),
                Step::More(0) if seeded(SeededBug::BudgetForgetsInput) => return,
                Step::More(_) if seeded(SeededBug::BudgetIgnored) => {}
                Step::More(left) => budget = left,
            }
            if budget == 0 || self.table.cx.arena.is_full() {
                break;
            }
        }
        let (connection, cx) = self.table.at(id.slot);
        connection.push_ready(cx); // Its budget is used up: no event will report the bytes that are left.
    }

    /// One read into the arena's block, and one call of `data` if anything came. In most turns nothing else happens to
    /// a connection, so this has one look-up before the callback and none after it; the rest is in `read_uncommon`.
    #[inline]
    fn read_once(&mut self, id: ConnId, block: &mut [u8], budget: usize, leaves_line: bool) -> Step {
        let Some((connection, cx)) = self.table.get(id) else { return Step::Done };
        if !leaves_line && connection.flags.contains(Flag::Ready) {
            return Step::Done; // What the callback did has put it in line again.
        }
        connection.flags.remove(Flag::Ready);
        if !connection.is_plainly_readable() {
            if !connection.wants_turn() && !seeded(SeededBug::ReadsWhilePaused) {
                return Step::Done; // A callback has paused, throttled or closed it since it was added to the list.
            }
            let spliced = connection.flags.any(&[Flag::Redeliver, Flag::Spliced]);
            if !connection.is_open() || connection.is_filtered() || spliced {
                return Step::Uncommon;
            }
        }
        let budget = budget.min(connection.allowance(cx));
        if budget == 0 {
            return Step::Done;
        }
        let prefix = connection.prefix();
        let at = cx.arena.write_offset();
        let into = &mut block[at + prefix..][..budget.min(READ_MAX - prefix)];
        let outcome = Self::read_stream(&mut self.system, connection, into, cx);
        let (ReadOutcome::Drained(n) | ReadOutcome::More(n)) = outcome else {
            self.after_failed_read(id);
            return Step::Done;
        };
        let target = Target::of(connection);
        self.deliver(id, target, &mut block[at..], prefix, n);
        match outcome {
            ReadOutcome::More(_) => Step::More(budget - n),
            ReadOutcome::Drained(_) | ReadOutcome::None => Step::Done,
        }
    }

    /// Connections that `read_once` does not handle. Not inlined, to keep the common path short.
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

    /// An open connection with a filter, with hidden input, or whose bytes are spliced. A handshake that was asked for
    /// starts first; then hidden input is delivered, since it came before everything that a read would bring.
    fn read_open(&mut self, id: ConnId, block: &mut [u8]) {
        let (connection, cx) = self.table.at(id.slot);
        let mut budget = cx.limits.read_budget;
        if connection.filter == FilterStage::Asked {
            return self.start_or_queue_handshake(id);
        }
        if connection.flags.take(Flag::Redeliver) {
            if !connection.unread().is_empty() {
                let target = Target::of(connection);
                self.deliver(id, target, &mut [], 0, 0);
                self.redelivered += self.budget.spent() as u64;
            }
            budget = self.open_more(id, block, budget);
        }
        for _ in 0..CALLS_MAX {
            let (connection, cx) = self.table.at(id.slot);
            if !connection.is_open() || !connection.wants_read() || budget == 0 || cx.arena.is_full() {
                return;
            }
            if connection.flags.contains(Flag::Spliced) {
                return self.splice_in(id, block, budget);
            }
            if !connection.is_filtered() {
                return; // It is in the ready list again, and the next round reads it with `read_once`.
            }
            let ReadOutcome::More(_) = self.read_ciphertext(id, block, &mut budget) else { return };
        }
    }

    /// Makes one read, and keeps `Readable` true to what the kernel said: events are edge-triggered, so readiness that
    /// is cleared too early is never reported again. An end or an error is noted in the connection.
    #[inline(always)]
    pub(super) fn read_stream(
        system: &mut S,
        connection: &mut Connection,
        into: &mut [u8],
        cx: &mut Context,
    ) -> ReadOutcome {
        let Some(stream) = &connection.stream else { return ReadOutcome::None };
        let result = system.read(stream, into);
        cx.stats.reads += 1;
        if cx.observers.want_messages() {
            let result = result.as_ref().copied();
            cx.observers.tell_message(|| Observed::Read { connection: connection.id, result });
        }
        match result {
            Ok(0) => {
                connection.on_end_read();
                ReadOutcome::None
            }
            Ok(n) => {
                cx.stats.bytes_in += n as u64;
                connection.on_received(n, cx);
                let last =
                    n < into.len() && connection.is_short_read_final() || seeded(SeededBug::AnyReadDrains);
                connection.flags.remove_if(Flag::Readable, last);
                if last { ReadOutcome::Drained(n) } else { ReadOutcome::More(n) }
            }
            Err(error) => {
                connection.on_read_error(&error, cx);
                ReadOutcome::None
            }
        }
    }

    /// After a read without bytes: if it found the peer's FIN, acts on that.
    #[inline(never)]
    pub(super) fn after_failed_read(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        if connection.incoming != Half::Ended {
            return connection.push_ready(cx); // Still readable if a signal interrupted the read.
        }
        match connection.stage {
            // A FIN without close_notify may have been sent by an attacker, to cut a message off.
            Stage::Open if connection.is_filtered() => self.on_fin_below_filter(id),
            Stage::Open => self.on_peer_end(id),
            Stage::Lingering => connection.close_now(CloseReason::Local, cx),
            Stage::Connecting | Stage::Tarpitted | Stage::Closing | Stage::Dead => {}
        }
    }

    /// Delivers input; every byte that a service or a pipe peer gets passes here.
    ///
    /// ```text
    ///     block   │ prefix: room for unread input │ n bytes that have arrived │
    ///             └──────────────── one slice for `data` ────────────────────┘
    /// ```
    ///
    /// If the unread input is too long for that (`prefix` is 0), the new bytes are appended to the inbox. The inbox is
    /// out of its connection during the callback. A pipe, a `resume` or a `start_filter` in the callback would
    /// otherwise find these bytes, which are being delivered, a second time. After the callback, bytes that are left
    /// are kept, sent to a new pipe peer, given to the filter, delivered again in the next turn, or dropped.
    #[inline(always)]
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
            let mut inbox = self.table.cx.spare_inboxes.take();
            inbox.replace(&bytes[delivered.taken..], delivered.scanned);
            self.keep(id, inbox, 0, n, &delivered);
        }
    }

    /// Delivers unread input and the new bytes after it.
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

    /// Calls `data` with these bytes, or sends them to the pipe peer. In place: a call of its own costs a twentieth.
    #[inline(always)]
    fn hand_over(&mut self, id: ConnId, target: Target, bytes: &[u8], scanned: usize) -> Delivered {
        let Target::Service(service) = target else {
            self.relay(id, bytes);
            return Delivered { taken: bytes.len(), scanned: 0, is_cut: false };
        };
        let mut input = Input::with_scanned(bytes, scanned).within(&self.budget);
        self.table.cx.sender_waits.begin(id);
        call_service(&mut self.services, service, &mut self.table, Event::Data(id.slot, &mut input));
        if self.table.cx.sender_waits.end() {
            self.table.wait_for_receivers(id);
        }
        let is_cut = input.is_cut();
        let (taken, scanned) = input.finish();
        Delivered { taken, scanned, is_cut }
    }

    /// Decides about the bytes that a service has left. `arrived` of the delivered bytes were new, and `before` bytes
    /// of memory are charged for the inbox. The callback may have closed or piped the connection.
    #[inline(never)]
    fn keep(&mut self, id: ConnId, inbox: Box<Inbox>, before: usize, arrived: usize, delivered: &Delivered) {
        let (connection, cx) = self.table.at(id.slot);
        if !connection.is_open() || inbox.is_empty() {
            cx.memory -= before;
            cx.spare_inboxes.give(inbox);
        } else if connection.flags.contains(Flag::Piped) && !seeded(SeededBug::PipedRestKept) {
            mark!("input left by the callback that piped");
            cx.memory -= before;
            self.relay(id, inbox.unread());
        } else {
            let begins = before == 0 || delivered.taken > 0 || seeded(SeededBug::DribbleRenewsMessage);
            connection.put_inbox(inbox, before, arrived, begins, cx);
            connection.after_delivery(delivered.is_cut, cx);
            connection.push_ready(cx);
            // Checked here and not once per turn: inboxes of a thousand connections can grow in one phase.
            if cx.is_over_memory() && !seeded(SeededBug::EvictedAfterAll) {
                self.table.evict();
            }
        }
    }

    /// The peer's FIN has been read, and all bytes before it were delivered: calls `end`, or sends a FIN to the pipe
    /// peer.
    pub(super) fn on_peer_end(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        connection.on_end_read();
        connection.last_activity = cx.now.into();
        let finished = connection.outgoing == Half::Ended || seeded(SeededBug::EndClosesBothWays);
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

    /// Reads and discards the input of a closing or lingering connection. A close(2) over unread input makes the kernel
    /// send a reset, which can destroy the last reply before the peer has read it.
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
