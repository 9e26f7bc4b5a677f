//! Each limit at its edge: which connections are accepted, refused or closed, and when.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Peer;
use crate::server::{Server, exclusive, raise_descriptors, shared, until, within_one_of_three};

const BUSY: &[u8] = b"server busy\n";

#[test]
fn of_two_hundred_peers_exactly_a_hundred_are_served_and_the_rest_get_the_busy_reply() {
    let _others = shared();
    let mut server = Server::start("echo --raw --max-connections 100");
    let to = server.address;
    // Every second peer sends 64 KiB before it reads: that unread input must not turn the answer into a reset.
    let peers: Vec<_> = (0..200)
        .map(|index| {
            thread::spawn(move || {
                let mut peer = Peer::connect(to);
                let sent = if index % 2 == 0 { vec![b'x'; 64 * 1024] } else { vec![b'x'] };
                peer.send(&sent);
                let mut received = peer.receive(1);
                if received == b"x" {
                    received.extend(peer.receive(sent.len() - 1));
                    assert_eq!(received, sent);
                    return Some(peer);
                }
                received.extend(peer.receive_all());
                assert_eq!(received, BUSY);
                None
            })
        })
        .collect();
    let inside: Vec<Option<Peer>> = peers.into_iter().map(|peer| peer.join().expect("an answer")).collect();
    let mut inside: Vec<Peer> = inside.into_iter().flatten().collect();
    assert_eq!(inside.len(), 100);

    assert_eq!(Peer::connect(to).receive_all(), BUSY);
    // A freed slot is used by the next peer, and only by one.
    drop(inside.pop());
    let mut next = None;
    until("the free seat is given away", Duration::from_secs(5), || {
        let mut peer = Peer::connect(to);
        let served = peer.echoes("h");
        next = served.then_some(peer);
        served
    });
    assert_eq!(Peer::connect(to).receive_all(), BUSY);
    assert!(inside.iter_mut().all(|peer| peer.echoes("still here")));
    drop((inside, next));
    let log = server.end();
    assert!(log.contains("accepted=101 "), "{log}");
}

#[test]
fn the_busy_reply_can_be_set() {
    let _others = shared();
    let server = Server::start("echo --raw --max-connections 1 --busy-reply full");
    let mut inside = Peer::connect(server.address);
    assert!(inside.echoes("in"));
    assert_eq!(Peer::connect(server.address).receive_all(), b"full\n");
    let server = Server::start("echo --raw --max-connections 1 --busy-reply=");
    let mut inside = Peer::connect(server.address);
    assert!(inside.echoes("in"));
    assert_eq!(Peer::connect(server.address).receive_all(), b"");
}

#[test]
fn waiting_peers_are_served_when_a_slot_is_freed() {
    let _others = shared();
    let server = Server::start("echo --raw --max-connections 10 --overflow wait");
    let mut inside: Vec<Peer> = (0..10).map(|_| Peer::connect(server.address)).collect();
    assert!(inside.iter_mut().all(|peer| peer.echoes("in")));
    let mut waiting: Vec<Peer> = (0..10).map(|_| Peer::connect(server.address)).collect();
    for peer in &mut waiting {
        peer.send("w");
        peer.0.set_nonblocking(true).expect("an option");
        assert!(peer.0.read(&mut [0]).is_err(), "it is not served yet");
        peer.0.set_nonblocking(false).expect("an option");
    }
    drop(inside);
    for peer in &mut waiting {
        assert_eq!(peer.receive(1), b"w");
    }
}

