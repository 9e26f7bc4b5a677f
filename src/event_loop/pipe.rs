//! Pipes that carry much: bytes go from one socket to the other inside the kernel, and are not copied.

use std::collections::HashMap;
use std::io;

use super::Loop;
use crate::base::reason::Closed;
use crate::connection::{Connection, Flag, NOT_DIRTY, Stage};
use crate::parts::arena::READ_MAX;
use crate::sys::System;

/// The conduits in use, by the slot of the connection into which they lead, and some empty ones for the next.
///
/// ```text
///                    fill, in serve             drain, in flush
///     source's socket ─────────▶ a conduit ─────────▶ sink's socket
///                                 └ counted in the sink's queue, behind what it holds itself
/// ```
///
/// Copying is cheaper for small messages, and a new pipe for each short connection costs more than it saves: so a
/// source is copied until two reads in a row were full, and again as soon as little comes.
///
/// A conduit is filled only when it is empty. Then the answer "try again" means that nothing has arrived, and never
/// that the pipe has no slot left; and one that holds bytes is closed with its connection, never handed to another.
pub(super) struct Conduits<C> {
    in_use: HashMap<u32, C>,
    spare: Vec<C>,
    most: usize,
}

/// Empty ones kept. Each holds two descriptors and no memory.
const SPARE_MAX: usize = 8;
/// So many full reads in a row make a flow.
const FULL_READS: u8 = 2;
/// As much as a conduit holds.
const FILL_MAX: usize = 1024 * 1024;
/// A flow that brings less at once has become a trickle.
const TRICKLE: usize = 16 * 1024;

impl<C> Conduits<C> {
    pub(super) fn new(most: usize) -> Conduits<C> {
        Conduits { in_use: HashMap::new(), spare: Vec::new(), most }
    }

    /// The one that leads into this connection.
    pub(super) fn leading_to(&self, sink: u32) -> Option<&C> {
        self.in_use.get(&sink)
    }

    fn keep(&mut self, conduit: C) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(conduit);
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.in_use.len(), self.spare.len())
    }
}

impl<S: System> Loop<S> {
    /// Sends what has arrived to the other end of the pipe. It is not copied on its way: the bytes lie in the arena's
    /// block, and the other one's chain refers to them there.
    pub(super) fn relay(&mut self, slot: u32, bytes: &[u8]) {
        match self.table.leg(slot) {
            Some(other) => {
                self.table.send(other, bytes);
                self.table.block(slot, other);
                let full = self.table.limits.read_budget.clamp(1, READ_MAX);
                self.note_flow(slot, other, bytes.len() >= full);
            }
            // The other end is on its way out, and takes this one along when it has gone.
            None => self.table.at_mut(slot).flags.raise(Flag::Blocked),
        }
    }

    /// Sends the end of one to the other, behind everything that was sent before it.
    pub(super) fn relay_end(&mut self, slot: u32) {
        if let Some(other) = self.table.leg(slot) {
            self.table.finish(other);
        }
    }

    /// One end of a pipe has drained: the other is read again.
    pub(super) fn unblock(&mut self, slot: u32) {
        if let Some(other) = self.table.leg(slot) {
            let now = self.table.now;
            self.table.at_mut(other).flags.lower(Flag::Blocked);
            if let Some(inbox) = &mut self.table.at_mut(other).inbox {
                inbox.begin(now);
            }
            self.table.push_ready(other);
            self.table.rearm(other);
        }
    }

    /// One end of a pipe has gone. If it went in peace, both directions are done: all that came from it is sent or
    /// queued for the other, and the other's end has come. If not, nothing more will come from it, and nobody is left
    /// to hear what the other says; so the other is closed, behind what it is still to get.
    pub(super) fn part_from(&mut self, gone: &Connection, why: Closed) {
        let Some(leg) =
            gone.extra.as_ref().and_then(|extra| extra.leg).filter(|_| gone.flags.has(Flag::Piped))
        else {
            return;
        };
        let Some(other) = self.table.find(leg) else { return };
        if why != Closed::Finished && matches!(self.table.at(other).stage, Stage::Connecting | Stage::Open) {
            let why = if why == Closed::Shutdown { why } else { Closed::Leg };
            self.table.close(other, why);
        }
    }

    /// A piped connection was read. Takes a conduit for it when it has become a flow.
    pub(super) fn note_flow(&mut self, source: u32, sink: u32, full: bool) {
        let connection = self.table.at_mut(source);
        let Some(extra) = &mut connection.extra else { return };
        extra.full_reads = if full { extra.full_reads.saturating_add(1) } else { 0 };
        let flows = extra.full_reads >= FULL_READS && !extra.is_limited();
        if flows && !self.is_sealed(source) && !self.is_sealed(sink) && self.lay_conduit(sink) {
            self.table.at_mut(source).flags.raise(Flag::Spliced);
        }
    }

