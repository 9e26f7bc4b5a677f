//! What a process meets: signals, its environment, and arguments that are no text.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::peer::Peer;
use crate::server::{Process, Server, TIDEMILL, complete, run, shared, until};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn sighup_ends_no_server_and_no_connection() {
    let _others = shared();
    let upstream = Server::start("echo --raw");
    for words in ["echo --raw".to_string(), format!("proxy --to {}", upstream.address)] {
        let mut server = Server::start(&words);
        let mut peer = Peer::connect(server.address);
        assert!(peer.echoes("before"));
        server.signal(Signal::HUP);
        until("it says so", SOON, || server.log().contains("SIGHUP: there are no TLS files to reload"));
        assert!(peer.echoes("after"), "{words}");
        drop(peer);
        server.end();
    }
}

#[test]
fn two_signals_at_once_count_as_one() {
    let _others = shared();
    let mut server = Server::start("echo --raw --drain 1h");
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("before"));
    // As `timeout -s INT` does.
    server.signal(Signal::INT);
    server.signal(Signal::TERM);
    until("it drains", SOON, || server.log().contains("shutting down: listeners closed, 1 connection has"));
    assert!(peer.echoes("during"));
    drop(peer);
    assert_eq!(server.ended(SOON).code(), Some(0), "{}", server.log());
}

