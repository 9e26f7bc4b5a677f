//! Filters that are not TLS: a cipher without a handshake, and a compressor. In `contract`, filters that are wrong.

mod cipher;
pub(super) mod contract;
mod zlib;

use flate2::FlushCompress;

use self::cipher::{Keystream, cipher};
use self::zlib::{Deflate, deflated, inflated, zlib};
use super::*;
use crate::base::filter::FilterConfig;

fn setup(filter: FilterConfig, socket: SocketLimits) -> Setup {
    let listen = ListenOptions { filter: Some(filter), ..ListenOptions::default() };
    Setup { limits: Limits { socket, ..Limits::default() }, listen, ..Setup::default() }
}

fn text() -> Vec<u8> {
    (0..3_000)
        .flat_map(|n: u32| format!("line {n} of {}\n", n.wrapping_mul(2_654_435_761)).into_bytes())
        .collect()
}

#[test]
fn a_stream_that_arrives_byte_by_byte_is_the_one_that_was_sent() {
    let text = &text()[..6_000];
    let mut keys = Keystream::new();
    let records = text.chunks(700).flat_map(|part| keys.record(part)).collect();
    for (filter, wire) in [(cipher(), records), (zlib(), deflated(text))] {
        let is_zlib = filter == zlib() || wire.len() < text.len();
        let mut test = setup(filter, no_idle()).build(echo);
        let peer = test.script.connect();
        for byte in &wire {
            test.script.feed(peer, &[*byte]);
            test.turn_until_quiet();
        }
        test.script.end(peer);
        test.turn_until_quiet();
        let received = test.script.received(peer);
        match is_zlib {
            true => assert!(inflated(&received) == (text.to_vec(), true)),
            false => assert!(Keystream::new().open(&received) == text),
        }
        let closed = test.closed_log.borrow()[0].reason;
        assert_eq!((closed, test.event_loop.table.cx.memory), (CloseReason::Finished, 0));
    }
}

/// Echoes through a filter on a kernel with short, early, late and interrupted calls.
pub(super) fn run_with_faults(tape: &Tape) {
    let limits = Limits {
        read_budget: 1_000 + tape.below(30_000) as usize,
        write_budget: 1_000 + tape.below(30_000) as usize,
        socket: SocketLimits { high_water: 5_000, low_water: 500, ..no_idle() },
        ..Limits::default()
    };
    let is_zlib = tape.below(2) == 0;
    let filter = if is_zlib { zlib() } else { cipher() };
    let listen = ListenOptions { filter: Some(filter), ..ListenOptions::default() };
    let mut test = Setup { limits, listen, ..Setup::default() }.build(move |socket, input| {
        // Some of the input is left, and some connections are paused for a moment.
        let n = input.len().div_ceil(1 + socket.bytes_in() as usize % 3);
        socket.send(input.take(n));
        if !input.is_empty() {
            socket.pause();
            socket.resume();
        }
    });
    test.script.inject_faults(tape);
    let peer = test.script.connect();
    let (mut deflate, mut keys) = (Deflate::new(), Keystream::new());
    let (mut waiting, mut sent, mut received) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        match tape.below(5) {
            0 => {
                let varied = 1 + tape.below(250);
                let plain: Vec<u8> = (0..tape.below(60_000)).map(|_| tape.below(varied) as u8).collect();
                match is_zlib {
                    true => deflate.push(&plain, FlushCompress::Sync, &mut waiting).unwrap(),
                    false => waiting.extend(keys.record(&plain)),
                }
                sent.extend(plain);
            }
            1 | 2 => {
                let n = (tape.below(20_000) as usize).min(waiting.len());
                test.script.feed(peer, &waiting.drain(..n).collect::<Vec<_>>());
            }
            3 => test.script.window(peer, tape.below(9_000) as usize),
            _ => received.extend(test.script.received(peer)),
        }
        test.turn();
        test.script.advance(MS);
    }
    test.script.stop_faults();
    if is_zlib {
        deflate.push(b"", FlushCompress::Finish, &mut waiting).unwrap();
    }
    test.script.window(peer, usize::MAX);
    test.script.feed(peer, &waiting);
    test.script.end(peer);
    test.turn_until_quiet();
    received.extend(test.script.received(peer));
    let plain = if is_zlib { inflated(&received).0 } else { Keystream::new().open(&received) };
    assert!(plain == sent, "{} bytes sent, {} received", sent.len(), plain.len());
    assert_eq!((test.event_loop.table.cx.memory, test.event_loop.table.connections()), (0, 0));
}

