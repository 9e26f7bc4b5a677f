//! Bytes in: kept only while a message is incomplete, and the cursor a service takes them with.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;

use memchr::memmem;

use crate::base::tick::Tick;

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
    /// How many bytes a filter keeps behind these, because they cannot be opened yet.
    pub(crate) undecrypted: usize,
    /// How many of the kept bytes a search has already gone through in vain.
    scanned: usize,
    /// When the message at the front began, and how far it came in the pace's present span.
    pub(crate) message_start: Tick,
    pub(crate) progress: Progress,
    /// Since when those two stand still, because the connection is not read: the peer cannot be blamed meanwhile.
    suspended: Option<Tick>,
}

/// The span in which a pace is measured: when it began, and what has moved since.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) since: Tick,
    pub(crate) moved: usize,
}

impl Inbox {
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(crate) fn scanned(&self) -> usize {
        self.scanned
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        // Room is taken for what has arrived, never for what a header promises.
        self.bytes.extend_from_slice(bytes);
    }

    /// Drops what a service took through an [`Input`] over [`unread`](Inbox::unread).
    pub(crate) fn consume(&mut self, taken: usize, scanned: usize) {
        self.start += taken;
        self.scanned = scanned;
        if self.start >= self.bytes.len() / 2 {
            // Moving the smaller half keeps the cost of all moves below the cost of receiving.
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        debug_assert!(self.scanned <= self.unread().len());
    }

    /// Replaces everything by `rest`, keeping the allocation.
    pub(crate) fn replace(&mut self, rest: &[u8], scanned: usize) {
        self.bytes.clear();
        self.start = 0;
        self.bytes.extend_from_slice(rest);
        self.scanned = scanned;
    }

    /// Starts the clocks of the message at the front.
    pub(crate) fn restart_clocks(&mut self, now: Tick) {
        self.message_start = now;
        self.progress = Progress { since: now, moved: 0 };
        self.suspended = None;
    }

    /// The connection is not read from now on.
    pub(crate) fn suspend_clocks(&mut self, now: Tick) {
        self.suspended.get_or_insert(now);
    }

    /// It is read again: the clocks go on where they stood. They are not restarted, or a peer that is throttled again
    /// and again would never have to complete its message.
    pub(crate) fn resume_clocks(&mut self, now: Tick) {
        if let Some(since) = self.suspended.take() {
            let span = now.0.saturating_sub(since.0);
            self.message_start.0 += span;
            self.progress.since.0 += span;
        }
    }

    /// Bytes of memory in use, as charged to the budget.
    pub(crate) fn charge(&self) -> usize {
        self.bytes.capacity() + self.undecrypted
    }

    /// Whether there is nothing to keep it for.
    pub(crate) fn is_empty(&self) -> bool {
        self.unread().is_empty() && self.undecrypted == 0
    }
}

/// The bytes that have arrived and were not taken before: a cursor, lent for one call of
/// [`Service::data`](crate::Service::data).
///
/// What is not taken stays with the connection and comes back in front of the next bytes, so a service that
/// needs whole messages keeps nothing itself. Slices live as long as the call, so they can be sent while more is
/// taken, and bytes that leave as they came are not copied.
///
/// # A callback that queues much
///
/// Once a callback has queued 1 MiB, counting some bytes for each send, the input shows nothing more: it looks empty,
/// and `take_line` and the framings return nothing. What is left is delivered in the next turn, without anything new
/// having arrived. So a service that answers every message in a loop over the input is bounded without doing anything.
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
    /// What the callback may see. Once it has queued its budget, this ends where it has taken.
    bytes: Cell<&'a [u8]>,
    taken: usize,
    scanned: usize,
    /// How many bytes there are.
    length: usize,
    budget: Option<&'a Budget>,
}

/// What the callbacks of one delivery have queued: bytes, and the cost of each piece.
///
/// An input shows nothing more once this has reached [`DELIVERY_BUDGET`]; what is left is delivered in the next turn.
/// So one peer's 64 KiB of two-byte lines to a room of a thousand, 33 million sends, are spread over many turns, and
/// the others are served in between. No callback is interrupted: it decides by itself when it asks for more.
#[derive(Debug, Default)]
pub(crate) struct Budget(Cell<usize>);

/// Some milliseconds of sends. A bulk echo of one read queues a sixteenth of it.
pub(crate) const DELIVERY_BUDGET: usize = 1024 * 1024;

