//! A chat room with many members, while one of them sends as much as it can.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Peer;
use crate::server::{Server, meanwhile, raise_descriptors, shared, until, within_one_of_three};

const MIB: usize = 1024 * 1024;

/// `Limits::memory` by default.
const MEMORY: usize = 64 * MIB;

/// Reads at most `per_read` bytes for each member every 10 ms; counts the members that the server has closed.
fn read_all(members: &[Peer], per_read: usize, closed: &AtomicUsize, over: &AtomicBool) {
    let mut buffer = vec![0; per_read];
    let mut open = vec![true; members.len()];
    while !over.load(Ordering::Relaxed) {
        for (member, open) in members.iter().zip(&mut open).filter(|(_, open)| **open) {
            match (&member.0).read(&mut buffer) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => {
                    *open = false;
                    closed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        // This pause is the rate of a slow link.
        thread::sleep(Duration::from_millis(10));
    }
}

fn join(count: usize, to: SocketAddr) -> Vec<Peer> {
    let members: Vec<Peer> = (0..count).map(|_| Peer::connect(to)).collect();
    for member in &members {
        member.0.set_nonblocking(true).expect("an option");
    }
    members
}

/// Waits until the server is idle: it has used less than 2 ms of processor time within 50 ms.
fn settled(server: &Server) {
    let mut before = (Instant::now(), server.busy());
    until("it is idle", Duration::from_secs(30), || {
        if before.0.elapsed() < Duration::from_millis(50) {
            return false;
        }
        let used = server.busy() - before.1;
        before = (Instant::now(), server.busy());
        used < Duration::from_millis(2)
    });
}

/// 64 KiB of two-byte lines are 32,768 lines for each of a thousand members: 33 million deliveries from one read.
#[test]
fn a_thousand_members_survive_a_burst_of_short_lines_within_the_memory_limit() {
    let _others = shared();
    assert!(raise_descriptors() > 2_500, "descriptors for a thousand connections at both ends");
    within_one_of_three("another member's /help", Duration::from_secs(1), || {
        // Without a rate, so that nothing but the limits of the loop protects the room.
        let mut server = Server::start("chat --rate 0 --max-connections 2000 --drain 0");
        let members = join(1_000, server.address);
        let closed = AtomicUsize::new(0);
        let answered = meanwhile(
            |over| read_all(&members, 1 << 16, &closed, over),
            || {
                settled(&server);
                let mut other = Peer::connect(server.address);
                let talker = Peer::connect(server.address);
                settled(&server);
                let mut own = talker.0.try_clone().expect("a second handle");
                let reads = thread::spawn(move || std::io::copy(&mut own, &mut std::io::sink()));
                (&talker.0).write_all(&b"x\n".repeat(32 << 10)).expect("it takes the burst");
                let at = Instant::now();
                other.send("/help\n");
                let mut seen = Vec::new();
                let mut buffer = vec![0; 1 << 16];
                while !seen.windows(5).any(|bytes| bytes == b"/quit") {
                    let n = other.0.read(&mut buffer).expect("it stays connected");
                    assert!(n > 0, "the other member was closed");
                    let keep = seen.len().saturating_sub(8);
                    seen.drain(..keep);
                    seen.extend_from_slice(&buffer[..n]);
                }
                let answered = at.elapsed();
                // A third of the burst, with which memory has reached its maximum.
                let mut received = 0;
                while received < 200_000 {
                    let n = other.0.read(&mut buffer).expect("it stays connected");
                    assert!(n > 0, "the other member was closed");
                    received += n;
                }
                drop(talker.0.shutdown(std::net::Shutdown::Both));
                drop(reads.join());
                answered
            },
        );
        let peak = server.peak();
        println!("/help after {answered:?}, peak {} MiB", peak / MIB);
        assert_eq!(closed.into_inner(), 0, "members that read were closed: {}", server.log());
        assert!(peak < MEMORY + 32 * MIB, "{} MiB at most", peak / MIB);
        let log = server.end();
        assert!(!log.contains("slow-reader") && !log.contains(" memory="), "{log}");
        answered
    });
}

#[test]
fn members_on_slow_links_keep_their_place_while_one_sends_a_quarter_of_a_mebibyte() {
    let _others = shared();
    let mut server = Server::start("chat --rate 0 --drain 0");
    // 10 KB each 10 ms are 1 MB/s.
    let members = join(20, server.address);
    let closed = AtomicUsize::new(0);
    meanwhile(
        |over| read_all(&members, 10_000, &closed, over),
        || {
            let talker = Peer::connect(server.address);
            let mut own = talker.0.try_clone().expect("a second handle");
            own.set_read_timeout(Some(Duration::from_secs(3))).expect("an option");
            // It reads until nothing has come for three seconds: then the whole burst is delivered.
            let reads = thread::spawn(move || {
                let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
                while let Ok(n @ 1..) = own.read(&mut buffer) {
                    total += n;
                }
                total
            });
            // 24 bytes of name make 28 bytes of each line, so each member gets 3.7 MB.
            let mut burst = format!("/nick {}\n", "n".repeat(24)).into_bytes();
            burst.extend(b"x\n".repeat(128 << 10));
            (&talker.0).write_all(&burst).expect("it takes the burst");
            let total = reads.join().expect("its reader");
            assert!(total > 3_500_000, "only {total} bytes came back");
        },
    );
    let log = server.end();
    assert_eq!(closed.into_inner(), 0, "{log}");
    assert!(!log.contains("slow-reader") && !log.contains(" memory="), "{log}");
}
