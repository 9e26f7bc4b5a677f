//! B: counters. Four scenarios.

use tidemill::SocketLimits;

use crate::desk::{Desk, Host, MS, Told};

#[test]
fn b1_bytes_are_counted_exactly_on_both_sides() {
    let mut desk = Desk::new();
    let (dialed, accepted) = desk.both_ends();
    let mut rounds = 0;
    for n in [1, 10, 1_000, 100_000] {
        desk.with_socket_of(dialed, |socket| socket.send(&vec![0; n]));
        rounds += n as u64;
        desk.until("it has arrived", |desk| {
            desk.with_socket_of(accepted, |socket| socket.bytes_in()) == rounds
        });
        assert_eq!(desk.with_socket_of(dialed, |socket| socket.bytes_out()), rounds);
    }
    desk.with_socket_of(accepted, |socket| socket.send(b"back"));
    desk.until("it has arrived", |desk| desk.with_socket_of(dialed, |socket| socket.bytes_in()) == 4);
    let stats = desk.reactor.stats();
    assert_eq!((stats.bytes_in, stats.bytes_out), (rounds + 4, rounds + 4));
}

#[test]
fn b2_counters_are_zero_before_connecting_and_whole_after_the_end() {
    let mut desk = Desk::new().on_open(|socket| {
        assert_eq!((socket.bytes_in(), socket.bytes_out(), socket.queued()), (0, 0, 0));
        socket.send(b"question");
        assert_eq!((socket.bytes_out(), socket.queued()), (0, 8));
    });
    let host = Host::new();
    let id = desk.dial(host.address());
    let mut peer = host.answer(&mut desk);
    desk.hear(&mut peer, 8);
    peer.say("answer");
    peer.finish();
    desk.until_closed(id);
    let departed = desk.departed(id);
    assert_eq!((departed.bytes_in, departed.bytes_out), (6, 8));
}

#[test]
fn b3_what_was_partly_written_is_counted_as_far_as_the_kernel_took_it() {
    const ALL: usize = 8 << 20;
    let limits = SocketLimits { queue: 2 * ALL, write_pace: None, ..SocketLimits::default() };
    let mut desk = Desk::with_socket(limits).on_open(|socket| socket.send(&vec![0; ALL]));
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    desk.turn_for(30 * MS);
    let (out, queued) = desk.with_socket_of(id, |socket| (socket.bytes_out() as usize, socket.queued()));
    assert!(out > 0 && queued > 0 && out + queued == ALL, "{out} and {queued}");
    desk.hear(&mut peer, ALL);
    desk.until("all is written", |desk| desk.with_socket_of(id, |socket| socket.bytes_out() as usize) == ALL);
    assert_eq!(desk.with_socket_of(id, |socket| socket.queued()), 0);
    peer.reset();
    desk.until_closed(id);
    assert_eq!(desk.departed(id).bytes_out as usize, ALL);
}

#[test]
fn b4_the_queue_is_counted_to_the_byte_and_empty_when_our_end_is_sent() {
    let mut desk = Desk::new().on_data(|socket, input| {
        for byte in input.take_all() {
            let before = socket.queued();
            socket.send(&[*byte, *byte]);
            assert_eq!(socket.queued(), before + 2);
        }
        socket.finish();
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say([0; 500]);
    desk.hear(&mut peer, 1_000);
    assert_eq!(desk.with_socket_of(id, |socket| (socket.queued(), socket.bytes_out())), (0, 1_000));
    assert_eq!(desk.told(Told::Drained(id)), 0, "it was never full");
}
