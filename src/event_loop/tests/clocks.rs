//! Every clock, on a clock that moves when a test moves it.

use super::*;

/// Turns while the clock moves until the connection has ended or begun to close; says after how long.
fn ends_after(house: &mut House, peer: Peer, id: ConnId) -> Duration {
    let mut passed = Duration::ZERO;
    while house.farewell(id).is_none() && !house.script.heard_end(peer) {
        house.pass(5 * MS);
        passed += 5 * MS;
        assert!(passed < 1_000 * SECOND, "it never ends");
    }
    passed
}

fn assert_about(passed: Duration, expected: Duration) {
    assert!(passed >= expected && passed <= expected + 25 * MS, "{passed:?} instead of {expected:?}");
}

#[test]
fn a_silent_peer_is_idle_when_its_time_is_up_and_not_before() {
    let limits = SocketLimits { idle: Some(2 * SECOND), ..no_idle() };
    for said_by_peer in [true, false] {
        let mut house = socket_limits(limits.clone()).build(swallow);
        let (peer, id) = house.guest();
        house.pass(1_500 * MS);
        if said_by_peer {
            house.script.feed(peer, b"x");
        } else {
            Sockets::new(&mut house.turns.table).get(id).unwrap().send(b"x");
        }
        house.settle();
        assert_about(ends_after(&mut house, peer, id), 2 * SECOND);
        house.script.end(peer);
        house.settle();
        assert_eq!(house.farewell(id), Some(Closed::Idle));
    }
}

#[test]
fn a_service_that_keeps_an_idle_one_is_asked_again_after_a_whole_span() {
    let mut plan = socket_limits(SocketLimits { idle: Some(SECOND), ..no_idle() });
    plan.keeps_idle = true;
    let mut house = plan.build(echo);
    let (_, id) = house.guest();
    house.pass(3_500 * MS);
    assert_eq!(house.told().iter().filter(|told| **told == Told::Idle(id)).count(), 3);
}

#[test]
fn five_hundred_that_are_due_together_are_spread_over_turns() {
    let limits = Limits {
        accepts: 500,
        socket: SocketLimits { idle: Some(SECOND), ..no_idle() },
        ..Limits::default()
    };
    let mut house = Plan { limits, ..Plan::default() }.build(echo);
    (0..500).for_each(|_| _ = house.script.connect());
    house.settle();
    house.script.advance(2 * SECOND);
    house.turn();
    let idle = |house: &House| house.told().iter().filter(|told| matches!(told, Told::Idle(_))).count();
    assert_eq!(idle(&house), 256);
    assert!(house.turns.has_work());
    house.turn();
    assert_eq!(idle(&house), 500);
}

#[test]
fn a_jump_of_the_clock_fires_each_alarm_once() {
    let mut house = socket_limits(SocketLimits { idle: Some(SECOND), ..no_idle() }).build(echo);
    let (_, id) = house.guest();
    house.script.advance(1_000_000 * SECOND);
    house.settle();
    assert_eq!(house.told().iter().filter(|told| **told == Told::Idle(id)).count(), 1);
}

#[test]
fn each_clock_ends_a_connection_for_its_own_reason() {
    let pace = Some(Pace { bytes: 1_024, per: 10 * SECOND });
    let none = SocketLimits {
        idle: None,
        half_closed: None,
        read_pace: None,
        write_pace: None,
        ..SocketLimits::default()
    };
    let cases = [
        (SocketLimits { first_byte: Some(SECOND), ..none.clone() }, "", Closed::FirstByte, SECOND),
        (SocketLimits { lifetime: Some(SECOND), ..none.clone() }, "x", Closed::Lifetime, SECOND),
        (SocketLimits { message_within: Some(SECOND), ..none.clone() }, "x", Closed::Unfinished, SECOND),
        (SocketLimits { read_pace: pace, ..none.clone() }, "x", Closed::TooSlow, 10 * SECOND),
    ];
    for (limits, said, why, after) in cases {
        let mut house = socket_limits(limits).build(|_, _| {});
        let (peer, id) = house.guest();
        house.script.feed(peer, said.as_bytes());
        house.settle();
        assert_about(ends_after(&mut house, peer, id), after);
        house.script.end(peer);
        house.settle();
        assert_eq!(house.farewell(id), Some(why));
    }
}

#[test]
fn a_peer_that_reads_a_drop_at_a_time_is_too_slow_whatever_it_sends() {
    let limits = SocketLimits { read_when_full: true, ..SocketLimits::default() };
    let mut house = socket_limits(limits).build(|socket, input| {
        if input.take_all() == b"start" {
            socket.send(&[b'x'; 100_000]);
        }
    });
    let (peer, id) = house.guest();
    house.script.window(peer, 0);
    house.script.feed(peer, b"start");
    house.settle();
    for second in 1..=10 {
        assert_eq!(house.farewell(id), None, "after {} s", second - 1);
        house.pass(SECOND);
        house.script.window(peer, 1);
        house.script.feed(peer, b"drip");
        house.settle();
    }
    house.pass(30 * MS);
    assert_eq!(house.farewell(id), Some(Closed::TooSlow));
}

#[test]
fn a_peer_that_keeps_the_pace_is_left_alone() {
    let mut house = socket_limits(no_idle()).build(|_, _| {});
    let (peer, id) = house.guest();
    for _ in 0..30 {
        house.script.feed(peer, &[b'x'; 1_024]);
        house.pass(9_900 * MS);
    }
    assert_eq!(house.farewell(id), None);
}

#[test]
fn a_half_closed_one_ends_when_nothing_moves_any_more() {
    let mut plan = socket_limits(SocketLimits { half_closed: Some(SECOND), ..no_idle() });
    plan.finishes = false;
    let mut house = plan.build(swallow);
    let (peer, id) = house.guest();
    house.script.end(peer);
    house.settle();
    house.pass(500 * MS);
    Sockets::new(&mut house.turns.table).get(id).unwrap().send(b"more");
    house.settle();
    assert_about(ends_after(&mut house, peer, id), SECOND);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::HalfClosed));
}
