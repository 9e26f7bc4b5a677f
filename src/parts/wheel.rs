//! The timer wheel: one deadline per slot, armed, moved and cancelled in constant time.
//!
//! It is the hierarchical wheel of Varghese and Lauck ("Hashed and Hierarchical Timing Wheels", SOSP 1987), with the
//! occupancy bitmaps of tokio's timer and its choice of level. A deadline is in a coarse bucket while it is far away,
//! and moves to finer ones as it comes nearer, at most once per level. The wheel does not step from tick to tick: if
//! the clock jumps by hours, the cost depends only on the number of entries that became due.
//!
//! # Activity is one store
//!
//! Most deadlines of a server are timeouts that start again with each byte. The wheel is not updated then: the loop
//! stores the current tick in the connection (`last_activity`), and the entry stays where it is. When the *old*
//! deadline fires, the loop computes the connection's real deadline and arms the slot again for the rest. So
//!
//! - the most frequent operation, restarting a timeout, is one store of a nanosecond or two into a cache line that the
//!   read has just used. Moving the entry would write to five links, each in its own cache line;
//! - an entry moves about once per timeout, however busy its connection is. Ten thousand connections with a timeout
//!   of a minute fire 170 times a second;
//! - only a deadline *earlier* than the armed one must be armed as soon as it is known.
//!
//! A simpler design is a queue of `(id, tick)` to which each accept adds an entry, and in which entries of closed
//! connections stay until they expire. It grows with the accept rate times the timeout, and not with the number of
//! connections: fifty thousand short connections a second with a timeout of a minute are three million entries, of
//! which a few hundred are of open connections. Here a slot has one entry, which is removed when its connection ends.
//!
//! # Far deadlines
//!
//! A wheel that stores only a *distance* fires too early, or never, when the distance exceeds its span. Each entry
//! here stores its absolute tick, so it can be in any bucket: when the bucket opens, it is placed again by that tick.

use std::fmt;

use crate::base::id::SLOTS_MAX;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;

/// A timer wheel: which slots are due, and when.
///
/// A tick is read as a number in base 64; each level stands for one digit. An entry is in the level of the highest
/// digit in which its tick differs from `elapsed` (the tick up to which the wheel has turned), and there in the bucket
/// with the number of its own digit. Therefore its higher digits equal those of `elapsed`, its bucket is to the right
/// of that of `elapsed`, and the first occupied bucket of the lowest occupied level is the next to open. Drawn for
/// `elapsed` = 67, which is 1·64 + 3:
///
/// ```text
///     bucket               0   1   2   3   4   5   6       63
///                        ┌───┬───┬───┬───┬───┬───┬───┬─ … ┬───┐
///     level 0  10 ms     │   │   │   │ ▲ │   │ b │   │    │   │   640 ms together   b: tick 69
///     level 1  640 ms    │   │ ▲ │   │   │ a │   │   │    │   │   41 s              a: ticks 256 to 319
///     level 2  41 s      │ ▲ │   │   │   │   │   │   │    │   │   44 min
///     level 3  44 min    │ ▲ │   │   │   │   │   │   │    │   │   47 hours
///     level 4  47 hours  │ ▲ │   │   │   │   │   │   │    │   │   124 days
///     level 5  124 days  │ ▲ │   │   │   │   │   │   │    │   │   22 years
///                        └───┴───┴───┴───┴───┴───┴───┴─ … ┴───┘
///     far                every tick with other digits above these six
///     due                every entry that `elapsed` has reached, in the order in which they are popped
/// ```
///
/// A bucket is a doubly linked ring. Links refer to each other by index, in one vector: first a link for each bucket,
/// then one for each slot. Bucket `a`, which is 1·64 + 4, with the slots 1 and 3 in it:
///
/// ```text
///     links   0 …      68                   385   386      387            388      389
///           ┌─────┬──────────┬───────────┬───────┬────────┬──────────────┬────────┬──────────────┐
///           │     │ bucket a │           │  due  │ slot 0 │ slot 1       │ slot 2 │ slot 3       │
///           │     │          │           │       │        │ when 300     │        │ when 310     │
///           └─────┴──────────┴───────────┴───────┴────────┴──────────────┴────────┴──────────────┘
///     next  ┌─────▶ 68 ─────────────────────────────────▶ 387 ──────────────────▶ 389 ───────────┐
///           └────────────────────────────────────────────────────────────────────────────────────┘
///     prev  ┌────── 68 ◀───────────────────────────────── 387 ◀────────────────── 389 ◀──────────┐
///           └────────────────────────────────────────────────────────────────────────────────────┘
/// ```
///
/// The `prev` of the first entry is the number of its bucket. So removing an entry needs no search: when both of its
/// neighbours are the same link, that link is a bucket which is empty now, and its number tells which bit of which
/// level to clear.
///
/// A slot costs 12 bytes, which stay allocated up to the highest slot that was ever armed. The buckets cost 5 KiB.
pub(crate) struct Wheel {
    /// The wheel has turned up to this tick: entries due by then have been popped or are in [`DUE`].
    elapsed: u64,
    /// What [`Wheel::next`] returns, or [`NEVER`]: it is asked in each turn, and most turns change no entry.
    next: u64,
    /// For each level, one bit per bucket: whether it has an entry.
    occupied: [u64; LEVELS as usize],
    links: Vec<Link>,
}

