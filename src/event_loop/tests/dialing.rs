//! Connections that a service asked for.

use super::*;
use crate::config::dial::DialOptions;

fn dial(house: &mut House, port: u16) -> ConnId {
    let mut to = address();
    to.set_port(port);
    let id = house.turns.table.dial(1, to.into(), DialOptions::default(), None).unwrap();
    house.settle();
    id
}

#[test]
fn a_dialed_connection_lives_the_same_life() {
    let mut house = Plan::default().build_with(|socket| socket.send(b"hello"), swallow);
    let id = dial(&mut house, 80);
    let peer = house.script.dialed()[0];
    assert_eq!(
        (house.told(), house.heard(peer).as_str()),
        (vec![Told::Open(id)], ""),
        "it is open, what is sent waits"
    );
    house.script.event(house.script.token(peer).unwrap());
    house.settle();
    assert_eq!(house.heard(peer), "", "a spurious event connects nobody");
    house.script.answer(peer, Ok(()));
    house.settle();
    assert_eq!(house.heard(peer), "hello");
    house.script.feed(peer, b"hi");
    house.script.end(peer);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::Finished));
}

#[test]
fn what_waits_for_a_slow_connect_is_not_blamed_on_its_reader() {
    let limits = SocketLimits { connect: Some(60 * SECOND), ..no_idle() };
    let mut house = socket_limits(limits).build_with(|socket| socket.send(b"hello"), swallow);
    let id = dial(&mut house, 80);
    let peer = house.script.dialed()[0];
    house.script.window(peer, 0);
    house.pass(15 * SECOND);
    house.script.answer(peer, Ok(()));
    house.pass(9 * SECOND);
    assert_eq!(house.farewell(id), None);
    house.pass(SECOND + 20 * MS);
    assert_eq!(house.farewell(id), Some(Closed::TooSlow));
}

#[test]
fn a_dial_that_fails_says_why_once() {
    let mut house = Plan::default().build(swallow);
    let id = dial(&mut house, 80);
    house.script.answer(house.script.dialed()[0], Err(libc::ECONNREFUSED));
    house.settle();
    let refused = Closed::Unreachable(crate::base::reason::OsError::of(libc::ECONNREFUSED));
    assert_eq!(house.told(), [Told::Open(id), Told::Closed(id, refused)]);
    let id = dial(&mut house, 0);
    let impossible = Closed::Unreachable(crate::base::reason::OsError::of(libc::EADDRNOTAVAIL));
    assert_eq!(house.farewell(id), Some(impossible), "also when the call itself fails");
    let id = dial(&mut house, 81);
    house.pass(10_030 * MS);
    assert_eq!(house.farewell(id), Some(Closed::ConnectTimeout));
    assert_eq!(house.script.open_descriptors(), 2, "nothing is left open");
}

#[test]
fn a_dial_can_be_closed_before_it_begins_and_while_it_is_under_way() {
    let mut house = Plan::default().build(swallow);
    let id = house.turns.table.dial(1, address().into(), DialOptions::default(), None).unwrap();
    Sockets::new(&mut house.turns.table).get(id).unwrap().close();
    house.settle();
    assert_eq!(house.told(), [], "a dial that never began is silent");
    let id = dial(&mut house, 80);
    Sockets::new(&mut house.turns.table).get(id).unwrap().close();
    house.settle();
    assert_eq!(house.told(), [Told::Open(id), Told::Closed(id, Closed::Local)]);
    assert_eq!(house.script.open_descriptors(), 2);
}

#[test]
fn a_dial_needs_a_slot_like_everyone() {
    let mut house = full_house(1, Overflow::Wait);
    house.guest();
    let error = house.turns.table.dial(1, address().into(), DialOptions::default(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot dial 10.0.0.1:4000: all 1 connections are in use (raise Limits::connections)"
    );
}
