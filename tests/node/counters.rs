//! B: counters. Four scenarios.

use tidemill::SocketLimits;

use crate::fixture::{Event, Fixture, MS, TestServer};

#[test]
fn b1_bytes_are_counted_exactly_on_both_sides() {
    let mut fixture = Fixture::new();
    let (dialed, accepted) = fixture.both_ends();
    let mut rounds = 0;
    for n in [1, 10, 1_000, 100_000] {
        fixture.with_socket_of(dialed, |socket| socket.send(vec![0; n]));
        rounds += n as u64;
        fixture.until("it has arrived", |fixture| {
            fixture.with_socket_of(accepted, |socket| socket.bytes_in()) == rounds
        });
        assert_eq!(fixture.with_socket_of(dialed, |socket| socket.bytes_out()), rounds);
    }
    fixture.with_socket_of(accepted, |socket| socket.send(b"back"));
    fixture
        .until("it has arrived", |fixture| fixture.with_socket_of(dialed, |socket| socket.bytes_in()) == 4);
    let stats = fixture.reactor.stats();
    assert_eq!((stats.bytes_in, stats.bytes_out), (rounds + 4, rounds + 4));
}

#[test]
fn b2_counters_are_zero_before_connecting_and_complete_after_the_end() {
    let mut fixture = Fixture::new().on_open(|socket| {
        assert_eq!((socket.bytes_in(), socket.bytes_out(), socket.queued()), (0, 0, 0));
        socket.send(b"question");
        assert_eq!((socket.bytes_out(), socket.queued()), (0, 8));
    });
    let server = TestServer::new();
    let id = fixture.dial(server.address());
    let mut peer = server.accept(&mut fixture);
    fixture.receive(&mut peer, 8);
    peer.send("answer");
    peer.finish();
    fixture.until_closed(id);
    let info = fixture.closed_info(id);
    assert_eq!((info.bytes_in, info.bytes_out), (6, 8));
}

#[test]
fn b3_of_a_partial_write_the_bytes_that_the_kernel_accepted_are_counted() {
    const ALL: usize = 8 << 20;
    let limits = SocketLimits { queue: 2 * ALL, min_write_rate: None, ..SocketLimits::default() };
    let mut fixture = Fixture::with_socket(limits).on_open(|socket| socket.send(vec![0; ALL]));
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    fixture.turn_for(30 * MS);
    let (out, queued) = fixture.with_socket_of(id, |socket| (socket.bytes_out() as usize, socket.queued()));
    assert!(out > 0 && queued > 0 && out + queued == ALL, "{out} and {queued}");
    fixture.receive(&mut peer, ALL);
    fixture.until("all is written", |fixture| {
        fixture.with_socket_of(id, |socket| socket.bytes_out() as usize) == ALL
    });
    assert_eq!(fixture.with_socket_of(id, |socket| socket.queued()), 0);
    peer.reset();
    fixture.until_closed(id);
    assert_eq!(fixture.closed_info(id).bytes_out as usize, ALL);
}

#[test]
fn b4_the_queue_is_counted_to_the_byte_and_empty_when_fin_is_sent() {
    let mut fixture = Fixture::new().on_data(|socket, input| {
        for byte in input.take_all() {
            let before = socket.queued();
            socket.send([*byte, *byte]);
            assert_eq!(socket.queued(), before + 2);
        }
        socket.finish();
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send([0; 500]);
    fixture.receive(&mut peer, 1_000);
    assert_eq!(fixture.with_socket_of(id, |socket| (socket.queued(), socket.bytes_out())), (0, 1_000));
    assert_eq!(fixture.count(Event::Drained(id)), 0, "it was never full");
}
