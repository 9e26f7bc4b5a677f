//! `--access-log` and `--log-format`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::peer::Peer;
use crate::server::{Process, Server, TIDEMILL, run, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// A folder of this test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tidemill-access-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("access.log")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The lines of a file; none if it is not there.
fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_string).collect()
}

fn echo_once(server: &Server, word: &str) {
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes(word));
}

#[test]
fn each_ended_connection_is_a_line_with_the_documented_fields() {
    let _others = shared();
    let folder = Folder::new("fields");
    let mut server = Server::start(&format!("echo --raw --access-log {}", folder.file().display()));
    echo_once(&server, "hello");
    until("its line is written", SOON, || !lines(&folder.file()).is_empty());
    let line = lines(&folder.file()).remove(0);
    let fields: Vec<&str> = line.split(' ').collect();
    let time = humantime::parse_rfc3339(fields[0]).expect("a time");
    assert!(time.elapsed().expect("it has passed") < Duration::from_secs(60), "{line}");
    let local = format!("local={}", server.address);
    let known = ["service=Echo", "origin=accepted", &local, "bytes_in=5", "bytes_out=5", "reason=finished"];
    for field in known {
        assert!(fields.contains(&field), "{field}: {line}");
    }
    assert!(
        line.contains(" peer=127.0.0.1:") && line.contains(" seconds=") && line.contains(" connection=#0."),
        "{line}"
    );
    let names: Vec<&str> = fields[1..].iter().filter_map(|field| Some(field.split_once('=')?.0)).collect();
    let documented =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/observing.md")).expect("it");
    assert!(names.iter().all(|name| documented.contains(&format!("`{name}`"))), "{names:?}");
    server.end();
}

#[test]
fn both_sides_of_a_proxied_connection_are_json_objects_with_their_origin() {
    let _others = shared();
    let folder = Folder::new("proxy");
    let upstream = Server::start("echo --raw");
    let words =
        format!("--to {} --access-log {} --log-format json", upstream.address, folder.file().display());
    let mut server = Server::start(&format!("proxy {words}"));
    echo_once(&server, "through");
    until("both lines are written", SOON, || lines(&folder.file()).len() == 2);
    let objects: Vec<Value> =
        lines(&folder.file()).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let by = |origin: &str| objects.iter().find(|object| object["origin"] == origin).expect("a side");
    let (client, dialed) = (by("accepted"), by("dialed"));
    assert_eq!((&client["bytes_in"], &client["bytes_out"]), (&Value::from(7), &Value::from(7)));
    assert_eq!(dialed["peer"], upstream.address.to_string());
    assert_eq!((&dialed["service"], &dialed["error"]), (&Value::from("Proxy"), &Value::Null));
    server.end();
}

#[test]
fn after_sighup_lines_go_to_the_new_file_of_that_name() {
    let _others = shared();
    let folder = Folder::new("rotate");
    let mut server = Server::start(&format!("echo --raw --access-log {}", folder.file().display()));
    echo_once(&server, "before");
    until("the first line", SOON, || lines(&folder.file()).len() == 1);
    let moved = folder.0.join("access.log.1");
    fs::rename(folder.file(), &moved).expect("a file");
    server.signal(Signal::HUP);
    until("it says so", SOON, || server.log().contains("SIGHUP: the access log is opened again"));
    echo_once(&server, "after it");
    until("the second line is in the new file", SOON, || lines(&folder.file()).len() == 1);
    assert!(lines(&folder.file())[0].contains("bytes_in=8"), "{:?}", lines(&folder.file()));
    assert_eq!(lines(&moved).len(), 1);
    server.end();
}

