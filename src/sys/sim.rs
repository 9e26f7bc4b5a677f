//! A simulated kernel for tests: [`System`] with a clock that moves only when a test advances it, or in a poll.
//!
//! Sockets are byte queues. Readiness is edge-triggered as strictly as epoll may be: one edge for each arrival, for new
//! space after a refused write, and for an end; never a second one for the same thing. Descriptors are counted;
//! accept(2) takes one before it looks at the backlog, as Linux does. With a seed, writes are also short, calls return
//! `WouldBlock` (a later edge follows) or are interrupted, and events are late or spurious.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use crate::base::address::{Address, PeerAddress};
use crate::base::id::Token;
use crate::config::dial::{DialOptions, SocketOption};
use crate::config::listen::ListenOptions;
use crate::sys::{AcceptError, Answer, Epoch, ListenSocket, Ready, Registrar, Stream, System, Waker};

/// The simulated kernel, as the reactor uses it.
pub(crate) struct Sim(Rc<RefCell<World>>);

/// The same simulated kernel, as a test controls it: what peers and kernel do.
#[derive(Clone)]
pub(crate) struct Script(Rc<RefCell<World>>);

/// One descriptor of the reactor.
pub(crate) struct Fd {
    key: usize,
    world: Rc<RefCell<World>>,
}

/// A simulated kernel pipe.
#[derive(Default)]
pub(crate) struct SimPipe(RefCell<VecDeque<u8>>);

struct World {
    epoch: Epoch,
    now: Duration,
    sockets: Vec<SimSocket>,
    backlog: VecDeque<usize>,
    listener: Option<Token>,
    listener_edge: bool,
    is_listening: bool,
    open: usize,
    descriptors: usize,
    reserve: bool,
    no_splice: bool,
    accept_errors: VecDeque<AcceptError>,
    register_errors: usize,
    stale: Vec<Ready>,
    /// The wait of the last poll; the outer `None`: there was no poll yet.
    last_wait: Option<Option<Duration>>,
    faults: Option<Rng>,
    calls: Calls,
    /// Look-ups that are not answered, and answers that the reactor has not taken.
    lookups: Vec<(u64, String)>,
    answers: Vec<Answer>,
    /// The address that peers connect from; their ports differ.
    from: Option<IpAddr>,
    /// How much time a poll without events and with a wait of zero takes.
    poll_cost: Duration,
}

/// How often each call was made.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Calls {
    pub(crate) polls: usize,
    pub(crate) accepts: usize,
    pub(crate) reads: usize,
    pub(crate) writes: usize,
    pub(crate) splices: usize,
}

/// A connection with both of its ends.
#[derive(Default)]
struct SimSocket {
    token: Option<Token>,
    inbound: VecDeque<u8>,
    inbound_end: bool,
    outbound: Vec<u8>,
    outbound_end: bool,
    /// Bytes that the kernel still accepts from the reactor.
    window: usize,
    reset: bool,
    /// The result of a dial; `None` while it is in progress.
    dialed: Option<Result<(), i32>>,
    is_dial: bool,
    to: Option<Address>,
    options: Vec<SocketOption>,
    released: Option<Released>,
    edge: Edge,
    write_refused: bool,
}

#[derive(Clone, Copy, Default)]
struct Edge {
    readable: bool,
    writable: bool,
    end: bool,
    error: bool,
}

/// How the reactor closed a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Released {
    /// Closed without unread input: the kernel sends FIN.
    Closed,
    /// Closed with unread input, which makes a kernel send a reset.
    ClosedUnread,
    /// Reset on purpose.
    Reset,
}

/// A remote end.
pub(crate) type PeerId = usize;

const PEER: &str = "10.0.0.1:4000";

