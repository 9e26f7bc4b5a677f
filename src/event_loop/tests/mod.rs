//! The loop against a simulated kernel. Nothing here sleeps; the clock moves when a test moves it.

mod chaos;
mod clocks;
mod dialing;
mod door;
mod guarding;
mod house;
mod input;
mod memory;
mod names;
mod output;
mod pipes;
mod rates;
mod readiness;
mod sealing;
mod splice;
mod timers;
mod toy;

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::id::ConnId;
use crate::base::reason::{Closed, Departed, Refusal, Refused};
use crate::base::shared::Shared;
use crate::config::limits::{Limits, Pace, SocketLimits};
use crate::config::listen::{ListenOptions, Overflow};
use crate::connection::optional::Silent;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::{Connection, Flag};
use crate::event_loop::Loop;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::service::Service;
use crate::sys::sim::{Gone, Peer, Rng, Script, Sim, address};

/// What a service was told, in order.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Open(ConnId),
    Connected(ConnId),
    Secured(ConnId),
    Data(ConnId, Vec<u8>),
    End(ConnId, Vec<u8>),
    Drained(ConnId),
    Idle(ConnId),
    Silent(ConnId, Silent),
    Alarm(ConnId),
    Timer,
    Refused(Refusal),
    Closed(ConnId, Closed),
}

type Diary = Rc<RefCell<Vec<Told>>>;
type Gravestones = Rc<RefCell<Vec<Departed>>>;
type OnData = Box<dyn FnMut(&mut Socket<'_>, &mut Input<'_>)>;
type OnOpen = Box<dyn FnMut(&mut Socket<'_>)>;

/// A service that writes down what happens to it and does with data what a test says.
struct Probe {
    diary: Diary,
    departed: Gravestones,
    on_data: OnData,
    on_open: OnOpen,
    keeps_idle: bool,
    finishes: bool,
}

impl Service for Probe {
    type Session = ConnId;

    fn open(&mut self, socket: &mut Socket<'_>) -> ConnId {
        self.diary.borrow_mut().push(Told::Open(socket.id()));
        (self.on_open)(socket);
        socket.id()
    }

    fn data(&mut self, session: &mut ConnId, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        assert_eq!(*session, socket.id(), "a callback came with another connection's session");
        self.diary.borrow_mut().push(Told::Data(socket.id(), input.bytes().to_vec()));
        (self.on_data)(socket, input);
    }

    fn end(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.diary.borrow_mut().push(Told::End(socket.id(), socket.untaken().to_vec()));
        if self.finishes {
            socket.finish();
        }
    }

    fn drained(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.diary.borrow_mut().push(Told::Drained(socket.id()));
    }

    fn connected(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.diary.borrow_mut().push(Told::Connected(socket.id()));
    }

    fn secured(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.diary.borrow_mut().push(Told::Secured(socket.id()));
    }

    fn alarm(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.diary.borrow_mut().push(Told::Alarm(socket.id()));
    }

    fn timer(&mut self, _: TimerId, _: &mut Sockets<'_>) {
        self.diary.borrow_mut().push(Told::Timer);
    }

    fn refused(&mut self, refused: &Refused, _: &mut Sockets<'_>) {
        self.diary.borrow_mut().push(Told::Refused(refused.why));
    }

    fn idle(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.diary.borrow_mut().push(match socket.silent() {
            Silent::Both => Told::Idle(socket.id()),
            one_way => Told::Silent(socket.id(), one_way),
        });
        if !self.keeps_idle {
            socket.close();
        }
    }

    fn closed(&mut self, session: ConnId, id: ConnId, why: Closed, rest: &mut Sockets<'_>) {
        assert_eq!(session, id);
        let departed = rest.departed().cloned();
        assert_eq!(departed.as_ref().map(|departed| departed.id), Some(id));
        self.departed.borrow_mut().extend(departed);
        self.diary.borrow_mut().push(Told::Closed(id, why));
    }
}

/// A loop with one listener and one probe behind it.
struct House {
    turns: Loop<Sim>,
    script: Script,
    diary: Diary,
    departed: Gravestones,
}

/// How a test wants its house.
struct Plan {
    limits: Limits,
    listen: ListenOptions,
    first: NonZeroU32,
    keeps_idle: bool,
    finishes: bool,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            limits: Limits::default(),
            listen: ListenOptions::default(),
            first: NonZeroU32::MIN,
            keeps_idle: false,
            finishes: true,
        }
    }
}

fn socket_limits(socket: SocketLimits) -> Plan {
    Plan { limits: Limits { socket, ..Limits::default() }, ..Plan::default() }
}

