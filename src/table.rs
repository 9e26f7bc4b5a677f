//! All connections: the slab, its cap, and the queues that a turn works through.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::arena::{Arena, Chain};
use crate::closed::Closed;
use crate::connection::{Connection, NOT_DIRTY, Stage};
use crate::id::{Births, ConnId};
use crate::inbox::Inbox;
use crate::limits::{Limits, SocketLimits};
use crate::shared::Shared;
use crate::stats::Stats;
use crate::time::Tick;
use crate::wheel::Wheel;

/// Every connection, and who is to be looked at next.
///
/// ```text
///     slots     ┌────┬────┬────┬────┬────┬─ … ─┐   a slab: freed only by reap, reused with a new generation
///               │ 0  │ 1  │ 2  │ 3  │    │     │
///               └─┬──┴────┴─┬──┴─┬──┴────┴─────┘
///     ready  ─────┘         │    │    has readable bytes and a service that wants them
///     dirty  ───────────────┘    │    has something to write, with what it sends this turn
///     doomed ────────────────────┘    has ended; reap frees the slot
/// ```
///
/// A connection stands in a queue at most once: its own flag says whether it does. The queues hold ids: a slot may have
/// been freed and taken again before a queue is looked at.
pub(crate) struct Table {
    pub(crate) slots: Slab<Connection>,
    births: Births,
    pub(crate) wheel: Wheel,
    pub(crate) arena: Arena,
    pub(crate) ready: Vec<ConnId>,
    pub(crate) dirty: Vec<Dirty>,
    pub(crate) doomed: Vec<u32>,
    /// Dialed by a service, not yet by the system.
    pub(crate) newborn: Vec<ConnId>,
    /// Who is lingering, longest first, and some that have gone since; and how many are really there.
    lingering: VecDeque<ConnId>,
    lingerers: usize,
    /// How many of the slots belong to peers that are being refused.
    pub(crate) refusals: usize,
    /// Bytes in inboxes and outboxes.
    pub(crate) memory: usize,
    pub(crate) limits: Limits,
    /// By service.
    pub(crate) socket_limits: Vec<SocketLimits>,
    pub(crate) now: Tick,
    /// The clock as it was read in this turn.
    pub(crate) instant: Instant,
    pub(crate) stats: Stats,
    pub(crate) stop: Option<Stop>,
}

/// A connection with something to write, and what it was sent in this turn.
#[derive(Clone, Copy)]
pub(crate) struct Dirty {
    pub(crate) id: ConnId,
    pub(crate) chain: Chain,
}

/// What was asked of the reactor as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Close the listeners; end what remains after the grace.
    Shutdown(Duration),
    Now,
}

/// The service of refused peers: it says that the house is full.
pub(crate) const DOORMAN: u16 = 0;

impl Table {
    pub(crate) fn new(limits: Limits, first_generation: NonZeroU32, instant: Instant) -> Table {
        Table {
            slots: Slab::new(),
            births: Births::starting_at(first_generation),
            wheel: Wheel::new(),
            arena: Arena::new(),
            ready: Vec::new(),
            dirty: Vec::new(),
            doomed: Vec::new(),
            newborn: Vec::new(),
            lingering: VecDeque::new(),
            lingerers: 0,
            refusals: 0,
            memory: 0,
            socket_limits: Vec::new(),
            limits,
            now: Tick(0),
            instant,
            stats: Stats::default(),
            stop: None,
        }
    }

    /// Connections of services: those being refused are not counted.
    pub(crate) fn connections(&self) -> usize {
        self.slots.len() - self.refusals
    }

    pub(crate) fn has_room(&self) -> bool {
        self.connections() < self.limits.connections
    }

    pub(crate) fn can_refuse(&self) -> bool {
        self.refusals < self.limits.refusals
    }

    /// Takes a slot. The caller has asked whether there is room.
    pub(crate) fn insert(&mut self, host: u16, stage: Stage, peer: SocketAddr) -> ConnId {
        let generation = self.births.next();
        let mut connection = Connection::new(generation, host, stage, peer, self.now);
        connection.flags.dialed = stage == Stage::Connecting;
        self.refusals += usize::from(host == DOORMAN);
        let slot = self.slots.insert(connection) as u32;
        self.rearm(slot);
        ConnId { slot, generation }
    }

