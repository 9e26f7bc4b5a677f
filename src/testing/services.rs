//! A bench as a reactor: services, listeners, dials, posts, shutdown.

use std::time::Duration;

use super::Bench;
use crate::base::address::{Address, AddressError};
use crate::base::id::{ConnId, Key, ListenerId, ServiceId};
use crate::base::observer::Observer;
use crate::base::post_error::PostError;
use crate::base::reason::ClosedInfo;
use crate::base::setup_error::{DialError, ListenError};
use crate::base::stats::Stats;
use crate::config::dial::DialOptions;
use crate::config::limits::SocketLimits;
use crate::config::listen::ListenOptions;
use crate::connection::sockets::Sockets;
use crate::handle::Handle;
use crate::service::{Service, ServiceSockets};

/// Where [`serve`](Bench::serve) listens: one port for each service.
const SERVICES: ([u8; 4], u16) = ([10, 0, 0, 2], 9_000);

/// What a [`Reactor`](crate::Reactor) does too.
impl Bench {
    /// Adds a service with the bench's default limits, and listens for it at an address of its own, to which
    /// [`connect`](Bench::connect) connects: `10.0.0.2:9001` for the first service, `10.0.0.2:9002` for the second.
    pub fn serve<S: Service>(&mut self, service: S) -> Key<S> {
        let key = self.add(service);
        self.listen_for(key.id())
    }

    /// As [`serve`](Bench::serve), with limits for the service's connections.
    pub fn serve_with<S: Service>(&mut self, service: S, limits: SocketLimits) -> Key<S> {
        let key = self.add_with(service, limits);
        self.listen_for(key.id())
    }

    fn listen_for<S: Service>(&mut self, service: ServiceId) -> Key<S> {
        let (ip, port) = SERVICES;
        self.listen((ip, port + service.number), service).expect("no other service listens there");
        Key::new(service)
    }

    /// Adds a service without a listener: see [`Reactor::add`](crate::Reactor::add).
    pub fn add<S: Service>(&mut self, service: S) -> Key<S> {
        self.add_service(service, None)
    }

    /// Adds a service with limits: see [`Reactor::add_with`](crate::Reactor::add_with).
    pub fn add_with<S: Service>(&mut self, service: S, limits: SocketLimits) -> Key<S> {
        self.add_service(service, Some(limits))
    }

    fn add_service<S: Service>(&mut self, service: S, limits: Option<SocketLimits>) -> Key<S> {
        let id = self.event_loop.add(service, limits);
        self.run();
        Key::new(id)
    }

    /// Listens on an address of the simulation: see [`Reactor::listen`](crate::Reactor::listen). Every address is free,
    /// and nothing outside the bench can connect to it. Dials of other services of the bench reach it.
    ///
    /// # Errors
    ///
    /// As [`Sockets::listen`], and when another listener of the bench has the address.
    pub fn listen<A>(&mut self, at: A, service: impl Into<ServiceId>) -> Result<ListenerId, ListenError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.listen_with(at, service, &ListenOptions::default())
    }

    /// Listens with options.
    ///
    /// # Errors
    ///
    /// As [`listen`](Bench::listen).
    pub fn listen_with<A>(
        &mut self,
        at: A,
        service: impl Into<ServiceId>,
        options: &ListenOptions,
    ) -> Result<ListenerId, ListenError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        let listener = self.sockets().listen_with(at, service, options)?;
        self.listening.extend(self.local_addr(listener));
        self.run();
        Ok(listener)
    }

    /// The address of a listener: see [`Reactor::local_addr`](crate::Reactor::local_addr).
    pub fn local_addr(&self, listener: ListenerId) -> Option<Address> {
        self.event_loop.table.listeners.get(listener).map(|listener| listener.address.clone())
    }

    /// Closes a listener: see [`Reactor::close_listener`](crate::Reactor::close_listener).
    pub fn close_listener(&mut self, listener: ListenerId) -> bool {
        self.sockets().close_listener(listener)
    }

    /// Dials for a service: see [`Reactor::dial`](crate::Reactor::dial).
    ///
    /// # Errors
    ///
    /// As [`Reactor::dial`](crate::Reactor::dial).
    pub fn dial<A>(&mut self, to: A, service: impl Into<ServiceId>) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.dial_with(to, service, DialOptions::default())
    }

    /// Dials with options.
    ///
    /// # Errors
    ///
    /// As [`dial`](Bench::dial).
    pub fn dial_with<A>(
        &mut self,
        to: A,
        service: impl Into<ServiceId>,
        options: DialOptions,
    ) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        let id = self.sockets().dial_with(to, service, options)?;
        self.run();
        Ok(id)
    }

    /// Runs `work` with a service and its sessions: see [`Reactor::with`](crate::Reactor::with).
    ///
    /// # Panics
    ///
    /// When the key is of another bench.
    pub fn with<S: Service, R>(
        &mut self,
        key: Key<S>,
        work: impl FnOnce(&mut S, &mut ServiceSockets<'_, S>) -> R,
    ) -> R {
        let result = self.event_loop.with(key, work);
        self.run();
        result
    }

    /// All connections, between turns. What is done with them takes effect in the next turn: call [`run`](Bench::run).
    pub fn sockets(&mut self) -> Sockets<'_> {
        self.event_loop.read_clock();
        Sockets::new(&mut self.event_loop.table)
    }

    /// A handle for the services under test: see [`Reactor::handle`](crate::Reactor::handle).
    pub fn handle(&self) -> Handle {
        self.event_loop.handle()
    }

    /// Posts work as another thread would: see [`Handle::post`].
    ///
    /// # Errors
    ///
    /// As [`Handle::post`].
    pub fn post<F>(&mut self, work: F) -> Result<(), PostError<F>>
    where
        F: FnOnce(&mut Sockets<'_>) + Send + 'static,
    {
        let posted = self.handle().post(work);
        self.run();
        posted
    }

    /// Posts work for a service as another thread would: see [`Handle::post_to`].
    ///
    /// # Errors
    ///
    /// As [`Handle::post_to`].
    pub fn post_to<S, F>(&mut self, key: Key<S>, work: F) -> Result<(), PostError<F>>
    where
        S: Service,
        F: FnOnce(&mut S, &mut ServiceSockets<'_, S>) + Send + 'static,
    {
        let posted = self.handle().post_to(key, work);
        self.run();
        posted
    }

    /// Shuts down: see [`Reactor::shutdown`](crate::Reactor::shutdown).
    pub fn shutdown(&mut self, grace: Duration) {
        self.sockets().shutdown(grace);
        self.run();
    }

    /// Whether [`Reactor::run`](crate::Reactor::run) would return: no listener, connection, timer or post is left.
    pub fn is_finished(&self) -> bool {
        self.event_loop.is_finished()
    }

    /// A copy of the loop's counters.
    pub fn stats(&self) -> Stats {
        self.event_loop.table.cx.stats.clone()
    }

    /// All connections of services that have ended, in the order in which they did, those of dials included.
    pub fn all_closed(&self) -> Vec<ClosedInfo> {
        self.record.borrow().closed.clone()
    }

    /// Adds an observer of every step of the loop: see [`observer`](crate::observer).
    pub fn observe(&mut self, observer: impl Observer + 'static) {
        self.event_loop.observe(observer);
    }
}
