//! A: addresses and identity. Three scenarios.

use tidemill::{Address, DialOptions, Origin};

use crate::fixture::{Event, Fixture, TestServer, closed_port};

#[test]
fn a1_each_end_knows_both_addresses_and_they_mirror_each_other() {
    let mut fixture = Fixture::new();
    let (dialed, accepted) = fixture.both_ends();
    let mut of = |id| {
        fixture.with_socket_of(id, |socket| (socket.local_addr(), Some(socket.peer_addr()), socket.origin()))
    };
    let ((local, peer, origin), (other_local, other_peer, other_origin)) = (of(dialed), of(accepted));
    assert_eq!((&local, &peer), (&other_peer, &other_local));
    assert!(local.is_some() && peer.is_some() && local != peer);
    assert_eq!((origin, other_origin), (Origin::Dialed { by: None, after: None }, Origin::Accepted));
    // With a listener on the unspecified address, the local address is determined per connection.
    let listener = fixture.reactor.listen("0.0.0.0:0", fixture.service).expect("a listener");
    let mut address = fixture.address(listener);
    address.set_ip([127, 0, 0, 9].into());
    let (_peer, id) = fixture.connect(address);
    assert_eq!(fixture.with_socket_of(id, |socket| socket.local_addr()), Some(Address::Inet(address)));
}

#[test]
fn a2_addresses_are_kept_after_the_end_and_there_is_no_local_one_before_connecting() {
    let mut fixture = Fixture::new().on_open(|socket| {
        if socket.is_connecting() {
            assert_eq!(socket.local_addr(), None);
        }
    });
    let address = fixture.listen();
    let (peer, id) = fixture.connect(address);
    let theirs = peer.stream.local_addr().expect("an address");
    drop(peer);
    fixture.until_closed(id);
    let info = fixture.closed_info(id);
    assert_eq!((info.peer.inet(), info.local.and_then(|local| local.inet())), (Some(theirs), Some(address)));
    let id = fixture.dial(closed_port());
    fixture.until_closed(id);
    assert_eq!(
        (fixture.closed_info(id).peer.inet(), fixture.closed_info(id).local),
        (Some(closed_port()), None)
    );
}

#[test]
fn a3_the_local_address_and_port_of_a_dial_can_be_chosen() {
    let mut fixture = Fixture::new();
    let server = TestServer::new();
    let free = std::net::TcpListener::bind("127.0.0.5:0").and_then(|free| free.local_addr()).expect("a port");
    for local in ["127.0.0.4:0".parse().expect("an address"), free] {
        let options = DialOptions { local: Some(local), ..DialOptions::default() };
        let id = fixture.reactor.dial_with(server.address(), fixture.service, options).expect("a slot");
        let peer = server.accept(&mut fixture);
        fixture.until("it is connected", |fixture| fixture.count(Event::Connected(id)) == 1);
        let seen = peer.stream.peer_addr().expect("an address");
        assert_eq!(fixture.with_socket_of(id, |socket| socket.local_addr()), Some(Address::Inet(seen)));
        assert!(seen.ip() == local.ip() && (local.port() == 0 || seen == local), "{seen} for {local}");
        peer.reset();
        fixture.until_closed(id);
    }
}
