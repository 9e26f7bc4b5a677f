//! What peers and the kernel do, as a test says.

#[cfg(test)]
use std::io;
#[cfg(test)]
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use super::faults::Faults;
#[cfg(test)]
use super::{AcceptError, Calls, Edge, Profile, SocketOption};
use super::{
    DialResult, ECONNREFUSED, NameResult, PeerId, Released, Script, SimSocket, Tape, Trace, World, address,
};
use crate::base::address::Address;
use crate::base::id::Token;
#[cfg(test)]
use crate::base::leaving::Leaving;

/// Peers.
impl Script {
    /// A peer connects to an address: its connection is put into the backlog of the listener there. If there is none,
    /// it is refused.
    pub(crate) fn connect_to(&self, to: &Address, from: SocketAddr) -> PeerId {
        let mut world = self.0.borrow_mut();
        let from = Some(from).filter(|_| !to.is_unix());
        let socket = SimSocket { from, ..SimSocket::default() };
        match world.listener_at(to) {
            Some(listener) => world.push_backlog(listener, socket),
            None => world.add_socket(SimSocket { dialed: Some(Err(ECONNREFUSED)), ..socket }),
        }
    }

    /// Whether a listener was where the peer has connected.
    pub(crate) fn is_reached(&self, peer: PeerId) -> bool {
        !matches!(self.0.borrow().sockets[peer].dialed, Some(Err(_)))
    }

    /// The address that a peer connects from.
    pub(crate) fn address(&self, peer: PeerId) -> Option<SocketAddr> {
        self.0.borrow().sockets[peer].from
    }

    pub(crate) fn feed(&self, peer: PeerId, bytes: &[u8]) {
        let mut world = self.0.borrow_mut();
        world.sockets[peer].transit.extend(bytes);
        world.arrive_unless_split(peer);
    }

    pub(crate) fn end(&self, peer: PeerId) {
        let mut world = self.0.borrow_mut();
        world.sockets[peer].transit_end = true;
        world.arrive_unless_split(peer);
    }

    pub(crate) fn reset(&self, peer: PeerId) {
        let mut world = self.0.borrow_mut();
        world.sockets[peer].transit_reset = true;
        world.arrive_unless_split(peer);
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

    /// What [`received`](Script::received) would return, which is left in place.
    pub(crate) fn peek(&self, peer: PeerId) -> Vec<u8> {
        self.0.borrow().sockets[peer].outbound.clone()
    }

    pub(crate) fn has_received(&self, peer: PeerId) -> bool {
        !self.0.borrow().sockets[peer].outbound.is_empty()
    }

    /// Bytes that the peer has sent and the reactor has not read.
    pub(crate) fn unread(&self, peer: PeerId) -> usize {
        let world = self.0.borrow();
        world.sockets[peer].inbound.len() + world.sockets[peer].transit.len()
    }

    /// Whether a FIN has come: by shutdown(2), or by a close without unread input.
    pub(crate) fn received_end(&self, peer: PeerId) -> bool {
        let socket = &self.0.borrow().sockets[peer];
        socket.outbound_end || socket.released == Some(Released::Closed)
    }

    pub(crate) fn released(&self, peer: PeerId) -> Option<Released> {
        self.0.borrow().sockets[peer].released
    }

    pub(crate) fn token(&self, peer: PeerId) -> Option<Token> {
        self.0.borrow().sockets[peer].token
    }

    /// The next address that a peer connects from: each has a port of its own.
    pub(crate) fn next_address(&self) -> SocketAddr {
        let world = self.0.borrow();
        let mut peer = address();
        peer.set_ip(world.from.unwrap_or(peer.ip()));
        peer.set_port(peer.port() + (world.sockets.len() % 60_000) as u16);
        peer
    }
}

/// Dials and names.
impl Script {
    /// From here on there is a network: dials reach the listeners of the simulation, and names and addresses that it
    /// does not know fail at once. Without it, all dials and look-ups wait until the test answers.
    pub(crate) fn answer_by_network(&self) {
        self.0.borrow_mut().answers.network = true;
    }

    /// Answers dials to an address from here on, and those that wait.
    pub(crate) fn set_dial(&self, to: Address, result: DialResult) {
        let mut world = self.0.borrow_mut();
        let waiting = |socket: &SimSocket| {
            socket.to.as_ref() == Some(&to) && socket.dialed.is_none() && socket.released.is_none()
        };
        for key in (0..world.sockets.len()).filter(|&key| waiting(&world.sockets[key])).collect::<Vec<_>>() {
            world.answer_dial(key, result);
        }
        world.answers.dials.insert(to, result);
    }

