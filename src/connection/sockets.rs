//! All connections, seen from outside any one of them.

use std::fmt;
use std::io;
use std::time::Duration;
#[cfg(not(target_family = "wasm"))]
use std::time::Instant;

use super::socket::Socket;
use crate::base::address::{Address, parse_address};
use crate::base::id::{ConnId, GroupId, ListenerId, ServiceId};
use crate::base::stats::Stats;
use crate::config::access::AccessPolicy;
use crate::config::dial::DialOptions;
use crate::connection::rate::Group;
use crate::connection::table::{Stop, Table};
use crate::parts::timers::TimerId;

/// All connections, seen from outside any one of them.
pub struct Sockets<'a> {
    table: &'a mut Table,
}

impl<'a> Sockets<'a> {
    pub(crate) fn new(table: &'a mut Table) -> Sockets<'a> {
        Sockets { table }
    }

    /// The instant at which this turn happens.
    #[cfg(not(target_family = "wasm"))]
    pub fn now(&self) -> Instant {
        self.table.cx.epoch.at(self.table.cx.elapsed)
    }

    /// The same as the time since the reactor was made: what [`now`](Sockets::now) is, on a clock that a simulation has
    /// too.
    pub fn elapsed(&self) -> Duration {
        self.table.cx.elapsed
    }

    /// The socket of a connection; none if it is gone or closing.
    pub fn get(&mut self, id: ConnId) -> Option<Socket<'_>> {
        let slot = self.table.live(id)?.slot;
        Some(Socket::new(self.table, slot))
    }

    /// The ids of all connections that are there and not closing.
    pub fn ids(&self) -> Vec<ConnId> {
        let all = self.table.slots.iter().map(|(_, connection)| connection.id);
        all.filter(|&id| self.table.live(id).is_some()).collect()
    }

    /// How many connections there are, closing ones included.
    pub fn len(&self) -> usize {
        self.table.connections()
    }

    /// How many connections a service has, closing ones included.
    pub fn count(&self, service: ServiceId) -> usize {
        self.table.connections_by_service.get(usize::from(service.0)).copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Connects out, for a service that was added to the reactor. See [`Socket::dial`].
    ///
    /// # Errors
    ///
    /// When the reactor holds as many connections as it may, and when `to` is no [`Address`].
    pub fn dial<A>(&mut self, to: A, service: ServiceId) -> io::Result<ConnId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.dial_with(to, service, DialOptions::default())
    }

    /// Connects out with options.
    ///
    /// # Errors
    ///
    /// As [`dial`](Sockets::dial).
    pub fn dial_with<A>(&mut self, to: A, service: ServiceId, options: DialOptions) -> io::Result<ConnId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.table.dial(service.0, parse_address("dial", to)?, options, None)
    }

    /// Calls off what was dialed: closes the connection if it is there, or forgets that it was to be
    /// [dialed again](DialOptions::reconnect). Says whether there was anything to call off.
    pub fn cancel_dial(&mut self, id: ConnId) -> bool {
        match self.get(id) {
            Some(mut socket) => {
                socket.close();
                true
            }
            None => self.table.timers.cancel_redial(id),
        }
    }

    /// Calls [`Service::timer`](crate::Service::timer) once, after so long; or again and again, if `every` is given.
    /// A timer keeps [`run`](crate::Reactor::run) turning, until the reactor is shut down. It is late by a tick of 10
    /// ms at most, and by what a turn takes; never early. A repeating one does not drift, and makes up for nothing it
    /// missed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidemill::{Input, Service, ServiceId, Socket, Sockets, TimerId};
    ///
    /// /// Tells everybody every hour that it is there.
    /// struct Bell;
    ///
    /// impl Service for Bell {
    ///     type Session = ();
    ///     fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
    ///         let hour = Duration::from_secs(3_600);
    ///         sockets.set_timer(own, hour, Some(hour)).expect("a timer");
    ///     }
    ///     fn timer(&mut self, _: TimerId, sockets: &mut Sockets<'_>) {
    ///         for id in sockets.ids() {
    ///             let Some(mut socket) = sockets.get(id) else { continue };
    ///             socket.send(b"ding\n");
    ///         }
    ///     }
    ///     fn open(&mut self, _: &mut Socket<'_>) {}
    ///     fn data(&mut self, _: &mut (), _: &mut Socket<'_>, input: &mut Input<'_>) { input.take_all(); }
    /// }
    /// # let mut reactor = tidemill::Reactor::new(tidemill::Limits::default()).unwrap();
    /// # reactor.add(Bell);
    /// ```
    ///
    /// # Errors
    ///
    /// When there are [`Limits::timers`](crate::Limits::timers) of them already.
    pub fn set_timer(
        &mut self,
        service: ServiceId,
        after: Duration,
        every: Option<Duration>,
    ) -> io::Result<TimerId> {
        self.table.set_timer(service.0, after, every)
    }

    /// Takes a timer back; says whether it was still to go off.
    pub fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.table.timers.cancel(timer)
    }

    /// Makes a group of connections that share a rate, in bytes a second that are read from them together. They
    /// [join](Socket::join_group) it one by one, or all of a service by
    /// [`SocketLimits::group`](crate::SocketLimits::group). It is there for as long as the reactor.
    ///
    /// # Errors
    ///
    /// When there are 65,535 groups.
    pub fn add_group(&mut self, rate: usize) -> io::Result<GroupId> {
        let index = u16::try_from(self.table.cx.groups.len()).ok().filter(|&index| index < u16::MAX);
        let index = index.ok_or_else(|| io::Error::other("a reactor has 65,535 groups at most"))?;
        self.table.cx.groups.push(Group::new(rate, self.table.cx.now));
        Ok(GroupId(index))
    }

    /// Changes the rate of a group.
    pub fn set_group_rate(&mut self, group: GroupId, rate: usize) {
        self.table.set_group_rate(group.0, rate);
    }

    /// Closes one listener with the next turn; its connections live on.
    pub fn close_listener(&mut self, listener: ListenerId) {
        self.table.listeners_to_close.push(listener);
    }

    /// Sets who may come in to a service: see [`Reactor::set_access_policy`](crate::Reactor::set_access_policy).
    pub fn set_access_policy(&mut self, service: ServiceId, guard: AccessPolicy) {
        self.table.set_access_policy(service.0, guard);
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
        self.table.cx.stats.clone()
    }

    /// Bytes held in all inboxes and outboxes, as counted against [`Limits::memory`](crate::Limits::memory).
    pub fn memory(&self) -> usize {
        self.table.cx.memory
    }
}

impl fmt::Debug for Sockets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("len", &self.len()).finish()
    }
}
