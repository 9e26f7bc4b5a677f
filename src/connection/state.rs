//! The state of one connection: its stage, its two directions, its filter, and the flags.
//!
//! Read before: `event_loop/posts.rs`. Next: `connection/context.rs`. Each value has a type of its own, so that a
//! `match` on it names every case; what is only yes or no is a flag.

use crate::base::id::ConnId;

/// The stage of a connection. It only moves to the right and down.
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
/// An accepted connection starts at `Open`. A refused one is closed at once, so it is at `Closing` while its reply is
/// written, or it starts at `Tarpitted`, where it is neither read nor answered for 30 s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Connecting,
    Open,
    Tarpitted,
    Closing,
    Lingering,
    Dead,
}

/// One direction of a connection. A TCP connection ends in each direction by itself (half-close), so there are two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    Open,
    /// Incoming: the kernel has announced an end, an error or urgent data, so a short read does not prove that nothing
    /// is left. Outgoing: a FIN is sent after the queued bytes.
    Ending,
    /// Incoming: the peer's FIN has been read. Outgoing: our FIN has been sent, or a write has failed.
    Ended,
}

/// The progress of a connection's filter (TLS).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum FilterStage {
    /// There is no filter: bytes are sent as they are.
    Off,
    /// A filter is set, and no state of it is allocated. The handshake starts when the first byte has arrived, or at
    /// once if we are the client.
    Asked,
    /// It waits in the [`HandshakeQueue`](crate::parts::handshake_queue::HandshakeQueue) for one of
    /// `Limits::handshakes` places.
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

    /// Whether there is a filter whose handshake is complete.
    pub(crate) fn is_ready(self) -> bool {
        matches!(self, FilterStage::Open | FilterStage::Ended)
    }
}

/// The state of a connection as a service sees it, with the directions that are open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum State {
    /// The name that was dialed is being looked up.
    Resolving,
    /// An attempt to connect is under way, or the handshake that comes before `open` or `connected`.
    Connecting,
    /// Both directions are open.
    Open,
    /// We have called [`finish`](crate::Socket::finish), or a write has failed; the peer may still send.
    ReadOnly,
    /// The peer's FIN has been read; we may still send.
    WriteOnly,
    /// It is closed, or both directions have ended. Queued bytes are still sent, and nothing more is delivered.
    Closing,
}

/// How a connection began.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// A listener accepted it.
    Accepted,
    /// A service dialed it.
    Dialed {
        /// The connection in whose callback it was dialed; none if it was dialed through [`Sockets`](crate::Sockets),
        /// or dialed again.
        by: Option<ConnId>,
        /// The connection that it replaces, when it was [dialed again](crate::DialOptions::reconnect).
        after: Option<ConnId>,
    },
    /// It was connected elsewhere: see [`Sockets::adopt_stream`](crate::Sockets::adopt_stream).
    Adopted,
}

/// A set of [`Flag`]s in 16 bits. A test for any of several flags is one `and` and one comparison, which matters
/// because [`wants_read`](super::Connection::wants_read) is asked for every event and after every read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(u16);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Flag {
    /// A read may succeed. The kernel reports readiness once, when it begins (edge-triggered), so it is remembered here
    /// until a read has proved that nothing is left. If it were cleared too early, it would never be reported again.
    Readable = 1,
    /// A write may succeed. Remembered until a write says `WouldBlock`, for the same reason.
    Writable = 1 << 1,
    /// It is in `Context::ready`. Without this flag a connection could be added twice and be read twice in one turn.
    Ready = 1 << 2,
    /// Unread input must be delivered again before the next read: the budget of a delivery has hidden it, or the
    /// service has resumed.
    Redeliver = 1 << 3,
    /// We dialed it; otherwise it was accepted.
    Dialed = 1 << 4,
    /// It is counted for its address by the access policy of its service, and must be subtracted when it is reaped.
    Counted = 1 << 5,
    /// The socket has failed: no write can succeed. Bytes that arrived before are still read and delivered.
    Broken = 1 << 6,
    /// Received bytes are sent to the pipe peer, and `data` is not called.
    Piped = 1 << 7,
    /// They are moved inside the kernel, through a kernel pipe (splice(2)), and not copied.
    Spliced = 1 << 8,
    /// A second slot is reserved for the connection that it will dial.
    HoldsReservedSlot = 1 << 9,
    /// It has dialed, and that connection has the reserved slot.
    UsedReservedSlot = 1 << 10,
    /// It is read although its own queue is full (`SocketLimits::read_when_full`).
    ReadWhenFull = 1 << 11,
    // -- holds: reasons not to read a connection. Several can apply at once. -------------------------------
    /// Its service has paused it.
    Paused = 1 << 12,
    /// Its queue has reached `high_water` and has not come down to `low_water` since. Not a hold if it is piped (the
    /// two directions of a pipe are independent) or has `ReadWhenFull`.
    Full = 1 << 13,
    /// Its pipe peer is full or closing, or a connection that its service sent to during `data` is full.
    ReceiverFull = 1 << 14,
    /// Its rate, or the rate of its group, is used up. A deadline (`Due::Refill`) releases it.
    Throttled = 1 << 15,
}

impl Flags {
    #[inline]
    pub(crate) fn contains(self, flag: Flag) -> bool {
        self.0 & flag as u16 != 0
    }

    /// Whether at least one of these flags is set.
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

    /// Sets the flag if `on`; otherwise leaves it as it is. Without a branch, because one event sets several flags.
    pub(crate) fn insert_if(&mut self, flag: Flag, on: bool) {
        self.0 |= (flag as u16) * u16::from(on);
    }

    pub(crate) fn remove(&mut self, flag: Flag) {
        self.0 &= !(flag as u16);
    }

    pub(crate) fn remove_if(&mut self, flag: Flag, on: bool) {
        self.0 &= !((flag as u16) * u16::from(on));
    }

    /// Clears the flag; returns whether it was set.
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
