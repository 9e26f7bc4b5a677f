//! Dialing by name: lookups, attempts that overlap, and giving up.

use super::*;
use crate::base::reason::OsError;
use crate::config::dial::{Backoff, DialOptions, Family, KeepAlive, SocketOption};
use crate::config::rules::Refuse;
use crate::connection::State;

fn dial_with(house: &mut House, to: &str, options: DialOptions) -> ConnId {
    let id = house.turns.table.dial(1, to.parse().unwrap(), options, None).unwrap();
    house.settle();
    id
}

fn dial(house: &mut House, to: &str) -> ConnId {
    dial_with(house, to, DialOptions::default())
}

fn house() -> House {
    socket_limits(no_idle()).build_with(|socket| socket.send(b"hello"), swallow)
}

/// The only question that the resolver has.
fn question(house: &House) -> u64 {
    let questions = house.script.questions();
    assert_eq!(questions.len(), 1, "{questions:?}");
    questions[0].0
}

fn dialed(house: &House) -> Vec<String> {
    house.script.dialed().into_iter().map(|peer| house.script.dialed_as(peer)).collect()
}

fn text_of_failure(house: &House) -> String {
    let departed = house.departed.borrow();
    departed.last().and_then(|last| last.failure.as_ref()).expect("a failure").to_string()
}

#[test]
fn a_name_is_looked_up_and_its_address_connected() {
    let mut house = house();
    let id = dial(&mut house, "db.example:5432");
    assert_eq!(house.script.questions()[0].1, "db.example:5432");
    let state = house.sockets().get(id).map(|socket| (socket.state(), socket.peer_addr().to_string()));
    assert_eq!(state, Some((State::Resolving, "db.example:5432".to_string())));
    let number = question(&house);
    house.script.resolve(number, &["192.0.2.7:5432"]);
    house.settle();
    assert_eq!(dialed(&house), ["192.0.2.7:5432"]);
    let peer = house.script.dialed()[0];
    house.script.answer(peer, Ok(()));
    house.settle();
    assert_eq!(
        (house.told(), house.heard(peer).as_str()),
        (vec![Told::Open(id), Told::Connected(id)], "hello")
    );
    let mut sockets = house.sockets();
    let socket = sockets.get(id).unwrap();
    assert_eq!((socket.peer_addr().to_string(), socket.state()), ("192.0.2.7:5432".into(), State::Open));
    assert_eq!(
        socket.local_addr().map(|local| local.to_string()),
        Some(format!("10.0.0.2:{}", 5_000 + peer))
    );
}

#[test]
fn a_literal_address_asks_no_resolver() {
    let mut house = house();
    dial(&mut house, "127.0.0.1:80");
    assert_eq!((house.script.questions().len(), dialed(&house)), (0, vec!["127.0.0.1:80".to_string()]));
}

#[test]
fn a_name_that_is_unknown_is_one_error_and_no_connect() {
    let mut house = house();
    let id = dial(&mut house, "nowhere.example:1");
    house.script.resolve_not(question(&house));
    house.settle();
    assert_eq!(house.told(), [Told::Open(id), Told::Closed(id, Closed::Unresolved)]);
    assert_eq!(text_of_failure(&house), "cannot connect to nowhere.example:1: no such name");
    assert_eq!(dialed(&house).len(), 0);
    let id = dial(&mut house, "empty.example:1");
    house.script.resolve(question(&house), &[]);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::Unresolved));
}

#[test]
fn equal_names_are_one_question_and_each_dial_gets_the_answer() {
    let mut house = house();
    let ids: Vec<ConnId> = (0..5).map(|_| dial(&mut house, "a.example:1")).collect();
    let number = question(&house);
    house.script.resolve(number, &["192.0.2.1:1"]);
    house.settle();
    assert_eq!(house.script.dialed().len(), 5);
    house.script.resolve(number, &["192.0.2.1:1"]);
    house.settle();
    assert_eq!(house.script.dialed().len(), 5, "a second answer is nobody's");
    assert!(ids.iter().all(|&id| house.farewell(id).is_none()));
}

