//! Phase 6: write what is queued.
//!
//! Read before: `parts/arena.rs`. Next: `event_loop/expire.rs`. What a send does is in `connection/output.rs`, the
//! queue of bytes that the kernel did not accept in `parts/outbox.rs`.

use std::io::{self, IoSlice};
use std::mem;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::observer::{Phase, Step};
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::config::limits::CALLS_MAX;
use crate::connection::adopt::ADOPTED;
use crate::connection::context::{Context, Dirty};
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::connection::{Connection, NOT_DIRTY};
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::outbox::{Outbox, WriteBatch};
use crate::service::Event;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Writes each connection that has something queued: its outbox first, then what was sent to it in this turn, with
    /// one call if the kernel accepts it.
    ///
    /// No callback runs before the arena is cleared, because the segments that connections still refer to are in it.
    /// `drained` is called after that: what it sends is written by the next `write`.
    pub(super) fn write(&mut self) {
        self.enter(Phase::Write);
        self.set_options();
        self.detach_unpiped();
        self.being_written.clear();
        mem::swap(&mut self.table.cx.dirty, &mut self.being_written);
        for at in 0..self.being_written.len() {
            self.write_connection(at);
        }
        self.table.cx.arena.clear();
        self.table.evict();
        self.table.bound_lingering();
        self.notify_drained();
        // Behind all that can end a wait: a deadline, a write that has drained a queue or has failed, and `drained`,
        // which may close a receiver.
        self.table.check_receivers();
    }

    /// Sets the socket options that services asked for. It is done before the writes, so that a buffer size or
    /// TCP_NODELAY applies to them. An option that the system refuses is logged and counted; the connection goes on.
    fn set_options(&mut self) {
        if self.table.cx.pending_options.is_empty() {
            return;
        }
        for (id, option) in mem::take(&mut self.table.cx.pending_options) {
            let Some((connection, cx)) = self.table.get(id) else { continue };
            let Some(stream) = &connection.stream else { continue };
            if let Err(error) = self.system.set_option(stream, option) {
                cx.stats.options_refused += 1;
                log::warn!("{id}: cannot set {option:?}: {error}");
            }
        }
    }

    /// Writes the connection at this place of the list. Most often nothing was queued before, there is one segment, and
    /// the kernel accepts all of it: that case is one call and returns early. Everything else is in `write_queue`.
    fn write_connection(&mut self, at: usize) {
        let &mut Dirty { id, ref mut segments, .. } = &mut self.being_written[at];
        let Some((connection, cx)) = self.table.get(id) else { return };
        connection.dirty = NOT_DIRTY;
        if connection.stage == Stage::Dead {
            return;
        }
        // Bounds the bytes that one connection writes in a turn. With a large send buffer, one fast reader could
        // otherwise take the whole phase.
        let mut budget = cx.limits.write_budget;
        if connection.filter == FilterStage::Off && connection.outbox.is_none() {
            budget -= Self::write_fresh(&mut self.system, connection, segments, cx).min(budget);
            // Then no FIN is owed and no `drained` either, so nothing is left to do.
            let open = connection.is_open() && connection.outgoing == Half::Open;
            if open && segments.len() == 0 && !connection.flags.contains(Flag::Full) {
                return;
            }
        }
        let segments = *segments;
        self.write_queue(id, segments, budget);
    }

    /// Writes what was sent in this turn to a connection that had nothing queued. Returns how many bytes the kernel has
    /// accepted.
    #[inline]
    fn write_fresh(
        system: &mut S,
        connection: &mut Connection,
        segments: &mut SegmentList,
        cx: &mut Context,
    ) -> usize {
        let Some(stream) = &connection.stream else { return 0 };
        let Some(bytes) = cx.arena.as_single(segments) else { return 0 };
        if !connection.flags.contains(Flag::Writable) {
            return 0; // The kernel has no room, so a call would fail. An event says when there is some.
        }
        let result = system.write(stream, &[IoSlice::new(bytes)]);
        connection.on_write_result(result, segments, cx)
    }

    /// All cases but the one of `write_fresh`: several segments, an outbox, encryption, the water marks, the FIN.
    ///
    /// ```text
    ///     outbox    │ wire │ in a kernel pipe │ plain │     this turn   │ segments │
    ///     without a filter:  1       2                                     3
    ///     with a filter:     1                   2 encrypted,              3 encrypted
    /// ```
    ///
    /// Bytes that the kernel does not accept are copied to the outbox, because the arena is cleared after this phase.
    #[inline(never)]
    fn write_queue(&mut self, id: ConnId, mut segments: SegmentList, mut budget: usize) {
        self.queue_files(id, &mut segments);
        let (connection, _) = self.table.at(id.slot);
        let (mut plain, mut wire) = match connection.is_filtered() {
            true => (segments, SegmentList::EMPTY),
            false => (SegmentList::EMPTY, segments),
        };
        // Encryption is one write budget ahead of the kernel at most: what waits longer stays plaintext, and a line
        // that is shared by many connections stays shared.
        let mut sealable = budget;
        for _ in 0..CALLS_MAX {
            if self.table.at(id.slot).0.filter == FilterStage::Open {
                self.load_file(id, budget, |outbox| &mut outbox.plain);
            }
            let (connection, cx) = self.table.at(id.slot);
            if connection.is_filtered() {
                connection.encrypt(&mut plain, &mut wire, budget, &mut sealable, cx);
            }
            let written = self.write_once(id, &mut wire, budget);
            // `min`: a splice writes a whole kernel pipe, which may hold more than what is left of the budget.
            budget -= written.min(budget);
            let is_all = plain.len() + wire.len() == 0 && self.table.at(id.slot).0.outbox.is_none();
            if written == 0 || budget == 0 || is_all {
                break;
            }
        }
        if wire.len() > 0 {
            mark!("bytes behind a kernel pipe");
            // These bytes go behind those in a kernel pipe, so the pipe's bytes must be in the outbox before them.
            self.read_out(id);
        }
        let (connection, cx) = self.table.at(id.slot);
        let goes_on = connection.stage != Stage::Dead && !connection.is_write_failed();
        if goes_on {
            connection.spill_wire(wire, cx);
        }
        // The ciphertext of the next connection begins at the front again: one buffer serves for all, and a filter must
        // not see what another one has left in it.
        cx.arena.clear_ciphertext();
        if !goes_on {
            return;
        }
        let more = connection.can_write() && !seeded(SeededBug::BudgetForgetsOutput);
        if more && connection.flags.contains(Flag::Writable) {
            mark!("the write budget ended");
            connection.push_dirty(cx); // The budget ended, and the kernel has room: no event will come.
        }
        // Only now, after the write: what the kernel has taken at once was never a queue, and must not call `drained`.
        connection.check_water_marks(cx);
        if connection.queued() == 0 || seeded(SeededBug::FinBeforeQueue) && connection.owes_end() {
            connection.drop_outbox(cx);
            self.write_end(id);
        }
    }

    /// One system call, if there is anything to write and room for it; returns how many bytes the kernel has accepted.
    fn write_once(&mut self, id: ConnId, segments: &mut SegmentList, budget: usize) -> usize {
        let (connection, _) = self.table.at(id.slot);
        let (wire, in_pipe) =
            connection.outbox.as_ref().map_or((0, 0), |outbox| (outbox.wire.len(), outbox.in_pipe));
        let nothing = wire + in_pipe + segments.len() == 0 || budget == 0;
        if nothing || !connection.flags.contains(Flag::Writable) || !connection.has_stream() {
            return 0;
        }
        if let Some(written) = self.write_file(id, budget) {
            return written;
        }
        let (connection, cx) = self.table.at(id.slot);
        let Some(stream) = connection.stream.as_ref().filter(|_| connection.has_stream()) else { return 0 };
        // What is in `wire` is older than what is in the kernel pipe, so that is spliced only when `wire` is empty.
        let from_pipe = if wire == 0 && in_pipe > 0 { self.kernel_pipes.to_sink(id) } else { None };
        let result = match (from_pipe, cx.arena.as_single(segments).filter(|_| wire + in_pipe == 0)) {
            (Some(pipe), _) => self.system.splice_out(pipe, stream, in_pipe),
            (None, Some(bytes)) => self.system.write(stream, &[IoSlice::new(bytes)]),
            (None, None) => gather(connection.outbox.as_deref(), &cx.arena, segments, budget, |slices| {
                self.system.write(stream, slices)
            }),
        };
        // Before the result is used up: after an error the pipe still holds its bytes.
        let is_spliced = from_pipe.is_some() && result.is_ok();
        let written = connection.on_write_result(result, segments, cx);
        if is_spliced {
            self.on_spliced_out(id, written);
        }
        written
    }

    /// The queue is empty: sends the FIN if one is owed. With TLS a close_notify is written before it, so that the peer
    /// can tell a complete stream from a truncated one.
    fn write_end(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        // A connection that had finished before it was closed has sent its FIN; it only has to linger, or to end.
        let leaves = connection.outgoing == Half::Ended && connection.stage == Stage::Closing;
        if connection.stage == Stage::Connecting || !(connection.owes_end() || leaves) {
            return;
        }
        if connection.filter.is_handshaking() && connection.is_open() {
            mark!("an end waits for the handshake");
            return; // Bytes may still be sent after the handshake, and the FIN goes behind them.
        }
        if connection.is_incomplete() && connection.stage == Stage::Closing && !leaves {
            mark!("an incomplete stream gets no FIN");
            // A reset makes the kernel drop what it has not sent yet, so it comes after the linger time.
            return match connection.incoming {
                Half::Ended => connection.close_now(CloseReason::PipePeerClosed, cx),
                _ => connection.start_linger(cx),
            };
        }
        if connection.filter == FilterStage::Open && !leaves && !seeded(SeededBug::CloseNotifyNotSent) {
            connection.push_close_notify(cx);
            // At once, and without a budget: it is some thirty bytes, and the FIN cannot be sent before it.
            let mut nothing = SegmentList::EMPTY;
            self.write_once(id, &mut nothing, usize::MAX);
            let (connection, cx) = self.table.at(id.slot);
            if connection.stage == Stage::Dead {
                return;
            }
            if connection.queued() > 0 {
                // Only `WouldBlock` says that the kernel has no room and raises an event later; a short write does not.
                if connection.flags.contains(Flag::Writable) {
                    connection.push_dirty(cx);
                }
                return;
            }
            connection.drop_outbox(cx);
        }
        let (connection, cx) = self.table.at(id.slot);
        let Some(stream) = &connection.stream else { return };
        if !leaves {
            // If the peer has ended too, `reap` closes the stream in this turn, and close(2) sends the FIN; unless
            // another descriptor refers to the same socket, as may be with an adopted one.
            let closes = connection.incoming == Half::Ended && connection.place != ADOPTED;
            // ENOTCONN is the usual error: the peer has reset the connection, and no read has found that yet.
            let result = if closes { Ok(()) } else { self.system.shutdown_write(stream) };
            cx.observers.tell_message(|| Step::Fin { connection: id, result: result.as_ref().copied() });
            if let Err(error) = result {
                return connection.on_write_failed(&error, cx);
            }
        }
        connection.outgoing = Half::Ended;
        connection.last_activity = cx.now.into();
        match (connection.incoming, connection.stage) {
            (Half::Ended, _) if seeded(SeededBug::BothEndsStayOpen) => {}
            (Half::Ended, _) => connection.close_now(CloseReason::Finished, cx),
            (_, Stage::Closing) => connection.start_linger(cx),
            _ => connection.rearm(cx),
        }
    }

    /// Calls `drained` for connections that were full and are not, and lets them be read again. It runs after all
    /// writes, so that a callback sees the queues of all connections as they are.
    fn notify_drained(&mut self) {
        if self.table.cx.drained.is_empty() {
            return;
        }
        for id in mem::take(&mut self.table.cx.drained) {
            // A callback of another connection may have closed this one.
            let Some((connection, _)) = self.table.get(id) else { continue };
            let (service, piped) = (connection.service, connection.flags.contains(Flag::Piped));
            if piped {
                self.resume_pipe_peer(id);
            } else if connection.is_open() {
                self.call(service, Event::Drained(id.slot));
            }
            let (connection, cx) = self.table.at(id.slot);
            connection.on_released(cx);
        }
    }
}

/// Writes several slices with one call (`writev`). A function of its own, because the slices take a kilobyte of stack,
/// which the common path need not reserve.
#[inline(never)]
fn gather(
    outbox: Option<&Outbox>,
    arena: &Arena,
    segments: &SegmentList,
    budget: usize,
    write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut slices = WriteBatch::new(budget);
    if let Some(outbox) = outbox {
        outbox.wire.gather(&mut slices);
    }
    // Bytes in a kernel pipe or a file go between the outbox and this turn's segments, and no `writev` can have them.
    if slices.has_room() && outbox.is_none_or(|outbox| outbox.in_pipe == 0 && !outbox.wire.has_file()) {
        arena.gather(segments, &mut slices);
    }
    write(slices.slices())
}
