//! The results as text and as JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::case::{Case, Kind};
use crate::figure::{Figure, Round, Rounds, median, rounded};
use crate::latency::Latency;

/// The median of the ratios of all rounds, with their minimum and maximum, and the two figures of the round that has
/// the median: so the figures that are shown have the ratio that is shown.
#[derive(Clone, Copy)]
struct Ratio {
    own: f64,
    other: f64,
    least: f64,
    max: f64,
}

/// All that one run of this program has found.
pub struct Measured {
    pub cases: Vec<CaseResult>,
    pub latencies: Vec<Latency>,
    pub figures: Vec<Figure>,
}

/// A case with its results.
pub struct CaseResult {
    pub case: Case,
    pub rounds: Rounds,
}

fn rate(round: &Round) -> f64 {
    round.0
}

fn cost(round: &Round) -> f64 {
    round.1
}

impl CaseResult {
    fn median(&self, kind: Kind, figure: fn(&Round) -> f64) -> f64 {
        median(self.rounds[&kind].iter().map(figure))
    }

    /// The ratio of tidemill's figure to another's, round by round.
    fn ratio(&self, other: Kind, figure: fn(&Round) -> f64) -> Ratio {
        let pairs = self.rounds[&Kind::Tidemill].iter().zip(&self.rounds[&other]);
        let mut pairs: Vec<(f64, f64)> = pairs.map(|(own, other)| (figure(own), figure(other))).collect();
        let of = |(own, other): &(f64, f64)| own / other;
        pairs.sort_by(|one, other| of(one).total_cmp(&of(other)));
        let (own, other) = pairs[pairs.len() / 2];
        Ratio { own, other, least: of(&pairs[0]), max: of(&pairs[pairs.len() - 1]) }
    }

    pub fn table(&self) -> String {
        let mut text = format!("\n{}\n", self.case.name);
        let per_second = format!("{}/s", self.case.unit());
        // Writing to a `String` never fails.
        let _ = writeln!(
            text,
            "  {:<28}{per_second:>14}{:>11}   {:<18}{:>12}{:>11}   ratio",
            "server", "tidemill's", "ratio", "CPU ns each", "tidemill's"
        );
        for (title, [rate, cost]) in self.lines() {
            let _ = writeln!(
                text,
                "  {title:<28}{:>14}{:>11}   {:<18}{:>12}{:>11}   {}",
                rate[0], rate[1], rate[2], cost[0], cost[1], cost[2]
            );
        }
        text
    }

    /// For each server its rate, that of tidemill in the same round, and the ratio of the two; and the same for the
    /// processor time. For tidemill only the medians of its own figures.
    fn lines(&self) -> impl Iterator<Item = (&'static str, [[String; 3]; 2])> {
        self.rounds.keys().map(|&kind| {
            let shown = |figure| match kind {
                Kind::Tidemill => [format!("{:.0}", self.median(kind, figure)), String::new(), String::new()],
                _ => {
                    let ratio = self.ratio(kind, figure);
                    [format!("{:.0}", ratio.other), format!("{:.0}", ratio.own), ratio.to_string()]
                }
            };
            (kind.title(), [shown(rate), shown(cost)])
        })
    }

    fn json(&self) -> Value {
        let value = |kind, figure| match kind {
            Kind::Tidemill => self.median(kind, figure),
            _ => self.ratio(kind, figure).other,
        };
        let servers = self.rounds.keys().map(|&kind| {
            json!({
                "server": kind.name(),
                "per_second": rounded(value(kind, rate)),
                "cpu_ns_each": rounded(value(kind, cost)),
                "tidemill_rate_ratio": self.ratio(kind, rate).json(),
                "tidemill_cpu_ratio": self.ratio(kind, cost).json(),
            })
        });
        let case = &self.case;
        json!({
            "case": case.name,
            "unit": case.unit(),
            "connections": case.connections,
            "size": case.size,
            "pipeline": case.pipeline,
            "servers": servers.collect::<Vec<Value>>(),
        })
    }
}

impl Ratio {
    fn median(self) -> f64 {
        self.own / self.other
    }

    fn json(self) -> Value {
        let [own, median, least, most] = [self.own, self.median(), self.least, self.max].map(rounded);
        json!({ "own": own, "median": median, "least": least, "most": most })
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} [{:.2}-{:.2}]", self.median(), self.least, self.max)
    }
}

/// The figures for programs.
pub fn data(measured: &Measured, command: &str) -> Value {
    let cases: Vec<Value> = measured.cases.iter().map(CaseResult::json).collect();
    let latency: Vec<Value> = measured.latencies.iter().map(Latency::json).collect();
    let figures: Vec<Value> = measured
        .figures
        .iter()
        .map(|figure| {
            let values: Vec<Value> = figure
                .values
                .iter()
                .map(|(server, value)| json!({ "server": server, "value": rounded(*value) }))
                .collect();
            let band = figure.band.map(|band| json!({ "percent": band.percent, "step": band.step }));
            json!({ "name": figure.name, "unit": figure.unit, "band": band, "values": values })
        })
        .collect();
    json!({ "command": command, "machine": machine(), "cases": cases, "latency": latency, "figures": figures })
}

pub fn write_json(path: &Path, data: &Value) -> Result<(), String> {
    fs::write(path, format!("{data:#}\n"))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// The machine and the measured versions.
fn machine() -> Vec<(String, String)> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    // This process is pinned to one of them.
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut facts = vec![
        ("processor".to_string(), format!("{} ({cores} of them)", model.unwrap_or("unknown"))),
        ("kernel".to_string(), kernel.trim().to_string()),
        ("date".to_string(), output("date", &["-u", "+%Y-%m-%d"])),
        ("commit".to_string(), output("git", &["describe", "--always", "--dirty"])),
        ("tidemill".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        ("tokio".to_string(), locked("tokio")),
    ];
    let programs = [
        ("rustc", "--version"),
        ("node", "--version"),
        ("haproxy", "-v"),
        ("nginx", "-v"),
        ("cc", "--version"),
    ];
    for (program, option) in programs {
        if let Ok(output) = Command::new(program).arg(option).output() {
            let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            let text = String::from_utf8_lossy(&text);
            let line = text.lines().next().unwrap_or_default();
            // Without the web address that some programs append.
            let line = line.split(" - ").next().unwrap_or_default();
            facts.push((program.to_string(), line.to_string()));
        }
    }
    facts
}

/// What a command prints; empty if there is no such command.
fn output(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The version of a dependency in Cargo.lock.
fn locked(name: &str) -> String {
    let lock = include_str!("../../Cargo.lock");
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"\n")));
    let version = entry.and_then(|entry| entry.split("version = \"").nth(1)?.split('"').next());
    version.unwrap_or("unknown").to_string()
}
