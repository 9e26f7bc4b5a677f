//! All connections: look-ups by id, slots, and the limits that concern several connections.
//!
//! Read before: `connection/mod.rs` and `connection/context.rs`.

use std::any::TypeId;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use log::Level;
use slab::Slab;

use crate::base::address::PeerAddress;
use crate::base::id::{ConnId, GenerationCounter, GroupId, ReactorId, ServiceId};
use crate::base::mark::mark;
use crate::base::random::Rng;
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;
use crate::config::limits::{Limits, SocketLimits};
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::deferred::Work;
use crate::connection::listen::Listeners;
use crate::connection::pipe::PipeEnd;
use crate::connection::state::{Flag, Stage};
use crate::connection::watch::Watches;
use crate::parts::timers::Timers;
use crate::parts::token_bucket::{TokenBucket, burst};
use crate::sys::{Epoch, Registrar};

/// All connections and what they share.
///
/// ```text
///     slots     ┌────┬────┬────┬────┬────┬─ … ─┐   a slab: freed only by reap, reused with a new generation
///               │ 0  │ 1  │ 2  │ 3  │    │     │
///               └────┴────┴────┴────┴────┴─────┘
///     cx        the clock, the memory, the queues of the turn: what any connection may touch
/// ```
///
/// [`get`](Table::get) and [`at`](Table::at) borrow a connection and the context at the same time, so a phase looks a
/// connection up once and calls its methods with the context. A change to two connections is a method of the table.
pub(crate) struct Table {
    pub(crate) slots: Slab<Connection>,
    pub(crate) cx: Context,
    generations: GenerationCounter,
    /// Connections that a service has dialed in this turn; `accept` makes the system calls.
    pub(crate) pending_dials: Vec<ConnId>,
    /// Streams that were adopted in this turn; `accept` registers them and calls `open`.
    pub(crate) pending_adoptions: Vec<ConnId>,
    /// How many slots belong to refused connections: they are not counted as connections of services.
    pub(crate) refusals: usize,
    /// How many of these are kept open without an answer.
    pub(crate) tarpitted: usize,
    /// How many slots are reserved for connections that will dial.
    pub(crate) reserved: usize,
    /// By service: how many connections it has.
    pub(crate) connections_by_service: Vec<usize>,
    /// By slot: see [`PipeEnd`].
    pub(crate) pipe_ends: Vec<PipeEnd>,
    pub(crate) listeners: Listeners,
    pub(crate) watched: Watches,
    /// What callbacks need of the kernel.
    pub(crate) registrar: Box<dyn Registrar>,
    pub(crate) timers: Timers,
    /// Spreads redials.
    pub(crate) rng: Rng,
    pub(crate) stop: Option<Stop>,
    /// While shutting down: when the connections that are left are closed.
    pub(crate) drain_deadline: Option<Tick>,
    /// Of which reactor keys must be.
    pub(crate) reactor: ReactorId,
    /// The types of the services, in the order of their numbers, which begin at 1.
    pub(crate) service_types: Vec<TypeId>,
    /// What callbacks have put off for services.
    pub(crate) later: VecDeque<(u16, Work)>,
}

/// A shutdown that was asked for and that the next `expire` carries out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Close the listeners now, and after this time the connections that are left.
    Shutdown(Duration),
    /// Close everything.
    Now,
}

/// The service number of refused connections: no service has it.
pub(crate) const REFUSED: u16 = 0;

impl Table {
    pub(crate) fn new(
        limits: Limits,
        first_generation: NonZeroU32,
        epoch: Epoch,
        registrar: Box<dyn Registrar>,
    ) -> Table {
        let mut table = Table {
            slots: Slab::with_capacity(limits.slots()),
            cx: Context::new(limits, epoch),
            generations: GenerationCounter::starting_at(first_generation),
            pending_dials: Vec::new(),
            pending_adoptions: Vec::new(),
            refusals: 0,
            tarpitted: 0,
            reserved: 0,
            connections_by_service: Vec::new(),
            pipe_ends: Vec::new(),
            listeners: Listeners::new(),
            watched: Watches::default(),
            registrar,
            timers: Timers::new(first_generation),
            rng: Rng(0),
            stop: None,
            drain_deadline: None,
            reactor: ReactorId::next(),
            service_types: Vec::new(),
            later: VecDeque::new(),
        };
        let refused = table.add_service(SocketLimits { idle: None, ..SocketLimits::default() });
        debug_assert_eq!(refused, REFUSED);
        table
    }

    /// Adds the limits and counters of a service; returns its number.
    pub(crate) fn add_service(&mut self, limits: SocketLimits) -> u16 {
        self.cx.socket_limits.push(limits);
        self.cx.admissions.push(None);
        self.connections_by_service.push(0);
        (self.cx.admissions.len() - 1) as u16
    }

