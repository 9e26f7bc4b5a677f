//! Pipes between connections: small amounts are copied, bulk data is moved inside the kernel (splice(2)).
//!
//! Read before: `connection/pipe.rs`.

use std::io;

use super::EventLoop;
use super::read::{ReadOutcome, Target};
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::observer::Step;
use crate::base::part::PIPES;
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::state::{Flag, Half};
use crate::connection::{Connection, NOT_DIRTY};
use crate::parts::arena::READ_MAX;
use crate::sys::System;

/// The kernel pipes in use, by the slot of the connection into which they lead, and some empty ones for the next.
///
/// ```text
///                    splice_in, in `read`            splice_out, in `write`
///     source's socket ─────────▶ a kernel pipe ─────────▶ sink's socket
///                                 └ counted in the sink's queue, behind what it holds itself
/// ```
///
/// Copying is cheaper for small messages, and a new pipe for each short connection costs more than it saves: so a
/// source is copied until two reads in a row were full, and again as soon as little comes.
///
/// A kernel pipe is filled only when it is empty. Then the answer "try again" means that nothing has arrived, and never
/// that the pipe has no slot left; and one that holds bytes is closed with its connection, never handed to another.
pub(super) struct KernelPipes<C> {
    /// By the sink. A list and not a map: there are at most [`Limits::splices`](crate::Limits::splices), 64 by default,
    /// and a splice moves more than it takes to search them.
    in_use: Vec<(ConnId, InUse<C>)>,
    spare: Vec<C>,
    max: usize,
}

/// A kernel pipe that leads into a connection, and the bytes in it. It counts them itself: the queue that also counts
/// them may be dropped at the memory limit, and the bytes are still there.
struct InUse<C> {
    pipe: C,
    held: usize,
}

/// Empty kernel pipes that are kept. Each has two descriptors and no memory.
const SPARE_MAX: usize = 8;
/// Full reads in a row after which a source is spliced.
const FULL_READS: u8 = 2;
/// Bytes that one splice moves at most: the capacity of a kernel pipe.
const SPLICE_MAX: usize = 1024 * 1024;
/// If one splice moves less than this, copying is cheaper again.
const TRICKLE: usize = 16 * 1024;

impl<C> KernelPipes<C> {
    pub(super) fn new(max: usize) -> KernelPipes<C> {
        KernelPipes { in_use: Vec::new(), spare: Vec::new(), max }
    }

    /// The kernel pipe that leads into this connection.
    #[inline(always)]
    pub(super) fn to_sink(&self, sink: ConnId) -> Option<&C> {
        if !PIPES.has_begun() {
            return None;
        }
        self.in_use.iter().find(|(id, _)| *id == sink).map(|(_, used)| &used.pipe)
    }

    fn used_by(&mut self, sink: ConnId) -> Option<&mut InUse<C>> {
        self.in_use.iter_mut().find(|(id, _)| *id == sink).map(|(_, used)| used)
    }

    /// Subtracts bytes that have left a kernel pipe.
    fn taken(&mut self, sink: ConnId, n: usize) {
        if let Some(used) = self.used_by(sink) {
            used.held -= n;
        }
    }

    /// Takes it away from its connection. Only an empty one is kept for the next: bytes of one connection must never
    /// reach another.
    fn release(&mut self, sink: ConnId) {
        if !PIPES.has_begun() {
            return;
        }
        let Some(at) = self.in_use.iter().position(|(id, _)| *id == sink) else { return };
        let used = Some(self.in_use.swap_remove(at).1)
            .filter(|used| used.held == 0 || seeded(SeededBug::UsedPipeKept));
        if let Some(InUse { pipe, .. }) = used.filter(|_| self.spare.len() < SPARE_MAX) {
            self.spare.push(pipe);
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.in_use.len(), self.spare.len())
    }
}

