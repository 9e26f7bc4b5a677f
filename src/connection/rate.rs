//! How fast connections may be read, alone and in groups.

use super::table::Table;
use crate::base::tick::Tick;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::Flag;
use crate::parts::token_bucket::{SHARE_MIN, TokenBucket, burst};

/// A rate that several connections share.
#[derive(Debug)]
pub(crate) struct Group {
    rate: usize,
    bucket: TokenBucket,
    /// How many members wait for tokens.
    throttled: usize,
}

impl Group {
    pub(crate) fn new(rate: usize, now: Tick) -> Group {
        Group { rate, bucket: TokenBucket::new(rate, burst(rate), now), throttled: 0 }
    }

    /// How many members wait.
    #[cfg(test)]
    pub(crate) fn throttled(&self) -> usize {
        self.throttled
    }

    /// What one member may take now: no more than leaves the same for each who waits.
    fn share(&mut self, now: Tick) -> usize {
        let level = self.bucket.level(now);
        level.min((level / (self.throttled + 1)).max(SHARE_MIN))
    }
}

impl Connection {
    /// How much may be read from it now. When that is too little to be worth a call, it is throttled until there is
    /// more.
    ///
    /// Reading is what is limited: where bytes pass through, a limit on what comes in is one on what goes out, and a
    /// peer that is not read stops by itself when the kernel's buffers are full.
    #[inline]
    pub(crate) fn allowance(&mut self, cx: &mut Context) -> usize {
        match &self.optional {
            Some(optional) if optional.is_limited() => self.take_allowance(cx),
            _ => usize::MAX,
        }
    }

    fn take_allowance(&mut self, cx: &mut Context) -> usize {
        let now = cx.now;
        let Some(optional) = &mut self.optional else { return usize::MAX };
        let mut group = optional.group.map(|index| &mut cx.groups[usize::from(index)]);
        let mut bucket = optional.overrides.as_mut().and_then(|overrides| overrides.bucket.as_mut());
        let own = bucket.as_mut().map_or(usize::MAX, |bucket| bucket.level(now));
        let allowed = own.min(group.as_mut().map_or(usize::MAX, |group| group.share(now)));
        if allowed >= SHARE_MIN {
            return allowed;
        }
        if cx.dry_run[usize::from(self.service)] {
            cx.stats.would_throttle += 1;
            return usize::MAX;
        }
        let own = bucket.map_or(now, |bucket| bucket.time_until(SHARE_MIN, now));
        let shared = group.map_or(now, |group| {
            group.throttled += 1;
            group.bucket.time_until(SHARE_MIN * group.throttled, now)
        });
        optional.overrides().refill = Some(own.max(shared).max(Tick(now.0 + 1)));
        self.hold(Flag::Throttled, now);
        cx.stats.throttled += 1;
        self.rearm(cx);
        0
    }

    /// So many bytes were read.
    pub(crate) fn spend_rate(&mut self, bytes: usize, cx: &mut Context) {
        let Some(optional) = &mut self.optional else { return };
        if let Some(bucket) = optional.overrides.as_mut().and_then(|overrides| overrides.bucket.as_mut()) {
            bucket.take(bytes, cx.now);
        }
        if let Some(index) = optional.group {
            cx.groups[usize::from(index)].bucket.take(bytes, cx.now);
        }
    }

    /// There are tokens again, or its limit has changed.
    pub(crate) fn unthrottle(&mut self, cx: &mut Context) {
        self.leave_group_line(cx);
        self.release(Flag::Throttled, cx);
    }

    /// It waits no longer for tokens of its group.
    pub(crate) fn leave_group_line(&mut self, cx: &mut Context) {
        let group = self.optional.as_ref().and_then(|optional| optional.group);
        if let (true, Some(index)) = (self.flags.contains(Flag::Throttled), group) {
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
        // A group of another reactor is none of this one.
        self.optional().group = group.filter(|&index| usize::from(index) < cx.groups.len());
    }
}

impl Table {
    pub(crate) fn set_group_rate(&mut self, group: u16, rate: usize) {
        let now = self.cx.now;
        let index = group;
        let changed = |group: &&mut Group| group.rate != rate;
        let Some(group) = self.cx.groups.get_mut(usize::from(index)).filter(changed) else { return };
        (group.rate, group.bucket) = (rate, TokenBucket::new(rate, burst(rate), now));
        // The throttled wait for a time that was computed from the old rate.
        for (_, connection) in &mut self.slots {
            let member = connection.optional.as_ref().is_some_and(|optional| optional.group == Some(index));
            if member && connection.flags.contains(Flag::Throttled) {
                connection.unthrottle(&mut self.cx);
            }
        }
    }
}