fn no_idle() -> SocketLimits {
    SocketLimits { idle: None, ..SocketLimits::default() }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn echo(socket: &mut Socket<'_>, input: &mut Input<'_>) {
    socket.send(input.take_all());
}

fn swallow(_: &mut Socket<'_>, input: &mut Input<'_>) {
    input.take_all();
}

impl Plan {
    fn build(self, on_data: impl FnMut(&mut Socket<'_>, &mut Input<'_>) + 'static) -> House {
        self.build_with(|_| {}, on_data)
    }

    fn build_with(
        self,
        on_open: impl FnMut(&mut Socket<'_>) + 'static,
        on_data: impl FnMut(&mut Socket<'_>, &mut Input<'_>) + 'static,
    ) -> House {
        let (sim, script) = Sim::new();
        let mut turns = Loop::born_at(sim, self.limits, self.first).unwrap();
        let diary = Diary::default();
        let departed = Gravestones::default();
        let probe = Probe {
            diary: diary.clone(),
            departed: departed.clone(),
            on_data: Box::new(on_data),
            on_open: Box::new(on_open),
            keeps_idle: self.keeps_idle,
            finishes: self.finishes,
        };
        let service = turns.add(probe, None);
        turns.listen(&Address::from(address()), service, &self.listen).unwrap();
        House { turns, script, diary, departed }
    }
}

impl House {
    fn turn(&mut self) {
        self.turns.turn_and_check();
    }

    fn settle(&mut self) {
        self.turns.turn_until_quiet(&self.script);
    }

    /// Lets time pass, turning whenever the loop asks to.
    fn pass(&mut self, span: Duration) {
        let step = Duration::from_millis(5);
        let mut left = span;
        while !left.is_zero() {
            let step = step.min(left);
            self.script.advance(step);
            left -= step;
            self.settle();
        }
    }

    fn sockets(&mut self) -> Sockets<'_> {
        Sockets::new(&mut self.turns.table)
    }

    fn guest(&mut self) -> (Peer, ConnId) {
        let peer = self.script.connect();
        self.settle();
        let opened = self.diary.borrow().iter().rev().find_map(|told| match told {
            Told::Open(id) => Some(*id),
            _ => None,
        });
        (peer, opened.expect("a guest was let in"))
    }

    fn told(&self) -> Vec<Told> {
        self.diary.borrow().clone()
    }

    fn farewell(&self, of: ConnId) -> Option<Closed> {
        self.diary.borrow().iter().find_map(|told| match told {
            Told::Closed(id, why) if *id == of => Some(*why),
            _ => None,
        })
    }

    fn heard(&self, peer: Peer) -> String {
        String::from_utf8_lossy(&self.script.heard(peer)).into_owned()
    }
}

fn full_house(most: usize, overflow: Overflow) -> House {
    let listen = ListenOptions { overflow, ..ListenOptions::default() };
    let limits = Limits { connections: most, refusals: 4, ..Limits::default() };
    Plan { limits, listen, ..Plan::default() }.build(echo)
}

/// What every test of a simulated loop needs, those of the services too.
impl Loop<Sim> {
    /// Turns once without letting the clock move.
    fn turn_and_check(&mut self) {
        self.turn(Some(Duration::ZERO)).expect("a simulated poll does not fail");
        self.check();
    }

    /// Turns until nobody has anything more to do.
    pub(crate) fn turn_until_quiet(&mut self, script: &Script) {
        for _ in 0..10_000 {
            self.turn_and_check();
            if !self.has_work() && script.is_silent() {
                return;
            }
        }
        panic!("after 10,000 turns there is still something to do");
    }

    /// What must be true between any two turns.
    fn check(&self) {
        let table = &self.table;
        let inboxes: usize =
            table.slots.iter().filter_map(|(_, c)| c.inbox.as_ref()).map(|i| i.charge()).sum();
        let outboxes = || table.slots.iter().filter_map(|(_, c)| c.outbox.as_ref());
        let queued: usize = outboxes().map(|outbox| outbox.held()).sum();
        assert!(table.memory >= inboxes, "inboxes hold more than was charged");
        assert!(queued == 0 || table.memory > inboxes, "queues hold what was not charged");
        assert!(queued > 0 || outboxes().next().is_some() || table.memory == inboxes);
        let stats = &table.stats;
        let there = table.connections() as u64;
        assert!(
            table.connections() + table.reserved <= table.limits.connections,
            "more than the house holds"
        );
        let kept = table.slots.iter().filter(|(_, c)| c.flags.has(Flag::KeepsSecond)).count();
        for (index, group) in table.groups.iter().enumerate() {
            let member =
                |c: &&Connection| c.extra.as_ref().is_some_and(|extra| extra.group == Some(index as u16));
            let waiting = table
                .slots
                .iter()
                .map(|(_, c)| c)
                .filter(member)
                .filter(|c| c.flags.has(Flag::Thirsty))
                .count();
            assert_eq!(group.thirsty(), waiting, "those of a group who wait are counted");
        }
        assert_eq!(table.reserved, kept, "second slots are kept for those who are there");
        let under_way: usize = self.races.values().map(|race| race.overlapping()).sum();
        assert_eq!(self.overlapping, under_way, "attempts are counted");
        assert!(
            self.races.keys().all(|&slot| table.slots.contains(slot as usize)),
            "a race without a runner"
        );
        assert_eq!(stats.accepted + stats.dialed, there + stats.ended_in_all(), "connections are conserved");
        for (slot, connection) in &table.slots {
            let limits = table.limits_of(slot as u32);
            let in_line = table.ready.iter().filter(|id| id.slot as usize == slot).count();
            assert!(in_line <= 1, "in line twice");
            assert!(
                !connection.wants_serving() || in_line == 1,
                "a wake-up was lost in slot {slot}: {connection:?}"
            );
            let stuck = connection.queued() > 0
                && connection.flags.has(Flag::Writable)
                && connection.is_live()
                && connection.can_write();
            assert!(
                !stuck || table.dirty.iter().any(|dirty| dirty.id.slot as usize == slot),
                "a queue was forgotten"
            );
            if let Some((when, _)) = connection.deadline(limits) {
                let armed = table.wheel.when(slot as u32);
                assert!(armed.is_some_and(|armed| armed <= when), "no alarm for {connection:?}");
            }
        }
    }
}
