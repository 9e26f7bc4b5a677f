//! How fast connections are read.

use super::*;

const RATE: usize = 1_000_000;

/// Feeds a peer as fast as it is read for so long; says how much was read.
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
fn a_rate_is_held_within_a_twentieth_over_ten_seconds() {
    for rate in [20_000, RATE, 2 * RATE] {
        let mut test = socket_limits(SocketLimits { rate: Some(rate), ..no_idle() }).build(discard);
        let (peer, id) = stuffed(&mut test);
        let read = read_in(&mut test, &[peer], 10 * SECOND)[0];
        let max = rate * 10;
        assert!(read >= max * 95 / 100 && read <= max * 105 / 100, "{read} at {rate} a second");
        assert_eq!(test.close_reason(id), None);
        assert!(test.event_loop.table.stats.throttled > 10);
    }
}

#[test]
fn a_throttled_peer_is_not_closed_as_too_slow() {
    // Far slower than the pace that is asked of messages, because of us.
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
    assert!(read.iter().all(|&one| one * 10 > sum), "nobody gets less than half his share: {read:?}");
    // A member that leaves while it waits makes room for the others.
    test.sockets().get(members[0].1).unwrap().abort();
    test.turn_until_quiet();
    let read = read_in(&mut test, &peers[1..], 5 * SECOND);
    assert!(read.iter().sum::<usize>() >= 47 * RATE / 10, "{read:?}");
}

#[test]
fn a_dry_run_counts_connections_that_would_be_throttled() {
    let mut test = socket_limits(SocketLimits { rate: Some(RATE), ..no_idle() }).build(discard);
    let guard = crate::config::access::AccessPolicy { dry_run: true, ..Default::default() };
    test.sockets().set_access_policy(crate::base::id::ServiceId(1), guard);
    let (peer, _) = stuffed(&mut test);
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 0);
    let stats = &test.event_loop.table.stats;
    assert!(stats.would_throttle > 0 && stats.throttled == 0);
}
