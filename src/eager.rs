//! Whether it pays to look again before going to sleep.

use std::time::Duration;

/// Decides, from how soon wake-ups have come of late, whether the loop should look for events for a moment before it
/// sleeps.
///
/// Waking a sleeping thread costs more than a whole small answer: the processor has to leave its idle state, and on
/// virtual machines the host has a say in it. A loop that is still looking when the next event comes saves that. One
/// that looks in vain has burnt the time. So it looks only while it would have paid: each wake-up is a vote, for
/// looking if it came within the window, against if it came later. Votes against count double, and a loop that sleeps
/// goes on voting; so at a thousand events a second and a window of fifty microseconds it does not look at all.
///
/// ```text
///     score   0 ──── 1 ──── 2 ── … ── 8      sleeps at 0 ┃ looks first from 1 on
///             ◀──── 2 a late wake-up ────
///                ──── 1 an early one ────▶
/// ```
#[derive(Debug)]
pub(crate) struct Eager {
    /// How long to look; none: never.
    window: Option<Duration>,
    score: u8,
}

/// So many early wake-ups are remembered: a pause in a lively conversation does not end it.
const SCORE_MAX: u8 = 8;

impl Eager {
    pub(crate) fn new(window: Option<Duration>) -> Eager {
        Eager { window: window.filter(|window| !window.is_zero()), score: 0 }
    }

    /// How long to look before sleeping, if at all.
    pub(crate) fn looks_for(&self) -> Option<Duration> {
        self.window.filter(|_| self.score > 0)
    }

    /// Something came, so long after the loop had last looked at the clock.
    pub(crate) fn woken_after(&mut self, gap: Duration) {
        let Some(window) = self.window else { return };
        self.score =
            if gap <= window { (self.score + 1).min(SCORE_MAX) } else { self.score.saturating_sub(2) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    /// The share of wake-ups before which it looked.
    fn looks(gaps: impl Iterator<Item = u64>) -> f64 {
        let mut eager = Eager::new(Some(WINDOW));
        let (mut looked, mut all) = (0, 0);
        for gap in gaps {
            looked += u32::from(eager.looks_for().is_some());
            all += 1;
            eager.woken_after(Duration::from_micros(gap));
        }
        f64::from(looked) / f64::from(all)
    }

    #[test]
    fn it_looks_while_wake_ups_come_soon_and_not_while_they_come_late() {
        assert!(looks((0..1_000).map(|_| 20)) > 0.99);
        assert_eq!(looks((0..1_000).map(|_| 1_000)), 0.0);
    }

    #[test]
    fn a_pause_in_a_lively_conversation_does_not_end_it_and_a_word_in_a_quiet_one_does_not_begin_one() {
        assert!(looks((0..1_000).map(|n| if n % 20 == 0 { 5_000 } else { 20 })) > 0.9);
        assert!(looks((0..1_000).map(|n| if n % 20 == 0 { 20 } else { 5_000 })) < 0.1);
    }

    #[test]
    fn switched_off_it_never_looks() {
        for off in [None, Some(Duration::ZERO)] {
            let mut eager = Eager::new(off);
            (0..20).for_each(|_| eager.woken_after(Duration::ZERO));
            assert_eq!(eager.looks_for(), None);
        }
    }
}
