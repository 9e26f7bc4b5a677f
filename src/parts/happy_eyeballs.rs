//! Which address of a name to try next, and when: Happy Eyeballs (RFC 8305). Pure: no I/O, no clock.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::tick::Tick;

/// The order and the times of attempts to connect.
///
/// ```text
///     v6 a   ├──────────────── connecting … ───────────────── ✗ dropped
///     v4 b        ├──────── connecting … ──── ✓ connected
///     v6 c             ├─ ✗ refused
///     v4 d               ├──── connecting … ─ ✗ dropped
///            │◀ 250 ms ▶│  ▲
///            attempt delay └ a failure starts the next attempt at once
/// ```
///
/// Attempts overlap: a slow attempt goes on while the next address is tried, and the first to connect wins. If the next
/// attempt ended the one before, an address that needs longer than the attempt delay could never be reached.
///
/// The families alternate, beginning with the family that the system's resolver put first (section 4). The resolver
/// answers for both families at once, so there is no late AAAA answer to wait for (section 3).
#[derive(Debug)]
pub(crate) struct HappyEyeballs {
    waiting: VecDeque<SocketAddr>,
    attempt_delay: Duration,
    last_start: Option<Tick>,
}

/// What to do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Try(SocketAddr),
    /// Try the next address at this tick, or when an attempt fails.
    Wait(Tick),
    /// All addresses have been tried, and some attempts are under way.
    Pending,
    /// All attempts have failed.
    GiveUp,
}

/// The minimum time between the starts of two attempts (RFC 8305, section 8: "MUST NOT be less than 10 milliseconds").
const ATTEMPT_DELAY_MIN: Duration = Duration::from_millis(10);

/// A name may have any number of addresses; beyond this number, further attempts are not expected to succeed either.
const ADDRESSES_MAX: usize = 32;

