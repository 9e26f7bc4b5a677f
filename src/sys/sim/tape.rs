//! The tape: all that a simulated world decides, drawn from one sequence of choices.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use crate::base::random::Rng;

/// One sequence of choices, from which a simulated world draws all that it decides: which faults the kernel injects,
/// how long pieces are, in which order events come, and, where a test wants it, what the peers do.
///
/// ```text
///     seeded(7) ──── random numbers ──┐
///     from_bytes ─── a fuzzer's, ─────┼──▶ below(n) ──▶ kernel, peers, services     bytes(): what was drawn,
///                    proptest's       │    one_in(n)                                 for from_bytes
///     each ───────── 000, 001, 002, … ┘
/// ```
///
/// Clones draw from the same sequence. The same tape makes the same run, and
/// [`trace_hash`](crate::testing::Bench::trace_hash) shows that.
///
/// ```
/// use tidemill::services::Echo;
/// use tidemill::testing::{Bench, Tape};
///
/// let run = |tape: &Tape| {
///     let mut bench = Bench::on_tape(tape);
///     bench.serve(Echo::raw());
///     let ann = bench.connect();
///     (0..tape.below(10)).for_each(|_| bench.say(ann, "hello"));
///     bench.trace_hash()
/// };
/// let tape = Tape::seeded(7);
/// let hash = run(&tape);
/// assert_eq!(run(&Tape::seeded(7)), hash);
/// assert_eq!(run(&Tape::from_bytes(tape.bytes())), hash);
/// ```
#[derive(Clone)]
pub struct Tape(Rc<RefCell<Choices>>);

struct Choices {
    source: Source,
    drawn: u64,
    /// What was drawn, as bytes. The first `RECORD_MAX` are kept, so that a long run does not fill the memory.
    record: Vec<u8>,
}

enum Source {
    Seeded(Rng),
    Bytes {
        bytes: Vec<u8>,
        at: usize,
    },
    /// The choices of one run, each with the number of its alternatives: the wheels of an odometer.
    Counted {
        wheels: Vec<Wheel>,
        at: usize,
    },
}

#[derive(Clone, Copy)]
struct Wheel {
    value: u64,
    of: u64,
}

/// A megabyte is some hundred thousand turns.
const RECORD_MAX: usize = 1 << 20;

/// Runs after which [`Tape::shrink`] is content with what it has.
const SHRINK_RUNS: usize = 2_000;

impl Tape {
    /// Random choices, always the same for one seed.
    pub fn seeded(seed: u64) -> Tape {
        Tape::of(Source::Seeded(Rng(seed)))
    }

    /// Choices from bytes: those of a fuzzer or of proptest, or what [`bytes`](Tape::bytes) has recorded. A choice of
    /// up to 256 alternatives takes one byte, one of up to 65,536 two. When the bytes have ended, each choice is the
    /// first alternative, and no fault happens.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Tape {
        Tape::of(Source::Bytes { bytes: bytes.into(), at: 0 })
    }

    /// Runs `run` once for each sequence of choices that it can draw; returns how many there were. That is for tiny
    /// worlds: ten choices of four alternatives are a million runs.
    ///
    /// ```
    /// use tidemill::testing::Tape;
    ///
    /// let mut all = Vec::new();
    /// let count = Tape::each(|tape| all.push((tape.below(3), tape.one_in(9))));
    /// assert_eq!(count, 6);
    /// assert_eq!(all[..3], [(0, false), (0, true), (1, false)]);
    /// ```
    ///
    /// # Panics
    ///
    /// When `run` draws differently after the same choices: then it depends on something else than the tape.
    pub fn each(mut run: impl FnMut(&Tape)) -> u64 {
        let tape = Tape::of(Source::Counted { wheels: Vec::new(), at: 0 });
        let mut count = 0;
        loop {
            run(&tape);
            count += 1;
            if !tape.0.borrow_mut().advance() {
                return count;
            }
        }
    }

    /// A shorter tape with which `fails` still returns `true`: parts are left out, and bytes made smaller, for as long
    /// as that holds, for at most 2,000 runs.
    ///
    /// ```
    /// use tidemill::testing::Tape;
    ///
    /// let long: Vec<u8> = (0..=255).collect();
    /// let fails = |tape: &Tape| (0..300).any(|_| tape.below(256) >= 100);
    /// assert_eq!(Tape::shrink(&long, fails), [100]);
    /// ```
    pub fn shrink(bytes: &[u8], mut fails: impl FnMut(&Tape) -> bool) -> Vec<u8> {
        let mut best = bytes.to_vec();
        let mut left = SHRINK_RUNS;
        let mut is_better = |tried: &[u8]| {
            let runs = left > 0;
            left = left.saturating_sub(1);
            runs && fails(&Tape::from_bytes(tried))
        };
        let mut size = best.len().next_power_of_two();
        while size > 0 {
            let mut at = 0;
            while at < best.len() {
                let end = (at + size).min(best.len());
                let tried = [&best[..at], &best[end..]].concat();
                if is_better(&tried) { best = tried } else { at += size }
            }
            size /= 2;
        }
        for at in 0..best.len() {
            let mut step = best[at];
            while step > 0 {
                let mut tried = best.clone();
                tried[at] = tried[at].saturating_sub(step);
                if tried[at] < best[at] && is_better(&tried) { best = tried } else { step /= 2 }
            }
        }
        best
    }

    /// One of the numbers below `n`. Nothing is drawn if there is only one, or none.
    pub fn below(&self, n: u64) -> u64 {
        self.0.borrow_mut().draw(n, n)
    }

    /// Yes in one of `n` draws; a tape that counts tries no and yes. `n` is at least 1.
    pub fn one_in(&self, n: u64) -> bool {
        self.0.borrow_mut().draw(2, n) == 1
    }

    /// How many choices were drawn: which step of a run this is.
    pub fn drawn(&self) -> u64 {
        self.0.borrow().drawn
    }

    /// The choices drawn so far, for [`from_bytes`](Tape::from_bytes); the first megabyte of them.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.borrow().record.clone()
    }

    /// Puts a list into any order.
    pub(crate) fn shuffle<T>(&self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    fn of(source: Source) -> Tape {
        Tape(Rc::new(RefCell::new(Choices { source, drawn: 0, record: Vec::new() })))
    }
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tape").field("drawn", &self.drawn()).finish_non_exhaustive()
    }
}