#[test]
fn a_resolver_that_never_answers_costs_each_dial_its_own_deadline_and_the_loop_nothing() {
    let mut house = house();
    let short = DialOptions { timeout: Some(2 * SECOND), ..DialOptions::default() };
    let first = dial_with(&mut house, "a.example:1", short.clone());
    house.pass(SECOND);
    let second = dial_with(&mut house, "b.example:1", short);
    let third = dial(&mut house, "c.example:1");
    house.pass(SECOND + 20 * MS);
    assert_eq!((house.farewell(first), house.farewell(second)), (Some(Closed::ConnectTimeout), None));
    let before = house.script.calls().polls;
    house.pass(SECOND);
    assert_eq!((house.farewell(second), house.farewell(third)), (Some(Closed::ConnectTimeout), None));
    assert!(house.script.calls().polls - before <= 500, "it was turned every 5 ms, and by nothing else");
    assert_eq!(house.script.questions().len(), 1, "nobody waits for the others, and they have not begun");
    house.pass(8 * SECOND);
    assert_eq!(house.farewell(third), Some(Closed::ConnectTimeout));
    assert_eq!(house.script.open_descriptors(), 2);
}

#[test]
fn a_late_answer_is_nobodys() {
    let mut house = house();
    let id = dial(&mut house, "a.example:1");
    let number = question(&house);
    house.sockets().get(id).unwrap().close();
    house.settle();
    let other = dial(&mut house, "b.example:1");
    assert_eq!(other.slot, id.slot, "the slot is used again");
    house.script.resolve(number, &["192.0.2.1:1"]);
    house.settle();
    assert_eq!((dialed(&house).len(), house.farewell(other)), (0, None));
}

