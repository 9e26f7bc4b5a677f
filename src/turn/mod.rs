//! One turn of the loop. Everything tidemill does, it does here.
//!
//! [`turn`](Loop::turn) is the table of contents; each phase is a method in a file of its own.

mod admit;
mod dial;
mod expire;
mod flush;
mod park;
mod reap;
mod relay;
mod seal;
mod serve;
mod splice;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::mem;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::connection::Stage;
use crate::eager::Eager;
use crate::handle::{Handle, Post};
use crate::id::{ConnId, LISTENERS_MAX, ListenerId, ServiceId, Token};
use crate::limits::{Limits, SocketLimits};
use crate::listener::{Door, ListenOptions};
use crate::lookups::Lookups;
use crate::rules::Rules;
use crate::service::{Host, Hosted, Service};
use crate::socket::{Socket, Sockets};
use crate::system::{Ready, System};
use crate::table::{DOORMAN, Dirty, Table};
use crate::time::Tick;
use dial::Race;
use splice::Conduits;

/// The loop: the services, the table of connections, and the world they talk to.
///
/// Services and table lie side by side, so that a callback can hold the one by `&mut` and be lent the other. The
/// streams lie beside the table too, because only they are of the system's own types.
pub(crate) struct Loop<S: System> {
    pub(crate) system: S,
    pub(crate) table: Table,
    hosts: Vec<Box<dyn Host>>,
    /// By slot.
    streams: Vec<Option<S::Stream>>,
    /// By index; a closed listener leaves a gap, so that tokens keep their meaning.
    doors: Vec<Option<Door<S::Listener>>>,
    doors_made: u64,
    /// Dials that are not connected, by slot, and their attempts beyond the first of each.
    races: HashMap<u32, Race<S::Stream>>,
    overlapping: usize,
    lookups: Lookups,
    conduits: Conduits<S::Conduit>,
    handle: Handle,
    posts: Vec<Post>,
    events: Vec<Ready>,
    /// Who has come below the low-water mark, until they have been told.
    relieved: Vec<ConnId>,
    /// How many of the line of those who are ready stood in it before this turn's events.
    carried: usize,
    /// When what is left is closed, once shutting down.
    drained_by: Option<Tick>,
    eager: Eager,
    spin: Spin,
    /// What is sealed, on its way to the kernel; and pieces that are sealed together.
    sealed: Vec<u8>,
    run: Vec<u8>,
    // Emptied lists, kept for their memory.
    spare_ready: Vec<ConnId>,
    spare_dirty: Vec<Dirty>,
    spare_doomed: Vec<u32>,
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

impl<S: System> Loop<S> {
    pub(crate) fn new(system: S, limits: Limits) -> io::Result<Loop<S>> {
        Loop::born_at(system, limits, NonZeroU32::MIN)
    }

    /// With the counter of births set, so that a test can reach its wrap.
    pub(crate) fn born_at(mut system: S, limits: Limits, first: NonZeroU32) -> io::Result<Loop<S>> {
        let handle = Handle::new(limits.posts, system.waker()?);
        system.hold_reserve();
        let (spin, splices, slots) = (limits.spin, limits.splices, limits.slots());
        let mut table = Table::new(limits, first, system.started());
        table.random = system.seed();
        let mut fresh = Loop {
            system,
            table,
            hosts: Vec::new(),
            streams: Vec::with_capacity(slots),
            doors: Vec::new(),
            doors_made: 0,
            races: HashMap::new(),
            overlapping: 0,
            lookups: Lookups::default(),
            conduits: Conduits::new(splices),
            handle,
            posts: Vec::new(),
            events: Vec::new(),
            relieved: Vec::new(),
            carried: 0,
            drained_by: None,
            eager: Eager::new(spin),
            spin: Spin::default(),
            sealed: Vec::new(),
            run: Vec::new(),
            spare_ready: Vec::new(),
            spare_dirty: Vec::new(),
            spare_doomed: Vec::new(),
        };
        let doorman = fresh.add(Doorman, Some(Doorman::limits()));
        debug_assert_eq!(doorman.0, DOORMAN);
        Ok(fresh)
    }

