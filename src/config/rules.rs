//! Access rules: an ordered list of address ranges that are allowed or denied.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of IP addresses, first and last included.
///
/// Written as one address, as a network, or as two addresses: `10.0.0.7`, `10.0.0.0/8`, `10.0.0.1-10.0.0.99`; likewise
/// for IPv6. IPv4 addresses that are mapped into IPv6 (`::ffff:10.0.0.7`) count as IPv4.
///
/// # Examples
///
/// ```
/// use tidemill::IpRange;
///
/// let office: IpRange = "10.1.0.0/16".parse().unwrap();
/// assert!(office.contains("10.1.255.255".parse().unwrap()));
/// assert!(office.contains("::ffff:10.1.0.1".parse().unwrap()));
///
/// let error = "10.1.2.3/16".parse::<IpRange>().unwrap_err();
/// assert_eq!(error.to_string(), "\"10.1.2.3/16\" is not an address range: did you mean 10.1.0.0/16?");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is not an [`IpRange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeError {
    text: String,
    reason: String,
}

impl IpRange {
    /// The addresses from `first` to `last`, both included.
    ///
    /// # Errors
    ///
    /// When one is IPv4 and the other IPv6, or `first` is greater than `last`.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<IpRange, RangeError> {
        let (first, last) = (first.to_canonical(), last.to_canonical());
        let wrong = |why: &str| Err(RangeError { text: format!("{first}-{last}"), reason: why.to_string() });
        if first.is_ipv4() != last.is_ipv4() {
            return wrong("its ends are of different versions of IP");
        }
        if first > last {
            return wrong("it ends before it begins");
        }
        Ok(IpRange { first, last })
    }

    /// The addresses that share their first `prefix` bits with `ip`.
    ///
    /// # Errors
    ///
    /// When `prefix` is more than 32 (IPv4) or 128 (IPv6), or a bit of `ip` behind the prefix is set.
    pub fn network(ip: IpAddr, prefix: u8) -> Result<IpRange, RangeError> {
        let wrong = |why: String| Err(RangeError { text: format!("{ip}/{prefix}"), reason: why });
        let (address, width) = match ip {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let Some(host_bits) = u8::checked_sub(width, prefix) else {
            return wrong(format!("a prefix has at most {width} bits here"));
        };
        let hosts = 1_u128.checked_shl(u32::from(host_bits)).map_or(u128::MAX, |size| size - 1);
        let build = |bits: u128| match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        if address & hosts != 0 {
            return wrong(format!("did you mean {}/{prefix}?", build(address & !hosts)));
        }
        let (first, last) = (build(address), build(address | hosts));
        // A network within ::ffff:0:0/96 is one of IPv4; a larger one is not, although it contains mapped addresses.
        let mapped = first.to_canonical().is_ipv4() == last.to_canonical().is_ipv4();
        let same = |ip: IpAddr| if mapped { ip.to_canonical() } else { ip };
        Ok(IpRange { first: same(first), last: same(last) })
    }

    /// Whether every address of another range is in this one.
    pub fn covers(&self, other: &IpRange) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }

    /// Whether an address lies in the range.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.first.is_ipv4() && self.first <= ip && ip <= self.last
    }
}

impl FromStr for IpRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<IpRange, RangeError> {
        let wrong = |why: String| RangeError { text: text.to_string(), reason: why };
        let ip =
            |part: &str| part.parse::<IpAddr>().map_err(|_| wrong(format!("{part:?} is not an IP address")));
        let again = |error: RangeError| wrong(error.reason);
        if let Some((network, prefix)) = text.split_once('/') {
            let digits =
                !prefix.is_empty() && prefix.len() <= 3 && prefix.bytes().all(|byte| byte.is_ascii_digit());
            let prefix = prefix.parse().ok().filter(|_| digits);
            let prefix =
                prefix.ok_or_else(|| wrong("the prefix length after / must be a number".to_string()))?;
            return IpRange::network(ip(network)?, prefix).map_err(again);
        }
        match text.split_once('-') {
            Some((first, last)) => IpRange::new(ip(first)?, ip(last)?).map_err(again),
            None => ip(text).and_then(|ip| IpRange::new(ip, ip).map_err(again)),
        }
    }
}

