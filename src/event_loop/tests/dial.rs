//! Dialed connections: connecting, failing, and dialing again.

use std::net::SocketAddr;

use super::*;
use crate::config::dial::{Backoff, DialOptions};
use crate::connection::state::Origin;

fn dial(test: &mut TestLoop, port: u16) -> ConnId {
    let mut to = address();
    to.set_port(port);
    let id = test.event_loop.table.dial(test.service, to.into(), DialOptions::default(), None).unwrap();
    test.turn_until_quiet();
    id
}

#[test]
pub(super) fn a_dialed_connection_gets_the_same_callbacks() {
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
fn each_dialed_connection_has_its_own_local_port_and_its_tag_to_the_end() {
    let mut test = socket_limits(no_idle()).build(discard);
    let dial = |test: &mut TestLoop, tag| {
        let options = DialOptions { tag, ..DialOptions::default() };
        test.event_loop.table.dial(test.service, address().into(), options, None).unwrap()
    };
    let ids = [dial(&mut test, 1), dial(&mut test, 2)];
    test.turn_until_quiet();
    let peers: Vec<_> = test.script.dialed();
    peers.iter().for_each(|&peer| test.script.finish_dial(peer, Ok(())));
    test.turn_until_quiet();
    let local = peers.iter().map(|peer| Some(format!("10.0.0.2:{}", 5_000 + peer)));
    let expected: Vec<_> = local.zip([1, 2]).collect();
    let asked = ids.map(|id| {
        let mut sockets = test.sockets();
        let socket = sockets.get(id).unwrap();
        assert_eq!(socket.listener(), None);
        (socket.local_addr().map(|local| local.to_string()), socket.tag())
    });
    assert_eq!(asked.to_vec(), expected);
    peers.iter().for_each(|&peer| test.script.reset(peer));
    test.turn_until_quiet();
    let closed = test.closed_log.borrow();
    let told = closed.iter().map(|gone| (gone.local.as_ref().map(|local| local.to_string()), gone.tag));
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn a_dialed_connection_has_its_local_address_although_254_others_have_one_each() {
    let mut test = socket_limits(no_idle()).build(discard);
    let ids: Vec<ConnId> = (0..255).map(|_| dial(&mut test, 80)).collect();
    let peer = test.script.dialed()[0];
    for (n, &id) in (0..254).zip(&ids[1..]) {
        test.event_loop.table.set_local(id, SocketAddr::from(([10, 1, 0, n], 6_000)));
    }
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    let local = format!("10.0.0.2:{}", 5_000 + peer);
    let address =
        |test: &mut TestLoop, id| test.sockets().get(id).unwrap().local_addr().map(|local| local.to_string());
    assert_eq!(address(&mut test, ids[0]), Some(local.clone()));
    assert_eq!(address(&mut test, ids[254]), Some("10.1.0.253:6000".to_string()));
    test.script.reset(peer);
    test.turn_until_quiet();
    let closed = test.closed_log.borrow();
    assert_eq!(closed[0].local.as_ref().map(|local| local.to_string()), Some(local));
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

/// How each connection began: its id, its tag, and the id of the one that it replaces.
type Begins = Rc<RefCell<Vec<(ConnId, u64, Option<ConnId>)>>>;

/// A dial that is made again after a second at most, connected.
fn redialed(options: DialOptions) -> (TestLoop, ConnId, Begins) {
    let begins = Begins::default();
    let seen = begins.clone();
    let on_open = move |socket: &mut Socket<'_>| {
        let Origin::Dialed { by: None, after } = socket.origin() else { panic!("{:?}", socket.origin()) };
        seen.borrow_mut().push((socket.id(), socket.tag(), after));
    };
    let mut test = socket_limits(no_idle()).build_with(on_open, discard);
    let id = test.event_loop.table.dial(test.service, address().into(), options, None).unwrap();
    test.turn_until_quiet();
    test.script.finish_dial(test.script.dialed()[0], Ok(()));
    test.turn_until_quiet();
    (test, id, begins)
}

fn within_a_second() -> DialOptions {
    let reconnect = Some(Backoff { first: SECOND, max: SECOND });
    DialOptions { reconnect, tag: 7, ..DialOptions::default() }
}

#[test]
fn a_service_drops_a_link_and_has_it_dialed_again() {
    let (mut test, first, begins) = redialed(within_a_second());
    assert!(test.sockets().get(first).unwrap().redial());
    assert!(test.sockets().get(first).is_none(), "it is closed");
    test.turn_until_quiet();
    assert_eq!(test.script.released(test.script.dialed()[0]), Some(Released::Reset));
    let gone = test.closed_log.borrow()[0].clone();
    assert_eq!((gone.id, gone.reason, gone.tag), (first, CloseReason::Aborted, 7));
    let wait = gone.redial_in.expect("it is dialed again");
    assert!((SECOND / 2..=SECOND).contains(&wait), "{wait:?}");
    test.advance(wait - 20 * MS);
    assert_eq!(begins.borrow().len(), 1, "not before that time");
    test.advance(50 * MS);
    let begins = begins.borrow();
    assert_eq!(begins.len(), 2);
    assert_eq!((begins[1].1, begins[1].2), (7, Some(first)), "its successor has its tag and names it");
    assert_ne!(begins[1].0, first);
}

#[test]
fn closed_says_whether_a_redial_follows_and_it_can_be_cancelled_by_the_old_id() {
    let (mut test, first, begins) = redialed(within_a_second());
    test.script.reset(test.script.dialed()[0]);
    test.turn_until_quiet();
    assert!(test.closed_log.borrow()[0].redial_in.is_some());
    assert!(test.sockets().cancel_dial(first));
    test.advance(2 * SECOND);
    assert_eq!(begins.borrow().len(), 1);
    // Closed by its service, or dialed without the option: none follows.
    let (mut test, id, _) = redialed(within_a_second());
    test.sockets().get(id).unwrap().abort();
    test.turn_until_quiet();
    assert_eq!(test.closed_log.borrow()[0].redial_in, None);
    let (mut test, id, _) = redialed(DialOptions::default());
    assert!(!test.sockets().get(id).unwrap().redial());
    assert_eq!(test.sockets().get(id).unwrap().tag(), 0);
    test.script.reset(test.script.dialed()[0]);
    test.turn_until_quiet();
    assert_eq!(test.closed_log.borrow()[0].redial_in, None);
}
