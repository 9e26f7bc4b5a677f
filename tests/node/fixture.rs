//! A reactor with one service that records its callbacks, and peers for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tidemill::{
    Address, CloseReason, ClosedInfo, ConnId, IdleKind, Input, Limits, ListenOptions, ListenerId, Reactor,
    Refused, Service, ServiceId, Socket, SocketLimits, Sockets,
};

/// The longest time that a condition may take, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const MS: Duration = Duration::from_millis(1);

/// A recorded callback of the service.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Open(ConnId),
    Connected(ConnId),
    Data(ConnId),
    End(ConnId),
    Drained(ConnId),
    Idle(ConnId),
    Closed(ConnId, CloseReason),
}

type Hook = Box<dyn FnMut(&mut Socket<'_>)>;
type OnData = Box<dyn FnMut(&mut Socket<'_>, &mut Input<'_>)>;

#[derive(Default)]
struct Hooks {
    open: Option<Hook>,
    connected: Option<Hook>,
    data: Option<OnData>,
    end: Option<Hook>,
    drained: Option<Hook>,
    idle: Option<Hook>,
}

#[derive(Default)]
struct Recorded {
    events: Vec<Event>,
    received: HashMap<ConnId, Vec<u8>>,
    info: Vec<ClosedInfo>,
    refused: Vec<Refused>,
    hooks: Hooks,
}

#[derive(Clone, Default)]
struct Recorder(Rc<RefCell<Recorded>>);

impl Recorder {
    /// Runs a hook without borrowing the record, to which it may cause additions.
    fn run(&self, of: fn(&mut Hooks) -> &mut Option<Hook>, socket: &mut Socket<'_>) -> bool {
        let taken = of(&mut self.0.borrow_mut().hooks).take();
        let Some(mut hook) = taken else { return false };
        hook(socket);
        of(&mut self.0.borrow_mut().hooks).get_or_insert(hook);
        true
    }

    fn record(&self, events: Event) {
        self.0.borrow_mut().events.push(events);
    }
}

impl Service for Recorder {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        self.record(Event::Open(socket.id()));
        self.run(|hooks| &mut hooks.open, socket);
    }

    fn connected(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        self.record(Event::Connected(socket.id()));
        self.run(|hooks| &mut hooks.connected, socket);
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        self.record(Event::Data(socket.id()));
        let taken = self.0.borrow_mut().hooks.data.take();
        match taken {
            Some(mut hook) => {
                hook(socket, input);
                self.0.borrow_mut().hooks.data.get_or_insert(hook);
            }
            None => {
                let id = socket.id();
                self.0.borrow_mut().received.entry(id).or_default().extend_from_slice(input.take_all());
            }
        }
    }

    fn end(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        self.record(Event::End(socket.id()));
        if !self.run(|hooks| &mut hooks.end, socket) {
            socket.finish();
        }
    }

    fn drained(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        self.record(Event::Drained(socket.id()));
        self.run(|hooks| &mut hooks.drained, socket);
    }

    fn idle(&mut self, _: &mut (), socket: &mut Socket<'_>, _: IdleKind) {
        self.record(Event::Idle(socket.id()));
        if !self.run(|hooks| &mut hooks.idle, socket) {
            socket.close();
        }
    }

    fn refused(&mut self, refused: &Refused, _: &mut Sockets<'_>) {
        self.0.borrow_mut().refused.push(refused.clone());
    }

    fn closed(&mut self, _: (), gone: &ClosedInfo, _: &mut Sockets<'_>) {
        self.record(Event::Closed(gone.id, gone.reason));
        self.0.borrow_mut().info.push(gone.clone());
    }
}

pub struct Fixture {
    pub reactor: Reactor,
    pub service: ServiceId,
    recorder: Recorder,
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Fixture {
        let mut reactor = Reactor::new(limits).expect("a reactor");
        let recorder = Recorder::default();
        let service = reactor.add(recorder.clone());
        Fixture { reactor, service: service.id(), recorder }
    }

    pub fn with_socket(socket: SocketLimits) -> Fixture {
        Fixture::with(Limits { socket, ..Limits::default() })
    }

    // -- hooks of the service --

