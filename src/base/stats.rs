//! `Stats`: the counters of the loop.

use crate::base::reason::{CloseReason, Refusal};

/// The counters of a loop since it was made, as a copy: see [`Reactor::stats`](crate::Reactor::stats).
///
/// Between turns, `accepted + dialed + adopted` equals the number of connections that exist plus the sum of
/// [`closed`](Stats::closed). Refused peers are in neither.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tidemill::{Limits, Reactor};
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// reactor.turn(Some(Duration::ZERO))?;
/// assert_eq!((reactor.stats().turns, reactor.stats().accepted), (1, 0));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Turns of the loop.
    pub turns: u64,
    /// Events that the kernel reported.
    pub events: u64,
    /// Events of [watched](crate::Sockets::watch) descriptors: calls of `ready`.
    pub watch_events: u64,
    /// Events for a connection that had ended already.
    pub stale_events: u64,
    /// Connections accepted for a service.
    pub accepted: u64,
    /// Connections dialed, successfully or not.
    pub dialed: u64,
    /// Connected streams that were [adopted](crate::Sockets::adopt_stream).
    pub adopted: u64,
    /// Peers refused after they were accepted, for any reason except a missing descriptor.
    pub refused: u64,
    /// Refused peers by reason, in the order of [`Refusal::WORDS`].
    pub refused_by_reason: [u64; Refusal::COUNT],
    /// Peers that were accepted only because of a [dry run](crate::AccessPolicy::dry_run), by the reason for which they
    /// would have been refused.
    pub would_refuse: [u64; Refusal::COUNT],
    /// How often a connection was not read because its rate, or that of its group, was used up.
    pub throttled: u64,
    /// How often that would have happened without a dry run.
    pub would_throttle: u64,
    /// Completed TLS handshakes.
    pub handshakes: u64,
    /// Inbound TLS handshakes that had to wait because [`Limits::handshakes`](crate::Limits::handshakes) were in
    /// progress.
    pub handshakes_delayed: u64,
    /// Host names given to the resolver.
    pub lookups: u64,
    /// Socket options that the system refused to set.
    pub options_refused: u64,
    /// Peers closed at once, without a reply, because no descriptor was left.
    pub shed: u64,
    /// Calls of accept(2) that failed for a reason of the peer: it had reset the connection already, for example.
    pub accept_aborted: u64,
    /// How often a listener stopped accepting for a while because the process had no descriptor, or the kernel no
    /// memory.
    pub starved: u64,
    /// Connections ended, by reason, in the order of [`CloseReason::WORDS`].
    pub closed: [u64; CloseReason::COUNT],
    /// Bytes received from peers, TLS records included.
    pub bytes_in: u64,
    /// Bytes written to the kernel, TLS records included.
    pub bytes_out: u64,
    /// Bytes of these that moved inside the kernel: from one connection to another (see
    /// [`Limits::splices`](crate::Limits::splices)), or from a file.
    pub spliced: u64,
    /// Plaintext bytes for which a filter had no room where the received bytes were: see
    /// [`Opened::more`](crate::Opened::more).
    pub bytes_expanded: u64,
    /// System calls that read from a connection.
    pub reads: u64,
    /// System calls that wrote to a connection.
    pub writes: u64,
    /// Bytes that a service sent on a connection after finishing or closing it; they were dropped.
    pub sent_too_late: u64,
    /// Posts of other threads that were run.
    pub posts: u64,
    /// Calls of [`Service::poked`](crate::Service::poked).
    pub pokes: u64,
    /// Turns in which the loop was made to sleep 1 ms, because the last 1,000 turns neither slept nor made progress.
    pub livelocks_broken: u64,
}

impl Stats {
    /// Adds the counters of another loop, of another shard for example.
    pub fn add(&mut self, other: &Stats) {
        // In full, so that a new counter is not forgotten.
        let Stats {
            turns,
            events,
            watch_events,
            stale_events,
            accepted,
            dialed,
            adopted,
            refused,
            refused_by_reason,
            would_refuse,
            throttled,
            would_throttle,
            handshakes,
            handshakes_delayed,
            lookups,
            options_refused,
            shed,
            accept_aborted,
            starved,
            closed,
            bytes_in,
            bytes_out,
            spliced,
            bytes_expanded,
            reads,
            writes,
            sent_too_late,
            posts,
            pokes,
            livelocks_broken,
        } = self;
        let counters = [
            (turns, other.turns),
            (events, other.events),
            (watch_events, other.watch_events),
            (stale_events, other.stale_events),
            (accepted, other.accepted),
            (dialed, other.dialed),
            (adopted, other.adopted),
            (refused, other.refused),
            (throttled, other.throttled),
            (would_throttle, other.would_throttle),
            (handshakes, other.handshakes),
            (handshakes_delayed, other.handshakes_delayed),
            (lookups, other.lookups),
            (options_refused, other.options_refused),
            (shed, other.shed),
            (accept_aborted, other.accept_aborted),
            (starved, other.starved),
            (bytes_in, other.bytes_in),
            (bytes_out, other.bytes_out),
            (spliced, other.spliced),
            (bytes_expanded, other.bytes_expanded),
            (reads, other.reads),
            (writes, other.writes),
            (sent_too_late, other.sent_too_late),
            (posts, other.posts),
            (pokes, other.pokes),
            (livelocks_broken, other.livelocks_broken),
        ];
        counters.into_iter().for_each(|(sum, count)| *sum += count);
        refused_by_reason.iter_mut().zip(other.refused_by_reason).for_each(|(sum, count)| *sum += count);
        would_refuse.iter_mut().zip(other.would_refuse).for_each(|(sum, count)| *sum += count);
        closed.iter_mut().zip(other.closed).for_each(|(sum, count)| *sum += count);
    }
}

impl Stats {
    /// How many connections ended for a reason. An error number inside the reason is ignored.
    ///
    /// ```
    /// use tidemill::{CloseReason, Stats};
    ///
    /// assert_eq!(Stats::default().closed_count(CloseReason::Idle), 0);
    /// ```
    pub fn closed_count(&self, why: CloseReason) -> u64 {
        self.closed[why.index()]
    }

    /// How many peers were refused for a reason.
    ///
    /// ```
    /// use tidemill::{Refusal, Stats};
    ///
    /// assert_eq!(Stats::default().refused_count(Refusal::Denied), 0);
    /// ```
    pub fn refused_count(&self, why: Refusal) -> u64 {
        self.refused_by_reason[why as usize]
    }

    /// What the reads of a turn have brought, by which their number is bounded.
    pub(crate) fn bytes_opened(&self) -> u64 {
        self.bytes_in + self.bytes_expanded
    }

    /// How many connections ended, for all reasons together.
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }
}
