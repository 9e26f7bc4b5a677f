//! The end of phase 5: what callbacks have put off.

use super::EventLoop;
use crate::base::id::{ConnId, Key};
use crate::base::mark::mark;
use crate::base::observer::{Call, Callback, Step};
use crate::connection::state::Stage;
use crate::service::{Event, Service, ServiceSockets, run_with};
use crate::sys::System;

/// Calls of `poked` in one turn, as many as posts by default. Each may send to a whole room.
const POKES_PER_TURN: usize = 1_024;

impl<S: System> EventLoop<S> {
    /// Runs work with a service, between turns.
    pub(crate) fn with<V: Service, R>(
        &mut self,
        key: Key<V>,
        work: impl FnOnce(&mut V, &mut ServiceSockets<'_, V>) -> R,
    ) -> R {
        assert!(key.id.reactor == self.table.reactor, "the key is of another reactor");
        self.read_clock();
        self.run_work(key.id.number, |service, table| run_with(service, table, work))
    }

    /// Runs what callbacks have put off for services; what is put off meanwhile waits for the next turn.
    pub(super) fn run_later(&mut self) {
        let count = self.table.later.len().min(self.table.cx.limits.posts_per_turn);
        for served in 0..count {
            if served > 0 && self.table.cx.arena.is_full() {
                return;
            }
            let Some((number, work)) = self.table.later.pop_front() else { return };
            self.table.cx.stats.posts += 1;
            let call = Call::new(Callback::Later, self.table.service_id(number), None);
            self.table.cx.observers.tell_message(|| Step::Call(call));
            self.run_work(number, work);
            self.table.cx.observers.tell_message(|| Step::Return(call));
        }
    }

    /// Calls `poked` of the connections that are in line; a poke from a poke is behind them and waits for the next
    /// turn. What they send leaves in this turn's `write`.
    pub(super) fn run_pokes(&mut self) {
        let count = self.table.cx.pokes.len().min(POKES_PER_TURN);
        for served in 0..count {
            // At least one, whatever the arena holds: `write` empties it before the next turn.
            if served > 0 && self.table.cx.arena.is_full() {
                return;
            }
            let Some(id) = self.table.cx.pokes.pop() else { return };
            self.run_poke(id);
        }
    }

    fn run_poke(&mut self, id: ConnId) {
        let Some(connection) = self.table.find(id).filter(|connection| connection.is_live()) else { return };
        let service = connection.service;
        let dialed = connection.stage == Stage::Connecting && self.table.pending_dials.contains(&id);
        if dialed || self.table.pending_adoptions.contains(&id) {
            mark!("poked before open");
            // Phase 8 calls `open`; before that there is no session.
            return self.table.cx.pokes.push(id);
        }
        self.table.cx.stats.pokes += 1;
        self.call(service, Event::Poked(id.slot));
    }
}
