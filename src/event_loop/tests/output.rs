//! Output: queues, water marks, slow readers, FIN, and lingering close.

use super::*;

#[test]
fn closing_after_finishing_lingers_for_the_linger_time_and_not_the_half_closed_timeout() {
    for half_closed in [None, Some(60 * SECOND)] {
        let limits = SocketLimits { half_closed, ..no_idle() };
        let mut test = socket_limits(limits).build_with(|socket| socket.finish(), discard);
        let (peer, id) = test.accept();
        assert!(test.script.received_end(peer));
        test.sockets().get(id).unwrap().close();
        test.advance(900 * MS);
        assert_eq!(test.close_reason(id), None);
        test.advance(130 * MS);
        assert_eq!(test.close_reason(id), Some(CloseReason::Local));
    }
}

#[test]
fn twenty_sends_leave_with_one_write() {
    let mut test = Setup::default().build(|socket, input| {
        input.take_all();
        (0..20).for_each(|i| socket.send(format!("{i} ").as_bytes()));
    });
    let (peer, _) = test.accept();
    let before = test.script.calls().writes;
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!(test.script.calls().writes - before, 1);
    assert!(test.received(peer).starts_with("0 1 2 "));
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    let mut test = Setup::default().build(echo);
    let (peer, _) = test.accept();
    let sent: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    test.script.window(peer, 0);
    test.script.feed(peer, &sent);
    let mut received = Vec::new();
    for _ in 0..1_000 {
        test.turn_until_quiet();
        test.script.window(peer, 333);
        test.turn_until_quiet();
        received.extend(test.script.received(peer));
    }
    assert!(received == sent);
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn a_full_socket_is_not_read_and_says_when_it_is_drained() {
    let mut test = socket_limits(no_idle()).build(echo);
    let (peer, id) = test.accept();
    test.script.window(peer, 0);
    test.script.feed(peer, &vec![b'x'; 1024 * 1024]);
    test.turn_until_quiet();
    let unread = test.script.unread(peer);
    assert_eq!(unread, 1024 * 1024 - 64 * 1024, "it stops at the high-water mark");
    test.script.window(peer, 47 * 1024);
    test.turn_until_quiet();
    assert_eq!((test.script.unread(peer), test.events().contains(&Event::Drained(id))), (unread, false));
    test.script.window(peer, 1024);
    test.turn_until_quiet();
    assert!(test.events().contains(&Event::Drained(id)), "at the low-water mark it is drained");
    assert!(test.script.unread(peer) < unread, "and read again");
}

#[test]
fn every_full_socket_gets_a_drained_callback() {
    let mut test = Setup::default().build(|socket, input| {
        input.take_all();
        assert!(!socket.is_full());
        socket.send([b'x'; 100_000]);
        assert!(socket.is_full(), "whether the kernel will take it is not known yet");
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!(test.script.received(peer).len(), 100_000);
    assert_eq!(test.events().last(), Some(&Event::Drained(id)));
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!(test.script.received(peer).len(), 100_000, "and it is read again");
}

#[test]
fn a_service_may_ask_to_read_on_when_full() {
    let limits = SocketLimits { read_when_full: true, ..no_idle() };
    let mut test = socket_limits(limits).build(|socket, input| {
        input.take_all();
        socket.send([b'x'; 100_000]);
    });
    let (peer, _) = test.accept();
    test.script.window(peer, 0);
    test.script.feed(peer, b"one");
    test.turn_until_quiet();
    test.script.feed(peer, b"two");
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 0);
}

#[test]
fn a_queue_of_the_cap_is_kept_and_one_byte_more_closes() {
    let limits = SocketLimits { queue: 100_000, read_when_full: true, ..no_idle() };
    let mut test = socket_limits(limits).build(|socket, input| {
        let n = input.take_all().len();
        socket.send(vec![b'x'; n]);
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 0);
    for _ in 0..2 {
        test.script.feed(peer, &[b'x'; 50_000]);
        test.turn_until_quiet();
    }
    assert_eq!((test.close_reason(id), test.queued(id)), (None, 100_000));
    test.script.feed(peer, b"y");
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::SlowReader));
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn an_answer_larger_than_the_cap_reaches_a_peer_that_reads() {
    let limits = SocketLimits { queue: 100_000, ..no_idle() };
    let mut test = socket_limits(limits).build(|socket, input| {
        input.take_all();
        socket.send([b'x'; 900_000]);
        socket.send([b'y'; 100_000]);
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 1_000);
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    let mut received = 0;
    for _ in 0..1_000 {
        received += test.script.received(peer).len();
        test.script.window(peer, 1_000);
        test.turn_until_quiet();
    }
    assert_eq!((test.close_reason(id), received), (None, 1_000_000));
}

#[test]
pub(super) fn a_further_send_to_a_queue_beyond_the_cap_closes_the_slow_reader_with_a_reset() {
    let limits = SocketLimits { queue: 100_000, read_when_full: true, ..no_idle() };
    let mut test = socket_limits(limits).build(|socket, input| {
        input.take_all();
        socket.send([b'x'; 150_000]);
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 10);
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), None);
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::SlowReader));
    assert_eq!(test.script.released(peer), Some(Released::Reset), "what it got is not the whole");
}

