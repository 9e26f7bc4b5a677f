//! The regression file `bands.json`: the figures of an earlier run, each with the band in which a later run may lie.
//!
//! A ratio of rates or of processor time has a coarse band, because a stopwatch on a shared machine is inexact. A count
//! (instructions, system calls, bytes) is the same on a busy machine, so its band is narrow, and `--smoke` compares it.
//! A figure that is worse than its band is an error. A better one is printed and is no error: an improvement must not
//! stop a build. `--write-bands` replaces the entries of all figures that were measured, and keeps the others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// How far a figure may be from the one in the file: so many percent, and at least `step`.
#[derive(Clone, Copy, Debug)]
pub struct Band {
    pub percent: f64,
    pub step: f64,
}

/// Of ratios. The ranges of five rounds on a quiet machine are within 20 % of their median.
const RATIO: Band = Band { percent: 25.0, step: 0.0 };

/// The groups of the file, and whether a higher figure is a better one.
const RATE: (&str, bool) = ("rate ratio", true);
const CPU: (&str, bool) = ("CPU ratio", false);
const COUNT: (&str, bool) = ("count", false);
const GROUPS: [(&str, bool); 3] = [RATE, CPU, COUNT];

/// A figure's place in the file: group, case, server.
pub type Key = (String, String, String);
/// What a run has measured, and the band of each.
pub type Found = BTreeMap<Key, (f64, Band)>;

/// The result of a comparison, a line for each figure.
#[derive(Default, Debug)]
pub struct Compared {
    pub worse: Vec<String>,
    pub better: Vec<String>,
    /// Counts of the file that were not measured.
    pub missing: Vec<String>,
    /// Figures that were measured and are not in the file.
    pub without_a_band: usize,
    pub within: usize,
}

/// The figures of `benchmarks.json`: the ratios of tidemill to each other server, and tidemill's own counts.
pub fn found(data: &Value) -> Found {
    let mut found = Found::new();
    for case in list(&data["cases"]) {
        for server in list(&case["servers"]).filter(|server| server["server"] != "tidemill") {
            for ((group, _), key) in [(RATE, "tidemill_rate_ratio"), (CPU, "tidemill_cpu_ratio")] {
                let place = (group.to_string(), text(&case["case"]), text(&server["server"]));
                found.extend(server[key]["median"].as_f64().map(|ratio| (place, (ratio, RATIO))));
            }
        }
    }
    for figure in list(&data["figures"]) {
        let band = &figure["band"];
        let (Some(percent), Some(step)) = (band["percent"].as_f64(), band["step"].as_f64()) else { continue };
        let own = list(&figure["values"]).find(|value| value["server"] == "tidemill");
        let place = (COUNT.0.to_string(), text(&figure["name"]), "tidemill".to_string());
        let value = own.and_then(|own| own["value"].as_f64());
        found.extend(value.map(|value| (place, (value, Band { percent, step }))));
    }
    found
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

/// Compares a run with the file. With `only_counts`, times are left out.
pub fn compare(bands: &Value, data: &Value, only_counts: bool) -> Compared {
    let found = found(data);
    let mut compared = Compared::default();
    let has_band = |(group, case, server): &Key| bands[group][case][server].is_object();
    let asked = found.keys().filter(|(group, ..)| !only_counts || group == COUNT.0);
    compared.without_a_band = asked.filter(|key| !has_band(key)).count();
    for (group, more_is_better) in GROUPS.into_iter().filter(|group| !only_counts || *group == COUNT) {
        for (case, servers) in bands[group].as_object().into_iter().flatten() {
            for (server, entry) in servers.as_object().into_iter().flatten() {
                let key = (group.to_string(), case.clone(), server.clone());
                let name = format!("{group}: {case}, {server}");
                let Some((value, _)) = found.get(&key) else {
                    compared.missing.extend((group == COUNT.0).then_some(name));
                    continue;
                };
                let bound = |key: &str| entry[key].as_f64().unwrap_or(f64::NAN);
                let (wanted, least, most) = (bound("wanted"), bound("least"), bound("most"));
                // What is not a number is not better, so it is worse.
                let is_better = if more_is_better { *value > most } else { *value < least };
                let line =
                    format!("{name}: wanted {wanted:.2} ({least:.2} to {most:.2}), measured {value:.2}");
                match (least..=most).contains(value) {
                    true => compared.within += 1,
                    false if is_better => compared.better.push(line),
                    false => compared.worse.push(line),
                }
            }
        }
    }
    compared
}

/// Compares a run with the file at `path` and prints the result; an error if a figure is worse than its band or, with
/// TIDEMILL_INTEROP=required, if a run of all cases could not measure a count.
pub fn check(path: &Path, data: &Value, only_counts: bool, all_cases: bool) -> Result<(), String> {
    let mut compared = compare(&read(path)?, data, only_counts);
    if !all_cases {
        compared.missing.clear();
    }
    println!("\n{} figures are within their bands", compared.within);
    if compared.without_a_band > 0 {
        println!("{} figures have no band; --write-bands makes them one", compared.without_a_band);
    }
    compared.better.iter().for_each(|line| println!("better than its band: {line}; --write-bands keeps it"));
    compared.missing.iter().for_each(|name| println!("not measured: {name}"));
    let advice = "find the cause, or keep it with --write-bands if the change was meant";
    let worse = compared.worse.iter().map(|line| format!("worse than its band: {line}; {advice}"));
    let mut errors: Vec<String> = worse.collect();
    if std::env::var("TIDEMILL_INTEROP").is_ok_and(|value| value == "required") {
        errors.extend(compared.missing.iter().map(|name| format!("must be measured and was not: {name}")));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

/// Puts what a run has measured into the file, or only its counts.
pub fn write(path: &Path, data: &Value, only_counts: bool) -> Result<(), String> {
    let before = if path.exists() { read(path)? } else { json!({}) };
    let text = updated(before, data, only_counts);
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// The text of the file with the figures of a run: a line for each, so that a change of one is a change of one line.
pub fn updated(before: Value, data: &Value, only_counts: bool) -> String {
    let mut groups = before.as_object().cloned().unwrap_or_default();
    let wanted = |group: &str| !only_counts || group == COUNT.0;
    for ((group, case, server), (value, band)) in found(data).into_iter().filter(|(key, _)| wanted(&key.0)) {
        let away = (value * band.percent / 100.0).max(band.step);
        let round = |value: f64| (value * 1_000.0).round() / 1_000.0;
        let (least, most) = (round((value - away).max(0.0)), round(value + away));
        let entry = json!({ "wanted": round(value), "least": least, "most": most });
        let empty = || Value::Object(Map::new());
        groups.entry(group).or_insert_with(empty)[&case][&server] = entry;
    }
    let mut lines = format!("{:#}", Value::Object(groups));
    // The innermost objects on one line each.
    for (long, short) in [("{\n        \"", "{ \""), (",\n        \"", ", \""), ("\n      }", " }")] {
        lines = lines.replace(long, short);
    }
    lines + "\n"
}

pub fn read(path: &Path) -> Result<Value, String> {
    let told = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| told(&error))?;
    serde_json::from_str(&text).map_err(|error| told(&error))
}
