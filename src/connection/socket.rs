//! `Socket`: what a callback can do with its connection and, through it, with the others.
//!
//! Read before: `service/mod.rs`. A method looks the connection up and calls the one that does the work. What sends is
//! in `socket/output.rs`; timeouts and socket options are in `socket/options.rs`.

mod options;
mod output;

use std::fmt;
use std::net::SocketAddr;
#[cfg(not(target_family = "wasm"))]
use std::os::fd::BorrowedFd;
use std::time::Duration;
#[cfg(not(target_family = "wasm"))]
use std::time::Instant;

use crate::base::address::Address;
#[cfg(not(target_family = "wasm"))]
use crate::base::credentials::{CredentialsError, PeerCredentials};
use crate::base::filter::{FilterConfig, FilterInfo};
use crate::base::id::{ConnId, GroupId, ServiceId};
use crate::base::reason::{CloseReason, Refusal};
use crate::connection::Connection;
use crate::connection::adopt::ADOPTED;
use crate::connection::context::Context;
use crate::connection::sockets::Sockets;
use crate::connection::state::{Flag, Half, Origin, State};
use crate::connection::table::Table;

/// One connection, for the duration of one callback.
///
/// Methods note what is to be done, and the turn does it: none of them makes a system call or calls the service. Errors
/// of the connection are reported once, in [`Service::closed`](crate::Service::closed).
///
/// # After `close`
///
/// Bytes sent to a closed, aborted or finished socket are dropped, and counted in
/// [`Stats::sent_too_late`](crate::Stats::sent_too_late). [`other`](Socket::other) does not find a closed or aborted
/// one.
///
/// # Other connections
///
/// [`other`](Socket::other) gives the socket of any connection of the reactor, so a broadcast needs no `Rc`:
///
/// ```
/// use tidemill::{ConnId, Input, Service, Socket};
///
/// struct Room { members: Vec<ConnId> }
///
/// impl Service for Room {
///     type Session = ();
///     fn open(&mut self, socket: &mut Socket<'_>) { self.members.push(socket.id()) }
///     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
///         let said = input.take_all();
///         for &id in &self.members {
///             let Some(mut member) = socket.other(id) else { continue };
///             member.send(said);
///         }
///     }
/// }
/// ```
pub struct Socket<'a> {
    table: &'a mut Table,
    slot: u32,
}

impl<'a> Socket<'a> {
    pub(crate) fn new(table: &'a mut Table, slot: u32) -> Socket<'a> {
        Socket { table, slot }
    }

    /// The connection, and the context that its methods need. A callback runs for a slot that is in use, and slots are
    /// freed only in `reap`, so this look-up cannot fail.
    #[inline]
    pub(crate) fn parts(&mut self) -> (&mut Connection, &mut Context) {
        self.table.at(self.slot)
    }

    pub(super) fn table(&self) -> &Table {
        self.table
    }

    pub(super) fn table_mut(&mut self) -> &mut Table {
        self.table
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.table.slots[self.slot as usize]
    }

    /// The id, by which [`other`](Socket::other) and [`Sockets::get`] find the connection later. No two connections of
    /// a reactor have the same.
    pub fn id(&self) -> ConnId {
        self.connection().id
    }

    /// The peer's address; of a dialed connection, what was dialed until it is connected. The client of a Unix-domain
    /// socket is [`Address::Unnamed`].
    pub fn peer_addr(&self) -> Address {
        self.connection().peer_address()
    }

    /// The local address. `None` until a dialed connection is connected, and for Unix-domain sockets.
    pub fn local_addr(&self) -> Option<Address> {
        self.table.local(self.connection())
    }

    /// The process at the other end of a Unix-domain socket. One system call, so call it once, in `open`. In
    /// [`testing`](crate::testing) it is process 1 of user and group 1000.
    ///
    /// ```
    /// use tidemill::{Input, Service, Socket};
    ///
    /// /// Serves only processes of one user.
    /// struct Admin { user: u32 }
    ///
    /// impl Service for Admin {
    ///     type Session = ();
    ///     fn open(&mut self, socket: &mut Socket<'_>) {
    ///         if !socket.peer_credentials().is_ok_and(|peer| peer.uid == self.user) {
    ///             socket.close();
    ///         }
    ///     }
    ///     fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// If it is not a Unix-domain socket, is not connected yet, or the system is not Linux.
    #[cfg(not(target_family = "wasm"))]
    pub fn peer_credentials(&self) -> Result<PeerCredentials, CredentialsError> {
        self.connection().stream.as_ref().ok_or(CredentialsError::NotConnected)?.peer_credentials()
    }

    /// The descriptor, to ask the system for what this crate does not: round-trip times (TCP_INFO), a mark (SO_MARK).
    /// `None` until a dial is connected. Do not read, write or register it: the reactor would not know.
    #[cfg(not(target_family = "wasm"))]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.connection().stream.as_ref()?.descriptor()
    }

