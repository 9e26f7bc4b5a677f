//! Signals: how a server ends.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::peer::{Peer, free_address};
use crate::server::{Process, Server, TIDEMILL, exclusive, shared, until};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_signal_closes_the_listeners_at_once_and_connections_within_the_drain_time() {
    let _quiet = exclusive();
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start("echo --raw --drain 3s");
        let mut peers: Vec<Peer> = (0..200).map(|_| Peer::connect(server.address)).collect();
        assert!(peers.iter_mut().all(|peer| peer.echoes("before")));
        let at = Instant::now();
        server.signal(signal);
        until("the listener is closed", Duration::from_secs(2), || {
            TcpStream::connect(server.address).is_err()
        });
        // Meanwhile open connections are served as before.
        assert!(peers.iter_mut().all(|peer| peer.echoes("during")));
        assert!(at.elapsed() < Duration::from_secs(3), "the machine is too slow for this test");
        // Half of the peers close; the others get FIN.
        let stay = peers.split_off(100);
        drop(peers);
        for mut peer in stay {
            assert!(peer.receive_all().is_empty());
        }
        let status = server.ended(SOON);
        let took = at.elapsed();
        assert_eq!(status.code(), Some(0));
        assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    }
}

#[test]
fn the_server_exits_as_soon_as_the_last_connection_has_ended() {
    let _others = shared();
    let mut server = Server::start("echo --raw --drain 1h");
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("before"));
    server.signal(Signal::TERM);
    assert!(peer.echoes("during"));
    peer.finish();
    assert!(peer.receive_all().is_empty());
    assert_eq!(server.ended(SOON).code(), Some(0));
}

#[test]
fn a_server_without_connections_ends_at_once() {
    let _others = shared();
    let mut server = Server::start("chat --drain 1h");
    server.signal(Signal::INT);
    assert_eq!(server.ended(SOON).code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let _others = shared();
    let mut server = Server::start("echo --raw --drain 1h");
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("before"));
    server.signal(Signal::TERM);
    until("it drains", SOON, || server.log().contains("shutting down: listeners closed"));
    // One that follows at once counts as the same.
    let mut next = Instant::now();
    until("it ends", SOON, || {
        if next.elapsed() > Duration::from_millis(100) {
            server.signal(Signal::TERM);
            next = Instant::now();
        }
        server.log().contains("second signal: exiting at once")
    });
    assert_eq!(server.ended(SOON).code(), Some(128 + 15));
}

#[test]
fn a_restart_on_the_same_port_succeeds_at_once_twenty_times_in_a_row() {
    // Alone, so that no other test takes the port meanwhile.
    let _quiet = exclusive();
    let mut server = Server::start("echo --raw --drain 0");
    let address = server.address;
    for _ in 0..20 {
        let mut peer = Peer::connect(address);
        assert!(peer.echoes("hello"));
        server.signal(Signal::TERM);
        // The server ends first, so that its side of the connection stays behind in TIME_WAIT.
        assert_eq!(server.ended(SOON).code(), Some(0), "{}", server.log());
        assert!(peer.receive_all().is_empty());
        server = Server::start(&format!("echo --raw --drain 0 --listen {address}"));
    }
}

#[test]
fn a_server_continues_when_its_stdout_is_not_read() {
    let _others = shared();
    let port = free_address();
    let mut command = Command::new(TIDEMILL);
    command.args(["echo", "--raw", "--listen", &port.to_string()]).stderr(Stdio::null());
    let mut process = Process(command.stdout(Stdio::piped()).spawn().expect("it"));
    drop(process.0.stdout.take());
    until("it listens", SOON, || TcpStream::connect(port).is_ok());
    assert!(Peer::connect(port).echoes("hello"));
}
