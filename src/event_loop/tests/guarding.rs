//! Who may come in.

use super::*;
use crate::base::id::ServiceId;
use crate::config::access::Guard;
use crate::config::dial::DialOptions;
use crate::config::rules::Refuse;

const SERVICE: ServiceId = ServiceId(1);

fn guarded(guard: Guard) -> House {
    let mut house = socket_limits(no_idle()).build_with(|socket| socket.send(b"welcome"), echo);
    house.sockets().guard(SERVICE, guard);
    house
}

fn denying(range: &str, how: Refuse) -> Guard {
    let mut guard = Guard::default();
    guard.rules.deny(range.parse().unwrap(), how);
    guard
}

fn call_from(house: &mut House, ip: &str) -> Peer {
    house.script.come_from(ip);
    let peer = house.script.connect();
    house.settle();
    peer
}

#[test]
fn whom_a_rule_denies_is_refused_in_the_way_it_says_and_the_service_hears_of_it() {
    for (how, says, gone) in [
        (Refuse::Reply, "server busy\n", None),
        (Refuse::End, "", None),
        (Refuse::Reset, "", Some(Gone::Reset)),
        (Refuse::Hold, "", None),
    ] {
        let mut house = guarded(denying("192.0.2.0/24", how));
        let peer = call_from(&mut house, "192.0.2.9");
        assert_eq!((house.heard(peer).as_str(), house.script.gone(peer)), (says, gone), "{how:?}");
        assert_eq!(house.script.heard_end(peer), matches!(how, Refuse::Reply | Refuse::End), "{how:?}");
        assert_eq!(house.told(), [Told::Refused(Refusal::Denied)]);
        assert_eq!(house.turns.table.stats.turned_away(Refusal::Denied), 1);
        let mapped = call_from(&mut house, "::ffff:192.0.2.9");
        assert_ne!(house.heard(mapped), "welcome", "mapped into version 6 it is the same address");
        let peer = call_from(&mut house, "198.51.100.1");
        assert_eq!(house.heard(peer), "welcome");
        let hits: Vec<u64> = house.turns.rules(SERVICE).unwrap().iter().map(|rule| rule.hits).collect();
        assert_eq!(hits, [2], "{how:?}");
        house.pass(40 * SECOND);
        assert_eq!((house.turns.table.refusals, house.turns.table.held), (0, 0), "{how:?}");
    }
}

#[test]
fn those_who_are_held_are_few_and_further_ones_are_reset() {
    let limits = Limits { held: 2, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(echo);
    house.sockets().guard(SERVICE, denying("0.0.0.0/0", Refuse::Hold));
    let peers: Vec<Peer> = (0..4).map(|_| call_from(&mut house, "192.0.2.1")).collect();
    let gone: Vec<bool> = peers.iter().map(|&peer| house.script.gone(peer) == Some(Gone::Reset)).collect();
    assert_eq!(gone, [false, false, true, true]);
    house.pass(29 * SECOND);
    assert!(!house.script.heard_end(peers[0]));
    // Nobody waits for them when the house closes.
    let mut closing = Plan::default().build(echo);
    closing.sockets().guard(SERVICE, denying("0.0.0.0/0", Refuse::Hold));
    call_from(&mut closing, "192.0.2.1");
    closing.sockets().shutdown(10 * SECOND);
    closing.settle();
    assert!(closing.turns.is_finished());
    house.pass(2 * SECOND);
    assert!(house.script.heard_end(peers[0]) && house.turns.table.held <= 2);
    house.pass(2 * SECOND);
    assert_eq!(house.turns.table.held, 0);
}

#[test]
fn an_address_has_exactly_as_many_connections_as_it_may() {
    let mut house = guarded(Guard { per_address: Some(3), ..Guard::default() });
    let peers: Vec<Peer> = (0..5).map(|_| call_from(&mut house, "192.0.2.1")).collect();
    let heard: Vec<String> = peers.iter().map(|&peer| house.heard(peer)).collect();
    assert_eq!(heard, ["welcome", "welcome", "welcome", "server busy\n", "server busy\n"]);
    let other = call_from(&mut house, "192.0.2.2");
    assert_eq!(house.heard(other), "welcome");
    house.script.end(peers[0]);
    house.settle();
    let again = call_from(&mut house, "192.0.2.1");
    assert_eq!(house.heard(again), "welcome", "the place is free again");
    let more = call_from(&mut house, "192.0.2.1");
    assert_eq!(house.heard(more), "server busy\n");
}

#[test]
fn who_calls_too_often_is_reset_until_a_second_has_passed() {
    let mut house = guarded(Guard { accept_rate: Some(2), ..Guard::default() });
    let peers: Vec<Peer> = (0..3).map(|_| call_from(&mut house, "192.0.2.1")).collect();
    assert_eq!(peers.iter().filter(|&&peer| house.script.gone(peer) == Some(Gone::Reset)).count(), 1);
    assert_eq!(house.turns.table.stats.turned_away(Refusal::AcceptRate), 1);
    house.pass(520 * MS);
    let peer = call_from(&mut house, "192.0.2.1");
    assert_eq!(house.heard(peer), "welcome");
}

#[test]
fn a_dry_run_lets_everybody_in_and_counts_whom_it_would_not_have() {
    let mut guard = denying("192.0.2.0/24", Refuse::Reset);
    (guard.per_address, guard.dry_run) = (Some(1), true);
    let mut house = guarded(guard);
    for ip in ["192.0.2.1", "198.51.100.1", "198.51.100.1"] {
        let peer = call_from(&mut house, ip);
        assert_eq!(house.heard(peer), "welcome");
    }
    let stats = &house.turns.table.stats;
    assert_eq!((stats.refused, stats.would_refuse), (0, [0, 1, 1, 0, 0]));
}

#[test]
fn the_rules_are_asked_before_the_house_is_looked_at() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(echo);
    house.sockets().guard(SERVICE, denying("192.0.2.0/24", Refuse::End));
    house.guest();
    let denied = call_from(&mut house, "192.0.2.1");
    let late = call_from(&mut house, "198.51.100.1");
    assert_eq!((house.heard(denied).as_str(), house.heard(late).as_str()), ("", "server busy\n"));
    assert_eq!(house.turns.table.stats.refused_for, [1, 1, 0, 0, 0]);
}

