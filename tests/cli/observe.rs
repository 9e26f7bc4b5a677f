//! `--trace` and `--slow`: what a server tells of its loop.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::peer::Peer;
use crate::server::{Server, run, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// A file of this test, removed at its end.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> File {
        File(std::env::temp_dir().join(format!("tidemill-observe-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).expect("the trace")
    }

    fn events(&self) -> Vec<Value> {
        self.events_unless_torn().expect("JSON")
    }

    /// `None` when what was read is not JSON: a file that is read in two calls while it is written may have the ending
    /// of one write in the middle.
    fn events_unless_torn(&self) -> Option<Vec<Value>> {
        let whole: Value = serde_json::from_str(&self.text()).ok()?;
        Some(whole["traceEvents"].as_array().expect("a list").clone())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // It may not exist.
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether a span lies within another.
fn is_within(inner: &Value, outer: &Value) -> bool {
    let span = |of: &Value| {
        let from = of["ts"].as_f64().expect("a time");
        (from, from + of["dur"].as_f64().unwrap_or(0.0))
    };
    let (inner, outer) = (span(inner), span(outer));
    outer.0 <= inner.0 && inner.1 <= outer.1 + 0.001
}

#[test]
fn a_json_trace_is_whole_after_sigterm_and_nests_turn_phase_callback_and_steps() {
    let _others = shared();
    let file = File::new("term.json");
    let mut server = Server::start(&format!("echo --raw --trace {}", file.path()));
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes(&"x".repeat(64)));
    drop(peer);
    server.end();
    let events = file.events();
    let steps = |name: &str| events.iter().filter(|event| event["name"] == name).cloned().collect::<Vec<_>>();
    let bytes = |name: &str| steps(name)[0]["args"]["bytes"].as_u64();
    assert_eq!((bytes("send"), bytes("write")), (Some(64), Some(64)));
    let connection = steps("accept")[0]["args"]["connection"].clone();
    let read = steps("read").into_iter().find(|read| read["ph"] == "i").expect("the read");
    assert_eq!((&read["args"]["connection"], read["args"]["bytes"].as_u64()), (&connection, Some(64)));

    let data = &steps("Echo.data")[0];
    assert_eq!(data["args"]["connection"], connection);
    let send = &steps("send")[0];
    assert!(is_within(send, data), "{send} {data}");
    let phases: Vec<&Value> = events.iter().filter(|event| event["cat"] == "phase").collect();
    let around =
        |inner: &Value| phases.iter().find(|phase| is_within(inner, phase)).expect("a phase")["name"].clone();
    assert_eq!((around(data), around(&steps("write")[0])), ("read".into(), "write".into()));
    let turns: Vec<&Value> = events.iter().filter(|event| event["cat"] == "turn").collect();
    assert!(turns.iter().any(|turn| is_within(data, turn)), "{turns:?}");
    assert_eq!(turns[0]["name"], "turn 1");
    assert_eq!(steps("close")[0]["args"]["reason"], "finished");
}

#[test]
fn a_json_trace_follows_the_loop_and_is_whole_when_the_server_is_killed() {
    let _others = shared();
    let file = File::new("kill.json");
    let mut server = Server::start(&format!("echo --raw --trace {}", file.path()));
    assert_eq!(file.events().len(), 2, "the names of process and thread");
    let mut peer = Peer::connect(server.address);
    until("what was collected is written soon", SOON, || {
        assert!(peer.echoes("tick"));
        file.events_unless_torn()
            .is_some_and(|events| events.iter().any(|event| event["name"] == "Echo.data"))
    });
    let size = file.text().len();
    assert!(size < 64 * 1024, "it was not written because the buffer was full: {size}");
    server.signal(Signal::KILL);
    server.ended(SOON);
    assert!(file.events().len() > 10);
}

#[test]
fn a_text_trace_has_a_line_for_each_turn_with_what_it_did_in_order() {
    let _others = shared();
    let file = File::new("text.log");
    let mut server = Server::start(&format!("echo --raw --trace {}", file.path()));
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes(&"x".repeat(64)));
    drop(peer);
    server.end();
    let text = file.text();
    let accepted = text.split_once(" | accept ").and_then(|(_, rest)| rest.split_once(" from 127.0.0.1:"));
    let id = accepted.unwrap_or_else(|| panic!("{text}")).0;
    let echo = format!(" | read {id} 64 B → data → send 64 B | write {id} 64 B");
    let line = text.lines().find(|line| line.contains(&echo)).unwrap_or_else(|| panic!("{text}"));
    let words: Vec<&str> = line.split(' ').collect();
    assert!(words[0].parse::<f64>().is_ok() && words[1] == "turn" && words[3] == "poll", "{line}");
    assert!(text.contains(" → open"), "{text}");
    assert!(text.contains(&format!(" | FIN {id} | close {id} finished → closed")), "{text}");
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error_at_the_start() {
    let _others = shared();
    let outcome = run(&["echo", "--listen", "127.0.0.1:0", "--trace", "/nonexistent/trace.json"], b"");
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("--trace /nonexistent/trace.json: "), "{}", outcome.stderr);
}

#[test]
fn slow_callbacks_are_named_once_a_second_and_the_others_counted() {
    let _others = shared();
    let mut server = Server::start("echo --raw --slow 1ns");
    let mut peer = Peer::connect(server.address);
    for _ in 0..200 {
        assert!(peer.echoes("slow"));
    }
    drop(peer);
    server.end();
    // The count of the rest is told when the reactor is dropped, which is behind the line that `end` waits for.
    until("the last count is logged", SOON, || server.log().contains(" of data were not logged"));
    let log = server.log();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("slow callback: Echo.data of #0.")).collect();
    // Two hundred messages take less than some seconds, on any machine.
    assert!((1..50).contains(&lines.len()), "{log}");
    let left_out =
        |line: &str| line.split("and ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let mut told: u64 = lines.iter().map(|line| 1 + left_out(line).unwrap_or(0)).sum();
    let last = log.lines().find_map(|line| {
        line.split_once("slow callbacks: ")?.1.strip_suffix(" more of data were not logged")
    });
    told += last.map_or(0, |count| count.parse().expect("a number"));
    assert_eq!(told, 200, "{log}");
}

#[test]
fn without_slow_callbacks_nothing_is_logged() {
    let _others = shared();
    let mut server = Server::start("echo --raw --slow 1h");
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("quick"));
    drop(peer);
    assert!(!server.end().contains("slow callback"));
}
