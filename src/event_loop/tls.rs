//! What goes through a filter: handshakes, and bytes that are not on the wire what they are to the service.

use std::mem;

use log::Level;

use super::read::ReadOutcome;
use super::{EventLoop, is_open};
use crate::base::address::Address;
use crate::base::filter::FilterConfig;
use crate::base::reason::CloseReason;
use crate::base::tick::Tick;
use crate::connection::optional::Tls;
use crate::connection::{Connection, Flag, Stage};
use crate::parts::arena::{READ_MAX, SegmentList};
use crate::parts::outbox::WriteBatch;
use crate::service::Event;
use crate::sys::System;

/// Handshakes that begin in one turn. Each costs up to a millisecond, and others wait meanwhile.
const HANDSHAKES_PER_TURN: usize = 4;
/// What is sealed in one piece: a TLS record holds no more (RFC 8446, 5.1).
const RECORD_MAX: usize = 16 * 1024;
/// From so much on, what a filter keeps is opened in memory of its own and not in the arena's block: a handshake with
/// many certificates, and nothing that happens often.
const UNDECRYPTED_MAX: usize = READ_MAX / 2;
/// What is kept for the next one to be sealed into.
const SPARE_MAX: usize = 256 * 1024;

impl<S: System> EventLoop<S> {
    // -- handshakes ----------------------------------------------------------------------------------

    /// A caller has come who is to be secured. He costs nothing until he says a word.
    pub(super) fn expect_handshake(&mut self, slot: u32, how: FilterConfig) {
        let deadline = self.table.handshake_deadline(slot);
        self.set_up_filter(slot, how, deadline);
    }

    fn set_up_filter(&mut self, slot: u32, how: FilterConfig, deadline: Option<Tick>) {
        let connection = self.table.at_mut(slot);
        for flag in [Flag::Filtered, Flag::Handshaking, Flag::OpenPending] {
            connection.flags.insert(flag);
        }
        connection.optional().tls = Some(Box::new(Tls::new(how, deadline, 0)));
        self.table.rearm(slot);
    }

    /// Whether serving it is a matter of its handshake, which has not begun. Ours begin at once, those of callers in
    /// their turn.
    pub(super) fn start_or_queue_handshake(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        if connection.tls().is_none_or(|tls| tls.config.is_none()) {
            return false;
        }
        if connection.flags.contains(Flag::Dialed) {
            let peer = self.table.peer(slot);
            self.start_handshake(slot, &peer);
        } else if !connection.flags.contains(Flag::HandshakeQueued) {
            connection.flags.insert(Flag::HandshakeQueued);
            let id = self.table.id(slot);
            let limits = &self.table.limits;
            self.table.handshakes.push(id);
            let delayed = !self.table.handshakes.may_start(limits.handshakes, self.table.now);
            self.table.stats.handshakes_delayed += u64::from(delayed);
        }
        true
    }

    /// Begins some of the handshakes that wait.
    pub(super) fn start_handshakes(&mut self) {
        let (max, now) = (self.table.limits.handshakes, self.table.now);
        if self.table.handshakes.waiting_count() > self.table.connections() {
            let slots = &self.table.slots;
            let waits = |c: &Connection| c.flags.contains(Flag::HandshakeQueued) && c.stage == Stage::Open;
            self.table.handshakes.retain_waiting(|id| {
                slots.get(id.slot as usize).is_some_and(|c| c.generation == id.generation && waits(c))
            });
        }
        for _ in 0..HANDSHAKES_PER_TURN {
            if !self.table.handshakes.may_start(max, now) {
                return;
            }
            let Some(slot) = self.next_handshake() else { return };
            if let Some(slow) = self.table.handshakes.to_evict(max, now) {
                self.table.handshakes.remove(slow);
                if let Some(slow) = self.table.find(slow) {
                    self.table.close(slow, CloseReason::HandshakeTimeout);
                }
            }
            let (id, peer) = (self.table.id(slot), self.table.peer(slot));
            self.table.handshakes.start(id, now);
            self.start_handshake(slot, &peer);
            self.table.push_ready(slot);
        }
    }

