//! The world: random peers, services and faults on a simulated kernel, in each of its readiness profiles, with oracles
//! after every turn. docs/simulation.md lists them by number.
//!
//! ```text
//!     tape ──▶ peers (scripts) ──▶ kernel (faults, profile) ──▶ loop ──▶ actor (service)
//!                 └────────── ledger: what each must have sent and received ──────┘
//! ```

mod actor;
mod ledger;
mod peers;
mod tiny;

use std::time::Instant;

use self::actor::{Actor, Shared};
use self::peers::{Remote, draw_script};
use super::*;
use crate::base::observer::Step;
use crate::connection::Connection;
use crate::connection::table::Stop;
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
    has_filters: bool,
    /// Whether the listener has a filter.
    is_filtered: bool,
    calls: Calls,
    /// A look-up that was answered, to be answered again.
    answered: Option<u64>,
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
        splices: 0,
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
    fn new(tape: &Tape, profile: Profile) -> World {
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
        let follow = move |step: &Step<'_>| {
            if let Step::Call(call) = step {
                trace.note(call.callback.word(), call.connection.map(|id| id.slot as usize), 0);
            }
            // A send is told within a callback of the actor, which holds no borrow meanwhile.
            own.borrow_mut().ledger.look(step);
        };
        event_loop.table.cx.observers.add(Box::new(follow));
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
            filter: (has_filters && tape.one_in(2)).then(test_filter::server),
            ..ListenOptions::default()
        };
        event_loop.listen(&listen, service, &options).unwrap();
        script.draw_faults(tape);
        let inet = listen.ip().is_some();
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
            has_filters,
            is_filtered: options.filter.is_some(),
            calls: Calls::default(),
            answered: None,
        }
    }

    /// What the peers, the network and the clock do before one turn; then the turn.
    fn step(&mut self) {
        self.answer_dials();
        self.answer_names();
        if self.remotes.len() < PEERS_MAX && (self.remotes.is_empty() || self.tape.one_in(10)) {
            let from = self.script.next_address();
            let peer = self.script.connect_to(&self.listen, from);
            self.remotes.push(Remote::new(
                peer,
                draw_script(&self.tape, self.has_filters, self.is_filtered),
                self.is_filtered,
            ));
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
            remote.leave(&self.script, false);
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
            self.remotes.push(Remote::new(peer, draw_script(&self.tape, false, false), false));
        }
        self.dials_seen += dialed.len();
    }

    /// Look-ups are answered late, by an error, twice, or never.
    fn answer_names(&mut self) {
        if let Some(number) = self.answered.take().filter(|_| self.tape.one_in(4)) {
            self.script.resolve(number, &["10.0.0.7:80"]);
        }
        for (number, _) in self.script.lookups() {
            match self.tape.below(6) {
                0 => self.script.fail_lookup(number),
                1 | 2 => {
                    self.script.resolve(number, &["10.0.0.8:80", "[::1]:80"]);
                    self.answered = Some(number);
                }
                _ => {}
            }
        }
    }

    /// One turn, and the oracles that hold after every turn.
    fn turn(&mut self, wait: Duration) {
        self.event_loop.turn_for_and_check(Some(wait));
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
                return self.check_at_rest();
            }
        }
        panic!("after {TURNS_TO_REST} turns: {}", self.event_loop.unfinished());
    }

    fn check_at_rest(&self) {
        self.event_loop.check_at_rest();
        let table = &self.event_loop.table;
        assert_eq!(table.cx.stats.livelocks_broken, 0, "the loop has turned without progress");
        for (id, life) in &self.shared.borrow().ledger.lives {
            let takes = |it: &Connection| it.is_open() && it.wants_input() && it.pipe_peer().is_none();
            let owed =
                life.owes_data && table.find(*id).is_some_and(|it| takes(it) && !it.unread().is_empty());
            assert!(!owed, "{id}: resumed, and its unread input was not delivered again");
        }
        let now = table.cx.elapsed;
        for (id, due) in &self.shared.borrow().alarms {
            let open = table.find(*id).is_some_and(|connection| connection.is_live());
            assert!(!open || now <= *due + 20 * MS, "{id}: its alarm was due at {due:?}, and it is {now:?}");
        }
    }

    /// All peers go, or the loop is shut down; then nothing may be left.
    fn end(&mut self) {
        self.shared.borrow_mut().is_quiet = true;
        self.script.stop_faults();
        self.script.descriptors(usize::MAX);
        let (shuts_down, resets) = (self.tape.one_in(3), self.tape.one_in(2));
        if shuts_down {
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
            for (number, _) in self.script.lookups() {
                self.script.fail_lookup(number);
            }
            for remote in &mut self.remotes {
                remote.leave(&self.script, resets);
            }
            self.rest();
            self.script.advance(Duration::from_secs(2));
        }
        self.event_loop.table.stop = Some(Stop::Now);
        self.rest();
        let table = &self.event_loop.table;
        assert_eq!((table.cx.memory, table.connections(), table.slots.len()), (0, 0, 0));
        assert_eq!((table.reserved, table.refusals), (0, 0));
        self.order.borrow().assert_complete(&table.cx.stats);
        let shared = self.shared.borrow();
        assert!(shared.ledger.lives.values().all(|life| life.closed), "a connection was never closed");
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
fn run(tape: &Tape, profile: Profile) -> (u64, u64) {
    let mut world = World::new(tape, profile);
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
