//! The memory of inboxes and outboxes, and its one budget.

use log::Level;

use super::table::Table;
use crate::base::reason::CloseReason;
use crate::connection::Stage;
use crate::parts::arena::SegmentList;
use crate::parts::inbox::Inbox;

impl Table {
    /// Keeps what a service did not take. `arrived` bytes were new; `taken` says whether the message at the front is
    /// another than before.
    pub(crate) fn keep_input(&mut self, slot: u32, rest: &[u8], scanned: usize, arrived: usize, taken: bool) {
        let mut inbox = self.at_mut(slot).inbox.take().unwrap_or_default();
        let (before, begins) = (inbox.charge(), inbox.charge() == 0 || taken);
        inbox.replace(rest, scanned);
        self.put_inbox(slot, inbox, before, arrived, begins);
    }

    /// Puts an inbox back in its place, charges what it has grown by since it was charged with `before`, and starts
    /// the message's clocks, or counts what `arrived` as its progress.
    pub(crate) fn put_inbox(
        &mut self,
        slot: u32,
        mut inbox: Box<Inbox>,
        before: usize,
        arrived: usize,
        begins: bool,
    ) {
        self.memory = self.memory - before + inbox.charge();
        if begins {
            inbox.restart_clocks(self.now);
        } else {
            inbox.progress.moved += arrived;
        }
        let now = self.now;
        let connection = self.at_mut(slot);
        connection.inbox = Some(inbox);
        connection.update_message_clocks(now);
        if begins {
            self.rearm(slot);
        }
        // Inboxes of a thousand connections may grow in one phase, and nothing is written in between.
        self.evict();
    }

    pub(crate) fn drop_inbox(&mut self, slot: u32) {
        let inbox = self.at_mut(slot).inbox.take();
        self.discharge(inbox);
    }

    /// Drops an inbox that was taken out for a delivery.
    pub(crate) fn discharge(&mut self, inbox: Option<Box<Inbox>>) {
        if let Some(inbox) = inbox {
            self.memory -= inbox.charge();
        }
    }

    /// Copies what is left of a chain into the connection's own queue.
    pub(crate) fn spill(&mut self, slot: u32, segments: SegmentList) {
        if segments.len() == 0 {
            return;
        }
        let now = self.now;
        let connection = &mut self.slots[slot as usize];
        let begins = connection.outbox.is_none();
        let outbox = connection.outbox.get_or_insert_default();
        self.memory += self.arena.spill(segments, outbox);
        if begins {
            outbox.progress.since = now;
            self.rearm(slot);
        }
    }

    /// So many bytes are on their way from one connection to another through a kernel pipe.
    pub(crate) fn on_spliced(&mut self, source: u32, sink: u32, n: usize) {
        let now = self.now;
        self.stats.bytes_in += n as u64;
        self.at_mut(source).on_received(n, now);
        let outbox = self.at_mut(sink).outbox.get_or_insert_default();
        outbox.in_pipe += n;
        outbox.progress.since = now;
        self.push_dirty(sink);
        self.rearm(sink);
    }

    pub(crate) fn drop_outbox(&mut self, slot: u32) {
        if let Some(mut outbox) = self.at_mut(slot).outbox.take() {
            self.memory -= outbox.clear();
        }
    }

    /// Closes whoever holds most until the budget holds again.
    ///
    /// Looking at every slot is the price of keeping no order while nothing is wrong; each look frees the most
    /// that can be freed at once.
    pub(crate) fn evict(&mut self) {
        while self.memory > self.limits.memory {
            let alive = self.slots.iter().filter(|(_, connection)| connection.stage != Stage::Dead);
            let Some((largest, buffered)) = alive
                .map(|(slot, connection)| (slot as u32, connection.buffered()))
                .max_by_key(|&(_, buffered)| buffered)
            else {
                return;
            };
            if buffered == 0 {
                return;
            }
            let id = self.id(largest);
            let (level, left_out) = self.log_limits.evicted.level(Level::Warn, self.now);
            log::log!(
                level,
                "{id}: closed at the memory limit: it held the most, {buffered} bytes{left_out}"
            );
            self.close_now(largest, CloseReason::Memory);
            self.drop_inbox(largest);
            self.drop_outbox(largest);
        }
    }
}
