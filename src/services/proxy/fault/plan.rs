//! The faults of one direction of one connection, drawn from the seed.
//!
//! Everything is drawn by the number of the connection and by positions in its stream, never by what a read happened to
//! return: the same seed gives the same faults, however the network cuts the bytes.

use std::time::Duration;

use super::{Chance, Fault, FaultAt, Split, Stop};
use crate::base::random::Rng;

/// What happens in one direction of one connection.
#[derive(Debug)]
pub(in crate::services::proxy) struct Plan {
    latency: Duration,
    jitter: Duration,
    pub(in crate::services::proxy) slow_close: Duration,
    split: Option<Split>,
    /// Seed of the jitter of each block.
    seed: u64,
    sizes: Rng,
    /// What is left of the current piece.
    piece: u64,
    /// What ends it, after how many bytes.
    pub(in crate::services::proxy) at_byte: Option<(u64, Stop)>,
    /// What ends it, how long after its start.
    pub(in crate::services::proxy) at_time: Option<(Duration, Stop)>,
}

/// Bytes that have the same jitter.
const JITTER_BLOCK: u64 = 1024;
/// A random position has up to this many bits before its highest one: it is below 2 MiB.
const POSITION_BITS: u64 = 21;

impl Plan {
    /// The plan of a direction; none if nothing happens in it, so that it needs no detour.
    pub(in crate::services::proxy) fn draw(
        fault: &Fault,
        seed: u64,
        connection: u64,
        up: bool,
    ) -> Option<Plan> {
        // One step of the generator per connection and direction separates their numbers.
        let mut rng = Rng(Rng(seed ^ (connection << 1 | u64::from(up))).next());
        let stops = [(fault.cut, Stop::Cut), (fault.reset, Stop::Reset), (fault.stall, Stop::Stall)];
        let (mut at_byte, mut at_time) = (None, None);
        for (chance, stop) in stops {
            // Drawn in any case: one fault must not move another.
            let (share, position) = (share(&mut rng), position(&mut rng));
            match chance.filter(|chance| share * 100.0 < chance.percent) {
                Some(Chance { at: FaultAt::Time(after), .. }) => earlier(&mut at_time, after, stop),
                Some(Chance { at: FaultAt::Bytes(n), .. }) => earlier(&mut at_byte, n, stop),
                Some(Chance { at: FaultAt::Random, .. }) => earlier(&mut at_byte, position, stop),
                None => {}
            }
        }
        let Fault { latency, jitter, split, slow_close, .. } = *fault;
        let is_plain = split.is_none() && [latency, jitter, slow_close].iter().all(Duration::is_zero);
        if is_plain && at_byte.is_none() && at_time.is_none() {
            return None;
        }
        let (seed, sizes) = (rng.next(), Rng(rng.next()));
        Some(Plan { latency, jitter, slow_close, split, seed, sizes, piece: 0, at_byte, at_time })
    }

