//! The client.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::peer::{Random, free_address};
use crate::server::{Process, Server, TIDEMILL, exclusive, run, shared, until};

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
    // A zone is an interface's name: with a link-local address it is needed.
    let v6 = Server::start("echo --raw --listen [::1]:0");
    let outcome = run(&["connect", &format!("[::1%lo]:{}", v6.address.port())], b"by a zone");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"by a zone"[..], Some(0)), "{}", outcome.stderr);
    let outcome = run(&["connect", &format!("localhost:{}", server.address.port())], b"by a name");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"by a name"[..], Some(0)), "{}", outcome.stderr);
    server.end();
    let outcome = run(&["connect", &unix], b"");
    assert_eq!(outcome.stderr, format!("tidemill: cannot connect to {unix}: no such file or directory\n"));
}

#[test]
fn a_refused_connection_is_one_sentence_with_exit_1() {
    let _others = shared();
    let free = free_address().to_string();
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

/// A blocked stdout must not stop the upload: the server has sent more than any buffer holds, and reads on.
#[test]
fn a_stdout_that_is_not_read_does_not_stop_stdin() {
    let _others = shared();
    const UPLOAD: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let mut child = Command::new(TIDEMILL)
        .args(["connect", &address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("stdin"), child.stdout.take().expect("stdout"));
    let mut process = Process(child);
    let uploads = thread::spawn(move || stdin.write_all(&vec![b'u'; UPLOAD]).expect("it takes it"));
    let (stream, _) = listener.accept().expect("a connection");
    let mut sends = stream.try_clone().expect("a second handle");
    let downloads = thread::spawn(move || sends.write_all(&vec![b'd'; UPLOAD]).expect("it takes it"));
    // Everything arrives although not a byte of stdout was read.
    let mut received = vec![0; UPLOAD];
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("an option");
    (&stream).read_exact(&mut received).expect("the whole upload");
    uploads.join().expect("it uploads");
    let mut out = vec![0; UPLOAD];
    stdout.read_exact(&mut out).expect("the whole download");
    downloads.join().expect("it downloads");
    drop(stream);
    assert_eq!(process.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn standard_streams_that_were_made_non_blocking_work() {
    let _others = shared();
    let nonblocking = |fd: &dyn AsFd| {
        let flags = rustix::fs::fcntl_getfl(fd.as_fd()).expect("flags");
        rustix::fs::fcntl_setfl(fd.as_fd(), flags | rustix::fs::OFlags::NONBLOCK).expect("an option");
    };
    let server = Server::start("echo --raw");
    let (theirs, mut ours) = std::io::pipe().expect("a pipe");
    let (mut out, their_out) = std::io::pipe().expect("a pipe");
    nonblocking(&theirs);
    nonblocking(&their_out);
    let mut command = Command::new(TIDEMILL);
    command.args(["connect", &server.address.to_string()]).stdin(theirs).stdout(their_out);
    let mut process = Process(command.spawn().expect("it"));
    drop(command);
    // Both would fail with EAGAIN: there is nothing to read yet, and later no room to write.
    until("it is connected", Duration::from_secs(10), || server.descriptors() > 6);
    let sent = Random(5).bytes(1 << 20);
    let expected = sent.clone();
    let writes = thread::spawn(move || ours.write_all(&sent));
    let mut received = Vec::new();
    out.read_to_end(&mut received).expect("an end");
    writes.join().expect("a thread").expect("it takes it");
    assert!(received == expected, "{} bytes", received.len());
    assert_eq!(process.wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn no_shutdown_keeps_the_sending_side_open_after_stdin() {
    let _others = shared();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    // A server that takes an end for a client that has left, as HTTP servers do.
    let answers = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.read_exact(&mut [0; 4]).expect("a request");
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("an option");
        match stream.read(&mut [0]) {
            Ok(0) => {}
            _ => stream.write_all(b"the page").expect("it takes it"),
        }
    });
    let outcome = run(&["connect", "--no-shutdown", &address], b"GET\n");
    answers.join().expect("it answers");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"the page"[..], Some(0)), "{}", outcome.stderr);
}

#[test]
fn verbose_names_addresses_bytes_and_which_side_ended_first() {
    let _others = shared();
    let server = Server::start("echo --raw");
    let to = server.address.to_string();
    let outcome = run(&["connect", "-v", "--source", "127.0.0.9", &to], b"hello");
    assert!(outcome.stderr.starts_with(&format!("tidemill: connected to {to}, local address 127.0.0.9:")));
    let closed = "tidemill: closed: both ends sent FIN, we first; 5 bytes sent, 5 received in ";
    assert!(outcome.stderr.lines().any(|line| line.starts_with(closed)), "{}", outcome.stderr);
    let chat = Server::start("chat");
    let mut command = Command::new(TIDEMILL);
    command.args(["connect", "--verbose", &chat.address.to_string()]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"/quit\n").expect("it takes it");
    let stderr = std::io::BufReader::new(child.stderr.take().expect("stderr"));
    let mut lines = std::io::BufRead::lines(stderr).map_while(Result::ok);
    assert!(lines.any(|line| line == "tidemill: the peer has sent FIN; stdin is still sent"));
    drop(stdin);
    let last = lines.last().expect("a line");
    assert!(last.contains("closed: both ends sent FIN, the peer first; 6 bytes sent, "), "{last}");
    assert_eq!(Process(child).wait_for_exit(Duration::from_secs(10)).code(), Some(0));
}

/// A peer that ends its own direction at once, and reads on.
#[test]
fn all_of_stdin_is_sent_to_a_peer_that_has_half_closed() {
    let _others = shared();
    let sent = Random(9).bytes(8 << 20);
    for extra in [&[][..], &["--no-shutdown"]] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let reads = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(b"first").and_then(|()| stream.shutdown(Shutdown::Write)).expect("it takes it");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("a clean end");
            all
        });
        let outcome = run(&[&["connect", &address][..], extra].concat(), &sent);
        assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"first"[..], Some(0)), "{}", outcome.stderr);
        let received = reads.join().expect("it reads");
        assert!(received == sent, "{extra:?}: {} bytes", received.len());
    }
}

