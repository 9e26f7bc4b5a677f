//! The scenarios that come with the crate.

use super::Scenario;

/// A scenario with a name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NamedScenario {
    /// The name, for a command or a link.
    pub name: &'static str,
    /// The text, which [`Scenario`] reads.
    pub text: &'static str,
}

impl NamedScenario {
    /// The scenario, read from its text.
    ///
    /// ```
    /// use tidemill::testing::SCENARIOS;
    ///
    /// let echo = SCENARIOS[0].scenario();
    /// assert_eq!((SCENARIOS[0].name, echo.title()), ("echo", "One message, there and back"));
    /// ```
    pub fn scenario(&self) -> Scenario {
        self.text.parse().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

macro_rules! scenarios {
    ($($name:literal)*) => {
        &[$(NamedScenario { name: $name, text: include_str!(concat!("scenarios/", $name, ".txt")) }),*]
    };
}

/// The scenarios of the crate, the simplest first. Their texts are in `src/testing/scenarios`.
pub const SCENARIOS: &[NamedScenario] = scenarios![
    "echo"
    "pieces"
    "half-close"
    "missed-edge"
    "slow-reader"
    "flood"
    "full-table"
    "descriptors"
    "stale-event"
    "idle"
    "timers"
    "lingering"
    "happy-eyeballs"
    "pipe"
    "starttls"
    "worker"
    "last-bytes"
    "cut-upstream"
    "chat"
    "faults"
    "reset"
    "reset-while-paused"
    "lost-attempts"
    "write-budget"
    "crowd"
    "burst"
    "paused-by-another"
    "closed-twice"
    "slow-receiver"
    "overflow"
    "reserved-slot"
    "last-words"
    "queue-limit"
    "memory"
    "long-message"
    "split-delimiter"
    "piped"
    "spliced"
    "used-pipe"
    "program-timers"
    "message-under-rate"
    "lifetime"
    "shutdown"
    "rate"
    "group-rate"
    "filtered"
    "early-handshake"
    "handshakes"
    "posts"
];
