//! The live view: one line on stderr while a run goes on, in a terminal of any width.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plan::Plan;
use super::report::micros;
use super::results::Results;
use crate::args::values::Shape;

/// Time between two updates: fast enough to look live, and below a thousandth of the generator's time.
const EVERY: Duration = Duration::from_millis(250);
/// The width that is assumed where the terminal does not say it.
const COLUMNS: usize = 80;
/// The bar takes what the figures leave, at least and at most this much.
const BAR_MIN: usize = 10;
const BAR_MAX: usize = 60;

pub struct LiveView {
    bar: ProgressBar,
    next: Cell<Option<Instant>>,
    doing: &'static str,
}

impl LiveView {
    /// On stderr, if that is a terminal. `doing` is one word for the run.
    pub fn new(doing: &'static str) -> LiveView {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        LiveView { bar: bar.with_style(style), next: Cell::new(None), doing }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        !self.bar.is_hidden() && self.next.get().is_none_or(|next| now >= next)
    }

    pub fn connecting(&self, up: usize, all: usize) {
        let now = Instant::now();
        if self.is_due(now) {
            self.next.set(Some(now + EVERY));
            self.bar.set_message(fit(&format!("{}: connecting {up} of {all}", self.doing), columns()));
            self.bar.tick();
        }
    }

    pub fn show(&self, plan: &Plan, results: &Results, now: Instant, from: Instant) {
        self.next.set(Some(now + EVERY));
        let elapsed = now.saturating_duration_since(from);
        let line = line(self.doing, plan, results, elapsed, from > now, columns());
        self.bar.set_message(line);
        self.bar.tick();
    }

    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The width of a terminal.
pub fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}

/// Cuts a text to less than the width, so that the cursor does not wrap.
fn fit(text: &str, columns: usize) -> String {
    text.chars().take(columns.saturating_sub(1)).collect()
}

/// The figures, the most important first, as many as fit; a bar in the room that is left.
fn line(
    doing: &str,
    plan: &Plan,
    results: &Results,
    elapsed: Duration,
    warming: bool,
    columns: usize,
) -> String {
    let (done, left) = match (plan.duration, plan.requests) {
        (Some(duration), _) => {
            let left = duration.saturating_sub(elapsed).as_secs_f64();
            (elapsed.as_secs_f64() / duration.as_secs_f64(), format!("{left:.0}s left"))
        }
        (None, Some(requests)) => {
            let done = results.messages as f64 / requests as f64;
            let answered = results.messages;
            (done, format!("{answered} of {requests}"))
        }
        (None, None) => (0.0, String::new()),
    };
    let left = if warming { "warm-up".to_string() } else { left };
    let (count, failures, span) = results.recent(Duration::from_secs(1)).unwrap_or((0, 0, 1.0));
    let mut figures = vec![left];
    if plan.shape != Shape::Idle {
        figures.push(format!("{:.0}/s", count as f64 / span));
    }
    let quantile =
        |name: &str, quantile| results.quantile(quantile).map(|nanos| format!("{name} {}", micros(nanos)));
    let errors = match failures {
        0 => format!("{} errors", results.failures.total),
        recent => format!("{} errors (+{recent})", results.failures.total),
    };
    // In a narrow terminal, failures matter more than a percentile.
    let (p99, failed) = (quantile("p99", 0.99), results.failures.total > 0);
    match (p99, failed) {
        (Some(p99), false) => figures.extend([p99, errors]),
        (p99, _) => figures.extend(std::iter::once(errors).chain(p99)),
    }
    figures.extend(quantile("p50", 0.5));
    figures.extend(quantile("max", 1.0));
    figures.extend(quantile("p99.9", 0.999));
    figures.push(format!("{:.1} MiB in", results.bytes_in as f64 / f64::from(1 << 20)));
    compose(doing, &figures, done, columns)
}

fn compose(doing: &str, figures: &[String], done: f64, columns: usize) -> String {
    let room = columns.saturating_sub(1);
    let mut text = doing.to_string();
    for figure in figures.iter().filter(|figure| !figure.is_empty()) {
        let longer = format!("{text}  {figure}");
        if longer.chars().count() > room {
            break;
        }
        text = longer;
    }
    let bar = room.saturating_sub(text.chars().count() + 4).min(BAR_MAX);
    if bar >= BAR_MIN {
        let full = (done.clamp(0.0, 1.0) * bar as f64).round() as usize;
        text = text.replacen(doing, &format!("{doing}  [{}{}]", "=".repeat(full), " ".repeat(bar - full)), 1);
    }
    fit(&text, columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits_any_width_and_keeps_the_most_important_figures() {
        let figures: Vec<String> =
            ["12s left", "123456/s", "p99 120µs", "0 errors", "p50 45µs", "max 1.2ms", "12.0 MiB in"]
                .map(String::from)
                .into();
        for columns in 1..250 {
            let line = compose("load", &figures, 0.5, columns);
            assert!(line.chars().count() < columns.max(2), "{columns}: {line}");
        }
        let narrow = compose("load", &figures, 0.5, 40);
        assert_eq!(narrow, "load  12s left  123456/s  p99 120µs");
        let usual = compose("load", &figures, 0.5, 80);
        assert!(usual.contains("0 errors") && usual.contains("p50 45µs") && !usual.contains('['), "{usual}");
        let wide = compose("load", &figures, 0.5, 200);
        assert!(wide.starts_with("load  [====") && wide.ends_with("12.0 MiB in"), "{wide}");
    }
}
