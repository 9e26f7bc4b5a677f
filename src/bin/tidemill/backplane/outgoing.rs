//! The lines of this process on their way to the broker.

use std::collections::VecDeque;

/// Lines that the broker has not acknowledged.
///
/// ```text
///     acknowledged, removed │ sent: answers to come │ waiting │ ◀─ push
///                           └─ first ───────────────┴─────────┘
///                              after a reconnect all of these are sent again, with their numbers
/// ```
///
/// When it is full, the newest line is refused, and its sender gets a reply. No line that was accepted is lost, and
/// lines that follow each other in the stream have followed each other in the room.
#[derive(Debug, Default)]
pub struct Outgoing {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// How many of them were sent on the connection that is open.
    sent: usize,
    /// The number of the first line, less one: the first of all has number 1.
    before: u64,
}

/// Lines that may wait for the broker.
pub const LINES_MAX: usize = 10_000;
/// Bytes of these.
pub const BYTES_MAX: usize = 1024 * 1024;

impl Outgoing {
    /// Queues a line. Returns `false` if it has no room.
    pub fn push(&mut self, line: &[u8]) -> bool {
        if self.lines.len() >= LINES_MAX || self.bytes + line.len() > BYTES_MAX {
            return false;
        }
        self.bytes += line.len();
        self.lines.push_back(line.into());
        true
    }

    /// The next line that was not sent, with its number. It counts as sent.
    pub fn next(&mut self) -> Option<(u64, &[u8])> {
        let line = self.lines.get(self.sent)?;
        self.sent += 1;
        Some((self.before + self.sent as u64, line))
    }

    /// The broker has the first of the lines that were sent.
    pub fn acknowledge(&mut self) {
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.len();
            self.before += 1;
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// The connection has ended: whatever has no answer is to be sent again.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// How many lines have no answer.
    pub fn len(&self) -> usize {
        self.lines.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_number_when_it_is_sent_again() {
        let mut outgoing = Outgoing::default();
        for line in ["one", "two", "three"] {
            assert!(outgoing.push(line.as_bytes()));
        }
        assert_eq!(outgoing.next(), Some((1, &b"one"[..])));
        assert_eq!(outgoing.next(), Some((2, &b"two"[..])));
        outgoing.acknowledge();
        outgoing.rewind();
        let again: Vec<_> = std::iter::from_fn(|| outgoing.next().map(|(number, _)| number)).collect();
        assert_eq!(again, [2, 3]);
        assert!(outgoing.push(b"four"));
        assert_eq!(outgoing.next(), Some((4, &b"four"[..])));
    }

    #[test]
    fn beyond_its_bounds_the_newest_line_is_refused() {
        let mut outgoing = Outgoing::default();
        let taken = (0..2 * LINES_MAX).take_while(|_| outgoing.push(b"x")).count();
        assert_eq!(taken, LINES_MAX);
        let (mut outgoing, line) = (Outgoing::default(), vec![b'x'; 1000]);
        let taken = (0..2 * LINES_MAX).take_while(|_| outgoing.push(&line)).count();
        assert_eq!(taken, BYTES_MAX / 1000);
        outgoing.next();
        outgoing.acknowledge();
        assert!(outgoing.push(&line), "an acknowledged line gives its bytes back");
    }
}
