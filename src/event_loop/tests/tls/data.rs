//! Data through a filter: reading, writing, limits.

use super::*;

#[test]
fn small_sends_of_a_turn_are_one_record() {
    let mut test = tls_setup(no_idle()).build(|socket, input| {
        for byte in input.take_all() {
            socket.send([*byte]);
            socket.send(b".");
        }
    });
    let (peer, _) = handshaken(&mut test);
    test.script.feed(peer, &record(b"abc"));
    test.turn_until_quiet();
    assert_eq!(parse_records(&test.script.received(peer)), (b"a.b.c.".to_vec(), 1));
}

#[test]
fn ciphertext_the_kernel_does_not_take_arrives_later_in_order_and_once() {
    let limits = SocketLimits { queue: 1 << 22, ..no_idle() };
    let mut test = tls_setup(limits).build(|socket, input| {
        input.take_all();
        let bytes: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        socket.send(&bytes);
        socket.close();
    });
    let (peer, id) = handshaken(&mut test);
    test.script.window(peer, 0);
    test.script.feed(peer, &record(b"go"));
    test.turn_until_quiet();
    let mut received = Vec::new();
    while !test.script.received_end(peer) {
        test.script.window(peer, 7_777);
        test.turn_until_quiet();
        received.extend(test.script.received(peer));
    }
    assert!(received.ends_with(END), "the end is announced before it comes");
    let (plain, _) = parse_records(&received);
    assert!(plain.len() == 300_000 && plain.iter().enumerate().all(|(i, &byte)| byte == (i % 251) as u8));
    test.script.feed(peer, END);
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!((test.close_reason(id), test.event_loop.table.cx.memory), (Some(CloseReason::Local), 0));
}

#[test]
fn a_close_notify_is_a_clean_end() {
    let mut test = tls_setup(no_idle()).build(echo);
    let (peer, id) = handshaken(&mut test);
    test.script.feed(peer, &[record(b"last words"), END.to_vec()].concat());
    test.turn_until_quiet();
    assert_eq!(test.events()[1..3], [Event::Data(id, b"last words".to_vec()), Event::End(id, vec![])]);
    let received = test.script.received(peer);
    assert_eq!((parse_records(&received).0, received.ends_with(END)), (b"last words".to_vec(), true));
    assert_eq!(test.close_reason(id), Some(CloseReason::Finished));
}

#[test]
pub(in crate::event_loop::tests) fn a_fin_without_close_notify_is_truncation() {
    let mut test = tls_setup(no_idle()).build(echo);
    let (peer, id) = handshaken(&mut test);
    test.script.feed(peer, &record(b"and then"));
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(
        test.events()[1..],
        [Event::Data(id, b"and then".to_vec()), Event::Closed(id, CloseReason::Truncated)]
    );
    assert_eq!(parse_records(&test.script.received(peer)).0, b"and then");
}

#[test]
fn data_before_a_bad_record_is_delivered() {
    let mut test = tls_setup(no_idle()).build(discard);
    let (peer, id) = handshaken(&mut test);
    test.script.feed(peer, &[record(b"good"), b"?bad".to_vec()].concat());
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "X\0\0");
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.events()[1..], [Event::Data(id, b"good".to_vec()), Event::Closed(id, CloseReason::Tls)]);
    let broken = test.closed_log.borrow()[0].filter_error.clone();
    assert_eq!(broken.as_deref(), Some("63 is no kind of record"));
}

#[test]
fn plaintext_queued_when_the_filter_fails_is_dropped_and_uncharged() {
    let mut test = tls_setup(no_idle()).build(|socket, input| {
        input.take_all();
        socket.send([b'x'; 200_000]);
    });
    let (peer, id) = handshaken(&mut test);
    test.script.window(peer, 10);
    test.script.feed(peer, &record(b"go"));
    test.turn_until_quiet();
    // A full connection is not read, so its peer must read something first.
    test.script.window(peer, 190_000);
    test.turn_until_quiet();
    test.script.feed(peer, b"???");
    test.turn_until_quiet();
    test.script.window(peer, usize::MAX);
    test.turn_until_quiet();
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!((test.close_reason(id), test.event_loop.table.cx.memory), (Some(CloseReason::Tls), 0));
}

