//! Bytes out: what the kernel would not take yet.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::base::shared::{Account, Shared};
use crate::parts::inbox::Progress;

/// The write queue of one connection, there only while the kernel's own buffer is full.
///
/// ```text
///     front                                   back
///     ┌──────────────┬────────────┬──────────────────┐
///     │ Own ▒▒▒▒░░░░ │ Shared ░░░ │ Own ░░░░░        │   ▒ written   ░ queued
///     └──────────────┴────────────┴──────────────────┘
///          head ┘                        room for more ┘
/// ```
///
/// In front of that may be bytes that are sealed already, and behind it a kernel pipe.
///
/// Invariant: `queued` is the sum of the chunks' lengths less `head`, and `head` is less than the front's length.
/// Methods that take or free memory return how much, and the caller charges the budget.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    head: usize,
    queued: usize,
    /// Bytes in front of all that, as they go over the wire.
    ciphertext: Vec<u8>,
    /// Bytes behind all that, in a kernel pipe.
    pub(crate) in_pipe: usize,
    pub(crate) progress: Progress,
}

#[derive(Debug)]
enum Chunk {
    Own(Vec<u8>),
    Shared(Shared),
}

/// A chunk of its own holds at most this, so that a long queue gives memory back while it drains.
const CHUNK_MAX: usize = 64 * 1024;

/// What a chunk costs besides its bytes. Without it, a queue of empty-handed chunks would be free.
const CHUNK_COST: usize = size_of::<Chunk>();

impl Outbox {
    /// All that is to be written.
    pub(crate) fn queued(&self) -> usize {
        self.ciphertext.len() + self.queued + self.in_pipe
    }

    /// What of it is held here.
    pub(crate) fn buffered(&self) -> usize {
        self.ciphertext.len() + self.queued
    }

    /// What is held here and not sealed.
    pub(crate) fn plaintext_len(&self) -> usize {
        self.queued
    }

    pub(crate) fn has_ciphertext(&self) -> bool {
        !self.ciphertext.is_empty()
    }

    /// Puts bytes behind those that are sealed, in front of all others; returns the memory taken.
    pub(crate) fn push_ciphertext(&mut self, bytes: &[u8]) -> usize {
        let before = self.ciphertext.capacity();
        self.ciphertext.reserve_exact(bytes.len());
        self.ciphertext.extend_from_slice(bytes);
        self.ciphertext.capacity() - before
    }

    /// Takes what is sealed, to write it; the memory freed is the vector's capacity.
    pub(crate) fn take_ciphertext(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ciphertext)
    }

    /// Drops what is not sealed; returns the memory freed.
    pub(crate) fn clear_plaintext(&mut self) -> usize {
        self.in_pipe = 0;
        self.advance(self.queued)
    }

    /// Copies bytes to the back; returns the memory taken.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> usize {
        self.queued += bytes.len();
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

    /// Puts a reference to the back; returns the memory taken, which is only the reference's own from the
    /// second queue on. A copy, if another reactor's queues hold it.
    pub(crate) fn push_shared(&mut self, shared: &Shared, account: Account) -> usize {
        if shared.bytes().is_empty() {
            return 0;
        }
        let Some(charged) = shared.hold(account) else { return self.push(shared.bytes()) };
        self.queued += shared.bytes().len();
        self.chunks.push_back(Chunk::Shared(shared.clone()));
        CHUNK_COST + charged
    }

    /// What is queued, from the front, as many slices as there is room for.
    pub(crate) fn gather<'a>(&'a self, slices: &mut WriteBatch<'a>) {
        let mut skip = self.head;
        for chunk in &self.chunks {
            if !slices.push(&chunk.bytes()[skip..]) {
                return;
            }
            skip = 0;
        }
    }

    /// Drops `n` bytes from the front of what is not sealed; returns the memory freed.
    pub(crate) fn advance(&mut self, n: usize) -> usize {
        debug_assert!(n <= self.queued());
        let passed = n.saturating_sub(self.queued);
        self.in_pipe -= passed;
        let n = n - passed;
        self.queued -= n;
        self.head += n;
        let mut freed = 0;
        while let Some(front) = self.chunks.front() {
            let length = front.bytes().len();
            if self.head < length {
                break;
            }
            self.head -= length;
            freed += front.free();
            self.chunks.pop_front();
        }
        freed
    }

    /// Empties the queue for good; returns the memory freed.
    pub(crate) fn clear(&mut self) -> usize {
        let sealed = self.take_ciphertext().capacity();
        sealed + self.clear_plaintext()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        debug_assert!(
            self.chunks.is_empty() && self.ciphertext.is_empty(),
            "a queue is cleared, and its memory discharged, before it goes"
        );
    }
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Own(bytes) => bytes,
            Chunk::Shared(shared) => shared.bytes(),
        }
    }

    fn free(&self) -> usize {
        CHUNK_COST
            + match self {
                Chunk::Own(bytes) => bytes.capacity(),
                Chunk::Shared(shared) => shared.release(),
            }
    }
}