#[test]
fn our_end_follows_the_queue_and_not_before() {
    let mut test = Setup::default().build(|socket, input| {
        socket.send(input.take_all());
        socket.finish();
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 2);
    test.script.feed(peer, b"hello");
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.script.received_end(peer)), ("he", false));
    test.script.window(peer, 100);
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.script.received_end(peer)), ("llo", true));
    assert_eq!(test.close_reason(id), None, "the peer may go on sending");
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Finished));
}

#[test]
pub(super) fn a_close_with_unread_input_lingers_so_that_no_reset_destroys_the_reply() {
    let mut test = Setup::default().build(|socket, input| {
        input.take_all();
        socket.send(b"goodbye");
        socket.close();
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, &[b'x'; 100_000]);
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.script.received_end(peer)), ("goodbye", true));
    test.script.feed(peer, &[b'x'; 1_000]);
    test.turn_until_quiet();
    assert_eq!(
        (test.script.unread(peer), test.script.released(peer)),
        (0, None),
        "it reads on and throws away"
    );
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(
        (test.close_reason(id), test.script.released(peer)),
        (Some(CloseReason::Local), Some(Released::Closed))
    );
    assert_eq!(test.events().iter().filter(|events| matches!(events, Event::Data(..))).count(), 1);
}

#[test]
fn a_linger_ends_after_a_second_or_too_many_bytes() {
    let mut test = Setup::default().build(|socket, input| {
        input.take_all();
        socket.close();
    });
    let ((talker, first), (silent, second)) = (test.accept(), test.accept());
    for peer in [talker, silent] {
        test.script.feed(peer, b"x");
    }
    test.turn_until_quiet();
    test.script.feed(talker, &[b'x'; 64 * 1024]);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(first), None, "64 KiB are tolerated");
    test.script.feed(talker, b"x");
    test.turn_until_quiet();
    assert_eq!(test.close_reason(first), Some(CloseReason::Local));
    test.advance(Duration::from_millis(990));
    assert_eq!(test.close_reason(second), None);
    test.advance(Duration::from_millis(40));
    assert_eq!(test.close_reason(second), Some(CloseReason::Local));
}

#[test]
fn lingering_connections_hold_at_most_a_twentieth_of_the_slots() {
    let limits = Limits { connections: 400, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(|socket, input| {
        input.take_all();
        socket.close();
    });
    let peers: Vec<_> = (0..50).map(|_| test.accept()).collect();
    for &(peer, _) in &peers {
        test.script.feed(peer, b"x");
        test.turn_until_quiet();
    }
    assert_eq!(test.event_loop.table.connections(), 20);
    assert!(peers[..30].iter().all(|&(_, id)| test.close_reason(id).is_some()), "the eldest go first");
}

#[test]
fn an_abort_resets_and_drops_the_queue() {
    let mut test = Setup::default().build(|socket, input| {
        socket.send(input.take_all());
        socket.abort();
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!(
        (test.close_reason(id), test.script.released(peer)),
        (Some(CloseReason::Aborted), Some(Released::Reset))
    );
    assert_eq!(test.received(peer), "");
}

#[test]
fn data_sent_after_close_is_counted_and_dropped() {
    let mut test = Setup::default().build(|socket, input| {
        input.take_all();
        socket.send(b"before");
        socket.close();
        socket.send(b"after");
    });
    let (peer, _) = test.accept();
    test.script.feed(peer, b"x");
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.event_loop.table.cx.stats.sent_too_late), ("before", 5));
}

#[test]
fn a_connection_closed_by_another_gets_no_more_data_and_cannot_be_found() {
    let victim: Rc<RefCell<Option<ConnId>>> = Rc::default();
    let target = victim.clone();
    let mut test = Setup::default().build(move |socket, input| {
        if input.take_all() == b"kick" {
            let id = target.borrow().expect("a victim");
            socket.other(id).expect("it is there").close();
            assert!(socket.other(id).is_none(), "a closing one is gone for those who would send to it");
        }
    });
    let (kicker, _) = test.accept();
    let (peer, id) = test.accept();
    *victim.borrow_mut() = Some(id);
    test.script.feed(kicker, b"kick");
    test.script.feed(peer, b"words that come too late");
    test.turn_until_quiet();
    assert!(!test.events().iter().any(|events| matches!(events, Event::Data(of, _) if *of == id)));
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Local));
}

#[test]
fn a_connection_may_have_a_cap_of_its_own() {
    let limits = SocketLimits { queue: 100_000, read_when_full: true, ..no_idle() };
    let mut test = socket_limits(limits).build(|socket, input| {
        match input.take_all() {
            b"more" => socket.set_queue(Some(300_000)),
            b"less" => socket.set_queue(Some(50_000)),
            b"same" => socket.set_queue(None),
            _ => {}
        }
        socket.send([b'x'; 60_000]);
    });
    // How many times it sends until its queue is at the cap: the send behind that closes it.
    for (cap, sends) in [("more", 5), ("less", 1), ("same", 2)] {
        let (peer, id) = test.accept();
        test.script.window(peer, 0);
        for n in 0..sends {
            test.script.feed(peer, if n == 0 { cap.as_bytes() } else { b"x" });
            test.turn_until_quiet();
        }
        assert_eq!((test.close_reason(id), test.queued(id)), (None, 60_000 * sends), "{cap}");
        test.script.feed(peer, b"x");
        test.turn_until_quiet();
        assert_eq!(test.close_reason(id), Some(CloseReason::SlowReader), "{cap}");
    }
}
