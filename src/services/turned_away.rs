//! What a proxy's log says of those it does not let in.

use std::fmt;

use crate::guard::{Refusal, Refused};
use crate::timers::TimerId;

/// Who was turned away since the log last said so. A flood of callers must not become a flood of lines.
#[derive(Debug, Default)]
pub(super) struct TurnedAway {
    pub(super) counts: [u64; Refusal::COUNT],
    pub(super) last: Option<Refused>,
    /// When it will say so.
    pub(super) timer: Option<TimerId>,
}

impl fmt::Display for TurnedAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turned away {}:", self.counts.iter().sum::<u64>())?;
        for (word, count) in Refusal::WORDS.iter().zip(self.counts).filter(|(_, count)| *count > 0) {
            write!(f, " {word}={count}")?;
        }
        self.last.as_ref().map_or(Ok(()), |last| write!(f, ", lastly {}", last.peer))
    }
}
