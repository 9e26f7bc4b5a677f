//! Readiness: which connections are read, in which order, and what an event can mean.

use super::*;

#[test]
fn it_busy_polls_before_sleeping_only_while_events_come_soon() {
    let us = Duration::from_micros(1);
    let limits = Limits { busy_poll: Some(50 * us), socket: no_idle(), ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    let (peer, _) = test.accept();
    test.script.set_poll_cost(us);
    let mut polls_when_asked_every = |gap: Duration| {
        for _ in 0..20 {
            test.script.advance(gap);
            test.script.feed(peer, b"x");
            test.event_loop.turn(None).unwrap();
        }
        // No event comes now. The deadline ends the sleep.
        let before = test.script.calls().polls;
        test.event_loop.turn(Some(SECOND)).unwrap();
        test.script.calls().polls - before
    };
    let soon = polls_when_asked_every(20 * us);
    assert!((40..=60).contains(&soon), "it looked {soon} times and slept once");
    assert_eq!(polls_when_asked_every(1_000 * us), 1, "it slept at once");
    assert_eq!(test.script.last_wait(), Some(Some(SECOND)));
}

#[test]
fn an_echo_is_open_data_end_closed() {
    let mut test = Setup::default().build(echo);
    let (peer, id) = test.accept();
    test.script.feed(peer, b"hello");
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "hello");
    test.script.end(peer);
    test.turn_until_quiet();
    assert!(test.script.received_end(peer));
    assert_eq!(test.script.released(peer), Some(Released::Closed));
    assert_eq!(
        test.events(),
        [
            Event::Open(id),
            Event::Data(id, b"hello".to_vec()),
            Event::End(id, vec![]),
            Event::Closed(id, CloseReason::Finished)
        ]
    );
}

#[test]
fn an_echo_costs_one_read_and_one_write() {
    let mut test = Setup::default().build(echo);
    let (peer, _) = test.accept();
    let before = test.script.calls();
    for _ in 0..100 {
        test.script.feed(peer, b"hello");
        test.turn();
    }
    let after = test.script.calls();
    assert_eq!((after.reads - before.reads, after.writes - before.writes), (100, 100));
}

#[test]
fn what_a_budget_cut_off_is_read_in_the_next_turn_without_an_event() {
    let mut test = Setup::default().build(echo);
    let (peer, _) = test.accept();
    test.script.feed(peer, &vec![b'x'; 200 * 1024]);
    test.turn();
    assert!(test.event_loop.has_work(), "64 KiB are a budget; the rest is carried over");
    assert!(test.event_loop.next_deadline().is_some_and(|at| at <= test.event_loop.table.cx.elapsed));
    assert!(test.script.is_quiet());
    test.turn_until_quiet();
    assert_eq!(test.script.received(peer).len(), 200 * 1024);
    assert_eq!(
        test.script.last_wait(),
        Some(Some(Duration::ZERO)),
        "a turn with carried-over work does not sleep"
    );
}

#[test]
pub(super) fn a_flood_on_one_socket_does_not_starve_another() {
    let mut test = Setup::default().build(echo);
    let (blaster, _) = test.accept();
    let (pinger, _) = test.accept();
    test.script.feed(blaster, &vec![b'x'; 10 * 1024 * 1024]);
    test.turn();
    test.script.feed(pinger, b"ping");
    test.turn();
    assert_eq!(test.received(pinger), "ping");
    assert!(test.script.unread(blaster) > 9 * 1024 * 1024);
}

