//! The world: random peers, services and faults on a simulated kernel, in each of its readiness profiles, with oracles
//! after every turn. docs/simulation.md lists them by number.
//!
//! ```text
//!     tape ──▶ peers (scripts) ──▶ kernel (faults, profile) ──▶ loop ──▶ actor (service)
//!                 └────────── ledger: what each must have sent and received ──────┘
//! ```

mod actor;
mod ledger;
mod names;
mod peers;
mod posts;
mod rules;
mod tiny;
mod wire;

use std::collections::HashMap;
use std::time::Instant;

use self::actor::{Actor, Shared};
use self::names::Names;
use self::peers::{Remote, draw_script};
use self::posts::Posts;
pub(crate) use self::wire::Filters;
use self::wire::{Wire, draw_filters};
use super::*;
use crate::base::observer::Step;
use crate::connection::Connection;
use crate::connection::state::{FilterStage, Flag};
use crate::connection::table::{Stop, Table};
use crate::sys::AcceptError;
use crate::sys::sim::{
    Calls, IS_SHRINKING, Profile, in_hexadecimal, number_of, run_seed, tape_of_environment, tell,
};

/// Turns of one world before it comes to rest.
const TURNS: u64 = 1_500;
/// Turns that each profile gets in the ordinary test run.
const TURNS_USUAL: u64 = 30_000;
/// Peers at the same time.
const PEERS_MAX: usize = 8;
/// System calls of one turn, with the budgets of the world: ten connections with 16 reads and 16 writes each, and the
/// extra budgets of one.
const CALLS_PER_TURN: usize = 10 * 32 + 8 * 16;
/// Turns that a readable connection may wait while others are read: each turn reads at least one of them.
const FAIR_TURNS: u32 = 40;
/// Turns until a world must be at rest, when nothing more happens to it.
const TURNS_TO_REST: usize = 3_000;

struct World {
    event_loop: EventLoop<Sim>,
    script: Script,
    tape: Tape,
    shared: Rc<RefCell<Shared>>,
    order: Rc<RefCell<observer::Order>>,
    remotes: Vec<Remote>,
    /// How many dials were given a peer.
    dials_seen: usize,
    /// Addresses that peers connect to, and whether they are of the internet.
    listen: Address,
    inet: bool,
    profile: Profile,
    has_filters: bool,
    /// Those of the listener and its peers.
    filters: Option<Filters>,
    calls: Calls,
    names: Names,
    posts: Posts,
    /// When the reset of a peer has come.
    resets: HashMap<PeerId, Duration>,
}

/// Where peers connect to, and what services dial: sockets on which a short read proves nothing have to be used where
/// the kernel announces nothing after one.
fn addresses(profile: Profile, tape: &Tape) -> (Address, &'static [&'static str]) {
    let inet = profile == Profile::Strict && !tape.one_in(4);
    match (profile, inet) {
        (Profile::Strict, true) => (Address::from(address()), &["10.0.0.9:80", "a.example:80", "10.0.0.9:0"]),
        (Profile::Strict, false) => ("unix:/world".parse().unwrap(), &["unix:/x", "10.0.0.9:80"]),
        _ => ("unix:/world".parse().unwrap(), &["unix:/x", "unix:/y"]),
    }
}

fn draw_limits(tape: &Tape) -> Limits {
    let below = |n: u64| tape.below(n) as usize;
    let socket = SocketLimits {
        high_water: 1 + below(5_000),
        low_water: below(3_000),
        queue: 1 + below(20_000),
        message: 1 + below(20_000),
        read_when_full: below(3) == 0,
        end_on_reset: below(4) == 0,
        idle: Some(Duration::from_secs(1 + tape.below(20))),
        lifetime: (below(6) == 0).then_some(9 * SECOND),
        half_closed: Some(Duration::from_secs(1 + tape.below(5))),
        connect: Some(Duration::from_secs(1 + tape.below(5))),
        ..SocketLimits::default()
    };
    Limits {
        connections: 6,
        refusals: below(4),
        lookups: 1 + below(2),
        extra_attempts: below(2),
        timers: 8,
        splices: below(3),
        handshakes: 1 + below(3),
        posts: 1 + below(6),
        posts_per_turn: 1 + below(4),
        accepts_per_turn: 1 + below(4),
        read_budget: 64 + below(2_000),
        write_budget: 64 + below(2_000),
        carried_over_budget: 1 + below(4_000),
        expirations_per_turn: 1 + below(4),
        memory: if below(3) == 0 { 20_000 } else { 400_000 },
        socket,
        ..Limits::default()
    }
}

