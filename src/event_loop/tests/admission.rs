//! Access policies: rules, limits by address, and the ways to refuse.

use super::*;
use crate::config::access::AccessPolicy;
use crate::config::dial::DialOptions;
use crate::config::rules::RefuseMode;

fn with_policy(guard: AccessPolicy) -> TestLoop {
    let mut test = socket_limits(no_idle()).build_with(|socket| socket.send(b"welcome"), echo);
    test.set_access_policy(guard);
    test
}

fn denying(range: &str, how: RefuseMode) -> AccessPolicy {
    let mut guard = AccessPolicy::default();
    guard.rules.deny(range.parse().unwrap(), how);
    guard
}

fn connect_from(test: &mut TestLoop, ip: &str) -> PeerId {
    test.script.connect_from(ip.parse().unwrap());
    let peer = test.script.connect();
    test.turn_until_quiet();
    peer
}

#[test]
fn a_denied_peer_is_refused_as_its_rule_says_and_the_service_is_notified() {
    for (how, says, gone) in [
        (RefuseMode::Reply, "server busy\n", None),
        (RefuseMode::End, "", None),
        (RefuseMode::Reset, "", Some(Released::Reset)),
        (RefuseMode::Tarpit, "", None),
    ] {
        let mut test = with_policy(denying("192.0.2.0/24", how));
        let peer = connect_from(&mut test, "192.0.2.9");
        assert_eq!((test.received(peer).as_str(), test.script.released(peer)), (says, gone), "{how:?}");
        assert_eq!(
            test.script.received_end(peer),
            matches!(how, RefuseMode::Reply | RefuseMode::End),
            "{how:?}"
        );
        assert_eq!(test.events(), [Event::Refused(Refusal::Denied)]);
        assert_eq!(test.event_loop.table.cx.stats.refused_count(Refusal::Denied), 1);
        let mapped = connect_from(&mut test, "::ffff:192.0.2.9");
        assert_ne!(test.received(mapped), "welcome", "mapped into version 6 it is the same address");
        let peer = connect_from(&mut test, "198.51.100.1");
        assert_eq!(test.received(peer), "welcome");
        let hits: Vec<u64> =
            test.event_loop.rules(test.service).unwrap().iter().map(|rule| rule.hits).collect();
        assert_eq!(hits, [2], "{how:?}");
        test.advance(40 * SECOND);
        assert_eq!((test.event_loop.table.refusals, test.event_loop.table.tarpitted), (0, 0), "{how:?}");
    }
}

