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
use crate::connection::Stage;
use crate::connection::table::{Dirty, Table};
use crate::handle::{Handle, Post};
use crate::parts::inbox::Budget;
use crate::parts::listener::Listener;
use crate::parts::lookups::Lookups;
use crate::service::AnyService;
use crate::sys::{Ready, System};
use dial::Attempts;
use pipe::KernelPipes;
use poll::{BusyPoll, LivelockGuard};

/// The loop: the services, the table of connections, and the world they talk to.
///
/// Services and table lie side by side, so that a callback can hold the one by `&mut` and be lent the other. The
/// streams lie beside the table too, because only they are of the system's own types.
pub(crate) struct EventLoop<S: System> {
    pub(crate) system: S,
    pub(crate) table: Table,
    services: Vec<Box<dyn AnyService>>,
    /// By slot.
    streams: Vec<Option<S::Stream>>,
    /// By index; a closed listener leaves a gap, so that tokens keep their meaning.
    listeners: Vec<Option<Listener<S::Listener>>>,
    listener_generation: u64,
    /// Dials that are not connected, by slot, and their attempts beyond the first of each.
    attempts: HashMap<u32, Attempts<S::Stream>>,
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
    /// Who has come below the low-water mark, until they have been told.
    drained: Vec<ConnId>,
    /// How many of the line of those who are ready stood in it before this turn's events.
    carried_over: usize,
    /// When what is left is closed, once shutting down.
    drain_deadline: Option<Tick>,
    busy_poll: BusyPoll,
    livelock: LivelockGuard,
    /// What is sealed, on its way to the kernel; and pieces that are sealed together.
    ciphertext: Vec<u8>,
    record: Vec<u8>,
    // Emptied lists, kept for their memory.
    spare_ready: Vec<ConnId>,
    spare_dirty: Vec<Dirty>,
    spare_to_reap: Vec<u32>,
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
        self.table.stats.turns += 1;
        Turn { events: self.events.len(), carried_over: self.has_work() }
    }

    /// Whether the next turn has something to do that no event will announce.
    pub(crate) fn has_work(&self) -> bool {
        let table = &self.table;
        let queued = !(table.ready.is_empty() && table.dirty.is_empty() && table.to_reap.is_empty());
        let stops = table.stop.is_some() || !table.listeners_to_close.is_empty();
        let posted = !self.posts.is_empty() || self.handle.mailbox().has_posts();
        let asked = posted || stops || !table.pending_dials.is_empty();
        let due = table.wheel.is_due(table.now)
            || table.timers.is_due(table.now)
            || table.handshakes.may_start(table.limits.handshakes, table.now);
        queued
            || asked
            || due
            || !self.drained.is_empty()
            || self.open_listeners().any(|listener| self.can_accept(listener))
    }

    /// Whether an accept from this listener could bring a connection now.
    fn can_accept(&self, listener: &Listener<S::Listener>) -> bool {
        listener.may_accept(self.table.now) && self.has_place(listener)
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
            return Some(self.table.elapsed);
        }
        self.next_tick().map(Tick::since_start)
    }

    fn next_tick(&self) -> Option<Tick> {
        // Without a place there is nothing to wake up for: the time would pass, and every sleep after it be none.
        let able = self.open_listeners().filter(|listener| self.has_place(listener));
        let retries = able.filter_map(Listener::retry_at);
        let table = &self.table;
        let handshakes = table.handshakes.next_check(table.limits.handshakes);
        // Once it has passed and nothing is left it stays in the past, where no sleep would be left.
        let left = !table.slots.is_empty() || table.timers.len() > 0;
        let shutdown = self.drain_deadline.filter(|_| left);
        retries.chain(table.wheel.next()).chain(table.timers.next()).chain(handshakes).chain(shutdown).min()
    }

    /// Puts a new stream into its slot and under watch. One that cannot be watched is closed, and only that one.
    fn register(&mut self, slot: u32, mut stream: S::Stream) -> io::Result<()> {
        let token = self.table.id(slot).token();
        let registered = self.system.register(&mut stream, token);
        self.put_stream(slot, stream);
        registered
    }

    fn put_stream(&mut self, slot: u32, stream: S::Stream) {
        if self.streams.len() <= slot as usize {
            self.streams.resize_with(slot as usize + 1, || None);
        }
        self.streams[slot as usize] = Some(stream);
    }
}

impl<S: System> Drop for EventLoop<S> {
    fn drop(&mut self) {
        self.handle.mailbox().close();
        for slot in self.table.slots.iter().map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.table.drop_outbox(slot);
        }
    }
}

/// Whether a connection is there to be told anything.
fn is_open(table: &Table, slot: u32) -> bool {
    table.slots.get(slot as usize).is_some_and(|connection| connection.stage == Stage::Open)
}
