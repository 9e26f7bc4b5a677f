//! Alarms of connections, timers of services, and timeouts that one connection sets for itself.

use super::*;

#[test]
fn an_alarm_fires_once_whatever_the_connection_does_meanwhile() {
    let mut test = socket_limits(no_idle()).build_with(|socket| socket.set_alarm(Some(SECOND)), discard);
    let (peer, id) = test.accept();
    for _ in 0..9 {
        test.script.feed(peer, b"x");
        test.advance(100 * MS);
    }
    assert!(!test.events().contains(&Event::Alarm(id)));
    test.advance(120 * MS);
    test.advance(3 * SECOND);
    assert_eq!(test.events().iter().filter(|events| **events == Event::Alarm(id)).count(), 1);
}

#[test]
fn a_repeating_alarm_repeats_until_cancelled() {
    let mut test = socket_limits(no_idle()).build_with(|socket| socket.set_alarm_every(SECOND), discard);
    let (_, id) = test.accept();
    test.advance(3_100 * MS);
    let alarms = |test: &TestLoop| test.events().iter().filter(|events| **events == Event::Alarm(id)).count();
    assert_eq!(alarms(&test), 3);
    test.sockets().get(id).unwrap().set_alarm(None);
    test.advance(3 * SECOND);
    assert_eq!(alarms(&test), 3);
}

#[test]
fn a_service_timer_fires_once_or_repeats_until_cancelled() {
    let mut test = Setup::default().build(discard);
    let service = test.service;
    let times = |test: &TestLoop| test.events().iter().filter(|events| **events == Event::Timer).count();
    test.sockets().set_timer(service, 100 * MS, None).unwrap();
    test.advance(95 * MS);
    assert_eq!(times(&test), 0);
    test.advance(SECOND);
    assert_eq!(times(&test), 1);
    let timer = test.sockets().set_timer(service, 100 * MS, Some(100 * MS)).unwrap();
    test.advance(SECOND + 20 * MS);
    assert!((10..=11).contains(&times(&test)), "{}", times(&test));
    let before = times(&test);
    assert!(test.sockets().cancel_timer(timer) && !test.sockets().cancel_timer(timer));
    test.advance(SECOND);
    assert_eq!(times(&test), before);
}

#[test]
fn timers_are_bounded_and_cancelled_by_shutdown() {
    let limits = Limits { timers: 2, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    let service = test.service;
    for _ in 0..2 {
        test.sockets().set_timer(service, SECOND, Some(SECOND)).unwrap();
    }
    let error = test.sockets().set_timer(service, SECOND, None).unwrap_err();
    assert_eq!(error.to_string(), "cannot set a timer: there are 2 already (Limits::timers)");
    assert!(!test.event_loop.is_finished());
    test.sockets().shutdown(Duration::ZERO);
    test.turn_until_quiet();
    assert!(test.event_loop.is_finished());
    assert_eq!(test.event_loop.next_tick(), None, "nothing is left, so nothing is to come");
    test.event_loop.turn(None).unwrap();
    assert_eq!(test.script.last_wait(), Some(None), "a loop that goes on being turned after shutdown sleeps");
}

#[test]
fn an_idle_limit_can_be_set_changed_and_switched_off_in_callbacks() {
    let mut test = Setup::default().build(|socket, input| match input.take_all() {
        b"short" => socket.set_idle(Some(SECOND)),
        b"long" => socket.set_idle(Some(100 * SECOND)),
        b"off" => socket.set_idle(None),
        _ => {}
    });
    let (peer, id) = test.accept();
    for (word, quiet) in
        [("long", 90 * SECOND), ("off", 500 * SECOND), ("long", 90 * SECOND), ("short", 900 * MS)]
    {
        test.script.feed(peer, word.as_bytes());
        test.advance(quiet);
        assert_eq!(test.close_reason(id), None, "after {word}");
    }
    test.advance(130 * MS);
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Idle));
}

#[test]
fn a_one_way_idle_timer_ignores_the_other_direction() {
    let plan = Setup { keeps_idle: true, ..socket_limits(no_idle()) };
    let mut test = plan.build_with(
        |socket| {
            socket.set_read_idle(Some(SECOND));
            socket.set_write_idle(Some(3 * SECOND));
        },
        discard,
    );
    let (peer, id) = test.accept();
    let silences = |test: &TestLoop, which| {
        test.events().iter().filter(|events| **events == Event::OneWayIdle(id, which)).count()
    };
    for _ in 0..20 {
        test.script.feed(peer, b"x");
        test.advance(100 * MS);
    }
    assert_eq!((silences(&test, IdleKind::Reading), silences(&test, IdleKind::Writing)), (0, 0));
    for _ in 0..20 {
        test.sockets().get(id).unwrap().send(b"x");
        test.advance(100 * MS);
    }
    let reading = silences(&test, IdleKind::Reading);
    assert!((1..=2).contains(&reading) && silences(&test, IdleKind::Writing) == 0, "{:?}", test.events());
    test.advance(3_050 * MS);
    assert_eq!(silences(&test, IdleKind::Writing), 1);
}

/// Sets an alarm for each number that it gets, after as many milliseconds, and says which one it was.
struct Alarms(Rc<RefCell<Vec<u64>>>);

impl Service for Alarms {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        for word in String::from_utf8_lossy(input.take_all()).split_whitespace() {
            match word.strip_prefix('-') {
                Some(tag) => assert!(socket.set_alarm_for(tag.parse().unwrap(), None)),
                None => {
                    let after: u64 = word.parse().unwrap();
                    assert!(socket.set_alarm_for(after, Some(after as u32 * MS)));
                }
            }
        }
    }

    fn alarm(&mut self, _: &mut (), _: &mut Socket<'_>, tag: u64) {
        self.0.borrow_mut().push(tag);
    }
}

#[test]
fn each_alarm_of_a_connection_comes_with_its_tag_and_in_time() {
    let (sim, script) = Sim::new();
    let mut event_loop = EventLoop::new(sim, Limits::default()).unwrap();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = event_loop.add(Alarms(seen.clone()), Some(no_idle()));
    event_loop.listen(&address().into(), service, &ListenOptions::default()).unwrap();
    let peer = script.connect();
    script.feed(peer, b"500 0 300 100 301 -300");
    event_loop.turn_until_quiet(&script);
    assert_eq!(*seen.borrow(), [], "an alarm after no time is not due in this turn");
    for (now, expected) in [(20, vec![0]), (95, vec![0]), (120, vec![0, 100]), (330, vec![0, 100, 301])] {
        while event_loop.table.cx.elapsed < now * MS {
            script.advance(5 * MS);
            event_loop.turn_until_quiet(&script);
        }
        assert_eq!(*seen.borrow(), expected, "after {now} ms");
    }
    script.feed(peer, b"500");
    event_loop.turn_until_quiet(&script);
    script.advance(490 * MS);
    event_loop.turn_until_quiet(&script);
    assert_eq!(seen.borrow().len(), 3, "it was set again, with the same tag");
    script.advance(30 * MS);
    event_loop.turn_until_quiet(&script);
    assert_eq!(*seen.borrow(), [0, 100, 301, 500]);
}
