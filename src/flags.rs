//! What is true of a connection, one bit each.

/// A set of [`Flag`]s. One word, so that a question about several of them is one comparison, and so that ten thousand
/// idle connections keep them in forty kilobytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Flags(u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Flag {
    /// A read may succeed.
    Readable = 1,
    /// A write may succeed.
    Writable = 1 << 1,
    /// The kernel said that the peer's end (or an error) is on its way: a short read proves nothing then.
    EndAnnounced = 1 << 2,
    /// The peer's end has been read.
    Ended = 1 << 3,
    /// Our end follows the queue.
    Finishing = 1 << 4,
    /// Our end has been sent.
    Finished = 1 << 5,
    Paused = 1 << 6,
    /// The queue passed the high-water mark and has not come down to the low one.
    Full = 1 << 7,
    /// It is in the list of connections to serve.
    Ready = 1 << 8,
    /// It is read although it is full: its service asked for that.
    ReadFull = 1 << 17,
    /// What a paused service left is to be delivered again.
    Redeliver = 1 << 9,
    /// We called; otherwise the peer did.
    Dialed = 1 << 10,
    /// What arrives goes to another connection and not to the service.
    Piped = 1 << 11,
    /// And that within the kernel, through a conduit.
    Spliced = 1 << 18,
    /// That other one is full.
    Blocked = 1 << 12,
    /// Its rate is used up for now.
    Thirsty = 1 << 13,
    /// It counts for its address at its service's guard.
    Counted = 1 << 14,
    /// It was let in on the understanding that it would dial another, and a further slot is kept for that.
    KeepsSecond = 1 << 15,
    /// It has dialed into that slot.
    UsedSecond = 1 << 16,
    /// What it sends and receives goes through a filter.
    Sealed = 1 << 19,
    /// Its handshake is under way, or is to begin.
    Securing = 1 << 20,
    /// It stands in line for a handshake.
    Waiting = 1 << 21,
    /// Its service is to hear of it, or that it is connected, when the handshake is done.
    Unmet = 1 << 22,
    /// The filter has said that we will send nothing more.
    SealedEnd = 1 << 23,
    /// Nothing has arrived for the service since the handshake.
    Mute = 1 << 24,
}

impl Flags {
    pub(crate) fn has(self, flag: Flag) -> bool {
        self.0 & flag as u32 != 0
    }

    /// Whether one of them is there.
    pub(crate) fn any(self, flags: &[Flag]) -> bool {
        self.0 & flags.iter().fold(0, |all, &flag| all | flag as u32) != 0
    }

    pub(crate) fn set(&mut self, flag: Flag, on: bool) {
        if on { self.raise(flag) } else { self.lower(flag) }
    }

    pub(crate) fn raise(&mut self, flag: Flag) {
        self.0 |= flag as u32;
    }

    pub(crate) fn raise_if(&mut self, flag: Flag, on: bool) {
        self.0 |= (flag as u32) * u32::from(on);
    }

    pub(crate) fn lower(&mut self, flag: Flag) {
        self.0 &= !(flag as u32);
    }

    pub(crate) fn lower_if(&mut self, flag: Flag, on: bool) {
        self.0 &= !((flag as u32) * u32::from(on));
    }

    /// Lowers it, and says whether it was there.
    pub(crate) fn take(&mut self, flag: Flag) -> bool {
        let had = self.has(flag);
        self.lower(flag);
        had
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_raised_and_lowered_alone() {
        let mut flags = Flags::default();
        flags.raise(Flag::Readable);
        flags.set(Flag::UsedSecond, true);
        flags.raise_if(Flag::Paused, false);
        assert!(flags.has(Flag::Readable) && flags.has(Flag::UsedSecond) && !flags.has(Flag::Paused));
        assert!(flags.any(&[Flag::Paused, Flag::Readable]) && !flags.any(&[Flag::Paused, Flag::Full]));
        assert!(flags.take(Flag::Readable) && !flags.take(Flag::Readable));
        flags.set(Flag::UsedSecond, false);
        assert_eq!(flags, Flags::default());
    }
}