#[test]
fn the_names_that_wait_are_bounded() {
    let limits = Limits { lookups: 3, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(swallow);
    let ids: Vec<ConnId> = (0..4).map(|n| dial(&mut house, &format!("n{n}.example:1"))).collect();
    assert_eq!(house.farewell(ids[3]), Some(Closed::Unresolved));
    let text = "cannot connect to n3.example:1: 3 names are being looked up already (Limits::lookups)";
    assert_eq!((text_of_failure(&house).as_str(), house.script.questions().len()), (text, 3));
}

const BOTH: &[&str] = &["[2001:db8::1]:80", "192.0.2.1:80"];

#[test]
fn a_black_hole_is_overtaken_after_a_quarter_of_a_second() {
    let mut house = house();
    let id = dial(&mut house, "a.example:80");
    house.script.resolve(question(&house), BOTH);
    house.pass(240 * MS);
    assert_eq!(dialed(&house), ["[2001:db8::1]:80"]);
    house.pass(30 * MS);
    assert_eq!(dialed(&house), BOTH);
    house.script.answer(house.script.dialed()[1], Ok(()));
    house.settle();
    assert_eq!(house.told(), [Told::Open(id), Told::Connected(id)]);
    assert_eq!(house.script.gone(house.script.dialed()[0]), Some(Gone::Closed), "the loser is closed");
    assert_eq!(house.script.open_descriptors(), 3);
}

#[test]
fn a_slow_address_still_wins_when_the_others_are_dead() {
    let mut house = house();
    let id = dial(&mut house, "a.example:80");
    house.script.resolve(question(&house), BOTH);
    house.pass(300 * MS);
    let attempts = house.script.dialed();
    house.script.answer(attempts[1], Err(libc::ECONNREFUSED));
    house.pass(3 * SECOND);
    assert_eq!(house.farewell(id), None);
    house.script.answer(attempts[0], Ok(()));
    house.settle();
    assert_eq!(house.heard(attempts[0]), "hello");
    let peer = house.sockets().get(id).map(|socket| socket.peer_addr().to_string());
    assert_eq!(peer.as_deref(), Some("[2001:db8::1]:80"));
}

#[test]
fn a_failure_starts_the_next_attempt_at_once_and_the_error_lists_them_all() {
    let mut house = house();
    let id = dial(&mut house, "a.example:80");
    house
        .script
        .resolve(question(&house), &["[2001:db8::1]:80", "192.0.2.1:80", "192.0.2.2:0", "[2001:db8::2]:80"]);
    house.settle();
    house.script.answer(house.script.dialed()[0], Err(libc::ENETUNREACH));
    house.settle();
    assert_eq!(dialed(&house).len(), 2);
    house.script.answer(house.script.dialed()[1], Err(libc::ECONNREFUSED));
    house.pass(11 * SECOND);
    assert_eq!(house.farewell(id), Some(Closed::ConnectTimeout));
    let told = "cannot connect to a.example:80: [2001:db8::1]:80: network is unreachable; \
                192.0.2.1:80: connection refused; 192.0.2.2:0: cannot assign requested address; \
                [2001:db8::2]:80: no answer in time";
    let attempts = text_of_failure(&house);
    assert_eq!(attempts.split("; ").count(), 4, "{attempts}");
    assert!(told.split("; ").all(|part| attempts.contains(part.trim())), "{attempts}");
    assert_eq!(house.script.open_descriptors(), 2);
}

#[test]
fn all_attempts_refused_is_one_farewell() {
    let mut house = house();
    let id = dial(&mut house, "a.example:80");
    house.script.resolve(question(&house), BOTH);
    for n in 0..2 {
        house.settle();
        house.script.answer(house.script.dialed()[n], Err(libc::ECONNREFUSED));
    }
    house.settle();
    let refused = Closed::Unreachable(OsError::of(libc::ECONNREFUSED));
    assert_eq!(house.told(), [Told::Open(id), Told::Closed(id, refused)]);
}

#[test]
fn two_that_connect_at_once_are_one_connection() {
    let mut house = house();
    dial(&mut house, "a.example:80");
    house.script.resolve(question(&house), BOTH);
    house.pass(300 * MS);
    for peer in house.script.dialed() {
        house.script.answer(peer, Ok(()));
    }
    house.settle();
    let heard: Vec<String> = house.script.dialed().into_iter().map(|peer| house.heard(peer)).collect();
    assert_eq!(heard, ["hello", ""]);
    assert_eq!(house.script.open_descriptors(), 3);
}

#[test]
fn closing_or_aborting_a_dial_in_any_state_is_one_farewell_and_leaves_nothing_open() {
    for abort in [false, true] {
        for state in 0..4 {
            let mut house = house();
            let id = house
                .turns
                .table
                .dial(1, "a.example:80".parse().unwrap(), DialOptions::default(), None)
                .unwrap();
            if state > 0 {
                house.settle();
            }
            if state > 1 {
                house.script.resolve(question(&house), BOTH);
                house.pass(300 * MS);
            }
            if state > 2 {
                house.script.answer(house.script.dialed()[0], Ok(()));
                house.settle();
            }
            let mut sockets = house.sockets();
            let mut socket = sockets.get(id).unwrap();
            if abort {
                socket.abort()
            } else {
                socket.close()
            }
            house.settle();
            house.pass(2 * SECOND);
            let farewells = house.told().iter().filter(|told| matches!(told, Told::Closed(..))).count();
            assert_eq!(farewells, usize::from(state > 0), "state {state}, abort {abort}");
            assert_eq!(house.script.open_descriptors(), 2, "state {state}, abort {abort}");
            assert_eq!(house.script.questions().len(), 0, "state {state}, abort {abort}");
        }
    }
}

#[test]
fn only_addresses_of_the_version_asked_for_and_none_that_a_rule_forbids_are_tried() {
    let mut house = house();
    let options = DialOptions { family: Family::V4, ..DialOptions::default() };
    dial_with(&mut house, "a.example:80", options.clone());
    house.script.resolve(question(&house), BOTH);
    house.pass(SECOND);
    assert_eq!(dialed(&house), ["192.0.2.1:80"]);
    let id = dial_with(&mut house, "six.example:80", options);
    house.script.resolve(question(&house), &["[2001:db8::1]:80"]);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::Unresolved));

    let mut options = DialOptions::default();
    options.rules.deny("2001:db8::/32".parse().unwrap(), Refuse::End);
    options.rules.deny("192.0.2.0/24".parse().unwrap(), Refuse::End);
    let id = dial_with(&mut house, "evil.example:80", options.clone());
    house.script.resolve(question(&house), BOTH);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::Unreachable(OsError::of(libc::EACCES))));
    assert!(text_of_failure(&house).ends_with("192.0.2.1:80: a rule forbids this address"));
    let id = dial_with(&mut house, "[2001:db8::9]:80", options);
    assert_eq!(
        house.farewell(id),
        Some(Closed::Unreachable(OsError::of(libc::EACCES))),
        "a literal is no way around it"
    );
    assert_eq!(dialed(&house).len(), 1);
}