    /// Frees a slot; only `reap` calls this.
    pub(crate) fn remove(&mut self, slot: u32) -> Connection {
        let mut connection = self.slots.remove(slot as usize);
        debug_assert_eq!(connection.stage, Stage::Doomed);
        self.wheel.cancel(slot);
        self.refusals -= usize::from(connection.host == DOORMAN);
        self.memory -= connection.inbox.take().map_or(0, |inbox| inbox.charge());
        self.memory -= connection.outbox.take().map_or(0, |mut outbox| outbox.clear());
        connection
    }

    pub(crate) fn id(&self, slot: u32) -> ConnId {
        ConnId { slot, generation: self.at(slot).generation }
    }

    /// The connection in a slot that is known to be taken.
    pub(crate) fn at(&self, slot: u32) -> &Connection {
        &self.slots[slot as usize]
    }

    pub(crate) fn at_mut(&mut self, slot: u32) -> &mut Connection {
        &mut self.slots[slot as usize]
    }

    /// The slot of an id whose connection is there, closing or not.
    pub(crate) fn find(&self, id: ConnId) -> Option<u32> {
        let connection = self.slots.get(id.slot as usize)?;
        (connection.generation == id.generation).then_some(id.slot)
    }

    /// The slot of an id that a user may still reach: what is closing is gone already.
    pub(crate) fn live(&self, id: ConnId) -> Option<u32> {
        self.find(id).filter(|&slot| self.at(slot).is_live() && self.at(slot).host != DOORMAN)
    }

    pub(crate) fn limits_of(&self, slot: u32) -> &SocketLimits {
        &self.socket_limits[usize::from(self.at(slot).host)]
    }

    /// Both at once, for those who change the one by the other.
    fn with_limits(&mut self, slot: u32) -> (&mut Connection, &SocketLimits) {
        let connection = &mut self.slots[slot as usize];
        let limits = &self.socket_limits[usize::from(connection.host)];
        (connection, limits)
    }

    // -- the queues ----------------------------------------------------------------------------

    /// Puts it in line to be served, if that would do anything.
    pub(crate) fn push_ready(&mut self, slot: u32) {
        let (connection, limits) = self.with_limits(slot);
        if !connection.flags.ready && connection.wants_serving(limits) {
            connection.flags.ready = true;
            let generation = connection.generation;
            self.ready.push(ConnId { slot, generation });
        }
    }

    /// Puts it in line to be flushed; returns its entry.
    pub(crate) fn push_dirty(&mut self, slot: u32) -> usize {
        let connection = &mut self.slots[slot as usize];
        if connection.dirty == NOT_DIRTY {
            connection.dirty = self.dirty.len() as u32;
            let id = ConnId { slot, generation: connection.generation };
            self.dirty.push(Dirty { id, chain: Chain::EMPTY });
        }
        connection.dirty as usize
    }

    /// Ends it: nothing more is read, written or delivered, and `reap` says goodbye.
    pub(crate) fn doom(&mut self, slot: u32, why: Closed) {
        let connection = &mut self.slots[slot as usize];
        if connection.stage != Stage::Doomed {
            let lingered = connection.stage == Stage::Lingering && connection.host != DOORMAN;
            self.lingerers -= usize::from(lingered);
            connection.stage = Stage::Doomed;
            connection.why.get_or_insert(why);
            self.doomed.push(slot);
        }
    }

    // -- what a socket can be asked to do ----------------------------------------------------------

    pub(crate) fn send(&mut self, slot: u32, bytes: &[u8]) {
        if self.may_queue(slot, bytes.len()) {
            let entry = self.push_dirty(slot);
            self.arena.push(&mut self.dirty[entry].chain, bytes);
        }
    }

    pub(crate) fn send_shared(&mut self, slot: u32, shared: &Shared) {
        if self.may_queue(slot, shared.bytes().len()) {
            let entry = self.push_dirty(slot);
            self.arena.push_shared(&mut self.dirty[entry].chain, shared);
        }
    }

    /// The one thing a refused peer is told.
    pub(crate) fn send_to_refused(&mut self, slot: u32, busy: &Shared) {
        self.send_shared(slot, busy);
        self.close(slot, Closed::Local);
    }

    /// Whether bytes can still be sent. A peer whose kernel buffer is known to be full is closed as soon as its
    /// queue would pass the cap; one that has not been tried in this turn gets its chance at the flush.
    fn may_queue(&mut self, slot: u32, length: usize) -> bool {
        let (queued, high) = (self.queued(slot) + length, self.high_water(slot));
        let (connection, limits) = self.with_limits(slot);
        if !connection.is_live() || connection.flags.finishing {
            self.stats.sent_too_late += length as u64;
            return false;
        }
        if !connection.flags.writable && queued > limits.queue {
            self.doom(slot, Closed::SlowReader);
            return false;
        }
        // Full from here on, even if the kernel takes it all a moment later: who was told so waits for `drained`.
        connection.flags.full |= queued >= high;
        true
    }

