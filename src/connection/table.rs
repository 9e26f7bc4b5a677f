//! All connections: the slab, its cap, and the queues that a turn works through.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use slab::Slab;

use super::rate::Group;
use super::sockets::Epoch;
use crate::base::address::{Address, PeerAddress};
use crate::base::id::{ConnId, GenerationCounter, GroupId, ListenerId};
use crate::base::reason::CloseReason;
use crate::base::stats::Stats;
use crate::base::tick::Tick;
use crate::config::dial::SocketOption;
use crate::config::limits::{Limits, SocketLimits};
use crate::connection::{Connection, Flag, NO_LOCAL, NOT_DIRTY, Stage};
use crate::parts::admission::Admission;
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::handshake_queue::HandshakeQueue;
use crate::parts::log_limit::LogLimit;
use crate::parts::timers::Timers;
use crate::parts::token_bucket::{TokenBucket, burst};
use crate::parts::wheel::Wheel;

/// Every connection, and who is to be looked at next.
///
/// ```text
///     slots     ┌────┬────┬────┬────┬────┬─ … ─┐   a slab: freed only by reap, reused with a new generation
///               │ 0  │ 1  │ 2  │ 3  │    │     │
///               └─┬──┴────┴─┬──┴─┬──┴────┴─────┘
///     ready  ─────┘         │    │    has readable bytes and a service that wants them
///     dirty  ───────────────┘    │    has something to write, with what it sends this turn
///     to_reap ───────────────────┘    has ended; reap frees the slot
/// ```
///
/// A connection stands in a queue at most once: its own flag says whether it does. The queues hold ids: a slot may have
/// been freed and taken again before a queue is looked at.
pub(crate) struct Table {
    pub(crate) slots: Slab<Connection>,
    generations: GenerationCounter,
    pub(crate) wheel: Wheel,
    pub(crate) arena: Arena,
    pub(crate) ready: Vec<ConnId>,
    pub(crate) dirty: Vec<Dirty>,
    pub(crate) to_reap: Vec<u32>,
    /// Dialed by a service, not yet by the system.
    pub(crate) pending_dials: Vec<ConnId>,
    /// Who is lingering, longest first, and some that have gone since; and how many are really there.
    lingering: VecDeque<ConnId>,
    lingering_count: usize,
    /// How many of the slots belong to peers that are being refused, and how many of these are held in silence.
    pub(crate) refusals: usize,
    pub(crate) tarpitted: usize,
    /// Slots kept for connections that are there and will need a second one.
    pub(crate) reserved: usize,
    /// Bytes in inboxes and outboxes.
    pub(crate) memory: usize,
    /// From four fifths of their budget on.
    pub(super) memory_pressure: usize,
    pub(crate) limits: Limits,
    /// By service.
    pub(crate) socket_limits: Vec<SocketLimits>,
    pub(crate) admissions: Vec<Option<Box<Admission>>>,
    /// How many connections each service has.
    pub(crate) connections_by_service: Vec<usize>,
    /// Listeners that are to be closed.
    pub(crate) listeners_to_close: Vec<ListenerId>,
    /// Whether a pipe was undone since the last write phase.
    pub(crate) unpiped: bool,
    /// Rates that several connections share.
    pub(crate) groups: Vec<Group>,
    /// The machine's own addresses, as far as somebody came to them. Most machines have a handful.
    local_addresses: Vec<SocketAddr>,
    /// What services asked of the system for connections that have a stream.
    pub(crate) pending_options: Vec<(ConnId, SocketOption)>,
    pub(crate) timers: Timers,
    pub(crate) handshakes: HandshakeQueue,
    pub(crate) log_limits: LogLimits,
    /// Where the next random number comes from. None is needed but to spread clients that dial again.
    pub(crate) rng_state: u64,
    pub(crate) now: Tick,
    /// What time is counted from, and how long before this turn that was.
    pub(crate) epoch: Epoch,
    pub(crate) elapsed: Duration,
    pub(crate) stats: Stats,
    pub(crate) stop: Option<Stop>,
}

/// A connection with something to write, and what it was sent in this turn.
#[derive(Clone, Copy)]
pub(crate) struct Dirty {
    pub(crate) id: ConnId,
    pub(crate) segments: SegmentList,
}

/// What was asked of the reactor as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Close the listeners; end what remains after the grace.
    Shutdown(Duration),
    Now,
}