/// Appends, growing in powers of two; returns the memory taken.
fn extend(chunk: &mut Vec<u8>, bytes: &[u8]) -> usize {
    let before = chunk.capacity();
    let needed = chunk.len() + bytes.len();
    if needed > before {
        chunk.reserve_exact(needed.next_power_of_two() - chunk.len());
    }
    chunk.extend_from_slice(bytes);
    chunk.capacity() - before
}

/// The slices of one vectored write.
///
/// Sixty-four are enough to leave a budget's worth of ordinary messages with one call, and small enough to lie
/// on the stack; the kernel takes 1,024 (`IOV_MAX`).
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

    /// Stops at exactly so many bytes, and not behind the slice in which they end.
    pub(crate) fn with_exact_budget(max: usize) -> WriteBatch<'a> {
        WriteBatch { exact: true, ..WriteBatch::new(max) }
    }

    /// Adds a slice; says whether there is room for a further one.
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

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn slices(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contents(outbox: &Outbox) -> Vec<u8> {
        let mut all = Vec::new();
        let mut skip = outbox.head;
        for chunk in &outbox.chunks {
            all.extend_from_slice(&chunk.bytes()[skip..]);
            skip = 0;
        }
        all
    }

    #[test]
    fn a_shared_chunk_in_many_queues_is_charged_once() {
        let (line, account) = (Shared::from(vec![b'x'; 10_000]), Account::new());
        let mut queues: Vec<Outbox> = (0..1_000).map(|_| Outbox::default()).collect();
        let charged: usize = queues.iter_mut().map(|queue| queue.push_shared(&line, account)).sum();
        assert_eq!(charged, 10_000 + 1_000 * CHUNK_COST);
        let freed: usize = queues.iter_mut().map(Outbox::clear).sum();
        assert_eq!(freed, charged);
    }

    #[test]
    fn small_sends_share_a_chunk() {
        let mut outbox = Outbox::default();
        let charged: usize = (0..1_000).map(|_| outbox.push(b"sixteen bytes...")).sum();
        assert_eq!(outbox.chunks.len(), 1);
        assert!(charged < 2 * 16_000 + CHUNK_COST, "16,000 bytes were charged as {charged}");
        outbox.clear();
    }

    #[test]
    fn a_long_queue_gives_memory_back_while_it_drains() {
        let mut outbox = Outbox::default();
        let charged = outbox.push(&vec![0; 1024 * 1024]);
        let freed = outbox.advance(512 * 1024);
        assert!(freed * 2 >= charged, "half drained, but only {freed} of {charged} came back");
        outbox.clear();
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

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Share(usize),
        Write(usize),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let sizes = prop_oneof![0..100usize, 60_000..70_000usize, Just(CHUNK_MAX), 150_000..200_000usize];
        let step = prop_oneof![
            4 => sizes.clone().prop_map(Step::Push),
            2 => sizes.prop_map(Step::Share),
            4 => (0..150_000usize).prop_map(Step::Write),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn it_behaves_as_a_plain_vector_does(steps in steps()) {
            let (mut outbox, mut model, mut stamp) = (Outbox::default(), Vec::<u8>::new(), 0u8);
            let (mut charged, mut freed) = (0, 0);
            let account = Account::new();
            for step in steps {
                stamp = stamp.wrapping_add(1);
                match step {
                    Step::Push(n) => {
                        charged += outbox.push(&vec![stamp; n]);
                        model.extend(vec![stamp; n]);
                    }
                    Step::Share(n) => {
                        charged += outbox.push_shared(&Shared::from(vec![stamp; n]), account);
                        model.extend(vec![stamp; n]);
                    }
                    Step::Write(n) => {
                        let mut slices = WriteBatch::new(n);
                        outbox.gather(&mut slices);
                        let there: Vec<u8> = slices.slices().iter().flat_map(|s| s.to_vec()).collect();
                        prop_assert_eq!(&there[..], &model[..there.len()], "a gather starts at the front");
                        let n = n.min(model.len());
                        freed += outbox.advance(n);
                        model.drain(..n);
                    }
                    Step::Clear => {
                        freed += outbox.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(outbox.queued(), model.len());
                prop_assert_eq!(contents(&outbox), model.clone());
                prop_assert!(charged - freed >= model.len(), "memory in use is charged");
            }
            freed += outbox.clear();
            prop_assert_eq!(freed, charged, "everything charged comes back");
        }
    }
}
