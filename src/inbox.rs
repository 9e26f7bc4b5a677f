//! Bytes in: kept only while a message is incomplete, and the cursor a service takes them with.

use std::ops::Range;

use memchr::memmem;

use crate::time::Tick;

/// What a service has not taken yet.
///
/// ```text
///     bytes   │ taken, to be dropped │ kept for the next call │
///             0                    start                    len
/// ```
///
/// A connection owns one only while something is kept. Invariant: `scanned ≤ len − start`.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    /// How many of the kept bytes a search has already gone through in vain.
    scanned: usize,
    /// When the message at the front began, and how far it came in the pace's present span.
    pub(crate) began: Tick,
    pub(crate) span: Span,
}

/// The span in which a pace is measured: when it began, and what has moved since.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) since: Tick,
    pub(crate) moved: usize,
}

impl Inbox {
    pub(crate) fn kept(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(crate) fn scanned(&self) -> usize {
        self.scanned
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        // Room is taken for what has arrived, never for what a header promises.
        self.bytes.extend_from_slice(bytes);
    }

    /// Drops what a service took through an [`Input`] over [`kept`](Inbox::kept).
    pub(crate) fn settle(&mut self, taken: usize, scanned: usize) {
        self.start += taken;
        self.scanned = scanned;
        if self.start >= self.bytes.len() / 2 {
            // Moving the smaller half keeps the cost of all moves below the cost of receiving.
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        debug_assert!(self.scanned <= self.kept().len());
    }

    /// Replaces everything by `rest`, keeping the allocation.
    pub(crate) fn refill(&mut self, rest: &[u8], scanned: usize) {
        self.bytes.clear();
        self.start = 0;
        self.bytes.extend_from_slice(rest);
        self.scanned = scanned;
    }

    /// Starts the clocks of the message at the front.
    pub(crate) fn begin(&mut self, now: Tick) {
        self.began = now;
        self.span = Span { since: now, moved: 0 };
    }

    /// Bytes of memory in use, as charged to the budget.
    pub(crate) fn charge(&self) -> usize {
        self.bytes.capacity()
    }
}

/// The bytes that have arrived and were not taken before: a cursor, lent for one call of
/// [`Service::data`](crate::Service::data).
///
/// What is not taken stays with the connection and comes back in front of the next bytes, so a service that
/// needs whole messages keeps nothing itself. Slices live as long as the call, so they can be sent while more is
/// taken, and bytes that leave as they came are not copied.
///
/// ```
/// use tidemill::{Input, Service, Socket};
///
/// struct Shout;
///
/// impl Service for Shout {
///     type Session = ();
///     fn open(&mut self, _: &mut Socket<'_>) {}
///     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
///         while let Some(line) = input.take_line() {
///             socket.send(&line.to_ascii_uppercase());
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Input<'a> {
    bytes: &'a [u8],
    taken: usize,
    scanned: usize,
}

impl<'a> Input<'a> {
    /// An input over bytes that did not come from a socket, to test framing with.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { bytes, taken: 0, scanned: 0 }
    }

    pub(crate) fn resumed(bytes: &'a [u8], scanned: usize) -> Input<'a> {
        debug_assert!(scanned <= bytes.len());
        Input { bytes, taken: 0, scanned }
    }

    /// What is there and not taken.
    pub fn bytes(&self) -> &'a [u8] {
        &self.bytes[self.taken..]
    }

    /// How many bytes are there and not taken.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Whether everything is taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next `n` bytes, or as many as there are.
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let n = n.min(self.len());
        let taken = &self.bytes[self.taken..][..n];
        self.taken += n;
        self.scanned = self.scanned.saturating_sub(n);
        taken
    }

    /// Takes everything.
    pub fn take_all(&mut self) -> &'a [u8] {
        self.take(self.len())
    }

    /// Takes up to and including the next `\n`, or nothing when none has arrived.
    ///
    /// The line is as long as [`SocketLimits::message`](crate::SocketLimits::message) lets it be; for another
    /// bound, or without the line's end, use [`Lines`](crate::framing::Lines).
    pub fn take_line(&mut self) -> Option<&'a [u8]> {
        let at = self.find(b"\n", usize::MAX)?;
        Some(self.take(at + 1))
    }

    /// Where `needle` first stands in [`bytes`](Input::bytes), looking no further than its start at `limit`.
    ///
    /// What was searched in vain is remembered with the connection, so a line that arrives byte by byte is
    /// searched once and not once per byte. The memory is one number: ask for one needle at a time.
    pub fn find(&mut self, needle: &[u8], limit: usize) -> Option<usize> {
        let here = self.bytes();
        let end = here.len().min(limit.saturating_add(needle.len()));
        // The needle may have begun in the bytes already searched.
        let from = self.scanned.saturating_sub(needle.len().saturating_sub(1)).min(end);
        let found = match needle {
            [byte] => memchr::memchr(*byte, &here[from..end]),
            _ => memmem::find(&here[from..end], needle),
        };
        if found.is_none() {
            self.scanned = end;
        }
        found.map(|at| from + at)
    }

    #[cfg(test)]
    pub(crate) fn scanned(&self) -> usize {
        self.scanned
    }

    /// What was taken, and how far the rest has been searched.
    pub(crate) fn settle(self) -> (usize, usize) {
        (self.taken, self.scanned)
    }
}

/// Where a slice lies in another, if it does: the addresses say so, without looking at a byte.
pub(crate) fn place_within(part: &[u8], whole: Range<usize>) -> Option<Range<usize>> {
    let at = part.as_ptr() as usize;
    let inside = !part.is_empty() && at >= whole.start && at + part.len() <= whole.end;
    inside.then(|| at - whole.start..at - whole.start + part.len())
}