    /// One turn of the loop. Everything tidemill does, it does here, in this order.
    pub(crate) fn turn(&mut self, wait: Option<Duration>) -> io::Result<Turn> {
        self.park(wait)?; //    1 sleep until readiness, a deadline or a wake-up; then read the clock once
        let turn = self.sort(); // 2 readiness becomes flags on connections; no user code yet
        self.run_posted(); //   3 what other threads asked for
        self.serve(); //        4 read, deliver: at most one budget per connection
        self.expire(); //       5 deadlines that have passed
        self.flush(); //        6 one write for each connection with something to say
        self.reap(); //         7 say goodbye; the only place where a slot is freed
        self.admit(); //        8 fill the slots just freed; refuse the rest, audibly
        Ok(self.tally(turn))
    }

    /// Phase 3: at most a budget of posts; the others wait for the next turn.
    fn run_posted(&mut self) {
        self.handle.mailbox().collect(&mut self.posts);
        if self.posts.is_empty() {
            return;
        }
        let count = self.posts.len().min(self.table.limits.posts_per_turn);
        self.table.stats.posts += count as u64;
        for post in self.posts.drain(..count) {
            post(&mut Sockets::new(&mut self.table));
        }
    }

    fn tally(&mut self, events: usize) -> Turn {
        self.table.stats.turns += 1;
        let carried_over = self.has_work();
        self.spin.watch(carried_over, &mut self.table.stats);
        Turn { events, carried_over }
    }

    /// Whether the next turn has something to do that no event will announce.
    pub(crate) fn has_work(&self) -> bool {
        let table = &self.table;
        let queued = !(table.ready.is_empty() && table.dirty.is_empty() && table.doomed.is_empty());
        let stops = table.stop.is_some() || !table.closing.is_empty();
        let asked = !self.posts.is_empty() || stops || !table.newborn.is_empty();
        let due = table.wheel.is_due(table.now)
            || table.timers.is_due(table.now)
            || table.handshakes.may_begin(table.limits.handshakes, table.now);
        queued || asked || due || !self.relieved.is_empty() || self.doors().any(|door| self.can_admit(door))
    }

    /// Whether accepting from a door could bring someone in now.
    fn can_admit(&self, door: &Door<S::Listener>) -> bool {
        let room = || self.table.has_room_at(door.host, door.slots());
        let chair = || door.refuses && self.table.can_refuse();
        door.is_worth_a_try(self.table.now) && (room() || chair())
    }

    fn doors(&self) -> impl Iterator<Item = &Door<S::Listener>> {
        self.doors.iter().flatten()
    }

    // -- what is set up between turns ----------------------------------------------------------------

    pub(crate) fn add<V: Service>(&mut self, service: V, limits: Option<SocketLimits>) -> ServiceId {
        assert!(self.hosts.len() < usize::from(u16::MAX), "a reactor has at most 65,534 services");
        self.hosts.push(Box::new(Hosted::new(service)));
        self.table.socket_limits.push(limits.unwrap_or_else(|| self.table.limits.socket.clone()));
        self.table.watches.push(None);
        self.table.counts.push(0);
        self.read_clock();
        let own = ServiceId((self.hosts.len() - 1) as u16);
        self.hosts[usize::from(own.0)].start(&mut self.table, own);
        own
    }

    pub(crate) fn listen(
        &mut self,
        at: &Address,
        service: ServiceId,
        options: &ListenOptions,
    ) -> io::Result<ListenerId> {
        self.hang_door(service, options, |system, token| system.listen(at, options, token))
    }

    /// Adds a listener that `make` makes.
    pub(crate) fn hang_door(
        &mut self,
        service: ServiceId,
        options: &ListenOptions,
        make: impl FnOnce(&mut S, Token) -> io::Result<S::Listener>,
    ) -> io::Result<ListenerId> {
        let index = self.doors.iter().position(Option::is_none).unwrap_or(self.doors.len());
        if index >= LISTENERS_MAX {
            return Err(io::Error::other(format!("a reactor has {LISTENERS_MAX} listeners at most")));
        }
        if usize::from(service.0) >= self.hosts.len() {
            return Err(io::Error::other("the service is of another reactor"));
        }
        let listener = make(&mut self.system, Token::listener(index))?;
        let address = self.system.listening_at(&listener)?;
        self.doors_made += 1;
        let id = ListenerId { index, birth: self.doors_made };
        let door = Door::new(listener, id, address, service.0, options);
        match self.doors.get_mut(index) {
            Some(gap) => *gap = Some(door),
            None => self.doors.push(Some(door)),
        }
        Ok(id)
    }

