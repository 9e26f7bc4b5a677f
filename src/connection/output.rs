//! Output of a connection: sends, the water marks, and failed writes.
//!
//! Read before: `connection/mod.rs` and `parts/arena.rs`. `event_loop/write.rs` makes the system calls.

use std::io;

use crate::base::mark::mark;
use crate::base::observer::Step;
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::shared::Shared;
use crate::config::dial::SocketOption;
use crate::connection::context::Context;
use crate::connection::state::{Flag, Half, Stage};
use crate::connection::{Connection, NOT_DIRTY};
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::outbox::{FilePart, Outbox, Queue};

impl Connection {
    pub(crate) fn send(&mut self, bytes: &[u8], cx: &mut Context) {
        self.queue(bytes.len(), bytes.len(), cx, |arena, segments| arena.push(segments, bytes));
    }

    pub(crate) fn send_shared(&mut self, shared: &Shared, cx: &mut Context) {
        let length = shared.bytes().len();
        self.queue(length, length, cx, |arena, segments| arena.push_shared(segments, shared));
    }

    /// Queues a range of a file, in the order of the sends.
    pub(crate) fn send_file(&mut self, part: FilePart, cx: &mut Context) {
        self.queue(part.length, 0, cx, |arena, segments| arena.push_file(segments, part));
        if self.is_live() && self.outgoing == Half::Open {
            self.fill_outbox(cx, |_, _| 0); // A file is written from the outbox; what has none is written directly.
        }
    }

    /// Adds to the segments of this turn. Bytes that are sent after `close` or `finish` are dropped and counted.
    ///
    /// A connection is closed as a slow reader when its queue is at its limit *before* a send, counting only bytes that
    /// a write has left behind, unless it reads and the connection whose input is answered [can be made to
    /// wait](Connection::hold_sender). What one callback sends is never cut: an answer longer than the limit reaches a
    /// peer that reads. `memory` of the bytes are in memory; those in files count for the water marks only.
    #[inline]
    fn queue(
        &mut self,
        length: usize,
        memory: usize,
        cx: &mut Context,
        push: impl FnOnce(&mut Arena, &mut SegmentList),
    ) {
        if !self.is_live() || self.outgoing != Half::Open {
            mark!("sent too late");
            cx.stats.sent_too_late += length as u64;
            return;
        }
        let left_behind = self.queued();
        let in_files = || self.outbox.as_ref().map_or(0, |outbox| outbox.in_files());
        let at_limit = left_behind > 0 && left_behind - in_files() >= self.queue_limit(cx);
        if at_limit && length > 0 && !self.can_hold_sender(cx) && !seeded(SeededBug::SlowReaderKept) {
            mark!("a slow reader");
            return self.close_now(CloseReason::SlowReader, cx);
        }
        if cx.would_exceed_memory(memory) {
            mark!("a send would exceed the memory");
            return self.close_now(CloseReason::Memory, cx);
        }
        let high = cx.high_water(self.service);
        let entry = self.push_dirty(cx);
        let segments = &mut cx.dirty[entry].segments;
        push(&mut cx.arena, segments);
        if cx.observers.want_messages() {
            cx.observers.tell_message(|| Step::Send { connection: self.id, bytes: length });
        }
        // Full from here on, even if the kernel accepts everything later in this turn: a service that has seen
        // `is_full` waits for `drained`, so that must come.
        if left_behind + segments.len() >= high {
            mark!("full by a send");
            self.hold(Flag::Full, cx);
            self.hold_sender(entry, left_behind > 0, cx);
        }
    }

    /// The bytes above which it is closed as a slow reader, if it takes nothing.
    fn queue_limit(&self, cx: &Context) -> usize {
        let own = self.overrides().and_then(|overrides| overrides.queue);
        own.unwrap_or(cx.limits_of(self.service).queue)
    }

    /// Bytes that were sent and that the kernel has not taken.
    pub(crate) fn unsent(&self, cx: &Context) -> usize {
        let this_turn = cx.dirty.get(self.dirty as usize).map_or(0, |dirty| dirty.segments.len());
        self.queued() + this_turn
    }