/// The bits of a tick that one level stands for. Six make 64 buckets, whose bitmap is one machine word.
const DIGIT: u32 = 6;
const PER_LEVEL: u32 = 1 << DIGIT;
/// Six levels span 22 years. Later deadlines are rare, mostly timeouts that mean "never", so they share one bucket.
const LEVELS: u32 = 6;
const SPAN: u32 = LEVELS * DIGIT;

/// The bucket of entries beyond the span.
const FAR: u32 = LEVELS * PER_LEVEL;
/// The bucket of entries that can be popped.
const DUE: u32 = FAR + 1;
const BUCKETS: u32 = DUE + 1;

/// Three bytes for each neighbour and six for the tick. Links of 16 bytes would make an idle connection a thirtieth
/// larger.
#[derive(Clone, Copy)]
struct Link {
    next: [u8; 3],
    prev: [u8; 3],
    /// The absolute tick of an entry; unused in a bucket.
    when: [u8; 6],
}

const _: () = assert!(size_of::<Link>() == 12);

/// Marks a link that is in no ring.
const NOWHERE: u32 = (1 << 24) - 1;
const _: () = assert!(SLOTS_MAX + BUCKETS as usize <= NOWHERE as usize, "every slot of a reactor has a link");
/// The last tick, in 89,000 years. A later deadline, most often a timeout that means "never", is armed for it.
const LAST: u64 = (1 << 48) - 1;
/// After every deadline: nothing is armed.
const NEVER: u64 = u64::MAX;

impl Link {
    const UNARMED: Link = Link::new(NOWHERE, NOWHERE, 0);

    const fn new(next: u32, prev: u32, when: u64) -> Link {
        let [a, b, c, d, e, f, ..] = when.to_le_bytes();
        Link { next: three_bytes(next), prev: three_bytes(prev), when: [a, b, c, d, e, f] }
    }

    fn empty_bucket(number: u32) -> Link {
        Link::new(number, number, 0)
    }

    fn next(&self) -> u32 {
        let [a, b, c] = self.next;
        u32::from_le_bytes([a, b, c, 0])
    }

    fn prev(&self) -> u32 {
        let [a, b, c] = self.prev;
        u32::from_le_bytes([a, b, c, 0])
    }

    fn when(&self) -> u64 {
        let [a, b, c, d, e, f] = self.when;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    fn is_armed(&self) -> bool {
        self.next() != NOWHERE
    }
}

/// A link's number, which is below [`NOWHERE`].
const fn three_bytes(number: u32) -> [u8; 3] {
    let [a, b, c, _] = number.to_le_bytes();
    [a, b, c]
}

impl Wheel {
    /// An empty wheel at tick 0.
    pub(crate) fn new() -> Wheel {
        let links = (0..BUCKETS).map(Link::empty_bucket).collect();
        Wheel { elapsed: 0, next: NEVER, occupied: [0; LEVELS as usize], links }
    }

    /// An empty wheel with memory reserved for a number of slots; it grows beyond that when needed.
    pub(crate) fn for_slots(slots: usize) -> Wheel {
        let mut wheel = Wheel::new();
        wheel.links.reserve(slots);
        wheel
    }

