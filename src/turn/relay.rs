//! Pipes: what arrives at one connection goes to another, and the loop sees to it that neither drowns.

use super::Loop;
use crate::arena::READ_MAX;
use crate::closed::Closed;
use crate::connection::{Connection, Stage};
use crate::flags::Flag;
use crate::system::System;

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
}
