//! Phase 6: write what is queued.

use std::io::{self, IoSlice};
use std::mem;

use super::{EventLoop, is_open};
use crate::base::reason::CloseReason;
use crate::config::limits::CALLS_MAX;
use crate::connection::{Flag, NOT_DIRTY, Stage};
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::outbox::{Outbox, WriteBatch};
use crate::service::Event;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Writes what each connection was sent in this turn, behind what it still had queued, with one call if the
    /// kernel takes it. No user code runs before the arena is empty; then those who were full hear that they are not.
    pub(super) fn write(&mut self) {
        self.set_options();
        self.detach_unpiped();
        let mut line = mem::replace(&mut self.table.dirty, mem::take(&mut self.spare_dirty));
        for dirty in line.drain(..) {
            let Some(slot) = self.table.find(dirty.id) else { continue };
            let connection = self.table.at_mut(slot);
            connection.dirty = NOT_DIRTY;
            if connection.stage != Stage::Dead {
                self.write_connection(slot, dirty.segments);
            }
        }
        self.spare_dirty = line;
        self.table.arena.clear();
        self.table.evict();
        self.notify_drained();
    }

    /// What services asked of the system. What it will not do is not worth a connection: it is logged and counted.
    fn set_options(&mut self) {
        if self.table.pending_options.is_empty() {
            return;
        }
        for (id, option) in mem::take(&mut self.table.pending_options) {
            let Some(slot) = self.table.find(id) else { continue };
            let Some(Some(stream)) = self.streams.get(slot as usize) else { continue };
            if let Err(error) = self.system.set_option(stream, option) {
                self.table.stats.options_refused += 1;
                log::warn!("{id}: cannot set {option:?}: {error}");
            }
        }
    }

    /// Nearly always the first call leaves all of it with the kernel, and nobody waits for that.
    fn write_connection(&mut self, slot: u32, mut segments: SegmentList) {
        let budget = self.table.limits.write_budget;
        let written = self.write_once(slot, &mut segments, budget);
        let connection = self.table.at(slot);
        let plain = connection.stage == Stage::Open && connection.outbox.is_none() && segments.len() == 0;
        if !plain || connection.flags.any(&[Flag::Full, Flag::Finishing, Flag::Finished]) {
            self.write_rest(slot, segments, budget.saturating_sub(written));
        }
    }

    /// The rest: more calls, a queue for what the kernel will not take, water marks, our end.
    #[inline(never)]
    fn write_rest(&mut self, slot: u32, mut segments: SegmentList, mut budget: usize) {
        for _ in 1..CALLS_MAX {
            budget = budget.saturating_sub(self.write_once(slot, &mut segments, budget));
        }
        let connection = self.table.at(slot);
        if connection.stage == Stage::Dead
            || (connection.flags.contains(Flag::Broken) && connection.close_reason.is_some())
        {
            return; // What was to be sent is dropped.
        }
        if segments.len() > 0 {
            self.read_out(slot);
        }
        self.table.spill(slot, segments);
        let connection = self.table.at(slot);
        let queued = connection.queued();
        if queued > 0 && connection.flags.contains(Flag::Writable) && connection.can_write() {
            self.table.push_dirty(slot); // The budget ended it, not the kernel: no event will come.
        }
        self.check_water_marks(slot, queued);
        if queued == 0 {
            self.table.drop_outbox(slot);
            self.send_fin(slot);
        }
    }

    /// One call, if it can do anything; says how many bytes it has written.
    fn write_once(&mut self, slot: u32, segments: &mut SegmentList, budget: usize) -> usize {
        let table = &mut self.table;
        let connection = &mut table.slots[slot as usize];
        let nothing = connection.queued() + segments.len() == 0 || budget == 0;
        if nothing || !connection.flags.contains(Flag::Writable) || !connection.has_stream() {
            return 0;
        }
        if connection.flags.contains(Flag::Filtered) {
            return self.write_filtered(slot, segments, budget);
        }
        let Some(stream) = &self.streams[slot as usize] else { return 0 };
        // What is held here goes first, and what was sent in this turn last.
        let in_pipe = connection
            .outbox
            .as_ref()
            .filter(|outbox| outbox.plaintext_len() == 0)
            .map_or(0, |outbox| outbox.in_pipe);
        let pipe = if in_pipe > 0 { self.kernel_pipes.to_sink(slot) } else { None };
        let result = match (pipe, &connection.outbox, table.arena.as_single(segments)) {
            (Some(pipe), ..) => self.system.splice_out(pipe, stream, in_pipe),
            (None, None, Some(bytes)) => self.system.write(stream, &[IoSlice::new(bytes)]),
            (None, outbox, _) => gather(outbox.as_deref(), &table.arena, segments, budget, |slices| {
                self.system.write(stream, slices)
            }),
        };
        table.stats.writes += 1;
        match result {
            Ok(n) => {
                table.stats.bytes_out += n as u64;
                connection.on_sent(n, table.now);
                let mut fresh = n;
                if let Some(outbox) = &mut connection.outbox {
                    let old = n.min(outbox.plaintext_len() + outbox.in_pipe);
                    outbox.progress.moved += old;
                    table.memory -= outbox.advance(old);
                    fresh -= old;
                }
                table.arena.advance(segments, fresh);
                if in_pipe > 0 {
                    self.on_spliced_out(slot, n);
                }
                return n.max(1);
            }
            Err(error) => self.on_write_error(slot, &error),
        }
        0
    }

    /// One call for bytes that are sealed.
    pub(super) fn write_ciphertext(&mut self, slot: u32, bytes: &[u8]) -> usize {
        let table = &mut self.table;
        let connection = &mut table.slots[slot as usize];
        let Some(stream) = &self.streams[slot as usize] else { return 0 };
        let result = self.system.write(stream, &[IoSlice::new(bytes)]);
        table.stats.writes += 1;
        match result {
            Ok(n) => {
                table.stats.bytes_out += n as u64;
                connection.on_sent(n, table.now);
                return n;
            }
            Err(error) => self.on_write_error(slot, &error),
        }
        0
    }

    /// A signal came first, the kernel has no room, or there is nobody to write to.
    fn on_write_error(&mut self, slot: u32, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.table.at_mut(slot).flags.remove(Flag::Writable),
            _ => self.on_write_failed(slot, error),
        }
    }

    /// Nothing can be written any more, and what is queued is dropped. What the peer had sent before is still read and
    /// delivered; then the reason is told. No FIN follows: a dropped queue must not look like a whole answer.
    #[cold]
    fn on_write_failed(&mut self, slot: u32, error: &io::Error) {
        let (reason, now) = (CloseReason::from_io(error), self.table.now);
        let connection = self.table.at_mut(slot);
        let may_read =
            connection.stage == Stage::Open && !connection.flags.any(&[Flag::Ended, Flag::Handshaking]);
        if !may_read {
            return self.table.close_now(slot, reason);
        }
        connection.close_reason.get_or_insert(reason);
        for flag in [Flag::Broken, Flag::Finishing, Flag::Finished, Flag::Readable, Flag::EndAnnounced] {
            connection.flags.insert(flag);
        }
        connection.flags.remove(Flag::Writable);
        connection.flags.remove(Flag::Full);
        connection.last_activity = now;
        connection.update_message_clocks(now);
        self.table.drop_outbox(slot);
        self.table.push_ready(slot);
        self.table.rearm(slot);
    }

    /// Compares what the kernel did not take with the marks: full, full no more, or too much.
    fn check_water_marks(&mut self, slot: u32, queued: usize) {
        let (high, limits) = (self.table.high_water(slot), self.table.limits_of(slot));
        let (low, max) = (limits.low_water.min(limits.high_water), limits.queue);
        let (id, now) = (self.table.id(slot), self.table.now);
        let connection = self.table.at_mut(slot);
        if queued > max && !connection.flags.contains(Flag::Writable) {
            self.table.close_now(slot, CloseReason::SlowReader);
        } else if queued >= high {
            connection.flags.insert(Flag::Full);
            connection.update_message_clocks(now);
        } else if queued <= low && connection.flags.take(Flag::Full) {
            self.drained.push(id);
        }
    }

    /// Everything is written; if our end was to follow, it does.
    fn send_fin(&mut self, slot: u32) {
        let connection = self.table.at(slot);
        // One that is closed after it had finished owes no end, but has only `closed` before it.
        let leaves = connection.flags.contains(Flag::Finished) && connection.stage == Stage::Closing;
        if connection.stage == Stage::Connecting || !(connection.owes_end() || leaves) {
            return;
        }
        if connection.flags.contains(Flag::Filtered) && !leaves {
            let waits = connection.flags.contains(Flag::Handshaking) && connection.stage == Stage::Open;
            if waits || !self.send_close_notify(slot) {
                return;
            }
        }
        let Some(stream) = &self.streams[slot as usize] else { return };
        if !leaves {
            if let Err(error) = self.system.shutdown_write(stream) {
                return self.on_write_failed(slot, &error);
            }
        }
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        connection.flags.insert(Flag::Finished);
        connection.last_activity = now;
        match (connection.flags.contains(Flag::Ended), connection.stage) {
            (true, _) => self.table.close_now(slot, CloseReason::Finished),
            (false, Stage::Closing) => self.table.start_linger(slot),
            (false, _) => self.table.rearm(slot),
        }
    }

    /// Tells those who were full that they are not, and reads them again.
    fn notify_drained(&mut self) {
        if self.drained.is_empty() {
            return;
        }
        for id in mem::take(&mut self.drained) {
            let Some(slot) = self.table.find(id) else { continue };
            let now = self.table.now;
            self.table.at_mut(slot).update_message_clocks(now);
            if self.table.at(slot).flags.contains(Flag::Piped) {
                self.resume_pipe_peer(slot);
            } else if is_open(&self.table, slot) {
                let service = usize::from(self.table.at(slot).service);
                self.services[service].call(&mut self.table, Event::Drained(slot));
            }
            self.table.push_ready(slot);
            self.table.rearm(slot);
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
        outbox.gather(&mut slices);
    }
    // What was sent in this turn comes behind what is in a kernel pipe.
    if slices.has_room() && outbox.is_none_or(|outbox| outbox.in_pipe == 0) {
        arena.gather(segments, &mut slices);
    }
    write(slices.slices())
}
