//! The load driver: it has connections to all servers, and loads one server at a time.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tidemill::services::Echo;
use tidemill::{
    ClosedInfo, ConnId, DialOptions, FilterConfig, Input, Limits, Reactor, Service, ServiceId, Socket,
    SocketLimits, Sockets,
};

use crate::case::{Case, Shape};
use crate::tls;

/// The result of one turn of one server.
#[derive(Clone, Copy, Default)]
pub struct Turned {
    pub messages: u64,
    pub span: Duration,
}

/// The state shared by the driver and its client services.
struct State {
    case: Case,
    message: Vec<u8>,
    /// Whether new messages may be sent.
    active: bool,
    messages: u64,
    /// Unanswered messages; in a churn, connections that have not ended; in a fan-out, bytes to be received.
    under_way: usize,
    /// Connections by target. In a fan-out the last one sends: when its line is read, all others have been accepted.
    open: Vec<Vec<ConnId>>,
    up: usize,
    dials: usize,
}

pub struct Driver {
    reactor: Reactor,
    backend: Option<SocketAddr>,
    targets: Vec<(SocketAddr, ServiceId, Option<FilterConfig>)>,
    state: Rc<RefCell<State>>,
}

/// The longest time that the end of a turn may take.
const PATIENCE: Duration = Duration::from_secs(20);

impl Driver {
    pub fn new(case: &Case) -> Driver {
        let socket = SocketLimits {
            idle: None,
            min_read_rate: None,
            min_write_rate: None,
            queue: usize::MAX,
            read_when_full: true,
            ..SocketLimits::default()
        };
        let limits = Limits {
            connections: 100_000,
            memory: usize::MAX,
            events_per_turn: 4_096,
            socket,
            ..Limits::default()
        };
        let mut reactor = Reactor::new(limits).expect("a reactor");
        let mut message: Vec<u8> = (0..case.size).map(|n| b'a' + (n % 23) as u8).collect();
        if let Some(last) = message.last_mut() {
            *last = b'\n';
        }
        let backend = case.is_proxied().then(|| {
            let echo = reactor.add(Echo::raw());
            let listener = reactor.listen("127.0.0.1:0", echo).expect("a listener");
            reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address")
        });
        let state = State {
            case: *case,
            message,
            active: false,
            messages: 0,
            under_way: 0,
            open: Vec::new(),
            up: 0,
            dials: 0,
        };
        Driver { reactor, backend, targets: Vec::new(), state: Rc::new(RefCell::new(state)) }
    }

    /// The address of its echo, the backend of proxies.
    pub fn backend(&self) -> Option<SocketAddr> {
        self.backend
    }

    /// Connects to all servers, as often as the case requires; for a churn, not yet.
    pub fn connect(&mut self, targets: &[SocketAddr]) {
        for (target, &address) in targets.iter().enumerate() {
            // Each server has its own key, and resumes only its own sessions.
            let filter = self.state.borrow().case.is_secured().then(tls::client);
            let state = self.state.clone();
            let own =
                self.reactor.add(Connection { state, target, address, own: None, filter: filter.clone() });
            self.targets.push((address, own.id(), filter));
            self.state.borrow_mut().open.push(Vec::new());
        }
        let case = self.state.borrow().case;
        let each = match case.shape {
            Shape::FanOut => case.connections + 1,
            _ if case.churns() => 0,
            _ => case.connections,
        };
        for n in 0..each * targets.len() {
            let (address, own, filter) = self.targets[n % targets.len()].clone();
            // Not more pending connects than a backlog holds, and the last one to each server after all others.
            let ahead = if n / targets.len() + 1 == each { 0 } else { 256 };
            self.until(|state| state.up + ahead >= n);
            dial(&self.state, &mut self.reactor.sockets(), own, address, filter);
        }
        self.until(|state| state.up == each * targets.len());
    }

