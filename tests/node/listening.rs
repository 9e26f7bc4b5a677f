//! L: listen, bind, rebind. Nine scenarios.

use std::io::ErrorKind;
use std::net::TcpListener;

use tidemill::{ListenOptions, Reactor};

use crate::fixture::{Event, Fixture, Peer};

#[test]
fn l1_an_address_in_use_is_an_error_of_the_second_listener_only() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let error = fixture.reactor.listen(address, fixture.service).expect_err("it is taken");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    fixture.connect(address);
}

#[test]
fn l2_after_a_failed_listen_another_address_works() {
    let mut fixture = Fixture::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    fixture.reactor.listen(address, fixture.service).expect_err("it is taken");
    let free = fixture.listen();
    fixture.connect(free);
}

#[test]
fn l3_one_service_can_listen_in_several_places_at_once() {
    let mut fixture = Fixture::new();
    let places = [fixture.listen(), fixture.listen(), fixture.listen()];
    for place in places {
        fixture.connect(place);
    }
    assert_eq!(fixture.opened().len(), 3);
}

#[test]
fn l4_a_closed_listener_has_no_address_and_its_port_can_be_listened_on_again() {
    let mut fixture = Fixture::new();
    let (listener, address) = fixture.listen_with(&ListenOptions::default());
    let (mut peer, _) = fixture.connect(address);
    assert!(fixture.reactor.close_listener(listener) && !fixture.reactor.close_listener(listener));
    assert_eq!(fixture.reactor.local_addr(listener), None);
    fixture
        .reactor
        .listen(address, fixture.service)
        .expect("the port is free, although a connection is open");
    fixture.connect(address);
    peer.send("still here");
    let first = fixture.opened()[0];
    fixture.until("the old connection still works", |fixture| fixture.received(first) == b"still here");
}

#[test]
fn l5_port_zero_picks_a_free_port_that_can_be_read() {
    let mut fixture = Fixture::new();
    let (one, other) = (fixture.listen(), fixture.listen());
    assert!(one.port() != 0 && other.port() != 0 && one != other);
    fixture.connect(one);
}

#[test]
fn l6_an_invalid_address_is_refused_without_a_system_call() {
    let mut fixture = Fixture::new();
    for wrong in ["127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:http", "127.0.0.1", ":80", "300.0.0.1:80"] {
        let error = fixture.reactor.listen(wrong, fixture.service).expect_err(wrong);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong}: {error}");
        assert!(error.to_string().contains(wrong), "{error}");
    }
}

#[test]
fn l7_a_listener_on_ipv6_accepts_ipv4_or_not_as_configured() {
    let mut fixture = Fixture::new();
    let mut listen = |only| {
        let options = ListenOptions { ipv6_only: Some(only), ..ListenOptions::default() };
        let listener = fixture.reactor.listen_with("[::]:0", fixture.service, &options).expect("a listener");
        fixture.reactor.local_addr(listener).and_then(|address| address.port()).expect("a port")
    };
    let (only_six, both) = (listen(true), listen(false));
    assert!(TcpListener::bind(("127.0.0.1", only_six)).is_ok(), "version four is left to others");
    assert!(TcpListener::bind(("127.0.0.1", both)).is_err());
    let _four = fixture.connect(([127, 0, 0, 1], both).into());
    let _six = fixture.connect(format!("[::1]:{only_six}").parse().expect("an address"));
    let peers: Vec<String> = fixture
        .opened()
        .into_iter()
        .map(|id| {
            fixture.with_socket_of(id, |socket| socket.peer_addr().ip().expect("an address").to_string())
        })
        .collect();
    assert_eq!(peers, ["::ffff:127.0.0.1", "::1"]);
}

#[test]
fn l8_two_reactors_can_share_a_port_if_both_want_to() {
    let shared = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let (mut one, mut other) = (Fixture::new(), Fixture::new());
    let (_, address) = one.listen_with(&shared);
    other.reactor.listen(address, other.service).expect_err("both must want to");
    other.reactor.listen_with(address, other.service, &shared).expect("a second listener");
    let _peers: Vec<Peer> = (0..64).map(|_| Peer::connect(address)).collect();
    one.until("all are accepted by either one", |one| {
        other.reactor.turn(Some(std::time::Duration::ZERO)).expect("a turn");
        one.opened().len() + other.opened().len() == 64
    });
    assert!(!one.opened().is_empty() && !other.opened().is_empty(), "the kernel spreads them");
}

#[test]
fn l9_an_adopted_listener_works_like_any_other() {
    let mut fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let early = Peer::connect(address);
    let adopted =
        fixture.reactor.adopt(listener, fixture.service, &ListenOptions::default()).expect("it is adopted");
    assert_eq!(fixture.reactor.local_addr(adopted).and_then(|address| address.inet()), Some(address));
    fixture.until("an earlier connect is served too", |fixture| fixture.opened().len() == 1);
    assert_eq!(fixture.count(Event::Open(fixture.opened()[0])), 1, "each is announced once");
    drop(early);
    // A service of another reactor is unknown here.
    let mut stranger = Reactor::new(tidemill::Limits::default()).expect("a reactor");
    assert!(stranger.listen("127.0.0.1:0", fixture.service).is_err());
}
