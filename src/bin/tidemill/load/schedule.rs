//! An open loop's schedule.

use std::time::{Duration, Instant};

/// When the messages of an open loop are due: at equal distances, whatever the server does.
pub struct Schedule {
    begun: Instant,
    serial: u64,
    rate: f64,
}

impl Schedule {
    pub fn new(begun: Instant, rate: f64) -> Schedule {
        Schedule { begun, serial: 0, rate }
    }

    /// The next message that is due by now: its number and its time.
    pub fn next_due(&mut self, now: Instant) -> Option<(u64, Instant)> {
        let offset = Duration::try_from_secs_f64(self.serial as f64 / self.rate).ok()?;
        let due = self.begun.checked_add(offset).filter(|due| *due <= now)?;
        let serial = self.serial;
        self.serial += 1;
        Some((serial, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_message_a_second_is_one_every_two_seconds() {
        let begun = Instant::now();
        let mut schedule = Schedule::new(begun, 0.5);
        let mut due = |seconds| {
            schedule.next_due(begun + Duration::from_secs(seconds)).map(|(n, at)| (n, (at - begun).as_secs()))
        };
        assert_eq!(
            [due(0), due(1), due(2), due(5), due(5)],
            [Some((0, 0)), None, Some((1, 2)), Some((2, 4)), None]
        );
    }
}
