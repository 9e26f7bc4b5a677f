//! `SharedRate`: a rate of groups on several reactors.
//!
//! Read before: `parts/leases.rs`, which lends the tokens.

use std::sync::{Arc, Mutex};

use crate::base::tick::Tick;
use crate::parts::leases::{Lease, Leases};
use crate::sys::{Epoch, locked};

/// A rate in bytes per second that groups on several reactors share, those of [`Shards`](crate::Shards) for example.
/// [`Sockets::add_shared_group`](crate::Sockets::add_shared_group) makes a group of it on each of them. A clone is the
/// same rate.
///
/// Each reactor borrows 1/(4·N) of the burst at a time (N: the number of reactors; the burst is what passes in an
/// eighth of a second) and spends it alone: the lock is taken once for each such lease, and not for each message.
/// Senders on one reactor get the whole rate if the others have none; reactors whose senders all want more get equal
/// parts. In any span of time the groups together read at most the rate, one burst, and a quarter of a burst (but 1,448
/// bytes for each reactor, if that is more) that was lent before.
///
/// ```
/// use tidemill::{Limits, SharedRate, Shards, SocketLimits, services::Echo};
///
/// let rate = SharedRate::new(1 << 20, 2); // 1 MiB/s, of two shards together.
/// let shards = Shards::start_with(vec![Limits::default(); 2], move |_, reactor, _| {
///     let group = reactor.sockets().add_shared_group(&rate)?;
///     let limits = SocketLimits { group: Some(group), ..Echo::raw().limits() };
///     Ok(reactor.add_with(Echo::raw(), limits))
/// })?;
/// # shards.shutdown(std::time::Duration::ZERO);
/// # shards.join()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedRate {
    leases: Arc<Mutex<Leases>>,
    /// The ticks of the leases count from here, those of each reactor from when it was made.
    epoch: Epoch,
}

impl SharedRate {
    /// `rate` bytes per second for the groups on this many reactors together.
    pub fn new(rate: usize, reactors: usize) -> SharedRate {
        let leases = Leases::new(rate, reactors, Tick(0));
        SharedRate { leases: Arc::new(Mutex::new(leases)), epoch: Epoch::from_now() }
    }

    /// How many bytes the groups have borrowed since it was made: what they have read, and what each has left of a
    /// lease.
    pub fn lent(&self) -> u64 {
        locked(&self.leases).lent()
    }

    pub(super) fn rate(&self) -> usize {
        locked(&self.leases).rate()
    }

    /// For a reactor that was made at `epoch`.
    pub(super) fn lease(&self, epoch: Epoch) -> LeasedTokens {
        LeasedTokens { rate: self.clone(), lease: Lease::new(), later: epoch.ticks_after(self.epoch) }
    }
}

/// The tokens of one reactor.
#[derive(Debug)]
pub(super) struct LeasedTokens {
    rate: SharedRate,
    lease: Lease,
    /// How much later than the rate the reactor was made, in ticks.
    later: i64,
}

impl LeasedTokens {
    pub(super) fn level(&mut self, now: Tick) -> usize {
        let now = now.moved(self.later);
        if self.lease.is_used_up(now) {
            locked(&self.rate.leases).renew(&mut self.lease, now);
        }
        self.lease.level(now)
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.lease.take(bytes);
    }

    /// When the lease begins that was made in advance, and at this rate `behind` bytes more have passed.
    pub(super) fn next_refill(&self, behind: usize, rate: usize) -> Tick {
        self.lease.refill(behind, rate).moved(self.later.saturating_neg())
    }

    pub(super) fn set_rate(&mut self, rate: usize, now: Tick) {
        let now = now.moved(self.later);
        locked(&self.rate.leases).set_rate(rate, &mut self.lease, now);
    }
}
