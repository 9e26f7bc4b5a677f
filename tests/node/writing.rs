//! W: writing and backpressure. Nine scenarios.

use std::cell::Cell;
use std::rc::Rc;

use tidemill::{Closed, Shared, SocketLimits};

use crate::desk::{Desk, End, MS, Told};

/// Limits under which a slow peer is waited for.
fn patient() -> SocketLimits {
    SocketLimits { queue: 32 << 20, write_pace: None, ..SocketLimits::default() }
}

/// A peer that does not read before it is asked to. The kernel takes some four megabytes for it.
fn slow_caller(desk: &mut Desk) -> (crate::desk::Peer, tidemill::ConnId) {
    let address = desk.listen();
    desk.caller(address)
}

#[test]
fn w1_a_full_socket_says_so_and_drained_comes_when_it_is_not() {
    let mut desk = Desk::with_socket(patient());
    let (mut peer, id) = slow_caller(&mut desk);
    desk.with_socket_of(id, |socket| {
        assert!(!socket.is_full());
        socket.send(&[0; 60 * 1024]);
        assert!(!socket.is_full());
        socket.send(&[0; 8 << 20]);
        assert!(socket.is_full());
    });
    desk.turn_for(30 * MS);
    assert_eq!(desk.told(Told::Drained(id)), 0);
    desk.hear(&mut peer, (8 << 20) + 60 * 1024);
    desk.until("it has drained", |desk| desk.told(Told::Drained(id)) == 1);
    assert!(!desk.with_socket_of(id, |socket| socket.is_full()));
}

#[test]
fn w2_what_is_sent_to_a_full_socket_is_not_lost() {
    let mut desk = Desk::with_socket(patient());
    let (mut peer, id) = slow_caller(&mut desk);
    desk.with_socket_of(id, |socket| {
        socket.send(&vec![1; 4 << 20]);
        assert!(socket.is_full());
        socket.send(b"and this");
    });
    let heard = desk.hear(&mut peer, (4 << 20) + 8);
    assert_eq!(&heard[4 << 20..], b"and this");
}

#[test]
fn w3_two_megabytes_in_ten_pieces_reach_a_slow_reader_whole() {
    let mut desk = Desk::with_socket(patient());
    let (mut peer, id) = slow_caller(&mut desk);
    for n in 0..10_u8 {
        desk.with_socket_of(id, |socket| socket.send(&vec![n; 200_000]));
        desk.turn_for(MS);
    }
    desk.with_socket_of(id, |socket| socket.finish());
    let (heard, end) = desk.hear_end(&mut peer);
    let expected: Vec<u8> = (0..10).flat_map(|n| vec![n; 200_000]).collect();
    assert!(heard == expected && end == End::Clean, "{} bytes, {end:?}", heard.len());
}

#[test]
fn w4_a_service_that_waits_for_drained_holds_no_more_than_the_water_marks() {
    const ALL: usize = 20 << 20;
    let (sent, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (sends, highest) = (sent.clone(), most.clone());
    let pump = move |socket: &mut tidemill::Socket<'_>| {
        while !socket.is_full() && sends.get() < ALL {
            socket.send(&[7; 16 * 1024]);
            sends.set(sends.get() + 16 * 1024);
        }
        highest.set(highest.get().max(socket.queued()));
        if sends.get() == ALL {
            socket.finish();
        }
    };
    let again = pump.clone();
    let mut desk = Desk::new().on_open(move |socket| pump(socket)).on_drained(move |socket| again(socket));
    let (mut peer, id) = slow_caller(&mut desk);
    let (heard, _) = desk.hear_end(&mut peer);
    assert_eq!((heard.len(), sent.get()), (ALL, ALL));
    assert!(most.get() <= 64 * 1024 + 16 * 1024, "{} were queued", most.get());
    assert!(desk.told(Told::Drained(id)) > 10);
}

#[test]
fn w5_half_a_million_sends_arrive_in_order_and_each_once() {
    let limits = SocketLimits { queue: 64 << 20, ..SocketLimits::default() };
    let mut desk = Desk::with_socket(limits);
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    for batch in 0..50_u32 {
        desk.with_socket_of(id, |socket| {
            for n in 0..10_000_u32 {
                socket.send(&(batch * 10_000 + n).to_be_bytes());
            }
        });
        desk.reactor.turn(Some(std::time::Duration::ZERO)).expect("a turn");
        peer.listen();
    }
    let heard = desk.hear(&mut peer, 4 * 500_000);
    let numbers = heard.chunks(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four")));
    assert!(numbers.eq(0..500_000));
}

#[test]
fn w6_a_thousand_ping_pongs_queue_no_more_than_one_message() {
    let mut desk = Desk::new().on_data(|socket, input| {
        let message = input.take_all();
        assert!(message.len() <= 4, "{} bytes at once", message.len());
        socket.send(message);
        assert_eq!(socket.queued(), message.len());
    });
    let address = desk.listen();
    let (mut peer, _) = desk.caller(address);
    for _ in 0..1_000 {
        peer.say("ping");
        assert_eq!(desk.hear(&mut peer, 4), b"ping");
    }
    assert_eq!(desk.reactor.stats().writes, 1_000);
}

#[test]
fn w7_all_256_values_of_a_byte_pass_both_ways() {
    let mut desk = Desk::new().on_data(|socket, input| socket.send(input.take_all()));
    let address = desk.listen();
    let (mut peer, _) = desk.caller(address);
    let all: Vec<u8> = (0..=255).collect();
    peer.say(&all);
    assert_eq!(desk.hear(&mut peer, 256), all);
}

#[test]
fn w8_tiny_large_and_shared_pieces_keep_their_order_and_leave_in_one_call() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    let shared = Shared::from(vec![b's'; 10_000]);
    let before = desk.reactor.stats().writes;
    desk.with_socket_of(id, |socket| {
        socket.send(b"a");
        socket.send(&[b'b'; 30_000]);
        socket.send_shared(&shared);
        socket.send(b"");
        socket.send(b"c");
    });
    let expected = [&b"a"[..], &[b'b'; 30_000], &[b's'; 10_000], b"c"].concat();
    assert!(desk.hear(&mut peer, 40_002) == expected);
    assert_eq!(desk.reactor.stats().writes - before, 1, "a turn is a cork");
}

#[test]
fn w9_a_write_to_a_peer_that_is_gone_ends_the_connection_with_a_reason() {
    let mut desk = Desk::new().on_end(|_| {});
    let address = desk.listen();
    let (peer, id) = desk.caller(address);
    drop(peer);
    desk.until("its end is seen", |desk| desk.told(Told::End(id)) == 1);
    for _ in 0..10 {
        if desk.closed(id).is_some() {
            break;
        }
        desk.with_socket_of(id, |socket| socket.send(&[0; 1_000]));
        desk.turn_for(5 * MS);
    }
    assert_eq!(desk.farewells(id), [Closed::Reset]);
}
