//! The result as JSON, and the comparison with an earlier one.

use std::fmt::Write;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::report::{Report, micros};
use super::results::{Kind, Results};

/// The percentiles that have a key of their own. Keys have no dots, so that tools can name them without quotes.
const QUANTILES: &[(&str, f64)] = &[
    ("p1", 0.01),
    ("p10", 0.1),
    ("p25", 0.25),
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99_9", 0.999),
    ("p99_99", 0.9999),
    ("p99_999", 0.99999),
    ("max", 1.0),
];
/// Steps of the list of all percentiles: so many each time the distance to 100 % halves.
const STEPS: u32 = 5;

/// The date and time in UTC.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

impl Report<'_> {
    pub fn json(&self, before: Option<&Before>) -> Value {
        let Report { plan, results, ceiling } = self;
        let errors: Map<String, Value> = Kind::ALL
            .iter()
            .map(|kind| (kind.key().to_string(), json!(results.failures.count(*kind))))
            .collect();
        let texts = results.failures.texts.iter();
        let failures: Vec<Value> = texts
            .map(|(kind, text, times)| json!({ "kind": kind.key(), "text": text, "count": times }))
            .collect();
        let mut all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "date": now(),
            "command": std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>(),
            "server": plan.to.to_string(),
            "shape": plan.shape_name(),
            "connections": plan.connections,
            "connections_at_end": results.connections,
            "source_addresses": plan.sources.as_ref().map(ToString::to_string),
            "message_bytes": plan.size,
            "pipeline": plan.pipeline,
            "target_per_second": plan.rate,
            "requests": plan.requests,
            "warm_up_seconds": plan.warm_up.as_secs_f64(),
            "duration_seconds": plan.duration.map(|duration| duration.as_secs_f64()),
            "seconds": results.span.as_secs_f64(),
            "cut_short": results.cut_short.is_some(),
            "unreachable": results.unreachable,
            "unit": plan.unit(),
            "count": results.messages,
            "per_second": results.per_second(),
            "bytes_sent": results.bytes_out,
            "bytes_received": results.bytes_in,
            "latency_us": latency(results),
            "percentiles_us": percentiles(results),
            "unanswered": results.unanswered,
            "oldest_unanswered_us": results.oldest.as_nanos() as f64 / 1e3,
            "lost_in_flight": results.lost,
            "failed": results.failures.total,
            "errors": errors,
            "failures": failures,
            "series": series(results),
        });
        let own = &results.own;
        all["generator"] = json!({
            "ceiling_per_second": ceiling,
            "is_bottleneck": self.is_bounded(),
            "idle_fraction": own.idle,
            "descheduled_fraction": own.descheduled,
            "longest_pause_us": own.longest_pause.as_nanos() as f64 / 1e3,
        });
        if let Some(before) = before {
            all["compared"] = before.json(self);
        }
        all
    }
}

fn latency(results: &Results) -> Value {
    let value = |nanos: Option<u64>| json!(nanos.map(|nanos| nanos as f64 / 1e3));
    let mut all: Map<String, Value> =
        QUANTILES.iter().map(|(name, q)| (name.to_string(), value(results.quantile(*q)))).collect();
    let samples = results.latency.len();
    let some = samples > 0;
    all.insert("samples".into(), json!(samples));
    all.insert("min".into(), value(some.then(|| results.latency.min())));
    all.insert("mean".into(), json!(some.then(|| results.latency.mean() / 1e3)));
    all.insert("stdev".into(), json!(some.then(|| results.latency.stdev() / 1e3)));
    Value::Object(all)
}

/// `[percentile, microseconds]` pairs, closer together towards 100 %.
fn percentiles(results: &Results) -> Value {
    let pairs = results
        .latency
        .iter_quantiles(STEPS)
        .map(|step| json!([100.0 * step.quantile_iterated_to(), step.value_iterated_to() as f64 / 1e3]));
    Value::Array(pairs.collect())
}