    /// Arms a slot for a tick, instead of the tick that it was armed for before.
    ///
    /// If the tick has passed, the slot is due at once, but is popped after all that are due already: a slot that is
    /// armed for the past again and again cannot keep others from being popped.
    pub(crate) fn arm(&mut self, slot: u32, when: Tick) {
        let entry = entry_of(slot);
        if entry as usize >= self.links.len() {
            self.links.resize(entry as usize + 1, Link::UNARMED);
        }
        let (old, when) = (self.links[entry as usize], when.0.min(LAST));
        if old.is_armed() {
            if old.when() == when {
                return;
            }
            self.unlink(entry);
        }
        self.place(entry, when);
        self.find_next();
    }

    /// Removes the deadline of a slot, if it has one.
    pub(crate) fn cancel(&mut self, slot: u32) {
        if self.when(slot).is_some() {
            self.release(entry_of(slot));
            self.find_next();
        }
    }

    /// The tick for which a slot is armed, even if it has passed.
    pub(crate) fn when(&self, slot: u32) -> Option<Tick> {
        let link = self.links.get(entry_of(slot) as usize)?;
        link.is_armed().then_some(Tick(link.when()))
    }

    /// Removes and returns one slot whose tick is `now` or earlier; `None` when there is none. Never early.
    ///
    /// Earlier ticks come first; within a tick there is no order. The wheel turns only as far as necessary to find the
    /// next slot, so a caller may stop at any time, arm and cancel, and continue.
    ///
    /// Amortised constant time per entry. A single call may take longer: it moves all entries of a bucket of a higher
    /// level, at about ten nanoseconds each.
    #[inline]
    pub(crate) fn pop_due(&mut self, now: Tick) -> Option<u32> {
        if now.0 >= self.next {
            return self.turn_to(now);
        }
        // No bucket opens on the way. `max`: a clock that goes back does not turn the wheel back.
        self.elapsed = self.elapsed.max(now.0);
        None
    }

    #[inline(never)]
    fn turn_to(&mut self, now: Tick) -> Option<u32> {
        // Ends: each round returns, or opens a bucket, and an entry is moved at most once per level.
        loop {
            let first = self.links[DUE as usize].next();
            if first != DUE {
                self.release(first);
                self.find_next();
                return Some(first - BUCKETS);
            }
            match self.nearest() {
                Some((bucket, start)) if start <= now.0 => self.open(bucket, start, now.0),
                _ => {
                    self.elapsed = now.0;
                    self.find_next();
                    return None;
                }
            }
        }
    }

    /// The tick at which [`Wheel::pop_due`] must be called at the latest; `None` when nothing is armed.
    ///
    /// It is never after the earliest deadline. It is before it if that entry is in a coarse bucket: then it is the
    /// tick at which the bucket opens, and nothing may be due yet. For one deadline, that is at most one wake-up per
    /// level. While an entry is in `DUE`, it is a tick that has passed.
    ///
    /// After `pop_due` has returned `None` for a tick, `next` is later than that tick, so a loop that sleeps until
    /// `next` does not spin.
    pub(crate) fn next(&self) -> Option<Tick> {
        (self.next != NEVER).then_some(Tick(self.next))
    }

    fn find_next(&mut self) {
        let is_due = self.links[DUE as usize].next() != DUE;
        self.next = if is_due { self.elapsed } else { self.nearest().map_or(NEVER, |(_, start)| start) };
    }

    /// The bucket to open next, and its first tick.
    fn nearest(&self) -> Option<(u32, u64)> {
        for (level, &occupied) in (0..).zip(&self.occupied) {
            if occupied != 0 {
                let digit = occupied.trailing_zeros();
                let shift = level * DIGIT;
                let digits_above = self.elapsed >> (shift + DIGIT) << DIGIT;
                return Some((level * PER_LEVEL + digit, (digits_above | u64::from(digit)) << shift));
            }
        }
        // Does not overflow: the digits above the span of a tick in `FAR` are greater than those of `elapsed`, so
        // those of `elapsed` are not the greatest possible.
        let anyone = self.links[FAR as usize].next() != FAR && !seeded(SeededBug::FarDeadlineForgotten);
        anyone.then(|| (FAR, ((self.elapsed >> SPAN) + 1) << SPAN))
    }

