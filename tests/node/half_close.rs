//! H: half-close, and the order of ends. Seven scenarios.

use tidemill::{CloseReason, SocketLimits, State};

use crate::fixture::{End, Event, Fixture, MS};

#[test]
fn h1_fin_of_the_peer_does_not_end_the_connection() {
    let mut fixture = Fixture::new().on_end(|_| {});
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    assert!(!fixture.with_socket_of(id, |socket| socket.has_ended()));
    peer.finish();
    fixture.until("its end is seen", |fixture| fixture.count(Event::End(id)) == 1);
    assert!(fixture.with_socket_of(id, |socket| socket.has_ended()));
    assert_eq!(fixture.with_socket_of(id, |socket| socket.state()), State::WriteOnly);
    fixture.with_socket_of(id, |socket| socket.send(b"still talking"));
    assert_eq!(fixture.receive(&mut peer, 13), b"still talking");
    fixture.with_socket_of(id, |socket| socket.finish());
    assert_eq!(fixture.until_closed(id), CloseReason::Finished);
}

#[test]
fn h2_by_default_fin_is_answered_with_fin() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.finish();
    assert_eq!(fixture.receive_end(&mut peer), (vec![], End::Clean));
    assert_eq!(fixture.until_closed(id), CloseReason::Finished);
}

#[test]
fn h3_queued_output_is_sent_after_the_peers_fin() {
    const MUCH: usize = 3 << 20;
    let limits = SocketLimits { queue: 2 * MUCH, ..SocketLimits::default() };
    let mut fixture = Fixture::with_socket(limits).on_end(|socket| {
        socket.send(vec![b'x'; MUCH]);
        socket.finish();
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.finish();
    fixture.until("it is queued", |fixture| fixture.count(Event::End(id)) == 1);
    fixture.turn_for(50 * MS);
    let (received, end) = fixture.receive_end(&mut peer);
    assert_eq!((received.len(), end), (MUCH, End::Clean));
    assert_eq!(fixture.until_closed(id), CloseReason::Finished);
}

#[test]
fn h4_all_data_before_fin_is_delivered_before_end() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send(vec![b'x'; 150_000]);
    peer.finish();
    fixture.until_closed(id);
    assert_eq!(fixture.received(id).len(), 150_000);
    let events = fixture.events();
    let place = |what: &Event| events.iter().rposition(|events| events == what);
    assert!(place(&Event::Data(id)) < place(&Event::End(id)));
}

#[test]
fn h5_end_is_called_once_and_before_closed() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send("x");
    peer.finish();
    fixture.until_closed(id);
    fixture.turn_for(20 * MS);
    let events = fixture.events();
    assert_eq!(events[events.len() - 2..], [Event::End(id), Event::Closed(id, CloseReason::Finished)]);
    assert_eq!((fixture.count(Event::End(id)), fixture.close_reasons(id).len()), (1, 1));
}

#[test]
fn h6_after_our_fin_the_peer_may_continue_to_send() {
    let mut fixture = Fixture::new().on_open(|socket| {
        socket.send(b"question");
        socket.finish();
        assert_eq!(socket.state(), State::ReadOnly);
        socket.send(b"too late");
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    assert_eq!(fixture.receive_end(&mut peer), (b"question".to_vec(), End::Clean));
    peer.send("a long answer");
    fixture.until("it arrives", |fixture| fixture.received(id) == b"a long answer");
    assert_eq!(fixture.reactor.stats().sent_too_late, 8);
    peer.finish();
    assert_eq!(fixture.until_closed(id), CloseReason::Finished);
}

#[test]
fn h7_a_connection_half_closed_for_too_long_is_closed() {
    let limits = SocketLimits { half_closed: Some(100 * MS), ..SocketLimits::default() };
    let mut fixture = Fixture::with_socket(limits).on_open(|socket| socket.finish());
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    for _ in 0..5 {
        fixture.turn_for(50 * MS);
        peer.send("x");
    }
    assert_eq!(fixture.closed(id), None, "while it talks it is not");
    fixture.turn_for(150 * MS);
    drop(peer);
    assert_eq!(fixture.until_closed(id), CloseReason::HalfClosed);
}