    /// Replaces the peer's address, for example by the one in a PROXY header of a trusted proxy. From now on the
    /// connection is counted for the new address by the service's [`AccessPolicy`](crate::AccessPolicy).
    ///
    /// # Errors
    ///
    /// If the policy refuses the new address. Then nothing has changed, and the connection should be closed.
    pub fn set_peer_addr(&mut self, peer: SocketAddr) -> Result<(), Refusal> {
        self.table.set_peer(self.id(), peer)
    }

    /// The state: resolving, connecting, open in one or both directions, or closing.
    pub fn state(&self) -> State {
        self.connection().state()
    }

    /// Whether the connection was accepted, dialed or adopted.
    pub fn origin(&self) -> Origin {
        let connection = self.connection();
        match connection.flags.contains(Flag::Dialed) {
            _ if connection.place == ADOPTED => Origin::Adopted,
            true => Origin::Dialed {
                by: connection.dialed_by(),
                after: connection.dial().and_then(|dial| dial.after),
            },
            false => Origin::Accepted,
        }
    }

    /// The time of this turn. The clock is read once per turn, so all callbacks of a turn get the same.
    #[cfg(not(target_family = "wasm"))]
    pub fn now(&self) -> Instant {
        self.table.cx.epoch.at(self.table.cx.elapsed)
    }

    /// The time since the connection was accepted, adopted or dialed; resolution 10 ms.
    pub fn age(&self) -> Duration {
        self.table.cx.now.since_start() - self.connection().created.get().since_start()
    }

    /// The time of this turn, counted from when the reactor was created. Unlike [`now`](Socket::now) it can also be
    /// simulated.
    pub fn elapsed(&self) -> Duration {
        self.table.cx.elapsed
    }

    /// The service that the connection belongs to.
    pub fn service(&self) -> ServiceId {
        self.table.service_id(self.connection().service)
    }

    /// Whether it was dialed and is not connected yet. Bytes sent meanwhile wait.
    pub fn is_connecting(&self) -> bool {
        matches!(self.state(), State::Resolving | State::Connecting)
    }

    /// Starts a filter (TLS) on a connection that is in use, as STARTTLS does. Bytes sent before are written as they
    /// are; bytes sent from now on are encrypted after the handshake. Received bytes that were not taken are treated as
    /// handshake data, so that no bytes sent in the clear are taken for encrypted ones. When the handshake is complete,
    /// [`filter_started`](crate::Service::filter_started) is called; if it fails, [`closed`](crate::Service::closed).
    ///
    /// The client of TLS is the side that dialed, so a dialed connection needs the configuration of a client, and the
    /// [name](FilterConfig::for_peer) of the server: the connection knows only its address. On a connection that is
    /// still being dialed this sets [`DialOptions::filter`](crate::DialOptions::filter), and all bytes sent to it are
    /// encrypted. Nothing happens if it has a filter already or was finished.
    pub fn start_filter(&mut self, how: FilterConfig) {
        let (connection, cx) = self.parts();
        connection.start_filter(how, cx);
    }

    /// The result of the handshake: version, cipher, names. `None` without a filter, and before the handshake is
    /// complete.
    pub fn filter_info(&self) -> Option<FilterInfo> {
        self.connection().filter_info()
    }

    /// Stops reading: after this callback, `data` is not called until [`resume`](Socket::resume). It costs no system
    /// call. TCP stops the peer when the kernel's receive buffer is full.
    ///
    /// The peer's FIN is not noticed meanwhile, because it is read too. The idle timeout applies.
    pub fn pause(&mut self) {
        let (connection, cx) = self.parts();
        connection.pause(cx);
    }

    /// Ends a [`pause`](Socket::pause). Bytes that were not taken are delivered first. Nothing happens if it is not
    /// paused.
    pub fn resume(&mut self) {
        let (connection, cx) = self.parts();
        connection.resume(cx);
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.connection().flags.contains(Flag::Paused)
    }

    /// Whether the peer's FIN has been read.
    pub fn has_ended(&self) -> bool {
        self.connection().incoming == Half::Ended
    }

    /// Closes gracefully: sends everything that is queued, then a FIN. Nothing more is delivered. After the FIN, input
    /// is read and discarded for [`SocketLimits::linger`](crate::SocketLimits::linger) (1 s by default) at most, so
    /// that the kernel does not send a reset, which could destroy the last reply.
    pub fn close(&mut self) {
        self.close_as(CloseReason::Local);
    }

    /// Closes as [`close`](Socket::close) does, with another reason for `closed`, the log and the counters.
    pub fn close_as(&mut self, why: CloseReason) {
        let (connection, cx) = self.parts();
        connection.close(why, cx);
    }