    /// Replaces the limits of a service. A deadline that is now earlier needs its alarm earlier.
    pub(crate) fn set_limits(&mut self, service: u16, limits: SocketLimits) {
        self.cx.socket_limits[usize::from(service)] = limits;
        for (_, connection) in self.slots.iter().filter(|(_, connection)| connection.service == service) {
            connection.rearm(&mut self.cx);
        }
    }

    // -- look-ups ------------------------------------------------------------------------------------------

    /// The connection with this id, closing or not, and the context. `None` if it was reaped: ids can be older than the
    /// turn, and the generation tells that the slot has another connection now.
    #[inline]
    pub(crate) fn get(&mut self, id: ConnId) -> Option<(&mut Connection, &mut Context)> {
        let connection = self.slots.get_mut(id.slot as usize)?;
        let is_same = connection.id.generation == id.generation; // The slot is: it was found by that.
        (is_same || seeded(SeededBug::GenerationUnchecked)).then_some((connection, &mut self.cx))
    }

    /// The connection in a slot that is in use, and the context. For the current connection of a phase: only `reap`
    /// frees slots, so it cannot have gone. Panics if it has.
    #[inline]
    pub(crate) fn at(&mut self, slot: u32) -> (&mut Connection, &mut Context) {
        (&mut self.slots[slot as usize], &mut self.cx)
    }

    pub(crate) fn find(&self, id: ConnId) -> Option<&Connection> {
        self.slots.get(id.slot as usize).filter(|connection| connection.id == id)
    }

    /// The id, if services can use that connection: it is not closing, not refused, and not in the handshake before
    /// `open`.
    pub(crate) fn live(&self, id: ConnId) -> Option<ConnId> {
        let connection = self.find(id)?;
        let reachable =
            connection.is_live() && connection.service != REFUSED && !connection.is_handshaking_inbound();
        reachable.then_some(id)
    }

    /// The id of a service of this reactor.
    pub(crate) fn service_id(&self, number: u16) -> ServiceId {
        ServiceId { number, reactor: self.reactor }
    }

    /// The number of a service. None if the service is of another reactor.
    pub(crate) fn number_of(&self, service: ServiceId) -> Option<u16> {
        (service.reactor == self.reactor).then_some(service.number)
    }

    /// The index of a group. None, with a warning in the log, if the group is of another reactor.
    pub(crate) fn index_of(&self, group: GroupId) -> Option<u16> {
        let own = group.reactor == self.reactor;
        if !own {
            log::warn!("ignored a group of another reactor");
        }
        own.then_some(group.index)
    }

    // -- slots ---------------------------------------------------------------------------------------------

    /// The number of connections of services. Refused ones are not counted: they have a limit of their own.
    pub(crate) fn connections(&self) -> usize {
        self.slots.len() - self.refusals
    }

    /// Whether this many slots are free, reserved ones not counted.
    pub(crate) fn has_room_for(&self, slots: usize) -> bool {
        self.connections() + self.reserved + slots <= self.cx.limits.connections
    }

    /// Whether a service may have one more connection, by the limits of the reactor and of its policy.
    pub(crate) fn has_room_for_service(&self, service: u16, slots: usize) -> bool {
        let service = usize::from(service);
        let max = self.cx.admissions[service].as_ref().and_then(|policy| policy.connections());
        self.has_room_for(slots) && max.is_none_or(|max| self.connections_by_service[service] < max)
    }

    pub(crate) fn can_refuse(&self) -> bool {
        self.refusals < self.cx.limits.refusals
    }

    /// Takes a slot and creates a connection in it. The caller has checked that there is room.
    pub(crate) fn insert(&mut self, service: u16, stage: Stage, peer: PeerAddress) -> ConnId {
        let entry = self.slots.vacant_entry();
        let id = ConnId { slot: entry.key() as u32, generation: self.generations.next() };
        let cx = &mut self.cx;
        let mut connection = Connection::new(id, service, stage, peer, cx.now);
        connection.flags.set(Flag::Dialed, stage == Stage::Connecting);
        connection.flags.set(Flag::Paused, stage == Stage::Tarpitted);
        let SocketLimits { rate, group, read_when_full, .. } = *cx.limits_of(service);
        connection.flags.set(Flag::ReadWhenFull, read_when_full);
        if rate.is_some() || group.is_some() {
            let optional = connection.optional();
            if let Some(rate) = rate {
                optional.overrides().bucket = Some(TokenBucket::new(rate, burst(rate), cx.now));
            }
            optional.overrides().group = group.map(|group| group.index); // `EventLoop::add` has checked whose it is.
        }
        connection.rearm(cx);
        entry.insert(connection);
        self.refusals += usize::from(service == REFUSED);
        self.tarpitted += usize::from(stage == Stage::Tarpitted);
        self.connections_by_service[usize::from(service)] += 1;
        id
    }

