//! What was measured, and how it is told.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::plan::Plan;
use crate::args::values::Shape;

/// What was measured in the span that counts.
pub struct Results {
    /// From sending a message (or from when it was to be sent) to the last byte of its answer, in nanoseconds.
    pub latency: Histogram<u64>,
    pub messages: u64,
    pub bytes: u64,
    pub span: Duration,
    /// Connections that ended before their time, and answers that were wrong: the first few, in words.
    pub failures: Vec<String>,
    pub failed: u64,
    /// Connections at the end of the measurement.
    pub connections: usize,
    /// The share of the time in which this program had nothing to do.
    pub idle: f64,
}

const FAILURES_TOLD: usize = 5;

/// From an hour downward; beyond it a message counts as having taken an hour.
const LONGEST: u64 = 3_600_000_000_000;

impl Results {
    pub fn new() -> Results {
        let latency = Histogram::new_with_bounds(1_000, LONGEST, 3).expect("bounds in their order");
        Results {
            latency,
            messages: 0,
            bytes: 0,
            span: Duration::ZERO,
            failures: Vec::new(),
            failed: 0,
            connections: 0,
            idle: 0.0,
        }
    }

    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
        self.latency.saturating_record(nanos);
    }

    pub fn fail(&mut self, why: String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_TOLD {
            self.failures.push(why);
        }
    }

    pub fn per_second(&self) -> f64 {
        self.messages as f64 / self.span.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.latency.value_at_quantile(quantile))
    }
}

/// The percentiles that are told.
const QUANTILES: &[(&str, f64)] =
    &[("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// With less to spare than this, the generator is what was measured.
const SPARE: f64 = 0.1;

/// A result beside the ceiling: what this program could reach if no server ever made it wait.
pub struct Report<'a> {
    pub plan: &'a Plan,
    pub results: &'a Results,
    pub ceiling: Option<f64>,
}

impl Report<'_> {
    /// Whether this program, and not the server, has set the result. A fixed rate that was kept is no such case.
    pub fn is_bounded(&self) -> bool {
        let kept = self.plan.rate.is_some_and(|rate| self.results.per_second() >= 0.98 * f64::from(rate));
        !kept && self.plan.shape != Shape::Idle && self.results.idle < SPARE
    }

    fn unit(&self) -> &'static str {
        match self.plan.shape {
            Shape::Echo => "messages",
            Shape::Churn | Shape::Idle => "connections",
            Shape::FanOut => "deliveries",
        }
    }

    pub fn text(&self) -> String {
        let Report { plan, results, ceiling } = self;
        let mut text = String::new();
        let unit = self.unit();
        // Writing to a string does not fail.
        if let Some(ceiling) = ceiling {
            let _ = writeln!(text, "ceiling   {ceiling:.0} {unit}/s is what the generator itself could do");
        }
        if plan.shape == Shape::Idle {
            let _ = writeln!(text, "held      {} of {} connections", results.connections, plan.connections);
        } else {
            let mib =
                results.bytes as f64 / f64::from(1 << 20) / results.span.as_secs_f64().max(f64::MIN_POSITIVE);
            let (rate, spare) = (results.per_second(), 100.0 * results.idle);
            let _ = writeln!(
                text,
                "rate      {rate:.0} {unit}/s, {mib:.1} MiB/s each way; generator idle {spare:.0}%"
            );
        }
        if !results.latency.is_empty() {
            let all: Vec<String> =
                QUANTILES.iter().map(|(name, q)| format!("{name} {:.1?}", results.quantile(*q))).collect();
            let what = if plan.shape == Shape::Idle { "connect " } else { "latency " };
            let _ = writeln!(text, "{what}  {}", all.join("  "));
        }
        if self.is_bounded() {
            let _ = writeln!(
                text,
                "NOTE      the generator was busy all the time: this is its own limit, not the server's"
            );
        }
        if results.failed > 0 {
            let _ = writeln!(text, "FAILED    {} times: {}", results.failed, results.failures.join("; "));
        }
        text
    }

    pub fn json(&self) -> Value {
        let Report { plan, results, ceiling } = self;
        let micros = |span: Duration| span.as_nanos() as f64 / 1e3;
        let latency: serde_json::Map<String, Value> = QUANTILES
            .iter()
            .map(|(name, q)| (name.to_string(), json!(micros(results.quantile(*q)))))
            .collect();
        json!({
            "to": plan.to.to_string(),
            "shape": format!("{:?}", plan.shape).to_lowercase(),
            "connections": plan.connections,
            "connections_at_the_end": results.connections,
            "size": plan.size,
            "pipeline": plan.pipeline,
            "rate_asked": plan.rate,
            "seconds": results.span.as_secs_f64(),
            "unit": self.unit(),
            "count": results.messages,
            "per_second": results.per_second(),
            "bytes_each_way": results.bytes,
            "latency_us": latency,
            "ceiling_per_second": ceiling,
            "bounded_by_the_generator": self.is_bounded(),
            "generator_idle": results.idle,
            "failed": results.failed,
            "failures": results.failures,
        })
    }
}
