//! One connection: what is known about it between two turns, and what it does.
//!
//! What concerns one connection alone is a method of [`Connection`], given the [`Context`] that all of them share; what
//! touches two is a method of [`Table`](table::Table). The methods are grouped by subject: this file has the queues and
//! readiness, `output` what is sent, `input` what is kept, and `deadline`, `dial`, `rate` and `tls` what their names
//! say.

pub(crate) mod admission;
pub(crate) mod backpressure;
pub(crate) mod context;
pub(crate) mod deadline;
pub(crate) mod dial;
pub(crate) mod input;
pub(crate) mod optional;
pub(crate) mod output;
pub(crate) mod pipe;
pub(crate) mod rate;
pub(crate) mod socket;
pub(crate) mod sockets;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod tls;

use crate::base::address::{Address, PeerAddress};
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::base::tick::Tick;
use crate::connection::context::{Context, Dirty};
use crate::connection::optional::{Dial, Optional, Overrides, Tls};
use crate::connection::state::{FilterStage, Flag, Flags, Half, Stage, State};
use crate::parts::arena::SegmentList;
use crate::parts::inbox::Inbox;
use crate::parts::outbox::Outbox;
use crate::sys::Stream;

/// The state of one connection; see [`Stage`] for its life.
///
/// An idle one is this and nothing else: no buffer, no box.
pub(crate) struct Connection {
    pub(crate) id: ConnId,
    pub(crate) stream: Option<Stream>,
    /// The service it belongs to, or [`REFUSED`](table::REFUSED).
    pub(crate) service: u16,
    pub(crate) stage: Stage,
    pub(crate) incoming: Half,
    pub(crate) outgoing: Half,
    pub(crate) filter: FilterStage,
    pub(crate) flags: Flags,
    /// Where its entry in this turn's list of connections with something to write is, or [`NOT_DIRTY`].
    pub(crate) dirty: u32,
    pub(crate) peer: PeerAddress,
    /// Its own address, as an index into the table's list of them, or [`NO_LOCAL`].
    pub(crate) local: u8,
    pub(crate) close_reason: Option<CloseReason>,
    pub(crate) optional: Option<Box<Optional>>,
    pub(crate) inbox: Option<Box<Inbox>>,
    pub(crate) outbox: Option<Box<Outbox>>,
    pub(crate) created: Tick,
    /// The last activity. Refreshing a timeout is this one store; see the wheel.
    pub(crate) last_activity: Tick,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// Ten thousand idle connections are ten thousand of these; see "What an idle connection costs" in the docs. The stream
/// of a simulation is larger than a descriptor, and so is mio's in debug builds.
#[cfg(not(any(test, debug_assertions, target_family = "wasm")))]
const _: () = assert!(size_of::<Connection>() <= 104);

pub(crate) const NOT_DIRTY: u32 = u32::MAX;
pub(crate) const NO_LOCAL: u8 = u8::MAX;

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
            local: NO_LOCAL,
            close_reason: None,
            optional: None,
            inbox: None,
            outbox: None,
            created: now,
            last_activity: now,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    pub(crate) fn optional(&mut self) -> &mut Optional {
        self.optional.get_or_insert_default()
    }

    pub(crate) fn dial(&self) -> Option<&Dial> {
        self.optional.as_ref()?.dial.as_deref()
    }

    pub(crate) fn dial_mut(&mut self) -> &mut Dial {
        self.optional().dial.get_or_insert_default()
    }

    pub(crate) fn overrides(&self) -> Option<&Overrides> {
        self.optional.as_ref()?.overrides.as_deref()
    }

    pub(crate) fn overrides_mut(&mut self) -> Option<&mut Overrides> {
        self.optional.as_mut()?.overrides.as_deref_mut()
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.optional.as_ref()?.tls.as_deref()
    }

    pub(crate) fn tls_mut(&mut self) -> Option<&mut Tls> {
        self.optional.as_mut()?.tls.as_deref_mut()
    }

    pub(crate) fn pipe_peer(&self) -> Option<ConnId> {
        self.optional.as_ref()?.pipe_peer
    }

    /// The remote end; of a dialed one what was dialed, until it is connected.
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

    /// Whether a service may still reach it: closing connections are gone already for callbacks that would send to
    /// them.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Open)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether there is a stream that bytes can be written to.
    pub(crate) fn has_stream(&self) -> bool {
        !matches!(self.stage, Stage::Connecting | Stage::Dead)
    }

    pub(crate) fn is_filtered(&self) -> bool {
        self.filter != FilterStage::Off
    }

    // -- holds ---------------------------------------------------------------------------------------------