#[test]
fn attempts_beyond_the_first_are_bounded_in_the_whole_house() {
    let limits = Limits { attempts: 2, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(swallow);
    for n in 0..4 {
        dial(&mut house, &format!("n{n}.example:80"));
    }
    for (number, _) in house.script.questions() {
        house.script.resolve(number, &["[2001:db8::1]:80", "192.0.2.1:80", "192.0.2.2:80"]);
    }
    house.pass(2 * SECOND);
    assert_eq!(house.script.dialed().len(), 4 + 2);
    house.script.answer(house.script.dialed()[0], Ok(()));
    house.pass(SECOND);
    assert_eq!(house.script.open_descriptors(), 2 + 4 + 2);
    house.pass(10 * SECOND);
    assert_eq!(house.script.open_descriptors(), 3, "the one that is connected is left");
}

#[test]
fn what_was_set_before_connecting_is_set_once_on_the_stream_and_what_comes_after_too() {
    let mut house = socket_limits(no_idle()).build_with(
        |socket| {
            socket.set_nodelay(true);
            socket.set_nodelay(false);
            socket.set_tos(0x10);
        },
        swallow,
    );
    let id = dial(&mut house, "192.0.2.1:80");
    let peer = house.script.dialed()[0];
    assert_eq!(house.script.options(peer), [SocketOption::NoDelay(false), SocketOption::Tos(0x10)]);
    house.script.answer(peer, Ok(()));
    house.settle();
    let probes = KeepAlive::after(SECOND);
    house.sockets().get(id).unwrap().set_keep_alive(Some(probes));
    house.settle();
    assert_eq!(house.script.options(peer)[2..], [SocketOption::KeepAlive(Some(probes))]);
}

#[test]
fn what_has_ended_is_dialed_again_later_and_later_until_it_is_called_off() {
    let mut house = house();
    let reconnect = Backoff { first: 100 * MS, most: SECOND };
    let options = DialOptions { reconnect: Some(reconnect), ..DialOptions::default() };
    let first = dial_with(&mut house, "192.0.2.1:80", options);
    let mut tries = vec![];
    for n in 0..6 {
        let peer = *house.script.dialed().last().unwrap();
        house.script.answer(peer, Err(libc::ECONNREFUSED));
        house.settle();
        let mut waited = Duration::ZERO;
        while house.script.dialed().len() == n + 1 {
            house.pass(5 * MS);
            waited += 5 * MS;
        }
        tries.push(waited);
    }
    for (n, waited) in tries.iter().enumerate() {
        let whole = (100 * MS * (1 << n)).min(SECOND);
        assert!(*waited >= whole / 2 && *waited <= whole + 30 * MS, "wait {n} was {waited:?}");
    }
    // Connected once, it begins from the shortest wait again.
    house.script.answer(*house.script.dialed().last().unwrap(), Ok(()));
    house.settle();
    house.script.reset(*house.script.dialed().last().unwrap());
    house.settle();
    house.pass(130 * MS);
    assert_eq!(house.script.dialed().len(), 8);
    // Called off while it waits, and while it is connected.
    house.script.answer(*house.script.dialed().last().unwrap(), Err(libc::ECONNREFUSED));
    house.settle();
    let last = house.told().iter().rev().find_map(|told| match told {
        Told::Closed(id, _) => Some(*id),
        _ => None,
    });
    assert!(!house.sockets().hang_up(first), "that one was replaced long ago");
    assert!(house.sockets().hang_up(last.unwrap()));
    house.pass(3 * SECOND);
    assert_eq!((house.script.dialed().len(), house.turns.table.timers.len()), (8, 0));
    assert_eq!(house.script.open_descriptors(), 2);
}

#[test]
fn a_service_that_closes_what_it_dialed_means_it() {
    let mut house = house();
    let options = DialOptions { reconnect: Some(Backoff::default()), ..DialOptions::default() };
    let id = dial_with(&mut house, "192.0.2.1:80", options);
    house.script.answer(house.script.dialed()[0], Ok(()));
    house.settle();
    assert!(house.sockets().hang_up(id));
    house.script.end(house.script.dialed()[0]);
    house.pass(3 * SECOND);
    assert_eq!((house.farewell(id), house.script.dialed().len()), (Some(Closed::Local), 1));
}
