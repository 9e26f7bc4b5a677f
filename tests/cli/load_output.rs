//! The load generator's options and its output.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::load_failures::serve;
use crate::server::{Server, TIDEMILL, exclusive, run, shared, until};
use crate::terminal::Terminal;

#[track_caller]
fn load(words: &str) -> Value {
    let mut all = vec!["load", "--json", "--no-ceiling"];
    all.extend(words.split_whitespace());
    let outcome = run(&all, b"");
    assert_eq!(outcome.code, Some(0), "{words}: {}", outcome.stderr);
    serde_json::from_slice(&outcome.stdout).expect("JSON")
}

#[test]
fn exactly_as_many_requests_are_sent_as_asked_for() {
    let _others = shared();
    for shape in ["echo --pipeline 4", "echo --rate 5000", "churn"] {
        let mut echo = Server::start("echo --raw");
        let json =
            load(&format!("{} --requests 1000 --connections 7 --size 50 --shape {shape}", echo.address));
        assert_eq!(
            (json["count"].as_u64(), json["latency_us"]["samples"].as_u64()),
            (Some(1_000), Some(1_000))
        );
        assert!(echo.end().contains(" in=50000 out=50000 "), "{shape}: the server has seen as many");
    }
    let chat = Server::start("chat --rate 0");
    let json = load(&format!("{} --requests 20 --connections 5 --shape fan-out", chat.address));
    assert_eq!(json["count"], 100, "each line was delivered to each receiver: {json}");
}

#[test]
fn a_run_by_requests_ends_when_nothing_is_answered_any_more() {
    let _others = shared();
    let silent = serve(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let to = silent.to_string();
    let outcome = run(&["load", &to, "--requests", "10", "--connections", "2", "--no-ceiling"], b"");
    assert_eq!(outcome.code, Some(1));
    assert!(String::from_utf8_lossy(&outcome.stdout).contains("unanswered 2 at the end, the oldest for 1"));
}

#[test]
fn a_rate_may_be_a_fraction_and_holds_for_every_shape() {
    let _quiet = exclusive();
    let echo = Server::start("echo --raw");
    let to = echo.address;
    // What is due near the end may be answered after it on a busy machine: it is not in the count, but in the samples.
    let samples = |json: &Value| json["latency_us"]["samples"].as_u64();
    let json = load(&format!("{to} --rate 2.5 --duration 1s --warm-up 0"));
    assert_eq!(samples(&json), Some(3), "at 0, 400 and 800 ms: {json}");
    let json = load(&format!("{to} --rate 50 --duration 1s --warm-up 0 --shape churn --connections 4"));
    assert_eq!((samples(&json), json["unit"].as_str()), (Some(50), Some("connections")), "{json}");
    let json = load(&format!("{to} --rate 50 --duration 1s --shape idle --connections 20"));
    assert_eq!(json["connections_at_end"], 20, "{json}");
    // The twentieth is due after 380 ms, and an interval of the series is 100 ms.
    let series = json["series"].as_array().expect("samples");
    assert!(
        series.iter().all(|sample| sample["count"].as_u64() < Some(20)),
        "they do not come at once: {json}"
    );
    let chat = Server::start("chat --rate 0");
    let json = load(&format!(
        "{} --rate 20 --duration 1s --warm-up 0 --shape fan-out --connections 3",
        chat.address
    ));
    assert_eq!(samples(&json), Some(20), "{json}");
    assert!((30..=60).contains(&json["count"].as_u64().expect("a count")), "each to three receivers: {json}");
}

#[test]
fn connections_come_from_other_addresses_only_when_asked_for() {
    let _others = shared();
    let limited = Server::start("echo --raw --max-per-ip 5");
    let to = limited.address.to_string();
    let words = ["load", &to, "--no-ceiling", "--connections", "20", "--rate", "100", "--duration", "300ms"];
    let outcome = run(&words, b"");
    assert_eq!(outcome.code, Some(1), "all come from one address, so the limit is met");
    let outcome = run(&[&words[..], &["--source-ports", "127.0.7.1-127.0.7.4"]].concat(), b"");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(text.contains("from      127.0.7.1-127.0.7.4\n"), "{text}");
}

#[test]
fn json_names_the_run_and_holds_all_percentiles_and_a_time_series() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let json = load(&format!("{} --rate 1000 --duration 500ms --connections 3", echo.address));
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["date"].as_str().is_some_and(|date| date.len() == "2026-01-01T00:00:00Z".len()), "{json}");
    let command = json["command"].as_array().expect("words");
    assert!(command.contains(&Value::from("--rate")) && command.contains(&Value::from("load")), "{json}");
    let latency = &json["latency_us"];
    let figures = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"].map(|name| latency[name].as_f64());
    assert!(figures.is_sorted() && figures[0] > Some(0.0), "{latency}");
    let all = json["percentiles_us"].as_array().expect("pairs");
    assert!(all.len() > 20 && all[all.len() - 1][1] == latency["max"], "{json}");
    let series = json["series"].as_array().expect("samples");
    let counts: u64 = series.iter().filter_map(|sample| sample["count"].as_u64()).sum();
    // One each 100 ms; a generator without a processor leaves some out.
    assert!((1..=6).contains(&series.len()) && series[series.len() - 1]["seconds"] == 0.5, "{json}");
    assert_eq!(Some(counts), json["count"].as_u64(), "the series adds up");
    assert_eq!(json["shape"], "echo");
    let kinds = json["errors"].as_object().expect("kinds");
    assert!(kinds.len() == 9 && kinds.values().all(|count| *count == 0), "{json}");
}

