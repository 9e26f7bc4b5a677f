//! What a callback may do with a connection, and with all the others.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
#[cfg(not(target_family = "wasm"))]
use std::time::Instant;

use crate::base::address::{Address, parse_address};
use crate::base::filter::{FilterConfig, FilterInfo};
use crate::base::id::{ConnId, GroupId};
use crate::base::reason::{CloseReason, Refusal};
use crate::base::shared::Shared;
use crate::config::dial::{DialOptions, KeepAlive, SocketOption};
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::sockets::Sockets;
use crate::connection::state::{Flag, Half, Origin, State};
use crate::connection::table::Table;

/// One connection, for the length of one callback.
///
/// Nothing here fails and nothing here calls back: methods queue, and the turn carries out. What goes wrong
/// arrives once, in [`Service::closed`](crate::Service::closed).
///
/// # After `close`
///
/// A socket that was closed, aborted, or finished takes no more bytes: what is sent to it is dropped and counted in
/// [`Stats::sent_too_late`](crate::Stats::sent_too_late). [`other`](Socket::other) no longer finds it.
///
/// # Others
///
/// [`other`](Socket::other) gives the socket of any connection of the reactor, so that broadcasting and closing a
/// neighbour need no `Rc` and no lock:
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

    /// The connection, and what it may touch: one look-up in each method.
    fn parts(&mut self) -> (&mut Connection, &mut Context) {
        self.table.at(self.slot)
    }

    fn connection(&self) -> &Connection {
        &self.table.slots[self.slot as usize]
    }

    /// Its name, to keep and to look it up with.
    pub fn id(&self) -> ConnId {
        self.connection().id
    }

    /// The address of the remote end; of a dialed one, what was dialed until it is connected. A caller on a
    /// Unix-domain socket is [`Address::Unnamed`].
    pub fn peer_addr(&self) -> Address {
        self.connection().peer_address()
    }

    /// The address of our end. None until a dialed one is connected, and for Unix-domain sockets.
    pub fn local_addr(&self) -> Option<Address> {
        self.table.local(self.connection())
    }

    /// Puts another address in the place of the peer's, because somebody who is trusted has said for whom the
    /// connection stands (a PROXY header, for example). From now on it counts for that address at the service's
    /// [`AccessPolicy`](crate::AccessPolicy).
    ///
    /// # Errors
    ///
    /// When that guard would not have let it in. Nothing has changed then; close it.
    pub fn set_peer_addr(&mut self, peer: SocketAddr) -> Result<(), Refusal> {
        self.table.set_peer(self.id(), peer)
    }

    /// How far it has come, and which ways it is open.
    pub fn state(&self) -> State {
        self.connection().state()
    }

    /// Whether the peer called or we did.
    pub fn origin(&self) -> Origin {
        let connection = self.connection();
        let by = || connection.optional.as_ref().and_then(|optional| optional.dialed_by);
        if connection.flags.contains(Flag::Dialed) { Origin::Dialed { by: by() } } else { Origin::Accepted }
    }

    /// The instant at which this turn happens. The clock is read once per turn.
    #[cfg(not(target_family = "wasm"))]
    pub fn now(&self) -> Instant {
        self.table.cx.epoch.at(self.table.cx.elapsed)
    }

    /// The same as the time since the reactor was made: what [`now`](Socket::now) is, on a clock that a simulation has
    /// too.
    pub fn elapsed(&self) -> Duration {
        self.table.cx.elapsed
    }

    /// Queues bytes. They leave at the end of the turn, with everything else sent to this socket.
    ///
    /// A service that sends more than the peer reads should look at [`is_full`](Socket::is_full): past
    /// [`SocketLimits::queue`](crate::SocketLimits::queue) a peer is closed as a slow reader.
    pub fn send(&mut self, bytes: &[u8]) {
        let (connection, cx) = self.parts();
        connection.send(bytes, cx);
    }

    /// Queues bytes without copying them, however many sockets they are sent to.
    pub fn send_shared(&mut self, shared: &Shared) {
        let (connection, cx) = self.parts();
        connection.send_shared(shared, cx);
    }

    /// Bytes sent that the kernel has not taken yet.
    pub fn queued(&self) -> usize {
        self.connection().unsent(&self.table.cx)
    }

    /// Whether the queue has reached [`SocketLimits::high_water`](crate::SocketLimits::high_water) and not come down to
    /// the low mark since. While it is, [`SocketLimits::read_when_full`](crate::SocketLimits::read_when_full) says
    /// whether the peer is read. Whenever it has been, [`Service::drained`](crate::Service::drained) comes, at the end
    /// of this turn if the kernel takes everything at once.
    pub fn is_full(&self) -> bool {
        self.connection().flags.contains(Flag::Full)
    }

    /// Whether it was dialed and is not connected yet. What is sent meanwhile waits.
    pub fn is_connecting(&self) -> bool {
        matches!(self.state(), State::Resolving | State::Connecting)
    }

    /// Secures a connection that runs already, as STARTTLS does. What was sent before goes as it is. What is sent from
    /// now on waits for the handshake, and so does whatever has arrived behind what was taken: it is part of the
    /// handshake, or it is wrong. Then [`secured`](crate::Service::filter_started) comes, or
    /// [`closed`](crate::Service::closed).
    ///
    /// Whoever called begins, so give a connection that was dialed the security of a client, and say [by what
    /// name](FilterConfig::for_peer) the server is known: the connection has only the address that the dial came to.
    /// One that is still being dialed is secured as by [`DialOptions::filter`](crate::DialOptions::filter), with all
    /// that was sent to it. One that is secured already, or that we have finished, stays as it is.
    pub fn start_filter(&mut self, how: FilterConfig) {
        let (connection, cx) = self.parts();
        connection.start_filter(how, cx);
    }

    /// What has been agreed on with the peer. None if it is not secured, and before the handshake is done.
    pub fn filter_info(&self) -> Option<FilterInfo> {
        self.connection().filter_info()
    }

    /// Delivers nothing from the next call on, until [`resume`](Socket::resume). Costs no system call. The peer
    /// feels it when the kernel's buffer is full.
    ///
    /// A paused socket is not read, so it does not notice the peer's end either; its idle limit still applies.
    pub fn pause(&mut self) {
        let (connection, cx) = self.parts();
        connection.pause(cx);
    }

    /// Delivers again, beginning with what was left untaken.
    pub fn resume(&mut self) {
        let (connection, cx) = self.parts();
        connection.resume(cx);
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.connection().flags.contains(Flag::Paused)
    }

    /// Whether the peer has sent its end.
    pub fn has_ended(&self) -> bool {
        self.connection().incoming == Half::Ended
    }

    /// Sends our end after everything queued. The peer can go on sending (a half-close).
    pub fn finish(&mut self) {
        let (connection, cx) = self.parts();
        connection.finish(cx);
    }

    /// Sends everything queued, then our end, and is done. Nothing is delivered any more; what the peer
    /// still sends is thrown away for a moment, so that its last reply reaches it.
    pub fn close(&mut self) {
        self.close_as(CloseReason::Local);
    }

    /// As [`close`](Socket::close), with a reason of your choice for the log and the counters.
    pub fn close_as(&mut self, why: CloseReason) {
        let (connection, cx) = self.parts();
        connection.close(why, cx);
    }

    /// Ends at once, with a reset: what is queued is dropped, and the peer sees an error.
    pub fn abort(&mut self) {
        let (connection, cx) = self.parts();
        connection.close_now(CloseReason::Aborted, cx);
    }

    /// What arrived and was not taken. In [`Service::end`](crate::Service::end) this is the message that the peer
    /// began and did not complete.
    pub fn unread(&self) -> &[u8] {
        self.connection().unread()
    }

    /// Joins it with another connection, both ways: what arrives at the one is sent to the other, and neither's
    /// [`data`](crate::Service::data), [`end`](crate::Service::end) and [`drained`](crate::Service::drained) are called
    /// any more. Says whether the other is there to be joined.
    ///
    /// - An end that is full makes the other one wait: it is not read until the full one has drained. So a pipe holds
    ///   at most [`high_water`](crate::SocketLimits::high_water) and one read each way.
    /// - An end of stream is passed on behind everything that came before it. The other direction goes on.
    /// - The directions do not wait for each other, and all clocks go on: two peers of whom neither reads are closed by
    ///   the [write pace](crate::SocketLimits::min_write_rate).
    /// - When one of them is closed for any reason but [`Finished`](CloseReason::Finished), what it has sent so far is
    ///   still delivered, and then the other is closed too, as [`Leg`](CloseReason::PipePeerClosed).
    ///
    /// What either had left untaken goes to the other first. A connection has one pipe: an earlier one is undone. It
    /// may be a connection that is still being dialed. Joined with itself, it is an echo.
    ///
    /// ```
    /// use tidemill::{Address, Input, Origin, Service, Socket};
    ///
    /// /// The smallest proxy; [`services::Proxy`](crate::services::Proxy) is a grown one.
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

    /// Undoes [`pipe`](Socket::pipe): each one's service gets what arrives from now on. Says with whom it was joined.
    pub fn unpipe(&mut self) -> Option<ConnId> {
        self.table.unpipe(self.id())
    }

    /// The other end of its pipe.
    pub fn piped_to(&self) -> Option<ConnId> {
        self.connection().pipe_peer()
    }

    /// Bytes a second that are read from it from now on, in place of [`SocketLimits::rate`](crate::SocketLimits::rate).
    pub fn set_rate(&mut self, bytes: Option<usize>) {
        let (connection, cx) = self.parts();
        connection.set_rate(bytes, cx);
    }

    /// Lets it share the rate of a group, beside its own, or of none.
    pub fn join_group(&mut self, group: Option<GroupId>) {
        let (connection, cx) = self.parts();
        connection.join_group(group.map(|GroupId(index)| index), cx);
    }

    /// Bytes received so far; of a secured connection, as they came over the wire.
    pub fn bytes_in(&self) -> u64 {
        self.connection().bytes_in
    }

    /// Bytes that the kernel has taken so far; of a secured connection, as they went over the wire.
    pub fn bytes_out(&self) -> u64 {
        self.connection().bytes_out
    }

    /// Another connection of this reactor, of whichever service; none if it is gone or closing.
    pub fn other(&mut self, id: ConnId) -> Option<Socket<'_>> {
        let slot = self.table.live(id)?.slot;
        Some(Socket { table: self.table, slot })
    }

    /// Connects out. The new connection belongs to the same service and lives the same life as an accepted one:
    /// [`open`](crate::Service::open) comes at the end of this turn, bytes can be sent to it from now on, and
    /// [`connected`](crate::Service::connected) says that it is. If connecting fails,
    /// [`closed`](crate::Service::closed) says why.
    ///
    /// A name is looked up by the system's resolver on a thread of its own. Where it stands for several addresses, they
    /// are tried in the way of RFC 8305, and the first that connects wins.
    ///
    /// # Errors
    ///
    /// When the reactor holds as many connections as it may, and when `to` is no [`Address`].
    pub fn dial<A>(&mut self, to: A) -> io::Result<ConnId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.dial_with(to, DialOptions::default())
    }

    /// Connects out with options.
    ///
    /// # Errors
    ///
    /// As [`dial`](Socket::dial).
    pub fn dial_with<A>(&mut self, to: A, options: DialOptions) -> io::Result<ConnId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        let (service, by) = (self.connection().service, self.id());
        self.table.dial(service, parse_address("dial", to)?, options, Some(by))
    }

    /// All connections, seen from here.
    pub fn all(&mut self) -> Sockets<'_> {
        Sockets::new(self.table)
    }
}

