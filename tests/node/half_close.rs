//! H: half-close, and the order of ends. Seven scenarios.

use tidemill::{Closed, SocketLimits, State};

use crate::desk::{Desk, End, MS, Told};

#[test]
fn h1_the_peers_end_is_not_the_end_of_the_connection() {
    let mut desk = Desk::new().on_end(|_| {});
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.finish();
    desk.until("its end is seen", |desk| desk.told(Told::End(id)) == 1);
    assert_eq!(desk.with_socket_of(id, |socket| socket.state()), State::WriteOnly);
    desk.with_socket_of(id, |socket| socket.send(b"still talking"));
    assert_eq!(desk.hear(&mut peer, 13), b"still talking");
    desk.with_socket_of(id, |socket| socket.finish());
    assert_eq!(desk.until_closed(id), Closed::Finished);
}

#[test]
fn h2_by_default_our_end_follows_the_peers() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.finish();
    assert_eq!(desk.hear_end(&mut peer), (vec![], End::Clean));
    assert_eq!(desk.until_closed(id), Closed::Finished);
}

#[test]
fn h3_what_is_queued_leaves_after_the_peers_end() {
    const MUCH: usize = 3 << 20;
    let limits = SocketLimits { queue: 2 * MUCH, ..SocketLimits::default() };
    let mut desk = Desk::with_socket(limits).on_end(|socket| {
        socket.send(&vec![b'x'; MUCH]);
        socket.finish();
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.finish();
    desk.until("it is queued", |desk| desk.told(Told::End(id)) == 1);
    desk.turn_for(50 * MS);
    let (heard, end) = desk.hear_end(&mut peer);
    assert_eq!((heard.len(), end), (MUCH, End::Clean));
    assert_eq!(desk.until_closed(id), Closed::Finished);
}

#[test]
fn h4_everything_that_came_before_the_end_is_delivered_before_it() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say(vec![b'x'; 150_000]);
    peer.finish();
    desk.until_closed(id);
    assert_eq!(desk.heard(id).len(), 150_000);
    let told = desk.all_told();
    let place = |what: &Told| told.iter().rposition(|told| told == what);
    assert!(place(&Told::Data(id)) < place(&Told::End(id)));
}

#[test]
fn h5_the_end_is_told_once_and_before_the_farewell() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say("x");
    peer.finish();
    desk.until_closed(id);
    desk.turn_for(20 * MS);
    let told = desk.all_told();
    assert_eq!(told[told.len() - 2..], [Told::End(id), Told::Closed(id, Closed::Finished)]);
    assert_eq!((desk.told(Told::End(id)), desk.farewells(id).len()), (1, 1));
}

#[test]
fn h6_after_our_own_end_the_peer_may_go_on_and_is_heard() {
    let mut desk = Desk::new().on_open(|socket| {
        socket.send(b"question");
        socket.finish();
        assert_eq!(socket.state(), State::ReadOnly);
        socket.send(b"too late");
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    assert_eq!(desk.hear_end(&mut peer), (b"question".to_vec(), End::Clean));
    peer.say("a long answer");
    desk.until("it is heard", |desk| desk.heard(id) == b"a long answer");
    assert_eq!(desk.reactor.stats().sent_too_late, 8);
    peer.finish();
    assert_eq!(desk.until_closed(id), Closed::Finished);
}

#[test]
fn h7_a_peer_that_never_ends_is_ended_when_it_has_been_half_closed_for_too_long() {
    let limits = SocketLimits { half_closed: Some(100 * MS), ..SocketLimits::default() };
    let mut desk = Desk::with_socket(limits).on_open(|socket| socket.finish());
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    for _ in 0..5 {
        desk.turn_for(50 * MS);
        peer.say("x");
    }
    assert_eq!(desk.closed(id), None, "while it talks it is not");
    desk.turn_for(150 * MS);
    drop(peer);
    assert_eq!(desk.until_closed(id), Closed::HalfClosed);
}
