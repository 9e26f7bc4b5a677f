//! Handshakes of accepted connections: order, number, timeout.

use super::*;

#[test]
fn open_is_called_when_the_handshake_completes_and_not_before() {
    let mut test = tls_setup(no_idle()).build(echo);
    let peer = test.script.connect();
    test.turn_until_quiet();
    test.script.feed(peer, b"HELLO\n");
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.events()), ("WELCOME\n", vec![]));
    assert!(test.sockets().ids().is_empty(), "no callback can reach it either");
    test.script.feed(peer, b"THANKS\n");
    test.turn_until_quiet();
    assert!(matches!(test.events()[..], [Event::Open(_)]));
    assert_eq!((test.sockets().ids().len(), test.sockets().stats().handshakes), (1, 1));
}

#[test]
fn a_handshake_and_its_data_may_be_split_anywhere() {
    let mut all = b"HELLO\nTHANKS\n".to_vec();
    all.extend(record(b"one"));
    all.extend(record(&[b'x'; 300]));
    let plain = [&b"one"[..], &[b'x'; 300]].concat();
    for cut in 0..all.len() {
        let mut test = tls_setup(no_idle()).build(discard);
        let peer = test.script.connect();
        for part in [&all[..cut], &all[cut..]] {
            test.script.feed(peer, part);
            test.turn_until_quiet();
        }
        assert_eq!(received_data(&test), plain, "cut at {cut}");
        assert_eq!(test.event_loop.table.cx.memory, 0, "cut at {cut}");
    }
    let mut test = tls_setup(no_idle()).build(discard);
    let peer = test.script.connect();
    for byte in all {
        test.script.feed(peer, &[byte]);
        test.turn_until_quiet();
    }
    assert_eq!(received_data(&test), plain);
}

#[test]
fn what_arrives_together_is_delivered_together() {
    let mut test = tls_setup(no_idle()).build(discard);
    let (peer, id) = handshaken(&mut test);
    test.script.feed(peer, &[record(b"one "), record(b""), record(b"two "), record(b"three")].concat());
    test.turn_until_quiet();
    assert_eq!(test.events().last(), Some(&Event::Data(id, b"one two three".to_vec())));
}

#[test]
fn a_bad_handshake_gets_an_alert_and_no_service_callback() {
    let mut test = tls_setup(no_idle()).build(echo);
    let peer = test.script.connect();
    test.script.feed(peer, b"GET / HTTP/1.1\r\n");
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.script.received_end(peer)), ("X\0\0", true));
    test.script.end(peer);
    test.turn_until_quiet();
    assert!(test.events().is_empty());
    assert_eq!(test.sockets().stats().closed_count(CloseReason::Handshake), 1);
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn a_peer_that_leaves_during_the_handshake_is_closed_at_once() {
    let mut test = tls_setup(no_idle()).build(echo);
    for sent in [&b"HEL"[..], b"HELLO\n"] {
        let peer = test.script.connect();
        test.script.feed(peer, sent);
        test.script.end(peer);
        test.turn_until_quiet();
        assert_eq!(test.script.released(peer), Some(Released::Closed));
    }
    assert_eq!(test.sockets().stats().closed_count(CloseReason::Handshake), 2);
    assert!(test.events().is_empty());
}

