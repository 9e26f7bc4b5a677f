//! Input: the bytes of an incomplete message, and the cursor with which a service takes bytes.
//!
//! Read before: `event_loop/read.rs`, which delivers input.

use std::borrow::Cow;
use std::cell::Cell;
use std::mem;
use std::ops::Range;

use memchr::memmem;

use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;

/// The input that a service has not taken yet.
///
/// ```text
///     bytes   │ taken, to be dropped │ unread, for the next call │
///             0                    start                    len
/// ```
///
/// A connection has one only while something is unread, so a connection between messages costs no input memory.
/// Invariant: `scanned ≤ len − start`.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    /// Bytes of an incomplete TLS record that the filter holds behind these. Counted here because they are charged
    /// with the inbox.
    pub(crate) undecrypted: usize,
    /// How many unread bytes a search has gone through without a match; the next search starts behind them.
    scanned: usize,
    /// When the message at the front began: the start of `SocketLimits::message_timeout`.
    pub(crate) message_start: Tick,
    /// What arrived of it in the current span of `SocketLimits::min_rate`.
    pub(crate) progress: Progress,
    /// Since when the two clocks above stand still. They are suspended while the connection is not read, because the
    /// peer is not responsible for that time.
    suspended: Option<Tick>,
}

/// One span over which a minimum transfer rate is measured: when it began, and how many bytes have moved since.
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
        // Memory grows with the bytes that have arrived, never with the length that a header announces.
        self.bytes.extend_from_slice(bytes);
    }

    /// Drops the bytes that a service took through an [`Input`] over [`unread`](Inbox::unread).
    pub(crate) fn consume(&mut self, taken: usize, scanned: usize) {
        self.start += taken;
        self.scanned = scanned;
        if self.start >= self.bytes.len() / 2 {
            // At most as many bytes are moved as were taken since the last move, so all moves together cost no more
            // than receiving did.
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        debug_assert!(self.scanned <= self.unread().len());
    }

    /// Replaces the content by `rest`; keeps the allocation.
    pub(crate) fn replace(&mut self, rest: &[u8], scanned: usize) {
        self.bytes.clear();
        self.start = 0;
        self.bytes.extend_from_slice(rest);
        self.scanned = scanned;
    }

    /// Starts the clocks of the message at the front: the previous one is complete.
    pub(crate) fn restart_clocks(&mut self, now: Tick) {
        self.message_start = now;
        self.progress = Progress { since: now, moved: 0 };
        self.suspended = None;
    }

    /// Stops the clocks: the connection is not read from now on. Does nothing if they are stopped already.
    pub(crate) fn suspend_clocks(&mut self, now: Tick) {
        self.suspended.get_or_insert(now);
    }

    /// Lets the clocks go on from where they stood: the connection is read again. They are not restarted, because
    /// then a peer that is throttled again and again would never have to complete its message.
    pub(crate) fn resume_clocks(&mut self, now: Tick) {
        if let Some(since) = self.suspended.take() {
            let begin = if seeded(SeededBug::HoldRenewsMessage) { self.message_start } else { since };
            let span = now.0.saturating_sub(begin.0);
            self.message_start.0 += span;
            self.progress.since.0 += span;
        }
    }

    /// Bytes of memory in use, as charged to `Limits::memory`.
    pub(crate) fn charge(&self) -> usize {
        self.bytes.capacity() + self.undecrypted
    }

    /// Whether the inbox can be dropped.
    pub(crate) fn is_empty(&self) -> bool {
        self.unread().is_empty() && self.undecrypted == 0
    }
}

/// Empty inboxes for the next incomplete messages: a message that arrives in two parts would otherwise allocate twice.
/// It keeps at most 64 with 256 bytes each, 23 KiB for all connections together, and no byte that was in them.
#[derive(Default)]
#[allow(clippy::vec_box)] // The box is what a connection stores, and making it is half of the cost.
pub(crate) struct SpareInboxes(Vec<Box<Inbox>>);

const SPARE_INBOXES: usize = 64;
/// As long as most lines. A longer one is charged to `Limits::memory` while it is in use, and freed after that.
const SPARE_BYTES: usize = 256;

impl SpareInboxes {
    pub(crate) fn take(&mut self) -> Box<Inbox> {
        self.0.pop().unwrap_or_default()
    }

    pub(crate) fn give(&mut self, mut inbox: Box<Inbox>) {
        if self.0.len() < SPARE_INBOXES && inbox.bytes.capacity() <= SPARE_BYTES {
            let mut bytes = mem::take(&mut inbox.bytes);
            bytes.clear();
            *inbox = Inbox { bytes, ..Inbox::default() };
            self.0.push(inbox);
        }
    }
}

