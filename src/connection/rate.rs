//! How fast connections may be read, alone and in groups.

use super::table::Table;
use crate::base::tick::Tick;
use crate::connection::{Connection, Flag};
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

impl Table {
    /// How much may be read from a connection now; it is sent to sleep when that is too little to be worth a call.
    ///
    /// Reading is what is limited: where bytes pass through, a limit on what comes in is one on what goes out, and a
    /// peer that is not read stops by itself when the kernel's buffers are full.
    pub(crate) fn allowance(&mut self, slot: u32) -> usize {
        let now = self.now;
        let connection = &mut self.slots[slot as usize];
        let Some(optional) = connection.optional.as_mut().filter(|optional| optional.is_limited()) else {
            return usize::MAX;
        };
        let mut group = optional.group.map(|index| &mut self.groups[usize::from(index)]);
        let mut bucket = optional.overrides.as_mut().and_then(|overrides| overrides.bucket.as_mut());
        let own = bucket.as_mut().map_or(usize::MAX, |bucket| bucket.level(now));
        let allowed = own.min(group.as_mut().map_or(usize::MAX, |group| group.share(now)));
        if allowed >= SHARE_MIN {
            return allowed;
        }
        let service = usize::from(connection.service);
        if self.admissions[service].as_ref().is_some_and(|admission| admission.policy.dry_run) {
            self.stats.would_throttle += 1;
            return usize::MAX;
        }
        let own = bucket.map_or(now, |bucket| bucket.time_until(SHARE_MIN, now));
        let shared = group.map_or(now, |group| {
            group.throttled += 1;
            group.bucket.time_until(SHARE_MIN * group.throttled, now)
        });
        optional.overrides().refill = Some(own.max(shared).max(Tick(now.0 + 1)));
        connection.flags.insert(Flag::Throttled);
        connection.update_message_clocks(now);
        self.stats.throttled += 1;
        self.rearm(slot);
        0
    }

    /// So many bytes were read.
    pub(crate) fn spend(&mut self, slot: u32, bytes: usize) {
        let now = self.now;
        let Some(optional) = &mut self.slots[slot as usize].optional else { return };
        if let Some(bucket) = optional.overrides.as_mut().and_then(|overrides| overrides.bucket.as_mut()) {
            bucket.take(bytes, now);
        }
        if let Some(index) = optional.group {
            self.groups[usize::from(index)].bucket.take(bytes, now);
        }
    }

    /// There are tokens again, or its limit has changed.
    pub(crate) fn unthrottle(&mut self, slot: u32) {
        let now = self.now;
        let connection = &mut self.slots[slot as usize];
        if connection.flags.contains(Flag::Throttled) {
            connection.flags.remove(Flag::Throttled);
            connection.update_message_clocks(now);
            if let Some(index) = connection.optional.as_ref().and_then(|optional| optional.group) {
                self.groups[usize::from(index)].throttled -= 1;
            }
            self.push_ready(slot);
        }
    }

    pub(crate) fn set_rate(&mut self, slot: u32, rate: Option<usize>) {
        self.unthrottle(slot);
        let now = self.now;
        self.at_mut(slot).optional().overrides().bucket =
            rate.map(|rate| TokenBucket::new(rate, burst(rate), now));
    }

    pub(crate) fn set_group(&mut self, slot: u32, group: Option<u16>) {
        self.unthrottle(slot);
        // One of another reactor is none of ours.
        let group = group.filter(|&index| usize::from(index) < self.groups.len());
        self.at_mut(slot).optional().group = group;
    }

    pub(crate) fn set_group_rate(&mut self, group: u16, rate: usize) {
        let now = self.now;
        let index = group;
        let Some(group) = self.groups.get_mut(usize::from(index)).filter(|group| group.rate != rate) else {
            return;
        };
        (group.rate, group.bucket) = (rate, TokenBucket::new(rate, burst(rate), now));
        // The throttled wait for a time that was worked out by the old rate.
        let waits = |connection: &Connection| {
            let optional = connection.optional.as_ref();
            connection.flags.contains(Flag::Throttled)
                && optional.is_some_and(|optional| optional.group == Some(index))
        };
        let waiting = self.slots.iter().filter(|(_, connection)| waits(connection));
        for slot in waiting.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.unthrottle(slot);
        }
    }

    /// A connection that goes waits no longer.
    pub(super) fn leave_group(&mut self, gone: &Connection) {
        if let (true, Some(index)) =
            (gone.flags.contains(Flag::Throttled), gone.optional.as_ref().and_then(|optional| optional.group))
        {
            self.groups[usize::from(index)].throttled -= 1;
        }
    }
}
