//! The results of measurements.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::bands::Band;
use crate::case::Kind;

/// The rate per second and the processor time per item in nanoseconds, of one round.
pub type Round = (f64, f64);
/// The results by server and round.
pub type Rounds = BTreeMap<Kind, Vec<Round>>;

/// Of an odd number the middle one, of an even number the upper one of the two in the middle. There must be one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.into_iter().collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// To four places: enough for every table, and a file that is read and written again does not change.
pub fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// A figure that is not a rate: memory, calls. tidemill comes first.
#[derive(Debug)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    /// How far tidemill's value may be from that of an earlier run; none: it is a time, or depends on other load.
    pub band: Option<Band>,
    pub values: Vec<(String, f64)>,
}

impl Figure {
    pub fn table(&self) -> String {
        let mut text = format!("\n{}, {}\n", self.name, self.unit);
        for (server, value, ratio) in lines(&self.values) {
            let _ = writeln!(text, "  {server:<32}{value:>12}   {ratio}");
        }
        text
    }
}

/// For each server its name, its value, and the ratio of the first value, tidemill's, to it.
pub fn lines(values: &[(String, f64)]) -> Vec<(&str, String, String)> {
    let own = values.first().map_or(0.0, |(_, value)| *value);
    let lines = values.iter().enumerate().map(|(place, (server, value))| {
        let ratio = if place > 0 && *value > 0.0 { format!("{:.2}", own / value) } else { String::new() };
        let digits = if *value < 100.0 { 2 } else { 0 };
        (server.as_str(), format!("{value:.digits$}"), ratio)
    });
    lines.collect()
}
