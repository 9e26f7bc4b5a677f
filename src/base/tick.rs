//! Ticks: the timer wheel's unit of time, 10 ms, counted from when the reactor was made.
//!
//! The clock is read once per turn, right after the kernel wakes the loop; all callbacks of a turn see the same time.
//! It is the monotonic clock, so setting the wall clock moves no deadline. On Linux and macOS it stops while the
//! machine is suspended, so a deadline then comes late by the time of suspension, never early.

use std::time::Duration;

use crate::base::seeded_bug::{SeededBug, seeded};

/// The length of a tick: 10 ms. The timers of ten thousand connections then cause at most a hundred wake-ups a second,
/// and no timeout of a network service needs a finer resolution.
const NANOS: u32 = 10_000_000;
const PER_SECOND: u64 = 100;

/// A point in time, in whole ticks since the reactor was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Tick(pub(crate) u64);

impl Tick {
    /// The tick in which a time lies; rounded down.
    pub(crate) fn at(since_start: Duration) -> Tick {
        Tick(since_start.as_secs() * PER_SECOND + u64::from(since_start.subsec_nanos() / NANOS))
    }

    /// The first tick that is at least `span` after any time within this one.
    ///
    /// `span` is rounded up, and one tick is added because "now" was rounded down: a deadline may be late by two ticks,
    /// but never early.
    pub(crate) fn after(self, span: Duration) -> Tick {
        let part = u64::from(span.subsec_nanos().div_ceil(NANOS));
        let whole = span.as_secs().saturating_mul(PER_SECOND).saturating_add(part);
        let begun = u64::from(!seeded(SeededBug::DeadlineEarly));
        Tick(self.0.saturating_add(begun).saturating_add(whole))
    }

    /// This tick, counted from a start that was so many ticks earlier.
    pub(crate) fn moved(self, ticks: i64) -> Tick {
        Tick(self.0.saturating_add_signed(ticks))
    }

    /// When this tick begins, as the time since the reactor was made.
    pub(crate) fn since_start(self) -> Duration {
        Duration::new(self.0 / PER_SECOND, (self.0 % PER_SECOND) as u32 * NANOS)
    }
}

/// A [`Tick`] in five bytes, for what every connection stores: 40 bits of 10 ms are 348 years. Two of these in place of
/// two ticks make a connection fit into 96 bytes. Packed and not an array, so that storing one takes two stores and not
/// five.
#[derive(Clone, Copy)]
#[repr(C, packed)]
pub(crate) struct StoredTick {
    low: u32,
    high: u8,
}

impl StoredTick {
    pub(crate) fn get(self) -> Tick {
        Tick(u64::from(self.high) << 32 | u64::from(self.low))
    }
}

impl From<Tick> for StoredTick {
    fn from(tick: Tick) -> StoredTick {
        StoredTick { low: tick.0 as u32, high: (tick.0 >> 32) as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_nanos(NANOS as u64);

    #[test]
    fn a_deadline_is_never_before_its_span_has_passed() {
        for start_us in [0, 1, 9_999, 10_000, 12_345] {
            for span_us in [0, 1, 9_999, 10_000, 10_001, 2_000_000] {
                let (start, span) = (Duration::from_micros(start_us), Duration::from_micros(span_us));
                let due = Tick::at(start).after(span).since_start();
                assert!(due >= start + span, "{start:?} + {span:?} was due at {due:?}");
                assert!(due <= start + span + 2 * TICK, "{start:?} + {span:?} was due at {due:?}");
            }
        }
    }

    #[test]
    fn a_time_lies_in_the_tick_that_has_begun() {
        assert_eq!([0, 9, 10, 2_019].map(|ms| Tick::at(Duration::from_millis(ms)).0), [0, 0, 1, 201]);
    }

    #[test]
    fn spans_beyond_counting_saturate() {
        assert_eq!(Tick(5).after(Duration::MAX), Tick(u64::MAX));
        assert!(Tick(u64::MAX).since_start() > Duration::from_secs(500 * 365 * 86_400));
    }

    #[test]
    fn a_stored_tick_is_the_same_tick_for_348_years() {
        const YEAR: u64 = 365 * 24 * 3600 * PER_SECOND;
        for ticks in [0, 1, 0xff, 0x1_0000, u64::from(u32::MAX) + 1, 348 * YEAR] {
            assert_eq!(StoredTick::from(Tick(ticks)).get(), Tick(ticks));
        }
    }
}
