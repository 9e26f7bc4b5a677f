//! R: destroy, reset, abort. Eight scenarios.

use std::process::{Command, Stdio};
use std::time::Duration;

use tidemill::{Closed, SocketLimits};

use crate::desk::{Desk, End, Host, MS, Told};

#[test]
fn r1_what_is_sent_after_closing_is_dropped_counted_and_no_event() {
    let mut desk = Desk::new().on_data(|socket, input| {
        input.take_all();
        socket.close();
        socket.send(b"after");
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say("x");
    assert_eq!(desk.hear_end(&mut peer), (vec![], End::Clean));
    drop(peer);
    assert_eq!(desk.until_closed(id), Closed::Local);
    assert_eq!(desk.reactor.stats().sent_too_late, 5);
}

#[test]
fn r2_closing_twice_is_closing_once() {
    let mut desk = Desk::new().on_data(|socket, input| {
        input.take_all();
        socket.close();
        socket.close();
        socket.close_as(Closed::Malformed);
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say("x");
    desk.hear_end(&mut peer);
    drop(peer);
    assert_eq!(desk.until_closed(id), Closed::Local);
    desk.turn_for(20 * MS);
    assert_eq!(desk.farewells(id).len(), 1);
}

#[test]
fn r3_aborting_twice_is_aborting_once_and_the_peer_sees_a_reset() {
    let mut desk = Desk::new().on_data(|socket, input| {
        input.take_all();
        socket.abort();
        socket.abort();
        socket.close();
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say("x");
    assert_eq!(desk.hear_end(&mut peer), (vec![], End::Reset));
    assert_eq!(desk.farewells(id), [Closed::Aborted]);
}

#[test]
fn r4_an_abort_drops_what_is_queued_and_nothing_is_told_afterwards() {
    let mut desk = Desk::new().on_data(|socket, input| {
        socket.send(input.take_all());
        socket.abort();
    });
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    peer.say("never echoed");
    assert_eq!(desk.hear_end(&mut peer), (vec![], End::Reset));
    desk.turn_for(20 * MS);
    assert_eq!(*desk.all_told().last().expect("something"), Told::Closed(id, Closed::Aborted));
}

#[test]
fn r5_a_peers_reset_is_told_as_one_and_a_dialed_peers_too() {
    let mut desk = Desk::new();
    let address = desk.listen();
    let (peer, id) = desk.caller(address);
    peer.reset();
    assert_eq!(desk.until_closed(id), Closed::Reset);
    let host = Host::new();
    let id = desk.dial(host.address());
    let peer = host.answer(&mut desk);
    desk.until("it is connected", |desk| desk.told(Told::Connected(id)) == 1);
    peer.reset();
    assert_eq!(desk.until_closed(id), Closed::Reset);
    assert_eq!(desk.told(Told::End(id)), 0, "a reset is no end");
}

#[test]
fn r6_a_peer_whose_process_is_killed_is_noticed_at_once() {
    let mut desk = Desk::new();
    let address = desk.listen();
    // A shell that connects and waits; its death closes the socket without a word of its own.
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; echo hello >&3; exec sleep 60", address.port());
    let mut child = Command::new("bash").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("a shell");
    desk.until("it says hello", |desk| desk.opened().first().is_some_and(|&id| desk.heard(id) == b"hello\n"));
    let id = desk.opened()[0];
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(matches!(desk.until_closed(id), Closed::Finished | Closed::Reset));
}

#[test]
fn r7_an_abrupt_end_with_64_mib_queued_neither_hangs_nor_loops() {
    const MUCH: usize = 64 << 20;
    let limits = SocketLimits { queue: 2 * MUCH, ..SocketLimits::default() };
    let house = tidemill::Limits { memory: 4 * MUCH, socket: limits, ..tidemill::Limits::default() };
    let mut desk = Desk::with(house).on_open(|socket| socket.send(&vec![0; MUCH]));
    let address = desk.listen();
    let (peer, id) = desk.caller(address);
    desk.turn_for(20 * MS);
    assert!(desk.with_socket_of(id, |socket| socket.queued()) > MUCH / 2);
    peer.reset();
    assert_eq!(desk.until_closed(id), Closed::Reset);
    assert_eq!(desk.reactor.sockets().memory(), 0);
    let turns = desk.reactor.stats().turns;
    desk.reactor.turn(Some(Duration::from_millis(30))).expect("a turn");
    assert_eq!(desk.reactor.stats().turns, turns + 1, "it sleeps again");
}

#[test]
fn r8_closing_others_from_inside_a_callback_tells_each_of_them_once() {
    let mut desk = Desk::new().on_data(|socket, input| {
        input.take_all();
        let own = socket.id();
        let mut all = socket.all();
        for id in all.ids().into_iter().filter(|&id| id != own) {
            all.get(id).expect("it is there").abort();
        }
    });
    let address = desk.listen();
    let mut guests: Vec<_> = (0..5).map(|_| desk.caller(address)).collect();
    // All of them have something to deliver in the turn in which the first closes them.
    for (peer, _) in &mut guests {
        peer.say("x");
    }
    desk.until("one is left", |desk| desk.reactor.sockets().len() == 1);
    desk.turn_for(20 * MS);
    let farewells: usize = guests.iter().map(|(_, id)| desk.farewells(*id).len()).sum();
    assert_eq!(farewells, 4);
    let told = desk.all_told();
    for (_, id) in &guests {
        let last = told.iter().rposition(|told| matches!(told, Told::Data(of) if of == id));
        let gone = told.iter().position(|told| matches!(told, Told::Closed(of, _) if of == id));
        assert!(
            gone.is_none_or(|gone| last.is_none_or(|last| last < gone)),
            "nothing comes after the farewell"
        );
    }
}
