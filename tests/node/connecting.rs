//! C: the life of a dialed connection. Twelve scenarios.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use tidemill::{Backoff, Closed, DialOptions, SocketLimits, State};

use crate::desk::{BlackHole, Desk, End, Host, MS, Told, nobody};

#[test]
fn c1_what_is_sent_before_connecting_is_queued_and_arrives_once() {
    let mut desk = Desk::new().on_open(|socket| {
        socket.send(b"hello ");
        socket.send(b"world");
        assert_eq!((socket.queued(), socket.bytes_out()), (11, 0));
    });
    let host = Host::new();
    let id = desk.dial(host.address());
    let mut peer = host.answer(&mut desk);
    assert_eq!(desk.hear(&mut peer, 11), b"hello world");
    desk.turn_for(20 * MS);
    peer.listen();
    assert!(peer.heard.is_empty(), "and not twice");
    assert_eq!(desk.with_socket_of(id, |socket| (socket.queued(), socket.bytes_out())), (0, 11));
}

#[test]
fn c2_finishing_before_connecting_is_honoured_behind_what_was_sent() {
    let mut desk = Desk::new().on_open(|socket| {
        socket.send(b"bye");
        socket.finish();
    });
    let host = Host::new();
    let id = desk.dial(host.address());
    let mut peer = host.answer(&mut desk);
    assert_eq!(desk.hear_end(&mut peer), (b"bye".to_vec(), End::Clean));
    drop(peer);
    assert_eq!(desk.until_closed(id), Closed::Finished);
}

#[test]
fn c3_a_dial_that_is_called_off_before_it_began_is_silent() {
    let mut desk = Desk::new();
    let id = desk.dial(Host::new().address());
    desk.with_socket_of(id, |socket| socket.close());
    desk.turn_for(20 * MS);
    assert_eq!((desk.all_told(), desk.reactor.sockets().len()), (vec![], 0));
}

#[test]
fn c4_a_dial_that_is_called_off_while_its_name_is_looked_up_ends_once() {
    let mut desk = Desk::new();
    let (let_go, stuck) = std::sync::mpsc::channel::<()>();
    let stuck = std::sync::Mutex::new(stuck);
    desk.reactor.look_up_with(move |_, _| {
        let _ = stuck.lock().map(|stuck| stuck.recv());
        Ok(vec![nobody()])
    });
    let id = desk.dial("a.example:80");
    desk.until("it is being looked up", |desk| desk.told(Told::Open(id)) == 1);
    assert_eq!(desk.with_socket_of(id, |socket| socket.state()), State::Resolving);
    desk.with_socket_of(id, |socket| socket.close());
    assert_eq!(desk.until_closed(id), Closed::Local);
    drop(let_go);
    desk.turn_for(50 * MS);
    assert_eq!(desk.farewells(id).len(), 1, "a late answer is nobody's");
}

#[test]
fn c5_a_dial_that_is_called_off_while_it_connects_ends_once() {
    let mut desk = Desk::new();
    let hole = BlackHole::on("127.0.0.1");
    let id = desk.dial(hole.address());
    desk.turn_for(20 * MS);
    assert_eq!(desk.with_socket_of(id, |socket| socket.state()), State::Connecting);
    desk.with_socket_of(id, |socket| socket.abort());
    assert_eq!(desk.until_closed(id), Closed::Aborted);
    desk.turn_for(20 * MS);
    assert_eq!(desk.farewells(id).len(), 1);
}

#[test]
fn c6_a_connection_that_is_closed_as_soon_as_it_is_connected_ends_once() {
    let mut desk = Desk::new().on_connected(|socket| socket.close());
    let host = Host::new();
    let id = desk.dial(host.address());
    let mut peer = host.answer(&mut desk);
    assert_eq!(desk.hear_end(&mut peer), (vec![], End::Clean));
    drop(peer);
    assert_eq!(desk.until_closed(id), Closed::Local);
    assert_eq!((desk.told(Told::Connected(id)), desk.farewells(id).len()), (1, 1));
}

