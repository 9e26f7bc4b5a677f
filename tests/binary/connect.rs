//! The client.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use crate::peer::Numbers;
use crate::server::{Server, alone, among_others, run};

#[test]
fn every_byte_goes_there_and_back() {
    let _others = among_others();
    let server = Server::start("echo --raw");
    let all: Vec<u8> = (0..=255).collect();
    let outcome = run(&["connect", &server.address.to_string()], &all);
    assert_eq!((outcome.stdout, outcome.code), (all, Some(0)), "{}", outcome.stderr);
}

#[test]
fn what_is_larger_than_any_queue_goes_through_whole() {
    let _others = among_others();
    let server = Server::start("echo --raw");
    let sent = Numbers(3).bytes(8 * 1024 * 1024);
    let outcome = run(&["connect", &server.address.to_string()], &sent);
    assert!(outcome.stdout == sent, "{} of {} bytes", outcome.stdout.len(), sent.len());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

/// A server that answers only after it has seen the end of what it was sent.
#[test]
fn the_end_of_stdin_is_sent_and_the_answer_still_heard() {
    let _others = among_others();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let answers = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("its end");
        stream.write_all(format!("{} bytes\n", all.len()).as_bytes()).expect("an answer");
    });
    let outcome = run(&["connect", &address], &[7; 100_000]);
    answers.join().expect("it answers");
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "100000 bytes\n");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn a_server_that_leaves_first_ends_it() {
    let _others = among_others();
    let server = Server::start("chat");
    let outcome = run(&["connect", &server.address.to_string()], b"/nick ann\n/who\n/quit\n");
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(said.ends_with("is now ann\n1 here: ann\n"), "{said}");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn nobody_there_is_said_in_one_sentence_with_exit_1() {
    // Nobody else may take the port meanwhile.
    let _quiet = alone();
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").to_string();
    let outcome = run(&["connect", &free], b"hello\n");
    assert_eq!(outcome.stderr, format!("tidemill: cannot connect to {free}: connection refused\n"));
    assert_eq!(outcome.code, Some(1));
    let outcome = run(&["connect", "no-such-host.invalid:1"], b"");
    assert!(
        outcome.stderr.starts_with("tidemill: cannot connect to no-such-host.invalid:1: "),
        "{}",
        outcome.stderr
    );
    assert_eq!((outcome.stderr.lines().count(), outcome.code), (1, Some(1)));
}

#[test]
fn a_connection_torn_by_its_server_exits_1_and_says_why() {
    let _others = among_others();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let tears = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        stream.read_exact(&mut [0]).expect("a byte, so that it knows that it is connected");
        // No lingering at all: closing sends a reset (RFC 9293, 3.10.4 ABORT).
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).expect("an option");
    });
    let outcome = run(&["connect", &address], b"x");
    tears.join().expect("it tears");
    assert!(outcome.stderr.starts_with(&format!("tidemill: {address}: ")), "{}", outcome.stderr);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
}
