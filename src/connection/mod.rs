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

use crate::base::address::Peer;
use crate::base::id::ConnId;
use crate::base::reason::Closed;
use crate::base::tick::Tick;
use crate::connection::optional::{Clocks, Dial, Extra, Seal};
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
///     Doomed ◀─────────────────────────────────────────────────────────────────────── Doomed ──▶ reaped
/// ```
///
/// An idle one is this and nothing else: no buffer, no box. Readiness is remembered here, because the kernel
/// reports it once (edge-triggered): only `WouldBlock`, or a short read with no end announced, clears it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) generation: NonZeroU32,
    /// The service it belongs to.
    pub(crate) host: u16,
    pub(crate) stage: Stage,
    /// Where its entry in this turn's list of connections with something to write is, or [`NOT_DIRTY`].
    pub(crate) dirty: u32,
    pub(crate) flags: Flags,
    pub(crate) peer: Peer,
    /// Its own address, as an index into the table's list of them, or [`NO_LOCAL`].
    pub(crate) local: u8,
    pub(crate) extra: Option<Box<Extra>>,
    pub(crate) why: Option<Closed>,
    pub(crate) inbox: Option<Box<Inbox>>,
    pub(crate) outbox: Option<Box<Outbox>>,
    pub(crate) born: Tick,
    /// The last activity. Refreshing a timeout is this one store; see the wheel.
    pub(crate) touched: Tick,
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
    Doomed,
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
    pub(crate) fn new(generation: NonZeroU32, host: u16, stage: Stage, peer: Peer, now: Tick) -> Connection {
        Connection {
            generation,
            host,
            stage,
            dirty: NOT_DIRTY,
            flags: Flags::default(),
            peer,
            local: NO_LOCAL,
            extra: None,
            why: None,
            inbox: None,
            outbox: None,
            born: now,
            touched: now,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    pub(crate) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(crate) fn dial(&self) -> Option<&Dial> {
        self.extra.as_ref()?.dial.as_deref()
    }

    pub(crate) fn dial_mut(&mut self) -> &mut Dial {
        self.extra().dial.get_or_insert_default()
    }

    pub(crate) fn clocks(&self) -> Option<&Clocks> {
        self.extra.as_ref()?.clocks.as_deref()
    }

    pub(crate) fn seal(&self) -> Option<&Seal> {
        self.extra.as_ref()?.seal.as_deref()
    }

    pub(crate) fn seal_mut(&mut self) -> Option<&mut Seal> {
        self.extra.as_mut()?.seal.as_deref_mut()
    }

    pub(crate) fn clocks_mut(&mut self) -> Option<&mut Clocks> {
        self.extra.as_mut()?.clocks.as_deref_mut()
    }

    /// Whether a user may still find it: closing connections are gone already, for those who would send to them.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Open)
    }

    /// Whether it has called and its handshake is not done: its service has not met it.
    pub(crate) fn is_stranger(&self) -> bool {
        self.flags.has(Flag::Unmet) && !self.flags.has(Flag::Dialed)
    }

    /// Whether there is a stream that bytes can be written to.
    pub(crate) fn has_stream(&self) -> bool {
        !matches!(self.stage, Stage::Connecting | Stage::Doomed)
    }

    /// Whether its service, or the other end of its pipe, is willing to take input now. While it is not, the peer
    /// cannot be blamed for silence. The two directions of a pipe do not wait for each other: whether a piped
    /// connection is full itself is of no concern to what arrives at it.
    pub(crate) fn is_willing(&self) -> bool {
        let flags = &self.flags;
        if flags.has(Flag::Securing) {
            return !flags.has(Flag::Thirsty); // A handshake is nobody's input.
        }
        let taken = match flags.has(Flag::Piped) {
            true => !flags.has(Flag::Blocked),
            false => !flags.has(Flag::Full) || flags.has(Flag::ReadFull),
        };
        taken && !flags.any(&[Flag::Paused, Flag::Thirsty])
    }

    /// Whether a turn should spend a read on it.
    pub(crate) fn wants_read(&self) -> bool {
        self.flags.has(Flag::Readable)
            && !self.flags.has(Flag::Ended)
            && match self.stage {
                Stage::Open => self.is_willing() && !self.flags.has(Flag::Waiting),
                Stage::Closing | Stage::Lingering => true,
                Stage::Connecting | Stage::Doomed => false,
            }
    }

    /// Whether a turn should look at it at all.
    #[inline]
    pub(crate) fn wants_serving(&self) -> bool {
        match self.stage {
            Stage::Connecting => self.flags.has(Flag::Writable),
            Stage::Open => {
                let more = || self.flags.any(&[Flag::Redeliver, Flag::Securing]) && self.wants_more();
                self.wants_read() || more()
            }
            Stage::Closing | Stage::Lingering => self.wants_read(),
            Stage::Doomed => false,
        }
    }

    /// Whether it has something to do without a read: deliver again, or begin a handshake.
    #[inline(never)]
    fn wants_more(&self) -> bool {
        (self.flags.has(Flag::Redeliver) && self.is_willing()) || self.may_begin_handshake()
    }

    /// Whether there is something to begin a handshake with: what arrived before it was asked for, or, on our side, no
    /// need of anything.
    fn may_begin_handshake(&self) -> bool {
        let flags = &self.flags;
        flags.has(Flag::Securing)
            && !flags.has(Flag::Waiting)
            && self.seal().is_some_and(|seal| seal.how.is_some())
            && (flags.has(Flag::Dialed) || self.inbox.is_some())
    }

    /// Whether our end is to be sent as soon as nothing is queued.
    pub(crate) fn owes_end(&self) -> bool {
        (self.flags.has(Flag::Finishing) || self.stage == Stage::Closing) && !self.flags.has(Flag::Finished)
    }

    /// So many bytes have arrived.
    pub(crate) fn heard(&mut self, n: usize, now: Tick) {
        self.bytes_in += n as u64;
        if self.stage == Stage::Open {
            self.touched = now;
        }
        if let Some(quiet) = self.clocks_mut().and_then(|clocks| clocks.reading.as_mut()) {
            quiet.since = now;
        }
    }

    /// The kernel says that nothing more has arrived.
    pub(crate) fn run_dry(&mut self) {
        self.flags.lower(Flag::Readable);
        // The announcement was early or spurious; the end itself will raise a new edge.
        self.flags.lower(Flag::EndAnnounced);
    }

    /// The kernel has taken so many bytes.
    pub(crate) fn wrote(&mut self, n: usize, now: Tick) {
        self.bytes_out += n as u64;
        self.touched = now;
        if let Some(quiet) = self.clocks_mut().and_then(|clocks| clocks.writing.as_mut()) {
            quiet.since = now;
        }
    }

    /// Queued bytes that go as they are, although it is secured: they were sent before.
    pub(crate) fn bare(&self) -> usize {
        self.seal().map_or(0, |seal| seal.bare)
    }

    /// Whether what is queued has a way out: not before it is connected, nor, secured, before the handshake is done.
    pub(crate) fn can_write(&self) -> bool {
        let open = !self.flags.has(Flag::Securing) || self.flags.has(Flag::SealedEnd) || self.bare() > 0;
        self.has_stream() && (open || self.outbox.as_ref().is_some_and(|outbox| outbox.has_sealed()))
    }

    pub(crate) fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.queued())
    }

    /// Bytes kept for it, in and out: what eviction looks at.
    pub(crate) fn held(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.charge())
            + self.outbox.as_ref().map_or(0, |outbox| outbox.held())
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
    /// The kernel said that the peer's end (or an error) is on its way: a short read proves nothing then.
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
    ReadFull = 1 << 17,
    /// What a paused service left is to be delivered again.
    Redeliver = 1 << 9,
    /// We called; otherwise the peer did.
    Dialed = 1 << 10,
    /// What arrives goes to another connection and not to the service.
    Piped = 1 << 11,
    /// And that within the kernel, through a conduit.
    Spliced = 1 << 18,
    /// That other one is full.
    Blocked = 1 << 12,
    /// Its rate is used up for now.
    Thirsty = 1 << 13,
    /// It counts for its address at its service's guard.
    Counted = 1 << 14,
    /// It was let in on the understanding that it would dial another, and a further slot is kept for that.
    KeepsSecond = 1 << 15,
    /// It has dialed into that slot.
    UsedSecond = 1 << 16,
    /// What it sends and receives goes through a filter.
    Sealed = 1 << 19,
    /// Its handshake is under way, or is to begin.
    Securing = 1 << 20,
    /// It stands in line for a handshake.
    Waiting = 1 << 21,
    /// Its service is to hear of it, or that it is connected, when the handshake is done.
    Unmet = 1 << 22,
    /// The filter has said that we will send nothing more.
    SealedEnd = 1 << 23,
    /// Nothing has arrived for the service since the handshake.
    Mute = 1 << 24,
}

