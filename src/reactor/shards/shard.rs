//! One shard: its thread, and what other threads know of it.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::{All, Peers};
use crate::base::address::PeerAddress;
use crate::base::id::{ConnId, Key, ListenerId, ServiceId};
use crate::base::observer::{Observer, Step};
use crate::base::stats::Stats;
use crate::config::limits::Limits;
use crate::connection::admission::shared::SharedAdmission;
use crate::handle::Handle;
use crate::reactor::Reactor;
use crate::service::Service;
use crate::sys::handed_over::HandedOver;
use crate::sys::locked;
use crate::sys::stream::Stream;

/// What other threads know of a shard.
pub(super) struct Shard<S: Service> {
    pub(super) handle: Handle,
    pub(super) key: Key<S>,
    pub(super) state: Arc<ShardState>,
    /// The limits of its connections: of its reactor, and of its service's access policy.
    max: usize,
    share: Arc<AtomicUsize>,
}

/// What a shard and other threads share.
#[derive(Default)]
pub(super) struct ShardState {
    /// Connections that were handed to it and have not ended.
    pub(super) load: AtomicUsize,
    /// Where connections are handed to it, with the listener that accepts them there.
    queues: Mutex<Vec<(ListenerId, HandedOver)>>,
    /// Whether no further connection is handed to it. Locked while one is, so that one that was is seen when it stops.
    is_stopped: Mutex<bool>,
    /// The grace, when it was asked to stop.
    stop: OnceLock<Duration>,
}

impl ShardState {
    fn is_stopped(&self) -> bool {
        *locked(&self.is_stopped)
    }

    /// One more queue, from which it accepts.
    pub(super) fn receive(&self, listener: ListenerId, queue: HandedOver) {
        locked(&self.queues).push((listener, queue));
    }

    fn waiting(&self) -> usize {
        locked(&self.queues).iter().map(|(_, queue)| queue.len()).sum()
    }

