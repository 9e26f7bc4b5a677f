//! What a callback may do with a connection, and with all the others.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::closed::Closed;
use crate::connection::Stage;
use crate::id::{ConnId, ServiceId};
use crate::shared::Shared;
use crate::stats::Stats;
use crate::table::{Stop, Table};

/// One connection, for the length of one callback.
///
/// Nothing here fails and nothing here calls back: methods queue, and the turn carries out. What goes wrong
/// arrives once, in [`Service::closed`](crate::Service::closed).
///
/// # After `close`
///
/// A socket that was closed, aborted, or finished takes no more bytes: what is sent to it is dropped and counted in
/// [`Stats::sent_too_late`]. [`other`](Socket::other) no longer finds it.
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

/// All connections, seen from outside any one of them.
pub struct Sockets<'a> {
    table: &'a mut Table,
}

/// Where a connection came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Origin {
    /// The peer called.
    Accepted,
    /// We called.
    Dialed {
        /// The connection whose callback dialed; none when it was dialed from outside.
        by: Option<ConnId>,
    },
}

impl<'a> Socket<'a> {
    pub(crate) fn new(table: &'a mut Table, slot: u32) -> Socket<'a> {
        Socket { table, slot }
    }

    /// Its name, to keep and to look it up with.
    pub fn id(&self) -> ConnId {
        self.table.id(self.slot)
    }

    /// The address of the remote end; for a dialed one, the address that was dialed.
    pub fn peer_addr(&self) -> SocketAddr {
        self.table.at(self.slot).peer()
    }

    /// Whether the peer called or we did.
    pub fn origin(&self) -> Origin {
        let connection = self.table.at(self.slot);
        if connection.flags.dialed { Origin::Dialed { by: connection.by } } else { Origin::Accepted }
    }

    /// The instant at which this turn happens. The clock is read once per turn.
    pub fn now(&self) -> Instant {
        self.table.instant
    }

    /// Queues bytes. They leave at the end of the turn, with everything else sent to this socket.
    ///
    /// A service that sends more than the peer reads should look at [`is_full`](Socket::is_full): past
    /// [`SocketLimits::queue`](crate::SocketLimits::queue) a peer is closed as a slow reader.
    pub fn send(&mut self, bytes: &[u8]) {
        self.table.send(self.slot, bytes);
    }

    /// Queues bytes without copying them, however many sockets they are sent to.
    pub fn send_shared(&mut self, shared: &Shared) {
        self.table.send_shared(self.slot, shared);
    }

    /// Bytes sent that the kernel has not taken yet.
    pub fn queued(&self) -> usize {
        self.table.queued(self.slot)
    }

    /// Whether the queue has reached [`SocketLimits::high_water`](crate::SocketLimits::high_water) and not come down to
    /// the low mark since. While it is, [`SocketLimits::read_when_full`](crate::SocketLimits::read_when_full) says
    /// whether the peer is read. Whenever it has been, [`Service::drained`](crate::Service::drained) comes, at the end
    /// of this turn if the kernel takes everything at once.
    pub fn is_full(&self) -> bool {
        self.table.at(self.slot).flags.full
    }

    /// Whether it was dialed and is not connected yet. What is sent meanwhile waits.
    pub fn is_connecting(&self) -> bool {
        self.table.at(self.slot).stage == Stage::Connecting
    }

    /// Delivers nothing from the next call on, until [`resume`](Socket::resume). Costs no system call. The peer
    /// feels it when the kernel's buffer is full.
    ///
    /// A paused socket is not read, so it does not notice the peer's end either; its idle limit still applies.
    pub fn pause(&mut self) {
        self.table.pause(self.slot);
    }

    /// Delivers again, beginning with what was left untaken.
    pub fn resume(&mut self) {
        self.table.resume(self.slot);
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.table.at(self.slot).flags.paused
    }

    /// Whether the peer has sent its end.
    pub fn has_ended(&self) -> bool {
        self.table.at(self.slot).flags.ended
    }

    /// Sends our end after everything queued. The peer can go on sending (a half-close).
    pub fn finish(&mut self) {
        self.table.finish(self.slot);
    }

    /// Sends everything queued, then our end, and is done. Nothing is delivered any more; what the peer
    /// still sends is thrown away for a moment, so that its last reply reaches it.
    pub fn close(&mut self) {
        self.close_as(Closed::Local);
    }

    /// As [`close`](Socket::close), with a reason of your choice for the log and the counters.
    pub fn close_as(&mut self, why: Closed) {
        self.table.close(self.slot, why);
    }

    /// Ends at once, with a reset: what is queued is dropped, and the peer sees an error.
    pub fn abort(&mut self) {
        self.table.doom(self.slot, Closed::Aborted);
    }

    /// What arrived and was not taken. In [`Service::end`](crate::Service::end) this is the message that the peer
    /// began and did not complete.
    pub fn untaken(&self) -> &[u8] {
        self.table.at(self.slot).inbox.as_ref().map_or(&[], |inbox| inbox.kept())
    }

    /// Bytes received so far.
    pub fn bytes_in(&self) -> u64 {
        self.table.at(self.slot).bytes_in
    }

    /// Bytes that the kernel has taken so far.
    pub fn bytes_out(&self) -> u64 {
        self.table.at(self.slot).bytes_out
    }

    /// Another connection of this reactor, of whichever service; none if it is gone or closing.
    pub fn other(&mut self, id: ConnId) -> Option<Socket<'_>> {
        let slot = self.table.live(id)?;
        Some(Socket { table: self.table, slot })
    }