impl HappyEyeballs {
    /// For the addresses of a name, in the resolver's order. Duplicates are tried once.
    pub(crate) fn new(addresses: impl IntoIterator<Item = SocketAddr>, delay: Duration) -> HappyEyeballs {
        let mut distinct: Vec<SocketAddr> = Vec::new();
        for address in addresses {
            if distinct.len() < ADDRESSES_MAX && !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        let first_is_v6 = distinct.first().is_some_and(SocketAddr::is_ipv6);
        let (first, second): (Vec<_>, Vec<_>) =
            distinct.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
        let (mut first, mut second) = (first.into_iter(), second.into_iter());
        let mut waiting = VecDeque::new();
        loop {
            match (first.next(), second.next()) {
                (None, None) => break,
                pair => waiting.extend([pair.0, pair.1].into_iter().flatten()),
            }
        }
        HappyEyeballs { waiting, attempt_delay: delay.max(ATTEMPT_DELAY_MIN), last_start: None }
    }

    /// For a dial whose addresses are not known, or are not IP addresses.
    pub(crate) fn none() -> HappyEyeballs {
        HappyEyeballs::new([], ATTEMPT_DELAY_MIN)
    }

    /// What to do now, with this number of attempts under way.
    pub(crate) fn step(&self, under_way: usize, now: Tick) -> Step {
        let Some(&next) = self.waiting.front() else {
            return if under_way == 0 { Step::GiveUp } else { Step::Pending };
        };
        match self.last_start.map(|last| last.after(self.attempt_delay)) {
            Some(due) if under_way > 0 && due > now => Step::Wait(due),
            _ => Step::Try(next),
        }
    }

    /// The attempt that [`Step::Try`] named has begun.
    pub(crate) fn started(&mut self, now: Tick) {
        self.waiting.pop_front();
        self.last_start = Some(now);
    }

    /// An attempt has failed: the next one starts at once.
    pub(crate) fn failed(&mut self) {
        self.last_start = None;
    }

    /// Tries again after an attempt delay, because there is no descriptor for a further attempt.
    pub(crate) fn postpone(&mut self, now: Tick) {
        self.last_start = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    const DELAY: Duration = Duration::from_millis(250);

    #[test]
    fn families_take_turns_beginning_with_the_resolvers_first() {
        let given = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "[::1]:1", "2.2.2.2:1"]);
        let plan = HappyEyeballs::new(given, DELAY);
        assert_eq!(plan.waiting, addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]));
        let plan = HappyEyeballs::new(addresses(&["1.1.1.1:1", "[::1]:1"]), DELAY);
        assert_eq!(plan.waiting, addresses(&["1.1.1.1:1", "[::1]:1"]));
    }

    #[test]
    fn a_slow_attempt_is_overtaken_and_not_abandoned() {
        let given = addresses(&["[::1]:1", "1.1.1.1:1"]);
        let mut plan = HappyEyeballs::new(given.clone(), DELAY);
        assert_eq!(plan.step(0, Tick(0)), Step::Try(given[0]));
        plan.started(Tick(0));
        let due = Tick(0).after(DELAY);
        assert_eq!(plan.step(1, Tick(due.0 - 1)), Step::Wait(due));
        assert_eq!(plan.step(1, due), Step::Try(given[1]));
        plan.started(due);
        assert_eq!(plan.step(2, due), Step::Pending);
        plan.failed();
        assert_eq!(plan.step(1, due), Step::Pending, "the slow one may still win");
        plan.failed();
        assert_eq!(plan.step(0, due), Step::GiveUp);
    }

    #[test]
    fn a_failure_starts_the_next_one_at_once() {
        let given = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1"]);
        let mut plan = HappyEyeballs::new(given.clone(), DELAY);
        plan.started(Tick(0));
        plan.failed();
        assert_eq!(plan.step(0, Tick(0)), Step::Try(given[1]));
        assert_eq!(plan.step(1, Tick(0)), Step::Try(given[1]), "also beside one that is still under way");
        plan.started(Tick(0));
        assert_eq!(plan.step(1, Tick(0)), Step::Wait(Tick(0).after(DELAY)));
        plan.postpone(Tick(20));
        assert_eq!(plan.step(1, Tick(20)), Step::Wait(Tick(20).after(DELAY)));
    }

    #[test]
    fn the_attempt_delay_has_a_minimum() {
        let mut plan = HappyEyeballs::new(addresses(&["[::1]:1", "1.1.1.1:1"]), Duration::ZERO);
        plan.started(Tick(0));
        assert_eq!(plan.step(1, Tick(0)), Step::Wait(Tick(0).after(ATTEMPT_DELAY_MIN)));
    }

    #[test]
    fn no_address_at_all_is_a_failure() {
        assert_eq!(HappyEyeballs::new([], DELAY).step(0, Tick(0)), Step::GiveUp);
        let many = (0..1_000_u16).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(HappyEyeballs::new(many, DELAY).waiting.len(), ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn every_address_is_tried_once_and_the_end_is_reached_whatever_happens(
            families in prop::collection::vec(any::<bool>(), 0..20),
            fates in prop::collection::vec(0..4_u8, 200),
        ) {
            let ip = |v6: bool, n: usize| -> SocketAddr {
                if v6 { format!("[::{n:x}]:1") } else { format!("10.0.0.{n}:1") }.parse().unwrap()
            };
            let given: Vec<SocketAddr> = families.iter().enumerate().map(|(n, &v6)| ip(v6, n)).collect();
            let mut plan = HappyEyeballs::new(given.clone(), DELAY);
            let (mut now, mut tried, mut under_way) = (Tick(0), Vec::new(), 0);
            let mut fates = fates.into_iter().chain(std::iter::repeat(0));
            loop {
                let fate = fates.next().unwrap();
                match plan.step(under_way, now) {
                    Step::Try(address) if fate == 1 => { tried.push(address); plan.started(now); plan.failed(); }
                    Step::Try(address) => { tried.push(address); plan.started(now); under_way += 1; }
                    Step::Wait(due) if fate < 2 => { prop_assert!(due > now); now = due; }
                    Step::Wait(_) | Step::Pending => { plan.failed(); under_way -= 1; }
                    Step::GiveUp => break,
                }
            }
            prop_assert_eq!(under_way, 0);
            tried.sort();
            let mut given = given;
            given.sort();
            prop_assert_eq!(tried, given);
        }
    }

    #[test]
    fn a_postponed_attempt_waits_only_for_others_that_are_under_way() {
        let given = addresses(&["[::1]:1"]);
        let mut plan = HappyEyeballs::new(given.clone(), DELAY);
        plan.postpone(Tick(0));
        assert_eq!(plan.step(1, Tick(0)), Step::Wait(Tick(0).after(DELAY)));
        assert_eq!(plan.step(0, Tick(0)), Step::Try(given[0]));
    }
}
