//! What is secured: bytes that are not what the service sees.

use super::table::Table;
use crate::base::filter::{Filter, Secured, Security};
use crate::base::tick::Tick;
use crate::connection::optional::Seal;
use crate::connection::{Flag, Stage};
use crate::parts::arena::Chain;

impl Table {
    /// Has all bytes from here on secured; those queued before go as they are. The loop begins the handshake.
    pub(crate) fn secure(&mut self, slot: u32, how: Security) {
        let (bare, by) = (self.queued(slot), self.handshake_ends(slot));
        let connection = self.at_mut(slot);
        if connection.stage == Stage::Connecting {
            connection.dial_mut().options.secure.get_or_insert(how);
            return;
        }
        let is_open = connection.stage == Stage::Open && !connection.flags.has(Flag::Finishing);
        if !is_open || connection.flags.has(Flag::Sealed) {
            return;
        }
        connection.flags.raise(Flag::Sealed);
        connection.flags.raise(Flag::Securing);
        connection.extra().seal = Some(Box::new(Seal::new(how, by, bare)));
        self.push_ready(slot);
        self.rearm(slot);
    }

    /// When a handshake that is asked for now must be done.
    pub(crate) fn handshake_ends(&self, slot: u32) -> Option<Tick> {
        self.limits_of(slot).handshake.map(|span| self.now.after(span))
    }

    pub(crate) fn filter(&mut self, slot: u32) -> Option<&mut dyn Filter> {
        match &mut self.at_mut(slot).seal_mut()?.filter {
            Some(filter) => Some(&mut **filter),
            None => None,
        }
    }

    /// What has been agreed on, when the handshake is done.
    pub(crate) fn secured(&self, slot: u32) -> Option<Secured> {
        let connection = self.at(slot);
        let seal = connection.seal()?;
        if connection.flags.has(Flag::Securing) { None } else { seal.filter.as_ref().map(|it| it.secured()) }
    }

    /// Queues what a filter has said, in front of what is not sealed yet.
    pub(crate) fn push_sealed(&mut self, slot: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let now = self.now;
        let connection = &mut self.slots[slot as usize];
        let begins = connection.outbox.is_none();
        let outbox = connection.outbox.get_or_insert_default();
        self.memory += outbox.push_sealed(bytes);
        if begins {
            outbox.span.since = now;
            self.rearm(slot);
        }
    }

    /// Nothing more is sealed. What is queued for that is dropped, since there is no other way to say it; at once, or
    /// when what goes before it, as it is, has gone.
    pub(crate) fn give_up_sealing(&mut self, slot: u32) {
        let connection = &mut self.slots[slot as usize];
        connection.flags.raise(Flag::SealedEnd);
        if connection.bare() > 0 {
            return;
        }
        if let Some(outbox) = &mut connection.outbox {
            self.memory -= outbox.clear_plain();
        }
        if let Some(dirty) = self.dirty.get_mut(connection.dirty as usize) {
            dirty.chain = Chain::EMPTY;
        }
    }

    /// So many bytes of what is queued are on their way: first those of earlier turns, then those of this one.
    pub(crate) fn take_from_queue(&mut self, slot: u32, chain: &mut Chain, n: usize) {
        let mut fresh = n;
        if let Some(outbox) = &mut self.slots[slot as usize].outbox {
            let old = n.min(outbox.unsealed());
            outbox.span.moved += old;
            self.memory -= outbox.advance(old);
            fresh -= old;
        }
        self.arena.advance(chain, fresh);
    }

    /// A filter keeps so many bytes of the wire. They are a message in the making: they have their memory and their
    /// clocks, as any other.
    pub(crate) fn note_behind(&mut self, slot: u32, behind: usize, arrived: usize) {
        let connection = self.at_mut(slot);
        if behind == 0 && connection.inbox.is_none() {
            return;
        }
        let mut inbox = connection.inbox.take().unwrap_or_default();
        let (before, begins) = (inbox.charge(), inbox.is_empty());
        inbox.behind = behind;
        if inbox.is_empty() {
            self.memory -= before;
        } else {
            self.put_back(slot, inbox, before, arrived, begins);
        }
    }
}
