//! The load generator at servers that stall, fail or lie.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::peer::free_address;
use crate::server::{Outcome, Server, TIDEMILL, complete, exclusive, run, shared, until};

/// A server whose connections are each served by this function on a thread of its own.
pub fn serve(each: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let each = each.clone();
            thread::spawn(move || each(stream));
        }
    });
    address
}

/// Sends back what comes, up to this many bytes; says whether the peer is still there.
fn echo(stream: &mut TcpStream, mut bytes: usize) -> bool {
    let mut buffer = [0; 4_096];
    while bytes > 0 {
        let most = bytes.min(buffer.len());
        match stream.read(&mut buffer[..most]) {
            Ok(n @ 1..) if stream.write_all(&buffer[..n]).is_ok() => bytes -= n,
            _ => return false,
        }
    }
    true
}

/// Ends with a FIN. The peer may have sent more meanwhile, and closing with unread bytes would be a reset.
fn end(stream: TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    ignore(stream);
}

/// Reads until the peer has gone, and answers nothing.
fn ignore(mut stream: TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// Loads without a warm-up and without a ceiling; gives the outcome and the JSON.
#[track_caller]
fn load(to: &str, words: &str) -> (Outcome, Value) {
    let mut all = vec!["load", to, "--json", "--no-ceiling"];
    if !words.contains("--requests") {
        all.extend(["--warm-up", "0"]);
    }
    all.extend(words.split_whitespace());
    let outcome = run(&all, b"");
    let json = serde_json::from_slice(&outcome.stdout).unwrap_or(Value::Null);
    (outcome, json)
}

#[test]
fn a_server_that_stops_answering_is_charged_up_to_the_end() {
    let _others = shared();
    // Thirty messages of 64 bytes, then nothing: 300 ms at a hundred a second over one connection.
    let to = serve(|mut stream| {
        if echo(&mut stream, 30 * 64) {
            ignore(stream);
        }
    });
    let (outcome, json) = load(&to.to_string(), "--connections 1 --rate 100 --duration 1s");
    assert_eq!(outcome.code, Some(0), "some were answered: {}", outcome.stderr);
    assert_eq!(
        (json["count"].as_u64(), json["latency_us"]["samples"].as_u64()),
        (Some(30), Some(100)),
        "{json}"
    );
    assert_eq!(json["unanswered"], 70, "{json}");
    // The 31st was due 300 ms after the begin, 700 ms before the end.
    for figure in ["max", "p99"] {
        let us = json["latency_us"][figure].as_f64().expect("a latency");
        assert!(us > 650_000.0, "{figure} {us} must show the stall");
    }
}

#[test]
fn a_closed_loop_is_charged_for_a_stall_at_its_end() {
    let _others = shared();
    let to = serve(|mut stream| {
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            if !echo(&mut stream, 64) {
                return;
            }
        }
        ignore(stream);
    });
    let (outcome, json) = load(&to.to_string(), "--connections 2 --duration 2s");
    assert_eq!((outcome.code, json["unanswered"].as_u64()), (Some(0), Some(2)), "{json}");
    assert!(json["latency_us"]["max"].as_f64() > Some(600_000.0), "{json}");
}

#[test]
fn a_server_that_never_answers_is_a_failure_in_every_shape() {
    let _others = shared();
    let to = serve(ignore);
    for shape in ["echo", "churn", "echo --rate 50", "churn --rate 50", "fan-out", "fan-out --rate 50"] {
        let words = format!("--connections 3 --duration 200ms --shape {shape}");
        let (outcome, json) = load(&to.to_string(), &words);
        assert_eq!((outcome.code, json["count"].as_u64()), (Some(1), Some(0)), "{shape}: {json}");
        assert!(json["unanswered"].as_u64() >= Some(1), "{shape}: {json}");
        assert!(
            outcome.stderr.contains("no answer") || outcome.stderr.contains("no line was"),
            "{}",
            outcome.stderr
        );
    }
    let free = free_address();
    for shape in ["echo", "churn", "idle", "fan-out"] {
        let (outcome, json) = load(&free.to_string(), &format!("--duration 20s --shape {shape}"));
        assert_eq!((outcome.code, json["unreachable"].as_bool()), (Some(1), Some(true)), "{json}");
        assert!(json["errors"]["refused"].as_u64() >= Some(1) && json["count"] == 0, "{json}");
        assert!(json["version"].is_string() && json["date"].is_string() && json["series"].is_array());
        assert!(outcome.stderr.contains(&format!("cannot load {free}: ")), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("connection refused"), "{}", outcome.stderr);
    }
}

