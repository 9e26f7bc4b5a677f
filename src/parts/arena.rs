//! The bytes read and sent during one turn, for all connections together.
//!
//! Read before: `event_loop/read.rs`, which reads into it. Next: `event_loop/write.rs`, which writes what is queued
//! here.

use std::ops::Range;
use std::rc::Rc;

use crate::base::part::FILES;
use crate::base::shared::{Account, Shared};
use crate::parts::inbox::{Budget, DELIVERY_BUDGET, subslice_range};
use crate::parts::outbox::{FilePart, Queue, WriteBatch};

/// The bytes of one turn.
///
/// Reads land in the `block`. What a connection sends becomes a list of `segments`. A segment is a range of the block
/// (input sent on unchanged: an echo, a relay), a range of `composed` (bytes that a service made), or a shared chunk.
///
/// ```text
///     block    │ GET a │ hello │ 64 KiB for the next read ...      filled: the end of `hello`
///                  ▲       ▲▲
///     segments ────┘   ┌───┴┴────┬───────────┐                     one list per connection
///                      │ hello   │ hello     │ \x00\x00\x00\x05 │
///     composed                               └ by a service ────┘
/// ```
///
/// The `write` phase writes each list with one system call, copies out the part that the kernel did not accept, and
/// clears the arena. A message therefore needs no allocation and no reference count, and an echoed byte is not copied
/// between `read` and `write`: with messages of 16 KiB, a copy was a tenth of the whole cost.
pub(crate) struct Arena {
    /// `BLOCK` bytes; empty while it is [taken out](Arena::take_block).
    block: Vec<u8>,
    /// Where the next read goes: behind the last byte that a segment refers to.
    filled: usize,
    /// The addresses of the block; `push` recognises slices of it by them. The block is allocated once.
    block_addresses: Range<usize>,
    composed: Vec<u8>,
    /// Encrypted bytes of the connection that is being written.
    ciphertext: Vec<u8>,
    shared: Vec<Shared>,
    files: Vec<FilePart>,
    /// The memory account of this reactor: shared chunks in its queues are charged to it.
    account: Account,
    segments: Vec<Segment>,
    /// Counts what the current callback has queued.
    budget: Rc<Budget>,
}

/// Bytes that one read takes at most. When as many bytes of the block are referred to, the arena is full and is
/// written before the next read, while they are still in the processor's cache. Sixty-four messages of one kilobyte
/// fit.
pub(crate) const READ_MAX: usize = 64 * 1024;
/// Twice `READ_MAX`: an arena that is not full always has room for one whole read. And 16 KiB, with which it is larger
/// than the 132 KiB that glibc's heap begins with, so that it gets a mapping of its own: in the heap, calloc(3) would
/// clear all of it, and touch 32 pages that a small server never needs.
const BLOCK: usize = 2 * READ_MAX + 16 * 1024;
/// Bytes of `composed`, and a number of segments, beyond which the arena is full.
const COMPOSED_FULL: usize = 256 * 1024;
/// Memory for encrypted bytes that is kept from one connection to the next: some write budgets.
const CIPHERTEXT_KEPT: usize = 256 * 1024;
const SEGMENTS_FULL: usize = 16 * 1024;

/// What a send costs besides its bytes: one segment. Counted in the budget of a delivery, so that a callback that
/// makes very many tiny sends is bounded too.
const SEGMENT_COST: usize = size_of::<Segment>();

/// A range of bytes to be sent to one connection, and the index of the next one for the same connection, or `END`. All
/// lists share one vector, so that a turn with ten thousand lists needs no allocation for each.
struct Segment {
    source: SegmentSource,
    range: Range<usize>,
    next: usize,
}

/// Which buffer of the arena the range of a segment is in. Ranges and not slices, because a slice would borrow the
/// arena until the end of the turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SegmentSource {
    Block,
    Composed,
    Ciphertext,
    Shared(usize),
    /// A file. A list with one is moved to its outbox before it is written, so no file is ever asked for its bytes.
    File(usize),
}

