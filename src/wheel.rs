//! The timer wheel: one deadline per slot, linked by index.
//!
//! A hierarchical timing wheel (Varghese and Lauck, 1987): six levels of 64 buckets. A bucket of the lowest level is a
//! tick wide, one of each further level 64 times as much.
//!
//! ```text
//!     level 5   ┌───────┬───────┬─ …        124 days a bucket (at 10 ms a tick)
//!       …
//!     level 1   ┌───────┬───────┬─ … ─┬───────┐   640 ms a bucket
//!               │   0   │   1   │     │  63   │
//!               └───────┴───┬───┴─────┴───────┘
//!                           │ cascade: when its time begins, its entries move down
//!     level 0   ┌───┬───┬───▼─ … ─┬───┐           10 ms a bucket
//!               │ 0 │ 1 │ 2 │     │63 │
//!               └───┴─┬─┴───┴─────┴───┘
//!                     ▼
//!                 slot 7 ⇄ slot 2 ⇄ slot 41       a list through the links of the slots themselves
//! ```
//!
//! A level's 64 buckets have one bit each, so the next bucket with anything in it is found by counting zeros, and a
//! clock that jumps by a year costs no more than what is due.
//!
//! # Why connections do not move their entry
//!
//! An idle limit is refreshed by every message and fires almost never. So a connection notes the tick of its last
//! activity, which is one store, and leaves its entry where it is; when the entry fires, the deadline is computed afresh,
//! and if it lies ahead the entry is armed again. Only a deadline that comes *sooner* moves an entry.
//!
//! The tempting alternative, to push `(id, tick)` and let the entries of the dead expire, grows as the rate of accepts
//! times the timeout: 50,000 a second times 60 s are three million entries for a house of ten thousand.

use crate::time::Tick;

/// Deadlines by slot.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// What has been popped up to: no entry is due before this.
    elapsed: u64,
    /// By slot.
    links: Vec<Link>,
    /// The first slot of each bucket's list, by level and bucket.
    heads: [u32; LEVELS * BUCKETS],
    /// Which buckets of a level have a list.
    occupied: [u64; LEVELS],
}

/// A slot's place in a list.
#[derive(Clone, Copy, Debug)]
struct Link {
    when: u64,
    next: u32,
    /// The slot before it; for the first of a list, its bucket with [`HEAD`] set; for who is not armed, [`UNARMED`].
    prev: u32,
}

/// An idle connection's share of the wheel.
const _: () = assert!(size_of::<Link>() == 16);

const LEVELS: usize = 6;
const BUCKETS: usize = 64;
const BITS: u32 = BUCKETS.ilog2();
/// What lies further ahead than the wheel can tell (2³⁶ ticks, two decades) waits in its last bucket and is put back.
const SPAN: u64 = 1 << (BITS * LEVELS as u32);

const NONE: u32 = u32::MAX;
const UNARMED: u32 = u32::MAX;
/// Marks a `prev` that names a bucket. Slots stay below it.
const HEAD: u32 = 1 << 31;

impl Wheel {
    pub(crate) fn new() -> Wheel {
        Wheel { elapsed: 0, links: Vec::new(), heads: [NONE; LEVELS * BUCKETS], occupied: [0; LEVELS] }
    }

