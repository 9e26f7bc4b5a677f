//! What is read or queued in one turn, in one place.

use std::ops::Range;

use crate::base::shared::Shared;
use crate::parts::inbox::place_within;
use crate::parts::outbox::{Gather, Outbox};

/// The bytes of one turn.
///
/// Reads land in the `block`. What services send is a chain of `pieces`: a range of the block when the bytes leave
/// as they came (an echo, a relay), a range of the `words` when a service composed them, or a shared chunk.
///
/// ```text
///     block  │ GET a │ hello │ 64 KiB for the next read ...      filled: what pieces need
///                ▲       ▲▲
///     pieces ────┘   ┌───┴┴────┬───────────┐                     one chain per connection
///                    │ hello   │ hello     │ \x00\x00\x00\x05 │
///     words                                  ▲ composed ────────┘
/// ```
///
/// `flush` writes each chain with one call, copies out only what the kernel would not take, and empties the arena.
/// So a message costs no allocation and no reference count, and an echoed byte is never copied between the two
/// system calls: at 16 KiB a message a second copy was a tenth of the whole cost.
pub(crate) struct Arena {
    /// Empty while it is [lent](Arena::lend).
    block: Vec<u8>,
    /// Where the next read goes: behind everything that a piece refers to.
    filled: usize,
    /// The addresses of the block while it is lent.
    lent: Range<usize>,
    words: Vec<u8>,
    shared: Vec<Shared>,
    pieces: Vec<Piece>,
}

/// The most that one read takes, and from so much on the arena asks to be flushed: what is written soon after it was
/// read is still in the cache. Fifty connections with a kilobyte each fit into a turn.
pub(crate) const READ_MAX: usize = 64 * 1024;
/// There is always room for one read more.
const BLOCK: usize = 2 * READ_MAX;
/// From here the arena asks to be flushed.
const WORDS_FULL: usize = 256 * 1024;
const PIECES_FULL: usize = 16 * 1024;

struct Piece {
    source: Source,
    range: Range<usize>,
    next: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Block,
    Words,
    Shared(usize),
}

/// What one connection has queued in this turn: a list through the arena's pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    first: usize,
    last: usize,
    bytes: usize,
}

const END: usize = usize::MAX;

