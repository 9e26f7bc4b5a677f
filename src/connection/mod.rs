//! One connection: what is known about it between two turns, and when it is due.

pub(crate) mod admission;
pub(crate) mod deadline;
pub(crate) mod dial;
pub(crate) mod memory;
pub(crate) mod ops;
pub(crate) mod optional;
pub(crate) mod rate;
pub(crate) mod socket;
pub(crate) mod sockets;
pub(crate) mod table;
pub(crate) mod tls;

use std::num::NonZeroU32;

use crate::base::address::PeerAddress;
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::base::tick::Tick;
use crate::connection::optional::{Dial, Optional, Overrides, Tls};
use crate::parts::inbox::Inbox;
use crate::parts::outbox::Outbox;

/// The state of one connection.
///
/// ```text
///                   connected                close            queue empty: FIN sent
///     Connecting ────────────▶ Open ────────────────▶ Closing ────────────▶ Lingering
///         │                     │                        │    (throw input away until   │
///         │ failed              │ both ends finished,    │     the peer's end, 1 s or   │
///         ▼                     ▼ reset, abort           ▼     64 KiB)                  ▼
///      Dead ◀────────────────────────────────────────────────────────────────────────── Dead ──▶ reaped
/// ```
///
/// An idle one is this and nothing else: no buffer, no box. Readiness is remembered here, because the kernel
/// reports it once (edge-triggered): only `WouldBlock`, or a short read with no end announced, clears it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) generation: NonZeroU32,
    /// The service it belongs to.
    pub(crate) service: u16,
    pub(crate) stage: Stage,
    /// Where its entry in this turn's list of connections with something to write is, or [`NOT_DIRTY`].
    pub(crate) dirty: u32,
    pub(crate) flags: Flags,
    pub(crate) peer: PeerAddress,
    /// Its own address, as an index into the table's list of them, or [`NO_LOCAL`].
    pub(crate) local: u8,
    pub(crate) optional: Option<Box<Optional>>,
    pub(crate) close_reason: Option<CloseReason>,
    pub(crate) inbox: Option<Box<Inbox>>,
    pub(crate) outbox: Option<Box<Outbox>>,
    pub(crate) created: Tick,
    /// The last activity. Refreshing a timeout is this one store; see the wheel.
    pub(crate) last_activity: Tick,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// Ten thousand idle connections are ten thousand of these; see "What an idle connection costs" in the docs.
const _: () = assert!(size_of::<Connection>() <= 96);

pub(crate) const NOT_DIRTY: u32 = u32::MAX;
pub(crate) const NO_LOCAL: u8 = u8::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Connecting,
    Open,
    Closing,
    Lingering,
    Dead,
}

/// How far a connection has come, and which ways it is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum State {
    /// Its name is being looked up.
    Resolving,
    /// It is being connected.
    Connecting,
    /// Open both ways.
    Open,
    /// We have finished; the peer may still send.
    ReadOnly,
    /// The peer has ended; we may still send.
    WriteOnly,
    /// It is closed, or both ends have finished: what is queued is still sent, nothing more is delivered.
    Closing,
}

/// Where a connection came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// The peer called.
    Accepted,
    /// We called.
    Dialed {
        /// The connection whose callback dialed; none when it was dialed from outside.
        by: Option<ConnId>,
    },
}

impl Connection {
    pub(crate) fn new(
        generation: NonZeroU32,
        service: u16,
        stage: Stage,
        peer: PeerAddress,
        now: Tick,
    ) -> Connection {
        let mut flags = Flags::default();
        flags.set(Flag::ReadsToWouldBlock, peer.is_unix() || !cfg!(target_os = "linux"));
        Connection {
            generation,
            service,
            stage,
            dirty: NOT_DIRTY,
            flags,
            peer,
            local: NO_LOCAL,
            optional: None,
            close_reason: None,
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

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.optional.as_ref()?.tls.as_deref()
    }

    pub(crate) fn tls_mut(&mut self) -> Option<&mut Tls> {
        self.optional.as_mut()?.tls.as_deref_mut()
    }

    pub(crate) fn overrides_mut(&mut self) -> Option<&mut Overrides> {
        self.optional.as_mut()?.overrides.as_deref_mut()
    }

    /// Whether a user may still find it: closing connections are gone already, for those who would send to them.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Open)
    }

    /// Whether it has called and its handshake is not done: its service has not met it.
    pub(crate) fn is_handshaking_inbound(&self) -> bool {
        self.flags.contains(Flag::OpenPending) && !self.flags.contains(Flag::Dialed)
    }

    /// Whether there is a stream that bytes can be written to.
    pub(crate) fn has_stream(&self) -> bool {
        !matches!(self.stage, Stage::Connecting | Stage::Dead)
    }

