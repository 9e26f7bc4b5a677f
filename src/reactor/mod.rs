//! `Reactor`: the event loop on the real kernel, as programs use it.

mod embedded;
mod listen_first;
mod shards;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
#[cfg(doc)]
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::address::{Address, AddressError};
use crate::base::id::{ConnId, Interest, Key, ListenerId, ServiceId, WatchId};
use crate::base::observer::Observer;
use crate::base::setup_error::{AdoptError, DialError, ListenError};
use crate::base::stats::Stats;
use crate::config::access::AccessPolicy;
use crate::config::dial::DialOptions;
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::config::rules::Rules;
use crate::connection::sockets::Sockets;
use crate::event_loop::{EventLoop, Turn};
use crate::handle::Handle;
use crate::service::{Service, ServiceSockets};
use crate::sys::mio::{Adopted, AdoptedStream, Kernel};

use self::listen_first::listen_first;
pub use self::shards::{Peers, Shards};

/// A single-threaded TCP reactor.
///
/// # Examples
///
/// ```no_run
/// use tidemill::{Input, Limits, Reactor, Service, Socket};
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
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// let echo = reactor.add(Echo);
/// reactor.listen("127.0.0.1:9001", echo)?;
/// reactor.run()?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Inside another event loop
///
/// [`turn`](Reactor::turn) is one iteration. Another event loop can watch a reactor by its descriptor ([`AsFd`],
/// [`AsRawFd`]): call `turn(Some(Duration::ZERO))` when the descriptor is readable, and at
/// [`next_deadline`](Reactor::next_deadline) at the latest. The descriptor alone is not enough, because neither a
/// deadline nor work left over from the last turn makes it readable. With work left over, `next_deadline` is in the
/// past, and so it is right after each change from outside: bytes that were sent, a dial, a close, a post.
///
/// On Linux, [`set_embedded`](Reactor::set_embedded) makes the descriptor alone enough: then it becomes readable
/// whenever a turn is due, for whatever reason.
///
/// ```no_run
/// use std::time::{Duration, Instant};
/// use rustix::event::{PollFd, PollFlags, Timespec, poll};
/// use tidemill::{Limits, Reactor};
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// loop {
///     let wait = reactor.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
///     let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
///     // Other descriptors of the program come into the same list.
///     poll(&mut [PollFd::new(&reactor, PollFlags::IN)], wait.as_ref())?;
///     reactor.turn(Some(Duration::ZERO))?;
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Threads
///
/// A reactor stays on the thread that made it: it is neither `Send` nor `Sync`, and nor are [`Socket`](crate::Socket),
/// [`Sockets`], [`ServiceSockets`] and [`Shared`](crate::Shared). A service need not be `Send`. [`Handle`], ids and
/// keys are `Send`. A second core is a second reactor, made on a second thread, as [`Shards`] does it; an id, key,
/// group, timer or listener of one is refused or not found by the other.
///
/// ```compile_fail,E0277
/// fn is_sent<T: Send>() {}
/// is_sent::<tidemill::Reactor>();
/// ```
///
/// # More than one service
///
/// A reactor runs up to 65,534 services and 255 listeners; a service can have several listeners.
pub struct Reactor {
    event_loop: EventLoop<Kernel>,
    /// Whether the descriptor is to become readable whenever a turn is due.
    is_embedded: bool,
}

impl Reactor {
    /// Makes a reactor. On Linux it opens five descriptors: epoll (twice), an eventfd for wake-ups, a timer, and a
    /// spare one with which excess connections can still be accepted and closed when the process has no descriptor
    /// left.
    ///
    /// A limit of 0 that would stop the loop counts as 1 (all budgets per turn, `lookups`, `handshakes`).
    ///
    /// # Errors
    ///
    /// When the process or the system has no descriptor left.
    pub fn new(limits: Limits) -> io::Result<Reactor> {
        let kernel = Kernel::new(limits.events_per_turn)?;
        Ok(Reactor { event_loop: EventLoop::new(kernel, limits)?, is_embedded: false })
    }

