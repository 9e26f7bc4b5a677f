//! Filters (TLS): when handshakes start, and decryption of what arrives.
//!
//! Read before: `connection/tls.rs`, which encrypts, and `event_loop/read.rs`.

use std::mem;

use super::EventLoop;
use super::read::{ReadOutcome, Target};
use crate::base::address::Address;
use crate::base::filter::Opened;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::part::FILTERS;
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::state::{FilterStage, Flag, Half};
use crate::connection::tls::RECORD_MAX;
use crate::parts::arena::READ_MAX;
use crate::service::Event;
use crate::sys::System;

/// Handshakes that start in one turn. Each costs up to a millisecond, in which no other connection is served.
const HANDSHAKES_PER_TURN: usize = 4;
/// Up to this many undecrypted bytes are decrypted in the arena's block, more in a buffer of their own. Only a
/// handshake with many certificates is longer than that, so the allocation is rare.
const UNDECRYPTED_MAX: usize = READ_MAX / 2;
/// Memory for the output of a filter that is kept from one use to the next.
const SPARE_MAX: usize = 256 * 1024;

/// What one call of a filter came to.
struct Outcome {
    opened: Opened,
    /// How many received bytes it keeps now.
    buffered: usize,
    /// Which rule of [`Filter`](crate::Filter) it broke.
    fault: Option<&'static str>,
    /// Its own messages.
    out: Vec<u8>,
}

impl<S: System> EventLoop<S> {
    // -- handshakes ----------------------------------------------------------------------------------

    /// Starts or queues a handshake that was asked for. Those of dialed connections start at once, because this side
    /// chose to make them. Those of accepted connections are queued, because peers choose their number, unless their
    /// filter says that its start is cheap.
    pub(super) fn start_or_queue_handshake(&mut self, id: ConnId) {
        if !FILTERS.has_begun() {
            return;
        }
        let (connection, cx) = self.table.at(id.slot);
        if connection.starts_at_once() {
            let peer = connection.peer_address();
            return self.start_handshake(id, &peer);
        }
        connection.filter = FilterStage::Queued;
        cx.handshakes.push(id);
        let delayed = !cx.handshakes.may_start(cx.limits.handshakes, cx.now);
        cx.stats.handshakes_delayed += u64::from(delayed);
    }

    /// Starts up to `HANDSHAKES_PER_TURN` of the queued handshakes, newest first: under overload the peers of the
    /// oldest have often given up. If all places are taken, a handshake that has stalled for too long gives up its
    /// place.
    pub(super) fn start_handshakes(&mut self) {
        let cx = &mut self.table.cx;
        let (max, now) = (cx.limits.handshakes, cx.now);
        if cx.handshakes.waiting_count() > self.table.slots.len() {
            let slots = &self.table.slots;
            cx.handshakes.retain_waiting(|id| {
                let there = slots.get(id.slot as usize).filter(|connection| connection.id == id);
                there.is_some_and(|connection| connection.filter == FilterStage::Queued)
            });
        }
        for _ in 0..HANDSHAKES_PER_TURN {
            if !self.table.cx.handshakes.may_start(max, now) || !FILTERS.has_begun() {
                return;
            }
            // Before the queue gets shorter: how long a handshake may stall depends on how many wait.
            let to_evict = self.table.cx.handshakes.to_evict(max, now);
            let Some(id) = self.next_handshake() else { return };
            mark!("a queued handshake starts");
            if let Some(slow) = to_evict {
                mark!("a stalled handshake gives up its place");
                self.table.cx.handshakes.remove(slow);
                if let Some((connection, cx)) = self.table.get(slow) {
                    connection.close(CloseReason::HandshakeTimeout, cx);
                }
            }
            let (connection, cx) = self.table.at(id.slot);
            cx.handshakes.start(id, now);
            let peer = connection.peer_address();
            self.start_handshake(id, &peer);
            let (connection, cx) = self.table.at(id.slot);
            connection.push_ready(cx);
        }
    }

    /// The newest queued handshake whose connection still exists. Ids of closed connections stay in the queue until
    /// they are popped.
    fn next_handshake(&mut self) -> Option<ConnId> {
        while let Some(id) = self.table.cx.handshakes.pop_newest() {
            let Some((connection, _)) = self.table.get(id) else { continue };
            if connection.filter == FilterStage::Queued && connection.is_open() {
                return Some(id);
            }
        }
        None
    }

    pub(super) fn start_handshake(&mut self, id: ConnId, peer: &Address) {
        let (connection, cx) = self.table.at(id.slot);
        connection.filter = FilterStage::Handshaking;
        let Some(config) = connection.tls_mut().and_then(|tls| tls.config.take()) else { return };
        match config.filter(peer) {
            Ok(filter) => {
                if let Some(tls) = connection.tls_mut() {
                    tls.filter = Some(filter);
                }
            }
            Err(error) => return connection.fail_tls(&error.to_string(), cx),
        }
        // Bytes that arrived after the STARTTLS request are handshake data. If they were delivered as plaintext, an
        // attacker could insert commands before the encryption starts.
        let mut early =
            if seeded(SeededBug::EarlyRecordLost) { Vec::new() } else { connection.unread().to_vec() };
        let length = early.len();
        connection.drop_inbox(cx);
        self.decrypt(id, &mut early, 0, 0, length);
        self.after_opened(id);
    }