    /// Whether its service, or the other end of its pipe, is willing to take input now. While it is not, the peer
    /// cannot be blamed for silence. The two directions of a pipe do not wait for each other: whether a piped
    /// connection is full itself is of no concern to what arrives at it.
    pub(crate) fn wants_input(&self) -> bool {
        let flags = &self.flags;
        if flags.contains(Flag::Handshaking) {
            return !flags.contains(Flag::Throttled); // A handshake is nobody's input.
        }
        let taken = match flags.contains(Flag::Piped) {
            true => !flags.contains(Flag::PipePeerFull),
            false => !flags.contains(Flag::Full) || flags.contains(Flag::ReadWhenFull),
        };
        taken && !flags.any(&[Flag::Paused, Flag::Throttled])
    }

    /// Something that keeps it from being read has begun or ended: the clocks of its message stand still while one
    /// does.
    pub(crate) fn update_message_clocks(&mut self, now: Tick) {
        let reads = self.wants_input();
        if let Some(inbox) = &mut self.inbox {
            if reads { inbox.resume_clocks(now) } else { inbox.suspend_clocks(now) }
        }
    }

    /// Whether a turn should spend a read on it.
    pub(crate) fn wants_read(&self) -> bool {
        self.flags.contains(Flag::Readable)
            && !self.flags.contains(Flag::Ended)
            && match self.stage {
                // What was left by a delivery goes first.
                Stage::Open => {
                    self.wants_input() && !self.flags.any(&[Flag::HandshakeQueued, Flag::Redeliver])
                }
                Stage::Closing | Stage::Lingering => true,
                Stage::Connecting | Stage::Dead => false,
            }
    }

    /// Whether a turn should look at it at all.
    #[inline]
    pub(crate) fn wants_turn(&self) -> bool {
        match self.stage {
            Stage::Connecting => self.flags.contains(Flag::Writable),
            Stage::Open => {
                let more =
                    || self.flags.any(&[Flag::Redeliver, Flag::Handshaking]) && self.has_work_without_read();
                self.wants_read() || more()
            }
            Stage::Closing | Stage::Lingering => self.wants_read(),
            Stage::Dead => false,
        }
    }

    /// Whether it has something to do without a read: deliver again, or begin a handshake.
    #[inline(never)]
    fn has_work_without_read(&self) -> bool {
        (self.flags.contains(Flag::Redeliver)
            && !self.flags.contains(Flag::HandshakeQueued)
            && self.wants_input())
            || self.may_start_handshake()
    }

    /// Whether there is something to begin a handshake with: what arrived before it was asked for, or, on our side, no
    /// need of anything.
    fn may_start_handshake(&self) -> bool {
        let flags = &self.flags;
        flags.contains(Flag::Handshaking)
            && !flags.contains(Flag::HandshakeQueued)
            && self.tls().is_some_and(|tls| tls.config.is_some())
            && (flags.contains(Flag::Dialed) || self.inbox.is_some())
    }

    /// Whether our end is to be sent as soon as nothing is queued.
    pub(crate) fn owes_end(&self) -> bool {
        (self.flags.contains(Flag::Finishing) || self.stage == Stage::Closing)
            && !self.flags.contains(Flag::Finished)
    }

    /// So many bytes have arrived.
    pub(crate) fn on_received(&mut self, n: usize, now: Tick) {
        self.bytes_in += n as u64;
        if self.stage == Stage::Open {
            self.last_activity = now;
        }
        if let Some(quiet) = self.overrides_mut().and_then(|overrides| overrides.read_idle.as_mut()) {
            quiet.since = now;
        }
    }

    /// The kernel says that nothing more has arrived.
    pub(crate) fn on_read_would_block(&mut self) {
        self.flags.remove(Flag::Readable);
        // The announcement was early or spurious; the end itself will raise a new edge.
        self.flags.remove(Flag::EndAnnounced);
    }

    /// The kernel has taken so many bytes.
    pub(crate) fn on_sent(&mut self, n: usize, now: Tick) {
        self.bytes_out += n as u64;
        self.last_activity = now;
        if let Some(quiet) = self.overrides_mut().and_then(|overrides| overrides.write_idle.as_mut()) {
            quiet.since = now;
        }
    }

    /// Queued bytes that go as they are, although it is secured: they were sent before.
    pub(crate) fn clear_prefix(&self) -> usize {
        self.tls().map_or(0, |tls| tls.clear_prefix)
    }

    /// Whether what is queued has a way out: not before it is connected, nor, secured, before the handshake is done.
    pub(crate) fn can_write(&self) -> bool {
        let open = !self.flags.contains(Flag::Handshaking)
            || self.flags.contains(Flag::CloseNotifySent)
            || self.clear_prefix() > 0;
        self.has_stream() && (open || self.outbox.as_ref().is_some_and(|outbox| outbox.has_ciphertext()))
    }

