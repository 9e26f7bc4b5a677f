//! Tests of the loop on a simulated kernel. No test sleeps; the clock moves when a test moves it.

mod accept;
mod admission;
mod backpressure;
mod deadlines;
mod deferred;
mod dial;
mod filters;
mod hunt;
mod input;
mod leaving;
mod lifecycle;
mod lookups;
mod marks;
mod memory;
mod observer;
mod output;
mod pipe;
mod rate;
mod readiness;
mod send_file;
mod shutdown;
mod splice;
mod test_filter;
mod timers;
mod tls;
pub(crate) mod world;

use std::cell::{Cell, RefCell};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::id::{ConnId, ServiceId};
use crate::base::reason::{CloseReason, ClosedInfo, Refusal, Refused};
use crate::base::shared::Shared;
use crate::config::access::AccessPolicy;
use crate::config::limits::{Limits, MinRate, SocketLimits};
use crate::config::listen::{ListenOptions, Overflow};
use crate::connection::optional::IdleKind;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::event_loop::EventLoop;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::service::Service;
use crate::sys::sim::{PeerId, Released, Script, Sim, Tape, address, each_seed};

/// The callbacks that a service got, in order.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    Open(ConnId),
    Connected(ConnId),
    FilterStarted(ConnId),
    Data(ConnId, Vec<u8>),
    End(ConnId, Vec<u8>),
    Drained(ConnId),
    Idle(ConnId),
    OneWayIdle(ConnId, IdleKind),
    Alarm(ConnId),
    Timer,
    Refused(Refusal),
    Closed(ConnId, CloseReason),
}

type Log = Rc<RefCell<Vec<Event>>>;
type ClosedLog = Rc<RefCell<Vec<ClosedInfo>>>;
type OnData = Box<dyn FnMut(&mut Socket<'_>, &mut Input<'_>)>;
type OnOpen = Box<dyn FnMut(&mut Socket<'_>)>;

/// A service that records its callbacks, and does with data what the test says.
struct Probe {
    log: Log,
    closed_log: ClosedLog,
    on_data: OnData,
    on_open: OnOpen,
    keeps_idle: bool,
    finishes: bool,
}

impl Service for Probe {
    type Session = ConnId;

    fn open(&mut self, socket: &mut Socket<'_>) -> ConnId {
        self.log.borrow_mut().push(Event::Open(socket.id()));
        (self.on_open)(socket);
        socket.id()
    }

    fn data(&mut self, session: &mut ConnId, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        assert_eq!(*session, socket.id(), "a callback came with another connection's session");
        self.log.borrow_mut().push(Event::Data(socket.id(), input.bytes().to_vec()));
        (self.on_data)(socket, input);
    }

    fn end(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.log.borrow_mut().push(Event::End(socket.id(), socket.unread().to_vec()));
        if self.finishes {
            socket.finish();
        }
    }

    fn drained(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.log.borrow_mut().push(Event::Drained(socket.id()));
    }

    fn connected(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.log.borrow_mut().push(Event::Connected(socket.id()));
    }

    fn filter_started(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.log.borrow_mut().push(Event::FilterStarted(socket.id()));
    }

    fn alarm(&mut self, _: &mut ConnId, socket: &mut Socket<'_>, _: u64) {
        self.log.borrow_mut().push(Event::Alarm(socket.id()));
    }

    fn timer(&mut self, _: TimerId, _: &mut Sockets<'_>) {
        self.log.borrow_mut().push(Event::Timer);
    }

    fn refused(&mut self, refused: &Refused, _: &mut Sockets<'_>) {
        self.log.borrow_mut().push(Event::Refused(refused.reason));
    }

    fn idle(&mut self, _: &mut ConnId, socket: &mut Socket<'_>, which: IdleKind) {
        self.log.borrow_mut().push(match which {
            IdleKind::Both => Event::Idle(socket.id()),
            one_way => Event::OneWayIdle(socket.id(), one_way),
        });
        if !self.keeps_idle {
            socket.close();
        }
    }

    fn closed(&mut self, session: ConnId, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        assert_eq!(session, gone.id);
        self.closed_log.borrow_mut().push(gone.clone());
        self.log.borrow_mut().push(Event::Closed(gone.id, gone.reason));
    }
}

/// A loop with one listener, whose service is a probe.
struct TestLoop {
    event_loop: EventLoop<Sim>,
    service: ServiceId,
    script: Script,
    log: Log,
    closed_log: ClosedLog,
}

/// The settings of a test's loop.
struct Setup {
    limits: Limits,
    listen: ListenOptions,
    first_generation: NonZeroU32,
    keeps_idle: bool,
    finishes: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            limits: Limits::default(),
            listen: ListenOptions::default(),
            first_generation: NonZeroU32::MIN,
            keeps_idle: false,
            finishes: true,
        }
    }
}

