//! Phases 1 and 2: sleep, then turn events into flags.

use std::io;
use std::mem;
use std::time::Duration;

use super::EventLoop;
use crate::base::id::TokenKind;
use crate::base::tick::Tick;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::sys::{Ready, System};

impl<S: System> EventLoop<S> {
    /// Phase 1. How long it sleeps is a list of rules:
    ///
    /// - not at all while work is carried over, because no event will announce it;
    /// - else until the nearest deadline (of the wheel, of a timer, of a handshake, of a listener that waits for
    ///   descriptors, of the shutdown), if there is one;
    /// - and never longer than the caller said;
    /// - except that a loop which has chosen not to sleep a thousand times, and got nothing done, sleeps a millisecond.
    ///
    /// Before it sleeps it may look for events for a moment, if [`Limits::busy_poll`](crate::Limits::busy_poll) says
    /// so: see [`BusyPoll`].
    ///
    /// Deadlines are measured from this turn's clock, so one that passed during a long turn is found by the next.
    pub(super) fn poll(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let until = self.next_deadline();
        // Work carried over and a deadline that is not handled when it passes look alike from here, and both would
        // burn the processor for ever.
        let zero_wait = until.is_some_and(|until| until <= self.table.cx.elapsed);
        self.livelock.check(zero_wait, &mut self.table.cx.stats);
        let (wait, until) = match zero_wait {
            true if self.livelock.throttled => (Some(Duration::from_millis(1)), None),
            true => (Some(Duration::ZERO), None),
            false => (wait, until),
        };
        self.events.clear();
        let before = self.table.cx.elapsed;
        if wait != Some(Duration::ZERO) {
            self.busy_poll(wait, until)?;
        }
        if self.events.is_empty() {
            self.system.poll(&mut self.events, wait, until)?;
        }
        self.read_clock();
        if !self.events.is_empty() {
            self.busy_poll.record_wakeup(self.table.cx.elapsed - before);
        }
        Ok(())
    }

    /// Looks for events without sleeping, for as long as it lately would have paid, and not beyond a deadline.
    fn busy_poll(&mut self, wait: Option<Duration>, until: Option<Duration>) -> io::Result<()> {
        let Some(window) = self.busy_poll.window() else { return Ok(()) };
        let end = self.system.now() + wait.map_or(window, |wait| wait.min(window));
        let end = until.map_or(end, |until| until.min(end));
        while self.events.is_empty() && self.system.now() < end {
            self.system.poll(&mut self.events, Some(Duration::ZERO), None)?;
        }
        Ok(())
    }

    /// Once in each turn; and between turns, when something is asked from outside: a span that begins then must not
    /// begin at the time of a turn long past.
    pub(crate) fn read_clock(&mut self) {
        let now = self.system.now();
        // A clock that went back would fire nothing twice, but it would break the promise of never.
        self.table.cx.now = self.table.cx.now.max(Tick::at(now));
        self.table.cx.elapsed = now;
    }

    /// Phase 2. Events become flags; whoever can do something with them is put in line. No user code runs, so
    /// nothing an event is about can have ended since the kernel reported it; what ended before has another generation.
    pub(super) fn dispatch(&mut self) {
        self.carried_over = self.table.cx.ready.len();
        let events = std::mem::take(&mut self.events);
        self.table.cx.stats.events += events.len() as u64;
        for &ready in &events {
            match ready.token.kind() {
                Some(TokenKind::Connection(id)) => match self.table.get(id) {
                    Some((connection, cx)) => Self::apply_event(connection, ready, cx),
                    None => self.table.cx.stats.stale_events += 1,
                },
                Some(TokenKind::Listener(index)) => {
                    if let Some(Some(listener)) = self.listeners.get_mut(index) {
                        listener.acceptable = true;
                    }
                }
                // The wake-up has done its work by ending the sleep.
                Some(TokenKind::Wake) => {}
                None => self.table.cx.stats.stale_events += 1,
            }
        }
        self.events = events;
    }

    /// What one event says about a connection.
    fn apply_event(connection: &mut Connection, ready: Ready, cx: &mut Context) {
        let flags = &mut connection.flags;
        // An end or an error shows itself to the next read or write, and in no other way.
        flags.insert_if(Flag::Readable, ready.readable || ready.end);
        flags.insert_if(Flag::Writable, ready.writable);
        if (ready.end || ready.priority) && connection.incoming == Half::Open {
            connection.incoming = Half::Ending;
        }
        if ready.end && connection.filter == FilterStage::Queued && connection.is_open() {
            // No handshake can come of it, and until its turn came it would be in the way.
            return connection.fail_tls("the peer left while its handshake waited", cx);
        }
        if ready.error {
            connection.on_socket_error(cx);
        }
        let connected = connection.stage != Stage::Connecting;
        if ready.writable && connected && (connection.outbox.is_some() || connection.owes_end()) {
            connection.push_dirty(cx);
        }
        connection.push_ready(cx);
    }
}