    /// Sets a slot's deadline, or moves it. One that has passed is due at once.
    pub(crate) fn arm(&mut self, slot: u32, when: Tick) {
        debug_assert!(slot < HEAD);
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, Link { when: 0, next: NONE, prev: UNARMED });
        }
        if self.links[index].prev != UNARMED {
            if self.links[index].when == when.0 {
                return;
            }
            self.unlink(slot);
        }
        self.links[index].when = when.0;
        self.link(slot);
    }

    /// Forgets a slot's deadline, if it has one.
    pub(crate) fn cancel(&mut self, slot: u32) {
        if self.when(slot).is_some() {
            self.unlink(slot);
        }
    }

    /// A slot's deadline.
    pub(crate) fn when(&self, slot: u32) -> Option<Tick> {
        let link = self.links.get(slot as usize)?;
        (link.prev != UNARMED).then_some(Tick(link.when))
    }

    /// Takes out one slot whose deadline is not after `now`; earlier ticks first.
    pub(crate) fn pop_due(&mut self, now: Tick) -> Option<u32> {
        loop {
            let (level, bucket, starts) = self.first()?;
            if starts > now.0 {
                // Nothing is due up to now. Knowing that keeps later deadlines on low levels.
                self.elapsed = self.elapsed.max(now.0);
                return None;
            }
            self.elapsed = self.elapsed.max(starts);
            let slot = self.heads[level * BUCKETS + bucket];
            if level == 0 && self.links[slot as usize].when <= now.0 {
                self.unlink(slot);
                return Some(slot);
            }
            self.cascade(level, bucket);
        }
    }

    /// A tick that is not after the earliest deadline: the deadline itself when it is near, else the moment at which its
    /// bucket is to be looked into. None when nothing is armed.
    pub(crate) fn next(&self) -> Option<Tick> {
        self.first().map(|(_, _, starts)| Tick(starts))
    }

    /// The bucket that comes first, and when it begins. A lower level's buckets all come before a higher one's.
    fn first(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let shift = BITS * level as u32;
        let here = (self.elapsed >> shift) % BUCKETS as u64;
        // Rotated, the bit of the present bucket comes first, and those it has passed come last, as the next round.
        let ahead = u64::from(self.occupied[level].rotate_right(here as u32).trailing_zeros());
        let bucket = (here + ahead) % BUCKETS as u64;
        let starts = ((self.elapsed >> shift) + ahead) << shift;
        Some((level, bucket as usize, starts.max(self.elapsed)))
    }

    /// Moves the entries of a bucket whose time has begun to where they belong now.
    fn cascade(&mut self, level: usize, bucket: usize) {
        let mut slot = std::mem::replace(&mut self.heads[level * BUCKETS + bucket], NONE);
        self.occupied[level] &= !(1 << bucket);
        while slot != NONE {
            let next = self.links[slot as usize].next;
            self.link(slot);
            slot = next;
        }
    }

    /// Puts a slot into the list of its bucket: the level is that of the highest digit, to base 64, in which its
    /// deadline differs from the time that has elapsed.
    fn link(&mut self, slot: u32) {
        // Not quite the whole span: in the last bucket but none, a far deadline would seem to be due now.
        let horizon = self.elapsed.saturating_add(SPAN - SPAN / BUCKETS as u64);
        let when = self.links[slot as usize].when.clamp(self.elapsed, horizon);
        let differs = (when ^ self.elapsed) | (BUCKETS as u64 - 1);
        let level = ((differs.ilog2() / BITS) as usize).min(LEVELS - 1);
        let bucket = (when >> (BITS * level as u32)) as usize % BUCKETS;
        let head = &mut self.heads[level * BUCKETS + bucket];
        let second = std::mem::replace(head, slot);
        let link = &mut self.links[slot as usize];
        link.next = second;
        link.prev = HEAD | (level * BUCKETS + bucket) as u32;
        if second != NONE {
            self.links[second as usize].prev = slot;
        }
        self.occupied[level] |= 1 << bucket;
    }

    fn unlink(&mut self, slot: u32) {
        let Link { next, prev, .. } = self.links[slot as usize];
        self.links[slot as usize].prev = UNARMED;
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        if prev & HEAD == 0 {
            self.links[prev as usize].next = next;
            return;
        }
        let place = (prev & !HEAD) as usize;
        self.heads[place] = next;
        if next == NONE {
            self.occupied[place / BUCKETS] &= !(1 << (place % BUCKETS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    impl Wheel {
        fn starting_at(tick: u64) -> Wheel {
            Wheel { elapsed: tick, ..Wheel::new() }
        }

        /// Every list is linked both ways, every armed slot is in one list, and the bits agree.
        fn check(&self) {
            let mut listed = BTreeSet::new();
            for (place, &head) in self.heads.iter().enumerate() {
                let bit = self.occupied[place / BUCKETS] >> (place % BUCKETS) & 1;
                assert_eq!(bit == 1, head != NONE, "bucket {place}");
                let (mut slot, mut before) = (head, HEAD | place as u32);
                while slot != NONE {
                    let link = self.links[slot as usize];
                    assert_eq!(link.prev, before);
                    assert!(listed.insert(slot), "slot {slot} is in two lists");
                    (before, slot) = (slot, link.next);
                }
            }
            let armed = self.links.iter().filter(|link| link.prev != UNARMED).count();
            assert_eq!(listed.len(), armed);
        }
    }

    fn all_due(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut due: Vec<u32> = std::iter::from_fn(|| wheel.pop_due(Tick(now))).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn a_deadline_comes_at_its_tick_whatever_its_level() {
        for start in [0, 1, 63, 64, 4_095, 1 << 20, SPAN - 5, (1 << 40) + 77] {
            for delay in
                [0, 1, 62, 63, 64, 65, 127, 128, 4_095, 4_096, 4_097, 262_143, 262_144, 1 << 30, SPAN - 1]
            {
                let mut wheel = Wheel::starting_at(start);
                wheel.arm(3, Tick(start + delay));
                if delay > 0 {
                    assert_eq!(wheel.pop_due(Tick(start + delay - 1)), None, "{start} + {delay} came early");
                }
                assert_eq!(wheel.pop_due(Tick(start + delay)), Some(3), "{start} + {delay} did not come");
                assert_eq!(wheel.next(), None);
            }
        }
    }

    #[test]
    fn a_deadline_beyond_the_span_is_neither_early_nor_lost() {
        let far = 5 * SPAN + 12_345;
        let mut wheel = Wheel::new();
        wheel.arm(0, Tick(far));
        let mut now = 0;
        while now < far {
            assert_eq!(wheel.pop_due(Tick(now)), None);
            let next = wheel.next().expect("it is still armed").0;
            assert!(next <= far);
            now = next.max(now + 1);
        }
        assert_eq!(wheel.pop_due(Tick(far)), Some(0));
        let mut wheel = Wheel::starting_at(u64::MAX - 2 * SPAN);
        wheel.arm(0, Tick(u64::MAX));
        assert_eq!(wheel.pop_due(Tick(u64::MAX - 1)), None);
        assert_eq!(wheel.pop_due(Tick(u64::MAX)), Some(0));
    }

    #[test]
    fn what_is_armed_for_the_past_is_due_at_once() {
        let mut wheel = Wheel::new();
        assert_eq!(wheel.pop_due(Tick(1_000)), None);
        wheel.arm(1, Tick(5));
        assert!(wheel.next().is_some_and(|next| next.0 <= 1_000));
        assert_eq!(wheel.pop_due(Tick(1_000)), Some(1));
    }

    #[test]
    fn a_slot_can_leave_from_the_head_the_middle_and_the_tail() {
        for gone in 0..3 {
            let mut wheel = Wheel::new();
            (0..3).for_each(|slot| wheel.arm(slot, Tick(9)));
            wheel.cancel(gone);
            wheel.cancel(gone);
            wheel.check();
            let left: Vec<u32> = (0..3).filter(|&slot| slot != gone).collect();
            assert_eq!(all_due(&mut wheel, 9), left);
        }
    }

    #[test]
    fn a_deadline_can_be_moved_both_ways() {
        let mut wheel = Wheel::new();
        wheel.arm(1, Tick(100));
        wheel.arm(1, Tick(50));
        assert_eq!(wheel.when(1), Some(Tick(50)));
        assert_eq!(wheel.pop_due(Tick(49)), None);
        wheel.arm(1, Tick(5_000));
        assert_eq!((wheel.pop_due(Tick(4_999)), wheel.pop_due(Tick(5_000))), (None, Some(1)));
    }

    #[test]
    fn slots_armed_again_while_thousands_are_popped_wait_for_their_new_tick() {
        let mut wheel = Wheel::new();
        (0..5_000).for_each(|slot| wheel.arm(slot, Tick(700)));
        for _ in 0..5_000 {
            let slot = wheel.pop_due(Tick(700)).expect("all of them are due");
            wheel.arm(slot, Tick(701));
        }
        assert_eq!(wheel.pop_due(Tick(700)), None);
        assert_eq!(all_due(&mut wheel, 701).len(), 5_000);
    }

    #[test]
    fn a_jump_over_years_pops_what_is_due_in_order() {
        let mut wheel = Wheel::new();
        let delays = [5, 70, 5_000, 300_000, 20_000_000, 1 << 33];
        (0..).zip(delays).for_each(|(slot, when)| wheel.arm(slot, Tick(when)));
        let popped: Vec<u32> = std::iter::from_fn(|| wheel.pop_due(Tick(1 << 34))).collect();
        assert_eq!(popped, [0, 1, 2, 3, 4, 5]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u32, u64),
        Cancel(u32),
        Advance(u64),
        Pop(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let span = prop_oneof![0..10u64, 50..80u64, 4_000..4_200u64, 0..300_000u64, 0..(3 * SPAN)];
        let step = prop_oneof![
            5 => (0..40u32, span.clone()).prop_map(|(slot, span)| Step::Arm(slot, span)),
            1 => (0..40u32).prop_map(Step::Cancel),
            3 => span.prop_map(Step::Advance),
            1 => (0..5usize).prop_map(Step::Pop),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn it_behaves_as_a_sorted_set_does(steps in steps(), start in prop_oneof![Just(0), 0..u64::MAX / 2]) {
            let (mut wheel, mut model, mut now) = (Wheel::starting_at(start), BTreeSet::<(u64, u32)>::new(), start);
            for step in steps {
                match step {
                    Step::Arm(slot, span) => {
                        model.retain(|&(_, armed)| armed != slot);
                        // Half of them from a moment that may lie behind.
                        let when = (now + span).saturating_sub(span.is_multiple_of(2) as u64 * 30);
                        model.insert((when, slot));
                        wheel.arm(slot, Tick(when));
                    }
                    Step::Cancel(slot) => {
                        model.retain(|&(_, armed)| armed != slot);
                        wheel.cancel(slot);
                    }
                    Step::Advance(span) => {
                        now += span;
                        let due: BTreeSet<u32> =
                            model.iter().filter(|&&(when, _)| when <= now).map(|&(_, slot)| slot).collect();
                        model.retain(|&(when, _)| when > now);
                        prop_assert_eq!(all_due(&mut wheel, now), due.into_iter().collect::<Vec<_>>());
                    }
                    Step::Pop(count) => {
                        for _ in 0..count {
                            let popped = wheel.pop_due(Tick(now));
                            let due = model.iter().find(|&&(when, slot)| when <= now && Some(slot) == popped).copied();
                            prop_assert_eq!(due.is_some(), popped.is_some());
                            due.map(|entry| model.remove(&entry));
                        }
                    }
                }
                wheel.check();
                for slot in 0..40 {
                    let armed = model.iter().find(|entry| entry.1 == slot).map(|entry| Tick(entry.0));
                    prop_assert_eq!(wheel.when(slot), armed);
                }
                let earliest = model.first().map(|entry| entry.0.max(now));
                prop_assert_eq!(wheel.next().is_some(), earliest.is_some());
                if let (Some(next), Some(earliest)) = (wheel.next(), earliest) {
                    prop_assert!(next.0 <= earliest, "sleeping until {} would miss {}", next.0, earliest);
                }
            }
        }
    }
}