/// A peer that has closed both directions looks like one that has half-closed, until a write fails.
#[test]
fn a_peer_that_has_gone_ends_a_stdin_that_has_no_end() {
    let _others = shared();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let mut command = Command::new(TIDEMILL);
    command.args(["connect", &address]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it");
    let mut stdin = child.stdin.take().expect("stdin");
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.write_all(b"all").expect("it takes it");
    drop(stream);
    let mut stdout = child.stdout.take().expect("stdout");
    stdout.read_exact(&mut [0; 3]).expect("the answer");
    // Its end is after the answer. Bytes are written until the program has ended, which closes the pipe.
    until("the end of the program", Duration::from_secs(10), || stdin.write_all(b"more").is_err());
    let output = child.wait_with_output().expect("its end");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "what was sent is lost: {told}");
    assert!(told.starts_with(&format!("tidemill: {address}: ")), "{told}");
}

#[test]
fn listen_accepts_one_connection() {
    let _others = shared();
    let mut child = Command::new(TIDEMILL)
        // An address of its own, so that no other test is given the port when it is free again.
        .args(["connect", "--listen", "-v", "127.77.0.4:0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it");
    let mut stderr = std::io::BufReader::new(child.stderr.take().expect("stderr"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stderr, &mut line).expect("a line");
    let address = line.trim_end().strip_prefix("tidemill: listening on ").expect("its address").to_string();
    child.stdin.take().expect("stdin").write_all(b"from the listener\n").expect("it takes it");
    let outcome = run(&["connect", &address], b"to the listener\n");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"from the listener\n"[..], Some(0)));
    let output = child.wait_with_output().expect("its end");
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"to the listener\n"[..], Some(0)));
    let mut told = String::new();
    stderr.read_to_string(&mut told).expect("text");
    assert!(told.starts_with("tidemill: accepted 127.0.0.1:"), "{told}");
    // The listener is closed after the first.
    let outcome = run(&["connect", &address], b"");
    assert_eq!(outcome.code, Some(1));
}