    /// Adds a service whose connections have the limits [`Limits::socket`], and calls its
    /// [`start`](Service::start). Listeners and dials refer to it by the returned key, and
    /// [`with`](Reactor::with) reaches it again.
    ///
    /// # Panics
    ///
    /// When the reactor has 65,534 services already.
    pub fn add<S: Service>(&mut self, service: S) -> Key<S> {
        self.announce_use();
        Key::new(self.event_loop.add(service, None))
    }

    /// Adds a service whose connections have the given limits instead of [`Limits::socket`].
    ///
    /// # Panics
    ///
    /// As [`add`](Reactor::add), and when [`SocketLimits::group`] is of another reactor.
    pub fn add_with<S: Service>(&mut self, service: S, limits: SocketLimits) -> Key<S> {
        self.announce_use();
        Key::new(self.event_loop.add(service, Some(limits)))
    }

    /// Runs `work` with a service, its sessions and all connections, between turns, and returns its result.
    ///
    /// ```
    /// use tidemill::{ConnId, Input, Limits, Reactor, Service, Socket};
    ///
    /// #[derive(Default)]
    /// struct Counter { members: Vec<ConnId> }
    ///
    /// impl Service for Counter {
    ///     type Session = usize;
    ///     fn open(&mut self, socket: &mut Socket<'_>) -> usize {
    ///         self.members.push(socket.id());
    ///         0
    ///     }
    ///     fn data(&mut self, bytes: &mut usize, _: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         *bytes += input.take_all().len();
    ///     }
    /// }
    ///
    /// let mut reactor = Reactor::new(Limits::default())?;
    /// let counter = reactor.add(Counter::default());
    /// let total: usize = reactor.with(counter, |service, sockets| {
    ///     let sessions = service.members.iter().filter_map(|&id| sockets.session(id).map(|(bytes, _)| *bytes));
    ///     sessions.sum()
    /// });
    /// assert_eq!(total, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// When the key is of another reactor.
    pub fn with<S: Service, R>(
        &mut self,
        key: Key<S>,
        work: impl FnOnce(&mut S, &mut ServiceSockets<'_, S>) -> R,
    ) -> R {
        self.announce_use();
        self.event_loop.with(key, work)
    }

    /// Listens on an address for a service, with [`ListenOptions::default`]. Connections are accepted from the next
    /// turn on. A host name is looked up at once, which blocks.
    ///
    /// # Errors
    ///
    /// When `at` is not an [`Address`], cannot be resolved, or cannot be listened on; when there are 255 listeners, the
    /// service is of another reactor, or a shutdown has begun. The message names the address and the reason.
    pub fn listen<A>(&mut self, at: A, service: impl Into<ServiceId>) -> Result<ListenerId, ListenError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.listen_with(at, service, &ListenOptions::default())
    }

