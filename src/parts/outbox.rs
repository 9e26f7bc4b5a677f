//! Output: the bytes that the kernel has not accepted yet.
//!
//! Read before: `event_loop/write.rs`, which fills it with the rest of a write.

use std::collections::VecDeque;
use std::fs::File;
use std::io::IoSlice;
use std::rc::Rc;

use crate::base::shared::{Account, Shared};
use crate::parts::inbox::Progress;

/// The write queue of one connection. A connection has one only while bytes wait: for room in the kernel's send buffer,
/// for the connection to be established, or for a handshake.
///
/// ```text
///     first                                                         last
///     ┌──────────────────────┬────────────────────┬──────────────────────┐
///     │ wire                 │ in a kernel pipe   │ plain                │
///     │ goes as it is        │ goes as it is      │ to be encrypted      │
///     └──────────────────────┴────────────────────┴──────────────────────┘
/// ```
///
/// A connection without a filter (TLS) has nothing in `plain`, and one with a filter nothing in a kernel pipe. A filter
/// moves bytes from `plain` to `wire`, at most one write budget ahead of the kernel: so a line that many connections
/// share stays shared for as long as it waits. What a filter says by itself (a handshake, a key update, an alert) is
/// appended to `wire`; what was sent in the clear before STARTTLS is there already.
///
/// Methods that take or free memory return the number of bytes; the caller charges `Limits::memory` with it.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) wire: Queue,
    /// How many bytes wait in a kernel pipe.
    pub(crate) in_pipe: usize,
    pub(crate) plain: Queue,
    /// What was written in the current span of `SocketLimits::min_rate`.
    pub(crate) progress: Progress,
    /// Whether the peer has taken nothing for a while, although it could.
    pub(crate) is_stalled: bool,
}

impl Outbox {
    /// All bytes that are to be written.
    pub(crate) fn queued(&self) -> usize {
        self.wire.len() + self.plain.len() + self.in_pipe
    }

    /// The bytes of these that are in this process's memory: all but those in a kernel pipe and in files.
    pub(crate) fn buffered(&self) -> usize {
        self.queued() - self.in_pipe - self.in_files()
    }

    /// The bytes of these that are still in files.
    pub(crate) fn in_files(&self) -> usize {
        self.wire.in_files() + self.plain.in_files()
    }

    /// Drops `n` written bytes, of `wire` and then of the kernel pipe; returns the memory freed.
    pub(crate) fn advance(&mut self, n: usize) -> usize {
        let from_wire = n.min(self.wire.len());
        self.in_pipe -= n - from_wire;
        self.progress.moved += n;
        self.is_stalled = false;
        self.wire.advance(from_wire)
    }

    /// Drops everything; returns the memory freed. To be called before the outbox is dropped.
    pub(crate) fn clear(&mut self) -> usize {
        self.in_pipe = 0;
        self.wire.clear() + self.plain.clear()
    }
}

/// Bytes in chunks, first in, first out.
///
/// ```text
///     front                                   back
///     ┌──────────────┬────────────┬──────────────────┐
///     │ Own ▒▒▒▒░░░░ │ Shared ░░░ │ Own ░░░░░        │   ▒ taken   ░ queued     `File` is a chunk, too
///     └──────────────┴────────────┴──────────────────┘
///          head ┘                   room for more bytes ┘
/// ```
///
/// Invariant: `length` is the sum of the chunks' lengths minus `head`, and `head` is less than the front's length.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Chunk>,
    /// How many bytes of the front chunk are taken.
    head: usize,
    length: usize,
    /// How many chunks are files.
    files: usize,
}

#[derive(Debug)]
enum Chunk {
    Own(Vec<u8>),
    Shared(Shared),
    /// Behind a pointer, because it is rare and larger than the others.
    File(Box<FilePart>),
}

/// A range of a file. It is read when it is written, so it takes no memory while it is queued; the descriptor stays
/// open for as long.
#[derive(Clone, Debug)]
pub(crate) struct FilePart {
    pub(crate) file: Rc<File>,
    pub(crate) start: u64,
    pub(crate) length: usize,
}

impl FilePart {
    /// The part from `offset` on, of so many bytes.
    pub(crate) fn slice(&self, offset: usize, length: usize) -> FilePart {
        FilePart { file: self.file.clone(), start: self.start + offset as u64, length }
    }
}

