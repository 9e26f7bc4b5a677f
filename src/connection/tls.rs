//! The filter (TLS) of a connection: starting it, encryption, failure.
//!
//! Read before: `base/filter.rs`, the trait. Next: `event_loop/tls.rs`, which runs handshakes and decrypts.

use log::Level;

use crate::base::filter::{Filter, FilterConfig, FilterInfo, Opened};
use crate::base::part::FILTERS;
use crate::base::reason::CloseReason;
use crate::base::tick::Tick;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::optional::Tls;
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::outbox::{Outbox, WriteBatch};

/// Bytes encrypted in one piece: a TLS record holds no more (RFC 8446, 5.1).
pub(crate) const RECORD_MAX: usize = 16 * 1024;

impl Connection {
    /// Starts a filter on an open connection (STARTTLS): bytes sent from now on are encrypted, bytes sent before are
    /// not. The `read` phase starts the handshake.
    pub(crate) fn start_filter(&mut self, config: FilterConfig, cx: &mut Context) {
        if self.stage == Stage::Connecting {
            self.pending_dial().options.filter.get_or_insert(config);
            return;
        }
        if !self.is_open() || self.outgoing != Half::Open || self.is_filtered() {
            return;
        }
        // Bytes of earlier turns are in the outbox and stay unencrypted; of this turn's segments these many do.
        let clear_prefix = self.unsent(cx) - self.queued();
        let deadline = cx.handshake_deadline(self.service);
        self.set_filter(config, deadline, clear_prefix, false);
        self.on_released(cx);
    }

    /// Sets a filter whose handshake comes before `open` or `connected`.
    pub(crate) fn start_filter_first(
        &mut self,
        config: FilterConfig,
        deadline: Option<Tick>,
        cx: &mut Context,
    ) {
        // Bytes sent while the connection was dialed wait as if for the wire; they must be encrypted.
        if let Some(outbox) = &mut self.outbox {
            debug_assert_eq!(outbox.plain.len(), 0);
            std::mem::swap(&mut outbox.wire, &mut outbox.plain);
        }
        self.set_filter(config, deadline, 0, true);
        self.push_ready(cx);
        self.rearm(cx);
    }

    fn set_filter(&mut self, config: FilterConfig, deadline: Option<Tick>, clear_prefix: usize, opens: bool) {
        self.filter = FilterStage::Asked;
        self.optional().tls = Some(Box::new(Tls::new(config, deadline, clear_prefix, opens)));
    }

    #[inline(always)]
    pub(crate) fn is_filtered(&self) -> bool {
        self.filter != FilterStage::Off && FILTERS.has_begun()
    }

    /// Whether `open` (accepted) or `connected` (dialed) waits for the handshake.
    pub(crate) fn is_open_pending(&self) -> bool {
        self.filter.is_handshaking() && self.tls().is_some_and(|tls| tls.open_pending)
    }

    /// Whether it was accepted and is in the handshake before `open`: its service does not know it.
    pub(crate) fn is_handshaking_inbound(&self) -> bool {
        self.is_open_pending() && !self.flags.contains(Flag::Dialed)
    }

    /// Whether its handshake needs neither a byte of the peer nor a place among `Limits::handshakes`.
    pub(crate) fn starts_at_once(&self) -> bool {
        let config = self.tls().and_then(|tls| tls.config.as_ref());
        self.flags.contains(Flag::Dialed) || config.is_some_and(|config| config.starts_at_once())
    }