#[test]
fn an_incomplete_record_is_subject_to_the_minimum_rate() {
    let mut test = tls_setup(no_idle()).build(discard);
    let (peer, id) = handshaken(&mut test);
    test.script.feed(peer, &record(&[b'x'; 20_000])[..10_000]);
    test.turn_until_quiet();
    assert!(test.event_loop.table.cx.memory >= 10_000, "what the filter keeps is counted");
    test.advance(9 * SECOND);
    assert_eq!(test.close_reason(id), None);
    test.advance(12 * SECOND);
    assert_eq!(test.close_reason(id), Some(CloseReason::TooSlow));
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn a_message_over_several_records_is_put_together() {
    let mut test = tls_setup(no_idle()).build(|socket, input| {
        while let Some(line) = input.take_line() {
            socket.send(line);
        }
    });
    let (peer, _) = handshaken(&mut test);
    let line = [vec![b'l'; 30_000], b"\n".to_vec()].concat();
    for part in line.chunks(997) {
        let ciphertext = record(part);
        for half in ciphertext.chunks(500) {
            test.script.feed(peer, half);
            test.turn_until_quiet();
        }
    }
    assert_eq!(parse_records(&test.script.received(peer)).0, line);
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
pub(in crate::event_loop::tests) fn a_connection_paused_in_open_gets_no_data_until_resumed() {
    let mut test = tls_setup(no_idle()).build_with(|socket| socket.pause(), echo);
    let peer = test.script.connect();
    test.script.feed(peer, &[&b"HELLO\nTHANKS\n"[..], &record(b"early")].concat());
    test.turn_until_quiet();
    let id = test.sockets().ids()[0];
    assert_eq!(test.events(), [Event::Open(id)]);
    test.sockets().get(id).unwrap().resume();
    test.turn_until_quiet();
    assert_eq!(test.events()[1..], [Event::Data(id, b"early".to_vec())]);
}

#[test]
fn a_peer_that_does_not_read_is_closed() {
    let limits = SocketLimits { read_when_full: true, ..no_idle() };
    let mut test = tls_setup(limits).build(|socket, input| {
        input.take_all();
        socket.send([b'x'; 60_000]);
    });
    let (peer, id) = handshaken(&mut test);
    test.script.window(peer, 0);
    for _ in 0..20 {
        test.script.feed(peer, &record(b"more"));
        test.turn_until_quiet();
    }
    assert_eq!((test.close_reason(id), test.event_loop.table.cx.memory), (Some(CloseReason::SlowReader), 0));
}

#[test]
fn the_first_byte_deadline_counts_plaintext() {
    let limits = SocketLimits { first_byte: Some(3 * SECOND), ..no_idle() };
    let mut test = tls_setup(limits).build(echo);
    let (_, silent) = handshaken(&mut test);
    let (peer, speaking) = handshaken(&mut test);
    test.script.feed(peer, &record(b"hello"));
    test.advance(5 * SECOND);
    assert_eq!(
        (test.close_reason(silent), test.close_reason(speaking)),
        (Some(CloseReason::FirstByte), None)
    );
}

#[test]
fn data_is_never_called_without_bytes() {
    let empty = Rc::new(RefCell::new(0));
    let seen = empty.clone();
    let mut test = tls_setup(no_idle()).build(move |socket, input| {
        *seen.borrow_mut() += usize::from(input.is_empty());
        if input.len() < 3 {
            return;
        }
        input.take_all();
        socket.pause();
        socket.resume();
    });
    let peer = test.script.connect();
    test.script.feed(peer, b"HELLO\nTHANKS\n");
    test.turn_until_quiet();
    test.script.feed(peer, &record(b"ab"));
    test.turn_until_quiet();
    let mut wire = record(b"cd");
    wire.extend_from_slice(&record(b"ef")[..4]);
    test.script.feed(peer, &wire);
    test.turn_until_quiet();
    assert_eq!(*empty.borrow(), 0);
}

#[test]
fn a_close_notify_waits_for_input_that_the_delivery_budget_left() {
    // Each byte is answered by 64 KiB, so sixteen bytes use up the budget of a delivery.
    let answer = vec![b'a'; 64 * 1024];
    let mut limits = no_idle();
    limits.queue = 1 << 30;
    limits.read_when_full = true;
    let mut test = tls_setup(limits).build(move |socket, input| {
        while !input.is_empty() {
            input.take(1);
            socket.send(&answer);
        }
    });
    let (peer, id) = handshaken(&mut test);
    let mut wire = record(&[b'q'; 100]);
    wire.extend_from_slice(END);
    test.script.feed(peer, &wire);
    test.turn_until_quiet();
    let calls = test.events().iter().filter(|event| matches!(event, Event::Data(..))).count();
    assert!(calls > 5, "{calls} calls");
    let events = test.events();
    let end = events.iter().position(|event| matches!(event, Event::End(..))).expect("the end");
    assert!(!events[end..].iter().any(|event| matches!(event, Event::Data(..))), "data after the end");
    let (plain, _) = parse_records(&test.script.received(peer));
    assert_eq!((plain.len(), test.close_reason(id)), (100 * 64 * 1024, Some(CloseReason::Finished)));
}

#[test]
fn a_file_is_encrypted_between_the_bytes_before_and_behind_it() {
    use std::io::Write;
    let limits = SocketLimits { queue: 1 << 22, ..no_idle() };
    let bytes: Vec<u8> = (0..300_000).map(|at| (at % 251) as u8).collect();
    let whole = [b"head", &bytes[1..], b"tail"].concat();
    let mut test = tls_setup(limits).build(move |socket, input| {
        input.take_all();
        let path = std::env::temp_dir().join(format!("tidemill-filtered-{}", std::process::id()));
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&bytes).unwrap();
        socket.send("head");
        socket.send_file(file, 1..300_000);
        socket.send("tail");
        socket.close();
    });
    let (peer, id) = handshaken(&mut test);
    test.script.window(peer, 0);
    test.script.feed(peer, &record(b"go"));
    test.turn_until_quiet();
    assert!(test.queued(id) >= 300_000 && test.event_loop.table.cx.memory < 200_000, "it is read as it goes");
    let mut received = Vec::new();
    while !test.script.received_end(peer) {
        test.script.window(peer, 7_777);
        test.turn_until_quiet();
        received.extend(test.script.received(peer));
    }
    assert!(parse_records(&received).0 == whole);
}

/// A read of no bytes returns 0, and that looks like a FIN without an announcement.
#[test]
fn a_filtered_connection_is_not_read_while_its_group_has_no_rate_left() {
    let mut test = tls_setup(no_idle()).build(discard);
    let (busy, waiting) = (handshaken(&mut test), handshaken(&mut test));
    let group = test.sockets().add_group(100).unwrap();
    for (_, id) in [busy, waiting] {
        test.sockets().get(id).unwrap().join_group(Some(group));
    }
    test.script.feed(busy.0, &record(&[b'x'; 9_000]));
    test.turn_until_quiet();
    test.script.feed(waiting.0, &record(b"late"));
    test.turn_until_quiet();
    assert_eq!(test.close_reason(waiting.1), None);
    test.advance(100 * SECOND);
    assert_eq!(test.close_reason(waiting.1), None);
    assert!(received_data(&test).windows(4).any(|bytes| bytes == b"late"));
}

#[test]
fn a_reset_behind_the_end_of_the_stream_is_noticed_within_a_second() {
    let limits = SocketLimits { half_closed: None, ..no_idle() };
    let mut test = Setup { finishes: false, ..tls_setup(limits) }.build(echo);
    let peer = test.script.connect();
    test.script.feed(peer, b"HELLO\nTHANKS\n");
    test.turn_until_quiet();
    test.script.feed(peer, END);
    test.script.reset(peer);
    test.advance(SECOND + 50 * MS);
    assert!(test.events().iter().any(|event| matches!(event, Event::Closed(_, CloseReason::Reset))));
}