fn series(results: &Results) -> Value {
    let samples = results.series.iter().map(|sample| {
        let us = |nanos: u64| json!((sample.max > 0).then(|| nanos as f64 / 1e3));
        json!({
            "seconds": sample.at.as_secs_f64(),
            "count": sample.count,
            "per_second": sample.count as f64 / sample.span.as_secs_f64(),
            "failed": sample.failures,
            "p50_us": us(sample.p50),
            "p99_us": us(sample.p99),
            "max_us": us(sample.max),
        })
    });
    Value::Array(samples.collect())
}

/// The result of an earlier run.
pub struct Before(Value);

impl Before {
    pub fn read(path: &Path) -> Result<Before, String> {
        let cannot = |why: &dyn std::fmt::Display| format!("cannot compare with {}: {why}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| cannot(&error))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| cannot(&error))?;
        if value["per_second"].is_number() && value["latency_us"].is_object() {
            return Ok(Before(value));
        }
        Err(cannot(&"it is no result of tidemill load --json"))
    }

    /// What is compared: a name, the value before, the value now.
    fn rows(&self, report: &Report<'_>) -> Vec<(&'static str, Option<f64>, Option<f64>)> {
        let now = latency(report.results);
        let mut rows = vec![("per_second", self.0["per_second"].as_f64(), Some(report.results.per_second()))];
        for name in ["mean", "p50", "p90", "p99", "p99_9", "p99_99", "max"] {
            rows.push((name, self.0["latency_us"][name].as_f64(), now[name].as_f64()));
        }
        rows
    }

    /// Settings that differ: then the figures say nothing about the server alone.
    fn differences(&self, report: &Report<'_>) -> Vec<String> {
        let plan = report.plan;
        let now = json!({
            "shape": plan.shape_name(), "connections": plan.connections, "message_bytes": plan.size,
            "pipeline": plan.pipeline, "target_per_second": plan.rate, "server": plan.to.to_string(),
        });
        let settings = now.as_object().into_iter().flatten();
        // A setting that the earlier result does not have cannot be compared.
        let differ =
            settings.filter(|(name, value)| self.0.get(name.as_str()).is_some_and(|before| before != *value));
        differ
            .map(|(name, value)| {
                format!("{} {} then, {value} now", name.replace('_', " "), self.0[name.as_str()])
            })
            .collect()
    }

    fn json(&self, report: &Report<'_>) -> Value {
        let rows = self.rows(report).into_iter().map(|(name, before, now)| {
            let ratio = before.zip(now).filter(|(before, _)| *before > 0.0).map(|(before, now)| now / before);
            (name.to_string(), json!({ "before": before, "now": now, "ratio": ratio }))
        });
        json!({
            "date": self.0["date"],
            "command": self.0["command"],
            "different_settings": self.differences(report),
            "figures": rows.collect::<Map<String, Value>>(),
        })
    }

    pub fn text(&self, report: &Report<'_>) -> String {
        let mut text = String::new();
        let date = self.0["date"].as_str().unwrap_or("an earlier run");
        // Writing to a string does not fail.
        let _ = writeln!(text, "compared with {date}");
        for (name, before, now) in self.rows(report) {
            let show = |value: Option<f64>| match value {
                None => "-".to_string(),
                Some(rate) if name == "per_second" => format!("{rate:.1}/s"),
                Some(latency) => micros((latency * 1e3) as u64),
            };
            let change = before.zip(now).filter(|(before, _)| *before > 0.0);
            let change = change
                .map_or(String::new(), |(before, now)| format!("{:+.1}%", 100.0 * (now / before - 1.0)));
            let name =
                name.replacen('_', if name.starts_with('p') && name != "per_second" { "." } else { " " }, 1);
            let _ = writeln!(text, "  {name:<10}  {:>12}  {:>12}  {change:>9}", show(before), show(now));
        }
        for difference in self.differences(report) {
            let _ = writeln!(text, "NOTE      not the same settings: {difference}");
        }
        text
    }
}
