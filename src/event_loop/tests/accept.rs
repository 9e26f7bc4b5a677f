//! Accepting: which connections are accepted, what refused ones get, and running out of descriptors.

use super::*;
use crate::config::dial::DialOptions;

#[test]
pub(super) fn accepts_are_budgeted_and_carried_over() {
    let mut test = Setup::default().build(echo);
    let peers: Vec<PeerId> = (0..100).map(|_| test.script.connect()).collect();
    test.turn();
    assert_eq!(test.event_loop.table.connections(), 16);
    test.turn_until_quiet();
    assert_eq!(test.event_loop.table.connections(), peers.len());
}

#[test]
fn over_the_connection_cap_every_peer_is_refused_and_the_cap_is_exact() {
    let mut test = at_capacity(3, Overflow::Refuse);
    let peers: Vec<PeerId> = (0..5).map(|_| test.script.connect()).collect();
    test.script.feed(peers[4], &[b'x'; 5_000]);
    test.turn_until_quiet();
    assert_eq!(test.event_loop.table.connections(), 3);
    for &refused in &peers[3..] {
        assert_eq!(test.received(refused), "server busy\n");
        assert!(test.script.received_end(refused));
        assert_eq!(test.script.released(refused), None, "it lingers, so that the reply is heard");
        test.script.end(refused);
    }
    test.turn_until_quiet();
    for &refused in &peers[3..] {
        assert_eq!(
            test.script.released(refused),
            Some(Released::Closed),
            "without unread input there is no reset"
        );
    }
    assert_eq!((test.event_loop.table.cx.stats.refused, test.event_loop.table.refusals), (2, 0));
    let met = test.events().iter().filter(|events| matches!(events, Event::Open(_))).count();
    assert_eq!(met, 3, "a service never meets those who are refused");
    assert_eq!(test.events().len() - met, 2, "but hears of them");
}

#[test]
fn a_freed_slot_serves_the_next_in_the_same_turn() {
    let mut test = at_capacity(1, Overflow::Wait);
    let (first, _) = test.accept();
    let waiting = test.script.connect();
    test.turn_until_quiet();
    assert_eq!(test.script.backlog(), 1, "it waits in the backlog");
    assert!(!test.event_loop.has_work(), "and costs nothing while it waits");
    test.script.end(first);
    test.turn_until_quiet();
    assert_eq!(test.script.backlog(), 0);
    test.script.feed(waiting, b"finally");
    test.turn_until_quiet();
    assert_eq!(test.received(waiting), "finally");
}

#[test]
fn beyond_the_cap_on_refusals_the_rest_wait_in_the_backlog() {
    let mut test = at_capacity(1, Overflow::Refuse);
    test.accept();
    let stubborn: Vec<PeerId> = (0..10).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    assert_eq!((test.event_loop.table.refusals, test.script.backlog()), (4, 6));
    test.advance(Duration::from_millis(1_100));
    assert_eq!(test.event_loop.table.refusals, 4, "those who do not go are let go of after a second");
    test.advance(Duration::from_secs(3));
    assert!(stubborn.iter().all(|&peer| test.received(peer) == "server busy\n"));
    assert_eq!(test.event_loop.table.refusals, 0);
}

#[test]
pub(super) fn accept_errors_of_one_peer_do_not_stop_the_next() {
    let mut test = Setup::default().build(echo);
    for errno in [libc::ECONNABORTED, libc::EPROTO, libc::EPERM, libc::EINTR] {
        test.script.fail_accept(std::io::Error::from_raw_os_error(errno).into());
    }
    let (peer, _) = test.accept();
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "x");
    assert_eq!(test.event_loop.table.cx.stats.accept_aborted, 4);
}

#[test]
fn a_broken_listener_is_closed_and_its_connections_live_on() {
    let mut test = Setup::default().build(echo);
    let (peer, _) = test.accept();
    test.script.fail_accept(std::io::Error::from_raw_os_error(libc::EBADF).into());
    test.script.connect();
    test.turn_until_quiet();
    assert!(!test.script.is_listening());
    test.script.feed(peer, b"still here");
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "still here");
}

