//! What goes through a filter: handshakes, and bytes that are not on the wire what they are to the service.

use std::mem;

use super::read::Got;
use super::{Loop, is_open};
use crate::base::address::Address;
use crate::base::filter::Security;
use crate::base::reason::Closed;
use crate::base::tick::Tick;
use crate::connection::optional::Seal;
use crate::connection::{Connection, Flag, Stage};
use crate::parts::arena::{Chain, READ_MAX};
use crate::parts::outbox::Gather;
use crate::sys::System;

/// Handshakes that begin in one turn. Each costs up to a millisecond, and others wait meanwhile.
const BEGIN_MAX: usize = 4;
/// What is sealed in one piece: a TLS record holds no more (RFC 8446, 5.1).
const RUN: usize = 16 * 1024;
/// From so much on, what a filter keeps is opened in memory of its own and not in the arena's block: a handshake with
/// many certificates, and nothing that happens often.
const BEHIND_MAX: usize = READ_MAX / 2;
/// What is kept for the next one to be sealed into.
const SPARE_MAX: usize = 256 * 1024;

impl<S: System> Loop<S> {
    // -- handshakes ----------------------------------------------------------------------------------

    /// A caller has come who is to be secured. He costs nothing until he says a word.
    pub(super) fn meet_later(&mut self, slot: u32, how: Security) {
        let by = self.table.handshake_ends(slot);
        self.meet_by(slot, how, by);
    }

    fn meet_by(&mut self, slot: u32, how: Security, by: Option<Tick>) {
        let connection = self.table.at_mut(slot);
        for flag in [Flag::Sealed, Flag::Securing, Flag::Unmet] {
            connection.flags.raise(flag);
        }
        connection.extra().seal = Some(Box::new(Seal::new(how, by, 0)));
        self.table.rearm(slot);
    }

    /// Whether serving it is a matter of its handshake, which has not begun. Ours begin at once, those of callers in
    /// their turn.
    pub(super) fn begins_handshake(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        if connection.seal().is_none_or(|seal| seal.how.is_none()) {
            return false;
        }
        if connection.flags.has(Flag::Dialed) {
            let peer = self.table.peer(slot);
            self.begin_handshake(slot, &peer);
        } else {
            connection.flags.raise(Flag::Waiting);
            let id = self.table.id(slot);
            let limits = &self.table.limits;
            self.table.handshakes.wait(id);
            let delayed = !self.table.handshakes.may_begin(limits.handshakes, self.table.now);
            self.table.stats.handshakes_delayed += u64::from(delayed);
        }
        true
    }

    /// Begins some of the handshakes that wait.
    pub(super) fn begin_handshakes(&mut self) {
        let (most, now) = (self.table.limits.handshakes, self.table.now);
        if self.table.handshakes.waiting() > self.table.connections() {
            let slots = &self.table.slots;
            let waits = |c: &Connection| c.flags.has(Flag::Waiting) && c.stage == Stage::Open;
            self.table.handshakes.sift(|id| {
                slots.get(id.slot as usize).is_some_and(|c| c.generation == id.generation && waits(c))
            });
        }
        for _ in 0..BEGIN_MAX {
            if !self.table.handshakes.may_begin(most, now) {
                return;
            }
            let Some(slot) = self.next_to_begin() else { return };
            if let Some(slow) = self.table.handshakes.makes_room(most, now) {
                self.table.handshakes.over(slow);
                if let Some(slow) = self.table.find(slow) {
                    self.table.close(slow, Closed::HandshakeTimeout);
                }
            }
            let (id, peer) = (self.table.id(slot), self.table.peer(slot));
            self.table.handshakes.begun(id, now);
            self.begin_handshake(slot, &peer);
            self.table.push_ready(slot);
        }
    }

    fn next_to_begin(&mut self) -> Option<u32> {
        while let Some(id) = self.table.handshakes.next() {
            let Some(slot) = self.table.find(id) else { continue };
            let connection = self.table.at_mut(slot);
            if connection.flags.take(Flag::Waiting) && connection.stage == Stage::Open {
                return Some(slot);
            }
        }
        None
    }

    /// We have called, and are to be secured before anybody hears of it, within what time was given for the dial.
    pub(super) fn secure_dialed(&mut self, slot: u32, how: Security, to: &Address, by: Option<Tick>) {
        let usual = self.table.handshake_ends(slot);
        self.meet_by(slot, how, by.or(usual));
        self.begin_handshake(slot, to);
    }

    fn begin_handshake(&mut self, slot: u32, peer: &Address) {
        let Some(seal) = self.table.at_mut(slot).seal_mut() else { return };
        let Some(how) = seal.how.take() else { return };
        match how.filter(peer) {
            Ok(filter) => seal.filter = Some(filter),
            Err(error) => return self.break_seal(slot, &error.to_string()),
        }
        // What arrived behind the words that asked for this is part of it.
        let inbox = self.table.at(slot).inbox.as_ref();
        let mut early = inbox.map_or(Vec::new(), |inbox| inbox.kept().to_vec());
        let length = early.len();
        self.table.drop_inbox(slot);
        self.open_sealed(slot, &mut early, 0, length);
    }

