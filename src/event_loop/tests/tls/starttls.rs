//! A filter that is started on a running connection.

use super::*;

#[test]
pub(in crate::event_loop::tests) fn after_starttls_bytes_behind_the_request_are_not_plaintext() {
    let mut test = Setup::default().build(|socket, input| {
        if socket.filter_info().is_some() {
            return socket.send(input.take_all());
        }
        if input.take_line() == Some(b"STARTTLS\n") {
            socket.send(b"220 go\n");
            socket.start_filter(server());
            socket.send(b"sealed");
        }
    });
    let (peer, id) = test.accept();
    test.script.window(peer, 3);
    test.script.feed(peer, b"STARTTLS\nHELLO\n");
    test.turn_until_quiet();
    test.script.window(peer, 100);
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "220 go\nWELCOME\n", "what was said before goes as it is");
    test.script.feed(peer, &[&b"THANKS\n"[..], &record(b" indeed")].concat());
    test.turn_until_quiet();
    assert_eq!(parse_records(&test.script.received(peer)).0, b"sealed indeed");
    let events = test.events();
    assert!(events.contains(&Event::FilterStarted(id)));
    let (peer, id) = test.accept();
    test.script.feed(peer, b"STARTTLS\nDELETE everything\n");
    test.turn_until_quiet();
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(
        test.close_reason(id),
        Some(CloseReason::Handshake),
        "an injected command is a wrong handshake"
    );
    assert_eq!(test.received(peer), "220 go\nX\0\0");
}

#[test]
fn a_dialed_connection_can_start_a_filter_later() {
    let mut test = Setup::default().build(|socket, input| {
        if input.take_line() == Some(b"220 go\n") {
            socket.start_filter(client());
            socket.send(b"secret");
        }
        input.take_all();
    });
    let id = test
        .event_loop
        .table
        .dial(test.service, "10.0.0.9:25".parse().unwrap(), DialOptions::default(), None)
        .unwrap();
    test.turn_until_quiet();
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.script.feed(peer, b"220 go\n");
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "HELLO\n");
    test.script.feed(peer, b"WELCOME\n");
    test.turn_until_quiet();
    let received = test.script.received(peer);
    assert_eq!(parse_records(received.strip_prefix(b"THANKS\n").unwrap()).0, b"secret");
    assert!(test.events().contains(&Event::FilterStarted(id)));
}

#[test]
fn a_filter_started_before_connecting_sends_no_cleartext() {
    let mut test = Setup::default().build_with(
        |socket| {
            socket.send(b"secret");
            socket.start_filter(client());
        },
        discard,
    );
    let id = test
        .event_loop
        .table
        .dial(test.service, "10.0.0.9:443".parse().unwrap(), DialOptions::default(), None)
        .unwrap();
    test.turn_until_quiet();
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    assert_eq!(test.received(peer), "HELLO\n");
    test.script.feed(peer, b"WELCOME\n");
    test.turn_until_quiet();
    let received = test.script.received(peer);
    assert_eq!(parse_records(received.strip_prefix(b"THANKS\n").unwrap()).0, b"secret");
    assert_eq!(test.events(), [Event::Open(id), Event::Connected(id)]);
}

#[test]
fn a_connection_closed_before_its_handshake_still_sends_its_cleartext() {
    for write_budget in [3, 64 * 1024] {
        let limits = Limits { write_budget, ..Limits::default() };
        let mut test = Setup { limits, ..Setup::default() }.build(|socket, input| {
            input.take_all();
            socket.send(b"goodbye");
            socket.start_filter(server());
            socket.send(b"never");
            socket.close();
        });
        let (peer, id) = test.accept();
        test.script.window(peer, 4);
        test.script.feed(peer, b"x");
        test.turn_until_quiet();
        test.script.window(peer, 100);
        test.turn_until_quiet();
        assert_eq!((test.received(peer).as_str(), test.script.received_end(peer)), ("goodbye", true));
        test.script.end(peer);
        test.turn_until_quiet();
        assert_eq!((test.close_reason(id), test.event_loop.table.cx.memory), (Some(CloseReason::Local), 0));
    }
}

#[test]
fn a_connection_queued_for_its_handshake_does_not_keep_the_loop_awake() {
    let mut setup = socket_limits(no_idle());
    setup.limits.handshakes = 1;
    let mut test = setup.build(|socket, input| {
        if input.bytes().starts_with(b"STARTTLS\n") {
            input.take(9);
            socket.start_filter(server());
        } else if input.bytes().starts_with(b"LATER\n") {
            input.take(6);
            socket.pause();
        }
    });
    let (first, _) = test.accept();
    test.script.feed(first, b"STARTTLS\nHELLO\n");
    test.turn_until_quiet();
    let (second, id) = test.accept();
    test.script.feed(second, b"LATER\nHELLO\nTHANKS\n");
    test.turn_until_quiet();
    let mut sockets = test.sockets();
    let mut socket = sockets.get(id).unwrap();
    socket.resume();
    socket.start_filter(server());
    for _ in 0..50 {
        test.turn();
    }
    assert!(!test.event_loop.has_work());
    assert_eq!(test.event_loop.table.cx.handshakes.waiting_count(), 1);
}

#[test]
pub(in crate::event_loop::tests) fn bytes_read_between_start_filter_and_the_handshake_are_not_lost() {
    let mut test = socket_limits(no_idle()).build(|socket, input| {
        if input.bytes().starts_with(b"STARTTLS\n") {
            input.take(9);
            socket.start_filter(server());
        }
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, b"START");
    test.turn_until_quiet();
    let mut all = b"TLS\nHELLO\nTHANKS\n".to_vec();
    let plaintext = vec![b'f'; 40_000];
    all.extend(record(&plaintext));
    all.extend(record(&plaintext));
    test.script.feed(peer, &all);
    test.turn_until_quiet();
    let events = test.events();
    let longest = events.iter().filter_map(|event| match event {
        Event::Data(_, bytes) if bytes.starts_with(b"f") => Some(bytes.len()),
        _ => None,
    });
    assert_eq!((test.close_reason(id), longest.max()), (None, Some(80_000)));
}

#[test]
fn a_lifetime_that_ends_during_a_handshake_closes_at_once() {
    let limits = SocketLimits { lifetime: Some(3 * SECOND), ..no_idle() };
    for said in [&b"STARTTLS\n"[..], b"STARTTLS\nHEL", b"STARTTLS\nHELLO\n"] {
        let mut test = socket_limits(limits.clone()).build(|socket, input| {
            if input.take_line().is_some() {
                socket.send(b"go\n");
                socket.start_filter(server());
            }
        });
        let (peer, id) = test.accept();
        test.advance(2_500 * MS);
        test.script.feed(peer, said);
        test.advance(495 * MS);
        assert!(!test.script.received_end(peer), "the lifetime is never early");
        test.advance(30 * MS);
        assert!(test.script.received_end(peer), "not after the 10 s of the handshake");
        test.script.end(peer);
        test.turn_until_quiet();
        assert_eq!(
            (test.close_reason(id), test.event_loop.table.cx.memory),
            (Some(CloseReason::Lifetime), 0)
        );
    }
}
