//! Read rates of connections and groups.

use super::*;
use crate::base::id::GroupId;
use crate::connection::rate::shared::SharedRate;
use crate::sys::Epoch;

const RATE: usize = 1_000_000;

/// Sends as fast as the loop reads, for a time; returns how many bytes were read.
fn read_in(test: &mut TestLoop, peers: &[PeerId], span: Duration) -> Vec<usize> {
    let before: Vec<usize> = peers.iter().map(|&peer| test.script.unread(peer)).collect();
    assert!(before.iter().all(|&unread| unread > 20 * RATE), "there is enough to read");
    test.advance(span);
    peers.iter().zip(before).map(|(&peer, before)| before - test.script.unread(peer)).collect()
}

fn stuffed(test: &mut TestLoop) -> (PeerId, ConnId) {
    let (peer, id) = test.accept();
    test.script.feed(peer, &vec![b'x'; 40 * RATE]);
    (peer, id)
}

#[test]
pub(super) fn a_rate_is_held_within_a_twentieth_over_ten_seconds() {
    for rate in [20_000, RATE, 2 * RATE] {
        let mut test = socket_limits(SocketLimits { rate: Some(rate), ..no_idle() }).build(discard);
        let (peer, id) = stuffed(&mut test);
        let read = read_in(&mut test, &[peer], 10 * SECOND)[0];
        let max = rate * 10;
        assert!(read >= max * 95 / 100 && read <= max * 105 / 100, "{read} at {rate} a second");
        assert_eq!(test.close_reason(id), None);
        assert!(test.event_loop.table.cx.stats.throttled > 10);
    }
}

#[test]
fn a_throttled_peer_is_not_closed_as_too_slow() {
    // Far below the minimum rate of a message, because the loop does not read it.
    let limits = SocketLimits {
        rate: Some(200),
        min_read_rate: Some(MinRate { bytes: 5_000, per: SECOND }),
        ..no_idle()
    };
    let mut test = socket_limits(limits).build(|_, _| {});
    let (_, id) = stuffed(&mut test);
    test.advance(60 * SECOND);
    assert_eq!(test.close_reason(id), None);
}

#[test]
fn a_rate_can_be_changed_and_lifted() {
    let mut test = socket_limits(no_idle()).build(discard);
    let (peer, id) = stuffed(&mut test);
    test.sockets().get(id).unwrap().set_rate(Some(RATE));
    assert!(read_in(&mut test, &[peer], SECOND)[0] <= RATE * 5 / 4);
    test.sockets().get(id).unwrap().set_rate(None);
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 0);
}

#[test]
fn a_group_shares_its_rate_evenly() {
    let mut test = socket_limits(no_idle()).build(discard);
    let group = test.sockets().add_group(RATE).unwrap();
    let members: Vec<(PeerId, ConnId)> = (0..5)
        .map(|_| {
            let (peer, id) = test.accept();
            test.sockets().get(id).unwrap().join_group(Some(group));
            test.script.feed(peer, &vec![b'x'; 40 * RATE]);
            (peer, id)
        })
        .collect();
    let peers: Vec<PeerId> = members.iter().map(|member| member.0).collect();
    let read = read_in(&mut test, &peers, 10 * SECOND);
    let sum: usize = read.iter().sum();
    assert!((95 * RATE / 10..=105 * RATE / 10).contains(&sum), "{read:?}");
    assert!(read.iter().all(|&one| one * 10 > sum), "each gets at least half its share: {read:?}");
    // A member that is closed while it is throttled no longer takes a share.
    test.sockets().get(members[0].1).unwrap().abort();
    test.turn_until_quiet();
    let read = read_in(&mut test, &peers[1..], 5 * SECOND);
    assert!(read.iter().sum::<usize>() >= 47 * RATE / 10, "{read:?}");
}

#[test]
fn a_dry_run_counts_connections_that_would_be_throttled() {
    let mut test = socket_limits(SocketLimits { rate: Some(RATE), ..no_idle() }).build(discard);
    let guard = crate::config::access::AccessPolicy { dry_run: true, ..Default::default() };
    test.set_access_policy(guard);
    let (peer, _) = stuffed(&mut test);
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 0);
    let stats = &test.event_loop.table.cx.stats;
    assert!(stats.would_throttle > 0 && stats.throttled == 0);
}

const GROUP_RATE: usize = 100_000;

#[test]
pub(super) fn input_discarded_while_closing_spends_no_rate_of_its_group() {
    let mut test = socket_limits(no_idle()).build(discard);
    let group = test.sockets().add_group(GROUP_RATE).unwrap();
    let ((closing, id), (other, id_other)) = (test.accept(), test.accept());
    for id in [id, id_other] {
        test.sockets().get(id).unwrap().join_group(Some(group));
    }
    // It stays in `Closing`, because the peer does not read its queue.
    test.script.window(closing, 0);
    test.sockets().get(id).unwrap().send([b'q'; 100]);
    test.turn_until_quiet();
    test.sockets().get(id).unwrap().close();
    test.turn_until_quiet();
    for _ in 0..100 {
        test.script.feed(closing, &vec![b'x'; 1_000_000]);
        test.turn_until_quiet();
    }
    test.script.feed(other, &vec![b'g'; 10 * GROUP_RATE]);
    test.advance(10 * SECOND);
    let read = 10 * GROUP_RATE - test.script.unread(other);
    assert!(read > 9 * GROUP_RATE, "in ten seconds {read} bytes were read, at {GROUP_RATE} a second");
}

