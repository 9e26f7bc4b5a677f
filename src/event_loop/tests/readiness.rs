//! Who is served, and in which order; what an event may say and what it may not.

use super::*;

#[test]
fn it_looks_before_it_sleeps_only_while_events_come_soon() {
    let us = Duration::from_micros(1);
    let limits = Limits { spin: Some(50 * us), socket: no_idle(), ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(echo);
    let (peer, _) = house.guest();
    house.script.polls_take(us);
    let mut polls_when_asked_every = |gap: Duration| {
        for _ in 0..20 {
            house.script.advance(gap);
            house.script.feed(peer, b"x");
            house.turns.turn(None).unwrap();
        }
        // Nobody says anything now. The deadline ends the sleep.
        let before = house.script.calls().polls;
        house.turns.turn(Some(SECOND)).unwrap();
        house.script.calls().polls - before
    };
    let soon = polls_when_asked_every(20 * us);
    assert!((40..=60).contains(&soon), "it looked {soon} times and slept once");
    assert_eq!(polls_when_asked_every(1_000 * us), 1, "it slept at once");
    assert_eq!(house.script.asked_to_wait(), Some(Some(SECOND)));
}

#[test]
fn an_echo_is_open_data_end_closed() {
    let mut house = Plan::default().build(echo);
    let (peer, id) = house.guest();
    house.script.feed(peer, b"hello");
    house.settle();
    assert_eq!(house.heard(peer), "hello");
    house.script.end(peer);
    house.settle();
    assert!(house.script.heard_end(peer));
    assert_eq!(house.script.gone(peer), Some(Gone::Closed));
    assert_eq!(
        house.told(),
        [
            Told::Open(id),
            Told::Data(id, b"hello".to_vec()),
            Told::End(id, vec![]),
            Told::Closed(id, Closed::Finished)
        ]
    );
}

#[test]
fn an_echo_costs_one_read_and_one_write() {
    let mut house = Plan::default().build(echo);
    let (peer, _) = house.guest();
    let before = house.script.calls();
    for _ in 0..100 {
        house.script.feed(peer, b"hello");
        house.turn();
    }
    let after = house.script.calls();
    assert_eq!((after.reads - before.reads, after.writes - before.writes), (100, 100));
}

#[test]
fn what_a_budget_cut_off_is_read_in_the_next_turn_without_an_event() {
    let mut house = Plan::default().build(echo);
    let (peer, _) = house.guest();
    house.script.feed(peer, &vec![b'x'; 200 * 1024]);
    house.turn();
    assert!(house.turns.has_work(), "64 KiB are a budget; the rest is carried over");
    assert!(house.turns.next_deadline().is_some_and(|at| at <= house.turns.table.elapsed));
    assert!(house.script.is_silent());
    house.settle();
    assert_eq!(house.script.heard(peer).len(), 200 * 1024);
    assert_eq!(
        house.script.asked_to_wait(),
        Some(Some(Duration::ZERO)),
        "a turn with carried-over work does not sleep"
    );
}

#[test]
fn a_flood_on_one_socket_does_not_starve_another() {
    let mut house = Plan::default().build(echo);
    let (blaster, _) = house.guest();
    let (pinger, _) = house.guest();
    house.script.feed(blaster, &vec![b'x'; 10 * 1024 * 1024]);
    house.turn();
    house.script.feed(pinger, b"ping");
    house.turn();
    assert_eq!(house.heard(pinger), "ping");
    assert!(house.script.unread(blaster) > 9 * 1024 * 1024);
}

#[test]
fn whoever_has_just_come_to_the_line_does_not_wait_for_the_round_of_those_who_never_pause() {
    let limits = Limits { read_budget: 1_000, carried_budget: 5_000, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(swallow);
    let blasters: Vec<Peer> = (0..40).map(|_| house.guest().0).collect();
    let (pinger, ping) = house.guest();
    let all = 10_000;
    for &blaster in &blasters {
        house.script.feed(blaster, &vec![b'x'; all]);
    }
    // All of them are new to the line once.
    house.turn();
    let left = |house: &House| blasters.iter().map(|&peer| house.script.unread(peer)).collect::<Vec<_>>();
    assert!(left(&house).iter().all(|&left| left == all - 1_000));
    // After that, five of them have their turn at a time, and nobody has a second one before everybody had the first.
    for round in 1..=3 {
        for group in 1..=8 {
            house.script.feed(pinger, b"ping");
            house.turn();
            assert!(house.told().contains(&Told::Data(ping, b"ping".to_vec())));
            house.diary.borrow_mut().clear();
            let served = left(&house).iter().filter(|&&left| left == all - 1_000 * (round + 1)).count();
            assert_eq!(served, 5 * group);
        }
    }
    house.settle();
    assert_eq!(left(&house).iter().sum::<usize>(), 0);
}

#[test]
fn a_few_get_more_than_one_budget_while_nobody_waits_and_no_more_than_eight() {
    let limits = Limits { read_budget: 1_000, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(swallow);
    let blasters = [house.guest().0, house.guest().0];
    blasters.iter().for_each(|&peer| house.script.feed(peer, &[b'x'; 20_000]));
    house.turn();
    let left = blasters.map(|peer| house.script.unread(peer));
    assert_eq!(left.iter().sum::<usize>(), 40_000 - 2 * 1_000 - 6 * 1_000);
    assert!(left.iter().all(|&left| left <= 19_000));
    house.settle();
    assert_eq!(blasters.map(|peer| house.script.unread(peer)), [0, 0]);
}

#[test]
fn an_end_that_comes_with_the_data_is_not_lost_to_a_short_read() {
    let mut house = Plan::default().build(echo);
    let (peer, id) = house.guest();
    house.script.feed(peer, b"last words");
    house.script.end(peer);
    house.settle();
    assert_eq!(house.heard(peer), "last words");
    assert_eq!(house.farewell(id), Some(Closed::Finished));
}

#[test]
fn what_came_before_a_reset_is_delivered() {
    let mut house = Plan::default().build(swallow);
    let (peer, id) = house.guest();
    house.script.feed(peer, b"last words");
    house.script.reset(peer);
    house.settle();
    assert_eq!(house.told()[1..], [Told::Data(id, b"last words".to_vec()), Told::Closed(id, Closed::Reset)]);
}

#[test]
fn an_event_of_a_past_connection_reaches_nobody() {
    let mut house = Plan::default().build(echo);
    let (peer, id) = house.guest();
    let token = house.script.token(peer).unwrap();
    house.script.end(peer);
    house.settle();
    let (newcomer, second) = house.guest();
    assert_eq!((second.slot, second == id), (id.slot, false), "the slot is used again, under another name");
    house.script.event(token);
    house.settle();
    assert_eq!(house.turns.table.stats.stale_events, 1);
    assert_eq!(house.heard(newcomer), "");
    assert!(house.turns.table.live(id).is_none(), "the old id finds nobody");
}

#[test]
fn generations_wrap_without_harm() {
    let first = NonZeroU32::new(u32::MAX - 2).unwrap();
    let mut house = Plan { first, ..Plan::default() }.build(echo);
    for _ in 0..6 {
        let (peer, _) = house.guest();
        house.script.feed(peer, b"x");
        house.script.end(peer);
        house.settle();
        assert_eq!(house.heard(peer), "x");
    }
}

#[test]
fn the_clock_is_read_once_a_turn_and_one_poll_is_made() {
    let mut house = Plan::default().build(echo);
    let before = house.script.calls().polls;
    house.turn();
    house.turn();
    assert_eq!(house.script.calls().polls - before, 2);
}

#[test]
fn an_idle_loop_sleeps_until_somebody_calls() {
    let mut house = socket_limits(no_idle()).build(echo);
    house.turns.turn(None).unwrap();
    assert_eq!(house.script.asked_to_wait(), Some(None), "nothing is due, so nothing limits the sleep");
    house.guest();
    house.turns.turn(None).unwrap();
    assert_eq!(house.script.asked_to_wait(), Some(None));
}
