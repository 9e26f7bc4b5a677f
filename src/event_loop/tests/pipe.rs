//! Pipes: two connections whose bytes go to each other.

use super::*;
use crate::connection::optional::Dialed;

/// Pipes the first connection with the second as soon as that is open.
fn pair_with(limits: SocketLimits) -> (TestLoop, [PeerId; 2], [ConnId; 2]) {
    let mut test = socket_limits(limits).build(|_, input| {
        input.take(1); // The bytes left untaken must go through the pipe first.
    });
    let (a, id_a) = test.accept();
    let (b, id_b) = test.accept();
    (test, [a, b], [id_a, id_b])
}

fn pipe(test: &mut TestLoop, ids: [ConnId; 2]) {
    assert!(test.sockets().get(ids[0]).unwrap().pipe(ids[1]));
}

fn pair() -> (TestLoop, [PeerId; 2], [ConnId; 2]) {
    let (mut test, peers, ids) = pair_with(no_idle());
    pipe(&mut test, ids);
    test.turn_until_quiet();
    (test, peers, ids)
}

#[test]
fn a_pipe_relays_between_its_ends_without_service_callbacks() {
    let (mut test, [a, b], ids) = pair();
    test.script.feed(a, b"from a");
    test.script.feed(b, b"from b");
    test.turn_until_quiet();
    assert_eq!((test.received(a), test.received(b)), ("from b".into(), "from a".into()));
    assert!(!test.events().iter().any(|events| matches!(events, Event::Data(..))));
    let socket_bytes = |test: &mut TestLoop, id| {
        let mut sockets = test.sockets();
        let socket = sockets.get(id).unwrap();
        (socket.bytes_in(), socket.bytes_out())
    };
    assert_eq!((socket_bytes(&mut test, ids[0]), socket_bytes(&mut test, ids[1])), ((6, 6), (6, 6)));
}