    fn lighten(&self) {
        // A connection that was not handed over is not counted.
        let less = |load: usize| Some(load.saturating_sub(1));
        let _ = self.load.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl<S: Service> Shard<S> {
    pub(super) fn load(&self) -> usize {
        self.state.load.load(Ordering::Relaxed)
    }

    fn has_room(&self, slots: usize) -> bool {
        let max = self.max.min(self.share.load(Ordering::Relaxed));
        (self.load() + 1) * slots <= max
    }

    pub(super) fn stop(&self, grace: Duration) {
        *locked(&self.state.is_stopped) = true;
        let is_second = self.state.stop.set(grace).is_err();
        // It wakes the shard, which may have ended already. A second stop may have a shorter grace.
        let _ = self.handle.post_wait(move |sockets| {
            if is_second {
                sockets.shutdown(grace);
            }
        });
    }
}

/// Where the connections of one listener go.
pub(super) struct Receiving {
    /// Of each shard.
    pub(super) queues: Vec<(ListenerId, HandedOver)>,
    /// The slots that each connection takes.
    pub(super) slots: usize,
    /// Whether peers wait in the backlog while all shards are full.
    pub(super) waits: bool,
    /// Which of several shards with the fewest is next: of connections that end at once, each has its part then.
    pub(super) next: Cell<usize>,
}

/// Connections that wait for a shard to refuse them. The others are closed.
const REFUSED_MAX: usize = 256;

impl Receiving {
    pub(super) fn has_room<S: Service>(&self, peers: &Peers<S>) -> bool {
        peers.all().iter().any(|shard| !shard.state.is_stopped() && shard.has_room(self.slots))
    }

    /// Hands a connection to the shard with the fewest. When all are full, the one with the fewest refuses it, in the
    /// way that its listener does.
    pub(super) fn hand_over<S: Service>(&self, peers: &Peers<S>, stream: Stream, peer: PeerAddress) {
        loop {
            let open = || peers.all().iter().enumerate().filter(|(_, shard)| !shard.state.is_stopped());
            let count = peers.all().len();
            let behind = |number: &usize| (number + count - self.next.get()) % count;
            let has_room = |(_, shard): &(usize, &Shard<S>)| shard.has_room(self.slots);
            let fewest = open().filter(has_room).min_by_key(|(number, it)| (it.load(), behind(number)));
            let can_refuse = |number: usize| self.queues[number].1.len() < REFUSED_MAX;
            let refuses = || open().filter(|(number, _)| can_refuse(*number)).min_by_key(|(_, it)| it.load());
            let Some((number, shard)) = fewest.or_else(refuses) else {
                peers.0.refused.fetch_add(1, Ordering::Relaxed);
                return;
            };
            let (listener, queue) = &self.queues[number];
            let is_stopped = locked(&shard.state.is_stopped);
            if *is_stopped {
                continue; // Meanwhile.
            }
            shard.state.load.fetch_add(1, Ordering::Relaxed);
            self.next.set((number + 1) % count);
            let is_first = queue.push(stream, peer);
            drop(is_stopped);
            if is_first {
                let listener = *listener;
                // It fails if the thread has panicked just now; the connection ends with those that it had.
                let _ = shard.handle.post_wait(move |sockets| sockets.table().on_handed_over(listener));
            }
            return;
        }
    }
}

/// Counts the connections that were handed over and have ended.
struct LoadObserver {
    service: ServiceId,
    state: Arc<ShardState>,
    refused: Arc<AtomicU64>,
    accepted: HashSet<ConnId>,
}

impl Observer for LoadObserver {
    fn wants_messages(&self) -> bool {
        false
    }

    fn next_turn(&self, _: u64) -> u64 {
        u64::MAX
    }

    fn observe(&mut self, step: &Step<'_>) {
        match step {
            Step::Accept { connection, service, .. } if *service == self.service => {
                self.accepted.insert(*connection);
            }
            Step::Close { gone, .. } if self.accepted.remove(&gone.id) => self.state.lighten(),
            Step::Refuse { service, .. } if *service == self.service => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                self.state.lighten();
            }
            _ => {}
        }
    }
}

/// A reactor on the thread of a shard. When the thread ends, by a panic too, nothing of it counts any more.
struct Running {
    reactor: Reactor,
    state: Arc<ShardState>,
}

impl Drop for Running {
    fn drop(&mut self) {
        *locked(&self.state.is_stopped) = true;
        self.reactor.event_loop.table.release_all_addresses();
        self.state.load.store(0, Ordering::Relaxed);
    }
}

/// The thread of a shard.
pub(super) fn run_shard<S: Service>(
    limits: Limits,
    started: &Sender<io::Result<Shard<S>>>,
    all: &All<S>,
    make: impl FnOnce(&mut Reactor) -> io::Result<Key<S>>,
) -> io::Result<Stats> {
    let max = limits.connections;
    let state = Arc::new(ShardState::default());
    let made = Reactor::new(limits).and_then(|mut reactor| make(&mut reactor).map(|key| (reactor, key)));
    let (reactor, key) = match made {
        Ok(made) => made,
        Err(error) => {
            let again = io::Error::new(error.kind(), error.to_string());
            // The caller waits for it.
            let _ = started.send(Err(error));
            return Err(again);
        }
    };
    let mut running = Running { reactor, state: state.clone() };
    let reactor = &mut running.reactor;
    reactor.observe(LoadObserver {
        service: key.id(),
        state: state.clone(),
        refused: all.refused.clone(),
        accepted: HashSet::new(),
    });
    let table = &mut reactor.event_loop.table;
    let later = table.cx.epoch.ticks_after(all.started);
    let share = Arc::new(AtomicUsize::new(usize::MAX));
    let (admission, connections) = (all.admission.clone(), share.clone());
    table.share_admission(key.id().number, SharedAdmission { admission, connections, later });
    // The caller waits for it.
    let _ = started.send(Ok(Shard { handle: reactor.handle(), key, state, max, share }));
    running.run()
}

impl Running {
    fn run(&mut self) -> io::Result<Stats> {
        // It turns until it is stopped: `run` would return before there is a listener.
        while !self.reactor.is_shutting_down() {
            match self.state.stop.get().copied() {
                Some(grace) => {
                    self.accept_all()?;
                    self.reactor.shutdown(grace);
                }
                None => drop(self.reactor.turn(None)?),
            }
        }
        *locked(&self.state.is_stopped) = true;
        self.reactor.run()?;
        Ok(self.reactor.stats())
    }

    /// Accepts what was handed over before the stop, as long as there is room for more.
    fn accept_all(&mut self) -> io::Result<()> {
        let mut waiting = usize::MAX;
        while (1..waiting).contains(&self.state.waiting()) {
            waiting = self.state.waiting();
            for (listener, _) in locked(&self.state.queues).iter() {
                self.reactor.event_loop.table.on_handed_over(*listener);
            }
            self.reactor.turn(Some(Duration::ZERO))?;
        }
        Ok(())
    }
}