#[test]
fn c7_another_thread_can_call_a_dial_off() {
    let mut desk = Desk::new();
    let hole = BlackHole::on("127.0.0.1");
    let id = desk.dial(hole.address());
    let handle = desk.reactor.handle();
    std::thread::spawn(move || handle.post(move |sockets| assert!(sockets.hang_up(id))))
        .join()
        .unwrap()
        .unwrap();
    desk.turn_for(20 * MS);
    assert_eq!(desk.reactor.sockets().len(), 0);
}

#[test]
fn c8_fifty_reconnects_follow_each_other() {
    let mut desk = Desk::new().on_connected(|socket| socket.send(b"again"));
    let host = Host::new();
    let backoff = Backoff { first: MS, most: 2 * MS };
    let options = DialOptions { reconnect: Some(backoff), ..DialOptions::default() };
    desk.reactor.dial_with(host.address(), desk.service, options).expect("a slot");
    for _ in 0..50 {
        let mut peer = host.answer(&mut desk);
        assert_eq!(desk.hear(&mut peer, 5), b"again");
    }
    assert!(desk.opened().len() >= 50);
    let last = *desk.opened().last().expect("many");
    desk.until("it ends", |desk| desk.closed(last).is_some());
    assert!(desk.reactor.sockets().hang_up(last), "one more is waiting, and is called off");
    desk.turn_for(30 * MS);
    assert_eq!(desk.reactor.sockets().len(), 0);
}

#[test]
fn c9_a_connect_that_takes_too_long_ends_at_its_own_time_and_not_before() {
    let mut desk = Desk::new();
    let hole = BlackHole::on("127.0.0.1");
    let options = DialOptions { timeout: Some(300 * MS), ..DialOptions::default() };
    let begun = Instant::now();
    let id = desk.reactor.dial_with(hole.address(), desk.service, options).expect("a slot");
    assert_eq!(desk.until_closed(id), Closed::ConnectTimeout);
    let took = begun.elapsed();
    assert!(took >= 300 * MS && took < 800 * MS, "{took:?}");
    assert_eq!(desk.failure(id), format!("cannot connect to {}: no answer in time", hole.address()));
}

#[test]
fn c10_a_deadline_that_has_been_met_has_no_effect_later() {
    let mut desk = Desk::with_socket(SocketLimits { connect: Some(100 * MS), ..SocketLimits::default() });
    let host = Host::new();
    let id = desk.dial(host.address());
    let mut peer = host.answer(&mut desk);
    desk.turn_for(250 * MS);
    peer.say("still connected");
    desk.until("it is heard", |desk| desk.heard(id) == b"still connected");
}

#[test]
fn c11_paused_before_it_connects_a_socket_holds_its_data_back() {
    let mut desk = Desk::new().on_open(|socket| socket.pause());
    let host = Host::new();
    let id = desk.dial(host.address());
    let mut peer = host.answer(&mut desk);
    peer.say("early");
    desk.turn_for(50 * MS);
    assert!(desk.told(Told::Connected(id)) == 1 && desk.heard(id).is_empty());
    desk.with_socket_of(id, |socket| socket.resume());
    desk.until("it is delivered", |desk| desk.heard(id) == b"early");
}

#[test]
fn c12_the_states_follow_each_other_and_dialing_inside_callbacks_works() {
    let states = Rc::new(RefCell::new(Vec::new()));
    let (opened, connected, ended) = (states.clone(), states.clone(), states.clone());
    let mut desk = Desk::new()
        .on_open(move |socket| opened.borrow_mut().push(socket.state()))
        .on_connected(move |socket| {
            connected.borrow_mut().push(socket.state());
            socket.finish();
            connected.borrow_mut().push(socket.state());
        })
        .on_end(move |socket| {
            ended.borrow_mut().push(socket.state());
            if let Some(to) = socket.peer_addr().inet() {
                socket.dial(to).expect("a slot");
            }
        });
    let host = Host::new();
    desk.dial(host.address());
    let peer = host.answer(&mut desk);
    drop(peer);
    let _second = host.answer(&mut desk);
    use State::{Closing, Connecting, Open, ReadOnly};
    assert_eq!(states.borrow()[..5], [Connecting, Open, ReadOnly, Closing, Connecting]);
}