    fn next_handshake(&mut self) -> Option<u32> {
        while let Some(id) = self.table.handshakes.pop_newest() {
            let Some(slot) = self.table.find(id) else { continue };
            let connection = self.table.at_mut(slot);
            if connection.flags.take(Flag::HandshakeQueued) && connection.stage == Stage::Open {
                return Some(slot);
            }
        }
        None
    }

    /// We have called, and are to be secured before anybody hears of it, within what time was given for the dial.
    pub(super) fn handshake_dialed(
        &mut self,
        slot: u32,
        how: FilterConfig,
        to: &Address,
        deadline: Option<Tick>,
    ) {
        let usual = self.table.handshake_deadline(slot);
        self.set_up_filter(slot, how, deadline.or(usual));
        self.start_handshake(slot, to);
    }

    fn start_handshake(&mut self, slot: u32, peer: &Address) {
        let Some(tls) = self.table.at_mut(slot).tls_mut() else { return };
        let Some(how) = tls.config.take() else { return };
        match how.filter(peer) {
            Ok(filter) => tls.filter = Some(filter),
            Err(error) => return self.fail_tls(slot, &error.to_string()),
        }
        // What arrived behind the words that asked for this is part of it.
        let inbox = self.table.at(slot).inbox.as_ref();
        let mut early = inbox.map_or(Vec::new(), |inbox| inbox.unread().to_vec());
        let length = early.len();
        self.table.drop_inbox(slot);
        self.decrypt(slot, &mut early, 0, length);
    }

    /// The handshake is done: now its service may know of it.
    fn on_handshake_done(&mut self, slot: u32) {
        let (id, now) = (self.table.id(slot), self.table.now);
        self.table.handshakes.remove(id);
        self.table.stats.handshakes += 1;
        let connection = self.table.at_mut(slot);
        connection.flags.remove(Flag::Handshaking);
        connection.flags.insert(Flag::NoPlaintextYet);
        connection.last_activity = now;
        if let Some(outbox) = &mut connection.outbox {
            outbox.progress.since = now; // What was queued could not be read before this.
        }
        let open_pending = connection.flags.take(Flag::OpenPending);
        let dialed = connection.flags.contains(Flag::Dialed);
        let service = usize::from(connection.service);
        if connection.dial().is_some() {
            connection.dial_mut().failed_attempts = 0;
        }
        self.table.push_dirty(slot);
        log::debug!("{id} {} handshake complete", self.table.peer(slot));
        match (open_pending, dialed) {
            (true, true) => self.services[service].call(&mut self.table, Event::Connected(slot)),
            (true, false) => self.services[service].call(&mut self.table, Event::Open(slot)),
            (false, _) => self.services[service].call(&mut self.table, Event::FilterStarted(slot)),
        }
        self.table.rearm(slot);
    }

    /// It cannot go on. What the filter says about that is still sent.
    pub(super) fn fail_tls(&mut self, slot: u32, why: &str) {
        let connection = self.table.at_mut(slot);
        let reason = if connection.flags.contains(Flag::Handshaking) {
            CloseReason::Handshake
        } else {
            CloseReason::Tls
        };
        if let Some(tls) = connection.tls_mut() {
            tls.error = Some(why.into());
        }
        // Of one that we called, its service hears the reason, and says it where it belongs; and who comes and goes
        // without a word wants to know whether somebody listens.
        let quiet = connection.flags.contains(Flag::Dialed) || connection.bytes_in == 0;
        let peer = self.table.peer(slot);
        if quiet {
            log::debug!("{peer}: closed: {}: {why}", reason.word());
        } else {
            let now = self.table.now;
            let (level, left_out) = self.table.log_limits.tls_failed.level(Level::Info, now);
            log::log!(level, "{peer}: closed: {}: {why}{left_out}", reason.word());
        }
        self.table.stop_encrypting(slot);
        self.table.close(slot, reason);
    }

    // -- in ------------------------------------------------------------------------------------------