impl Sim {
    pub(crate) fn new() -> (Sim, Script) {
        let world = World {
            epoch: Epoch::from_now(),
            now: Duration::ZERO,
            sockets: Vec::new(),
            backlog: VecDeque::new(),
            listener: None,
            listener_edge: false,
            is_listening: false,
            open: 0,
            descriptors: usize::MAX,
            reserve: false,
            no_splice: false,
            accept_errors: VecDeque::new(),
            register_errors: 0,
            stale: Vec::new(),
            last_wait: None,
            faults: None,
            calls: Calls::default(),
            lookups: Vec::new(),
            answers: Vec::new(),
            from: None,
            poll_cost: Duration::ZERO,
        };
        let world = Rc::new(RefCell::new(world));
        (Sim(world.clone()), Script(world))
    }

    fn fd(&self, key: usize) -> Fd {
        self.0.borrow_mut().open += 1;
        Fd { key, world: self.0.clone() }
    }
}

impl Script {
    /// From here on, faults are injected into calls and events, determined by the seed.
    pub(crate) fn inject_faults(&self, seed: u64) {
        self.0.borrow_mut().faults = Some(Rng(seed));
    }

    pub(crate) fn stop_faults(&self) {
        self.0.borrow_mut().faults = None;
    }

    pub(crate) fn calls(&self) -> Calls {
        self.0.borrow().calls
    }

    /// A peer connects; its connection is put into the backlog.
    pub(crate) fn connect(&self) -> PeerId {
        let mut world = self.0.borrow_mut();
        world.sockets.push(SimSocket { window: usize::MAX, ..SimSocket::default() });
        let peer = world.sockets.len() - 1;
        world.backlog.push_back(peer);
        world.listener_edge = true;
        peer
    }

    pub(crate) fn feed(&self, peer: PeerId, bytes: &[u8]) {
        let mut world = self.0.borrow_mut();
        let socket = &mut world.sockets[peer];
        socket.inbound.extend(bytes);
        socket.edge.readable = true;
    }

    pub(crate) fn end(&self, peer: PeerId) {
        let mut world = self.0.borrow_mut();
        let socket = &mut world.sockets[peer];
        socket.inbound_end = true;
        socket.edge.readable = true;
        socket.edge.end = true;
    }

    pub(crate) fn reset(&self, peer: PeerId) {
        let mut world = self.0.borrow_mut();
        let socket = &mut world.sockets[peer];
        socket.reset = true;
        socket.edge = Edge { readable: true, writable: true, end: true, error: true };
    }

    /// Sets how many more bytes the kernel accepts for this peer; raises an edge if a write had been refused.
    pub(crate) fn window(&self, peer: PeerId, bytes: usize) {
        let mut world = self.0.borrow_mut();
        let socket = &mut world.sockets[peer];
        socket.window = bytes;
        socket.edge.writable |= socket.write_refused && bytes > 0;
        socket.write_refused &= bytes == 0;
    }

