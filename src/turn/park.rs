//! Phases 1 and 2: sleep, and learn who is ready.

use std::io;
use std::time::Duration;

use super::Loop;
use crate::connection::Stage;
use crate::flags::Flag;
use crate::id::Named;
use crate::system::{Ready, System};
use crate::time::Tick;

impl<S: System> Loop<S> {
    /// Phase 1. How long it sleeps is a list of rules:
    ///
    /// - not at all while work is carried over, because no event will announce it;
    /// - else until the nearest deadline (of the wheel, of a starved listener, of the drain), if there is one;
    /// - and never longer than the caller said.
    ///
    /// Before it sleeps it may look for a moment, if [`Limits::spin`](crate::Limits::spin) says so: see `eager`.
    ///
    /// Deadlines are measured from this turn's clock, so one that passed during a long turn is found by the next.
    pub(super) fn park(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let (wait, until) = match self.has_work() {
            true if self.spin.broken => (Some(Duration::from_millis(1)), None),
            true => (Some(Duration::ZERO), None),
            false => (wait, self.next_tick().map(Tick::since_start)),
        };
        self.events.clear();
        let before = self.table.elapsed;
        if wait != Some(Duration::ZERO) {
            self.look(wait, until)?;
        }
        if self.events.is_empty() {
            self.system.poll(&mut self.events, wait, until)?;
        }
        self.read_clock();
        if !self.events.is_empty() {
            self.eager.woken_after(self.table.elapsed - before);
        }
        Ok(())
    }

    /// Looks for events without sleeping, for as long as it lately would have paid, and not beyond a deadline.
    fn look(&mut self, wait: Option<Duration>, until: Option<Duration>) -> io::Result<()> {
        let Some(window) = self.eager.looks_for() else { return Ok(()) };
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
        self.table.now = self.table.now.max(Tick::at(now));
        self.table.elapsed = now;
    }

    /// Phase 2. Events become flags; whoever can do something with them is put in line. No user code runs, so
    /// nothing an event is about can have ended since the kernel reported it; what ended before has another generation.
    pub(super) fn sort(&mut self) -> usize {
        self.carried = self.table.ready.len();
        let events = std::mem::take(&mut self.events);
        self.table.stats.events += events.len() as u64;
        for &ready in &events {
            match ready.token.read() {
                Some(Named::Connection(id)) => match self.table.find(id) {
                    Some(slot) => self.note(slot, ready),
                    None => self.table.stats.stale_events += 1,
                },
                Some(Named::Listener(index)) => {
                    if let Some(Some(door)) = self.doors.get_mut(index) {
                        door.acceptable = true;
                    }
                }
                // The wake-up has done its work by ending the sleep.
                Some(Named::Wake) => {}
                None => self.table.stats.stale_events += 1,
            }
        }
        let count = events.len();
        self.events = events;
        count
    }

    fn note(&mut self, slot: u32, ready: Ready) {
        let connection = self.table.at_mut(slot);
        let flags = &mut connection.flags;
        flags.raise_if(Flag::EndAnnounced, ready.end);
        // An end or an error shows itself to whoever reads or writes next, and to nobody else.
        flags.raise_if(Flag::Readable, ready.readable || ready.end);
        flags.raise_if(Flag::Writable, ready.writable);
        if ready.end && flags.has(Flag::Waiting) && connection.stage == Stage::Open {
            // No handshake can come of it, and until its turn came it would be in the way.
            return self.break_seal(slot, "the peer left while its handshake waited");
        }
        let connected = connection.stage != Stage::Connecting;
        if ready.writable && connected && (connection.outbox.is_some() || connection.owes_end()) {
            self.table.push_dirty(slot);
        }
        self.table.push_ready(slot);
    }
}
