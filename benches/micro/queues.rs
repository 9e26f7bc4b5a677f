//! Write queues of one connection, and output to a thousand connections.
//!
//! "Written" stands for a system call that accepts a number of bytes: slices are gathered for it, and the written bytes
//! are dropped. Every candidate has to gather; a `BytesMut` is one slice. The peers keep their memory from round to
//! round, but an outbox is allocated each time, because a connection has one only while the kernel's buffer is full.
//! Therefore a newly allocated `BytesMut` is among the peers too.
//!
//! - queued: pushed while the kernel accepts nothing, then written in portions of any length.
//! - sent at once: pushed to each of a thousand connections, and written with one call each at the end of the turn.
//!   This is the common case. It goes through the arena and not through an outbox.
//! - broadcast: the same line to each of them. It is allocated once and then referenced, or copied by a `BytesMut`.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use crate::base::shared::{Account, Shared};
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::outbox::{Outbox, WriteBatch};
use crate::{Contest, Operation, Runner};

const LINE: [u8; 64] = [b'x'; 64];
const RECEIVERS: usize = 1_000;

pub fn contests(smoke: bool) -> Vec<Contest<'static>> {
    let contest = |name: &str, own, peers| Contest {
        title: "write queues".to_owned(),
        operations: vec![Operation::new(name)],
        own,
        peers,
        rounds: if smoke { 3 } else { 101 },
        repeats: 5,
    };
    let small = Load { size: 64, count: 1_000, portion: 10_000 };
    let large = Load { size: 16 << 10, count: 32, portion: 50_000 };
    let queued = |load: Load| {
        let own: Runner<'static> = Box::new(move || load.through(&mut Outbox::default()));
        let anew: Runner<'static> = Box::new(move || load.through(&mut BytesMut::new()));
        let kept = load.kept::<BytesMut>();
        let peers = vec![
            ("BytesMut anew", anew),
            ("BytesMut", kept),
            ("VecDeque<Bytes>", load.kept::<Line<Bytes>>()),
        ];
        (own, peers)
    };
    let copies = || vec![("BytesMut", copied::<BytesMut>()), ("VecDeque<Bytes>", copied::<Line<Bytes>>())];
    let references = || {
        vec![
            ("VecDeque<Bytes>", counted::<Bytes>()),
            ("VecDeque<Arc<[u8]>>", counted::<Arc<[u8]>>()),
            ("BytesMut", copied::<BytesMut>()),
        ]
    };
    let ((own_small, peers_small), (own_large, peers_large)) = (queued(small), queued(large));
    vec![
        contest("64 B x 1,000, queued", own_small, peers_small),
        contest("16 KiB x 32, queued", own_large, peers_large),
        contest("64 B, sent at once", composed(), copies()),
        contest("64 B broadcast, sent at once", broadcast(), references()),
        contest("64 B broadcast, queued", broadcast_queued(), references()),
    ]
}

/// The work with the queue of one connection.
#[derive(Clone, Copy)]
struct Load {
    size: usize,
    count: usize,
    /// How many bytes the kernel accepts per call.
    portion: usize,
}

impl Load {
    fn through(self, queue: &mut impl Queue) -> Vec<f64> {
        let bytes = vec![b'x'; self.size];
        let begun = Instant::now();
        for _ in 0..self.count {
            queue.put(black_box(&bytes));
        }
        while write(queue, self.portion) > 0 {}
        each(begun, self.count)
    }

    fn kept<Q: Queue + Default + 'static>(self) -> Runner<'static> {
        let mut queue = Q::default();
        Box::new(move || self.through(&mut queue))
    }
}

fn each(begun: Instant, count: usize) -> Vec<f64> {
    vec![begun.elapsed().as_secs_f64() * 1e9 / count as f64]
}

trait Queue {
    fn put(&mut self, bytes: &[u8]);
    fn slices<'a>(&'a self, slices: &mut WriteBatch<'a>);
    fn written(&mut self, n: usize);
}

/// Simulates a write that accepts one portion at most; returns how many bytes it accepted.
fn write(queue: &mut impl Queue, portion: usize) -> usize {
    let mut slices = WriteBatch::new(portion);
    queue.slices(&mut slices);
    let n = taken(&slices, portion);
    queue.written(n);
    n
}

fn taken(slices: &WriteBatch<'_>, portion: usize) -> usize {
    black_box(slices.slices()).iter().map(|slice| slice.len()).sum::<usize>().min(portion)
}

impl Queue for Outbox {
    fn put(&mut self, bytes: &[u8]) {
        self.wire.push(bytes);
    }

