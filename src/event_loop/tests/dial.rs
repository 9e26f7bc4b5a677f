//! Dialed connections: connecting, failing, and dialing again.

use super::*;
use crate::config::dial::DialOptions;

fn dial(test: &mut TestLoop, port: u16) -> ConnId {
    let mut to = address();
    to.set_port(port);
    let id = test.event_loop.table.dial(test.service, to.into(), DialOptions::default(), None).unwrap();
    test.turn_until_quiet();
    id
}

#[test]
fn a_dialed_connection_gets_the_same_callbacks() {
    let mut test = Setup::default().build_with(|socket| socket.send(b"hello"), discard);
    let id = dial(&mut test, 80);
    let peer = test.script.dialed()[0];
    assert_eq!(
        (test.events(), test.received(peer).as_str()),
        (vec![Event::Open(id)], ""),
        "it is open, what is sent waits"
    );
    test.script.event(test.script.token(peer).unwrap());
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "", "a spurious event connects nothing");
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "hello");
    test.script.feed(peer, b"hi");
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Finished));
}

#[test]
fn data_queued_during_a_slow_connect_does_not_count_as_a_slow_reader() {
    let limits = SocketLimits { connect: Some(60 * SECOND), ..no_idle() };
    let mut test = socket_limits(limits).build_with(|socket| socket.send(b"hello"), discard);
    let id = dial(&mut test, 80);
    let peer = test.script.dialed()[0];
    test.script.window(peer, 0);
    test.advance(15 * SECOND);
    test.script.finish_dial(peer, Ok(()));
    test.advance(9 * SECOND);
    assert_eq!(test.close_reason(id), None);
    test.advance(SECOND + 20 * MS);
    assert_eq!(test.close_reason(id), Some(CloseReason::TooSlow));
}

#[test]
fn a_failed_dial_reports_its_reason_once() {
    let mut test = Setup::default().build(discard);
    let id = dial(&mut test, 80);
    test.script.finish_dial(test.script.dialed()[0], Err(libc::ECONNREFUSED));
    test.turn_until_quiet();
    let refused = CloseReason::Unreachable(crate::base::reason::OsError::of(libc::ECONNREFUSED));
    assert_eq!(test.events(), [Event::Open(id), Event::Closed(id, refused)]);
    let id = dial(&mut test, 0);
    let impossible = CloseReason::Unreachable(crate::base::reason::OsError::of(libc::EADDRNOTAVAIL));
    assert_eq!(test.close_reason(id), Some(impossible), "also when the call itself fails");
    let id = dial(&mut test, 81);
    test.advance(10_030 * MS);
    assert_eq!(test.close_reason(id), Some(CloseReason::ConnectTimeout));
    assert_eq!(test.script.open_descriptors(), 2, "nothing is left open");
}

#[test]
fn a_dial_can_be_closed_before_it_begins_and_while_it_is_under_way() {
    let mut test = Setup::default().build(discard);
    let id =
        test.event_loop.table.dial(test.service, address().into(), DialOptions::default(), None).unwrap();
    Sockets::new(&mut test.event_loop.table).get(id).unwrap().close();
    test.turn_until_quiet();
    assert_eq!(test.events(), [], "a dial that never began is silent");
    let id = dial(&mut test, 80);
    Sockets::new(&mut test.event_loop.table).get(id).unwrap().close();
    test.turn_until_quiet();
    assert_eq!(test.events(), [Event::Open(id), Event::Closed(id, CloseReason::Local)]);
    assert_eq!(test.script.open_descriptors(), 2);
}

#[test]
fn a_dial_needs_a_free_slot() {
    let mut test = at_capacity(1, Overflow::Wait);
    test.accept();
    let error =
        test.event_loop.table.dial(test.service, address().into(), DialOptions::default(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot dial 10.0.0.1:4000: all 1 connections are in use (raise Limits::connections)"
    );
}