    /// Frees a slot, and subtracts the connection from everything that counts it. Only `reap` calls this. Returns how
    /// many bytes of its input were not delivered, and the connection without its buffers.
    pub(crate) fn remove(&mut self, id: ConnId) -> (usize, Connection) {
        let mut connection = self.slots.remove(id.slot as usize);
        debug_assert_eq!((connection.id, connection.stage), (id, Stage::Dead));
        self.cx.wheel.cancel(id.slot);
        self.refusals -= usize::from(connection.service == REFUSED);
        self.tarpitted -=
            usize::from(connection.flags.contains(Flag::Paused) && connection.service == REFUSED);
        self.connections_by_service[usize::from(connection.service)] -= 1;
        self.reserved -= usize::from(connection.flags.contains(Flag::HoldsReservedSlot));
        connection.leave_group_line(&mut self.cx);
        self.listeners.leave(connection.place);
        connection.release_address(&mut self.cx);
        let unread = connection.unread().len();
        connection.drop_inbox(&mut self.cx);
        connection.drop_outbox(&mut self.cx);
        (unread, connection)
    }

    // -- limits of all connections together ----------------------------------------------------------------

    /// Closes the connection that holds the most buffered bytes, until the memory limit is met again.
    #[inline]
    pub(crate) fn evict(&mut self) {
        if self.cx.is_over_memory() {
            self.evict_largest();
        }
    }

    /// Each round goes through all slots. Connections are not kept in an order by size, because that would cost time on
    /// every send, and eviction is rare.
    #[inline(never)]
    fn evict_largest(&mut self) {
        while self.cx.is_over_memory() {
            let cx = &mut self.cx;
            let alive = self.slots.iter_mut().map(|(_, c)| c).filter(|c| c.stage != Stage::Dead);
            let Some(largest) = alive.max_by_key(|connection| connection.buffered()) else { return };
            let (id, buffered) = (largest.id, largest.buffered());
            if buffered == 0 {
                return;
            }
            let (level, left_out) = cx.log_limits.evicted.level(Level::Warn, cx.now);
            log::log!(
                level,
                "{id}: closed at the memory limit: it held the most, {buffered} bytes{left_out}"
            );
            largest.close_now(CloseReason::Memory, cx);
            mark!("evicted at the memory limit");
            largest.drop_inbox(cx);
            largest.drop_outbox(cx);
        }
    }

    /// Closes the oldest lingering connections if there are too many: peers that do not close get at most a twentieth
    /// of the slots, but at least 16, so that a small server can linger too.
    pub(crate) fn bound_lingering(&mut self) {
        if self.cx.lingering.line.is_empty() {
            return;
        }
        let max = (self.cx.limits.connections / 20).max(16);
        let (slots, cx) = (&mut self.slots, &mut self.cx);
        if cx.lingering.line.len() > 2 * max {
            cx.lingering.line.retain(|id| {
                let there = slots.get(id.slot as usize).filter(|found| found.id == *id);
                there.is_some_and(|connection| connection.stage == Stage::Lingering)
            });
        }
        while cx.lingering.count > max {
            let Some(oldest) = cx.lingering.line.pop_front() else { return };
            if let Some(connection) = slots.get_mut(oldest.slot as usize).filter(|found| found.id == oldest) {
                if connection.stage == Stage::Lingering {
                    connection.close_now(CloseReason::Local, cx);
                }
            }
        }
    }

