//! How far a connection has come: its stage, its two directions, its filter, and the flags beside them.

use crate::base::id::ConnId;

/// Where a connection is in its life.
///
/// ```text
///                   connected                close            queue empty: FIN sent
///     Connecting ────────────▶ Open ────────────────▶ Closing ────────────▶ Lingering
///         │                     │                        │    (input is discarded until  │
///         │ failed              │ both ends finished,    │     the peer's end, 1 s or    │
///         ▼                     ▼ reset, abort           ▼     64 KiB)                   ▼
///      Dead ◀────────────────────────────────────────────────────────────────────────── Dead ──▶ reaped
/// ```
///
/// A peer that is refused enters at `Closing`, behind the reply it gets, or at `Tarpitted`, where it is neither read
/// nor answered until its time is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Connecting,
    Open,
    Tarpitted,
    Closing,
    Lingering,
    Dead,
}

/// One direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    Open,
    /// Incoming: the kernel has announced an end, an error or urgent data, so a short read proves nothing. Outgoing:
    /// our FIN follows what is queued.
    Ending,
    /// Incoming: the end has been read. Outgoing: our FIN has been sent, or nothing can be written any more.
    Ended,
}

/// How far the filter (TLS) of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum FilterStage {
    /// There is none: bytes go as they are.
    Off,
    /// Asked for; the handshake starts with the next thing that happens.
    Asked,
    /// It waits for one of the places for handshakes.
    Queued,
    Handshaking,
    Open,
    /// Nothing more is encrypted: close_notify is queued, or the filter has failed.
    Ended,
}

impl FilterStage {
    /// Whether there is a filter whose handshake is not complete.
    pub(crate) fn is_handshaking(self) -> bool {
        matches!(self, FilterStage::Asked | FilterStage::Queued | FilterStage::Handshaking)
    }
}

/// The state of a connection, and which directions are open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum State {
    /// Its name is being looked up.
    Resolving,
    /// It is being connected.
    Connecting,
    /// Both directions are open.
    Open,
    /// We have finished; the peer may still send.
    ReadOnly,
    /// The peer has ended; we may still send.
    WriteOnly,
    /// It is closed, or both directions have ended: what is queued is still sent, nothing more is delivered.
    Closing,
}

/// Where a connection came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// A listener accepted it.
    Accepted,
    /// A service dialed it.
    Dialed {
        /// The connection whose callback dialed; none when it was dialed from outside.
        by: Option<ConnId>,
    },
}

/// A set of [`Flag`]s in one word, so that a question about several of them is one comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(u16);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Flag {
    /// A read may succeed. The kernel reports readiness once (edge-triggered), so it is remembered here.
    Readable = 1,
    /// A write may succeed.
    Writable = 1 << 1,
    /// It is in the list of connections to read.
    Ready = 1 << 2,
    /// What an earlier delivery has left is to be delivered again.
    Redeliver = 1 << 3,
    /// We dialed it; otherwise it was accepted.
    Dialed = 1 << 4,
    /// It counts for its address in its service's access policy.
    Counted = 1 << 5,
    /// The socket has failed: nothing more can be written. What has arrived is still delivered.
    Broken = 1 << 6,
    /// What arrives goes to another connection and not to the service.
    Piped = 1 << 7,
    /// And that within the kernel, through a kernel pipe.
    Spliced = 1 << 8,
    /// A further slot is kept for the connection that it will dial.
    HoldsReservedSlot = 1 << 9,
    /// It has dialed into that slot.
    UsedReservedSlot = 1 << 10,
    /// It is read although its own queue is full: its service asked for that.
    ReadWhenFull = 1 << 11,
    // -- holds: what keeps a connection from being read -----------------------------------------------------
    /// Its service has paused it.
    Paused = 1 << 12,
    /// Its queue has passed the high-water mark and not come down to the low one. A hold unless it is piped or read
    /// when full.
    Full = 1 << 13,
    /// The connection that it is piped to, or that its service sends to, is full.
    ReceiverFull = 1 << 14,
    /// Its rate is used up for now.
    Throttled = 1 << 15,
}

impl Flags {
    #[inline]
    pub(crate) fn contains(self, flag: Flag) -> bool {
        self.0 & flag as u16 != 0
    }

    /// Whether one of them is there.
    #[inline]
    pub(crate) fn any(self, flags: &[Flag]) -> bool {
        self.0 & flags.iter().fold(0, |all, &flag| all | flag as u16) != 0
    }

    pub(crate) fn set(&mut self, flag: Flag, on: bool) {
        if on { self.insert(flag) } else { self.remove(flag) }
    }

    pub(crate) fn insert(&mut self, flag: Flag) {
        self.0 |= flag as u16;
    }

    pub(crate) fn insert_if(&mut self, flag: Flag, on: bool) {
        self.0 |= (flag as u16) * u16::from(on);
    }

    pub(crate) fn remove(&mut self, flag: Flag) {
        self.0 &= !(flag as u16);
    }

    pub(crate) fn remove_if(&mut self, flag: Flag, on: bool) {
        self.0 &= !((flag as u16) * u16::from(on));
    }

    /// Clears it, and says whether it was set.
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
        assert!(flags.contains(Flag::Readable) && flags.contains(Flag::UsedReservedSlot));
        assert!(!flags.contains(Flag::Writable));
        assert!(flags.take(Flag::Readable) && !flags.take(Flag::Readable));
        flags.set(Flag::UsedReservedSlot, false);
        assert_eq!(flags, Flags::default());
    }
}
