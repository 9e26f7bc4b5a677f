//! Processes that start one another: systemd starts a server, and a proxy its upstream.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::interop::has;
use crate::peer::{Peer, free_address};
use crate::server::{Process, Server, TIDEMILL, shared, until};

const SECOND: Duration = Duration::from_secs(1);

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tidemill-{name}-{}", std::process::id()))
}

/// A server that the first connection starts, and its addresses on TCP and on a Unix-domain socket.
fn activated(words: &[&str], name: &str) -> (Process, SocketAddr, PathBuf) {
    let (address, path) = (free_address(), temporary(name));
    // Left by a process with the same number.
    let _ = fs::remove_file(&path);
    let mut command = Command::new("systemd-socket-activate");
    command.args(["-l", &address.to_string(), "-l"]).arg(&path).args([
        "--fdname=web:local",
        "-E",
        "RUST_LOG=info",
    ]);
    command.arg(TIDEMILL).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = Process(command.spawn().expect("systemd-socket-activate"));
    until("it listens", 5 * SECOND, || UnixStream::connect(&path).is_ok());
    (process, address, path)
}

fn echoes(mut stream: impl Read + Write) -> bool {
    let mut answer = [0; 5];
    stream
        .write_all(b"hello")
        .and_then(|()| stream.read_exact(&mut answer))
        .is_ok_and(|()| answer == *b"hello")
}