#[test]
fn failed_connections_are_dialed_again_and_do_not_end_the_run() {
    let _others = shared();
    let to = serve(|mut stream| {
        echo(&mut stream, 20 * 64);
        end(stream);
    });
    let (outcome, json) = load(&to.to_string(), "--connections 4 --rate 400 --duration 1s");
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let seconds = json["seconds"].as_f64().expect("seconds");
    assert!((0.99..2.0).contains(&seconds), "it lasts its time: {json}");
    let (count, closed) = (json["count"].as_u64(), json["errors"]["closed"].as_u64());
    // Without another dial, each would have had twenty answers.
    assert!(count > Some(200), "the connections came back: {json}");
    assert!(closed >= Some(8) && closed == json["failed"].as_u64(), "{json}");
    let told = json["failures"].as_array().expect("a list");
    assert_eq!(told.len(), 1, "equal failures are told once: {json}");
    assert_eq!(told[0]["count"].as_u64(), closed, "{json}");
}

#[test]
fn a_server_that_goes_away_is_counted_as_closed_once_and_then_as_refused() {
    let _quiet = exclusive();
    let listener = TcpListener::bind("127.77.0.2:0").expect("a port");
    let to = listener.local_addr().expect("its address").to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        drop(listener);
        echo(&mut stream, 10 * 64);
        end(stream);
    });
    let mut command = Command::new(TIDEMILL);
    command.args(["load", &to, "--no-ceiling", "--warm-up", "0", "--connections", "1", "--rate", "100"]);
    let outcome = complete(command, b"");
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(outcome.code, Some(1), "{text}");
    // Dialed again after 10, 20, 40 ... 640 ms, then each second, for five seconds.
    let errors = text.lines().find_map(|line| line.strip_prefix("errors    ")).expect("a line");
    let refused = errors.split_once(": refused ").and_then(|(_, rest)| rest.strip_suffix(", closed 1"));
    let refused: u64 = refused.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    assert!(refused >= 6, "{text}");
    let told: Vec<&str> = text.lines().filter(|line| line.contains(" × ")).map(str::trim).collect();
    let refusals = format!("{refused} × cannot connect to {to}: connection refused");
    assert_eq!(told, ["1 × closed by the server", &refusals], "{text}");
}

#[test]
fn a_fan_out_goes_on_without_a_receiver_that_fails() {
    let _others = shared();
    let mut chat = Server::start("chat --max-lifetime 700ms --rate 0");
    let words = "--shape fan-out --connections 3 --rate 50 --duration 1500ms";
    let (outcome, json) = load(&chat.address.to_string(), words);
    assert_eq!(outcome.code, Some(1), "{json}");
    assert!(json["failed"].as_u64() >= Some(4), "all of them were closed by the limit: {json}");
    assert!(json["count"].as_u64() > Some(75), "more than one lifetime's deliveries: {json}");
    chat.end();
}

#[test]
fn wrong_bytes_resets_and_refusals_are_counted_by_kind_and_shown() {
    let _others = shared();
    let spoils = serve(|mut stream| {
        if echo(&mut stream, 200_000) {
            let mut next = [0; 64];
            let _ = stream.read_exact(&mut next).and_then(|()| stream.write_all(b"#wrong#"));
            ignore(stream);
        }
    });
    let (outcome, json) = load(&spoils.to_string(), "--connections 1 --size 1000 --duration 1s");
    assert_eq!(outcome.code, Some(1));
    assert!(json["errors"]["wrong_answer"].as_u64() >= Some(1), "{json}");
    let text = json["failures"][0]["text"].as_str().expect("text");
    assert!(text.starts_with("byte 200000 of the answer is not what was sent: \"#wrong#\" where"), "{text}");
    let resets = serve(|stream| {
        let mut first = [0; 1];
        let _ = (&stream).read_exact(&mut first);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    });
    let (_, json) = load(&resets.to_string(), "--connections 1 --duration 1s");
    assert!(
        json["errors"]["reset"].as_u64() >= Some(2) && json["lost_in_flight"].as_u64() >= Some(2),
        "{json}"
    );
    let full = Server::start("echo --raw --max-connections 5");
    let (outcome, json) = load(&full.address.to_string(), "--rate 100 --connections 20 --duration 1500ms");
    assert_eq!(outcome.code, Some(1));
    assert!(json["count"].as_u64() > Some(10), "those that are connected go on: {json}");
    let texts = json["failures"].to_string();
    assert!(texts.contains("server busy"), "the bytes that came are shown: {texts}");
    let echoes = Server::start("echo");
    let (_, json) = load(&echoes.address.to_string(), "--duration 300ms");
    assert!(json["failures"].to_string().contains("is that an echo? tidemill echo --raw is"), "{json}");
}

