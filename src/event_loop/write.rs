//! Phase 6: write what is queued.

use std::io::{self, IoSlice};
use std::mem;

use super::{Loop, is_open};
use crate::base::reason::Closed;
use crate::config::limits::CALLS_MAX;
use crate::connection::{Flag, NOT_DIRTY, Stage};
use crate::parts::arena::{Arena, Chain};
use crate::parts::outbox::{Gather, Outbox};
use crate::sys::System;

impl<S: System> Loop<S> {
    /// Writes what each connection was sent in this turn, behind what it still had queued, with one call if the
    /// kernel takes it. No user code runs before the arena is empty; then those who were full hear that they are not.
    pub(super) fn flush(&mut self) {
        self.set_options();
        let mut line = mem::replace(&mut self.table.dirty, mem::take(&mut self.spare_dirty));
        for dirty in line.drain(..) {
            let Some(slot) = self.table.find(dirty.id) else { continue };
            let connection = self.table.at_mut(slot);
            connection.dirty = NOT_DIRTY;
            if connection.stage != Stage::Doomed {
                self.flush_one(slot, dirty.chain);
            }
        }
        self.spare_dirty = line;
        self.table.arena.empty();
        self.table.evict();
        self.relieve();
    }

    /// What services asked of the system. What it will not do is not worth a connection: it is logged and counted.
    fn set_options(&mut self) {
        if self.table.asked.is_empty() {
            return;
        }
        for (id, option) in mem::take(&mut self.table.asked) {
            let Some(slot) = self.table.find(id) else { continue };
            let Some(Some(stream)) = self.streams.get(slot as usize) else { continue };
            if let Err(error) = self.system.set(stream, option) {
                self.table.stats.options_refused += 1;
                log::warn!("{id}: {option:?} was refused by the system: {error}");
            }
        }
    }

    /// Nearly always the first call leaves all of it with the kernel, and nobody waits for that.
    fn flush_one(&mut self, slot: u32, mut chain: Chain) {
        let budget = self.table.limits.write_budget.max(1);
        let written = self.write_once(slot, &mut chain, budget);
        let connection = self.table.at(slot);
        let plain = connection.stage == Stage::Open && connection.outbox.is_none() && chain.len() == 0;
        if !plain || connection.flags.any(&[Flag::Full, Flag::Finishing, Flag::Finished]) {
            self.flush_on(slot, chain, budget.saturating_sub(written));
        }
    }

    /// The rest: more calls, a queue for what the kernel will not take, water marks, our end.
    #[inline(never)]
    fn flush_on(&mut self, slot: u32, mut chain: Chain, mut budget: usize) {
        for _ in 1..CALLS_MAX {
            budget = budget.saturating_sub(self.write_once(slot, &mut chain, budget));
        }
        let connection = self.table.at(slot);
        if connection.stage == Stage::Doomed {
            return;
        }
        if chain.len() > 0 {
            self.scoop(slot);
        }
        self.table.stash(slot, chain);
        let connection = self.table.at(slot);
        let queued = connection.queued();
        if queued > 0 && connection.flags.has(Flag::Writable) && connection.can_write() {
            self.table.push_dirty(slot); // The budget ended it, not the kernel: no event will come.
        }
        self.mark_water(slot, queued);
        if queued == 0 {
            self.table.drop_outbox(slot);
            self.send_end(slot);
        }
    }

    /// One call, if it can do anything; says how many bytes it has written.
    fn write_once(&mut self, slot: u32, chain: &mut Chain, budget: usize) -> usize {
        let table = &mut self.table;
        let connection = &mut table.slots[slot as usize];
        let nothing = connection.queued() + chain.len() == 0 || budget == 0;
        if nothing || !connection.flags.has(Flag::Writable) || !connection.has_stream() {
            return 0;
        }
        if connection.flags.has(Flag::Sealed) {
            return self.write_filtered(slot, chain, budget);
        }
        let Some(stream) = &self.streams[slot as usize] else { return 0 };
        // What is held here goes first, and what was sent in this turn last.
        let beyond = connection
            .outbox
            .as_ref()
            .filter(|outbox| outbox.unsealed() == 0)
            .map_or(0, |outbox| outbox.beyond);
        let conduit = if beyond > 0 { self.conduits.leading_to(slot) } else { None };
        let result = match (conduit, &connection.outbox, table.arena.only(chain)) {
            (Some(conduit), ..) => self.system.drain(conduit, stream, beyond),
            (None, None, Some(bytes)) => self.system.write(stream, &[IoSlice::new(bytes)]),
            (None, outbox, _) => gather(outbox.as_deref(), &table.arena, chain, budget, |slices| {
                self.system.write(stream, slices)
            }),
        };
        table.stats.writes += 1;
        match result {
            Ok(n) => {
                table.stats.bytes_out += n as u64;
                connection.wrote(n, table.now);
                let mut fresh = n;
                if let Some(outbox) = &mut connection.outbox {
                    let old = n.min(outbox.unsealed() + outbox.beyond);
                    outbox.span.moved += old;
                    table.memory -= outbox.advance(old);
                    fresh -= old;
                }
                table.arena.advance(chain, fresh);
                if beyond > 0 {
                    self.drained(slot, n);
                }
                return n.max(1);
            }
            Err(error) => self.not_written(slot, &error),
        }
        0
    }

