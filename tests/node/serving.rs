//! S: server close, limits, accept. Nine scenarios.

use std::net::TcpStream;
use std::time::Duration;

use tidemill::{AccessPolicy, CloseReason, Limits, Refusal, SocketLimits};

use crate::fixture::{End, Event, Fixture, MS, Peer};

#[test]
fn s1_shutdown_waits_for_open_connections_and_ends_once() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    fixture.reactor.shutdown(Duration::from_secs(60));
    fixture.turn_for(20 * MS);
    assert!(TcpStream::connect(address).is_err(), "no new peer is accepted");
    peer.send("I am not done");
    fixture.until("it arrives", |fixture| fixture.received(id) == b"I am not done");
    peer.finish();
    fixture.reactor.run().expect("the loop ends by itself");
    assert_eq!(fixture.close_reasons(id), [CloseReason::Finished]);
}

#[test]
fn s2_a_peer_that_does_not_end_is_closed_after_the_grace_time() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (_peer, id) = fixture.connect(address);
    fixture.reactor.shutdown(50 * MS);
    fixture.reactor.run().expect("the loop ends by itself");
    assert_eq!(fixture.close_reasons(id), [CloseReason::Shutdown]);
}

fn full(max: usize) -> (Fixture, std::net::SocketAddr) {
    let mut fixture = Fixture::with(Limits { connections: max, ..Limits::default() });
    let address = fixture.listen();
    (fixture, address)
}

#[test]
fn s3_the_first_n_are_accepted_and_the_rest_are_refused_with_a_reply() {
    let (mut fixture, address) = full(3);
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(address)).collect();
    fixture.until("all have been seen", |fixture| fixture.opened().len() + fixture.refused().len() == 8);
    assert_eq!(fixture.opened().len(), 3);
    for refused in &mut peers[3..] {
        assert_eq!(fixture.receive_end(refused), (b"server busy\n".to_vec(), End::Clean));
    }
    peers[0].send("inside");
    let first = fixture.opened()[0];
    fixture.until("open connections continue", |fixture| fixture.received(first) == b"inside");
}

#[test]
fn s4_a_slot_that_is_freed_can_be_used_again() {
    let (mut fixture, address) = full(1);
    for _ in 0..20 {
        let (peer, id) = fixture.connect(address);
        drop(peer);
        fixture.until_closed(id);
    }
    assert!(fixture.refused().is_empty());
}

#[test]
fn s5_a_refused_connection_is_reported_with_both_addresses_and_the_reason() {
    let (mut fixture, address) = full(1);
    let (_inside, _) = fixture.connect(address);
    let late = Peer::connect(address);
    fixture.until("it is refused", |fixture| !fixture.refused().is_empty());
    let refused = fixture.refused().remove(0);
    assert_eq!(refused.peer.inet(), late.stream.local_addr().ok());
    assert_eq!((refused.at.inet(), refused.reason), (Some(address), Refusal::Full));
}

#[test]
fn s6_all_connections_can_be_reset_at_once() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let mut peers: Vec<Peer> = (0..10).map(|_| fixture.connect(address).0).collect();
    let mut sockets = fixture.reactor.sockets();
    for id in sockets.ids() {
        sockets.get(id).expect("it is there").abort();
    }
    for peer in &mut peers {
        assert_eq!(fixture.receive_end(peer), (Vec::new(), End::Reset));
    }
    assert_eq!(fixture.reactor.sockets().len(), 0);
}

#[test]
fn s7_paused_on_connect_a_socket_delivers_nothing_until_it_is_resumed() {
    let mut fixture = Fixture::new().on_open(|socket| socket.pause());
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send("patience");
    fixture.turn_for(50 * MS);
    assert_eq!((fixture.received(id), fixture.with_socket_of(id, |socket| socket.bytes_in())), (vec![], 0));
    fixture.with_socket_of(id, |socket| socket.resume());
    fixture.until("it is delivered", |fixture| fixture.received(id) == b"patience");
}

#[test]
fn s8_a_service_that_gives_up_on_one_connection_closes_only_that_one() {
    let mut fixture = Fixture::new().on_data(|socket, input| match input.take_all() {
        b"bad" => socket.close_as(CloseReason::Malformed),
        good => socket.send(good),
    });
    let address = fixture.listen();
    let (mut good, _) = fixture.connect(address);
    let (mut bad, id) = fixture.connect(address);
    bad.send("bad");
    assert_eq!(fixture.receive_end(&mut bad), (vec![], End::Clean));
    drop(bad);
    assert_eq!(fixture.until_closed(id), CloseReason::Malformed);
    good.send("good");
    assert_eq!(fixture.receive(&mut good, 4), b"good");
}

#[test]
fn s9_a_hundred_and_fifty_connections_of_forty_kilobytes_each_arrive_whole() {
    let mut fixture = Fixture::with_socket(SocketLimits { min_read_rate: None, ..SocketLimits::default() });
    let address = fixture.listen();
    let mut peers: Vec<(Peer, _)> = (0..150).map(|_| fixture.connect(address)).collect();
    for (n, (peer, _)) in peers.iter_mut().enumerate() {
        peer.send(vec![n as u8; 40 * 1024]);
        peer.finish();
    }
    for (n, (_, id)) in peers.iter().enumerate() {
        assert_eq!(fixture.until_closed(*id), CloseReason::Finished);
        assert!(fixture.received(*id) == vec![n as u8; 40 * 1024], "connection {n}");
        assert_eq!(fixture.count(Event::End(*id)), 1);
    }
    // All connections are from one address; an access policy would have counted them.
    fixture
        .reactor
        .set_access_policy(fixture.service, AccessPolicy { per_address: Some(1), ..AccessPolicy::default() });
    let (_one, _) = fixture.connect(address);
    let _two = Peer::connect(address);
    fixture.until("the second is one too many", |fixture| fixture.refused().len() == 1);
    assert_eq!(fixture.refused()[0].reason, Refusal::PerAddress);
}
