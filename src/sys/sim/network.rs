//! The network of the simulated kernel: listeners, what is on its way to a socket, connections within the simulation,
//! and the answers to names and dials.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, Read};
use std::net::{IpAddr, SocketAddr};

use super::faults::Fault;
use super::{ECONNREFUSED, LINK_BUFFER, Profile, Released, SimSocket, World};
use crate::base::address::Address;
use crate::base::id::Token;
use crate::sys::Answer;

/// A listening socket. It stays in the list when it is closed.
pub(super) struct SimListener {
    pub(super) address: Address,
    pub(super) token: Option<Token>,
    pub(super) backlog: VecDeque<usize>,
    /// How many connections the backlog holds. The handshakes of further ones are repeated until it has room.
    pub(super) max: usize,
    pub(super) beyond: VecDeque<usize>,
    pub(super) edge: bool,
    /// Whether accept(2) has found the backlog empty since the last event.
    pub(super) armed: bool,
    pub(super) is_open: bool,
}

impl SimListener {
    pub(super) fn new(address: Address, max: usize) -> SimListener {
        SimListener {
            address,
            token: None,
            backlog: VecDeque::new(),
            max: max.max(1),
            beyond: VecDeque::new(),
            edge: false,
            armed: true,
            is_open: true,
        }
    }

    /// Whether a connection beyond the backlog can be moved into it.
    pub(super) fn can_refill(&self) -> bool {
        self.is_open && !self.beyond.is_empty() && self.backlog.len() < self.max
    }
}

/// The result of connecting, an error as its number; `None` while there is no answer.
pub(crate) type DialResult = Option<Result<(), i32>>;
/// The result of a look-up, an error as its message; `None` while there is no answer.
pub(crate) type NameResult = Option<Result<Vec<IpAddr>, &'static str>>;

/// The resolver's message for a name that does not exist, in the words of getaddrinfo(3).
pub(super) const NO_SUCH_NAME: &str = "Name or service not known";

/// The answers to names and dials for which no listener of the simulation stands.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) dials: BTreeMap<Address, DialResult>,
    pub(super) names: BTreeMap<String, NameResult>,
    /// Whether dials reach the listeners of the simulation, and names and addresses that are not known fail at once. If
    /// not, all dials and look-ups wait until the test answers.
    pub(super) network: bool,
}

impl World {
    /// The listener that a connection to this address reaches: the one at the address, else one at the unspecified
    /// address with this port.
    pub(super) fn listener_at(&self, to: &Address) -> Option<usize> {
        let is_wildcard = |at: &Address| {
            at.port() == to.port() && at.ip().is_some_and(|ip| ip.is_unspecified()) && to.ip().is_some()
        };
        let open = |(_, listener): &(usize, &SimListener)| listener.is_open;
        let all = || self.listeners.iter().enumerate().filter(open);
        let exact = all().find(|(_, listener)| listener.address == *to);
        exact.or_else(|| all().find(|(_, listener)| is_wildcard(&listener.address))).map(|(index, _)| index)
    }

    /// The kernel resets the connections that a closed listener has not accepted.
    pub(super) fn close_listener(&mut self, listener: usize) {
        self.listeners[listener].is_open = false;
        let mut waiting = std::mem::take(&mut self.listeners[listener].backlog);
        waiting.append(&mut self.listeners[listener].beyond);
        for key in waiting {
            self.sockets[key].released = Some(Released::Reset);
            self.tell_other_end(key);
        }
    }

    /// A socket that waits in the backlog of a listener.
    pub(super) fn push_backlog(&mut self, listener: usize, socket: SimSocket) -> usize {
        let key = self.add_socket(socket);
        self.listeners[listener].beyond.push_back(key);
        self.refill_backlog(listener);
        key
    }

    /// Completes handshakes for as long as the backlog has room.
    pub(super) fn refill_backlog(&mut self, listener: usize) {
        let (listener, profile) = (&mut self.listeners[listener], self.profile);
        while listener.can_refill() {
            listener.backlog.extend(listener.beyond.pop_front());
            listener.edge |= profile != Profile::Contract || std::mem::take(&mut listener.armed);
        }
    }

    /// The socket of a dial. Where a listener of this simulation is at the address, both ends are sockets of the loop.
    pub(super) fn dial(&mut self, to: &Address) -> usize {
        let dial = SimSocket { is_dial: true, to: Some(to.clone()), ..SimSocket::default() };
        let key = self.add_socket(dial);
        self.dialed.push(key);
        let from = self.local_address(key);
        if let Some(listener) = self.listener_at(to).filter(|_| self.answers.network) {
            let accepted = SimSocket { link: Some(key), from, ..SimSocket::default() };
            let other = self.push_backlog(listener, accepted);
            self.sockets[key].link = Some(other);
            self.answer_dial(key, Some(Ok(())));
        } else if let Some(&answer) = self.answers.dials.get(to) {
            self.answer_dial(key, answer);
        } else if self.answers.network {
            self.answer_dial(key, Some(Err(ECONNREFUSED)));
        }
        key
    }

    pub(super) fn answer_dial(&mut self, key: usize, answer: DialResult) {
        let socket = &mut self.sockets[key];
        if socket.dialed.is_none() && answer.is_some() {
            socket.dialed = answer;
            socket.edge.writable = true;
        }
    }

    pub(super) fn local_address(&self, key: usize) -> Option<SocketAddr> {
        let inet = self.sockets[key].to.as_ref().is_none_or(|to| !to.is_unix());
        inet.then(|| SocketAddr::from(([10, 0, 0, 2], 5_000 + (key % 60_000) as u16)))
    }