    /// Bytes sent and not yet taken by the kernel.
    pub(crate) fn queued(&self, slot: u32) -> usize {
        let connection = self.at(slot);
        let this_turn = self.dirty.get(connection.dirty as usize).map_or(0, |dirty| dirty.chain.len());
        connection.queued() + this_turn
    }

    /// From four fifths of the memory on, any queue at all counts as full.
    pub(crate) fn high_water(&self, slot: u32) -> usize {
        if self.memory > self.limits.memory / 5 * 4 { 1 } else { self.limits_of(slot).high_water.max(1) }
    }

    pub(crate) fn finish(&mut self, slot: u32) {
        if self.at(slot).is_live() {
            self.at_mut(slot).flags.finishing = true;
            self.push_dirty(slot);
        }
    }

    /// Flush, then both ways.
    pub(crate) fn close(&mut self, slot: u32, why: Closed) {
        let now = self.now;
        let connection = self.at_mut(slot);
        match connection.stage {
            Stage::Connecting => self.doom(slot, why),
            Stage::Open => {
                connection.stage = Stage::Closing;
                connection.why = Some(why);
                connection.touched = now;
                self.drop_inbox(slot);
                self.push_dirty(slot);
                self.push_ready(slot);
                self.rearm(slot);
            }
            Stage::Closing | Stage::Lingering | Stage::Doomed => {}
        }
    }

    pub(crate) fn pause(&mut self, slot: u32) {
        self.at_mut(slot).flags.paused = true;
    }

    pub(crate) fn resume(&mut self, slot: u32) {
        let now = self.now;
        let connection = self.at_mut(slot);
        if connection.flags.paused {
            connection.flags.paused = false;
            connection.flags.redeliver = connection.inbox.is_some();
            if let Some(inbox) = &mut connection.inbox {
                // A message's clocks do not run while nobody wants it.
                inbox.begin(now);
            }
            self.push_ready(slot);
            self.rearm(slot);
        }
    }

    // -- buffers -------------------------------------------------------------------------------

    /// Keeps what a service did not take; nothing at all when it took everything. `arrived` bytes were new;
    /// `taken` says whether the message at the front is another than before.
    pub(crate) fn keep(&mut self, slot: u32, rest: &[u8], scanned: usize, arrived: usize, taken: bool) {
        if rest.is_empty() {
            return self.drop_inbox(slot);
        }
        let mut inbox = self.at_mut(slot).inbox.take().unwrap_or_default();
        let (before, begins) = (inbox.charge(), inbox.charge() == 0 || taken);
        inbox.refill(rest, scanned);
        self.put_back(slot, inbox, before, arrived, begins);
    }

    /// Puts an inbox back in its place, charges what it has grown by since it was charged with `before`, and starts
    /// the message's clocks, or counts what `arrived` as its progress.
    pub(crate) fn put_back(
        &mut self,
        slot: u32,
        mut inbox: Box<Inbox>,
        before: usize,
        arrived: usize,
        begins: bool,
    ) {
        self.memory = self.memory - before + inbox.charge();
        if begins {
            inbox.begin(self.now);
        } else {
            inbox.span.moved += arrived;
        }
        self.at_mut(slot).inbox = Some(inbox);
        if begins {
            self.rearm(slot);
        }
    }

    pub(crate) fn drop_inbox(&mut self, slot: u32) {
        if let Some(inbox) = self.at_mut(slot).inbox.take() {
            self.memory -= inbox.charge();
        }
    }

    /// Copies what is left of a chain into the connection's own queue.
    pub(crate) fn stash(&mut self, slot: u32, chain: Chain) {
        if chain.len() == 0 {
            return;
        }
        let now = self.now;
        let connection = &mut self.slots[slot as usize];
        let begins = connection.outbox.is_none();
        let outbox = connection.outbox.get_or_insert_default();
        self.memory += self.arena.stash(chain, outbox);
        if begins {
            outbox.span.since = now;
            self.rearm(slot);
        }
    }

    pub(crate) fn drop_outbox(&mut self, slot: u32) {
        if let Some(mut outbox) = self.at_mut(slot).outbox.take() {
            self.memory -= outbox.clear();
        }
    }

