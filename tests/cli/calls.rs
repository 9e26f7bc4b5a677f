//! System calls per connection: most of the processor time of a short connection is theirs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::interop::has;
use crate::peer::{Peer, listener};
use crate::server::{Server, exclusive, shared, until};

const CONNECTIONS: usize = 20;

/// One request and one answer over each of some connections, one after the other; the client ends first. Returns how
/// often the loop's thread made each system call from the second accept to that of the last connection. Not counted are
/// what depends on timing (epoll_wait, and an accept4 that finds nothing) and what debug builds of the standard library
/// add (F_GETFD).
fn calls_of(name: &str, words: &str) -> BTreeMap<String, usize> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.strace"));
    let mut server = Server::start_traced(&path, words);
    // A file for each thread; the loop runs in the first.
    let path = path.with_extension(format!("strace.{}", server.id()));
    for _ in 0..CONNECTIONS + 2 {
        let mut client = Peer::connect(server.address);
        assert!(client.echoes("one message"));
        client.finish();
        assert!(client.receive_all().is_empty());
    }
    server.end();
    let trace = || fs::read_to_string(&path).expect("the file that strace writes");
    until("strace has written all", Duration::from_secs(5), || trace().contains("+++ exited with 0 +++"));
    let trace = trace();
    fs::remove_file(&path).expect("its file");
    let lines: Vec<&str> = trace.lines().collect();
    let is_accepted = |line: &str| line.starts_with("accept4(") && !line.contains("EAGAIN");
    let accepts: Vec<usize> = (0..lines.len()).filter(|&at| is_accepted(lines[at])).collect();
    assert_eq!(accepts.len(), CONNECTIONS + 2, "{trace}");
    let mut counts = BTreeMap::new();
    for line in &lines[accepts[1]..accepts[CONNECTIONS + 1]] {
        let call = line.split('(').next().unwrap_or_default();
        let found_none = call == "accept4" && line.contains("EAGAIN");
        let left_out = call == "epoll_wait" || line.contains("F_GETFD") || found_none;
        *counts.entry(call.to_string()).or_insert(0) += usize::from(!left_out);
    }
    counts.retain(|_, count| *count > 0);
    println!("{name}, {CONNECTIONS} connections: {counts:?}");
    counts
}

/// Prints that it is skipped where strace is missing or may not trace.
fn can_trace() -> bool {
    let traced = || Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    has("strace") && {
        let works = traced().is_ok_and(|output| output.status.success());
        let required = std::env::var("TIDEMILL_INTEROP").is_ok_and(|how| how == "required");
        assert!(works || !required, "strace may not trace here");
        if !works {
            println!("skipped: strace may not trace here");
        }
        works
    }
}

/// accept4, epoll_ctl, two times recvfrom, sendto, close: each once for 20 connections, and nothing else.
#[test]
fn an_accepted_echo_connection_makes_six_system_calls() {
    let _slot = shared();
    if !can_trace() {
        return;
    }
    let counts = calls_of("echo", "echo --raw");
    let all: usize = counts.values().sum();
    assert!(all <= 6 * CONNECTIONS, "{all} calls for {CONNECTIONS} connections: {counts:?}");
}

/// The six of a client; for the upstream the same but accept4, and socket, connect, two options, the two addresses of
/// the check that it is connected, and the FIN that passes on the client's; and a line in the log.
#[test]
fn a_proxied_connection_makes_nineteen_system_calls() {
    let _slot = shared();
    if !can_trace() {
        return;
    }
    let upstream = Server::start("echo --raw");
    let counts = calls_of("proxy", &format!("proxy --to {}", upstream.address));
    let all: usize = counts.values().sum();
    assert!(all <= 19 * CONNECTIONS, "{all} calls for {CONNECTIONS} connections: {counts:?}");
}

#[test]
fn log_lines_of_one_turn_are_written_with_one_call() {
    let _quiet = exclusive();
    let (upstream, at): (TcpListener, _) = listener();
    let server = Server::start(&format!("proxy --to {at}"));
    let mut pairs = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Peer::connect(server.address);
        client.send("x");
        let (mut there, _) = upstream.accept().expect("the proxy");
        there.read_exact(&mut [0]).expect("what the client has sent");
        there.write_all(b"y").expect("the proxy");
        assert_eq!(client.receive(1), b"y");
        pairs.push((client, there));
    }
    let before = server.write_calls();
    // All ends arrive while the server does not run, so that one turn finds them.
    server.signal(Signal::STOP);
    drop(pairs);
    server.signal(Signal::CONT);
    let lines = || server.log().matches(" client=finished").count();
    until("all have ended", Duration::from_secs(5), || lines() == CONNECTIONS);
    let calls = server.write_calls() - before;
    assert!(calls <= CONNECTIONS / 2, "{calls} calls for {CONNECTIONS} lines");
}
