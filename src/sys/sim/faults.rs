//! What the tape decides in the kernel: which calls fail or are cut short, and which events come late, doubled or out
//! of order.

use super::tape::Tape;

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

/// The choices of the kernel.
pub(super) struct Faults(Tape);

impl Faults {
    pub(super) fn new(tape: Tape) -> Faults {
        Faults(tape)
    }

    /// Whether the fault happens now.
    pub(super) fn draw(&mut self, fault: Fault) -> bool {
        self.0.one_in(fault as u64)
    }

    /// A part of `n`, at least 1.
    pub(super) fn part(&mut self, n: usize) -> usize {
        1 + self.0.below(n as u64) as usize
    }

    /// Puts events in any order: no kernel promises one.
    pub(super) fn shuffle<T>(&mut self, events: &mut [T]) {
        self.0.shuffle(events);
    }
}
