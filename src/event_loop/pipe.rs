//! Pipes that carry much: bytes go from one socket to the other inside the kernel, and are not copied.

use std::collections::HashMap;
use std::io;

use super::EventLoop;
use crate::base::reason::CloseReason;
use crate::connection::{Connection, Flag, NOT_DIRTY, Stage};
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
    in_use: HashMap<u32, InUse<C>>,
    spare: Vec<C>,
    max: usize,
}

/// A kernel pipe that leads into a connection, and the bytes in it. It counts them itself: the queue that also counts
/// them may be dropped at the memory limit, and the bytes are still there.
struct InUse<C> {
    pipe: C,
    held: usize,
}

/// Empty ones kept. Each holds two descriptors and no memory.
const SPARE_MAX: usize = 8;
/// So many full reads in a row make a flow.
const FULL_READS: u8 = 2;
/// As much as a kernel pipe holds.
const SPLICE_MAX: usize = 1024 * 1024;
/// A flow that brings less at once has become a trickle.
const TRICKLE: usize = 16 * 1024;

impl<C> KernelPipes<C> {
    pub(super) fn new(max: usize) -> KernelPipes<C> {
        KernelPipes { in_use: HashMap::new(), spare: Vec::new(), max }
    }

    /// The one that leads into this connection.
    pub(super) fn to_sink(&self, sink: u32) -> Option<&C> {
        self.in_use.get(&sink).map(|used| &used.pipe)
    }

    /// So many bytes have left it.
    fn taken(&mut self, sink: u32, n: usize) {
        if let Some(used) = self.in_use.get_mut(&sink) {
            used.held -= n;
        }
    }

