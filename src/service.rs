//! The trait that a user implements, and how the loop calls it.
//!
//! Read before: `docs/one-turn.md`. Next: `connection/socket.rs`, which callbacks use.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::base::id::{ConnId, Key, ServiceId};
use crate::base::post_error::{PostError, PostRefusal};
use crate::base::reason::{ClosedInfo, Refused};
use crate::connection::optional::IdleKind;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::table::Table;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;

/// What a program does with its connections. You implement it; the reactor calls it.
///
/// The state that all connections share (a room, counters, upstreams) is in fields of the `Service`. The state of one
/// connection is its [`Session`](Service::Session). A callback gets both by `&mut`, so neither needs an `Rc`, a
/// `RefCell` or a lock.
///
/// A connection gets `open` first, then `data` any number of times, at most one `end`, and exactly one `closed`.
/// Callbacks run on the loop's thread, one at a time, and never inside one another.
///
/// # Panics
///
/// A panic in a callback is a bug of the service. It unwinds out of [`turn`](crate::Reactor::turn); the reactor does
/// not catch it, and must not be used afterwards. A program that catches the panic can build a new reactor.
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
    /// The state of one connection. Stored by value, from `open` to `closed`; a type without content costs one byte.
    type Session: 'static;

    /// Called once, when the service is added to a reactor, with the id that it has there. Timers can be set and
    /// connections dialed from here. Does nothing by default.
    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        let _ = (own, sockets);
    }

    /// Called when a connection begins, and returns its session. An accepted connection is connected; with TLS, its
    /// handshake is complete. A dialed one is not connected yet, and bytes sent to it wait until it is:
    /// [`Socket::origin`] tells the two apart.
    fn open(&mut self, socket: &mut Socket<'_>) -> Self::Session;

    /// Called when a dialed connection is connected; with TLS, when its handshake is complete. Not called for accepted
    /// connections. Does nothing by default.
    fn connected(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// Called when the handshake that [`Socket::start_filter`] asked for is complete. Not called if the filter was set
    /// by the listener or the dial: then `open`, or `connected`, is called after the handshake. Does nothing by
    /// default.
    fn filter_started(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// Called when bytes have arrived. Bytes that are not taken from `input` come again, in front of the next ones.
    /// They count as an incomplete message: [`SocketLimits::message`](crate::SocketLimits::message) bounds their
    /// number.
    ///
    /// # When it is called again
    ///
    /// When new bytes arrive, or after [`resume`](Socket::resume) if bytes were left. A complete message that is left
    /// untaken without a pause is therefore seen again only when more bytes arrive.
    ///
    /// One call may queue about 1 MiB for all connections together. After that `input` shows no more bytes, and the
    /// rest is delivered in the next turn, so that one connection cannot stop the loop.
    fn data(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>, input: &mut Input<'_>);

    /// Called when the peer has sent its FIN and all bytes before it were delivered. By default it calls
    /// [`finish`](Socket::finish), so that our FIN follows what is queued.
    fn end(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = session;
        socket.finish();
    }

    /// Called when a queue that was [full](Socket::is_full) has come down to
    /// [`SocketLimits::low_water`](crate::SocketLimits::low_water): more can be sent. Does nothing by default.
    fn drained(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// Called when an idle timeout has passed. `which` names it: no byte has moved in either direction
    /// ([`SocketLimits::idle`](crate::SocketLimits::idle) or [`Socket::set_idle`]), or in one direction
    /// ([`Socket::set_read_idle`], [`Socket::set_write_idle`]).
    ///
    /// By default the connection is closed, with the reason [`Idle`](crate::CloseReason::Idle). If it is not closed,
    /// this is called again after the same timeout.
    fn idle(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>, which: IdleKind) {
        let _ = (session, which);
        socket.close();
    }

    /// Called when the alarm that was [set](Socket::set_alarm) for this connection is due. Does nothing by default.
    fn alarm(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// Called when the connection was [poked](Socket::poke): by a callback of another connection, by a timer, by a
    /// post, or by a callback of its own. Called once, however often it was poked before the call. Does nothing by
    /// default.
    ///
    /// At most 1,024 connections are called in one turn; the others are called in the next.
    ///
    /// ```
    /// use tidemill::{ConnId, Input, Service, Socket};
    ///
    /// /// The first connection waits for the second one, whose line is its answer.
    /// #[derive(Default)]
    /// struct Rendezvous { waiting: Option<ConnId>, answer: Vec<u8> }
    ///
    /// impl Service for Rendezvous {
    ///     type Session = u64;
    ///     fn open(&mut self, _: &mut Socket<'_>) -> u64 { 0 }
    ///     fn data(&mut self, _: &mut u64, socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         let Some(line) = input.take_line() else { return };
    ///         match self.waiting.take().filter(|&id| id != socket.id()) {
    ///             None => self.waiting = Some(socket.id()),
    ///             Some(id) => {
    ///                 self.answer = line.to_vec();
    ///                 if let Some(mut first) = socket.other(id) { first.poke() }
    ///             }
    ///         }
    ///     }
    ///     fn poked(&mut self, answers: &mut u64, socket: &mut Socket<'_>) {
    ///         *answers += 1; // Its own session, which the callback of the second connection could not reach.
    ///         socket.send(&self.answer);
    ///     }
    /// }
    /// ```
    fn poked(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>) {
        let _ = (session, socket);
    }

    /// Called when a timer of this service is due: see [`Sockets::set_timer`]. Does nothing by default.
    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        let _ = (timer, sockets);
    }

    /// Called when a connection to a listener of this service was refused: by its access policy, at a limit, or for
    /// want of a descriptor. Does nothing by default.
    fn refused(&mut self, refused: &Refused, sockets: &mut Sockets<'_>) {
        let _ = (refused, sockets);
    }

    /// Called exactly once for each `open`, when the connection has ended. `gone` has its id, the reason, its addresses
    /// and counters. The session is given back by value. The connection itself cannot be used any more; `sockets` has
    /// the others. Does nothing by default.
    fn closed(&mut self, session: Self::Session, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let _ = (session, gone, sockets);
    }
}

/// All connections, and the sessions of one service: what [`Reactor::with`](crate::Reactor::with),
/// [`Handle::post_to`](crate::Handle::post_to) and [`Sockets::later`] give to their work, beside the service. It is
/// used as [`Sockets`]; [`session`](ServiceSockets::session) is what it has besides.
pub struct ServiceSockets<'a, S: Service> {
    sockets: Sockets<'a>,
    sessions: &'a mut [Option<S::Session>],
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
    let sockets = Sockets::new(table);
    work(&mut state.service, &mut ServiceSockets { sockets, sessions: &mut state.sessions })
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
        if key.reactor != table.reactor {
            return Err(PostError::new(work, PostRefusal::OtherReactor));
        }
        if table.later.len() >= max {
            return Err(PostError::new(work, PostRefusal::Full(max)));
        }
        table.later.push_back((key.id.0, Box::new(|service, table| run_with(service, table, work))));
        Ok(())
    }
}

/// A call of a service: one variant for each callback, so that the type of the service is erased in one place.
pub(crate) enum Event<'a, 'b> {
    Start(ServiceId),
    Timer(TimerId),
    Refused(&'a Refused),
    Closed(&'a ClosedInfo),
    /// The slot of the connection; the session is stored under it.
    Open(u32),
    /// These use the session of a slot.
    Data(u32, &'a mut Input<'b>),
    Connected(u32),
    FilterStarted(u32),
    End(u32),
    Drained(u32),
    Idle(u32, IdleKind),
    Alarm(u32),
    Poked(u32),
}

/// A service with its type erased. There is one per service and none per connection, so a connection needs no box.
pub(crate) trait AnyService {
    fn as_any(&mut self) -> &mut dyn Any;
    fn call(&mut self, table: &mut Table, event: Event<'_, '_>);
}

/// A service and the sessions of its connections, by slot. A session without content costs one byte.
///
/// Each service has an entry for every slot, used or not. With several services that wastes entries, and saves a map: a
/// session is found by one index.
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

    /// Calls a callback that needs the session. There is none before `open` returns, and none after `closed`.
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
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

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
            Event::Poked(slot) => self.with_session(table, slot, S::poked),
            Event::Idle(slot, which) => {
                self.with_session(table, slot, |service, session, socket| {
                    service.idle(session, socket, which)
                });
            }
        }
    }
}
