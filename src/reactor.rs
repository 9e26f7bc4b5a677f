//! The reactor, as its user sees it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::address::{Address, parse_address};
use crate::base::id::{ConnId, ListenerId, ServiceId};
use crate::base::reason::os_message;
use crate::base::stats::Stats;
use crate::config::access::AccessPolicy;
use crate::config::dial::DialOptions;
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::config::rules::Rules;
use crate::connection::sockets::Sockets;
use crate::event_loop::{EventLoop, Turn};
use crate::handle::Handle;
use crate::service::Service;
use crate::sys::mio::{Adopted, Kernel};

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
/// # In a loop of your own
///
/// [`turn`](Reactor::turn) is one pass. A reactor can be watched by another loop through its descriptor ([`AsFd`]):
/// turn it with a wait of zero when the descriptor is readable, and at [`next_deadline`](Reactor::next_deadline) at
/// the latest. The descriptor alone is not enough: work that a budget cut off does not make it readable, and then the
/// deadline is already past.
///
/// # More than one service
///
/// Any number of services and listeners share one loop, and one service can have several listeners.
pub struct Reactor {
    event_loop: EventLoop<Kernel>,
}

impl Reactor {
    /// Makes one. It opens three descriptors: the poll, the wake-up line, and one in reserve.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left.
    pub fn new(limits: Limits) -> io::Result<Reactor> {
        let kernel = Kernel::new(limits.events_per_turn)?;
        Ok(Reactor { event_loop: EventLoop::new(kernel, limits)? })
    }

    /// Adds a service under [`Limits::socket`]; listeners and dials name it.
    pub fn add<S: Service>(&mut self, service: S) -> ServiceId {
        self.event_loop.add(service, None)
    }

    /// Adds a service whose connections have limits of their own.
    pub fn add_with<S: Service>(&mut self, service: S, limits: SocketLimits) -> ServiceId {
        self.event_loop.add(service, Some(limits))
    }

