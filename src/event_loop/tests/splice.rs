//! Pipes that carry much, through conduits of the kernel's.

use super::*;

/// Two guests joined, in a house where a read of a thousand bytes is a full one.
fn pair_within(limits: Limits) -> (House, [Peer; 2], [ConnId; 2]) {
    let mut house = Plan { limits, ..Plan::default() }.build(swallow);
    let (a, id_a) = house.guest();
    let (b, id_b) = house.guest();
    assert!(house.sockets().get(id_a).unwrap().pipe(id_b));
    house.settle();
    (house, [a, b], [id_a, id_b])
}

fn limits() -> Limits {
    Limits { read_budget: 1_000, socket: no_idle(), ..Limits::default() }
}

fn pair() -> (House, [Peer; 2], [ConnId; 2]) {
    pair_within(limits())
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|n| (n % 251) as u8).collect()
}

/// As `pair`, with so many bytes in the conduit towards the second, whose kernel takes no more.
fn pair_with_bytes_on_their_way() -> (House, [Peer; 2], [ConnId; 2]) {
    let (mut house, [a, b], ids) = pair();
    house.script.window(b, 2_000);
    house.script.feed(a, &pattern(102_000));
    house.settle();
    assert_eq!((house.script.heard(b), house.script.unread(a)), (pattern(2_000), 0));
    assert_eq!(house.turns.table.memory, 0, "nothing is held but by the kernel");
    assert_eq!(house.sockets().get(ids[1]).unwrap().queued(), 100_000);
    (house, [a, b], ids)
}

#[test]
fn a_flow_goes_through_the_kernel_and_arrives_whole() {
    let (mut house, [a, b], ids) = pair();
    house.script.feed(a, &pattern(500_000));
    house.script.end(a);
    house.settle();
    assert_eq!(house.script.heard(b), pattern(500_000));
    assert!(house.script.heard_end(b));
    let stats = &house.turns.table.stats;
    assert_eq!((stats.spliced, stats.bytes_in, stats.bytes_out), (498_000, 500_000, 500_000));
    let mut sockets = house.sockets();
    assert_eq!(sockets.get(ids[0]).unwrap().bytes_in(), 500_000);
    assert_eq!(sockets.get(ids[1]).unwrap().bytes_out(), 500_000);
    assert_eq!(house.turns.conduits.counts(), (0, 1), "the conduit waits for the next flow");
}

#[test]
fn small_messages_are_copied() {
    let (mut house, [a, b], _) = pair();
    for _ in 0..100 {
        house.script.feed(a, &[b'x'; 999]);
        house.settle();
    }
    assert_eq!((house.heard(b).len(), house.turns.table.stats.spliced), (99_900, 0));
    assert_eq!(house.turns.conduits.counts(), (0, 0));
}

#[test]
fn a_flow_that_dries_up_is_copied_again() {
    let (mut house, [a, b], _) = pair();
    house.script.feed(a, &pattern(50_000));
    house.settle();
    let spliced = house.turns.table.stats.spliced;
    assert!(spliced > 0);
    for _ in 0..10 {
        house.script.feed(a, b"trickle");
        house.settle();
    }
    assert_eq!((house.script.heard(b).len(), house.turns.table.stats.spliced), (50_070, spliced));
}

#[test]
fn a_slow_end_gets_everything_and_the_other_waits_for_it() {
    let (mut house, [a, b], _) = pair_with_bytes_on_their_way();
    house.script.feed(a, &pattern(10_000_000));
    house.settle();
    assert!(house.script.unread(a) >= 9_900_000, "what does not fit stays with the peer");
    let mut heard = Vec::new();
    while heard.len() < 10_100_000 {
        house.script.window(b, 300_000);
        house.settle();
        let now = house.script.heard(b);
        assert!(!now.is_empty(), "it stalled at {}", heard.len());
        heard.extend(now);
    }
    assert!(heard == [&pattern(102_000)[2_000..], &pattern(10_000_000)].concat());
}

#[test]
fn what_a_service_sends_comes_behind_what_is_on_its_way() {
    let (mut house, [_, b], ids) = pair_with_bytes_on_their_way();
    house.sockets().get(ids[1]).unwrap().send(b"tail");
    house.settle();
    assert!(house.turns.table.memory >= 100_004, "it was copied out, and is counted now");
    house.script.window(b, usize::MAX);
    house.settle();
    assert_eq!(house.script.heard(b), [&pattern(102_000)[2_000..], b"tail"].concat());
}

#[test]
fn an_end_follows_what_is_on_its_way() {
    let (mut house, [a, b], ids) = pair_with_bytes_on_their_way();
    house.script.end(a);
    house.settle();
    assert!(!house.script.heard_end(b));
    house.script.window(b, usize::MAX);
    house.settle();
    assert_eq!((house.script.heard(b).len(), house.script.heard_end(b)), (100_000, true));
    house.script.end(b);
    house.settle();
    assert_eq!(ids.map(|id| house.farewell(id)), [Some(Closed::Finished); 2]);
}

