//! Filters that break a rule of their contract. Each ends its connection, and nothing else.

use std::io;

use super::*;
use crate::base::filter::{Filter, FilterConfig, FilterFactory, Opened};

#[derive(Clone, Copy, PartialEq)]
enum Lie {
    /// Returns this many bytes of plaintext more than there are.
    Plaintext(usize),
    /// Keeps this many bytes more than it was given.
    Buffered(usize),
    /// Keeps them only when it is asked before a read.
    BufferedLater,
    /// Returns what stands in the room for buffered bytes as plaintext.
    Room,
    NeverReady,
    MoreForEver,
    MoreThanRoom,
    /// Returns what stands in the room of `more` as plaintext.
    MoreRoom,
    SealsNothing,
    /// Removes what other records have appended.
    RemovesSealed,
    /// Sends what stands in `out` once more.
    RepeatsSealed,
}

struct Liar {
    lie: Lie,
    buffered: usize,
    asked: std::cell::Cell<usize>,
    sealed: usize,
}

impl Filter for Liar {
    fn buffered(&self) -> usize {
        self.asked.set(self.asked.get() + 1);
        match self.lie {
            Lie::BufferedLater if self.asked.get() > 3 => usize::MAX,
            _ => self.buffered,
        }
    }

    fn open(&mut self, wire: &mut [u8], _: &mut Vec<u8>) -> Opened {
        let mut opened = Opened { ready: true, plaintext: wire.len(), ..Opened::default() };
        if wire.is_empty() {
            return opened;
        }
        match self.lie {
            Lie::Plaintext(beyond) => opened.plaintext = wire.len().saturating_add(beyond),
            Lie::Buffered(beyond) => self.buffered = wire.len().saturating_add(beyond),
            Lie::Room if self.buffered == 0 => {
                self.buffered = wire.len();
                opened.plaintext = 0;
            }
            Lie::Room => self.buffered = 0,
            Lie::MoreForEver | Lie::MoreThanRoom | Lie::MoreRoom => opened.more = true,
            _ => {}
        }
        opened
    }

    fn more(&mut self, room: &mut [u8], _: &mut Vec<u8>) -> Opened {
        let plaintext = match self.lie {
            Lie::MoreThanRoom => room.len() + 1,
            Lie::MoreRoom => room.len(),
            _ => 0,
        };
        Opened { plaintext, more: self.lie == Lie::MoreForEver, ready: true, ..Opened::default() }
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.sealed += 1;
        match self.lie {
            Lie::SealsNothing => {}
            Lie::RemovesSealed if self.sealed > 1 => out.clear(),
            Lie::RepeatsSealed => {
                out.extend_from_within(..);
                out.extend_from_slice(plain);
            }
            _ => out.extend_from_slice(plain),
        }
        Ok(())
    }

    fn ends_with_fin(&self) -> bool {
        true
    }
}

struct Unready;

impl Filter for Unready {
    fn open(&mut self, wire: &mut [u8], _: &mut Vec<u8>) -> Opened {
        Opened { plaintext: wire.len(), ..Opened::default() }
    }

    fn seal(&mut self, _: &[u8], _: &mut Vec<u8>) -> Result<(), String> {
        panic!("it was never ready");
    }
}

impl FilterFactory for Lie {
    fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
        Ok(match self {
            Lie::NeverReady => Box::new(Unready),
            _ => Box::new(Liar { lie: *self, buffered: 0, asked: Default::default(), sealed: 0 }),
        })
    }

    fn starts_at_once(&self) -> bool {
        true
    }
}

const SECRET: &[u8] = b"password=hunter2; ";