    /// The bytes that the reactor has written since the last call.
    pub(crate) fn received(&self, peer: PeerId) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().sockets[peer].outbound)
    }

    pub(crate) fn received_end(&self, peer: PeerId) -> bool {
        self.0.borrow().sockets[peer].outbound_end
    }

    pub(crate) fn released(&self, peer: PeerId) -> Option<Released> {
        self.0.borrow().sockets[peer].released
    }

    pub(crate) fn unread(&self, peer: PeerId) -> usize {
        self.0.borrow().sockets[peer].inbound.len()
    }

    /// Sets the result of a dial.
    pub(crate) fn finish_dial(&self, peer: PeerId, result: Result<(), i32>) {
        let mut world = self.0.borrow_mut();
        let socket = &mut world.sockets[peer];
        socket.dialed = Some(result);
        socket.edge.writable = true;
    }

    /// All peers that were dialed, in order.
    pub(crate) fn dialed(&self) -> Vec<PeerId> {
        let world = self.0.borrow();
        (0..world.sockets.len()).filter(|&peer| world.sockets[peer].is_dial).collect()
    }

    /// The address under which a peer was dialed.
    pub(crate) fn dialed_as(&self, peer: PeerId) -> String {
        self.0.borrow().sockets[peer].to.as_ref().map(Address::to_string).unwrap_or_default()
    }

    /// The options that were set on a peer's connection, in order.
    pub(crate) fn options(&self, peer: PeerId) -> Vec<SocketOption> {
        self.0.borrow().sockets[peer].options.clone()
    }

    /// The names that are being looked up, with the number of each look-up.
    pub(crate) fn lookups(&self) -> Vec<(u64, String)> {
        self.0.borrow().lookups.clone()
    }

    /// The resolver answers with these addresses.
    pub(crate) fn resolve(&self, number: u64, addresses: &[&str]) {
        let result = Ok(addresses.iter().map(|text| text.parse().expect("an address")).collect());
        let mut world = self.0.borrow_mut();
        world.lookups.retain(|(asked, _)| *asked != number);
        world.answers.push(Answer { number, result });
    }

    /// The resolver answers that the name does not exist.
    pub(crate) fn fail_lookup(&self, number: u64) {
        let result = Err(io::Error::other("No such name"));
        let mut world = self.0.borrow_mut();
        world.lookups.retain(|(asked, _)| *asked != number);
        world.answers.push(Answer { number, result });
    }

    /// Peers that connect from here on have this address.
    pub(crate) fn connect_from(&self, ip: &str) {
        self.0.borrow_mut().from = Some(ip.parse().expect("an address"));
    }

    /// From here on, a poll without events and with a wait of zero takes this long.
    pub(crate) fn set_poll_cost(&self, span: Duration) {
        self.0.borrow_mut().poll_cost = span;
    }

    /// Raises a spurious event.
    pub(crate) fn event(&self, token: Token) {
        self.0.borrow_mut().stale.push(Edge::SPURIOUS.ready(token));
    }

    pub(crate) fn token(&self, peer: PeerId) -> Option<Token> {
        self.0.borrow().sockets[peer].token
    }

    pub(crate) fn fail_accept(&self, error: AcceptError) {
        let mut world = self.0.borrow_mut();
        world.accept_errors.push_back(error);
    }

    pub(crate) fn fail_register(&self, times: usize) {
        self.0.borrow_mut().register_errors = times;
    }

    pub(crate) fn descriptors(&self, max: usize) {
        self.0.borrow_mut().descriptors = max;
    }

    pub(crate) fn open_descriptors(&self) -> usize {
        self.0.borrow().open
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.0.borrow().is_listening
    }

    pub(crate) fn backlog(&self) -> usize {
        self.0.borrow().backlog.len()
    }

    pub(crate) fn advance(&self, span: Duration) {
        self.0.borrow_mut().now += span;
    }

    /// From here on, the kernel does not support splice(2).
    pub(crate) fn no_splice(&self) {
        self.0.borrow_mut().no_splice = true;
    }

    pub(crate) fn splices(&self) -> usize {
        self.0.borrow().calls.splices
    }

    pub(crate) fn last_wait(&self) -> Option<Option<Duration>> {
        self.0.borrow().last_wait
    }

    /// Whether the kernel has no more events and answers for the reactor.
    pub(crate) fn is_quiet(&self) -> bool {
        let world = self.0.borrow();
        let edges = world.sockets.iter().any(|s| s.token.is_some() && s.released.is_none() && s.edge.any());
        !edges && !world.listener_edge && world.stale.is_empty() && world.answers.is_empty()
    }
}

impl World {
    /// Returns true one time in `n` if faults are injected, else never.
    fn draw_fault(&mut self, n: u64) -> bool {
        self.faults.as_mut().is_some_and(|rng| rng.below(n) == 0)
    }

    fn shorten(&mut self, n: usize) -> usize {
        if self.draw_fault(2) {
            self.faults.as_mut().map_or(n, |rng| 1 + rng.below(n as u64) as usize)
        } else {
            n
        }
    }

    fn take_descriptor(&mut self) -> io::Result<()> {
        if self.open >= self.descriptors { Err(error(EMFILE, io::ErrorKind::Other)) } else { Ok(()) }
    }
}

