//! The event loop: what it owns, and one turn of it.
//!
//! Read before: `docs/one-turn.md`, which describes the phases. [`turn`](EventLoop::turn) is the table of contents:
//! each phase is a method in a file of its own. Next: `event_loop/poll.rs`.
//!
//! Two kinds of lines are for tests, and nothing in a plain build: `seeded(…)` is a fault that a test can switch on
//! (see `base/seeded_bug/`), and `mark!(…)` notes that a rare branch was taken (see `base/mark.rs`).

mod accept;
#[cfg(any(test, feature = "testing"))]
mod check;
mod deferred;
mod dial;
mod expire;
#[cfg(any(test, feature = "testing"))]
mod inspect;
mod leaving;
mod livelock;
mod observe;
mod pipe;
mod poll;
mod posts;
mod read;
mod reap;
mod send_file;
mod setup;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod watch;
mod write;

use std::any::Any;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::base::id::ConnId;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;
use crate::connection::context::Dirty;
use crate::connection::table::Table;
use crate::handle::{Handle, Post};
use crate::parts::inbox::Budget;
use crate::parts::listener::Listener;
use crate::parts::lookups::Lookups;
use crate::service::{AnyService, Event};
use crate::sys::{ListenSocket, Ready, Stream, System};
use livelock::LivelockGuard;
use pipe::KernelPipes;
use poll::BusyPoll;

/// The loop: the kernel, the services, and the table of connections.
///
/// ```text
///     system ── events ──▶ EventLoop ── callbacks ──▶ services   what the user wrote, and the sessions
///        ▲                     │                         │
///        └─ read, write, … ────┤                         │ Socket, Sockets: queue, and do no I/O
///                              └──────────▶ table ◀──────┘   connections, and the queues of the turn
/// ```
///
/// `services` and `table` are separate fields, so that a callback borrows its service by `&mut` and gets the table by
/// `&mut` at the same time: the borrow checker accepts that without a `RefCell`, and a callback that would call another
/// one does not compile.
pub(crate) struct EventLoop<S: System> {
    pub(crate) system: S,
    pub(crate) table: Table,
    services: Vec<Box<dyn AnyService>>,
    /// How many attempts to connect are beyond the first of their dial: `Limits::extra_attempts` bounds them, because
    /// they take descriptors and no slot.
    extra_attempts: usize,
    lookups: Lookups,
    kernel_pipes: KernelPipes<S::KernelPipe>,
    handle: Handle,
    posts: Vec<Post>,
    events: Vec<Ready>,
    /// Counts what the current callback has queued. Shared with the arena, which adds to it.
    budget: Rc<Budget>,
    /// Bytes queued by callbacks that got hidden input again in this turn. Counted against
    /// `Limits::carried_over_budget`, because a redelivery does work without reading a byte.
    redelivered: u64,
    /// How many connections at the front of the ready list were left over from earlier turns.
    carried_over: usize,
    busy_poll: BusyPoll,
    livelock: LivelockGuard,
    /// Bytes that a filter makes by itself (handshake, alert), before they are queued. Kept for its memory.
    filter_out: Vec<u8>,
    // The list that a phase goes through, while callbacks add to the one of the table. The two are swapped, so that no
    // turn allocates. Cleared before that and not after: a panic that unwinds out of the phase leaves entries behind,
    // which must not come back when their slots and their segments are others'.
    being_written: Vec<Dirty>,
    being_reaped: Vec<ConnId>,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turn {
    /// Events that the kernel reported.
    pub events: usize,
}

impl<S: System> EventLoop<S> {
    /// One turn. The order is fixed, and each place in it has a reason: `expire` follows `read`, so that bytes that
    /// came in time keep their connection open; `write` follows both, so that all that they queued leaves with one
    /// call; `reap` follows `write`, so that a reset is the last thing a connection does; `accept` is last, so that it
    /// finds the slots and descriptors that `reap` has freed.
    pub(crate) fn turn(&mut self, wait: Option<Duration>) -> io::Result<Turn> {
        self.poll(wait)?; //   1 sleep until readiness, a deadline or a wake-up; then read the clock once
        self.dispatch(); //    2 events become flags; no user code yet
        self.run_posts(); //   3 what other threads asked for, and watched descriptors
        self.read(); //        4 read and deliver, at most one budget per connection
        self.expire(); //      5 deadlines that have passed
        self.write(); //       6 one write per connection that has something queued
        self.reap(); //        7 `closed`, and the only place where a slot is freed
        self.accept(); //      8 dials and accepts, into the slots just freed
        Ok(self.finish_turn())
    }

    fn finish_turn(&mut self) -> Turn {
        self.check_touched();
        self.table.cx.stats.turns += 1;
        self.tell_turn_end();
        Turn { events: self.events.len() }
    }

    /// Whether the next turn has something to do that no event will announce.
    pub(crate) fn has_work(&self) -> bool {
        self.next_due().is_some_and(|tick| tick <= self.table.cx.now)
    }

