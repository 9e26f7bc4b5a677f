//! Echo, frames and chat return every byte, however the stream is cut.

use std::io::Write;
use std::thread;

use crate::peer::{Peer, Random, seed};
use crate::server::{Server, shared};

#[test]
fn sixty_four_mebibytes_in_random_splits_over_fifty_connections_come_back_byte_for_byte() {
    let _others = shared();
    const CONNECTIONS: u64 = 50;
    const EACH: usize = 64 * 1024 * 1024 / CONNECTIONS as usize;
    let seed = seed();
    let mut server = Server::start("echo --raw");
    let to = server.address;
    let talks: Vec<_> = (0..CONNECTIONS)
        .map(|index| {
            thread::spawn(move || {
                let mut numbers = Random(seed.wrapping_add(index));
                let sent = numbers.bytes(EACH);
                let mut peer = Peer::connect(to);
                let mut half = peer.0.try_clone().expect("a second handle");
                thread::scope(|scope| {
                    let expected = &sent;
                    let listens = scope.spawn(move || {
                        let received = peer.receive(EACH);
                        assert!(received == *expected, "connection {index} came back changed");
                        assert!(
                            peer.receive_all().is_empty(),
                            "connection {index}: more came back than was sent"
                        );
                    });
                    let mut rest = &sent[..];
                    while !rest.is_empty() {
                        let (piece, later) = rest.split_at(numbers.size(20).min(rest.len()));
                        half.write_all(piece).expect("it takes what we say");
                        rest = later;
                    }
                    half.shutdown(std::net::Shutdown::Write).expect("it is connected");
                    listens.join().expect("byte for byte");
                });
            })
        })
        .collect();
    for talk in talks {
        talk.join().expect("byte for byte");
    }
    let total = EACH as u64 * CONNECTIONS;
    let log = server.end();
    assert!(
        log.contains(&format!("accepted=50 refused=0 shed=0 in={total} out={total} finished=50")),
        "{log}"
    );
}

#[test]
fn a_stream_sent_one_byte_at_a_time_is_echoed() {
    let _others = shared();
    let server = Server::start("echo --raw");
    let mut peer = Peer::connect(server.address);
    let sent = Random(7).bytes(4_096);
    for byte in &sent {
        peer.send([*byte]);
    }
    peer.finish();
    assert_eq!(peer.receive_all(), sent);
}

#[test]
fn quit_closes_wherever_it_is_split() {
    let _others = shared();
    let server = Server::start("echo");
    let greeting = "echo server ready (type quit to exit)\n";
    for quit in ["quit\n", "quit\r\n"] {
        for at in 0..=quit.len() {
            let mut peer = Peer::connect(server.address);
            assert_eq!(peer.receive(greeting.len()), greeting.as_bytes());
            peer.send("quiet\n");
            assert_eq!(peer.receive(6), b"quiet\n");
            peer.send(&quit[..at]);
            peer.send(&quit[at..]);
            assert!(peer.receive_all().is_empty(), "split at {at}");
        }
    }
}

#[test]
fn a_peer_that_sends_and_half_closes_gets_everything_back_and_then_a_fin() {
    let _others = shared();
    let server = Server::start("echo --raw");
    let mut peer = Peer::connect(server.address);
    let sent = Random(11).bytes(8 * 1024 * 1024);
    let mut half = peer.0.try_clone().expect("a second handle");
    thread::scope(|scope| {
        scope.spawn(|| {
            half.write_all(&sent).expect("it takes what we say");
            half.shutdown(std::net::Shutdown::Write).expect("it is connected");
        });
        assert!(peer.receive_all() == sent);
    });
}

#[test]
fn every_framing_answers_every_message_wherever_the_stream_is_cut() {
    let _others = shared();
    let streams: &[(&str, &[u8])] = &[
        ("u8", b"\x00\x03abc\x01z"),
        ("u16be", b"\x00\x00\x00\x03abc\x00\x01z"),
        ("u16le", b"\x00\x00\x03\x00abc\x01\x00z"),
        ("u32be", b"\x00\x00\x00\x00\x00\x00\x00\x03abc"),
        ("u32le", b"\x00\x00\x00\x00\x03\x00\x00\x00abc"),
        ("u64be", b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03abc"),
        ("u64le", b"\x03\x00\x00\x00\x00\x00\x00\x00abc\x00\x00\x00\x00\x00\x00\x00\x00"),
        ("line", b"\nabc\nz\n"),
        ("crlf", b"\r\nabc\r\nz\r\n"),
        ("fixed:4", b"abcdefgh"),
        ("raw", b"abcdefgh"),
    ];
    for (framing, stream) in streams {
        let server = Server::start(&format!("frames --framing {framing}"));
        for at in 0..=stream.len() {
            let mut peer = Peer::connect(server.address);
            peer.send(&stream[..at]);
            peer.send(&stream[at..]);
            peer.finish();
            assert_eq!(peer.receive_all(), *stream, "{framing} split at {at}");
        }
    }
}

#[test]
fn two_members_chat_through_the_binary() {
    let _others = shared();
    let server = Server::start("chat");
    let mut ann = Peer::connect(server.address);
    let own = ann.0.local_addr().expect("an address");
    let joined = format!("{own} joined\n");
    assert_eq!(ann.receive(joined.len()), joined.as_bytes());
    let mut bob = Peer::connect(server.address);
    let bobs = bob.0.local_addr().expect("an address");
    let joined = format!("{bobs} joined\n");
    assert_eq!(ann.receive(joined.len()), joined.as_bytes());
    assert_eq!(bob.receive(joined.len()), joined.as_bytes());
    bob.send("/nick bob\nhi \x1b[2Jann\n/quit\n");
    let all = format!("{bobs} is now bob\nbob: hi [2Jann\nbob left\n");
    let received = ann.receive(all.len());
    assert_eq!(String::from_utf8_lossy(&received), all);
}