impl World {
    fn new(tape: &Tape, profile: Profile, filters: Option<Filters>) -> World {
        let (sim, script) = Sim::new();
        script.set_profile(profile);
        let (listen, dials) = addresses(profile, tape);
        let first = NonZeroU32::new(if tape.one_in(8) { u32::MAX - 40 } else { 1 }).unwrap();
        let mut event_loop = EventLoop::with_first_generation(sim, draw_limits(tape), first).unwrap();
        let groups =
            [3_000, 100_000].map(|rate| Sockets::new(&mut event_loop.table).add_group(rate).unwrap());
        let order = observer::check_order(&mut event_loop);
        let shared = Rc::<RefCell<Shared>>::default();
        let (own, trace) = (Rc::clone(&shared), script.clone());
        let mut splices = 0;
        let follow = move |step: &Step<'_>| {
            let before = std::mem::replace(&mut splices, trace.splices());
            if let Step::Call(call) = step {
                trace.note(call.callback.word(), call.connection.map(|id| id.slot as usize), 0);
            }
            // A send is told within a callback of the actor, which holds no borrow meanwhile.
            own.borrow_mut().ledger.look(step, splices > before);
        };
        event_loop.observe(follow);
        let actor = Actor {
            tape: tape.clone(),
            script: script.clone(),
            shared: Rc::clone(&shared),
            groups: groups.into(),
            dials,
            has_filters: tape.one_in(4),
            own: None,
            in_data: None,
            ids: Vec::new(),
        };
        let has_filters = actor.has_filters;
        let service = event_loop.add(actor, None);
        let options = ListenOptions {
            overflow: if tape.one_in(2) { Overflow::Wait } else { Overflow::Refuse },
            reserve_slot: tape.one_in(4),
            backlog: 1 + tape.below(6) as u32,
            filter: filters.as_ref().map(|filters| filters.server.clone()),
            ..ListenOptions::default()
        };
        event_loop.listen(&listen, service, &options).unwrap();
        script.draw_faults(tape);
        let inet = listen.ip().is_some();
        let posts = Posts::new(event_loop.handle());
        World {
            event_loop,
            script,
            tape: tape.clone(),
            shared,
            order,
            remotes: Vec::new(),
            dials_seen: 0,
            listen,
            inet,
            profile,
            has_filters,
            filters,
            calls: Calls::default(),
            names: Names::default(),
            posts,
            resets: HashMap::new(),
        }
    }

    /// What the peers, the network and the clock do before one turn; then the turn.
    fn step(&mut self) {
        self.answer_dials();
        self.names.step(&self.script, &self.tape);
        if self.remotes.len() < PEERS_MAX && (self.remotes.is_empty() || self.tape.one_in(10)) {
            let from = self.script.next_address();
            let peer = self.script.connect_to(&self.listen, from);
            let script = draw_script(&self.tape, self.has_filters);
            self.remotes.push(Remote::new(peer, script, self.filters.as_ref().map(Wire::new)));
        }
        for _ in 0..1 + self.tape.below(2) {
            self.step_remote();
        }
        match self.tape.below(64) {
            0..=6 => self.script.advance(Duration::from_millis(self.tape.below(300))),
            7 => self.script.advance(Duration::from_millis(self.tape.below(60_000))),
            8 => self.script.descriptors(self.script.open_descriptors() + self.tape.below(3) as usize),
            9 | 10 => self.script.descriptors(usize::MAX),
            11 => self.script.fail_accept(AcceptError::PeerGone),
            12..=17 => self.posts.step(&self.tape, &self.event_loop.table),
            18 if self.tape.one_in(8) => self.script.advance(Duration::from_secs(self.tape.below(100_000))),
            _ => {}
        }
        let wait = self.tape.one_in(4).then(|| Duration::from_millis(self.tape.below(50)));
        self.turn(wait.unwrap_or(Duration::ZERO));
    }

    fn step_remote(&mut self) {
        if self.remotes.is_empty() {
            return;
        }
        let index = self.tape.below(self.remotes.len() as u64) as usize;
        let remote = &mut self.remotes[index];
        let ledger = &mut self.shared.borrow_mut().ledger;
        let goes_on = remote.step(&self.script, ledger, self.inet);
        remote.read(&self.script, ledger);
        if !goes_on && self.tape.one_in(4) {
            remote.leave(&self.script, ledger, false);
        }
    }

    /// Dials are answered late, refused, or never.
    fn answer_dials(&mut self) {
        let dialed = self.script.dialed_since(self.dials_seen);
        for &peer in &dialed {
            match self.tape.below(5) {
                0 => self.script.finish_dial(peer, Err(111)),
                1 if self.remotes.len() < 2 * PEERS_MAX => {} // Its timeout passes.
                _ => self.script.finish_dial(peer, Ok(())),
            }
            self.remotes.push(Remote::new(peer, draw_script(&self.tape, false), None));
        }
        self.dials_seen += dialed.len();
    }

    /// One turn, and the oracles that hold after every turn.
    fn turn(&mut self, wait: Duration) {
        let accepted = self.event_loop.table.cx.stats.accepted;
        self.event_loop.turn_for_and_check(Some(wait));
        self.check_turn(accepted);
        let now = self.script.calls();
        let before = std::mem::replace(&mut self.calls, now);
        let made = now.reads - before.reads + now.writes - before.writes + now.accepts - before.accepts;
        assert!(made <= CALLS_PER_TURN, "{made} system calls in one turn");
        let ready = &self.event_loop.table.cx.ready;
        if !ready.is_empty() {
            self.shared.borrow_mut().ledger.check_fairness(ready, FAIR_TURNS);
        }
        let shared = &self.shared;
        let script = &self.script;
        self.remotes.retain_mut(|remote| {
            let gone = remote.is_gone(script);
            if gone {
                remote.check_end(script, &shared.borrow().ledger);
            }
            !gone
        });
    }

    /// Turns until neither the loop nor the kernel has anything to do, and checks that nothing is left.
    fn rest(&mut self) {
        for _ in 0..TURNS_TO_REST {
            self.turn(Duration::ZERO);
            if !self.event_loop.has_work() && self.script.is_quiet() {
                self.check_at_rest();
                return self.check_sleeps();
            }
        }
        panic!("after {TURNS_TO_REST} turns: {}", self.event_loop.unfinished());
    }

    fn check_at_rest(&mut self) {
        self.event_loop.check_at_rest();
        self.check_holds();
        self.check_resets();
        let table = &self.event_loop.table;
        assert_eq!(table.cx.stats.livelocks_broken, 0, "the loop has turned without progress");
        assert_eq!(self.posts.waiting(), 0, "posts that have not run");
        for (id, life) in &self.shared.borrow().ledger.lives {
            // What a connection has not taken when its filter begins is the beginning of the handshake.
            let takes = |it: &Connection| {
                it.is_open()
                    && it.wants_input()
                    && !it.flags.contains(Flag::Piped)
                    && !it.filter.is_handshaking()
            };
            let owed =
                life.owes_data && table.find(*id).is_some_and(|it| takes(it) && !it.unread().is_empty());
            assert!(!owed, "{id}: resumed, and its unread input was not delivered again");
        }
    }

    /// A connection whose peer has reset it, or whose network has failed, goes within a second, also while it is held.
    fn check_resets(&mut self) {
        if self.profile == Profile::Contract {
            return; // The event may say nothing of it.
        }
        let table = &self.event_loop.table;
        for (id, life) in &self.shared.borrow().ledger.lives {
            // A handshake has a deadline of its own, also while it waits for its turn.
            let open = table.find(*id).is_some_and(|it| it.is_open() && !it.filter.is_handshaking());
            let Some(peer) = life.peer.filter(|&peer| open && self.script.is_broken(peer)) else { continue };
            let since = *self.resets.entry(peer).or_insert(table.cx.elapsed);
            // What it had sent is still delivered, whenever its service takes it, and renews the time.
            let since = since.max(table.find(*id).map_or(since, |it| it.last_activity.get().since_start()));
            let now = table.cx.elapsed;
            assert!(now <= since + SECOND + 20 * MS, "{id}: reset at {since:?}, and open at {now:?}");
        }
    }

    /// All peers go, or the loop is shut down; then nothing may be left.
    fn end(&mut self) {
        self.shared.borrow_mut().is_quiet = true;
        self.script.stop_faults();
        self.script.descriptors(usize::MAX);
        let (shuts_down, resets) = (self.tape.one_in(3), self.tape.one_in(2));
        if shuts_down {
            self.shared.borrow_mut().timers.clear(); // A shutdown drops them.
            let grace = Duration::from_millis(self.tape.below(3_000));
            Sockets::new(&mut self.event_loop.table).shutdown(grace);
            self.rest();
            self.script.advance(grace + 20 * MS);
            self.rest();
            assert_eq!(self.event_loop.table.connections(), 0, "connections after a shutdown");
            let before = self.event_loop.table.cx.stats.accepted;
            self.script.connect_to(&self.listen, self.script.next_address());
            self.rest();
            assert_eq!(self.event_loop.table.cx.stats.accepted, before, "accepted after a shutdown");
        }
        for _ in 0..40 {
            if self.event_loop.table.slots.is_empty() {
                break;
            }
            self.answer_dials();
            self.names.finish(&self.script);
            for remote in &mut self.remotes {
                remote.leave(&self.script, &mut self.shared.borrow_mut().ledger, resets);
            }
            self.rest();
            self.script.advance(Duration::from_secs(2));
        }
        self.shared.borrow_mut().timers.clear();
        self.event_loop.table.stop = Some(Stop::Now);
        self.rest();
        let table = &self.event_loop.table;
        assert_eq!((table.cx.memory, table.connections(), table.slots.len()), (0, 0, 0));
        assert_eq!((table.reserved, table.refusals), (0, 0));
        self.order.borrow().assert_complete(&table.cx.stats);
        let shared = self.shared.borrow();
        assert!(
            shared.ledger.lives.values().all(|life| life.closed_by.is_some()),
            "a connection was never closed"
        );
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && !IS_SHRINKING.get() {
            let turns = self.event_loop.table.cx.stats.turns;
            let steps = self.script.with_trace(|trace| trace.tail());
            let sockets = self.script.netstat();
            tell(&format!("the world after {turns} turns; {steps}open sockets:\n{sockets}\n"));
        }
    }
}