/// Connects two thousand peers, more than there are descriptors. Returns those that are served and those that are not.
fn at_capacity(server: &Server) -> (Vec<Peer>, Vec<Peer>) {
    let mut crowd: Vec<Peer> = (0..2_000).map(|_| Peer::connect(server.address)).collect();
    for peer in &mut crowd {
        peer.send("?");
        peer.0.set_nonblocking(true).expect("an option");
    }
    let mut served = vec![false; crowd.len()];
    let mut at = Instant::now();
    // A peer that is not served within a second after the last one that was is waiting: that nothing comes can only be
    // seen by waiting. The peers are polled in between.
    while at.elapsed() < Duration::from_secs(1) {
        for (peer, served) in crowd.iter_mut().zip(&mut served) {
            if !*served && peer.0.read(&mut [0]).is_ok_and(|count| count == 1) {
                (*served, at) = (true, Instant::now());
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (peer, served) in crowd.into_iter().zip(served) {
        peer.0.set_nonblocking(false).expect("an option");
        if served { inside.push(peer) } else { outside.push(peer) }
    }
    (inside, outside)
}

/// Asserts that for a second with little traffic the server uses almost no processor time. The share of a span is
/// measured, so the span is a real one.
#[track_caller]
fn assert_idle(server: &Server, inside: &mut [Peer]) {
    let (spent, began) = (server.busy(), Instant::now());
    for word in 0..2 {
        assert!(
            inside.iter_mut().all(|peer| peer.echoes(&format!("word {word}"))),
            "connected peers are served"
        );
        thread::sleep(Duration::from_millis(500));
    }
    let share = (server.busy() - spent).as_secs_f64() / began.elapsed().as_secs_f64();
    assert!(share < 0.05, "a full server uses {:.1} % of a core", share * 100.0);
}

/// Asserts that so many of the waiting peers get their answer without a further connect.
#[track_caller]
fn assert_served(outside: &mut [Peer], at_least: usize) {
    for peer in outside.iter_mut() {
        peer.0.set_nonblocking(true).expect("an option");
    }
    let mut served = vec![false; outside.len()];
    until("waiting peers are served", Duration::from_secs(10), || {
        for (peer, served) in outside.iter_mut().zip(&mut served) {
            *served |= peer.0.read(&mut [0]).is_ok_and(|count| count == 1);
        }
        served.iter().filter(|served| **served).count() >= at_least
    });
}

/// A server whose descriptor limit was lowered after its start: now accept fails with EMFILE, also when the backlog is
/// empty. Returned together with its peers.
fn out_of_descriptors(words: &str) -> (Server, Vec<Peer>, Vec<Peer>) {
    raise_descriptors();
    let server = Server::start(words);
    server.limit_descriptors(64);
    let (inside, outside) = at_capacity(&server);
    assert!((40..64).contains(&inside.len()), "{}", inside.len());
    (server, inside, outside)
}

#[test]
fn sixty_four_descriptors_and_two_thousand_peers_use_no_processor_time() {
    let _others = shared();
    raise_descriptors();
    let server =
        Server::start_with_descriptors(64, "echo --raw --overflow wait --backlog 4096 --idle-timeout 0");
    let (mut inside, mut outside) = at_capacity(&server);
    // 64 minus the sixteen that are set aside, and those that the tests themselves were started with.
    assert!((40..=48).contains(&inside.len()), "{}", inside.len());
    assert_idle(&server, &mut inside);
    let stay = inside.len() - 20;
    drop(inside.split_off(stay));
    assert_served(&mut outside, 20);
}

#[test]
fn a_server_that_truly_runs_out_of_descriptors_serves_on_and_recovers_by_itself() {
    let _others = shared();
    let (mut server, mut inside, mut outside) =
        out_of_descriptors("echo --raw --overflow wait --backlog 4096 --idle-timeout 0");
    assert_idle(&server, &mut inside);
    assert!(server.log().contains("cannot accept: out of descriptors"), "{}", server.log());
    // Connections that the server closes free descriptors at once ...
    drop(inside.split_off(20));
    assert_served(&mut outside, 20);
    // ... and descriptors that are freed elsewhere are noticed without an event.
    server.limit_descriptors(4_096);
    assert_served(&mut outside, 1_900);
    drop((inside, outside));
    server.end();
}

#[test]
fn without_descriptors_excess_peers_are_closed() {
    let _others = shared();
    let (mut server, mut inside, mut outside) =
        out_of_descriptors("echo --raw --backlog 4096 --idle-timeout 0");
    for peer in &mut outside {
        // Without a descriptor there is no reply: FIN, or a reset because the peer's bytes were not read.
        assert!(!matches!(peer.0.read(&mut [0]), Ok(1..)));
    }
    assert_idle(&server, &mut inside);
    server.limit_descriptors(4_096);
    until("new peers are served again", Duration::from_secs(10), || {
        TcpStream::connect(server.address).is_ok_and(|stream| Peer(stream).echoes("new"))
    });
    drop(inside);
    let log = server.end();
    assert!(log.contains(&format!("shed={}", outside.len())), "{log}");
}

/// How long the last of five hundred silent peers stayed connected.
fn longest_silence() -> Duration {
    let mut server = Server::start("echo --raw --idle-timeout 2s");
    let to = server.address;
    let silent: Vec<_> = (0..500)
        .map(|_| {
            // The server accepts at some time between these two, on a busy machine long before the second.
            let before = Instant::now();
            let mut peer = Peer::connect(to);
            let after = Instant::now();
            thread::Builder::new().stack_size(64 * 1024).spawn(move || {
                assert!(peer.receive_all().is_empty());
                (before.elapsed(), after.elapsed())
            })
        })
        .collect();
    let lives: Vec<(Duration, Duration)> =
        silent.into_iter().map(|peer| peer.expect("a thread").join().expect("an end")).collect();
    let shortest = lives.iter().map(|(since_before, _)| *since_before).min().expect("some");
    assert!(shortest >= Duration::from_secs(2), "one was closed after {shortest:?}");
    let log = server.end();
    assert!(log.contains(" idle=500"), "{log}");
    lives.into_iter().map(|(_, since_after)| since_after).max().expect("some")
}

#[test]
fn five_hundred_silent_peers_are_closed_in_time_and_not_before() {
    let _quiet = exclusive();
    // One tick of 10 ms, and the rest for the threads that measure it on a busy machine.
    within_one_of_three("the longest silence", Duration::from_millis(2_500), longest_silence);
}

#[test]
fn a_peer_that_sends_in_time_stays() {
    let _others = shared();
    // Longer than a busy machine lets this thread wait.
    let server = Server::start("echo --raw --idle-timeout 2s");
    let mut talks = Peer::connect(server.address);
    for _ in 0..2 {
        let mut silent = Peer::connect(server.address);
        let ends = thread::spawn(move || silent.receive_all());
        until("the silent one is closed", Duration::from_secs(10), || {
            assert!(talks.echoes("still here"));
            ends.is_finished()
        });
    }
    assert!(talks.echoes("still here"));
}

/// Each timeout closes a connection with its own reason.
#[test]
fn every_timeout_closes_with_its_own_reason() {
    let _others = shared();
    let clocks: &[(&str, &str, &[u8])] = &[
        ("echo --raw --first-byte-timeout 200ms", "first-byte=1", b""),
        ("echo --raw --max-lifetime 200ms", "lifetime=1", b""),
        ("echo --raw --idle-timeout 1s", "idle=1", b"x"),
        // A started message must arrive at this minimum rate.
        ("frames --min-rate 1KiB/200ms", "too-slow=1", b"\x00\x00\x10\x00begun"),
    ];
    for (words, reason, sent) in clocks {
        let mut server = Server::start(words);
        let mut peer = Peer::connect(server.address);
        peer.send(sent);
        peer.receive_all();
        let log = server.end();
        assert!(log.contains(reason), "{words}: {log}");
    }
}

#[test]
fn connections_of_one_moment_reach_their_maximum_age_over_a_tenth_of_it() {
    let _others = shared();
    let server = Server::start("echo --raw --max-lifetime 5s");
    let begun = Instant::now();
    let mut open: Vec<Peer> = (0..20).map(|_| Peer::connect(server.address)).collect();
    open.iter().for_each(|peer| peer.0.set_nonblocking(true).expect("an option"));
    let mut ends = Vec::new();
    until("all have ended", Duration::from_secs(20), || {
        open.retain_mut(|peer| {
            let is_open = peer.0.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            ends.extend((!is_open).then(|| begun.elapsed()));
            is_open
        });
        open.is_empty()
    });
    let (first, last) = (ends[0], ends[19]);
    assert!(first >= Duration::from_millis(4_500) && last < Duration::from_secs(9), "{ends:?}");
    assert!(last - first >= Duration::from_millis(100), "{ends:?}");
}

#[test]
fn a_flood_of_bad_frames_logs_one_line_a_second_and_the_summary_counts_them_all() {
    let _others = shared();
    let mut server = Server::start("frames");
    let begun = Instant::now();
    for _ in 0..300 {
        let mut peer = Peer::connect(server.address);
        peer.send([0xff; 4]);
        peer.receive_all();
    }
    let seconds = begun.elapsed().as_secs() as usize;
    let summary = server.end();
    let log = server.log();
    let lines = log.lines().filter(|line| line.contains(": closed after 0 messages: ")).count();
    assert!((1..=seconds + 2).contains(&lines), "{lines} lines in {seconds} s");
    assert!(summary.contains("accepted=300") && summary.contains(" too-long=300"), "{summary}");
}

#[test]
fn two_thousand_hostile_connections_of_a_kind_are_a_line_a_second_in_the_log() {
    let _others = shared();
    let upstream = Server::start("echo --raw");
    let guard = format!("proxy --to {} --max-per-ip 0", upstream.address);
    let header = "PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n";
    let floods: [(String, &str, &str); 4] = [
        (format!("{guard} --proxy-protocol-in 127.0.0.0/8"), "GET / HTTP/1.1\r\n\r\n", ": closed: "),
        (format!("{guard} --proxy-protocol-in 127.0.0.0/8 --deny 203.0.113.0/24"), header, " through "),
        (format!("{guard} --deny 127.0.0.0/8"), "", "refused"),
        ("frames".to_string(), "\u{7f}\u{7f}\u{7f}\u{7f}", ": closed after "),
    ];
    for (words, sent, line) in floods {
        let mut server = Server::start(&words);
        let begun = Instant::now();
        for _ in 0..20 {
            let mut peers: Vec<Peer> = (0..100).map(|_| Peer::connect(server.address)).collect();
            peers.iter_mut().for_each(|peer| peer.send(sent));
            assert!(peers.iter_mut().all(|peer| peer.receive_all().is_empty()));
        }
        let seconds = begun.elapsed().as_secs() as usize;
        server.end();
        let log = server.log();
        let lines = log.lines().filter(|told| told.contains(line)).count();
        assert!((1..=seconds + 3).contains(&lines), "{words}: {lines} lines in {seconds} s: {log}");
        // With what a server says at its start and at its end.
        assert!(log.lines().count() <= lines + 8, "{words}: {log}");
    }
}
