//! Dialing by name: lookups, overlapping attempts, failure, and redials.

use super::*;
use crate::base::reason::OsError;
use crate::config::dial::{Backoff, DialOptions, Family, KeepAlive, SocketOption};
use crate::config::rules::RefuseMode;
use crate::connection::state::State;

fn dial_with(test: &mut TestLoop, to: &str, options: DialOptions) -> ConnId {
    let id = test.event_loop.table.dial(test.service, to.parse().unwrap(), options, None).unwrap();
    test.turn_until_quiet();
    id
}

fn dial(test: &mut TestLoop, to: &str) -> ConnId {
    dial_with(test, to, DialOptions::default())
}

fn test_loop() -> TestLoop {
    socket_limits(no_idle()).build_with(|socket| socket.send(b"hello"), discard)
}

/// The only lookup that waits at the resolver.
fn pending_lookup(test: &TestLoop) -> u64 {
    let questions = test.script.lookups();
    assert_eq!(questions.len(), 1, "{questions:?}");
    questions[0].0
}

fn dialed(test: &TestLoop) -> Vec<String> {
    test.script.dialed().into_iter().map(|peer| test.script.dialed_as(peer)).collect()
}

fn dial_error_text(test: &TestLoop) -> String {
    let closed_log = test.closed_log.borrow();
    closed_log.last().and_then(|last| last.dial_error.as_ref()).expect("a failure").to_string()
}

#[test]
fn a_name_is_looked_up_and_its_address_connected() {
    let mut test = test_loop();
    let id = dial(&mut test, "db.example:5432");
    assert_eq!(test.script.lookups()[0].1, "db.example:5432");
    let state = test.sockets().get(id).map(|socket| (socket.state(), socket.peer_addr().to_string()));
    assert_eq!(state, Some((State::Resolving, "db.example:5432".to_string())));
    let number = pending_lookup(&test);
    test.script.resolve(number, &["192.0.2.7:5432"]);
    test.turn_until_quiet();
    assert_eq!(dialed(&test), ["192.0.2.7:5432"]);
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    assert_eq!(
        (test.events(), test.received(peer).as_str()),
        (vec![Event::Open(id), Event::Connected(id)], "hello")
    );
    let mut sockets = test.sockets();
    let socket = sockets.get(id).unwrap();
    assert_eq!((socket.peer_addr().to_string(), socket.state()), ("192.0.2.7:5432".into(), State::Open));
    assert_eq!(
        socket.local_addr().map(|local| local.to_string()),
        Some(format!("10.0.0.2:{}", 5_000 + peer))
    );
}

#[test]
fn a_literal_address_is_not_looked_up() {
    let mut test = test_loop();
    dial(&mut test, "127.0.0.1:80");
    assert_eq!((test.script.lookups().len(), dialed(&test)), (0, vec!["127.0.0.1:80".to_string()]));
}

#[test]
fn a_name_that_is_unknown_is_one_error_and_no_connect() {
    let mut test = test_loop();
    let id = dial(&mut test, "nowhere.example:1");
    test.script.fail_lookup(pending_lookup(&test));
    test.turn_until_quiet();
    assert_eq!(test.events(), [Event::Open(id), Event::Closed(id, CloseReason::Unresolved)]);
    assert_eq!(dial_error_text(&test), "cannot connect to nowhere.example:1: no such name");
    assert_eq!(dialed(&test).len(), 0);
    let id = dial(&mut test, "empty.example:1");
    test.script.resolve(pending_lookup(&test), &[]);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Unresolved));
}

#[test]
fn equal_names_share_one_lookup_and_each_dial_gets_the_answer() {
    let mut test = test_loop();
    let ids: Vec<ConnId> = (0..5).map(|_| dial(&mut test, "a.example:1")).collect();
    let number = pending_lookup(&test);
    test.script.resolve(number, &["192.0.2.1:1"]);
    test.turn_until_quiet();
    assert_eq!(test.script.dialed().len(), 5);
    test.script.resolve(number, &["192.0.2.1:1"]);
    test.turn_until_quiet();
    assert_eq!(test.script.dialed().len(), 5, "no dial waits for a second answer");
    assert!(ids.iter().all(|&id| test.close_reason(id).is_none()));
}

