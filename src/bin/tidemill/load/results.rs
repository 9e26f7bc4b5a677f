//! What was measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tidemill::{Attempt, CloseReason, ClosedInfo};

/// The histogram's upper bound: an hour. Longer latencies are recorded as an hour.
const LONGEST: u64 = 3_600_000_000_000;
/// Different texts of failures that are kept; further ones are counted by kind only.
const TEXTS_MAX: usize = 20;

/// How many messages may still be sent (`--requests`); none: no limit.
pub struct Budget(pub Option<u64>);

impl Budget {
    /// Takes one message from it; returns whether there was one.
    pub fn take(&mut self) -> bool {
        match &mut self.0 {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    pub fn is_used_up(&self) -> bool {
        self.0 == Some(0)
    }
}

/// The span whose messages are counted.
#[derive(Clone, Copy, Default)]
pub struct Window {
    pub from: Option<Instant>,
    /// The end has come: nothing more is sent, and no failure counts.
    pub over: bool,
}

impl Window {
    /// Whether the latency of a message that was scheduled at this time is recorded.
    pub fn counts(&self, scheduled: Instant) -> bool {
        self.from.is_some_and(|from| scheduled >= from)
    }

    /// Whether what happens at this time belongs to the throughput.
    pub fn is_open(&self, now: Instant) -> bool {
        !self.over && self.counts(now)
    }
}

/// Kinds of failures, in the order of the report.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Refused,
    Reset,
    TimedOut,
    Closed,
    WrongAnswer,
    NoLocalPort,
    Unreachable,
    Tls,
    Other,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Refused,
        Kind::Reset,
        Kind::TimedOut,
        Kind::Closed,
        Kind::WrongAnswer,
        Kind::NoLocalPort,
        Kind::Unreachable,
        Kind::Tls,
        Kind::Other,
    ];

    /// The name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Kind::Refused => "refused",
            Kind::Reset => "reset",
            Kind::TimedOut => "timed_out",
            Kind::Closed => "closed",
            Kind::WrongAnswer => "wrong_answer",
            Kind::NoLocalPort => "no_local_port",
            Kind::Unreachable => "unreachable",
            Kind::Tls => "tls",
            Kind::Other => "other",
        }
    }

    pub fn words(self) -> String {
        self.key().replace('_', " ")
    }

    /// The kind and the text of a connection's end that was not asked for.
    pub fn of(gone: &ClosedInfo) -> (Kind, String) {
        let (why, text) = (gone.reason, gone.error_text());
        let attempt =
            gone.dial_error.as_ref().and_then(|error| error.attempts().last().map(|(_, what)| *what));
        let kind = match (why, attempt) {
            (CloseReason::Unreachable(_), Some(Attempt::Failed(error))) => {
                of_errno(std::io::Error::from(error).kind())
            }
            (CloseReason::Unreachable(error), _) => of_errno(std::io::Error::from(error).kind()),
            (CloseReason::ConnectTimeout | CloseReason::HandshakeTimeout, _) => Kind::TimedOut,
            (CloseReason::Reset, _) => Kind::Reset,
            (CloseReason::Finished | CloseReason::HalfClosed, _) => Kind::Closed,
            (CloseReason::Unresolved, _) => Kind::Unreachable,
            (CloseReason::Handshake | CloseReason::Tls | CloseReason::Truncated, _) => Kind::Tls,
            _ => Kind::Other,
        };
        let text = match kind {
            Kind::NoLocalPort => {
                "no local port is left: spread the connections over more addresses with --source-ports"
                    .to_string()
            }
            Kind::Closed => "closed by the server".to_string(),
            _ => text.unwrap_or_else(|| why.to_string()),
        };
        (kind, text)
    }
}

fn of_errno(kind: std::io::ErrorKind) -> Kind {
    use std::io::ErrorKind::{
        AddrInUse, AddrNotAvailable, ConnectionRefused, ConnectionReset, NotFound, TimedOut,
    };
    match kind {
        ConnectionRefused | NotFound => Kind::Refused,
        ConnectionReset => Kind::Reset,
        TimedOut => Kind::TimedOut,
        AddrNotAvailable | AddrInUse => Kind::NoLocalPort,
        _ => Kind::Unreachable,
    }
}

/// Failures, equal ones counted together.
#[derive(Default)]
pub struct Failures {
    pub total: u64,
    by_kind: BTreeMap<Kind, u64>,
    /// In the order of their first appearance.
    pub texts: Vec<(Kind, String, u64)>,
}

impl Failures {
    pub fn add(&mut self, kind: Kind, text: String) {
        self.total += 1;
        *self.by_kind.entry(kind).or_default() += 1;
        match self.texts.iter().position(|(_, known, _)| *known == text) {
            Some(at) => self.texts[at].2 += 1,
            None if self.texts.len() < TEXTS_MAX => self.texts.push((kind, text, 1)),
            None => {}
        }
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.by_kind.get(&kind).copied().unwrap_or(0)
    }

    /// The first one, in words.
    pub fn first(&self) -> Option<String> {
        self.texts.first().map(|(_, text, _)| text.clone())
    }

    /// `refused 12, reset 3`.
    pub fn summary(&self) -> String {
        let kinds: Vec<String> =
            self.by_kind.iter().map(|(kind, count)| format!("{} {count}", kind.words())).collect();
        kinds.join(", ")
    }
}

