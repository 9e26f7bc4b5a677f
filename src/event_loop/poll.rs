//! Phases 1 and 2: sleep, then turn events into flags.
//!
//! Read before: `event_loop/mod.rs`. Next: `event_loop/posts.rs`.

use std::io;
use std::time::Duration;

use super::EventLoop;
use crate::base::id::TokenKind;
use crate::base::mark::mark;
use crate::base::observer::Phase;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::sys::{Ready, System};

impl<S: System> EventLoop<S> {
    /// Phase 1: sleeps until an event, then reads the clock. The length of the sleep follows these rules:
    ///
    /// - zero while work is carried over, because no event will announce that work;
    /// - else until the nearest deadline (of the wheel, of a timer, of a handshake, of a listener that waits for
    ///   descriptors, of the shutdown), if there is one;
    /// - never longer than `wait`;
    /// - except that a loop that chose zero 1,000 times without progress sleeps 1 ms: see `event_loop/livelock.rs`.
    ///
    /// With [`Limits::busy_poll`](crate::Limits::busy_poll) it may ask for events repeatedly before it sleeps: see
    /// [`BusyPoll`].
    ///
    /// A deadline that passes during a long turn is noticed by the next turn, because the clock is read once in each.
    pub(super) fn poll(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.enter(Phase::Poll);
        let until = self.next_due();
        // A deadline that no phase handles would also make the wait zero, in every turn. It cannot be told apart here
        // from work that is carried over, so the guard watches both.
        let zero_wait = until.is_some_and(|until| until <= self.table.cx.now);
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
            self.busy_poll.record_wakeup(before, self.table.cx.elapsed);
        }
        self.tell_woken();
        Ok(())
    }

    /// Asks for events without sleeping, until one comes, the window is over, or a deadline has passed.
    fn busy_poll(&mut self, wait: Option<Duration>, until: Option<Tick>) -> io::Result<()> {
        let Some(window) = self.busy_poll.window() else { return Ok(()) };
        let end = self.system.now() + wait.map_or(window, |wait| wait.min(window));
        let end = until.map_or(end, |until| until.since_start().min(end));
        while self.events.is_empty() && self.system.now() < end {
            self.system.poll(&mut self.events, Some(Duration::ZERO), None)?;
        }
        Ok(())
    }

    /// Reads the clock. Called once in each turn, and when the reactor's owner asks for something between two turns:
    /// otherwise a timeout set then would count from the last turn, which may be long ago, and fire early.
    pub(crate) fn read_clock(&mut self) {
        let now = self.system.now();
        // A clock that steps back must not move ticks back: a deadline computed after that would fire early.
        self.table.cx.now = self.table.cx.now.max(Tick::at(now));
        self.table.cx.elapsed = now;
    }

    /// Phase 2. Sets the flags that an event stands for, and adds its connection to the ready list. No user code runs
    /// here, so no connection can end between the kernel's report and this look-up. If it ended in an earlier turn, its
    /// slot has another generation now, and the event is counted as stale.
    pub(super) fn dispatch(&mut self) {
        self.enter(Phase::Dispatch);
        self.tell_events();
        self.carried_over = self.table.cx.ready.len();
        let (table, events) = (&mut self.table, &self.events);
        table.cx.stats.events += events.len() as u64;
        // All of the batch: an event that is not applied now does not come again.
        let count = events.len() - usize::from(events.len() > 1 && seeded(SeededBug::LastEventDropped));
        for &ready in &events[..count] {
            match ready.token.kind() {
                Some(TokenKind::Connection(id)) => match table.get(id) {
                    Some((connection, cx)) => Self::apply_event(connection, ready, cx),
                    None => table.cx.stats.stale_events += 1,
                },
                Some(TokenKind::Listener(index)) => table.listeners.set_acceptable(index),
                Some(TokenKind::Watched(index)) => table.watched.on_event(index),
                // Ending the sleep was all that the waker had to do: `run_posts` looks at the mailbox in each turn.
                Some(TokenKind::Wake) => {}
                None => table.cx.stats.stale_events += 1,
            }
        }
    }

    /// Applies one event to its connection.
    fn apply_event(connection: &mut Connection, ready: Ready, cx: &mut Context) {
        let flags = &mut connection.flags;
        // An end is reported by the next read and by nothing else, so it counts as readable.
        flags.insert_if(Flag::Readable, ready.readable || ready.end);
        flags.insert_if(Flag::Writable, ready.writable);
        if ready.end | ready.error | ready.priority {
            Self::apply_end(connection, ready, cx);
        }
        let connected = connection.stage != Stage::Connecting && !seeded(SeededBug::WriteEdgeMissed);
        if ready.writable && connected && (connection.outbox.is_some() || connection.owes_end()) {
            connection.push_dirty(cx);
        }
        connection.add_to_ready(cx); // `read` asks whether it has anything to do for it, and asks once.
    }

    /// The rarer part of an event: an announced end, an error, urgent data.
    #[inline(never)]
    fn apply_end(connection: &mut Connection, ready: Ready, cx: &mut Context) {
        if (ready.end || ready.priority) && connection.incoming == Half::Open {
            connection.incoming = if seeded(SeededBug::EndBeforeData) { Half::Ended } else { Half::Ending };
        }
        if ready.end && connection.filter == FilterStage::Queued && connection.is_open() {
            mark!("an end while the handshake waits");
            // Its handshake cannot complete, and while it waits it takes the turn of one that can.
            return connection.fail_tls("the peer left while its handshake waited", cx);
        }
        if ready.end && !seeded(SeededBug::EndSeenOnlyByRead) {
            connection.note_leaving(cx);
        }
        if ready.error && !seeded(SeededBug::ErrorEventIgnored) {
            mark!("an error event");
            connection.on_socket_error(cx);
        }
    }
}

