//! S: server close, limits, accept. Nine scenarios.

use std::net::TcpStream;
use std::time::Duration;

use tidemill::{Closed, Guard, Limits, Refusal, SocketLimits};

use crate::desk::{Desk, End, MS, Peer, Told};

#[test]
fn s1_shutting_down_waits_for_those_who_are_connected_and_ends_once() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    desk.reactor.shutdown(Duration::from_secs(60));
    desk.turn_for(20 * MS);
    assert!(TcpStream::connect(address).is_err(), "nobody new comes in");
    peer.say("I am not done");
    desk.until("it is heard", |desk| desk.heard(id) == b"I am not done");
    peer.finish();
    desk.reactor.run().expect("the loop ends by itself");
    assert_eq!(desk.farewells(id), [Closed::Finished]);
}

#[test]
fn s2_a_peer_that_does_not_end_is_ended_when_the_grace_is_over() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let (_peer, id) = desk.caller(address);
    desk.reactor.shutdown(50 * MS);
    desk.reactor.run().expect("the loop ends by itself");
    assert_eq!(desk.farewells(id), [Closed::Shutdown]);
}

fn full(most: usize) -> (Desk, std::net::SocketAddr) {
    let mut desk = Desk::with(Limits { connections: most, ..Limits::default() });
    let address = desk.listen();
    (desk, address)
}

#[test]
fn s3_the_first_n_are_let_in_and_the_rest_are_told_and_closed() {
    let (mut desk, address) = full(3);
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::call(address)).collect();
    desk.until("all have been seen", |desk| desk.opened().len() + desk.refused().len() == 8);
    assert_eq!(desk.opened().len(), 3);
    for refused in &mut peers[3..] {
        assert_eq!(desk.hear_end(refused), (b"server busy\n".to_vec(), End::Clean));
    }
    peers[0].say("inside");
    let first = desk.opened()[0];
    desk.until("those inside go on", |desk| desk.heard(first) == b"inside");
}

#[test]
fn s4_a_slot_that_is_freed_can_be_used_again() {
    let (mut desk, address) = full(1);
    for _ in 0..20 {
        let (peer, id) = desk.caller(address);
        drop(peer);
        desk.until_closed(id);
    }
    assert!(desk.refused().is_empty());
}

#[test]
fn s5_whoever_is_dropped_is_named_with_both_addresses_and_the_reason() {
    let (mut desk, address) = full(1);
    let (_inside, _) = desk.caller(address);
    let late = Peer::call(address);
    desk.until("it is refused", |desk| !desk.refused().is_empty());
    let refused = desk.refused().remove(0);
    assert_eq!(refused.peer.inet(), late.stream.local_addr().ok());
    assert_eq!((refused.at.inet(), refused.why), (Some(address), Refusal::Full));
}

#[test]
fn s6_all_connections_can_be_reset_at_once() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let mut peers: Vec<Peer> = (0..10).map(|_| desk.caller(address).0).collect();
    let mut sockets = desk.reactor.sockets();
    for id in sockets.ids() {
        sockets.get(id).expect("it is there").abort();
    }
    for peer in &mut peers {
        assert_eq!(desk.hear_end(peer), (Vec::new(), End::Reset));
    }
    assert_eq!(desk.reactor.sockets().len(), 0);
}

#[test]
fn s7_paused_on_connect_a_socket_delivers_nothing_until_it_is_resumed() {
    let mut desk = Desk::new().on_open(|socket| socket.pause());
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say("patience");
    desk.turn_for(50 * MS);
    assert_eq!((desk.heard(id), desk.with_socket_of(id, |socket| socket.bytes_in())), (vec![], 0));
    desk.with_socket_of(id, |socket| socket.resume());
    desk.until("it is delivered", |desk| desk.heard(id) == b"patience");
}

#[test]
fn s8_a_service_that_gives_up_on_one_connection_closes_only_that_one() {
    let mut desk = Desk::new().on_data(|socket, input| match input.take_all() {
        b"bad" => socket.close_as(Closed::Malformed),
        good => socket.send(good),
    });
    let address = desk.listen();
    let (mut good, _) = desk.caller(address);
    let (mut bad, id) = desk.caller(address);
    bad.say("bad");
    assert_eq!(desk.hear_end(&mut bad), (vec![], End::Clean));
    drop(bad);
    assert_eq!(desk.until_closed(id), Closed::Malformed);
    good.say("good");
    assert_eq!(desk.hear(&mut good, 4), b"good");
}

#[test]
fn s9_a_hundred_and_fifty_connections_of_forty_kilobytes_each_arrive_whole() {
    let mut desk = Desk::with_socket(SocketLimits { read_pace: None, ..SocketLimits::default() });
    let address = desk.listen();
    let mut peers: Vec<(Peer, _)> = (0..150).map(|_| desk.caller(address)).collect();
    for (n, (peer, _)) in peers.iter_mut().enumerate() {
        peer.say(vec![n as u8; 40 * 1024]);
        peer.finish();
    }
    for (n, (_, id)) in peers.iter().enumerate() {
        assert_eq!(desk.until_closed(*id), Closed::Finished);
        assert!(desk.heard(*id) == vec![n as u8; 40 * 1024], "connection {n}");
        assert_eq!(desk.told(Told::End(*id)), 1);
    }
    // Everybody is known to have come from one address; a guard would have seen it.
    desk.reactor.guard(desk.service, Guard { per_address: Some(1), ..Guard::default() });
    let (_one, _) = desk.caller(address);
    let _two = Peer::call(address);
    desk.until("the second is one too many", |desk| desk.refused().len() == 1);
    assert_eq!(desk.refused()[0].why, Refusal::PerAddress);
}