impl fmt::Display for IpRange {
    /// As one address or as a network, if it is one; else as two addresses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last, width) = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (u128::from(first.to_bits()), u128::from(last.to_bits()), 32)
            }
            (first, last) => (bits(first), bits(last), 128),
        };
        let hosts = first ^ last;
        let host_bits = 128 - hosts.leading_zeros();
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else if hosts.count_ones() == host_bits && first & hosts == 0 {
            write!(f, "{}/{}", self.first, width - host_bits)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl RangeError {
    /// What is wrong, without the text itself.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an address range: {}", self.text, self.reason)
    }
}

impl std::error::Error for RangeError {}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// How a peer is refused.
///
/// # Examples
///
/// ```
/// use tidemill::RefuseMode;
///
/// assert_eq!("tarpit".parse(), Ok(RefuseMode::Tarpit));
/// let error = "shout".parse::<RefuseMode>().unwrap_err();
/// assert_eq!(error, "\"shout\" is not a way to refuse a peer; choose reply, end, reset or tarpit");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RefuseMode {
    /// Send the [`busy_reply`](crate::ListenOptions::busy_reply), then close.
    Reply,
    /// Close without a reply: the peer gets FIN.
    End,
    /// Reset the connection: the peer gets an error. The cheapest way for the server.
    Reset,
    /// Keep the connection open for 30 s without reading or answering, which costs an attacker time. At most
    /// [`Limits::tarpitted`](crate::Limits::tarpitted) concurrently; further peers are reset.
    Tarpit,
}

impl FromStr for RefuseMode {
    type Err = String;

    fn from_str(text: &str) -> Result<RefuseMode, String> {
        match text {
            "reply" => Ok(RefuseMode::Reply),
            "end" => Ok(RefuseMode::End),
            "reset" => Ok(RefuseMode::Reset),
            "tarpit" => Ok(RefuseMode::Tarpit),
            _ => Err(format!("{text:?} is not a way to refuse a peer; choose reply, end, reset or tarpit")),
        }
    }
}

/// What a rule does with the addresses of its range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Accepts them.
    Allow,
    /// Refuses them.
    Deny(RefuseMode),
}

/// One rule, with its counter.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Rule {
    /// The addresses it applies to.
    pub range: IpRange,
    /// What it does with them.
    pub action: Action,
    /// How often it has decided.
    pub hits: u64,
}

/// An ordered list of rules. The first rule whose range contains an address decides.
///
/// # Addresses that no rule applies to
///
/// For them, the opposite of the last rule holds. A list that ends with `allow` denies all other addresses; a list that
/// ends with `deny` allows them; an empty list allows all.
///
/// ```text
///     rules        0 deny 10.1.0.0/16       1 allow 10.0.0.0/8       (else: deny)
///
///     spans        …9.255.255.255 │ 10.0.0.0 │ 10.1.0.0 │ 10.2.0.0      │ 11.0.0.0…
///     decided by        else      │     1    │     0    │     1         │   else
/// ```
///
/// The ranges are cut into spans, each with the one rule that decides in it. A look-up is then a binary search, however
/// many rules there are.
///
/// # Examples
///
/// ```
/// use tidemill::{RefuseMode, Rules, Action};
///
/// let mut rules = Rules::default();
/// rules.deny("10.1.0.0/16".parse().unwrap(), RefuseMode::Reset);
/// rules.allow("10.0.0.0/8".parse().unwrap());
/// assert_eq!(rules.decide("10.2.0.1".parse().unwrap()), Action::Allow);
/// assert_eq!(rules.decide("10.1.0.1".parse().unwrap()), Action::Deny(RefuseMode::Reset));
/// assert_eq!(rules.decide("192.0.2.1".parse().unwrap()), Action::Deny(RefuseMode::End));
/// assert_eq!(rules.iter().map(|rule| rule.hits).collect::<Vec<_>>(), [1, 1]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    v4: Vec<RuleSpan>,
    v6: Vec<RuleSpan>,
    /// Builds the spans at the first look-up after a change. A pointer that each change sets, so that a program without
    /// rules is linked without it: it is 9 KB.
    build: Option<fn(&mut Rules)>,
    /// How often no rule applied.
    unmatched: u64,
}

/// The rule that decides from `first` to the next span; `None` if no rule applies there.
#[derive(Clone, Copy, Debug)]
struct RuleSpan {
    first: u128,
    rule: Option<u32>,
}

impl Rules {
    /// Appends a rule that allows a range.
    pub fn allow(&mut self, range: IpRange) {
        self.push(range, Action::Allow);
    }

    /// Appends a rule that denies a range.
    pub fn deny(&mut self, range: IpRange, how: RefuseMode) {
        self.push(range, Action::Deny(how));
    }