#[test]
fn a_server_that_was_started_with_blocked_signals_heeds_them() {
    let _others = shared();
    let mut command = Command::new("env");
    command.args(["--block-signal=TERM", TIDEMILL, "echo", "--listen", "127.0.0.1:0"]);
    let mut process = Process(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("env(1)"));
    let mut stdout = std::io::BufReader::new(process.0.stdout.take().expect("its stdout"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("its start line");
    assert!(line.starts_with("listening on "), "{line}");
    kill_process(Pid::from_child(&process.0), Signal::TERM).expect("it runs");
    assert_eq!(process.wait_for_exit(SOON).code(), Some(0));
}

#[test]
fn sigint_that_the_parent_had_ignored_stays_ignored() {
    let _others = shared();
    let mut command = Command::new("env");
    command.args(["--ignore-signal=INT", TIDEMILL, "echo", "--listen", "127.0.0.1:0"]);
    let mut process = Process(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("env(1)"));
    let mut stdout = std::io::BufReader::new(process.0.stdout.take().expect("its stdout"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("its start line");
    let address =
        line.trim().strip_prefix("listening on ").and_then(|at| at.parse().ok()).expect("an address");
    kill_process(Pid::from_child(&process.0), Signal::INT).expect("it runs");
    // Without connections a drain ends at once, so it would not serve another second.
    let begun = std::time::Instant::now();
    until("a second has passed", SOON, || {
        let mut peer = Peer::connect(address);
        peer.receive(1);
        begun.elapsed() > Duration::from_secs(1)
    });
    kill_process(Pid::from_child(&process.0), Signal::TERM).expect("it runs");
    assert_eq!(process.wait_for_exit(SOON).code(), Some(0), "SIGTERM is heeded all the same");
}

#[test]
fn as_process_1_of_a_namespace_connect_ends_on_sigterm() {
    let _others = shared();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = listener.local_addr().expect("its address").to_string();
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", TIDEMILL, "connect", &to]);
    let mut process =
        Process(unshare.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("unshare(1)"));
    listener.set_nonblocking(true).expect("an option");
    let mut connected = None;
    until("it connects, or may not make a namespace", SOON, || {
        connected = listener.accept().ok();
        connected.is_some() || process.0.try_wait().expect("a child of ours").is_some()
    });
    if connected.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI must be allowed to make a PID namespace");
        eprintln!("SKIPPED: making a PID namespace is not permitted here");
        return;
    }
    let children = format!("/proc/{0}/task/{0}/children", process.0.id());
    let child = std::fs::read_to_string(children).expect("its children");
    let child: i32 = child.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("one child");
    kill_process(Pid::from_raw(child).expect("a process"), Signal::TERM).expect("it runs");
    assert_eq!(process.wait_for_exit(SOON).code(), Some(128 + 15));
}

#[test]
fn a_mistyped_log_filter_is_named_and_silences_nothing() {
    let _others = shared();
    let mut command = Command::new(TIDEMILL);
    command.args([
        "proxy",
        "--max-connections",
        "1000000000",
        "--listen",
        "192.0.2.1:1",
        "--to",
        "127.0.0.1:1",
    ]);
    let outcome = complete(
        {
            command.env("RUST_LOG", "nonsense");
            command
        },
        b"",
    );
    assert!(
        outcome.stderr.contains("RUST_LOG: \"nonsense\" is no level; choose one of off, error"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("--max-connections 1000000000 is cut to"), "{}", outcome.stderr);
}

#[test]
fn an_argument_that_is_no_text_is_a_usage_error() {
    let _others = shared();
    for words in [&[OsStr::from_bytes(b"\xff")][..], &[OsStr::new("echo"), OsStr::from_bytes(b"\xff\xfe")]] {
        let mut command = Command::new(TIDEMILL);
        command.args(words);
        let outcome = complete(command, b"");
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("bug"), "{}", outcome.stderr);
    }
}

#[test]
fn the_version_names_features_tls_library_and_kernel() {
    let _others = shared();
    assert_eq!(run(&["-V"], b"").stdout, format!("tidemill {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
    let text = String::from_utf8(run(&["--version"], b"").stdout).expect("text");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    for fact in ["features: cli tls", "rustls 0.", "mio 1.", kernel.trim()] {
        assert!(text.contains(fact), "{fact}: {text}");
    }
}

#[test]
fn short_help_leaves_out_what_long_help_has() {
    let _others = shared();
    for command in ["echo", "proxy"] {
        let help = |option| String::from_utf8(run(&[command, option], b"").stdout).expect("text");
        let (short, long) = (help("-h"), help("--help"));
        assert!(short.contains("--idle-timeout") && !short.contains("--high-water"), "{short}");
        assert!(long.contains("--high-water"));
        assert!(short.lines().count() < long.lines().count());
    }
}

#[test]
fn the_zone_of_a_link_local_address_may_be_the_name_of_an_interface() {
    let _others = shared();
    // The loopback has index 1 and no such address, so the system refuses the address that was meant.
    for zone in ["lo", "1"] {
        let outcome = run(&["echo", "--listen", &format!("[fe80::77%{zone}]:0")], b"");
        assert_eq!(outcome.code, Some(1));
        assert!(outcome.stderr.contains("cannot listen on [fe80::77%1]:0: "), "{}", outcome.stderr);
    }
}

#[test]
fn the_port_of_another_listener_of_this_server_is_not_blamed_on_another_process() {
    let _others = shared();
    // Below the ports that the system gives away by itself; each test has a range of its own.
    let port = 10_000 + std::process::id() % 5_000;
    let all = [format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}")];
    let outcome = run(&["echo", "--listen", &all[0], "--listen", &all[1]], b"");
    assert_eq!(outcome.code, Some(1));
    let sentence = format!("cannot listen on {}: this server listens on {} already", all[1], all[0]);
    assert!(outcome.stderr.contains(&sentence), "{}", outcome.stderr);
    let twice = run(&["echo", "--listen", &all[1], "--listen", &all[1]], b"");
    assert!(twice.stderr.contains("--listen names it twice"), "{}", twice.stderr);
}

#[test]
fn all_addresses_of_both_families_may_be_listened_on_with_one_port_in_either_order() {
    let _others = shared();
    let port = 20_000 + std::process::id() % 5_000;
    for all in [["[::]", "0.0.0.0"], ["127.0.0.1", "[::]"]] {
        let addresses = all.map(|host| format!("{host}:{port}"));
        let server =
            Server::start(&format!("echo --raw --listen {} --listen {}", addresses[0], addresses[1]));
        for host in ["127.0.0.1", "[::1]"] {
            let address = format!("{host}:{port}").parse().expect("an address");
            assert!(Peer::connect(address).echoes("both"), "{host} of {all:?}");
        }
        drop(server);
    }
}
