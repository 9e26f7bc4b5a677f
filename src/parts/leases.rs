//! A rate that several loops share: its owner lends tokens to each.

use super::token_bucket::{SCALE, SHARE_MIN, TokenBucket, burst};
use crate::base::tick::Tick;

/// The owner of a rate: a bucket whose tokens are lent in small parts.
///
/// ```text
///           rate a second
///                ▼
///     │                     │     renew      ┌─ lease of loop 0 ─ take ▶   spent without the owner
///     │░░░░░░ bucket ░░░░░░░├───────────────▶┤
///     └─────────────────────┘                └─ lease of loop 1 ─ take ▶
/// ```
///
/// A loop asks for more when its lease is used up. If the bucket is empty, the tokens are lent in advance, and may be
/// spent from the tick at which the bucket has filled up for them. So loops that all want more get equal leases in
/// turn, none asks twice for the same tokens, and one that is alone gets the whole rate.
///
/// What was lent is no longer in the bucket, so in any span no more is spent than the rate, the burst, and what each
/// loop had left of a lease when the span began: together at most a quarter of the burst, or [`SHARE_MIN`] for each
/// loop if that is more. A lease has no end: a loop that is idle keeps its rest, which that bound contains.
#[derive(Debug)]
pub(crate) struct Leases {
    bucket: TokenBucket,
    rate: usize,
    loops: usize,
    /// Tokens that were lent since the beginning.
    lent: u64,
}

/// What one loop may spend.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Negative if more was spent: the size of a read is known only after it.
    tokens: i64,
    from: Tick,
}

impl Leases {
    /// Of bytes per second, for a number of loops.
    pub(crate) fn new(rate: usize, loops: usize, now: Tick) -> Leases {
        Leases { bucket: TokenBucket::new(rate, burst(rate), now), rate, loops: loops.max(1), lent: 0 }
    }

    pub(crate) fn rate(&self) -> usize {
        self.rate
    }

    /// How many tokens were lent since the beginning.
    pub(crate) fn lent(&self) -> u64 {
        self.lent
    }

    /// Sets another rate, for the loop of a lease; the first one sets it for all. A change makes no tokens: what a loop
    /// holds stays, and what it has in advance goes back, because it would wait for that at the previous rate.
    pub(crate) fn set_rate(&mut self, rate: usize, lease: &mut Lease, now: Tick) {
        if now < lease.from {
            let unspent = u64::try_from(lease.tokens).unwrap_or(0);
            self.bucket.give_back(usize::try_from(unspent).unwrap_or(usize::MAX));
            self.lent -= unspent;
            *lease = Lease::new();
        }
        if !self.bucket.is_of(rate) {
            self.bucket.set_rate(rate, burst(rate), now);
            self.rate = rate;
        }
    }

    /// Lends a loop more, if its lease is used up.
    pub(crate) fn renew(&mut self, lease: &mut Lease, now: Tick) {
        if !lease.is_used_up(now) {
            return;
        }
        let part = (burst(self.rate) / (4 * self.loops)).max(SHARE_MIN) as i64;
        let more = part.saturating_sub(lease.tokens.min(0));
        lease.tokens = lease.tokens.saturating_add(more);
        self.bucket.take(usize::try_from(more).unwrap_or(usize::MAX), now);
        self.lent += u64::try_from(more).unwrap_or(0);
        lease.from = self.bucket.time_until(0, now);
    }
}

impl Lease {
    /// Nothing.
    pub(crate) fn new() -> Lease {
        Lease { tokens: 0, from: Tick(0) }
    }

    /// Whether too little is left for a read.
    pub(crate) fn is_used_up(&self, now: Tick) -> bool {
        now >= self.from && self.tokens < SHARE_MIN as i64
    }

    pub(crate) fn level(&self, now: Tick) -> usize {
        if now < self.from { 0 } else { usize::try_from(self.tokens).unwrap_or(0) }
    }

    pub(crate) fn take(&mut self, tokens: usize) {
        self.tokens = self.tokens.saturating_sub(i64::try_from(tokens).unwrap_or(i64::MAX));
    }

