//! Phase 7: say goodbye.

use std::mem;

use super::Loop;
use crate::closed::Closed;
use crate::listener::Door;
use crate::system::System;
use crate::table::DOORMAN;

impl<S: System> Loop<S> {
    /// Frees the slots of those who have ended; nothing else frees one. Whom a farewell dooms waits for the next turn.
    pub(super) fn reap(&mut self) {
        let mut line = mem::replace(&mut self.table.doomed, mem::take(&mut self.spare_doomed));
        let any = !line.is_empty();
        for slot in line.drain(..) {
            self.reap_one(slot);
        }
        self.spare_doomed = line;
        if any {
            // A listener that ran out of descriptors is told by nobody else that there are some again.
            self.doors.iter_mut().flatten().for_each(Door::feed);
            self.system.hold_reserve();
        }
    }

    fn reap_one(&mut self, slot: u32) {
        let id = self.table.id(slot);
        let connection = self.table.remove(slot);
        let why = connection.why.unwrap_or(Closed::Local);
        if let Some(stream) = self.streams.get_mut(slot as usize).and_then(Option::take) {
            match why {
                Closed::Aborted => self.system.reset(stream),
                _ => drop(stream),
            }
        }
        if connection.host == DOORMAN {
            return;
        }
        self.table.stats.closed[why.index()] += 1;
        log::debug!("{id} {} closed: {}", connection.peer(), why.word());
        self.hosts[usize::from(connection.host)].closed(&mut self.table, id, why);
    }
}
