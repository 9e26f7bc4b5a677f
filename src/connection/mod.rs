//! One connection: its state between two turns, when it is read, and how it closes.
//!
//! Read before: `connection/state.rs` and `connection/context.rs`. Next: `event_loop/read.rs`.
//!
//! A change to one connection is a method of [`Connection`] and gets the [`Context`] that all connections share. A
//! change to two connections is a method of [`Table`](table::Table). The methods are in one file for each subject:
//! `output` has sending, `input` has unread input, and `deadline`, `dial`, `rate` and `tls` have what their names say.

pub(crate) mod admission;
pub(crate) mod adopt;
pub(crate) mod alarm;
pub(crate) mod backpressure;
mod check;
pub(crate) mod context;
pub(crate) mod deadline;
pub(crate) mod deferred;
pub(crate) mod dial;
pub(crate) mod input;
pub(crate) mod leaving;
pub(crate) mod listen;
pub(crate) mod optional;
pub(crate) mod output;
pub(crate) mod pipe;
pub(crate) mod rate;
pub(crate) mod socket;
pub(crate) mod sockets;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod tls;
pub(crate) mod watch;

use crate::base::address::{Address, PeerAddress};
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::{StoredTick, Tick};
use crate::connection::context::{Context, Dirty};
use crate::connection::optional::Optional;
use crate::connection::state::{FilterStage, Flag, Flags, Half, Stage, State};
use crate::parts::arena::SegmentList;
use crate::parts::inbox::Inbox;
use crate::parts::outbox::Outbox;
use crate::sys::Stream;