    /// How long the byte at this position is delayed.
    pub(in crate::services::proxy) fn delay(&self, position: u64) -> Duration {
        if self.jitter.is_zero() {
            return self.latency;
        }
        let spread = u64::try_from(self.jitter.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        let drawn = Rng(self.seed ^ (position / JITTER_BLOCK)).next() % (2 * spread + 1);
        (self.latency + Duration::from_nanos(drawn)).saturating_sub(self.jitter)
    }

    /// How many of the next `n` bytes, at least one, go together: up to the end of a piece or of a block of jitter.
    pub(in crate::services::proxy) fn next_piece(&mut self, position: u64, n: usize) -> usize {
        let mut next = n as u64;
        if !self.jitter.is_zero() {
            next = next.min(JITTER_BLOCK - position % JITTER_BLOCK);
        }
        if let Some(Split { size, spread, .. }) = self.split {
            if self.piece == 0 {
                let drawn = size as u64 + self.sizes.below(2 * spread as u64 + 1);
                self.piece = drawn.saturating_sub(spread as u64).max(1);
            }
            next = next.min(self.piece);
            self.piece -= next;
        }
        next as usize
    }

    /// The time between two pieces; none: they need not be apart.
    pub(in crate::services::proxy) fn gap(&self) -> Option<Duration> {
        self.split.map(|split| split.gap)
    }

    /// Whether bytes wait for a time of their own.
    pub(in crate::services::proxy) fn is_slow(&self) -> bool {
        !self.latency.is_zero() || !self.jitter.is_zero() || self.gap().is_some_and(|gap| !gap.is_zero())
    }
}

/// From 0 to just below 1.
fn share(rng: &mut Rng) -> f64 {
    (rng.next() >> 11) as f64 / (1_u64 << 53) as f64
}

fn position(rng: &mut Rng) -> u64 {
    let highest = 1_u64 << rng.below(POSITION_BITS);
    highest + rng.below(highest)
}

fn earlier<T: PartialOrd + Copy>(first: &mut Option<(T, Stop)>, at: T, stop: Stop) {
    if first.is_none_or(|(before, _)| at < before) {
        *first = Some((at, stop));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chance(percent: f64, at: FaultAt) -> Option<Chance> {
        Some(Chance { percent, at })
    }

    fn count(percent: f64) -> usize {
        let fault = Fault { reset: chance(percent, FaultAt::Random), ..Fault::default() };
        (0..100_000).filter(|&n| Plan::draw(&fault, 11, n, n % 2 == 0).is_some()).count()
    }

    #[test]
    fn a_chance_of_zero_never_fires_and_one_of_a_hundred_always() {
        assert_eq!((count(0.0), count(100.0)), (0, 100_000));
        let (one, tenth) = (count(1.0), count(0.1));
        // Within five standard deviations of 1,000 and of 100.
        assert!((843..=1_157).contains(&one) && (50..=150).contains(&tenth), "{one}, {tenth}");
    }

    #[test]
    fn a_fault_without_effect_makes_no_plan() {
        let zero = chance(0.0, FaultAt::Bytes(0));
        let fault = Fault { cut: zero, reset: zero, stall: zero, ..Fault::default() };
        assert!((0..1_000).all(|n| Plan::draw(&fault, 3, n, true).is_none()));
    }

    #[test]
    fn one_fault_does_not_move_another_and_directions_differ() {
        let cut = Fault { cut: chance(50.0, FaultAt::Random), ..Fault::default() };
        let both = Fault { stall: chance(50.0, FaultAt::Time(Duration::ZERO)), ..cut.clone() };
        let cuts = |fault: &Fault, up| -> Vec<Option<u64>> {
            let plan = |n| Plan::draw(fault, 5, n, up)?.at_byte.map(|(at, _)| at);
            (0..200).map(plan).collect()
        };
        assert_eq!(cuts(&cut, true), cuts(&both, true));
        assert_ne!(cuts(&cut, true), cuts(&cut, false));
    }

    #[test]
    fn pieces_and_delays_depend_on_positions_and_not_on_reads() {
        let split = Some(Split { size: 100, spread: 50, gap: Duration::ZERO });
        let ms = Duration::from_millis;
        let fault = Fault { latency: ms(50), jitter: ms(10), split, ..Fault::default() };
        let boundaries = |reads: usize| -> Vec<u64> {
            let mut plan = Plan::draw(&fault, 9, 1, true).expect("a plan");
            let (mut position, mut left, mut ends) = (0, 0, Vec::new());
            while position < 50_000 {
                left = if left == 0 { reads } else { left };
                let n = plan.next_piece(position, left);
                let delay = plan.delay(position);
                assert!(ms(40) <= delay && delay <= ms(60), "{delay:?}");
                (position, left) = (position + n as u64, left - n);
                if plan.piece == 0 {
                    ends.push(position);
                }
            }
            ends
        };
        let (by_one, by_many) = (boundaries(1), boundaries(64 * 1024));
        let all = by_one.len().min(by_many.len());
        assert!(all > 300 && by_one[..all] == by_many[..all]);
        let sizes: Vec<u64> = by_one.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(sizes.iter().all(|size| (50..=150).contains(size)), "{sizes:?}");
    }
}
