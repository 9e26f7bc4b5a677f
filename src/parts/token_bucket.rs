//! The token bucket of rate limits.

use crate::base::tick::Tick;

/// A bucket that is filled evenly with `rate` tokens per second and holds at most `capacity`. One token is one byte, or
/// one connection.
///
/// ```text
///         rate a second
///              ▼
///     │                 │ ◀── capacity: what may pass at once after a pause
///     │░░░░░░░░░░░░░░░░░│ ◀── level, as of `updated`
///     └────────┬────────┘
///              ▼ take
/// ```
///
/// It needs no timer: the tokens of the time since the last look are added at the next look. Levels are stored in
/// tokens times ticks per second, so that a rate of one per second loses nothing to rounding. The level may become
/// negative, because the size of a read is known only after it; nothing passes until the level is positive again.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct TokenBucket {
    rate: u64,
    capacity: u64,
    /// In tokens times [`SCALE`].
    level: i64,
    updated: Tick,
}

/// Ticks per second.
pub(super) const SCALE: u64 = 100;

impl TokenBucket {
    /// A full bucket. `rate` and `max` are limited to 1 to 2^48, so that no product overflows.
    pub(crate) fn new(rate: usize, max: usize, now: Tick) -> TokenBucket {
        let bound = |n: usize| (n as u64).clamp(1, 1 << 48);
        let (rate, capacity) = (bound(rate), bound(max));
        TokenBucket { rate, capacity, level: (capacity * SCALE) as i64, updated: now }
    }

    /// Whether it was made for this rate.
    pub(crate) fn is_of(&self, rate: usize) -> bool {
        self.rate == (rate as u64).clamp(1, 1 << 48)
    }

    /// Sets another rate and capacity. What is in the bucket stays in it, as far as it has room.
    pub(crate) fn set_rate(&mut self, rate: usize, max: usize, now: Tick) {
        self.refill(now);
        let new = TokenBucket::new(rate, max, self.updated);
        *self = TokenBucket { level: self.level.min(new.level), ..new };
    }

    /// Puts tokens back that were taken.
    pub(crate) fn give_back(&mut self, tokens: usize) {
        let back = i64::try_from((tokens as u64).saturating_mul(SCALE)).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(back).min((self.capacity * SCALE) as i64);
    }

    fn refill(&mut self, now: Tick) {
        let passed = now.0.saturating_sub(self.updated.0);
        let full = (self.capacity * SCALE) as i64;
        let fell = i64::try_from(self.rate.saturating_mul(passed)).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(fell).min(full);
        self.updated = self.updated.max(now);
    }

    /// The number of whole tokens; 0 while the level is negative.
    pub(crate) fn level(&mut self, now: Tick) -> usize {
        self.refill(now);
        usize::try_from(self.level / SCALE as i64).unwrap_or(0)
    }

    pub(crate) fn take(&mut self, tokens: usize, now: Tick) {
        self.refill(now);
        let taken = i64::try_from((tokens as u64).saturating_mul(SCALE)).unwrap_or(i64::MAX);
        self.level = self.level.saturating_sub(taken);
    }

    /// Whether the bucket is full: it is then as good as a new one.
    pub(crate) fn is_full(&mut self, now: Tick) -> bool {
        self.refill(now);
        self.level == (self.capacity * SCALE) as i64
    }

    /// When there will be `tokens` tokens; if that is more than the capacity, when the bucket will be full.
    pub(crate) fn time_until(&mut self, tokens: usize, now: Tick) -> Tick {
        self.refill(now);
        let wanted = ((tokens as u64).min(self.capacity) * SCALE) as i64;
        let missing = wanted.saturating_sub(self.level).max(0) as u64;
        Tick(self.updated.0 + missing.div_ceil(self.rate))
    }
}

/// The capacity of a bucket for bytes: what passes in an eighth of a second. Over ten seconds, that is an error of
/// 1.25 %. At least `SHARE_MIN`, so that packets are not cut.
pub(crate) fn burst(rate: usize) -> usize {
    (rate / 8).max(SHARE_MIN)
}

/// The smallest number of bytes worth a read: the TCP payload of an Ethernet frame with timestamps.
pub(crate) const SHARE_MIN: usize = 1_448;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_passes_in_any_span_than_the_rate_and_one_burst() {
        let (rate, max) = (1_000, 100);
        let mut bucket = TokenBucket::new(rate, max, Tick(0));
        let mut passed = 0;
        for tick in 0..1_000 {
            let level = bucket.level(Tick(tick));
            bucket.take(level, Tick(tick));
            passed += level;
        }
        assert_eq!(passed, max + rate * 999 / 100);
    }

    #[test]
    fn taking_more_tokens_than_can_be_counted_leaves_a_negative_level() {
        let mut bucket = TokenBucket::new(1_000, 100, Tick(0));
        bucket.take(usize::MAX, Tick(0));
        assert_eq!(bucket.level(Tick(1_000_000)), 0);
    }

    #[test]
    fn a_slow_rate_loses_nothing_to_rounding() {
        let mut bucket = TokenBucket::new(1, 5, Tick(0));
        bucket.take(5, Tick(0));
        assert_eq!((bucket.level(Tick(99)), bucket.level(Tick(100))), (0, 1));
        assert_eq!(bucket.time_until(5, Tick(100)), Tick(500));
        assert!(!bucket.is_full(Tick(499)) && bucket.is_full(Tick(500)));
    }

    #[test]
    fn a_negative_level_is_filled_up_before_anything_passes() {
        let mut bucket = TokenBucket::new(100, 10, Tick(0));
        bucket.take(30, Tick(0));
        assert_eq!(bucket.level(Tick(20)), 0);
        assert_eq!(bucket.time_until(1, Tick(20)), Tick(21));
        assert_eq!(bucket.level(Tick(21)), 1);
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_far_does_not_overflow() {
        let mut bucket = TokenBucket::new(usize::MAX, usize::MAX, Tick(5));
        bucket.take(usize::MAX, Tick(3));
        assert_eq!(bucket.level(Tick(u64::MAX)), 1 << 48);
    }

    #[test]
    fn a_bucket_knows_its_rate_within_the_bounds() {
        let is_of = |rate, asked| TokenBucket::new(rate, 1, Tick(0)).is_of(asked);
        assert!(is_of(1 << 20, 1 << 20) && is_of(0, 1) && is_of(usize::MAX, 1 << 48));
        assert!(!is_of(100, 101) && !is_of(100, 99));
    }

    #[test]
    fn a_burst_is_an_eighth_of_a_second_and_at_least_a_packet() {
        assert_eq!([80_000, 80_007, 80_008, 100].map(burst), [10_000, 10_000, 10_001, SHARE_MIN]);
    }
}
