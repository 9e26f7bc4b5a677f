//! A: addresses and identity. Three scenarios.

use tidemill::{Address, DialOptions, Origin};

use crate::desk::{Desk, Host, Told, nobody};

#[test]
fn a1_each_end_knows_both_addresses_and_they_mirror_each_other() {
    let mut desk = Desk::new();
    let (dialed, accepted) = desk.both_ends();
    let mut of = |id| {
        desk.with_socket_of(id, |socket| (socket.local_addr(), Some(socket.peer_addr()), socket.origin()))
    };
    let ((local, peer, origin), (other_local, other_peer, other_origin)) = (of(dialed), of(accepted));
    assert_eq!((&local, &peer), (&other_peer, &other_local));
    assert!(local.is_some() && peer.is_some() && local != peer);
    assert_eq!((origin, other_origin), (Origin::Dialed { by: None }, Origin::Accepted));
    // A listener on every address of the machine finds out for each connection to which of them it came.
    let listener = desk.reactor.listen("0.0.0.0:0", desk.service).expect("a listener");
    let mut address = desk.address(listener);
    address.set_ip([127, 0, 0, 9].into());
    let (_peer, id) = desk.caller(address);
    assert_eq!(desk.with_socket_of(id, |socket| socket.local_addr()), Some(Address::Inet(address)));
}

#[test]
fn a2_addresses_are_kept_after_the_end_and_there_is_no_local_one_before_connecting() {
    let mut desk = Desk::new().on_open(|socket| {
        if socket.is_connecting() {
            assert_eq!(socket.local_addr(), None);
        }
    });
    let address = desk.listen();
    let (peer, id) = desk.caller(address);
    let theirs = peer.stream.local_addr().expect("an address");
    drop(peer);
    desk.until_closed(id);
    let departed = desk.departed(id);
    assert_eq!(
        (departed.peer.inet(), departed.local.and_then(|local| local.inet())),
        (Some(theirs), Some(address))
    );
    let id = desk.dial(nobody());
    desk.until_closed(id);
    assert_eq!((desk.departed(id).peer.inet(), desk.departed(id).local), (Some(nobody()), None));
}

#[test]
fn a3_the_local_address_and_port_to_call_from_can_be_chosen() {
    let mut desk = Desk::new();
    let host = Host::new();
    let free = std::net::TcpListener::bind("127.0.0.5:0").and_then(|free| free.local_addr()).expect("a port");
    for local in ["127.0.0.4:0".parse().expect("an address"), free] {
        let options = DialOptions { local: Some(local), ..DialOptions::default() };
        let id = desk.reactor.dial_with(host.address(), desk.service, options).expect("a slot");
        let peer = host.answer(&mut desk);
        desk.until("it is connected", |desk| desk.told(Told::Connected(id)) == 1);
        let seen = peer.stream.peer_addr().expect("an address");
        assert_eq!(desk.with_socket_of(id, |socket| socket.local_addr()), Some(Address::Inet(seen)));
        assert!(seen.ip() == local.ip() && (local.port() == 0 || seen == local), "{seen} for {local}");
        peer.reset();
        desk.until_closed(id);
    }
}
