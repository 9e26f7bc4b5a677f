//! Admission: how many connections each address has, and how often it connects.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::base::reason::Refusal;
use crate::base::tick::Tick;
use crate::config::access::AccessPolicy;
use crate::config::rules::{Action, RefuseMode};
use crate::parts::token_bucket::TokenBucket;

/// The access policy of a service, with the counters per address that it needs.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) policy: AccessPolicy,
    addresses: HashMap<AddressKey, PerAddress>,
    max: usize,
    last_sweep: Option<Tick>,
}

/// What an address is counted under: an IPv4 address, or the first 64 bits of an IPv6 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum AddressKey {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for AddressKey {
    fn from(ip: IpAddr) -> AddressKey {
        match ip.to_canonical() {
            IpAddr::V4(v4) => AddressKey::V4(v4.to_bits()),
            IpAddr::V6(v6) => AddressKey::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Debug, Default)]
struct PerAddress {
    connections: usize,
    /// One token per accepted connection; `None` while the policy has no accept rate.
    bucket: Option<TokenBucket>,
}

impl Admission {
    /// Twice as many addresses as there can be connections are remembered. When that many have connections or had some
    /// within the last second, connections from further addresses are refused: forgetting an address would lift its
    /// limit.
    pub(crate) fn new(policy: AccessPolicy, connections: usize) -> Admission {
        Admission { policy, addresses: HashMap::new(), max: connections.saturating_mul(2), last_sweep: None }
    }

    /// Whether connections from this address are counted.
    pub(crate) fn tracks(&self, ip: IpAddr) -> bool {
        let limited = self.policy.per_address.is_some() || self.policy.accept_rate.is_some();
        limited && !self.policy.exempt.iter().any(|range| range.contains(ip))
    }

    /// Whether the rules allow this address; the error is how to refuse it.
    pub(crate) fn allows(&mut self, ip: IpAddr) -> Result<(), RefuseMode> {
        if self.policy.rules.is_empty() {
            return Ok(());
        }
        match self.policy.rules.decide(ip) {
            Action::Allow => Ok(()),
            Action::Deny(how) => Err(how),
        }
    }

    /// Counts a connection, or returns why it is refused. A counted connection must be
    /// [released](Admission::release) when it ends. In a dry run it is counted even when an error is returned.
    pub(crate) fn admit(&mut self, ip: IpAddr, now: Tick) -> Result<(), Refusal> {
        if !self.tracks(ip) {
            return Ok(());
        }
        let (max, rate) = (self.policy.per_address, self.policy.accept_rate);
        let key = AddressKey::from(ip);
        if !self.addresses.contains_key(&key) && !self.has_room(now) {
            return if self.policy.dry_run { Ok(()) } else { Err(Refusal::PerAddress) };
        }
        let entry = self.addresses.entry(key).or_default();
        let too_many = max.is_some_and(|max| entry.connections >= max);
        let too_fast = !too_many && rate.is_some_and(|rate| entry.is_over_rate(rate, now));
        if (too_many || too_fast) && !self.policy.dry_run {
            if entry.connections == 0 && entry.bucket.is_none() {
                self.addresses.remove(&key);
            }
            return Err(if too_many { Refusal::PerAddress } else { Refusal::AcceptRate });
        }
        entry.connections += 1;
        match (too_many, too_fast) {
            (true, _) => Err(Refusal::PerAddress),
            (_, true) => Err(Refusal::AcceptRate),
            _ => Ok(()),
        }
    }

    pub(crate) fn release(&mut self, ip: IpAddr) {
        let key = AddressKey::from(ip);
        let Some(entry) = self.addresses.get_mut(&key) else { return };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.connections == 0 && entry.bucket.is_none() {
            self.addresses.remove(&key);
        }
    }

    /// Whether one more address can be remembered. When there is no room, addresses without connections whose bucket
    /// is full again are removed: they are treated as new ones would be. At most once in ten ticks, because it looks at
    /// every address.
    fn has_room(&mut self, now: Tick) -> bool {
        if self.addresses.len() >= self.max && self.last_sweep.is_none_or(|last| now.0 >= last.0 + 10) {
            self.last_sweep = Some(now);
            self.addresses.retain(|_, entry| {
                entry.connections > 0 || entry.bucket.as_mut().is_some_and(|bucket| !bucket.is_full(now))
            });
        }
        self.addresses.len() < self.max
    }
}