    pub fn on_open(self, hook: impl FnMut(&mut Socket<'_>) + 'static) -> Fixture {
        self.recorder.0.borrow_mut().hooks.open = Some(Box::new(hook));
        self
    }

    pub fn on_connected(self, hook: impl FnMut(&mut Socket<'_>) + 'static) -> Fixture {
        self.recorder.0.borrow_mut().hooks.connected = Some(Box::new(hook));
        self
    }

    pub fn on_data(self, hook: impl FnMut(&mut Socket<'_>, &mut Input<'_>) + 'static) -> Fixture {
        self.recorder.0.borrow_mut().hooks.data = Some(Box::new(hook));
        self
    }

    pub fn on_end(self, hook: impl FnMut(&mut Socket<'_>) + 'static) -> Fixture {
        self.recorder.0.borrow_mut().hooks.end = Some(Box::new(hook));
        self
    }

    pub fn on_drained(self, hook: impl FnMut(&mut Socket<'_>) + 'static) -> Fixture {
        self.recorder.0.borrow_mut().hooks.drained = Some(Box::new(hook));
        self
    }

    pub fn on_idle(self, hook: impl FnMut(&mut Socket<'_>) + 'static) -> Fixture {
        self.recorder.0.borrow_mut().hooks.idle = Some(Box::new(hook));
        self
    }

    // -- listening and dialing --

    pub fn listen(&mut self) -> SocketAddr {
        self.listen_with(&ListenOptions::default()).1
    }

    pub fn listen_with(&mut self, options: &ListenOptions) -> (ListenerId, SocketAddr) {
        let listener = self.reactor.listen_with("127.0.0.1:0", self.service, options).expect("a listener");
        (listener, self.address(listener))
    }

    pub fn address(&self, listener: ListenerId) -> SocketAddr {
        self.reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address")
    }

    #[track_caller]
    pub fn dial<A: TryInto<Address, Error: Into<tidemill::AddressError>>>(&mut self, to: A) -> ConnId {
        self.reactor.dial(to, self.service).expect("a slot")
    }

    /// A peer that has connected, once `open` has been called for it.
    #[track_caller]
    pub fn connect(&mut self, to: SocketAddr) -> (Peer, ConnId) {
        let before = self.opened().len();
        let peer = Peer::connect(to);
        self.until("a peer is accepted", |fixture| fixture.opened().len() > before);
        (peer, self.opened()[before])
    }

    /// Both ends of one connection of this service: the dialed and the accepted one.
    #[track_caller]
    pub fn both_ends(&mut self) -> (ConnId, ConnId) {
        let address = self.listen();
        let dialed = self.dial(address);
        self.until("both ends are there", |fixture| {
            fixture.opened().len() >= 2 && fixture.count(Event::Connected(dialed)) == 1
        });
        let accepted = self.opened().into_iter().find(|&id| id != dialed).expect("the accepted end");
        (dialed, accepted)
    }

    // -- time --

    /// Turns until a condition holds; fails after a limited time.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Fixture) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}; {:?}", self.events());
            self.reactor.turn(Some(MS)).expect("a turn");
        }
    }

    /// Turns for this time, to assert that nothing happens.
    pub fn turn_for(&mut self, span: Duration) {
        let end = Instant::now() + span;
        // On a busy machine the whole time may be over before the first turn.
        for turns in 0.. {
            let left = end.saturating_duration_since(Instant::now());
            if turns >= 8 && left.is_zero() {
                return;
            }
            self.reactor.turn(Some(left.min(5 * MS))).expect("a turn");
        }
    }

    #[track_caller]
    pub fn until_closed(&mut self, id: ConnId) -> CloseReason {
        self.until("it is closed", |fixture| fixture.closed(id).is_some());
        self.closed(id).expect("a reason")
    }

    // -- the record --

    pub fn events(&self) -> Vec<Event> {
        self.recorder.0.borrow().events.clone()
    }

    pub fn count(&self, what: Event) -> usize {
        self.recorder.0.borrow().events.iter().filter(|events| **events == what).count()
    }

    pub fn opened(&self) -> Vec<ConnId> {
        let events = self.events().into_iter();
        events.filter_map(|events| if let Event::Open(id) = events { Some(id) } else { None }).collect()
    }

    pub fn close_reasons(&self, id: ConnId) -> Vec<CloseReason> {
        let events = self.events().into_iter();
        events
            .filter_map(|events| match events {
                Event::Closed(of, why) if of == id => Some(why),
                _ => None,
            })
            .collect()
    }

    pub fn closed(&self, id: ConnId) -> Option<CloseReason> {
        self.close_reasons(id).first().copied()
    }

    pub fn received(&self, id: ConnId) -> Vec<u8> {
        self.recorder.0.borrow().received.get(&id).cloned().unwrap_or_default()
    }

    pub fn closed_info(&self, id: ConnId) -> ClosedInfo {
        let notes = self.recorder.0.borrow();
        notes.info.iter().find(|info| info.id == id).expect("it has ended").clone()
    }

    pub fn refused(&self) -> Vec<Refused> {
        self.recorder.0.borrow().refused.clone()
    }

    /// The error message of a dial.
    pub fn dial_error(&self, id: ConnId) -> String {
        self.closed_info(id).dial_error.expect("a failure").to_string()
    }

    /// Calls `what` with the socket of an open connection.
    #[track_caller]
    pub fn with_socket_of<T>(&mut self, id: ConnId, what: impl FnOnce(&mut Socket<'_>) -> T) -> T {
        let mut sockets = self.reactor.sockets();
        let mut socket = sockets.get(id).expect("it is there");
        what(&mut socket)
    }

    /// Reads from a peer until it has received `n` bytes.
    #[track_caller]
    pub fn receive(&mut self, peer: &mut Peer, bytes: usize) -> Vec<u8> {
        self.until("the peer receives it", |_| {
            peer.listen();
            peer.received.len() >= bytes || peer.end.is_some()
        });
        assert!(
            peer.received.len() >= bytes,
            "only {} of {bytes} bytes, then {:?}",
            peer.received.len(),
            peer.end
        );
        peer.received.drain(..bytes).collect()
    }

    /// Reads from a peer until the connection ends; returns all bytes, and how it ended.
    #[track_caller]
    pub fn receive_end(&mut self, peer: &mut Peer) -> (Vec<u8>, End) {
        self.until("the peer sees the end", |_| {
            peer.listen();
            peer.end.is_some()
        });
        (std::mem::take(&mut peer.received), peer.end.expect("an end"))
    }
}

/// How a connection ended for its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Clean,
    Reset,
}

/// A peer that uses the sockets of the standard library.
pub struct Peer {
    pub stream: TcpStream,
    pub received: Vec<u8>,
    pub end: Option<End>,
}

impl Peer {
    pub fn connect(to: SocketAddr) -> Peer {
        Peer::of(TcpStream::connect(to).expect("a connection"))
    }

    pub fn of(stream: TcpStream) -> Peer {
        stream.set_nonblocking(true).expect("an option");
        stream.set_nodelay(true).expect("an option");
        Peer { stream, received: Vec::new(), end: None }
    }

    /// Sends bytes that fit into the kernel's buffer.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the kernel takes it");
    }

    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("it is connected");
    }

    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("an option");
    }

