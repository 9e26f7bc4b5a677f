//! Pipes of bulk data, which are spliced through kernel pipes.

use super::*;

/// Two piped connections, in a loop where a read of a thousand bytes is a full one.
fn pair_with(limits: Limits) -> (TestLoop, [PeerId; 2], [ConnId; 2]) {
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    let (a, id_a) = test.accept();
    let (b, id_b) = test.accept();
    assert!(test.sockets().get(id_a).unwrap().pipe(id_b));
    test.turn_until_quiet();
    (test, [a, b], [id_a, id_b])
}

fn limits() -> Limits {
    Limits { read_budget: 1_000, socket: no_idle(), ..Limits::default() }
}

fn pair() -> (TestLoop, [PeerId; 2], [ConnId; 2]) {
    pair_with(limits())
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|n| (n % 251) as u8).collect()
}

/// As `pair`, with this many bytes in the kernel pipe to the second one, whose socket accepts no more.
fn pair_with_bytes_on_their_way() -> (TestLoop, [PeerId; 2], [ConnId; 2]) {
    let (mut test, [a, b], ids) = pair();
    test.script.window(b, 2_000);
    test.script.feed(a, &pattern(102_000));
    test.turn_until_quiet();
    assert_eq!((test.script.received(b), test.script.unread(a)), (pattern(2_000), 0));
    assert_eq!(test.event_loop.table.cx.memory, 0, "nothing is held but by the kernel");
    assert_eq!(test.sockets().get(ids[1]).unwrap().queued(), 100_000);
    (test, [a, b], ids)
}

#[test]
fn bulk_data_is_spliced_and_arrives_whole() {
    let (mut test, [a, b], ids) = pair();
    test.script.feed(a, &pattern(500_000));
    test.script.end(a);
    test.turn_until_quiet();
    assert_eq!(test.script.received(b), pattern(500_000));
    assert!(test.script.received_end(b));
    let stats = &test.event_loop.table.cx.stats;
    assert_eq!((stats.spliced, stats.bytes_in, stats.bytes_out), (498_000, 500_000, 500_000));
    let mut sockets = test.sockets();
    assert_eq!(sockets.get(ids[0]).unwrap().bytes_in(), 500_000);
    assert_eq!(sockets.get(ids[1]).unwrap().bytes_out(), 500_000);
    assert_eq!(test.event_loop.kernel_pipes.counts(), (0, 1), "the conduit waits for the next flow");
}

#[test]
fn small_messages_are_copied() {
    let (mut test, [a, b], _) = pair();
    for _ in 0..100 {
        test.script.feed(a, &[b'x'; 999]);
        test.turn_until_quiet();
    }
    assert_eq!((test.received(b).len(), test.event_loop.table.cx.stats.spliced), (99_900, 0));
    assert_eq!(test.event_loop.kernel_pipes.counts(), (0, 0));
}

#[test]
fn a_flow_that_slows_down_is_copied_again() {
    let (mut test, [a, b], _) = pair();
    test.script.feed(a, &pattern(50_000));
    test.turn_until_quiet();
    let spliced = test.event_loop.table.cx.stats.spliced;
    assert!(spliced > 0);
    for _ in 0..10 {
        test.script.feed(a, b"trickle");
        test.turn_until_quiet();
    }
    // The first of them shows that the flow is none any more.
    assert_eq!(
        (test.script.received(b).len(), test.event_loop.table.cx.stats.spliced),
        (50_070, spliced + 7)
    );
}

#[test]
fn a_flow_that_pauses_gives_its_kernel_pipe_back_and_goes_on_without_a_copy() {
    let (mut test, [a, b], _) = pair();
    for pauses in 0..5 {
        test.script.feed(a, &pattern(50_000));
        test.turn_until_quiet();
        assert_eq!(test.script.received(b), pattern(50_000));
        assert_eq!(test.event_loop.table.cx.stats.spliced, 48_000 + pauses * 50_000);
        assert_eq!(test.event_loop.kernel_pipes.counts(), (0, 1), "another flow may have it");
    }
}

#[test]
fn a_flow_whose_kernel_pipe_went_to_another_is_copied_and_loses_nothing() {
    let (mut test, [a, b], _) = pair_with(Limits { splices: 1, ..limits() });
    test.script.feed(a, &pattern(50_000));
    test.turn_until_quiet();
    let (c, id_c) = test.accept();
    let (d, id_d) = test.accept();
    assert!(test.sockets().get(id_c).unwrap().pipe(id_d));
    test.script.window(d, 2_000);
    test.script.feed(c, &pattern(50_000));
    test.turn_until_quiet();
    assert_eq!(test.event_loop.kernel_pipes.counts(), (1, 0), "the second flow holds the only one");
    let before = test.event_loop.table.cx.stats.spliced;
    test.script.feed(a, &pattern(50_000));
    test.turn_until_quiet();
    assert_eq!(test.script.received(b), [pattern(50_000), pattern(50_000)].concat());
    assert_eq!(test.event_loop.table.cx.stats.spliced, before);
    test.script.window(d, usize::MAX);
    test.turn_until_quiet();
    assert_eq!(test.script.received(d), pattern(50_000));
}