impl Budget {
    pub(crate) fn restart(&self) {
        self.0.set(0);
    }

    pub(crate) fn spend(&self, queued: usize) {
        self.0.set(self.0.get() + queued);
    }

    pub(crate) fn spent(&self) -> usize {
        self.0.get()
    }
}

impl<'a> Input<'a> {
    /// An input over bytes that did not come from a socket, to test framing with.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { bytes: Cell::new(bytes), taken: 0, scanned: 0, length: bytes.len(), budget: None }
    }

    pub(crate) fn with_scanned(bytes: &'a [u8], scanned: usize) -> Input<'a> {
        debug_assert!(scanned <= bytes.len());
        Input { scanned, ..Input::new(bytes) }
    }

    /// Bounds what the callback that gets this may queue.
    pub(crate) fn within(self, budget: &'a Budget) -> Input<'a> {
        budget.restart();
        Input { budget: Some(budget), ..self }
    }

    /// What the callback may see now. What it has been shown before stays valid for its next `take`.
    fn shown(&self) -> &'a [u8] {
        if self.is_cut() {
            self.bytes.set(&self.bytes.get()[..self.taken]);
        }
        self.bytes.get()
    }

    /// Whether bytes are left that the budget hides.
    pub(crate) fn is_cut(&self) -> bool {
        self.budget.is_some_and(|budget| budget.spent() >= DELIVERY_BUDGET) && self.taken < self.length
    }

    /// What is there and not taken.
    pub fn bytes(&self) -> &'a [u8] {
        &self.shown()[self.taken..]
    }

    /// How many bytes are there and not taken.
    pub fn len(&self) -> usize {
        self.shown().len() - self.taken
    }

    /// Whether everything is taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next `n` bytes, or as many as there are.
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let rest = &self.bytes.get()[self.taken..];
        let taken = &rest[..n.min(rest.len())];
        let n = taken.len();
        self.taken += n;
        self.scanned = self.scanned.saturating_sub(n);
        taken
    }

    /// Takes everything.
    pub fn take_all(&mut self) -> &'a [u8] {
        self.take(self.len())
    }

    /// Takes all whole characters as text. The beginning of one stays untaken until the rest of it arrives, so a
    /// character is never split; bytes that are no UTF-8 become U+FFFD.
    ///
    /// ```
    /// use tidemill::Input;
    ///
    /// let mut input = Input::new(b"5 \xe2\x82");
    /// assert_eq!(input.take_text(), "5 ");
    /// assert_eq!(input.bytes(), b"\xe2\x82", "two thirds of a euro sign");
    /// ```
    pub fn take_text(&mut self) -> Cow<'a, str> {
        let bytes = self.bytes();
        // Only the last three bytes can be the beginning of a character that lacks its end.
        let tail = bytes.len().saturating_sub(3);
        let incomplete = (tail..bytes.len()).find(|&at| {
            let starts = bytes[at] >= 0xc0;
            starts && std::str::from_utf8(&bytes[at..]).is_err_and(|error| error.error_len().is_none())
        });
        String::from_utf8_lossy(self.take(incomplete.unwrap_or(bytes.len())))
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
    pub(crate) fn finish(self) -> (usize, usize) {
        (self.taken, self.scanned)
    }
}

/// Where a slice lies in another, if it does: the addresses say so, without looking at a byte.
pub(crate) fn subslice_range(part: &[u8], whole: Range<usize>) -> Option<Range<usize>> {
    let at = part.as_ptr() as usize;
    let inside = !part.is_empty() && at >= whole.start && at + part.len() <= whole.end;
    inside.then(|| at - whole.start..at - whole.start + part.len())
}

#[cfg(test)]
mod tests {
    use std::mem;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What may happen to the bytes of a connection. Few different bytes, so that needles are found and nearly found.
    #[derive(Clone, Debug)]
    enum Step {
        Arrive(Vec<u8>),
        Take(usize),
        TakeLine,
        Find(usize),
        TakeAll,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let byte = prop_oneof![Just(b'a'), Just(b'\r'), Just(b'\n')];
        let step = prop_oneof![
            4 => vec(byte, 0..40).prop_map(Step::Arrive),
            2 => (0_usize..60).prop_map(Step::Take),
            2 => Just(Step::TakeLine),
            2 => (0_usize..60).prop_map(Step::Find),
            1 => Just(Step::TakeAll),
        ];
        vec(step, 1..60)
    }

