//! The results as text, charts and JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use plotters::prelude::*;
use serde_json::{Value, json};

use crate::case::{Case, Kind};
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

    /// The server that a chart compares with: the first after tidemill.
    fn base(&self) -> Option<Kind> {
        self.rounds.keys().copied().find(|&kind| kind > Kind::TidemillBusyPoll)
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
    draw(
        &folder.join("versus-rate.svg"),
        "tidemill's rate to tokio's, or to the first peer's",
        results,
        rate,
    )?;
    draw(
        &folder.join("versus-cpu.svg"),
        "tidemill's processor time for each message to theirs",
        results,
        cost,
    )?;
    write_json(&folder.join("benchmarks.json"), results, figures)?;
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

/// The version of a dependency in Cargo.lock.
fn locked(name: &str) -> String {
    let lock = include_str!("../../Cargo.lock");
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"\n")));
    let version = entry.and_then(|entry| entry.split("version = \"").nth(1)?.split('"').next());
    version.unwrap_or("unknown").to_string()
}

/// Draws a bar for each case, from 1 (equal) to the median, with its range, on a logarithmic scale: 2 is as far from 1
/// as 1/2.
fn draw(path: &Path, title: &str, results: &[CaseResult], figure: fn(&Round) -> f64) -> Result<(), String> {
    let bars: Vec<(String, Ratio)> = results
        .iter()
        .filter_map(|results| {
            let base = results.base()?;
            let case = results.case.name.split(", beside").next().unwrap_or_default();
            Some((format!("{case}, {}", base.title()), results.ratio(base, figure)))
        })
        .collect();
    let cannot = |error: &dyn std::fmt::Display| format!("cannot draw {}: {error}", path.display());
    let max = bars.iter().fold(1.2_f64, |max, (_, bar)| max.max(bar.max)) * 1.1;
    let least = bars.iter().fold(0.8_f64, |least, (_, bar)| least.min(bar.least)) / 1.1;
    let rows = bars.len().max(1);
    let root = SVGBackend::new(path, (960, 60 + 26 * rows as u32 + 40)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| cannot(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(330)
        .build_cartesian_2d((least..max).log_scale().base(2.0), (0..rows).into_segmented())
        .map_err(|error| cannot(&error))?;
    let names: Vec<String> = bars.iter().rev().map(|(name, _)| name.clone()).collect();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_label_formatter(&|ratio| format!("{ratio}"))
        .y_labels(rows)
        .y_label_formatter(&|place| match place {
            SegmentValue::CenterOf(row) => names.get(*row).cloned().unwrap_or_default(),
            _ => String::new(),
        })
        .draw()
        .map_err(|error| cannot(&error))?;
    for (row, (_, bar)) in bars.iter().rev().enumerate() {
        let (low, high) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
        let mut shape = Rectangle::new([(1.0, low), (bar.median, high)], BLUE.mix(0.45).filled());
        shape.set_margin(4, 4, 0, 0);
        let middle = SegmentValue::CenterOf(row);
        let range = PathElement::new([(bar.least, middle.clone()), (bar.max, middle)], BLACK.stroke_width(2));
        chart.draw_series([shape]).map_err(|error| cannot(&error))?;
        chart.draw_series([range]).map_err(|error| cannot(&error))?;
    }
    let one = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(rows))];
    chart.draw_series([PathElement::new(one, RED.stroke_width(1))]).map_err(|error| cannot(&error))?;
    root.present().map_err(|error| cannot(&error))
}
