//! C: the life of a dialed connection. Twelve scenarios.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use tidemill::{Backoff, CloseReason, DialOptions, SocketLimits, State};

use crate::fixture::{BlackHole, End, Event, Fixture, MS, TestServer, closed_port};

#[test]
fn c1_data_sent_before_connecting_is_queued_and_arrives_once() {
    let mut fixture = Fixture::new().on_open(|socket| {
        socket.send(b"hello ");
        socket.send(b"world");
        assert_eq!((socket.queued(), socket.bytes_out()), (11, 0));
    });
    let server = TestServer::new();
    let id = fixture.dial(server.address());
    let mut peer = server.accept(&mut fixture);
    assert_eq!(fixture.receive(&mut peer, 11), b"hello world");
    fixture.turn_for(20 * MS);
    peer.listen();
    assert!(peer.received.is_empty(), "and not twice");
    assert_eq!(fixture.with_socket_of(id, |socket| (socket.queued(), socket.bytes_out())), (0, 11));
}

#[test]
fn c2_finishing_before_connecting_is_honoured_behind_what_was_sent() {
    let mut fixture = Fixture::new().on_open(|socket| {
        socket.send(b"bye");
        socket.finish();
    });
    let server = TestServer::new();
    let id = fixture.dial(server.address());
    let mut peer = server.accept(&mut fixture);
    assert_eq!(fixture.receive_end(&mut peer), (b"bye".to_vec(), End::Clean));
    drop(peer);
    assert_eq!(fixture.until_closed(id), CloseReason::Finished);
}

#[test]
fn c3_a_dial_cancelled_before_it_starts_gives_no_callback() {
    let mut fixture = Fixture::new();
    let id = fixture.dial(TestServer::new().address());
    fixture.with_socket_of(id, |socket| socket.close());
    fixture.turn_for(20 * MS);
    assert_eq!((fixture.events(), fixture.reactor.sockets().len()), (vec![], 0));
}

#[test]
fn c4_a_dial_cancelled_during_its_lookup_ends_once() {
    let mut fixture = Fixture::new();
    let (let_go, stuck) = std::sync::mpsc::channel::<()>();
    let stuck = std::sync::Mutex::new(stuck);
    fixture.reactor.look_up_with(move |_, _| {
        let _ = stuck.lock().map(|stuck| stuck.recv());
        Ok(vec![closed_port()])
    });
    let id = fixture.dial("a.example:80");
    fixture.until("it is being looked up", |fixture| fixture.count(Event::Open(id)) == 1);
    assert_eq!(fixture.with_socket_of(id, |socket| socket.state()), State::Resolving);
    fixture.with_socket_of(id, |socket| socket.close());
    assert_eq!(fixture.until_closed(id), CloseReason::Local);
    drop(let_go);
    fixture.turn_for(50 * MS);
    assert_eq!(fixture.close_reasons(id).len(), 1, "a late answer is dropped");
}

#[test]
fn c5_a_dial_cancelled_while_connecting_ends_once() {
    let mut fixture = Fixture::new();
    let hole = BlackHole::on("127.0.0.1");
    let id = fixture.dial(hole.address());
    fixture.turn_for(20 * MS);
    assert_eq!(fixture.with_socket_of(id, |socket| socket.state()), State::Connecting);
    fixture.with_socket_of(id, |socket| socket.abort());
    assert_eq!(fixture.until_closed(id), CloseReason::Aborted);
    fixture.turn_for(20 * MS);
    assert_eq!(fixture.close_reasons(id).len(), 1);
}

#[test]
fn c6_a_connection_that_is_closed_as_soon_as_it_is_connected_ends_once() {
    let mut fixture = Fixture::new().on_connected(|socket| socket.close());
    let server = TestServer::new();
    let id = fixture.dial(server.address());
    let mut peer = server.accept(&mut fixture);
    assert_eq!(fixture.receive_end(&mut peer), (vec![], End::Clean));
    drop(peer);
    assert_eq!(fixture.until_closed(id), CloseReason::Local);
    assert_eq!((fixture.count(Event::Connected(id)), fixture.close_reasons(id).len()), (1, 1));
}

