//! The loop phase by phase, and what it holds between two phases. For `testing`.

use std::time::Duration;

use super::{EventLoop, Turn};
use crate::base::id::ConnId;
use crate::base::observer::Phase;
use crate::connection::Connection;
use crate::connection::dial::Attempts;
use crate::sys::Ready;
use crate::sys::sim::Sim;

impl EventLoop<Sim> {
    /// Runs one phase of a turn that does not move the clock; the last one ends the turn. All of them in the order of
    /// [`Phase::ALL`] are a [`turn`](EventLoop::turn).
    pub(crate) fn run_phase(&mut self, phase: Phase) -> Option<Turn> {
        match phase {
            Phase::Poll => self.poll(Some(Duration::ZERO)).expect("a simulated poll does not fail"),
            Phase::Dispatch => self.dispatch(),
            Phase::RunPosts => self.run_posts(),
            Phase::Read => self.read(),
            Phase::Expire => self.expire(),
            Phase::Write => self.write(),
            Phase::Reap => self.reap(),
            Phase::Accept => self.accept(),
        }
        (phase == Phase::Accept).then(|| {
            let turn = self.finish_turn();
            self.check();
            turn
        })
    }

    /// The events that the last poll has returned.
    pub(crate) fn polled(&self) -> &[Ready] {
        &self.events
    }

    /// How many sockets a dial has that are not connected yet.
    pub(crate) fn attempts_of(&self, id: ConnId) -> usize {
        self.table.find(id).and_then(Connection::attempts).map_or(0, Attempts::count)
    }

    /// How many closures other threads have posted that have not run.
    pub(crate) fn posts_waiting(&self) -> usize {
        self.posts.len() + usize::from(self.handle.mailbox().has_posts())
    }
}
