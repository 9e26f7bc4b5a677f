//! Phase 7: say goodbye.

use std::mem;

use super::Loop;
use crate::base::reason::{Closed, Departed};
use crate::connection::table::DOORMAN;
use crate::connection::{Connection, Flag};
use crate::parts::listener::Door;
use crate::sys::System;

impl<S: System> Loop<S> {
    /// Frees the slots of those who have ended; nothing else frees one. Whom a farewell dooms waits for the next turn.
    pub(super) fn reap(&mut self) {
        if self.table.doomed.is_empty() {
            return;
        }
        let mut line = mem::replace(&mut self.table.doomed, mem::take(&mut self.spare_doomed));
        for slot in line.drain(..) {
            self.reap_one(slot);
        }
        self.spare_doomed = line;
        // A listener that ran out of descriptors is told by nobody else that there are some again.
        self.doors.iter_mut().flatten().for_each(Door::feed);
        self.system.hold_reserve();
    }

    fn reap_one(&mut self, slot: u32) {
        let id = self.table.id(slot);
        let why = self.table.at(slot).why.unwrap_or(Closed::Local);
        let (peer, local) = (self.table.peer(slot), self.table.local(slot));
        let failure = self.end_race(slot);
        let again = if self.drained_by.is_none() { self.table.wants_redial(slot, why) } else { None };
        self.close_conduit(slot);
        if self.table.at(slot).flags.has(Flag::Securing) {
            self.table.handshakes.over(id);
        }
        let mut connection = self.table.remove(slot);
        if let Some(stream) = self.streams.get_mut(slot as usize).and_then(Option::take) {
            match why {
                Closed::Aborted => self.system.reset(stream),
                _ => drop(stream),
            }
        }
        if connection.host == DOORMAN {
            return;
        }
        if let Some(lookup) = connection.dial().and_then(|dial| dial.lookup) {
            self.leave_lookup(lookup, id);
        }
        self.part_from(&connection, why);
        self.keep_second_slot(&connection);
        self.table.stats.closed[why.index()] += 1;
        log::debug!("{id} {peer} closed: {}", why.word());
        let (bytes_in, bytes_out) = (connection.bytes_in, connection.bytes_out);
        let lived = self.table.now.since_start() - connection.born.since_start();
        let broken = connection.seal_mut().and_then(|seal| seal.broken.take());
        self.table.departed = Some(Departed { id, peer, local, bytes_in, bytes_out, lived, failure, broken });
        self.hosts[usize::from(connection.host)].closed(&mut self.table, id, why);
        self.table.departed = None;
        if let Some(again) = again {
            self.table.redial_later(again);
        }
    }

    /// Whoever was let in with a second slot has it back when the connection in it has gone, to dial another.
    fn keep_second_slot(&mut self, gone: &Connection) {
        let Some(by) = gone.extra.as_ref().and_then(|extra| extra.by) else { return };
        let keeper = self.table.find(by).filter(|&slot| self.table.at(slot).flags.has(Flag::UsedSecond));
        if let Some(slot) = keeper.filter(|&slot| self.table.at(slot).is_live()) {
            self.table.reserve(slot);
        }
    }
}