    /// Whether its service, or the other end of its pipe, takes no input now. The two directions of a pipe do not wait
    /// for each other: a piped connection whose own queue is full is still read.
    fn is_delivery_held(&self) -> bool {
        let flags = self.flags;
        let full = flags.contains(Flag::Full) && !flags.any(&[Flag::Piped, Flag::ReadWhenFull]);
        full || flags.any(&[Flag::Paused, Flag::ReceiverFull])
    }

    /// Whether input is taken now. While it is not, the peer is not blamed for silence. A hold of the delivery does not
    /// hold a handshake, which delivers nothing.
    pub(crate) fn wants_input(&self) -> bool {
        let held = !self.filter.is_handshaking() && self.is_delivery_held();
        !held && !self.flags.contains(Flag::Throttled)
    }

    /// Keeps it from being read until the hold is released. The clocks of its message stand still meanwhile.
    pub(crate) fn hold(&mut self, hold: Flag, now: Tick) {
        self.flags.insert(hold);
        self.update_message_clocks(now);
    }

    /// Ends a hold, with all that follows from it: it may be read again, and its clocks go on.
    pub(crate) fn release(&mut self, hold: Flag, cx: &mut Context) {
        if self.flags.take(hold) {
            self.on_released(cx);
        }
    }

    /// Something that may have kept it from being read has ended.
    pub(crate) fn on_released(&mut self, cx: &mut Context) {
        self.update_message_clocks(cx.now);
        self.push_ready(cx);
        self.rearm(cx);
    }

    /// Suspends the clocks of the message at the front while it is not read, and lets them go on after that.
    pub(crate) fn update_message_clocks(&mut self, now: Tick) {
        let reads = self.wants_input();
        if let Some(inbox) = &mut self.inbox {
            if reads { inbox.resume_clocks(now) } else { inbox.suspend_clocks(now) }
        }
    }

    // -- the queues ----------------------------------------------------------------------------------------

    /// Whether a turn should spend a read on it: it is readable and nothing holds it. What was left by a delivery goes
    /// first. A closing one is read regardless, to discard what arrives.
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

    /// Whether a turn should look at it at all.
    #[inline]
    pub(crate) fn wants_turn(&self) -> bool {
        match self.stage {
            Stage::Connecting => self.flags.contains(Flag::Writable),
            Stage::Open => self.wants_read() || self.has_work_without_read(),
            Stage::Closing | Stage::Lingering => self.wants_read(),
            Stage::Tarpitted | Stage::Dead => false,
        }
    }

    /// Whether its handshake has not started: until then nothing is read.
    fn waits_for_handshake(&self) -> bool {
        matches!(self.filter, FilterStage::Asked | FilterStage::Queued)
    }

    /// Whether it has something to do without a read: deliver again, or start a handshake.
    #[inline]
    fn has_work_without_read(&self) -> bool {
        let redelivers = self.flags.contains(Flag::Redeliver) && self.wants_input();
        (redelivers && !self.waits_for_handshake()) || (self.filter == FilterStage::Asked && self.may_start())
    }

    /// Whether there is something to start a handshake with: bytes that have arrived, or, on the client's side,
    /// nothing. What was sent in the clear before goes to the wire first.
    fn may_start(&self) -> bool {
        let begins = self.flags.any(&[Flag::Dialed, Flag::Readable]) || self.inbox.is_some();
        begins && self.tls().is_some_and(|tls| tls.clear_prefix == 0)
    }

    /// Puts it in line to be read, if that would do anything.
    #[inline]
    pub(crate) fn push_ready(&mut self, cx: &mut Context) {
        if !self.flags.contains(Flag::Ready) && self.wants_turn() {
            self.flags.insert(Flag::Ready);
            cx.ready.push(self.id);
        }
    }

    /// Puts it in line to be written; returns its entry.
    #[inline]
    pub(crate) fn push_dirty(&mut self, cx: &mut Context) -> usize {
        if self.dirty == NOT_DIRTY {
            self.dirty = cx.dirty.len() as u32;
            cx.dirty.push(Dirty { id: self.id, segments: SegmentList::EMPTY, noted_in: 0 });
        }
        self.dirty as usize
    }

    /// Moves the wheel's entry when something is due sooner than it says. A later deadline is left to be found when the
    /// entry fires.
    pub(crate) fn rearm(&self, cx: &mut Context) {
        let Some((when, _)) = self.deadline(cx.limits_of(self.service)) else { return };
        if cx.wheel.when(self.id.slot).is_none_or(|armed| when < armed) {
            cx.wheel.arm(self.id.slot, when);
        }
    }

    // -- what the kernel says ------------------------------------------------------------------------------