/// One connection; [`Stage`] shows its stages.
///
/// ```text
///     Connection   ├─ stream      the socket
///        96 bytes  ├─ stage, incoming, outgoing, filter, flags
///                  ├─ inbox   ──▶ unread input                  only while some is unread
///                  ├─ outbox  ──▶ bytes the kernel did not take only while some wait
///                  └─ optional ─▶ dial, rate, timeouts, TLS         only for connections that have one of these
/// ```
///
/// All three pointers of an idle connection are null, so that it costs this struct and no allocation.
pub(crate) struct Connection {
    pub(crate) id: ConnId,
    pub(crate) stream: Option<Stream>,
    /// The number of its service, or [`REFUSED`](table::REFUSED).
    pub(crate) service: u16,
    pub(crate) stage: Stage,
    pub(crate) incoming: Half,
    pub(crate) outgoing: Half,
    pub(crate) filter: FilterStage,
    pub(crate) flags: Flags,
    /// The index of its entry in `Context::dirty`, or [`NOT_DIRTY`].
    pub(crate) dirty: u32,
    pub(crate) peer: PeerAddress,
    /// Where it was accepted (listener and local address), as an index into the table's list;
    /// [`ADOPTED`](adopt::ADOPTED) or [`NO_PLACE`].
    pub(crate) place: u8,
    pub(crate) close_reason: Option<CloseReason>,
    pub(crate) optional: Option<Box<Optional>>,
    pub(crate) inbox: Option<Box<Inbox>>,
    pub(crate) outbox: Option<Box<Outbox>>,
    pub(crate) created: StoredTick,
    /// When a byte last moved. This store is all that refreshing a timeout costs: see the wheel.
    pub(crate) last_activity: StoredTick,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// Most of what an idle connection costs: docs/architecture.md has the sum. Checked in release builds without the
/// simulation only: others have larger streams.
#[cfg(not(any(test, feature = "testing", debug_assertions, target_family = "wasm")))]
const _: () = assert!(size_of::<Connection>() <= 96);

pub(crate) const NOT_DIRTY: u32 = u32::MAX;
pub(crate) const NO_PLACE: u8 = u8::MAX;

impl Connection {
    pub(crate) fn new(id: ConnId, service: u16, stage: Stage, peer: PeerAddress, now: Tick) -> Connection {
        Connection {
            id,
            stream: None,
            service,
            stage,
            incoming: Half::Open,
            outgoing: Half::Open,
            filter: FilterStage::Off,
            flags: Flags::default(),
            dirty: NOT_DIRTY,
            peer,
            place: NO_PLACE,
            close_reason: None,
            optional: None,
            inbox: None,
            outbox: None,
            created: now.into(),
            last_activity: now.into(),
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// The peer's address; until a dial is connected, and for a Unix-domain socket, what was dialed.
    pub(crate) fn peer_address(&self) -> Address {
        match self.dial().and_then(|dial| dial.to.as_ref()) {
            Some(to) if self.stage == Stage::Connecting || self.peer.inet().is_none() => to.clone(),
            _ => Address::from(self.peer),
        }
    }

    /// The state as a service sees it.
    pub(crate) fn state(&self) -> State {
        let resolving = self.dial().is_some_and(|dial| dial.lookup.is_some());
        let (ended, finished) = (self.incoming == Half::Ended, self.outgoing != Half::Open);
        match self.stage {
            Stage::Connecting if resolving => State::Resolving,
            Stage::Connecting => State::Connecting,
            Stage::Open if self.is_open_pending() => State::Connecting,
            Stage::Open if !ended && !finished => State::Open,
            Stage::Open if !ended => State::ReadOnly,
            Stage::Open if !finished => State::WriteOnly,
            _ => State::Closing,
        }
    }

    /// Whether callbacks can still find and use it. A closing connection is hidden from them, because anything sent to
    /// it would be dropped.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Open)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether bytes can be written to its stream: not before it is connected, not after its end.
    pub(crate) fn has_stream(&self) -> bool {
        !matches!(self.stage, Stage::Connecting | Stage::Dead)
    }

    // -- holds ---------------------------------------------------------------------------------------------

    /// Whether its service, or its pipe peer, takes no input now. `Full` does not hold a piped connection: what is read
    /// from it goes to its peer and not into its own queue, and if each direction waited for the other, both could stop
    /// for good.
    fn is_delivery_held(&self) -> bool {
        let flags = self.flags;
        let reads_on =
            flags.any(&[Flag::Piped, Flag::ReadWhenFull]) && !seeded(SeededBug::PipeEndsWaitForEachOther);
        let full = flags.contains(Flag::Full) && !reads_on;
        full || flags.any(&[Flag::Paused, Flag::ReceiverFull])
    }

    /// Whether input is taken now. While it is not, the clocks of an incomplete message stand still, because the peer
    /// cannot make progress. During a handshake only the rate holds: a handshake delivers nothing, so a paused or full
    /// service is no reason to stop it.
    pub(crate) fn wants_input(&self) -> bool {
        let held = !self.filter.is_handshaking() && self.is_delivery_held();
        !held && !self.flags.contains(Flag::Throttled)
    }

    /// Adds a hold: it is not read until the hold is released, and the clocks of its message are suspended.
    pub(crate) fn hold(&mut self, hold: Flag, cx: &mut Context) {
        self.flags.insert(hold);
        // `Readable` stays: what has arrived was announced already, and is not announced again when the hold is
        // released.
        self.flags.remove_if(Flag::Readable, seeded(SeededBug::HoldForgetsReadiness));
        self.note_leaving(cx);
        self.update_message_clocks(cx.now);
        if self.flags.contains(Flag::Broken) {
            self.rearm(cx); // Its last input now waits for a service that does not take it.
        }
    }

    /// Removes a hold, if it is there, and does what follows from that.
    pub(crate) fn release(&mut self, hold: Flag, cx: &mut Context) {
        if self.flags.take(hold) {
            self.on_released(cx);
        }
    }

    /// Must be called whenever a reason not to read may have ended. Its readiness is known already and no event will
    /// announce it again, so a connection that is not added to the ready list here would never be read.
    pub(crate) fn on_released(&mut self, cx: &mut Context) {
        self.update_message_clocks(cx.now);
        self.push_ready(cx);
        self.rearm(cx);
    }

    /// Suspends the clocks of the message at the front while the connection is not read, and continues them after that.
    pub(crate) fn update_message_clocks(&mut self, now: Tick) {
        let reads = self.wants_input();
        if let Some(inbox) = &mut self.inbox {
            if reads { inbox.resume_clocks(now) } else { inbox.suspend_clocks(now) }
        }
    }

    // -- the queues ----------------------------------------------------------------------------------------

    /// Whether a read should be made: it is readable and nothing holds it. Input that is to be delivered again goes
    /// first. A closing connection is read in spite of its holds, because what arrives is discarded.
    pub(crate) fn wants_read(&self) -> bool {
        self.flags.contains(Flag::Readable)
            && self.incoming != Half::Ended
            && match self.stage {
                Stage::Open => {
                    self.wants_input() && !self.waits_for_handshake() && !self.flags.contains(Flag::Redeliver)
                }
                Stage::Closing | Stage::Lingering => true,
                Stage::Connecting | Stage::Tarpitted | Stage::Dead => false,
            }
    }

    /// Whether the `read` phase has something to do for it. Must be true exactly when the connection belongs into the
    /// ready list: `check` asserts that after each turn in debug builds.
    #[inline]
    pub(crate) fn wants_turn(&self) -> bool {
        match self.stage {
            // The kernel reports the end of a connect(2), good or bad, as writable.
            Stage::Connecting => self.flags.contains(Flag::Writable),
            Stage::Open => self.wants_read() || self.has_work_without_read(),
            Stage::Closing | Stage::Lingering => self.wants_read(),
            Stage::Tarpitted | Stage::Dead => false,
        }
    }

    /// Whether its handshake has not started. Nothing is read before that, so that a waiting peer costs no buffer.
    fn waits_for_handshake(&self) -> bool {
        matches!(self.filter, FilterStage::Asked | FilterStage::Queued)
    }

    /// Whether it has something to do that needs no read: deliver again, or start a handshake.
    #[inline]
    fn has_work_without_read(&self) -> bool {
        let redelivers = self.flags.contains(Flag::Redeliver) && self.wants_input();
        (redelivers && !self.waits_for_handshake()) || (self.filter == FilterStage::Asked && self.may_start())
    }

    /// Whether a handshake can start. A server's needs the client's first bytes, a client's needs nothing. Bytes that
    /// were sent in the clear before STARTTLS are written first.
    fn may_start(&self) -> bool {
        let begins = self.flags.contains(Flag::Readable) || self.inbox.is_some() || self.starts_at_once();
        begins && self.tls().is_some_and(|tls| tls.clear_prefix == 0)
    }

    /// Adds it to the ready list if `read` has something to do for it.
    pub(crate) fn push_ready(&mut self, cx: &mut Context) {
        if self.wants_turn() {
            self.add_to_ready(cx);
        }
    }

    /// Adds it to the ready list, once.
    #[inline]
    pub(crate) fn add_to_ready(&mut self, cx: &mut Context) {
        if !self.flags.contains(Flag::Ready) {
            self.flags.insert(Flag::Ready);
            cx.ready.push(self.id);
        }
    }

    /// Adds it to the list of connections to write, once; returns the index of its entry.
    #[inline]
    pub(crate) fn push_dirty(&mut self, cx: &mut Context) -> usize {
        if self.dirty == NOT_DIRTY {
            self.dirty = cx.dirty.len() as u32;
            cx.dirty.push(Dirty { id: self.id, segments: SegmentList::EMPTY, noted_in: 0 });
        }
        self.dirty as usize
    }

    /// Moves the entry in the wheel if the deadline is now earlier. It is not moved to a later one: the entry fires,
    /// finds that nothing is due, and is armed for the rest. So activity, which only moves deadlines later, costs
    /// nothing here.
    pub(crate) fn rearm(&self, cx: &mut Context) {
        let Some((when, _)) = self.deadline(cx.limits_of(self.service)) else { return };
        if cx.wheel.when(self.id.slot).is_none_or(|armed| when < armed) {
            cx.wheel.arm(self.id.slot, when);
        }
    }

    // -- what the kernel says ------------------------------------------------------------------------------

    /// `n` bytes have been read. Bytes discarded while closing are no activity: otherwise a peer that goes on sending
    /// would keep the connection from being closed.
    #[inline]
    pub(crate) fn on_received(&mut self, n: usize, cx: &mut Context) {
        self.bytes_in += n as u64;
        if self.stage == Stage::Open {
            self.last_activity = cx.now.into();
        }
        if self.optional.is_some() {
            self.charge_received(n, cx);
        }
    }

    /// A read said `WouldBlock`: nothing is left until the next event.
    pub(crate) fn on_read_would_block(&mut self) {
        self.flags.remove(Flag::Readable);
        if self.incoming == Half::Ending {
            mark!("an announced end was not there");
            // What was announced is not there. If it was a FIN, a new event announces it when it can be read.
            self.incoming = Half::Open;
        }
    }

    /// The peer's FIN has been read.
    pub(crate) fn on_end_read(&mut self) {
        self.incoming = Half::Ended;
        self.flags.remove(Flag::Readable);
    }

    /// The kernel has accepted `n` bytes.
    #[inline]
    pub(crate) fn on_sent(&mut self, n: usize, now: Tick) {
        self.bytes_out += n as u64;
        self.last_activity = now.into();
        if let Some(timer) = self.overrides_mut().and_then(|overrides| overrides.write_idle.as_mut()) {
            timer.since = now;
        }
    }

    /// Whether a read that returns less than was asked for proves that nothing is left. Then the read that would say
    /// `WouldBlock` is saved: one call for each message. On Linux TCP it does, because epoll reports what arrives later
    /// as a new edge (epoll(7), question 9). It does not
    ///
    /// - after an end was announced, because that is not announced again;
    /// - on a Unix-domain socket, where a read also ends where a file descriptor was passed (unix(7));
    /// - on kqueue, where it is not documented.
    pub(crate) fn is_short_read_final(&self) -> bool {
        let announced = self.incoming != Half::Open && !seeded(SeededBug::ShortReadDrains);
        // The simulated kernel is as strict as that of Linux, in a page too.
        !announced && !self.peer.is_unix() && cfg!(any(target_os = "linux", target_family = "wasm"))
    }

    // -- the end -------------------------------------------------------------------------------------------

    /// Closes gracefully: what is queued is written, then a FIN is sent. Nothing more is delivered. A connection that
    /// is not connected has nothing to write, so it ends at once.
    pub(crate) fn close(&mut self, why: CloseReason, cx: &mut Context) {
        match self.stage {
            Stage::Connecting => self.close_now(why, cx),
            Stage::Open | Stage::Tarpitted => {
                self.stage = Stage::Closing;
                self.close_reason = Some(why);
                self.last_activity = cx.now.into();
                self.drop_inbox(cx);
                if self.filter.is_handshaking() {
                    mark!("closed during the handshake");
                    // The handshake will not complete, so plaintext that waits for it can never be sent.
                    cx.handshakes.remove(self.id);
                    self.stop_encrypting(cx);
                }
                self.push_dirty(cx);
                self.push_ready(cx);
                self.rearm(cx);
            }
            Stage::Closing | Stage::Lingering | Stage::Dead => {}
        }
    }

    /// Closes at once: nothing more is read, written or delivered, and `reap` calls `closed`.
    pub(crate) fn close_now(&mut self, why: CloseReason, cx: &mut Context) {
        if self.stage == Stage::Dead && !seeded(SeededBug::ClosedTwice) {
            return;
        }
        let lingered = self.stage == Stage::Lingering && self.service != table::REFUSED;
        cx.lingering.count -= usize::from(lingered);
        if self.unsent(cx) > 0 {
            // Whatever the reason: after a FIN, what the peer has received would look complete.
            self.optional().overrides().incomplete = true;
        }
        self.stage = Stage::Dead;
        self.note_reason(why, cx);
        cx.to_reap.push(self.id);
    }

    /// Starts a lingering close: the queue is written and the FIN sent. It is read on, for 1 s or 64 KiB by default: a
    /// close(2) over unread input makes the kernel send a reset, which can destroy the last reply before the peer has
    /// read it. Refused connections are not counted here, because `Limits::refusals` bounds them already.
    pub(crate) fn start_linger(&mut self, cx: &mut Context) {
        self.stage = Stage::Lingering;
        self.last_activity = cx.now.into();
        self.rearm(cx);
        self.push_ready(cx);
        if self.service != table::REFUSED {
            cx.lingering.line.push_back(self.id);
            cx.lingering.count += 1;
        }
    }
}
