//! Alarms of connections, timers of services, and clocks that one connection has for itself.

use super::*;

#[test]
fn an_alarm_goes_off_once_whatever_the_connection_does_meanwhile() {
    let mut house = socket_limits(no_idle()).build_with(|socket| socket.set_alarm(Some(SECOND)), swallow);
    let (peer, id) = house.guest();
    for _ in 0..9 {
        house.script.feed(peer, b"x");
        house.pass(100 * MS);
    }
    assert!(!house.told().contains(&Told::Alarm(id)));
    house.pass(120 * MS);
    house.pass(3 * SECOND);
    assert_eq!(house.told().iter().filter(|told| **told == Told::Alarm(id)).count(), 1);
}

#[test]
fn a_repeating_alarm_repeats_until_it_is_taken_away() {
    let mut house = socket_limits(no_idle()).build_with(|socket| socket.set_alarm_every(SECOND), swallow);
    let (_, id) = house.guest();
    house.pass(3_100 * MS);
    let alarms = |house: &House| house.told().iter().filter(|told| **told == Told::Alarm(id)).count();
    assert_eq!(alarms(&house), 3);
    house.sockets().get(id).unwrap().set_alarm(None);
    house.pass(3 * SECOND);
    assert_eq!(alarms(&house), 3);
}

#[test]
fn a_services_timer_goes_off_and_is_gone_or_repeats_until_it_is_cancelled() {
    let mut house = Plan::default().build(swallow);
    let service = crate::base::id::ServiceId(1);
    let times = |house: &House| house.told().iter().filter(|told| **told == Told::Timer).count();
    house.sockets().set_timer(service, 100 * MS, None).unwrap();
    house.pass(95 * MS);
    assert_eq!(times(&house), 0);
    house.pass(SECOND);
    assert_eq!(times(&house), 1);
    let timer = house.sockets().set_timer(service, 100 * MS, Some(100 * MS)).unwrap();
    house.pass(SECOND + 20 * MS);
    assert!((10..=11).contains(&times(&house)), "{}", times(&house));
    let before = times(&house);
    assert!(house.sockets().cancel_timer(timer) && !house.sockets().cancel_timer(timer));
    house.pass(SECOND);
    assert_eq!(times(&house), before);
}

#[test]
fn timers_are_bounded_and_go_with_the_shutdown() {
    let limits = Limits { timers: 2, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(swallow);
    let service = crate::base::id::ServiceId(1);
    for _ in 0..2 {
        house.sockets().set_timer(service, SECOND, Some(SECOND)).unwrap();
    }
    let error = house.sockets().set_timer(service, SECOND, None).unwrap_err();
    assert_eq!(error.to_string(), "cannot set a timer: there are 2 already (Limits::timers)");
    assert!(!house.turns.is_finished());
    house.sockets().shutdown(Duration::ZERO);
    house.settle();
    assert!(house.turns.is_finished());
    assert_eq!(house.turns.next_tick(), house.turns.drained_by, "nothing else is to come");
}

#[test]
fn an_idle_limit_can_be_set_changed_and_switched_off_in_callbacks() {
    let mut house = Plan::default().build(|socket, input| match input.take_all() {
        b"short" => socket.set_idle(Some(SECOND)),
        b"long" => socket.set_idle(Some(100 * SECOND)),
        b"off" => socket.set_idle(None),
        _ => {}
    });
    let (peer, id) = house.guest();
    for (word, quiet) in
        [("long", 90 * SECOND), ("off", 500 * SECOND), ("long", 90 * SECOND), ("short", 900 * MS)]
    {
        house.script.feed(peer, word.as_bytes());
        house.pass(quiet);
        assert_eq!(house.farewell(id), None, "after {word}");
    }
    house.pass(130 * MS);
    house.script.end(peer);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::Idle));
}

#[test]
fn a_clock_for_one_direction_does_not_hear_the_other() {
    let plan = Plan { keeps_idle: true, ..socket_limits(no_idle()) };
    let mut house = plan.build_with(
        |socket| {
            socket.set_read_idle(Some(SECOND));
            socket.set_write_idle(Some(3 * SECOND));
        },
        swallow,
    );
    let (peer, id) = house.guest();
    let silences =
        |house: &House, which| house.told().iter().filter(|told| **told == Told::Silent(id, which)).count();
    for _ in 0..20 {
        house.script.feed(peer, b"x");
        house.pass(100 * MS);
    }
    assert_eq!((silences(&house, Silent::Reading), silences(&house, Silent::Writing)), (0, 0));
    for _ in 0..20 {
        house.sockets().get(id).unwrap().send(b"x");
        house.pass(100 * MS);
    }
    let reading = silences(&house, Silent::Reading);
    assert!((1..=2).contains(&reading) && silences(&house, Silent::Writing) == 0, "{:?}", house.told());
    house.pass(3_050 * MS);
    assert_eq!(silences(&house, Silent::Writing), 1);
}