/// Decides, from how soon wake-ups have come of late, whether the loop should look for events for a moment before it
/// sleeps.
///
/// Waking a sleeping thread costs more than a whole small answer: the processor has to leave its idle state, and on
/// virtual machines the host has a say in it. A loop that is still looking when the next event comes saves that. One
/// that looks in vain has burnt the time. So it looks only while it would have paid: each wake-up is a vote, for
/// looking if it came within the window, against if it came later. Votes against count double, and a loop that sleeps
/// goes on voting; so at a thousand events a second and a window of fifty microseconds it does not look at all.
///
/// ```text
///     score   0 ──── 1 ──── 2 ── … ── 8      sleeps at 0 ┃ looks first from 1 on
///             ◀──── 2 a late wake-up ────
///                ──── 1 an early one ────▶
/// ```
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// How long to look; none: never.
    window: Option<Duration>,
    score: u8,
}

/// So many early wake-ups are remembered: a pause in a lively conversation does not end it.
const SCORE_MAX: u8 = 8;

impl BusyPoll {
    pub(crate) fn new(window: Option<Duration>) -> BusyPoll {
        BusyPoll { window: window.filter(|window| !window.is_zero()), score: 0 }
    }

    /// How long to look before sleeping, if at all.
    pub(crate) fn window(&self) -> Option<Duration> {
        self.window.filter(|_| self.score > 0)
    }

    /// Something came, so long after the loop had last looked at the clock.
    pub(crate) fn record_wakeup(&mut self, gap: Duration) {
        let Some(window) = self.window else { return };
        self.score =
            if gap <= window { (self.score + 1).min(SCORE_MAX) } else { self.score.saturating_sub(2) };
    }
}

/// The guard against a loop that turns without sleeping and without getting anything done.
///
/// No path to that is known. It is the failure that event loops have all the same (a socket that is said to be
/// ready and is not), and it should cost a line in the log and a millisecond a turn, not a core.
#[derive(Default)]
pub(super) struct LivelockGuard {
    progress: u64,
    turns: u32,
    pub(super) throttled: bool,
}

const LIVELOCK_TURNS: u32 = 1_000;

impl LivelockGuard {
    pub(super) fn check(&mut self, zero_wait: bool, stats: &mut crate::base::stats::Stats) {
        if !zero_wait {
            // A number that no sum reaches: the next turn counts as progress.
            *self = LivelockGuard { progress: u64::MAX, ..LivelockGuard::default() };
            return;
        }
        let progress = stats.bytes_in
            + stats.bytes_out
            + stats.accepted
            + stats.dialed
            + stats.refused
            + stats.shed
            + stats.posts
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

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    /// The share of wake-ups before which it looked.
    fn looks(gaps: impl Iterator<Item = u64>) -> f64 {
        let mut busy_poll = BusyPoll::new(Some(WINDOW));
        let (mut looked, mut all) = (0, 0);
        for gap in gaps {
            looked += u32::from(busy_poll.window().is_some());
            all += 1;
            busy_poll.record_wakeup(Duration::from_micros(gap));
        }
        f64::from(looked) / f64::from(all)
    }

    #[test]
    fn it_busy_polls_while_wake_ups_come_soon_and_not_while_they_come_late() {
        assert!(looks((0..1_000).map(|_| 20)) > 0.99);
        assert_eq!(looks((0..1_000).map(|_| 1_000)), 0.0);
    }

    #[test]
    fn one_late_wake_up_does_not_stop_busy_polling_and_one_early_one_does_not_start_it() {
        assert!(looks((0..1_000).map(|n| if n % 20 == 0 { 5_000 } else { 20 })) > 0.9);
        assert!(looks((0..1_000).map(|n| if n % 20 == 0 { 20 } else { 5_000 })) < 0.1);
    }

    #[test]
    fn switched_off_it_never_busy_polls() {
        for off in [None, Some(Duration::ZERO)] {
            let mut busy_poll = BusyPoll::new(off);
            (0..20).for_each(|_| busy_poll.record_wakeup(Duration::ZERO));
            assert_eq!(busy_poll.window(), None);
        }
    }
}