    /// How many received bytes its filter had kept when it was last called.
    pub(crate) fn undecrypted(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.undecrypted)
    }

    /// How many received bytes its filter keeps now, which may be fewer: sealing can process some.
    pub(crate) fn checked_buffered(&mut self) -> Result<usize, &'static str> {
        let before = self.undecrypted();
        let buffered = self.filter_mut().map_or(0, |filter| filter.buffered());
        if buffered > before {
            return Err("the filter keeps more bytes than it had kept before, and none has come");
        }
        Ok(buffered)
    }

    /// Notes what a filter has returned, for when its plaintext has been delivered.
    pub(crate) fn note_opened(&mut self, opened: Opened, buffered: usize, arrived: usize, cx: &mut Context) {
        self.set_undecrypted(buffered, arrived, cx);
        let Some(tls) = self.tls_mut() else { return };
        tls.has_more = opened.more && opened.error.is_none();
        match opened.error {
            Some(why) => tls.pending_end = Some(Err(why.into())),
            None if opened.peer_ended => tls.pending_end = Some(Ok(())),
            None => {}
        }
    }

    pub(crate) fn filter_mut(&mut self) -> Option<&mut dyn Filter> {
        match &mut self.tls_mut()?.filter {
            Some(filter) => Some(&mut **filter),
            None => None,
        }
    }

    /// The result of the handshake, once it is complete.
    pub(crate) fn filter_info(&self) -> Option<FilterInfo> {
        if self.filter.is_handshaking() {
            return None;
        }
        self.tls()?.filter.as_ref().map(|filter| filter.info())
    }

    /// Encrypts queued bytes and then this turn's segments, until `wire` has at least `budget` bytes. The rest is
    /// copied to the outbox as plaintext. A record must be sent once it is encrypted, because its number is part of the
    /// encryption; so no more is encrypted than can soon be written. Nor is more than `sealable`, from which it is
    /// subtracted: of a filter that compresses, `wire` may never reach the budget.
    #[inline(never)]
    pub(crate) fn encrypt(
        &mut self,
        plain: &mut SegmentList,
        wire: &mut SegmentList,
        budget: usize,
        sealable: &mut usize,
        cx: &mut Context,
    ) {
        self.settle_clear_prefix(plain, cx);
        while self.filter == FilterStage::Open && wire.len() < budget && *sealable > 0 {
            match self.encrypt_record(plain, wire, cx) {
                Ok(0) => break,
                Ok(sealed) => *sealable = sealable.saturating_sub(sealed),
                Err(why) => self.fail_tls(&why, cx),
            }
        }
        let left = std::mem::replace(plain, SegmentList::EMPTY);
        if self.filter != FilterStage::Ended {
            self.spill_plain(left, cx);
        }
    }

    /// Moves the bytes that were sent before `start_filter` to the outbox, unencrypted. They are copied, because they
    /// are a line or two. The handshake can start after that.
    pub(crate) fn settle_clear_prefix(&mut self, segments: &mut SegmentList, cx: &mut Context) {
        let clear = self.tls_mut().map_or(0, |tls| std::mem::take(&mut tls.clear_prefix));
        if clear > 0 {
            self.fill_outbox(cx, |outbox, arena| arena.spill_front(segments, clear, &mut outbox.wire));
            self.push_ready(cx);
        }
    }

    /// Encrypts one record: from the outbox first, then from this turn's segments. Returns the length of its plaintext.
    fn encrypt_record(
        &mut self,
        segments: &mut SegmentList,
        wire: &mut SegmentList,
        cx: &mut Context,
    ) -> Result<usize, String> {
        let tls = self.optional.as_mut().and_then(|optional| optional.tls.as_mut());
        let Some(Tls { filter: Some(filter), .. }) = tls.map(|tls| &mut **tls) else { return Ok(0) };
        let queued = self.outbox.as_ref().map_or(0, |outbox| outbox.plain.len());
        if queued + segments.len() == 0 {
            return Ok(0);
        }
        let mut joined = std::mem::take(&mut cx.joined);
        let (length, outcome) = cx.arena.push_ciphertext(wire, |out, arena| {
            let mut seal = |plain: &[u8]| {
                let start = out.len();
                let outcome = filter.seal(plain, out).and_then(|()| match out.len() {
                    length if length > start => Ok(()),
                    length if length < start => {
                        Err("the filter removed bytes that were sealed before".into())
                    }
                    _ => Err("the filter sealed bytes and returned none".into()),
                });
                // Ranges of `out` are queued already, and must exist until they are dropped with the connection.
                out.resize(out.len().max(start), 0);
                (plain.len(), outcome)
            };
            match arena.as_single(segments).filter(|_| queued == 0) {
                Some(one) => seal(&one[..one.len().min(RECORD_MAX)]),
                None => with_joined(self.outbox.as_deref(), arena, segments, &mut joined, seal)
                    .unwrap_or((0, Ok(()))),
            }
        });
        cx.joined = joined;
        let mut fresh = length;
        if let Some(outbox) = &mut self.outbox {
            let old = length.min(outbox.plain.len());
            cx.memory -= outbox.plain.advance(old);
            fresh -= old;
        }
        cx.arena.advance(segments, fresh);
        outcome.map(|()| length)
    }

    /// Queues the filter's close_notify. Nothing is encrypted after it.
    pub(crate) fn push_close_notify(&mut self, cx: &mut Context) {
        self.filter = FilterStage::Ended;
        let mut out = Vec::new();
        if let Some(filter) = self.filter_mut() {
            filter.seal_end(&mut out);
        }
        self.push_wire(&out, cx);
    }

    /// Stops encrypting. Queued plaintext is dropped, since it may not be sent in the clear; bytes for the wire are
    /// still written.
    pub(crate) fn stop_encrypting(&mut self, cx: &mut Context) {
        self.filter = FilterStage::Ended;
        if let Some(outbox) = &mut self.outbox {
            cx.memory -= outbox.plain.clear();
        }
        // Bytes that were sent in the clear in this turn are at the front of the segments, and must still be written.
        if self.tls().is_none_or(|tls| tls.clear_prefix == 0) {
            self.drop_segments(cx);
        }
    }

    /// The filter has failed: closes the connection. Its alert is in the outbox and is still written.
    pub(crate) fn fail_tls(&mut self, why: &str, cx: &mut Context) {
        let reason = if self.filter.is_handshaking() { CloseReason::Handshake } else { CloseReason::Tls };
        if let Some(tls) = self.tls_mut() {
            tls.error = Some(why.into());
        }
        let peer = self.peer_address();
        // At debug for dialed connections, whose service gets the reason in `closed`, and for peers that have sent
        // nothing, which are port probes.
        if self.flags.contains(Flag::Dialed) || self.bytes_in == 0 {
            log::debug!("{peer}: closed: {}: {why}", reason.word());
        } else {
            let (level, left_out) = cx.log_limits.tls_failed.level(Level::Info, cx.now);
            log::log!(level, "{peer}: closed: {}: {why}{left_out}", reason.word());
        }
        cx.handshakes.remove(self.id);
        self.stop_encrypting(cx);
        self.close(reason, cx);
    }

    /// The peer's FIN came without close_notify: the stream may have been cut off.
    pub(crate) fn on_truncated(&mut self, cx: &mut Context) {
        self.on_end_read();
        if self.filter.is_handshaking() {
            self.fail_tls("the peer left during the handshake", cx);
        } else {
            self.close(CloseReason::Truncated, cx);
        }
    }
}

/// Passes on the plaintext of one record as one slice, since a filter takes one. None if there is none in memory,
/// because a file comes next. A function of its own, because the list of slices takes a kilobyte of stack.
#[inline(never)]
fn with_joined<T>(
    outbox: Option<&Outbox>,
    arena: &Arena,
    segments: &SegmentList,
    joined: &mut Vec<u8>,
    seal: impl FnOnce(&[u8]) -> T,
) -> Option<T> {
    let mut batch = WriteBatch::with_exact_budget(RECORD_MAX);
    if let Some(outbox) = outbox {
        outbox.plain.gather(&mut batch);
    }
    if batch.has_room() && outbox.is_none_or(|outbox| !outbox.plain.has_file()) {
        arena.gather(segments, &mut batch);
    }
    match batch.slices() {
        [] => None,
        [one] => Some(seal(one)),
        many => {
            joined.clear();
            many.iter().for_each(|slice| joined.extend_from_slice(slice));
            Some(seal(joined))
        }
    }
}
