//! A guard at work: who is inside, how many from one address, and how often they come.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::base::reason::Refusal;
use crate::base::tick::Tick;
use crate::config::access::Guard;
use crate::config::rules::{Refuse, Verdict};
use crate::parts::token_bucket::Bucket;

/// A guard at work: with its memory of who is inside.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) guard: Guard,
    visitors: HashMap<Key, Visitor>,
    most: usize,
    swept: Option<Tick>,
}

/// Whom an address counts as.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Key {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Key {
    fn from(ip: IpAddr) -> Key {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Key::V4(v4.to_bits()),
            IpAddr::V6(v6) => Key::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Debug, Default)]
struct Visitor {
    here: usize,
    /// How often it has come of late; none while no rate is asked for.
    bucket: Option<Bucket>,
}

impl Watch {
    /// The table of addresses holds twice as many as there can be connections. When it is full of addresses that are
    /// here or were a second ago, new ones are turned away: forgetting somebody would lift his limit.
    pub(crate) fn new(guard: Guard, connections: usize) -> Watch {
        Watch { guard, visitors: HashMap::new(), most: connections.saturating_mul(2), swept: None }
    }

    /// Whether it has to remember that one from this address is here.
    pub(crate) fn counts(&self, ip: IpAddr) -> bool {
        let limited = self.guard.per_address.is_some() || self.guard.accept_rate.is_some();
        limited && !self.guard.exempt.iter().any(|range| range.contains(ip))
    }

    /// Whether the rules let it in.
    pub(crate) fn allows(&mut self, ip: IpAddr) -> Result<(), Refuse> {
        if self.guard.rules.is_empty() {
            return Ok(());
        }
        match self.guard.rules.decide(ip) {
            Verdict::Allow => Ok(()),
            Verdict::Deny(how) => Err(how),
        }
    }

    /// Takes one in, or says why not. Whoever was taken in must [`leave`](Watch::leave) again, in a dry run too.
    pub(crate) fn enter(&mut self, ip: IpAddr, now: Tick) -> Result<(), Refusal> {
        if !self.counts(ip) {
            return Ok(());
        }
        let (most, rate) = (self.guard.per_address, self.guard.accept_rate);
        let key = Key::from(ip);
        if !self.visitors.contains_key(&key) && !self.has_room(now) {
            return if self.guard.dry_run { Ok(()) } else { Err(Refusal::PerAddress) };
        }
        let visitor = self.visitors.entry(key).or_default();
        let crowded = most.is_some_and(|most| visitor.here >= most);
        let hurried = !crowded && rate.is_some_and(|rate| visitor.comes_too_often(rate, now));
        if (crowded || hurried) && !self.guard.dry_run {
            if visitor.here == 0 && visitor.bucket.is_none() {
                self.visitors.remove(&key);
            }
            return Err(if crowded { Refusal::PerAddress } else { Refusal::AcceptRate });
        }
        visitor.here += 1;
        match (crowded, hurried) {
            (true, _) => Err(Refusal::PerAddress),
            (_, true) => Err(Refusal::AcceptRate),
            _ => Ok(()),
        }
    }

    pub(crate) fn leave(&mut self, ip: IpAddr) {
        let key = Key::from(ip);
        let Some(visitor) = self.visitors.get_mut(&key) else { return };
        visitor.here = visitor.here.saturating_sub(1);
        if visitor.here == 0 && visitor.bucket.is_none() {
            self.visitors.remove(&key);
        }
    }

    /// Whether one more address can be remembered. Those that are gone and have been silent for so long that they
    /// might as well be new are swept out when room is wanted, at most once in ten ticks.
    fn has_room(&mut self, now: Tick) -> bool {
        if self.visitors.len() >= self.most && self.swept.is_none_or(|swept| now.0 >= swept.0 + 10) {
            self.swept = Some(now);
            self.visitors.retain(|_, visitor| {
                visitor.here > 0 || visitor.bucket.as_mut().is_some_and(|bucket| !bucket.is_full(now))
            });
        }
        self.visitors.len() < self.most
    }
}

