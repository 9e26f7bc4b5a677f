//! What drives the servers: connections to all of them, of which one server's at a time have something to say.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tidemill::{
    Closed, ConnId, DialOptions, Input, Limits, Reactor, Service, ServiceId, Socket, SocketLimits, Sockets,
};

use crate::Case;

/// What one turn of one server came to.
#[derive(Clone, Copy, Default)]
pub struct Turned {
    pub messages: u64,
    pub span: Duration,
}

/// Driver and service share this.
struct State {
    case: Case,
    message: Vec<u8>,
    targets: Vec<SocketAddr>,
    /// Whether new messages may be sent.
    active: bool,
    messages: u64,
    /// Messages without an answer, or in a churn connections that have not ended.
    under_way: usize,
    connections: HashMap<ConnId, Connection>,
    up: usize,
    dials: usize,
}

#[derive(Clone, Copy, Default)]
struct Connection {
    target: usize,
    /// Bytes of the present message that have been answered.
    heard: usize,
}

pub struct Driver {
    reactor: Reactor,
    own: ServiceId,
    state: Rc<RefCell<State>>,
}

/// No turn takes longer to come to its end.
const PATIENCE: Duration = Duration::from_secs(20);

impl Driver {
    /// Connects to all servers, as often as the case says; for a churn, not at all yet.
    pub fn connect(case: &Case, targets: &[SocketAddr]) -> Driver {
        let socket = SocketLimits {
            idle: None,
            read_pace: None,
            write_pace: None,
            queue: usize::MAX,
            read_when_full: true,
            ..SocketLimits::default()
        };
        let limits =
            Limits { connections: 100_000, memory: usize::MAX, events: 4_096, socket, ..Limits::default() };
        let mut reactor = Reactor::new(limits).expect("a reactor");
        let state = Rc::new(RefCell::new(State {
            case: *case,
            message: (0..case.size).map(|n| (n % 251) as u8).collect(),
            targets: targets.to_vec(),
            active: false,
            messages: 0,
            under_way: 0,
            connections: HashMap::new(),
            up: 0,
            dials: 0,
        }));
        let own = reactor.add(Caller { state: state.clone(), own: None });
        let mut driver = Driver { reactor, own, state };
        for n in 0..if case.churn { 0 } else { case.connections * targets.len() } {
            dial(&driver.state, &mut driver.reactor.sockets(), driver.own, n % targets.len());
            // No more under way than a backlog holds.
            driver.until(|state| state.up + 256 > n);
        }
        let all = driver.state.borrow().connections.len();
        driver.until(|state| state.up == all);
        driver
    }

    #[track_caller]
    fn until(&mut self, mut holds: impl FnMut(&State) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.state.borrow()) {
            assert!(Instant::now() < end, "a server does not answer");
            self.reactor.turn(Some(Duration::ZERO)).expect("a turn");
        }
    }

    /// Lets the connections of one server talk for so long, and then until all is answered.
    pub fn turn(&mut self, target: usize, span: Duration) -> Turned {
        let mut sockets = self.reactor.sockets();
        let begun = sockets.now();
        let mut state = self.state.borrow_mut();
        (state.active, state.messages) = (true, 0);
        if state.case.churn {
            let places = state.case.connections;
            drop(state);
            (0..places).for_each(|_| dial(&self.state, &mut sockets, self.own, target));
        } else {
            let ids: Vec<ConnId> =
                state.connections.iter().filter(|(_, one)| one.target == target).map(|(&id, _)| id).collect();
            for id in ids {
                let mut socket = sockets.get(id).expect("it is connected");
                (0..state.case.pipeline).for_each(|_| socket.send(&state.message));
                state.under_way += state.case.pipeline;
            }
            drop(state);
        }
        while self.reactor.sockets().now() < begun + span {
            self.reactor.turn(Some(Duration::ZERO)).expect("a turn");
        }
        self.state.borrow_mut().active = false;
        self.until(|state| state.under_way == 0);
        let span = self.reactor.sockets().now() - begun;
        Turned { messages: self.state.borrow().messages, span }
    }
}

/// From one of several addresses of the loopback network: each has its own ports.
fn dial(state: &Rc<RefCell<State>>, sockets: &mut Sockets<'_>, own: ServiceId, target: usize) {
    let mut state = state.borrow_mut();
    let host = state.dials / 200 % 200;
    let local = SocketAddr::from(([127, 0, 2, 1 + host as u8], 0));
    let options = DialOptions { local: Some(local), ..DialOptions::default() };
    let id = sockets.dial_with(state.targets[target], own, options).expect("a slot");
    state.dials += 1;
    state.under_way += usize::from(state.case.churn);
    state.connections.insert(id, Connection { target, heard: 0 });
}

struct Caller {
    state: Rc<RefCell<State>>,
    own: Option<ServiceId>,
}

impl Service for Caller {
    type Session = ();

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn connected(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        let mut state = self.state.borrow_mut();
        state.up += 1;
        if state.case.churn {
            socket.send(&state.message);
        }
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut state = self.state.borrow_mut();
        let mut connection = state.connections[&socket.id()];
        let (mut answered, mut bytes) = (0, input.take_all());
        while !bytes.is_empty() {
            let expected = &state.message[connection.heard..];
            let (now, rest) = bytes.split_at(bytes.len().min(expected.len()));
            assert!(now == &expected[..now.len()], "a server has answered with other bytes");
            connection.heard += now.len();
            bytes = rest;
            if connection.heard == state.message.len() {
                connection.heard = 0;
                answered += 1;
            }
        }
        state.messages += answered as u64;
        state.connections.insert(socket.id(), connection);
        if state.case.churn {
            if answered > 0 {
                socket.close();
            }
        } else if state.active {
            (0..answered).for_each(|_| socket.send(&state.message));
        } else {
            state.under_way -= answered;
        }
    }

    fn closed(&mut self, _: (), id: ConnId, why: Closed, rest: &mut Sockets<'_>) {
        let mut state = self.state.borrow_mut();
        let connection = state.connections.remove(&id).unwrap_or_default();
        assert!(state.case.churn, "a server has closed {id}: {why}");
        state.under_way -= 1;
        let active = state.active;
        drop(state);
        if let (true, Some(own)) = (active, self.own) {
            dial(&self.state, rest, own, connection.target);
        }
    }
}
