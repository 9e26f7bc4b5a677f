//! W: writing and backpressure. Nine scenarios.

use std::cell::Cell;
use std::rc::Rc;

use tidemill::{CloseReason, Shared, SocketLimits};

use crate::fixture::{End, Event, Fixture, MS};

/// Limits with which a slow peer is not closed.
fn patient() -> SocketLimits {
    SocketLimits { queue: 32 << 20, min_write_rate: None, ..SocketLimits::default() }
}

/// A peer that reads only when told to. The kernel buffers some four megabytes for it.
fn slow_reader(fixture: &mut Fixture) -> (crate::fixture::Peer, tidemill::ConnId) {
    let address = fixture.listen();
    fixture.connect(address)
}

#[test]
fn w1_a_full_socket_reports_it_and_drained_is_called_when_it_is_not_full_any_more() {
    let mut fixture = Fixture::with_socket(patient());
    let (mut peer, id) = slow_reader(&mut fixture);
    fixture.with_socket_of(id, |socket| {
        assert!(!socket.is_full());
        socket.send([0; 60 * 1024]);
        assert!(!socket.is_full());
        socket.send(vec![0; 8 << 20]);
        assert!(socket.is_full());
    });
    fixture.turn_for(30 * MS);
    assert_eq!(fixture.count(Event::Drained(id)), 0);
    fixture.receive(&mut peer, (8 << 20) + 60 * 1024);
    fixture.until("it has drained", |fixture| fixture.count(Event::Drained(id)) == 1);
    assert!(!fixture.with_socket_of(id, |socket| socket.is_full()));
}

#[test]
fn w2_data_sent_to_a_full_socket_is_not_lost() {
    let mut fixture = Fixture::with_socket(patient());
    let (mut peer, id) = slow_reader(&mut fixture);
    fixture.with_socket_of(id, |socket| {
        socket.send(vec![1; 4 << 20]);
        assert!(socket.is_full());
        socket.send(b"and this");
    });
    let received = fixture.receive(&mut peer, (4 << 20) + 8);
    assert_eq!(&received[4 << 20..], b"and this");
}

#[test]
fn w3_two_megabytes_in_ten_pieces_reach_a_slow_reader_whole() {
    let mut fixture = Fixture::with_socket(patient());
    let (mut peer, id) = slow_reader(&mut fixture);
    for n in 0..10_u8 {
        fixture.with_socket_of(id, |socket| socket.send(vec![n; 200_000]));
        fixture.turn_for(MS);
    }
    fixture.with_socket_of(id, |socket| socket.finish());
    let (received, end) = fixture.receive_end(&mut peer);
    let expected: Vec<u8> = (0..10).flat_map(|n| vec![n; 200_000]).collect();
    assert!(received == expected && end == End::Clean, "{} bytes, {end:?}", received.len());
}

#[test]
fn w4_a_service_that_waits_for_drained_holds_no_more_than_the_water_marks() {
    const ALL: usize = 20 << 20;
    let (sent, max) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (sends, highest) = (sent.clone(), max.clone());
    let pump = move |socket: &mut tidemill::Socket<'_>| {
        while !socket.is_full() && sends.get() < ALL {
            socket.send([7; 16 * 1024]);
            sends.set(sends.get() + 16 * 1024);
        }
        highest.set(highest.get().max(socket.queued()));
        if sends.get() == ALL {
            socket.finish();
        }
    };
    let again = pump.clone();
    let mut fixture =
        Fixture::new().on_open(move |socket| pump(socket)).on_drained(move |socket| again(socket));
    let (mut peer, id) = slow_reader(&mut fixture);
    let (received, _) = fixture.receive_end(&mut peer);
    assert_eq!((received.len(), sent.get()), (ALL, ALL));
    assert!(max.get() <= 64 * 1024 + 16 * 1024, "{} were queued", max.get());
    assert!(fixture.count(Event::Drained(id)) > 10);
}

#[test]
fn w5_half_a_million_sends_arrive_in_order_and_each_once() {
    let limits = SocketLimits { queue: 64 << 20, ..SocketLimits::default() };
    let mut fixture = Fixture::with_socket(limits);
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    for batch in 0..50_u32 {
        fixture.with_socket_of(id, |socket| {
            for n in 0..10_000_u32 {
                socket.send((batch * 10_000 + n).to_be_bytes());
            }
        });
        fixture.reactor.turn(Some(std::time::Duration::ZERO)).expect("a turn");
        peer.listen();
    }
    let received = fixture.receive(&mut peer, 4 * 500_000);
    let numbers = received.chunks(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four")));
    assert!(numbers.eq(0..500_000));
}

#[test]
fn w6_a_thousand_ping_pongs_queue_no_more_than_one_message() {
    let mut fixture = Fixture::new().on_data(|socket, input| {
        let message = input.take_all();
        assert!(message.len() <= 4, "{} bytes at once", message.len());
        socket.send(message);
        assert_eq!(socket.queued(), message.len());
    });
    let address = fixture.listen();
    let (mut peer, _) = fixture.connect(address);
    for _ in 0..1_000 {
        peer.send("ping");
        assert_eq!(fixture.receive(&mut peer, 4), b"ping");
    }
    assert_eq!(fixture.reactor.stats().writes, 1_000);
}

#[test]
fn w7_all_256_values_of_a_byte_pass_both_ways() {
    let mut fixture = Fixture::new().on_data(|socket, input| socket.send(input.take_all()));
    let address = fixture.listen();
    let (mut peer, _) = fixture.connect(address);
    let all: Vec<u8> = (0..=255).collect();
    peer.send(&all);
    assert_eq!(fixture.receive(&mut peer, 256), all);
}

#[test]
fn w8_tiny_large_and_shared_pieces_keep_their_order_and_leave_in_one_call() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    let shared = Shared::from(vec![b's'; 10_000]);
    let before = fixture.reactor.stats().writes;
    fixture.with_socket_of(id, |socket| {
        socket.send(b"a");
        socket.send([b'b'; 30_000]);
        socket.send_shared(&shared);
        socket.send(b"");
        socket.send(b"c");
    });
    let expected = [&b"a"[..], &[b'b'; 30_000], &[b's'; 10_000], b"c"].concat();
    assert!(fixture.receive(&mut peer, 40_002) == expected);
    assert_eq!(fixture.reactor.stats().writes - before, 1, "a turn is a cork");
}

#[test]
fn w9_a_write_to_a_closed_peer_ends_the_connection_with_a_reason() {
    let mut fixture = Fixture::new().on_end(|_| {});
    let address = fixture.listen();
    let (peer, id) = fixture.connect(address);
    drop(peer);
    fixture.until("its end is seen", |fixture| fixture.count(Event::End(id)) == 1);
    for _ in 0..10 {
        if fixture.closed(id).is_some() {
            break;
        }
        fixture.with_socket_of(id, |socket| socket.send([0; 1_000]));
        fixture.turn_for(5 * MS);
    }
    assert_eq!(fixture.close_reasons(id), [CloseReason::Reset]);
}
