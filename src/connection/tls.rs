//! What is secured: bytes that are not what the service sees.

use super::table::Table;
use crate::base::filter::{Filter, FilterConfig, FilterInfo};
use crate::base::tick::Tick;
use crate::connection::optional::Tls;
use crate::connection::{Flag, Stage};
use crate::parts::arena::SegmentList;

impl Table {
    /// Has all bytes from here on secured; those queued before go as they are. The loop begins the handshake.
    pub(crate) fn start_filter(&mut self, slot: u32, how: FilterConfig) {
        let (clear_prefix, deadline) = (self.queued(slot), self.handshake_deadline(slot));
        let connection = self.at_mut(slot);
        if connection.stage == Stage::Connecting {
            connection.dial_mut().options.filter.get_or_insert(how);
            return;
        }
        let is_open = connection.stage == Stage::Open && !connection.flags.contains(Flag::Finishing);
        if !is_open || connection.flags.contains(Flag::Filtered) {
            return;
        }
        connection.flags.insert(Flag::Filtered);
        connection.flags.insert(Flag::Handshaking);
        connection.optional().tls = Some(Box::new(Tls::new(how, deadline, clear_prefix)));
        self.push_ready(slot);
        self.rearm(slot);
    }

    /// When a handshake that is asked for now must be done.
    pub(crate) fn handshake_deadline(&self, slot: u32) -> Option<Tick> {
        self.limits_of(slot).handshake.map(|span| self.now.after(span))
    }

    pub(crate) fn filter(&mut self, slot: u32) -> Option<&mut dyn Filter> {
        match &mut self.at_mut(slot).tls_mut()?.filter {
            Some(filter) => Some(&mut **filter),
            None => None,
        }
    }

    /// What has been agreed on, when the handshake is done.
    pub(crate) fn filter_info(&self, slot: u32) -> Option<FilterInfo> {
        let connection = self.at(slot);
        let tls = connection.tls()?;
        if connection.flags.contains(Flag::Handshaking) {
            None
        } else {
            tls.filter.as_ref().map(|it| it.info())
        }
    }

    /// Queues what a filter has said, in front of what is not sealed yet.
    pub(crate) fn push_ciphertext(&mut self, slot: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let now = self.now;
        let connection = &mut self.slots[slot as usize];
        let begins = connection.outbox.is_none();
        let outbox = connection.outbox.get_or_insert_default();
        self.memory += outbox.push_ciphertext(bytes);
        if begins {
            outbox.progress.since = now;
            self.rearm(slot);
        }
    }

    /// Nothing more is sealed. What is queued for that is dropped, since there is no other way to say it; at once, or
    /// when what goes before it, as it is, has gone.
    pub(crate) fn stop_encrypting(&mut self, slot: u32) {
        let connection = &mut self.slots[slot as usize];
        connection.flags.insert(Flag::CloseNotifySent);
        if connection.clear_prefix() > 0 {
            return;
        }
        if let Some(outbox) = &mut connection.outbox {
            self.memory -= outbox.clear_plaintext();
        }
        if let Some(dirty) = self.dirty.get_mut(connection.dirty as usize) {
            dirty.segments = SegmentList::EMPTY;
        }
    }

    /// So many bytes of what is queued are on their way: first those of earlier turns, then those of this one.
    pub(crate) fn consume_queued(&mut self, slot: u32, segments: &mut SegmentList, n: usize) {
        let mut fresh = n;
        if let Some(outbox) = &mut self.slots[slot as usize].outbox {
            let old = n.min(outbox.plaintext_len());
            outbox.progress.moved += old;
            self.memory -= outbox.advance(old);
            fresh -= old;
        }
        self.arena.advance(segments, fresh);
    }

    /// A filter keeps so many bytes of the wire. They are a message in the making: they have their memory and their
    /// clocks, as any other.
    pub(crate) fn set_undecrypted(&mut self, slot: u32, undecrypted: usize, arrived: usize) {
        let connection = self.at_mut(slot);
        if undecrypted == 0 && connection.inbox.is_none() {
            return;
        }
        let mut inbox = connection.inbox.take().unwrap_or_default();
        let (before, begins) = (inbox.charge(), inbox.is_empty());
        inbox.undecrypted = undecrypted;
        if inbox.is_empty() {
            self.memory -= before;
        } else {
            self.put_inbox(slot, inbox, before, arrived, begins);
        }
    }
}
