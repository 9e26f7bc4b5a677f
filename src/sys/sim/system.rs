//! The system calls of the simulated kernel.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use super::faults::Fault;
use super::network::{SimListener, take_front};
use super::{
    Descriptor, EADDRNOTAVAIL, ECONNRESET, EINVAL, ENOSPC, ENOTCONN, EPIPE, Fd, Released, Sim, SimPipe,
    World, error,
};
use crate::base::address::{Address, PeerAddress};
use crate::base::id::{Interest, Token};
use crate::base::leaving::Leaving;
use crate::base::tick::Tick;
use crate::config::dial::{DialOptions, SocketOption};
use crate::config::listen::ListenOptions;
use crate::sys::{
    AcceptError, Answer, Connecting, Epoch, ListenSocket, Ready, Registrar, Stream, System, Waker, Watched,
};

/// The first port that a listener on port 0 gets: the first of IANA's dynamic ports (RFC 6335).
const DYNAMIC_PORT: u16 = 49_152;

impl Sim {
    fn fd(&self, of: Descriptor) -> Fd {
        self.0.borrow_mut().open += 1;
        Fd { of, world: self.0.clone() }
    }
}

impl Registrar for Sim {
    fn bind(&self, at: &Address, options: &ListenOptions) -> io::Result<(ListenSocket, Address)> {
        let mut world = self.0.borrow_mut();
        world.take_descriptor()?;
        let index = world.listeners.len();
        let mut address = at.clone();
        if let Address::Inet(inet) = &mut address {
            if inet.port() == 0 {
                inet.set_port(DYNAMIC_PORT + (index % 16_384) as u16);
            }
        }
        if world.listeners.iter().any(|other| other.is_open && other.address == address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        world.listeners.push(SimListener::new(address.clone(), options.backlog as usize));
        drop(world);
        Ok((ListenSocket::Simulated(self.fd(Descriptor::Listener(index))), address))
    }

    fn register(&self, listener: &mut ListenSocket, token: Token) -> io::Result<()> {
        self.0.borrow_mut().listeners[index_of(listener)].token = Some(token);
        Ok(())
    }

    fn watch(&self, _: &Watched, _: Token, _: Interest, _: bool) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the simulated kernel watches no descriptors"))
    }