impl Choices {
    /// One of `n` alternatives. With `odds` other than `n` it is one of two, of which the second has one chance in
    /// `odds`.
    fn draw(&mut self, n: u64, odds: u64) -> u64 {
        if n <= 1 {
            return 0;
        }
        self.drawn += 1;
        let width = width(n);
        let value = match &mut self.source {
            Source::Seeded(rng) if odds == n => rng.below(n),
            Source::Seeded(rng) => u64::from(rng.below(odds) == 0),
            Source::Bytes { bytes, at } => {
                let mut word = [0; 8];
                let rest = bytes.get(*at..).unwrap_or(&[]);
                let got = rest.len().min(width);
                word[..got].copy_from_slice(&rest[..got]);
                *at += got;
                u64::from_le_bytes(word) % n
            }
            Source::Counted { wheels, at } => {
                if *at == wheels.len() {
                    wheels.push(Wheel { value: 0, of: n });
                }
                let Wheel { value, of } = wheels[*at];
                assert_eq!(of, n, "after the same choices, another one is drawn");
                *at += 1;
                value
            }
        };
        if self.record.len() < RECORD_MAX {
            self.record.extend_from_slice(&value.to_le_bytes()[..width]);
        }
        value
    }

    /// Sets the odometer to its next value, if there is one: the last wheel that can moves on, those behind it go.
    fn advance(&mut self) -> bool {
        self.drawn = 0;
        self.record.clear();
        let Source::Counted { wheels, at } = &mut self.source else { return false };
        assert_eq!(*at, wheels.len(), "after the same choices, fewer are drawn");
        *at = 0;
        while let Some(Wheel { value, of }) = wheels.pop() {
            if value + 1 < of {
                wheels.push(Wheel { value: value + 1, of });
                return true;
            }
        }
        false
    }
}

/// How many bytes a choice of `n` alternatives takes.
fn width(n: u64) -> usize {
    match n - 1 {
        0..=0xFF => 1,
        0x100..=0xFFFF => 2,
        0x1_0000..=0xFFFF_FFFF => 4,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Choices of every width, and what they came to.
    fn run(tape: &Tape) -> (Vec<u64>, Vec<bool>) {
        let widths = [2, 256, 257, 65_536, 65_537, 1 << 32, 1 << 40, u64::MAX];
        let numbers = (0..80).map(|i| tape.below(widths[i % widths.len()])).collect();
        (numbers, (0..80).map(|i| tape.one_in(i)).collect())
    }

    #[test]
    fn what_a_seed_has_drawn_is_replayed_from_its_bytes() {
        for seed in 0..100 {
            let tape = Tape::seeded(seed);
            let seen = run(&tape);
            assert_eq!(run(&Tape::seeded(seed)), seen);
            let replay = Tape::from_bytes(tape.bytes());
            assert_eq!(run(&replay), seen);
            assert_eq!((replay.bytes(), replay.drawn()), (tape.bytes(), tape.drawn()));
        }
    }

    #[test]
    fn numbers_are_spread_and_bounded() {
        let tape = Tape::seeded(1);
        let mut counts = [0; 10];
        (0..10_000).for_each(|_| counts[tape.below(10) as usize] += 1);
        assert!(counts.iter().all(|n| (850..1_150).contains(n)), "{counts:?}");
        let yes = (0..10_000).filter(|_| tape.one_in(8)).count();
        assert!((1_100..1_400).contains(&yes), "{yes}");
    }

    #[test]
    fn an_empty_tape_draws_the_first_alternative_and_no_fault() {
        let (numbers, faults) = run(&Tape::from_bytes([]));
        assert!(numbers.iter().all(|&n| n == 0) && faults.iter().all(|&yes| !yes));
    }

    #[test]
    fn each_sequence_of_choices_is_tried_once() {
        let mut seen = Vec::new();
        let count = Tape::each(|tape| {
            let first = tape.below(3);
            // How many choices follow depends on the first one.
            seen.push((first, (0..first).map(|_| tape.below(2)).collect::<Vec<_>>()));
        });
        assert_eq!(count, 1 + 2 + 4);
        assert_eq!(seen.len(), 7);
        seen.dedup();
        assert_eq!(seen.len(), 7);
    }

    #[test]
    #[should_panic(expected = "after the same choices")]
    fn a_world_that_depends_on_more_than_the_tape_is_noticed() {
        let mut runs = 0;
        Tape::each(|tape| {
            runs += 1;
            tape.below(2);
            tape.below(2 + u64::from(runs == 3));
        });
    }

    #[test]
    fn shrinking_leaves_what_a_failure_needs() {
        // It fails when a 7 is drawn, and later a number of at least 50.
        let fails = |tape: &Tape| {
            let all: Vec<u64> = (0..200).map(|_| tape.below(200)).collect();
            all.iter().position(|&n| n == 7).is_some_and(|at| all[at..].iter().any(|&n| n >= 50))
        };
        let tape = (0..).map(Tape::seeded).find(fails).expect("a seed that fails");
        assert_eq!(Tape::shrink(&tape.bytes(), fails), [7, 50]);
    }
}
