//! The client.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use crate::peer::Random;
use crate::server::{Server, exclusive, run, shared};

#[test]
fn every_byte_goes_there_and_back() {
    let _others = shared();
    let server = Server::start("echo --raw");
    let all: Vec<u8> = (0..=255).collect();
    let outcome = run(&["connect", &server.address.to_string()], &all);
    assert_eq!((outcome.stdout, outcome.code), (all, Some(0)), "{}", outcome.stderr);
}

#[test]
fn what_is_larger_than_any_queue_goes_through_whole() {
    let _others = shared();
    let server = Server::start("echo --raw");
    let sent = Random(3).bytes(8 * 1024 * 1024);
    let outcome = run(&["connect", &server.address.to_string()], &sent);
    assert!(outcome.stdout == sent, "{} of {} bytes", outcome.stdout.len(), sent.len());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

/// A server that answers only after it has seen the end of what it was sent.
#[test]
fn the_end_of_stdin_is_sent_and_the_answer_still_received() {
    let _others = shared();
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
fn a_server_that_closes_first_ends_the_client() {
    let _others = shared();
    let server = Server::start("chat");
    let outcome = run(&["connect", &server.address.to_string()], b"/nick ann\n/who\n/quit\n");
    let sent = String::from_utf8_lossy(&outcome.stdout);
    assert!(sent.ends_with("is now ann\n1 here: ann\n"), "{sent}");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn only_connect_reports_reachability_by_its_exit_code() {
    let _quiet = exclusive();
    let server = Server::start("chat");
    let outcome = run(&["connect", "-z", &server.address.to_string()], b"never sent");
    assert_eq!((outcome.code, outcome.stdout.len(), outcome.stderr.as_str()), (Some(0), 0, ""));
    let outcome = run(&["connect", "-z", "127.77.0.1:1"], b"");
    assert_eq!(outcome.code, Some(1));
    assert_eq!(outcome.stderr, "tidemill: cannot connect to 127.77.0.1:1: connection refused\n");
}

#[test]
fn frames_are_lines_on_this_side_and_hexadecimal_is_for_looking_at_bytes() {
    let _others = shared();
    let frames = Server::start("frames --framing u16le");
    let to = frames.address.to_string();
    let outcome = run(&["connect", "--framing", "u16le", &to], b"one\n\ntwo");
    assert_eq!(
        (outcome.stdout.as_slice(), outcome.code),
        (&b"one\n\ntwo\n"[..], Some(0)),
        "{}",
        outcome.stderr
    );
    let outcome = run(&["connect", "--framing", "u16le", "--hex", &to], b"one\n");
    assert_eq!(outcome.stdout, b"6f 6e 65\n");
    let outcome = run(&["connect", "--hex", &to], b"\x02\0\xff\0");
    assert_eq!(outcome.stdout, b"00000000  02 00 ff 00                                       |....|\n");
    let outcome = run(&["connect", "--framing", "u8", &to], &[b"x".repeat(300), b"\n".to_vec()].concat());
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("300"), "{}", outcome.stderr);
}

#[test]
fn line_ends_become_those_of_the_network_when_asked_for() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let outcome = run(&["connect", "--crlf", &echo.address.to_string()], b"one\ntwo\r\n");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"one\r\ntwo\r\n"[..], Some(0)));
}

#[test]
fn a_silent_server_is_waited_for_as_long_as_asked() {
    let _others = shared();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let silent = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        stream.write_all(b"one word").expect("it takes it");
        stream // Open until it is looked at again.
    });
    let begun = std::time::Instant::now();
    let outcome = run(&["connect", "--wait", "400ms", &address], b"");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"one word"[..], Some(0)), "{}", outcome.stderr);
    assert!(begun.elapsed() >= std::time::Duration::from_millis(400));
    let mut rest = Vec::new();
    silent.join().expect("a stream").read_to_end(&mut rest).expect("a clean end");
}

#[test]
fn names_and_unix_domain_sockets_can_be_connected_to() {
    let _others = shared();
    let path = std::env::temp_dir().join(format!("tidemill-connect-{}.sock", std::process::id()));
    let unix = format!("unix:{}", path.display());
    let mut server = Server::start(&format!("echo --raw --listen {unix} --listen 127.0.0.1:0"));
    let outcome = run(&["connect", &unix], b"by a file");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"by a file"[..], Some(0)), "{}", outcome.stderr);
    let outcome = run(&["connect", &format!("localhost:{}", server.address.port())], b"by a name");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"by a name"[..], Some(0)), "{}", outcome.stderr);
    server.end();
    let outcome = run(&["connect", &unix], b"");
    assert_eq!(outcome.stderr, format!("tidemill: cannot connect to {unix}: no such file or directory\n"));
}

#[test]
fn a_refused_connection_is_one_sentence_with_exit_1() {
    // Nobody else may take the port meanwhile.
    let _quiet = exclusive();
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
fn a_reset_connection_exits_1_and_says_why() {
    let _others = shared();
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