    pub(crate) fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.queued())
    }

    /// Our FIN follows what is queued.
    pub(crate) fn finish(&mut self, cx: &mut Context) {
        if self.is_live() && self.outgoing == Half::Open {
            self.outgoing = Half::Ending;
            self.push_dirty(cx);
        }
    }

    /// Whether our FIN is to be sent as soon as nothing is queued.
    pub(crate) fn owes_end(&self) -> bool {
        match self.outgoing {
            Half::Open => self.stage == Stage::Closing,
            Half::Ending => true,
            Half::Ended => false,
        }
    }

    /// Whether something that is queued can be written now: bytes for the wire, or bytes that the filter can encrypt.
    pub(crate) fn can_write(&self) -> bool {
        let Some(outbox) = &self.outbox else { return false };
        let goes = outbox.wire.len() + outbox.in_pipe > 0;
        self.has_stream() && (goes || (outbox.plain.len() > 0 && !self.filter.is_handshaking()))
    }

    /// Copies what is left of this turn's list into the queue for the wire.
    pub(crate) fn spill_wire(&mut self, segments: SegmentList, cx: &mut Context) {
        self.spill(segments, cx, |outbox| &mut outbox.wire);
    }

    /// Copies what is left of this turn's list into the queue for the filter.
    pub(crate) fn spill_plain(&mut self, segments: SegmentList, cx: &mut Context) {
        self.spill(segments, cx, |outbox| &mut outbox.plain);
    }

    fn spill(
        &mut self,
        segments: SegmentList,
        cx: &mut Context,
        queue: impl FnOnce(&mut Outbox) -> &mut Queue,
    ) {
        if segments.len() > 0 {
            self.fill_outbox(cx, |outbox, arena| arena.spill(segments, queue(outbox)));
        }
    }

    /// Queues bytes for the wire, behind what is there and in front of what is not encrypted: what a filter says by
    /// itself.
    pub(crate) fn push_wire(&mut self, bytes: &[u8], cx: &mut Context) {
        if !bytes.is_empty() {
            self.fill_outbox(cx, |outbox, _| outbox.wire.push(bytes));
        }
    }

    /// Puts bytes into the outbox, which is made if there is none, and charges the memory that `fill` returns. The
    /// clock of the minimum rate starts with the first byte in it.
    pub(crate) fn fill_outbox(
        &mut self,
        cx: &mut Context,
        fill: impl FnOnce(&mut Outbox, &mut Arena) -> usize,
    ) {
        let begins = self.queued() == 0;
        let outbox = self.outbox.get_or_insert_default();
        cx.memory += fill(outbox, &mut cx.arena);
        if begins {
            outbox.progress.since = cx.now;
            self.rearm(cx);
        }
    }

    pub(crate) fn drop_outbox(&mut self, cx: &mut Context) {
        if let Some(mut outbox) = self.outbox.take() {
            cx.memory -= outbox.clear() * usize::from(!seeded(SeededBug::QueueNotDischarged));
        }
    }

    /// The kernel has taken `n` bytes: first of what earlier turns have left, then of this turn's list.
    #[inline(always)]
    fn on_written(&mut self, n: usize, segments: &mut SegmentList, cx: &mut Context) {
        if cx.observers.want_messages() {
            cx.observers.tell_message(|| Step::Write { connection: self.id, result: Ok(n) });
        }
        cx.stats.bytes_out += n as u64;
        self.on_sent(n, cx.now);
        let mut fresh = n;
        if let Some(outbox) = &mut self.outbox {
            let old = n.min(outbox.wire.len() + outbox.in_pipe);
            cx.memory -= outbox.advance(old);
            fresh -= old;
        }
        cx.arena.advance(segments, fresh);
    }

    /// What one write came to; returns how many bytes the kernel has accepted. In place at both calls: as a call of its
    /// own it is a hundredth of the instructions of a small message.
    #[inline(always)]
    pub(crate) fn on_write_result(
        &mut self,
        result: io::Result<usize>,
        segments: &mut SegmentList,
        cx: &mut Context,
    ) -> usize {
        cx.stats.writes += 1;
        match result {
            Ok(n) => {
                self.flags.remove_if(Flag::Writable, seeded(SeededBug::AnyWriteBlocks));
                self.on_written(n, segments, cx);
                n
            }
            Err(error) => {
                self.on_write_error(&error, cx);
                0
            }
        }
    }

    /// A signal came first, the kernel has no room, or the connection has failed.
    #[cold]
    fn on_write_error(&mut self, error: &io::Error, cx: &mut Context) {
        cx.observers.tell_message(|| Step::Write { connection: self.id, result: Err(error) });
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.flags.remove(Flag::Writable),
            _ => self.on_write_failed(error, cx),
        }
    }

    /// Nothing can be written any more, and what is queued is dropped. What the peer had sent before is still read and
    /// delivered; then the reason is told. No FIN follows: a dropped queue must not look like a whole answer.
    #[cold]
    pub(crate) fn on_write_failed(&mut self, error: &io::Error, cx: &mut Context) {
        let reason = CloseReason::from_io(error);
        let may_read = self.is_open() && self.incoming != Half::Ended && !self.filter.is_handshaking();
        if !may_read || seeded(SeededBug::FailedWriteDropsInput) {
            mark!("a write failed when nothing is left to read");
            return self.close_now(reason, cx);
        }
        self.close_reason.get_or_insert(reason);
        self.outgoing = Half::Ended;
        mark!("a write failed and input is left");
        self.incoming = Half::Ending;
        self.flags.insert(Flag::Broken);
        self.flags.insert(Flag::Readable);
        self.flags.remove(Flag::Writable);
        self.flags.remove(Flag::Full);
        self.last_activity = cx.now.into();
        self.drop_outbox(cx);
        self.on_released(cx);
    }

    /// Notes why it ends at once. The first reason is the cause, and later ones follow from it; but a reason that drops
    /// the queue counts even after `close`, because the peer has to get a reset in place of an orderly end.
    pub(crate) fn note_reason(&mut self, why: CloseReason, cx: &Context) {
        if why.drops_queue() && self.unsent(cx) > 0 {
            mark!("a reason that drops the queue");
            self.close_reason = Some(why);
        } else {
            self.close_reason.get_or_insert(why);
        }
    }

    /// Whether a write has failed: nothing more is written, and what was queued is dropped.
    pub(crate) fn is_write_failed(&self) -> bool {
        self.flags.contains(Flag::Broken) && self.outgoing == Half::Ended
    }

    /// The peer has reset the connection, or is out of reach (EPOLLERR). A read or a write says so too, but neither
    /// happens for as long as the connection is held: then it ends by a deadline of its own.
    #[cold]
    pub(crate) fn on_socket_error(&mut self, cx: &mut Context) {
        match self.stage {
            // Everything up to the peer's end has been delivered, so no read would find the error.
            Stage::Open if self.incoming == Half::Ended => self.close_now(CloseReason::Reset, cx),
            Stage::Open => {
                self.flags.insert(Flag::Broken);
                self.last_activity = cx.now.into();
                self.rearm(cx);
            }
            Stage::Tarpitted => self.close_now(CloseReason::Reset, cx),
            Stage::Connecting | Stage::Closing | Stage::Lingering | Stage::Dead => {}
        }
    }

    /// Compares what the kernel did not take with the marks: full, or full no more.
    pub(crate) fn check_water_marks(&mut self, cx: &mut Context) {
        let queued = self.queued();
        let limits = cx.limits_of(self.service);
        let low = limits.low_water.min(limits.high_water);
        if queued >= cx.high_water(self.service) {
            mark!("full after a write");
            self.hold(Flag::Full, cx);
        } else if queued <= low && !seeded(SeededBug::FullNeverDrained) && self.flags.take(Flag::Full) {
            mark!("drained");
            cx.drained.push(self.id);
        }
    }

    /// Sets a socket option: at the end of the turn, or as soon as there is a stream.
    pub(crate) fn set_option(&mut self, option: SocketOption, cx: &mut Context) {
        match self.stage {
            Stage::Connecting => {
                let pending = &mut self.pending_dial().pending_options;
                pending.retain(|before| std::mem::discriminant(before) != std::mem::discriminant(&option));
                pending.push(option);
            }
            Stage::Open => cx.pending_options.push((self.id, option)),
            Stage::Tarpitted | Stage::Closing | Stage::Lingering | Stage::Dead => {}
        }
    }

    /// Drops this turn's list of what is to be sent.
    pub(crate) fn drop_segments(&mut self, cx: &mut Context) {
        if self.dirty != NOT_DIRTY {
            cx.dirty[self.dirty as usize].segments = SegmentList::EMPTY;
        }
    }
}
