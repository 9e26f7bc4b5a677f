//! Latency at fixed rates: `tidemill load` sends in an open loop, at shares of what the slowest server can do.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::case::{Case, Kind, Shape};
use crate::figure::{median, rounded};
use crate::run::{Effort, Server};

/// Shares of the slowest server's rate, in percent.
const LEVELS: [u32; 3] = [30, 60, 90];
const QUANTILES: [(&str, &str); 3] = [("p50", "p50"), ("p99", "p99"), ("p99.9", "p99_9")];
/// How long one server is loaded at a time. At the lowest rates that are some thousand messages.
const SPAN: Duration = Duration::from_millis(700);
/// The connections must be ready and have answered within it.
const SPAN_LEAST: Duration = Duration::from_millis(200);
/// So many rounds are enough: a percentile is of thousands of messages already.
const ROUNDS_MAX: usize = 3;

/// Of one server at one rate: microseconds for each of the quantiles, the medians of all rounds.
type Quantiles = [f64; QUANTILES.len()];

pub struct Latency {
    case: Case,
    slowest: Kind,
    /// What the slowest one carries when the next message is sent as soon as the answer to the last has come.
    capacity: f64,
    servers: Vec<(Kind, [Quantiles; LEVELS.len()])>,
}

/// Whether it can be measured: `load` sends one message at a time on each connection, and percentiles need many
/// messages.
pub fn is_for(case: &Case) -> bool {
    matches!(case.shape, Shape::Echo | Shape::Proxy)
        && case.pipeline == 1
        && case.size <= 16 << 10
        && case.connections <= 1_000
}

pub fn measure(case: &Case, effort: &Effort, peers: &[Kind]) -> Result<Latency, String> {
    // It shares the processor with the proxies, and costs each of them the same.
    let backend = match case.shape {
        Shape::Proxy => Some(Server::start(Kind::Tidemill, Shape::Echo, None)?),
        _ => None,
    };
    let behind = backend.as_ref().map(|backend| backend.address);
    let mut servers = Vec::new();
    for kind in case.kinds(peers) {
        match Server::start(kind, case.shape, behind) {
            Ok(server) => servers.push((kind, server)),
            Err(why) => println!("{} is left out: {why}", kind.title()),
        }
    }
    let span = (SPAN / effort.shorter).max(SPAN_LEAST);
    let (capacity, slowest) = slowest(&servers, case, span)?;
    let mut rounds = vec![[const { [const { Vec::new() }; QUANTILES.len()] }; LEVELS.len()]; servers.len()];
    for round in 0..effort.rounds.min(ROUNDS_MAX) {
        for (level, percent) in LEVELS.iter().enumerate() {
            for place in 0..servers.len() {
                // The order changes, so that no server always follows the same one.
                let which = (place + level + round) % servers.len();
                let rate = capacity * f64::from(*percent) / 100.0;
                let told = load(servers[which].1.address, case, Some(rate), span)?;
                for (quantile, (_, key)) in QUANTILES.iter().enumerate() {
                    let us = told["latency_us"][key].as_f64().ok_or("load gives no latency")?;
                    rounds[which][level][quantile].push(us);
                }
            }
        }
    }
    let medians = rounds.into_iter().map(|levels| levels.map(|quantiles| quantiles.map(median)));
    let kinds = servers.iter().map(|(kind, _)| *kind);
    Ok(Latency { case: *case, slowest, capacity, servers: kinds.zip(medians).collect() })
}

/// The least rate of all servers, and which has it.
fn slowest(servers: &[(Kind, Server)], case: &Case, span: Duration) -> Result<(f64, Kind), String> {
    let mut rates = Vec::new();
    for (kind, server) in servers {
        let told = load(server.address, case, None, span)?;
        rates.push((told["per_second"].as_f64().ok_or("load gives no rate")?, *kind));
    }
    rates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).ok_or("there is no server".to_string())
}

/// Runs the generator once. It inherits the processor of this program, and the servers have the other.
fn load(to: SocketAddr, case: &Case, rate: Option<f64>, span: Duration) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.args(["load", &to.to_string(), "--json", "--no-ceiling", "--warm-up", "100ms"]);
    command.args(["--connections", &case.connections.to_string(), "--size", &case.size.to_string()]);
    command.args(["--duration", &format!("{}ms", span.as_millis())]);
    if let Some(rate) = rate {
        command.args(["--rate", &format!("{rate:.1}")]);
    }
    let output = command.output().map_err(|error| format!("cannot run load: {error}"))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("load has failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Latency {
    fn heading(&self) -> String {
        let (name, slowest, rate) = (self.case.name, self.slowest.title(), self.capacity);
        format!("{name}: µs at shares of {rate:.0} messages/s, the rate of the slowest ({slowest})")
    }

    pub fn table(&self) -> String {
        let mut text = format!("\nlatency, {}\n  {:<28}", self.heading(), "server");
        // Writing to a `String` never fails.
        for percent in LEVELS {
            let _ = write!(text, "{:>9}", format!("{percent} %:"));
            for (place, (name, _)) in QUANTILES.iter().enumerate() {
                let _ = write!(text, "{name:>width$}", width = if place == 0 { 5 } else { 9 });
            }
        }
        text.push('\n');
        for (kind, levels) in &self.servers {
            let _ = write!(text, "  {:<28}", kind.title());
            for quantiles in levels {
                let _ = write!(text, "{:>14.0}{:>9.0}{:>9.0}", quantiles[0], quantiles[1], quantiles[2]);
            }
            text.push('\n');
        }
        text
    }

    pub fn json(&self) -> Value {
        let levels = LEVELS.iter().enumerate().map(|(level, percent)| {
            let servers = self.servers.iter().map(|(kind, levels)| {
                let [p50, p99, p99_9] = levels[level].map(rounded);
                json!({ "server": kind.name(), "p50_us": p50, "p99_us": p99, "p99_9_us": p99_9 })
            });
            json!({ "percent": percent, "servers": servers.collect::<Vec<Value>>() })
        });
        json!({
            "case": self.case.name,
            "slowest": self.slowest.name(),
            "slowest_per_second": rounded(self.capacity),
            "levels": levels.collect::<Vec<Value>>(),
        })
    }
}