/// Why the connection of a lying filter has ended. Before each of its reads the block that all reads go into is full of
/// a secret of another connection, of which its peer must receive nothing.
fn after(lie: Lie, on_data: impl FnMut(&mut Socket<'_>, &mut Input<'_>) + 'static) -> String {
    let mut test = setup(FilterConfig::new(lie), no_idle()).build(on_data);
    let liar = test.script.connect();
    test.turn_until_quiet();
    for _ in 0..3 {
        let mut block = test.event_loop.table.cx.arena.take_block();
        block.chunks_mut(SECRET.len()).for_each(|chunk| chunk.copy_from_slice(&SECRET[..chunk.len()]));
        test.event_loop.table.cx.arena.put_block(block);
        test.script.feed(liar, b"0123456789");
        test.turn_until_quiet();
    }
    test.script.end(liar);
    test.turn_until_quiet();
    let received = test.script.received(liar);
    let secret = SECRET.repeat(2);
    let leaked = received.windows(4).any(|bytes| secret.windows(4).any(|secret| secret == bytes));
    assert!(!leaked, "bytes of another connection: {}", String::from_utf8_lossy(&received));
    assert_eq!((test.event_loop.table.connections(), test.event_loop.table.cx.memory), (0, 0));
    match test.closed_log.borrow().first() {
        Some(gone) => format!("{:?}: {}", gone.reason, gone.error_text().unwrap_or_default()),
        None => {
            let ends = test.event_loop.table.cx.stats.closed_count(CloseReason::Handshake);
            format!("{ends} handshake that its service has not seen")
        }
    }
}

#[test]
fn a_filter_that_returns_more_plaintext_than_it_had_room_for_ends_its_connection() {
    for beyond in [1, 40, usize::MAX] {
        let text = "Tls: the filter returned more plaintext than it had room for";
        assert_eq!(after(Lie::Plaintext(beyond), echo), text);
    }
    assert_eq!(
        after(Lie::MoreThanRoom, echo),
        "Tls: the filter returned more plaintext than it had room for"
    );
}

#[test]
fn a_filter_that_keeps_more_than_it_has_received_ends_its_connection() {
    for beyond in [1, usize::MAX] {
        assert_eq!(
            after(Lie::Buffered(beyond), echo),
            "Tls: the filter keeps more bytes than it has received"
        );
    }
    assert_eq!(
        after(Lie::BufferedLater, echo),
        "Tls: the filter keeps more bytes than it had kept before, and none has come"
    );
}

#[test]
fn a_filter_finds_only_zeros_where_its_buffered_bytes_and_its_plaintext_go() {
    assert_eq!(after(Lie::Room, echo), "Finished: ");
    assert_eq!(after(Lie::MoreRoom, echo), "Finished: ");
}

#[test]
fn a_filter_that_returns_plaintext_in_its_handshake_ends_its_connection() {
    assert_eq!(after(Lie::NeverReady, echo), "1 handshake that its service has not seen");
}

#[test]
pub(in crate::event_loop::tests) fn a_filter_that_promises_more_plaintext_and_returns_none_ends_its_connection()
 {
    let text = "Tls: the filter says that there is more plaintext, and returns none";
    assert_eq!(after(Lie::MoreForEver, echo), text);
}

#[test]
fn a_filter_that_seals_bytes_into_nothing_ends_its_connection() {
    assert_eq!(after(Lie::SealsNothing, echo), "Tls: the filter sealed bytes and returned none");
}

#[test]
fn a_filter_that_removes_what_was_sealed_ends_its_connection() {
    let why = after(Lie::RemovesSealed, |socket, input| {
        input.take_all();
        socket.send([b'x'; 100_000]);
    });
    assert_eq!(why, "Tls: the filter removed bytes that were sealed before");
}

#[test]
fn a_filter_does_not_see_what_another_connection_has_sealed() {
    let members: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let (joining, sending) = (members.clone(), members.clone());
    let mut test = setup(FilterConfig::new(Lie::RepeatsSealed), no_idle()).build_with(
        move |socket| {
            if joining.borrow().is_empty() {
                socket.pause(); // So that its reset is found by a write and not by a read.
            }
            joining.borrow_mut().push(socket.id());
        },
        move |socket, input| {
            let id = sending.borrow()[0];
            socket.other(id).expect("the first is there").send(SECRET);
            socket.send(input.take_all());
        },
    );
    let (first, second) = (test.script.connect(), test.script.connect());
    test.turn_until_quiet();
    test.script.reset(first);
    test.script.feed(second, b"abc");
    test.turn_until_quiet();
    assert_eq!(test.received(second), "abc");
    test.advance(2 * SECOND);
    assert_eq!(test.close_reason(members.borrow()[0]), Some(CloseReason::Reset));
}
