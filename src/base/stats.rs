//! Counters the loop keeps.

use crate::base::reason::{CloseReason, Refusal};

/// What the loop has counted since it was made. A copy; see [`Reactor::stats`](crate::Reactor::stats).
///
/// At every moment between turns `accepted + dialed` is the number of connections that are there, plus the sum of
/// [`closed`](Stats::closed).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Turns of the loop.
    pub turns: u64,
    /// Events that the kernel reported.
    pub events: u64,
    /// Events for a connection that was gone already.
    pub stale_events: u64,
    /// Connections let in.
    pub accepted: u64,
    /// Connections dialed.
    pub dialed: u64,
    /// Peers refused when they were accepted, for whatever reason but want of a descriptor.
    pub refused: u64,
    /// Peers turned away, by reason, in the order of [`Refusal::WORDS`].
    pub refused_by_reason: [u64; Refusal::COUNT],
    /// Peers that a [dry run](crate::AccessPolicy::dry_run) let in, by the reason for which they would have been turned
    /// away.
    pub would_refuse: [u64; Refusal::COUNT],
    /// Times that a connection had to wait because its rate, or its group's, was used up.
    pub throttled: u64,
    /// Times that one would have had to wait, but for a dry run.
    pub would_throttle: u64,
    /// TLS handshakes that were completed.
    pub handshakes: u64,
    /// Those that had to wait because [as many as may be](crate::Limits::handshakes) were under way.
    pub handshakes_delayed: u64,
    /// Names given to the resolver.
    pub lookups: u64,
    /// Socket options that the system refused to set.
    pub options_refused: u64,
    /// Peers turned away without a word because no descriptor was left to tell them.
    pub shed: u64,
    /// Accepts that failed for a reason of that one peer.
    pub accept_aborted: u64,
    /// Times that a listener ran out of descriptors or kernel memory and had to wait.
    pub starved: u64,
    /// Connections ended, by reason, in the order of [`CloseReason::WORDS`].
    pub closed: [u64; CloseReason::COUNT],
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes handed to the kernel.
    pub bytes_out: u64,
    /// Bytes among them that went from one connection to another within the kernel: see [`Limits::splices`].
    ///
    /// [`Limits::splices`]: crate::Limits::splices
    pub spliced: u64,
    /// Calls that read.
    pub reads: u64,
    /// Calls that wrote.
    pub writes: u64,
    /// Bytes that a service sent to a socket which had finished or closed; they were dropped.
    pub sent_too_late: u64,
    /// Requests of other threads that were run.
    pub posts: u64,
    /// Times that the loop turned a thousand times without progress and was made to sleep.
    pub livelocks_broken: u64,
}

impl Stats {
    /// How many connections ended for a reason; an error number it may carry makes no difference.
    ///
    /// ```
    /// use tidemill::{CloseReason, Stats};
    ///
    /// assert_eq!(Stats::default().closed_count(CloseReason::Idle), 0);
    /// ```
    pub fn closed_count(&self, why: CloseReason) -> u64 {
        self.closed[why.index()]
    }

    /// How many peers were turned away for a reason.
    ///
    /// ```
    /// use tidemill::{Refusal, Stats};
    ///
    /// assert_eq!(Stats::default().refused_count(Refusal::Denied), 0);
    /// ```
    pub fn refused_count(&self, why: Refusal) -> u64 {
        self.refused_by_reason[why as usize]
    }

    /// How many connections ended, for whatever reason.
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().sum()
    }
}