/// Decides whether the loop asks for events repeatedly (busy-polls) before it sleeps, from how soon after a sleep began
/// the last events came.
///
/// Waking a sleeping thread costs more than answering a small message: the processor has to leave its idle state, and
/// on a virtual machine the host schedules it again. Busy polling saves that if an event comes within the window, and
/// wastes the window if not. So each wake-up changes a score: plus 1 if it came within the window, minus 2 if it came
/// later. A loop that sleeps keeps counting, so it can start again. At a thousand events per second and a window of 50
/// µs, events come too late, and the loop does not busy-poll.
///
/// ```text
///     score   0 ──── 1 ──── 2 ── … ── 8      0: sleeps at once │ 1 to 8: busy-polls first
///             ◀─ −2 for a late wake-up ──
///                ─ +1 for an early one ─▶
/// ```
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// How long to busy-poll at most; none: never.
    window: Option<Duration>,
    score: u8,
}

/// The highest score. At 8 it takes four late wake-ups in a row to stop busy polling, so one pause in a stream of
/// events does not stop it.
const SCORE_MAX: u8 = 8;

impl BusyPoll {
    pub(crate) fn new(window: Option<Duration>) -> BusyPoll {
        BusyPoll { window: window.filter(|window| !window.is_zero()), score: 0 }
    }

    /// How long to busy-poll before the next sleep, if at all.
    pub(crate) fn window(&self) -> Option<Duration> {
        self.window.filter(|_| self.score > 0)
    }

    /// An event has come. The clock was read before the sleep and after it.
    pub(crate) fn record_wakeup(&mut self, before: Duration, after: Duration) {
        let Some(window) = self.window else { return };
        let in_time = after.saturating_sub(before) <= window;
        self.score = if in_time { (self.score + 1).min(SCORE_MAX) } else { self.score.saturating_sub(2) };
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
            busy_poll.record_wakeup(Duration::ZERO, Duration::from_micros(gap));
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
            (0..20).for_each(|_| busy_poll.record_wakeup(Duration::ZERO, Duration::ZERO));
            assert_eq!(busy_poll.window(), None);
        }
    }
}