#[test]
fn unread_input_is_relayed_first() {
    let (mut test, [a, b], ids) = pair_with(no_idle());
    test.script.feed(a, b"-rest of a");
    test.turn_until_quiet();
    pipe(&mut test, ids);
    test.script.feed(a, b", and more");
    test.turn_until_quiet();
    assert_eq!(test.received(b), "rest of a, and more");
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn a_fin_is_relayed_after_all_data_and_the_other_direction_goes_on() {
    let (mut test, [a, b], ids) = pair();
    test.script.window(b, 10);
    test.script.feed(a, &[b'x'; 1_000]);
    test.script.end(a);
    test.turn_until_quiet();
    assert!(!test.script.received_end(b), "990 bytes are still to come");
    test.script.window(b, usize::MAX);
    test.turn_until_quiet();
    assert_eq!((test.received(b).len(), test.script.received_end(b)), (1_000, true));
    assert_eq!(test.close_reason(ids[0]), None);
    test.script.feed(b, b"a late answer");
    test.script.end(b);
    test.turn_until_quiet();
    assert_eq!((test.received(a).as_str(), test.script.received_end(a)), ("a late answer", true));
    assert_eq!(
        (test.close_reason(ids[0]), test.close_reason(ids[1])),
        (Some(CloseReason::Finished), Some(CloseReason::Finished))
    );
}

#[test]
fn a_finished_end_lets_the_other_receive_its_remaining_data() {
    let (mut test, [a, b], ids) = pair();
    test.script.window(b, 0);
    test.script.feed(a, b"slowly read");
    test.script.end(a);
    test.script.end(b);
    test.turn_until_quiet();
    assert_eq!((test.close_reason(ids[0]), test.close_reason(ids[1])), (Some(CloseReason::Finished), None));
    test.script.window(b, usize::MAX);
    test.turn_until_quiet();
    assert_eq!(
        (test.received(b).as_str(), test.close_reason(ids[1])),
        ("slowly read", Some(CloseReason::Finished))
    );
}

#[test]
fn a_slow_reader_stops_its_pipe_peer_at_the_water_marks() {
    let limits = SocketLimits { min_write_rate: None, ..no_idle() };
    let (mut test, [a, b], ids) = pair_with(limits);
    pipe(&mut test, ids);
    test.script.window(b, 0);
    let max = 64 * 1024 + 64 * 1024 + 256;
    for _ in 0..100 {
        test.script.feed(a, &[b'x'; 64 * 1024]);
        test.turn_until_quiet();
        assert!(test.event_loop.table.cx.memory <= 2 * max, "{} are held", test.event_loop.table.cx.memory);
    }
    test.script.feed(b, b"the other direction does not wait");
    test.turn_until_quiet();
    assert_eq!(test.received(a).len(), 33);
    let mut received = 0;
    while received < 100 * 64 * 1024 {
        test.script.window(b, 50_000);
        test.turn_until_quiet();
        let now = test.received(b).len();
        assert!(now > 0, "it stalled at {received}");
        received += now;
    }
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn a_pipe_whose_ends_both_stop_reading_is_closed_by_the_minimum_rate() {
    let (mut test, [a, b], ids) = pair();
    for peer in [a, b] {
        test.script.window(peer, 0);
        test.script.feed(peer, &[b'x'; 500_000]);
    }
    test.advance(9 * SECOND);
    assert_eq!((test.close_reason(ids[0]), test.close_reason(ids[1])), (None, None));
    test.advance(15 * SECOND);
    assert!(
        test.close_reason(ids[0]).is_some() && test.close_reason(ids[1]).is_some(),
        "{:?}",
        test.events()
    );
    assert!([test.close_reason(ids[0]), test.close_reason(ids[1])].contains(&Some(CloseReason::TooSlow)));
    assert_eq!((test.event_loop.table.cx.memory, test.script.open_descriptors()), (0, 2));
}

#[test]
pub(super) fn when_one_end_is_reset_the_other_gets_its_data_and_then_a_reset() {
    let (mut test, [a, b], ids) = pair();
    test.script.window(b, 0);
    test.script.feed(a, b"last words");
    test.turn_until_quiet();
    test.script.reset(a);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(ids[0]), Some(CloseReason::Reset));
    test.script.window(b, usize::MAX);
    test.turn_until_quiet();
    assert_eq!((test.received(b).as_str(), test.script.received_end(b)), ("last words", false));
    assert_eq!(test.script.released(b), None, "the kernel still sends what it was given");
    test.advance(2 * SECOND);
    assert_eq!(test.close_reason(ids[1]), Some(CloseReason::PipePeerClosed));
    assert_eq!((test.script.released(b), test.script.received_end(b)), (Some(Released::Reset), false));
}

#[test]
fn a_reset_after_a_clean_end_is_not_relayed_because_nothing_is_missing() {
    let (mut test, [a, b], ids) = pair();
    test.script.feed(a, b"all of it");
    test.script.end(a);
    test.turn_until_quiet();
    test.script.reset(a);
    test.turn_until_quiet();
    test.advance(2 * SECOND);
    assert_eq!(test.close_reason(ids[0]), Some(CloseReason::Reset));
    assert_eq!((test.received(b).as_str(), test.script.received_end(b)), ("all of it", true));
    assert_ne!(test.script.released(b), Some(Released::Reset));
}

#[test]
fn a_connecting_dial_can_be_piped() {
    let mut test = socket_limits(no_idle()).build(discard);
    let (a, id) = test.accept();
    let options = crate::config::dial::DialOptions::default();
    let pipe_peer = test.event_loop.table.dial(test.service, address().into(), options, Some(id)).unwrap();
    pipe(&mut test, [id, pipe_peer]);
    test.turn_until_quiet();
    for _ in 0..10 {
        test.script.feed(a, &[b'x'; 64 * 1024]);
        test.turn_until_quiet();
    }
    assert!(test.event_loop.table.cx.memory < 300_000, "the caller waits");
    let b = test.script.dialed()[0];
    test.script.finish_dial(b, Ok(()));
    test.turn_until_quiet();
    assert_eq!(test.received(b).len(), 640 * 1024);
    let refused =
        test.event_loop.table.dial(test.service, address().into(), Default::default(), None).unwrap();
    pipe(&mut test, [id, refused]);
    test.turn_until_quiet();
    test.script.finish_dial(test.script.dialed()[1], Err(libc::ECONNREFUSED));
    test.turn_until_quiet();
    assert!(test.script.received_end(a), "a pipe to nowhere ends cleanly");
}

#[test]
fn a_proxied_pair_needs_no_optional_state_but_how_its_upstream_was_dialed() {
    let mut test = socket_limits(no_idle()).build(discard);
    let (a, client) = test.accept();
    // A proxy does this while it dials.
    let mut sockets = test.sockets();
    let mut socket = sockets.get(client).unwrap();
    socket.set_alarm(Some(SECOND));
    socket.notice_leaving(true);
    let options = crate::config::dial::DialOptions { tag: 7, ..Default::default() };
    let upstream = test.event_loop.table.dial(test.service, address().into(), options, Some(client)).unwrap();
    test.turn_until_quiet();
    let b = test.script.dialed()[0];
    test.script.finish_dial(b, Ok(()));
    test.turn_until_quiet();
    let mut sockets = test.sockets();
    let mut socket = sockets.get(client).unwrap();
    socket.set_alarm(None);
    socket.notice_leaving(false);
    pipe(&mut test, [client, upstream]);
    test.script.feed(a, b"hello");
    test.turn_until_quiet();
    assert_eq!(test.received(b), "hello");
    assert!(test.event_loop.table.find(client).unwrap().optional.is_none());
    let optional = test.event_loop.table.find(upstream).unwrap().optional.as_ref().unwrap();
    assert!(optional.overrides.is_none() && optional.tls.is_none());
    assert!(matches!(optional.dialed, Dialed::Connected { by: Some(by), tag: 7, .. } if by == client));
}

#[test]
fn after_unpipe_each_service_gets_its_input_again() {
    let (mut test, [a, b], ids) = pair();
    test.script.window(b, 0);
    test.script.feed(a, &[b'x'; 200_000]);
    test.turn_until_quiet();
    assert_eq!(test.sockets().get(ids[0]).unwrap().piped_to(), Some(ids[1]));
    assert_eq!(test.sockets().get(ids[1]).unwrap().unpipe(), Some(ids[0]));
    assert_eq!(test.sockets().get(ids[0]).unwrap().piped_to(), None);
    test.turn_until_quiet();
    assert!(test.events().iter().any(|events| matches!(events, Event::Data(id, _) if *id == ids[0])));
    test.script.window(b, usize::MAX);
    test.script.feed(b, b"now for the service");
    test.turn_until_quiet();
    assert!(test.events().iter().any(|events| matches!(events, Event::Data(id, _) if *id == ids[1])));
    assert_eq!(test.received(a), "");
}

#[test]
fn a_connection_piped_to_itself_is_an_echo() {
    let mut test = socket_limits(no_idle()).build_with(
        |socket| {
            let own = socket.id();
            assert!(socket.pipe(own));
        },
        discard,
    );
    let (peer, id) = test.accept();
    test.script.feed(peer, b"echo");
    test.script.end(peer);
    test.turn_until_quiet();
    assert_eq!((test.received(peer).as_str(), test.close_reason(id)), ("echo", Some(CloseReason::Finished)));
}

/// A server that reads a header of three bytes in `data` and then pipes its peer with another connection, as servers of
/// SOCKS and CONNECT do.
fn pipes_in_data() -> (TestLoop, [PeerId; 2], [ConnId; 2]) {
    let target: Rc<RefCell<Option<ConnId>>> = Rc::default();
    let to = target.clone();
    let mut test = socket_limits(no_idle()).build(move |socket, input| {
        if input.len() < 3 {
            return;
        }
        assert_eq!(input.take(3), b"HDR");
        let other = to.borrow().expect("a connection to pipe to");
        assert!(socket.pipe(other));
    });
    let (b, id_b) = test.accept();
    let (a, id_a) = test.accept();
    *target.borrow_mut() = Some(id_b);
    (test, [a, b], [id_a, id_b])
}

#[test]
pub(super) fn input_left_by_the_callback_that_pipes_is_relayed_at_once_and_once() {
    let (mut test, [a, b], _) = pipes_in_data();
    test.script.feed(a, b"HDRrest");
    test.turn_until_quiet();
    assert_eq!(test.received(b), "rest");
    for more in ["-one", "-two", "-three"] {
        test.script.feed(a, more.as_bytes());
        test.turn_until_quiet();
        assert_eq!(test.received(b), more);
    }
}

#[test]
fn input_left_by_the_callback_that_pipes_is_relayed_before_the_fin() {
    let (mut test, [a, b], _) = pipes_in_data();
    test.script.feed(a, b"HDRrest");
    test.script.end(a);
    test.turn_until_quiet();
    assert_eq!((test.received(b).as_str(), test.script.received_end(b)), ("rest", true));
}

#[test]
fn input_taken_by_the_callback_that_pipes_is_not_relayed() {
    let (mut test, [a, b], _) = pipes_in_data();
    for piece in ["HD", "R", "payload"] {
        test.script.feed(a, piece.as_bytes());
        test.turn_until_quiet();
    }
    assert_eq!(test.received(b), "payload");
}

#[test]
fn a_long_rest_is_relayed_and_the_service_of_a_piped_connection_is_not_called() {
    let (mut test, [a, b], [id_a, _]) = pipes_in_data();
    test.script.feed(a, &[&b"HDR"[..], &[b'x'; 6_000]].concat());
    test.turn_until_quiet();
    let before = test.events().len();
    test.script.feed(a, b"HDRmore");
    test.turn_until_quiet();
    assert!(!test.events()[before..].iter().any(|event| matches!(event, Event::Data(id, _) if *id == id_a)));
    assert_eq!(test.received(b).len(), 6_007);
}

#[test]
fn a_connection_whose_pipe_peer_finished_and_closed_gets_its_service_back() {
    let limits = SocketLimits { half_closed: None, ..no_idle() };
    let (mut test, [a, b], [id_a, id_b]) = pair_with(limits);
    pipe(&mut test, [id_a, id_b]);
    test.turn_until_quiet();
    test.sockets().get(id_b).unwrap().finish();
    test.script.end(b);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id_b), Some(CloseReason::Finished));
    test.script.feed(a, b"more");
    test.turn_until_quiet();
    assert!(test.events().iter().any(|event| matches!(event, Event::Data(id, _) if *id == id_a)));
}
