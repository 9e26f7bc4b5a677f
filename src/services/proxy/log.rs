//! What a proxy knows of one connection, and the line in the log that comes of it.

use std::fmt;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::id::ConnId;
use crate::base::reason::{CloseReason, ClosedInfo};
use crate::framing::proxy_header::ProxyHeader;

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
    pub(super) client_end: Option<Box<(CloseReason, ClosedInfo, Duration)>>,
    pub(super) upstream_end: Option<Box<(CloseReason, ClosedInfo)>>,
    /// The one that is being dialed or connected.
    pub(super) upstream_id: Option<ConnId>,
}

/// What is known of a connection while an upstream is dialed.
#[derive(Debug)]
pub(super) struct Dialing {
    /// What the client called.
    pub(super) destination: Option<Address>,
    /// Upstreams that have not been tried, in order.
    pub(super) untried: Vec<usize>,
}

impl Record {
    /// For whom its upstream is to be told that it stands.
    pub(super) fn header(&self) -> ProxyHeader {
        let destination = self.dialing.as_ref().and_then(|dialing| dialing.destination.as_ref());
        let ends = self.client.inet().zip(destination.and_then(Address::inet));
        ends.map_or(ProxyHeader::Unknown, |(source, destination)| ProxyHeader::For { source, destination })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((client, info, duration)) = self.client_end.as_deref() else { return Ok(()) };
        // Nobody needs the nanoseconds.
        let micros = |span: Duration| Duration::from_micros(span.as_micros() as u64);
        write!(f, "in={} out={} duration={:?}", info.bytes_in, info.bytes_out, micros(*duration))?;
        if let Some(connected) = self.connected {
            write!(f, " connected={:?}", micros(connected))?;
        }
        write!(f, " client={}", client.word())?;
        match self.upstream_end.as_deref() {
            None => Ok(()),
            Some((upstream, info)) => match info.error_text() {
                Some(error) => write!(f, " upstream={} ({error})", upstream.word()),
                None => write!(f, " upstream={}", upstream.word()),
            },
        }
    }
}

/// Why an upstream that was not connected has ended, unless we wanted that.
pub(super) fn failure_text(why: CloseReason, info: &ClosedInfo) -> Option<String> {
    let wanted = matches!(why, CloseReason::Local | CloseReason::Shutdown);
    (!wanted).then(|| info.error_text().unwrap_or_else(|| why.to_string()))
}

use crate::base::reason::{Refusal, Refused};
use crate::parts::timers::TimerId;

/// Who was turned away since the log last said so. A flood of callers must not become a flood of lines.
#[derive(Debug, Default)]
pub(super) struct RefusedSummary {
    pub(super) counts: [u64; Refusal::COUNT],
    pub(super) last: Option<Refused>,
    /// When it will say so.
    pub(super) timer: Option<TimerId>,
}

impl fmt::Display for RefusedSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused {}:", self.counts.iter().sum::<u64>())?;
        for (word, count) in Refusal::WORDS.iter().zip(self.counts).filter(|(_, count)| *count > 0) {
            write!(f, " {word}={count}")?;
        }
        self.last.as_ref().map_or(Ok(()), |last| write!(f, ", last {}", last.peer))
    }
}
