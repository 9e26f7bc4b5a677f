//! Listeners as the table sees them: binding, closing, and which one has accepted a connection.
//!
//! Read before: `connection/table.rs`. `event_loop/accept.rs` accepts.

use std::io;
use std::net::SocketAddr;

use super::adopt::ADOPTED;
use super::socket::Socket;
use super::sockets::Sockets;
use super::table::Table;
use crate::base::address::{Address, AddressError, PeerAddress};
use crate::base::id::{ConnId, LISTENERS_MAX, ListenerId, ServiceId, Token};
use crate::base::setup_error::ListenError;
use crate::config::listen::ListenOptions;
use crate::parts::listener::Listener;
use crate::sys::{ListenSocket, Registrar};

/// All listeners of a reactor.
pub(crate) struct Listeners {
    /// By index. A closed listener leaves a gap, because the token that the kernel returns is an index into this list.
    pub(crate) all: Vec<Option<Listener<ListenSocket>>>,
    /// Whether one of them may be `acceptable`: most turns have nothing to accept and need not ask each.
    pub(crate) any_acceptable: bool,
    generation: u64,
    /// Where connections are: a machine has few listeners and addresses, so a connection stores an index of one byte
    /// into this list.
    places: Vec<Place>,
}

/// The local address of connections; none for a Unix-domain socket. With their listener if they were accepted. Dialed
/// ones have a port each, which is not in here.
struct Place {
    listener: Option<ListenerId>,
    local: Option<SocketAddr>,
    /// How many connections refer to it. Without any it is used again for another place.
    connections: u32,
}

impl Listeners {
    pub(crate) fn new() -> Listeners {
        Listeners { all: Vec::new(), any_acceptable: false, generation: 0, places: Vec::new() }
    }

    pub(crate) fn get(&self, id: ListenerId) -> Option<&Listener<ListenSocket>> {
        self.all.get(id.index as usize)?.as_ref().filter(|listener| listener.id == id)
    }

    /// Closes a listener; returns whether it was open.
    pub(crate) fn close(&mut self, id: ListenerId) -> bool {
        let listener = self.all.get_mut(id.index as usize);
        listener.and_then(|listener| listener.take_if(|listener| listener.id == id)).is_some()
    }

    pub(crate) fn close_all(&mut self) {
        self.all.iter_mut().for_each(|listener| drop(listener.take()));
    }

    /// The backlog of a listener may hold a connection.
    pub(crate) fn set_acceptable(&mut self, index: usize) {
        if let Some(Some(listener)) = self.all.get_mut(index) {
            listener.acceptable = true;
            self.any_acceptable = true;
        }
    }

    /// Computes `any_acceptable` again, when listeners have been accepted from.
    pub(crate) fn find_acceptable(&mut self) {
        let any = self.acceptable().next().is_some();
        self.any_acceptable = any;
    }

    /// Those that may have a connection in their backlog.
    pub(crate) fn acceptable(&self) -> impl Iterator<Item = &Listener<ListenSocket>> {
        self.open().filter(|listener| listener.acceptable)
    }

    pub(crate) fn open(&self) -> impl Iterator<Item = &Listener<ListenSocket>> {
        self.all.iter().flatten()
    }

    /// The index of a place, with one more connection. None when all of its 254 indices are in use.
    fn enter(&mut self, listener: Option<ListenerId>, local: Option<SocketAddr>) -> Option<u8> {
        let known = |place: &Place| (place.listener, place.local) == (listener, local);
        let index = self.places.iter().position(known);
        let index = index.or_else(|| self.places.iter().position(|place| place.connections == 0));
        let index = index.unwrap_or(self.places.len());
        if index >= usize::from(ADOPTED) {
            return None;
        }
        match self.places.get_mut(index) {
            Some(place) => *place = Place { listener, local, connections: place.connections + 1 },
            None => self.places.push(Place { listener, local, connections: 1 }),
        }
        Some(index as u8)
    }

