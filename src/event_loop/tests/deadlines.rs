//! Each timeout of a connection, on a simulated clock that a test moves.

use super::*;

/// Moves the clock and turns until the connection is closing or gone; returns how long that took.
fn ends_after(test: &mut TestLoop, peer: PeerId, id: ConnId) -> Duration {
    let mut passed = Duration::ZERO;
    while test.close_reason(id).is_none() && !test.script.received_end(peer) {
        test.advance(5 * MS);
        passed += 5 * MS;
        assert!(passed < 1_000 * SECOND, "it never ends");
    }
    passed
}

fn assert_about(passed: Duration, expected: Duration) {
    assert!(passed >= expected && passed <= expected + 25 * MS, "{passed:?} instead of {expected:?}");
}

#[test]
pub(super) fn the_idle_timeout_is_never_early() {
    let limits = SocketLimits { idle: Some(2 * SECOND), ..no_idle() };
    for said_by_peer in [true, false] {
        let mut test = socket_limits(limits.clone()).build(discard);
        let (peer, id) = test.accept();
        test.advance(1_500 * MS);
        if said_by_peer {
            test.script.feed(peer, b"x");
        } else {
            Sockets::new(&mut test.event_loop.table).get(id).unwrap().send(b"x");
        }
        test.turn_until_quiet();
        assert_about(ends_after(&mut test, peer, id), 2 * SECOND);
        test.script.end(peer);
        test.turn_until_quiet();
        assert_eq!(test.close_reason(id), Some(CloseReason::Idle));
    }
}

#[test]
fn a_connection_kept_after_idle_gets_a_whole_new_span() {
    let mut plan = socket_limits(SocketLimits { idle: Some(SECOND), ..no_idle() });
    plan.keeps_idle = true;
    let mut test = plan.build(echo);
    let (_, id) = test.accept();
    test.advance(3_500 * MS);
    assert_eq!(test.events().iter().filter(|events| **events == Event::Idle(id)).count(), 3);
}

#[test]
fn limits_that_are_replaced_hold_for_open_connections_too() {
    let is_idle = |test: &TestLoop, id| test.events().contains(&Event::Idle(id));
    let mut test = socket_limits(SocketLimits { idle: Some(100 * SECOND), ..no_idle() }).build(echo);
    let (_, id) = test.accept();
    test.advance(3 * SECOND);
    let (service, age) = test.sockets().get(id).map(|socket| (socket.service(), socket.age())).unwrap();
    assert_about(age, 3 * SECOND);
    test.sockets().set_limits(service, SocketLimits { idle: Some(5 * SECOND), ..no_idle() });
    test.advance(SECOND);
    assert!(!is_idle(&test, id));
    // Five seconds after it was accepted, and not after the change.
    test.advance(1_500 * MS);
    assert!(is_idle(&test, id));
    // A longer limit: the alarm of the shorter one finds that nothing is due.
    let (_, id) = test.accept();
    test.sockets().set_limits(service, SocketLimits { idle: Some(9 * SECOND), ..no_idle() });
    test.advance(8 * SECOND);
    assert!(!is_idle(&test, id));
    test.advance(2 * SECOND);
    assert!(is_idle(&test, id));
}

#[test]
fn limits_and_groups_of_another_reactor_are_ignored() {
    let mut other = socket_limits(no_idle()).build(discard);
    let foreign = other.sockets().add_group(1).unwrap();
    let (_, its) = other.accept();
    let its_service = other.sockets().get(its).unwrap().service();
    let mut test = socket_limits(no_idle()).build(discard);
    let (peer, id) = test.accept();
    let own = test.sockets().get(id).unwrap().service();
    test.sockets().set_limits(its_service, SocketLimits { idle: Some(SECOND), ..no_idle() });
    test.sockets().set_limits(own, SocketLimits { group: Some(foreign), ..no_idle() });
    test.advance(10 * SECOND);
    assert_eq!(test.close_reason(id), None);
    test.script.feed(peer, b"read");
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 0);
}

#[test]
fn five_hundred_deadlines_at_once_are_spread_over_turns() {
    let limits = Limits {
        accepts_per_turn: 500,
        socket: SocketLimits { idle: Some(SECOND), ..no_idle() },
        ..Limits::default()
    };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    (0..500).for_each(|_| _ = test.script.connect());
    test.turn_until_quiet();
    test.script.advance(2 * SECOND);
    test.turn();
    let idle =
        |test: &TestLoop| test.events().iter().filter(|events| matches!(events, Event::Idle(_))).count();
    assert_eq!(idle(&test), 256);
    assert!(test.event_loop.has_work());
    test.turn();
    assert_eq!(idle(&test), 500);
}

#[test]
fn a_jump_of_the_clock_fires_each_alarm_once() {
    let mut test = socket_limits(SocketLimits { idle: Some(SECOND), ..no_idle() }).build(echo);
    let (_, id) = test.accept();
    test.script.advance(1_000_000 * SECOND);
    test.turn_until_quiet();
    assert_eq!(test.events().iter().filter(|events| **events == Event::Idle(id)).count(), 1);
}

