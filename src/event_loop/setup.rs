//! What is set up between turns: services and listeners.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU32;

use super::Loop;
use super::accept::Doorman;
use super::pipe::Conduits;
use super::poll::{Eager, Spin};
use crate::base::address::Address;
use crate::base::id::{LISTENERS_MAX, ListenerId, ServiceId, Token};
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::config::rules::Rules;
use crate::connection::table::{DOORMAN, Table};
use crate::handle::Handle;
use crate::parts::listener::Door;
use crate::parts::lookups::Lookups;
use crate::service::{Hosted, Service};
use crate::sys::System;

impl<S: System> Loop<S> {
    pub(crate) fn new(system: S, limits: Limits) -> io::Result<Loop<S>> {
        Loop::born_at(system, limits, NonZeroU32::MIN)
    }

    /// With the counter of births set, so that a test can reach its wrap.
    pub(crate) fn born_at(mut system: S, limits: Limits, first: NonZeroU32) -> io::Result<Loop<S>> {
        let handle = Handle::new(limits.posts, system.waker()?);
        system.hold_reserve();
        let (spin, splices, slots) = (limits.spin, limits.splices, limits.slots());
        let mut table = Table::new(limits, first, system.epoch());
        table.random = system.seed();
        let mut fresh = Loop {
            system,
            table,
            hosts: Vec::new(),
            streams: Vec::with_capacity(slots),
            doors: Vec::new(),
            doors_made: 0,
            races: HashMap::new(),
            overlapping: 0,
            lookups: Lookups::default(),
            conduits: Conduits::new(splices),
            handle,
            posts: Vec::new(),
            events: Vec::new(),
            relieved: Vec::new(),
            carried: 0,
            drained_by: None,
            eager: Eager::new(spin),
            spin: Spin::default(),
            sealed: Vec::new(),
            run: Vec::new(),
            spare_ready: Vec::new(),
            spare_dirty: Vec::new(),
            spare_doomed: Vec::new(),
        };
        let doorman = fresh.add(Doorman, Some(Doorman::limits()));
        debug_assert_eq!(doorman.0, DOORMAN);
        Ok(fresh)
    }

    pub(crate) fn add<V: Service>(&mut self, service: V, limits: Option<SocketLimits>) -> ServiceId {
        assert!(self.hosts.len() < usize::from(u16::MAX), "a reactor has at most 65,534 services");
        self.hosts.push(Box::new(Hosted::new(service)));
        self.table.socket_limits.push(limits.unwrap_or_else(|| self.table.limits.socket.clone()));
        self.table.watches.push(None);
        self.table.counts.push(0);
        self.read_clock();
        let own = ServiceId((self.hosts.len() - 1) as u16);
        self.hosts[usize::from(own.0)].start(&mut self.table, own);
        own
    }

    pub(crate) fn listen(
        &mut self,
        at: &Address,
        service: ServiceId,
        options: &ListenOptions,
    ) -> io::Result<ListenerId> {
        self.hang_door(service, options, |system, token| system.listen(at, options, token))
    }

    /// Adds a listener that `make` makes.
    pub(crate) fn hang_door(
        &mut self,
        service: ServiceId,
        options: &ListenOptions,
        make: impl FnOnce(&mut S, Token) -> io::Result<S::Listener>,
    ) -> io::Result<ListenerId> {
        let index = self.doors.iter().position(Option::is_none).unwrap_or(self.doors.len());
        if index >= LISTENERS_MAX {
            return Err(io::Error::other(format!("a reactor has {LISTENERS_MAX} listeners at most")));
        }
        if usize::from(service.0) >= self.hosts.len() {
            return Err(io::Error::other("the service is of another reactor"));
        }
        let listener = make(&mut self.system, Token::listener(index))?;
        let address = self.system.listening_at(&listener)?;
        self.doors_made += 1;
        let id = ListenerId { index, birth: self.doors_made };
        let door = Door::new(listener, id, address, service.0, options);
        match self.doors.get_mut(index) {
            Some(gap) => *gap = Some(door),
            None => self.doors.push(Some(door)),
        }
        Ok(id)
    }

    pub(crate) fn local_addr(&self, id: ListenerId) -> Option<Address> {
        let door = self.doors.get(id.index)?.as_ref()?;
        (door.id == id).then(|| door.address.clone())
    }

    pub(crate) fn rules(&self, service: ServiceId) -> Option<&Rules> {
        self.table.watches.get(usize::from(service.0))?.as_ref().map(|watch| &watch.guard.rules)
    }

    pub(crate) fn close_listener(&mut self, id: ListenerId) -> bool {
        let door = self.doors.get_mut(id.index);
        door.and_then(|door| door.take_if(|door| door.id == id)).is_some()
    }
}
