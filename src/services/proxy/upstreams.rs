//! The upstreams of a proxy: which is up, which comes next, and what a failed attempt says about one.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::base::address::Address;
use crate::base::reason::{Attempt, CloseReason, ClosedInfo, OsError};
use ::log::{info, warn};

/// How long an upstream that failed is passed over.
const DOWN: Duration = Duration::from_secs(10);

/// How the next upstream is chosen among those that are up and have room.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Balance {
    /// In turn, each as often as its weight says (smooth weighted round robin, as in nginx).
    #[default]
    RoundRobin,
    /// The one with the fewest connections in proportion to its weight.
    LeastConnections,
}

/// Where a proxy connects its clients to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// Its address. A name is looked up for each connection.
    pub to: Address,
    /// Its share of the connections, at least 1. Default 1.
    pub weight: u32,
    /// Used only while no other upstream is up and has room. Off by default.
    pub backup: bool,
    /// Connections to it at once, attempts included. No limit by default.
    pub max_connections: Option<usize>,
}

impl From<Address> for Upstream {
    fn from(to: Address) -> Upstream {
        Upstream { to, weight: 1, backup: false, max_connections: None }
    }
}

/// What an operator says about an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum UpstreamMode {
    /// It is up or down by what attempts and checks say.
    #[default]
    Auto,
    /// It counts as up, whatever attempts and checks say.
    Up,
    /// No client is connected to it, not even if all others are down. Connections that it has stay.
    Down,
}

/// An upstream as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct UpstreamStatus {
    /// As it was given.
    pub upstream: Upstream,
    /// Whether a route leads to it.
    pub is_routed: bool,
    /// What an operator has said.
    pub mode: UpstreamMode,
    /// Whether clients are connected to it, as long as it has room.
    pub is_up: bool,
    /// Connections and attempts of clients of this proxy, without those of proxies that
    /// [share](super::Proxy::count_with) the count.
    pub connections: usize,
}

/// An upstream and its state.
#[derive(Debug)]
struct Entry {
    upstream: Upstream,
    mode: UpstreamMode,
    /// Only clients of this route are connected to it; none: only clients without a route.
    route: Option<usize>,
    down_until: Option<Duration>,
    /// Whether a check is under way.
    checking: bool,
    /// Connections and attempts of clients: of this proxy, or of several that share the count.
    active: Arc<AtomicUsize>,
    /// Those of this proxy alone.
    own: usize,
    /// Of smooth weighted round robin: rises by the weight in each choice, falls by the sum of weights when chosen.
    credit: i64,
}

/// All upstreams of a proxy.
#[derive(Debug)]
pub(super) struct Upstreams {
    entries: Vec<Entry>,
    pub(super) balance: Balance,
    /// How many checks have begun, skipped ones included.
    checks: usize,
}

/// How many connections the upstreams of a [`Proxy`](super::Proxy) have, for proxies on other threads that have the
/// same upstreams: see [`Proxy::count_with`](super::Proxy::count_with). A clone is the same.
#[derive(Clone, Debug)]
pub struct UpstreamCounts(Vec<Arc<AtomicUsize>>);

/// An upstream as what is dialed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) to: &'a Address,
    /// Whether a route leads to it: then the client's bytes are passed on as they are, without TLS around them.
    pub(super) is_routed: bool,
}

/// What the failure of an attempt says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The upstream is at fault: it is passed over for a while.
    Upstream(String),
    /// This process or machine was: out of descriptors, ports or memory, or the peer said "try again". The upstream may
    /// be well.
    Local(String),
}

impl Upstreams {
    pub(super) fn new(upstreams: Vec<Upstream>) -> Upstreams {
        let entries = upstreams.into_iter().map(|upstream| Entry::new(upstream, None)).collect();
        Upstreams { entries, balance: Balance::default(), checks: 0 }
    }

    /// Sets the upstreams of the routes, which are numbered from 0.
    pub(super) fn set_routes(&mut self, upstreams: Vec<Upstream>) {
        self.entries.retain(|entry| entry.route.is_none());
        let routes = upstreams.into_iter().enumerate();
        self.entries.extend(routes.map(|(route, upstream)| Entry::new(upstream, Some(route))));
    }

