//! How fast connections are read.

use super::*;

const RATE: usize = 1_000_000;

/// Feeds a peer as fast as it is read for so long; says how much was read.
fn read_in(house: &mut House, peers: &[Peer], span: Duration) -> Vec<usize> {
    let before: Vec<usize> = peers.iter().map(|&peer| house.script.unread(peer)).collect();
    assert!(before.iter().all(|&unread| unread > 20 * RATE), "there is enough to read");
    house.pass(span);
    peers.iter().zip(before).map(|(&peer, before)| before - house.script.unread(peer)).collect()
}

fn stuffed(house: &mut House) -> (Peer, ConnId) {
    let (peer, id) = house.guest();
    house.script.feed(peer, &vec![b'x'; 40 * RATE]);
    (peer, id)
}

#[test]
fn a_rate_is_held_within_a_twentieth_over_ten_seconds() {
    for rate in [20_000, RATE, 2 * RATE] {
        let mut house = socket_limits(SocketLimits { rate: Some(rate), ..no_idle() }).build(swallow);
        let (peer, id) = stuffed(&mut house);
        let read = read_in(&mut house, &[peer], 10 * SECOND)[0];
        let most = rate * 10;
        assert!(read >= most * 95 / 100 && read <= most * 105 / 100, "{read} at {rate} a second");
        assert_eq!(house.farewell(id), None);
        assert!(house.turns.table.stats.throttled > 10);
    }
}

#[test]
fn a_peer_that_is_made_to_wait_is_not_blamed_for_slowness() {
    // Far slower than the pace that is asked of messages, because of us.
    let limits =
        SocketLimits { rate: Some(200), read_pace: Some(Pace { bytes: 5_000, per: SECOND }), ..no_idle() };
    let mut house = socket_limits(limits).build(|_, _| {});
    let (_, id) = stuffed(&mut house);
    house.pass(60 * SECOND);
    assert_eq!(house.farewell(id), None);
}

#[test]
fn a_rate_can_be_changed_and_lifted() {
    let mut house = socket_limits(no_idle()).build(swallow);
    let (peer, id) = stuffed(&mut house);
    house.sockets().get(id).unwrap().set_rate(Some(RATE));
    assert!(read_in(&mut house, &[peer], SECOND)[0] <= RATE * 5 / 4);
    house.sockets().get(id).unwrap().set_rate(None);
    house.settle();
    assert_eq!(house.script.unread(peer), 0);
}

#[test]
fn a_group_shares_its_rate_evenly() {
    let mut house = socket_limits(no_idle()).build(swallow);
    let group = house.sockets().group(RATE).unwrap();
    let members: Vec<(Peer, ConnId)> = (0..5)
        .map(|_| {
            let (peer, id) = house.guest();
            house.sockets().get(id).unwrap().join(Some(group));
            house.script.feed(peer, &vec![b'x'; 40 * RATE]);
            (peer, id)
        })
        .collect();
    let peers: Vec<Peer> = members.iter().map(|member| member.0).collect();
    let read = read_in(&mut house, &peers, 10 * SECOND);
    let sum: usize = read.iter().sum();
    assert!((95 * RATE / 10..=105 * RATE / 10).contains(&sum), "{read:?}");
    assert!(read.iter().all(|&one| one * 10 > sum), "nobody gets less than half his share: {read:?}");
    // A member that leaves while it waits makes room for the others.
    house.sockets().get(members[0].1).unwrap().abort();
    house.settle();
    let read = read_in(&mut house, &peers[1..], 5 * SECOND);
    assert!(read.iter().sum::<usize>() >= 47 * RATE / 10, "{read:?}");
}

#[test]
fn a_dry_run_counts_who_would_have_waited() {
    let mut house = socket_limits(SocketLimits { rate: Some(RATE), ..no_idle() }).build(swallow);
    let guard = crate::config::access::Guard { dry_run: true, ..Default::default() };
    house.sockets().guard(crate::base::id::ServiceId(1), guard);
    let (peer, _) = stuffed(&mut house);
    house.settle();
    assert_eq!(house.script.unread(peer), 0);
    let stats = &house.turns.table.stats;
    assert!(stats.would_throttle > 0 && stats.throttled == 0);
}