    /// A connection at a place has ended.
    pub(crate) fn leave(&mut self, index: u8) {
        if let Some(place) = self.places.get_mut(usize::from(index)) {
            place.connections -= 1;
        }
    }
}

impl Table {
    pub(crate) fn listen(
        &mut self,
        at: &Address,
        service: ServiceId,
        options: &ListenOptions,
    ) -> Result<ListenerId, ListenError> {
        self.add_listener(at, service, options, |registrar| registrar.bind(at, options))
    }

    /// Adds a listener that `make` binds. The index of a closed one is used again; the generation in its id keeps an
    /// old id from closing the new one.
    pub(crate) fn add_listener(
        &mut self,
        at: &Address,
        service: ServiceId,
        options: &ListenOptions,
        make: impl FnOnce(&dyn Registrar) -> io::Result<(ListenSocket, Address)>,
    ) -> Result<ListenerId, ListenError> {
        let service = self.number_of(service).ok_or(ListenError::OtherReactor)?;
        if self.is_shutting_down() {
            return Err(ListenError::ShuttingDown);
        }
        let listeners = &mut self.listeners;
        let index = listeners.all.iter().position(Option::is_none).unwrap_or(listeners.all.len());
        if index >= LISTENERS_MAX {
            return Err(ListenError::TooMany);
        }
        let registrar = &*self.registrar;
        let made = make(registrar).and_then(|(mut socket, address)| {
            registrar.register(&mut socket, Token::listener(index))?;
            Ok((socket, address))
        });
        let (socket, address) = made.map_err(|source| ListenError::System { at: at.clone(), source })?;
        listeners.generation += 1;
        let (reactor, generation) = (self.reactor, listeners.generation);
        let id = ListenerId { reactor, index: index as u32, generation };
        let listener = Listener::new(socket, id, address, service, options);
        match listeners.all.get_mut(index) {
            Some(gap) => *gap = Some(listener),
            None => listeners.all.push(Some(listener)),
        }
        Ok(id)
    }

    /// Connections were handed over to a listener.
    pub(crate) fn on_handed_over(&mut self, id: ListenerId) {
        if self.listeners.get(id).is_some() {
            self.listeners.set_acceptable(id.index as usize);
        }
    }

    /// The local address of a connection.
    pub(crate) fn local(&self, connection: &super::Connection) -> Option<Address> {
        let Some(place) = self.listeners.places.get(usize::from(connection.place)) else {
            return connection.overrides()?.local.map(Address::from);
        };
        let mut local = place.local?;
        if let Some(port) = connection.local_port() {
            local.set_port(port);
        }
        Some(Address::Inet(local))
    }

    /// Stores where a connection was accepted. Without a place left, its local address is stored with the connection,
    /// and its listener is forgotten.
    pub(crate) fn set_place(&mut self, id: ConnId, listener: ListenerId, local: Option<SocketAddr>) {
        let Some(connection) = self.slots.get_mut(id.slot as usize) else { return };
        match self.listeners.enter(Some(listener), local) {
            Some(index) => connection.place = index,
            None => connection.optional().overrides().local = local.map(PeerAddress::from),
        }
    }

    /// Stores the local address of a connection that was dialed. Most have the same IP address, and each has a port of
    /// its own.
    pub(crate) fn set_local(&mut self, id: ConnId, local: SocketAddr) {
        let Some(connection) = self.slots.get_mut(id.slot as usize) else { return };
        let dial = connection.pending_dial();
        dial.local_port = local.port();
        let mut shared = local;
        shared.set_port(0);
        match self.listeners.enter(None, Some(shared)) {
            Some(index) => connection.place = index,
            None => connection.optional().overrides().local = Some(PeerAddress::from(local)),
        }
    }
}

