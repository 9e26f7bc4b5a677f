//! Two connections joined.

use super::*;

/// The first guest is joined with the second as soon as that has come.
fn pair_with(limits: SocketLimits) -> (House, [Peer; 2], [ConnId; 2]) {
    let mut house = socket_limits(limits).build(|_, input| {
        input.take(1); // What is left is there when they are joined.
    });
    let (a, id_a) = house.guest();
    let (b, id_b) = house.guest();
    (house, [a, b], [id_a, id_b])
}

fn join(house: &mut House, ids: [ConnId; 2]) {
    assert!(house.sockets().get(ids[0]).unwrap().pipe(ids[1]));
}

fn pair() -> (House, [Peer; 2], [ConnId; 2]) {
    let (mut house, peers, ids) = pair_with(no_idle());
    join(&mut house, ids);
    house.settle();
    (house, peers, ids)
}

#[test]
fn what_arrives_at_one_end_leaves_at_the_other_and_no_service_sees_it() {
    let (mut house, [a, b], ids) = pair();
    house.script.feed(a, b"from a");
    house.script.feed(b, b"from b");
    house.settle();
    assert_eq!((house.heard(a), house.heard(b)), ("from b".into(), "from a".into()));
    assert!(!house.told().iter().any(|told| matches!(told, Told::Data(..))));
    let socket_bytes = |house: &mut House, id| {
        let mut sockets = house.sockets();
        let socket = sockets.get(id).unwrap();
        (socket.bytes_in(), socket.bytes_out())
    };
    assert_eq!((socket_bytes(&mut house, ids[0]), socket_bytes(&mut house, ids[1])), ((6, 6), (6, 6)));
}

#[test]
fn what_was_left_untaken_goes_first() {
    let (mut house, [a, b], ids) = pair_with(no_idle());
    house.script.feed(a, b"-rest of a");
    house.settle();
    join(&mut house, ids);
    house.script.feed(a, b", and more");
    house.settle();
    assert_eq!(house.heard(b), "rest of a, and more");
    assert_eq!(house.turns.table.memory, 0);
}

#[test]
fn an_end_is_passed_on_behind_everything_and_the_other_direction_goes_on() {
    let (mut house, [a, b], ids) = pair();
    house.script.window(b, 10);
    house.script.feed(a, &[b'x'; 1_000]);
    house.script.end(a);
    house.settle();
    assert!(!house.script.heard_end(b), "990 bytes are still to come");
    house.script.window(b, usize::MAX);
    house.settle();
    assert_eq!((house.heard(b).len(), house.script.heard_end(b)), (1_000, true));
    assert_eq!(house.farewell(ids[0]), None);
    house.script.feed(b, b"a late answer");
    house.script.end(b);
    house.settle();
    assert_eq!((house.heard(a).as_str(), house.script.heard_end(a)), ("a late answer", true));
    assert_eq!(
        (house.farewell(ids[0]), house.farewell(ids[1])),
        (Some(Closed::Finished), Some(Closed::Finished))
    );
}

#[test]
fn one_end_that_is_done_leaves_the_other_to_finish_what_it_is_still_to_get() {
    let (mut house, [a, b], ids) = pair();
    house.script.window(b, 0);
    house.script.feed(a, b"slowly read");
    house.script.end(a);
    house.script.end(b);
    house.settle();
    assert_eq!((house.farewell(ids[0]), house.farewell(ids[1])), (Some(Closed::Finished), None));
    house.script.window(b, usize::MAX);
    house.settle();
    assert_eq!((house.heard(b).as_str(), house.farewell(ids[1])), ("slowly read", Some(Closed::Finished)));
}

#[test]
fn a_slow_end_stops_the_other_at_the_water_marks() {
    let limits = SocketLimits { write_pace: None, ..no_idle() };
    let (mut house, [a, b], ids) = pair_with(limits);
    join(&mut house, ids);
    house.script.window(b, 0);
    let most = 64 * 1024 + 64 * 1024 + 256;
    for _ in 0..100 {
        house.script.feed(a, &[b'x'; 64 * 1024]);
        house.settle();
        assert!(house.turns.table.memory <= 2 * most, "{} are held", house.turns.table.memory);
    }
    house.script.feed(b, b"the other direction does not wait");
    house.settle();
    assert_eq!(house.heard(a).len(), 33);
    let mut heard = 0;
    while heard < 100 * 64 * 1024 {
        house.script.window(b, 50_000);
        house.settle();
        let now = house.heard(b).len();
        assert!(now > 0, "it stalled at {heard}");
        heard += now;
    }
    assert_eq!(house.turns.table.memory, 0);
}

#[test]
fn two_ends_of_which_neither_reads_are_closed_by_the_pace_and_never_hang() {
    let (mut house, [a, b], ids) = pair();
    for peer in [a, b] {
        house.script.window(peer, 0);
        house.script.feed(peer, &[b'x'; 500_000]);
    }
    house.pass(9 * SECOND);
    assert_eq!((house.farewell(ids[0]), house.farewell(ids[1])), (None, None));
    house.pass(15 * SECOND);
    assert!(house.farewell(ids[0]).is_some() && house.farewell(ids[1]).is_some(), "{:?}", house.told());
    assert!([house.farewell(ids[0]), house.farewell(ids[1])].contains(&Some(Closed::TooSlow)));
    assert_eq!((house.turns.table.memory, house.script.open_descriptors()), (0, 2));
}