    /// One call for bytes that are sealed.
    pub(super) fn write_out(&mut self, slot: u32, bytes: &[u8]) -> usize {
        let table = &mut self.table;
        let connection = &mut table.slots[slot as usize];
        let Some(stream) = &self.streams[slot as usize] else { return 0 };
        let result = self.system.write(stream, &[IoSlice::new(bytes)]);
        table.stats.writes += 1;
        match result {
            Ok(n) => {
                table.stats.bytes_out += n as u64;
                connection.wrote(n, table.now);
                return n;
            }
            Err(error) => self.not_written(slot, &error),
        }
        0
    }

    /// A signal came first, the kernel has no room, or there is nobody to write to.
    fn not_written(&mut self, slot: u32, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.table.at_mut(slot).flags.lower(Flag::Writable),
            _ => self.table.doom(slot, Closed::from_io(error)),
        }
    }

    /// Compares what the kernel did not take with the marks: full, full no more, or too much.
    fn mark_water(&mut self, slot: u32, queued: usize) {
        let (high, limits) = (self.table.high_water(slot), self.table.limits_of(slot));
        let (low, most) = (limits.low_water.min(limits.high_water), limits.queue);
        let id = self.table.id(slot);
        let connection = self.table.at_mut(slot);
        if queued > most && !connection.flags.has(Flag::Writable) {
            self.table.doom(slot, Closed::SlowReader);
        } else if queued >= high {
            connection.flags.raise(Flag::Full);
        } else if queued <= low && connection.flags.take(Flag::Full) {
            self.relieved.push(id);
        }
    }

    /// Everything is written; if our end was to follow, it does.
    fn send_end(&mut self, slot: u32) {
        let connection = self.table.at(slot);
        // One that is closed after it had finished owes no end, but has only its farewell before it.
        let leaves = connection.flags.has(Flag::Finished) && connection.stage == Stage::Closing;
        if connection.stage == Stage::Connecting || !(connection.owes_end() || leaves) {
            return;
        }
        if connection.flags.has(Flag::Sealed) && !leaves {
            let waits = connection.flags.has(Flag::Securing) && connection.stage == Stage::Open;
            if waits || !self.seal_end(slot) {
                return;
            }
        }
        let Some(stream) = &self.streams[slot as usize] else { return };
        if !leaves {
            if let Err(error) = self.system.finish(stream) {
                return self.table.doom(slot, Closed::from_io(&error));
            }
        }
        let now = self.table.now;
        let connection = self.table.at_mut(slot);
        connection.flags.raise(Flag::Finished);
        connection.touched = now;
        match (connection.flags.has(Flag::Ended), connection.stage) {
            (true, _) => self.table.doom(slot, Closed::Finished),
            (false, Stage::Closing) => self.table.linger(slot),
            (false, _) => self.table.rearm(slot),
        }
    }

    /// Tells those who were full that they are not, and reads them again.
    fn relieve(&mut self) {
        if self.relieved.is_empty() {
            return;
        }
        for id in mem::take(&mut self.relieved) {
            let Some(slot) = self.table.find(id) else { continue };
            let now = self.table.now;
            if let Some(inbox) = &mut self.table.at_mut(slot).inbox {
                inbox.begin(now);
            }
            if self.table.at(slot).flags.has(Flag::Piped) {
                self.unblock(slot);
            } else if is_open(&self.table, slot) {
                let host = usize::from(self.table.at(slot).host);
                self.hosts[host].drained(&mut self.table, slot);
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
    chain: &Chain,
    budget: usize,
    write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut slices = Gather::new(budget);
    if let Some(outbox) = outbox {
        outbox.gather(&mut slices);
    }
    // What was sent in this turn comes behind what is in a conduit.
    if slices.has_room() && outbox.is_none_or(|outbox| outbox.beyond == 0) {
        arena.gather(chain, &mut slices);
    }
    write(slices.slices())
}
