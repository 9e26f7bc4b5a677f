//! What a proxy knows of one connection, and the line in the log that comes of it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::outbound::Attempt;
use crate::base::address::Address;
use crate::base::id::ConnId;
use crate::base::reason::{ClosedInfo, Refusal, Refused};
use crate::framing::proxy_header::ProxyHeader;
use crate::parts::timers::TimerId;

/// What will stand in the log.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) client: Address,
    /// Since the reactor was made.
    pub(super) started: Duration,
    pub(super) upstream: usize,
    /// Until it is connected.
    pub(super) dialing: Option<Box<Dialing>>,
    pub(super) connected: Option<Duration>,
    /// How each end has ended, what it had moved, and how long the client was here. In a box, because most of its
    /// time a pair has none.
    pub(super) client_end: Option<Box<(ClosedInfo, Duration)>>,
    pub(super) upstream_end: Option<Box<ClosedInfo>>,
    /// The upstream that is connected.
    pub(super) upstream_id: Option<ConnId>,
}

/// What is known of a connection while an upstream is dialed.
#[derive(Debug)]
pub(super) struct Dialing {
    /// What the client called.
    pub(super) destination: Option<Address>,
    /// Upstreams that have not been tried; the last is the next.
    pub(super) untried: Vec<usize>,
    /// How long an attempt has before another is begun beside it.
    pub(super) delay: Duration,
    /// Attempts under way.
    pub(super) in_flight: Vec<Attempt>,
    /// In the order in which clients were admitted.
    pub(super) number: u64,
    pub(super) route: Option<usize>,
    /// When the attempts must have succeeded, since the reactor was made.
    pub(super) deadline: Duration,
    /// Whether it waits for an upstream to come up, or has.
    pub(super) held: Held,
}

/// Whether a client is held while no upstream can be connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Held {
    #[default]
    Never,
    /// It is in the line.
    Now,
    /// It was, and tries again.
    Before,
}

impl Record {
    /// Whether each upstream has as many connections as it may.
    pub(super) fn has_no_choice(&self) -> bool {
        self.dialing.as_ref().is_some_and(|dialing| dialing.untried.is_empty())
    }

    /// Whether both ends have gone and no attempt is under way.
    pub(super) fn is_over(&self) -> bool {
        let attempts = self.dialing.as_ref().is_some_and(|dialing| !dialing.in_flight.is_empty());
        self.client_end.is_some() && self.upstream_id.is_none() && !attempts
    }

    /// The header for the upstream: the address of the client, and the one that it connected to. On a listener for both
    /// versions of IP, addresses of IPv4 are sent as such.
    pub(super) fn header(&self) -> ProxyHeader {
        let destination = self.dialing.as_ref().and_then(|dialing| dialing.destination.as_ref());
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let ends = self.client.inet().map(canonical).zip(destination.and_then(Address::inet).map(canonical));
        ends.map_or(ProxyHeader::Unknown, |(source, destination)| ProxyHeader::For { source, destination })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((client, duration)) = self.client_end.as_deref() else { return Ok(()) };
        // Microseconds are precise enough.
        let micros = |span: Duration| Duration::from_micros(span.as_micros() as u64);
        write!(f, "in={} out={} duration={:?}", client.bytes_in, client.bytes_out, micros(*duration))?;
        if let Some(connected) = self.connected {
            write!(f, " connected={:?}", micros(connected))?;
        }
        write!(f, " client={}", client.reason.word())?;
        let Some(upstream) = self.upstream_end.as_deref() else { return Ok(()) };
        write!(f, " upstream={}", upstream.reason.word())?;
        upstream.error_text().map_or(Ok(()), |error| write!(f, " ({error})"))
    }
}

/// Peers that were refused since the log last told. A flood of them must not become a flood of lines.
#[derive(Debug, Default)]
pub(super) struct RefusedSummary {
    pub(super) counts: [u64; Refusal::COUNT],
    pub(super) last: Option<Refused>,
    /// Clients that were accepted, and for which each upstream had as many connections as it may.
    pub(super) no_upstream: u64,
    /// Clients that match no route, where there is no upstream for these.
    pub(super) no_route: u64,
    /// When the log will tell.
    pub(super) timer: Option<TimerId>,
}

impl fmt::Display for RefusedSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = [("all-upstreams-full", self.no_upstream), ("no-route", self.no_route)];
        let all = own.into_iter().chain(Refusal::WORDS.into_iter().zip(self.counts));
        write!(f, "refused {}:", all.clone().map(|(_, count)| count).sum::<u64>())?;
        for (word, count) in all.filter(|(_, count)| *count > 0) {
            write!(f, " {word}={count}")?;
        }
        self.last.as_ref().map_or(Ok(()), |last| write!(f, ", last {}", last.peer))
    }
}