#[test]
fn a_resolver_that_never_answers_costs_each_dial_its_own_deadline_and_the_loop_nothing() {
    let mut test = test_loop();
    let short = DialOptions { timeout: Some(2 * SECOND), ..DialOptions::default() };
    let first = dial_with(&mut test, "a.example:1", short.clone());
    test.advance(SECOND);
    let second = dial_with(&mut test, "b.example:1", short);
    let third = dial(&mut test, "c.example:1");
    test.advance(SECOND + 20 * MS);
    assert_eq!(
        (test.close_reason(first), test.close_reason(second)),
        (Some(CloseReason::ConnectTimeout), None)
    );
    let before = test.script.calls().polls;
    test.advance(SECOND);
    assert_eq!(
        (test.close_reason(second), test.close_reason(third)),
        (Some(CloseReason::ConnectTimeout), None)
    );
    assert!(test.script.calls().polls - before <= 500, "it was turned every 5 ms, and by nothing else");
    assert_eq!(test.script.lookups().len(), 1, "no dial waits for the others, and they have not begun");
    test.advance(8 * SECOND);
    assert_eq!(test.close_reason(third), Some(CloseReason::ConnectTimeout));
    assert_eq!(test.script.open_descriptors(), 2);
}

#[test]
fn a_late_lookup_answer_is_ignored() {
    let mut test = test_loop();
    let id = dial(&mut test, "a.example:1");
    let number = pending_lookup(&test);
    test.sockets().get(id).unwrap().close();
    test.turn_until_quiet();
    let other = dial(&mut test, "b.example:1");
    assert_eq!(other.slot, id.slot, "the slot is used again");
    test.script.resolve(number, &["192.0.2.1:1"]);
    test.turn_until_quiet();
    assert_eq!((dialed(&test).len(), test.close_reason(other)), (0, None));
}