    /// As `read_and_deliver`: one read, and what can be opened of it.
    pub(super) fn read_ciphertext(
        &mut self,
        slot: u32,
        block: &mut [u8],
        prefix: usize,
        budget: usize,
    ) -> ReadOutcome {
        let undecrypted = self.table.filter(slot).map_or(0, |filter| filter.buffered());
        let mut own = Vec::new();
        let wire = if undecrypted <= UNDECRYPTED_MAX {
            &mut block[self.table.arena.write_offset()..]
        } else {
            own.resize(prefix + undecrypted + RECORD_MAX, 0);
            &mut own[..]
        };
        let front = prefix + undecrypted;
        let room = wire.len().min(READ_MAX + undecrypted) - front;
        let outcome = self.read_stream(slot, &mut wire[front..][..budget.min(room)]);
        if let ReadOutcome::More(n) | ReadOutcome::Drained(n) = outcome {
            self.decrypt(slot, wire, prefix, undecrypted + n);
        }
        outcome
    }

    /// `wire` is room for a prefix, then what the filter keeps, then what has arrived.
    fn decrypt(&mut self, slot: u32, wire: &mut [u8], prefix: usize, length: usize) {
        let mut out = mem::take(&mut self.ciphertext);
        let Some(filter) = self.table.filter(slot) else { return };
        let arrived = length - filter.buffered();
        let opened = filter.open(&mut wire[prefix..prefix + length], &mut out);
        let undecrypted = filter.buffered();
        if !out.is_empty() {
            self.table.push_ciphertext(slot, &out);
            self.table.push_dirty(slot);
        }
        self.recycle_buffer(out);
        if opened.ready && self.table.at(slot).flags.contains(Flag::Handshaking) {
            self.on_handshake_done(slot);
        }
        if opened.plaintext > 0 && is_open(&self.table, slot) {
            self.table.at_mut(slot).flags.remove(Flag::NoPlaintextYet);
            self.deliver_plaintext(slot, wire, prefix, opened.plaintext);
        }
        if is_open(&self.table, slot) {
            self.table.set_undecrypted(slot, undecrypted, arrived);
            let end = match opened.error {
                Some(why) => Some(Err(why.into())),
                None => opened.peer_ended.then_some(Ok(())),
            };
            if let (Some(end), Some(tls)) = (end, self.table.at_mut(slot).tls_mut()) {
                tls.pending_end.get_or_insert(end);
                self.end_after_delivery(slot);
            }
        }
    }

    /// Ends a connection whose filter has ended or failed, as soon as everything before that has been delivered.
    pub(super) fn end_after_delivery(&mut self, slot: u32) {
        let connection = self.table.at_mut(slot);
        if connection.stage != Stage::Open || connection.flags.contains(Flag::Redeliver) {
            return;
        }
        match connection.tls_mut().and_then(|tls| tls.pending_end.take()) {
            Some(Err(why)) => self.fail_tls(slot, &why),
            Some(Ok(())) if !self.table.at(slot).flags.contains(Flag::Ended) => self.on_peer_end(slot),
            _ => {}
        }
    }

    fn deliver_plaintext(&mut self, slot: u32, wire: &mut [u8], prefix: usize, plain: usize) {
        if self.table.at(slot).flags.contains(Flag::Paused) {
            // It was paused when it was met, and this came along with the end of the handshake.
            return self.table.keep_input(slot, &wire[prefix..prefix + plain], 0, plain, true);
        }
        self.deliver_arrived(slot, wire, prefix, plain);
    }

    /// The wire has ended, and no announcement of that went before.
    pub(super) fn on_truncated(&mut self, slot: u32) {
        let connection = self.table.at_mut(slot);
        if connection.stage != Stage::Open {
            return self.on_peer_end(slot);
        }
        connection.flags.insert(Flag::Ended);
        connection.flags.remove(Flag::Readable);
        if connection.flags.contains(Flag::Handshaking) {
            self.fail_tls(slot, "the peer left during the handshake");
        } else {
            self.table.close(slot, CloseReason::Truncated);
        }
    }

    // -- out -----------------------------------------------------------------------------------------

    /// As `write_once`, for one that is secured. Apart from that, because most are not.
    #[inline(never)]
    pub(super) fn write_filtered(&mut self, slot: u32, segments: &mut SegmentList, budget: usize) -> usize {
        match self.table.at(slot).clear_prefix() {
            0 => self.write_encrypted(slot, segments, budget),
            clear_prefix => self.write_clear_prefix(slot, segments, clear_prefix),
        }
    }