    /// The handshake is done: now its service may know of it.
    fn meet(&mut self, slot: u32) {
        let (id, now) = (self.table.id(slot), self.table.now);
        self.table.handshakes.over(id);
        self.table.stats.handshakes += 1;
        let connection = self.table.at_mut(slot);
        connection.flags.lower(Flag::Securing);
        connection.flags.raise(Flag::Mute);
        connection.touched = now;
        if let Some(outbox) = &mut connection.outbox {
            outbox.span.since = now; // What was queued could not be read before this.
        }
        let unmet = connection.flags.take(Flag::Unmet);
        let dialed = connection.flags.has(Flag::Dialed);
        let host = usize::from(connection.host);
        if connection.dial().is_some() {
            connection.dial_mut().failures = 0;
        }
        self.table.push_dirty(slot);
        log::debug!("{id} {} is secured", self.table.peer(slot));
        match (unmet, dialed) {
            (true, true) => self.hosts[host].connected(&mut self.table, slot),
            (true, false) => self.hosts[host].open(&mut self.table, slot),
            (false, _) => self.hosts[host].secured(&mut self.table, slot),
        }
        self.table.rearm(slot);
    }

    /// It cannot go on. What the filter says about that is still sent.
    pub(super) fn break_seal(&mut self, slot: u32, why: &str) {
        let connection = self.table.at_mut(slot);
        let reason = if connection.flags.has(Flag::Securing) { Closed::Handshake } else { Closed::Tls };
        if let Some(seal) = connection.seal_mut() {
            seal.broken = Some(why.into());
        }
        // Of one that we called, its service hears the reason, and says it where it belongs; and who comes and goes
        // without a word wants to know whether somebody listens.
        let quiet = connection.flags.has(Flag::Dialed) || connection.bytes_in == 0;
        let level = if quiet { log::Level::Debug } else { log::Level::Info };
        log::log!(level, "{}: closed: {}: {why}", self.table.peer(slot), reason.word());
        self.table.give_up_sealing(slot);
        self.table.close(slot, reason);
    }

    // -- in ------------------------------------------------------------------------------------------

    /// As `read_and_deliver`: one read, and what can be opened of it.
    pub(super) fn read_sealed(&mut self, slot: u32, block: &mut [u8], prefix: usize, budget: usize) -> Got {
        let behind = self.table.filter(slot).map_or(0, |filter| filter.kept());
        let mut own = Vec::new();
        let wire = if behind <= BEHIND_MAX {
            &mut block[self.table.arena.place()..]
        } else {
            own.resize(prefix + behind + RUN, 0);
            &mut own[..]
        };
        let front = prefix + behind;
        let room = wire.len().min(READ_MAX + behind) - front;
        let got = self.read(slot, &mut wire[front..][..budget.min(room)]);
        if let Got::Some(n) | Got::Last(n) = got {
            self.open_sealed(slot, wire, prefix, behind + n);
        }
        got
    }

    /// `wire` is room for a prefix, then what the filter keeps, then what has arrived.
    fn open_sealed(&mut self, slot: u32, wire: &mut [u8], prefix: usize, length: usize) {
        let mut out = mem::take(&mut self.sealed);
        let Some(filter) = self.table.filter(slot) else { return };
        let arrived = length - filter.kept();
        let opened = filter.open(&mut wire[prefix..prefix + length], &mut out);
        let behind = filter.kept();
        if !out.is_empty() {
            self.table.push_sealed(slot, &out);
            self.table.push_dirty(slot);
        }
        self.keep_spare(out);
        if opened.ready && self.table.at(slot).flags.has(Flag::Securing) {
            self.meet(slot);
        }
        if opened.plain > 0 && is_open(&self.table, slot) {
            self.table.at_mut(slot).flags.lower(Flag::Mute);
            self.deliver_opened(slot, wire, prefix, opened.plain);
        }
        if is_open(&self.table, slot) {
            self.table.note_behind(slot, behind, arrived);
            if let Some(why) = opened.broken {
                self.break_seal(slot, &why);
            } else if opened.ended && !self.table.at(slot).flags.has(Flag::Ended) {
                self.ended(slot);
            }
        }
    }

    fn deliver_opened(&mut self, slot: u32, wire: &mut [u8], prefix: usize, plain: usize) {
        if self.table.at(slot).flags.has(Flag::Paused) {
            // It was paused when it was met, and this came along with the end of the handshake.
            return self.table.keep(slot, &wire[prefix..prefix + plain], 0, plain, true);
        }
        self.deliver_arrived(slot, wire, prefix, plain);
    }