    fn push(&mut self, range: IpRange, action: Action) {
        self.rules.push(Rule { range, action, hits: 0 });
        self.build = Some(Rules::build);
    }

    /// Removes every rule for exactly this range; returns how many there were.
    pub fn remove(&mut self, range: IpRange) -> usize {
        let before = self.rules.len();
        self.rules.retain(|rule| rule.range != range);
        self.build = Some(Rules::build);
        before - self.rules.len()
    }

    /// The rules in their order, with their counters.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are no rules, so that all addresses are allowed.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How often [`decide`](Rules::decide) found no rule that applies.
    pub fn unmatched(&self) -> u64 {
        self.unmatched
    }

    /// Decides about an address, and counts the decision at its rule.
    pub fn decide(&mut self, ip: IpAddr) -> Action {
        if let Some(build) = self.build.take() {
            build(self);
        }
        let ip = ip.to_canonical();
        let spans = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let behind = spans.partition_point(|span| span.first <= bits(ip));
        let rule = behind.checked_sub(1).and_then(|at| spans[at].rule);
        match rule.and_then(|rule| self.rules.get_mut(rule as usize)) {
            Some(rule) => {
                rule.hits += 1;
                rule.action
            }
            None => {
                self.unmatched += 1;
                self.default_action()
            }
        }
    }

    fn build(&mut self) {
        let of = |v4: bool| {
            self.rules.iter().enumerate().filter(move |(_, rule)| rule.range.first.is_ipv4() == v4)
        };
        (self.v4, self.v6) = (build_spans(of(true)), build_spans(of(false)));
    }

    /// The action for addresses that no rule applies to.
    fn default_action(&self) -> Action {
        match self.rules.last().map(|rule| rule.action) {
            Some(Action::Allow) => Action::Deny(RefuseMode::End),
            Some(Action::Deny(_)) | None => Action::Allow,
        }
    }
}

