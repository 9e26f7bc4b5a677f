//! Phase 6: write what is queued.

use std::io::{self, IoSlice};
use std::mem;

use super::EventLoop;
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::config::limits::CALLS_MAX;
use crate::connection::context::{Context, Dirty};
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::connection::{Connection, NOT_DIRTY};
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::outbox::{Outbox, WriteBatch};
use crate::service::Event;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Writes what each connection was sent in this turn, behind what it still had queued, with one call if the kernel
    /// takes it. No user code runs before the arena is empty; then those that were full hear that they are not.
    pub(super) fn write(&mut self) {
        self.set_options();
        self.detach_unpiped();
        let mut line = mem::replace(&mut self.table.cx.dirty, mem::take(&mut self.spare_dirty));
        for dirty in line.drain(..) {
            self.write_connection(dirty);
        }
        self.spare_dirty = line;
        self.table.cx.arena.clear();
        self.table.evict();
        self.table.bound_lingering();
        self.notify_drained();
    }

    /// Sets the socket options that services asked for. One that the system refuses is not worth a connection: it is
    /// logged and counted.
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

    /// Nearly always the first call leaves everything with the kernel, and nothing waits for that.
    fn write_connection(&mut self, Dirty { id, mut segments, .. }: Dirty) {
        let Some((connection, cx)) = self.table.get(id) else { return };
        connection.dirty = NOT_DIRTY;
        if connection.stage == Stage::Dead {
            return;
        }
        let mut budget = cx.limits.write_budget;
        if !connection.is_filtered() && connection.outbox.is_none() {
            budget -= Self::write_fresh(&mut self.system, connection, &mut segments, cx).min(budget);
            let open = connection.is_open() && connection.outgoing == Half::Open;
            if open && segments.len() == 0 && !connection.flags.contains(Flag::Full) {
                return;
            }
        }
        self.write_queue(id, segments, budget);
    }

    /// Writes what was sent in this turn to a connection that has nothing queued.
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
            return 0;
        }
        let result = system.write(stream, &[IoSlice::new(bytes)]);
        cx.stats.writes += 1;
        match result {
            Ok(n) => {
                connection.on_written(n, segments, cx);
                n
            }
            Err(error) => {
                connection.on_write_error(&error, cx);
                0
            }
        }
    }

    /// Everything else: several pieces, encryption, a queue for what the kernel will not take, the water marks, our
    /// end.
    #[inline(never)]
    fn write_queue(&mut self, id: ConnId, segments: SegmentList, mut budget: usize) {
        let (connection, _) = self.table.at(id.slot);
        let (mut plain, mut wire) = match connection.is_filtered() {
            true => (segments, SegmentList::EMPTY),
            false => (SegmentList::EMPTY, segments),
        };
        for _ in 0..CALLS_MAX {
            let (connection, cx) = self.table.at(id.slot);
            if connection.is_filtered() {
                connection.encrypt(&mut plain, &mut wire, budget, cx);
            }
            let written = self.write_once(id, &mut wire, budget);
            budget -= written.min(budget);
            if written == 0 || budget == 0 {
                break;
            }
        }
        if wire.len() > 0 {
            self.read_out(id);
        }
        let (connection, cx) = self.table.at(id.slot);
        if connection.stage == Stage::Dead || connection.is_write_failed() {
            return;
        }
        connection.spill_wire(wire, cx);
        cx.arena.clear_ciphertext();
        if connection.can_write() && connection.flags.contains(Flag::Writable) {
            connection.push_dirty(cx); // The budget ended it, not the kernel: no event will come.
        }
        connection.check_water_marks(cx);
        if connection.queued() == 0 {
            connection.drop_outbox(cx);
            self.write_end(id);
        }
    }

    /// One call, if it can do anything; returns how many bytes it has written.
    fn write_once(&mut self, id: ConnId, segments: &mut SegmentList, budget: usize) -> usize {
        let (connection, cx) = self.table.at(id.slot);
        let Some(stream) = &connection.stream else { return 0 };
        let (wire, in_pipe) =
            connection.outbox.as_ref().map_or((0, 0), |outbox| (outbox.wire.len(), outbox.in_pipe));
        let nothing = wire + in_pipe + segments.len() == 0 || budget == 0;
        if nothing || !connection.flags.contains(Flag::Writable) || !connection.has_stream() {
            return 0;
        }
        let from_pipe = if wire == 0 && in_pipe > 0 { self.kernel_pipes.to_sink(id) } else { None };
        let result = match (from_pipe, cx.arena.as_single(segments).filter(|_| wire + in_pipe == 0)) {
            (Some(pipe), _) => self.system.splice_out(pipe, stream, in_pipe),
            (None, Some(bytes)) => self.system.write(stream, &[IoSlice::new(bytes)]),
            (None, None) => gather(connection.outbox.as_deref(), &cx.arena, segments, budget, |slices| {
                self.system.write(stream, slices)
            }),
        };
        cx.stats.writes += 1;
        match result {
            Ok(n) => {
                let spliced = from_pipe.is_some();
                connection.on_written(n, segments, cx);
                if spliced {
                    self.on_spliced_out(id, n);
                }
                n
            }
            Err(error) => {
                connection.on_write_error(&error, cx);
                0
            }
        }
    }

    /// Everything is written; if our end is to follow, it does. A filter says so before that (close_notify), with bytes
    /// of its own that have to be written first.
    fn write_end(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        // A connection that is closed after it had finished owes no end, and has only `closed` before it.
        let leaves = connection.outgoing == Half::Ended && connection.stage == Stage::Closing;
        if connection.stage == Stage::Connecting || !(connection.owes_end() || leaves) {
            return;
        }
        if connection.filter.is_handshaking() && connection.is_open() {
            return;
        }
        if connection.is_incomplete() && connection.stage == Stage::Closing && !leaves {
            // A reset makes the kernel drop what it has not sent yet, so it comes after the linger time.
            return match connection.incoming {
                Half::Ended => connection.close_now(CloseReason::PipePeerClosed, cx),
                _ => connection.start_linger(cx),
            };
        }
        if connection.filter == FilterStage::Open && !leaves {
            connection.push_close_notify(cx);
            let mut nothing = SegmentList::EMPTY;
            self.write_once(id, &mut nothing, usize::MAX);
            let (connection, cx) = self.table.at(id.slot);
            if connection.queued() > 0 || connection.stage == Stage::Dead {
                return; // The event that says there is room brings it here again.
            }
            connection.drop_outbox(cx);
        }
        let (connection, cx) = self.table.at(id.slot);
        let Some(stream) = &connection.stream else { return };
        if !leaves {
            if let Err(error) = self.system.shutdown_write(stream) {
                return connection.on_write_failed(&error, cx);
            }
        }
        connection.outgoing = Half::Ended;
        connection.last_activity = cx.now;
        match (connection.incoming, connection.stage) {
            (Half::Ended, _) => connection.close_now(CloseReason::Finished, cx),
            (_, Stage::Closing) => connection.start_linger(cx),
            _ => connection.rearm(cx),
        }
    }

    /// Tells those that were full that they are not, and reads them again.
    fn notify_drained(&mut self) {
        if self.table.cx.drained.is_empty() {
            return;
        }
        self.table.check_receivers();
        for id in mem::take(&mut self.table.cx.drained) {
            let Some((connection, cx)) = self.table.get(id) else { continue };
            connection.update_message_clocks(cx.now);
            let (service, piped) = (connection.service, connection.flags.contains(Flag::Piped));
            if piped {
                self.resume_pipe_peer(id);
            } else if connection.is_open() {
                self.call(service, Event::Drained(id.slot));
            }
            let (connection, cx) = self.table.at(id.slot);
            connection.push_ready(cx);
            connection.rearm(cx);
        }
    }
}

/// Writes more than one run of bytes with one call. Apart from the rest, because the slices take a kilobyte of stack.
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
    // What was sent in this turn comes behind what is in a kernel pipe.
    if slices.has_room() && outbox.is_none_or(|outbox| outbox.in_pipe == 0) {
        arena.gather(segments, &mut slices);
    }
    write(slices.slices())
}