    fn slices<'a>(&'a self, slices: &mut WriteBatch<'a>) {
        self.wire.gather(slices);
    }

    fn written(&mut self, n: usize) {
        self.advance(n);
    }
}

impl Queue for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn slices<'a>(&'a self, slices: &mut WriteBatch<'a>) {
        slices.push(self);
    }

    fn written(&mut self, n: usize) {
        self.advance(n);
    }
}

/// A queue of reference-counted chunks.
struct Line<C> {
    chunks: VecDeque<C>,
    head: usize,
}

impl<C> Default for Line<C> {
    fn default() -> Line<C> {
        Line { chunks: VecDeque::new(), head: 0 }
    }
}

trait Chunk: Clone + AsRef<[u8]> {
    fn copy(bytes: &[u8]) -> Self;
}

impl Chunk for Bytes {
    fn copy(bytes: &[u8]) -> Bytes {
        Bytes::copy_from_slice(bytes)
    }
}

impl Chunk for Arc<[u8]> {
    fn copy(bytes: &[u8]) -> Arc<[u8]> {
        Arc::from(bytes)
    }
}

impl<C: Chunk> Queue for Line<C> {
    fn put(&mut self, bytes: &[u8]) {
        self.chunks.push_back(C::copy(bytes));
    }

    fn slices<'a>(&'a self, slices: &mut WriteBatch<'a>) {
        let mut skip = self.head;
        for chunk in &self.chunks {
            if !slices.push(&chunk.as_ref()[skip..]) {
                return;
            }
            skip = 0;
        }
    }

    fn written(&mut self, n: usize) {
        self.head += n;
        while let Some(front) = self.chunks.front().filter(|front| front.as_ref().len() <= self.head) {
            self.head -= front.as_ref().len();
            self.chunks.pop_front();
        }
    }
}

fn receivers<Q: Default>() -> Vec<Q> {
    (0..RECEIVERS).map(|_| Q::default()).collect()
}

fn write_all(receivers: &mut [impl Queue]) {
    for receiver in receivers {
        assert_eq!(write(receiver, usize::MAX), LINE.len(), "a line was lost");
    }
}

fn copied<Q: Queue + Default + 'static>() -> Runner<'static> {
    let mut receivers = receivers::<Q>();
    Box::new(move || {
        let begun = Instant::now();
        for receiver in &mut receivers {
            receiver.put(black_box(&LINE));
        }
        write_all(&mut receivers);
        each(begun, RECEIVERS)
    })
}

fn counted<C: Chunk + 'static>() -> Runner<'static> {
    let mut receivers = receivers::<Line<C>>();
    Box::new(move || {
        let begun = Instant::now();
        let line = C::copy(black_box(&LINE));
        for receiver in &mut receivers {
            receiver.chunks.push_back(line.clone());
        }
        write_all(&mut receivers);
        each(begun, RECEIVERS)
    })
}

fn broadcast_queued() -> Runner<'static> {
    let (mut receivers, account) = (receivers::<Outbox>(), Account::new());
    Box::new(move || {
        let begun = Instant::now();
        let line = Shared::from(black_box(&LINE[..]));
        for receiver in &mut receivers {
            receiver.wire.push_shared(&line, account);
        }
        write_all(&mut receivers);
        each(begun, RECEIVERS)
    })
}

fn composed() -> Runner<'static> {
    let mut turn = Turn::new();
    Box::new(move || {
        let begun = Instant::now();
        for segments in &mut turn.chains {
            turn.arena.push(segments, black_box(&LINE));
        }
        turn.flush();
        each(begun, RECEIVERS)
    })
}

fn broadcast() -> Runner<'static> {
    let mut turn = Turn::new();
    Box::new(move || {
        let begun = Instant::now();
        let line = Shared::from(black_box(&LINE[..]));
        for segments in &mut turn.chains {
            turn.arena.push_shared(segments, &line);
        }
        turn.flush();
        each(begun, RECEIVERS)
    })
}

/// The arena, with the segment list of each connection.
struct Turn {
    arena: Arena,
    chains: Vec<SegmentList>,
}

impl Turn {
    fn new() -> Turn {
        Turn { arena: Arena::new(), chains: vec![SegmentList::EMPTY; RECEIVERS] }
    }

    /// As in `src/event_loop/write.rs` when the kernel accepts everything.
    fn flush(&mut self) {
        for segments in &mut self.chains {
            let mut slices = WriteBatch::new(usize::MAX);
            self.arena.gather(segments, &mut slices);
            let n = taken(&slices, usize::MAX);
            assert_eq!(n, LINE.len(), "a line was lost");
            self.arena.advance(segments, n);
            *segments = SegmentList::EMPTY;
        }
        self.arena.clear();
    }
}
