//! Dialed connections that start with a handshake.

use super::*;

#[test]
fn a_filtered_dial_is_connected_when_the_handshake_completes() {
    let mut test = Setup::default().build_with(|socket| socket.send(b"early"), discard);
    let id = dial_tls(&mut test, "10.0.0.9:443", DialOptions::default());
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.events()), ("HELLO\n", vec![Event::Open(id)]));
    assert!(test.sockets().get(id).unwrap().is_connecting());
    test.sockets().get(id).unwrap().send(b" bird");
    test.sockets().get(id).unwrap().finish();
    test.turn_until_quiet();
    assert!(!test.script.received_end(peer), "our end waits for the handshake, too");
    test.script.feed(peer, &[&b"WELCOME\n"[..], &record(b"hi"), END].concat());
    test.turn_until_quiet();
    let received = test.script.received(peer);
    let ciphertext = received.strip_prefix(b"THANKS\n").expect("the handshake goes first");
    assert_eq!(parse_records(ciphertext), (b"early bird".to_vec(), 1));
    assert!(ciphertext.ends_with(END) && test.script.received_end(peer));
    let events = test.events();
    assert_eq!(events[1..3], [Event::Connected(id), Event::Data(id, b"hi".to_vec())]);
    assert_eq!(events.last(), Some(&Event::Closed(id, CloseReason::Finished)));
}

#[test]
fn a_dial_that_finishes_at_once_still_completes_its_handshake() {
    let mut test = Setup::default().build_with(|socket| socket.finish(), discard);
    let id = dial_tls(&mut test, "10.0.0.9:443", DialOptions::default());
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    assert!(!test.script.received_end(peer));
    test.script.feed(peer, &[b"WELCOME\n", END].concat());
    test.turn_until_quiet();
    assert_eq!(
        (test.received(peer).as_str(), test.script.received_end(peer)),
        ("HELLO\nTHANKS\nE\0\0", true)
    );
    assert_eq!(test.close_reason(id), Some(CloseReason::Finished));
}

#[test]
fn a_dial_passes_the_dialed_name_to_its_filter() {
    let mut test = Setup::default().build(discard);
    let id = dial_tls(&mut test, "db.example:443", DialOptions::default());
    let (number, _) = test.script.lookups()[0].clone();
    test.script.resolve(number, &["10.0.0.9:443"]);
    test.turn_until_quiet();
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.script.feed(peer, b"WELCOME\n");
    test.turn_until_quiet();
    let mut sockets = test.sockets();
    let secured = sockets.get(id).unwrap().filter_info().expect("it is secured");
    assert_eq!(secured.server_name.as_deref(), Some("db.example:443"));
}

#[test]
fn a_dial_whose_handshake_fails_reports_why_and_is_redialed_with_backoff() {
    let backoff = Backoff { first: SECOND, max: 60 * SECOND };
    let options = DialOptions { reconnect: Some(backoff), ..DialOptions::default() };
    let mut test = Setup::default().build(discard);
    dial_tls(&mut test, "10.0.0.9:443", options);
    for round in 0..3 {
        let peer = *test.script.dialed().last().unwrap();
        test.script.finish_dial(peer, Ok(()));
        test.script.feed(peer, b"220 smtp.example ESMTP");
        test.script.end(peer);
        test.turn_until_quiet();
        let closed_log = test.closed_log.borrow()[round].clone();
        assert_eq!(closed_log.filter_error.as_deref(), Some("these are no words of mine"));
        let dialed = test.script.dialed().len();
        test.advance(SECOND * (1 << round) / 2 - 20 * MS);
        assert_eq!(test.script.dialed().len(), dialed, "round {round} came too early");
        test.advance(SECOND * (1 << round) / 2 + 40 * MS);
        assert_eq!(test.script.dialed().len(), dialed + 1, "round {round}");
    }
}

#[test]
fn a_dial_whose_filter_cannot_be_made_ends_with_the_reason() {
    let mut test = Setup::default().build(discard);
    let id = dial_tls(&mut test, "nobody:1", DialOptions::default());
    let (number, _) = test.script.lookups()[0].clone();
    test.script.resolve(number, &["10.0.0.9:443"]);
    test.turn_until_quiet();
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.turn_until_quiet();
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Handshake));
    assert_eq!(test.closed_log.borrow()[0].filter_error.as_deref(), Some("nobody has no name to check"));
}

#[test]
fn data_queued_during_a_handshake_is_bounded_and_does_not_count_as_a_slow_reader() {
    let mut test = socket_limits(SocketLimits { handshake: None, ..no_idle() }).build(discard);
    let id = dial_tls(&mut test, "10.0.0.9:443", DialOptions::default());
    test.script.finish_dial(test.script.dialed()[0], Ok(()));
    test.turn_until_quiet();
    test.sockets().get(id).unwrap().send([b'x'; 500_000]);
    test.advance(30 * SECOND);
    assert_eq!(test.close_reason(id), None, "it cannot read what cannot be sealed");
    test.sockets().get(id).unwrap().send([b'x'; 600_000]);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), None, "one send is never cut");
    test.sockets().get(id).unwrap().send(b"x");
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::SlowReader));
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn the_dial_timeout_includes_the_handshake() {
    let options = DialOptions { timeout: Some(3 * SECOND), ..DialOptions::default() };
    let mut test = Setup::default().build(discard);
    let id = dial_tls(&mut test, "10.0.0.9:443", options);
    test.advance(2 * SECOND);
    let peer = test.script.dialed()[0];
    test.script.finish_dial(peer, Ok(()));
    test.advance(SECOND + 40 * MS);
    assert!(test.script.received_end(peer), "one second was left for it");
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::HandshakeTimeout));
}
