//! What you write: a service, and the one erasure that lets a reactor hold many kinds of them.

use crate::base::id::ServiceId;
use crate::base::reason::{ClosedInfo, Refused};
use crate::connection::optional::IdleKind;
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

    /// No byte has moved for as long as a clock of the connection allows. `which` names the clock: both directions
    /// ([`SocketLimits::idle`](crate::SocketLimits::idle) or [`Socket::set_idle`]), or only one
    /// ([`Socket::set_read_idle`], [`Socket::set_write_idle`]).
    ///
    /// By default the connection is closed, with the reason [`Idle`](crate::CloseReason::Idle). If it is not closed,
    /// this is called again after another whole span.
    fn idle(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>, which: IdleKind) {
        let _ = (session, which);
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

    /// The connection has ended; called exactly once for each `open`. `gone` has its id, the reason, its addresses and
    /// counters. The session comes back by value. The connection itself can no longer be reached, the others can.
    fn closed(&mut self, session: Self::Session, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let _ = (session, gone, sockets);
    }
}

/// What a service is told: one variant for each of its callbacks.
pub(crate) enum Event<'a, 'b> {
    Start(ServiceId),
    Timer(TimerId),
    Refused(&'a Refused),
    Closed(&'a ClosedInfo),
    /// The session begins with this.
    Open(u32),
    /// The others concern the session of a slot.
    Data(u32, &'a mut Input<'b>),
    Connected(u32),
    FilterStarted(u32),
    End(u32),
    Drained(u32),
    Idle(u32, IdleKind),
    Alarm(u32),
}

/// A service with its type erased: once per service, never per connection.
pub(crate) trait AnyService {
    fn call(&mut self, table: &mut Table, event: Event<'_, '_>);
}

/// A service and the sessions of its connections, by slot: a session without content costs a byte. A reactor with
/// several services keeps a gap in each for the slots of the others.
pub(crate) struct ServiceState<S: Service> {
    service: S,
    sessions: Vec<Option<S::Session>>,
}

impl<S: Service> ServiceState<S> {
    pub(crate) fn new(service: S) -> ServiceState<S> {
        ServiceState { service, sessions: Vec::new() }
    }

    fn open(&mut self, table: &mut Table, slot: u32) {
        let session = self.service.open(&mut Socket::new(table, slot));
        if self.sessions.len() <= slot as usize {
            self.sessions.resize_with(slot as usize + 1, || None);
        }
        self.sessions[slot as usize] = Some(session);
    }

    fn closed(&mut self, table: &mut Table, gone: &ClosedInfo) {
        if let Some(session) = self.sessions.get_mut(gone.id.slot as usize).and_then(Option::take) {
            self.service.closed(session, gone, &mut Sockets::new(table));
        }
    }

    /// Calls a callback that needs the session. A connection has one from `open` to `closed`.
    fn with_session(
        &mut self,
        table: &mut Table,
        slot: u32,
        call: impl FnOnce(&mut S, &mut S::Session, &mut Socket<'_>),
    ) {
        if let Some(session) = self.sessions.get_mut(slot as usize).and_then(Option::as_mut) {
            call(&mut self.service, session, &mut Socket::new(table, slot));
        }
    }
}

impl<S: Service> AnyService for ServiceState<S> {
    fn call(&mut self, table: &mut Table, event: Event<'_, '_>) {
        match event {
            Event::Data(slot, input) => {
                self.with_session(table, slot, |service, session, socket| {
                    service.data(session, socket, input)
                });
            }
            Event::Start(own) => self.service.start(own, &mut Sockets::new(table)),
            Event::Timer(timer) => self.service.timer(timer, &mut Sockets::new(table)),
            Event::Refused(refused) => self.service.refused(refused, &mut Sockets::new(table)),
            Event::Closed(gone) => self.closed(table, gone),
            Event::Open(slot) => self.open(table, slot),
            Event::Connected(slot) => self.with_session(table, slot, S::connected),
            Event::FilterStarted(slot) => self.with_session(table, slot, S::filter_started),
            Event::End(slot) => self.with_session(table, slot, S::end),
            Event::Drained(slot) => self.with_session(table, slot, S::drained),
            Event::Alarm(slot) => self.with_session(table, slot, S::alarm),
            Event::Idle(slot, which) => {
                self.with_session(table, slot, |service, session, socket| {
                    service.idle(session, socket, which)
                });
            }
        }
    }
}
