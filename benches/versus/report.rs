//! The results as text, page and JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::case::{Case, Kind};
use crate::chart;
use crate::figure::{Figure, Round, Rounds};

/// The median of several ratios, with their minimum and maximum.
#[derive(Clone, Copy)]
struct Ratio {
    median: f64,
    least: f64,
    max: f64,
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

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all
}

impl CaseResult {
    fn median(&self, kind: Kind, figure: fn(&Round) -> f64) -> f64 {
        let all = sorted(self.rounds[&kind].iter().map(figure));
        all[all.len() / 2]
    }

    /// The ratio of tidemill's figure to another's, round by round.
    fn ratio(&self, other: Kind, figure: fn(&Round) -> f64) -> Ratio {
        let pairs = self.rounds[&Kind::Tidemill].iter().zip(&self.rounds[&other]);
        let all = sorted(pairs.map(|(own, other)| figure(own) / figure(other)));
        Ratio { median: all[all.len() / 2], least: all[0], max: all[all.len() - 1] }
    }

    pub fn table(&self) -> String {
        let mut text = format!("\n{}\n", self.case.name);
        let per_second = format!("{}/s", self.case.unit());
        let heads = ["tidemill's rate to it", "tidemill's CPU to its"];
        // Writing to a `String` never fails.
        let _ = writeln!(
            text,
            "  {:<28}{per_second:>14}{:>12}   {:<24}{}",
            "server", "CPU ns each", heads[0], heads[1]
        );
        for (title, rate, cost, rates, costs) in self.lines() {
            let _ = writeln!(text, "  {title:<28}{rate:>14.0}{cost:>12.0}   {rates:<24}{costs}");
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = format!("\n### {}\n\n", self.case.name);
        let unit = self.case.unit();
        let _ = writeln!(
            text,
            "| server | {unit}/s | CPU ns each | tidemill's rate to it | tidemill's CPU to its |"
        );
        text.push_str("| --- | ---: | ---: | --- | --- |\n");
        for (title, rate, cost, rates, costs) in self.lines() {
            let _ = writeln!(text, "| {title} | {rate:.0} | {cost:.0} | {rates} | {costs} |");
        }
        text
    }

    /// For each server its rate and processor time, and the ratios of tidemill's figures to them (none for tidemill).
    fn lines(&self) -> impl Iterator<Item = (&'static str, f64, f64, String, String)> {
        self.rounds.keys().map(|&kind| {
            let shown = |figure| match kind {
                Kind::Tidemill => String::new(),
                _ => self.ratio(kind, figure).to_string(),
            };
            (kind.title(), self.median(kind, rate), self.median(kind, cost), shown(rate), shown(cost))
        })
    }

    fn json(&self) -> Value {
        let servers = self.rounds.keys().map(|&kind| {
            json!({
                "server": kind.name(),
                "per_second": self.median(kind, rate),
                "cpu_ns_each": self.median(kind, cost),
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
    fn json(self) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.max })
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} [{:.2}-{:.2}]", self.median, self.least, self.max)
    }
}

pub fn write_json(path: &Path, results: &[CaseResult], figures: &[Figure]) -> Result<(), String> {
    let cases: Vec<Value> = results.iter().map(CaseResult::json).collect();
    let figures: Vec<Value> = figures
        .iter()
        .map(|figure| {
            let values: Vec<Value> = figure
                .values
                .iter()
                .map(|(server, value)| json!({ "server": server, "value": value }))
                .collect();
            json!({ "name": figure.name, "unit": figure.unit, "values": values })
        })
        .collect();
    let text = format!("{:#}\n", json!({ "machine": machine(), "cases": cases, "figures": figures }));
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Writes the page, its charts and its data into a folder.
pub fn write_docs(
    folder: &Path,
    results: &[CaseResult],
    figures: &[Figure],
    command: &str,
) -> Result<(), String> {
    write_json(&folder.join("benchmarks.json"), results, figures)?;
    chart::redraw(folder)?;
    let mut page = include_str!("page.md").replace("{command}", command);
    let mut facts = String::new();
    for (what, is) in machine() {
        let _ = writeln!(facts, "| {what} | {is} |");
    }
    page = page.replace("{machine}", facts.trim_end());
    let cases: String = results.iter().map(CaseResult::markdown).collect();
    page = page.replace("{cases}", cases.trim());
    let lines: String = figures.iter().map(Figure::markdown).collect();
    page = page.replace("{figures}", lines.trim_end());
    let path = folder.join("benchmarks.md");
    fs::write(&path, page).map_err(|error| format!("cannot write {}: {error}", path.display()))
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