#[test]
fn no_byte_is_lost_in_a_filter_under_injected_faults() {
    each_seed(15, run_with_faults);
}

// -- ends ----------------------------------------------------------------------------------------------------

#[test]
fn a_server_whose_filter_has_no_handshake_can_speak_first() {
    let limits = SocketLimits { handshake: Some(SECOND), ..no_idle() };
    let mut test = setup(cipher(), limits).build_with(|socket| socket.send(b"220 hello\r\n"), echo);
    let peer = test.script.connect();
    test.turn_until_quiet();
    assert_eq!(Keystream::new().open(&test.script.received(peer)), b"220 hello\r\n");
    test.advance(2 * SECOND);
    assert_eq!(test.sockets().len(), 1, "the handshake is over, and so is its time limit");
    let info = test.event_loop.table.slots.iter().next().and_then(|(_, c)| c.filter_info()).unwrap();
    assert_eq!((info.version, info.cipher), ("toy", "XOR"));
}

#[test]
fn more_filters_without_a_handshake_start_in_a_turn_than_handshakes() {
    let mut test = setup(cipher(), no_idle()).build_with(|socket| socket.send(b"hello"), echo);
    let peers: Vec<PeerId> = (0..10).map(|_| test.script.connect()).collect();
    test.turn();
    test.turn();
    assert!(peers.iter().all(|&peer| Keystream::new().open(&test.script.received(peer)) == b"hello"));
}

#[test]
fn a_fin_between_two_records_is_an_end_and_within_one_a_truncation() {
    for (cut, reason) in
        [(0, CloseReason::Finished), (1, CloseReason::Truncated), (9, CloseReason::Truncated)]
    {
        let mut test = setup(cipher(), no_idle()).build(echo);
        let (peer, id) = test.accept();
        let wire =
            [Keystream::new().record(b"first"), vec![0, 8, 1, 2, 3, 4, 5, 6, 7][..cut].to_vec()].concat();
        test.script.feed(peer, &wire);
        test.script.end(peer); // In one turn with the bytes before it.
        test.turn_until_quiet();
        assert_eq!(test.close_reason(id), Some(reason), "after {cut} bytes of a record");
        assert_eq!(Keystream::new().open(&test.script.received(peer)), b"first");
        assert_eq!(test.events().contains(&Event::End(id, vec![])), cut == 0);
    }
}

#[test]
fn a_stream_that_announces_its_end_is_truncated_by_a_fin_before_it() {
    let whole = deflated(&text());
    for (wire, reason) in
        [(&whole[..], CloseReason::Finished), (&whole[..whole.len() - 1], CloseReason::Truncated)]
    {
        let mut test = setup(zlib(), no_idle()).build(discard);
        let (peer, id) = test.accept();
        test.script.feed(peer, wire);
        test.script.end(peer);
        test.turn_until_quiet();
        assert_eq!(test.close_reason(id), Some(reason));
    }
}