#[test]
fn silent_and_slow_handshakes_end_at_the_deadline() {
    let mut test = tls_setup(no_idle()).build(echo);
    let (silent, slow) = (test.script.connect(), test.script.connect());
    for byte in b"HELLO\nTHA" {
        test.script.feed(slow, &[*byte]);
        test.advance(SECOND);
    }
    assert_eq!((test.script.released(silent), test.script.released(slow)), (None, None), "nine seconds");
    test.advance(SECOND + 20 * MS);
    assert_eq!(test.script.released(silent), Some(Released::Closed));
    assert!(test.script.received_end(slow), "a byte a second does not move the deadline");
    test.advance(SECOND + 20 * MS);
    assert_eq!(test.sockets().stats().closed_count(CloseReason::HandshakeTimeout), 2);
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
pub(in crate::event_loop::tests) fn concurrent_handshakes_are_limited_and_the_newest_starts_next() {
    let mut plan = tls_setup(no_idle());
    plan.limits.handshakes = 3;
    let mut test = plan.build(echo);
    let peers: Vec<PeerId> = (0..6).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    for &peer in &peers {
        test.script.feed(peer, b"HELLO\n");
        test.turn_until_quiet();
    }
    let received = |test: &TestLoop| {
        let received = |peer: &&PeerId| !test.script.received(**peer).is_empty();
        peers.iter().filter(received).map(|peer| peer - peers[0]).collect::<Vec<_>>()
    };
    assert_eq!(received(&test), [0, 1, 2]);
    assert!(test.script.unread(peers[5]) > 0, "who waits is not even read");
    test.script.feed(peers[1], b"THANKS\n");
    test.turn_until_quiet();
    assert_eq!(received(&test), [5], "the newest of those who wait");
    test.script.end(peers[0]);
    test.turn_until_quiet();
    assert_eq!(received(&test), [4]);
    assert_eq!(test.sockets().stats().handshakes_delayed, 3);
}

#[test]
pub(in crate::event_loop::tests) fn a_handshake_stalled_for_a_second_gives_up_its_place() {
    let mut plan = tls_setup(no_idle());
    plan.limits.handshakes = 2;
    let mut test = plan.build(echo);
    let stalling: Vec<PeerId> = (0..2).map(|_| test.script.connect()).collect();
    for &peer in &stalling {
        test.script.feed(peer, b"H");
    }
    test.advance(5 * SECOND);
    assert!(stalling.iter().all(|&peer| !test.script.received_end(peer)), "no peer waits");
    let honest = test.script.connect();
    test.script.feed(honest, b"HELLO\nTHANKS\n");
    test.turn_until_quiet();
    assert_eq!(test.received(honest), "WELCOME\n");
    let ended = stalling.iter().filter(|&&peer| test.script.received_end(peer)).count();
    assert_eq!(ended, 1, "one place was needed");
    let (late, later) = (test.script.connect(), test.script.connect());
    test.script.feed(late, b"HELLO\n");
    test.turn_until_quiet();
    test.script.feed(later, b"HELLO\n");
    test.turn_until_quiet();
    assert_eq!(test.received(late), "WELCOME\n");
    assert_eq!(test.received(later), "WELCOME\n", "the other who stalls had to go too");
}

#[test]
fn no_more_handshakes_than_the_limit_are_in_progress_when_the_queue_gets_shorter() {
    let mut plan = tls_setup(no_idle());
    plan.limits.handshakes = 1;
    let mut test = plan.build(echo);
    // One is in progress and two wait: more than there are places, so a place is given up after 200 ms.
    let peers: Vec<PeerId> = (0..3).map(|_| test.script.connect()).collect();
    for &peer in &peers {
        test.script.feed(peer, b"HELLO\n");
        test.turn_until_quiet();
    }
    test.advance(300 * MS);
    assert_eq!(test.received(peers[2]), "WELCOME\n");
    assert!(test.script.received_end(peers[0]), "the one that stalls gives its place to the newest");
}

#[test]
fn the_loop_wakes_up_to_replace_a_stalled_handshake() {
    let mut plan = tls_setup(no_idle());
    plan.limits.handshakes = 1;
    let mut test = plan.build(echo);
    for _ in 0..2 {
        let peer = test.script.connect();
        test.script.feed(peer, b"HELLO\n");
        test.turn_until_quiet();
    }
    let now = test.event_loop.table.cx.elapsed;
    let wakes = test.event_loop.next_deadline().expect("a deadline") - now;
    assert!(SECOND <= wakes && wakes < SECOND + 50 * MS, "{wakes:?}");
}

#[test]
fn a_peer_that_leaves_while_queued_for_a_handshake_is_removed() {
    let mut plan = tls_setup(no_idle());
    plan.limits.handshakes = 1;
    let mut test = plan.build(echo);
    let peers: Vec<PeerId> = (0..5).map(|_| test.script.connect()).collect();
    for &peer in &peers {
        test.script.feed(peer, b"HELLO\n");
        test.turn_until_quiet();
    }
    peers[1..].iter().for_each(|&peer| test.script.end(peer));
    test.turn_until_quiet();
    assert!(peers[1..].iter().all(|&peer| test.script.released(peer) == Some(Released::Closed)));
    assert_eq!((test.event_loop.table.connections(), test.event_loop.table.cx.memory), (1, 0));
    test.script.feed(peers[0], b"THANKS\n");
    test.turn_until_quiet();
    assert_eq!((test.received(peers[0]).as_str(), test.sockets().stats().handshakes), ("WELCOME\n", 1));
}

#[test]
fn at_most_four_handshakes_start_in_one_turn() {
    let mut test = tls_setup(no_idle()).build(echo);
    let peers: Vec<PeerId> = (0..16).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    peers.iter().for_each(|&peer| test.script.feed(peer, b"HELLO\n"));
    let mut begun = 0;
    for _ in 0..6 {
        test.turn();
        let now = peers.iter().filter(|&&peer| !test.script.received(peer).is_empty()).count();
        assert!(now <= 4, "{now} in one turn");
        begun += now;
    }
    assert_eq!(begun, 16);
}

#[test]
fn a_refused_peer_gets_no_cleartext() {
    let mut plan = tls_setup(no_idle());
    plan.limits.connections = 1;
    let mut test = plan.build(echo);
    handshaken(&mut test);
    let refused = test.script.connect();
    test.turn_until_quiet();
    assert_eq!((test.received(refused).as_str(), test.script.received_end(refused)), ("", true));
}