    /// Turns the wheel to the start of a bucket, and moves its entries to finer buckets, or to `DUE`.
    fn open(&mut self, bucket: u32, start: u64, now: u64) {
        let (first, last) = (self.links[bucket as usize].next(), self.links[bucket as usize].prev());
        // There may be millions of empty spans before the first far deadline. They are skipped.
        self.elapsed = if bucket == FAR { self.earliest_far().min(now) } else { start };
        self.links[bucket as usize] = Link::empty_bucket(bucket);
        self.mark_empty(bucket);
        if bucket < PER_LEVEL || seeded(SeededBug::WheelFiresEarly) {
            // All entries have the same tick, and `DUE` is empty (`pop_due` opens no bucket before): move the whole
            // ring.
            self.join(DUE, first);
            self.join(last, DUE);
            return;
        }
        let mut entry = first;
        while entry != bucket {
            let (next, when) = (self.links[entry as usize].next(), self.links[entry as usize].when());
            self.place(entry, when);
            entry = next;
        }
    }

    fn earliest_far(&self) -> u64 {
        let mut earliest = u64::MAX;
        let mut entry = self.links[FAR as usize].next();
        while entry != FAR {
            let link = self.links[entry as usize];
            earliest = earliest.min(link.when());
            entry = link.next();
        }
        earliest
    }

    /// Appends an entry that is in no ring to the bucket for its tick.
    fn place(&mut self, entry: u32, when: u64) {
        let bucket = self.bucket_of(when);
        let last = self.links[bucket as usize].prev();
        self.links[entry as usize] = Link::new(bucket, last, when);
        self.join(last, entry);
        self.join(entry, bucket);
        if let Some(level) = self.occupied.get_mut((bucket / PER_LEVEL) as usize) {
            *level |= 1 << (bucket % PER_LEVEL);
        }
    }

    fn bucket_of(&self, when: u64) -> u32 {
        if when <= self.elapsed {
            return DUE;
        }
        let level = (when ^ self.elapsed).ilog2() / DIGIT;
        if level >= LEVELS {
            return FAR;
        }
        let digit = (when >> (level * DIGIT)) as u32 % PER_LEVEL;
        level * PER_LEVEL + digit
    }

    fn release(&mut self, entry: u32) {
        self.unlink(entry);
        self.links[entry as usize] = Link::UNARMED;
    }

    fn unlink(&mut self, entry: u32) {
        let (next, prev) = (self.links[entry as usize].next(), self.links[entry as usize].prev());
        self.join(prev, next);
        if prev == next {
            self.mark_empty(prev);
        }
    }

    /// Makes two links neighbours.
    fn join(&mut self, before: u32, after: u32) {
        self.links[before as usize].next = three_bytes(after);
        self.links[after as usize].prev = three_bytes(before);
    }

    /// Clears the bit of a bucket. `FAR` and `DUE` belong to no level and have none.
    fn mark_empty(&mut self, bucket: u32) {
        if let Some(level) = self.occupied.get_mut((bucket / PER_LEVEL) as usize) {
            *level &= !(1 << (bucket % PER_LEVEL));
        }
    }
}

impl Default for Wheel {
    fn default() -> Wheel {
        Wheel::new()
    }
}

impl fmt::Debug for Wheel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let armed = self.links[BUCKETS as usize..].iter().filter(|link| link.is_armed()).count();
        let mut wheel = f.debug_struct("Wheel");
        wheel.field("elapsed", &self.elapsed).field("armed", &armed).field("next", &self.next());
        wheel.field("occupied", &format_args!("{:x?}", self.occupied)).finish()
    }
}