    /// The handshake is complete: calls `open`, `connected` or `filter_started`.
    fn on_handshake_done(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        cx.handshakes.remove(id);
        cx.stats.handshakes += 1;
        connection.filter = FilterStage::Open;
        connection.last_activity = cx.now.into();
        if let Some(outbox) = &mut connection.outbox {
            mark!("bytes waited for the handshake");
            outbox.progress.since = cx.now; // The minimum write rate starts here: nothing could be written before.
        }
        let open_pending = connection.tls().is_some_and(|tls| tls.open_pending);
        let (service, dialed) = (connection.service, connection.flags.contains(Flag::Dialed));
        if let Some(dial) = connection.dial_mut() {
            dial.failed_attempts = 0;
        }
        connection.push_dirty(cx);
        log::debug!("{id} {} handshake complete", connection.peer_address());
        let event = match (open_pending, dialed) {
            (true, true) => Event::Connected(id.slot),
            (true, false) => Event::Open(id.slot),
            (false, _) => Event::FilterStarted(id.slot),
        };
        self.call(service, event);
        let (connection, cx) = self.table.at(id.slot);
        connection.on_released(cx);
    }

    // -- in ------------------------------------------------------------------------------------------

    /// Makes one read, and decrypts and delivers what is complete. Decryption is in place, so the bytes are read behind
    /// those that the filter keeps, with room in front for unread input.
    pub(super) fn read_ciphertext(
        &mut self,
        id: ConnId,
        block: &mut [u8],
        budget: &mut usize,
    ) -> ReadOutcome {
        let (connection, cx) = self.table.at(id.slot);
        let (allowed, prefix) = (connection.allowance(cx).min(*budget), connection.prefix());
        if allowed == 0 {
            return ReadOutcome::None; // Its group has used up the rate. A read of no bytes would look like an end.
        }
        let undecrypted = match connection.checked_buffered() {
            Ok(buffered) => buffered,
            Err(why) => {
                connection.fail_tls(why, cx);
                return ReadOutcome::None;
            }
        };
        let mut own = Vec::new();
        let wire = if undecrypted <= UNDECRYPTED_MAX {
            &mut block[cx.arena.write_offset()..]
        } else {
            own.resize(prefix + undecrypted + RECORD_MAX, 0);
            &mut own[..]
        };
        let front = prefix + undecrypted;
        let room = wire.len().min(READ_MAX + undecrypted) - front;
        let into = &mut wire[front..][..allowed.min(room)];
        let outcome = Self::read_stream(&mut self.system, connection, into, cx);
        match outcome {
            ReadOutcome::More(n) | ReadOutcome::Drained(n) => {
                self.decrypt(id, wire, prefix, undecrypted, n);
                *budget = self.open_more(id, block, *budget - n);
            }
            ReadOutcome::None => self.after_failed_read(id),
        }
        outcome
    }

    /// Decrypts in place. `wire` is room for unread input (`prefix`), then for the bytes that the filter keeps, then
    /// those that have arrived.
    fn decrypt(&mut self, id: ConnId, wire: &mut [u8], prefix: usize, undecrypted: usize, arrived: usize) {
        let (connection, _) = self.table.at(id.slot);
        let Some(filter) = connection.filter_mut() else { return };
        let received = undecrypted + arrived;
        // The block may hold bytes of other connections there, which a filter must not see.
        wire[prefix..prefix + undecrypted].fill(0);
        let mut out = mem::take(&mut self.filter_out);
        let opened = filter.open(&mut wire[prefix..prefix + received], &mut out);
        let buffered = filter.buffered();
        let fault = opened.violation(received, received, buffered, connection.filter.is_ready());
        self.on_opened(id, wire, prefix, arrived, Outcome { opened, buffered, fault, out });
    }

