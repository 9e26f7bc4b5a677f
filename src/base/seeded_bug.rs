//! Bugs that a test can switch on: faults that event loops have had, put back one at a time.
//!
//! A switch is one short line in the loop, `seeded(SeededBug::ShortReadDrains)`. Without the feature `testing` it is
//! the constant `false`, so a plain build has no instruction more. The hunt (`src/event_loop/tests/hunt.rs`) switches
//! each bug on and counts the turns until a test fails; `docs/seeded-bugs.md` has its table.

#[cfg(any(test, feature = "testing"))]
use std::cell::Cell;

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
pub enum SeededBug {
    // Readiness
    ShortReadDrains,
    AnyReadDrains,
    BudgetForgetsInput,
    WriteEdgeMissed,
    EndSeenOnlyByRead,
    GenerationUnchecked,
    ResumeForgetsInput,
    // Accept
    AcceptStopsAfterOne,
    EmfileSpins,
    // Writing and closing
    FinBeforeQueue,
    PipePeerClosesAtOnce,
    // Time
    TimerNotRearmed,
    // Other threads
    WakeUpLost,
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

    /// Switches the bug on, in this thread and in place of any other, until the returned value is dropped.
    pub fn switch_on(self) -> SwitchedOn {
        SwitchedOn(SWITCHED_ON.replace(Some(self)))
    }
}

/// In the order of the variants: what goes wrong, and where it happened.
#[cfg(any(test, feature = "testing"))]
const TABLE: &[(SeededBug, &str, &str)] = &[
    (
        SeededBug::ShortReadDrains,
        "A short read clears readiness although the peer's end was announced: the end is never read.",
        "dotnet/runtime #38747, tokio #5866, haproxy #169",
    ),
    (
        SeededBug::AnyReadDrains,
        "Every read clears readiness, also one that filled its buffer: what is left waits for the next arrival.",
        "mio #45; the documentation of mio under \"Draining readiness\"",
    ),
    (
        SeededBug::BudgetForgetsInput,
        "A connection whose read budget is used up is not put back into the ready list.",
        "vibe-d/eventcore #20",
    ),
    (
        SeededBug::WriteEdgeMissed,
        "The event that tells of room in the send buffer does not schedule the queue.",
        "sozu: \"Edge-triggered epoll TLS flush safety\" in its changelog",
    ),
    (
        SeededBug::EndSeenOnlyByRead,
        "The announcement of an end is not passed on, so a paused service never learns that its peer has left.",
        "tidemill 0.1",
    ),
    (
        SeededBug::GenerationUnchecked,
        "Ids are compared by slot only: a late event or an old id reaches the next connection in the slot.",
        "mio #172 and #219, nginx (`instance` bit), RUSTSEC-2024-0019",
    ),
    (
        SeededBug::ResumeForgetsInput,
        "A resumed connection waits for the next arrival although it has input that was not taken.",
        "curl #17596, mongoose #47",
    ),
    (
        SeededBug::AcceptStopsAfterOne,
        "One accept clears the readiness of the listener: the rest of the backlog waits for the next peer.",
        "vibe-d/eventcore #20",
    ),
    (
        SeededBug::EmfileSpins,
        "Without a descriptor left, accept is tried again at once: the loop spins.",
        "bun #32705, libmill #182, warp #928, ranch #36",
    ),
    (
        SeededBug::FinBeforeQueue,
        "The FIN is sent while bytes are queued, and the queue is dropped.",
        "haproxy #2505",
    ),
    (
        SeededBug::PipePeerClosesAtOnce,
        "When one end of a pipe closes, the other is closed without its queue being written.",
        "haproxy #2505",
    ),
    (
        SeededBug::TimerNotRearmed,
        "A deadline that fired early is not armed again for the rest: the connection never times out.",
        "theine-go #64",
    ),
    (
        SeededBug::WakeUpLost,
        "The loop clears its wake-up flag after it has taken the posts: one that comes in between is not noticed.",
        "the comment at `Mailbox::take`: the order of its two steps",
    ),
];

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
        assert_eq!(SeededBug::all().count(), SeededBug::WakeUpLost as usize + 1);
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