#[test]
pub(super) fn pending_lookups_are_bounded() {
    let limits = Limits { lookups: 3, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    let ids: Vec<ConnId> = (0..4).map(|n| dial(&mut test, &format!("n{n}.example:1"))).collect();
    assert_eq!(test.close_reason(ids[3]), Some(CloseReason::Unreachable(OsError::TRY_AGAIN)));
    let text = "cannot connect to n3.example:1: 3 names are being looked up already (Limits::lookups)";
    assert_eq!((dial_error_text(&test).as_str(), test.script.lookups().len()), (text, 3));
}

const BOTH: &[&str] = &["[2001:db8::1]:80", "192.0.2.1:80"];

#[test]
fn an_unresponsive_address_is_overtaken_after_250_ms() {
    let mut test = test_loop();
    let id = dial(&mut test, "a.example:80");
    test.script.resolve(pending_lookup(&test), BOTH);
    test.advance(240 * MS);
    assert_eq!(dialed(&test), ["[2001:db8::1]:80"]);
    test.advance(30 * MS);
    assert_eq!(dialed(&test), BOTH);
    test.script.finish_dial(test.script.dialed()[1], Ok(()));
    test.turn_until_quiet();
    assert_eq!(test.events(), [Event::Open(id), Event::Connected(id)]);
    assert_eq!(test.script.released(test.script.dialed()[0]), Some(Released::Closed), "the loser is closed");
    assert_eq!(test.script.open_descriptors(), 3);
}

#[test]
fn a_slow_address_still_wins_when_the_others_are_dead() {
    let mut test = test_loop();
    let id = dial(&mut test, "a.example:80");
    test.script.resolve(pending_lookup(&test), BOTH);
    test.advance(300 * MS);
    let attempts = test.script.dialed();
    test.script.finish_dial(attempts[1], Err(libc::ECONNREFUSED));
    test.advance(3 * SECOND);
    assert_eq!(test.close_reason(id), None);
    test.script.finish_dial(attempts[0], Ok(()));
    test.turn_until_quiet();
    assert_eq!(test.received(attempts[0]), "hello");
    let peer = test.sockets().get(id).map(|socket| socket.peer_addr().to_string());
    assert_eq!(peer.as_deref(), Some("[2001:db8::1]:80"));
}

#[test]
fn a_failure_starts_the_next_attempt_at_once_and_the_error_lists_them_all() {
    let mut test = test_loop();
    let id = dial(&mut test, "a.example:80");
    test.script.resolve(
        pending_lookup(&test),
        &["[2001:db8::1]:80", "192.0.2.1:80", "192.0.2.2:0", "[2001:db8::2]:80"],
    );
    test.turn_until_quiet();
    test.script.finish_dial(test.script.dialed()[0], Err(libc::ENETUNREACH));
    test.turn_until_quiet();
    assert_eq!(dialed(&test).len(), 2);
    test.script.finish_dial(test.script.dialed()[1], Err(libc::ECONNREFUSED));
    test.advance(11 * SECOND);
    assert_eq!(test.close_reason(id), Some(CloseReason::ConnectTimeout));
    let events = "cannot connect to a.example:80: [2001:db8::1]:80: network is unreachable; \
                192.0.2.1:80: connection refused; 192.0.2.2:0: cannot assign requested address; \
                [2001:db8::2]:80: no answer in time";
    let attempts = dial_error_text(&test);
    assert_eq!(attempts.split("; ").count(), 4, "{attempts}");
    assert!(events.split("; ").all(|part| attempts.contains(part.trim())), "{attempts}");
    assert_eq!(test.script.open_descriptors(), 2);
}

#[test]
fn all_attempts_refused_gives_one_closed_callback() {
    let mut test = test_loop();
    let id = dial(&mut test, "a.example:80");
    test.script.resolve(pending_lookup(&test), BOTH);
    for n in 0..2 {
        test.turn_until_quiet();
        test.script.finish_dial(test.script.dialed()[n], Err(libc::ECONNREFUSED));
    }
    test.turn_until_quiet();
    let refused = CloseReason::Unreachable(OsError::of(libc::ECONNREFUSED));
    assert_eq!(test.events(), [Event::Open(id), Event::Closed(id, refused)]);
}

#[test]
fn two_attempts_that_connect_at_once_are_one_connection() {
    let mut test = test_loop();
    dial(&mut test, "a.example:80");
    test.script.resolve(pending_lookup(&test), BOTH);
    test.advance(300 * MS);
    for peer in test.script.dialed() {
        test.script.finish_dial(peer, Ok(()));
    }
    test.turn_until_quiet();
    let received: Vec<String> = test.script.dialed().into_iter().map(|peer| test.received(peer)).collect();
    assert_eq!(received, ["hello", ""]);
    assert_eq!(test.script.open_descriptors(), 3);
}

#[test]
pub(super) fn closing_or_aborting_a_dial_in_any_state_gives_one_closed_callback_and_leaves_nothing_open() {
    for abort in [false, true] {
        for state in 0..4 {
            let mut test = test_loop();
            let id = test
                .event_loop
                .table
                .dial(test.service, "a.example:80".parse().unwrap(), DialOptions::default(), None)
                .unwrap();
            if state > 0 {
                test.turn_until_quiet();
            }
            if state > 1 {
                test.script.resolve(pending_lookup(&test), BOTH);
                test.advance(300 * MS);
            }
            if state > 2 {
                test.script.finish_dial(test.script.dialed()[0], Ok(()));
                test.turn_until_quiet();
            }
            let mut sockets = test.sockets();
            let mut socket = sockets.get(id).unwrap();
            if abort {
                socket.abort()
            } else {
                socket.close()
            }
            test.turn_until_quiet();
            test.advance(2 * SECOND);
            let closed = test.events().iter().filter(|events| matches!(events, Event::Closed(..))).count();
            assert_eq!(closed, usize::from(state > 0), "state {state}, abort {abort}");
            assert_eq!(test.script.open_descriptors(), 2, "state {state}, abort {abort}");
            assert_eq!(test.script.lookups().len(), 0, "state {state}, abort {abort}");
        }
    }
}

#[test]
fn only_addresses_of_the_version_asked_for_and_none_that_a_rule_forbids_are_tried() {
    let mut test = test_loop();
    let options = DialOptions { family: Family::V4, ..DialOptions::default() };
    dial_with(&mut test, "a.example:80", options.clone());
    test.script.resolve(pending_lookup(&test), BOTH);
    test.advance(SECOND);
    assert_eq!(dialed(&test), ["192.0.2.1:80"]);
    let id = dial_with(&mut test, "six.example:80", options);
    test.script.resolve(pending_lookup(&test), &["[2001:db8::1]:80"]);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Unresolved));

    let mut options = DialOptions::default();
    options.rules.deny("2001:db8::/32".parse().unwrap(), RefuseMode::End);
    options.rules.deny("192.0.2.0/24".parse().unwrap(), RefuseMode::End);
    let id = dial_with(&mut test, "evil.example:80", options.clone());
    test.script.resolve(pending_lookup(&test), BOTH);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Unreachable(OsError::of(libc::EACCES))));
    assert!(dial_error_text(&test).ends_with("192.0.2.1:80: a rule forbids this address"));
    let id = dial_with(&mut test, "[2001:db8::9]:80", options);
    assert_eq!(
        test.close_reason(id),
        Some(CloseReason::Unreachable(OsError::of(libc::EACCES))),
        "a literal is no way around it"
    );
    assert_eq!(dialed(&test).len(), 1);
}