/// Cuts the ranges of rules into spans: goes through all ends of ranges in order and keeps the set of rules whose range
/// is open there. The lowest index of the set decides.
fn build_spans<'a>(rules: impl Iterator<Item = (usize, &'a Rule)>) -> Vec<RuleSpan> {
    let mut ends = Vec::new();
    for (index, rule) in rules {
        let index = index as u32;
        ends.push((bits(rule.range.first), true, index));
        if let Some(behind) = bits(rule.range.last).checked_add(1) {
            ends.push((behind, false, index));
        }
    }
    ends.sort_unstable();
    let (mut open, mut spans) = (BTreeSet::new(), Vec::<RuleSpan>::new());
    for (at, opens, index) in ends {
        if opens {
            open.insert(index);
        } else {
            open.remove(&index);
        }
        let span = RuleSpan { first: at, rule: open.first().copied() };
        match spans.last_mut() {
            Some(last) if last.first == at => *last = span,
            Some(last) if last.rule == span.rule => {}
            _ => spans.push(span),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_covers_what_lies_in_it_whole() {
        let range = |text: &str| text.parse::<IpRange>().unwrap();
        let net = range("10.1.0.0/16");
        assert!(net.covers(&net) && net.covers(&range("10.1.2.3")));
        for other in ["10.0.255.255-10.1.0.1", "10.1.255.255-10.2.0.0", "10.0.0.0/8", "::/0"] {
            assert!(!net.covers(&range(other)), "{other}");
        }
    }

    #[test]
    fn an_error_says_what_is_wrong_with_which_text() {
        let error = "10.0.0.1/8".parse::<IpRange>().unwrap_err();
        assert_eq!(error.reason(), "did you mean 10.0.0.0/8?");
        assert_eq!(error.to_string(), "\"10.0.0.1/8\" is not an address range: did you mean 10.0.0.0/8?");
    }

    #[test]
    fn each_way_to_refuse_has_its_word() {
        let all =
            [RefuseMode::Reply, RefuseMode::End, RefuseMode::Reset, RefuseMode::Tarpit].map(Ok::<_, String>);
        assert_eq!(["reply", "end", "reset", "tarpit"].map(str::parse), all);
    }

    #[test]
    fn rules_count_themselves_and_the_addresses_that_none_applies_to() {
        let mut rules = Rules::default();
        assert!(rules.is_empty() && rules.iter().next().is_none());
        rules.allow("10.0.0.0/8".parse().unwrap());
        rules.deny("10.0.0.1".parse().unwrap(), RefuseMode::Reset);
        assert!(!rules.is_empty() && rules.len() == 2 && rules.iter().count() == 2);
        for outside in ["192.0.2.1", "::1"] {
            assert_eq!(
                rules.decide(ip(outside)),
                Action::Allow,
                "the last rule denies, so others are allowed"
            );
        }
        rules.decide(ip("10.2.0.1"));
        assert_eq!((rules.unmatched(), rules.iter().map(|rule| rule.hits).sum::<u64>()), (2, 1));
    }

    #[test]
    fn a_range_is_read_and_printed() {
        for (text, printed) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("10.0.0.4-10.0.0.7", "10.0.0.4/30"),
            ("10.0.0.5-10.0.0.8", "10.0.0.5-10.0.0.8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1-10.0.0.2", "10.0.0.1-10.0.0.2"),
        ] {
            assert_eq!(text.parse::<IpRange>().unwrap().to_string(), printed, "{text}");
        }
        let wrong = [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.1/8",
            "10.0.0.9-10.0.0.1",
            "::1-10.0.0.1",
        ];
        for text in
            wrong.into_iter().chain(["10.0.0", "host/8", "10.0.0.0/8/8", "010.0.0.1", "-", "fe80::1%2/64"])
        {
            assert!(text.parse::<IpRange>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_rule_for_all_of_ipv6_does_not_apply_to_ipv4() {
        let mut rules = Rules::default();
        rules.deny("::/0".parse().unwrap(), RefuseMode::End);
        assert_eq!(rules.decide(ip("::1")), Action::Deny(RefuseMode::End));
        assert_eq!(
            (rules.decide(ip("127.0.0.1")), rules.decide(ip("::ffff:1.2.3.4"))),
            (Action::Allow, Action::Allow)
        );
    }

    #[test]
    fn an_address_in_no_range_gets_the_opposite_of_the_last_rule() {
        let (deny, allow) = ("10.1.0.0/16".parse().unwrap(), "10.0.0.0/8".parse().unwrap());
        let mut rules = Rules::default();
        assert_eq!(rules.decide(ip("192.0.2.1")), Action::Allow);
        rules.allow(allow);
        assert_eq!(rules.decide(ip("192.0.2.1")), Action::Deny(RefuseMode::End));
        rules.deny(deny, RefuseMode::Tarpit);
        assert_eq!(
            (rules.decide(ip("192.0.2.1")), rules.decide(ip("10.1.0.1"))),
            (Action::Allow, Action::Allow)
        );
        assert_eq!((rules.remove(allow), rules.remove(allow)), (1, 0));
        assert_eq!(rules.decide(ip("10.1.0.1")), Action::Deny(RefuseMode::Tarpit));
        assert_eq!((rules.unmatched(), rules.len()), (3, 1));
    }

    fn range() -> impl Strategy<Value = IpRange> {
        // Few addresses, so that ranges overlap often; the lowest and the highest ones are among them.
        let four = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(if n < 20 { n } else { u32::MAX - (n - 20) }));
        let six = |n: u32| {
            IpAddr::V6(Ipv6Addr::from_bits(if n < 20 { n.into() } else { u128::MAX - u128::from(n - 20) }))
        };
        (any::<bool>(), 0..40_u32, 0..40_u32).prop_map(move |(v4, a, b)| {
            let (a, b) = if v4 { (four(a), four(b)) } else { (six(a), six(b)) };
            IpRange::new(a.min(b), a.max(b)).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_look_up_decides_as_a_linear_search_does(
            list in prop::collection::vec((range(), any::<bool>()), 0..12),
            v4 in any::<bool>(),
        ) {
            let mut rules = Rules::default();
            for &(range, allow) in &list {
                if allow { rules.allow(range) } else { rules.deny(range, RefuseMode::End) }
            }
            let near = |n: u32| if n < 22 { n } else { u32::MAX - (n - 22) };
            for n in 0..44 {
                let ip = match v4 {
                    true => IpAddr::V4(Ipv4Addr::from_bits(near(n))),
                    false if n < 22 => IpAddr::V6(Ipv6Addr::from_bits(n.into())),
                    false => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX - u128::from(n - 22))),
                };
                let found = list.iter().find(|(range, _)| range.contains(ip)).map(|(_, allow)| *allow);
                let expected = found.unwrap_or(list.last().is_none_or(|(_, allow)| !allow));
                prop_assert_eq!(rules.decide(ip) == Action::Allow, expected, "{}", ip);
            }
        }
    }
}