impl Edge {
    /// A spurious edge, as a kernel may raise one.
    const SPURIOUS: Edge = Edge { readable: true, writable: true, end: false, error: false };

    fn ready(self, token: Token) -> Ready {
        let Edge { readable, writable, end, error } = self;
        Ready { token, readable, writable, end, error, priority: false }
    }

    fn any(self) -> bool {
        self.readable || self.writable || self.end
    }
}

impl Registrar for Sim {
    fn bind(&self, at: &Address, _: &ListenOptions) -> io::Result<(ListenSocket, Address)> {
        self.0.borrow_mut().is_listening = true;
        Ok((ListenSocket::Simulated(self.fd(LISTENER)), at.clone()))
    }

    fn register(&self, _: &mut ListenSocket, token: Token) -> io::Result<()> {
        self.0.borrow_mut().listener = Some(token);
        Ok(())
    }
}

impl System for Sim {
    type KernelPipe = SimPipe;

    fn epoch(&self) -> Epoch {
        self.0.borrow().epoch
    }

    fn now(&mut self) -> Duration {
        self.0.borrow().now
    }

    fn poll(
        &mut self,
        ready: &mut Vec<Ready>,
        wait: Option<Duration>,
        until: Option<Duration>,
    ) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        let wait = until.map(|until| until.saturating_sub(world.now)).into_iter().chain(wait).min();
        world.calls.polls += 1;
        world.last_wait = Some(wait);
        ready.append(&mut world.stale);
        if let (true, Some(token)) = (world.listener_edge, world.listener) {
            world.listener_edge = false;
            ready.push(Edge { readable: true, ..Edge::default() }.ready(token));
        }
        for key in 0..world.sockets.len() {
            let late = world.draw_fault(4);
            let spurious = world.draw_fault(32);
            let socket = &mut world.sockets[key];
            let (Some(token), None) = (socket.token, socket.released) else { continue };
            if socket.edge.any() && !late {
                let edge = std::mem::take(&mut socket.edge);
                ready.push(edge.ready(token));
            } else if spurious {
                ready.push(Edge::SPURIOUS.ready(token));
            }
        }
        if ready.is_empty() {
            world.now += wait.unwrap_or(Duration::ZERO);
            if wait == Some(Duration::ZERO) {
                let takes = world.poll_cost;
                world.now += takes;
            }
        }
        Ok(())
    }

    fn registrar(&self) -> io::Result<Box<dyn Registrar>> {
        Ok(Box::new(Sim(self.0.clone())))
    }

    fn accept(&mut self, _: &ListenSocket) -> Result<(Stream, PeerAddress), AcceptError> {
        let mut world = self.0.borrow_mut();
        world.calls.accepts += 1;
        if let Some(injected) = world.accept_errors.pop_front() {
            return Err(injected);
        }
        if world.take_descriptor().is_err() {
            return Err(AcceptError::NoDescriptor);
        }
        let Some(key) = world.backlog.pop_front() else { return Err(AcceptError::Empty) };
        let from = world.from;
        drop(world);
        let mut peer = address();
        peer.set_ip(from.unwrap_or(peer.ip()));
        peer.set_port(peer.port() + key as u16);
        Ok((Stream::Simulated(self.fd(key)), PeerAddress::from(peer)))
    }

    fn connect(&mut self, to: &Address, _: &DialOptions) -> io::Result<Stream> {
        let mut world = self.0.borrow_mut();
        world.take_descriptor()?;
        if to.port() == Some(0) {
            return Err(error(EADDRNOTAVAIL, io::ErrorKind::AddrNotAvailable));
        }
        let to = Some(to.clone());
        world.sockets.push(SimSocket { window: usize::MAX, is_dial: true, to, ..SimSocket::default() });
        let key = world.sockets.len() - 1;
        drop(world);
        Ok(Stream::Simulated(self.fd(key)))
    }

    fn check_connected(&mut self, stream: &Stream) -> io::Result<bool> {
        match self.0.borrow().sockets[key_of(stream)].dialed {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(number)) => Err(io::Error::from_raw_os_error(number)),
        }
    }

    fn local_address(&self, stream: &Stream) -> Option<SocketAddr> {
        let inet = self.0.borrow().sockets[key_of(stream)].to.as_ref().is_none_or(|to| !to.is_unix());
        inet.then(|| SocketAddr::from(([10, 0, 0, 2], 5_000 + key_of(stream) as u16)))
    }

    fn set_option(&mut self, stream: &Stream, option: SocketOption) -> io::Result<()> {
        self.0.borrow_mut().sockets[key_of(stream)].options.push(option);
        Ok(())
    }

    fn look_up(&mut self, number: u64, host: &str, port: u16) {
        self.0.borrow_mut().lookups.push((number, format!("{host}:{port}")));
    }

    fn cancel_look_up(&mut self, number: u64) -> bool {
        let mut world = self.0.borrow_mut();
        let before = world.lookups.len();
        world.lookups.retain(|(asked, _)| *asked != number);
        world.lookups.len() < before
    }

    fn next_answer(&mut self) -> Option<Answer> {
        let answers = &mut self.0.borrow_mut().answers;
        (!answers.is_empty()).then(|| answers.remove(0))
    }

    fn seed(&mut self) -> u64 {
        0
    }

    fn register(&mut self, stream: &mut Stream, token: Token) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        if world.register_errors > 0 {
            world.register_errors -= 1;
            return Err(error(ENOSPC, io::ErrorKind::StorageFull));
        }
        let socket = &mut world.sockets[key_of(stream)];
        socket.token = Some(token);
        // Registering raises an edge for the current state.
        socket.edge.writable |= socket.window > 0 && (!socket.is_dial || socket.dialed.is_some());
        socket.edge.readable |= !socket.inbound.is_empty();
        Ok(())
    }

    fn read(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
        let mut world = self.0.borrow_mut();
        world.calls.reads += 1;
        if world.draw_fault(16) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if world.draw_fault(8) {
            let socket = &mut world.sockets[key_of(stream)];
            socket.edge.readable = true;
            socket.edge.end |= socket.inbound_end || socket.reset;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Bytes received before a reset can still be read, as on Linux. Reads are never shortened: after a short read,
        // the reactor may rely on a new edge for further bytes.
        let n = world.sockets[key_of(stream)].inbound.len().min(into.len());
        let socket = &mut world.sockets[key_of(stream)];
        if n > 0 {
            for (place, byte) in into.iter_mut().zip(socket.inbound.drain(..n)) {
                *place = byte;
            }
            return Ok(n);
        }
        match (socket.reset, socket.inbound_end) {
            (true, _) => Err(error(ECONNRESET, io::ErrorKind::ConnectionReset)),
            (false, true) => Ok(0),
            (false, false) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write(&mut self, stream: &Stream, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut world = self.0.borrow_mut();
        world.calls.writes += 1;
        if world.draw_fault(16) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if world.draw_fault(8) {
            world.sockets[key_of(stream)].edge.writable = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let all: Vec<u8> = from.iter().flat_map(|slice| slice.iter().copied()).collect();
        assert!(!all.is_empty(), "an empty write is a wasted call");
        let max = world.shorten(all.len());
        let socket = &mut world.sockets[key_of(stream)];
        assert!(!socket.outbound_end, "written after FIN");
        if socket.reset {
            return Err(error(EPIPE, io::ErrorKind::BrokenPipe));
        }
        let n = max.min(socket.window);
        if n == 0 {
            socket.write_refused = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        socket.outbound.extend_from_slice(&all[..n]);
        socket.window = socket.window.saturating_sub(if socket.window == usize::MAX { 0 } else { n });
        Ok(n)
    }

    fn new_pipe(&mut self) -> io::Result<SimPipe> {
        Ok(SimPipe::default())
    }

    fn splice_in(&mut self, from: &Stream, pipe: &SimPipe, max: usize) -> io::Result<usize> {
        let mut contents = pipe.0.borrow_mut();
        self.0.borrow_mut().calls.splices += 1;
        if self.0.borrow().no_splice {
            return Err(io::ErrorKind::Unsupported.into());
        }
        assert!(contents.is_empty(), "EAGAIN is ambiguous if the pipe is not empty");
        // A pipe is full when its slots are, and how many bytes a slot holds depends on the peer's packets.
        let max = match &mut self.0.borrow_mut().faults {
            Some(rng) => 1 + rng.below(max as u64) as usize,
            None => max,
        };
        let mut bytes = vec![0; max];
        let n = self.read(from, &mut bytes)?;
        contents.extend(&bytes[..n]);
        Ok(n)
    }

    fn splice_out(&mut self, pipe: &SimPipe, to: &Stream, max: usize) -> io::Result<usize> {
        let mut contents = pipe.0.borrow_mut();
        assert!(max <= contents.len(), "the pipe holds less than was requested");
        let n = self.write(to, &[IoSlice::new(&contents.make_contiguous()[..max])])?;
        contents.drain(..n);
        Ok(n)
    }

    fn read_pipe(&mut self, pipe: &SimPipe, into: &mut [u8]) -> io::Result<usize> {
        let mut contents = pipe.0.borrow_mut();
        let n = into.len().min(contents.len());
        into.iter_mut().zip(contents.drain(..n)).for_each(|(place, byte)| *place = byte);
        Ok(n)
    }

    fn shutdown_write(&mut self, stream: &Stream) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        let socket = &mut world.sockets[key_of(stream)];
        assert!(!socket.outbound_end, "FIN was sent twice");
        socket.outbound_end = true;
        Ok(())
    }

    fn reset(&mut self, stream: Stream) {
        self.0.borrow_mut().sockets[key_of(&stream)].released = Some(Released::Reset);
    }

    fn reserve_descriptor(&mut self) -> bool {
        let mut world = self.0.borrow_mut();
        if !world.reserve && world.take_descriptor().is_ok() {
            world.open += 1;
            world.reserve = true;
        }
        world.reserve
    }

    fn release_descriptor(&mut self) -> bool {
        let mut world = self.0.borrow_mut();
        let contents = std::mem::take(&mut world.reserve);
        world.open -= usize::from(contents);
        contents
    }

    fn waker(&mut self) -> io::Result<Waker> {
        Ok(Box::new(|| Ok(())))
    }
}

const LISTENER: usize = usize::MAX;

/// Which socket of the simulated world a stream is.
fn key_of(stream: &Stream) -> usize {
    match stream {
        Stream::Simulated(fd) => fd.key,
        #[cfg(not(target_family = "wasm"))]
        Stream::Kernel(_) => unreachable!("a stream of the kernel is not given to the simulation"),
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        world.open -= 1;
        if self.key == LISTENER {
            world.is_listening = false;
            world.listener = None;
        } else {
            let socket = &mut world.sockets[self.key];
            let unread = !socket.inbound.is_empty();
            socket.released.get_or_insert(if unread { Released::ClosedUnread } else { Released::Closed });
        }
    }
}

// Error numbers of Linux (errno(3)), written out because the simulation also builds where there is no libc.
const ENOSPC: i32 = 28;
const EMFILE: i32 = 24;
const EPIPE: i32 = 32;
const EADDRNOTAVAIL: i32 = 99;
const ECONNRESET: i32 = 104;

/// An error as Linux reports it. On other systems the number would mean another error, so only the kind is set.
fn error(number: i32, kind: io::ErrorKind) -> io::Error {
    if cfg!(target_os = "linux") { io::Error::from_raw_os_error(number) } else { kind.into() }
}

pub(crate) fn address() -> SocketAddr {
    PEER.parse().expect("a literal address")
}

/// SplitMix64 (Steele, Lea, Flood 2014): a small random generator with a seed, to choose faults.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