    /// Lets the filter go on with plaintext that had no room, until none is left, or the budget or the service ends it.
    /// Then it is the turn of what came behind it. Returns what is left of the budget.
    pub(super) fn open_more(&mut self, id: ConnId, block: &mut [u8], mut budget: usize) -> usize {
        if !FILTERS.has_begun() {
            return budget;
        }
        loop {
            let (connection, cx) = self.table.at(id.slot);
            let waits = connection.flags.contains(Flag::Redeliver) || !connection.wants_input();
            let more = connection.is_open() && connection.tls().is_some_and(|tls| tls.has_more);
            if !more || waits || budget == 0 || cx.arena.is_full() {
                break;
            }
            let prefix = connection.prefix();
            let wire = &mut block[cx.arena.write_offset()..][..READ_MAX];
            let room = prefix..READ_MAX.min(prefix.saturating_add(budget));
            let before = connection.undecrypted();
            let Some(filter) = connection.filter_mut() else { break };
            wire[room.clone()].fill(0);
            let mut out = mem::take(&mut self.filter_out);
            let opened = filter.more(&mut wire[room.clone()], &mut out);
            let idle = (opened.more && opened.plaintext == 0)
                .then_some("the filter says that there is more plaintext, and returns none");
            let buffered = filter.buffered();
            let fault = opened.violation(room.len(), before, buffered, true).or(idle);
            let n = opened.plaintext.min(room.len());
            budget -= n;
            self.table.cx.stats.bytes_expanded += n as u64;
            self.on_opened(id, wire, prefix, 0, Outcome { opened, buffered, fault, out });
        }
        self.after_opened(id);
        budget
    }

    /// What a filter has returned: its own messages are queued, the handshake completes, plaintext is delivered, and
    /// the end or the failure that came behind it is noted.
    fn on_opened(&mut self, id: ConnId, wire: &mut [u8], prefix: usize, arrived: usize, outcome: Outcome) {
        let Outcome { opened, buffered, fault, mut out } = outcome;
        let (connection, cx) = self.table.at(id.slot);
        if let Some(why) = fault {
            mark!("a filter broke its contract");
            return connection.fail_tls(why, cx); // Nothing that it has returned can be used.
        }
        if !out.is_empty() && connection.filter != FilterStage::Ended && !connection.is_write_failed() {
            connection.push_wire(&out, cx);
            if !seeded(SeededBug::FilterOutputUnsent) {
                connection.push_dirty(cx);
            }
        }
        out.clear();
        out.shrink_to(SPARE_MAX);
        self.filter_out = out;
        if opened.ready && connection.filter == FilterStage::Handshaking {
            self.on_handshake_done(id);
        }
        let (connection, cx) = self.table.at(id.slot);
        if opened.error.is_some() && connection.filter == FilterStage::Open {
            connection.stop_encrypting(cx); // A filter that has failed encrypts nothing more.
        }
        if opened.plaintext > 0 && self.is_open(id) {
            self.deliver_plaintext(id, wire, prefix, opened.plaintext);
        }
        let (connection, cx) = self.table.at(id.slot);
        if connection.is_open() {
            connection.note_opened(opened, buffered, arrived, cx);
        }
        if self.table.cx.is_over_memory() {
            self.table.evict();
        }
    }

    /// After decryption: if plaintext is left in the filter, the next turn goes on with it; else its end is acted on.
    fn after_opened(&mut self, id: ConnId) {
        let (connection, _) = self.table.at(id.slot);
        let more = connection.tls().is_some_and(|tls| tls.has_more) && !seeded(SeededBug::PlaintextForgotten);
        if connection.is_open() && more {
            mark!("plaintext is left in the filter");
            connection.flags.insert(Flag::Redeliver);
        }
        self.end_after_delivery(id);
    }

    /// The peer's FIN came, and it had not announced its end: the filter says whether it is one.
    pub(super) fn on_fin_below_filter(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        let (is_ready, unnoticed) = (connection.filter.is_ready(), seeded(SeededBug::TruncationUnnoticed));
        match connection.filter_mut() {
            Some(filter) if is_ready && (filter.ends_with_fin() || unnoticed) => self.on_peer_end(id),
            _ => connection.on_truncated(cx),
        }
    }

    fn is_open(&self, id: ConnId) -> bool {
        self.table.find(id).is_some_and(|connection| connection.is_open())
    }

    /// Acts on the end or the failure of a filter, once all plaintext before it has been delivered.
    fn end_after_delivery(&mut self, id: ConnId) {
        let (connection, cx) = self.table.at(id.slot);
        if !connection.is_open() || connection.flags.contains(Flag::Redeliver) {
            return;
        }
        match connection.tls_mut().and_then(|tls| tls.pending_end.take()) {
            Some(Err(why)) => connection.fail_tls(&why, cx),
            Some(Ok(())) if connection.incoming != Half::Ended => self.on_peer_end(id),
            _ => {}
        }
    }

    fn deliver_plaintext(&mut self, id: ConnId, wire: &mut [u8], prefix: usize, plain: usize) {
        let (connection, cx) = self.table.at(id.slot);
        if let Some(tls) = connection.tls_mut() {
            tls.no_plaintext_yet = false;
        }
        if connection.flags.contains(Flag::Paused) {
            mark!("plaintext for a paused connection");
            // `open` has paused it, and these bytes came in the same read as the end of the handshake.
            let mut inbox = connection.inbox.take().unwrap_or_default();
            let before = inbox.charge();
            inbox.append(&wire[prefix..prefix + plain]);
            return connection.put_inbox(inbox, before, plain, true, cx);
        }
        let target = Target::of(connection);
        self.deliver(id, target, wire, prefix, plain);
    }
}
