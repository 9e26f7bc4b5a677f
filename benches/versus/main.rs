//! tidemill and tokio, the same service on both, side by side.
//!
//! ```sh
//! cargo bench --bench versus                          # all cases, some minutes
//! cargo bench --bench versus -- --case "64 B x 50"    # the cases whose name holds this
//! cargo bench --bench versus -- --json result.json
//! ```
//!
//! # How it is kept fair
//!
//! - The same service (an echo of bytes), backlog (1,024) and TCP_NODELAY for all; every echoed byte is checked.
//! - All servers of a case run at once, each in a process of its own, on one processor; what drives them runs on
//!   another and never sleeps.
//! - They are driven in turns of a tenth of a second (longer with a thousand connections), one after the other, again
//!   and again: a machine drifts by a third within seconds, and all of them drift together. Ratios are taken within a
//!   round, each round has fresh processes, and what is told is the median of the rounds with its range.
//! - Beside the rate stands the processor time per message, by the scheduler's own account of the server's threads.
//!   Where the driver is the bottleneck (it pays as much per message as a good server), that is the figure to look
//!   at.

mod driver;
mod servers;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use driver::{Driver, Turned};
use serde_json::{Value, json};
use servers::Kind;

/// One way to load a server.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    connections: usize,
    size: usize,
    pipeline: usize,
    /// A connection for each message.
    churn: bool,
    turn: Duration,
}

const fn echo(name: &'static str, connections: usize, size: usize, pipeline: usize, millis: u64) -> Case {
    Case { name, connections, size, pipeline, churn: false, turn: Duration::from_millis(millis) }
}

const CASES: &[Case] = &[
    echo("64 B x 1", 1, 64, 1, 100),
    echo("64 B x 50", 50, 64, 1, 100),
    echo("64 B x 1000", 1_000, 64, 1, 400),
    echo("64 B x 50, pipeline 16", 50, 64, 16, 100),
    echo("16 KiB x 50", 50, 16 << 10, 1, 100),
    echo("1 MiB x 4", 4, 1 << 20, 1, 100),
    Case { churn: true, ..echo("churn x 50", 50, 64, 1, 100) },
];

/// What all the others are compared with.
const BASE: Kind = Kind::Tokio4;

/// How much is measured.
struct Effort {
    rounds: usize,
    turns: usize,
    shorter: u32,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let after = |option: &str| words.iter().position(|word| word == option).and_then(|at| words.get(at + 1));
    if let Some(name) = after("--serve") {
        return servers::serve(name);
    }
    let smoke = words.iter().any(|word| word == "--smoke");
    let effort = match smoke {
        true => Effort { rounds: 1, turns: 1, shorter: 4 },
        false => Effort { rounds: 5, turns: 10, shorter: 1 },
    };
    let wanted = after("--case").cloned().unwrap_or_default();
    servers::pin(1);
    let mut told = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&wanted)) {
        let result = measure(case, &effort);
        print!("{}", table(case, &result));
        told.push(as_json(case, &result));
    }
    if let Some(path) = after("--json") {
        let text = format!("{:#}\n", Value::from(told));
        std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
}

/// A server in a process of its own, which ends with this value.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(kind: Kind) -> Server {
        let own = std::env::current_exe().expect("this program");
        let mut child = Command::new(own)
            .args(["--serve", kind.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its stdout");
        BufReader::new(stdout).read_line(&mut line).expect("its address");
        Server { address: line.trim().parse().expect("an address"), child }
    }

    /// The time that its threads have had on a processor.
    fn busy(&self) -> Duration {
        let folder = format!("/proc/{}/task", self.child.id());
        let tasks = std::fs::read_dir(folder).expect("it runs").filter_map(Result::ok);
        let spent = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For each server and each round: messages a second, and nanoseconds of processor time for each.
type Rounds = BTreeMap<Kind, Vec<(f64, f64)>>;

fn measure(case: &Case, effort: &Effort) -> Rounds {
    let mut result = Rounds::new();
    for round in 0..effort.rounds {
        let servers: Vec<Server> = Kind::ALL.iter().map(|&kind| Server::start(kind)).collect();
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let mut driver = Driver::connect(case, &addresses);
        let mut sums = vec![(Turned::default(), Duration::ZERO); servers.len()];
        for turn in 0..=effort.turns {
            for place in 0..servers.len() {
                // Nobody is always the one behind the same other one.
                let which = (place + turn + round) % servers.len();
                let before = servers[which].busy();
                let turned = driver.turn(which, case.turn / effort.shorter);
                let busy = servers[which].busy() - before;
                // The first turn warms up.
                if turn > 0 {
                    sums[which].0.messages += turned.messages;
                    sums[which].0.span += turned.span;
                    sums[which].1 += busy;
                }
            }
        }
        for (&kind, (turned, busy)) in Kind::ALL.iter().zip(sums) {
            let messages = turned.messages.max(1) as f64;
            let figures = (messages / turned.span.as_secs_f64(), busy.as_nanos() as f64 / messages);
            result.entry(kind).or_default().push(figures);
        }
    }
    result
}

/// The median and the range of the ratios of tidemill to another, round by round.
fn ratios(result: &Rounds, other: Kind, figure: fn(&(f64, f64)) -> f64) -> (f64, f64, f64) {
    let ours = &result[&Kind::Tidemill];
    let mut ratios: Vec<f64> =
        ours.iter().zip(&result[&other]).map(|(own, other)| figure(own) / figure(other)).collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1])
}

fn median(figures: &[(f64, f64)], figure: fn(&(f64, f64)) -> f64) -> f64 {
    let mut all: Vec<f64> = figures.iter().map(figure).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn rate(figures: &(f64, f64)) -> f64 {
    figures.0
}

fn cost(figures: &(f64, f64)) -> f64 {
    figures.1
}

fn table(case: &Case, result: &Rounds) -> String {
    let mut text = Vec::new();
    // Writing to a vector does not fail.
    let _ = writeln!(text, "\n{}", case.name);
    let _ = writeln!(
        text,
        "  {:<28}{:>12}{:>12}   {:<24}{:<24}",
        "server", "messages/s", "CPU ns each", "tidemill's rate to it", "tidemill's CPU to its"
    );
    for (&kind, figures) in result {
        let (rates, costs) = (ratios(result, kind, rate), ratios(result, kind, cost));
        let shown = |(middle, least, most): (f64, f64, f64)| match kind {
            Kind::Tidemill => String::new(),
            _ => format!("{middle:.2} [{least:.2}-{most:.2}]"),
        };
        let _ = writeln!(
            text,
            "  {:<28}{:>12.0}{:>12.0}   {:<24}{:<24}",
            kind.title(),
            median(figures, rate),
            median(figures, cost),
            shown(rates),
            shown(costs)
        );
    }
    String::from_utf8(text).expect("text")
}

fn as_json(case: &Case, result: &Rounds) -> Value {
    let servers: Vec<Value> = result
        .iter()
        .map(|(&kind, figures)| {
            let (rates, costs) = (ratios(result, kind, rate), ratios(result, kind, cost));
            json!({
                "server": kind.name(),
                "messages_per_second": median(figures, rate),
                "cpu_ns_per_message": median(figures, cost),
                "tidemill_rate_ratio": { "median": rates.0, "least": rates.1, "most": rates.2 },
                "tidemill_cpu_ratio": { "median": costs.0, "least": costs.1, "most": costs.2 },
            })
        })
        .collect();
    json!({
        "case": case.name,
        "connections": case.connections,
        "size": case.size,
        "pipeline": case.pipeline,
        "base": BASE.name(),
        "servers": servers,
    })
}
