//! What a seed decides: which calls fail or are cut short, and which events come late, doubled or out of order.

/// The faults that a kernel may cause at any time and a program must stand. Each has one chance in so many calls.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    /// An event is not in this poll but in a later one.
    LateEvent = 4,
    /// An event comes although nothing has happened.
    SpuriousEvent = 32,
    /// A call is interrupted (EINTR).
    Interrupted = 16,
    /// A read or a write that an event announced finds nothing to do (EAGAIN); another event follows.
    WouldBlock = 8,
    /// The kernel takes a part of what is written.
    ShortWrite = 2,
    /// Sent bytes arrive in more than one piece.
    SplitArrival = 3,
}

/// The choices of one seed.
pub(super) struct Faults(Rng);

impl Faults {
    pub(super) fn new(seed: u64) -> Faults {
        Faults(Rng(seed))
    }

    /// Whether the fault happens now.
    pub(super) fn draw(&mut self, fault: Fault) -> bool {
        self.0.below(fault as u64) == 0
    }

    /// A part of `n`, at least 1.
    pub(super) fn part(&mut self, n: usize) -> usize {
        1 + self.0.below(n as u64) as usize
    }

    /// Puts events in any order: no kernel promises one.
    pub(super) fn shuffle<T>(&mut self, events: &mut [T]) {
        for last in (1..events.len()).rev() {
            events.swap(last, self.0.below(last as u64 + 1) as usize);
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): a small random generator with a seed, to choose faults.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