    /// Takes it away from its connection. Only an empty one is kept for the next: bytes of one connection must never
    /// reach another.
    fn release(&mut self, sink: u32) {
        let used = self.in_use.remove(&sink).filter(|used| used.held == 0);
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
    /// block, and the other one's chain refers to them there.
    pub(super) fn relay(&mut self, slot: u32, bytes: &[u8]) {
        match self.table.pipe_peer(slot) {
            Some(other) => {
                self.table.send(other, bytes);
                self.table.update_pipe_peer_full(slot, other);
                let full = self.table.limits.read_budget.min(READ_MAX);
                self.note_read_size(slot, other, bytes.len() >= full);
            }
            // The other end is on its way out, and takes this one along when it has gone.
            None => self.table.at_mut(slot).flags.insert(Flag::PipePeerFull),
        }
    }

    /// Sends the end of one to the other, behind everything that was sent before it.
    pub(super) fn relay_fin(&mut self, slot: u32) {
        if let Some(other) = self.table.pipe_peer(slot) {
            self.table.finish(other);
        }
    }

    /// One end of a pipe has drained: the other is read again.
    pub(super) fn resume_pipe_peer(&mut self, slot: u32) {
        if let Some(other) = self.table.pipe_peer(slot) {
            let now = self.table.now;
            self.table.at_mut(other).flags.remove(Flag::PipePeerFull);
            self.table.at_mut(other).update_message_clocks(now);
            self.table.push_ready(other);
            self.table.rearm(other);
        }
    }

    /// One end of a pipe has gone. If it went in peace, both directions are done: all that came from it is sent or
    /// queued for the other, and the other's end has come. If not, nothing more will come from it, and nobody is left
    /// to hear what the other says; so the other is closed, behind what it is still to get.
    pub(super) fn on_pipe_peer_closed(&mut self, gone: &Connection, why: CloseReason) {
        let Some(pipe_peer) = gone
            .optional
            .as_ref()
            .and_then(|optional| optional.pipe_peer)
            .filter(|_| gone.flags.contains(Flag::Piped))
        else {
            return;
        };
        let Some(other) = self.table.find(pipe_peer) else { return };
        if why != CloseReason::Finished
            && matches!(self.table.at(other).stage, Stage::Connecting | Stage::Open)
        {
            let why = if why == CloseReason::Shutdown { why } else { CloseReason::PipePeerClosed };
            self.table.close(other, why);
        } else if why == CloseReason::Finished {
            // Its service gets what still arrives: there is no one else to send it to.
            self.table.unpipe(other);
        }
    }

    /// A piped connection was read. Takes a kernel pipe for it when it has become a flow.
    pub(super) fn note_read_size(&mut self, source: u32, sink: u32, full: bool) {
        let connection = self.table.at_mut(source);
        let Some(optional) = &mut connection.optional else { return };
        optional.full_reads = if full { optional.full_reads.saturating_add(1) } else { 0 };
        let flows = optional.full_reads >= FULL_READS && !optional.is_limited();
        if flows && !self.is_filtered(source) && !self.is_filtered(sink) && self.attach_kernel_pipe(sink) {
            self.table.at_mut(source).flags.insert(Flag::Spliced);
        }
    }

    fn attach_kernel_pipe(&mut self, sink: u32) -> bool {
        let pipes = &mut self.kernel_pipes;
        if pipes.in_use.contains_key(&sink) {
            return true;
        }
        if pipes.in_use.len() >= pipes.max {
            return false;
        }
        let fresh = pipes.spare.pop().map_or_else(|| self.system.new_pipe(), Ok);
        match fresh {
            Ok(pipe) => {
                pipes.in_use.insert(sink, InUse { pipe, held: 0 });
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

    /// In place of a read: moves what has arrived into the kernel pipe, and has the sink's flush move it on.
    pub(super) fn splice_in(&mut self, source: u32) {
        if !self.table.at(source).wants_read() {
            return;
        }
        let sink = self.table.pipe_peer(source).filter(|sink| self.kernel_pipes.in_use.contains_key(sink));
        let limited = self.table.at(source).optional.as_ref().is_none_or(|optional| optional.is_limited());
        let stays = |&sink: &u32| !limited && !self.is_filtered(source) && !self.is_filtered(sink);
        let Some(sink) = sink.filter(stays) else { return self.stop_splicing(source) };
        if self.table.at(sink).flags.contains(Flag::Finishing) {
            return self.stop_splicing(source); // Nothing more can be sent to it; copied bytes are counted and dropped.
        }
        let other = self.table.at_mut(sink);
        if other.outbox.is_some() {
            // It is to be empty first, and to say so.
            other.flags.insert(Flag::Full);
            return self.table.update_pipe_peer_full(source, sink);
        }
        if other.dirty != NOT_DIRTY {
            return; // What was copied before goes first; that is with the next turn.
        }
        let max = SPLICE_MAX.min(self.table.limits_of(sink).queue);
        let (Some(Some(stream)), Some(used)) =
            (self.streams.get(source as usize), self.kernel_pipes.in_use.get_mut(&sink))
        else {
            return;
        };
        let result = self.system.splice_in(stream, &used.pipe, max);
        self.table.stats.reads += 1;
        match result {
            // The peer's end, or an urgent mark with bytes behind it (tcp(7)): a read tells them apart.
            Ok(0) => self.stop_splicing(source),
            Ok(n) => {
                used.held += n;
                self.table.on_spliced(source, sink, n);
                if n < TRICKLE.min(max) {
                    self.stop_splicing(source);
                }
            }
            // Only a read's `WouldBlock` says that nothing is left.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stop_splicing(source),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                log::info!("pipes are copied: this system cannot splice: {error}");
                self.kernel_pipes.max = 0;
                self.stop_splicing(source);
            }
            Err(error) => self.table.close_now(source, CloseReason::from_io(&error)),
        }
    }

    fn stop_splicing(&mut self, source: u32) {
        let connection = self.table.at_mut(source);
        connection.flags.remove(Flag::Spliced);
        if let Some(optional) = &mut connection.optional {
            optional.full_reads = 0;
        }
        if let Some(sink) = self.table.pipe_peer(source) {
            self.detach_kernel_pipe(sink);
        }
    }

    /// What was in a kernel pipe has moved on. Without a source that fills it again, it is free.
    pub(super) fn on_spliced_out(&mut self, sink: u32, n: usize) {
        self.table.stats.spliced += n as u64;
        self.kernel_pipes.taken(sink, n);
        if self.table.at(sink).queued() == 0 && !self.has_splicing_source(sink) {
            self.detach_kernel_pipe(sink);
        }
    }

    /// What goes through a filter is not for the kernel to pass on.
    fn is_filtered(&self, slot: u32) -> bool {
        self.table.at(slot).flags.contains(Flag::Filtered)
    }

    fn has_splicing_source(&self, sink: u32) -> bool {
        self.table.pipe_peer(sink).is_some_and(|source| self.table.at(source).flags.contains(Flag::Spliced))
    }

    /// Copies out what a kernel pipe still holds, because something is to be sent behind it.
    pub(super) fn read_out(&mut self, sink: u32) {
        if !self.kernel_pipes.in_use.contains_key(&sink) {
            return; // Nearly always; and zeroing a block for nothing was most of the cost of a line to a slow reader.
        }
        let mut block = vec![0; READ_MAX];
        while let Some(pipe) = self.kernel_pipes.to_sink(sink) {
            let Some(outbox) = &mut self.table.slots[sink as usize].outbox else { return };
            let wanted = block.len().min(outbox.in_pipe);
            if wanted == 0 {
                return;
            }
            match self.system.read_pipe(pipe, &mut block[..wanted]) {
                Ok(n @ 1..) => {
                    outbox.in_pipe -= n;
                    self.table.memory += outbox.push(&block[..n]);
                    self.kernel_pipes.taken(sink, n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It holds what was put into it; a kernel that says otherwise has lost bytes.
                _ => return self.table.close_now(sink, CloseReason::Reset),
            }
        }
    }

    /// Takes the kernel pipe away when nothing is in it.
    pub(super) fn detach_kernel_pipe(&mut self, sink: u32) {
        if self.kernel_pipes.in_use.get(&sink).is_some_and(|used| used.held == 0) {
            self.kernel_pipes.release(sink);
        }
    }

    /// Pipes were undone: those of their kernel pipes that are empty are free.
    pub(super) fn detach_unpiped(&mut self) {
        if !std::mem::take(&mut self.table.unpiped) {
            return;
        }
        let sinks: Vec<u32> = self.kernel_pipes.in_use.keys().copied().collect();
        for sink in sinks {
            if !self.has_splicing_source(sink) {
                self.detach_kernel_pipe(sink);
            }
        }
    }

    /// Its connection goes, and what is in the kernel pipe goes with it.
    pub(super) fn close_kernel_pipe(&mut self, sink: u32) {
        if !self.kernel_pipes.in_use.is_empty() {
            self.kernel_pipes.release(sink);
        }
    }
}