    /// From when on it may be spent, and `behind` bytes more have passed at this rate.
    pub(crate) fn refill(&self, behind: usize, rate: usize) -> Tick {
        let later = (behind as u64).saturating_mul(SCALE).div_ceil(rate.max(1) as u64);
        Tick(self.from.0.saturating_add(later))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: usize = 1_000_000;

    /// Has the loops of these numbers spend whatever they may, in each tick; returns how much each has spent.
    fn spend(
        leases: &mut Leases,
        all: &mut [Lease],
        busy: &[usize],
        ticks: std::ops::Range<u64>,
    ) -> Vec<usize> {
        let mut spent = vec![0; all.len()];
        for now in ticks.map(Tick) {
            let mut rest = busy.to_vec();
            // In turn, a packet each, until none may spend more.
            while !rest.is_empty() {
                rest.retain(|&number| {
                    leases.renew(&mut all[number], now);
                    let packet = all[number].level(now).min(SHARE_MIN);
                    all[number].take(packet);
                    spent[number] += packet;
                    packet > 0
                });
            }
        }
        spent
    }

    fn started(loops: usize) -> (Leases, Vec<Lease>) {
        (Leases::new(RATE, loops, Tick(0)), (0..loops).map(|_| Lease::new()).collect())
    }

    #[test]
    fn a_loop_that_is_alone_gets_the_whole_rate() {
        for loops in [1, 2, 4, 16] {
            let (mut leases, mut all) = started(loops);
            let spent = spend(&mut leases, &mut all, &[loops - 1], 0..1_000)[loops - 1];
            assert!((99 * RATE / 10..=10 * RATE + burst(RATE)).contains(&spent), "{spent} of {loops} loops");
        }
    }

    #[test]
    fn loops_that_all_want_more_get_equal_parts_and_no_more_than_the_rate_and_the_bound_together() {
        for loops in [2, 4, 16] {
            let (mut leases, mut all) = started(loops);
            let all_loops: Vec<usize> = (0..loops).collect();
            // Each is left with the rest of a lease, and the bucket is full again after a pause: the worst case.
            spend(&mut leases, &mut all, &all_loops, 0..100);
            let spent = spend(&mut leases, &mut all, &all_loops, 10_000..11_000);
            let sum: usize = spent.iter().sum();
            let bound = 10 * RATE + burst(RATE) + (burst(RATE) / 4).max(loops * SHARE_MIN);
            assert!((99 * RATE / 10..=bound).contains(&sum), "{sum} of {loops} loops, at most {bound}");
            let part = sum / loops;
            assert!(spent.iter().all(|one| one.abs_diff(part) <= part / 10), "{spent:?}");
        }
    }

    #[test]
    fn a_loop_whose_clock_is_late_gets_no_token_early() {
        let (mut leases, mut all) = started(2);
        spend(&mut leases, &mut all, &[0], 0..1_000);
        leases.renew(&mut all[1], Tick(900));
        assert!(all[1].from > Tick(999), "{:?}: what was lent until tick 999 goes first", all[1]);
    }

    #[test]
    fn what_was_spent_beyond_a_lease_is_waited_for() {
        let (mut leases, mut all) = started(2);
        leases.renew(&mut all[0], Tick(0));
        all[0].take(2 * RATE);
        leases.renew(&mut all[0], Tick(1));
        assert_eq!(all[0].level(Tick(1)), 0);
        assert!((180..=200).contains(&all[0].from.0), "{:?}", all[0]);
    }

    #[test]
    fn another_rate_is_set_once_for_all_loops() {
        let (mut leases, mut all) = started(2);
        leases.set_rate(1, &mut all[0], Tick(0));
        spend(&mut leases, &mut all, &[0], 0..1);
        leases.set_rate(RATE, &mut all[0], Tick(5));
        leases.bucket.take(burst(RATE), Tick(5));
        leases.set_rate(RATE, &mut all[1], Tick(5));
        assert_eq!(leases.bucket.level(Tick(5)), 0, "the second loop that sets it changes nothing");
        leases.renew(&mut all[0], Tick(100));
        assert!(all[0].level(Tick(100)) > 0, "it does not wait for what it was lent at the previous rate");
    }

    #[test]
    fn a_rate_that_changes_often_makes_no_tokens_and_loses_none() {
        let (mut leases, mut all) = started(2);
        let (mut spent, mut rates) = (0, 0);
        for second in 0..20 {
            let rate = if second % 2 == 0 { RATE } else { RATE / 4 };
            all.iter_mut().for_each(|lease| leases.set_rate(rate, lease, Tick(100 * second)));
            spent +=
                spend(&mut leases, &mut all, &[0, 1], 100 * second..100 * second + 100).iter().sum::<usize>();
            rates += rate;
        }
        let bound = rates + burst(RATE) + burst(RATE) / 4;
        assert!((rates - burst(RATE)..=bound).contains(&spent), "{spent} at rates of {rates}");
        assert!(leases.lent().abs_diff(spent as u64) < RATE as u64 / 8, "{} were lent", leases.lent());
    }
}