    fn naive(all: &[u8], needle: &[u8], limit: usize) -> Option<usize> {
        all.windows(needle.len()).position(|window| window == needle).filter(|&at| at <= limit)
    }

    proptest! {
        /// Whatever is taken, and whichever of its two ways the loop goes, the rest is what a plain vector holds; and
        /// what is remembered of a search in vain never hides anything.
        #[test]
        fn what_is_kept_is_what_a_vector_holds(steps in steps(), in_place in any::<bool>()) {
            let needle = b"\r\n";
            let (mut inbox, mut model) = (Inbox::default(), Vec::new());
            for step in steps {
                let before = inbox.unread().to_vec();
                prop_assert_eq!(&before, &model);
                let mut arrived = before;
                if let Step::Arrive(bytes) = &step {
                    arrived.extend_from_slice(bytes);
                    model.extend_from_slice(bytes);
                    if in_place {
                        inbox.append(bytes);
                    }
                }
                // One needle at a time is the rule; a search for another begins anew.
                let scanned = if matches!(step, Step::TakeLine) { 0 } else { inbox.scanned() };
                let mut input = Input::with_scanned(if in_place { inbox.unread() } else { &arrived }, scanned);
                match step {
                    Step::Arrive(_) => {}
                    Step::Take(n) => {
                        let taken: Vec<u8> = model.drain(..n.min(model.len())).collect();
                        prop_assert_eq!(input.take(n), &taken[..]);
                    }
                    Step::TakeLine => {
                        let end = model.iter().position(|&byte| byte == b'\n');
                        let line: Option<Vec<u8>> = end.map(|end| model.drain(..=end).collect());
                        prop_assert_eq!(input.take_line(), line.as_deref());
                    }
                    Step::Find(limit) => {
                        prop_assert_eq!(input.find(needle, limit), naive(&model, needle, limit));
                    }
                    Step::TakeAll => prop_assert_eq!(input.take_all(), &mem::take(&mut model)[..]),
                }
                prop_assert_eq!(input.bytes(), &model[..]);
                prop_assert_eq!(input.len(), model.len());
                let (taken, scanned) = input.finish();
                if in_place {
                    inbox.consume(taken, scanned);
                } else {
                    inbox.replace(&arrived[taken..], scanned);
                }
            }
            prop_assert_eq!(inbox.unread(), &model[..]);
        }
    }

    proptest! {
        #[test]
        fn text_is_the_same_wherever_the_stream_is_cut(
            pieces in vec(prop_oneof![
                "[a-z\u{e9}\u{20ac}\u{10348}]{0,6}".prop_map(String::into_bytes),
                vec(any::<u8>(), 0..4),
                Just(b"\xe2\x82".to_vec()),
                Just(b"\xf0\x90".to_vec()),
            ], 0..12),
            step in 1_usize..5,
        ) {
            let all = pieces.concat();
            let (mut kept, mut text) = (Vec::new(), String::new());
            for piece in all.chunks(step) {
                kept.extend_from_slice(piece);
                let mut input = Input::new(&kept);
                text.push_str(&input.take_text());
                prop_assert!(input.len() <= 3, "{} bytes are no beginning of a character", input.len());
                let rest = input.bytes().to_vec();
                kept = rest;
            }
            text.push_str(&String::from_utf8_lossy(&kept));
            prop_assert_eq!(text, String::from_utf8_lossy(&all).into_owned());
        }
    }

    #[test]
    fn a_promise_takes_no_room() {
        let mut inbox = Inbox::default();
        inbox.append(&u32::MAX.to_be_bytes());
        assert!(inbox.charge() <= 64, "{} bytes for four", inbox.charge());
    }

    #[test]
    fn what_is_taken_does_not_pile_up() {
        let mut inbox = Inbox::default();
        for _ in 0..10_000 {
            inbox.append(&[b'x'; 100]);
            let mut input = Input::with_scanned(inbox.unread(), inbox.scanned());
            input.take(100 - usize::from(input.len() < 1_000));
            let (taken, scanned) = input.finish();
            inbox.consume(taken, scanned);
        }
        assert!(inbox.charge() < 8_192, "{} bytes for {}", inbox.charge(), inbox.unread().len());
    }
}
