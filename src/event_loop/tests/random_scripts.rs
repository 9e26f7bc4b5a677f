//! Random scripts of what a service may do, in a simulated kernel with faults.
//!
//! After every turn the invariants of the loop are checked. The oracles here are those of the life of a connection: one
//! `open`, one `closed`, at most one `end`, nothing delivered after it, and nothing left when all peers have gone.

use std::collections::{HashMap, HashSet};

use super::test_filter;
use super::*;
use crate::base::id::ServiceId;
use crate::config::dial::{Backoff, DialOptions};

#[derive(Default)]
struct Life {
    ended: bool,
    closed: bool,
}

/// A service that does something at random in every callback.
struct Random {
    tape: Tape,
    own: Option<ServiceId>,
    ids: Vec<ConnId>,
    lives: Rc<RefCell<HashMap<ConnId, Life>>>,
    /// Set at the end, when everything is to come to rest.
    is_quiet: Rc<RefCell<bool>>,
}

impl Random {
    fn pick(&mut self) -> Option<ConnId> {
        let n = self.tape.below(self.ids.len() as u64) as usize;
        self.ids.get(n).copied()
    }

    fn act(&mut self, socket: &mut Socket<'_>) {
        for _ in 0..self.tape.below(3) {
            if !*self.is_quiet.borrow() {
                self.act_once(socket);
            }
        }
    }

    fn act_once(&mut self, socket: &mut Socket<'_>) {
        let other = self.pick().unwrap_or(socket.id());
        let n = self.tape.below(6_000) as usize;
        let span = Duration::from_millis(self.tape.below(2_000));
        match self.tape.below(24) {
            0..=3 => socket.send(vec![b's'; n]),
            4 => socket.send_shared(&Shared::from(vec![b'h'; n])),
            5 => socket.pause(),
            6 => socket.resume(),
            7 => socket.finish(),
            8 => socket.close(),
            9 => socket.abort(),
            10 | 11 => drop(socket.pipe(other)),
            12 => drop(socket.unpipe()),
            13 => socket.set_rate((n > 3_000).then_some(n)),
            14 => socket.set_idle(Some(span)),
            15 => socket.set_read_idle(Some(span)),
            16 => socket.set_alarm((n > 2_000).then_some(span)),
            17 => socket.start_filter(test_filter::server()),
            18 => socket.poke(),
            19 => {
                let reconnect = (n > 4_000).then(Backoff::default);
                let _ = socket.dial_with("10.0.0.9:80", DialOptions { reconnect, ..DialOptions::default() });
            }
            20 => drop(socket.dial("a.example:80")),
            _ => {
                if let Some(mut other) = socket.other(other) {
                    match n % 5 {
                        0 => other.resume(),
                        1 => other.close(),
                        2 => other.pause(),
                        _ => other.send(vec![b'o'; n]),
                    }
                }
            }
        }
    }

    fn life<T>(&self, id: ConnId, look: impl FnOnce(&mut Life) -> T) -> T {
        look(self.lives.borrow_mut().get_mut(&id).expect("`open` was called first"))
    }
}

impl Service for Random {
    type Session = ConnId;

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> ConnId {
        let before = self.lives.borrow_mut().insert(socket.id(), Life::default());
        assert!(before.is_none(), "`open` was called twice");
        self.ids.push(socket.id());
        self.act(socket);
        socket.id()
    }

    fn data(&mut self, session: &mut ConnId, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        assert_eq!(*session, socket.id(), "the session of another connection");
        self.life(socket.id(), |life| assert!(!life.ended && !life.closed, "data after the end"));
        let n = self.tape.below(2 * input.len() as u64 + 1) as usize;
        input.take(n);
        self.act(socket);
    }

    fn end(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.life(socket.id(), |life| assert!(!std::mem::replace(&mut life.ended, true), "`end` came twice"));
        self.act(socket);
        if self.tape.below(2) == 0 || *self.is_quiet.borrow() {
            socket.finish();
        }
    }

    fn drained(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.act(socket);
    }

    fn poked(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.act(socket);
    }

    fn alarm(&mut self, _: &mut ConnId, socket: &mut Socket<'_>, _: u64) {
        self.act(socket);
    }

    fn idle(&mut self, _: &mut ConnId, socket: &mut Socket<'_>, _: IdleKind) {
        self.act(socket);
        if self.tape.below(2) == 0 {
            socket.close();
        }
    }

    fn closed(&mut self, session: ConnId, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        assert_eq!(session, gone.id);
        self.life(gone.id, |life| assert!(!std::mem::replace(&mut life.closed, true), "closed twice"));
        self.ids.retain(|&id| id != gone.id);
    }
}

