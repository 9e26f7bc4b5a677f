//! A rate limit for log lines of one kind.

use std::fmt;

use log::Level;

use crate::base::tick::Tick;

/// Allows one log line of a kind per second at its usual level. Further lines have level debug, and are counted.
///
/// ```text
///     events  ││││││││││││││││││││││││││ │ │
///     lines   │              │             │        the second says "and 12 more", the third "and 14 more"
///             └──── 1 s ─────┘
/// ```
///
/// Without it, peers could fill the disk, and slow the loop down because a log is often written with blocking calls:
/// 2,000 connections in a tenth of a second were 340 KB of log. The number of omitted lines is in the next line,
/// however late that comes; [`Stats`](crate::Stats) counts every event at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogLimit {
    /// The first tick at which the next line may be written.
    next: Tick,
    left_out: u64,
}

/// One second, in ticks.
const INTERVAL: u64 = 100;

impl LogLimit {
    /// The level for a line whose usual level is `usual`, and the text to end it with.
    pub(crate) fn level(&mut self, usual: Level, now: Tick) -> (Level, LeftOut) {
        if now < self.next {
            self.left_out += 1;
            return (Level::Debug, LeftOut(0));
        }
        self.next = Tick(now.0 + INTERVAL);
        (usual, LeftOut(std::mem::take(&mut self.left_out)))
    }
}

/// The end of a log line: how many lines like it were omitted before.
#[derive(Debug)]
pub(crate) struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " (and {n} more like it)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_a_second_and_every_line_left_out_is_counted() {
        let mut limit = LogLimit::default();
        let lines: Vec<String> = (0..1_000)
            .map(|n| limit.level(Level::Info, Tick(n / 4)))
            .filter(|&(level, _)| level == Level::Info)
            .map(|(_, left_out)| format!("closed{left_out}"))
            .collect();
        assert_eq!(lines, ["closed", "closed (and 399 more like it)", "closed (and 399 more like it)"]);
    }

    #[test]
    fn events_a_second_apart_are_all_in_the_log() {
        let mut limit = LogLimit::default();
        let levels = (0..10).map(|n| limit.level(Level::Warn, Tick(n * INTERVAL)));
        assert!(levels.into_iter().all(|(level, left_out)| level == Level::Warn && left_out.0 == 0));
    }
}