    /// Closes at once with a reset (RST): queued bytes are dropped, and the peer gets an error.
    pub fn abort(&mut self) {
        let (connection, cx) = self.parts();
        connection.close_now(CloseReason::Aborted, cx);
    }

    /// Received bytes that were not taken. In [`Service::end`](crate::Service::end) that is an incomplete message.
    /// Empty during `data`, whose `input` has them.
    pub fn unread(&self) -> &[u8] {
        self.connection().unread()
    }

    /// Joins it with another connection in both directions: bytes that arrive at one are sent to the other, and
    /// [`data`](crate::Service::data), [`end`](crate::Service::end) and [`drained`](crate::Service::drained) are not
    /// called for either. Returns `false`, and does nothing, if one of them is closing or gone.
    ///
    /// - While one is full, the other is not read. So a pipe holds at most
    ///   [`high_water`](crate::SocketLimits::high_water) and one read in each direction.
    /// - A FIN is sent on after the bytes before it. The other direction continues.
    /// - The directions are independent, and timeouts apply: if neither peer reads, both are closed by
    ///   [`min_write_rate`](crate::SocketLimits::min_write_rate).
    /// - If one is closed for a reason other than [`Finished`](CloseReason::Finished), the other is closed as
    ///   [`PipePeerClosed`](CloseReason::PipePeerClosed), after the bytes queued for it.
    /// - If one was cut off before its own end (reset, or TLS without close_notify), the other is reset after
    ///   [`linger`](crate::SocketLimits::linger), so that half a message does not look whole.
    ///
    /// Bytes that either service has not taken are sent to the other first. A connection has one pipe; an earlier one
    /// is undone. The other connection may still be connecting. A connection that is piped to itself is an echo.
    ///
    /// ```
    /// use tidemill::{Address, Input, Origin, Service, Socket};
    ///
    /// /// The smallest proxy; [`services::Proxy`](crate::services::Proxy) is a complete one.
    /// struct Relay { to: Address }
    ///
    /// impl Service for Relay {
    ///     type Session = ();
    ///     fn open(&mut self, socket: &mut Socket<'_>) {
    ///         if socket.origin() == Origin::Accepted {
    ///             match socket.dial(&self.to) {
    ///                 Ok(upstream) => drop(socket.pipe(upstream)),
    ///                 Err(_) => socket.close(),
    ///             }
    ///         }
    ///     }
    ///     fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}
    /// }
    /// ```
    pub fn pipe(&mut self, other: ConnId) -> bool {
        let Some(other) = self.table.live(other).filter(|_| self.connection().is_live()) else {
            return false;
        };
        self.table.pipe(self.id(), other);
        true
    }

    /// Undoes [`pipe`](Socket::pipe): bytes that arrive from now on go to the services again. Returns the pipe peer.
    pub fn unpipe(&mut self) -> Option<ConnId> {
        self.table.unpipe(self.id())
    }

    /// The pipe peer: the connection that this one is [piped](Socket::pipe) with.
    pub fn piped_to(&self) -> Option<ConnId> {
        self.table().pipe_peer(self.id())
    }

    /// Limits the bytes per second that are read from it, in place of
    /// [`SocketLimits::rate`](crate::SocketLimits::rate); `None`: no limit of its own.
    pub fn set_rate(&mut self, bytes: Option<usize>) {
        let (connection, cx) = self.parts();
        connection.set_rate(bytes, cx);
    }

    /// Adds it to a group, whose rate it shares in addition to its own; `None`: to none. A group of another reactor is
    /// ignored, with a warning in the log.
    pub fn join_group(&mut self, group: Option<GroupId>) {
        let index = match group {
            Some(group) => match self.table.index_of(group) {
                Some(index) => Some(index),
                None => return,
            },
            None => None,
        };
        let (connection, cx) = self.parts();
        connection.join_group(index, cx);
    }

    /// The number of bytes received so far. With a filter (TLS) these are encrypted bytes.
    pub fn bytes_in(&self) -> u64 {
        self.connection().bytes_in
    }

    /// The number of bytes that the kernel has accepted so far. With a filter (TLS) these are encrypted bytes.
    pub fn bytes_out(&self) -> u64 {
        self.connection().bytes_out
    }

    /// Another connection of this reactor, of any service. `None` if it is closing, gone or in its TLS handshake.
    pub fn other(&mut self, id: ConnId) -> Option<Socket<'_>> {
        let slot = self.table.live(id)?.slot;
        Some(Socket { table: self.table, slot })
    }

    /// All connections, and what concerns the reactor as a whole.
    pub fn all(&mut self) -> Sockets<'_> {
        Sockets::new(self.table)
    }
}

impl fmt::Debug for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("id", &self.id()).field("peer", &self.peer_addr()).finish()
    }
}
