//! What is sent, however slowly it is read, and how connections end.

use super::*;

#[test]
fn closing_after_finishing_lingers_for_a_moment_and_not_for_as_long_as_half_closed_ones_may() {
    for half_closed in [None, Some(60 * SECOND)] {
        let limits = SocketLimits { half_closed, ..no_idle() };
        let mut house = socket_limits(limits).build_with(|socket| socket.finish(), swallow);
        let (peer, id) = house.guest();
        assert!(house.script.heard_end(peer));
        house.sockets().get(id).unwrap().close();
        house.pass(900 * MS);
        assert_eq!(house.farewell(id), None);
        house.pass(130 * MS);
        assert_eq!(house.farewell(id), Some(Closed::Local));
    }
}

#[test]
fn twenty_sends_leave_with_one_write() {
    let mut house = Plan::default().build(|socket, input| {
        input.take_all();
        (0..20).for_each(|i| socket.send(format!("{i} ").as_bytes()));
    });
    let (peer, _) = house.guest();
    let before = house.script.calls().writes;
    house.script.feed(peer, b"x");
    house.settle();
    assert_eq!(house.script.calls().writes - before, 1);
    assert!(house.heard(peer).starts_with("0 1 2 "));
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    let mut house = Plan::default().build(echo);
    let (peer, _) = house.guest();
    let sent: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    house.script.window(peer, 0);
    house.script.feed(peer, &sent);
    let mut heard = Vec::new();
    for _ in 0..1_000 {
        house.settle();
        house.script.window(peer, 333);
        house.settle();
        heard.extend(house.script.heard(peer));
    }
    assert!(heard == sent);
    assert_eq!(house.turns.table.memory, 0);
}

#[test]
fn a_full_socket_is_not_read_and_says_when_it_is_drained() {
    let mut house = socket_limits(no_idle()).build(echo);
    let (peer, id) = house.guest();
    house.script.window(peer, 0);
    house.script.feed(peer, &vec![b'x'; 1024 * 1024]);
    house.settle();
    let unread = house.script.unread(peer);
    assert_eq!(unread, 1024 * 1024 - 64 * 1024, "it stops at the high-water mark");
    house.script.window(peer, 47 * 1024);
    house.settle();
    assert_eq!((house.script.unread(peer), house.told().contains(&Told::Drained(id))), (unread, false));
    house.script.window(peer, 1024);
    house.settle();
    assert!(house.told().contains(&Told::Drained(id)), "at the low-water mark it is drained");
    assert!(house.script.unread(peer) < unread, "and read again");
}

#[test]
fn whoever_was_told_that_it_is_full_is_told_that_it_is_drained() {
    let mut house = Plan::default().build(|socket, input| {
        input.take_all();
        assert!(!socket.is_full());
        socket.send(&[b'x'; 100_000]);
        assert!(socket.is_full(), "whether the kernel will take it is not known yet");
    });
    let (peer, id) = house.guest();
    house.script.feed(peer, b"x");
    house.settle();
    assert_eq!(house.script.heard(peer).len(), 100_000);
    assert_eq!(house.told().last(), Some(&Told::Drained(id)));
    house.script.feed(peer, b"x");
    house.settle();
    assert_eq!(house.script.heard(peer).len(), 100_000, "and it is read again");
}

#[test]
fn a_service_may_ask_to_read_on_when_full() {
    let limits = SocketLimits { read_when_full: true, ..no_idle() };
    let mut house = socket_limits(limits).build(|socket, input| {
        input.take_all();
        socket.send(&[b'x'; 100_000]);
    });
    let (peer, _) = house.guest();
    house.script.window(peer, 0);
    house.script.feed(peer, b"one");
    house.settle();
    house.script.feed(peer, b"two");
    house.settle();
    assert_eq!(house.script.unread(peer), 0);
}

#[test]
fn a_queue_of_the_cap_is_kept_and_one_byte_more_closes() {
    let limits = SocketLimits { queue: 100_000, read_when_full: true, ..no_idle() };
    let mut house = socket_limits(limits).build(|socket, input| {
        let n = input.take_all().len();
        socket.send(&vec![b'x'; n]);
    });
    let (peer, id) = house.guest();
    house.script.window(peer, 0);
    for _ in 0..2 {
        house.script.feed(peer, &[b'x'; 50_000]);
        house.settle();
    }
    assert_eq!((house.farewell(id), house.turns.table.queued(id.slot)), (None, 100_000));
    house.script.feed(peer, b"y");
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::SlowReader));
    assert_eq!(house.turns.table.memory, 0);
}

#[test]
fn one_send_beyond_the_cap_is_judged_by_what_the_kernel_takes() {
    let limits = SocketLimits { queue: 100_000, ..no_idle() };
    for (taken, why) in [(50_000, None), (49_999, Some(Closed::SlowReader))] {
        let mut house = socket_limits(limits.clone()).build(|socket, input| {
            input.take_all();
            socket.send(&[b'x'; 150_000]);
        });
        let (peer, id) = house.guest();
        house.script.window(peer, taken);
        house.script.feed(peer, b"x");
        house.settle();
        assert_eq!(house.farewell(id), why, "{taken} bytes were taken");
    }
}