/// What one connection has sent in this turn: a linked list through `Arena::segments`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentList {
    first: usize,
    last: usize,
    bytes: usize,
}

/// The end of a list; no vector of segments is that long.
const END: usize = usize::MAX;

impl SegmentList {
    pub(crate) const EMPTY: SegmentList = SegmentList { first: END, last: END, bytes: 0 };

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

impl Arena {
    pub(crate) fn new() -> Arena {
        // Zeroed pages are not backed by memory until they are touched, and reads start at the front.
        let block = vec![0; BLOCK];
        let address = block.as_ptr() as usize;
        Arena {
            block,
            filled: 0,
            block_addresses: address..address + BLOCK,
            composed: Vec::new(),
            ciphertext: Vec::new(),
            shared: Vec::new(),
            files: Vec::new(),
            account: Account::new(),
            segments: Vec::new(),
            budget: Rc::default(),
        }
    }

    /// The counter of what the current callback has queued. Its [`Input`](crate::Input) shares it, and shows nothing
    /// more once it is spent.
    pub(crate) fn budget(&self) -> Rc<Budget> {
        self.budget.clone()
    }

    /// Shows the present callback no more input.
    pub(crate) fn end_delivery(&self) {
        self.budget.spend(DELIVERY_BUDGET);
    }

    /// Takes the block out for reads and the callbacks after them: a callback holds slices of the block while `push`
    /// borrows the arena.
    pub(crate) fn take_block(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.block)
    }

    /// The offset in the block at which the next read goes.
    pub(crate) fn write_offset(&self) -> usize {
        self.filled
    }

    /// Puts the block back.
    pub(crate) fn put_block(&mut self, block: Vec<u8>) {
        debug_assert!(self.block.is_empty() && block.as_ptr() as usize == self.block_addresses.start);
        self.block = block;
    }

    /// Appends bytes to a list. Bytes that lie in the block are not copied.
    pub(crate) fn push(&mut self, list: &mut SegmentList, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match subslice_range(bytes, self.block_addresses.clone()) {
            Some(range) => {
                self.filled = self.filled.max(range.end);
                self.link(list, SegmentSource::Block, range);
            }
            None => {
                let start = self.composed.len();
                self.composed.extend_from_slice(bytes);
                self.link(list, SegmentSource::Composed, start..self.composed.len());
            }
        }
    }

    /// Appends a reference to a shared chunk to a list.
    pub(crate) fn push_shared(&mut self, list: &mut SegmentList, shared: &Shared) {
        let length = shared.bytes().len();
        if length == 0 {
            return;
        }
        // A broadcast pushes the same chunk once for each receiver: one reference is enough for all of them.
        if !self.shared.last().is_some_and(|last| last.is_same(shared)) {
            self.shared.push(shared.clone());
        }
        self.link(list, SegmentSource::Shared(self.shared.len() - 1), 0..length);
    }

    /// Appends a range of a file to a list.
    pub(crate) fn push_file(&mut self, list: &mut SegmentList, part: FilePart) {
        FILES.begin();
        let length = part.length;
        self.files.push(part);
        self.link(list, SegmentSource::File(self.files.len() - 1), 0..length);
    }

    /// Whether there is a file in a list.
    pub(crate) fn has_file(&self, list: &SegmentList) -> bool {
        let mut at = if self.files.is_empty() { END } else { list.first };
        while let Some(segment) = self.segments.get(at) {
            if matches!(segment.source, SegmentSource::File(_)) {
                return true;
            }
            at = segment.next;
        }
        false
    }

    /// Appends a segment to a list. If it follows the last one without a gap, that one is extended: an echo of thirty
    /// lines in one read becomes one segment, and is written with one plain write.
    fn link(&mut self, list: &mut SegmentList, source: SegmentSource, range: Range<usize>) {
        list.bytes += range.len();
        self.budget.spend(range.len() + SEGMENT_COST);
        let fresh = self.segments.len();
        if list.last != END {
            let last = &mut self.segments[list.last];
            let adjoins = last.source == source && last.range.end == range.start;
            if adjoins && !matches!(source, SegmentSource::Shared(_)) {
                last.range.end = range.end;
                return;
            }
            last.next = fresh;
        } else {
            list.first = fresh;
        }
        list.last = fresh;
        self.segments.push(Segment { source, range, next: END });
    }