    fn lay_conduit(&mut self, sink: u32) -> bool {
        let conduits = &mut self.conduits;
        if conduits.in_use.contains_key(&sink) {
            return true;
        }
        if conduits.in_use.len() >= conduits.most {
            return false;
        }
        let fresh = conduits.spare.pop().map_or_else(|| self.system.conduit(), Ok);
        match fresh {
            Ok(conduit) => {
                conduits.in_use.insert(sink, conduit);
                true
            }
            Err(error) => {
                log::debug!("a pipe is copied, since there is no conduit: {error}");
                if error.kind() == io::ErrorKind::Unsupported {
                    conduits.most = 0;
                }
                false
            }
        }
    }

    /// In place of a read: moves what has arrived into the conduit, and has the sink's flush move it on.
    pub(super) fn fill(&mut self, source: u32) {
        if !self.table.at(source).wants_read() {
            return;
        }
        let sink = self.table.leg(source).filter(|sink| self.conduits.in_use.contains_key(sink));
        let limited = self.table.at(source).extra.as_ref().is_none_or(|extra| extra.is_limited());
        let stays = |&sink: &u32| !limited && !self.is_sealed(source) && !self.is_sealed(sink);
        let Some(sink) = sink.filter(stays) else { return self.back_to_copying(source) };
        let other = self.table.at_mut(sink);
        if other.outbox.is_some() {
            // It is to be empty first, and to say so.
            other.flags.raise(Flag::Full);
            return self.table.block(source, sink);
        }
        if other.dirty != NOT_DIRTY {
            return; // What was copied before goes first; that is with the next turn.
        }
        let most = FILL_MAX.min(self.table.limits_of(sink).queue);
        let (Some(Some(stream)), Some(conduit)) =
            (self.streams.get(source as usize), self.conduits.in_use.get(&sink))
        else {
            return;
        };
        let result = self.system.fill(stream, conduit, most);
        self.table.stats.reads += 1;
        match result {
            Ok(0) => {
                self.back_to_copying(source);
                self.ended(source);
            }
            Ok(n) => {
                self.table.carried(source, sink, n);
                if n < TRICKLE.min(most) {
                    self.back_to_copying(source);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.table.at_mut(source).run_dry();
                self.back_to_copying(source);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                log::info!("pipes are copied, since this system does not splice: {error}");
                self.conduits.most = 0;
                self.back_to_copying(source);
            }
            Err(error) => self.table.doom(source, Closed::from_io(&error)),
        }
    }

    fn back_to_copying(&mut self, source: u32) {
        let connection = self.table.at_mut(source);
        connection.flags.lower(Flag::Spliced);
        if let Some(extra) = &mut connection.extra {
            extra.full_reads = 0;
        }
        if let Some(sink) = self.table.leg(source) {
            self.lift_conduit(sink);
        }
    }

    /// What was in a conduit has moved on. Without a source that fills it again, it is free.
    pub(super) fn drained(&mut self, sink: u32, n: usize) {
        self.table.stats.spliced += n as u64;
        if self.table.at(sink).queued() == 0 && !self.is_fed(sink) {
            self.lift_conduit(sink);
        }
    }

    /// What goes through a filter is not for the kernel to pass on.
    fn is_sealed(&self, slot: u32) -> bool {
        self.table.at(slot).flags.has(Flag::Sealed)
    }

    fn is_fed(&self, sink: u32) -> bool {
        self.table.leg(sink).is_some_and(|source| self.table.at(source).flags.has(Flag::Spliced))
    }

    /// Copies out what a conduit still holds, because something is to be sent behind it.
    pub(super) fn scoop(&mut self, sink: u32) {
        let mut block = vec![0; READ_MAX];
        while let Some(conduit) = self.conduits.in_use.get(&sink) {
            let Some(outbox) = &mut self.table.slots[sink as usize].outbox else { return };
            let wanted = block.len().min(outbox.beyond);
            if wanted == 0 {
                return;
            }
            match self.system.scoop(conduit, &mut block[..wanted]) {
                Ok(n @ 1..) => {
                    outbox.beyond -= n;
                    self.table.memory += outbox.push(&block[..n]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It holds what was put into it; a kernel that says otherwise has lost bytes.
                _ => return self.table.doom(sink, Closed::Reset),
            }
        }
    }

    /// Takes the conduit away, and keeps it for another if nothing is in it.
    pub(super) fn lift_conduit(&mut self, sink: u32) {
        if self.table.at(sink).outbox.as_ref().is_none_or(|outbox| outbox.beyond == 0) {
            if let Some(conduit) = self.conduits.in_use.remove(&sink) {
                self.conduits.keep(conduit);
            }
        }
    }

    /// Its connection goes, and what is in it is for nobody.
    pub(super) fn close_conduit(&mut self, sink: u32) {
        if !self.conduits.in_use.is_empty() {
            self.lift_conduit(sink);
            self.conduits.in_use.remove(&sink);
        }
    }
}