#[test]
fn results_that_cannot_be_written_are_failures() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let to = echo.address.to_string();
    for extra in [&["--json"][..], &[]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let mut command = Command::new(TIDEMILL);
        command.args(["load", &to, "--no-ceiling", "--duration", "100ms", "--warm-up", "0"]).args(extra);
        let output = command.stdout(full).stderr(Stdio::piped()).output().expect("its end");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("cannot write the result to stdout: No space left"), "{told}");
    }
    for words in [&["--help"][..], &["load", "--help"], &["--version"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
        let output = Command::new(TIDEMILL).args(words).stdout(full).output().expect("its end");
        assert_eq!(output.status.code(), Some(1), "{words:?}");
    }
    // What is wrong with a file is said before the run.
    for (option, file, text) in [
        ("--plot", "/no/where.svg", "cannot draw /no/where.svg: No such file"),
        ("--plot", "picture.png", "ends in .svg"),
        ("--compare", "/no/where.json", "cannot compare with /no/where.json: No such file"),
    ] {
        let outcome = run(&["load", &to, "--duration", "10min", option, file], b"");
        assert_eq!((outcome.code, outcome.stdout.len()), (Some(1), 0));
        assert!(outcome.stderr.contains(text), "{}", outcome.stderr);
    }
}

#[test]
fn a_run_is_compared_with_an_earlier_one() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let words = format!("{} --rate 500 --duration 300ms --warm-up 0 --connections 2", echo.address);
    let path = std::env::temp_dir().join(format!("tidemill-before-{}.json", std::process::id()));
    std::fs::write(&path, load(&words).to_string()).expect("a file");
    let json = load(&format!("{words} --compare {}", path.display()));
    let rate = &json["compared"]["figures"]["per_second"];
    assert!(rate["ratio"].as_f64().is_some_and(|ratio| (0.5..2.0).contains(&ratio)), "{json}");
    assert_eq!(json["compared"]["different_settings"].as_array().map(Vec::len), Some(0), "{json}");
    let mut all: Vec<&str> = vec!["load", "--no-ceiling", "--size", "99", "--compare"];
    let path_text = path.to_string_lossy().into_owned();
    all.push(&path_text);
    all.extend(words.split(' '));
    let outcome = run(&all, b"");
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    std::fs::remove_file(&path).expect("it is ours");
    assert!(text.contains("compared with 2") && text.contains("  p99.9 "), "{text}");
    assert!(text.contains("not the same settings: message bytes 64 then, 99 now"), "{text}");
}

