//! The mirror of a proxy on the bench: it gets what clients say, and whatever it does, they do not notice.

use std::time::Duration;

use tidemill::Limits;
use tidemill::services::Proxy;
use tidemill::testing::{Bench, DialAnswer, Peer, PeerEnd, seeds};

const UPSTREAM: &str = "10.0.0.7:80";
const MIRROR: &str = "10.0.0.9:80";

fn mirrored(mut bench: Bench, mirror: DialAnswer) -> (Bench, Peer, Peer) {
    let proxy = Proxy::to(vec![UPSTREAM.parse().unwrap()]).mirror(Some(MIRROR.parse().unwrap()));
    let limits = proxy.limits();
    bench.serve_with(proxy, limits);
    bench.set_dial(UPSTREAM, DialAnswer::Accept);
    bench.set_dial(MIRROR, mirror);
    let client = bench.connect();
    let upstream = bench.upstream(UPSTREAM);
    (bench, client, upstream)
}

/// The client talks to its upstream as if there were no mirror.
fn talk(bench: &mut Bench, client: Peer, upstream: Peer) {
    bench.say(client, "question");
    assert_eq!(bench.heard(upstream), "question");
    bench.say(upstream, "answer");
    assert_eq!(bench.heard(client), "answer");
}

#[test]
fn a_mirror_gets_what_the_client_says_and_its_answers_reach_nothing() {
    let all: Vec<u8> = (0..500_000_u32).map(|n| (n * 31 / 7) as u8).collect();
    for seed in seeds(10) {
        let (mut bench, client, upstream) = mirrored(Bench::seeded(seed), DialAnswer::Accept);
        let mirror = bench.upstream(MIRROR);
        talk(&mut bench, client, upstream);
        bench.say(mirror, "another answer");
        bench.say(client, &all);
        bench.end(client);
        assert!(bench.heard_bytes(upstream) == all);
        let copy = bench.heard_bytes(mirror);
        assert!(copy[..8] == *b"question" && copy[8..] == all);
        assert_eq!((bench.ended(mirror), bench.heard(client)), (Some(PeerEnd::Fin), String::new()));
    }
}

#[test]
fn a_mirror_that_stalls_is_dropped_and_the_upstream_gets_all_at_once() {
    let (mut bench, client, upstream) = mirrored(Bench::new(), DialAnswer::Accept);
    let mirror = bench.upstream(MIRROR);
    bench.stop_reading(mirror);
    let block = vec![7; 256 * 1024];
    for n in 1..=8 {
        bench.say(client, &block);
        assert_eq!(bench.heard_bytes(upstream).len(), block.len(), "block {n}, without any time passing");
        assert_eq!(bench.ended(mirror).is_some(), n >= 5, "1 MiB is held for it, and its queue: block {n}");
    }
    assert_eq!(bench.ended(mirror), Some(PeerEnd::Reset));
    talk(&mut bench, client, upstream);
}

#[test]
fn a_mirror_that_refuses_hangs_or_leaves_changes_nothing_for_the_client() {
    for answer in [DialAnswer::Refuse, DialAnswer::Hang] {
        let (mut bench, client, upstream) = mirrored(Bench::new(), answer);
        talk(&mut bench, client, upstream);
        bench.advance(Duration::from_secs(11));
        talk(&mut bench, client, upstream);
    }
    for reset in [true, false] {
        let (mut bench, client, upstream) = mirrored(Bench::new(), DialAnswer::Accept);
        let mirror = bench.upstream(MIRROR);
        if reset {
            bench.reset(mirror)
        } else {
            bench.end(mirror)
        }
        talk(&mut bench, client, upstream);
        bench.end(client);
        assert_eq!((bench.ended(upstream), bench.ended(client)), (Some(PeerEnd::Fin), None));
    }
}

#[test]
fn a_mirror_that_is_connected_late_gets_what_was_said_before() {
    let (mut bench, client, upstream) = mirrored(Bench::new(), DialAnswer::Hang);
    talk(&mut bench, client, upstream);
    bench.set_dial(MIRROR, DialAnswer::Accept);
    let mirror = bench.upstream(MIRROR);
    assert_eq!(bench.heard(mirror), "question");
}

#[test]
fn a_client_that_resets_resets_its_mirror() {
    let (mut bench, client, _) = mirrored(Bench::new(), DialAnswer::Accept);
    let mirror = bench.upstream(MIRROR);
    bench.reset(client);
    assert_eq!(bench.ended(mirror), Some(PeerEnd::Reset));
}

#[test]
fn without_a_place_for_a_mirror_the_client_is_served() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let (mut bench, client, upstream) = mirrored(Bench::new_with(limits), DialAnswer::Accept);
    assert_eq!(bench.dialed(), [UPSTREAM]);
    talk(&mut bench, client, upstream);
}