#[test]
fn tarpitted_connections_are_limited_and_further_ones_are_reset() {
    let limits = Limits { tarpitted: 2, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    test.set_access_policy(denying("0.0.0.0/0", RefuseMode::Tarpit));
    let peers: Vec<PeerId> = (0..4).map(|_| connect_from(&mut test, "192.0.2.1")).collect();
    let gone: Vec<bool> =
        peers.iter().map(|&peer| test.script.released(peer) == Some(Released::Reset)).collect();
    assert_eq!(gone, [false, false, true, true]);
    test.advance(29 * SECOND);
    assert!(!test.script.received_end(peers[0]));
    // A shutdown does not wait for tarpitted connections.
    let mut closing = Setup::default().build(echo);
    closing.set_access_policy(denying("0.0.0.0/0", RefuseMode::Tarpit));
    connect_from(&mut closing, "192.0.2.1");
    closing.sockets().shutdown(10 * SECOND);
    closing.turn_until_quiet();
    assert!(closing.event_loop.is_finished());
    test.advance(2 * SECOND);
    assert!(test.script.received_end(peers[0]) && test.event_loop.table.tarpitted <= 2);
    test.advance(2 * SECOND);
    assert_eq!(test.event_loop.table.tarpitted, 0);
}

#[test]
fn the_limit_of_connections_for_one_address_is_exact() {
    let mut test = with_policy(AccessPolicy { per_address: Some(3), ..AccessPolicy::default() });
    let peers: Vec<PeerId> = (0..5).map(|_| connect_from(&mut test, "192.0.2.1")).collect();
    let received: Vec<String> = peers.iter().map(|&peer| test.received(peer)).collect();
    assert_eq!(received, ["welcome", "welcome", "welcome", "server busy\n", "server busy\n"]);
    let other = connect_from(&mut test, "192.0.2.2");
    assert_eq!(test.received(other), "welcome");
    test.script.end(peers[0]);
    test.turn_until_quiet();
    let again = connect_from(&mut test, "192.0.2.1");
    assert_eq!(test.received(again), "welcome", "the place is free again");
    let more = connect_from(&mut test, "192.0.2.1");
    assert_eq!(test.received(more), "server busy\n");
}

#[test]
fn an_address_that_connects_too_often_is_reset_until_a_second_has_passed() {
    let mut test = with_policy(AccessPolicy { accept_rate: Some(2), ..AccessPolicy::default() });
    let peers: Vec<PeerId> = (0..3).map(|_| connect_from(&mut test, "192.0.2.1")).collect();
    assert_eq!(peers.iter().filter(|&&peer| test.script.released(peer) == Some(Released::Reset)).count(), 1);
    assert_eq!(test.event_loop.table.cx.stats.refused_count(Refusal::AcceptRate), 1);
    test.advance(520 * MS);
    let peer = connect_from(&mut test, "192.0.2.1");
    assert_eq!(test.received(peer), "welcome");
}

#[test]
fn a_dry_run_admits_every_connection_and_counts_what_it_would_refuse() {
    let mut guard = denying("192.0.2.0/24", RefuseMode::Reset);
    (guard.per_address, guard.dry_run) = (Some(1), true);
    let mut test = with_policy(guard);
    for ip in ["192.0.2.1", "198.51.100.1", "198.51.100.1"] {
        let peer = connect_from(&mut test, ip);
        assert_eq!(test.received(peer), "welcome");
    }
    let stats = &test.event_loop.table.cx.stats;
    assert_eq!((stats.refused, stats.would_refuse), (0, [0, 1, 1, 0, 0]));
}

#[test]
fn access_rules_are_checked_before_the_connection_cap() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    test.set_access_policy(denying("192.0.2.0/24", RefuseMode::End));
    test.accept();
    let denied = connect_from(&mut test, "192.0.2.1");
    let late = connect_from(&mut test, "198.51.100.1");
    assert_eq!((test.received(denied).as_str(), test.received(late).as_str()), ("", "server busy\n"));
    assert_eq!(test.event_loop.table.cx.stats.refused_by_reason, [1, 1, 0, 0, 0]);
}

#[test]
fn an_access_policy_can_be_replaced_while_connections_are_open() {
    let mut test = with_policy(AccessPolicy { per_address: Some(2), ..AccessPolicy::default() });
    let peers: Vec<PeerId> = (0..2).map(|_| connect_from(&mut test, "192.0.2.1")).collect();
    test.set_access_policy(AccessPolicy { per_address: Some(3), ..AccessPolicy::default() });
    let third = connect_from(&mut test, "192.0.2.1");
    let fourth = connect_from(&mut test, "192.0.2.1");
    assert_eq!(test.script.released(third), None);
    assert_eq!(test.received(fourth), "server busy\n", "those who were inside still count");
    peers.iter().for_each(|&peer| test.script.reset(peer));
    test.turn_until_quiet();
    let fifth = connect_from(&mut test, "192.0.2.1");
    assert_eq!(test.received(fifth), "welcome");
}