    /// Answers look-ups of a name from here on, and those that wait.
    pub(crate) fn set_name(&self, host: &str, result: NameResult) {
        let mut world = self.0.borrow_mut();
        world.answer_name(host, &result);
        world.answers.names.insert(host.to_string(), result);
    }

    /// All peers that were dialed, in order, but for those that a listener of the simulation has accepted.
    pub(crate) fn dialed(&self) -> Vec<PeerId> {
        let world = self.0.borrow();
        world.dialed.iter().copied().filter(|&peer| world.sockets[peer].link.is_none()).collect()
    }

    /// Whether a dial has failed, or was given up before it was answered.
    pub(crate) fn is_failed_dial(&self, peer: PeerId) -> bool {
        let socket = &self.0.borrow().sockets[peer];
        socket.dialed.map_or(socket.released.is_some(), |result| result.is_err())
    }

    /// The address under which a peer was dialed.
    pub(crate) fn dialed_as(&self, peer: PeerId) -> String {
        self.0.borrow().sockets[peer].to.as_ref().map(Address::to_string).unwrap_or_default()
    }
}

/// The kernel as a whole.
impl Script {
    /// From here on, faults are injected into calls and events, as the tape decides.
    pub(crate) fn inject_faults(&self, tape: &Tape) {
        self.0.borrow_mut().faults = Some(Faults::new(tape.clone()));
    }

    /// From here on, at most so many bytes arrive, and are written, in one piece.
    pub(crate) fn split(&self, bytes: usize) {
        self.0.borrow_mut().split = bytes.max(1);
    }

    /// Sets how many descriptors the reactor may have.
    pub(crate) fn descriptors(&self, max: usize) {
        self.0.borrow_mut().descriptors = max;
    }

    pub(crate) fn open_descriptors(&self) -> usize {
        self.0.borrow().open
    }

    pub(crate) fn advance(&self, span: Duration) {
        self.0.borrow_mut().now += span;
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.borrow().now
    }

    /// Whether the kernel has no more events and answers for the reactor.
    pub(crate) fn is_quiet(&self) -> bool {
        self.0.borrow().first_event().is_none()
    }

    /// One event that the reactor has not got, for a message; `None` if there is none.
    pub(crate) fn pending_event(&self) -> Option<String> {
        self.0.borrow().first_event()
    }

    /// Adds a callback to the trace.
    pub(crate) fn note(&self, what: &'static str, slot: Option<usize>, n: i64) {
        self.0.borrow_mut().note(what, slot, n);
    }

    pub(crate) fn with_trace<R>(&self, look: impl FnOnce(&Trace) -> R) -> R {
        look(&self.0.borrow().trace)
    }
}

impl World {
    fn first_event(&self) -> Option<String> {
        let sockets = || self.live.iter().map(|&key| (key, &self.sockets[key]));
        let edge = sockets().find(|(_, s)| s.token.is_some() && s.released.is_none() && s.edge.any());
        let arrival = sockets().find(|&(key, s)| s.token.is_some() && self.has_arrival(key));
        let accept = self.listeners.iter().find(|it| it.is_open && (it.edge || it.can_refill()));
        edge.map(|(key, _)| format!("socket {key} has an event"))
            .or_else(|| arrival.map(|(key, s)| format!("{} bytes are sent to socket {key}", s.transit.len())))
            .or_else(|| accept.map(|listener| format!("{} has connections to accept", listener.address)))
            .or_else(|| (!self.stale.is_empty()).then(|| "a spurious event is due".to_string()))
            .or_else(|| (!self.answers_due.is_empty()).then(|| "a name is answered".to_string()))
    }
}

/// Only the tests of the loop use these.
#[cfg(test)]
impl Script {
    /// A peer connects to the newest listener, although it may be closed.
    pub(crate) fn connect(&self) -> PeerId {
        let from = self.next_address();
        let mut world = self.0.borrow_mut();
        let newest = world.listeners.len() - 1;
        world.push_backlog(newest, SimSocket { from: Some(from), ..SimSocket::default() })
    }

    /// Peers that connect from here on have this address.
    pub(crate) fn connect_from(&self, ip: IpAddr) {
        self.0.borrow_mut().from = Some(ip);
    }

    /// The sockets of dials, in order, without the first `n`.
    pub(crate) fn dialed_since(&self, n: usize) -> Vec<PeerId> {
        self.0.borrow().dialed.get(n..).map_or(Vec::new(), <[PeerId]>::to_vec)
    }