    pub fn listen(&mut self) {
        let mut chunk = [0; 64 * 1024];
        while self.end.is_none() {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.end = Some(End::Clean),
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.end = Some(End::Reset),
            }
        }
    }
}

/// A server to dial.
pub struct TestServer(pub TcpListener);

impl TestServer {
    pub fn new() -> TestServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("an option");
        TestServer(listener)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("its address")
    }

    #[track_caller]
    pub fn accept(&self, fixture: &mut Fixture) -> Peer {
        let mut found = None;
        fixture.until("a connect arrives", |_| {
            found = self.0.accept().ok();
            found.is_some()
        });
        Peer::of(found.expect("a peer").0)
    }
}

/// An address without a listener: no program uses port 1 of this address.
pub fn closed_port() -> SocketAddr {
    "127.77.0.1:1".parse().expect("an address")
}

/// An address that never answers while this value exists: a listener whose backlog is full.
pub struct BlackHole {
    listener: socket2::Socket,
    fill: Vec<TcpStream>,
}

impl BlackHole {
    pub fn on(ip: &str) -> BlackHole {
        let address: SocketAddr = format!("{ip}:0").parse().expect("an address");
        let domain = socket2::Domain::for_address(address);
        let listener = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        listener.bind(&address.into()).expect("a port");
        listener.listen(0).expect("a listener");
        let mut hole = BlackHole { listener, fill: Vec::new() };
        // Linux accepts one connection more than the backlog, and then drops SYNs.
        while let Ok(stream) = TcpStream::connect_timeout(&hole.address(), 100 * MS) {
            hole.fill.push(stream);
            assert!(hole.fill.len() < 10, "the backlog has no end");
        }
        hole
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().ok().and_then(|address| address.as_socket()).expect("its address")
    }

    /// Empties the backlog: the retransmitted SYN, a second after the first, succeeds.
    pub fn start_accepting(&mut self) {
        for _ in 0..self.fill.len() {
            self.listener.accept().expect("a connect waits");
        }
    }
}