    /// So many bytes have arrived.
    #[inline]
    pub(crate) fn on_received(&mut self, n: usize, now: Tick) {
        self.bytes_in += n as u64;
        if self.stage == Stage::Open {
            self.last_activity = now;
        }
        if let Some(timer) = self.overrides_mut().and_then(|overrides| overrides.read_idle.as_mut()) {
            timer.since = now;
        }
    }

    /// The kernel says that nothing more has arrived.
    pub(crate) fn on_read_would_block(&mut self) {
        self.flags.remove(Flag::Readable);
        if self.incoming == Half::Ending {
            // The announcement was early or spurious; the end itself will raise a new edge.
            self.incoming = Half::Open;
        }
    }

    /// The end has been read.
    pub(crate) fn on_end_read(&mut self) {
        self.incoming = Half::Ended;
        self.flags.remove(Flag::Readable);
    }

    /// The kernel has taken so many bytes.
    #[inline]
    pub(crate) fn on_sent(&mut self, n: usize, now: Tick) {
        self.bytes_out += n as u64;
        self.last_activity = now;
        if let Some(timer) = self.overrides_mut().and_then(|overrides| overrides.write_idle.as_mut()) {
            timer.since = now;
        }
    }

    /// Whether a short read says that nothing more has arrived. epoll raises a new edge for what arrives after it
    /// (epoll(7), question 9). It proves nothing where an end was announced, which is not announced again; on a
    /// Unix-domain socket, where a read also ends at bytes that descriptors were sent along with (unix(7)); and on
    /// kqueue, of which it is not known.
    pub(crate) fn is_short_read_final(&self) -> bool {
        self.incoming == Half::Open && !self.peer.is_unix() && cfg!(target_os = "linux")
    }

    // -- the end -------------------------------------------------------------------------------------------

    /// Closes it gracefully: what is queued is written, then our end. Nothing more is delivered.
    pub(crate) fn close(&mut self, why: CloseReason, cx: &mut Context) {
        match self.stage {
            Stage::Connecting => self.close_now(why, cx),
            Stage::Open | Stage::Tarpitted => {
                self.stage = Stage::Closing;
                self.close_reason = Some(why);
                self.last_activity = cx.now;
                self.drop_inbox(cx);
                if self.filter.is_handshaking() {
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

    /// Ends it: nothing more is read, written or delivered, and `reap` calls `closed`.
    pub(crate) fn close_now(&mut self, why: CloseReason, cx: &mut Context) {
        if self.stage == Stage::Dead {
            return;
        }
        let lingered = self.stage == Stage::Lingering && self.service != table::REFUSED;
        cx.lingering.count -= usize::from(lingered);
        self.stage = Stage::Dead;
        self.close_reason.get_or_insert(why);
        cx.to_reap.push(self.id);
    }

    /// Everything is written and our end sent: reads on for a moment. If it were closed with input unread, the kernel
    /// would send a reset, which can destroy the last reply on its way. Refused peers have a limit of their own.
    pub(crate) fn start_linger(&mut self, cx: &mut Context) {
        self.stage = Stage::Lingering;
        self.last_activity = cx.now;
        self.rearm(cx);
        self.push_ready(cx);
        if self.service != table::REFUSED {
            cx.lingering.line.push_back(self.id);
            cx.lingering.count += 1;
        }
    }

    /// What must be true of a connection between two phases.
    pub(crate) fn check(&self, cx: &Context) {
        let id = self.id;
        let entry = cx.dirty.get(self.dirty as usize);
        debug_assert!(
            self.dirty == NOT_DIRTY || entry.is_some_and(|dirty| dirty.id == id),
            "{id}: not dirty"
        );
        debug_assert!(
            self.stage == Stage::Dead || self.flags.contains(Flag::Ready) || !self.wants_turn(),
            "{id}: a wake-up was lost"
        );
        debug_assert!(self.is_filtered() == self.tls().is_some(), "{id}: a filter without its state");
        debug_assert!(
            self.flags.contains(Flag::Piped) == self.pipe_peer().is_some(),
            "{id}: a pipe without its other end"
        );
        debug_assert!(
            self.stage != Stage::Closing || self.close_reason.is_some(),
            "{id}: closing without a reason"
        );
        debug_assert!(
            !self.flags.contains(Flag::Broken)
                || self.outbox.is_none()
                || self.stage == Stage::Dead
                || self.close_reason.is_none(),
            "{id}: a queue that cannot be written"
        );
        if let (Some((when, _)), true) =
            (self.deadline(cx.limits_of(self.service)), self.stage != Stage::Dead)
        {
            let armed = cx.wheel.when(id.slot);
            debug_assert!(armed.is_some_and(|armed| armed <= when), "{id}: no alarm for its deadline");
        }
    }
}