#[test]
fn a_server_takes_the_sockets_that_systemd_passes_and_answers_what_started_it() {
    let _others = shared();
    if !has("systemd-socket-activate") {
        return;
    }
    let (mut process, address, path) = activated(&["echo", "--raw"], "activated");
    assert!(echoes(TcpStream::connect(address).expect("it listens")));
    assert!(echoes(UnixStream::connect(&path).expect("it listens")));
    let mut lines = BufReader::new(process.0.stdout.take().expect("its stdout")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    assert_eq!(
        [next(), next()],
        [format!("listening on {address}"), format!("listening on unix:{}", path.display())]
    );
    // It is in the folder for temporary files.
    let _ = fs::remove_file(path);
}

/// Starts the program with a listener on which TCP_DEFER_ACCEPT is set, as systemd does by `DeferAcceptSec=`.
const DEFERRED: &str = "
import os, socket, sys
listener = socket.create_server(('127.0.0.1', 0))
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.execve(sys.argv[1], sys.argv[1:], dict(os.environ, LISTEN_FDS='1', LISTEN_PID=str(os.getpid())))
";

#[test]
fn a_socket_of_systemd_that_defers_is_accepted_with_the_first_bytes_of_its_peer() {
    let _others = shared();
    if !has("python3") {
        return;
    }
    let mut command = Command::new("python3");
    command.args(["-c", DEFERRED, TIDEMILL, "echo"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Process(command.spawn().expect("python3"));
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().expect("its stdout")).read_line(&mut line).expect("a line");
    let address = line.trim_end().rsplit(' ').next().expect("an address").to_string();
    let mut silent = TcpStream::connect(&address).expect("it listens");
    let mut talks = TcpStream::connect(&address).expect("it listens");
    let greeting = "echo server ready (type quit to exit)\n";
    let said = |stream: &mut TcpStream| {
        let mut answer = vec![0; greeting.len() + 3];
        stream.write_all(b"hi\n").and_then(|()| stream.read_exact(&mut answer)).expect("an answer");
        String::from_utf8(answer).expect("text")
    };
    assert_eq!(said(&mut talks), format!("{greeting}hi\n"));
    // It was connected before the other one, so it would have been accepted and greeted before.
    silent.set_nonblocking(true).expect("an option");
    let unread = silent.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(unread.err(), Some(std::io::ErrorKind::WouldBlock), "it was accepted and greeted");
    silent.set_nonblocking(false).expect("an option");
    assert_eq!(said(&mut silent), format!("{greeting}hi\n"));
}

#[test]
fn a_socket_of_systemd_is_chosen_by_its_name_and_the_others_are_named() {
    let _others = shared();
    if !has("systemd-socket-activate") {
        return;
    }
    let (mut process, _, path) = activated(&["echo", "--raw", "--listen", "systemd:local"], "named");
    assert!(echoes(UnixStream::connect(&path).expect("it listens")));
    let mut lines = BufReader::new(process.0.stderr.take().expect("its log")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("the socket web that systemd has passed is not used")));
    let _ = fs::remove_file(path);
}

#[test]
fn what_systemd_has_not_passed_is_an_error_that_says_so() {
    let _others = shared();
    let ended = |listen: &str, before: &str| {
        let script = format!("{before} exec \"$0\" echo --raw --listen {listen}");
        let output = Command::new("sh").args(["-c", &script, TIDEMILL]).output().expect("it ran");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (listen, before, part) in [
        ("systemd", "", "--listen systemd: no socket was passed"),
        ("systemd:web", "", "no socket of this name was passed; left are: none"),
        (
            "systemd",
            "exec 3</dev/null; LISTEN_FDS=1",
            "descriptor 3 (), passed by systemd, is not a listening",
        ),
    ] {
        let (code, said) = ended(listen, before);
        assert!(code == Some(1) && said.contains(part), "{listen} {before}: {code:?} {said}");
    }
}

#[test]
fn a_service_manager_is_told_of_readiness_reloads_the_turning_loop_and_the_end() {
    let _others = shared();
    let path = temporary("notify");
    // Left by a process with the same number.
    let _ = fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(5 * SECOND)).expect("an option");
    let next = || {
        let mut text = [0; 512];
        let n = manager.recv(&mut text).expect("a message");
        String::from_utf8_lossy(&text[..n]).trim_end().to_string()
    };
    let variables = [("NOTIFY_SOCKET", path.to_str().expect("text")), ("WATCHDOG_USEC", "200000")];
    let mut server = Server::start_with(&variables, "echo --raw");
    assert_eq!(next(), "READY=1");
    assert_eq!([next(), next()], ["WATCHDOG=1", "WATCHDOG=1"], "each 100 ms");
    server.signal(Signal::HUP);
    let mut said = Vec::new();
    while said.last().is_none_or(|last| last != "READY=1") {
        said.push(next());
    }
    let reloading = said.iter().find(|message| message.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(reloading.is_some(), "{said:?}");
    let client = Peer::connect(server.address);
    server.signal(Signal::TERM);
    let mut last = next();
    while !last.starts_with("STOPPING=1") {
        last = next();
    }
    assert_eq!(last, "STOPPING=1\nWATCHDOG_USEC=10200000\nWATCHDOG=1", "--drain is 10s, and 200 ms more");
    drop(client);
    assert_eq!(server.ended(5 * SECOND).code(), Some(0), "it does not wait for --drain to pass");
    // It is in the folder for temporary files.
    let _ = fs::remove_file(path);
}

#[test]
fn an_upstream_is_started_for_the_first_client_and_stopped_when_none_is_left() {
    let _others = shared();
    let upstream = free_address();
    let proxy = Server::start_words(&[
        "proxy",
        "--to",
        &upstream.to_string(),
        "--on-demand",
        &format!("exec {TIDEMILL} echo --raw --listen {upstream}"),
        "--on-demand-idle",
        "100ms",
    ]);
    assert!(TcpStream::connect(upstream).is_err(), "nothing runs yet");
    for _ in 0..2 {
        let mut client = Peer::connect(proxy.address);
        assert!(client.echoes("hello"));
        drop(client);
        until("the upstream has ended", 5 * SECOND, || TcpStream::connect(upstream).is_err());
    }
    let mut proxy = proxy;
    let mut client = Peer::connect(proxy.address);
    assert!(client.echoes("hello"));
    client.finish();
    assert_eq!(client.receive_all(), b"");
    assert!(proxy.end().matches("upstream started").count() == 3);
    assert!(TcpStream::connect(upstream).is_err(), "it does not outlive the proxy");
}

#[test]
fn a_client_waits_while_its_upstream_restarts() {
    let _others = shared();
    let upstream = free_address();
    let listen = format!("echo --raw --listen {upstream}");
    let mut first = Server::start(&listen);
    let proxy = Server::start(&format!("proxy --to {upstream} --hold 10s"));
    assert!(Peer::connect(proxy.address).echoes("before"));
    first.end();
    let mut clients: Vec<Peer> = (0..3).map(|_| Peer::connect(proxy.address)).collect();
    clients.iter_mut().for_each(|client| client.send("held"));
    until("they are held", 5 * SECOND, || proxy.log().contains("clients are held for up to 10s"));
    let _second = Server::start(&listen);
    assert!(clients.iter_mut().all(|client| client.receive(4) == b"held"));
}
