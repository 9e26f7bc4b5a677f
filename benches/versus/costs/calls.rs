//! System calls per message, of a busy server.
//!
//! How many messages a server finds per wake-up, and so how often it has to wait, depends on the other load of the
//! machine: the median of several runs is reported.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::{Band, Figure, Measured, Process, Server, figure};
use crate::case::{CASES, Kind};
use crate::driver::Driver;
use crate::process::pin;

const CASE: &str = "64 B x 50";
/// Here, how many connections a server finds per wake-up is a larger part of the count: the same program has made 18.3
/// and 21.7 calls.
const PROXIED: &str = "proxy, churn x 50";
const BAND_PROXIED: Band = Band { percent: 20.0, step: 0.0 };

const RUNS: usize = 5;

/// A timer may be set now and then.
const BAND: Band = Band { percent: 3.0, step: 0.05 };

/// The system calls of one kind: Rust libraries use different ones.
const GROUPS: &[(&str, &[&str])] = &[
    ("read", &["read", "readv", "recvfrom", "recvmsg"]),
    ("write", &["write", "writev", "sendto", "sendmsg"]),
    ("epoll_wait", &["epoll_wait", "epoll_pwait"]),
];

/// The tool that counts.
#[derive(Clone, Copy)]
enum Counter {
    /// perf: counters in the kernel, at almost no cost.
    Perf,
    /// strace: stops the server twice per call.
    Strace,
}

/// Calls by name, and their sum.
type Counts = BTreeMap<String, u64>;

const ALL: &str = "raw_syscalls:sys_enter";

pub(super) fn measure(smoke: bool) -> Measured {
    let span = Duration::from_millis(if smoke { 100 } else { 500 });
    let (counter, unit) = match counted(Kind::Tidemill, CASE, Counter::Perf, span) {
        Ok(_) => (Counter::Perf, "calls"),
        Err(_) => (Counter::Strace, "calls, slowed down by strace"),
    };
    let runs = if smoke { 1 } else { RUNS };
    let mut results = Vec::new();
    for kind in [Kind::Tidemill, Kind::Tokio4] {
        results.push((kind, median_of(runs, kind, CASE, counter, span)?));
    }
    let groups = GROUPS.iter().map(|&(group, _)| group).chain(["other"]);
    let mut figures: Vec<Figure> = groups
        .map(|group| Figure {
            name: format!("calls of {group} per message, {CASE}"),
            unit,
            band: (group != "epoll_wait").then_some(BAND),
            values: results
                .iter()
                .map(|(kind, (counts, messages))| {
                    (kind.title().to_string(), in_group(counts, group) as f64 / messages)
                })
                .collect(),
        })
        .collect();
    let name = format!("system calls per connection, {PROXIED}");
    figures.push(figure(name, unit, BAND_PROXIED, &[Kind::Tidemill, Kind::TokioCopy], |kind| {
        let (counts, connections) = median_of(runs, kind, PROXIED, counter, span)?;
        Ok(counts[ALL] as f64 / connections)
    })?);
    Ok(figures)
}

/// The counts and the messages of the run with the median of all calls per message.
fn median_of(
    runs: usize,
    kind: Kind,
    case: &str,
    counter: Counter,
    span: Duration,
) -> Result<(Counts, f64), String> {
    let run = |_| counted(kind, case, counter, span);
    let runs: Result<Vec<_>, _> = (0..runs).map(run).collect();
    let mut runs = runs.map_err(|error| format!("neither perf nor strace can count here: {error}"))?;
    runs.sort_by(|(some, messages), (others, more)| {
        (some[ALL] as f64 / *messages as f64).total_cmp(&(others[ALL] as f64 / *more as f64))
    });
    let (counts, messages) = runs.swap_remove(runs.len() / 2);
    Ok((counts, messages as f64))
}

fn in_group(counts: &Counts, group: &str) -> u64 {
    let of = |names: &[&str]| names.iter().filter_map(|name| counts.get(*name)).sum::<u64>();
    match GROUPS.iter().find(|(name, _)| *name == group) {
        Some((_, names)) => of(names),
        None => counts[ALL] - GROUPS.iter().map(|(_, names)| of(names)).sum::<u64>(),
    }
}

/// The calls of a server during `span`, and the messages that it answered.
fn counted(kind: Kind, case: &str, counter: Counter, span: Duration) -> Result<(Counts, u64), String> {
    // The driver is pinned to a processor; the counting tool may run on any.
    let driven = thread::scope(|scope| {
        let drive = || -> Result<(Counts, u64), String> {
            pin(1);
            let case = CASES.iter().find(|one| one.name == case).expect("the case");
            let mut driver = Driver::new(case);
            let behind = driver.backend().map(|address| address.to_string());
            let words: Vec<&str> = match &behind {
                Some(address) => vec!["--serve", kind.name(), "proxy", address],
                None => vec!["--serve", kind.name(), "echo"],
            };
            let server = Server::start(&words)?;
            driver.connect(&[server.address]);
            let mut watcher = counter.watch(&server)?;
            let messages = driver.turn(0, span).messages;
            let counts = counter.counts(&mut watcher)?;
            Ok((counts, messages))
        };
        scope.spawn(drive).join()
    });
    let (counts, messages) = driven.map_err(|_| "the driver has failed")??;
    if in_group(&counts, "read") < messages / 2 {
        return Err(format!("{counts:?} are too few for {messages} messages"));
    }
    Ok((counts, messages))
}

impl Counter {
    fn watch(self, server: &Server) -> Result<Process, String> {
        let pid = server.process.0.id().to_string();
        let names = GROUPS.iter().flat_map(|(_, names)| names.iter());
        let mut command = match self {
            Counter::Perf => {
                let events: Vec<String> = names.map(|name| format!("syscalls:sys_enter_{name}")).collect();
                let mut command = Command::new("perf");
                command.args(["stat", "-x,", "-e", &format!("{ALL},{}", events.join(",")), "-p", &pid]);
                command
            }
            Counter::Strace => {
                let mut command = Command::new("strace");
                command.args(["-c", "-f", "-p", &pid]);
                command
            }
        };
        let watcher =
            Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))?;
        // The tools differ in how they report that they have started. The idle server makes almost no calls meanwhile.
        thread::sleep(Duration::from_secs(1));
        Ok(watcher)
    }

    fn counts(self, watcher: &mut Process) -> Result<Counts, String> {
        watcher.end(Signal::INT);
        let mut text = String::new();
        let mut stderr = watcher.0.stderr.take().ok_or("no stderr")?;
        stderr.read_to_string(&mut text).map_err(|error| error.to_string())?;
        let counts = match self {
            Counter::Perf => perf_counts(&text),
            Counter::Strace => strace_counts(&text),
        };
        if counts.contains_key(ALL) { Ok(counts) } else { Err(format!("it printed {text:?}")) }
    }
}

/// Parses lines such as `1234,,syscalls:sys_enter_read,1000000,100.00,,`.
fn perf_counts(text: &str) -> Counts {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let name = fields.get(2)?.trim_start_matches("syscalls:sys_enter_");
        Some((name.to_string(), fields[0].parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Parses lines such as ` 52.10    0.004300           4      1024        12 read`. The last line is the sum, whose
/// format differs between versions.
fn strace_counts(text: &str) -> Counts {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let name = fields.last().filter(|name| **name != "total")?;
        Some((name.to_string(), fields.get(3)?.parse().ok()?))
    };
    let mut counts: Counts = text.lines().filter_map(line).collect();
    if !counts.is_empty() {
        counts.insert(ALL.to_string(), counts.values().sum());
    }
    counts
}