    /// Listens with options. If a name has several addresses, the first one that can be listened on is used.
    ///
    /// # Unix-domain sockets
    ///
    /// `unix:/path` creates a socket file, and removes it when the listener is closed or the reactor is dropped. An
    /// existing file is replaced if it is a socket on which no process listens: a server that was killed leaves such a
    /// file. The permissions of the file and of its directory decide which users may connect; see umask(2).
    ///
    /// # Errors
    ///
    /// As [`listen`](Reactor::listen).
    pub fn listen_with<A>(
        &mut self,
        at: A,
        service: impl Into<ServiceId>,
        options: &ListenOptions,
    ) -> Result<ListenerId, ListenError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        let service = service.into();
        let at = at.try_into().map_err(Into::into)?;
        listen_first(at, |address| self.event_loop.listen(address, service, options))
    }

    /// Accepts connections from a listener that exists already: one of the standard library, or one inherited from a
    /// supervisor. It keeps its backlog, and is made non-blocking. Of the options, `backlog`, `ipv6_only` and
    /// `reuse_port` have no effect. The file of a Unix-domain socket is not removed.
    ///
    /// ```
    /// use tidemill::{Limits, ListenOptions, Reactor, services::Echo};
    ///
    /// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let mut reactor = Reactor::new(Limits::default())?;
    /// let echo = reactor.add(Echo::raw());
    /// reactor.adopt(listener, echo, &ListenOptions::default())?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the listener cannot be registered with the poll, and as [`listen`](Reactor::listen) for its service.
    pub fn adopt(
        &mut self,
        listener: impl Into<Adopted>,
        service: impl Into<ServiceId>,
        options: &ListenOptions,
    ) -> Result<ListenerId, ListenError> {
        let adopted = listener.into();
        let at = adopted.address();
        self.event_loop.table.add_listener(&at, service.into(), options, |_| adopted.prepare(options))
    }

    /// Adopts a connected stream; [`Service::open`] is called in the next turn. See [`Sockets::adopt_stream`].
    ///
    /// # Errors
    ///
    /// As [`Sockets::adopt_stream`].
    pub fn adopt_stream(
        &mut self,
        stream: impl Into<AdoptedStream>,
        service: impl Into<ServiceId>,
    ) -> Result<ConnId, AdoptError> {
        self.sockets().adopt_stream(stream, service)
    }

    /// Watches a descriptor that is not a connection: see [`Sockets::watch`].
    ///
    /// # Errors
    ///
    /// As [`Sockets::watch`].
    pub fn watch(
        &mut self,
        descriptor: impl Into<OwnedFd>,
        service: impl Into<ServiceId>,
    ) -> io::Result<WatchId> {
        self.sockets().watch(descriptor, service)
    }

    /// Watches a descriptor for reading, writing or both: see [`Sockets::watch_with`].
    ///
    /// # Errors
    ///
    /// As [`Sockets::watch`].
    pub fn watch_with(
        &mut self,
        descriptor: impl Into<OwnedFd>,
        service: impl Into<ServiceId>,
        interest: Interest,
    ) -> io::Result<WatchId> {
        self.sockets().watch_with(descriptor, service, interest)
    }

    /// Ends a [`watch`](Reactor::watch), and gives the descriptor back. `None` if it was no longer watched.
    pub fn unwatch(&mut self, watch: WatchId) -> Option<OwnedFd> {
        self.sockets().unwatch(watch)
    }

    /// The address that a listener is bound to: with the real port, where port 0 was asked for. `None` once the
    /// listener is closed.
    pub fn local_addr(&self, listener: ListenerId) -> Option<Address> {
        self.event_loop.table.listeners.get(listener).map(|listener| listener.address.clone())
    }

    /// Sets or replaces the access policy of a service: which addresses are accepted at all of its listeners, how many
    /// connections from each, and how fast. Connections that exist stay.
    pub fn set_access_policy(&mut self, service: impl Into<ServiceId>, policy: AccessPolicy) {
        self.sockets().set_access_policy(service, policy);
    }

    /// The rules of a service's access policy, with how often each has decided. `None` without a policy.
    pub fn rules(&self, service: impl Into<ServiceId>) -> Option<&Rules> {
        self.event_loop.rules(service.into())
    }

    /// Looks up the names of dials with `look_up` instead of the system's resolver. It gets a host and a port, and
    /// returns addresses in the order of preference. It may block: it runs on one of at most four threads of its own.
    pub fn look_up_with<F>(&mut self, look_up: F)
    where
        F: Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    {
        self.event_loop.system.look_up_with(Arc::new(look_up));
    }

    /// Closes a listener; connections accepted from it stay open. Returns whether the listener was open.
    pub fn close_listener(&mut self, listener: ListenerId) -> bool {
        self.event_loop.table.listeners.close(listener)
    }

    /// Starts an outbound connection for a service. [`Service::open`] is called in the next turn, and
    /// [`Service::connected`] once the connection is established; if it fails, [`Service::closed`] is called with the
    /// reason. See [`Socket::dial`](crate::Socket::dial).
    ///
    /// # Errors
    ///
    /// When the reactor has [`Limits::connections`] already, and when `to` is not an [`Address`].
    pub fn dial<A>(&mut self, to: A, service: impl Into<ServiceId>) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.sockets().dial(to, service)
    }

    /// Starts an outbound connection with options.
    ///
    /// # Errors
    ///
    /// As [`dial`](Reactor::dial).
    pub fn dial_with<A>(
        &mut self,
        to: A,
        service: impl Into<ServiceId>,
        options: DialOptions,
    ) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.sockets().dial_with(to, service, options)
    }

    /// Adds an observer, which gets every step of the loop from now on: see [`observer`](crate::observer). Several are
    /// called in the order in which they were added. They stay for the life of the reactor.
    pub fn observe(&mut self, observer: impl Observer + 'static) {
        self.event_loop.observe(observer);
    }

    /// Runs one turn of the loop: sleeps until there is an event or a deadline, but for `wait` at most (`None`: no
    /// limit), and handles it. With a `wait` of zero it does not sleep. Waits have a resolution of 1 ms.
    ///
    /// # Errors
    ///
    /// When the system's poll fails. That happens only through a bug or for lack of kernel memory.
    ///
    /// # Panics
    ///
    /// When a callback of a service panics; see [`Service`].
    pub fn turn(&mut self, wait: Option<Duration>) -> io::Result<Turn> {
        let turn = self.event_loop.turn(wait)?;
        self.announce().map(|()| turn)
    }

    /// Runs turns until there is no listener, no connection, no timer and no posted work left.
    ///
    /// A [`Handle`] alone does not keep it running.
    ///
    /// # Errors
    ///
    /// As [`turn`](Reactor::turn).
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_finished() {
            self.event_loop.turn(None)?;
            self.announce()?;
        }
        Ok(())
    }

    /// Whether work is left over, most often because a budget ended: then the next turn does not sleep.
    pub fn has_work(&self) -> bool {
        self.event_loop.has_work()
    }

    /// Whether nothing can happen any more, so that [`run`](Reactor::run) returns: for programs that call
    /// [`turn`](Reactor::turn) themselves.
    pub fn is_finished(&self) -> bool {
        self.event_loop.is_finished()
    }

    /// When [`turn`](Reactor::turn) must be called even if the descriptor has not become readable. In the past when
    /// work is left over; `None` when there is no deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.event_loop.next_deadline().map(|at| self.event_loop.table.cx.epoch.at(at))
    }

    /// A handle with which other threads run work on the loop.
    pub fn handle(&self) -> Handle {
        self.event_loop.handle()
    }

    /// Access to all connections, between turns.
    pub fn sockets(&mut self) -> Sockets<'_> {
        self.announce_use();
        self.event_loop.read_clock();
        Sockets::new(&mut self.event_loop.table)
    }

    /// Shuts down. In the next turn all listeners are closed, and [`Service::stopping`] of each service is called,
    /// which can close connections that are idle. Connections that are still open after `grace` are closed with
    /// [`CloseReason::Shutdown`](crate::CloseReason::Shutdown). [`run`](Reactor::run) returns when the last one has
    /// ended.
    pub fn shutdown(&mut self, grace: Duration) {
        self.sockets().shutdown(grace);
    }

    /// Whether [`shutdown`](Reactor::shutdown) has been called, on the reactor or on [`Sockets`].
    pub fn is_shutting_down(&self) -> bool {
        self.event_loop.table.is_shutting_down()
    }

    /// A copy of the loop's counters.
    pub fn stats(&self) -> Stats {
        self.event_loop.table.cx.stats.clone()
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("connections", &self.event_loop.table.connections())
            .finish_non_exhaustive()
    }
}
