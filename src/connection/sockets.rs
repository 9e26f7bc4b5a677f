//! `Sockets`: all connections of a reactor, timers, and what concerns the reactor as a whole.
//!
//! Read before: `connection/socket.rs`.

use std::any::TypeId;
use std::fmt;
use std::io;
use std::time::Duration;
#[cfg(not(target_family = "wasm"))]
use std::time::Instant;

use super::socket::Socket;
use crate::base::id::{ConnId, GroupId, Key, ServiceId};
use crate::base::stats::Stats;
use crate::config::access::AccessPolicy;
use crate::config::limits::SocketLimits;
use crate::connection::rate::Group;
use crate::connection::rate::shared::SharedRate;
use crate::connection::table::{Stop, Table};
use crate::parts::timers::TimerId;

/// All connections of a reactor, for callbacks and posts that do not belong to one connection.
pub struct Sockets<'a> {
    table: &'a mut Table,
}

impl<'a> Sockets<'a> {
    pub(crate) fn new(table: &'a mut Table) -> Sockets<'a> {
        Sockets { table }
    }

    /// The time of this turn. The clock is read once per turn, so all callbacks of a turn get the same.
    #[cfg(not(target_family = "wasm"))]
    pub fn now(&self) -> Instant {
        self.table.cx.epoch.at(self.table.cx.elapsed)
    }

    /// The time of this turn, counted from when the reactor was created. Unlike [`now`](Sockets::now) it can also be
    /// simulated.
    pub fn elapsed(&self) -> Duration {
        self.table.cx.elapsed
    }

    /// The socket of a connection. `None` if it is closing or gone, or in its TLS handshake.
    pub fn get(&mut self, id: ConnId) -> Option<Socket<'_>> {
        let slot = self.table.live(id)?.slot;
        Some(Socket::new(self.table, slot))
    }

    /// The ids of all connections that [`get`](Sockets::get) finds. Goes through all slots.
    pub fn ids(&self) -> Vec<ConnId> {
        let all = self.table.slots.iter().map(|(_, connection)| connection.id);
        all.filter(|&id| self.table.live(id).is_some()).collect()
    }

    /// The number of connections, closing ones included, refused ones not.
    pub fn len(&self) -> usize {
        self.table.connections()
    }

    /// The number of connections of one service, closing ones included.
    pub fn count(&self, service: impl Into<ServiceId>) -> usize {
        let number = self.table.number_of(service.into());
        number.map_or(0, |number| self.table.connections_by_service[usize::from(number)])
    }