/// What peers can make the loop log at its usual level, each at most once a second.
#[derive(Default)]
pub(crate) struct LogLimits {
    pub(crate) tls_failed: LogLimit,
    pub(crate) evicted: LogLimit,
    pub(crate) dry_run: LogLimit,
    pub(crate) accepts_paused: LogLimit,
}

/// The service of refused peers: it says that the reactor is at capacity.
pub(crate) const REFUSED: u16 = 0;

impl Table {
    pub(crate) fn new(limits: Limits, first_generation: NonZeroU32, epoch: Epoch) -> Table {
        Table {
            slots: Slab::with_capacity(limits.slots()),
            generations: GenerationCounter::starting_at(first_generation),
            wheel: Wheel::for_slots(limits.slots()),
            arena: Arena::new(),
            ready: Vec::new(),
            dirty: Vec::new(),
            to_reap: Vec::new(),
            pending_dials: Vec::new(),
            lingering: VecDeque::new(),
            lingering_count: 0,
            refusals: 0,
            tarpitted: 0,
            reserved: 0,
            memory: 0,
            memory_pressure: limits.memory / 5 * 4,
            socket_limits: Vec::new(),
            admissions: Vec::new(),
            connections_by_service: Vec::new(),
            listeners_to_close: Vec::new(),
            unpiped: false,
            groups: Vec::new(),
            local_addresses: Vec::new(),
            pending_options: Vec::new(),
            timers: Timers::new(),
            handshakes: HandshakeQueue::default(),
            log_limits: LogLimits::default(),
            rng_state: 0,
            limits,
            now: Tick(0),
            epoch,
            elapsed: Duration::ZERO,
            stats: Stats::default(),
            stop: None,
        }
    }

    /// Connections of services: those being refused are not counted.
    pub(crate) fn connections(&self) -> usize {
        self.slots.len() - self.refusals
    }

    /// Whether so many more fit in, beside those who are there and what is kept for them.
    pub(crate) fn has_room_for(&self, slots: usize) -> bool {
        self.connections() + self.reserved + slots <= self.limits.connections
    }

    /// Whether somebody who comes to a service fits in, in the reactor and by the service's own guard.
    pub(crate) fn has_room_for_service(&self, service: u16, slots: usize) -> bool {
        let service = usize::from(service);
        let max = self.admissions[service].as_ref().and_then(|admission| admission.policy.connections);
        self.has_room_for(slots) && max.is_none_or(|max| self.connections_by_service[service] < max)
    }

    pub(crate) fn can_refuse(&self) -> bool {
        self.refusals < self.limits.refusals
    }

    /// Takes a slot. The caller has asked whether there is room.
    pub(crate) fn insert(&mut self, service: u16, stage: Stage, peer: PeerAddress) -> ConnId {
        let generation = self.generations.next();
        let mut connection = Connection::new(generation, service, stage, peer, self.now);
        connection.flags.set(Flag::Dialed, stage == Stage::Connecting);
        let SocketLimits { rate, group, read_when_full, .. } = self.socket_limits[usize::from(service)];
        connection.flags.set(Flag::ReadWhenFull, read_when_full);
        if rate.is_some() || group.is_some() {
            let optional = connection.optional();
            if let Some(rate) = rate {
                optional.overrides().bucket = Some(TokenBucket::new(rate, burst(rate), self.now));
            }
            optional.group =
                group.map(|GroupId(index)| index).filter(|&index| usize::from(index) < self.groups.len());
        }
        self.refusals += usize::from(service == REFUSED);
        self.connections_by_service[usize::from(service)] += 1;
        let slot = self.slots.insert(connection) as u32;
        self.rearm(slot);
        ConnId { slot, generation }
    }