    pub(crate) fn local_addr(&self, id: ListenerId) -> Option<Address> {
        let door = self.doors.get(id.index)?.as_ref()?;
        (door.id == id).then(|| door.address.clone())
    }

    pub(crate) fn rules(&self, service: ServiceId) -> Option<&Rules> {
        self.table.watches.get(usize::from(service.0))?.as_ref().map(|watch| &watch.guard.rules)
    }

    pub(crate) fn close_listener(&mut self, id: ListenerId) -> bool {
        let door = self.doors.get_mut(id.index);
        door.and_then(|door| door.take_if(|door| door.id == id)).is_some()
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.drained_by.is_some() || self.table.stop.is_some()
    }

    /// Whether nothing is left that could ever happen by itself: no listener, no connection, no work.
    pub(crate) fn is_finished(&self) -> bool {
        let posted = self.handle.mailbox().has_posts();
        let timers = self.table.timers.len() > 0;
        self.doors().next().is_none() && self.table.slots.is_empty() && !timers && !posted && !self.has_work()
    }

    /// When the loop must turn again even if the kernel stays silent.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.has_work() {
            return Some(self.table.instant());
        }
        self.next_tick().map(|tick| self.system.started() + tick.since_start())
    }

    fn next_tick(&self) -> Option<Tick> {
        let doors = self.doors().filter_map(Door::looks_again);
        let table = &self.table;
        let handshakes = table.handshakes.looks_again(table.limits.handshakes);
        doors
            .chain(table.wheel.next())
            .chain(table.timers.next())
            .chain(handshakes)
            .chain(self.drained_by)
            .min()
    }

    // -- what more than one phase needs ---------------------------------------------------------------

    /// Puts a new stream into its slot and under watch. One that cannot be watched is closed, and only that one.
    fn settle(&mut self, slot: u32, mut stream: S::Stream) -> io::Result<()> {
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

impl<S: System> Drop for Loop<S> {
    fn drop(&mut self) {
        self.handle.mailbox().shut();
        for slot in self.table.slots.iter().map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.table.drop_outbox(slot);
        }
    }
}

/// The service of peers that are refused. What they are told is sent for it; what they say is thrown away.
struct Doorman;

/// How long somebody is [held](crate::rules::Refuse::Hold).
const HOLD: Duration = Duration::from_secs(30);

impl Doorman {
    fn limits() -> SocketLimits {
        SocketLimits { idle: None, lifetime: Some(HOLD), ..SocketLimits::default() }
    }
}

impl Service for Doorman {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, input: &mut crate::inbox::Input<'_>) {
        input.take_all();
    }
}

/// The guard against a loop that turns without sleeping and without getting anything done.
///
/// No path to that is known. It is the failure that event loops have all the same (a socket that is said to be
/// ready and is not), and it should cost a line in the log and a millisecond a turn, not a core.
#[derive(Default)]
struct Spin {
    progress: u64,
    turns: u32,
    broken: bool,
}

const SPIN_TURNS: u32 = 1_000;

impl Spin {
    fn watch(&mut self, carried_over: bool, stats: &mut crate::stats::Stats) {
        if !carried_over {
            // A number that no sum reaches: the next turn counts as progress.
            *self = Spin { progress: u64::MAX, ..Spin::default() };
            return;
        }
        let progress = stats.bytes_in
            + stats.bytes_out
            + stats.accepted
            + stats.dialed
            + stats.refused
            + stats.shed
            + stats.posts
            + stats.ended_in_all()
            + stats.accept_aborted;
        let stuck = progress == mem::replace(&mut self.progress, progress);
        self.turns = if stuck { self.turns + 1 } else { 0 };
        self.broken = self.turns >= SPIN_TURNS;
        if self.broken {
            if self.turns == SPIN_TURNS {
                log::error!(
                    "{SPIN_TURNS} turns without progress and without sleep: sleeping for a millisecond a turn"
                );
            }
            self.turns = self.turns.min(SPIN_TURNS + 1);
            stats.spins_broken += 1;
        }
    }
}

/// Whether a connection is there to be told anything.
fn is_open(table: &Table, slot: u32) -> bool {
    table.slots.get(slot as usize).is_some_and(|connection| connection.stage == Stage::Open)
}