#[test]
fn the_live_view_is_one_line_in_a_terminal_of_any_width() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let to = echo.address.to_string();
    let words = ["load", &to, "--no-ceiling", "--rate", "500", "--duration", "1500ms", "--warm-up", "0"];
    // What is most important stays in a narrow terminal; a wide one has a bar too.
    for (columns, figures) in [
        (40, &["left", "/s", "p99 "][..]),
        (80, &["left", "/s", "p99 ", "0 errors", "p50 "]),
        (200, &["left", "/s", "p99 ", "0 errors", "p50 ", "max ", "p99.9 ", "MiB in", "  [=", "] "]),
    ] {
        let mut load = Terminal::start(columns, &words);
        assert_eq!(load.process.wait_for_exit(Duration::from_secs(20)).code(), Some(0), "{}", load.output());
        until("the report", Duration::from_secs(20), || load.output().contains("errors    none"));
        let screens = load.screens();
        let is_report = |screen: &&Vec<String>| screen.iter().any(|row| row.starts_with("rate "));
        let live: Vec<_> = screens.iter().filter(|screen| !is_report(screen)).collect();
        for screen in &live {
            assert!(screen.len() <= 1, "{columns} columns: the line wraps or is left behind: {screen:#?}");
            let row = screen.first().map_or("load", |row| row);
            assert!(row.starts_with("load"), "{columns} columns: {row}");
            assert!(row.trim_end().chars().count() < usize::from(columns), "{columns} columns: {row}");
        }
        let full = |screen: &&&Vec<String>| {
            screen.first().is_some_and(|row| figures.iter().all(|figure| row.contains(figure)))
        };
        assert!(live.iter().filter(full).count() >= 3, "{columns} columns: {live:#?}");
        // The report takes the place of the line.
        let last = screens.last().expect("a screen");
        assert!(last[0].starts_with("rate ") && !last.iter().any(|row| row.starts_with("load")), "{last:#?}");
    }
}

/// The keys of a JSON object and of the objects in it, each with the key it is in.
fn keys(json: &Value, inside: &str, found: &mut Vec<String>) {
    match json {
        Value::Object(fields) => {
            for (key, value) in fields {
                found.push(format!("{inside}{key}"));
                keys(value, &format!("{inside}{key}."), found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, inside, found)),
        _ => {}
    }
}

#[test]
fn every_key_of_the_json_is_explained_on_its_page() {
    let _others = shared();
    let mut found = Vec::new();
    let echo = Server::start("echo --raw");
    keys(&load(&format!("{} --duration 300ms --warm-up 0", echo.address)), "", &mut found);
    // Nothing listens there, so there is a failure too.
    let words = "load 127.77.0.3:1 --json --no-ceiling --duration 100ms --rate 10";
    let outcome = run(&words.split(' ').collect::<Vec<_>>(), b"");
    let json: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    keys(&json, "", &mut found);
    let path = std::env::temp_dir().join(format!("tidemill-keys-{}.json", std::process::id()));
    std::fs::write(&path, json.to_string()).expect("a file");
    let path_text = path.to_string_lossy();
    let words = format!("{words} --compare {path_text}");
    let outcome = run(&words.split(' ').collect::<Vec<_>>(), b"");
    std::fs::remove_file(&path).expect("it is ours");
    let json: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    keys(&json["compared"], "compared.", &mut found);
    let is_named = |key: &&String| {
        *key != "generator" && !key.starts_with("errors.") && !key.starts_with("compared.figures.")
    };
    assert!(found.len() > 55, "{found:?}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/load.md")).expect("a page");
    let page = page.split("\n## ").find(|part| part.starts_with("Keys of the JSON")).expect("a section");
    let explained: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    for key in found.iter().filter(is_named) {
        let last = key.rsplit('.').next().unwrap_or(key);
        let percentile = key.starts_with("latency_us.p");
        assert!(
            percentile || explained.contains(&key.as_str()) || explained.contains(&last),
            "{key}: no word"
        );
    }
    for key in
        explained.iter().filter(|key| !key.starts_with("--") && !key.starts_with('_') && !key.ends_with('_'))
    {
        let is_key = found.iter().any(|known| known == key || known.ends_with(&format!(".{key}")));
        assert!(
            is_key || ["p50", "p99_9", "null"].contains(key) || json.get(key).is_some(),
            "{key}: no such key"
        );
    }
}