/// Bytes in one `Own` chunk at most. A long queue is many chunks, so it gives memory back while it drains.
const CHUNK_MAX: usize = 64 * 1024;

/// What a chunk costs besides its bytes. Charged too, because otherwise any number of references to one shared chunk
/// would cost nothing.
const CHUNK_COST: usize = size_of::<Chunk>();

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Copies bytes to the back; returns the memory taken.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> usize {
        self.length += bytes.len();
        let mut charged = 0;
        if let Some(Chunk::Own(back)) = self.chunks.back_mut() {
            if back.len() + bytes.len() <= CHUNK_MAX {
                return extend(back, bytes);
            }
            let (fits, rest) = bytes.split_at(CHUNK_MAX.saturating_sub(back.len()));
            charged += extend(back, fits);
            bytes = rest;
        }
        for part in bytes.chunks(CHUNK_MAX) {
            let mut chunk = Vec::new();
            charged += CHUNK_COST + extend(&mut chunk, part);
            self.chunks.push_back(Chunk::Own(chunk));
        }
        charged
    }

    /// Appends a reference; returns the memory taken. The chunk's bytes are charged with the first reference of a
    /// reactor only. If queues of another reactor hold the chunk, its bytes are copied instead.
    pub(crate) fn push_shared(&mut self, shared: &Shared, account: Account) -> usize {
        if shared.bytes().is_empty() {
            return 0;
        }
        let Some(charged) = shared.hold(account) else { return self.push(shared.bytes()) };
        self.length += shared.bytes().len();
        self.chunks.push_back(Chunk::Shared(shared.clone()));
        CHUNK_COST + charged
    }

    /// Appends a file; returns the memory taken. Its bytes are in no memory of this process, so they are not charged.
    pub(crate) fn push_file(&mut self, part: FilePart) -> usize {
        self.length += part.length;
        self.files += 1;
        self.chunks.push_back(Chunk::File(Box::new(part)));
        CHUNK_COST
    }

    /// How many of the queued bytes are in files.
    pub(crate) fn in_files(&self) -> usize {
        if self.files == 0 {
            return 0;
        }
        let files = self.chunks.iter().filter(|chunk| matches!(chunk, Chunk::File(_)));
        let front = self.front_file().map_or(0, |_| self.head);
        files.map(Chunk::len).sum::<usize>() - front
    }

    /// Whether a file is queued: what is behind it waits until it is written.
    pub(crate) fn has_file(&self) -> bool {
        self.files > 0
    }

    /// What is left of the file at the front, if it is one.
    pub(crate) fn front_file(&self) -> Option<FilePart> {
        match self.chunks.front()? {
            Chunk::File(part) => Some(part.slice(self.head, part.length - self.head)),
            Chunk::Own(_) | Chunk::Shared(_) => None,
        }
    }

    /// Replaces the first bytes of the file at the front by the same bytes, which were read; returns the memory taken.
    pub(crate) fn replace_front(&mut self, bytes: Vec<u8>) -> usize {
        let Some(rest) = self.front_file().map(|left| left.slice(bytes.len(), left.length - bytes.len()))
        else {
            return 0;
        };
        self.chunks.pop_front();
        self.head = 0;
        let mut charged = bytes.capacity();
        if rest.length > 0 {
            self.chunks.push_front(Chunk::File(Box::new(rest)));
            charged += CHUNK_COST;
        } else {
            self.files -= 1;
        }
        self.chunks.push_front(Chunk::Own(bytes));
        charged
    }

    /// Adds the chunks to a batch, from the front, until the batch is full or a file comes.
    pub(crate) fn gather<'a>(&'a self, slices: &mut WriteBatch<'a>) {
        let mut skip = self.head;
        for bytes in self.chunks.iter().map_while(Chunk::bytes) {
            if !slices.push(&bytes[skip..]) {
                return;
            }
            skip = 0;
        }
    }

    /// Drops `n` bytes from the front; returns the memory freed.
    pub(crate) fn advance(&mut self, n: usize) -> usize {
        debug_assert!(n <= self.length);
        self.length -= n;
        self.head += n;
        let mut freed = 0;
        while let Some(front) = self.chunks.front() {
            let length = front.len();
            if self.head < length {
                break;
            }
            self.head -= length;
            self.files -= usize::from(matches!(front, Chunk::File(_)));
            freed += front.free();
            self.chunks.pop_front();
        }
        freed
    }

    /// Drops everything; returns the memory freed.
    pub(crate) fn clear(&mut self) -> usize {
        self.advance(self.length)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        debug_assert!(
            self.chunks.is_empty(),
            "a queue must be cleared, and its memory discharged, before it is dropped"
        );
    }
}