impl fmt::Debug for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("id", &self.id()).field("peer", &self.peer_addr()).finish()
    }
}

/// Clocks.
impl Socket<'_> {
    /// Its idle limit from now on, in place of [`SocketLimits::idle`](crate::SocketLimits::idle); none switches it off.
    /// The span begins now.
    pub fn set_idle(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_idle(limit, cx);
    }

    /// Calls [`idle`](crate::Service::idle) when no byte has arrived for so long, whatever is sent meanwhile. Off by
    /// default.
    pub fn set_read_idle(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_read_idle(limit, cx);
    }

    /// Calls [`idle`](crate::Service::idle) when the kernel has taken no byte for so long, whatever arrives meanwhile:
    /// time to send a sign of life, for example. Off by default.
    pub fn set_write_idle(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_write_idle(limit, cx);
    }

    /// Calls [`alarm`](crate::Service::alarm) once, after so long, whatever the connection does meanwhile. It has one
    /// alarm: an earlier one is replaced, and none takes it away.
    pub fn set_alarm(&mut self, after: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_alarm(after, None, cx);
    }

    /// Calls [`alarm`](crate::Service::alarm) again and again, each time so long after the last.
    pub fn set_alarm_every(&mut self, span: Duration) {
        let (connection, cx) = self.parts();
        connection.set_alarm(Some(span), Some(span), cx);
    }
}