/// One interval of the time series.
pub struct Sample {
    /// Its end, from the begin of the measured span.
    pub at: Duration,
    pub span: Duration,
    pub count: u64,
    pub failures: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// The state of the generator itself, as shares of the time.
#[derive(Clone, Copy, Default)]
pub struct OwnLoad {
    pub idle: f64,
    /// The thread was runnable and had no processor.
    pub descheduled: f64,
    /// The longest time between two looks at the sockets while nothing was to be done.
    pub longest_pause: Duration,
}

pub struct Results {
    /// Nanoseconds from sending a message (or from its scheduled time) to the last byte of its answer.
    pub latency: Histogram<u64>,
    /// The same of the current interval.
    interval: Histogram<u64>,
    pub series: Vec<Sample>,
    last_sample: Option<(Instant, u64, u64)>,
    /// Answers within the measured span.
    pub messages: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Messages that were due and had no answer at the end.
    pub unanswered: u64,
    pub oldest: Duration,
    /// Messages in flight on connections that failed.
    pub lost: u64,
    pub failures: Failures,
    pub span: Duration,
    /// Connections at the end of the measurement.
    pub connections: usize,
    pub own: OwnLoad,
    /// The signal that ended the run early.
    pub cut_short: Option<i32>,
    /// No connection was ever established.
    pub unreachable: bool,
}

impl Results {
    pub fn new() -> Results {
        let histogram = || Histogram::new_with_bounds(1_000, LONGEST, 3).expect("the bounds are in order");
        Results {
            latency: histogram(),
            interval: histogram(),
            series: Vec::new(),
            last_sample: None,
            messages: 0,
            bytes_in: 0,
            bytes_out: 0,
            unanswered: 0,
            oldest: Duration::ZERO,
            lost: 0,
            failures: Failures::default(),
            span: Duration::ZERO,
            connections: 0,
            own: OwnLoad::default(),
            cut_short: None,
            unreachable: false,
        }
    }

    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST);
        self.latency.saturating_record(nanos);
        self.interval.saturating_record(nanos);
    }

    /// A message whose connection failed: its latency is the time until that was known.
    pub fn lose(&mut self, age: Duration, counts: bool) {
        self.lost += 1;
        if counts {
            self.record(age);
        }
    }

    /// `count` messages without an answer at the end. They are recorded with their age, whenever they were scheduled.
    pub fn leave_unanswered(&mut self, age: Duration, count: u64) {
        self.unanswered += count;
        self.oldest = self.oldest.max(age);
        self.record(age);
    }

    pub fn per_second(&self) -> f64 {
        self.messages as f64 / self.span.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// In nanoseconds; None without a sample.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(quantile))
    }

    /// Answers, failures and seconds of the latest intervals, together at least this long if there are so many.
    pub fn recent(&self, least: Duration) -> Option<(u64, u64, f64)> {
        let (mut count, mut failures, mut span) = (0, 0, Duration::ZERO);
        for sample in self.series.iter().rev() {
            (count, failures, span) = (count + sample.count, failures + sample.failures, span + sample.span);
            if span >= least {
                break;
            }
        }
        (!span.is_zero()).then_some((count, failures, span.as_secs_f64()))
    }

    /// Ends an interval of the time series.
    pub fn sample(&mut self, from: Instant, now: Instant) {
        let (since, count, failures) = self.last_sample.unwrap_or((from, 0, 0));
        if now <= since {
            return;
        }
        // The histogram cannot tell 0 from a value below its least one.
        let some = !self.interval.is_empty();
        let value = |quantile| if some { self.interval.value_at_quantile(quantile) } else { 0 };
        self.series.push(Sample {
            at: now - from,
            span: now - since,
            count: self.messages - count,
            failures: self.failures.total.saturating_sub(failures),
            p50: value(0.5),
            p99: value(0.99),
            max: value(1.0),
        });
        self.last_sample = Some((now, self.messages, self.failures.total));
        self.interval.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_failures_are_kept_once_and_all_are_counted() {
        let mut failures = Failures::default();
        for n in 0..100 {
            failures.add(Kind::Reset, "reset by the peer".into());
            failures.add(Kind::WrongAnswer, format!("answer {n}"));
        }
        assert_eq!(
            (failures.total, failures.count(Kind::Reset), failures.count(Kind::WrongAnswer)),
            (200, 100, 100)
        );
        assert_eq!(failures.texts[0], (Kind::Reset, "reset by the peer".into(), 100));
        assert_eq!(failures.texts.len(), TEXTS_MAX);
        assert_eq!(failures.summary(), "reset 100, wrong answer 100");
    }

    #[test]
    fn an_interval_without_answers_is_part_of_the_series() {
        let (mut results, from) = (Results::new(), Instant::now());
        results.record(Duration::from_millis(2));
        results.messages = 1;
        results.sample(from, from + Duration::from_secs(1));
        results.sample(from, from + Duration::from_secs(2));
        let counts: Vec<(u64, u64)> =
            results.series.iter().map(|sample| (sample.count, sample.max / 1_000_000)).collect();
        assert_eq!(counts, [(1, 2), (0, 0)]);
    }
}