    /// Whether a shutdown was asked for. Until the next `expire` that is noted in `stop`, and after that in the
    /// deadline.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.drain_deadline.is_some() || self.stop.is_some()
    }

    /// Closes every connection at once, or every tarpitted one.
    pub(crate) fn close_all_now(&mut self, only_tarpitted: bool) {
        for (_, connection) in &mut self.slots {
            if !only_tarpitted || connection.stage == Stage::Tarpitted {
                connection.close_now(CloseReason::Shutdown, &mut self.cx);
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
    use crate::connection::NOT_DIRTY;
    use crate::sys::sim::Sim;

    #[test]
    fn a_slot_is_no_larger_than_what_it_holds() {
        // The slab marks a vacant slot in a niche of the connection, so a slot has no field of its own for that.
        let mut slots = Slab::<Connection>::with_capacity(1);
        let id = ConnId { slot: 0, generation: NonZeroU32::MIN };
        slots.insert(Connection::new(id, 0, Stage::Open, PeerAddress::UNIX, Tick(0)));
        slots.insert(Connection::new(id, 0, Stage::Open, PeerAddress::UNIX, Tick(0)));
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

    /// The state of a connection in the model.
    #[derive(Default)]
    struct Known {
        refused: bool,
        closing: bool,
        dead: bool,
        kept: usize,
        queued: usize,
    }

    /// The table, a map as its model, and every id that was ever used.
    struct Pair {
        table: Table,
        model: HashMap<ConnId, Known>,
        ids: Vec<ConnId>,
    }

    impl Pair {
        fn new() -> Pair {
            // Near the wrap of the generation counter, where no id may be used twice either.
            let first = NonZeroU32::new(u32::MAX - 20).unwrap();
            let mut table = Table::new(Limits::default(), first, Epoch::from_now(), Box::new(Sim::new().0));
            table.add_service(SocketLimits::default());
            Pair { table, model: HashMap::new(), ids: Vec::new() }
        }

        /// One of the connections that are not dead.
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
                    let (connection, cx) = self.table.at(id.slot);
                    let mut inbox = connection.inbox.take().unwrap_or_default();
                    let before = inbox.charge();
                    inbox.replace(&vec![1; bytes], 0);
                    connection.put_inbox(inbox, before, bytes, true, cx);
                    known.kept = bytes;
                }
                Step::DropInbox(_) => {
                    let (connection, cx) = self.table.at(id.slot);
                    connection.drop_inbox(cx);
                    known.kept = 0;
                }
                Step::Send(..) => {
                    let (connection, cx) = self.table.at(id.slot);
                    connection.send(&vec![2; bytes], cx);
                    known.queued += if known.closing { 0 } else { bytes };
                }
                _ => {
                    let (connection, cx) = self.table.at(id.slot);
                    connection.close(CloseReason::Local, cx);
                    (known.closing, known.kept) = (true, if known.closing { known.kept } else { 0 });
                }
            }
        }

        fn close_now(&mut self, id: ConnId) {
            let (connection, cx) = self.table.at(id.slot);
            connection.close_now(CloseReason::Reset, cx);
            self.model.get_mut(&id).unwrap().dead = true;
        }

        fn insert(&mut self, refused: bool) {
            let service = if refused { REFUSED } else { 1 };
            let id = self.table.insert(service, Stage::Open, PeerAddress::UNIX);
            self.table.at(id.slot).0.flags.insert(Flag::Writable);
            assert!(!self.ids.contains(&id), "{id} names two connections");
            self.ids.push(id);
            self.model.insert(id, Known { refused, ..Known::default() });
        }

        fn reap(&mut self) {
            for id in mem::take(&mut self.table.cx.to_reap) {
                self.table.remove(id);
                assert!(
                    self.model.remove(&id).is_some_and(|known| known.dead),
                    "{id} was not doomed, or twice"
                );
            }
            assert!(!self.model.values().any(|known| known.dead), "one that was doomed was forgotten");
        }

        /// A write phase in which the kernel accepts nothing.
        fn flush(&mut self) {
            for dirty in mem::take(&mut self.table.cx.dirty) {
                if let Some((connection, cx)) = self.table.get(dirty.id) {
                    connection.dirty = NOT_DIRTY;
                    connection.spill_wire(dirty.segments, cx);
                }
            }
            self.table.cx.arena.clear();
        }

        fn check(&self) {
            let (table, model) = (&self.table, &self.model);
            assert_eq!(table.slots.len(), model.len());
            assert_eq!(table.refusals, model.values().filter(|known| known.refused).count());
            assert_eq!(table.connections(), model.values().filter(|known| !known.refused).count());
            for id in &self.ids {
                let known = model.get(id);
                assert_eq!(table.find(*id).map(|connection| connection.id), known.map(|_| *id));
                let live = known.is_some_and(|known| !known.dead && !known.closing && !known.refused);
                assert_eq!(table.live(*id).is_some(), live);
                let Some(known) = known else { continue };
                let connection = &table.slots[id.slot as usize];
                assert_eq!(connection.unread().len(), known.kept);
                assert_eq!(connection.unsent(&table.cx), known.queued);
            }
            let held: usize = table.slots.iter().map(|(_, connection)| connection.buffered()).sum();
            // Memory is charged by capacity, which is a power of two, plus a fixed cost for each chunk of a queue.
            let max = 2 * held + 128 * model.len();
            assert!(table.cx.memory >= held && table.cx.memory <= max, "{} for {held}", table.cx.memory);
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
            assert_eq!((pair.table.cx.memory, pair.table.refusals), (0, 0));
        }
    }
}