#[test]
fn a_slow_reader_gets_everything_and_its_pipe_peer_waits() {
    let (mut test, [a, b], _) = pair_with_bytes_on_their_way();
    test.script.feed(a, &pattern(10_000_000));
    test.turn_until_quiet();
    assert!(test.script.unread(a) >= 9_900_000, "what does not fit stays with the peer");
    let mut received = Vec::new();
    while received.len() < 10_100_000 {
        test.script.window(b, 300_000);
        test.turn_until_quiet();
        let now = test.script.received(b);
        assert!(!now.is_empty(), "it stalled at {}", received.len());
        received.extend(now);
    }
    assert!(received == [&pattern(102_000)[2_000..], &pattern(10_000_000)].concat());
}

#[test]
fn data_sent_by_a_service_follows_spliced_data() {
    let (mut test, [_, b], ids) = pair_with_bytes_on_their_way();
    test.sockets().get(ids[1]).unwrap().send(b"tail");
    test.turn_until_quiet();
    assert!(test.event_loop.table.cx.memory >= 100_004, "it was copied out, and is counted now");
    test.script.window(b, usize::MAX);
    test.turn_until_quiet();
    assert_eq!(test.script.received(b), [&pattern(102_000)[2_000..], b"tail"].concat());
}

#[test]
fn a_fin_follows_spliced_data() {
    let (mut test, [a, b], ids) = pair_with_bytes_on_their_way();
    test.script.end(a);
    test.turn_until_quiet();
    assert!(!test.script.received_end(b));
    test.script.window(b, usize::MAX);
    test.turn_until_quiet();
    assert_eq!((test.script.received(b).len(), test.script.received_end(b)), (100_000, true));
    test.script.end(b);
    test.turn_until_quiet();
    assert_eq!(ids.map(|id| test.close_reason(id)), [Some(CloseReason::Finished); 2]);
}

#[test]
fn data_spliced_before_a_reset_of_the_source_arrives() {
    let (mut test, [a, b], ids) = pair_with_bytes_on_their_way();
    test.script.reset(a);
    test.turn_until_quiet();
    test.script.window(b, usize::MAX);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(ids[0]), Some(CloseReason::Reset));
    assert_eq!((test.script.received(b).len(), test.script.received_end(b)), (100_000, false));
    test.advance(2 * SECOND);
    assert_eq!(test.close_reason(ids[1]), Some(CloseReason::PipePeerClosed));
    assert_eq!(test.script.released(b), Some(Released::Reset));
}

#[test]
fn a_kernel_pipe_that_holds_bytes_is_closed_with_its_connection_and_never_reused() {
    let (mut test, [_, b], ids) = pair_with_bytes_on_their_way();
    test.script.reset(b);
    test.script.window(b, 1);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(ids[1]), Some(CloseReason::Reset));
    assert_eq!(test.event_loop.kernel_pipes.counts(), (0, 0));
}

#[test]
fn a_slow_reader_with_spliced_data_is_closed_by_the_minimum_rate() {
    let (mut test, _, ids) = pair_with_bytes_on_their_way();
    test.advance(9 * SECOND);
    assert_eq!(test.close_reason(ids[1]), None);
    test.advance(15 * SECOND);
    assert_eq!(test.close_reason(ids[1]), Some(CloseReason::TooSlow));
}

#[test]
fn unpipe_during_a_splice_gives_each_end_its_own_data() {
    let (mut test, [a, b], ids) = pair_with_bytes_on_their_way();
    assert_eq!(test.sockets().get(ids[0]).unwrap().unpipe(), Some(ids[1]));
    test.script.feed(a, b"for the service");
    test.turn_until_quiet();
    assert!(test.events().contains(&Event::Data(ids[0], b"for the service".to_vec())));
    test.script.window(b, usize::MAX);
    test.turn_until_quiet();
    assert_eq!(test.script.received(b).len(), 100_000);
    assert_eq!(test.event_loop.kernel_pipes.counts(), (0, 1));
}