#[test]
fn when_one_end_is_reset_the_other_gets_what_it_had_sent_and_then_a_clean_end() {
    let (mut house, [a, b], ids) = pair();
    house.script.window(b, 0);
    house.script.feed(a, b"last words");
    house.settle();
    house.script.reset(a);
    house.settle();
    assert_eq!(house.farewell(ids[0]), Some(Closed::Reset));
    house.script.window(b, usize::MAX);
    house.settle();
    assert_eq!((house.heard(b).as_str(), house.script.heard_end(b)), ("last words", true));
    house.script.end(b);
    house.settle();
    assert_eq!(house.farewell(ids[1]), Some(Closed::Leg));
}

#[test]
fn a_connection_that_is_still_being_dialed_can_be_an_end() {
    let mut house = socket_limits(no_idle()).build(swallow);
    let (a, id) = house.guest();
    let options = crate::config::dial::DialOptions::default();
    let leg = house.turns.table.dial(1, address().into(), options, Some(id)).unwrap();
    join(&mut house, [id, leg]);
    house.settle();
    for _ in 0..10 {
        house.script.feed(a, &[b'x'; 64 * 1024]);
        house.settle();
    }
    assert!(house.turns.table.memory < 300_000, "the caller waits");
    let b = house.script.dialed()[0];
    house.script.answer(b, Ok(()));
    house.settle();
    assert_eq!(house.heard(b).len(), 640 * 1024);
    let refused = house.turns.table.dial(1, address().into(), Default::default(), None).unwrap();
    join(&mut house, [id, refused]);
    house.settle();
    house.script.answer(house.script.dialed()[1], Err(libc::ECONNREFUSED));
    house.settle();
    assert!(house.script.heard_end(a), "a pipe to nowhere ends cleanly");
}

#[test]
fn parted_again_each_service_gets_what_arrives() {
    let (mut house, [a, b], ids) = pair();
    house.script.window(b, 0);
    house.script.feed(a, &[b'x'; 200_000]);
    house.settle();
    assert_eq!(house.sockets().get(ids[1]).unwrap().unpipe(), Some(ids[0]));
    house.settle();
    assert!(house.told().iter().any(|told| matches!(told, Told::Data(id, _) if *id == ids[0])));
    house.script.window(b, usize::MAX);
    house.script.feed(b, b"now for the service");
    house.settle();
    assert!(house.told().iter().any(|told| matches!(told, Told::Data(id, _) if *id == ids[1])));
    assert_eq!(house.heard(a), "");
}

#[test]
fn joined_with_itself_a_connection_is_an_echo() {
    let mut house = socket_limits(no_idle()).build_with(
        |socket| {
            let own = socket.id();
            assert!(socket.pipe(own));
        },
        swallow,
    );
    let (peer, id) = house.guest();
    house.script.feed(peer, b"echo");
    house.script.end(peer);
    house.settle();
    assert_eq!((house.heard(peer).as_str(), house.farewell(id)), ("echo", Some(Closed::Finished)));
}

/// The world behaves again, both peers end, and each has heard all that the other's end of the pipe was sent.
pub(super) fn assert_nothing_is_lost(
    house: &mut House,
    peers: [Peer; 2],
    ids: [ConnId; 2],
    sent: [Vec<u8>; 2],
    mut heard: [Vec<u8>; 2],
    seed: u64,
) {
    house.script.calm();
    peers.iter().for_each(|&peer| house.script.end(peer));
    for _ in 0..3 {
        peers.iter().for_each(|&peer| house.script.window(peer, usize::MAX));
        house.settle();
    }
    for (from, &peer) in peers.iter().enumerate() {
        heard[from].extend(house.script.heard(peer));
    }
    assert!(heard[1] == sent[0] && heard[0] == sent[1], "bytes were lost or changed (seed {seed})");
    assert_eq!(ids.map(|id| house.farewell(id)), [Some(Closed::Finished); 2], "seed {seed}");
}

#[test]
fn a_chain_of_mishaps_loses_no_byte_in_either_direction() {
    for seed in 0..40 {
        let (mut house, peers, ids) = pair();
        house.script.misbehave(seed);
        let mut rng = Rng(seed);
        let mut sent: [Vec<u8>; 2] = Default::default();
        let mut heard: [Vec<u8>; 2] = Default::default();
        for round in 0..60_u8 {
            for (from, &peer) in peers.iter().enumerate() {
                let bytes = vec![round; rng.below(30_000) as usize];
                house.script.feed(peer, &bytes);
                sent[from].extend(bytes);
                house.script.window(peer, rng.below(40_000) as usize);
                house.turn();
                heard[from].extend(house.script.heard(peer));
            }
        }
        assert_nothing_is_lost(&mut house, peers, ids, sent, heard, seed);
    }
}