impl<S: System> EventLoop<S> {
    /// Sends what has arrived to the other end of the pipe. It is not copied on its way: the bytes lie in the arena's
    /// block, and the other one's list refers to them there.
    pub(super) fn relay(&mut self, source: ConnId, bytes: &[u8]) {
        let Some(sink) = self.table.live_pipe_peer(source) else {
            mark!("relayed to an end that is closing");
            // The other end is on its way out, and takes this one along when it has gone.
            let (connection, cx) = self.table.at(source.slot);
            return connection.hold(Flag::ReceiverFull, cx);
        };
        let (connection, cx) = self.table.at(sink.slot);
        connection.send(bytes, cx);
        self.table.update_receiver_full(source, sink);
        let full = self.table.cx.limits.read_budget.min(READ_MAX);
        self.note_read_size(source, sink, bytes.len() >= full);
    }

    /// Sends the end of one to the other, behind everything that was sent before it.
    pub(super) fn relay_fin(&mut self, source: ConnId) {
        if let Some(sink) = self.table.live_pipe_peer(source).filter(|_| !seeded(SeededBug::FinNotRelayed)) {
            let (connection, cx) = self.table.at(sink.slot);
            connection.finish(cx);
        }
    }

    /// One end of a pipe is no longer full: the other is read again.
    pub(super) fn resume_pipe_peer(&mut self, sink: ConnId) {
        if let Some(source) =
            self.table.live_pipe_peer(sink).filter(|_| !seeded(SeededBug::PipePeerNotResumed))
        {
            let (connection, cx) = self.table.at(source.slot);
            connection.release(Flag::ReceiverFull, cx);
        }
    }

    /// One end of a pipe has gone. A clean end leaves the other direction running: everything is sent or queued for the
    /// other, and its service gets what still arrives. Any other reason closes the other, behind what it is still to
    /// get: nothing more will come for it, and what it says would reach nothing.
    ///
    /// If this one was cut off before its own end, a FIN (or a close_notify) would vouch for bytes that never came:
    /// half an answer would look whole. Then the other is reset, behind what it is still to get.
    pub(super) fn on_pipe_peer_closed(&mut self, gone: &Connection, why: CloseReason) {
        let Some(other) = self.table.pipe_peer_of(gone) else { return };
        if why == CloseReason::Finished {
            mark!("one end of a pipe has finished");
            self.table.unpipe(other);
        } else if let Some((connection, cx)) = self.table.get(other) {
            let may_hide = cx.limits_of(connection.service).end_on_reset;
            if !may_hide && is_incomplete(gone, why) {
                connection.optional().overrides().incomplete = true;
            }
            let why = if why == CloseReason::Shutdown { why } else { CloseReason::PipePeerClosed };
            let at_once = seeded(SeededBug::PipePeerClosesAtOnce);
            if at_once { connection.close_now(why, cx) } else { connection.close(why, cx) }
        }
    }

    /// A piped connection was read. Takes a kernel pipe for it when it has become a flow.
    fn note_read_size(&mut self, source: ConnId, sink: ConnId, full: bool) {
        let full_reads = &mut self.table.pipe_end(source).full_reads;
        *full_reads = if full { full_reads.saturating_add(1) } else { 0 };
        if *full_reads >= FULL_READS && self.may_splice(source, sink) && self.attach_kernel_pipe(sink) {
            self.table.at(source.slot).0.flags.insert(Flag::Spliced);
        }
    }

    /// Whether the bytes can be spliced: not if a filter transforms them, or a rate counts them.
    fn may_splice(&self, source: ConnId, sink: ConnId) -> bool {
        let clear = |connection: &&Connection| !connection.is_filtered();
        let source = self.table.find(source).filter(clear);
        source.is_some_and(|source| !source.is_limited()) && self.table.find(sink).filter(clear).is_some()
    }

    fn attach_kernel_pipe(&mut self, sink: ConnId) -> bool {
        let pipes = &mut self.kernel_pipes;
        if pipes.to_sink(sink).is_some() {
            return true;
        }
        if pipes.in_use.len() >= pipes.max {
            mark!("no kernel pipe is left");
            return false;
        }
        let fresh = pipes.spare.pop().map_or_else(|| self.system.new_pipe(), Ok);
        match fresh {
            Ok(pipe) => {
                pipes.in_use.push((sink, InUse { pipe, held: 0 }));
                true
            }
            Err(error) => {
                log::debug!("a pipe is copied: cannot make a kernel pipe: {error}");
                if error.kind() == io::ErrorKind::Unsupported {
                    pipes.max = 0;
                }
                false
            }
        }
    }