#[test]
fn c7_another_thread_can_cancel_a_dial() {
    let mut fixture = Fixture::new();
    let hole = BlackHole::on("127.0.0.1");
    let id = fixture.dial(hole.address());
    let handle = fixture.reactor.handle();
    std::thread::spawn(move || handle.post(move |sockets| assert!(sockets.cancel_dial(id))))
        .join()
        .unwrap()
        .unwrap();
    fixture.turn_for(20 * MS);
    assert_eq!(fixture.reactor.sockets().len(), 0);
}

#[test]
fn c8_fifty_reconnects_follow_each_other() {
    let mut fixture = Fixture::new().on_connected(|socket| socket.send(b"again"));
    let server = TestServer::new();
    let backoff = Backoff { first: MS, max: 2 * MS };
    let options = DialOptions { reconnect: Some(backoff), ..DialOptions::default() };
    fixture.reactor.dial_with(server.address(), fixture.service, options).expect("a slot");
    for _ in 0..50 {
        let mut peer = server.accept(&mut fixture);
        assert_eq!(fixture.receive(&mut peer, 5), b"again");
    }
    assert!(fixture.opened().len() >= 50);
    let last = *fixture.opened().last().expect("many");
    fixture.until("it ends", |fixture| fixture.closed(last).is_some());
    assert!(fixture.reactor.sockets().cancel_dial(last), "one more is waiting, and is called off");
    fixture.turn_for(30 * MS);
    assert_eq!(fixture.reactor.sockets().len(), 0);
}

#[test]
fn c9_a_connect_that_takes_too_long_ends_at_its_timeout_and_not_before() {
    let mut fixture = Fixture::new();
    let hole = BlackHole::on("127.0.0.1");
    let options = DialOptions { timeout: Some(300 * MS), ..DialOptions::default() };
    let begun = Instant::now();
    let id = fixture.reactor.dial_with(hole.address(), fixture.service, options).expect("a slot");
    assert_eq!(fixture.until_closed(id), CloseReason::ConnectTimeout);
    let took = begun.elapsed();
    assert!(took >= 300 * MS && took < 5_000 * MS, "{took:?}");
    assert_eq!(fixture.dial_error(id), format!("cannot connect to {}: no answer in time", hole.address()));
}

#[test]
fn c10_a_deadline_that_has_been_met_has_no_effect_later() {
    let mut fixture =
        Fixture::with_socket(SocketLimits { connect: Some(500 * MS), ..SocketLimits::default() });
    let server = TestServer::new();
    let id = fixture.dial(server.address());
    let mut peer = server.accept(&mut fixture);
    fixture.turn_for(700 * MS);
    peer.send("still connected");
    fixture.until("it arrives", |fixture| fixture.received(id) == b"still connected");
}

#[test]
fn c11_paused_before_it_connects_a_socket_holds_its_data_back() {
    let mut fixture = Fixture::new().on_open(|socket| socket.pause());
    let server = TestServer::new();
    let id = fixture.dial(server.address());
    let mut peer = server.accept(&mut fixture);
    peer.send("early");
    fixture.turn_for(50 * MS);
    assert!(fixture.count(Event::Connected(id)) == 1 && fixture.received(id).is_empty());
    fixture.with_socket_of(id, |socket| socket.resume());
    fixture.until("it is delivered", |fixture| fixture.received(id) == b"early");
}

#[test]
fn c12_the_states_follow_each_other_and_dialing_inside_callbacks_works() {
    let states = Rc::new(RefCell::new(Vec::new()));
    let (opened, connected, ended) = (states.clone(), states.clone(), states.clone());
    let mut fixture = Fixture::new()
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
    let server = TestServer::new();
    fixture.dial(server.address());
    let peer = server.accept(&mut fixture);
    drop(peer);
    let _second = server.accept(&mut fixture);
    use State::{Closing, Connecting, Open, ReadOnly};
    assert_eq!(states.borrow()[..5], [Connecting, Open, ReadOnly, Closing, Connecting]);
}