    pub(super) fn look_up(&mut self, number: u64, host: &str, port: u16) {
        self.lookups.push((number, format!("{host}:{port}")));
        let known = self.answers.names.get(host).cloned();
        match known {
            Some(answer) => self.answer_name(host, &answer),
            None if self.answers.network => self.answer_name(host, &Some(Err(NO_SUCH_NAME))),
            None => {}
        }
    }

    /// Answers all look-ups of a name that wait.
    pub(super) fn answer_name(&mut self, host: &str, answer: &NameResult) {
        let Some(answer) = answer else { return };
        for (number, asked) in self.lookups.clone() {
            let Some((_, port)) = asked.rsplit_once(':').filter(|(name, _)| *name == host) else { continue };
            let port = port.parse().unwrap_or(0);
            let with_port = |all: &Vec<IpAddr>| all.iter().map(|&ip| SocketAddr::new(ip, port)).collect();
            self.finish_lookup(number, answer.as_ref().map(with_port).map_err(|why| io::Error::other(*why)));
        }
    }

    pub(super) fn finish_lookup(&mut self, number: u64, result: io::Result<Vec<SocketAddr>>) {
        self.lookups.retain(|(asked, _)| *asked != number);
        self.answers_due.push(Answer { number, result });
    }

    /// Whether something that was sent to a socket can arrive now. A piece waits until the one before it was read; a
    /// reset waits for nothing.
    pub(super) fn has_arrival(&self, key: usize) -> bool {
        let socket = &self.sockets[key];
        let sent = !socket.transit.is_empty() || socket.transit_end || socket.transit_reset;
        sent && socket.released.is_none() && (socket.inbound.is_empty() || socket.transit_reset)
    }

    /// Lets the next piece of what was sent to a socket arrive. Without splitting that is all of it.
    pub(super) fn arrive(&mut self, key: usize) {
        let piece = self.part_if(Fault::SplitArrival, self.sockets[key].transit.len()).min(self.split);
        let (profile, socket) = (self.profile, &mut self.sockets[key]);
        if piece > 0 {
            move_front(&mut socket.transit, &mut socket.inbound, piece);
            socket.announce_readable(profile);
        }
        socket.announce_urgent(profile);
        if !socket.transit.is_empty() {
            return;
        }
        if std::mem::take(&mut socket.transit_end) {
            socket.inbound_end = true;
            socket.announce_end(profile);
        }
        if std::mem::take(&mut socket.transit_reset) {
            socket.reset = true;
            socket.announce_failure(profile);
        }
    }

    /// What was sent arrives at once, unless arrivals are split: then each poll brings a piece.
    pub(super) fn arrive_unless_split(&mut self, key: usize) {
        if self.split == usize::MAX && self.faults.is_none() {
            self.arrive(key);
        }
    }

    /// Bytes that the kernel accepts from the loop for this socket now.
    pub(super) fn space(&self, key: usize) -> usize {
        let socket = &self.sockets[key];
        match socket.link.map(|other| &self.sockets[other]) {
            Some(other) if other.released.is_some() => usize::MAX, // They are lost, and a reset comes back.
            Some(other) => LINK_BUFFER.saturating_sub(other.inbound.len() + other.transit.len()),
            None => socket.window,
        }
    }

    /// Carries written bytes to the other end.
    pub(super) fn carry(&mut self, key: usize, from: &[IoSlice<'_>], n: usize) {
        let mut left = n;
        for slice in from {
            let part = slice.len().min(left);
            left -= part;
            self.carry_one(key, &slice[..part]);
        }
    }

    fn carry_one(&mut self, key: usize, bytes: &[u8]) {
        let socket = &mut self.sockets[key];
        let Some(other) = socket.link else {
            socket.outbound.extend_from_slice(bytes);
            socket.window -= if socket.window == usize::MAX { 0 } else { bytes.len() };
            return;
        };
        match self.sockets[other].released {
            Some(_) => self.sockets[key].transit_reset = true,
            None => self.sockets[other].transit.extend(bytes),
        }
        let to = if self.sockets[other].released.is_some() { key } else { other };
        self.arrive_unless_split(to);
    }

    /// The loop has read from a socket: its other end may write again, if it had to wait.
    pub(super) fn make_room(&mut self, key: usize) {
        let Some(other) = self.sockets[key].link else { return };
        if self.sockets[other].write_refused && self.space(other) > 0 {
            self.sockets[other].write_refused = false;
            self.sockets[other].edge.writable = true;
        }
    }

    /// Tells the other end of a connection within the simulation how this end was closed.
    pub(super) fn tell_other_end(&mut self, key: usize) {
        let SimSocket { link: Some(other), released, outbound_end, .. } = self.sockets[key] else { return };
        match released {
            Some(Released::Closed) if outbound_end => return,
            Some(Released::Closed) | None => self.sockets[other].transit_end = true,
            Some(Released::ClosedUnread | Released::Reset) => self.sockets[other].transit_reset = true,
        }
        self.arrive_unless_split(other);
    }
}

/// Moves the first `n` bytes of one queue to the end of another.
fn move_front(from: &mut VecDeque<u8>, to: &mut VecDeque<u8>, n: usize) {
    if n == from.len() && to.is_empty() {
        return std::mem::swap(from, to);
    }
    to.extend(from.range(..n));
    from.drain(..n);
}

/// Takes the first bytes of a queue; returns how many.
pub(super) fn take_front(from: &mut VecDeque<u8>, into: &mut [u8]) -> usize {
    let n = from.len().min(into.len());
    from.read_exact(&mut into[..n]).expect("there are as many");
    n
}