#[test]
fn a_guard_can_be_changed_while_people_are_inside() {
    let mut house = guarded(Guard { per_address: Some(2), ..Guard::default() });
    let peers: Vec<Peer> = (0..2).map(|_| call_from(&mut house, "192.0.2.1")).collect();
    house.sockets().guard(SERVICE, Guard { per_address: Some(3), ..Guard::default() });
    let third = call_from(&mut house, "192.0.2.1");
    let fourth = call_from(&mut house, "192.0.2.1");
    assert_eq!(house.script.gone(third), None);
    assert_eq!(house.heard(fourth), "server busy\n", "those who were inside still count");
    peers.iter().for_each(|&peer| house.script.reset(peer));
    house.settle();
    let fifth = call_from(&mut house, "192.0.2.1");
    assert_eq!(house.heard(fifth), "welcome");
}

#[test]
fn whoever_a_trusted_peer_stands_for_is_counted_in_its_place() {
    let mut guard = denying("203.0.113.0/24", Refuse::End);
    guard.per_address = Some(1);
    let mut house = guarded(guard);
    house.script.come_from("192.0.2.1");
    let (_, first) = house.guest();
    let set = |house: &mut House, id, text: &str| {
        house.sockets().get(id).unwrap().set_peer_addr(text.parse().unwrap())
    };
    assert_eq!(set(&mut house, first, "198.51.100.1:7"), Ok(()));
    let (_, second) = house.guest();
    assert_eq!(set(&mut house, second, "198.51.100.1:8"), Err(Refusal::PerAddress));
    assert_eq!(set(&mut house, second, "[::ffff:203.0.113.1]:8"), Err(Refusal::Denied));
    let peer = house.sockets().get(first).unwrap().peer_addr().to_string();
    assert_eq!(peer, "198.51.100.1:7");
    house.sockets().get(first).unwrap().abort();
    house.settle();
    assert_eq!(set(&mut house, second, "198.51.100.1:8"), Ok(()));
}

#[test]
fn a_service_has_a_cap_of_its_own_and_its_listener_can_be_closed_from_inside() {
    for overflow in [Overflow::Refuse, Overflow::Wait] {
        let listen = ListenOptions { overflow, ..ListenOptions::default() };
        let mut house = Plan { listen, ..Plan::default() }.build(echo);
        house.sockets().guard(SERVICE, Guard { connections: Some(2), ..Guard::default() });
        let guests: Vec<Peer> = (0..2).map(|_| house.guest().0).collect();
        let late = call_from(&mut house, "192.0.2.1");
        assert_eq!(house.sockets().count(SERVICE), 2);
        let told = if overflow == Overflow::Refuse { "server busy\n" } else { "" };
        assert_eq!(
            (house.heard(late).as_str(), house.script.backlog()),
            (told, usize::from(told.is_empty()))
        );
        house.script.reset(guests[0]);
        house.settle();
        assert_eq!(house.sockets().count(SERVICE), 1 + usize::from(overflow == Overflow::Wait));
        let listener = house.turns.doors().next().unwrap().id;
        house.sockets().close_listener(listener);
        house.settle();
        assert!(!house.script.is_listening() && house.sockets().count(SERVICE) >= 1);
        assert!(!house.turns.close_listener(listener), "its name means nobody any more");
    }
}

#[test]
fn whoever_will_dial_another_is_let_in_only_with_room_for_both() {
    let limits = Limits { connections: 5, ..Limits::default() };
    let listen = ListenOptions { dials: true, ..ListenOptions::default() };
    let mut house = Plan { limits, listen, ..Plan::default() }.build(echo);
    let (_, first) = house.guest();
    let (second_peer, second) = house.guest();
    let late = call_from(&mut house, "192.0.2.1");
    assert_eq!(house.heard(late), "server busy\n", "one slot is free, and two are needed");
    let dial =
        |house: &mut House, by| house.turns.table.dial(1, address().into(), DialOptions::default(), by);
    dial(&mut house, None).expect("the fifth slot");
    assert!(dial(&mut house, None).is_err(), "the others are kept");
    let leg = dial(&mut house, Some(first)).expect("the slot that was kept for it");
    dial(&mut house, Some(second)).expect("the slot that was kept for it");
    assert!(dial(&mut house, Some(first)).is_err());
    house.settle();
    // An upstream that fails gives its slot back to the one it was for, and not to a newcomer.
    house.sockets().get(leg).unwrap().abort();
    house.settle();
    assert!(dial(&mut house, None).is_err());
    dial(&mut house, Some(first)).expect("it may try another");
    house.script.reset(second_peer);
    house.settle();
    assert_eq!(house.turns.table.connections(), 4);
}

#[test]
fn whoever_leaves_without_having_dialed_gives_back_both_slots() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let listen = ListenOptions { dials: true, ..ListenOptions::default() };
    let mut house = Plan { limits, listen, ..Plan::default() }.build(echo);
    for _ in 0..10 {
        let (peer, _) = house.guest();
        assert_eq!(house.turns.table.reserved, 1);
        house.script.reset(peer);
        house.settle();
        assert_eq!(house.turns.table.reserved, 0);
    }
}
