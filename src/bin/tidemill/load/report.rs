//! The result as text.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use super::live::columns;
use super::plan::Plan;
use super::results::Results;
use crate::args::values::Shape;

/// The percentiles of the text: its first line of latencies, and the begin of the second. Lines fit 80 columns.
const QUANTILES: [&[(&str, f64)]; 2] =
    [&[("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)], &[("p99.99", 0.9999), ("max", 1.0)]];
/// With less idle time than this share, the generator was the bottleneck.
const SPARE: f64 = 0.1;
/// With more descheduled time than this share, the figures hold the generator's own pauses.
const DESCHEDULED: f64 = 0.05;
/// Rows of the histogram, and the columns of its longest bar.
const ROWS: usize = 10;
const BAR: usize = 40;
/// Columns of a row in front of its bar.
const LABEL: usize = 32;

/// A result, beside the rate that the generator could reach if no server made it wait.
pub struct Report<'a> {
    pub plan: &'a Plan,
    pub results: &'a Results,
    pub ceiling: Option<f64>,
}

/// A latency with three digits and its unit.
pub fn micros(nanos: u64) -> String {
    format!("{:.1?}", Duration::from_nanos(nanos))
}

impl Report<'_> {
    /// Whether the generator and not the server was the bottleneck. A fixed rate that was kept is no such case.
    pub fn is_bounded(&self) -> bool {
        let kept = self.plan.rate.is_some_and(|rate| self.results.per_second() >= 0.98 * rate);
        !kept && self.plan.shape != Shape::Idle && self.results.own.idle < SPARE
    }

    /// Why the run is a failure, if it is one.
    pub fn failure(&self) -> Option<String> {
        let Report { plan, results, .. } = self;
        let failures = &results.failures;
        if results.unreachable {
            return Some(format!("cannot load {}: {}", plan.to, failures.first().unwrap_or_default()));
        }
        if failures.total > 0 {
            let first = failures.first().unwrap_or_default();
            return Some(format!(
                "{} failed ({}), first: {first}",
                count(failures.total, "time"),
                failures.summary()
            ));
        }
        if results.cut_short.is_some() {
            return None; // Ctrl-C may come before anything is measured.
        }
        match plan.shape {
            Shape::Idle if results.connections < plan.connections => {
                Some(format!("only {} of {} connections were established", results.connections, plan.connections))
            }
            Shape::Idle => None,
            Shape::FanOut if results.messages == 0 => Some(
                "no line was delivered to a receiver: the server must pass lines on to all, as tidemill chat does"
                    .to_string(),
            ),
            _ if results.messages == 0 && results.unanswered == 0 => {
                Some("no answer came within the measured span, so nothing was measured: it was too short".to_string())
            }
            _ if results.messages == 0 => {
                Some(format!("no answer: {} waited for one at the end", count(results.unanswered, "message")))
            }
            _ => None,
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_throughput(&mut text).and_then(|()| self.write_latency(&mut text));
        let _ = self.write_errors(&mut text).and_then(|()| self.write_notes(&mut text));
        text
    }

    fn write_throughput(&self, text: &mut String) -> std::fmt::Result {
        let Report { plan, results, ceiling } = self;
        let unit = plan.unit();
        if let Some(ceiling) = ceiling {
            writeln!(text, "ceiling   {ceiling:.0} {unit}/s is what the generator itself could do")?;
        }
        if plan.shape == Shape::Idle {
            writeln!(text, "held      {} of {} connections", results.connections, plan.connections)?;
        } else {
            let own = &results.own;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let rate = results.per_second();
            let (digits, seconds) = (if rate < 10.0 { 2 } else { 0 }, results.span.as_secs_f64());
            writeln!(
                text,
                "rate      {rate:.digits$} {unit}/s over {seconds:.1}s; generator idle {:.0}%, descheduled {:.0}%",
                100.0 * own.idle,
                100.0 * own.descheduled
            )?;
            let (sent, received) = (mib(results.bytes_out), mib(results.bytes_in));
            let per_second = received / seconds.max(f64::MIN_POSITIVE);
            writeln!(
                text,
                "bytes     {sent:.1} MiB sent, {received:.1} MiB received, {per_second:.1} MiB/s received"
            )?;
        }
        if let Some(sources) = &plan.sources {
            writeln!(text, "from      {sources}")?;
        }
        Ok(())
    }

    fn write_latency(&self, text: &mut String) -> std::fmt::Result {
        let Report { plan, results, .. } = self;
        let latency = &results.latency;
        if latency.is_empty() {
            return Ok(());
        }
        let [first, second] = QUANTILES.map(|quantiles| -> String {
            let value = |q| micros(latency.value_at_quantile(q));
            quantiles.iter().map(|(name, q)| format!("  {name} {}", value(*q))).collect()
        });
        let what = if plan.shape == Shape::Idle { "connect " } else { "latency " };
        writeln!(text, "{what}{first}")?;
        let (min, mean) = (micros(latency.min()), micros(latency.mean() as u64));
        writeln!(text, "        {second}  min {min}  mean {mean}")?;
        self.write_histogram(text)
    }

    /// Rows whose bounds grow by the same factor: latencies spread over orders of magnitude.
    fn write_histogram(&self, text: &mut String) -> std::fmt::Result {
        let latency = &self.results.latency;
        let (min, max) = (latency.min().max(1) as f64, latency.max().max(2) as f64);
        let factor = (max / min).powf(1.0 / ROWS as f64);
        if factor < 1.01 {
            return Ok(()); // All of them are equal.
        }
        let mut low = 0_u64;
        let mut rows = Vec::new();
        for row in 1..=ROWS {
            let high = if row == ROWS { latency.max() } else { (min * factor.powi(row as i32)) as u64 };
            let count = if high > low { latency.count_between(low, high) } else { 0 };
            rows.push((high, count));
            // The histogram's buckets are wider than a nanosecond: the next row begins with the next bucket.
            low = latency.highest_equivalent(high) + 1;
        }
        let room = if std::io::stdout().is_terminal() { columns().saturating_sub(LABEL + 1) } else { BAR };
        let longest = room.min(BAR) as f64;
        let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
        for (high, count) in rows {
            let bar = "█".repeat((count as f64 / most as f64 * longest).round() as usize);
            let line = format!("        ≤ {:>8}  {count:>10}  {bar}", micros(high));
            writeln!(text, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn write_errors(&self, text: &mut String) -> std::fmt::Result {
        let results = self.results;
        if results.unanswered > 0 {
            writeln!(
                text,
                "unanswered {} at the end, the oldest for {:.1?}; in the percentiles by age",
                results.unanswered, results.oldest
            )?;
        }
        if results.failures.total == 0 {
            return writeln!(text, "errors    none");
        }
        let Results { failures, lost, .. } = results;
        writeln!(text, "errors    {}: {}", failures.total, failures.summary())?;
        for (_, what, times) in &failures.texts {
            writeln!(text, "          {times} × {what}")?;
        }
        if *lost > 0 {
            let messages = count(*lost, "message");
            writeln!(text, "lost      {messages} in flight when connections failed; in the percentiles")?;
        }
        Ok(())
    }

    fn write_notes(&self, text: &mut String) -> std::fmt::Result {
        let Report { plan, results, .. } = self;
        if let Some(signal) = results.cut_short {
            let asked = plan.duration.map_or(String::new(), |duration| format!(" of {duration:?}"));
            let name = if signal == signal_hook::consts::SIGINT { "Ctrl-C" } else { "SIGTERM" };
            writeln!(text, "CUT SHORT by {name} after {:.1?}{asked}", results.span)?;
        }
        if self.is_bounded() {
            writeln!(text, "NOTE      the generator was always busy: this is its limit, not the server's")?;
        }
        if results.own.descheduled > DESCHEDULED {
            writeln!(
                text,
                "NOTE      the generator had no processor for {:.0}% of the time, once for {:.1?}",
                100.0 * results.own.descheduled,
                results.own.longest_pause
            )?;
        }
        Ok(())
    }
}

/// `1 message`, `2 messages`.
fn count(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