#[test]
fn when_the_source_is_reset_what_it_had_sent_arrives() {
    let (mut house, [a, b], ids) = pair_with_bytes_on_their_way();
    house.script.reset(a);
    house.settle();
    house.script.window(b, usize::MAX);
    house.settle();
    assert_eq!(house.farewell(ids[0]), Some(Closed::Reset));
    assert_eq!((house.script.heard(b).len(), house.script.heard_end(b)), (100_000, true));
    house.script.end(b);
    house.settle();
    assert_eq!(house.farewell(ids[1]), Some(Closed::Leg));
}

#[test]
fn a_conduit_that_holds_bytes_is_closed_with_its_connection_and_never_handed_on() {
    let (mut house, [_, b], ids) = pair_with_bytes_on_their_way();
    house.script.reset(b);
    house.script.window(b, 1);
    house.settle();
    assert_eq!(house.farewell(ids[1]), Some(Closed::Reset));
    assert_eq!(house.turns.conduits.counts(), (0, 0));
}

#[test]
fn a_slow_end_with_bytes_on_their_way_is_closed_by_the_pace() {
    let (mut house, _, ids) = pair_with_bytes_on_their_way();
    house.pass(9 * SECOND);
    assert_eq!(house.farewell(ids[1]), None);
    house.pass(15 * SECOND);
    assert_eq!(house.farewell(ids[1]), Some(Closed::TooSlow));
}

#[test]
fn parted_in_the_midst_of_it_each_gets_what_is_its_own() {
    let (mut house, [a, b], ids) = pair_with_bytes_on_their_way();
    assert_eq!(house.sockets().get(ids[0]).unwrap().unpipe(), Some(ids[1]));
    house.script.feed(a, b"for the service");
    house.settle();
    assert!(house.told().contains(&Told::Data(ids[0], b"for the service".to_vec())));
    house.script.window(b, usize::MAX);
    house.settle();
    assert_eq!(house.script.heard(b).len(), 100_000);
    assert_eq!(house.turns.conduits.counts(), (0, 1));
}

#[test]
fn no_more_conduits_are_laid_than_the_limit_allows() {
    for most in [0, 1] {
        let (mut house, [a, b], _) = pair_within(Limits { splices: most, ..limits() });
        for (peer, byte) in [(a, b'a'), (b, b'b')] {
            house.script.feed(peer, &[byte; 100_000]);
            house.script.window(peer, 2_000);
        }
        house.settle();
        assert_eq!(house.turns.conduits.counts().0, most);
        [a, b].iter().for_each(|&peer| house.script.window(peer, usize::MAX));
        house.settle();
        assert_eq!((house.heard(a), house.heard(b)), ("b".repeat(100_000), "a".repeat(100_000)));
        assert_eq!(house.turns.table.stats.spliced > 0, most > 0);
    }
}

#[test]
fn where_the_system_cannot_do_it_pipes_are_copied_and_it_is_not_asked_again() {
    let (mut house, [a, b], _) = pair();
    house.script.no_splice();
    for _ in 0..5 {
        house.script.feed(a, &pattern(100_000));
        house.settle();
    }
    assert_eq!((house.script.heard(b).len(), house.turns.table.stats.spliced), (500_000, 0));
    assert_eq!(house.script.fills(), 1);
}

#[test]
fn a_rate_is_kept_by_copying() {
    let limits = Limits { socket: SocketLimits { rate: Some(100_000), ..no_idle() }, ..limits() };
    let (mut house, [a, b], _) = pair_within(limits);
    house.script.feed(a, &pattern(300_000));
    house.pass(10 * SECOND);
    assert_eq!((house.script.heard(b).len(), house.turns.table.stats.spliced), (300_000, 0));
}

#[test]
fn a_chain_of_mishaps_loses_no_byte_of_a_flow() {
    for seed in 0..25 {
        let mut rng = Rng(seed);
        let read_budget = 100 + rng.below(3_000) as usize;
        let limits = Limits { read_budget, splices: 1 + rng.below(2) as usize, ..limits() };
        let (mut house, peers, ids) = pair_within(limits);
        house.script.misbehave(seed);
        let mut sent: [Vec<u8>; 2] = Default::default();
        let mut heard: [Vec<u8>; 2] = Default::default();
        for _ in 0..80 {
            for (from, &peer) in peers.iter().enumerate() {
                let bytes: Vec<u8> = (0..rng.below(60_000)).map(|n| (n % 253) as u8).collect();
                house.script.feed(peer, &bytes);
                sent[from].extend(bytes);
                house.script.window(peer, rng.below(80_000) as usize);
                house.turn();
                heard[from].extend(house.script.heard(peer));
                if rng.below(20) == 0 {
                    let own = format!("[{}]", rng.below(1_000)).into_bytes();
                    let unread = house.script.unread(peers[1 - from]);
                    let mut sockets = house.sockets();
                    let mut socket = sockets.get(ids[from]).unwrap();
                    // Only between two flows is it known where it belongs.
                    if socket.queued() == 0 && unread == 0 {
                        socket.send(&own);
                        sent[1 - from].extend(own);
                    }
                }
            }
        }
        pipes::assert_nothing_is_lost(&mut house, peers, ids, sent, heard, seed);
        assert!(house.turns.table.stats.spliced > 0, "seed {seed} tests nothing");
    }
}
