//! T: idle timeouts. Seven scenarios.

use std::time::Instant;

use tidemill::{Closed, SocketLimits};

use crate::desk::{Desk, MS, Told};

fn idle_after(millis: u32) -> Desk {
    Desk::with_socket(SocketLimits { idle: Some(millis * MS), ..SocketLimits::default() })
}

#[test]
fn t1_it_comes_only_when_nothing_has_moved_either_way() {
    let mut desk = idle_after(150).on_idle(|_| {});
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    for n in 0..12 {
        match n % 2 {
            0 => peer.say("x"),
            _ => desk.with_socket_of(id, |socket| socket.send(b"y")),
        }
        desk.turn_for(60 * MS);
    }
    assert_eq!(desk.told(Told::Idle(id)), 0);
    desk.until("it has been idle", |desk| desk.told(Told::Idle(id)) == 1);
}

#[test]
fn t2_each_byte_read_or_written_begins_a_whole_new_span() {
    let mut desk = idle_after(150).on_idle(|_| {});
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    for reads in [true, false] {
        desk.turn_for(100 * MS);
        let moved = Instant::now();
        let before = desk.told(Told::Idle(id));
        if reads {
            peer.say("x");
            desk.until("it is read", |desk| desk.heard(id) == b"x");
        } else {
            desk.with_socket_of(id, |socket| socket.send(b"y"));
        }
        desk.until("it has been idle", |desk| desk.told(Told::Idle(id)) == before + 1);
        assert!(moved.elapsed() >= 150 * MS, "{:?} after the last byte", moved.elapsed());
    }
}

#[test]
fn t3_switched_off_it_never_comes() {
    let mut desk = idle_after(50).on_open(|socket| socket.set_idle(None));
    let address = desk.listen();
    let (_peer, id) = desk.caller(address);
    desk.turn_for(250 * MS);
    assert_eq!((desk.told(Told::Idle(id)), desk.closed(id)), (0, None));
}

#[test]
fn t4_it_can_be_changed_and_switched_off_in_its_own_callback() {
    let mut times = 0;
    let mut desk = idle_after(50).on_idle(move |socket| {
        times += 1;
        socket.set_idle(if times == 1 { Some(100 * MS) } else { None });
    });
    let address = desk.listen();
    let begun = Instant::now();
    let (_peer, id) = desk.caller(address);
    desk.until("it has come twice", |desk| desk.told(Told::Idle(id)) == 2);
    assert!(begun.elapsed() >= 150 * MS);
    desk.turn_for(250 * MS);
    assert_eq!(desk.told(Told::Idle(id)), 2);
}

#[test]
fn t5_it_comes_once_for_each_span() {
    let mut desk = idle_after(100).on_idle(|_| {});
    let address = desk.listen();
    let (_peer, id) = desk.caller(address);
    desk.until("it has come", |desk| desk.told(Told::Idle(id)) == 1);
    desk.turn_for(50 * MS);
    assert_eq!(desk.told(Told::Idle(id)), 1);
    desk.until("it comes again", |desk| desk.told(Told::Idle(id)) == 2);
}

#[test]
fn t6_it_is_never_early_and_little_late() {
    for millis in [1, 10, 99, 250] {
        let mut desk = idle_after(millis);
        let address = desk.listen();
        let (peer, id) = desk.caller(address);
        let begun = Instant::now();
        desk.until("it is idle", |desk| desk.told(Told::Idle(id)) == 1);
        // The service had met it a moment before this clock was read, and a tick is 10 ms.
        let took = begun.elapsed() + 3 * MS;
        assert!(took >= millis * MS && took < millis * MS + 400 * MS, "{took:?} for {millis} ms");
        drop(peer);
        assert_eq!(desk.until_closed(id), Closed::Idle);
    }
}

#[test]
fn t7_it_does_not_close_by_itself_where_the_service_does_not() {
    let mut desk = idle_after(30).on_idle(|socket| socket.send(b"are you there?"));
    let address = desk.listen();
    let (mut peer, id) = desk.caller(address);
    assert_eq!(desk.hear(&mut peer, 28), b"are you there?are you there?");
    assert_eq!(desk.closed(id), None);
    peer.say("yes");
    desk.until("it is heard", |desk| desk.heard(id) == b"yes");
}