/// What the system does with it.
///
/// These are carried out at the end of the turn, before anything is written; on a socket that is being dialed, before
/// it connects. One that the system refuses is logged and counted in
/// [`Stats::options_refused`](crate::Stats::options_refused). Unix-domain sockets have only buffers.
impl Socket<'_> {
    /// Whether small segments are sent at once (TCP_NODELAY). They are, unless the listener or the dial said otherwise.
    pub fn set_nodelay(&mut self, on: bool) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::NoDelay(on), cx);
    }

    /// Whether and how the kernel probes a silent peer (SO_KEEPALIVE).
    pub fn set_keep_alive(&mut self, probes: Option<KeepAlive>) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::KeepAlive(probes), cx);
    }

    /// How long sent bytes may stay unacknowledged before the kernel ends the connection (TCP_USER_TIMEOUT, Linux
    /// only). None is the system's way: some fifteen minutes of retries.
    pub fn set_user_timeout(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::UserTimeout(limit), cx);
    }

    /// The type-of-service byte of its packets (IP_TOS, IPV6_TCLASS): the upper six bits are the DSCP of RFC 2474.
    pub fn set_tos(&mut self, tos: u8) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::Tos(tos), cx);
    }

    /// The size of the kernel's send buffer, in bytes (SO_SNDBUF). Linux doubles it for its own book-keeping, and stops
    /// adjusting it.
    pub fn set_send_buffer(&mut self, bytes: usize) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::SendBuffer(bytes), cx);
    }

    /// The size of the kernel's receive buffer, in bytes (SO_RCVBUF). As [`set_send_buffer`](Socket::set_send_buffer).
    pub fn set_recv_buffer(&mut self, bytes: usize) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::RecvBuffer(bytes), cx);
    }
}