#[test]
pub(super) fn extra_attempts_are_bounded_in_the_whole_reactor() {
    let limits = Limits { extra_attempts: 2, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    for n in 0..4 {
        dial(&mut test, &format!("n{n}.example:80"));
    }
    for (number, _) in test.script.lookups() {
        test.script.resolve(number, &["[2001:db8::1]:80", "192.0.2.1:80", "192.0.2.2:80"]);
    }
    test.advance(2 * SECOND);
    assert_eq!(test.script.dialed().len(), 4 + 2);
    test.script.finish_dial(test.script.dialed()[0], Ok(()));
    test.advance(SECOND);
    assert_eq!(test.script.open_descriptors(), 2 + 4 + 2);
    test.advance(10 * SECOND);
    assert_eq!(test.script.open_descriptors(), 3, "the one that is connected is left");
}

#[test]
fn options_set_before_and_after_connecting_are_applied_once() {
    let mut test = socket_limits(no_idle()).build_with(
        |socket| {
            socket.set_nodelay(true);
            socket.set_nodelay(false);
            socket.set_tos(0x10);
        },
        discard,
    );
    let id = dial(&mut test, "192.0.2.1:80");
    let peer = test.script.dialed()[0];
    assert_eq!(test.script.options(peer), [SocketOption::NoDelay(false), SocketOption::Tos(0x10)]);
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    let probes = KeepAlive::after(SECOND);
    test.sockets().get(id).unwrap().set_keep_alive(Some(probes));
    test.turn_until_quiet();
    assert_eq!(test.script.options(peer)[2..], [SocketOption::KeepAlive(Some(probes))]);
}

#[test]
fn a_closed_connection_is_redialed_with_backoff_until_cancelled() {
    let mut test = test_loop();
    let reconnect = Backoff { first: 100 * MS, max: SECOND };
    let options = DialOptions { reconnect: Some(reconnect), ..DialOptions::default() };
    let first = dial_with(&mut test, "192.0.2.1:80", options);
    let mut tries = vec![];
    for n in 0..6 {
        let peer = *test.script.dialed().last().unwrap();
        test.script.finish_dial(peer, Err(libc::ECONNREFUSED));
        test.turn_until_quiet();
        let mut waited = Duration::ZERO;
        while test.script.dialed().len() == n + 1 {
            test.advance(5 * MS);
            waited += 5 * MS;
        }
        tries.push(waited);
    }
    for (n, waited) in tries.iter().enumerate() {
        let whole = (100 * MS * (1 << n)).min(SECOND);
        assert!(*waited >= whole / 2 && *waited <= whole + 30 * MS, "wait {n} was {waited:?}");
    }
    // After a success the wait is the shortest again.
    test.script.finish_dial(*test.script.dialed().last().unwrap(), Ok(()));
    test.turn_until_quiet();
    test.script.reset(*test.script.dialed().last().unwrap());
    test.turn_until_quiet();
    test.advance(130 * MS);
    assert_eq!(test.script.dialed().len(), 8);
    // Cancelled while it waits, and while it is connected.
    test.script.finish_dial(*test.script.dialed().last().unwrap(), Err(libc::ECONNREFUSED));
    test.turn_until_quiet();
    let last = test.events().iter().rev().find_map(|events| match events {
        Event::Closed(id, _) => Some(*id),
        _ => None,
    });
    assert!(!test.sockets().cancel_dial(first), "that one was replaced long ago");
    assert!(test.sockets().cancel_dial(last.unwrap()));
    test.advance(3 * SECOND);
    assert_eq!((test.script.dialed().len(), test.event_loop.table.timers.len()), (8, 0));
    assert_eq!(test.script.open_descriptors(), 2);
}

#[test]
fn a_dial_closed_by_its_service_is_not_redialed() {
    let mut test = test_loop();
    let options = DialOptions { reconnect: Some(Backoff::default()), ..DialOptions::default() };
    let id = dial_with(&mut test, "192.0.2.1:80", options);
    test.script.finish_dial(test.script.dialed()[0], Ok(()));
    test.turn_until_quiet();
    assert!(test.sockets().cancel_dial(id));
    test.script.end(test.script.dialed()[0]);
    test.advance(3 * SECOND);
    assert_eq!((test.close_reason(id), test.script.dialed().len()), (Some(CloseReason::Local), 1));
}