fn entry_of(slot: u32) -> u32 {
    debug_assert!(slot < NOWHERE - BUCKETS, "no slab has a slot {slot}");
    slot + BUCKETS
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    impl Wheel {
        /// Walks every ring in both directions, and compares it with the bitmaps and the ticks.
        fn check_invariants(&self) {
            let mut linked = 0;
            for bucket in 0..BUCKETS {
                let (mut before, mut entry) = (bucket, self.links[bucket as usize].next());
                while entry != bucket {
                    assert!(entry >= BUCKETS, "the ring of {bucket} runs into bucket {entry}: {self:?}");
                    let link = self.links[entry as usize];
                    assert_eq!(link.prev(), before, "entry {entry} of bucket {bucket} has a wrong `prev`");
                    assert_eq!(
                        self.bucket_of(link.when()),
                        bucket,
                        "{} is in the wrong bucket: {self:?}",
                        link.when()
                    );
                    linked += 1;
                    (before, entry) = (entry, link.next());
                }
                assert_eq!(self.links[bucket as usize].prev(), before, "bucket {bucket} has a wrong `prev`");
                if let Some(level) = self.occupied.get((bucket / PER_LEVEL) as usize) {
                    let bit = level >> (bucket % PER_LEVEL) & 1 == 1;
                    assert_eq!(bit, before != bucket, "the bit of bucket {bucket} is wrong: {self:?}");
                }
            }
            let armed = self.links[BUCKETS as usize..].iter().filter(|link| link.is_armed()).count();
            assert_eq!(armed, linked, "an armed entry is in no ring, or in two");
        }

        fn at(start: u64) -> Wheel {
            let mut wheel = Wheel::new();
            assert_eq!(wheel.pop_due(Tick(start)), None);
            wheel
        }

        fn pop_all(&mut self, now: u64) -> Vec<u32> {
            let popped = std::iter::from_fn(|| self.pop_due(Tick(now))).collect();
            self.check_invariants();
            popped
        }
    }

    /// Both sides of each border between levels, and of borders between the buckets of a level, in order.
    fn delays() -> BTreeSet<u64> {
        let borders = (0..=7).map(|level| 1u64 << (level * DIGIT));
        borders.flat_map(|it| [it - 1, it, it + 1, 2 * it - 1, 2 * it, 63 * it]).collect()
    }

    /// Ticks just before, at and after a change of one or many digits.
    const STARTS: [u64; 11] =
        [0, 1, 62, 63, 64, 67, 4_095, 262_143, (1 << 36) - 1, (5 << 36) + 123_456_789, 1 << 46];

    // -- never early, never lost -------------------------------------------------------------------

    #[test]
    fn a_deadline_fires_on_its_tick_from_every_level() {
        for start in STARTS {
            for when in
                delays().into_iter().map(|delay| (start + delay).min(LAST)).filter(|&when| when > start)
            {
                let mut wheel = Wheel::at(start);
                wheel.arm(7, Tick(when));
                assert_eq!(wheel.when(7), Some(Tick(when)));
                assert_eq!(wheel.pop_all(when - 1), [], "{when} fired early, armed at {start}");
                assert_eq!(wheel.pop_all(when), [7], "{when} did not fire, armed at {start}");
                assert_eq!((wheel.when(7), wheel.next()), (None, None));
            }
        }
    }

    #[test]
    fn a_loop_that_sleeps_until_next_is_on_time_and_woken_at_most_seven_times() {
        for start in STARTS {
            // Beyond the span it is woken once in 22 years; the test would have to simulate all of them.
            let whens = delays()
                .into_iter()
                .filter(|&delay| delay <= 1 << SPAN)
                .map(|delay| (start + delay).min(LAST));
            for when in whens {
                let mut wheel = Wheel::at(start);
                wheel.arm(0, Tick(when));
                let mut wakes = Vec::new();
                while let Some(now) = wheel.next() {
                    assert!(
                        wakes.last().is_none_or(|&last| now > last),
                        "spins at {now:?}, armed at {start}"
                    );
                    wakes.push(now);
                    let popped = wheel.pop_due(now);
                    assert_eq!(
                        popped.is_some(),
                        now == Tick(when),
                        "at {now:?} for {when}, armed at {start}"
                    );
                }
                assert!(wakes.len() <= 7, "{} wakes from {start} to {when}", wakes.len());
            }
        }
    }

    #[test]
    fn a_deadline_beyond_the_span_wakes_the_loop_once_in_22_years() {
        let years_22 = 64u64.pow(6);
        let mut wheel = Wheel::new();
        wheel.arm(0, Tick(3 * years_22 + 5));
        let wakes: Vec<Tick> = std::iter::from_fn(|| {
            let now = wheel.next()?;
            wheel.pop_due(now);
            Some(now)
        })
        .take(20)
        .collect();
        assert_eq!(
            wakes,
            [1, 2, 3]
                .map(|times| Tick(times * years_22))
                .into_iter()
                .chain([Tick(3 * years_22 + 5)])
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_deadline_beyond_the_span_fires_on_its_tick() {
        let span = 1u64 << SPAN;
        let mut wheel = Wheel::at(span - 5);
        let ticks = [span - 1, span, span + 1, 2 * span - 5, 7 * span + 1, 1_000 * span, LAST - 1, LAST];
        for (slot, when) in (0..8).zip(ticks).rev() {
            wheel.arm(slot, Tick(when));
        }
        for (slot, when) in (0..).zip(ticks) {
            assert_eq!(wheel.pop_all(when - 1), [], "{when} fired early");
            assert!(wheel.next().is_some_and(|next| next <= Tick(when)), "{when} is slept through");
            assert_eq!(wheel.pop_all(when), [slot], "{when} was lost");
        }
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_jump_of_the_clock_over_all_levels_pops_everything_in_order() {
        for start in STARTS {
            let ticks: BTreeSet<u64> = delays().into_iter().map(|delay| (start + delay).min(LAST)).collect();
            let all: Vec<u32> = (0..ticks.len() as u32).collect();
            let mut wheel = Wheel::at(start);
            for (&slot, &when) in all.iter().zip(&ticks).rev() {
                wheel.arm(slot, Tick(when));
            }
            assert_eq!(wheel.pop_all(u64::MAX), all, "armed at {start}");
        }
    }

    #[test]
    fn after_a_jump_of_the_clock_later_deadlines_are_on_time() {
        let ticks = delays();
        for &jump in &ticks {
            let mut wheel = Wheel::new();
            for (slot, &when) in (0..).zip(&ticks) {
                wheel.arm(slot, Tick(when));
            }
            let passed = ticks.range(..=jump).count();
            assert_eq!(wheel.pop_all(jump).len(), passed);
            for (slot, &when) in (0..).zip(&ticks).skip(passed) {
                assert_eq!(wheel.pop_all(when - 1), [], "{when} fired early after a jump to {jump}");
                assert_eq!(wheel.pop_all(when), [slot], "{when} was lost in a jump to {jump}");
            }
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn a_clock_that_goes_back_fires_nothing_early() {
        let mut wheel = Wheel::at(100);
        wheel.arm(0, Tick(110));
        wheel.arm(1, Tick(110));
        assert!(wheel.pop_due(Tick(110)).is_some());
        assert_eq!(wheel.pop_due(Tick(109)), None);
        assert!(wheel.pop_due(Tick(110)).is_some());
    }

    // -- moving and removing -------------------------------------------------------------------------

    #[test]
    fn removing_an_entry_keeps_the_others_of_its_bucket() {
        for when in [1, 63, 64, 5_000, 1 << 20, 1 << 40, 0] {
            for leaver in 0..5 {
                let mut wheel = Wheel::new();
                (0..5).for_each(|slot| wheel.arm(slot, Tick(when)));
                wheel.cancel(leaver);
                wheel.check_invariants();
                assert_eq!(wheel.when(leaver), None);
                let rest: Vec<u32> = (0..5).filter(|&slot| slot != leaver).collect();
                assert_eq!(wheel.pop_all(when), rest);
            }
        }
    }

    #[test]
    fn cancelling_a_slot_that_is_not_armed_does_nothing() {
        let mut wheel = Wheel::new();
        wheel.cancel(3);
        wheel.arm(5, Tick(9));
        wheel.cancel(4);
        wheel.cancel(4_000_000);
        assert_eq!(wheel.pop_all(9), [5]);
        wheel.cancel(5);
        assert_eq!(wheel.pop_all(10_000), []);
    }

    #[test]
    fn arming_again_moves_a_deadline_in_either_direction() {
        for &other in delays().range(2..) {
            let mut wheel = Wheel::new();
            wheel.arm(0, Tick(other));
            wheel.arm(0, Tick(1));
            assert_eq!(wheel.when(0), Some(Tick(1)));
            wheel.arm(1, Tick(1));
            wheel.arm(1, Tick(other));
            assert_eq!(wheel.pop_all(other - 1), [0]);
            assert_eq!(wheel.pop_all(other), [1]);
        }
    }

    #[test]
    fn arming_for_the_same_tick_keeps_the_place_in_line() {
        let mut wheel = Wheel::at(50);
        wheel.arm(0, Tick(50));
        wheel.arm(1, Tick(40));
        wheel.arm(0, Tick(50));
        assert_eq!(wheel.pop_all(50), [0, 1]);
    }

    #[test]
    fn thousands_of_one_tick_are_popped_in_batches_while_they_are_armed_again() {
        const MANY: u32 = 5_000;
        let mut wheel = Wheel::at(1_000);
        (0..MANY).for_each(|slot| wheel.arm(slot, Tick(2_000)));
        for round in 0..3 {
            let mut popped = BTreeSet::new();
            // A turn pops 256, and the next turn is a tick later.
            for turn in 0..MANY.div_ceil(256) {
                let now = Tick(2_000 + 6_000 * round + u64::from(turn));
                for _ in 0..256 {
                    let Some(slot) = wheel.pop_due(now) else { break };
                    assert!(popped.insert(slot), "slot {slot} came twice in round {round}");
                    wheel.arm(slot, Tick(2_000 + 6_000 * (round + 1)));
                }
            }
            assert_eq!(popped.len(), MANY as usize);
            wheel.check_invariants();
        }
    }

    #[test]
    fn a_slot_armed_for_the_past_is_due_at_once_but_after_those_already_due() {
        let mut wheel = Wheel::at(500);
        (0..3).for_each(|slot| wheel.arm(slot, Tick(510)));
        assert_eq!(wheel.pop_due(Tick(600)), Some(0));
        wheel.arm(0, Tick(3));
        wheel.arm(3, Tick(510));
        assert_eq!((wheel.when(0), wheel.when(3)), (Some(Tick(3)), Some(Tick(510))));
        assert!(wheel.next().is_some_and(|next| next <= Tick(600)));
        assert_eq!(wheel.pop_all(600), [1, 2, 0, 3]);
        wheel.arm(4, Tick(600));
        assert!(wheel.next().is_some_and(|next| next <= Tick(600)));
        assert_eq!(wheel.pop_all(600), [4]);
    }

    // -- next tick and memory ------------------------------------------------------------------------

    #[test]
    fn an_empty_wheel_has_no_next_tick() {
        let mut wheel = Wheel::default();
        assert_eq!(wheel.next(), None);
        for when in delays() {
            wheel.arm(1, Tick(when));
            wheel.arm(2, Tick(when / 2));
            let next = wheel.next();
            assert!(next.is_some_and(|next| next <= Tick(when / 2)), "{next:?} is after {}", when / 2);
            wheel.cancel(1);
            wheel.cancel(2);
            assert_eq!(wheel.next(), None, "{when} left something behind");
        }
    }

    #[test]
    fn a_wheel_for_so_many_slots_does_not_grow_while_they_are_armed() {
        let mut wheel = Wheel::for_slots(1_000);
        let reserved = wheel.links.capacity();
        (0..1_000).for_each(|slot| wheel.arm(slot, Tick(9)));
        assert_eq!(wheel.links.capacity(), reserved);
    }

    #[test]
    fn memory_follows_the_highest_slot_and_not_the_traffic() {
        let mut wheel = Wheel::new();
        for tick in 0..100_000 {
            wheel.arm(tick as u32 % 10, Tick(tick + 6_000));
        }
        assert_eq!(wheel.links.len(), BUCKETS as usize + 10);
        assert!(format!("{wheel:?}").contains("armed: 10"), "{wheel:?}");
    }

    // -- against a model -----------------------------------------------------------------------------

    const SLOTS: u32 = 24;

    #[derive(Clone, Debug)]
    enum Step {
        Arm {
            slot: u32,
            ahead: u64,
        },
        ArmBehind {
            slot: u32,
            behind: u64,
        },
        Cancel {
            slot: u32,
        },
        /// Advances the clock and pops at most `pops` slots.
        Advance {
            by: u64,
            pops: usize,
        },
        /// Sleeps until `next`, and `over` ticks longer.
        Sleep {
            over: u64,
        },
    }

    /// A small distance, one next to a border of a digit, or any.
    fn distance() -> impl Strategy<Value = u64> {
        let near_a_border = (0..=7u32, 1..4u64, 0..5u64)
            .prop_map(|(level, times, off)| ((times << (level * DIGIT)) + off).saturating_sub(2));
        let any_size = (any::<u64>(), 16..64u32).prop_map(|(bits, shift)| bits >> shift);
        prop_oneof![4 => 0..200u64, 3 => near_a_border, 2 => any_size]
    }

    fn step() -> impl Strategy<Value = Step> {
        let budget = prop_oneof![Just(usize::MAX), 0..4usize];
        prop_oneof![
            8 => (0..SLOTS, distance()).prop_map(|(slot, ahead)| Step::Arm { slot, ahead }),
            1 => (0..SLOTS, distance()).prop_map(|(slot, behind)| Step::ArmBehind { slot, behind }),
            2 => (0..SLOTS).prop_map(|slot| Step::Cancel { slot }),
            3 => (distance(), budget).prop_map(|(by, pops)| Step::Advance { by, pops }),
            3 => prop_oneof![Just(0), 0..100u64].prop_map(|over| Step::Sleep { over }),
        ]
    }

    /// A wheel and its model, a sorted map.
    struct Pair {
        wheel: Wheel,
        now: u64,
        /// The tick that counts for the order (for a slot armed for the past: that of the wheel), the slot, and the
        /// tick it was armed for.
        model: BTreeMap<(u64, u32), u64>,
    }

    impl Pair {
        fn armed(&self, slot: u32) -> Option<((u64, u32), u64)> {
            self.model.iter().find(|((_, owner), _)| *owner == slot).map(|(&key, &when)| (key, when))
        }

        fn arm(&mut self, slot: u32, when: u64) {
            let old = self.armed(slot);
            if old.is_none_or(|(_, armed)| armed != when) {
                old.map(|(key, _)| self.model.remove(&key));
                self.model.insert((when.max(self.wheel.elapsed), slot), when);
            }
            self.wheel.arm(slot, Tick(when));
        }

        fn cancel(&mut self, slot: u32) {
            self.armed(slot).map(|(key, _)| self.model.remove(&key));
            self.wheel.cancel(slot);
        }

        fn advance(&mut self, to: u64, pops: usize) {
            self.now = to;
            for _ in 0..pops {
                let earliest = self.model.keys().next().map(|&(tick, _)| tick).filter(|&tick| tick <= to);
                let Some(slot) = self.wheel.pop_due(Tick(to)) else {
                    assert_eq!(earliest, None, "due at {to}, but not popped: {:?}", self.wheel);
                    let next = self.wheel.next();
                    assert!(next.is_none_or(|next| next > Tick(to)), "{next:?} would spin at {to}");
                    return;
                };
                let tick = earliest.unwrap_or_else(|| panic!("slot {slot} popped early at {to}"));
                let when = self.model.remove(&(tick, slot));
                assert!(when.is_some(), "slot {slot} popped at {to} before those of tick {tick}");
            }
        }

        fn compare(&self) {
            self.wheel.check_invariants();
            for slot in 0..SLOTS {
                assert_eq!(
                    self.wheel.when(slot),
                    self.armed(slot).map(|(_, when)| Tick(when)),
                    "slot {slot}"
                );
            }
            let earliest = self.model.keys().next().map(|&(tick, _)| Tick(tick));
            match (self.wheel.next(), earliest) {
                (Some(next), Some(earliest)) => {
                    assert!(next <= earliest, "{earliest:?} is slept through to {next:?}")
                }
                (next, earliest) => assert_eq!(next, earliest),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_wheel_behaves_as_a_sorted_map_does(
            start in prop_oneof![
                Just(0),
                any::<u64>().prop_map(|bits| bits >> 16),
                distance().prop_map(|before| LAST - before),
            ],
            steps in prop::collection::vec(step(), 1..150),
        ) {
            let mut pair = Pair { wheel: Wheel::at(start), now: start, model: BTreeMap::new() };
            for step in steps {
                match step {
                    Step::Arm { slot, ahead } => pair.arm(slot, pair.now.saturating_add(ahead).min(LAST)),
                    Step::ArmBehind { slot, behind } => pair.arm(slot, pair.now.saturating_sub(behind).min(LAST)),
                    Step::Cancel { slot } => pair.cancel(slot),
                    Step::Advance { by, pops } => pair.advance(pair.now.saturating_add(by), pops),
                    Step::Sleep { over } => {
                        let next = pair.wheel.next().map_or(pair.now, |next| next.0.max(pair.now));
                        pair.advance(next.saturating_add(over), usize::MAX);
                    }
                }
                pair.compare();
            }
            pair.advance(u64::MAX, usize::MAX);
            pair.compare();
            prop_assert_eq!(pair.wheel.next(), None);
        }
    }
}