#[test]
fn after_either_side_has_ended_the_other_direction_goes_on() {
    // The peer ends first: what the service sends from `end` on arrives.
    let ends = |filter: FilterConfig, end: Vec<u8>| {
        let mut test = Setup { finishes: false, ..setup(filter, no_idle()) }.build(discard);
        let (peer, id) = test.accept();
        test.script.feed(peer, &end);
        test.script.end(peer);
        test.turn_until_quiet();
        assert!(matches!(test.events()[..], [Event::Open(_), .., Event::End(..)]), "{:?}", test.events());
        let mut sockets = test.sockets();
        let mut socket = sockets.get(id).unwrap();
        socket.send(b"bye");
        socket.finish();
        test.turn_until_quiet();
        assert!(test.script.received_end(peer));
        assert_eq!(test.close_reason(id), Some(CloseReason::Finished));
        test.script.received(peer)
    };
    assert_eq!(inflated(&ends(zlib(), deflated(b"go"))), (b"bye".to_vec(), true));
    assert_eq!(Keystream::new().open(&ends(cipher(), Keystream::new().record(b"go"))), b"bye");
    // The service ends first: what the peer sends afterwards is delivered.
    for (filter, wire) in [(zlib(), deflated(b"late")), (cipher(), Keystream::new().record(b"late"))] {
        let mut test = setup(filter, no_idle()).build_with(|socket| socket.finish(), discard);
        let (peer, id) = test.accept();
        assert!(test.script.received_end(peer));
        test.script.feed(peer, &wire);
        test.script.end(peer);
        test.turn_until_quiet();
        assert!(test.events().contains(&Event::Data(id, b"late".to_vec())));
        assert_eq!(test.close_reason(id), Some(CloseReason::Finished));
    }
}

#[test]
fn a_filter_that_starts_in_mid_stream_leaves_what_was_sent_before_as_it_is() {
    let mut test = Setup::default().build(|socket, input| match socket.filter_info() {
        Some(_) => socket.send(input.take_all()),
        None if input.take_line() == Some(b"COMPRESS\n") => {
            socket.send(b"OK\n");
            socket.start_filter(zlib());
            socket.send(b"from here on");
        }
        None => {}
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 2);
    test.script.feed(peer, &[&b"COMPRESS\n"[..], &deflated(b" and back")].concat());
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "OK");
    test.script.window(peer, usize::MAX);
    test.turn_until_quiet();
    let received = test.script.received(peer);
    assert_eq!(inflated(received.strip_prefix(b"\n").unwrap()), (b"from here on and back".to_vec(), true));
    assert!(test.events().contains(&Event::FilterStarted(id)));
}

// -- bounds --------------------------------------------------------------------------------------------------

const MIB: usize = 1024 * 1024;

#[test]
pub(super) fn a_compression_bomb_takes_many_turns_and_little_memory() {
    const BUDGET: usize = 4 * 1024;
    const LENGTH: usize = 64 * MIB;
    let taken = Rc::new(RefCell::new(0));
    let total = taken.clone();
    let limits = Limits { memory: MIB, read_budget: BUDGET, ..Limits::default() };
    let mut test = Setup { limits, ..setup(zlib(), no_idle()) }.build(move |_, input| {
        *total.borrow_mut() += input.take_all().len();
    });
    let peer = test.script.connect();
    let bomb = deflated(&vec![0; LENGTH]);
    assert!(bomb.len() < LENGTH / 200);
    test.script.feed(peer, &bomb);
    let (mut turns, mut memory) = (0, 0);
    while *taken.borrow() < LENGTH {
        let before = *taken.borrow();
        test.turn();
        let opened = *taken.borrow() - before;
        // Its own budget, and the eight that a connection may have which is alone.
        assert!(opened <= 9 * BUDGET, "{opened} bytes in one turn");
        memory = memory.max(test.event_loop.table.cx.memory);
        turns += 1;
        assert!(turns < LENGTH / BUDGET, "after {} bytes it stands still", *taken.borrow());
    }
    assert!(memory < 128 * 1024, "{memory} bytes of memory");
    assert_eq!(test.event_loop.table.cx.stats.livelocks_broken, 0);
    test.turn_until_quiet();
    assert!(matches!(
        test.events().last(),
        Some(Event::Closed(_, CloseReason::Finished)) | Some(Event::End(..))
    ));
}