#[test]
fn a_signal_ends_the_run_with_what_was_measured() {
    let _others = shared();
    let server = Server::start("echo --raw");
    let to = server.address.to_string();
    for (signal, code, name) in
        [(Signal::INT, 130, "Ctrl-C"), (Signal::TERM, 143, "SIGTERM"), (Signal::INT, 130, "JSON")]
    {
        let before = server.busy();
        let mut command = Command::new(TIDEMILL);
        command.args(["load", &to, "--duration", "60s", "--warm-up", "0", "--no-ceiling"]);
        if name == "JSON" {
            command.arg("--json");
        }
        let child = command.stdout(Stdio::piped()).spawn().expect("it");
        let busy = || server.busy() - before > Duration::from_millis(100);
        until("the load", Duration::from_secs(20), busy);
        kill_process(Pid::from_child(&child), signal).expect("it runs");
        let output = child.wait_with_output().expect("its end");
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(code), "{text}");
        if name == "JSON" {
            let json: Value = serde_json::from_str(&text).expect("JSON");
            assert!(json["cut_short"] == true && json["count"].as_u64() > Some(0), "{json}");
            continue;
        }
        assert!(text.starts_with("rate ") && text.contains("latency "), "{text}");
        assert!(text.contains(&format!("CUT SHORT by {name} after ")) && text.contains(" of 60s"), "{text}");
    }
}

#[test]
fn the_duration_is_kept_with_messages_that_take_longer() {
    let _quiet = exclusive();
    let to = serve(|mut stream| {
        echo(&mut stream, usize::MAX);
    });
    let begun = Instant::now();
    let (outcome, json) = load(&to.to_string(), "--size 1TiB --connections 1 --duration 300ms");
    // The grace for what is in flight is a second.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((outcome.code, json["unanswered"].as_u64()), (Some(1), Some(1)), "{json}");
    assert!(json["bytes_received"].as_u64() > Some(1 << 20), "it was under way: {json}");
}

/// The generator never sleeps, so a thread that is not running is descheduled. Here it is stopped by a signal; a busy
/// machine does the same.
#[test]
fn time_without_a_processor_is_told_from_idle_time() {
    let _quiet = exclusive();
    let server = Server::start("echo --raw");
    let mut command = Command::new(TIDEMILL);
    let words = "--rate 500 --duration 1s --warm-up 0 --connections 2 --no-ceiling";
    command.args(["load", &server.address.to_string()]).args(words.split(' ')).stdout(Stdio::piped());
    let before = server.busy();
    let child = command.spawn().expect("it");
    until("the load", Duration::from_secs(20), || server.busy() - before > Duration::from_millis(1));
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).expect("it runs");
    // The time without a processor is what is measured.
    thread::sleep(Duration::from_millis(500));
    kill_process(pid, Signal::CONT).expect("it is stopped");
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8(output.stdout).expect("text");
    let after = |words: &str| -> f64 {
        let rest = text.split(words).nth(1).unwrap_or_else(|| panic!("{words:?}: {text}"));
        rest.split('%').next().and_then(|figure| figure.parse().ok()).expect("a share")
    };
    let (idle, descheduled) = (after("generator idle "), after(", descheduled "));
    assert!(descheduled >= 40.0 && idle <= 60.0, "{text}");
    assert!(text.contains("NOTE      the generator had no processor for "), "{text}");
}