impl Chain {
    pub(crate) const EMPTY: Chain = Chain { first: END, last: END, bytes: 0 };

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

impl Arena {
    pub(crate) fn new() -> Arena {
        Arena {
            // Zeroed memory costs nothing until it is touched, and the loop always starts at the front.
            block: vec![0; BLOCK],
            filled: 0,
            lent: 0..0,
            words: Vec::new(),
            shared: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Takes the block out for reads and the callbacks after them, because a callback holds slices of the block while
    /// it pushes pieces.
    pub(crate) fn lend(&mut self) -> Vec<u8> {
        let block = std::mem::take(&mut self.block);
        let address = block.as_ptr() as usize;
        self.lent = address..address + block.len();
        block
    }

    /// Where in the block the next read goes.
    pub(crate) fn place(&self) -> usize {
        self.filled
    }

    /// Puts the block back.
    pub(crate) fn restore(&mut self, block: Vec<u8>) {
        debug_assert!(!self.lent.is_empty() && block.len() == BLOCK);
        self.lent = 0..0;
        self.block = block;
    }

    /// Queues bytes; those that lie in the lent block are not copied.
    pub(crate) fn push(&mut self, chain: &mut Chain, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match place_within(bytes, self.lent.clone()) {
            Some(range) => {
                self.filled = self.filled.max(range.end);
                self.link(chain, Source::Block, range);
            }
            None => {
                let start = self.words.len();
                self.words.extend_from_slice(bytes);
                self.link(chain, Source::Words, start..self.words.len());
            }
        }
    }

    /// Queues a reference.
    pub(crate) fn push_shared(&mut self, chain: &mut Chain, shared: &Shared) {
        let length = shared.bytes().len();
        if length == 0 {
            return;
        }
        // A broadcast pushes the same chunk again and again: it is counted once.
        if !self.shared.last().is_some_and(|last| last.is_same(shared)) {
            self.shared.push(shared.clone());
        }
        self.link(chain, Source::Shared(self.shared.len() - 1), 0..length);
    }

    fn link(&mut self, chain: &mut Chain, source: Source, range: Range<usize>) {
        chain.bytes += range.len();
        let fresh = self.pieces.len();
        if chain.last != END {
            let last = &mut self.pieces[chain.last];
            let adjoins = last.source == source && last.range.end == range.start;
            if adjoins && !matches!(source, Source::Shared(_)) {
                last.range.end = range.end;
                return;
            }
            last.next = fresh;
        } else {
            chain.first = fresh;
        }
        chain.last = fresh;
        self.pieces.push(Piece { source, range, next: END });
    }

    /// The chain's bytes, if they are one run: nearly always.
    pub(crate) fn only(&self, chain: &Chain) -> Option<&[u8]> {
        let piece = self.pieces.get(chain.first).filter(|_| chain.first == chain.last)?;
        Some(&self.source(piece.source)[piece.range.clone()])
    }

    /// The chain's bytes from its front, as many slices as there is room for.
    pub(crate) fn gather<'a>(&'a self, chain: &Chain, slices: &mut Gather<'a>) {
        let mut at = chain.first;
        while at != END {
            let piece = &self.pieces[at];
            if !slices.push(&self.source(piece.source)[piece.range.clone()]) {
                return;
            }
            at = piece.next;
        }
    }

    /// Drops `n` written bytes from the chain's front.
    pub(crate) fn advance(&mut self, chain: &mut Chain, mut n: usize) {
        debug_assert!(n <= chain.bytes);
        if n == chain.bytes {
            *chain = Chain::EMPTY;
            return;
        }
        chain.bytes -= n;
        loop {
            let piece = &mut self.pieces[chain.first];
            if n < piece.range.len() {
                piece.range.start += n;
                return;
            }
            n -= piece.range.len();
            chain.first = piece.next;
        }
    }

    /// Copies a chain out into a connection's own queue; returns the memory taken.
    pub(crate) fn stash(&self, chain: Chain, outbox: &mut Outbox) -> usize {
        let (mut at, mut charged) = (chain.first, 0);
        while at != END {
            let piece = &self.pieces[at];
            charged += match piece.source {
                Source::Shared(index) if piece.range.len() == self.shared[index].bytes().len() => {
                    outbox.push_shared(&self.shared[index])
                }
                source => outbox.push(&self.source(source)[piece.range.clone()]),
            };
            at = piece.next;
        }
        charged
    }

    fn source(&self, source: Source) -> &[u8] {
        match source {
            Source::Block => &self.block,
            Source::Words => &self.words,
            Source::Shared(index) => self.shared[index].bytes(),
        }
    }

    /// Whether it should be emptied before the next read.
    pub(crate) fn is_full(&self) -> bool {
        self.filled >= READ_MAX || self.words.len() > WORDS_FULL || self.pieces.len() > PIECES_FULL
    }

    /// Forgets everything; all chains must have been written or stashed.
    pub(crate) fn empty(&mut self) {
        self.filled = 0;
        self.words.clear();
        // One service that once sent a great deal at once must not keep that memory for ever.
        self.words.shrink_to(WORDS_FULL);
        self.shared.clear();
        self.pieces.clear();
        self.pieces.shrink_to(PIECES_FULL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(arena: &Arena, chain: &Chain) -> String {
        let mut slices = Gather::new(usize::MAX);
        arena.gather(chain, &mut slices);
        let bytes: Vec<u8> = slices.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn bytes_that_leave_as_they_came_are_not_copied() {
        let mut arena = Arena::new();
        let (mut block, at) = (arena.lend(), arena.place());
        block[at..at + 11].copy_from_slice(b"hello world");
        let mut chain = Chain::EMPTY;
        arena.push(&mut chain, &block[at..at + 6]);
        arena.push(&mut chain, &block[at + 6..at + 11]);
        arena.restore(block);
        assert_eq!(text(&arena, &chain), "hello world");
        assert_eq!((arena.words.len(), arena.pieces.len()), (0, 1), "one range of the block");
        let block = arena.lend();
        assert_eq!(arena.place(), 11, "the next read must not overwrite what is queued");
        arena.restore(block);
    }

    #[test]
    fn a_read_that_nobody_echoes_leaves_its_place_to_the_next() {
        let mut arena = Arena::new();
        let block = arena.lend();
        arena.restore(block);
        assert_eq!(arena.place(), 0);
    }

    #[test]
    fn chains_of_many_sources_keep_their_order_through_partial_writes() {
        let mut arena = Arena::new();
        let shared = Shared::from("-shared-");
        let (mut block, at) = (arena.lend(), arena.place());
        block[at..at + 4].copy_from_slice(b"READ");
        let (mut one, mut two) = (Chain::EMPTY, Chain::EMPTY);
        arena.push(&mut one, b"head");
        arena.push(&mut one, &block[at..at + 4]);
        arena.push_shared(&mut two, &shared);
        arena.push_shared(&mut one, &shared);
        arena.push(&mut two, &block[at..at + 4]);
        arena.push(&mut one, b"tail");
        arena.restore(block);
        assert_eq!(arena.shared.len(), 1, "a broadcast counts its chunk once");
        for written in 0..=one.len() {
            let mut rest = Chain::EMPTY;
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
    fn what_is_stashed_is_what_was_left() {
        let mut arena = Arena::new();
        let shared = Shared::from("-shared-");
        let mut chain = Chain::EMPTY;
        arena.push(&mut chain, b"head");
        arena.push_shared(&mut chain, &shared);
        arena.push(&mut chain, b"tail");
        arena.advance(&mut chain, 6);
        let mut outbox = Outbox::default();
        arena.stash(chain, &mut outbox);
        arena.empty();
        let mut slices = Gather::new(usize::MAX);
        outbox.gather(&mut slices);
        let bytes: Vec<u8> = slices.slices().iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(bytes, b"hared-tail");
        outbox.clear();
    }

    #[test]
    fn it_asks_to_be_emptied_before_a_read_would_not_fit() {
        let mut arena = Arena::new();
        let mut chain = Chain::EMPTY;
        let mut reads = 0;
        while !arena.is_full() {
            let (block, at) = (arena.lend(), arena.place());
            arena.push(&mut chain, &block[at..at + READ_MAX]);
            arena.restore(block);
            reads += 1;
        }
        assert_eq!(reads, 1);
        arena.empty();
        assert!(!arena.is_full());
    }
}