#[test]
fn connections_are_served_between_the_turns_of_a_bomb() {
    let mut test = setup(zlib(), no_idle()).build(|socket, input| {
        let bytes = input.take_all();
        if bytes.len() < 100 {
            socket.send(bytes);
        }
    });
    let (bombs, other): (Vec<PeerId>, _) =
        ((0..50).map(|_| test.script.connect()).collect(), test.script.connect());
    test.turn_until_quiet();
    let bomb = deflated(&vec![0; 16 * MIB]);
    bombs.iter().for_each(|&peer| test.script.feed(peer, &bomb));
    test.turn();
    let mut deflate = Deflate::new();
    for _ in 0..20 {
        let mut wire = Vec::new();
        deflate.push(b"ping", FlushCompress::Sync, &mut wire).unwrap();
        test.script.feed(other, &wire);
        let before = test.event_loop.table.cx.stats.bytes_expanded;
        test.turn();
        let expanded = test.event_loop.table.cx.stats.bytes_expanded - before;
        let most =
            test.event_loop.table.cx.limits.carried_over_budget + test.event_loop.table.cx.limits.read_budget;
        assert!(expanded > 0 && expanded as usize <= most, "{expanded} bytes of all bombs in a turn");
        assert!(!test.script.received(other).is_empty(), "the reply comes in the same turn");
    }
}

#[test]
fn expanded_bytes_wait_in_the_filter_while_the_service_takes_none() {
    let bomb = deflated(&vec![b'x'; 64 * MIB]);
    // Left untaken: an incomplete message, with its limit.
    let mut test = setup(zlib(), no_idle()).build(|_, _| {});
    let (peer, id) = test.accept();
    test.script.feed(peer, &bomb);
    let mut most = 0;
    for _ in 0..100 {
        test.turn();
        most = most.max(test.event_loop.table.cx.memory);
    }
    assert_eq!(
        test.close_reason(id).or(test.event_loop.table.find(id).and_then(|c| c.close_reason)),
        Some(CloseReason::TooLong)
    );
    assert!(most < 4 * MIB, "{most} bytes");
    // Paused: nothing more is expanded. Echoed to a peer that does not read: neither.
    for pauses in [true, false] {
        let mut test = setup(zlib(), no_idle()).build(move |socket, input| {
            if pauses {
                input.take_all();
                socket.pause();
            } else {
                let noise: Vec<u8> =
                    (0..input.take_all().len()).map(|i| ((i * i) >> 7) as u8 ^ i as u8).collect();
                socket.send(&noise);
            }
        });
        let (peer, id) = test.accept();
        test.script.window(peer, 0);
        test.script.feed(peer, &bomb);
        test.turn_until_quiet();
        let opened: usize = received_lengths(&test);
        assert!(opened < MIB, "{opened} bytes were opened");
        assert!(test.event_loop.table.cx.memory < MIB);
        let unread = test.event_loop.table.find(id).map(|connection| connection.unread().len());
        assert_eq!(unread, Some(0), "it waits in the filter");
        for _ in 0..20 {
            if pauses {
                test.sockets().get(id).unwrap().resume();
            } else {
                test.script.window(peer, usize::MAX);
                test.turn();
                test.script.window(peer, 0);
            }
            test.turn_until_quiet();
        }
        assert!(received_lengths(&test) > opened, "it goes on when it can");
    }
}

fn received_lengths(test: &TestLoop) -> usize {
    let length = |event: &Event| match event {
        Event::Data(_, bytes) => bytes.len(),
        _ => 0,
    };
    test.log.borrow().iter().map(length).sum()
}

#[test]
fn an_answer_that_shrinks_to_little_is_sealed_over_several_turns() {
    let socket = SocketLimits { queue: 1 << 30, high_water: 1 << 30, ..no_idle() };
    let mut test = setup(zlib(), socket).build(|socket, input| {
        input.take_all();
        socket.send(vec![0; 4 * MIB]);
        socket.finish();
    });
    let (peer, _) = test.accept();
    test.script.feed(peer, &deflated(b"go"));
    let budget = test.event_loop.table.cx.limits.write_budget;
    let (mut plain, mut turns) = (0, 0);
    let mut wire = Vec::new();
    while !test.script.received_end(peer) {
        test.turn();
        wire.extend(test.script.received(peer));
        let now = inflated(&wire).0.len();
        assert!(now - plain <= budget + 16 * 1024, "{} bytes in one turn", now - plain);
        plain = now;
        turns += 1;
    }
    assert_eq!(plain, 4 * MIB);
    assert!(turns >= 4 * MIB / (budget + 16 * 1024), "{turns} turns");
}