/// A cursor over the received bytes that were not taken before, valid for one call of
/// [`Service::data`](crate::Service::data).
///
/// Bytes that are not taken stay with the connection and are delivered again in front of the next ones. A service that
/// needs whole messages therefore keeps no buffer of its own; [`SocketLimits::message`](crate::SocketLimits::message)
/// bounds what is kept. Returned slices are valid for the whole call, so they can be sent while more is taken. Bytes
/// that are sent on unchanged are not copied.
///
/// # A callback that queues much
///
/// Once a callback has queued 1 MiB (each send counts its bytes and 40 bytes more), the input looks empty: `take_*`,
/// [`find`](Input::find) and the framings return nothing. The rest is delivered in the next turn, even if nothing new
/// has arrived. So a service that answers every message in a loop over the input does not keep the other connections
/// waiting.
///
/// # Examples
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
    /// What the callback may see. Cut off at `taken` once the budget is spent.
    bytes: Cell<&'a [u8]>,
    taken: usize,
    scanned: usize,
    /// How many bytes there are, hidden ones included.
    length: usize,
    budget: Option<&'a Budget>,
}

/// Counts what the callback of one delivery queues: the bytes, and the cost of each segment.
///
/// At [`DELIVERY_BUDGET`] the input shows nothing more, and the rest is delivered in the next turn. Without that, one
/// peer's 64 KiB of two-byte lines to a chat room of a thousand members, 33 million sends, would be one callback; with
/// it, they are spread over many turns and other connections are served in between. A callback is never interrupted:
/// the budget is looked at only when it asks the input for more.
#[derive(Debug, Default)]
pub(crate) struct Budget(Cell<usize>);

/// Bytes that one delivery may queue: sends of a few milliseconds. The echo of one whole read is a sixteenth of it.
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
    /// Makes an input over bytes that did not come from a socket, to test framing or a parser. Nothing bounds it.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { bytes: Cell::new(bytes), taken: 0, scanned: 0, length: bytes.len(), budget: None }
    }

    pub(crate) fn with_scanned(bytes: &'a [u8], scanned: usize) -> Input<'a> {
        debug_assert!(scanned <= bytes.len());
        Input { scanned, ..Input::new(bytes) }
    }

    /// Sets the budget of the callback that gets this input, and restarts it.
    pub(crate) fn within(self, budget: &'a Budget) -> Input<'a> {
        budget.restart();
        Input { budget: Some(budget), ..self }
    }

    /// The bytes that the callback may see now. Only a call that looks (`bytes`, `len`, `find`) cuts them off: after
    /// `bytes()`, a `take` of these same bytes still gets all of them, though sends came between.
    #[inline]
    fn shown(&self) -> &'a [u8] {
        if self.is_cut() {
            self.bytes.set(&self.bytes.get()[..self.taken]);
        }
        self.bytes.get()
    }

    /// Whether the budget is spent and hides the bytes that are left.
    #[inline]
    pub(crate) fn is_cut(&self) -> bool {
        let spent = self.budget.is_some_and(|budget| budget.spent() >= DELIVERY_BUDGET);
        spent && self.taken < self.length && !seeded(SeededBug::CallbackUnbounded)
    }

    /// The bytes that are not taken. They stay untaken.
    pub fn bytes(&self) -> &'a [u8] {
        &self.shown()[self.taken..]
    }

    /// The number of bytes that are not taken.
    #[inline]
    pub fn len(&self) -> usize {
        self.shown().len() - self.taken
    }

    /// Whether all bytes are taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next `n` bytes, or all if there are fewer.
    #[inline]
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let rest = &self.bytes.get()[self.taken..];
        let taken = &rest[..n.min(rest.len())];
        let n = taken.len();
        self.taken += n;
        self.scanned = self.scanned.saturating_sub(n);
        taken
    }

    /// Takes the next `n` bytes if they have all arrived. `None`, and nothing is taken, if there are fewer.
    ///
    /// ```
    /// use tidemill::Input;
    ///
    /// let mut input = Input::new(b"\x05hel");
    /// let length = usize::from(input.bytes()[0]);
    /// assert_eq!(input.try_take(1 + length), None, "the next call of `data` has more");
    /// assert_eq!(input.len(), 4);
    /// ```
    pub fn try_take(&mut self, n: usize) -> Option<&'a [u8]> {
        (self.len() >= n).then(|| self.take(n))
    }

    /// Takes all bytes.
    #[inline]
    pub fn take_all(&mut self) -> &'a [u8] {
        self.take(self.len())
    }

    /// Takes all complete characters as text. An incomplete UTF-8 character at the end stays untaken until the rest of
    /// it arrives. Bytes that are not UTF-8 become U+FFFD.
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
        // A character has at most four bytes, so an incomplete one begins in the last three.
        let tail = bytes.len().saturating_sub(3);
        let incomplete = (tail..bytes.len()).find(|&at| {
            let starts = bytes[at] >= 0xc0;
            starts && std::str::from_utf8(&bytes[at..]).is_err_and(|error| error.error_len().is_none())
        });
        String::from_utf8_lossy(self.take(incomplete.unwrap_or(bytes.len())))
    }

    /// Takes everything up to and including the next `\n`. `None`, and nothing is taken, if there is no `\n` yet.
    ///
    /// [`SocketLimits::message`](crate::SocketLimits::message) bounds an incomplete line. For another bound, or to get
    /// the line without its end, use [`Lines`](crate::framing::Lines).
    pub fn take_line(&mut self) -> Option<&'a [u8]> {
        let at = self.find(b"\n", usize::MAX)?;
        Some(self.take(at + 1))
    }

    /// The offset in [`bytes`](Input::bytes) at which `needle` first occurs, if that is at most `limit`.
    ///
    /// The connection remembers how far a search has gone, so that a line which arrives byte by byte is searched once,
    /// and not from its start for every byte.
    ///
    /// # One needle at a time
    ///
    /// Only one position is remembered. After a search without a match, search for the same needle until it is found:
    /// another needle would be missed in the bytes that are searched already.
    pub fn find(&mut self, needle: &[u8], limit: usize) -> Option<usize> {
        let here = self.bytes();
        let end = here.len().min(limit.saturating_add(needle.len()));
        // A needle may begin in the last bytes already searched and end in the new ones.
        let back = if seeded(SeededBug::SplitNeedleMissed) { 0 } else { needle.len().saturating_sub(1) };
        let from = self.scanned.saturating_sub(back).min(end);
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

    /// How many bytes were taken, and how many of the rest have been searched.
    pub(crate) fn finish(self) -> (usize, usize) {
        (self.taken, self.scanned)
    }
}

