//! Bugs that a test can switch on: faults that event loops have had, put back one at a time.
//!
//! A switch is one short line in the loop, `seeded(SeededBug::ShortReadDrains)`. Without the feature `testing` it is
//! the constant `false`, so a plain build has no instruction more. The hunt (`src/event_loop/tests/hunt.rs`) switches
//! each bug on and counts the turns until a test fails; `docs/seeded-bugs.md` has its table.

#[cfg(any(test, feature = "testing"))]
mod table;

#[cfg(any(test, feature = "testing"))]
use std::cell::Cell;

#[cfg(any(test, feature = "testing"))]
use self::table::TABLE;

/// A fault of an event loop that can be switched on, to see that a test finds it.
///
/// ```
/// use tidemill::services::Echo;
/// use tidemill::testing::{Bench, SeededBug};
///
/// let bug = SeededBug::named("FinBeforeQueue").expect("it is in the list");
/// let switched_on = bug.switch_on();
/// let mut bench = Bench::new();
/// bench.serve(Echo::raw());
/// let ann = bench.connect();
/// bench.stop_reading(ann);
/// bench.say(ann, "hello");
/// bench.end(ann);
/// bench.read_again(ann);
/// assert_eq!(bench.heard(ann), "", "the FIN has overtaken the answer");
/// drop(switched_on);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
// `fault` says of each what it does, for programs that list them.
#[allow(missing_docs)]
// Public by `testing` only.
#[cfg_attr(not(any(test, feature = "testing")), allow(unreachable_pub))]
pub enum SeededBug {
    // Readiness
    ShortReadDrains,
    AnyReadDrains,
    BudgetForgetsInput,
    BudgetForgetsOutput,
    BudgetIgnored,
    HoldForgetsReadiness,
    WriteEdgeMissed,
    AnyWriteBlocks,
    EndBeforeData,
    EndSeenOnlyByRead,
    ErrorEventIgnored,
    LastEventDropped,
    InterruptCloses,
    GenerationUnchecked,
    GenerationStands,
    // Callbacks
    ClosedTwice,
    ReadsWhilePaused,
    CallbackUnbounded,
    HiddenInputForgotten,
    ResumeForgetsInput,
    FullNeverDrained,
    ClosedReceiverAwaited,
    // Accept
    AcceptStopsAfterOne,
    AcceptsUnbounded,
    EmfileSpins,
    PausedListenerSleeps,
    FullListenerSpins,
    PairTakesOneSlot,
    // Writing and closing
    FinBeforeQueue,
    EndClosesBothWays,
    BothEndsStayOpen,
    FailedWriteDropsInput,
    SlowReaderKept,
    MemoryUnbounded,
    EvictedAfterAll,
    QueueNotDischarged,
    MessageUnbounded,
    ReapUnbounded,
    // Pipes
    PipePeerClosesAtOnce,
    PipePeerNotResumed,
    PipeEndsWaitForEachOther,
    FinNotRelayed,
    PipedRestKept,
    UnpipeKeepsHold,
    SpliceBehindFin,
    UsedPipeKept,
    // Time
    TimerNotRearmed,
    DeadlineEarly,
    WheelFiresEarly,
    FarDeadlineForgotten,
    DribbleRenewsMessage,
    HoldRenewsMessage,
    ClosingOutlivesLifetime,
    TimersOutliveShutdown,
    // Rates
    RefillForgotten,
    OldRateWaitedFor,
    DiscardSpendsRate,
    // Dials
    WritableMeansConnected,
    LostAttemptsCounted,
    // Framing
    SplitNeedleMissed,
    // TLS
    PlaintextForgotten,
    FilterOutputUnsent,
    CloseNotifyNotSent,
    TruncationUnnoticed,
    EarlyRecordLost,
    HandshakesUnbounded,
    // Other threads
    WakeUpLost,
    PostsForgotten,
    MailboxUnbounded,
}

/// Whether this bug is switched on, in this thread.
#[cfg(any(test, feature = "testing"))]
#[inline]
pub(crate) fn seeded(bug: SeededBug) -> bool {
    SWITCHED_ON.get() == Some(bug)
}

#[cfg(not(any(test, feature = "testing")))]
#[inline(always)]
pub(crate) const fn seeded(_: SeededBug) -> bool {
    false
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static SWITCHED_ON: Cell<Option<SeededBug>> = const { Cell::new(None) };
}

/// Switches a bug off again when it is dropped.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
#[must_use = "the bug is switched off when this is dropped"]
pub struct SwitchedOn(Option<SeededBug>);

#[cfg(any(test, feature = "testing"))]
impl Drop for SwitchedOn {
    fn drop(&mut self) {
        SWITCHED_ON.set(self.0);
    }
}

#[cfg(any(test, feature = "testing"))]
impl SeededBug {
    /// All bugs, in the order of `docs/seeded-bugs.md`.
    pub fn all() -> impl Iterator<Item = SeededBug> {
        TABLE.iter().map(|(bug, ..)| *bug)
    }

    /// The bug whose variant has this name.
    pub fn named(name: &str) -> Option<SeededBug> {
        SeededBug::all().find(|bug| bug.name() == name)
    }

    /// The name of its variant.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// What the loop does wrong while the bug is switched on.
    pub fn fault(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// Where this fault has happened: the project, and the number of its issue where it has a public one.
    pub fn seen_in(self) -> &'static str {
        TABLE[self as usize].2
    }

    /// The bug that is switched on in this thread.
    #[cfg(test)]
    pub(crate) fn current() -> Option<SeededBug> {
        SWITCHED_ON.get()
    }

    /// Switches the bug on, in this thread and in place of any other, until the returned value is dropped.
    pub fn switch_on(self) -> SwitchedOn {
        SwitchedOn(SWITCHED_ON.replace(Some(self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_bug_once_in_the_order_of_the_variants() {
        for (place, bug) in SeededBug::all().enumerate() {
            assert_eq!(bug as usize, place, "{bug:?}");
            assert_eq!(SeededBug::named(&bug.name()), Some(bug));
            assert!(bug.fault().ends_with('.') && !bug.seen_in().is_empty(), "{bug:?}");
        }
        // The last variant; a bug added behind it must be added to the table, and here.
        assert_eq!(SeededBug::all().count(), SeededBug::MailboxUnbounded as usize + 1);
    }

    #[test]
    fn a_bug_is_on_for_a_scope_and_one_at_a_time() {
        let is_on = || (seeded(SeededBug::EmfileSpins), seeded(SeededBug::FinBeforeQueue));
        let first = SeededBug::EmfileSpins.switch_on();
        assert_eq!(is_on(), (true, false));
        let second = SeededBug::FinBeforeQueue.switch_on();
        assert_eq!(is_on(), (false, true));
        drop(second);
        assert_eq!(is_on(), (true, false));
        drop(first);
        assert_eq!(is_on(), (false, false));
    }
}
