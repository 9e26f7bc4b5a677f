//! One connection: what is known about it between two turns, and when it is due.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::closed::Closed;
use crate::id::ConnId;
use crate::inbox::Inbox;
use crate::limits::{Pace, SocketLimits};
use crate::outbox::Outbox;
use crate::time::Tick;

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
    peer: Peer,
    pub(crate) by: Option<ConnId>,
    pub(crate) why: Option<Closed>,
    pub(crate) inbox: Option<Box<Inbox>>,
    pub(crate) outbox: Option<Box<Outbox>>,
    pub(crate) born: Tick,
    /// The last activity. Refreshing a timeout is this one store; see the wheel.
    pub(crate) touched: Tick,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Input thrown away while closing.
    pub(crate) discarded: u32,
}

/// Ten thousand idle connections are ten thousand of these; see "What an idle connection costs" in the docs.
const _: () = assert!(size_of::<Connection>() <= 120);

pub(crate) const NOT_DIRTY: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Connecting,
    Open,
    Closing,
    Lingering,
    Doomed,
}

/// What is true of a connection, one bit of meaning each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    /// A read may succeed.
    pub(crate) readable: bool,
    /// A write may succeed.
    pub(crate) writable: bool,
    /// The kernel said that the peer's end (or an error) is on its way: a short read proves nothing then.
    pub(crate) end_announced: bool,
    /// The peer's end has been read.
    pub(crate) ended: bool,
    /// Our end follows the queue.
    pub(crate) finishing: bool,
    /// Our end has been sent.
    pub(crate) finished: bool,
    pub(crate) paused: bool,
    /// The queue passed the high-water mark and has not come down to the low one.
    pub(crate) full: bool,
    /// It is in the list of connections to serve.
    pub(crate) ready: bool,
    /// What a paused service left is to be delivered again.
    pub(crate) redeliver: bool,
    /// We called; otherwise the peer did.
    pub(crate) dialed: bool,
}

/// What a deadline is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    Connect,
    Idle,
    HalfClosed,
    FirstByte,
    Lifetime,
    Unfinished,
    ReadPace,
    WritePace,
    Linger,
}

impl Connection {
    pub(crate) fn new(
        generation: NonZeroU32,
        host: u16,
        stage: Stage,
        peer: SocketAddr,
        now: Tick,
    ) -> Connection {
        Connection {
            generation,
            host,
            stage,
            dirty: NOT_DIRTY,
            flags: Flags::default(),
            peer: Peer::from(peer),
            by: None,
            why: None,
            inbox: None,
            outbox: None,
            born: now,
            touched: now,
            bytes_in: 0,
            bytes_out: 0,
            discarded: 0,
        }
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer.into()
    }

    /// Whether a user may still find it: closing connections are gone already, for those who would send to them.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Open)
    }

    /// Whether its service is willing to take input now. While it is not, the peer cannot be blamed for silence.
    pub(crate) fn is_willing(&self, limits: &SocketLimits) -> bool {
        !self.flags.paused && (!self.flags.full || limits.read_when_full)
    }

    /// Whether a turn should spend a read on it.
    pub(crate) fn wants_read(&self, limits: &SocketLimits) -> bool {
        self.flags.readable
            && !self.flags.ended
            && match self.stage {
                Stage::Open => self.is_willing(limits),
                Stage::Closing | Stage::Lingering => true,
                Stage::Connecting | Stage::Doomed => false,
            }
    }

    /// Whether a turn should look at it at all.
    pub(crate) fn wants_serving(&self, limits: &SocketLimits) -> bool {
        let settling = self.stage == Stage::Connecting && self.flags.writable;
        let leftover = self.stage == Stage::Open && self.flags.redeliver && self.is_willing(limits);
        settling || leftover || self.wants_read(limits)
    }

    /// Whether our end is to be sent as soon as nothing is queued.
    pub(crate) fn owes_end(&self) -> bool {
        (self.flags.finishing || self.stage == Stage::Closing) && !self.flags.finished
    }

    pub(crate) fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.queued())
    }

    /// Bytes kept for it, in and out: what eviction looks at.
    pub(crate) fn held(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.charge()) + self.queued()
    }

    /// The earliest thing that will be due if nothing happens before, and when.
    pub(crate) fn deadline(&self, limits: &SocketLimits) -> Option<(Tick, Due)> {
        let mut earliest = Earliest(None);
        match self.stage {
            Stage::Connecting => earliest.consider(self.born, limits.connect, Due::Connect),
            Stage::Lingering => earliest.consider(self.touched, Some(limits.linger), Due::Linger),
            Stage::Closing => earliest.consider(self.touched, limits.half_closed, Due::HalfClosed),
            Stage::Open => self.consider_open(limits, &mut earliest),
            Stage::Doomed => {}
        }
        if let (Stage::Open | Stage::Closing, Some(outbox)) = (self.stage, &self.outbox) {
            earliest.consider(outbox.span.since, limits.write_pace.map(|pace| pace.per), Due::WritePace);
        }
        earliest.0
    }

    fn consider_open(&self, limits: &SocketLimits, earliest: &mut Earliest) {
        if self.flags.ended || self.flags.finished {
            earliest.consider(self.touched, limits.half_closed, Due::HalfClosed);
        }
        earliest.consider(self.touched, limits.idle, Due::Idle);
        earliest.consider(self.born, limits.lifetime, Due::Lifetime);
        if self.bytes_in == 0 && !self.flags.dialed {
            earliest.consider(self.born, limits.first_byte, Due::FirstByte);
        }
        if let (Some(inbox), true, false) = (&self.inbox, self.is_willing(limits), self.flags.ended) {
            earliest.consider(inbox.began, limits.message_within, Due::Unfinished);
            earliest.consider(inbox.span.since, limits.read_pace.map(|pace| pace.per), Due::ReadPace);
        }
    }

    /// Whether a pace that fell due was kept; the next span begins in that case.
    pub(crate) fn kept_pace(&mut self, due: Due, limits: &SocketLimits, now: Tick) -> bool {
        let (span, pace) = match due {
            Due::ReadPace => (self.inbox.as_mut().map(|inbox| &mut inbox.span), limits.read_pace),
            _ => (self.outbox.as_mut().map(|outbox| &mut outbox.span), limits.write_pace),
        };
        let (Some(span), Some(Pace { bytes, .. })) = (span, pace) else { return true };
        let kept = span.moved >= bytes;
        span.since = now;
        span.moved = 0;
        kept
    }
}