/// The range of `part` within the addresses `whole`, if it lies there. Compares addresses and reads no byte.
pub(crate) fn subslice_range(part: &[u8], whole: Range<usize>) -> Option<Range<usize>> {
    let at = part.as_ptr() as usize;
    let inside = !part.is_empty() && at >= whole.start && at + part.len() <= whole.end;
    inside.then(|| at - whole.start..at - whole.start + part.len())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn inbox_with(bytes: &[u8]) -> Box<Inbox> {
        let mut inbox = Box::<Inbox>::default();
        inbox.replace(bytes, 1);
        inbox.restart_clocks(Tick(5));
        inbox.suspend_clocks(Tick(6));
        inbox.undecrypted = 7;
        inbox
    }

    #[test]
    fn a_spare_inbox_has_its_memory_and_nothing_else_of_the_connection_before() {
        let mut spare = SpareInboxes::default();
        spare.give(inbox_with(b"secret"));
        let inbox = spare.take();
        assert!(inbox.bytes.capacity() >= 6);
        assert_eq!(format!("{inbox:?}"), format!("{:?}", Inbox::default()));
        assert_eq!(spare.take().bytes.capacity(), 0, "there was one");
    }

    #[test]
    fn spare_inboxes_are_few_and_small() {
        let mut spare = SpareInboxes::default();
        spare.give(inbox_with(&[b'x'; SPARE_BYTES + 1]));
        assert_eq!(spare.0.len(), 0);
        (0..1_000).for_each(|_| spare.give(inbox_with(b"a line")));
        assert_eq!(spare.0.len(), SPARE_INBOXES);
    }

    /// What can happen to the input of a connection. Only three different bytes occur, so that needles are found and
    /// nearly found often.
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
        /// For any sequence of takes, and for both ways of delivery (from the inbox, or from the arena's block), the
        /// unread bytes are those of a plain vector, and a remembered search position never hides a match.
        #[test]
        fn the_unread_bytes_are_those_of_a_plain_vector(steps in steps(), in_place in any::<bool>()) {
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
                // Only one needle at a time may be searched for; for another one, the position is reset.
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
        fn text_does_not_depend_on_where_the_stream_is_cut(
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
    fn only_an_incomplete_character_at_the_end_is_left_of_a_text() {
        for (bytes, text) in [(&b"a\xe2\x82"[..], "a"), (b"\xe2\x82\xac", "\u{20ac}"), (b"\xf0\x90\x8d", "")]
        {
            assert_eq!(Input::new(bytes).take_text(), text);
        }
    }

    #[test]
    fn so_many_bytes_are_taken_or_none() {
        let mut input = Input::new(b"12345");
        assert_eq!((input.try_take(6), input.try_take(2), input.len()), (None, Some(&b"12"[..]), 3));
        assert_eq!((input.try_take(3), input.is_empty()), (Some(&b"345"[..]), true));
    }

    #[test]
    fn a_search_goes_on_where_the_one_before_has_ended() {
        assert_eq!(Input::with_scanned(b"\nab\n", 1).find(b"\n", 9), Some(3));
    }

    #[test]
    fn an_input_whose_budget_is_spent_shows_nothing_more() {
        let budget = Budget::default();
        budget.spend(DELIVERY_BUDGET);
        let mut input = Input::new(b"one\ntwo\n").within(&budget);
        assert_eq!((budget.spent(), input.is_cut(), input.is_empty()), (0, false, false));
        budget.spend(1_000);
        budget.spend(1024 * 1024 - 1_001);
        assert_eq!((input.take_line(), input.is_cut()), (Some(&b"one\n"[..]), false));
        let seen = input.bytes().len();
        budget.spend(1);
        assert!(input.is_cut());
        assert_eq!(input.take(seen - 1), b"two", "it was shown before");
        assert_eq!((input.len(), input.take_all(), input.take_line()), (0, &b""[..], None));
        assert_eq!((input.is_cut(), input.finish().0), (true, 7), "a byte is hidden");
        let mut input = Input::new(b"all").within(&budget);
        input.take_all();
        budget.spend(DELIVERY_BUDGET);
        assert!(!input.is_cut(), "there is nothing to hide");
    }

    #[test]
    fn a_slice_is_found_by_its_addresses_if_all_of_it_lies_there() {
        let bytes = [0_u8; 12];
        let start = bytes.as_ptr() as usize;
        let find = |part: Range<usize>| subslice_range(&bytes[part], start + 2..start + 9);
        assert_eq!([find(3..7), find(2..9)], [Some(1..5), Some(0..7)]);
        assert_eq!([find(1..4), find(7..10), find(10..11), find(4..4)], [const { None }; 4]);
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let mut inbox = Inbox::default();
        inbox.append(&u32::MAX.to_be_bytes());
        assert!(inbox.charge() <= 64, "{} bytes for four", inbox.charge());
    }

    #[test]
    fn taken_bytes_do_not_accumulate() {
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

    fn clocks(inbox: &Inbox) -> (u64, u64, usize) {
        (inbox.message_start.0, inbox.progress.since.0, inbox.progress.moved)
    }

    #[test]
    fn the_clocks_of_a_message_stand_still_while_it_is_not_read() {
        let mut inbox = Inbox::default();
        inbox.progress.moved = 9;
        inbox.restart_clocks(Tick(100));
        assert_eq!(clocks(&inbox), (100, 100, 0));
        inbox.progress = Progress { since: Tick(120), moved: 9 };
        inbox.suspend_clocks(Tick(130));
        inbox.suspend_clocks(Tick(150));
        inbox.resume_clocks(Tick(180));
        assert_eq!(clocks(&inbox), (150, 170, 9), "they stood still for fifty ticks");
        inbox.resume_clocks(Tick(500));
        assert_eq!(clocks(&inbox), (150, 170, 9), "they ran");
        inbox.suspend_clocks(Tick(510));
        inbox.restart_clocks(Tick(520));
        inbox.resume_clocks(Tick(600));
        assert_eq!(clocks(&inbox), (520, 520, 0), "the next message was read from its start");
    }

    #[test]
    fn an_inbox_moves_its_bytes_when_half_are_taken_and_is_empty_without_bytes_and_without_a_record() {
        let mut inbox = Inbox::default();
        assert!(inbox.is_empty());
        inbox.append(b"0123456789");
        inbox.consume(4, 3);
        assert_eq!((inbox.unread(), inbox.start, inbox.scanned()), (&b"456789"[..], 4, 3));
        inbox.consume(1, 2);
        assert_eq!((inbox.unread(), inbox.start, inbox.scanned()), (&b"56789"[..], 0, 2));
        inbox.undecrypted = 100;
        assert!(inbox.bytes.capacity() >= 10);
        assert_eq!(inbox.charge(), inbox.bytes.capacity() + 100);
        inbox.consume(5, 0);
        assert!(inbox.unread().is_empty() && !inbox.is_empty(), "a part of a record is there");
        inbox.undecrypted = 0;
        assert!(inbox.is_empty());
        inbox.append(b"x");
        assert!(!inbox.is_empty());
    }
}