    pub(super) fn get(&self, index: usize) -> Target<'_> {
        let Entry { upstream, route, .. } = &self.entries[index];
        Target { to: &upstream.to, is_routed: route.is_some() }
    }

    /// Whether clients without a route have an upstream at all.
    pub(super) fn has_default(&self) -> bool {
        self.entries.iter().any(|entry| entry.route.is_none())
    }

    /// How many upstreams are checked: those of clients without a route, if there are several. The upstream of a route
    /// has no alternative, so its clients are connected to it in any case.
    pub(super) fn checked(&self) -> usize {
        let defaults = self.entries.iter().filter(|entry| entry.route.is_none()).count();
        if defaults > 1 { defaults } else { 0 }
    }

    /// The upstreams that are checked next, at most `max`, each at most once. Those of routes are behind the others.
    pub(super) fn next_to_check(&mut self, max: usize) -> Vec<usize> {
        let checked = self.checked();
        let mut next = Vec::new();
        for _ in 0..checked.min(max) {
            let index = self.checks % checked;
            self.checks = self.checks.wrapping_add(1);
            if !std::mem::replace(&mut self.entries[index].checking, true) {
                next.push(index);
            }
        }
        next
    }

    pub(super) fn end_check(&mut self, index: usize) {
        self.entries[index].checking = false;
    }

    /// The upstreams of a route in the order in which to try them: those that are up, then the backups, then those that
    /// are down, because a check may be late. Those that are full are left out.
    pub(super) fn order(&mut self, now: Duration, route: Option<usize>) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.entries.len());
        for (down, backup) in [(false, false), (false, true), (true, false), (true, true)] {
            let belongs = |entry: &Entry| {
                entry.route == route
                    && entry.is_down(now) == down
                    && entry.upstream.backup == backup
                    && entry.takes_more()
            };
            let tier: Vec<usize> = (0..self.entries.len()).filter(|&n| belongs(&self.entries[n])).collect();
            order.extend(self.order_of_tier(tier, order.is_empty()));
        }
        order
    }

    /// Only the first choice of all counts as a turn; the others are tried when it fails.
    fn order_of_tier(&mut self, mut tier: Vec<usize>, counts: bool) -> Vec<usize> {
        let total: i64 = tier.iter().map(|&n| i64::from(self.entries[n].upstream.weight)).sum();
        for &n in &tier {
            self.entries[n].credit += i64::from(self.entries[n].upstream.weight) * i64::from(counts);
        }
        // A stable sort: equal ones stay in the order in which they were given.
        tier.sort_by(|&a, &b| self.entries[b].credit.cmp(&self.entries[a].credit));
        if self.balance == Balance::LeastConnections {
            let load =
                |n: usize| (self.entries[n].active() as u64, u64::from(self.entries[n].upstream.weight));
            tier.sort_by(|&a, &b| {
                let ((a, a_weight), (b, b_weight)) = (load(a), load(b));
                (a * b_weight).cmp(&(b * a_weight))
            });
        }
        if let Some(&first) = tier.first().filter(|_| counts) {
            self.entries[first].credit -= total;
        }
        tier
    }

    pub(super) fn status(&self, now: Duration) -> Vec<UpstreamStatus> {
        let status = |entry: &Entry| UpstreamStatus {
            upstream: entry.upstream.clone(),
            is_routed: entry.route.is_some(),
            mode: entry.mode,
            is_up: !entry.is_down(now),
            connections: entry.own,
        };
        self.entries.iter().map(status).collect()
    }

    /// Returns how many upstreams have this address.
    pub(super) fn set_mode(&mut self, to: &Address, mode: UpstreamMode) -> usize {
        let same = self.entries.iter_mut().filter(|entry| entry.upstream.to == *to);
        same.map(|entry| entry.mode = mode).count()
    }

    /// An attempt or a connection of a client begins; false if the upstream takes no more.
    pub(super) fn begin(&mut self, index: usize) -> bool {
        let entry = &mut self.entries[index];
        let max = entry.upstream.max_connections.unwrap_or(usize::MAX);
        let more = |active: usize| (active < max).then_some(active + 1);
        let begins = entry.mode != UpstreamMode::Down
            && entry.active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        entry.own += usize::from(begins);
        begins
    }

    pub(super) fn end(&mut self, index: usize) {
        self.entries[index].active.fetch_sub(1, Ordering::Relaxed);
        self.entries[index].own -= 1;
    }

    pub(super) fn counts(&self) -> UpstreamCounts {
        UpstreamCounts(self.entries.iter().map(|entry| entry.active.clone()).collect())
    }

    pub(super) fn count_with(&mut self, counts: UpstreamCounts) {
        self.entries.iter_mut().zip(counts.0).for_each(|(entry, count)| entry.active = count);
    }

    pub(super) fn mark_up(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        if entry.down_until.take().is_some() {
            info!("upstream {} is up again", entry.upstream.to);
        }
    }

    pub(super) fn mark_down(&mut self, index: usize, why: &dyn fmt::Display, now: Duration) {
        let entry = &mut self.entries[index];
        if entry.down_until.is_none() {
            warn!("upstream {} is down: {why}", entry.upstream.to);
        }
        entry.down_until = Some(now + DOWN);
    }
}