impl Socket<'_> {
    /// The listener that has accepted the connection; it may be closed by now. `None` for a connection that was dialed
    /// or adopted. A reactor remembers 254 pairs of a listener and a local address; beyond these it is `None`, too.
    pub fn listener(&self) -> Option<ListenerId> {
        let place = self.table().listeners.places.get(usize::from(self.connection().place));
        place.and_then(|place| place.listener)
    }
}

/// Listeners.
impl Sockets<'_> {
    /// Listens on an address for a service, with [`ListenOptions::default`]: for a protocol in which a connection asks
    /// for a port (FTP's PASV, BIND of SOCKS), and for a server that is configured while it runs. The port is bound
    /// when this returns, and connections are accepted from the next turn on. Unlike other methods that callbacks have,
    /// it makes system calls; it does not wait.
    ///
    /// ```
    /// use tidemill::{Input, Service, Socket};
    ///
    /// /// Each line opens a port, of which the answer tells the number. One connection may come to it.
    /// struct Passive;
    ///
    /// impl Service for Passive {
    ///     type Session = ();
    ///     fn open(&mut self, socket: &mut Socket<'_>) {
    ///         let listener = socket.listener();
    ///         if let Some(listener) = listener.filter(|_| socket.local_addr().unwrap().port() != Some(21)) {
    ///             socket.all().close_listener(listener);
    ///         }
    ///     }
    ///     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         let own = socket.service();
    ///         while input.take_line().is_some() {
    ///             let answer = match socket.all().listen("127.0.0.1:0", own) {
    ///                 Ok(listener) => format!("{}\n", socket.all().local_addr(listener).unwrap()),
    ///                 Err(error) => format!("{error}\n"),
    ///             };
    ///             socket.send(answer.as_bytes());
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Reactor::listen`](crate::Reactor::listen). A host name is refused as [`ListenError::WouldBlock`], because
    /// it would have to be looked up.
    pub fn listen<A>(&mut self, at: A, service: impl Into<ServiceId>) -> Result<ListenerId, ListenError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.listen_with(at, service, &ListenOptions::default())
    }

    /// Listens with options; see [`Reactor::listen_with`](crate::Reactor::listen_with).
    ///
    /// # Errors
    ///
    /// As [`listen`](Sockets::listen).
    pub fn listen_with<A>(
        &mut self,
        at: A,
        service: impl Into<ServiceId>,
        options: &ListenOptions,
    ) -> Result<ListenerId, ListenError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        let at = at.try_into().map_err(Into::into)?;
        if matches!(at, Address::Name { .. }) {
            return Err(ListenError::WouldBlock(at));
        }
        self.table().listen(&at, service.into(), options)
    }

    /// The address that a listener is bound to, with the real port. `None` once it is closed.
    pub fn local_addr(&self, listener: ListenerId) -> Option<Address> {
        self.table_ref().listeners.get(listener).map(|listener| listener.address.clone())
    }

    /// Closes a listener; returns whether it was open. Its connections stay open; those in its backlog are reset by the
    /// kernel.
    pub fn close_listener(&mut self, listener: ListenerId) -> bool {
        self.table().listeners.close(listener)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::ReactorId;

    #[test]
    fn a_place_is_used_again_when_its_last_connection_has_ended() {
        let mut listeners = Listeners::new();
        let reactor = ReactorId::next();
        let listener = |generation| ListenerId { reactor, index: 0, generation };
        let first = listeners.enter(Some(listener(1)), None);
        assert_eq!((first, listeners.enter(Some(listener(1)), None)), (Some(0), Some(0)));
        for generation in 2..255 {
            assert_eq!(listeners.enter(Some(listener(generation)), None), Some(generation as u8 - 1));
        }
        assert_eq!(listeners.enter(Some(listener(255)), None), None, "all indices of one byte are in use");
        listeners.leave(0);
        assert_eq!(listeners.enter(Some(listener(255)), None), None, "one of the two is left");
        listeners.leave(0);
        assert_eq!(listeners.enter(Some(listener(255)), None), Some(0));
    }
}
