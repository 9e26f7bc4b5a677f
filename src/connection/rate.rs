//! Read rates of connections and of groups of connections.
//!
//! Read before: `parts/token_bucket.rs`, which measures a rate.

pub(crate) mod shared;

use self::shared::{LeasedTokens, SharedRate};
use super::table::Table;
use crate::base::mark::mark;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::Flag;
use crate::parts::token_bucket::{SHARE_MIN, TokenBucket, burst};
use crate::sys::Epoch;

/// A rate that several connections share.
#[derive(Debug)]
pub(crate) struct Group {
    rate: usize,
    tokens: Tokens,
    /// How many members are throttled.
    throttled: usize,
}

/// Where a group has its tokens from.
#[derive(Debug)]
enum Tokens {
    Own(TokenBucket),
    /// Of a rate that groups of other reactors have, too.
    Leased(LeasedTokens),
}

impl Group {
    pub(crate) fn new(rate: usize, now: Tick) -> Group {
        Group { rate, tokens: Tokens::Own(TokenBucket::new(rate, burst(rate), now)), throttled: 0 }
    }

    pub(crate) fn shared(rate: &SharedRate, epoch: Epoch) -> Group {
        Group { rate: rate.rate(), tokens: Tokens::Leased(rate.lease(epoch)), throttled: 0 }
    }

    /// How many members are throttled.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn throttled(&self) -> usize {
        self.throttled
    }

    /// How many bytes one member may read now. The tokens are divided by the number of members that are throttled, so
    /// that the one that is read first does not take all.
    fn share(&mut self, now: Tick) -> usize {
        let level = match &mut self.tokens {
            Tokens::Own(bucket) => bucket.level(now),
            Tokens::Leased(lease) => lease.level(now),
        };
        level.min((level / (self.throttled + 1)).max(SHARE_MIN))
    }

    fn take(&mut self, bytes: usize, now: Tick) {
        match &mut self.tokens {
            Tokens::Own(bucket) => bucket.take(bytes, now),
            Tokens::Leased(lease) => lease.take(bytes),
        }
    }

    /// When a member that is throttled may be read again. Each that waits before it is to find its tokens, too.
    fn next_refill(&mut self, now: Tick) -> Tick {
        match &mut self.tokens {
            Tokens::Own(bucket) => bucket.time_until(SHARE_MIN * self.throttled, now),
            Tokens::Leased(lease) => lease.next_refill(SHARE_MIN * (self.throttled - 1), self.rate),
        }
    }

    fn set_rate(&mut self, rate: usize, now: Tick) {
        self.rate = rate;
        match &mut self.tokens {
            Tokens::Own(bucket) => *bucket = TokenBucket::new(rate, burst(rate), now),
            Tokens::Leased(lease) => lease.set_rate(rate, now),
        }
    }
}

impl Connection {
    /// How many bytes may be read from it now. If that is less than `SHARE_MIN`, which is not worth a system call, it
    /// is throttled until there is more.
    ///
    /// Only reading is limited. An echo or a proxy writes what it has read, so its writes are limited too; and TCP
    /// stops a peer that is not read when the kernel's buffers are full.
    #[inline]
    pub(crate) fn allowance(&mut self, cx: &mut Context) -> usize {
        if self.is_limited() { self.take_allowance(cx) } else { usize::MAX }
    }

    fn take_allowance(&mut self, cx: &mut Context) -> usize {
        let now = cx.now;
        let (service, Some(overrides)) = (self.service, self.overrides_mut()) else { return usize::MAX };
        let mut group = overrides.group.map(|index| &mut cx.groups[usize::from(index)]);
        let mut bucket = overrides.bucket.as_mut();
        let own = bucket.as_mut().map_or(usize::MAX, |bucket| bucket.level(now));
        let allowed = own.min(group.as_mut().map_or(usize::MAX, |group| group.share(now)));
        if allowed >= SHARE_MIN {
            return allowed;
        }
        let admission = cx.admissions[usize::from(service)].as_mut();
        if admission.is_some_and(|admission| admission.is_dry_run()) {
            cx.stats.would_throttle += 1;
            return usize::MAX;
        }
        let own = bucket.map_or(now, |bucket| bucket.time_until(SHARE_MIN, now));
        let shared = group.map_or(now, |group| {
            group.throttled += 1;
            group.next_refill(now)
        });
        // At least one tick later: a deadline in this tick would be due again at once.
        overrides.refill = Some(own.max(shared).max(Tick(now.0 + 1)));
        mark!("throttled");
        self.hold(Flag::Throttled, cx);
        cx.stats.throttled += 1;
        self.rearm(cx);
        0
    }

    /// Charges bytes that were read to its own rate and to that of its group, and starts its read timeout again.
    /// Discarded bytes are not charged: the other members of the group would pay for them.
    pub(crate) fn charge_received(&mut self, bytes: usize, cx: &mut Context) {
        let charges = self.is_open() || seeded(SeededBug::DiscardSpendsRate);
        let Some(overrides) = self.overrides_mut() else { return };
        if let Some(timer) = &mut overrides.read_idle {
            timer.since = cx.now;
        }
        if !charges {
            return;
        }
        if let Some(bucket) = &mut overrides.bucket {
            bucket.take(bytes, cx.now);
        }
        if let Some(index) = overrides.group {
            cx.groups[usize::from(index)].take(bytes, cx.now);
        }
    }

    /// Ends the throttling: there are tokens again, or the limit has changed.
    pub(crate) fn unthrottle(&mut self, cx: &mut Context) {
        self.leave_group_line(cx);
        self.release(Flag::Throttled, cx);
    }

    /// If it is throttled, it no longer counts as a member that waits for its group's tokens.
    pub(crate) fn leave_group_line(&mut self, cx: &mut Context) {
        if let (true, Some(index)) = (self.flags.contains(Flag::Throttled), self.group()) {
            cx.groups[usize::from(index)].throttled -= 1;
        }
    }

    pub(crate) fn set_rate(&mut self, rate: Option<usize>, cx: &mut Context) {
        self.unthrottle(cx);
        let now = cx.now;
        self.optional().overrides().bucket = rate.map(|rate| TokenBucket::new(rate, burst(rate), now));
    }

    pub(crate) fn join_group(&mut self, group: Option<u16>, cx: &mut Context) {
        self.unthrottle(cx);
        // An id of another reactor may name no group here.
        self.optional().overrides().group = group.filter(|&index| usize::from(index) < cx.groups.len());
    }
}

impl Table {
    pub(crate) fn set_group_rate(&mut self, group: u16, rate: usize) {
        let now = self.cx.now;
        let index = group;
        let changed = |group: &&mut Group| group.rate != rate;
        let Some(group) = self.cx.groups.get_mut(usize::from(index)).filter(changed) else { return };
        group.set_rate(rate, now);
        // Throttled members wait until a time that was computed from the old rate.
        for (_, connection) in &mut self.slots {
            let member = connection.group() == Some(index);
            if member && connection.flags.contains(Flag::Throttled) && !seeded(SeededBug::OldRateWaitedFor) {
                connection.unthrottle(&mut self.cx);
            }
        }
    }
}