impl Entry {
    fn new(upstream: Upstream, route: Option<usize>) -> Entry {
        let mode = UpstreamMode::Auto;
        let active = Arc::default();
        Entry { upstream, mode, route, down_until: None, checking: false, active, own: 0, credit: 0 }
    }

    fn is_down(&self, now: Duration) -> bool {
        match self.mode {
            UpstreamMode::Auto => self.down_until.is_some_and(|until| until > now),
            mode => mode == UpstreamMode::Down,
        }
    }

    fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    fn takes_more(&self) -> bool {
        let is_full = self.upstream.max_connections.is_some_and(|max| self.active() >= max);
        self.mode != UpstreamMode::Down && !is_full
    }
}

impl Failure {
    /// Why an attempt has ended, unless that was wanted.
    pub(super) fn of(gone: &ClosedInfo) -> Option<Failure> {
        let text = gone.error_text().unwrap_or_else(|| gone.reason.to_string());
        let try_again = |attempts: &[(Address, Attempt)]| {
            let is = |attempt: &Attempt| matches!(attempt, Attempt::Failed(error) if is_local(*error));
            !attempts.is_empty() && attempts.iter().all(|(_, attempt)| is(attempt))
        };
        match gone.reason {
            CloseReason::Local | CloseReason::Aborted | CloseReason::Shutdown => None,
            CloseReason::Memory => Some(Failure::Local(text)),
            CloseReason::Unreachable(error) if is_local(error) => Some(Failure::Local(text)),
            CloseReason::ConnectTimeout
                if gone.dial_error.as_ref().is_some_and(|error| try_again(error.attempts())) =>
            {
                Some(Failure::Local(text))
            }
            _ => Some(Failure::Upstream(text)),
        }
    }
}

