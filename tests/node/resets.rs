//! R: destroy, reset, abort. Eight scenarios.

use std::process::{Command, Stdio};
use std::time::Duration;

use tidemill::{CloseReason, SocketLimits};

use crate::fixture::{End, Event, Fixture, MS, TestServer};

#[test]
fn r1_data_sent_after_closing_is_dropped_and_counted_without_a_callback() {
    let mut fixture = Fixture::new().on_data(|socket, input| {
        input.take_all();
        socket.close();
        socket.send(b"after");
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send("x");
    assert_eq!(fixture.receive_end(&mut peer), (vec![], End::Clean));
    drop(peer);
    assert_eq!(fixture.until_closed(id), CloseReason::Local);
    assert_eq!(fixture.reactor.stats().sent_too_late, 5);
}

#[test]
fn r2_closing_twice_is_closing_once() {
    let mut fixture = Fixture::new().on_data(|socket, input| {
        input.take_all();
        socket.close();
        socket.close();
        socket.close_as(CloseReason::Malformed);
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send("x");
    fixture.receive_end(&mut peer);
    drop(peer);
    assert_eq!(fixture.until_closed(id), CloseReason::Local);
    fixture.turn_for(20 * MS);
    assert_eq!(fixture.close_reasons(id).len(), 1);
}

#[test]
fn r3_aborting_twice_is_aborting_once_and_the_peer_sees_a_reset() {
    let mut fixture = Fixture::new().on_data(|socket, input| {
        input.take_all();
        socket.abort();
        socket.abort();
        socket.close();
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send("x");
    assert_eq!(fixture.receive_end(&mut peer), (vec![], End::Reset));
    assert_eq!(fixture.close_reasons(id), [CloseReason::Aborted]);
}

#[test]
fn r4_an_abort_drops_the_queue_and_gives_no_further_callback() {
    let mut fixture = Fixture::new().on_data(|socket, input| {
        socket.send(input.take_all());
        socket.abort();
    });
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    peer.send("never echoed");
    assert_eq!(fixture.receive_end(&mut peer), (vec![], End::Reset));
    fixture.turn_for(20 * MS);
    assert_eq!(*fixture.events().last().expect("something"), Event::Closed(id, CloseReason::Aborted));
}

#[test]
fn r5_a_peers_reset_is_reported_as_one_and_a_dialed_peers_too() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    let (peer, id) = fixture.connect(address);
    peer.reset();
    assert_eq!(fixture.until_closed(id), CloseReason::Reset);
    let server = TestServer::new();
    let id = fixture.dial(server.address());
    let peer = server.accept(&mut fixture);
    fixture.until("it is connected", |fixture| fixture.count(Event::Connected(id)) == 1);
    peer.reset();
    assert_eq!(fixture.until_closed(id), CloseReason::Reset);
    assert_eq!(fixture.count(Event::End(id)), 0, "a reset is no end");
}

#[test]
fn r6_a_peer_whose_process_is_killed_is_noticed_at_once() {
    let mut fixture = Fixture::new();
    let address = fixture.listen();
    // A shell that connects and waits. When it is killed, the kernel closes its socket.
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; echo hello >&3; exec sleep 60", address.port());
    let mut child = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("a shell");
    fixture.until("it sends hello", |fixture| {
        fixture.opened().first().is_some_and(|&id| fixture.received(id) == b"hello\n")
    });
    let id = fixture.opened()[0];
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(matches!(fixture.until_closed(id), CloseReason::Finished | CloseReason::Reset));
}

#[test]
fn r7_an_abrupt_end_with_64_mib_queued_neither_hangs_nor_loops() {
    const MUCH: usize = 64 << 20;
    let limits = SocketLimits { queue: 2 * MUCH, ..SocketLimits::default() };
    let limits = tidemill::Limits { memory: 4 * MUCH, socket: limits, ..tidemill::Limits::default() };
    let mut fixture = Fixture::with(limits).on_open(|socket| socket.send(vec![0; MUCH]));
    let address = fixture.listen();
    let (peer, id) = fixture.connect(address);
    fixture.turn_for(20 * MS);
    assert!(fixture.with_socket_of(id, |socket| socket.queued()) > MUCH / 2);
    peer.reset();
    assert_eq!(fixture.until_closed(id), CloseReason::Reset);
    assert_eq!(fixture.reactor.sockets().memory(), 0);
    let turns = fixture.reactor.stats().turns;
    fixture.reactor.turn(Some(Duration::from_millis(30))).expect("a turn");
    assert_eq!(fixture.reactor.stats().turns, turns + 1, "it sleeps again");
}

#[test]
fn r8_closing_others_from_a_callback_gives_each_one_closed_callback() {
    let mut fixture = Fixture::new().on_data(|socket, input| {
        input.take_all();
        let own = socket.id();
        let mut all = socket.all();
        for id in all.ids().into_iter().filter(|&id| id != own) {
            all.get(id).expect("it is there").abort();
        }
    });
    let address = fixture.listen();
    let mut peers: Vec<_> = (0..5).map(|_| fixture.connect(address)).collect();
    // All have input to deliver in the turn in which the first one closes them.
    for (peer, _) in &mut peers {
        peer.send("x");
    }
    fixture.until("one is left", |fixture| fixture.reactor.sockets().len() == 1);
    fixture.turn_for(20 * MS);
    let closed: usize = peers.iter().map(|(_, id)| fixture.close_reasons(*id).len()).sum();
    assert_eq!(closed, 4);
    let events = fixture.events();
    for (_, id) in &peers {
        let last = events.iter().rposition(|events| matches!(events, Event::Data(of) if of == id));
        let gone = events.iter().position(|events| matches!(events, Event::Closed(of, _) if of == id));
        assert!(
            gone.is_none_or(|gone| last.is_none_or(|last| last < gone)),
            "nothing follows the last bytes"
        );
    }
}