    /// Whether a phase has left something over. What is missing here waits for the next event, which may never come.
    fn has_queued(&self) -> bool {
        let (table, cx) = (&self.table, &self.table.cx);
        let written =
            cx.dirty.is_empty() && cx.drained.is_empty() && cx.pokes.is_empty() && cx.leavers.is_empty();
        let queued = !(written && cx.ready.is_empty() && cx.to_reap.is_empty());
        let posted = !self.posts.is_empty() && !seeded(SeededBug::PostsForgotten)
            || !table.later.is_empty()
            || self.handle.mailbox().has_posts();
        queued
            || posted
            || table.stop.is_some()
            || !table.pending_adoptions.is_empty()
            || !table.pending_dials.is_empty()
            || cx.handshakes.may_start(cx.limits.handshakes, cx.now)
            || table.listeners.any_acceptable && table.listeners.acceptable().any(|it| self.can_accept(it))
    }

    /// Whether an accept from this listener could succeed now.
    fn can_accept(&self, listener: &Listener<ListenSocket>) -> bool {
        listener.may_accept(self.table.cx.now) && self.has_place(listener)
    }

    /// Whether there is a slot for the next connection, or one in which to refuse it.
    fn has_place(&self, listener: &Listener<ListenSocket>) -> bool {
        self.table.has_room_for_service(listener.service, listener.slots())
            || (listener.refuses_excess && self.table.can_refuse())
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Whether nothing can happen any more: no listener, no connection, no timer, no post, no work. `run` returns then.
    pub(crate) fn is_finished(&self) -> bool {
        // Connections first: while there are some, which is nearly always, nothing else is looked at.
        self.table.slots.is_empty()
            && (self.table.watched.is_empty() || self.table.is_shutting_down())
            && self.table.listeners.open().next().is_none()
            && self.table.timers.len() == 0
            && !self.handle.mailbox().has_posts()
            && !self.has_work()
    }

    /// When the loop must turn again although no event comes, as the time since the loop was created.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        if self.has_queued() {
            return Some(self.table.cx.elapsed);
        }
        self.next_tick().map(Tick::since_start)
    }

    /// As `next_deadline`, in ticks.
    fn next_due(&self) -> Option<Tick> {
        if self.has_queued() { Some(self.table.cx.now) } else { self.next_tick() }
    }

    /// The next deadline; one that has passed, if there is any. Most turns have none but those of connections and of
    /// timers: one test for each of the others, because all of it is asked in every turn.
    fn next_tick(&self) -> Option<Tick> {
        let (table, cx) = (&self.table, &self.table.cx);
        let next = earlier(cx.wheel.next(), table.timers.next());
        let waits = cx.sender_waits.any() || cx.handshakes.waiting_count() > 0;
        let stops = table.drain_deadline.is_some();
        if waits || stops || table.listeners.any_acceptable { earlier(next, self.next_rare()) } else { next }
    }

    #[cold]
    fn next_rare(&self) -> Option<Tick> {
        // A listener without a free slot has no deadline: it could not accept when that passes, and a deadline in the
        // past would make every later sleep zero.
        let (table, cx) = (&self.table, &self.table.cx);
        let mut next = earlier(cx.sender_waits.next_check(), cx.handshakes.next_check(cx.limits.handshakes));
        for listener in table.listeners.acceptable() {
            let may_retry = || self.has_place(listener) || seeded(SeededBug::FullListenerSpins);
            next = earlier(next, listener.retry_at().filter(|_| may_retry()));
        }
        // The same holds for the end of a shutdown after which nothing is left to close.
        let left = !table.slots.is_empty() || table.timers.len() > 0;
        earlier(next, table.drain_deadline.filter(|_| left))
    }

    /// Calls a callback of a service. Services are numbered from 1: 0 is
    /// [`REFUSED`](crate::connection::table::REFUSED).
    fn call(&mut self, service: u16, event: Event<'_, '_>) {
        observe::call_service(&mut self.services, service, &mut self.table, event);
    }

    /// Runs work that was put off or posted for one service.
    fn run_work<R>(&mut self, service: u16, work: impl FnOnce(&mut dyn Any, &mut Table) -> R) -> R {
        work(self.services[usize::from(service) - 1].as_any(), &mut self.table)
    }

    /// Moves a new stream into its connection and registers it with the kernel, once, for reading and writing. The
    /// caller closes the connection on an error, since no event would ever come for it. The others are not affected.
    fn register(&mut self, id: ConnId, mut stream: Stream) -> io::Result<()> {
        let registered = self.system.register(&mut stream, id.token());
        self.table.at(id.slot).0.stream = Some(stream);
        registered
    }

    /// Checks the invariants of the connections that the turn has touched. Debug builds only: a release build does
    /// not go through the queues a second time in each turn.
    fn check_touched(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let cx = &self.table.cx;
        let touched = cx.ready.iter().chain(cx.dirty.iter().map(|dirty| &dirty.id)).chain(&cx.to_reap);
        touched.filter_map(|&id| self.table.find(id)).for_each(|connection| connection.check(cx));
    }
}

/// The earlier of two deadlines.
fn earlier(one: Option<Tick>, other: Option<Tick>) -> Option<Tick> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl<S: System> Drop for EventLoop<S> {
    fn drop(&mut self) {
        // From here on `Handle::post` reports that the loop is gone, in place of accepting posts that would never run.
        self.handle.mailbox().close();
        // A shared chunk counts the queues of each reactor that hold it, so the queues must be released and not only
        // freed.
        for (_, connection) in &mut self.table.slots {
            connection.drop_outbox(&mut self.table.cx);
        }
    }
}