    /// Sets the result of a dial.
    pub(crate) fn finish_dial(&self, peer: PeerId, result: Result<(), i32>) {
        let mut world = self.0.borrow_mut();
        world.sockets[peer].dialed = None;
        world.answer_dial(peer, Some(result));
    }

    /// From here on, all faults are injected, each as often as the tape decides.
    pub(crate) fn draw_faults(&self, tape: &Tape) {
        self.0.borrow_mut().faults = Some(Faults::drawn(tape.clone()));
    }

    /// Which events the kernel reports; to be set before anything is registered.
    pub(crate) fn set_profile(&self, profile: Profile) {
        self.0.borrow_mut().profile = profile;
    }

    /// A peer sends an urgent byte behind what it has sent.
    pub(crate) fn urgent(&self, peer: PeerId) {
        let mut world = self.0.borrow_mut();
        let (profile, socket) = (world.profile, &mut world.sockets[peer]);
        socket.urgent = Some(socket.inbound.len() + socket.transit.len());
        socket.announce_urgent(profile);
    }

    /// Whether the connection of a peer was reset by it, or has failed.
    pub(crate) fn is_broken(&self, peer: PeerId) -> bool {
        let world = self.0.borrow();
        world.sockets[peer].reset || world.sockets[peer].transit_reset
    }

    /// How a peer has left, if it has, and the loop could know.
    pub(crate) fn has_left(&self, peer: PeerId) -> Option<Leaving> {
        self.0.borrow().has_left(peer)
    }

    /// The sockets that are open, a line each, as netstat(8) has them.
    pub(crate) fn netstat(&self) -> String {
        let world = self.0.borrow();
        let line = |&key: &usize| {
            let it = &world.sockets[key];
            let (transit, inbound, edge) = (it.transit.len(), it.inbound.len(), it.edge);
            let ends = [it.transit_end, it.transit_reset, it.inbound_end, it.reset, it.outbound_end];
            let state = (ends, it.window, it.urgent, it.dialed, it.read_armed, it.write_refused);
            format!(
                "  {key} {:?}: {transit} + {inbound} bytes, {state:?}, {edge:?}\n",
                it.token.map(|it| it.kind())
            )
        };
        world.live.iter().map(line).collect()
    }

    /// The peer of the connection that is registered under a token, if it is connected.
    pub(crate) fn peer_of(&self, token: Token) -> Option<PeerId> {
        let world = self.0.borrow();
        let is_it = |&&key: &&usize| {
            let socket = &world.sockets[key];
            let connected = !socket.is_dial || socket.dialed == Some(Ok(()));
            socket.token == Some(token) && socket.released.is_none() && connected
        };
        world.live.iter().find(is_it).copied()
    }

    pub(crate) fn stop_faults(&self) {
        self.0.borrow_mut().faults = None;
    }

    pub(crate) fn calls(&self) -> Calls {
        self.0.borrow().seen.calls
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
        let result = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        self.0.borrow_mut().finish_lookup(number, Ok(result));
    }

    /// The resolver answers that the name does not exist.
    pub(crate) fn fail_lookup(&self, number: u64) {
        self.0.borrow_mut().finish_lookup(number, Err(io::Error::other("No such name")));
    }

    /// From here on, a poll without events and with a wait of zero takes this long.
    pub(crate) fn set_poll_cost(&self, span: Duration) {
        self.0.borrow_mut().poll_cost = span;
    }

    /// Raises a spurious event.
    pub(crate) fn event(&self, token: Token) {
        self.0.borrow_mut().stale.push(Edge::SPURIOUS.ready(token));
    }

    pub(crate) fn fail_accept(&self, error: AcceptError) {
        self.0.borrow_mut().accept_errors.push_back(error);
    }

    pub(crate) fn fail_register(&self, times: usize) {
        self.0.borrow_mut().register_errors = times;
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.0.borrow().listeners.iter().any(|listener| listener.is_open)
    }

    pub(crate) fn backlog(&self) -> usize {
        self.0.borrow().listeners.iter().map(|listener| listener.backlog.len()).sum()
    }

    /// From here on, the kernel does not support splice(2).
    pub(crate) fn no_splice(&self) {
        self.0.borrow_mut().no_splice = true;
    }

    pub(crate) fn splices(&self) -> usize {
        self.0.borrow().seen.calls.splices
    }

    pub(crate) fn last_wait(&self) -> Option<Option<Duration>> {
        self.0.borrow().seen.last_wait
    }
}