fn socket_limits(socket: SocketLimits) -> Setup {
    Setup { limits: Limits { socket, ..Limits::default() }, ..Setup::default() }
}

fn no_idle() -> SocketLimits {
    SocketLimits { idle: None, ..SocketLimits::default() }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn echo(socket: &mut Socket<'_>, input: &mut Input<'_>) {
    socket.send(input.take_all());
}

fn discard(_: &mut Socket<'_>, input: &mut Input<'_>) {
    input.take_all();
}

impl Setup {
    fn build(self, on_data: impl FnMut(&mut Socket<'_>, &mut Input<'_>) + 'static) -> TestLoop {
        self.build_with(|_| {}, on_data)
    }

    fn build_with(
        self,
        on_open: impl FnMut(&mut Socket<'_>) + 'static,
        on_data: impl FnMut(&mut Socket<'_>, &mut Input<'_>) + 'static,
    ) -> TestLoop {
        let (sim, script) = Sim::new();
        let mut turns = EventLoop::with_first_generation(sim, self.limits, self.first_generation).unwrap();
        let log = Log::default();
        let closed_log = ClosedLog::default();
        let probe = Probe {
            log: log.clone(),
            closed_log: closed_log.clone(),
            on_data: Box::new(on_data),
            on_open: Box::new(on_open),
            keeps_idle: self.keeps_idle,
            finishes: self.finishes,
        };
        let service = turns.add(probe, None);
        turns.listen(&Address::from(address()), service, &self.listen).unwrap();
        TestLoop { event_loop: turns, service, script, log, closed_log }
    }
}

impl TestLoop {
    fn turn(&mut self) {
        self.event_loop.turn_and_check();
    }

    fn turn_until_quiet(&mut self) {
        self.event_loop.turn_until_quiet(&self.script);
    }

    /// Moves the clock by a time, with a turn at each deadline of the loop.
    fn advance(&mut self, span: Duration) {
        let step = Duration::from_millis(5);
        let mut left = span;
        while !left.is_zero() {
            let step = step.min(left);
            self.script.advance(step);
            left -= step;
            self.turn_until_quiet();
        }
    }

    fn sockets(&mut self) -> Sockets<'_> {
        Sockets::new(&mut self.event_loop.table)
    }

    fn set_access_policy(&mut self, policy: AccessPolicy) {
        let service = self.service;
        self.sockets().set_access_policy(service, policy);
    }

    /// The number of connections of the service.
    fn count(&mut self) -> usize {
        let service = self.service;
        self.sockets().count(service)
    }

    fn accept(&mut self) -> (PeerId, ConnId) {
        let peer = self.script.connect();
        self.turn_until_quiet();
        let opened = self.log.borrow().iter().rev().find_map(|events| match events {
            Event::Open(id) => Some(*id),
            _ => None,
        });
        (peer, opened.expect("a connection was opened"))
    }

    fn events(&self) -> Vec<Event> {
        self.log.borrow().clone()
    }

    /// Bytes sent to a connection that the kernel has not accepted.
    fn queued(&self, id: ConnId) -> usize {
        let table = &self.event_loop.table;
        table.find(id).map_or(0, |connection| connection.unsent(&table.cx))
    }

    fn close_reason(&self, of: ConnId) -> Option<CloseReason> {
        self.log.borrow().iter().find_map(|events| match events {
            Event::Closed(id, why) if *id == of => Some(*why),
            _ => None,
        })
    }

    fn received(&self, peer: PeerId) -> String {
        String::from_utf8_lossy(&self.script.received(peer)).into_owned()
    }
}

fn at_capacity(max: usize, overflow: Overflow) -> TestLoop {
    let listen = ListenOptions { overflow, ..ListenOptions::default() };
    let limits = Limits { connections: max, refusals: 4, ..Limits::default() };
    Setup { limits, listen, ..Setup::default() }.build(echo)
}

thread_local! {
    /// Turns that all loops of this thread have taken.
    static TURNS: Cell<u64> = const { Cell::new(0) };
}

impl EventLoop<Sim> {
    pub(super) fn count_turn() {
        TURNS.set(TURNS.get() + 1);
    }

    /// Turns until neither the loop nor a peer has anything to do.
    pub(crate) fn turn_until_quiet(&mut self, script: &Script) {
        for _ in 0..10_000 {
            self.turn_and_check();
            if !self.has_work() && script.is_quiet() {
                return;
            }
        }
        panic!("after 10,000 turns there is still something to do");
    }
}