#[test]
fn our_end_follows_the_queue_and_not_before() {
    let mut house = Plan::default().build(|socket, input| {
        socket.send(input.take_all());
        socket.finish();
    });
    let (peer, id) = house.guest();
    house.script.window(peer, 2);
    house.script.feed(peer, b"hello");
    house.settle();
    assert_eq!((house.heard(peer).as_str(), house.script.heard_end(peer)), ("he", false));
    house.script.window(peer, 100);
    house.settle();
    assert_eq!((house.heard(peer).as_str(), house.script.heard_end(peer)), ("llo", true));
    assert_eq!(house.farewell(id), None, "the peer may go on sending");
    house.script.end(peer);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::Finished));
}

#[test]
fn a_close_with_unread_input_lingers_so_that_no_reset_eats_the_reply() {
    let mut house = Plan::default().build(|socket, input| {
        input.take_all();
        socket.send(b"goodbye");
        socket.close();
    });
    let (peer, id) = house.guest();
    house.script.feed(peer, &[b'x'; 100_000]);
    house.settle();
    assert_eq!((house.heard(peer).as_str(), house.script.heard_end(peer)), ("goodbye", true));
    house.script.feed(peer, &[b'x'; 1_000]);
    house.settle();
    assert_eq!(
        (house.script.unread(peer), house.script.gone(peer)),
        (0, None),
        "it reads on and throws away"
    );
    house.script.end(peer);
    house.settle();
    assert_eq!((house.farewell(id), house.script.gone(peer)), (Some(Closed::Local), Some(Gone::Closed)));
    assert_eq!(house.told().iter().filter(|told| matches!(told, Told::Data(..))).count(), 1);
}

#[test]
fn a_linger_ends_after_a_second_or_too_many_bytes() {
    let mut house = Plan::default().build(|socket, input| {
        input.take_all();
        socket.close();
    });
    let ((talker, first), (silent, second)) = (house.guest(), house.guest());
    for peer in [talker, silent] {
        house.script.feed(peer, b"x");
    }
    house.settle();
    house.script.feed(talker, &[b'x'; 64 * 1024]);
    house.settle();
    assert_eq!(house.farewell(first), None, "64 KiB are tolerated");
    house.script.feed(talker, b"x");
    house.settle();
    assert_eq!(house.farewell(first), Some(Closed::Local));
    house.pass(Duration::from_millis(990));
    assert_eq!(house.farewell(second), None);
    house.pass(Duration::from_millis(40));
    assert_eq!(house.farewell(second), Some(Closed::Local));
}

#[test]
fn those_who_do_not_leave_hold_a_twentieth_of_the_house_at_most() {
    let limits = Limits { connections: 400, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(|socket, input| {
        input.take_all();
        socket.close();
    });
    let guests: Vec<_> = (0..50).map(|_| house.guest()).collect();
    for &(peer, _) in &guests {
        house.script.feed(peer, b"x");
        house.settle();
    }
    assert_eq!(house.turns.table.connections(), 20);
    assert!(guests[..30].iter().all(|&(_, id)| house.farewell(id).is_some()), "the eldest go first");
}

#[test]
fn an_abort_resets_and_drops_the_queue() {
    let mut house = Plan::default().build(|socket, input| {
        socket.send(input.take_all());
        socket.abort();
    });
    let (peer, id) = house.guest();
    house.script.feed(peer, b"x");
    house.settle();
    assert_eq!((house.farewell(id), house.script.gone(peer)), (Some(Closed::Aborted), Some(Gone::Reset)));
    assert_eq!(house.heard(peer), "");
}

#[test]
fn what_is_sent_after_a_close_is_counted_and_dropped() {
    let mut house = Plan::default().build(|socket, input| {
        input.take_all();
        socket.send(b"before");
        socket.close();
        socket.send(b"after");
    });
    let (peer, _) = house.guest();
    house.script.feed(peer, b"x");
    house.settle();
    assert_eq!((house.heard(peer).as_str(), house.turns.table.stats.sent_too_late), ("before", 5));
}

#[test]
fn a_neighbour_that_was_closed_gets_no_more_data_and_cannot_be_found() {
    let victim: Rc<RefCell<Option<ConnId>>> = Rc::default();
    let target = victim.clone();
    let mut house = Plan::default().build(move |socket, input| {
        if input.take_all() == b"kick" {
            let id = target.borrow().expect("a victim");
            socket.other(id).expect("it is there").close();
            assert!(socket.other(id).is_none(), "a closing one is gone for those who would send to it");
        }
    });
    let (kicker, _) = house.guest();
    let (peer, id) = house.guest();
    *victim.borrow_mut() = Some(id);
    house.script.feed(kicker, b"kick");
    house.script.feed(peer, b"words that come too late");
    house.settle();
    assert!(!house.told().iter().any(|told| matches!(told, Told::Data(of, _) if *of == id)));
    house.script.end(peer);
    house.settle();
    assert_eq!(house.farewell(id), Some(Closed::Local));
}
