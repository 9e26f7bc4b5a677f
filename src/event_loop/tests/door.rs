//! Who comes in, who is told to go, and what happens when descriptors run out.

use super::*;

#[test]
fn accepts_are_budgeted_and_carried_over() {
    let mut house = Plan::default().build(echo);
    let peers: Vec<Peer> = (0..100).map(|_| house.script.connect()).collect();
    house.turn();
    assert_eq!(house.turns.table.connections(), 16);
    house.settle();
    assert_eq!(house.turns.table.connections(), peers.len());
}

#[test]
fn over_the_cap_everyone_is_told_and_the_cap_is_exact() {
    let mut house = full_house(3, Overflow::Refuse);
    let peers: Vec<Peer> = (0..5).map(|_| house.script.connect()).collect();
    house.script.feed(peers[4], &[b'x'; 5_000]);
    house.settle();
    assert_eq!(house.turns.table.connections(), 3);
    for &refused in &peers[3..] {
        assert_eq!(house.heard(refused), "server busy\n");
        assert!(house.script.heard_end(refused));
        assert_eq!(house.script.gone(refused), None, "it lingers, so that the reply is heard");
        house.script.end(refused);
    }
    house.settle();
    for &refused in &peers[3..] {
        assert_eq!(house.script.gone(refused), Some(Gone::Closed), "without unread input there is no reset");
    }
    assert_eq!((house.turns.table.stats.refused, house.turns.table.refusals), (2, 0));
    let met = house.told().iter().filter(|told| matches!(told, Told::Open(_))).count();
    assert_eq!(met, 3, "a service never meets those who are refused");
    assert_eq!(house.told().len() - met, 2, "but hears of them");
}

#[test]
fn a_freed_slot_serves_the_next_in_the_same_turn() {
    let mut house = full_house(1, Overflow::Wait);
    let (first, _) = house.guest();
    let waiting = house.script.connect();
    house.settle();
    assert_eq!(house.script.backlog(), 1, "it waits in the backlog");
    assert!(!house.turns.has_work(), "and costs nothing while it waits");
    house.script.end(first);
    house.settle();
    assert_eq!(house.script.backlog(), 0);
    house.script.feed(waiting, b"finally");
    house.settle();
    assert_eq!(house.heard(waiting), "finally");
}

#[test]
fn when_too_many_are_being_refused_the_rest_wait_their_turn() {
    let mut house = full_house(1, Overflow::Refuse);
    house.guest();
    let stubborn: Vec<Peer> = (0..10).map(|_| house.script.connect()).collect();
    house.settle();
    assert_eq!((house.turns.table.refusals, house.script.backlog()), (4, 6));
    house.pass(Duration::from_millis(1_100));
    assert_eq!(house.turns.table.refusals, 4, "those who do not go are let go of after a second");
    house.pass(Duration::from_secs(3));
    assert!(stubborn.iter().all(|&peer| house.heard(peer) == "server busy\n"));
    assert_eq!(house.turns.table.refusals, 0);
}

#[test]
fn accept_errors_of_one_peer_do_not_stop_the_next() {
    let mut house = Plan::default().build(echo);
    for errno in [libc::ECONNABORTED, libc::EPROTO, libc::EPERM, libc::EINTR] {
        house.script.fail_accept(std::io::Error::from_raw_os_error(errno).into());
    }
    let (peer, _) = house.guest();
    house.script.feed(peer, b"x");
    house.settle();
    assert_eq!(house.heard(peer), "x");
    assert_eq!(house.turns.table.stats.accept_aborted, 4);
}

#[test]
fn a_broken_listener_is_closed_and_its_connections_live_on() {
    let mut house = Plan::default().build(echo);
    let (peer, _) = house.guest();
    house.script.fail_accept(std::io::Error::from_raw_os_error(libc::EBADF).into());
    house.script.connect();
    house.settle();
    assert!(!house.script.is_listening());
    house.script.feed(peer, b"still here");
    house.settle();
    assert_eq!(house.heard(peer), "still here");
}

#[test]
fn a_stream_that_cannot_be_watched_is_closed_alone() {
    let mut house = Plan::default().build(echo);
    house.script.fail_register(1);
    let unlucky = house.script.connect();
    let (lucky, _) = house.guest();
    house.script.feed(lucky, b"x");
    house.settle();
    assert_eq!((house.heard(lucky).as_str(), house.script.gone(unlucky)), ("x", Some(Gone::Closed)));
    assert_eq!(house.told().iter().filter(|told| matches!(told, Told::Open(_))).count(), 1);
}

/// A house whose process can open `n` descriptors in all; the listener and the reserve are two of them.
fn with_descriptors(n: usize, overflow: Overflow) -> House {
    let house = full_house(1_000, overflow);
    house.script.descriptors(n);
    house
}

#[test]
fn without_descriptors_those_who_may_wait_wait_and_are_served_when_some_come_free() {
    let mut house = with_descriptors(5, Overflow::Wait);
    let peers: Vec<Peer> = (0..10).map(|_| house.script.connect()).collect();
    house.settle();
    assert_eq!((house.turns.table.connections(), house.script.backlog()), (3, 7));
    assert!(!house.turns.has_work(), "saturation must not spin");
    house.script.feed(peers[0], b"still served");
    house.settle();
    assert_eq!(house.heard(peers[0]), "still served");
    house.script.end(peers[0]);
    house.settle();
    assert_eq!(house.script.backlog(), 6, "an own close is noticed at once, without an event");
}

#[test]
fn without_descriptors_the_door_looks_again_by_itself() {
    let mut house = with_descriptors(5, Overflow::Wait);
    (0..10).for_each(|_| _ = house.script.connect());
    house.settle();
    let before = house.script.calls().accepts;
    house.pass(Duration::from_secs(5));
    let tries = house.script.calls().accepts - before;
    assert!((8..=20).contains(&tries), "{tries} tries in five seconds");
    house.script.descriptors(100);
    house.pass(Duration::from_millis(520));
    assert_eq!(house.script.backlog(), 0, "descriptors that others freed are found within half a second");
}

#[test]
fn without_descriptors_those_who_may_not_wait_are_let_go_of_by_the_reserve() {
    let mut house = with_descriptors(5, Overflow::Refuse);
    let peers: Vec<Peer> = (0..10).map(|_| house.script.connect()).collect();
    house.settle();
    assert_eq!((house.turns.table.connections(), house.script.backlog()), (3, 0));
    assert_eq!(house.turns.table.stats.shed, 7);
    assert!(peers[3..].iter().all(|&peer| house.script.gone(peer) == Some(Gone::Closed)));
    assert_eq!(house.script.open_descriptors(), 5, "the reserve is held again");
}

#[test]
fn no_descriptor_on_an_empty_backlog_ends_the_loop_of_accepts() {
    let mut house = with_descriptors(5, Overflow::Refuse);
    (0..3).for_each(|_| _ = house.script.connect());
    house.settle();
    house.script.event(crate::base::id::Token::listener(0));
    let before = house.script.calls().accepts;
    house.settle();
    assert!(house.script.calls().accepts - before <= 3, "EMFILE says nothing about who waits");
    assert!(!house.turns.has_work());
}