struct World {
    event_loop: EventLoop<Sim>,
    script: Script,
    tape: Tape,
    order: Rc<RefCell<observer::Order>>,
    lives: Rc<RefCell<HashMap<ConnId, Life>>>,
    is_quiet: Rc<RefCell<bool>>,
    peers: Vec<PeerId>,
    seen: HashSet<PeerId>,
}

impl World {
    fn new(tape: &Tape) -> World {
        let (sim, script) = Sim::new();
        let socket = SocketLimits {
            high_water: 1 + tape.below(20_000) as usize,
            queue: 1 + tape.below(60_000) as usize,
            message: 1 + tape.below(20_000) as usize,
            read_when_full: tape.below(2) == 0,
            ..SocketLimits::default()
        };
        let limits = Limits {
            connections: 6,
            read_budget: 1 + tape.below(8_000) as usize,
            write_budget: 1 + tape.below(8_000) as usize,
            memory: 20_000 + tape.below(400_000) as usize,
            socket,
            ..Limits::default()
        };
        let mut event_loop = EventLoop::new(sim, limits).unwrap();
        let (lives, is_quiet) = (Rc::default(), Rc::default());
        let order = observer::check_order(&mut event_loop);
        let service = event_loop.add(
            Random {
                tape: tape.clone(),
                own: None,
                ids: Vec::new(),
                lives: Rc::clone(&lives),
                is_quiet: Rc::clone(&is_quiet),
            },
            None,
        );
        let filter = (tape.below(4) == 0).then(test_filter::server);
        let listen = ListenOptions { filter, ..ListenOptions::default() };
        event_loop.listen(&Address::from(address()), service, &listen).unwrap();
        if tape.below(2) == 0 {
            script.inject_faults(tape);
        }
        World {
            event_loop,
            script,
            tape: tape.clone(),
            order,
            lives,
            is_quiet,
            peers: Vec::new(),
            seen: HashSet::new(),
        }
    }

    fn step(&mut self) {
        let fresh: Vec<PeerId> =
            self.script.dialed().into_iter().filter(|&it| self.seen.insert(it)).collect();
        for peer in fresh {
            let refused = self.tape.below(4) == 0;
            self.script.finish_dial(peer, if refused { Err(111) } else { Ok(()) });
            self.peers.push(peer);
        }
        for (number, _) in self.script.lookups() {
            self.script.resolve(number, &["10.0.0.8:80"]);
        }
        if self.peers.is_empty() || self.tape.below(6) == 0 {
            self.peers.push(self.script.connect());
        }
        let peer = self.peers[self.tape.below(self.peers.len() as u64) as usize];
        match self.tape.below(12) {
            0..=3 => self.script.feed(peer, &vec![b'p'; self.tape.below(9_000) as usize]),
            4 => self.script.feed(peer, b"HELLO\nTHANKS\n"),
            5 => self.script.feed(peer, &test_filter::record(b"through the filter")),
            6 | 7 => self.script.window(peer, self.tape.below(20_000) as usize),
            8 => self.script.end(peer),
            9 => self.script.reset(peer),
            10 => self.script.advance(Duration::from_millis(self.tape.below(400))),
            _ => drop(self.script.received(peer)),
        }
        self.event_loop.turn_and_check();
    }

    /// All peers read, and go; then nothing may be left.
    fn come_to_rest(&mut self) {
        *self.is_quiet.borrow_mut() = true;
        self.script.stop_faults();
        for _ in 0..20 {
            let fresh: Vec<PeerId> =
                self.script.dialed().into_iter().filter(|&it| self.seen.insert(it)).collect();
            self.peers.extend(fresh);
            for (number, _) in self.script.lookups() {
                self.script.fail_lookup(number);
            }
            for &peer in &self.peers {
                self.script.window(peer, usize::MAX);
                self.script.reset(peer);
            }
            self.event_loop.turn_until_quiet(&self.script);
            self.script.advance(Duration::from_secs(2));
        }
        self.event_loop.table.stop = Some(crate::connection::table::Stop::Now);
        self.event_loop.turn_until_quiet(&self.script);
        assert_eq!((self.event_loop.table.cx.memory, self.event_loop.table.connections()), (0, 0));
        self.order.borrow().assert_complete(&self.event_loop.table.cx.stats);
        assert!(self.lives.borrow().values().all(|life| life.closed), "a connection was never closed");
    }
}

pub(super) fn run(tape: &Tape) {
    let mut world = World::new(tape);
    for _ in 0..300 {
        world.step();
    }
    world.come_to_rest();
}

#[test]
fn no_script_breaks_the_life_of_a_connection() {
    each_seed(200, run);
}
