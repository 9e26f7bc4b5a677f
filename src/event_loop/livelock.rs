//! The guard against a loop that turns without sleeping and without progress.
//!
//! Read before: `event_loop/poll.rs`.

use std::mem;

use crate::base::stats::Stats;

/// Stops a livelock: a loop that turns without sleeping and without progress.
///
/// No input is known that causes it. The usual cause in event loops is a socket that is reported as ready and is not.
/// The guard makes such a bug cost one line in the log and 1 ms per turn, in place of a busy core.
#[derive(Default)]
pub(super) struct LivelockGuard {
    progress: u64,
    turns: u32,
    pub(super) throttled: bool,
}

/// Turns without sleep and progress after which the guard acts. Work that is really carried over
/// moves a counter in nearly every turn.
const LIVELOCK_TURNS: u32 = 1_000;

impl LivelockGuard {
    pub(super) fn check(&mut self, zero_wait: bool, stats: &mut Stats) {
        if !zero_wait {
            // No sum of counters reaches `u64::MAX`, so the next turn counts as progress.
            *self = LivelockGuard { progress: u64::MAX, ..LivelockGuard::default() };
            return;
        }
        let progress = stats.bytes_opened()
            + stats.bytes_out
            + stats.accepted
            + stats.dialed
            + stats.refused
            + stats.shed
            + stats.posts
            + stats.pokes
            + stats.closed_total()
            + stats.accept_aborted;
        let stuck = progress == mem::replace(&mut self.progress, progress);
        self.turns = if stuck { self.turns + 1 } else { 0 };
        self.throttled = self.turns >= LIVELOCK_TURNS;
        if self.throttled {
            if self.turns == LIVELOCK_TURNS {
                log::error!(
                    "{LIVELOCK_TURNS} turns without progress and without sleep: sleeping 1 ms per turn"
                );
            }
            self.turns = self.turns.min(LIVELOCK_TURNS + 1);
            stats.livelocks_broken += 1;
        }
    }
}