    /// Connects out. The new connection belongs to the same service and lives the same life as an accepted one:
    /// [`open`](crate::Service::open) comes at the end of this turn, bytes can be sent to it from now on, and if
    /// connecting fails, [`closed`](crate::Service::closed) says why.
    ///
    /// # Errors
    ///
    /// When the reactor holds as many connections as it may.
    pub fn dial(&mut self, to: SocketAddr) -> io::Result<ConnId> {
        let (host, by) = (self.table.at(self.slot).host, self.id());
        self.table.dial(host, to, Some(by))
    }
}

impl<'a> Sockets<'a> {
    pub(crate) fn new(table: &'a mut Table) -> Sockets<'a> {
        Sockets { table }
    }

    /// The socket of a connection; none if it is gone or closing.
    pub fn get(&mut self, id: ConnId) -> Option<Socket<'_>> {
        let slot = self.table.live(id)?;
        Some(Socket { table: self.table, slot })
    }

    /// The ids of all connections that are there and not closing.
    pub fn ids(&self) -> Vec<ConnId> {
        let all = self.table.slots.iter().map(|(slot, _)| self.table.id(slot as u32));
        all.filter(|&id| self.table.live(id).is_some()).collect()
    }

    /// How many connections there are, closing ones included.
    pub fn len(&self) -> usize {
        self.table.connections()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connects out, for a service that was added to the reactor. See [`Socket::dial`].
    ///
    /// # Errors
    ///
    /// When the reactor holds as many connections as it may.
    pub fn dial(&mut self, to: SocketAddr, service: ServiceId) -> io::Result<ConnId> {
        self.table.dial(service.0, to, None)
    }

    /// Closes the listeners now, and what connections remain after `grace`. See
    /// [`Reactor::shutdown`](crate::Reactor::shutdown).
    pub fn shutdown(&mut self, grace: Duration) {
        self.table.stop.get_or_insert(Stop::Shutdown(grace));
    }

    /// Closes everything now.
    pub fn stop(&mut self) {
        self.table.stop = Some(Stop::Now);
    }

    /// What the loop has counted.
    pub fn stats(&self) -> Stats {
        self.table.stats.clone()
    }

    /// Bytes held in all inboxes and outboxes, as counted against [`Limits::memory`](crate::Limits::memory).
    pub fn memory(&self) -> usize {
        self.table.memory
    }
}

impl Table {
    pub(crate) fn dial(&mut self, host: u16, to: SocketAddr, by: Option<ConnId>) -> io::Result<ConnId> {
        if usize::from(host) >= self.socket_limits.len() {
            return Err(io::Error::other(format!("cannot dial {to}: the service is of another reactor")));
        }
        if !self.has_room() {
            let most = self.limits.connections;
            return Err(io::Error::other(format!(
                "cannot dial {to}: all {most} connections are in use (raise Limits::connections)"
            )));
        }
        let id = self.insert(host, Stage::Connecting, to);
        self.at_mut(id.slot).by = by;
        self.newborn.push(id);
        self.stats.dialed += 1;
        Ok(id)
    }
}

impl fmt::Debug for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("id", &self.id()).field("peer", &self.peer_addr()).finish()
    }
}

impl fmt::Debug for Sockets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("len", &self.len()).finish()
    }
}