#[test]
fn kernel_pipes_are_limited() {
    for max in [0, 1] {
        let (mut test, [a, b], _) = pair_with(Limits { splices: max, ..limits() });
        for (peer, byte) in [(a, b'a'), (b, b'b')] {
            test.script.feed(peer, &[byte; 100_000]);
            test.script.window(peer, 2_000);
        }
        test.turn_until_quiet();
        assert_eq!(test.event_loop.kernel_pipes.counts().0, max);
        [a, b].iter().for_each(|&peer| test.script.window(peer, usize::MAX));
        test.turn_until_quiet();
        assert_eq!((test.received(a), test.received(b)), ("b".repeat(100_000), "a".repeat(100_000)));
        assert_eq!(test.event_loop.table.cx.stats.spliced > 0, max > 0);
    }
}

#[test]
fn without_splice_pipes_are_copied_and_splice_is_not_tried_again() {
    let (mut test, [a, b], _) = pair();
    test.script.no_splice();
    for _ in 0..5 {
        test.script.feed(a, &pattern(100_000));
        test.turn_until_quiet();
    }
    assert_eq!((test.script.received(b).len(), test.event_loop.table.cx.stats.spliced), (500_000, 0));
    assert_eq!(test.script.splices(), 1);
}

#[test]
fn a_rate_limited_pipe_is_copied() {
    let limits = Limits { socket: SocketLimits { rate: Some(100_000), ..no_idle() }, ..limits() };
    let (mut test, [a, b], _) = pair_with(limits);
    test.script.feed(a, &pattern(300_000));
    test.advance(10 * SECOND);
    assert_eq!((test.script.received(b).len(), test.event_loop.table.cx.stats.spliced), (300_000, 0));
}

/// A pair whose pipe was undone while the kernel pipe held bytes, and whose sink is then closed at the memory limit.
fn closed_with_a_full_kernel_pipe() -> TestLoop {
    let socket = SocketLimits { read_when_full: true, ..no_idle() };
    let limits = Limits { read_budget: 1_000, memory: 10_000, socket, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(|_, _| {});
    let ((a, id_a), (b, id_b)) = (test.accept(), test.accept());
    assert!(test.sockets().get(id_a).unwrap().pipe(id_b));
    test.script.window(b, 2_000);
    test.script.feed(a, &[b'S'; 22_000]);
    test.turn_until_quiet();
    assert!(test.sockets().get(id_b).unwrap().queued() > 10_000);
    test.sockets().get(id_a).unwrap().unpipe();
    for _ in 0..40 {
        test.script.feed(b, &[b'm'; 900]);
        test.turn_until_quiet();
    }
    assert_eq!(test.close_reason(id_b), Some(CloseReason::Memory));
    test
}

#[test]
fn a_kernel_pipe_that_holds_bytes_is_closed_although_its_queue_was_dropped() {
    let test = closed_with_a_full_kernel_pipe();
    assert_eq!(test.event_loop.kernel_pipes.counts(), (0, 0));
}

#[test]
pub(super) fn bytes_of_one_pair_never_reach_another() {
    let mut test = closed_with_a_full_kernel_pipe();
    let ((c, id_c), (d, id_d)) = (test.accept(), test.accept());
    assert!(test.sockets().get(id_c).unwrap().pipe(id_d));
    for _ in 0..3 {
        test.script.feed(c, &[b'c'; 60_000]);
        test.turn_until_quiet();
    }
    let received = test.script.received(d);
    assert!(!received.is_empty() && received.iter().all(|&byte| byte == b'c'));
}

#[test]
pub(super) fn a_finished_sink_ends_the_same_way_spliced_and_copied() {
    let ends = [0, 64].map(|splices| {
        let limits = Limits { read_budget: 1_000, splices, socket: no_idle(), ..Limits::default() };
        let mut test = Setup { limits, ..Setup::default() }.build(discard);
        let ((a, id_a), (b, id_b)) = (test.accept(), test.accept());
        test.sockets().get(id_a).unwrap().pipe(id_b);
        test.script.feed(a, &[b'x'; 50_000]);
        test.turn_until_quiet();
        test.sockets().get(id_b).unwrap().finish();
        test.turn_until_quiet();
        test.script.feed(a, &[b'x'; 50_000]);
        test.turn_until_quiet();
        test.script.feed(b, b"the other direction");
        test.turn_until_quiet();
        (test.close_reason(id_a), test.close_reason(id_b), test.received(a))
    });
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn an_empty_kernel_pipe_is_given_back_by_unpipe() {
    let limits = Limits { read_budget: 1_000, splices: 1, socket: no_idle(), ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    let ((a, id_a), (_, id_b)) = (test.accept(), test.accept());
    test.sockets().get(id_a).unwrap().pipe(id_b);
    test.script.feed(a, &[b'x'; 500_000]);
    while test.event_loop.kernel_pipes.counts().0 == 0 || test.sockets().get(id_b).unwrap().queued() > 0 {
        test.turn();
    }
    test.sockets().get(id_a).unwrap().unpipe();
    test.turn_until_quiet();
    assert_eq!(test.event_loop.kernel_pipes.counts().0, 0);
}