/// One world; returns the number of its turns, and the hash of all that has happened in it.
pub(super) fn run(tape: &Tape, profile: Profile) -> (u64, u64) {
    run_with(tape, profile, draw_filters(tape))
}

/// One world whose listener and peers have these filters.
pub(crate) fn run_with(tape: &Tape, profile: Profile, filters: Option<Filters>) -> (u64, u64) {
    let mut world = World::new(tape, profile, filters);
    while world.event_loop.table.cx.stats.turns < TURNS {
        for _ in 0..1 + tape.below(40) {
            world.step();
        }
        world.rest();
    }
    world.end();
    (world.event_loop.table.cx.stats.turns, world.script.with_trace(|trace| trace.hash()))
}

/// Runs worlds until they have had so many turns together: `TIDEMILL_TURNS` of them, or a few. Each hundredth world
/// runs twice, and must be the same.
fn search(profile: Profile) {
    if let Some(tape) = tape_of_environment() {
        run(&tape, profile);
        return;
    }
    let (first, target) = (number_of("TIDEMILL_SEED"), number_of("TIDEMILL_TURNS").unwrap_or(TURNS_USUAL));
    let (mut turns, start) = (0, Instant::now());
    for seed in first.unwrap_or(0).. {
        let (made, hash) = run_seed(seed, &mut |tape| run(tape, profile));
        if seed % 100 == 0 {
            let again = run(&Tape::seeded(seed), profile).1;
            assert_eq!(again, hash, "seed {seed}: the same tape, and another run");
        }
        turns += made;
        if first.is_some() || turns >= target {
            let rate = turns as f64 / start.elapsed().as_secs_f64();
            println!(
                "{profile:?}: {turns} turns in {} worlds, {rate:.0} turns/s",
                seed + 1 - first.unwrap_or(0)
            );
            return;
        }
    }
}

#[test]
fn no_world_breaks_an_oracle_when_readiness_is_reported_as_strictly_as_by_epoll() {
    search(Profile::Strict);
}

#[test]
fn no_world_breaks_an_oracle_when_readiness_is_reported_as_by_kqueue() {
    search(Profile::Kqueue);
}

#[test]
fn no_world_breaks_an_oracle_when_readiness_is_reported_only_after_would_block() {
    search(Profile::Contract);
}