#[test]
fn discarding_input_keeps_to_the_read_budget_of_a_turn() {
    let mut test = socket_limits(no_idle()).build(discard);
    let (peer, id) = test.accept();
    test.script.window(peer, 0);
    test.sockets().get(id).unwrap().send([b'q'; 100]);
    test.turn_until_quiet();
    test.sockets().get(id).unwrap().close();
    for _ in 0..20 {
        test.script.feed(peer, &vec![b'x'; 2_000_000]);
        let before = test.event_loop.table.cx.stats.bytes_in;
        test.turn();
        // One budget, and the extra budgets that are given when no other connection waits.
        let read = test.event_loop.table.cx.stats.bytes_in - before;
        assert!(read <= 9 * 64 * 1024, "{read} bytes of one closing connection in one turn");
    }
}

#[test]
pub(super) fn a_raised_group_rate_reaches_throttled_members() {
    let mut test = socket_limits(no_idle()).build(discard);
    let group = test.sockets().add_group(2).unwrap();
    let (peer, id) = test.accept();
    test.sockets().get(id).unwrap().join_group(Some(group));
    test.script.feed(peer, &vec![b'x'; 1_000_000]);
    test.turn_until_quiet();
    test.sockets().set_group_rate(group, 10_000_000);
    test.advance(SECOND);
    assert_eq!(test.script.unread(peer), 0);
}

#[test]
fn a_throttled_member_of_a_group_is_counted_once() {
    let mut calls = 0;
    let mut test = socket_limits(no_idle()).build(move |socket, input| {
        calls += 1;
        if calls == 1 {
            return socket.pause();
        }
        input.take_all();
        socket.pause();
        socket.resume();
    });
    let group = test.sockets().add_group(1_500).unwrap();
    let (peer, id) = test.accept();
    test.sockets().get(id).unwrap().join_group(Some(group));
    test.script.feed(peer, &[b'x'; 100_000]);
    test.turn_until_quiet();
    test.sockets().get(id).unwrap().resume();
    test.turn_until_quiet(); // The check between turns compares the count with the throttled members.
}

#[test]
fn a_group_of_another_reactor_is_ignored() {
    let mut other = socket_limits(no_idle()).build(discard);
    other.sockets().add_group(1).unwrap();
    let foreign = other.sockets().add_group(1).unwrap();
    let mut test = socket_limits(no_idle()).build(discard);
    let (peer, id) = test.accept();
    test.sockets().get(id).unwrap().join_group(Some(foreign));
    test.sockets().set_group_rate(foreign, 7);
    test.script.feed(peer, b"still read");
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 0);
}

/// Loops whose group has one rate, with this many peers on each, all of which send more than is read.
fn sharing(members: [usize; 2]) -> [(TestLoop, GroupId, Vec<PeerId>); 2] {
    let (rate, epoch) = (SharedRate::new(RATE, 2), Epoch::from_now());
    members.map(|count| {
        let mut test = socket_limits(no_idle()).build(discard);
        // Their simulated clocks began together.
        test.event_loop.table.cx.epoch = epoch;
        let group = test.sockets().add_shared_group(&rate).unwrap();
        let member = |test: &mut TestLoop| {
            let (peer, id) = stuffed(test);
            test.sockets().get(id).unwrap().join_group(Some(group));
            peer
        };
        let peers = (0..count).map(|_| member(&mut test)).collect();
        (test, group, peers)
    })
}

/// How much is read of each peer in a time, in which the loops turn by turns.
fn read_by_both(loops: &mut [(TestLoop, GroupId, Vec<PeerId>); 2], span: Duration) -> [Vec<usize>; 2] {
    let mut read = loops.each_ref().map(|(_, _, peers)| vec![0; peers.len()]);
    for _ in 0..span.as_millis() / 5 {
        for (read, (test, _, peers)) in read.iter_mut().zip(&mut *loops) {
            let more = read_in(test, peers, Duration::from_millis(5));
            read.iter_mut().zip(more).for_each(|(read, more)| *read += more);
        }
    }
    read
}

#[test]
fn a_rate_of_two_loops_is_all_for_the_one_whose_peers_send() {
    let mut loops = sharing([5, 0]);
    let read = read_by_both(&mut loops, 10 * SECOND);
    let sum: usize = read[0].iter().sum();
    assert!((95 * RATE / 10..=105 * RATE / 10).contains(&sum), "{read:?}");
    assert!(read[0].iter().all(|one| one * 10 > sum), "each gets at least half its share: {read:?}");
}

#[test]
fn a_rate_of_two_loops_is_kept_by_both_together_in_equal_parts() {
    let mut loops = sharing([3, 7]);
    let read = read_by_both(&mut loops, 10 * SECOND);
    let sums = read.each_ref().map(|read| read.iter().sum::<usize>());
    let sum = sums[0] + sums[1];
    assert!((95 * RATE / 10..=105 * RATE / 10).contains(&sum), "{read:?}");
    assert!(sums.iter().all(|one| one * 10 > sum * 4), "{read:?}");
    assert!(read[1].iter().all(|one| one * 14 > sums[1]), "each gets at least half its share: {read:?}");
}

#[test]
fn a_shared_rate_that_is_raised_on_each_loop_reaches_throttled_members() {
    let mut loops = sharing([1, 1]);
    for (test, group, _) in &mut loops {
        test.sockets().set_group_rate(*group, 2);
    }
    read_by_both(&mut loops, 2 * SECOND);
    let before = read_by_both(&mut loops, SECOND);
    assert!(before.iter().all(|read| read[0] < 3_000), "{before:?}");
    for (test, group, _) in &mut loops {
        test.sockets().set_group_rate(*group, RATE);
    }
    let read = read_by_both(&mut loops, SECOND);
    assert!(read.iter().all(|read| read[0] > RATE * 2 / 5), "{read:?}");
}