    /// Frees a slot; only `reap` calls this.
    pub(crate) fn remove(&mut self, slot: u32) -> Connection {
        let mut connection = self.slots.remove(slot as usize);
        debug_assert_eq!(connection.stage, Stage::Dead);
        self.wheel.cancel(slot);
        let refused = connection.service == REFUSED;
        self.refusals -= usize::from(refused);
        self.connections_by_service[usize::from(connection.service)] -= 1;
        self.tarpitted -= usize::from(refused && connection.flags.contains(Flag::Paused));
        self.reserved -= usize::from(connection.flags.contains(Flag::HoldsReservedSlot));
        self.leave_group(&connection);
        self.release_address(&connection);
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

    /// The slot of an id that a user may reach: who is closing is gone already, and who has called but not shown who
    /// he is has not come yet.
    pub(crate) fn live(&self, id: ConnId) -> Option<u32> {
        self.find(id).filter(|&slot| {
            let connection = self.at(slot);
            connection.is_live() && connection.service != REFUSED && !connection.is_handshaking_inbound()
        })
    }

    /// The local end of a connection.
    pub(crate) fn local(&self, slot: u32) -> Option<Address> {
        let connection = self.at(slot);
        let listed =
            self.local_addresses.get(usize::from(connection.local)).map(|&address| Address::Inet(address));
        listed.or_else(|| connection.optional.as_ref()?.local.map(Address::from))
    }

    /// Notes the local end. That of an accepted connection is one of few, so a byte says which.
    pub(crate) fn set_local(&mut self, slot: u32, local: SocketAddr) {
        let known = self.local_addresses.iter().position(|known| *known == local);
        let index = known.or_else(|| {
            let fits = !self.at(slot).flags.contains(Flag::Dialed)
                && self.local_addresses.len() < usize::from(NO_LOCAL);
            fits.then(|| {
                self.local_addresses.push(local);
                self.local_addresses.len() - 1
            })
        });
        match index {
            Some(index) => self.at_mut(slot).local = index as u8,
            None => self.at_mut(slot).optional().local = Some(PeerAddress::from(local)),
        }
    }

    /// The remote end; of a dialed one what was dialed, until it is connected.
    pub(crate) fn peer(&self, slot: u32) -> Address {
        let connection = self.at(slot);
        match connection.dial().and_then(|dial| dial.to.as_ref()) {
            Some(to) if connection.stage == Stage::Connecting || connection.peer.inet().is_none() => {
                to.clone()
            }
            _ => Address::from(connection.peer),
        }
    }

    pub(crate) fn limits_of(&self, slot: u32) -> &SocketLimits {
        &self.socket_limits[usize::from(self.at(slot).service)]
    }

    // -- the queues ----------------------------------------------------------------------------

    /// Puts it in line to be served, if that would do anything.
    #[inline]
    pub(crate) fn push_ready(&mut self, slot: u32) {
        let connection = &mut self.slots[slot as usize];
        if !connection.flags.contains(Flag::Ready) && connection.wants_turn() {
            connection.flags.insert(Flag::Ready);
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
            self.dirty.push(Dirty { id, segments: SegmentList::EMPTY });
        }
        connection.dirty as usize
    }

    /// Ends it: nothing more is read, written or delivered, and `reap` says goodbye.
    pub(crate) fn close_now(&mut self, slot: u32, why: CloseReason) {
        let connection = &mut self.slots[slot as usize];
        if connection.stage != Stage::Dead {
            let lingered = connection.stage == Stage::Lingering && connection.service != REFUSED;
            self.lingering_count -= usize::from(lingered);
            connection.stage = Stage::Dead;
            connection.close_reason.get_or_insert(why);
            self.to_reap.push(slot);
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
    /// leave must not hold all slots, so they get a twentieth of them.
    pub(crate) fn start_linger(&mut self, slot: u32) {
        let now = self.now;
        let connection = self.at_mut(slot);
        connection.stage = Stage::Lingering;
        connection.last_activity = now;
        let refused = connection.service == REFUSED;
        self.rearm(slot);
        self.push_ready(slot);
        if refused {
            return; // Those have a limit of their own.
        }
        self.lingering.push_back(self.id(slot));
        self.lingering_count += 1;
        let max = (self.limits.connections / 20).max(16);
        if self.lingering.len() > 2 * max {
            let slots = &self.slots;
            self.lingering.retain(|id| {
                let there = slots.get(id.slot as usize).filter(|found| found.generation == id.generation);
                there.is_some_and(|connection| connection.stage == Stage::Lingering)
            });
        }
        while self.lingering_count > max {
            let Some(eldest) = self.lingering.pop_front() else { return };
            if let Some(slot) = self.find(eldest) {
                self.close_now(slot, CloseReason::Local);
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
        slots.insert(Connection::new(NonZeroU32::MIN, 0, Stage::Open, PeerAddress::UNIX, Tick(0)));
        slots.insert(Connection::new(NonZeroU32::MIN, 0, Stage::Open, PeerAddress::UNIX, Tick(0)));
        let distance = &raw const slots[1] as usize - &raw const slots[0] as usize;
        assert_eq!(distance, size_of::<Connection>());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { refused: bool },
        CloseNow(usize),
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
            2 => any::<usize>().prop_map(Step::CloseNow),
            1 => Just(Step::Reap),
            2 => (any::<usize>(), 1_usize..5_000).prop_map(|(which, bytes)| Step::Keep(which, bytes)),
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
        dead: bool,
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
            let mut table = Table::new(Limits::default(), first, Epoch::from_now());
            table.socket_limits = vec![SocketLimits::default(); 2];
            table.connections_by_service = vec![0; 2];
            Pair { table, model: HashMap::new(), ids: Vec::new() }
        }

        /// One of those that are not dead.
        fn pick(&self, which: usize) -> Option<ConnId> {
            let living: Vec<ConnId> = self.ids.iter().copied().filter(|id| self.is_alive(id)).collect();
            (!living.is_empty()).then(|| living[which % living.len()])
        }

        fn is_alive(&self, id: &ConnId) -> bool {
            self.model.get(id).is_some_and(|known| !known.dead)
        }

        fn step(&mut self, step: Step) {
            let (which, bytes) = match step {
                Step::Insert { refused } => return self.insert(refused),
                Step::Reap => return self.reap(),
                Step::Flush => return self.flush(),
                Step::Keep(which, bytes) | Step::Send(which, bytes) => (which, bytes),
                Step::CloseNow(which) | Step::DropInbox(which) | Step::Close(which) => (which, 0),
            };
            let Some(id) = self.pick(which) else { return };
            let known = self.model.get_mut(&id).unwrap();
            match step {
                Step::CloseNow(_) => self.close_now(id),
                Step::Keep(..) => {
                    self.table.keep_input(id.slot, &vec![1; bytes], 0, bytes, true);
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
                    self.table.close(id.slot, CloseReason::Local);
                    (known.closing, known.kept) = (true, if known.closing { known.kept } else { 0 });
                }
            }
        }

        fn close_now(&mut self, id: ConnId) {
            self.table.close_now(id.slot, CloseReason::Reset);
            self.model.get_mut(&id).unwrap().dead = true;
        }

        fn insert(&mut self, refused: bool) {
            let service = if refused { REFUSED } else { 1 };
            let id = self.table.insert(service, Stage::Open, PeerAddress::UNIX);
            self.table.at_mut(id.slot).flags.insert(Flag::Writable);
            assert!(!self.ids.contains(&id), "{id} names two connections");
            self.ids.push(id);
            self.model.insert(id, Known { refused, ..Known::default() });
        }

        fn reap(&mut self) {
            for slot in mem::take(&mut self.table.to_reap) {
                let id = self.table.id(slot);
                self.table.remove(slot);
                assert!(
                    self.model.remove(&id).is_some_and(|known| known.dead),
                    "{id} was not doomed, or twice"
                );
            }
            assert!(!self.model.values().any(|known| known.dead), "one that was doomed was forgotten");
        }

        /// As if the kernel took nothing.
        fn flush(&mut self) {
            for dirty in mem::take(&mut self.table.dirty) {
                if let Some(slot) = self.table.find(dirty.id) {
                    self.table.at_mut(slot).dirty = NOT_DIRTY;
                    self.table.spill(slot, dirty.segments);
                }
            }
            self.table.arena.clear();
        }

        fn check(&self) {
            let (table, model) = (&self.table, &self.model);
            assert_eq!(table.slots.len(), model.len());
            assert_eq!(table.refusals, model.values().filter(|known| known.refused).count());
            assert_eq!(table.connections(), model.values().filter(|known| !known.refused).count());
            for id in &self.ids {
                let known = model.get(id);
                assert_eq!(table.find(*id), known.map(|_| id.slot));
                let live = known.is_some_and(|known| !known.dead && !known.closing && !known.refused);
                assert_eq!(table.live(*id).is_some(), live);
                let Some(known) = known else { continue };
                let connection = table.at(id.slot);
                assert_eq!(connection.inbox.as_ref().map_or(0, |inbox| inbox.unread().len()), known.kept);
                assert_eq!(table.queued(id.slot), known.queued);
            }
            let held: usize = table.slots.iter().map(|(_, connection)| connection.buffered()).sum();
            // Capacities are powers of two, and each chunk of a queue costs something besides.
            let max = 2 * held + 128 * model.len();
            assert!(table.memory >= held && table.memory <= max, "{} for {held}", table.memory);
        }
    }

    proptest! {
        #[test]
        fn the_table_behaves_as_a_map_of_its_connections(steps in steps()) {
            let mut pair = Pair::new();
            for step in steps {
                pair.step(step);
                pair.check();
            }
            for id in pair.ids.clone() {
                if pair.is_alive(&id) {
                    pair.close_now(id);
                }
            }
            pair.reap();
            pair.check();
            assert_eq!((pair.table.memory, pair.table.refusals), (0, 0));
        }
    }
}