#[test]
pub(super) fn a_stream_that_cannot_be_registered_is_closed_alone() {
    let mut test = Setup::default().build(echo);
    test.script.fail_register(1);
    let unlucky = test.script.connect();
    let (lucky, _) = test.accept();
    test.script.feed(lucky, b"x");
    test.turn_until_quiet();
    assert_eq!((test.received(lucky).as_str(), test.script.released(unlucky)), ("x", Some(Released::Closed)));
    assert_eq!(test.events().iter().filter(|events| matches!(events, Event::Open(_))).count(), 1);
}

/// A loop whose process can open `n` descriptors. The listener and the spare descriptor take two of them.
fn with_descriptors(n: usize, overflow: Overflow) -> TestLoop {
    let test = at_capacity(1_000, overflow);
    test.script.descriptors(n);
    test
}

#[test]
pub(super) fn without_descriptors_waiting_connections_are_served_when_some_are_freed() {
    let mut test = with_descriptors(5, Overflow::Wait);
    let peers: Vec<PeerId> = (0..10).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    assert_eq!((test.event_loop.table.connections(), test.script.backlog()), (3, 7));
    assert!(!test.event_loop.has_work(), "saturation must not spin");
    test.script.feed(peers[0], b"still served");
    test.turn_until_quiet();
    assert_eq!(test.received(peers[0]), "still served");
    test.script.end(peers[0]);
    test.turn_until_quiet();
    assert_eq!(test.script.backlog(), 6, "an own close is noticed at once, without an event");
}

#[test]
fn without_descriptors_the_listener_retries_by_itself() {
    let mut test = with_descriptors(5, Overflow::Wait);
    (0..10).for_each(|_| _ = test.script.connect());
    test.turn_until_quiet();
    let before = test.script.calls().accepts;
    test.advance(Duration::from_secs(5));
    let tries = test.script.calls().accepts - before;
    assert!((8..=20).contains(&tries), "{tries} tries in five seconds");
    test.script.descriptors(100);
    test.advance(Duration::from_millis(520));
    assert_eq!(test.script.backlog(), 0, "descriptors that others freed are found within half a second");
}

#[test]
pub(super) fn without_descriptors_excess_connections_are_closed_with_the_spare_descriptor() {
    let mut test = with_descriptors(5, Overflow::Refuse);
    let peers: Vec<PeerId> = (0..10).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    assert_eq!((test.event_loop.table.connections(), test.script.backlog()), (3, 0));
    assert_eq!(test.event_loop.table.cx.stats.shed, 7);
    assert!(peers[3..].iter().all(|&peer| test.script.released(peer) == Some(Released::Closed)));
    assert_eq!(test.script.open_descriptors(), 5, "the reserve is held again");
}

#[test]
fn out_of_descriptors_on_an_empty_backlog_ends_the_accept_loop() {
    let mut test = with_descriptors(5, Overflow::Refuse);
    (0..3).for_each(|_| _ = test.script.connect());
    test.turn_until_quiet();
    test.script.event(crate::base::id::Token::listener(0));
    let before = test.script.calls().accepts;
    test.turn_until_quiet();
    assert!(test.script.calls().accepts - before <= 3, "EMFILE says nothing about who waits");
    assert!(!test.event_loop.has_work());
}

#[test]
pub(super) fn a_paused_listener_without_a_free_slot_lets_the_loop_sleep() {
    let mut test = at_capacity(1, Overflow::Wait);
    test.script.fail_accept(std::io::Error::from_raw_os_error(libc::EMFILE).into());
    test.script.connect();
    test.turn_until_quiet();
    assert_eq!(test.event_loop.table.cx.stats.starved, 1);
    // The last slot is taken by a dial.
    test.event_loop.table.dial(test.service, address().into(), DialOptions::default(), None).unwrap();
    test.turn_until_quiet();
    test.script.finish_dial(test.script.dialed()[0], Ok(()));
    test.turn_until_quiet();
    test.script.advance(SECOND);
    test.turn_until_quiet();
    for _ in 0..10 {
        test.event_loop.turn(None).unwrap();
        assert_ne!(test.script.last_wait(), Some(Some(Duration::ZERO)), "nothing can be accepted");
    }
}