impl Chunk {
    /// The bytes, if they are in memory.
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Chunk::Own(bytes) => Some(bytes),
            Chunk::Shared(shared) => Some(shared.bytes()),
            Chunk::File(_) => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Chunk::Own(bytes) => bytes.len(),
            Chunk::Shared(shared) => shared.bytes().len(),
            Chunk::File(part) => part.length,
        }
    }

    fn free(&self) -> usize {
        CHUNK_COST
            + match self {
                Chunk::Own(bytes) => bytes.capacity(),
                Chunk::Shared(shared) => shared.release(),
                Chunk::File(_) => 0,
            }
    }
}

/// Appends to a chunk, whose capacity grows in powers of two; returns the memory taken.
fn extend(chunk: &mut Vec<u8>, bytes: &[u8]) -> usize {
    let before = chunk.capacity();
    let needed = chunk.len() + bytes.len();
    if needed > before {
        chunk.reserve_exact(needed.next_power_of_two() - chunk.len());
    }
    chunk.extend_from_slice(bytes);
    chunk.capacity() - before
}

/// The slices of one vectored write (`writev`).
///
/// Sixty-four slices are enough to write the queued messages of one turn with one call, and at 16 bytes each they fit
/// on the stack. The kernel accepts 1,024 (`IOV_MAX`).
pub(crate) struct WriteBatch<'a> {
    slices: [IoSlice<'a>; SLICES_MAX],
    used: usize,
    bytes: usize,
    budget: usize,
    exact: bool,
}

const SLICES_MAX: usize = 64;

