//! T: idle timeouts. Seven scenarios.

use std::time::Instant;

use tidemill::{CloseReason, SocketLimits};

use crate::fixture::{Event, Fixture, MS};

fn idle_after(millis: u32) -> Fixture {
    Fixture::with_socket(SocketLimits { idle: Some(millis * MS), ..SocketLimits::default() })
}

#[test]
fn t1_idle_is_called_only_when_no_byte_has_moved_in_either_direction() {
    let mut fixture = idle_after(1_000).on_idle(|_| {});
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    for n in 0..12 {
        match n % 2 {
            0 => peer.send("x"),
            _ => fixture.with_socket_of(id, |socket| socket.send(b"y")),
        }
        fixture.turn_for(100 * MS);
    }
    assert_eq!(fixture.count(Event::Idle(id)), 0);
    fixture.until("it has been idle", |fixture| fixture.count(Event::Idle(id)) == 1);
}

#[test]
fn t2_each_byte_read_or_written_restarts_the_idle_timeout() {
    let mut fixture = idle_after(600).on_idle(|_| {});
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    for reads in [true, false] {
        fixture.turn_for(100 * MS);
        let moved = Instant::now();
        let before = fixture.count(Event::Idle(id));
        if reads {
            peer.send("x");
            fixture.until("it is read", |fixture| fixture.received(id) == b"x");
        } else {
            fixture.with_socket_of(id, |socket| socket.send(b"y"));
        }
        fixture.until("it has been idle", |fixture| fixture.count(Event::Idle(id)) == before + 1);
        assert!(moved.elapsed() >= 600 * MS, "{:?} after the last byte", moved.elapsed());
    }
}

#[test]
fn t3_an_idle_timeout_that_is_switched_off_never_fires() {
    let mut fixture = idle_after(50).on_open(|socket| socket.set_idle(None));
    let address = fixture.listen();
    let (_peer, id) = fixture.connect(address);
    fixture.turn_for(250 * MS);
    assert_eq!((fixture.count(Event::Idle(id)), fixture.closed(id)), (0, None));
}

#[test]
fn t4_the_idle_timeout_can_be_changed_and_switched_off_in_its_callback() {
    let mut times = 0;
    let mut fixture = idle_after(50).on_idle(move |socket| {
        times += 1;
        socket.set_idle(if times == 1 { Some(100 * MS) } else { None });
    });
    let address = fixture.listen();
    let begun = Instant::now();
    let (_peer, id) = fixture.connect(address);
    fixture.until("it has come twice", |fixture| fixture.count(Event::Idle(id)) == 2);
    assert!(begun.elapsed() >= 150 * MS);
    fixture.turn_for(250 * MS);
    assert_eq!(fixture.count(Event::Idle(id)), 2);
}

#[test]
fn t5_idle_is_called_once_per_timeout() {
    let mut fixture = idle_after(600).on_idle(|_| {});
    let address = fixture.listen();
    let (_peer, id) = fixture.connect(address);
    fixture.until("it has come", |fixture| fixture.count(Event::Idle(id)) == 1);
    fixture.turn_for(50 * MS);
    assert_eq!(fixture.count(Event::Idle(id)), 1);
    fixture.until("it comes again", |fixture| fixture.count(Event::Idle(id)) == 2);
}

#[test]
fn t6_the_idle_timeout_is_never_early_and_at_most_a_little_late() {
    for millis in [1, 10, 99, 250] {
        let mut fixture = idle_after(millis);
        let address = fixture.listen();
        // `open` is called between these two, and a tick is 10 ms.
        let before = Instant::now();
        let (peer, id) = fixture.connect(address);
        let after = Instant::now();
        fixture.until("it is idle", |fixture| fixture.count(Event::Idle(id)) == 1);
        assert!(before.elapsed() >= millis * MS, "{:?} for {millis} ms", before.elapsed());
        assert!(after.elapsed() < millis * MS + 2_000 * MS, "{:?} for {millis} ms", after.elapsed());
        drop(peer);
        assert_eq!(fixture.until_closed(id), CloseReason::Idle);
    }
}

#[test]
fn t7_the_idle_timeout_alone_does_not_close_the_connection() {
    let mut fixture = idle_after(30).on_idle(|socket| socket.send(b"are you there?"));
    let address = fixture.listen();
    let (mut peer, id) = fixture.connect(address);
    assert_eq!(fixture.receive(&mut peer, 28), b"are you there?are you there?");
    assert_eq!(fixture.closed(id), None);
    peer.send("yes");
    fixture.until("it arrives", |fixture| fixture.received(id) == b"yes");
}
