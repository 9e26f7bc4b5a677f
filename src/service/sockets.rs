//! `ServiceSockets`: the sessions of one service beside all connections, and work that is put off for a service.
//!
//! Read before: `service/mod.rs`.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::Service;
use super::state::ServiceState;
use crate::base::id::{ConnId, Key};
use crate::base::post_error::{PostError, PostRefusal};
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::table::Table;

/// All connections, and the sessions of one service: what [`Reactor::with`](crate::Reactor::with),
/// [`Handle::post_to`](crate::Handle::post_to) and [`Sockets::later`] give to their work, beside the service. It is
/// used as [`Sockets`]; [`session`](ServiceSockets::session) is what it has besides.
pub struct ServiceSockets<'a, S: Service> {
    pub(super) sockets: Sockets<'a>,
    pub(super) sessions: &'a mut [Option<S::Session>],
}

impl<S: Service> ServiceSockets<'_, S> {
    /// The session of a connection of this service, and its socket. `None` if the connection is closing or gone,
    /// belongs to another service, or was dialed and has not been opened.
    pub fn session(&mut self, id: ConnId) -> Option<(&mut S::Session, Socket<'_>)> {
        let table = self.sockets.table();
        let slot = table.live(id)?.slot;
        let session = self.sessions.get_mut(slot as usize)?.as_mut()?;
        Some((session, Socket::new(table, slot)))
    }

    /// Calls `each` with every session of this service that [`session`](ServiceSockets::session) finds, in no
    /// particular order. Goes through all slots of the reactor.
    pub fn for_each(&mut self, mut each: impl FnMut(&mut S::Session, Socket<'_>)) {
        for slot in 0..self.sessions.len() {
            let table = self.sockets.table();
            let id = table.slots.get(slot).and_then(|connection| table.live(connection.id));
            if let (Some(_), Some(session)) = (id, self.sessions[slot].as_mut()) {
                each(session, Socket::new(table, slot as u32));
            }
        }
    }
}

impl<'a, S: Service> Deref for ServiceSockets<'a, S> {
    type Target = Sockets<'a>;

    fn deref(&self) -> &Sockets<'a> {
        &self.sockets
    }
}

impl<'a, S: Service> DerefMut for ServiceSockets<'a, S> {
    fn deref_mut(&mut self) -> &mut Sockets<'a> {
        &mut self.sockets
    }
}

impl<S: Service> fmt::Debug for ServiceSockets<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.sockets, f)
    }
}

/// Runs work with a service whose type was erased. The caller has compared the reactor of the key, so the type is
/// right.
pub(crate) fn run_with<S: Service, R>(
    service: &mut dyn Any,
    table: &mut Table,
    work: impl FnOnce(&mut S, &mut ServiceSockets<'_, S>) -> R,
) -> R {
    let state = service.downcast_mut::<ServiceState<S>>().expect("a key has the type of its service");
    let (service, mut sockets) = state.with_sockets(table);
    work(service, &mut sockets)
}

impl Sockets<'_> {
    /// Runs `work` with another service, or with the own one, when no callback runs: at the end of phase 5 of this
    /// turn, before pokes. Work that is put off by such work, or after phase 5, runs in the next turn, which does not
    /// sleep. At most [`Limits::posts_per_turn`](crate::Limits::posts_per_turn) run in one turn.
    ///
    /// ```
    /// use tidemill::{ClosedInfo, Input, Key, Service, Socket, Sockets};
    ///
    /// /// Counts what others report.
    /// struct Audit { bytes: u64 }
    /// # impl Service for Audit {
    /// #     type Session = ();
    /// #     fn open(&mut self, _: &mut Socket<'_>) {}
    /// #     fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}
    /// # }
    ///
    /// struct Echo { audit: Key<Audit> }
    ///
    /// impl Service for Echo {
    ///     type Session = ();
    ///     fn open(&mut self, _: &mut Socket<'_>) {}
    ///     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         socket.send(input.take_all());
    ///     }
    ///     fn closed(&mut self, _: (), gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
    ///         let bytes = gone.bytes_in;
    ///         if let Err(refused) = sockets.later(self.audit, move |audit, _| audit.bytes += bytes) {
    ///             eprintln!("{refused}");
    ///         }
    ///     }
    /// }
    /// # let mut reactor = tidemill::Reactor::new(tidemill::Limits::default()).unwrap();
    /// # let audit = reactor.add(Audit { bytes: 0 });
    /// # reactor.add(Echo { audit });
    /// ```
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](std::io::ErrorKind::WouldBlock) when [`Limits::posts`](crate::Limits::posts) are put off already,
    /// and [`InvalidInput`](std::io::ErrorKind::InvalidInput) when the key is of another reactor. The error gives
    /// `work` back.
    pub fn later<S, F>(&mut self, key: Key<S>, work: F) -> Result<(), PostError<F>>
    where
        S: Service,
        F: FnOnce(&mut S, &mut ServiceSockets<'_, S>) + 'static,
    {
        let table = self.table();
        let max = table.cx.limits.posts;
        if key.id.reactor != table.reactor {
            return Err(PostError::new(work, PostRefusal::OtherReactor));
        }
        if table.later.len() >= max {
            return Err(PostError::new(work, PostRefusal::Full(max)));
        }
        table.later.push_back((key.id.number, Box::new(|service, table| run_with(service, table, work))));
        Ok(())
    }
}