    pub(crate) fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.queued())
    }

    /// Bytes kept for it, in and out: what eviction looks at.
    pub(crate) fn buffered(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.charge())
            + self.outbox.as_ref().map_or(0, |outbox| outbox.buffered())
    }
}

/// A set of [`Flag`]s. One word, so that a question about several of them is one comparison, and so that ten thousand
/// idle connections keep them in forty kilobytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Flag {
    /// A read may succeed.
    Readable = 1,
    /// A write may succeed.
    Writable = 1 << 1,
    /// The kernel said that the peer's end, an error or urgent data is on its way: a short read proves nothing then.
    EndAnnounced = 1 << 2,
    /// The peer's end has been read.
    Ended = 1 << 3,
    /// Our end follows the queue.
    Finishing = 1 << 4,
    /// Our end has been sent.
    Finished = 1 << 5,
    Paused = 1 << 6,
    /// The queue passed the high-water mark and has not come down to the low one.
    Full = 1 << 7,
    /// It is in the list of connections to serve.
    Ready = 1 << 8,
    /// It is read although it is full: its service asked for that.
    ReadWhenFull = 1 << 17,
    /// What a paused service left is to be delivered again.
    Redeliver = 1 << 9,
    /// We called; otherwise the peer did.
    Dialed = 1 << 10,
    /// What arrives goes to another connection and not to the service.
    Piped = 1 << 11,
    /// And that within the kernel, through a kernel pipe.
    Spliced = 1 << 18,
    /// That other one is full.
    PipePeerFull = 1 << 12,
    /// Its rate is used up for now.
    Throttled = 1 << 13,
    /// It counts for its address at its service's guard.
    Counted = 1 << 14,
    /// It was let in on the understanding that it would dial another, and a further slot is kept for that.
    HoldsReservedSlot = 1 << 15,
    /// It has dialed into that slot.
    UsedReservedSlot = 1 << 16,
    /// What it sends and receives goes through a filter.
    Filtered = 1 << 19,
    /// Its handshake is under way, or is to begin.
    Handshaking = 1 << 20,
    /// It stands in line for a handshake.
    HandshakeQueued = 1 << 21,
    /// Its service is to hear of it, or that it is connected, when the handshake is done.
    OpenPending = 1 << 22,
    /// The filter has said that we will send nothing more.
    CloseNotifySent = 1 << 23,
    /// A short read never proves that nothing is left: on Unix-domain sockets it also ends where descriptors were sent
    /// along (unix(7)), and of kqueue it is not known.
    ReadsToWouldBlock = 1 << 25,
    /// The socket has failed: nothing more can be written. What has arrived is still delivered.
    Broken = 1 << 26,
    /// Nothing has arrived for the service since the handshake.
    NoPlaintextYet = 1 << 24,
}

impl Flags {
    pub(crate) fn contains(self, flag: Flag) -> bool {
        self.0 & flag as u32 != 0
    }

    /// Whether one of them is there.
    pub(crate) fn any(self, flags: &[Flag]) -> bool {
        self.0 & flags.iter().fold(0, |all, &flag| all | flag as u32) != 0
    }

    pub(crate) fn set(&mut self, flag: Flag, on: bool) {
        if on { self.insert(flag) } else { self.remove(flag) }
    }

    pub(crate) fn insert(&mut self, flag: Flag) {
        self.0 |= flag as u32;
    }

    pub(crate) fn insert_if(&mut self, flag: Flag, on: bool) {
        self.0 |= (flag as u32) * u32::from(on);
    }

    pub(crate) fn remove(&mut self, flag: Flag) {
        self.0 &= !(flag as u32);
    }

    pub(crate) fn remove_if(&mut self, flag: Flag, on: bool) {
        self.0 &= !((flag as u32) * u32::from(on));
    }

    /// Lowers it, and says whether it was there.
    pub(crate) fn take(&mut self, flag: Flag) -> bool {
        let had = self.contains(flag);
        self.remove(flag);
        had
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_is_set_and_cleared_alone() {
        let mut flags = Flags::default();
        flags.insert(Flag::Readable);
        flags.set(Flag::UsedReservedSlot, true);
        flags.insert_if(Flag::Paused, false);
        assert!(
            flags.contains(Flag::Readable)
                && flags.contains(Flag::UsedReservedSlot)
                && !flags.contains(Flag::Paused)
        );
        assert!(flags.any(&[Flag::Paused, Flag::Readable]) && !flags.any(&[Flag::Paused, Flag::Full]));
        assert!(flags.take(Flag::Readable) && !flags.take(Flag::Readable));
        flags.set(Flag::UsedReservedSlot, false);
        assert_eq!(flags, Flags::default());
    }
}
