//! What the tape decides in the kernel: which calls fail or are cut short, and which events come late, doubled or out
//! of order.

use super::tape::Tape;

/// The faults that a kernel may cause at any time and a program must stand.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    /// An event is not in this poll but in a later one.
    LateEvent,
    /// An event comes although nothing has happened.
    SpuriousEvent,
    /// An event comes for a socket that is closed, whose slot may have another owner now.
    StaleEvent,
    /// A call is interrupted (EINTR).
    Interrupted,
    /// A read or a write that an event announced finds nothing to do (EAGAIN); another event follows.
    WouldBlock,
    /// The kernel takes a part of what is written.
    ShortWrite,
    /// Sent bytes arrive in more than one piece.
    SplitArrival,
    /// A poll returns before its time, without an event.
    EarlyWake,
    /// A poll returns after its time: the machine was asleep, or busy.
    LateWake,
    /// accept(2) fails: the peer has gone, or there is no descriptor or no memory.
    AcceptFails,
    /// A stream cannot be registered (ENOSPC).
    RegisterFails,
    /// An option of a socket cannot be set.
    OptionFails,
    /// A connection fails: its peer or the network has gone.
    ConnectionFails,
}

/// Each fault has one chance in so many calls, in the order of the enum. The first number is for the tests of services:
/// what ends a connection does not happen there. The second is for the world that tests the loop.
const ODDS: [(u64, u64); 13] = [
    (4, 4),
    (32, 32),
    (0, 32),
    (16, 16),
    (8, 8),
    (2, 2),
    (3, 3),
    (16, 16),
    (0, 32),
    (0, 24),
    (0, 48),
    (0, 8),
    (0, 200),
];

/// Errors that a connection can fail with (tcp(7), ip(7)): ENETDOWN, ENETUNREACH, ECONNRESET, ETIMEDOUT, EHOSTDOWN,
/// EHOSTUNREACH.
const FAILURES: [i32; 6] = [100, 101, 104, 110, 112, 113];

/// The choices of the kernel.
pub(super) struct Faults {
    tape: Tape,
    odds: [u64; ODDS.len()],
}

impl Faults {
    /// Those that a service must not notice.
    pub(super) fn new(tape: Tape) -> Faults {
        Faults { tape, odds: ODDS.map(|(odds, _)| odds) }
    }

    /// All of them, each as often as the tape says; in one world of six, none.
    #[cfg(test)]
    pub(super) fn drawn(tape: Tape) -> Faults {
        let calm = tape.one_in(6);
        let odds = ODDS.map(|(_, odds)| match tape.below(4) {
            _ if calm => 0,
            0 => 0,
            1 => odds * 4,
            2 => odds,
            _ => (odds / 2).max(2),
        });
        Faults { tape, odds }
    }

    /// Whether the fault happens now.
    pub(super) fn draw(&mut self, fault: Fault) -> bool {
        let odds = self.odds[fault as usize];
        odds > 0 && self.tape.one_in(odds)
    }

    /// A part of `n`, at least 1.
    pub(super) fn part(&mut self, n: usize) -> usize {
        1 + self.tape.below(n as u64) as usize
    }

    /// With which error a connection fails.
    pub(super) fn failure(&mut self) -> i32 {
        FAILURES[self.tape.below(FAILURES.len() as u64) as usize]
    }

    /// Puts events in any order: no kernel promises one.
    pub(super) fn shuffle<T>(&mut self, events: &mut [T]) {
        if self.odds[Fault::LateEvent as usize] > 0 {
            self.tape.shuffle(events);
        }
    }
}