    /// Listens for a service. Connections come in as soon as the loop turns.
    ///
    /// # Errors
    ///
    /// When the address cannot be resolved or listened on; the text says which, why, and what may help.
    pub fn listen<A>(&mut self, at: A, service: ServiceId) -> io::Result<ListenerId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.listen_with(at, service, &ListenOptions::default())
    }

    /// Listens with options. Where a name stands for several addresses, the first that works is taken.
    ///
    /// # Unix-domain sockets
    ///
    /// `unix:/path` makes the file, and removes it when the listener is closed or the reactor dropped. A file that is
    /// there already is replaced if it is a socket and nobody answers on it: what a server that was killed leaves
    /// behind. Who may connect is a question of the file's permissions and its folder's; see umask(2).
    ///
    /// # Errors
    ///
    /// As [`listen`](Reactor::listen).
    pub fn listen_with<A>(
        &mut self,
        at: A,
        service: ServiceId,
        options: &ListenOptions,
    ) -> io::Result<ListenerId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        let at = parse_address("listen", at)?;
        let candidates = match &at {
            Address::Name { .. } => {
                let told = |error| {
                    io::Error::new(io::ErrorKind::NotFound, format!("cannot listen on {at}: {error}"))
                };
                at.to_socket_addrs().map_err(|error| told(os_message(&error)))?.map(Address::Inet).collect()
            }
            one => vec![one.clone()],
        };
        let mut last = None;
        for address in candidates {
            match self.event_loop.listen(&address, service, options) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = Some(cannot_listen(&address, &error)),
            }
        }
        let nothing =
            || io::Error::new(io::ErrorKind::NotFound, format!("cannot listen on {at}: it names no address"));
        Err(last.unwrap_or_else(nothing))
    }

    /// Listens on a listener that was made elsewhere: one of the standard library, or one that a supervisor has handed
    /// over. Its backlog is what it was made with.
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
    /// When it cannot be watched.
    pub fn adopt(
        &mut self,
        listener: impl Into<Adopted>,
        service: ServiceId,
        options: &ListenOptions,
    ) -> io::Result<ListenerId> {
        let adopted = listener.into();
        self.event_loop.add_listener(service, options, |kernel, token| kernel.adopt(adopted, options, token))
    }

    /// The address a listener really has: the port where 0 was asked for. None once it is closed.
    pub fn local_addr(&self, listener: ListenerId) -> Option<Address> {
        self.event_loop.local_addr(listener)
    }

    /// Sets who may come in to a service, at all of its listeners; or changes it, while it runs.
    pub fn set_access_policy(&mut self, service: ServiceId, guard: AccessPolicy) {
        self.sockets().set_access_policy(service, guard);
    }

    /// How often each of the rules of a service's guard has decided.
    pub fn rules(&self, service: ServiceId) -> Option<&Rules> {
        self.event_loop.rules(service)
    }

    /// Has names looked up by a function of yours, in place of the system's resolver. It may block: it runs on one of
    /// at most four threads. It gives the addresses in the order of preference.
    pub fn look_up_with<F>(&mut self, look_up: F)
    where
        F: Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    {
        self.event_loop.system.look_up_with(Arc::new(look_up));
    }

    /// Closes one listener; its connections live on. Says whether it was there.
    pub fn close_listener(&mut self, listener: ListenerId) -> bool {
        self.event_loop.close_listener(listener)
    }

    /// Connects out for a service. [`Service::open`] comes with the next turn; a failure comes as
    /// [`Service::closed`]. See [`Socket::dial`](crate::Socket::dial).
    ///
    /// # Errors
    ///
    /// When the reactor holds as many connections as it may, and when `to` is no [`Address`].
    pub fn dial<A>(&mut self, to: A, service: ServiceId) -> io::Result<ConnId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.sockets().dial(to, service)
    }

    /// Connects out with options.
    ///
    /// # Errors
    ///
    /// As [`dial`](Reactor::dial).
    pub fn dial_with<A>(&mut self, to: A, service: ServiceId, options: DialOptions) -> io::Result<ConnId>
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.sockets().dial_with(to, service, options)
    }

    /// One turn of the loop: sleeps until something is to be done, at most for `wait` (`None`: without end), and does
    /// it. With a `wait` of zero it never sleeps.
    ///
    /// # Errors
    ///
    /// When the system's poll fails, which it does not but for a bug or a lack of memory.
    ///
    /// # Panics
    ///
    /// When a callback of a service does; see [`Service`].
    pub fn turn(&mut self, wait: Option<Duration>) -> io::Result<Turn> {
        self.event_loop.turn(wait)
    }

    /// Turns until nothing is left that could happen by itself: no listener, no connection, no posted work.
    ///
    /// A [`Handle`] that is kept for later does not keep the loop turning; a listener does.
    ///
    /// # Errors
    ///
    /// As [`turn`](Reactor::turn).
    pub fn run(&mut self) -> io::Result<()> {
        while !self.event_loop.is_finished() {
            self.event_loop.turn(None)?;
        }
        Ok(())
    }

    /// When the loop must turn next even if its descriptor stays silent; in the past when work was carried over. None
    /// when only the descriptor can give it something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.event_loop.next_deadline().map(|at| self.event_loop.table.epoch.at(at))
    }

    /// A way in for other threads.
    pub fn handle(&self) -> Handle {
        self.event_loop.handle()
    }

    /// All connections, between turns.
    pub fn sockets(&mut self) -> Sockets<'_> {
        self.event_loop.read_clock();
        Sockets::new(&mut self.event_loop.table)
    }

    /// Closes the listeners with the next turn. Connections go on until they end by themselves; what is left after
    /// `grace` is closed with [`CloseReason::Shutdown`](crate::CloseReason::Shutdown). [`run`](Reactor::run) then
    /// returns.
    pub fn shutdown(&mut self, grace: Duration) {
        self.sockets().shutdown(grace);
    }

    /// Whether [`shutdown`](Reactor::shutdown) or a stop has been asked for.
    pub fn is_shutting_down(&self) -> bool {
        self.event_loop.is_shutting_down()
    }

    /// What the loop has counted.
    pub fn stats(&self) -> Stats {
        self.event_loop.table.stats.clone()
    }
}

impl AsFd for Reactor {
    /// The poll's descriptor: readable when the loop should turn.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_loop.system.as_fd()
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("connections", &self.event_loop.table.connections())
            .finish_non_exhaustive()
    }
}

/// The error of listening, in words that name what was asked, what was wrong, and what may help.
fn cannot_listen(at: &Address, error: &io::Error) -> io::Error {
    let low_port = at.port().is_some_and(|port| port < 1_024);
    let wrong = match error.kind() {
        io::ErrorKind::AddrInUse if at.is_unix() => "somebody listens there".to_string(),
        io::ErrorKind::AddrInUse => {
            "the address is in use (another process listens there; port 0 picks a free one)".to_string()
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_string(),
        io::ErrorKind::NotFound if at.is_unix() => "the folder does not exist".to_string(),
        io::ErrorKind::PermissionDenied if low_port => {
            "permission denied (ports below 1024 need root or the capability CAP_NET_BIND_SERVICE)"
                .to_string()
        }
        _ => os_message(error),
    };
    io::Error::new(error.kind(), format!("cannot listen on {at}: {wrong}"))
}