    /// Closes whoever holds most until the budget holds again.
    ///
    /// Looking at every slot is the price of keeping no order while nothing is wrong; each look frees the most
    /// that can be freed at once.
    pub(crate) fn evict(&mut self) {
        while self.memory > self.limits.memory {
            let alive = self.slots.iter().filter(|(_, connection)| connection.stage != Stage::Doomed);
            let Some((largest, held)) = alive
                .map(|(slot, connection)| (slot as u32, connection.held()))
                .max_by_key(|&(_, held)| held)
            else {
                return;
            };
            if held == 0 {
                return;
            }
            log::warn!("{}: closed, its {held} bytes were the most when memory ran out", self.id(largest));
            self.doom(largest, Closed::Memory);
            self.drop_inbox(largest);
            self.drop_outbox(largest);
        }
    }

    // -- time ------------------------------------------------------------------------------------

    /// Moves the wheel's entry when something is due sooner than it says. A later deadline is left to be found
    /// when the entry fires.
    pub(crate) fn rearm(&mut self, slot: u32) {
        let Some((when, _)) = self.at(slot).deadline(self.limits_of(slot)) else { return };
        if self.wheel.when(slot).is_none_or(|armed| when < armed) {
            self.wheel.arm(slot, when);
        }
    }

    /// Takes one into the ring of lingering ones, and ends the eldest when they are too many: peers that do not
    /// leave must not hold the house, so they get a twentieth of it.
    pub(crate) fn linger(&mut self, slot: u32) {
        let now = self.now;
        let connection = self.at_mut(slot);
        connection.stage = Stage::Lingering;
        connection.touched = now;
        let refused = connection.host == DOORMAN;
        self.rearm(slot);
        self.push_ready(slot);
        if refused {
            return; // Those have a limit of their own.
        }
        self.lingering.push_back(self.id(slot));
        self.lingerers += 1;
        let most = (self.limits.connections / 20).max(16);
        if self.lingering.len() > 2 * most {
            let slots = &self.slots;
            self.lingering.retain(|id| {
                let there = slots.get(id.slot as usize).filter(|found| found.generation == id.generation);
                there.is_some_and(|connection| connection.stage == Stage::Lingering)
            });
        }
        while self.lingerers > most {
            let Some(eldest) = self.lingering.pop_front() else { return };
            if let Some(slot) = self.find(eldest) {
                self.doom(slot, Closed::Local);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::mem;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_is_no_larger_than_what_it_holds() {
        // slab marks a vacant slot in a niche of the connection, so holding one costs nothing besides.
        let mut slots = Slab::<Connection>::with_capacity(1);
        slots.insert(Connection::new(NonZeroU32::MIN, 0, Stage::Open, "[::1]:1".parse().unwrap(), Tick(0)));
        slots.insert(Connection::new(NonZeroU32::MIN, 0, Stage::Open, "[::1]:1".parse().unwrap(), Tick(0)));
        let distance = &raw const slots[1] as usize - &raw const slots[0] as usize;
        assert_eq!(distance, size_of::<Connection>());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { refused: bool },
        Doom(usize),
        Reap,
        Keep(usize, usize),
        DropInbox(usize),
        Send(usize, usize),
        Close(usize),
        Flush,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<bool>().prop_map(|refused| Step::Insert { refused }),
            2 => any::<usize>().prop_map(Step::Doom),
            1 => Just(Step::Reap),
            2 => (any::<usize>(), 0_usize..5_000).prop_map(|(which, bytes)| Step::Keep(which, bytes)),
            1 => any::<usize>().prop_map(Step::DropInbox),
            3 => (any::<usize>(), 1_usize..5_000).prop_map(|(which, bytes)| Step::Send(which, bytes)),
            1 => any::<usize>().prop_map(Step::Close),
            2 => Just(Step::Flush),
        ];
        vec(step, 1..200)
    }

    /// What a plain map knows of a connection.
    #[derive(Default)]
    struct Known {
        refused: bool,
        closing: bool,
        doomed: bool,
        kept: usize,
        queued: usize,
    }

    /// The table beside a map, and every id that there ever was.
    struct Pair {
        table: Table,
        model: HashMap<ConnId, Known>,
        ids: Vec<ConnId>,
    }

    impl Pair {
        fn new() -> Pair {
            // Near the wrap of the counter, where a generation must not be used twice either.
            let first = NonZeroU32::new(u32::MAX - 20).unwrap();
            let mut table = Table::new(Limits::default(), first, Instant::now());
            table.socket_limits = vec![SocketLimits::default(); 2];
            Pair { table, model: HashMap::new(), ids: Vec::new() }
        }

        /// One of those that are not doomed.
        fn pick(&self, which: usize) -> Option<ConnId> {
            let living: Vec<ConnId> = self.ids.iter().copied().filter(|id| self.is_alive(id)).collect();
            (!living.is_empty()).then(|| living[which % living.len()])
        }

        fn is_alive(&self, id: &ConnId) -> bool {
            self.model.get(id).is_some_and(|known| !known.doomed)
        }

        fn step(&mut self, step: Step) {
            let (which, bytes) = match step {
                Step::Insert { refused } => return self.insert(refused),
                Step::Reap => return self.reap(),
                Step::Flush => return self.flush(),
                Step::Keep(which, bytes) | Step::Send(which, bytes) => (which, bytes),
                Step::Doom(which) | Step::DropInbox(which) | Step::Close(which) => (which, 0),
            };
            let Some(id) = self.pick(which) else { return };
            let known = self.model.get_mut(&id).unwrap();
            match step {
                Step::Doom(_) => self.doom(id),
                Step::Keep(..) => {
                    self.table.keep(id.slot, &vec![1; bytes], 0, bytes, true);
                    known.kept = bytes;
                }
                Step::DropInbox(_) => {
                    self.table.drop_inbox(id.slot);
                    known.kept = 0;
                }
                Step::Send(..) => {
                    self.table.send(id.slot, &vec![2; bytes]);
                    known.queued += if known.closing { 0 } else { bytes };
                }
                _ => {
                    self.table.close(id.slot, Closed::Local);
                    (known.closing, known.kept) = (true, if known.closing { known.kept } else { 0 });
                }
            }
        }

        fn doom(&mut self, id: ConnId) {
            self.table.doom(id.slot, Closed::Reset);
            self.model.get_mut(&id).unwrap().doomed = true;
        }

        fn insert(&mut self, refused: bool) {
            let host = if refused { DOORMAN } else { 1 };
            let id = self.table.insert(host, Stage::Open, "[::1]:1".parse().unwrap());
            self.table.at_mut(id.slot).flags.writable = true;
            assert!(!self.ids.contains(&id), "{id} names two connections");
            self.ids.push(id);
            self.model.insert(id, Known { refused, ..Known::default() });
        }

        fn reap(&mut self) {
            for slot in mem::take(&mut self.table.doomed) {
                let id = self.table.id(slot);
                self.table.remove(slot);
                assert!(
                    self.model.remove(&id).is_some_and(|known| known.doomed),
                    "{id} was not doomed, or twice"
                );
            }
            assert!(!self.model.values().any(|known| known.doomed), "one that was doomed was forgotten");
        }

        /// As if the kernel took nothing.
        fn flush(&mut self) {
            for dirty in mem::take(&mut self.table.dirty) {
                if let Some(slot) = self.table.find(dirty.id) {
                    self.table.at_mut(slot).dirty = NOT_DIRTY;
                    self.table.stash(slot, dirty.chain);
                }
            }
            self.table.arena.empty();
        }

        fn check(&self) {
            let (table, model) = (&self.table, &self.model);
            assert_eq!(table.slots.len(), model.len());
            assert_eq!(table.refusals, model.values().filter(|known| known.refused).count());
            assert_eq!(table.connections(), model.values().filter(|known| !known.refused).count());
            for id in &self.ids {
                let known = model.get(id);
                assert_eq!(table.find(*id), known.map(|_| id.slot));
                let live = known.is_some_and(|known| !known.doomed && !known.closing && !known.refused);
                assert_eq!(table.live(*id).is_some(), live);
                let Some(known) = known else { continue };
                let connection = table.at(id.slot);
                assert_eq!(connection.inbox.as_ref().map_or(0, |inbox| inbox.kept().len()), known.kept);
                assert_eq!(table.queued(id.slot), known.queued);
            }
            let held: usize = table.slots.iter().map(|(_, connection)| connection.held()).sum();
            // Capacities are powers of two, and each chunk of a queue costs something besides.
            let most = 2 * held + 128 * model.len();
            assert!(table.memory >= held && table.memory <= most, "{} for {held}", table.memory);
        }
    }

    proptest! {
        #[test]
        fn the_table_is_a_map_of_everyone_who_is_there(steps in steps()) {
            let mut pair = Pair::new();
            for step in steps {
                pair.step(step);
                pair.check();
            }
            for id in pair.ids.clone() {
                if pair.is_alive(&id) {
                    pair.doom(id);
                }
            }
            pair.reap();
            pair.check();
            assert_eq!((pair.table.memory, pair.table.refusals), (0, 0));
        }
    }
}