#[test]
fn each_timeout_closes_with_its_own_reason() {
    let pace = Some(MinRate { bytes: 1_024, per: 10 * SECOND });
    let none = SocketLimits {
        idle: None,
        half_closed: None,
        min_read_rate: None,
        min_write_rate: None,
        ..SocketLimits::default()
    };
    let cases = [
        (SocketLimits { first_byte: Some(SECOND), ..none.clone() }, "", CloseReason::FirstByte, SECOND),
        (SocketLimits { lifetime: Some(SECOND), ..none.clone() }, "x", CloseReason::Lifetime, SECOND),
        (
            SocketLimits { message_timeout: Some(SECOND), ..none.clone() },
            "x",
            CloseReason::Unfinished,
            SECOND,
        ),
        (SocketLimits { min_read_rate: pace, ..none.clone() }, "x", CloseReason::TooSlow, 10 * SECOND),
    ];
    for (limits, sent, why, after) in cases {
        let mut test = socket_limits(limits).build(|_, _| {});
        let (peer, id) = test.accept();
        test.script.feed(peer, sent.as_bytes());
        test.turn_until_quiet();
        assert_about(ends_after(&mut test, peer, id), after);
        test.script.end(peer);
        test.turn_until_quiet();
        assert_eq!(test.close_reason(id), Some(why));
    }
}

#[test]
fn a_peer_that_reads_slower_than_the_minimum_rate_is_closed_whatever_it_sends() {
    let limits = SocketLimits { read_when_full: true, ..SocketLimits::default() };
    let mut test = socket_limits(limits).build(|socket, input| {
        if input.take_all() == b"start" {
            socket.send([b'x'; 100_000]);
        }
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 0);
    test.script.feed(peer, b"start");
    test.turn_until_quiet();
    for second in 1..=10 {
        assert_eq!(test.close_reason(id), None, "after {} s", second - 1);
        test.advance(SECOND);
        test.script.window(peer, 1);
        test.script.feed(peer, b"drip");
        test.turn_until_quiet();
    }
    test.advance(30 * MS);
    assert_eq!(test.close_reason(id), Some(CloseReason::TooSlow));
}

#[test]
fn a_peer_above_the_minimum_rate_stays_connected() {
    let mut test = socket_limits(no_idle()).build(|_, _| {});
    let (peer, id) = test.accept();
    for _ in 0..30 {
        test.script.feed(peer, &[b'x'; 1_024]);
        test.advance(9_900 * MS);
    }
    assert_eq!(test.close_reason(id), None);
}

/// A FIN says that everything was sent: a peer that reads late would take half an answer for a whole one.
#[test]
fn a_deadline_that_drops_a_queue_ends_the_connection_with_a_reset() {
    let limits = SocketLimits { half_closed: Some(SECOND), min_write_rate: None, ..no_idle() };
    let mut test = Setup { finishes: false, ..socket_limits(limits) }.build(echo);
    let (peer, id) = test.accept();
    test.script.window(peer, 3);
    test.script.feed(peer, b"hello");
    test.script.end(peer);
    test.advance(5 * SECOND);
    assert_eq!(test.close_reason(id), Some(CloseReason::HalfClosed));
    assert_eq!((test.received(peer).as_str(), test.script.received_end(peer)), ("hel", false));
    assert_eq!(test.script.released(peer), Some(Released::Reset));
    // With nothing queued it is an orderly end.
    let (peer, id) = test.accept();
    test.script.feed(peer, b"hello");
    test.script.end(peer);
    test.advance(5 * SECOND);
    assert_eq!(test.close_reason(id), Some(CloseReason::HalfClosed));
    assert_eq!((test.received(peer).as_str(), test.script.received_end(peer)), ("hello", true));
}

#[test]
fn a_half_closed_connection_times_out_without_traffic() {
    let mut plan = socket_limits(SocketLimits { half_closed: Some(SECOND), ..no_idle() });
    plan.finishes = false;
    let mut test = plan.build(discard);
    let (peer, id) = test.accept();
    test.script.end(peer);
    test.turn_until_quiet();
    test.advance(500 * MS);
    Sockets::new(&mut test.event_loop.table).get(id).unwrap().send(b"more");
    test.turn_until_quiet();
    assert_about(ends_after(&mut test, peer, id), SECOND);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::HalfClosed));
}

#[test]
pub(super) fn a_lifetime_ends_a_connection_that_is_closing_too() {
    let mut test = socket_limits(SocketLimits { lifetime: Some(5 * SECOND), ..no_idle() }).build(discard);
    let (peer, id) = test.accept();
    test.script.window(peer, 0);
    test.sockets().get(id).unwrap().send(vec![b'q'; 120_000]);
    test.turn_until_quiet();
    for _ in 0..10 {
        // Just above the minimum rate.
        test.script.window(peer, 1_030);
        test.turn_until_quiet();
        test.advance(9 * SECOND);
    }
    assert_eq!(test.close_reason(id), Some(CloseReason::Lifetime));
}

#[test]
pub(super) fn a_rate_does_not_restart_the_clocks_of_a_message() {
    for rate in [None, Some(1_000)] {
        let limits = SocketLimits { rate, message_timeout: Some(60 * SECOND), ..no_idle() };
        let mut test = socket_limits(limits).build(|_, _| {});
        let (peer, id) = test.accept();
        for _ in 0..10 {
            for _ in 0..2 {
                test.script.feed(peer, b"x");
                test.turn_until_quiet();
            }
            test.advance(9 * SECOND);
        }
        assert!(test.close_reason(id).is_some(), "two bytes in nine seconds, with the rate {rate:?}");
    }
}
