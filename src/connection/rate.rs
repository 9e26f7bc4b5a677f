//! How fast connections may be read, alone and in groups.

use super::table::Table;
use crate::base::tick::Tick;
use crate::connection::{Connection, Flag};
use crate::parts::token_bucket::{Bucket, SHARE_MIN, burst};

/// A rate that several connections share.
#[derive(Debug)]
pub(crate) struct Group {
    rate: usize,
    bucket: Bucket,
    /// How many members wait for tokens.
    thirsty: usize,
}

impl Group {
    pub(crate) fn new(rate: usize, now: Tick) -> Group {
        Group { rate, bucket: Bucket::new(rate, burst(rate), now), thirsty: 0 }
    }

    /// How many members wait.
    #[cfg(test)]
    pub(crate) fn thirsty(&self) -> usize {
        self.thirsty
    }

    /// What one member may take now: no more than leaves the same for each who waits.
    fn share(&mut self, now: Tick) -> usize {
        let level = self.bucket.level(now);
        level.min((level / (self.thirsty + 1)).max(SHARE_MIN))
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
        let Some(extra) = connection.extra.as_mut().filter(|extra| extra.is_limited()) else {
            return usize::MAX;
        };
        let mut group = extra.group.map(|index| &mut self.groups[usize::from(index)]);
        let mut bucket = extra.clocks.as_mut().and_then(|clocks| clocks.bucket.as_mut());
        let own = bucket.as_mut().map_or(usize::MAX, |bucket| bucket.level(now));
        let allowed = own.min(group.as_mut().map_or(usize::MAX, |group| group.share(now)));
        if allowed >= SHARE_MIN {
            return allowed;
        }
        let host = usize::from(connection.host);
        if self.watches[host].as_ref().is_some_and(|watch| watch.guard.dry_run) {
            self.stats.would_throttle += 1;
            return usize::MAX;
        }
        let own = bucket.map_or(now, |bucket| bucket.holds_at(SHARE_MIN, now));
        let shared = group.map_or(now, |group| {
            group.thirsty += 1;
            group.bucket.holds_at(SHARE_MIN * group.thirsty, now)
        });
        extra.clocks().refill = Some(own.max(shared).max(Tick(now.0 + 1)));
        connection.flags.raise(Flag::Thirsty);
        self.stats.throttled += 1;
        self.rearm(slot);
        0
    }

    /// So many bytes were read.
    pub(crate) fn spend(&mut self, slot: u32, bytes: usize) {
        let now = self.now;
        let Some(extra) = &mut self.slots[slot as usize].extra else { return };
        if let Some(bucket) = extra.clocks.as_mut().and_then(|clocks| clocks.bucket.as_mut()) {
            bucket.take(bytes, now);
        }
        if let Some(index) = extra.group {
            self.groups[usize::from(index)].bucket.take(bytes, now);
        }
    }

    /// There are tokens again, or its limit has changed.
    pub(crate) fn quench(&mut self, slot: u32) {
        let now = self.now;
        let connection = &mut self.slots[slot as usize];
        if connection.flags.has(Flag::Thirsty) {
            connection.flags.lower(Flag::Thirsty);
            if let Some(inbox) = &mut connection.inbox {
                inbox.begin(now); // A message's clocks do not run while nobody reads.
            }
            if let Some(index) = connection.extra.as_ref().and_then(|extra| extra.group) {
                self.groups[usize::from(index)].thirsty -= 1;
            }
            self.push_ready(slot);
        }
    }

    pub(crate) fn set_rate(&mut self, slot: u32, rate: Option<usize>) {
        self.quench(slot);
        let now = self.now;
        self.at_mut(slot).extra().clocks().bucket = rate.map(|rate| Bucket::new(rate, burst(rate), now));
    }

    pub(crate) fn set_group(&mut self, slot: u32, group: Option<u16>) {
        self.quench(slot);
        self.at_mut(slot).extra().group = group;
    }

    pub(crate) fn set_group_rate(&mut self, group: u16, rate: usize) {
        let now = self.now;
        let group = &mut self.groups[usize::from(group)];
        if group.rate != rate {
            (group.rate, group.bucket) = (rate, Bucket::new(rate, burst(rate), now));
        }
    }

    /// A connection that goes waits no longer.
    pub(super) fn leave_group(&mut self, gone: &Connection) {
        if let (true, Some(index)) =
            (gone.flags.has(Flag::Thirsty), gone.extra.as_ref().and_then(|extra| extra.group))
        {
            self.groups[usize::from(index)].thirsty -= 1;
        }
    }
}