impl Visitor {
    fn comes_too_often(&mut self, rate: usize, now: Tick) -> bool {
        let bucket = self.bucket.get_or_insert_with(|| Bucket::new(rate, rate, now));
        let too_often = bucket.level(now) == 0;
        if !too_often {
            bucket.take(1, now);
        }
        too_often
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn watch(per_address: Option<usize>, accept_rate: Option<usize>) -> Watch {
        Watch::new(Guard { per_address, accept_rate, ..Guard::default() }, 100)
    }

    #[test]
    fn an_address_has_exactly_as_many_as_it_may() {
        let mut watch = watch(Some(3), None);
        let now = Tick(0);
        for _ in 0..3 {
            assert_eq!(watch.enter(ip("10.0.0.1"), now), Ok(()));
        }
        assert_eq!(
            watch.enter(ip("::ffff:10.0.0.1"), now),
            Err(Refusal::PerAddress),
            "mapped, it is the same"
        );
        assert_eq!(watch.enter(ip("10.0.0.2"), now), Ok(()));
        watch.leave(ip("10.0.0.1"));
        assert_eq!(watch.enter(ip("10.0.0.1"), now), Ok(()));
        assert_eq!(watch.enter(ip("10.0.0.1"), now), Err(Refusal::PerAddress));
    }

    #[test]
    fn the_addresses_of_one_customer_count_as_one() {
        let mut watch = watch(Some(1), None);
        assert_eq!(watch.enter(ip("2001:db8:0:1::1"), Tick(0)), Ok(()));
        assert_eq!(watch.enter(ip("2001:db8:0:1:ffff::2"), Tick(0)), Err(Refusal::PerAddress));
        assert_eq!(watch.enter(ip("2001:db8:0:2::1"), Tick(0)), Ok(()));
    }

    #[test]
    fn an_address_connects_as_often_as_it_may_and_no_oftener() {
        let mut watch = watch(None, Some(5));
        let mut let_in = 0;
        for tick in 0..1_000 {
            if watch.enter(ip("10.0.0.1"), Tick(tick)).is_ok() {
                let_in += 1;
                watch.leave(ip("10.0.0.1"));
            }
        }
        assert_eq!(let_in, 5 + 9 * 5 + 4, "five at once, then five a second for ten seconds");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nobody_who_is_here_is_forgotten() {
        let mut watch = watch(Some(10), Some(10));
        for n in 0..1_000_u32 {
            let from = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let entered = watch.enter(from, Tick(0));
            assert_eq!(entered.is_ok(), n < 200, "{n}");
            if n % 2 == 0 && entered.is_ok() {
                watch.leave(from);
            }
        }
        assert_eq!(watch.visitors.len(), 200);
        assert_eq!(
            watch.enter(ip("192.0.2.1"), Tick(9)),
            Err(Refusal::PerAddress),
            "a hundred were here just now"
        );
        assert_eq!(watch.enter(ip("192.0.2.1"), Tick(100)), Ok(()));
        assert_eq!(watch.visitors.len(), 101, "a hundred are still here");
    }

    #[test]
    fn a_dry_run_lets_everybody_in_and_says_whom_it_would_not_have() {
        let guard = Guard { per_address: Some(1), dry_run: true, ..Guard::default() };
        let mut watch = Watch::new(guard, 100);
        assert_eq!(watch.enter(ip("10.0.0.1"), Tick(0)), Ok(()));
        assert_eq!(watch.enter(ip("10.0.0.1"), Tick(0)), Err(Refusal::PerAddress));
        watch.leave(ip("10.0.0.1"));
        watch.leave(ip("10.0.0.1"));
        assert!(watch.visitors.is_empty(), "both were counted, both have left");
    }

    #[test]
    fn nothing_is_remembered_where_nothing_is_asked() {
        let mut watch = watch(None, None);
        assert_eq!(watch.enter(ip("10.0.0.1"), Tick(0)), Ok(()));
        assert!(watch.visitors.is_empty());
    }
}