/// The least of several deadlines.
struct Earliest(Option<(Tick, Due)>);

impl Earliest {
    fn consider(&mut self, since: Tick, span: Option<Duration>, due: Due) {
        let Some(span) = span else { return };
        let when = since.after(span);
        if self.0.is_none_or(|(earliest, _)| when < earliest) {
            self.0 = Some((when, due));
        }
    }
}

/// A peer's address in 24 bytes instead of [`SocketAddr`]'s 32: version 4 is held as mapped into version 6.
#[derive(Clone, Copy, Debug)]
struct Peer {
    ip: [u8; 16],
    scope: u32,
    port: u16,
    v4: bool,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        match address {
            SocketAddr::V4(v4) => {
                Peer { ip: v4.ip().to_ipv6_mapped().octets(), scope: 0, port: v4.port(), v4: true }
            }
            SocketAddr::V6(v6) => {
                Peer { ip: v6.ip().octets(), scope: v6.scope_id(), port: v6.port(), v4: false }
            }
        }
    }
}

impl From<Peer> for SocketAddr {
    fn from(peer: Peer) -> SocketAddr {
        let ip = Ipv6Addr::from(peer.ip);
        if peer.v4 {
            return SocketAddr::new(IpAddr::V6(ip).to_canonical(), peer.port);
        }
        SocketAddr::V6(SocketAddrV6::new(ip, peer.port, 0, peer.scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(stage: Stage) -> Connection {
        Connection::new(NonZeroU32::MIN, 0, stage, "127.0.0.1:9".parse().unwrap(), Tick(100))
    }

    fn due(connection: &Connection, limits: &SocketLimits) -> Option<Due> {
        connection.deadline(limits).map(|(_, due)| due)
    }

    #[test]
    fn an_address_comes_back_as_it_went_in() {
        for text in ["127.0.0.1:80", "[::1]:9001", "[::ffff:10.0.0.1]:7", "[fe80::1%3]:443", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Peer::from(address)), address);
        }
    }

    #[test]
    fn each_stage_waits_for_something_of_its_own() {
        let limits = SocketLimits::default();
        assert_eq!(due(&connection(Stage::Connecting), &limits), Some(Due::Connect));
        assert_eq!(due(&connection(Stage::Open), &limits), Some(Due::Idle));
        assert_eq!(due(&connection(Stage::Closing), &limits), Some(Due::HalfClosed));
        assert_eq!(due(&connection(Stage::Lingering), &limits), Some(Due::Linger));
        assert_eq!(due(&connection(Stage::Doomed), &limits), None);
    }

    #[test]
    fn a_peer_is_not_blamed_for_silence_while_nobody_reads() {
        let limits = SocketLimits { idle: None, ..SocketLimits::default() };
        let mut connection = connection(Stage::Open);
        connection.inbox = Some(Box::default());
        assert_eq!(due(&connection, &limits), Some(Due::ReadPace));
        connection.flags.paused = true;
        assert_eq!(due(&connection, &limits), None);
        connection.flags.paused = false;
        connection.flags.full = true;
        assert_eq!(due(&connection, &limits), None);
        assert_eq!(due(&connection, &SocketLimits { read_when_full: true, ..limits }), Some(Due::ReadPace));
    }

    #[test]
    fn the_first_byte_is_asked_of_those_who_came_and_not_of_those_we_called() {
        let limits = SocketLimits { first_byte: Some(Duration::from_secs(1)), ..SocketLimits::default() };
        let mut connection = connection(Stage::Open);
        assert_eq!(due(&connection, &limits), Some(Due::FirstByte));
        connection.bytes_in = 1;
        assert_eq!(due(&connection, &limits), Some(Due::Idle));
    }
}