    #[track_caller]
    fn until(&mut self, mut holds: impl FnMut(&State) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.state.borrow()) {
            assert!(Instant::now() < end, "a server does not answer");
            self.reactor.turn(Some(Duration::ZERO)).expect("a turn");
        }
    }

    /// Loads one server for `span`, and then waits for all answers.
    pub fn turn(&mut self, target: usize, span: Duration) -> Turned {
        let mut sockets = self.reactor.sockets();
        let begun = sockets.now();
        let case = self.state.borrow().case;
        {
            let mut state = self.state.borrow_mut();
            (state.active, state.messages) = (true, 0);
        }
        if case.churns() {
            let (address, own, filter) = &self.targets[target];
            for _ in 0..case.connections {
                dial(&self.state, &mut sockets, *own, *address, filter.clone());
            }
        } else {
            let state = &mut *self.state.borrow_mut();
            let speakers = match case.shape {
                Shape::FanOut => &state.open[target][case.connections..],
                _ => &state.open[target][..],
            };
            for &id in speakers {
                let mut socket = sockets.get(id).expect("it is connected");
                (0..case.pipeline).for_each(|_| socket.send(&state.message));
                state.under_way += state.case.answers();
            }
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

impl Case {
    /// How much is received for one send of a connection: messages, or the bytes of a fan-out.
    fn answers(&self) -> usize {
        match self.shape {
            Shape::FanOut => self.pipeline * self.size * self.connections,
            _ => self.pipeline,
        }
    }
}

/// One of several loopback addresses to connect from: each has its own ports.
fn dial(
    state: &Rc<RefCell<State>>,
    sockets: &mut Sockets<'_>,
    own: ServiceId,
    to: SocketAddr,
    filter: Option<FilterConfig>,
) {
    let mut state = state.borrow_mut();
    let host = state.dials / 200 % 200;
    let local = SocketAddr::from(([127, 0, 2, 1 + host as u8], 0));
    let options = DialOptions { local: Some(local), filter, ..DialOptions::default() };
    sockets.dial_with(to, own, options).expect("a slot");
    state.dials += 1;
    state.under_way += usize::from(state.case.churns());
}

struct Connection {
    state: Rc<RefCell<State>>,
    target: usize,
    address: SocketAddr,
    own: Option<ServiceId>,
    filter: Option<FilterConfig>,
}

impl Service for Connection {
    /// Received bytes of the current message.
    type Session = usize;

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) -> usize {
        0
    }

    fn connected(&mut self, _: &mut usize, socket: &mut Socket<'_>) {
        let mut state = self.state.borrow_mut();
        state.up += 1;
        if state.case.churns() {
            socket.send(&state.message);
        } else {
            state.open[self.target].push(socket.id());
        }
    }

    fn data(&mut self, heard: &mut usize, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let state = &mut *self.state.borrow_mut();
        let bytes = input.take_all();
        let complete = compare(&state.message, heard, bytes);
        if state.case.shape == Shape::FanOut {
            state.messages += complete as u64;
            state.under_way -= bytes.len();
            if let (0, true, Some(mut speaker)) =
                (state.under_way, state.active, socket.other(state.open[self.target][state.case.connections]))
            {
                (0..state.case.pipeline).for_each(|_| speaker.send(&state.message));
                state.under_way = state.case.answers();
            }
            return;
        }
        state.messages += complete as u64;
        if state.case.churns() {
            if complete > 0 {
                socket.close();
            }
        } else if state.active {
            (0..complete).for_each(|_| socket.send(&state.message));
        } else {
            state.under_way -= complete;
        }
    }

    fn closed(&mut self, _: usize, gone: &ClosedInfo, rest: &mut Sockets<'_>) {
        let mut state = self.state.borrow_mut();
        assert!(state.case.churns(), "a server has closed {}: {}", gone.id, gone.reason);
        state.under_way -= 1;
        let active = state.active;
        drop(state);
        if let (true, Some(own)) = (active, self.own) {
            dial(&self.state, rest, own, self.address, self.filter.clone());
        }
    }
}

/// How many messages these bytes complete. Fails on a wrong byte.
fn compare(message: &[u8], heard: &mut usize, mut bytes: &[u8]) -> usize {
    let mut complete = 0;
    while !bytes.is_empty() {
        let expected = &message[*heard..];
        let (now, rest) = bytes.split_at(bytes.len().min(expected.len()));
        assert!(now == &expected[..now.len()], "a server has answered with other bytes");
        *heard += now.len();
        bytes = rest;
        if *heard == message.len() {
            *heard = 0;
            complete += 1;
        }
    }
    complete
}
