//! Setting up: the loop itself, services and listeners. All of this happens between turns.

use std::any::TypeId;
use std::collections::HashMap;
use std::io;
use std::num::NonZeroU32;

use super::EventLoop;
use super::pipe::KernelPipes;
use super::poll::{BusyPoll, LivelockGuard};
use crate::base::address::Address;
use crate::base::id::{LISTENERS_MAX, ListenerId, ServiceId, Token};
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::config::rules::Rules;
use crate::connection::table::Table;
use crate::handle::Handle;
use crate::parts::listener::Listener;
use crate::parts::lookups::Lookups;
use crate::service::{Event, Service, ServiceState};
use crate::sys::System;

impl<S: System> EventLoop<S> {
    pub(crate) fn new(system: S, limits: Limits) -> io::Result<EventLoop<S>> {
        EventLoop::with_first_generation(system, limits, NonZeroU32::MIN)
    }

    /// Creates a loop whose generation counter starts at `first`, so that a test can reach its wrap.
    pub(crate) fn with_first_generation(
        mut system: S,
        limits: Limits,
        first: NonZeroU32,
    ) -> io::Result<EventLoop<S>> {
        let limits = limits.able_to_progress();
        let (posts, waker) = (limits.posts, system.waker()?);
        system.reserve_descriptor();
        let (busy_poll, splices) = (limits.busy_poll, limits.splices);
        let mut table = Table::new(limits, first, system.epoch());
        table.rng_state = system.seed();
        let handle = Handle::new(posts, waker, table.reactor);
        let budget = table.cx.arena.budget();
        Ok(EventLoop {
            system,
            table,
            services: Vec::new(),
            listeners: Vec::new(),
            listener_generation: 0,
            attempts: HashMap::new(),
            extra_attempts: 0,
            lookups: Lookups::default(),
            kernel_pipes: KernelPipes::new(splices),
            handle,
            posts: Vec::new(),
            events: Vec::new(),
            budget,
            redelivered: 0,
            carried_over: 0,
            drain_deadline: None,
            busy_poll: BusyPoll::new(busy_poll),
            livelock: LivelockGuard::default(),
            filter_out: Vec::new(),
            spare_ready: Vec::new(),
            spare_dirty: Vec::new(),
            spare_to_reap: Vec::new(),
        })
    }

    pub(crate) fn add<V: Service>(&mut self, service: V, limits: Option<SocketLimits>) -> ServiceId {
        assert!(self.services.len() + 1 < usize::from(u16::MAX), "a reactor has at most 65,534 services");
        self.services.push(Box::new(ServiceState::new(service)));
        self.table.service_types.push(TypeId::of::<V>());
        let limits = limits.unwrap_or_else(|| self.table.cx.limits.socket.clone());
        let own = ServiceId(self.table.add_service(limits));
        self.read_clock();
        self.call(own.0, Event::Start(own));
        own
    }

    pub(crate) fn listen(
        &mut self,
        at: &Address,
        service: ServiceId,
        options: &ListenOptions,
    ) -> io::Result<ListenerId> {
        self.add_listener(service, options, |system, token| system.listen(at, options, token))
    }

    /// Adds a listener that `make` creates. The index of a closed listener is used again; the generation in its id
    /// keeps an old id from closing the new one.
    pub(crate) fn add_listener(
        &mut self,
        service: ServiceId,
        options: &ListenOptions,
        make: impl FnOnce(&mut S, Token) -> io::Result<S::Listener>,
    ) -> io::Result<ListenerId> {
        let index = self.listeners.iter().position(Option::is_none).unwrap_or(self.listeners.len());
        if index >= LISTENERS_MAX {
            return Err(io::Error::other(format!("a reactor has {LISTENERS_MAX} listeners at most")));
        }
        if usize::from(service.0) > self.services.len() {
            return Err(io::Error::other("the service is of another reactor"));
        }
        let listener = make(&mut self.system, Token::listener(index))?;
        let address = self.system.listener_address(&listener)?;
        self.listener_generation += 1;
        let id = ListenerId { index, generation: self.listener_generation };
        let listener = Listener::new(listener, id, address, service.0, options);
        match self.listeners.get_mut(index) {
            Some(gap) => *gap = Some(listener),
            None => self.listeners.push(Some(listener)),
        }
        Ok(id)
    }

    pub(crate) fn local_addr(&self, id: ListenerId) -> Option<Address> {
        let listener = self.listeners.get(id.index)?.as_ref()?;
        (listener.id == id).then(|| listener.address.clone())
    }

    pub(crate) fn rules(&self, service: ServiceId) -> Option<&Rules> {
        self.table
            .cx
            .admissions
            .get(usize::from(service.0))?
            .as_ref()
            .map(|admission| &admission.policy.rules)
    }

    pub(crate) fn close_listener(&mut self, id: ListenerId) -> bool {
        let listener = self.listeners.get_mut(id.index);
        listener.and_then(|listener| listener.take_if(|listener| listener.id == id)).is_some()
    }
}