/// Whether an error of connect(2) or socket(2) is about this process or machine: EAGAIN (the backlog of a Unix-domain
/// socket is full, or too many names are looked up), no descriptors, no ports, no memory. See connect(2), socket(2).
fn is_local(error: OsError) -> bool {
    let error = io::Error::from(error);
    let local = [io::ErrorKind::WouldBlock, io::ErrorKind::AddrNotAvailable, io::ErrorKind::OutOfMemory];
    // ENFILE, EMFILE, and ENOBUFS of Linux and of the BSDs, which have no kind in the standard library.
    local.contains(&error.kind()) || matches!(error.raw_os_error(), Some(23 | 24 | 55 | 105))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(texts: &[(u32, bool)], balance: Balance) -> Upstreams {
        let one = |(n, &(weight, backup)): (usize, &(u32, bool))| {
            let to: Address = format!("10.0.0.{}:1", n + 1).parse().unwrap();
            Upstream { weight, backup, ..Upstream::from(to) }
        };
        Upstreams { balance, ..Upstreams::new(texts.iter().enumerate().map(one).collect()) }
    }

    fn first(upstreams: &mut Upstreams, times: usize) -> Vec<usize> {
        (0..times).map(|_| upstreams.order(Duration::ZERO, None)[0]).collect()
    }

    #[test]
    fn round_robin_follows_the_weights_without_bursts() {
        let mut all = upstreams(&[(1, false), (1, false)], Balance::RoundRobin);
        assert_eq!(first(&mut all, 4), [0, 1, 0, 1]);
        let mut all = upstreams(&[(5, false), (1, false), (1, false)], Balance::RoundRobin);
        assert_eq!(first(&mut all, 7), [0, 0, 1, 0, 2, 0, 0], "as nginx has it");
    }

    #[test]
    fn a_backup_is_used_only_when_no_other_is_up() {
        let mut all = upstreams(&[(1, true), (1, false), (1, false)], Balance::RoundRobin);
        assert_eq!(first(&mut all, 4), [1, 2, 1, 2]);
        all.mark_down(1, &"gone", Duration::ZERO);
        assert_eq!(first(&mut all, 2), [2, 2]);
        all.mark_down(2, &"gone", Duration::ZERO);
        assert_eq!(first(&mut all, 2), [0, 0]);
        assert_eq!(all.order(Duration::ZERO, None).len(), 3, "those that are down come last");
        all.mark_up(1);
        assert_eq!(first(&mut all, 2), [1, 1]);
        assert_eq!(all.order(DOWN, None).iter().filter(|&&n| n == 2).count(), 1);
    }

    #[test]
    fn the_least_loaded_is_chosen_in_proportion_to_its_weight() {
        let mut all = upstreams(&[(1, false), (3, false)], Balance::LeastConnections);
        let mut counts = [0; 2];
        for _ in 0..40 {
            let chosen = all.order(Duration::ZERO, None)[0];
            all.begin(chosen);
            counts[chosen] += 1;
        }
        assert_eq!(counts, [10, 30]);
        (0..5).for_each(|_| all.end(0));
        assert_eq!(first(&mut all, 1), [0]);
    }

    #[test]
    fn checks_take_turns_and_skip_an_upstream_whose_check_is_under_way() {
        let mut all = upstreams(&[(1, false), (1, false), (1, true)], Balance::RoundRobin);
        all.set_routes(vec![Upstream::from("10.0.0.9:1".parse::<Address>().unwrap())]);
        assert_eq!((all.next_to_check(2), all.next_to_check(2)), (vec![0, 1], vec![2]));
        (0..3).for_each(|index| all.end_check(index));
        assert_eq!(all.next_to_check(9), [1, 2, 0], "those of routes are not checked");
        let mut one = upstreams(&[(1, false)], Balance::RoundRobin);
        assert!(one.next_to_check(9).is_empty(), "there is no other to choose");
    }

    #[test]
    fn a_full_upstream_is_left_out_until_a_connection_ends() {
        let mut all = upstreams(&[(1, false), (1, false)], Balance::RoundRobin);
        all.entries[0].upstream.max_connections = Some(1);
        all.begin(0);
        assert_eq!((first(&mut all, 2), all.order(Duration::ZERO, None).len()), (vec![1, 1], 1));
        let mut other = upstreams(&[(1, false), (1, false)], Balance::RoundRobin);
        other.entries[0].upstream.max_connections = Some(1);
        other.count_with(all.counts());
        assert!(!other.begin(0) && other.begin(1), "it is full on the other thread");
        other.end(1);
        all.end(0);
        assert_eq!(all.order(Duration::ZERO, None).len(), 2);
    }

    #[test]
    fn what_an_operator_says_counts_more_than_attempts_and_checks() {
        let mut all = upstreams(&[(1, false), (1, false)], Balance::RoundRobin);
        let to = all.entries[0].upstream.to.clone();
        assert_eq!(all.set_mode(&to, UpstreamMode::Down), 1);
        assert_eq!(all.order(Duration::ZERO, None), [1], "it is not tried when the other fails");
        assert!(!all.begin(0), "nor by a client that is being connected");
        all.set_mode(&to, UpstreamMode::Up);
        all.mark_down(0, &"gone", Duration::ZERO);
        all.mark_down(1, &"gone", Duration::ZERO);
        assert_eq!((first(&mut all, 2), all.status(Duration::ZERO)[0].is_up), (vec![0, 0], true));
        all.set_mode(&to, UpstreamMode::Auto);
        assert!(all.status(Duration::ZERO).iter().all(|status| !status.is_up));
        assert_eq!(all.set_mode(&"10.9.9.9:1".parse().unwrap(), UpstreamMode::Down), 0);
    }

    #[test]
    fn an_error_of_this_machine_is_told_from_one_of_the_upstream() {
        for (number, local) in [
            (libc::EAGAIN, true),
            (libc::EADDRNOTAVAIL, true),
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::ENOMEM, true),
            (libc::ENOBUFS, true),
            (libc::ECONNREFUSED, false),
            (libc::ENETUNREACH, false),
            (libc::ENOENT, false),
        ] {
            assert_eq!(
                is_local(OsError::from(io::Error::from_raw_os_error(number))),
                local,
                "errno {number}"
            );
        }
    }
}