#[test]
fn a_dash_is_stdout_and_a_closed_stdout_costs_one_line_in_the_log() {
    let _others = shared();
    let mut command = Command::new(TIDEMILL);
    command.args(["echo", "--raw", "--listen", "127.0.0.1:0", "--access-log", "-"]);
    let mut process = Process(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it"));
    let mut stdout = BufReader::new(process.0.stdout.take().expect("its stdout"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("its start line");
    let address = line.trim().strip_prefix("listening on ").expect("an address").parse().expect("an address");
    assert!(Peer::connect(address).echoes("one"));
    line.clear();
    stdout.read_line(&mut line).expect("a line");
    assert!(line.contains(" service=Echo ") && line.contains(" bytes_in=3 "), "{line}");
    kill_process(Pid::from_child(&process.0), Signal::TERM).expect("it runs");
    assert_eq!(process.wait_for_exit(SOON).code(), Some(0));

    // `Server` closes its stdout after the start line.
    let mut server = Server::start("echo --raw --access-log -");
    // While a parallel test starts a program, its copy of this process has the pipe open too, and a line is not lost.
    until("a line is lost", SOON, || {
        echo_once(&server, "lost");
        server.log().contains("lines of the access log are lost: ")
    });
    echo_once(&server, "lost as well");
    echo_once(&server, "it goes on");
    assert_eq!(server.end().matches("lines of the access log are lost").count(), 1);
}

#[test]
fn an_access_log_that_cannot_be_opened_is_an_error_at_the_start() {
    let _others = shared();
    let outcome = run(&["echo", "--listen", "127.0.0.1:0", "--access-log", "/nonexistent/access.log"], b"");
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--access-log /nonexistent/access.log: "), "{}", outcome.stderr);
}

#[test]
fn every_line_of_a_log_in_json_is_an_object_with_level_and_message() {
    let _others = shared();
    let mut server = Server::start("echo --raw --log-format json");
    echo_once(&server, "hello");
    let log = server.end();
    let objects: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let shutdown = objects
        .iter()
        .find(|object| object["message"].as_str().is_some_and(|it| it.starts_with("shutting down")));
    let shutdown = shutdown.unwrap_or_else(|| panic!("{log}"));
    assert_eq!(shutdown["level"], "INFO");
    assert!(humantime::parse_rfc3339(shutdown["time"].as_str().expect("text")).is_ok(), "{shutdown}");
}

/// Starts a server whose stderr is a socket, as under systemd, with JOURNAL_STREAM made from its device and inode.
/// Returns its log after SIGTERM.
fn log_to_a_socket(words: &[&str], journal: impl Fn(u64, u64) -> String) -> String {
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    let stderr = fs::File::from(OwnedFd::from(theirs));
    let about = stderr.metadata().expect("its inode");
    let mut command = Command::new(TIDEMILL);
    command.args(["echo", "--listen", "127.0.0.1:0"]).args(words).env("RUST_LOG", "info");
    command.env("JOURNAL_STREAM", journal(about.dev(), about.ino()));
    let mut process = Process(command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("it"));
    drop(command);
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().expect("its stdout"))
        .read_line(&mut line)
        .expect("its start line");
    kill_process(Pid::from_child(&process.0), Signal::TERM).expect("it runs");
    let mut log = String::new();
    ours.read_to_string(&mut log).expect("its log");
    assert_eq!(process.wait_for_exit(SOON).code(), Some(0), "{log}");
    log
}

#[test]
fn lines_for_the_journal_have_a_priority_and_lines_for_other_readers_have_none() {
    let _others = shared();
    let log =
        log_to_a_socket(&["--max-connections", "1000000000"], |device, inode| format!("{device}:{inode}"));
    assert!(log.contains("<4>tidemill::args: --max-connections 1000000000 is cut to "), "{log}");
    assert!(log.contains("\n<6>tidemill::signals: shutting down: "), "{log}");
    assert!(log.lines().all(|line| line.starts_with('<') && line.as_bytes()[2] == b'>'), "{log}");
    let log = log_to_a_socket(&["--log-format", "json"], |device, inode| format!("{device}:{inode}"));
    for line in log.lines() {
        let object: Value =
            serde_json::from_str(line.strip_prefix("<6>").expect("a priority")).expect("JSON");
        assert_eq!(object["level"], "INFO");
    }
    // A log that was redirected inherits the variable.
    let log = log_to_a_socket(&[], |device, inode| format!("{device}:{}", inode + 1));
    assert!(log.contains("shutting down: ") && !log.contains("<6>"), "{log}");
}
