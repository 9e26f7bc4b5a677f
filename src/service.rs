//! What you write: a service, and the one erasure that lets a reactor hold many kinds of them.

use crate::base::id::{ConnId, ServiceId};
use crate::base::reason::{CloseReason, Refused};
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::table::Table;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;

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

    /// It has been added to a reactor, under this name: the moment to set timers and to dial.
    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        let _ = (own, sockets);
    }

    /// A connection begins: accepted, or dialed (then before it is connected; what is sent waits).
    fn open(&mut self, socket: &mut Socket<'_>) -> Self::Session;

    /// A dialed connection is connected. Not called for accepted ones, which are from the beginning.
    fn connected(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// The handshake that [`Socket::start_filter`] asked for is done. Not called for connections that were secured from
    /// the beginning: those are met by `open`, or `connected`, when theirs is.
    fn filter_started(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

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

    /// No byte has moved either way for [`SocketLimits::idle`](crate::SocketLimits::idle), or for what
    /// [`Socket::set_idle`] said; or none one way, where it has a [clock](Socket::set_read_idle) for that:
    /// [`Socket::idle_kind`] says which. By default it is closed. One that is not gets another whole span.
    fn idle(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = session;
        socket.close();
    }

    /// The alarm that was [set](Socket::set_alarm) for this connection goes off.
    fn alarm(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// A timer of this service goes off: see [`Sockets::set_timer`].
    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        let _ = (timer, sockets);
    }

    /// Somebody was turned away at a listener of this service.
    fn refused(&mut self, refused: &Refused, sockets: &mut Sockets<'_>) {
        let _ = (refused, sockets);
    }

    /// It has ended, and `why`. The session comes back by value; its own socket is gone, but the `rest` can be reached.
    /// What else is known of it is in [`Sockets::closed_info`].
    fn closed(&mut self, session: Self::Session, id: ConnId, why: CloseReason, rest: &mut Sockets<'_>) {
        let _ = (session, id, why, rest);
    }
}

/// A service with its type erased: once per service, never per connection.
pub(crate) trait AnyService {
    fn start(&mut self, table: &mut Table, own: ServiceId);
    fn open(&mut self, table: &mut Table, slot: u32);
    fn connected(&mut self, table: &mut Table, slot: u32);
    fn filter_started(&mut self, table: &mut Table, slot: u32);
    fn data(&mut self, table: &mut Table, slot: u32, input: &mut Input<'_>);
    fn alarm(&mut self, table: &mut Table, slot: u32);
    fn timer(&mut self, table: &mut Table, timer: TimerId);
    fn refused(&mut self, table: &mut Table, refused: &Refused);
    fn end(&mut self, table: &mut Table, slot: u32);
    fn drained(&mut self, table: &mut Table, slot: u32);
    fn idle(&mut self, table: &mut Table, slot: u32);
    fn closed(&mut self, table: &mut Table, id: ConnId, why: CloseReason);
}

/// A service and the sessions of its connections, by slot: a session without content costs a byte, and
/// finding one costs no look-up. A reactor with several services keeps a gap in each for the others' slots.
pub(crate) struct ServiceState<S: Service> {
    service: S,
    sessions: Vec<Option<S::Session>>,
}

impl<S: Service> ServiceState<S> {
    pub(crate) fn new(service: S) -> ServiceState<S> {
        ServiceState { service, sessions: Vec::new() }
    }

    /// The service and a session of it. A connection has one from `open` to `closed`.
    fn session(&mut self, slot: u32) -> Option<(&mut S, &mut S::Session)> {
        let session = self.sessions.get_mut(slot as usize)?.as_mut()?;
        Some((&mut self.service, session))
    }
}

impl<S: Service> AnyService for ServiceState<S> {
    fn start(&mut self, table: &mut Table, own: ServiceId) {
        self.service.start(own, &mut Sockets::new(table));
    }

    fn open(&mut self, table: &mut Table, slot: u32) {
        let session = self.service.open(&mut Socket::new(table, slot));
        if self.sessions.len() <= slot as usize {
            self.sessions.resize_with(slot as usize + 1, || None);
        }
        self.sessions[slot as usize] = Some(session);
    }

    fn connected(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.session(slot) {
            service.connected(session, &mut Socket::new(table, slot));
        }
    }

    fn filter_started(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.session(slot) {
            service.filter_started(session, &mut Socket::new(table, slot));
        }
    }

    fn alarm(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.session(slot) {
            service.alarm(session, &mut Socket::new(table, slot));
        }
    }

    fn timer(&mut self, table: &mut Table, timer: TimerId) {
        self.service.timer(timer, &mut Sockets::new(table));
    }

    fn refused(&mut self, table: &mut Table, refused: &Refused) {
        self.service.refused(refused, &mut Sockets::new(table));
    }

    fn data(&mut self, table: &mut Table, slot: u32, input: &mut Input<'_>) {
        if let Some((service, session)) = self.session(slot) {
            service.data(session, &mut Socket::new(table, slot), input);
        }
    }

    fn end(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.session(slot) {
            service.end(session, &mut Socket::new(table, slot));
        }
    }

    fn drained(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.session(slot) {
            service.drained(session, &mut Socket::new(table, slot));
        }
    }

    fn idle(&mut self, table: &mut Table, slot: u32) {
        if let Some((service, session)) = self.session(slot) {
            service.idle(session, &mut Socket::new(table, slot));
        }
    }

    fn closed(&mut self, table: &mut Table, id: ConnId, why: CloseReason) {
        if let Some(session) = self.sessions.get_mut(id.slot as usize).and_then(Option::take) {
            self.service.closed(session, id, why, &mut Sockets::new(table));
        }
    }
}