    /// The key of a service, for a service that knows its id from [`start`](crate::Service::start). None if the service
    /// is not of the type `S`, or of another reactor.
    pub fn key<S: 'static>(&self, service: ServiceId) -> Option<Key<S>> {
        let index = usize::from(self.table.number_of(service)? - 1);
        (self.table.service_types[index] == TypeId::of::<S>()).then(|| Key::new(service))
    }

    pub(crate) fn table(&mut self) -> &mut Table {
        self.table
    }

    pub(super) fn table_ref(&self) -> &Table {
        self.table
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets a timer: [`Service::timer`](crate::Service::timer) is called after this time and, with `every`, repeatedly
    /// after that. A timer is never early. It is late by at most one tick of 10 ms plus the length of a turn. A
    /// repeating timer does not drift, and calls that were missed are not made up for. While a timer is set,
    /// [`run`](crate::Reactor::run) does not return, until the reactor is shut down.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidemill::{Input, Service, ServiceId, Socket, Sockets, TimerId};
    ///
    /// /// Sends a line to every connection each hour.
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
    /// If there are [`Limits::timers`](crate::Limits::timers) timers already, or the service belongs to another
    /// reactor.
    pub fn set_timer(
        &mut self,
        service: impl Into<ServiceId>,
        after: Duration,
        every: Option<Duration>,
    ) -> io::Result<TimerId> {
        self.table.set_timer(service.into(), after, every)
    }

    /// Cancels a timer; returns whether it was still set.
    pub fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.table.timers.cancel(timer)
    }

    /// Creates a group of connections that share a rate: `rate` bytes per second are read from all of them together. A
    /// connection joins it with [`Socket::join_group`], all connections of a service with
    /// [`SocketLimits::group`](crate::SocketLimits::group). A group exists as long as its reactor.
    ///
    /// # Errors
    ///
    /// If there are 65,535 groups already.
    pub fn add_group(&mut self, rate: usize) -> io::Result<GroupId> {
        self.add(Group::new(rate, self.table.cx.now))
    }

    /// Creates a group whose rate is that of groups on other reactors, too.
    ///
    /// # Errors
    ///
    /// As [`add_group`](Sockets::add_group).
    pub fn add_shared_group(&mut self, rate: &SharedRate) -> io::Result<GroupId> {
        self.add(Group::shared(rate, self.table.cx.epoch))
    }

    fn add(&mut self, group: Group) -> io::Result<GroupId> {
        let index = u16::try_from(self.table.cx.groups.len()).ok().filter(|&index| index < u16::MAX);
        let index = index.ok_or_else(|| io::Error::other("a reactor has 65,535 groups at most"))?;
        self.table.cx.groups.push(group);
        Ok(GroupId { index, reactor: self.table.reactor })
    }

    /// Changes the rate of a group, in bytes per second. Members that wait are read again at the new rate. If the rate
    /// is shared with other reactors, set it on each: what they had borrowed and what waits there is as it was until
    /// then. A group of another reactor is ignored, with a warning in the log.
    pub fn set_group_rate(&mut self, group: GroupId, rate: usize) {
        if let Some(index) = self.table.index_of(group) {
            self.table.set_group_rate(index, rate);
        }
    }

    /// Sets which peers may connect to a service: see
    /// [`Reactor::set_access_policy`](crate::Reactor::set_access_policy).
    pub fn set_access_policy(&mut self, service: impl Into<ServiceId>, policy: AccessPolicy) {
        match self.table.number_of(service.into()) {
            Some(number) => self.table.set_access_policy(number, policy),
            None => log::warn!("ignored an access policy for a service of another reactor"),
        }
    }

    /// Sets [`AccessPolicy::connections`] of a service, and nothing else of its policy. Connections beyond it stay, and
    /// no further one is accepted.
    pub fn set_max_connections(&mut self, service: impl Into<ServiceId>, max: Option<usize>) {
        match self.table.number_of(service.into()) {
            Some(number) => self.table.set_max_connections(number, max),
            None => log::warn!("ignored a limit of connections for a service of another reactor"),
        }
    }

    /// Replaces the limits of a service, for the connections that it has, too: deadlines are counted from what has
    /// happened so far, so a shorter one may have passed already. `rate`, `group` and `read_when_full` are for
    /// connections from now on. Goes through all slots. A service or a group of another reactor is ignored, with a
    /// warning in the log.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidemill::{Limits, Reactor, SocketLimits, services::Echo};
    ///
    /// let mut reactor = Reactor::new(Limits::default())?;
    /// let limits = SocketLimits { idle: Some(Duration::from_secs(300)), ..Echo::raw().limits() };
    /// let echo = reactor.add_with(Echo::raw(), limits.clone());
    /// // Later, perhaps by `Handle::post`:
    /// reactor.sockets().set_limits(echo, SocketLimits { idle: Some(Duration::from_secs(5)), ..limits });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn set_limits(&mut self, service: impl Into<ServiceId>, limits: SocketLimits) {
        let group = limits.group.filter(|&group| self.table.index_of(group).is_some());
        match self.table.number_of(service.into()) {
            Some(number) => self.table.set_limits(number, SocketLimits { group, ..limits }),
            None => log::warn!("ignored limits for a service of another reactor"),
        }
    }

    /// Closes the listeners now, and after `grace` the connections that are left: see
    /// [`Reactor::shutdown`](crate::Reactor::shutdown).
    pub fn shutdown(&mut self, grace: Duration) {
        self.table.stop.get_or_insert(Stop::Shutdown(grace));
    }

    /// Whether [`shutdown`](Sockets::shutdown) or [`stop`](Sockets::stop) has been called. No connection is accepted
    /// any more then; one that is dialed lasts until the grace has passed.
    pub fn is_shutting_down(&self) -> bool {
        self.table.is_shutting_down()
    }

    /// Closes the listeners and all connections now.
    pub fn stop(&mut self) {
        self.table.stop = Some(Stop::Now);
    }

    /// A copy of the counters.
    pub fn stats(&self) -> Stats {
        self.table.cx.stats.clone()
    }

    /// The bytes in all inboxes and outboxes, as counted against [`Limits::memory`](crate::Limits::memory).
    pub fn memory(&self) -> usize {
        self.table.cx.memory
    }
}

impl fmt::Debug for Sockets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockets").field("len", &self.len()).finish()
    }
}
