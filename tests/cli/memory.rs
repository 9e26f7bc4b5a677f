//! The memory that connections take.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Peer;
use crate::server::{Server, exclusive, meanwhile, raise_descriptors, shared, until, within_one_of_three};

const MIB: usize = 1024 * 1024;

/// The longest round trip of another peer meanwhile, at the 99th percentile.
const P99: Duration = Duration::from_millis(50);

/// Ten thousand idle peers, with timers, limits and sessions. A minimal epoll server in C takes 48 bytes for each, a
/// server with a task per connection several thousand.
#[test]
fn an_idle_connection_costs_its_160_bytes() {
    let _quiet = exclusive();
    let count = 10_000.min(raise_descriptors() - 200);
    let server = Server::start("echo --raw --idle-timeout 10min");
    let descriptors = server.descriptors();
    // The first connections allocate memory that later ones do not.
    let mut first: Vec<Peer> = (0..50).map(|_| Peer::connect(server.address)).collect();
    assert!(first.iter_mut().all(|peer| peer.echoes("warm")));
    drop(first);
    until("they have left", Duration::from_secs(5), || server.descriptors() == descriptors);
    let before = server.memory();
    let peers: Vec<Peer> = (0..count).map(|_| Peer::connect(server.address)).collect();
    until("all are connected", Duration::from_secs(20), || server.descriptors() == descriptors + count);
    let each = (server.memory() - before) / count;
    println!("{each} bytes for each of {count} idle connections");
    // With debug assertions, mio stores twelve bytes more per socket, to detect its use with another poll.
    let max = if cfg!(debug_assertions) { 192 } else { 160 };
    assert!(each <= max, "{each} bytes for each of {count} idle connections");
    drop(peers);
}

#[test]
fn an_announced_length_of_four_gigabytes_takes_no_memory() {
    let _quiet = exclusive();
    raise_descriptors();
    let mut server = Server::start("frames");
    let mut warm = Peer::connect(server.address);
    warm.send(b"\x00\x00\x00\x01x");
    assert_eq!(warm.receive(5), b"\x00\x00\x00\x01x");
    let before = server.resident();
    let mut liars: Vec<Peer> = (0..1_000).map(|_| Peer::connect(server.address)).collect();
    for peer in &mut liars {
        peer.send(b"\xff\xff\xff\xff");
    }
    let at = Instant::now();
    for peer in &mut liars {
        assert!(peer.receive_all().is_empty());
    }
    assert!(at.elapsed() < Duration::from_secs(5), "it took {:?}", at.elapsed());
    let grown = server.peak().saturating_sub(before);
    assert!(grown < 8 * MIB, "{} KiB of growth", grown / 1024);
    // An empty message is answered too.
    warm.send(b"\x00\x00\x00\x00");
    assert_eq!(warm.receive(4), b"\x00\x00\x00\x00");
    drop((warm, liars));
    let log = server.end();
    assert!(log.contains("too-long=1000"), "{log}");
}