#[test]
fn a_newly_readable_connection_is_read_before_those_carried_over() {
    let limits = Limits { read_budget: 1_000, carried_over_budget: 5_000, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    let blasters: Vec<PeerId> = (0..40).map(|_| test.accept().0).collect();
    let (pinger, ping) = test.accept();
    let all = 10_000;
    for &blaster in &blasters {
        test.script.feed(blaster, &vec![b'x'; all]);
    }
    // In the first turn all of them are new in the ready list.
    test.turn();
    let left = |test: &TestLoop| blasters.iter().map(|&peer| test.script.unread(peer)).collect::<Vec<_>>();
    assert!(left(&test).iter().all(|&left| left == all - 1_000));
    // After that, five are read in each turn, and none is read twice before all were read once.
    for round in 1..=3 {
        for group in 1..=8 {
            test.script.feed(pinger, b"ping");
            test.turn();
            assert!(test.events().contains(&Event::Data(ping, b"ping".to_vec())));
            test.log.borrow_mut().clear();
            let served = left(&test).iter().filter(|&&left| left == all - 1_000 * (round + 1)).count();
            assert_eq!(served, 5 * group);
        }
    }
    test.turn_until_quiet();
    assert_eq!(left(&test).iter().sum::<usize>(), 0);
}

#[test]
pub(super) fn extra_read_budgets_are_granted_while_no_connection_waits_and_at_most_eight() {
    let limits = Limits { read_budget: 1_000, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    let blasters = [test.accept().0, test.accept().0];
    blasters.iter().for_each(|&peer| test.script.feed(peer, &[b'x'; 20_000]));
    test.turn();
    let left = blasters.map(|peer| test.script.unread(peer));
    assert_eq!(left.iter().sum::<usize>(), 40_000 - 2 * 1_000 - 6 * 1_000);
    assert!(left.iter().all(|&left| left <= 19_000));
    test.turn_until_quiet();
    assert_eq!(blasters.map(|peer| test.script.unread(peer)), [0, 0]);
}

#[test]
fn an_end_that_comes_with_the_data_is_not_lost_to_a_short_read() {
    let mut test = Setup::default().build(echo);
    let (peer, id) = test.accept();
    test.script.feed(peer, b"last words");
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "last words");
    assert_eq!(test.close_reason(id), Some(CloseReason::Finished));
}

#[test]
fn what_came_before_a_reset_is_delivered() {
    let mut test = Setup::default().build(discard);
    let (peer, id) = test.accept();
    test.script.feed(peer, b"last words");
    test.script.reset(peer);
    test.turn_until_quiet();
    assert_eq!(
        test.events()[1..],
        [Event::Data(id, b"last words".to_vec()), Event::Closed(id, CloseReason::Reset)]
    );
}

#[test]
pub(super) fn an_event_of_a_closed_connection_is_dropped() {
    let mut test = Setup::default().build(echo);
    let (peer, id) = test.accept();
    let token = test.script.token(peer).unwrap();
    test.script.end(peer);
    test.turn_until_quiet();
    let (newcomer, second) = test.accept();
    assert_eq!((second.slot, second == id), (id.slot, false), "the slot is used again, under another name");
    test.script.event(token);
    test.turn_until_quiet();
    assert_eq!(test.event_loop.table.cx.stats.stale_events, 1);
    assert_eq!(test.received(newcomer), "");
    assert!(test.event_loop.table.live(id).is_none(), "the old id finds no connection");
}

#[test]
fn generations_wrap_without_harm() {
    let first = NonZeroU32::new(u32::MAX - 2).unwrap();
    let mut test = Setup { first_generation: first, ..Setup::default() }.build(echo);
    for _ in 0..6 {
        let (peer, _) = test.accept();
        test.script.feed(peer, b"x");
        test.script.end(peer);
        test.turn_until_quiet();
        assert_eq!(test.received(peer), "x");
    }
}

#[test]
fn the_clock_is_read_once_a_turn_and_one_poll_is_made() {
    let mut test = Setup::default().build(echo);
    let before = test.script.calls().polls;
    test.turn();
    test.turn();
    assert_eq!(test.script.calls().polls - before, 2);
}

#[test]
fn an_idle_loop_sleeps_until_a_connection_arrives() {
    let mut test = socket_limits(no_idle()).build(echo);
    test.event_loop.turn(None).unwrap();
    assert_eq!(test.script.last_wait(), Some(None), "nothing is due, so nothing limits the sleep");
    test.accept();
    test.event_loop.turn(None).unwrap();
    assert_eq!(test.script.last_wait(), Some(None));
}

#[test]
pub(super) fn a_connection_paused_by_another_gets_no_data_although_it_is_in_the_ready_list() {
    let target: Rc<RefCell<Option<ConnId>>> = Rc::default();
    let pauses = target.clone();
    let mut test = socket_limits(no_idle()).build(move |socket, input| {
        if input.bytes().starts_with(b"PAUSE") {
            input.take_all();
            let id = pauses.borrow().unwrap();
            socket.other(id).unwrap().pause();
        } else {
            socket.pause();
        }
    });
    let ((b, id_b), (a, _)) = (test.accept(), test.accept());
    *target.borrow_mut() = Some(id_b);
    test.script.feed(b, b"later");
    test.turn_until_quiet();
    let data = |test: &TestLoop| {
        test.events().iter().filter(|e| matches!(e, Event::Data(id, _) if *id == id_b)).count()
    };
    let before = data(&test);
    test.sockets().get(id_b).unwrap().resume();
    test.script.feed(a, b"PAUSE");
    test.turn_until_quiet();
    assert!(test.sockets().get(id_b).unwrap().is_paused());
    assert_eq!(data(&test), before);
}

#[test]
fn unlimited_budgets_do_not_stop_the_loop() {
    let limits = Limits {
        read_budget: usize::MAX,
        carried_over_budget: usize::MAX,
        write_budget: usize::MAX,
        ..Limits::default()
    };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    let (peer, _) = test.accept();
    test.script.feed(peer, &vec![b'x'; 500_000]);
    test.turn_until_quiet();
    assert_eq!(test.received(peer).len(), 500_000);
}

#[test]
pub(super) fn input_that_came_before_a_reset_is_delivered_although_a_write_fails_first() {
    let limits = Limits { read_budget: 1_000, carried_over_budget: 1_000, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(|socket, input| {
        input.take_all();
        socket.send(b"answer");
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, &[b'x'; 50_000]);
    test.script.reset(peer);
    test.turn_until_quiet();
    let delivered: usize = test
        .events()
        .iter()
        .map(|event| if let Event::Data(_, bytes) = event { bytes.len() } else { 0 })
        .sum();
    assert_eq!((delivered, test.close_reason(id)), (50_000, Some(CloseReason::Reset)));
    assert!(!test.events().iter().any(|event| matches!(event, Event::End(..))), "a reset is no end");
}

#[test]
pub(super) fn a_reset_is_noticed_within_a_second_while_the_connection_is_held() {
    for held in ["paused", "full", "half-closed"] {
        let limits = SocketLimits { min_write_rate: None, half_closed: None, ..no_idle() };
        let setup = Setup { finishes: false, ..socket_limits(limits) };
        let mut test = setup.build(|_, _| {});
        let (peer, id) = test.accept();
        match held {
            "paused" => test.sockets().get(id).unwrap().pause(),
            "full" => {
                test.script.window(peer, 0);
                test.sockets().get(id).unwrap().send([b'q'; 200_000]);
            }
            _ => test.script.end(peer),
        }
        test.turn_until_quiet();
        assert_eq!(test.close_reason(id), None, "{held}");
        test.script.reset(peer);
        test.advance(SECOND + 50 * MS);
        assert_eq!(test.close_reason(id), Some(CloseReason::Reset), "{held}");
    }
}
