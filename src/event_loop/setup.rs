//! Setting up: the loop itself, services and listeners. All of this happens between turns.

use std::any::TypeId;
use std::io;
use std::num::NonZeroU32;

use super::EventLoop;
use super::livelock::LivelockGuard;
use super::pipe::KernelPipes;
use super::poll::BusyPoll;
use crate::base::address::Address;
use crate::base::id::{ListenerId, ServiceId};
use crate::base::random::Rng;
use crate::base::setup_error::ListenError;
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::config::rules::Rules;
use crate::connection::table::Table;
use crate::handle::Handle;
use crate::parts::lookups::Lookups;
use crate::service::{Event, Service, ServiceState};
use crate::sys::System;

impl<S: System> EventLoop<S> {
    pub(crate) fn new(mut system: S, limits: Limits) -> io::Result<EventLoop<S>> {
        // Random, so that an id of one reactor finds nothing in another. The lower half of the seed may be zero.
        let first = NonZeroU32::new(system.seed() as u32).unwrap_or(NonZeroU32::MIN);
        EventLoop::with_first_generation(system, limits, first)
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
        let mut table = Table::new(limits, first, system.epoch(), system.registrar()?);
        table.rng = Rng(system.seed());
        let handle = Handle::new(posts, waker, table.reactor);
        let budget = table.cx.arena.budget();
        Ok(EventLoop {
            system,
            table,
            services: Vec::new(),
            extra_attempts: 0,
            lookups: Lookups::default(),
            kernel_pipes: KernelPipes::new(splices),
            handle,
            posts: Vec::new(),
            events: Vec::new(),
            budget,
            redelivered: 0,
            carried_over: 0,
            busy_poll: BusyPoll::new(busy_poll),
            livelock: LivelockGuard::default(),
            filter_out: Vec::new(),
            being_written: Vec::new(),
            being_reaped: Vec::new(),
        })
    }

    pub(crate) fn add<V: Service>(&mut self, service: V, limits: Option<SocketLimits>) -> ServiceId {
        assert!(self.services.len() + 1 < usize::from(u16::MAX), "a reactor has at most 65,534 services");
        self.services.push(Box::new(ServiceState::new(service)));
        self.table.service_types.push(TypeId::of::<V>());
        let limits = limits.unwrap_or_else(|| self.table.cx.limits.socket.clone());
        let reactor = self.table.reactor;
        assert!(limits.group.is_none_or(|group| group.reactor == reactor), "the group is of another reactor");
        let own = ServiceId { number: self.table.add_service(limits), reactor };
        self.read_clock();
        self.call(own.number, Event::Start(own));
        own
    }

    pub(crate) fn listen(
        &mut self,
        at: &Address,
        service: ServiceId,
        options: &ListenOptions,
    ) -> Result<ListenerId, ListenError> {
        self.table.listen(at, service, options)
    }

    pub(crate) fn rules(&self, service: ServiceId) -> Option<&Rules> {
        let number = usize::from(self.table.number_of(service)?);
        self.table.cx.admissions[number].as_ref()?.rules()
    }
}
