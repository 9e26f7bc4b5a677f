//! One turn of the loop. Everything tidemill does, it does here.
//!
//! [`turn`](EventLoop::turn) is the table of contents; each phase is a method in a file of its own.

mod accept;
mod dial;
mod expire;
mod pipe;
mod poll;
mod posts;
mod read;
mod reap;
mod setup;
#[cfg(test)]
mod tests;
mod tls;
mod write;

use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::base::id::ConnId;
use crate::base::tick::Tick;
use crate::connection::context::Dirty;
use crate::connection::table::Table;
use crate::handle::{Handle, Post};
use crate::parts::inbox::Budget;
use crate::parts::listener::Listener;
use crate::parts::lookups::Lookups;
use crate::service::{AnyService, Event};
use crate::sys::{Ready, Stream, System};
use dial::Attempts;
use pipe::KernelPipes;
use poll::{BusyPoll, LivelockGuard};

/// The loop: the services, the table of connections, and the world they talk to.
///
/// Services and table lie side by side, so that a callback can hold the one by `&mut` and be lent the other.
pub(crate) struct EventLoop<S: System> {
    pub(crate) system: S,
    pub(crate) table: Table,
    services: Vec<Box<dyn AnyService>>,
    /// By index; a closed listener leaves a gap, so that tokens keep their meaning.
    listeners: Vec<Option<Listener<S::Listener>>>,
    listener_generation: u64,
    /// Dials that are not connected, by slot, and their attempts beyond the first of each.
    attempts: HashMap<ConnId, Attempts>,
    extra_attempts: usize,
    lookups: Lookups,
    kernel_pipes: KernelPipes<S::KernelPipe>,
    handle: Handle,
    posts: Vec<Post>,
    events: Vec<Ready>,
    /// What the present callback has queued; the arena counts it.
    budget: Rc<Budget>,
    /// Queued by callbacks whose rest was delivered again in this turn.
    redelivered: u64,
    /// How many of the line of those who are ready stood in it before this turn's events.
    carried_over: usize,
    /// When what is left is closed, once shutting down.
    drain_deadline: Option<Tick>,
    busy_poll: BusyPoll,
    livelock: LivelockGuard,
    /// What a filter says by itself, on its way to a queue.
    filter_out: Vec<u8>,
    // Emptied lists, kept for their memory.
    spare_ready: Vec<ConnId>,
    spare_dirty: Vec<Dirty>,
    spare_to_reap: Vec<ConnId>,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turn {
    /// Events that the kernel reported.
    pub events: usize,
    /// Whether work was left that a budget cut off; the next turn does not sleep then.
    pub carried_over: bool,
}

impl<S: System> EventLoop<S> {
    /// One turn of the loop. Everything tidemill does, it does here, in this order.
    pub(crate) fn turn(&mut self, wait: Option<Duration>) -> io::Result<Turn> {
        self.poll(wait)?; //   1 sleep until readiness, a deadline or a wake-up; then read the clock once
        self.dispatch(); //    2 events become flags; no user code yet
        self.run_posts(); //   3 what other threads asked for
        self.read(); //        4 read and deliver, at most one budget per connection
        self.expire(); //      5 deadlines that have passed
        self.write(); //       6 one write per connection with something to say
        self.reap(); //        7 `closed`, and the only place where a slot is freed
        self.accept(); //      8 dials and accepts, into the slots just freed
        Ok(self.finish_turn())
    }

    fn finish_turn(&mut self) -> Turn {
        self.check_touched();
        self.table.cx.stats.turns += 1;
        Turn { events: self.events.len(), carried_over: self.has_work() }
    }

    /// Whether the next turn has something to do that no event will announce.
    pub(crate) fn has_work(&self) -> bool {
        let (table, cx) = (&self.table, &self.table.cx);
        let written = cx.dirty.is_empty() && cx.drained.is_empty();
        let queued = !(written && cx.ready.is_empty() && cx.to_reap.is_empty());
        let stops = table.stop.is_some() || !table.listeners_to_close.is_empty();
        let posted = !self.posts.is_empty() || self.handle.mailbox().has_posts();
        let asked = posted || stops || !table.pending_dials.is_empty();
        let due = cx.wheel.is_due(cx.now)
            || table.timers.is_due(cx.now)
            || cx.handshakes.may_start(cx.limits.handshakes, cx.now);
        queued || asked || due || self.open_listeners().any(|listener| self.can_accept(listener))
    }

    /// Whether an accept from this listener could bring a connection now.
    fn can_accept(&self, listener: &Listener<S::Listener>) -> bool {
        listener.may_accept(self.table.cx.now) && self.has_place(listener)
    }

    /// Whether there is a slot for the next connection, or one to refuse it in.
    fn has_place(&self, listener: &Listener<S::Listener>) -> bool {
        self.table.has_room_for_service(listener.service, listener.slots())
            || (listener.refuses_excess && self.table.can_refuse())
    }

    fn open_listeners(&self) -> impl Iterator<Item = &Listener<S::Listener>> {
        self.listeners.iter().flatten()
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.drain_deadline.is_some() || self.table.stop.is_some()
    }

    /// Whether nothing is left that could ever happen by itself: no listener, no connection, no work.
    pub(crate) fn is_finished(&self) -> bool {
        let posted = self.handle.mailbox().has_posts();
        let timers = self.table.timers.len() > 0;
        self.open_listeners().next().is_none()
            && self.table.slots.is_empty()
            && !timers
            && !posted
            && !self.has_work()
    }

    /// When the loop must turn again even if the kernel stays silent, as the time since it was made.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        if self.has_work() {
            return Some(self.table.cx.elapsed);
        }
        self.next_tick().map(Tick::since_start)
    }

    fn next_tick(&self) -> Option<Tick> {
        // Without a place there is nothing to wake up for: the time would pass, and every sleep after it be none.
        let able = self.open_listeners().filter(|listener| self.has_place(listener));
        let retries = able.filter_map(Listener::retry_at);
        let (table, cx) = (&self.table, &self.table.cx);
        let handshakes = cx.handshakes.next_check(cx.limits.handshakes);
        // Once it has passed and nothing is left it stays in the past, where no sleep would be left.
        let left = !table.slots.is_empty() || table.timers.len() > 0;
        let shutdown = self.drain_deadline.filter(|_| left);
        retries
            .chain(cx.sender_waits.next_check())
            .chain(cx.wheel.next())
            .chain(table.timers.next())
            .chain(handshakes)
            .chain(shutdown)
            .min()
    }

    /// Calls a callback of the service that a connection belongs to.
    fn call(&mut self, service: u16, event: Event<'_, '_>) {
        self.services[usize::from(service) - 1].call(&mut self.table, event);
    }

    /// Puts a new stream into its connection and registers it. If it cannot be registered, only that connection ends.
    fn register(&mut self, id: ConnId, mut stream: Stream) -> io::Result<()> {
        let registered = self.system.register(&mut stream, id.token());
        self.table.at(id.slot).0.stream = Some(stream);
        registered
    }

    /// What must be true, between two phases, of the connections that the turn has touched. Debug builds only.
    fn check_touched(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let cx = &self.table.cx;
        let touched = cx.ready.iter().chain(cx.dirty.iter().map(|dirty| &dirty.id)).chain(&cx.to_reap);
        touched.filter_map(|&id| self.table.find(id)).for_each(|connection| connection.check(cx));
    }
}

impl<S: System> Drop for EventLoop<S> {
    fn drop(&mut self) {
        self.handle.mailbox().close();
        for (_, connection) in &mut self.table.slots {
            connection.drop_outbox(&mut self.table.cx);
        }
    }
}