    /// The bytes of a list if they are one segment, which is nearly always so: they are written with `write` instead
    /// of `writev`.
    #[inline(always)]
    pub(crate) fn as_single(&self, list: &SegmentList) -> Option<&[u8]> {
        let segment = self.segments.get(list.first).filter(|_| list.first == list.last)?;
        Some(&self.source(segment.source)[segment.range.clone()])
    }

    /// Adds a list's bytes to a batch, from the front, until the batch is full.
    pub(crate) fn gather<'a>(&'a self, list: &SegmentList, slices: &mut WriteBatch<'a>) {
        let mut at = list.first;
        while at != END {
            let segment = &self.segments[at];
            if !slices.push(&self.source(segment.source)[segment.range.clone()]) {
                return;
            }
            at = segment.next;
        }
    }

    /// Drops the first `n` bytes of a list: they have been written.
    pub(crate) fn advance(&mut self, list: &mut SegmentList, mut n: usize) {
        debug_assert!(n <= list.bytes);
        if n == list.bytes {
            *list = SegmentList::EMPTY;
            return;
        }
        list.bytes -= n;
        // Ends: `n` is less than the sum of the segments' lengths, which is `list.bytes`.
        loop {
            let segment = &mut self.segments[list.first];
            if n < segment.range.len() {
                segment.range.start += n;
                return;
            }
            n -= segment.range.len();
            list.first = segment.next;
        }
    }

    /// Copies a list into a connection's outbox; returns the memory taken, in bytes. A shared chunk of which nothing
    /// is written yet is passed on as a reference; of one that is partly written, the rest is copied.
    pub(crate) fn spill(&self, list: SegmentList, queue: &mut Queue) -> usize {
        let (mut at, mut charged) = (list.first, 0);
        while at != END {
            let segment = &self.segments[at];
            charged += match segment.source {
                SegmentSource::Shared(index) if segment.range.len() == self.shared[index].bytes().len() => {
                    queue.push_shared(&self.shared[index], self.account)
                }
                SegmentSource::File(index) if FILES.has_begun() => {
                    queue.push_file(self.files[index].slice(segment.range.start, segment.range.len()))
                }
                source => queue.push(&self.source(source)[segment.range.clone()]),
            };
            at = segment.next;
        }
        charged
    }

    /// Copies the first `n` bytes of a list out into a queue; returns the memory taken.
    pub(crate) fn spill_front(&mut self, list: &mut SegmentList, n: usize, queue: &mut Queue) -> usize {
        let (mut left, mut charged) = (n.min(list.bytes), 0);
        while left > 0 {
            let segment = &self.segments[list.first];
            let length = left.min(segment.range.len());
            let start = segment.range.start;
            charged += match segment.source {
                SegmentSource::File(index) => queue.push_file(self.files[index].slice(start, length)),
                source => queue.push(&self.source(source)[start..start + length]),
            };
            self.advance(list, length);
            left -= length;
        }
        charged
    }

    /// Appends what `seal` encrypts to a list. It is forgotten with [`clear_ciphertext`](Arena::clear_ciphertext).
    pub(crate) fn push_ciphertext<T>(
        &mut self,
        list: &mut SegmentList,
        seal: impl FnOnce(&mut Vec<u8>, &Arena) -> T,
    ) -> T {
        let mut ciphertext = std::mem::take(&mut self.ciphertext);
        let start = ciphertext.len();
        let result = seal(&mut ciphertext, self);
        let range = start..ciphertext.len();
        self.ciphertext = ciphertext;
        if !range.is_empty() {
            self.link(list, SegmentSource::Ciphertext, range);
        }
        result
    }

    /// Forgets what was encrypted, after it was written or spilled: before the next connection is written.
    pub(crate) fn clear_ciphertext(&mut self) {
        self.ciphertext.clear();
        self.ciphertext.shrink_to(CIPHERTEXT_KEPT);
    }

    fn source(&self, source: SegmentSource) -> &[u8] {
        match source {
            SegmentSource::Block => &self.block,
            SegmentSource::Composed => &self.composed,
            SegmentSource::Ciphertext => &self.ciphertext,
            SegmentSource::Shared(index) => self.shared[index].bytes(),
            SegmentSource::File(_) => unreachable!("a list with a file is moved to the outbox first"),
        }
    }

    /// Bytes that services have made in this turn. They are charged when they are spilled into a queue.
    pub(crate) fn composed(&self) -> usize {
        self.composed.len()
    }

    /// Whether the arena must be written and cleared before the next read. Otherwise a turn of many connections would
    /// need memory for all that they receive and send, and the bytes would have left the processor's cache when they
    /// are written.
    pub(crate) fn is_full(&self) -> bool {
        self.filled >= READ_MAX || self.composed.len() > COMPOSED_FULL || self.segments.len() > SEGMENTS_FULL
    }

    /// Drops all segments; every list must have been written or spilled before.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.composed.clear();
        // Give memory back that one unusually large turn has needed.
        self.composed.shrink_to(COMPOSED_FULL);
        self.shared.clear();
        self.files.clear();
        self.segments.clear();
        self.segments.shrink_to(SEGMENTS_FULL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(arena: &Arena, list: &SegmentList) -> String {
        let mut slices = WriteBatch::new(usize::MAX);
        arena.gather(list, &mut slices);
        let bytes: Vec<u8> = slices.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn input_that_is_sent_on_unchanged_is_not_copied() {
        let mut arena = Arena::new();
        let (mut block, at) = (arena.take_block(), arena.write_offset());
        block[at..at + 11].copy_from_slice(b"hello world");
        let mut list = SegmentList::EMPTY;
        arena.push(&mut list, &block[at..at + 6]);
        arena.push(&mut list, &block[at + 6..at + 11]);
        arena.put_block(block);
        assert_eq!(text(&arena, &list), "hello world");
        assert_eq!((arena.composed.len(), arena.segments.len()), (0, 1), "one range of the block");
        let block = arena.take_block();
        assert_eq!(arena.write_offset(), 11, "the next read must not overwrite what is queued");
        arena.put_block(block);
    }

    #[test]
    fn a_read_that_is_not_echoed_frees_its_space_for_the_next() {
        let mut arena = Arena::new();
        let block = arena.take_block();
        arena.put_block(block);
        assert_eq!(arena.write_offset(), 0);
    }

    #[test]
    fn segment_lists_of_many_sources_keep_their_order_through_partial_writes() {
        let mut arena = Arena::new();
        let shared = Shared::from("-shared-");
        let (mut block, at) = (arena.take_block(), arena.write_offset());
        block[at..at + 4].copy_from_slice(b"READ");
        let (mut one, mut two) = (SegmentList::EMPTY, SegmentList::EMPTY);
        arena.push(&mut one, b"head");
        arena.push(&mut one, &block[at..at + 4]);
        arena.push_shared(&mut two, &shared);
        arena.push_shared(&mut one, &shared);
        arena.push(&mut two, &block[at..at + 4]);
        arena.push(&mut one, b"tail");
        arena.put_block(block);
        assert_eq!(arena.shared.len(), 1, "a broadcast counts its chunk once");
        for written in 0..=one.len() {
            let mut rest = SegmentList::EMPTY;
            for (byte, keep) in "headREAD-shared-tail".bytes().zip(0..) {
                if keep >= written {
                    arena.push(&mut rest, &[byte]);
                }
            }
            assert_eq!(text(&arena, &rest), "headREAD-shared-tail"[written..]);
        }
        assert_eq!(text(&arena, &two), "-shared-READ");
        let mut left = one.len();
        for step in [1, 4, 6, 0, 9] {
            arena.advance(&mut one, step);
            left -= step;
            assert_eq!(text(&arena, &one), "headREAD-shared-tail"[20 - left..]);
        }
        assert_eq!((left, one.first, one.last), (0, END, END));
    }

    #[test]
    fn spilled_bytes_are_the_unwritten_ones() {
        let mut arena = Arena::new();
        let shared = Shared::from("-shared-");
        let mut list = SegmentList::EMPTY;
        arena.push(&mut list, b"head");
        arena.push_shared(&mut list, &shared);
        arena.push(&mut list, b"tail");
        arena.advance(&mut list, 6);
        let mut queue = Queue::default();
        arena.spill(list, &mut queue);
        arena.clear();
        assert_eq!(contents(&queue), "hared-tail");
        queue.clear();
        // A whole chunk is not copied: its second reference costs no more than that.
        let (mut list, large) = (SegmentList::EMPTY, Shared::from(vec![b'x'; 10_000]));
        arena.push_shared(&mut list, &large);
        let (mut first, mut second) = (Queue::default(), Queue::default());
        assert!(arena.spill(list, &mut first) > 10_000 && arena.spill(list, &mut second) < 100);
        first.clear();
        second.clear();
    }

    #[test]
    fn the_arena_is_full_before_a_read_would_not_fit() {
        let mut arena = Arena::new();
        let mut list = SegmentList::EMPTY;
        let mut reads = 0;
        while !arena.is_full() {
            let (block, at) = (arena.take_block(), arena.write_offset());
            arena.push(&mut list, &block[at..at + READ_MAX]);
            arena.put_block(block);
            reads += 1;
        }
        assert_eq!(reads, 1);
        arena.clear();
        assert!(!arena.is_full());
    }

    fn contents(queue: &Queue) -> String {
        let mut slices = WriteBatch::new(usize::MAX);
        queue.gather(&mut slices);
        let bytes: Vec<u8> = slices.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn segments_are_joined_only_within_a_list_and_without_a_gap() {
        let mut arena = Arena::new();
        let block = arena.take_block();
        assert_eq!(arena.block_addresses.len(), BLOCK, "nothing else is taken for a part of the block");
        arena.put_block(block);
        let (mut one, mut two) = (SegmentList::EMPTY, SegmentList::EMPTY);
        for (list, bytes) in [(0, "a"), (0, "b"), (1, "-"), (0, "c"), (0, "d")] {
            arena.push([&mut one, &mut two][list], bytes.as_bytes());
        }
        assert_eq!((text(&arena, &one).as_str(), text(&arena, &two).as_str()), ("abcd", "-"));
        assert_eq!((arena.segments.len(), arena.composed()), (3, 5));
        assert_eq!((arena.as_single(&two), arena.as_single(&one)), (Some(&b"-"[..]), None));
        arena.advance(&mut one, 2);
        assert_eq!(arena.as_single(&one), Some(&b"cd"[..]), "the first segment is written");
        assert_eq!(arena.as_single(&SegmentList::EMPTY), None);
        // The same chunk twice in a list is two segments: a range of it has no end beyond its own.
        let (mut list, shared) = (SegmentList::EMPTY, Shared::from("xy"));
        (0..2).for_each(|_| arena.push_shared(&mut list, &shared));
        arena.push_shared(&mut list, &Shared::from(""));
        arena.push(&mut list, b"");
        assert_eq!((text(&arena, &list).as_str(), arena.segments.len()), ("xyxy", 5));
    }

    #[test]
    fn a_callback_has_spent_its_budget_when_it_has_queued_as_much_or_is_ended() {
        let mut arena = Arena::new();
        let (budget, mut list) = (arena.budget(), SegmentList::EMPTY);
        arena.push(&mut list, &[0; 1_000]);
        arena.push(&mut list, b"x");
        assert_eq!(budget.spent(), 1_001 + 2 * SEGMENT_COST);
        arena.end_delivery();
        assert!(budget.spent() >= DELIVERY_BUDGET);
    }

    #[test]
    fn the_first_bytes_of_a_list_can_be_copied_out_files_too() {
        let mut arena = Arena::new();
        let (mut list, mut other, mut front) = (SegmentList::EMPTY, SegmentList::EMPTY, Queue::default());
        arena.push(&mut other, b"other");
        let file = Rc::new(std::fs::File::open("/dev/null").unwrap());
        arena.push(&mut list, b"head");
        arena.push_file(&mut list, FilePart { file, start: 5, length: 10 });
        arena.push_shared(&mut list, &Shared::from("-shared-"));
        assert_eq!((arena.has_file(&list), arena.has_file(&other), list.len()), (true, false, 22));
        let charged = arena.spill_front(&mut list, 8, &mut front);
        assert_eq!((front.len(), front.in_files(), list.len()), (8, 4, 14));
        assert_eq!(front.clear(), charged);
        let (mut rest, mut left) = (Queue::default(), list);
        let charged = arena.spill(list, &mut rest);
        let part = rest.front_file().expect("six bytes of the file");
        assert_eq!((part.start, part.length, rest.len()), (9, 6, 14));
        assert_eq!(rest.clear(), charged);
        arena.spill_front(&mut left, 7, &mut front);
        assert_eq!((text(&arena, &left).as_str(), arena.has_file(&left)), ("shared-", false));
        arena.spill_front(&mut left, 100, &mut front);
        assert_eq!((front.len(), left.len()), (14, 0), "never more than there is");
        front.clear();
    }

    #[test]
    fn ciphertext_is_appended_to_its_list_and_forgotten_before_the_next_connection() {
        let mut arena = Arena::new();
        let mut list = SegmentList::EMPTY;
        for record in ["one", "", "two"] {
            let sealed = arena.push_ciphertext(&mut list, |out, _| {
                out.extend_from_slice(record.as_bytes());
                record.len()
            });
            assert_eq!(sealed, record.len());
        }
        assert_eq!((text(&arena, &list).as_str(), arena.segments.len()), ("onetwo", 1));
        arena.push_ciphertext(&mut list, |out, _| out.extend_from_slice(&[b'x'; CIPHERTEXT_KEPT]));
        arena.clear_ciphertext();
        assert!(arena.ciphertext.is_empty() && arena.ciphertext.capacity() == 256 * 1024);
    }

    #[test]
    fn the_arena_is_full_beyond_its_bytes_or_its_segments_and_keeps_no_more_memory() {
        let (mut arena, mut list) = (Arena::new(), SegmentList::EMPTY);
        arena.push(&mut list, &[0; 256 * 1024]);
        assert!(!arena.is_full());
        arena.push(&mut list, b"x");
        assert!(arena.is_full());
        arena.clear();
        assert_eq!((arena.composed(), arena.composed.capacity()), (0, 256 * 1024));
        let mut lists = [SegmentList::EMPTY; 2];
        (0..16 * 1024).for_each(|at| arena.push(&mut lists[at % 2], b"x"));
        assert!(!arena.is_full());
        arena.push(&mut lists[0], b"x");
        assert!(arena.is_full());
        arena.push_shared(&mut list, &Shared::from("x"));
        arena.push_file(
            &mut list,
            FilePart { file: Rc::new(std::fs::File::open("/dev/null").unwrap()), start: 0, length: 1 },
        );
        arena.clear();
        assert_eq!((arena.segments.len(), arena.segments.capacity()), (0, 16 * 1024));
        assert!(arena.shared.is_empty() && arena.files.is_empty() && !arena.is_full());
        let block = arena.take_block();
        arena.push(&mut SegmentList::EMPTY.clone(), &block[..64 * 1024 - 1]);
        assert!(!arena.is_full(), "64 messages of a kilobyte fit");
        arena.push(&mut SegmentList::EMPTY.clone(), &block[..64 * 1024]);
        assert!(arena.is_full() && block.len() == 144 * 1024);
    }
}