impl Flags {
    pub(crate) fn has(self, flag: Flag) -> bool {
        self.0 & flag as u32 != 0
    }

    /// Whether one of them is there.
    pub(crate) fn any(self, flags: &[Flag]) -> bool {
        self.0 & flags.iter().fold(0, |all, &flag| all | flag as u32) != 0
    }

    pub(crate) fn set(&mut self, flag: Flag, on: bool) {
        if on { self.raise(flag) } else { self.lower(flag) }
    }

    pub(crate) fn raise(&mut self, flag: Flag) {
        self.0 |= flag as u32;
    }

    pub(crate) fn raise_if(&mut self, flag: Flag, on: bool) {
        self.0 |= (flag as u32) * u32::from(on);
    }

    pub(crate) fn lower(&mut self, flag: Flag) {
        self.0 &= !(flag as u32);
    }

    pub(crate) fn lower_if(&mut self, flag: Flag, on: bool) {
        self.0 &= !((flag as u32) * u32::from(on));
    }

    /// Lowers it, and says whether it was there.
    pub(crate) fn take(&mut self, flag: Flag) -> bool {
        let had = self.has(flag);
        self.lower(flag);
        had
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_raised_and_lowered_alone() {
        let mut flags = Flags::default();
        flags.raise(Flag::Readable);
        flags.set(Flag::UsedSecond, true);
        flags.raise_if(Flag::Paused, false);
        assert!(flags.has(Flag::Readable) && flags.has(Flag::UsedSecond) && !flags.has(Flag::Paused));
        assert!(flags.any(&[Flag::Paused, Flag::Readable]) && !flags.any(&[Flag::Paused, Flag::Full]));
        assert!(flags.take(Flag::Readable) && !flags.take(Flag::Readable));
        flags.set(Flag::UsedSecond, false);
        assert_eq!(flags, Flags::default());
    }
}