#[test]
fn a_forwarded_address_is_counted_in_place_of_the_trusted_proxy() {
    let mut guard = denying("203.0.113.0/24", RefuseMode::End);
    guard.per_address = Some(1);
    let mut test = with_policy(guard);
    test.script.connect_from("192.0.2.1".parse().unwrap());
    let (_, first) = test.accept();
    let set = |test: &mut TestLoop, id, text: &str| {
        test.sockets().get(id).unwrap().set_peer_addr(text.parse().unwrap())
    };
    assert_eq!(set(&mut test, first, "198.51.100.1:7"), Ok(()));
    let (_, second) = test.accept();
    assert_eq!(set(&mut test, second, "198.51.100.1:8"), Err(Refusal::PerAddress));
    assert_eq!(set(&mut test, second, "[::ffff:203.0.113.1]:8"), Err(Refusal::Denied));
    let peer = test.sockets().get(first).unwrap().peer_addr().to_string();
    assert_eq!(peer, "198.51.100.1:7");
    test.sockets().get(first).unwrap().abort();
    test.turn_until_quiet();
    assert_eq!(set(&mut test, second, "198.51.100.1:8"), Ok(()));
}

#[test]
fn a_service_has_its_own_connection_cap_and_can_close_its_listener() {
    for overflow in [Overflow::Refuse, Overflow::Wait] {
        let listen = ListenOptions { overflow, ..ListenOptions::default() };
        let mut test = Setup { listen, ..Setup::default() }.build(echo);
        test.set_access_policy(AccessPolicy { connections: Some(2), ..AccessPolicy::default() });
        let peers: Vec<PeerId> = (0..2).map(|_| test.accept().0).collect();
        let late = connect_from(&mut test, "192.0.2.1");
        assert_eq!(test.count(), 2);
        let events = if overflow == Overflow::Refuse { "server busy\n" } else { "" };
        assert_eq!(
            (test.received(late).as_str(), test.script.backlog()),
            (events, usize::from(events.is_empty()))
        );
        test.script.reset(peers[0]);
        test.turn_until_quiet();
        assert_eq!(test.count(), 1 + usize::from(overflow == Overflow::Wait));
        let listener = test.event_loop.table.listeners.open().next().unwrap().id;
        assert!(test.sockets().close_listener(listener));
        test.turn_until_quiet();
        assert!(!test.script.is_listening() && test.count() >= 1);
        assert!(!test.sockets().close_listener(listener), "its id names no listener any more");
    }
}

#[test]
pub(super) fn a_connection_that_reserves_a_slot_is_accepted_only_with_room_for_both() {
    let limits = Limits { connections: 5, ..Limits::default() };
    let listen = ListenOptions { reserve_slot: true, ..ListenOptions::default() };
    let mut test = Setup { limits, listen, ..Setup::default() }.build(echo);
    let (_, first) = test.accept();
    let (second_peer, second) = test.accept();
    let late = connect_from(&mut test, "192.0.2.1");
    assert_eq!(test.received(late), "server busy\n", "one slot is free, and two are needed");
    let dial = |test: &mut TestLoop, by| {
        test.event_loop.table.dial(test.service, address().into(), DialOptions::default(), by)
    };
    dial(&mut test, None).expect("the fifth slot");
    assert!(dial(&mut test, None).is_err(), "the others are kept");
    let pipe_peer = dial(&mut test, Some(first)).expect("the slot that was kept for it");
    dial(&mut test, Some(second)).expect("the slot that was kept for it");
    assert!(dial(&mut test, Some(first)).is_err());
    test.turn_until_quiet();
    // The slot of an upstream that failed is reserved again for its client, and not given to a new connection.
    test.sockets().get(pipe_peer).unwrap().abort();
    test.turn_until_quiet();
    assert!(dial(&mut test, None).is_err());
    dial(&mut test, Some(first)).expect("it may try another");
    test.script.reset(second_peer);
    test.turn_until_quiet();
    assert_eq!(test.event_loop.table.connections(), 4);
}

#[test]
fn a_connection_that_never_dialed_frees_both_slots() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let listen = ListenOptions { reserve_slot: true, ..ListenOptions::default() };
    let mut test = Setup { limits, listen, ..Setup::default() }.build(echo);
    for _ in 0..10 {
        let (peer, _) = test.accept();
        assert_eq!(test.event_loop.table.reserved, 1);
        test.script.reset(peer);
        test.turn_until_quiet();
        assert_eq!(test.event_loop.table.reserved, 0);
    }
}
