//! Bulk traffic of one peer does not starve the others.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::peer::Peer;
use crate::server::{Server, exclusive, meanwhile, until, within_one_of_three};

/// Sends and reads as fast as possible, on all connections in turn, and counts the bytes echoed on each.
fn blast(peers: &[Peer], back: &[AtomicU64], over: &AtomicBool) {
    let (bytes, mut received) = (vec![1; 256 * 1024], vec![0; 256 * 1024]);
    for peer in peers {
        peer.0.set_nonblocking(true).expect("an option");
    }
    while !over.load(Ordering::Relaxed) {
        for (peer, back) in peers.iter().zip(back) {
            // An error means that the socket is full; it is tried again in the next round.
            let _ = (&peer.0).write(&bytes);
            if let Ok(count) = (&peer.0).read(&mut received) {
                back.fetch_add(count as u64, Ordering::Relaxed);
            }
        }
    }
}

/// The slowest of twenty rounds in which each of a hundred peers sends a message and reads its echo, while one other
/// peer sends in bulk.
fn slowest_round() -> Duration {
    let server = Server::start("echo --raw");
    let blaster = [Peer::connect(server.address)];
    let back = [AtomicU64::new(0)];
    let mut pingers: Vec<Peer> = (0..100).map(|_| Peer::connect(server.address)).collect();
    let mut slowest = Duration::ZERO;
    let rounds = || {
        for word in 0..20 {
            let word = format!("word {word}");
            for peer in &mut pingers {
                peer.send(&word);
            }
            let at = Instant::now();
            for peer in &mut pingers {
                assert_eq!(peer.receive(word.len()), word.as_bytes());
            }
            slowest = slowest.max(at.elapsed());
        }
    };
    meanwhile(|over| blast(&blaster, &back, over), rounds);
    let back = back[0].load(Ordering::Relaxed);
    println!("{slowest:?} at most, while {} MiB came back to the other", back >> 20);
    assert!(back > 1 << 20, "the bulk peer got {back} bytes back");
    slowest
}

#[test]
fn one_peer_in_bulk_does_not_starve_a_hundred_small_ones() {
    let _quiet = exclusive();
    within_one_of_three("a round of a hundred words", Duration::from_millis(200), slowest_round);
}

#[test]
fn two_peers_in_bulk_share_evenly() {
    let _quiet = exclusive();
    let server = Server::start("echo --raw");
    let blasters = [Peer::connect(server.address), Peer::connect(server.address)];
    let back = [AtomicU64::new(0), AtomicU64::new(0)];
    let sum = || back.iter().map(|back| back.load(Ordering::Relaxed)).sum::<u64>();
    meanwhile(
        |over| blast(&blasters, &back, over),
        || until("a gibibyte came back", Duration::from_secs(120), || sum() >= 1 << 30),
    );
    let [one, other] = back.map(AtomicU64::into_inner);
    println!("{} and {} MiB", one >> 20, other >> 20);
    assert!(one.min(other) * 10 >= (one + other) * 4, "{one} and {other} bytes");
}
