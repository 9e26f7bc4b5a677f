//! What you write: a service, and the one erasure that lets a reactor hold many kinds of them.

use crate::closed::Closed;
use crate::id::ConnId;
use crate::inbox::Input;
use crate::socket::{Socket, Sockets};
use crate::table::Table;

/// What is done with connections. You implement it; the reactor calls it.
///
/// One `Service` holds what its connections share (a room, counters, upstreams) as plain fields; one
/// [`Session`](Service::Session) per connection holds what is its own. Both are yours by `&mut` in every callback: no
/// `Rc`, no `RefCell`, no lock.
///
/// The life of a connection is `open`, then `data` any number of times, at most one `end`, and exactly one `closed`.
/// Callbacks run on the loop's thread, one at a time, and never inside one another.
///
/// # Panics
///
/// A panic in a callback is a bug of the service. It unwinds out of [`turn`](crate::Reactor::turn); nothing is caught,
/// and the reactor must not be used afterwards. One that must survive it can be rebuilt by whoever catches it.
///
/// # Examples
///
/// ```
/// use tidemill::{Input, Service, Socket};
///
/// struct Echo;
///
/// impl Service for Echo {
///     type Session = ();
///     fn open(&mut self, _: &mut Socket<'_>) {}
///     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
///         socket.send(input.take_all());
///     }
/// }
/// ```
pub trait Service: 'static {
    /// What belongs to one connection. Held by value.
    type Session: 'static;

    /// A connection begins: accepted, or dialed (then before it is connected; what is sent waits).
    fn open(&mut self, socket: &mut Socket<'_>) -> Self::Session;

    /// Bytes have arrived. What is not taken from `input` comes back in front of the next ones.
    ///
    /// # When it is called again
    ///
    /// With new bytes, or after [`resume`](Socket::resume) when something was left. A service that leaves bytes
    /// although they are complete, without pausing, sees them again only when more arrive.
    fn data(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>, input: &mut Input<'_>);

    /// The peer has sent its end (FIN). By default we [`finish`](Socket::finish) too, after what is queued.
    fn end(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = session;
        socket.finish();
    }

    /// A queue that was full has come down to the low-water mark: send on.
    fn drained(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// No byte has moved either way for [`SocketLimits::idle`](crate::SocketLimits::idle). By default it is
    /// closed. One that is not gets another whole span.
    fn idle(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = session;
        socket.close();
    }

    /// It has ended, and `why`. The session comes back by value; its own socket is gone, but the `rest` can be reached.
    fn closed(&mut self, session: Self::Session, id: ConnId, why: Closed, rest: &mut Sockets<'_>) {
        let _ = (session, id, why, rest);
    }
}

/// A service with its type erased: once per service, never per connection.
pub(crate) trait Host {
    fn open(&mut self, table: &mut Table, slot: u32);
    fn data(&mut self, table: &mut Table, slot: u32, input: &mut Input<'_>);
    fn end(&mut self, table: &mut Table, slot: u32);
    fn drained(&mut self, table: &mut Table, slot: u32);
    fn idle(&mut self, table: &mut Table, slot: u32);
    fn closed(&mut self, table: &mut Table, id: ConnId, why: Closed);
}

/// A service and the sessions of its connections, by slot: a session without content costs a byte, and
/// finding one costs no look-up. A reactor with several services keeps a gap in each for the others' slots.
pub(crate) struct Hosted<S: Service> {
    service: S,
    sessions: Vec<Option<S::Session>>,
}

impl<S: Service> Hosted<S> {
    pub(crate) fn new(service: S) -> Hosted<S> {
        Hosted { service, sessions: Vec::new() }
    }

    /// The service and a session of it. A connection has one from `open` to `closed`.
    fn both(&mut self, slot: u32) -> Option<(&mut S, &mut S::Session)> {
        let session = self.sessions.get_mut(slot as usize)?.as_mut()?;
        Some((&mut self.service, session))
    }
}

impl<S: Service> Host for Hosted<S> {
    fn open(&mut self, table: &mut Table, slot: u32) {
        let session = self.service.open(&mut Socket::new(table, slot));
        if self.sessions.len() <= slot as usize {
            self.sessions.resize_with(slot as usize + 1, || None);
        }
        self.sessions[slot as usize] = Some(session);
    }

    fn data(&mut self, table: &mut Table, slot: u32, input: &mut Input<'_>) {
        if let Some((service, session)) = self.both(slot) {
            service.data(session, &mut Socket::new(table, slot), input);
        }
    }

    fn end(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.both(slot) {
            service.end(session, &mut Socket::new(table, slot));
        }
    }

    fn drained(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.both(slot) {
            service.drained(session, &mut Socket::new(table, slot));
        }
    }

    fn idle(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.both(slot) {
            service.idle(session, &mut Socket::new(table, slot));
        }
    }

    fn closed(&mut self, table: &mut Table, id: ConnId, why: Closed) {
        if let Some(session) = self.sessions.get_mut(id.slot as usize).and_then(Option::take) {
            self.service.closed(session, id, why, &mut Sockets::new(table));
        }
    }
}