/// Two hundred peers that send 16 MiB each and never read.
fn send_and_never_read(to: SocketAddr, over: &AtomicBool) {
    let peers: Vec<Peer> = (0..200).map(|_| Peer::connect(to)).collect();
    let mut left = vec![16 * MIB; peers.len()];
    let bytes = vec![0; 64 * 1024];
    for peer in &peers {
        peer.0.set_nonblocking(true).expect("an option");
    }
    while !over.load(Ordering::Relaxed) {
        let mut moved = 0;
        for (peer, left) in peers.iter().zip(&mut left) {
            match (&peer.0).write(&bytes[..bytes.len().min(*left)]) {
                Ok(count) => {
                    *left -= count;
                    moved += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The server has closed this connection.
                Err(_) => *left = 0,
            }
        }
        if moved == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Peers that send and never read, while another peer sends a thousand messages. Returns the 99th percentile of its
/// round trips. Asserts the memory, and a line of the final log.
fn never_readers(words: &str, budget: usize, logged: &str) -> Duration {
    let mut server = Server::start(words);
    let mut other = Peer::connect(server.address);
    assert!(other.echoes("warm"));
    let before = server.resident();
    let mut waits = Vec::new();
    let talk = || {
        for word in 0..1_000 {
            let at = Instant::now();
            assert!(other.echoes(&format!("message {word}")));
            waits.push(at.elapsed());
            thread::sleep(Duration::from_millis(2));
        }
    };
    meanwhile(|over| send_and_never_read(server.address, over), talk);
    waits.sort();
    let slow = waits[waits.len() * 99 / 100];
    let grown = server.peak().saturating_sub(before);
    println!("{} KiB of growth, another peer's p99 is {slow:?}", grown / 1024);
    // The queues are within the budget; the read buffer and the allocator's pages are not counted in it.
    assert!(grown <= budget + budget / 4 + 2 * MIB, "{} KiB of growth", grown / 1024);
    let log = server.end();
    assert!(log.contains(logged), "{log}");
    slow
}

#[test]
fn two_hundred_peers_that_never_read_are_not_read_further_and_disturb_no_other() {
    let _quiet = exclusive();
    within_one_of_three("another peer's p99", P99, || {
        // Each may queue up to its high-water mark, and what was read before that was noticed.
        never_readers("echo --raw --drain 0", 200 * 192 * 1024, "accepted=201 ")
    });
}

#[test]
fn two_hundred_peers_that_never_read_stay_within_the_memory_budget() {
    let _quiet = exclusive();
    within_one_of_three("another peer's p99", P99, || {
        let words = "echo --raw --high-water 1MiB --max-queued 2MiB --memory 16MiB --drain 0";
        // Some connections with the largest queues were closed.
        never_readers(words, 16 * MIB, " memory=")
    });
}

#[test]
fn a_member_that_does_not_read_is_closed_and_the_room_continues() {
    let _others = shared();
    let mut server = Server::start("chat --drain 0 --rate 0");
    let mut deaf = Peer::connect(server.address);
    deaf.send("/nick deaf\n");
    let (mut ann, mut bob) = (Peer::connect(server.address), Peer::connect(server.address));
    // The kernel buffers a few megabytes for it, and the server 256 KiB.
    let line = format!("{}\n", "x".repeat(8_000));
    let mut lines = 0;
    let mut received = vec![0; 64 * 1024];
    for peer in [&ann, &bob] {
        peer.0.set_nonblocking(true).expect("an option");
    }
    let (mut left, mut sent) = (line.as_bytes(), String::new());
    until("it is dropped", Duration::from_secs(30), || {
        match ann.0.write(left) {
            Ok(count) => left = &left[count..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if left.is_empty() {
            (left, lines) = (line.as_bytes(), lines + 1);
        }
        for (peer, keeps) in [(&mut ann, false), (&mut bob, true)] {
            while let Ok(count @ 1..) = peer.0.read(&mut received) {
                if keeps {
                    sent.push_str(&String::from_utf8_lossy(&received[..count]).replace('x', ""));
                }
            }
        }
        sent.contains("deaf left")
    });
    assert!(lines > 30);
    let log = server.end();
    assert!(log.contains(" slow-reader=1"), "{log}");
}

#[test]
fn a_thousand_unfinished_messages_stay_near_a_memory_limit_of_two_mebibytes() {
    let _quiet = exclusive();
    raise_descriptors();
    let mut server =
        Server::start("frames --memory 2MiB --max-message 64KiB --max-connections 2000 --drain 0");
    let peers: Vec<Peer> = (0..1_000).map(|_| Peer::connect(server.address)).collect();
    // An announced length of 64 KiB, and one byte less than that.
    let mut unfinished = vec![0, 1, 0, 0];
    unfinished.extend(vec![b'x'; (64 << 10) - 1]);
    for peer in &peers {
        peer.0.set_nonblocking(true).expect("an option");
        // What the kernel does not take is not sent: the connection may have been closed.
        let _ = (&peer.0).write(&unfinished);
    }
    until("most are closed", Duration::from_secs(20), || {
        let open = peers.iter().filter(
            |peer| matches!((&peer.0).read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock),
        );
        open.count() < 100
    });
    let peak = server.peak();
    println!("{} MiB at most", peak / MIB);
    assert!(peak < 16 * MIB, "{} MiB at most", peak / MIB);
    let log = server.end();
    assert!(log.contains(" memory="), "{log}");
}

/// The bytes that the kernel has taken from the server for a peer that never reads.
fn taken_for_a_deaf_peer(option: &str) -> usize {
    let mut server = Server::start(&format!("echo --raw --drain 0 --high-water 64KiB {option}"));
    let peer = Peer::connect(server.address);
    peer.0.set_nonblocking(true).expect("an option");
    let (bytes, mut last) = (vec![b'x'; 64 << 10], Instant::now());
    until("the server reads no more", Duration::from_secs(20), || {
        while let Ok(1..) = (&peer.0).write(&bytes) {
            last = Instant::now();
        }
        last.elapsed() > Duration::from_millis(300)
    });
    let log = server.end();
    let out = log.split(" out=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a summary");
    out.parse().expect("a number of bytes")
}

#[test]
fn the_kernel_holds_no_more_for_a_deaf_peer_than_the_option_allows() {
    let _quiet = exclusive();
    // In both cases the peer's own receive buffer is full, with the same number of bytes.
    let (limited, unlimited) = (taken_for_a_deaf_peer("--unsent 64KiB"), taken_for_a_deaf_peer("--unsent 0"));
    println!("{} KiB and {} KiB", limited / 1024, unlimited / 1024);
    assert!(limited + MIB < unlimited, "{limited} and {unlimited} bytes");
}