    /// What was sent before it was secured goes as it is. That is a line or two, so it is copied together.
    fn write_clear_prefix(&mut self, slot: u32, segments: &mut SegmentList, clear_prefix: usize) -> usize {
        self.read_out(slot);
        let mut run = mem::take(&mut self.record);
        run.clear();
        let mut slices = WriteBatch::with_exact_budget(clear_prefix);
        if let Some(outbox) = &self.table.at(slot).outbox {
            outbox.gather(&mut slices);
        }
        if slices.has_room() {
            self.table.arena.gather(segments, &mut slices);
        }
        slices.slices().iter().for_each(|slice| run.extend_from_slice(slice));
        let written = self.write_ciphertext(slot, &run);
        self.table.consume_queued(slot, segments, written);
        if let Some(tls) = self.table.at_mut(slot).tls_mut() {
            tls.clear_prefix -= written;
        }
        self.record = run;
        written
    }

    /// Seals what is queued and writes it with one call.
    fn write_encrypted(&mut self, slot: u32, segments: &mut SegmentList, budget: usize) -> usize {
        if self.table.at(slot).flags.contains(Flag::CloseNotifySent) {
            *segments = SegmentList::EMPTY;
            self.table.stop_encrypting(slot);
        }
        let mut out = mem::take(&mut self.ciphertext);
        if let Some(outbox) = &mut self.table.at_mut(slot).outbox {
            let before = outbox.take_ciphertext();
            out.extend_from_slice(&before);
            self.table.memory -= before.capacity();
        }
        if let Err(why) = self.encrypt(slot, segments, &mut out, budget) {
            *segments = SegmentList::EMPTY;
            self.fail_tls(slot, &why);
        }
        let written = if out.is_empty() { 0 } else { self.write_ciphertext(slot, &out) };
        if written < out.len() && self.table.at(slot).stage != Stage::Dead {
            self.table.push_ciphertext(slot, &out[written..]);
        }
        self.recycle_buffer(out);
        written
    }

    fn recycle_buffer(&mut self, mut out: Vec<u8>) {
        out.clear();
        out.shrink_to(SPARE_MAX);
        self.ciphertext = out;
    }

    /// Seals about a budget of what is queued. It leaves the queue for good: a filter seals nothing twice.
    fn encrypt(
        &mut self,
        slot: u32,
        segments: &mut SegmentList,
        out: &mut Vec<u8>,
        budget: usize,
    ) -> Result<(), String> {
        if self.table.at(slot).flags.any(&[Flag::Handshaking, Flag::CloseNotifySent]) {
            return Ok(());
        }
        while out.len() < budget {
            let table = &mut self.table;
            let Connection { outbox, optional, .. } = &mut table.slots[slot as usize];
            let filter = optional.as_mut().and_then(|optional| optional.tls.as_mut()?.filter.as_mut());
            let Some(filter) = filter else { return Ok(()) };
            let mut slices = WriteBatch::with_exact_budget(RECORD_MAX);
            if let Some(outbox) = outbox {
                outbox.gather(&mut slices);
            }
            if slices.has_room() {
                table.arena.gather(segments, &mut slices);
            }
            let length = slices.len();
            let sealed = match slices.slices() {
                [] => return Ok(()),
                [one] => filter.seal(one, out),
                many => {
                    self.record.clear();
                    many.iter().for_each(|slice| self.record.extend_from_slice(slice));
                    filter.seal(&self.record, out)
                }
            };
            self.table.consume_queued(slot, segments, length);
            sealed?;
        }
        Ok(())
    }

    /// Has the filter say that nothing more will come. Says whether that has left.
    pub(super) fn send_close_notify(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        if connection.flags.contains(Flag::CloseNotifySent) {
            return true;
        }
        connection.flags.insert(Flag::CloseNotifySent);
        let mut out = mem::take(&mut self.ciphertext);
        if let Some(filter) = self.table.filter(slot) {
            filter.seal_end(&mut out);
        }
        let written = if out.is_empty() { 0 } else { self.write_ciphertext(slot, &out) };
        let left = out.len() == written;
        if !left && self.table.at(slot).stage != Stage::Dead {
            self.table.push_ciphertext(slot, &out[written..]);
            self.table.push_dirty(slot);
        }
        self.recycle_buffer(out);
        left
    }
}