    /// The wire has ended, and no announcement of that went before.
    pub(super) fn cut_off(&mut self, slot: u32) {
        let connection = self.table.at_mut(slot);
        if connection.stage != Stage::Open {
            return self.ended(slot);
        }
        connection.flags.raise(Flag::Ended);
        connection.flags.lower(Flag::Readable);
        if connection.flags.has(Flag::Securing) {
            self.break_seal(slot, "the peer left during the handshake");
        } else {
            self.table.close(slot, Closed::Truncated);
        }
    }

    // -- out -----------------------------------------------------------------------------------------

    /// As `write_once`, for one that is secured. Apart from that, because most are not.
    #[inline(never)]
    pub(super) fn write_filtered(&mut self, slot: u32, chain: &mut Chain, budget: usize) -> usize {
        match self.table.at(slot).bare() {
            0 => self.write_sealed(slot, chain, budget),
            bare => self.write_bare(slot, chain, bare),
        }
    }

    /// What was sent before it was secured goes as it is. That is a line or two, so it is copied together.
    fn write_bare(&mut self, slot: u32, chain: &mut Chain, bare: usize) -> usize {
        self.scoop(slot);
        let mut run = mem::take(&mut self.run);
        run.clear();
        let mut slices = Gather::exactly(bare);
        if let Some(outbox) = &self.table.at(slot).outbox {
            outbox.gather(&mut slices);
        }
        if slices.has_room() {
            self.table.arena.gather(chain, &mut slices);
        }
        slices.slices().iter().for_each(|slice| run.extend_from_slice(slice));
        let written = self.write_out(slot, &run);
        self.table.take_from_queue(slot, chain, written);
        if let Some(seal) = self.table.at_mut(slot).seal_mut() {
            seal.bare -= written;
        }
        self.run = run;
        written
    }

    /// Seals what is queued and writes it with one call.
    fn write_sealed(&mut self, slot: u32, chain: &mut Chain, budget: usize) -> usize {
        if self.table.at(slot).flags.has(Flag::SealedEnd) {
            *chain = Chain::EMPTY;
            self.table.give_up_sealing(slot);
        }
        let mut out = mem::take(&mut self.sealed);
        if let Some(outbox) = &mut self.table.at_mut(slot).outbox {
            let before = outbox.take_sealed();
            out.extend_from_slice(&before);
            self.table.memory -= before.capacity();
        }
        if let Err(why) = self.seal(slot, chain, &mut out, budget) {
            *chain = Chain::EMPTY;
            self.break_seal(slot, &why);
        }
        let written = if out.is_empty() { 0 } else { self.write_out(slot, &out) };
        if written < out.len() && self.table.at(slot).stage != Stage::Doomed {
            self.table.push_sealed(slot, &out[written..]);
        }
        self.keep_spare(out);
        written
    }

    fn keep_spare(&mut self, mut out: Vec<u8>) {
        out.clear();
        out.shrink_to(SPARE_MAX);
        self.sealed = out;
    }

    /// Seals about a budget of what is queued. It leaves the queue for good: a filter seals nothing twice.
    fn seal(&mut self, slot: u32, chain: &mut Chain, out: &mut Vec<u8>, budget: usize) -> Result<(), String> {
        if self.table.at(slot).flags.any(&[Flag::Securing, Flag::SealedEnd]) {
            return Ok(());
        }
        while out.len() < budget {
            let table = &mut self.table;
            let Connection { outbox, extra, .. } = &mut table.slots[slot as usize];
            let filter = extra.as_mut().and_then(|extra| extra.seal.as_mut()?.filter.as_mut());
            let Some(filter) = filter else { return Ok(()) };
            let mut slices = Gather::exactly(RUN);
            if let Some(outbox) = outbox {
                outbox.gather(&mut slices);
            }
            if slices.has_room() {
                table.arena.gather(chain, &mut slices);
            }
            let length = slices.len();
            let sealed = match slices.slices() {
                [] => return Ok(()),
                [one] => filter.seal(one, out),
                many => {
                    self.run.clear();
                    many.iter().for_each(|slice| self.run.extend_from_slice(slice));
                    filter.seal(&self.run, out)
                }
            };
            self.table.take_from_queue(slot, chain, length);
            sealed?;
        }
        Ok(())
    }

    /// Has the filter say that nothing more will come. Says whether that has left.
    pub(super) fn seal_end(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        if connection.flags.has(Flag::SealedEnd) {
            return true;
        }
        connection.flags.raise(Flag::SealedEnd);
        let mut out = mem::take(&mut self.sealed);
        if let Some(filter) = self.table.filter(slot) {
            filter.seal_end(&mut out);
        }
        let written = if out.is_empty() { 0 } else { self.write_out(slot, &out) };
        let left = out.len() == written;
        if !left && self.table.at(slot).stage != Stage::Doomed {
            self.table.push_sealed(slot, &out[written..]);
            self.table.push_dirty(slot);
        }
        self.keep_spare(out);
        left
    }
}