impl<'a> WriteBatch<'a> {
    pub(crate) fn new(budget: usize) -> WriteBatch<'a> {
        WriteBatch { slices: [IoSlice::new(&[]); SLICES_MAX], used: 0, bytes: 0, budget, exact: false }
    }

    /// A batch that ends after exactly `max` bytes; [`new`](WriteBatch::new) ends after the slice in which the budget
    /// is used up.
    pub(crate) fn with_exact_budget(max: usize) -> WriteBatch<'a> {
        let mut batch = WriteBatch::new(max);
        batch.exact = true;
        batch
    }

    /// Adds a slice; returns whether there is room for another one.
    pub(crate) fn push(&mut self, bytes: &'a [u8]) -> bool {
        if self.used == SLICES_MAX || self.bytes >= self.budget {
            return false;
        }
        let bytes = if self.exact { &bytes[..bytes.len().min(self.budget - self.bytes)] } else { bytes };
        self.slices[self.used] = IoSlice::new(bytes);
        self.used += 1;
        self.bytes += bytes.len();
        self.used < SLICES_MAX && self.bytes < self.budget
    }

    pub(crate) fn has_room(&self) -> bool {
        self.used < SLICES_MAX && self.bytes < self.budget
    }

    pub(crate) fn slices(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    /// A file of all byte values, over and over; it has no name any more.
    fn pattern() -> (Rc<File>, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("tidemill-outbox-{}", std::process::id()));
        let bytes: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(&bytes).unwrap();
        std::fs::remove_file(&path).unwrap();
        (Rc::new(file), bytes)
    }

    fn contents(queue: &Queue) -> Vec<u8> {
        let mut all = Vec::new();
        let mut skip = queue.head;
        for chunk in &queue.chunks {
            match chunk {
                Chunk::File(part) => {
                    let mut bytes = vec![0; part.length - skip];
                    part.file.read_exact_at(&mut bytes, part.start + skip as u64).unwrap();
                    all.append(&mut bytes);
                }
                chunk => all.extend_from_slice(&chunk.bytes().unwrap()[skip..]),
            }
            skip = 0;
        }
        all
    }

    #[test]
    fn a_shared_chunk_in_many_queues_is_charged_once() {
        let (line, account) = (Shared::from(vec![b'x'; 10_000]), Account::new());
        let mut queues: Vec<Queue> = (0..1_000).map(|_| Queue::default()).collect();
        let charged: usize = queues.iter_mut().map(|queue| queue.push_shared(&line, account)).sum();
        assert_eq!(charged, 10_000 + 1_000 * CHUNK_COST);
        let freed: usize = queues.iter_mut().map(Queue::clear).sum();
        assert_eq!(freed, charged);
    }

    #[test]
    fn small_sends_share_a_chunk() {
        let mut queue = Queue::default();
        let charged: usize = (0..1_000).map(|_| queue.push(b"sixteen bytes...")).sum();
        assert_eq!(queue.chunks.len(), 1);
        assert!(charged < 2 * 16_000 + CHUNK_COST, "16,000 bytes were charged as {charged}");
        queue.clear();
    }

    #[test]
    fn a_long_queue_gives_memory_back_while_it_drains() {
        let mut queue = Queue::default();
        let charged = queue.push(&vec![0; 1024 * 1024]);
        let freed = queue.advance(512 * 1024);
        assert!(freed * 2 >= charged, "half drained, but only {freed} of {charged} came back");
        queue.clear();
    }

    #[test]
    fn a_write_batch_stops_at_its_budget_and_at_its_last_slice() {
        let mut slices = WriteBatch::new(10);
        assert!(slices.push(b"12345") && !slices.push(b"1234567"));
        assert!(!slices.push(b"more"));
        assert_eq!(slices.slices().iter().map(|slice| slice.len()).sum::<usize>(), 12);
        let mut slices = WriteBatch::new(usize::MAX);
        assert_eq!((0..100).filter(|_| slices.push(b"x")).count(), SLICES_MAX - 1);
        assert_eq!(slices.slices().len(), SLICES_MAX);
    }

    #[test]
    fn an_exact_batch_stops_within_a_slice() {
        let mut slices = WriteBatch::with_exact_budget(5);
        assert!(slices.push(b"abc"));
        assert!(!slices.push(b"defgh"));
        let all: Vec<u8> = slices.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!((all.as_slice(), slices.bytes), (&b"abcde"[..], 5));
    }

    #[test]
    fn a_write_batch_has_room_below_its_budget_and_its_number_of_slices() {
        let mut slices = WriteBatch::new(3);
        assert!(slices.has_room() && slices.push(b"ab") && slices.has_room());
        assert!(!slices.push(b"c") && !slices.has_room());
        assert_eq!(slices.bytes, 3);
        let mut slices = WriteBatch::new(usize::MAX);
        (1..SLICES_MAX).for_each(|_| assert!(slices.push(b"x") && slices.has_room()));
        assert!(!slices.push(b"x") && !slices.has_room());
    }

    /// For tests that read none of it.
    fn part(length: usize) -> FilePart {
        FilePart { file: Rc::new(File::open("/dev/null").unwrap()), start: 0, length }
    }

    #[test]
    fn an_outbox_knows_how_many_of_its_bytes_are_in_memory_in_files_and_in_a_kernel_pipe() {
        let mut outbox = Outbox { in_pipe: 7, ..Outbox::default() };
        let charged = outbox.wire.push(b"wire") + outbox.wire.push_file(part(30));
        let charged = charged + outbox.plain.push(b"plain") + outbox.plain.push_file(part(100));
        assert_eq!((outbox.queued(), outbox.in_files(), outbox.buffered()), (146, 130, 9));
        assert_eq!(outbox.clear(), charged, "everything charged comes back");
        assert_eq!((outbox.queued(), outbox.in_files(), outbox.buffered()), (0, 0, 0));
    }

    #[test]
    fn written_bytes_are_those_of_the_wire_and_then_those_of_the_kernel_pipe() {
        let mut outbox = Outbox { in_pipe: 7, is_stalled: true, ..Outbox::default() };
        outbox.progress.moved = 10;
        let charged = outbox.wire.push(b"wire");
        assert_eq!((outbox.advance(6), outbox.in_pipe, outbox.wire.len()), (charged, 5, 0));
        assert_eq!((outbox.progress.moved, outbox.is_stalled), (16, false));
    }

    #[test]
    fn bytes_that_were_read_from_the_file_at_the_front_take_its_place() {
        let mut queue = Queue::default();
        let mut charged = queue.push_file(part(1_000));
        charged += queue.replace_front(vec![1; 600]);
        assert_eq!((queue.len(), queue.in_files(), queue.front_file().is_some()), (1_000, 400, false));
        let freed = queue.advance(600);
        let left = queue.front_file().expect("the rest of the file");
        assert_eq!((left.start, left.length), (600, 400));
        charged += queue.replace_front(vec![2; 400]);
        assert!(!queue.has_file());
        assert_eq!((contents(&queue), freed + queue.clear()), (vec![2; 400], charged));
    }

    #[test]
    fn the_memory_of_a_chunk_grows_in_powers_of_two() {
        let mut queue = Queue::default();
        let charged = [5, 95, 28, 1].map(|n| queue.push(&vec![0; n]));
        assert_eq!(charged, [CHUNK_COST + 8, 120, 0, 128]);
        queue.clear();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "a queue must be cleared")]
    fn a_queue_that_is_dropped_with_its_memory_charged_panics() {
        Queue::default().push(b"x");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Share(usize),
        /// A file of so many bytes, of which that many are read at once when it is at the front.
        File(usize),
        Load(usize),
        Write(usize),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let sizes = prop_oneof![0..100usize, 60_000..70_000usize, Just(CHUNK_MAX), 150_000..200_000usize];
        let step = prop_oneof![
            4 => sizes.clone().prop_map(Step::Push),
            2 => sizes.clone().prop_map(Step::Share),
            2 => sizes.prop_map(Step::File),
            2 => (1..100_000usize).prop_map(Step::Load),
            4 => (0..150_000usize).prop_map(Step::Write),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn a_queue_behaves_as_a_plain_vector_does(steps in steps()) {
            let (mut queue, mut model, mut stamp) = (Queue::default(), Vec::<u8>::new(), 0u8);
            let (mut charged, mut freed) = (0, 0);
            let account = Account::new();
            let (file, pattern) = pattern();
            for step in steps {
                stamp = stamp.wrapping_add(1);
                match step {
                    Step::Push(n) => {
                        charged += queue.push(&vec![stamp; n]);
                        model.extend(vec![stamp; n]);
                    }
                    Step::Share(n) => {
                        charged += queue.push_shared(&Shared::from(vec![stamp; n]), account);
                        model.extend(vec![stamp; n]);
                    }
                    Step::File(n) => {
                        if n > 0 {
                            charged += queue.push_file(FilePart { file: file.clone(), start: n as u64 / 2, length: n });
                        }
                        model.extend_from_slice(&pattern[n / 2..][..n]);
                    }
                    Step::Load(n) => {
                        if let Some(left) = queue.front_file() {
                            let mut bytes = vec![0; n.min(left.length)];
                            left.file.read_exact_at(&mut bytes, left.start).unwrap();
                            charged += queue.replace_front(bytes);
                        }
                    }
                    Step::Write(n) => {
                        let mut slices = WriteBatch::new(n);
                        queue.gather(&mut slices);
                        let there: Vec<u8> = slices.slices().iter().flat_map(|s| s.to_vec()).collect();
                        prop_assert_eq!(&there[..], &model[..there.len()], "a gather starts at the front");
                        let in_memory: usize = queue.chunks.iter().map_while(Chunk::bytes).map(<[u8]>::len).sum();
                        prop_assert!(there.len() >= n.min(in_memory.saturating_sub(queue.head)), "and ends at a file");
                        let n = n.min(model.len());
                        freed += queue.advance(n);
                        model.drain(..n);
                    }
                    Step::Clear => {
                        freed += queue.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(contents(&queue), model.clone());
                let in_memory = model.len() - queue.in_files();
                prop_assert!(charged - freed >= in_memory, "memory in use is charged");
                prop_assert!(queue.has_file() == (queue.in_files() > 0));
            }
            freed += queue.clear();
            prop_assert_eq!(freed, charged, "everything charged comes back");
        }
    }
}