    fn unwatch(&self, _: &Watched) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
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
        until: Option<Tick>,
    ) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        let wait =
            until.map(|until| until.since_start().saturating_sub(world.now)).into_iter().chain(wait).min();
        world.seen.calls.polls += 1;
        world.seen.last_wait = Some(wait);
        world.take_events(ready);
        if ready.is_empty() && !world.draw_fault(Fault::EarlyWake) {
            world.now += wait.unwrap_or(Duration::ZERO);
            if world.draw_fault(Fault::LateWake) {
                let late = world.faults.as_mut().map_or(0, |faults| faults.part(3_000));
                world.now += Duration::from_millis(late as u64);
            }
            if wait == Some(Duration::ZERO) {
                let takes = world.poll_cost;
                world.now += takes;
            }
        }
        world.note("poll", None, ready.len() as i64);
        Ok(())
    }

    fn registrar(&self) -> io::Result<Box<dyn Registrar>> {
        Ok(Box::new(Sim(self.0.clone())))
    }

    fn accept(&mut self, listener: &ListenSocket) -> Result<(Stream, PeerAddress), AcceptError> {
        let mut world = self.0.borrow_mut();
        world.seen.calls.accepts += 1;
        if let Some(injected) = world.accept_errors.pop_front() {
            return Err(injected);
        }
        if let Some(error) = world.draw_accept_error() {
            world.note("accept failed", None, 0);
            return Err(error);
        }
        if world.take_descriptor().is_err() {
            world.note("accept without a descriptor", None, 0);
            return Err(AcceptError::NoDescriptor);
        }
        let listener = &mut world.listeners[index_of(listener)];
        let Some(key) = listener.backlog.pop_front() else {
            listener.armed = true;
            return Err(AcceptError::Empty);
        };
        let from = world.sockets[key].from;
        world.note("accept", Some(key), 0);
        drop(world);
        let peer = from.map_or(PeerAddress::UNIX, PeerAddress::from);
        Ok((Stream::Simulated(self.fd(Descriptor::Socket(key))), peer))
    }

    fn connect(&mut self, to: &Address, _: &DialOptions) -> io::Result<Stream> {
        let mut world = self.0.borrow_mut();
        world.take_descriptor()?;
        if to.port() == Some(0) {
            return Err(error(EADDRNOTAVAIL, io::ErrorKind::AddrNotAvailable));
        }
        let key = world.dial(to);
        world.note("connect", Some(key), 0);
        drop(world);
        Ok(Stream::Simulated(self.fd(Descriptor::Socket(key))))
    }

    fn check_connected(&mut self, stream: &Stream) -> io::Result<Connecting> {
        let world = self.0.borrow();
        let key = key_of(stream);
        // SO_ERROR has a reset, too, that came after the connection was made.
        match world.sockets[key].dialed.map(|result| result.and(world.sockets[key].error())) {
            None => Ok(Connecting::InProgress),
            Some(Ok(())) => Ok(Connecting::Connected { local: world.local_address(key) }),
            Some(Err(number)) => Err(io::Error::from_raw_os_error(number)),
        }
    }

    fn local_address(&self, stream: &Stream) -> Option<SocketAddr> {
        self.0.borrow().local_address(key_of(stream))
    }

    fn peer_left(&mut self, stream: &Stream) -> Option<Leaving> {
        self.0.borrow().has_left(key_of(stream))
    }

    fn set_option(&mut self, stream: &Stream, option: SocketOption) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        if world.draw_fault(Fault::OptionFails) {
            return Err(error(EINVAL, io::ErrorKind::InvalidInput));
        }
        world.sockets[key_of(stream)].options.push(option);
        Ok(())
    }

    fn look_up(&mut self, number: u64, host: &str, port: u16) {
        let mut world = self.0.borrow_mut();
        world.note("look up", None, i64::from(port));
        world.look_up(number, host, port);
    }

    fn cancel_look_up(&mut self, number: u64) -> bool {
        let mut world = self.0.borrow_mut();
        let before = world.lookups.len();
        world.lookups.retain(|(asked, _)| *asked != number);
        world.lookups.len() < before
    }

    fn next_answer(&mut self) -> Option<Answer> {
        let answers = &mut self.0.borrow_mut().answers_due;
        (!answers.is_empty()).then(|| answers.remove(0))
    }

    fn seed(&mut self) -> u64 {
        0
    }

    fn register(&mut self, stream: &mut Stream, token: Token) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        if world.register_errors > 0 || world.draw_fault(Fault::RegisterFails) {
            world.register_errors = world.register_errors.saturating_sub(1);
            return Err(error(ENOSPC, io::ErrorKind::StorageFull));
        }
        let profile = world.profile;
        let socket = &mut world.sockets[key_of(stream)];
        socket.token = Some(token);
        // Registering raises an edge for the current state.
        socket.edge.writable |= socket.window > 0 && (!socket.is_dial || socket.dialed.is_some());
        if !socket.inbound.is_empty() {
            socket.announce_readable(profile);
        }
        Ok(())
    }

    fn read(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
        let key = key_of(stream);
        let mut world = self.0.borrow_mut();
        let result = world.read(key, into);
        let n = *result.as_ref().unwrap_or(&0) as i64;
        world.note(if result.is_ok() { "read" } else { "read failed" }, Some(key), n);
        result
    }

    fn write(&mut self, stream: &Stream, from: &[IoSlice<'_>]) -> io::Result<usize> {
        let key = key_of(stream);
        let mut world = self.0.borrow_mut();
        let result = world.write(key, from);
        let n = *result.as_ref().unwrap_or(&0) as i64;
        world.note(if result.is_ok() { "write" } else { "write failed" }, Some(key), n);
        result
    }

    fn new_pipe(&mut self) -> io::Result<SimPipe> {
        Ok(SimPipe::default())
    }

    fn splice_in(&mut self, from: &Stream, pipe: &SimPipe, max: usize) -> io::Result<usize> {
        let mut contents = pipe.0.borrow_mut();
        self.0.borrow_mut().seen.calls.splices += 1;
        if self.0.borrow().no_splice {
            return Err(io::ErrorKind::Unsupported.into());
        }
        assert!(contents.is_empty(), "EAGAIN is ambiguous if the pipe is not empty");
        // A pipe is full when its slots are, and how many bytes a slot holds depends on the peer's packets.
        let max = self.0.borrow_mut().faults.as_mut().map_or(max, |faults| faults.part(max));
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
        Ok(take_front(&mut contents, into))
    }

    fn shutdown_write(&mut self, stream: &Stream) -> io::Result<()> {
        let key = key_of(stream);
        let mut world = self.0.borrow_mut();
        assert!(!world.sockets[key].outbound_end, "FIN was sent twice");
        if world.sockets[key].reset {
            return Err(error(ENOTCONN, io::ErrorKind::NotConnected));
        }
        world.tell_other_end(key);
        world.sockets[key].outbound_end = true;
        world.note("shutdown", Some(key), 0);
        Ok(())
    }

    fn reset(&mut self, stream: Stream) {
        let key = key_of(&stream);
        let mut world = self.0.borrow_mut();
        world.sockets[key].released = Some(Released::Reset);
        world.note("reset", Some(key), 0);
        world.tell_other_end(key);
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

impl World {
    pub(super) fn has_left(&self, key: usize) -> Option<Leaving> {
        let socket = &self.sockets[key];
        let end = socket.inbound_end.then_some(Leaving::End);
        if socket.reset { Some(Leaving::Reset) } else { end }
    }

    /// The error of accept(2), if the tape says that it fails.
    fn draw_accept_error(&mut self) -> Option<AcceptError> {
        if !self.draw_fault(Fault::AcceptFails) {
            return None;
        }
        Some(match self.faults.as_mut()?.part(3) {
            1 => AcceptError::PeerGone,
            2 => AcceptError::NoDescriptor,
            _ => AcceptError::NoMemory,
        })
    }

    fn read(&mut self, key: usize, into: &mut [u8]) -> io::Result<usize> {
        self.seen.calls.reads += 1;
        assert!(!into.is_empty(), "a read of no bytes returns 0, as an end does");
        if self.draw_fault(Fault::Interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.draw_fault(Fault::WouldBlock) {
            let socket = &mut self.sockets[key];
            socket.read_armed = true;
            socket.edge.readable = true;
            socket.edge.end |= socket.inbound_end || socket.reset;
            socket.edge.priority |= socket.urgent.is_some_and(|mark| mark <= socket.inbound.len());
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Bytes received before a reset can still be read, as on Linux. Reads are never shortened: after a short read,
        // the reactor may rely on a new edge for further bytes. Arrivals are split instead.
        let socket = &mut self.sockets[key];
        socket.urgent = socket.urgent.filter(|&mark| mark > 0); // A read that begins at the mark goes on behind it.
        let before_mark = into.len().min(socket.urgent.unwrap_or(usize::MAX));
        let n = take_front(&mut socket.inbound, &mut into[..before_mark]);
        if n > 0 {
            socket.urgent = socket.urgent.map(|mark| mark - n);
            self.make_room(key);
            return Ok(n);
        }
        match (socket.reset, socket.inbound_end) {
            (true, _) => Err(error(socket.failure, io::ErrorKind::ConnectionReset)),
            (false, true) => Ok(0),
            (false, false) => {
                socket.read_armed = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    fn write(&mut self, key: usize, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.seen.calls.writes += 1;
        if self.draw_fault(Fault::Interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.draw_fault(Fault::WouldBlock) {
            self.sockets[key].edge.writable = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = from.iter().map(|slice| slice.len()).sum();
        assert!(length > 0, "an empty write is a wasted call");
        let max = self.shorten(length);
        assert!(!self.sockets[key].outbound_end, "written after FIN");
        if self.sockets[key].reset {
            let number = Some(self.sockets[key].failure).filter(|&number| number != ECONNRESET);
            return Err(error(number.unwrap_or(EPIPE), io::ErrorKind::BrokenPipe));
        }
        let n = max.min(self.space(key));
        if n == 0 {
            self.sockets[key].write_refused = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.carry(key, from, n);
        Ok(n)
    }
}

impl Sim {
    /// Whether a read of this stream would return something, and whether a write would be accepted.
    pub(crate) fn readiness(&self, stream: &Stream) -> (bool, bool) {
        let (world, key) = (self.0.borrow(), key_of(stream));
        let socket = &world.sockets[key];
        let readable = !socket.inbound.is_empty() || socket.inbound_end || socket.reset;
        (readable, socket.reset || world.space(key) > 0)
    }

    /// The descriptors in use, but for the spare one.
    pub(crate) fn descriptors(&self) -> usize {
        let world = self.0.borrow();
        world.open - usize::from(world.reserve)
    }

    /// Whether a connection waits in the backlog of this listener.
    pub(crate) fn has_backlog(&self, listener: &ListenSocket) -> bool {
        !self.0.borrow().listeners[index_of(listener)].backlog.is_empty()
    }
}

/// Which socket of the simulated world a stream is.
fn key_of(stream: &Stream) -> usize {
    match stream {
        Stream::Simulated(Fd { of: Descriptor::Socket(key), .. }) => *key,
        Stream::Simulated(_) => unreachable!("a listener is not a stream"),
        #[cfg(not(target_family = "wasm"))]
        Stream::Kernel(_) => unreachable!("a stream of the kernel is not given to the simulation"),
    }
}

/// Which listener of the simulated world this is.
fn index_of(listener: &ListenSocket) -> usize {
    match listener {
        ListenSocket::Simulated(Fd { of: Descriptor::Listener(index), .. }) => *index,
        ListenSocket::Simulated(_) => unreachable!("a stream is not a listener"),
        #[cfg(not(target_family = "wasm"))]
        ListenSocket::Kernel(_) => unreachable!("a listener of the kernel is not given to the simulation"),
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        let mut world = self.world.borrow_mut();
        world.open -= 1;
        match self.of {
            Descriptor::Listener(index) => world.close_listener(index),
            Descriptor::Socket(key) => {
                let socket = &mut world.sockets[key];
                if socket.released.is_none() {
                    let unread = !socket.inbound.is_empty();
                    socket.released = Some(if unread { Released::ClosedUnread } else { Released::Closed });
                    world.note("close", Some(key), 0);
                    world.tell_other_end(key);
                }
            }
        }
    }
}
