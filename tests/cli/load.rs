//! The load generator: whether it counts right, checks every byte, and charges a server for its stalls.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::server::{Server, TIDEMILL, exclusive, run, shared, until};

/// Loads a server for a moment; gives what is told as JSON.
#[track_caller]
fn load(words: &str) -> Value {
    let mut all = vec!["load"];
    all.extend(words.split_whitespace());
    all.extend(["--json", "--no-ceiling"]);
    if !["idle", "warm-up", "--requests"].iter().any(|one| words.contains(one)) {
        all.extend(["--warm-up", "100ms"]);
    }
    let outcome = run(&all, b"");
    assert_eq!(outcome.code, Some(0), "{words}: {}", outcome.stderr);
    serde_json::from_slice(&outcome.stdout).expect("JSON")
}

fn number(output: &Value, key: &str) -> f64 {
    output[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {output}"))
}

#[test]
fn each_shape_of_load_is_carried_and_no_byte_is_wrong() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let to = echo.address;
    // So many messages instead of so much time: a machine without a processor to spare then takes longer.
    for (words, requests) in [
        ("", 5_000.0),
        ("--pipeline 16", 5_000.0),
        ("--size 1MiB --connections 4", 200.0),
        ("--connections 500", 5_000.0),
        ("--rate 2000", 600.0),
        ("--shape churn", 500.0),
    ] {
        let output = load(&format!("{to} --requests {requests} {words}"));
        assert_eq!(
            (number(&output, "count"), number(&output, "failed")),
            (requests, 0.0),
            "{words}: {output}"
        );
        let latency = &output["latency_us"];
        assert!(
            number(latency, "p50") > 0.0 && number(latency, "p50") <= number(latency, "max"),
            "{words}: {output}"
        );
    }
    let output = load(&format!("{to} --duration 300ms --shape idle --connections 300"));
    assert_eq!(number(&output, "connections_at_end"), 300.0);
    let frames = Server::start("frames --framing u16be");
    let words = "--requests 1000 --framing u16be --size 1000";
    assert_eq!(number(&load(&format!("{} {words}", frames.address)), "count"), 1_000.0);
    let chat = Server::start("chat --rate 0");
    for lines in [1, 8] {
        let output = load(&format!(
            "{} --requests 40 --shape fan-out --connections 20 --pipeline {lines}",
            chat.address
        ));
        assert!(number(&output, "count") >= 20.0 && number(&output, "failed") == 0.0, "{output}");
    }
}

/// A message that was due before the end is sent, also late, and in the percentiles. A machine without a processor to
/// spare delays answers; it neither adds a message nor takes one away.
#[test]
fn it_counts_what_the_server_has_seen() {
    let _quiet = exclusive();
    let mut echo = Server::start("echo --raw");
    let output = load(&format!("{} --warm-up 0 --duration 500ms --rate 4000 --size 100", echo.address));
    let (due, answered) = (number(&output["latency_us"], "samples"), number(&output, "count"));
    assert!((1_999.0..=2_001.0).contains(&due), "4,000 a second for half a second are {due}");
    assert!((100.0..=due).contains(&answered), "{output}");
    let log = echo.end();
    let seen: f64 =
        log.split(" in=").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("bytes");
    assert_eq!(seen, due * 100.0, "{output}");
}

/// The open loop sends 500 messages a second for two seconds. A generator that waits for answers before it sends would
/// see one slow message in a stall, and with a stall at the end none.
#[test]
fn a_server_stopped_in_the_middle_or_at_the_end_shows_the_stall_in_p99_and_max() {
    let _others = shared();
    for at_the_end in [false, true] {
        let echo = Server::start("echo --raw");
        let to = echo.address.to_string();
        let words = "--no-ceiling --json --rate 500 --duration 2s --warm-up 0 --connections 10";
        let mut command = Command::new(TIDEMILL);
        command.args(["load", &to]).args(words.split(' ')).stdout(Stdio::piped());
        let before = echo.busy();
        let child = command.spawn().expect("it");
        // Some hundred messages: each takes the server ten microseconds or more.
        let some = || echo.busy() - before > Duration::from_millis(4);
        until("messages are echoed", Duration::from_secs(20), some);
        echo.signal(Signal::STOP);
        if !at_the_end {
            // The stall itself is what the latencies must show.
            thread::sleep(Duration::from_millis(400));
            echo.signal(Signal::CONT);
        }
        let output = child.wait_with_output().expect("its end");
        echo.signal(Signal::CONT);
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(output.status.code(), Some(0), "{json}");
        // Every message is in the percentiles, answered or not.
        let (answered, unanswered) = (number(&json, "count"), number(&json, "unanswered"));
        assert!((990.0..=1_001.0).contains(&number(&json["latency_us"], "samples")), "{json}");
        assert_eq!(unanswered > 0.0, at_the_end, "{json}");
        assert!(answered > 20.0, "{json}");
        // The ages of 200 messages are spread over the 400 ms of the stall, so the p99 of 1,000 is 380 ms.
        for (figure, least) in [("p99", 350_000.0), ("max", 390_000.0)] {
            let us = number(&json["latency_us"], figure);
            assert!(us > least, "at the end: {at_the_end}; {figure} is {us} µs: {json}");
        }
    }
}

#[test]
fn the_ceiling_is_printed_first_and_a_plot_is_drawn() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let picture = std::env::temp_dir().join(format!("tidemill-load-{}.svg", std::process::id()));
    let to = echo.address.to_string();
    let path = picture.to_string_lossy();
    let outcome = run(&["load", &to, "--duration", "300ms", "--plot", &path], b"");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let output = String::from_utf8(outcome.stdout).expect("text");
    let lines: Vec<&str> = output.lines().collect();
    assert!(
        lines[0].starts_with("ceiling ") && lines[1].starts_with("rate ") && lines[3].starts_with("latency "),
        "{output}"
    );
    assert!(output.contains("p99.99 ") && output.contains("mean ") && output.contains("█"), "{output}");
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "it fits a usual terminal: {output}");
    let svg = std::fs::read_to_string(&picture).expect("a picture");
    assert!(svg.contains("<polyline") && svg.contains("50 connections") && svg.contains("closed loop"));
    std::fs::remove_file(&picture).expect("it is ours");
    // A rate that is kept is no limit of the generator's.
    let outcome = run(&["load", &to, "--duration", "200ms", "--rate", "500", "--no-ceiling"], b"");
    assert!(!String::from_utf8_lossy(&outcome.stdout).contains("always busy"));
}

#[test]
fn a_server_with_busy_polling_sleeps_while_traffic_is_slow() {
    let _quiet = exclusive();
    let echo = Server::start("echo --raw --busy-poll 200us");
    let calm = |rate: &str| {
        let before = echo.busy();
        load(&format!("{} --connections 1 --rate {rate} --duration 900ms", echo.address));
        echo.busy() - before
    };
    // A message takes it some twenty microseconds. Looking for 200 before each would be a hundred milliseconds and
    // more.
    let busy = calm("500");
    assert!(busy < Duration::from_millis(60), "{busy:?} for five hundred messages");
    let before = echo.busy();
    // The processor time of a span without traffic is measured, so the span is a real one.
    thread::sleep(Duration::from_millis(500));
    let idle = echo.busy() - before;
    assert!(idle < Duration::from_millis(10), "{idle:?} for nothing");
}
