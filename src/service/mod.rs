//! The trait that a user implements.
//!
//! Read before: `docs/one-turn.md`. Next: `connection/socket.rs`, which callbacks use. `service/state.rs` calls it, and
//! `service/sockets.rs` has what reaches the sessions of one service.

pub(crate) mod sockets;
pub(crate) mod state;

use std::time::Duration;

use crate::base::id::{ServiceId, WatchId};
use crate::base::leaving::Leaving;
use crate::base::reason::{ClosedInfo, Refused};
use crate::connection::optional::IdleKind;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
pub use sockets::ServiceSockets;
pub(crate) use sockets::run_with;
pub(crate) use state::{AnyService, Event, ServiceState};

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
pub trait Service: Sized + 'static {
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

    /// Called when an alarm that was [set](Socket::set_alarm_for) for this connection is due, with its tag: 0 for
    /// [`set_alarm`](Socket::set_alarm). Does nothing by default.
    fn alarm(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>, tag: u64) {
        let _ = (session, socket, tag);
    }

    /// Called when the peer has left while the connection was not read, because it is paused or its queue is full.
    /// [`notice_leaving`](Socket::notice_leaving) asks for it; without that nothing is noticed before the connection is
    /// read again. Bytes that arrived before are still there. Does nothing by default.
    fn left(&mut self, session: &mut Self::Session, socket: &mut Socket<'_>, how: Leaving) {
        let _ = (session, socket, how);
    }

    /// Called when a descriptor that is [watched](Sockets::watch) for this service can be read (or written to, if
    /// [asked for](Sockets::watch_with)), or has ended or failed: in each turn, until it has been read or is no longer
    /// watched. Does nothing by default.
    fn ready(&mut self, watch: WatchId, sockets: &mut ServiceSockets<'_, Self>) {
        let _ = (watch, sockets);
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

    /// Called once, when a [shutdown](crate::Reactor::shutdown) begins: in phase 5 of the turn in which it was asked
    /// for or of the next one, after the listeners and timers are gone. A service tells its peers here, and closes the
    /// connections that have nothing left to do: without that, an idle keep-alive connection lasts until `grace` has
    /// passed. Does nothing by default.
    ///
    /// `grace` is the time after which all connections that are left are closed as
    /// [`Shutdown`](crate::CloseReason::Shutdown). It is zero after [`Sockets::stop`], and then nothing that is sent
    /// here is written any more. A connection that opens later (a dial, a TLS handshake that was under way) can ask
    /// [`Sockets::is_shutting_down`]. Timers may be set; they end with the grace.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidemill::{Input, Service, ServiceSockets, Socket};
    ///
    /// /// Answers lines. The session is whether an answer is still being prepared.
    /// struct Lines;
    ///
    /// impl Service for Lines {
    ///     type Session = bool;
    ///     fn open(&mut self, _: &mut Socket<'_>) -> bool { false }
    ///     fn data(&mut self, busy: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         while let Some(line) = input.take_line() { *busy |= line == b"slow"; socket.send(line); }
    ///         if socket.all().is_shutting_down() && !*busy { socket.close() }
    ///     }
    ///     fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, Lines>) {
    ///         sockets.for_each(|busy, mut socket| if !*busy { socket.send(b"bye\n"); socket.close() });
    ///     }
    /// }
    /// ```
    fn stopping(&mut self, grace: Duration, sockets: &mut ServiceSockets<'_, Self>) {
        let _ = (grace, sockets);
    }

    /// Called exactly once for each `open`, when the connection has ended. `gone` has its id, the reason, its addresses
    /// and counters. The session is given back by value. The connection itself cannot be used any more; `sockets` has
    /// the others. If it is dialed again, `gone.redial_in` tells when; the new connection has another id, and its
    /// [`Origin`](crate::Origin) names this one. Does nothing by default.
    fn closed(&mut self, session: Self::Session, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let _ = (session, gone, sockets);
    }
}
