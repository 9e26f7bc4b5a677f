//! What a proxy knows of a client until its end, and the line in the log that comes of it.
//!
//! ```text
//!     Dialing ── connected ──▶ two sessions ── one end has gone ──▶ FirstEnd ── so has the other ──▶ Line
//!        └──────── the client has gone, without an upstream ─────────────────────────────────────────▶┘
//! ```
//!
//! A pair lasts for longer than everything else here, so it takes no memory besides its two sessions.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::outbound::Attempt;
use crate::base::address::Address;
use crate::base::reason::{ClosedInfo, Refusal, Refused};
use crate::framing::proxy_header::ProxyHeader;
use crate::parts::timers::TimerId;

/// A span in whole microseconds, up to 8.9 years. In six bytes, so that it fits into a [`Role`](super::Role) beside an
/// id.
#[derive(Clone, Copy, Debug)]
pub struct Micros([u16; 3]);

/// A client while an upstream is dialed for it.
#[derive(Debug)]
pub(super) struct Dialing {
    pub(super) client: Address,
    /// When it was admitted, since the reactor was made.
    pub(super) started: Duration,
    /// The upstream that was tried last.
    pub(super) upstream: usize,
    /// How the last attempt has failed.
    pub(super) failed: Option<ClosedInfo>,
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

/// The end of a pair that has gone first, while the other has not.
#[derive(Debug)]
pub(super) enum FirstEnd {
    /// With how long it was here.
    Client(ClosedInfo, Duration),
    /// With how long it took to connect.
    Upstream(ClosedInfo, Duration),
}

/// The line in the log, behind the addresses.
pub(super) struct Line<'a> {
    pub(super) client: &'a ClosedInfo,
    /// How long the client was here.
    pub(super) duration: Duration,
    /// How long it took to connect the upstream.
    pub(super) connected: Option<Duration>,
    /// The upstream that was connected, or the attempt that failed last.
    pub(super) upstream: Option<&'a ClosedInfo>,
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

impl Micros {
    pub(super) fn of(span: Duration) -> Micros {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).min((1 << 48) - 1);
        Micros([micros as u16, (micros >> 16) as u16, (micros >> 32) as u16])
    }
}

impl From<Micros> for Duration {
    fn from(Micros(parts): Micros) -> Duration {
        Duration::from_micros(parts.iter().rev().fold(0, |micros, &part| micros << 16 | u64::from(part)))
    }
}

impl Dialing {
    /// The header for the upstream: the address of the client, and the one that it connected to. On a listener for both
    /// versions of IP, addresses of IPv4 are sent as such.
    pub(super) fn header(&self) -> ProxyHeader {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let destination = self.destination.as_ref().and_then(Address::inet);
        let ends = self.client.inet().zip(destination);
        ends.map_or(ProxyHeader::Unknown, |(source, destination)| ProxyHeader::For {
            source: canonical(source),
            destination: canonical(destination),
        })
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Microseconds are precise enough; `connected` has no more.
        let (client, duration) = (self.client, Duration::from(Micros::of(self.duration)));
        write!(f, "in={} out={} duration={duration:?}", client.bytes_in, client.bytes_out)?;
        if let Some(connected) = self.connected {
            write!(f, " connected={connected:?}")?;
        }
        write!(f, " client={}", client.reason.word())?;
        let Some(upstream) = self.upstream else { return Ok(()) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_8_years_keeps_its_microseconds() {
        for micros in [0, 1, 65_535, 65_536, 4_294_967_296, 8 * 365 * 86_400 * 1_000_000 + 1] {
            let span = Duration::from_micros(micros);
            assert_eq!(Duration::from(Micros::of(span + Duration::from_nanos(999))), span);
        }
    }

    #[test]
    fn a_span_that_is_too_long_counts_as_the_longest() {
        assert_eq!(Duration::from(Micros::of(Duration::MAX)), Duration::from_micros((1 << 48) - 1));
    }
}
