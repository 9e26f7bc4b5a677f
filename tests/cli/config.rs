//! `--config` and `--check`: options from a file, and what SIGHUP changes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::peer::Peer;
use crate::server::{Server, run, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// A file with options, removed at the end of its test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("tidemill-options-{}-{name}.toml", std::process::id()));
        fs::write(&path, text).expect("a file");
        File(path)
    }

    fn write(&self, text: &str) {
        fs::write(&self.0, text).expect("a file");
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // It is in the folder for temporary files.
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_server_takes_its_options_from_a_file_and_the_command_line_replaces_them() {
    let _others = shared();
    let file = File::new("start", "raw = true\nmax-connections = 1\nbusy-reply = \"from the file\"\n");
    let mut server = Server::start(&format!("echo --config {}", file.path()));
    let mut first = Peer::connect(server.address);
    assert!(first.echoes("no greeting, so it is raw"));
    assert_eq!(Peer::connect(server.address).receive_all(), b"from the file\n");
    drop(first);
    server.end();
    let mut server = Server::start(&format!("echo --config {} --busy-reply given", file.path()));
    let mut first = Peer::connect(server.address);
    assert!(first.echoes("one"));
    assert_eq!(Peer::connect(server.address).receive_all(), b"given\n");
    drop(first);
    server.end();
}

#[test]
fn check_says_what_is_wrong_and_where_and_starts_nothing() {
    let _others = shared();
    let file = File::new("check", "");
    let check = |command: &str, text: &str| {
        file.write(text);
        run(&[command, "--check", "--config", &file.path()], b"")
    };
    let right = check("echo", "idle-timeout = \"5min\"\nlisten = [\"192.0.2.1:1\"]\n");
    assert_eq!((right.code, &*right.stdout), (Some(0), &b"the options are right\n"[..]), "{}", right.stderr);
    for (command, text, line, what) in [
        ("echo", "idle-timeout = \"5min\"\nmax-conections = 5\n", 2, "did you mean 'max-connections'?"),
        ("echo", "\nidle-timeout = 30\n", 2, "invalid value '30' for '--idle-timeout <TIME>'"),
        (
            "echo",
            "max-queued = \"1KiB\"\n",
            1,
            "--high-water of 64.0 KiB is more than --max-queued of 1.0 KiB",
        ),
        ("echo", "allow = \"10.0.0.0/8\"\ndeny = \"10.0.0.9\"\n", 2, "has no effect"),
        ("echo", "tls-min = \"1.1\"\n", 1, "'1.1' for '--tls-min <VERSION>'"),
        ("echo", "a = [\n", 1, ""),
        ("proxy", "to = \"a:1\"\nlisten = [\n\"127.0.0.1:1\",\n\"b\",\n]\n", 4, "'b' for '--listen <ADDR>'"),
        ("frames", "framing = \"raw\"\nmax-message = 5\n", 2, "--max-message is for framings"),
    ] {
        let wrong = check(command, text);
        assert_eq!(wrong.code, Some(2), "{text}: {}", wrong.stderr);
        let place = format!("tidemill: {}:{line}: ", file.path());
        assert!(wrong.stderr.starts_with(&place) && wrong.stderr.contains(what), "{text}: {}", wrong.stderr);
        assert_eq!(wrong.stderr.lines().count(), 1, "{}", wrong.stderr);
    }
    let missing = run(&["echo", "--config", "/nonexistent/e.toml"], b"");
    assert_eq!(missing.code, Some(2));
    assert!(missing.stderr.starts_with("tidemill: --config /nonexistent/e.toml: "), "{}", missing.stderr);
    let file_of_certificate = check("echo", "tls-cert = \"/nonexistent\"\ntls-key = \"/nonexistent\"\n");
    assert_eq!(
        file_of_certificate.code,
        Some(1),
        "a file that cannot be read: {}",
        file_of_certificate.stderr
    );
}

#[test]
fn sighup_changes_limits_and_rules_of_open_connections_and_names_what_needs_a_restart() {
    let _others = shared();
    let file = File::new("hup", "raw = true\nidle-timeout = \"1h\"\n");
    let mut server = Server::start(&format!("echo --config {}", file.path()));
    let mut idle = Peer::connect(server.address);
    assert!(idle.echoes("before"));
    file.write(
        "raw = true\nidle-timeout = \"300ms\"\ndeny = \"127.0.0.2\"\nbacklog = 7\nmax-connections = 9\n",
    );
    server.signal(Signal::HUP);
    let told = "was read again; changed: deny, idle-timeout, max-connections; these need a restart: backlog";
    until("the log names both", SOON, || server.log().contains(told));
    assert!(idle.receive_all().is_empty(), "the shorter timeout closes a connection that was open before");
    assert!(Peer::connect_from(2, server.address).receive_all().is_empty(), "the new rule refuses it");
    // A wrong file changes nothing.
    file.write("raw = true\nidle-timeout = \"soon\"\n");
    server.signal(Signal::HUP);
    let told = ":2: invalid value 'soon' for '--idle-timeout <TIME>'";
    until("the error is logged", SOON, || server.log().contains(told));
    assert!(server.log().contains("; keeping the previous options"));
    assert!(Peer::connect_from(2, server.address).receive_all().is_empty(), "the rule still holds");
    // More connections than there are slots for.
    file.write("max-connections = 2000000000\n");
    server.signal(Signal::HUP);
    until("it says why not", SOON, || server.log().contains("--max-connections cannot be more than "));
    file.write("raw = true\n");
    server.signal(Signal::HUP);
    let told = "changed: deny, idle-timeout, max-connections\n";
    until("all is as without the file", SOON, || server.log().contains(told));
    assert!(Peer::connect_from(2, server.address).echoes("admitted"));
    server.end();
}

#[test]
fn a_rate_and_the_drain_time_change_for_connections_that_are_open() {
    let _others = shared();
    let file = File::new("rate", "raw = true\nrate = 16\ntotal-rate = \"1MiB\"\ndrain = \"1h\"\n");
    let mut server = Server::start(&format!("echo --config {}", file.path()));
    let mut peer = Peer::connect(server.address);
    let message = "x".repeat(4_000);
    peer.send(&message);
    file.write("raw = true\nrate = \"1MiB\"\ntotal-rate = \"2MiB\"\ndrain = 0\n");
    server.signal(Signal::HUP);
    until("it is read", SOON, || server.log().contains("changed: drain, rate, total-rate"));
    // At 16 bytes a second this would take minutes.
    assert_eq!(peer.receive(message.len()).len(), message.len());
    server.signal(Signal::TERM);
    assert_eq!(server.ended(SOON).code(), Some(0), "without the change it would wait for an hour");
}