impl PerAddress {
    fn is_over_rate(&mut self, rate: usize, now: Tick) -> bool {
        let bucket = self.bucket.get_or_insert_with(|| TokenBucket::new(rate, rate, now));
        if !bucket.is_of(rate) {
            *bucket = TokenBucket::new(rate, rate, now); // The policy has changed since.
        }
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
    use crate::config::rules::Rules;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn admission(per_address: Option<usize>, accept_rate: Option<usize>) -> Admission {
        Admission::new(AccessPolicy { per_address, accept_rate, ..AccessPolicy::default() }, 100)
    }

    #[test]
    fn the_limit_for_one_address_is_exact() {
        let mut admission = admission(Some(3), None);
        let now = Tick(0);
        for _ in 0..3 {
            assert_eq!(admission.admit(ip("10.0.0.1"), now), Ok(()));
        }
        assert_eq!(
            admission.admit(ip("::ffff:10.0.0.1"), now),
            Err(Refusal::PerAddress),
            "an address mapped into IPv6 is the same"
        );
        assert_eq!(admission.admit(ip("10.0.0.2"), now), Ok(()));
        admission.release(ip("10.0.0.1"));
        assert_eq!(admission.admit(ip("10.0.0.1"), now), Ok(()));
        assert_eq!(admission.admit(ip("10.0.0.1"), now), Err(Refusal::PerAddress));
    }

    #[test]
    fn one_ipv6_64_prefix_counts_as_one_address() {
        let mut admission = admission(Some(1), None);
        assert_eq!(admission.admit(ip("2001:db8:0:1::1"), Tick(0)), Ok(()));
        assert_eq!(admission.admit(ip("2001:db8:0:1:ffff::2"), Tick(0)), Err(Refusal::PerAddress));
        assert_eq!(admission.admit(ip("2001:db8:0:2::1"), Tick(0)), Ok(()));
    }

    #[test]
    fn the_accept_rate_of_one_address_is_exact() {
        let mut admission = admission(None, Some(5));
        let mut admitted = 0;
        for tick in 0..1_000 {
            if admission.admit(ip("10.0.0.1"), Tick(tick)).is_ok() {
                admitted += 1;
                admission.release(ip("10.0.0.1"));
            }
        }
        assert_eq!(admitted, 5 + 9 * 5 + 4, "five at once, then five a second for ten seconds");
    }

    #[test]
    fn tracked_addresses_are_bounded_and_connected_ones_are_kept() {
        let mut admission = admission(Some(10), Some(10));
        for n in 0..1_000_u32 {
            let from = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let entered = admission.admit(from, Tick(0));
            assert_eq!(entered.is_ok(), n < 200, "{n}");
            if n % 2 == 0 && entered.is_ok() {
                admission.release(from);
            }
        }
        assert_eq!(admission.addresses.len(), 200);
        assert_eq!(
            admission.admit(ip("192.0.2.1"), Tick(9)),
            Err(Refusal::PerAddress),
            "a hundred have left just now"
        );
        assert_eq!(admission.admit(ip("192.0.2.1"), Tick(100)), Ok(()));
        assert_eq!(admission.addresses.len(), 101, "a hundred are still connected");
    }

    #[test]
    fn a_dry_run_admits_every_address_and_reports_what_it_would_refuse() {
        let policy = AccessPolicy { per_address: Some(1), dry_run: true, ..AccessPolicy::default() };
        let mut admission = Admission::new(policy, 100);
        assert_eq!(admission.admit(ip("10.0.0.1"), Tick(0)), Ok(()));
        assert_eq!(admission.admit(ip("10.0.0.1"), Tick(0)), Err(Refusal::PerAddress));
        admission.release(ip("10.0.0.1"));
        admission.release(ip("10.0.0.1"));
        assert!(admission.addresses.is_empty(), "both were counted, both have left");
    }

    #[test]
    fn no_address_is_tracked_without_a_limit() {
        let mut admission = admission(None, None);
        assert_eq!(admission.admit(ip("10.0.0.1"), Tick(0)), Ok(()));
        assert!(admission.addresses.is_empty());
    }

    #[test]
    fn a_changed_accept_rate_applies_to_known_addresses() {
        let mut admission = admission(None, Some(1_000));
        admission.admit(ip("192.0.2.1"), Tick(0)).unwrap();
        admission.release(ip("192.0.2.1"));
        admission.policy.accept_rate = Some(2);
        let admitted = (0..10).filter(|_| admission.admit(ip("192.0.2.1"), Tick(6_000)).is_ok()).count();
        assert_eq!(admitted, 2);
    }

    #[test]
    fn rules_decide_and_an_empty_list_allows_all() {
        let mut rules = Rules::default();
        rules.deny("10.0.0.0/8".parse().unwrap(), RefuseMode::Reset);
        let mut admission = Admission::new(AccessPolicy { rules, ..AccessPolicy::default() }, 100);
        assert_eq!(admission.allows(ip("10.1.2.3")), Err(RefuseMode::Reset));
        assert_eq!(admission.allows(ip("192.0.2.1")), Ok(()));
        assert_eq!(Admission::new(AccessPolicy::default(), 100).allows(ip("10.1.2.3")), Ok(()));
    }

    #[test]
    fn a_dry_run_says_what_it_would_refuse_and_counts_it() {
        let policy = AccessPolicy {
            per_address: Some(3),
            accept_rate: Some(1),
            dry_run: true,
            ..AccessPolicy::default()
        };
        let mut admission = Admission::new(policy, 100);
        let results: Vec<_> = (0..4).map(|_| admission.admit(ip("10.0.0.1"), Tick(0))).collect();
        let (fast, many) = (Err(Refusal::AcceptRate), Err(Refusal::PerAddress));
        assert_eq!(results, [Ok(()), fast, fast, many]);
    }

    #[test]
    fn places_for_addresses_are_freed_once_in_ten_ticks_and_never_those_in_use() {
        let policy = AccessPolicy { per_address: Some(1), accept_rate: Some(100), ..AccessPolicy::default() };
        let mut admission = Admission::new(policy, 1); // Two addresses have a place.
        let admit = |admission: &mut Admission, name: &str, now| admission.admit(ip(name), Tick(now));
        assert_eq!(admit(&mut admission, "10.0.0.1", 0), Ok(()));
        assert_eq!(admit(&mut admission, "10.0.0.2", 0), Ok(()));
        assert!(admit(&mut admission, "10.0.0.3", 100).is_err(), "both are connected");
        ["10.0.0.1", "10.0.0.2"].iter().for_each(|name| admission.release(ip(name)));
        assert!(admit(&mut admission, "10.0.0.3", 105).is_err(), "it was looked at five ticks ago");
        assert_eq!(admit(&mut admission, "10.0.0.3", 110), Ok(()));
        // It is looked at only when no place is left: otherwise it would be too soon when one is needed.
        admission.release(ip("10.0.0.3"));
        assert_eq!(admit(&mut admission, "10.0.0.4", 120), Ok(()));
        admission.release(ip("10.0.0.4"));
        assert_eq!(admit(&mut admission, "10.0.0.5", 125), Ok(()));
    }
}