    /// In place of a read: moves what has arrived into the kernel pipe, and has the sink's write move it on.
    pub(super) fn splice_in(&mut self, source: ConnId, block: &mut [u8], budget: usize) {
        if !PIPES.has_begun() {
            return;
        }
        let sink = self.table.live_pipe_peer(source).filter(|&sink| self.may_splice(source, sink));
        let Some(sink) = sink else { return self.stop_splicing(source) };
        let (connection, cx) = self.table.at(sink.slot);
        if connection.outgoing != Half::Open && !seeded(SeededBug::SpliceBehindFin) {
            return self.stop_splicing(source); // Nothing more can be sent to it; copied bytes are counted and dropped.
        }
        if connection.outbox.is_some() {
            // It is to be empty first, and to be told of as drained.
            mark!("spliced into a queue");
            connection.hold(Flag::Full, cx);
            return self.table.update_receiver_full(source, sink);
        }
        if connection.dirty != NOT_DIRTY {
            mark!("spliced behind a send of this turn");
            return; // What was copied before goes first; that is with the next turn.
        }
        if !self.attach_kernel_pipe(sink) {
            return self.stop_splicing(source);
        }
        let (connection, cx) = self.table.at(sink.slot);
        let max = SPLICE_MAX.min(cx.limits_of(connection.service).queue);
        let stream = self.table.find(source).and_then(|connection| connection.stream.as_ref());
        let (Some(stream), Some(used)) = (stream, self.kernel_pipes.used_by(sink)) else { return };
        let result = self.system.splice_in(stream, &used.pipe, max);
        let cx = &mut self.table.cx;
        cx.stats.reads += 1;
        cx.observers.tell_message(|| Step::Read { connection: source, result: result.as_ref().copied() });
        match result {
            // The peer's end, or an urgent mark with bytes behind it (tcp(7)): a read tells them apart.
            Ok(0) => self.stop_splicing(source),
            Ok(n) => {
                used.held += n;
                self.on_spliced_in(source, sink, n);
                if n < TRICKLE.min(max) {
                    mark!("a splice trickles");
                    self.stop_splicing(source);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.detach_kernel_pipe(sink);
                self.read_behind_splice(source, block, budget);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                log::info!("pipes are copied: this system cannot splice: {error}");
                self.kernel_pipes.max = 0;
                self.stop_splicing(source);
            }
            Err(error) => {
                let (connection, cx) = self.table.at(source.slot);
                connection.close_now(CloseReason::from_io(&error), cx);
            }
        }
    }

    /// A flow pauses. Only a read's `WouldBlock` says that nothing is left: a splice also stops at an urgent mark. The
    /// flow stays one, and gets a kernel pipe when it goes on; until then another one may have it.
    fn read_behind_splice(&mut self, source: ConnId, block: &mut [u8], budget: usize) {
        let (connection, cx) = self.table.at(source.slot);
        let bytes = &mut block[cx.arena.write_offset()..];
        let into = &mut bytes[..budget.min(READ_MAX)];
        match Self::read_stream(&mut self.system, connection, into, cx) {
            ReadOutcome::More(n) | ReadOutcome::Drained(n) => {
                mark!("bytes behind a splice that moved none");
                let target = Target::of(connection);
                self.deliver(source, target, bytes, 0, n);
            }
            ReadOutcome::None => self.after_failed_read(source),
        }
    }

    /// Counts bytes that were moved into a kernel pipe, as received by one connection and queued for the other.
    fn on_spliced_in(&mut self, source: ConnId, sink: ConnId, n: usize) {
        let (connection, cx) = self.table.at(source.slot);
        cx.stats.bytes_in += n as u64;
        connection.on_received(n, cx);
        let (connection, cx) = self.table.at(sink.slot);
        let outbox = connection.outbox.get_or_insert_default();
        outbox.in_pipe += n;
        outbox.progress.since = cx.now;
        connection.push_dirty(cx);
        connection.rearm(cx);
    }

    fn stop_splicing(&mut self, source: ConnId) {
        let (connection, _) = self.table.at(source.slot);
        connection.flags.remove(Flag::Spliced);
        self.table.pipe_end(source).full_reads = 0;
        if let Some(sink) = self.table.live_pipe_peer(source) {
            self.detach_kernel_pipe(sink);
        }
    }

    /// What was in a kernel pipe has moved on. Without a source that fills it again, it is free.
    pub(super) fn on_spliced_out(&mut self, sink: ConnId, n: usize) {
        self.table.cx.stats.spliced += n as u64;
        self.kernel_pipes.taken(sink, n);
        if self.table.at(sink.slot).0.queued() == 0 && !self.has_splicing_source(sink) {
            self.detach_kernel_pipe(sink);
        }
    }

    fn has_splicing_source(&self, sink: ConnId) -> bool {
        let source = self.table.live_pipe_peer(sink).and_then(|source| self.table.find(source));
        source.is_some_and(|source| source.flags.contains(Flag::Spliced))
    }

    /// Copies out what a kernel pipe still holds, because something is to be sent behind it.
    pub(super) fn read_out(&mut self, sink: ConnId) {
        if self.kernel_pipes.to_sink(sink).is_none() {
            return; // Nearly always; and zeroing a block for nothing was most of the cost of a line to a slow reader.
        }
        let mut block = vec![0; READ_MAX];
        mark!("a kernel pipe is read out");
        while let Some(pipe) = self.kernel_pipes.to_sink(sink) {
            let (connection, cx) = self.table.at(sink.slot);
            let Some(outbox) = &mut connection.outbox else { return };
            let wanted = block.len().min(outbox.in_pipe);
            if wanted == 0 {
                return;
            }
            match self.system.read_pipe(pipe, &mut block[..wanted]) {
                Ok(n @ 1..) => {
                    outbox.in_pipe -= n;
                    cx.memory += outbox.wire.push(&block[..n]);
                    self.kernel_pipes.taken(sink, n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It holds what was put into it; a kernel that says otherwise has lost bytes.
                _ => return connection.close_now(CloseReason::Reset, cx),
            }
        }
    }

    /// Releases a kernel pipe, if it is empty.
    fn detach_kernel_pipe(&mut self, sink: ConnId) {
        if self.kernel_pipes.used_by(sink).is_some_and(|used| used.held == 0) {
            mark!("a kernel pipe is given back");
            self.kernel_pipes.release(sink);
        }
    }

    /// Pipes were undone: those of their kernel pipes that are empty are free.
    pub(super) fn detach_unpiped(&mut self) {
        if !std::mem::take(&mut self.table.cx.unpiped) || !PIPES.has_begun() {
            return;
        }
        let sinks: Vec<ConnId> = self.kernel_pipes.in_use.iter().map(|(sink, _)| *sink).collect();
        for sink in sinks {
            if !self.has_splicing_source(sink) {
                self.detach_kernel_pipe(sink);
            }
        }
    }

    /// Its connection goes, and what is in the kernel pipe goes with it.
    pub(super) fn close_kernel_pipe(&mut self, sink: ConnId) {
        self.kernel_pipes.release(sink);
    }
}

/// Whether more may have been on its way from this connection when it closed. A TCP end counts for nothing where TLS
/// should have announced it.
fn is_incomplete(gone: &Connection, why: CloseReason) -> bool {
    match why {
        CloseReason::Truncated => true,
        CloseReason::Reset
        | CloseReason::Aborted
        | CloseReason::Tls
        | CloseReason::TooSlow
        | CloseReason::SlowReader
        | CloseReason::Memory
        | CloseReason::Error(_) => gone.incoming != Half::Ended,
        _ => false,
    }
}
