//! O: socket options. Four scenarios. They read the options from the kernel through a second descriptor.

use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use tidemill::{ConnId, DialOptions, KeepAlive, ListenOptions};

use crate::fixture::{Event, Fixture, Peer, TestServer};

/// A second descriptor for the socket of this process with these two addresses.
#[track_caller]
fn of_kernel(fixture: &mut Fixture, id: ConnId) -> OwnedFd {
    let (local, peer) = fixture.with_socket_of(id, |socket| {
        let local = socket.local_addr().and_then(|local| local.inet()).expect("a local end");
        (local, socket.peer_addr().inet().expect("a peer"))
    });
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty()).expect("a handle of this process");
    let numbers = std::fs::read_dir("/proc/self/fd").expect("ours");
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse::<RawFd>().ok());
    let is_it = |copy: &OwnedFd| {
        let socket = SockRef::from(copy);
        let inet = |end: std::io::Result<socket2::SockAddr>| end.ok().and_then(|end| end.as_socket());
        let ends: (Option<SocketAddr>, Option<SocketAddr>) =
            (inet(socket.local_addr()), inet(socket.peer_addr()));
        ends == (Some(local), Some(peer))
    };
    // Other tests close descriptors meanwhile.
    let mut copies =
        numbers.filter_map(|number| pidfd_getfd(&ourselves, number, PidfdGetfdFlags::empty()).ok());
    copies.find(is_it).expect("the reactor's own descriptor")
}

#[test]
fn o1_options_of_a_listener_apply_to_all_accepted_connections() {
    let mut fixture = Fixture::new();
    let probes =
        KeepAlive { idle: Duration::from_secs(7), interval: Some(Duration::from_secs(3)), count: Some(4) };
    let quiet = ListenOptions { nodelay: false, ..ListenOptions::default() };
    let probing =
        ListenOptions { keep_alive: Some(probes), unsent: Some(77_000), ..ListenOptions::default() };
    for (options, nodelay, keeps_alive) in [(&quiet, false, false), (&probing, true, true)] {
        let (_, address) = fixture.listen_with(options);
        let (_peer, id) = fixture.connect(address);
        let copy = of_kernel(&mut fixture, id);
        let socket = SockRef::from(&copy);
        assert_eq!(socket.tcp_nodelay().expect("an option"), nodelay);
        assert_eq!(socket.keepalive().expect("an option"), keeps_alive);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_notsent_lowat().ok(), options.unsent);
        if keeps_alive {
            assert_eq!(socket.tcp_keepalive_time().expect("an option"), Duration::from_secs(7));
            assert_eq!(socket.tcp_keepalive_interval().expect("an option"), Duration::from_secs(3));
            assert_eq!(socket.tcp_keepalive_retries().expect("an option"), 4);
        }
    }
}

#[test]
fn o2_options_set_before_connecting_or_in_the_dial_apply_from_the_start() {
    let mut fixture = Fixture::new().on_open(|socket| {
        socket.set_tos(0xb8);
        socket.set_user_timeout(Some(Duration::from_secs(30)));
        socket.set_nodelay(false);
        socket.set_nodelay(false);
    });
    let server = TestServer::new();
    let options = DialOptions {
        keep_alive: Some(KeepAlive::after(Duration::from_millis(2_500))),
        ..DialOptions::default()
    };
    let id = fixture.reactor.dial_with(server.address(), fixture.service, options).expect("a slot");
    let _peer: Peer = server.accept(&mut fixture);
    fixture.until("it is connected", |fixture| fixture.count(Event::Connected(id)) == 1);
    let copy = of_kernel(&mut fixture, id);
    let socket = SockRef::from(&copy);
    assert_eq!(socket.tos_v4().expect("an option"), 0xb8);
    assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(30)));
    assert!(!socket.tcp_nodelay().expect("an option"));
    assert_eq!(socket.tcp_keepalive_time().expect("an option"), Duration::from_secs(2), "whole seconds");
    assert_eq!(fixture.reactor.stats().options_refused, 0);
}

#[test]
fn o3_options_set_on_an_open_socket_apply_at_the_end_of_the_turn_and_can_be_set_again() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (_peer, id) = fixture.connect(address);
    let copy = of_kernel(&mut fixture, id);
    let socket = SockRef::from(&copy);
    let probes =
        KeepAlive { interval: Some(Duration::from_secs(9)), ..KeepAlive::after(Duration::from_secs(60)) };
    for _ in 0..2 {
        fixture.with_socket_of(id, |socket| {
            socket.set_keep_alive(Some(probes));
            socket.set_nodelay(false);
            socket.set_send_buffer(40_000);
            socket.set_recv_buffer(50_000);
        });
        fixture.reactor.turn(Some(Duration::ZERO)).expect("a turn");
        assert!(socket.keepalive().expect("an option") && !socket.tcp_nodelay().expect("an option"));
        assert_eq!(socket.tcp_keepalive_interval().expect("an option"), Duration::from_secs(9));
        // Linux doubles the value, for its own overhead (socket(7)).
        assert_eq!(socket.send_buffer_size().expect("an option"), 80_000);
        assert_eq!(socket.recv_buffer_size().expect("an option"), 100_000);
    }
    fixture.with_socket_of(id, |socket| {
        socket.set_keep_alive(None);
        socket.set_nodelay(true);
    });
    fixture.reactor.turn(Some(Duration::ZERO)).expect("a turn");
    assert!(!socket.keepalive().expect("an option") && socket.tcp_nodelay().expect("an option"));
}

#[test]
fn o4_the_type_of_service_is_set_for_ipv4_and_ipv6_and_refused_options_are_counted() {
    let mut fixture = Fixture::new();
    let listener = fixture.reactor.listen("[::1]:0", fixture.service).expect("a listener");
    let six = fixture.address(listener);
    let (_peer, id) = fixture.connect(six);
    fixture.with_socket_of(id, |socket| socket.set_tos(0x28));
    fixture.reactor.turn(Some(Duration::ZERO)).expect("a turn");
    let copy = of_kernel(&mut fixture, id);
    assert_eq!(SockRef::from(&copy).tclass_v6().expect("an option"), 0x28);
    // More probes than the kernel allows (127).
    let probes = KeepAlive { count: Some(1_000), ..KeepAlive::after(Duration::from_secs(1)) };
    fixture.with_socket_of(id, |socket| socket.set_keep_alive(Some(probes)));
    fixture.reactor.turn(Some(Duration::ZERO)).expect("a turn");
    assert_eq!((fixture.reactor.stats().options_refused, fixture.closed(id)), (1, None));
}
