//! `Shards`: several reactors, each on a thread of its own, that share the work of one listener.

mod acceptor;
mod shard;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use self::acceptor::{Acceptor, run_acceptor};
use self::shard::{Receiving, Shard, run_shard};
use super::Reactor;
use super::listen_first::listen_first;
use crate::base::address::Address;
use crate::base::id::Key;
use crate::base::post_error::{PostError, PostRefusal};
use crate::base::setup_error::ListenError;
use crate::base::stats::Stats;
use crate::config::access::AccessPolicy;
use crate::config::limits::Limits;
use crate::config::listen::{ListenOptions, Overflow};
use crate::config::rules::Rules;
use crate::handle::Handle;
use crate::parts::admission::Admission;
use crate::service::{Service, ServiceSockets};
use crate::sys::handed_over::HandedOver;
use crate::sys::mio::Adopted;
use crate::sys::{Epoch, locked};

/// One service on several cores: a reactor on each of `count` threads, and one thread that accepts.
///
/// ```text
///     listener ─▶ acceptor ─┬─ the shard with the fewest connections ─▶ shard 0: Reactor, service
///                           └─────────────────────────────────────────▶ shard 1: Reactor, service
///                                                                       (nothing is shared)
/// ```
///
/// A connection is handed over once, when it is accepted, and stays on its shard. So each shard is a reactor as any
/// other: callbacks run one at a time, and a session belongs to one thread. What must cross shards is sent by
/// [`Peers::post`].
///
/// A shard accepts what is handed to it as it would from a listener of its own, with the same [`ListenOptions`].
/// [`Limits`] are those of each shard. When all are full, peers are refused, or wait, as the listener's
/// [`overflow`](ListenOptions::overflow) says. The [access policy](Shards::set_access_policy) of the service holds for
/// all shards together.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
/// use std::time::Duration;
/// use tidemill::{Limits, Shards, services::Echo};
///
/// let mut shards = Shards::start(2, &Limits::default(), |_, _| Echo::raw())?;
/// let at = shards.listen("127.0.0.1:0")?;
/// let mut client = TcpStream::connect(at)?;
/// client.write_all(b"hello")?;
/// let mut answer = [0; 5];
/// client.read_exact(&mut answer)?;
/// assert_eq!(&answer, b"hello");
/// drop(client);
/// shards.shutdown(Duration::from_secs(1));
/// let accepted: u64 = shards.join()?.iter().map(|stats| stats.accepted).sum();
/// assert_eq!(accepted, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Shards<S: Service> {
    peers: Peers<S>,
    threads: Vec<JoinHandle<io::Result<Stats>>>,
    acceptor: Key<Acceptor<S>>,
    acceptor_thread: JoinHandle<io::Result<()>>,
}

/// All shards, for the services on them and for other threads. A clone is the same.
pub struct Peers<S: Service>(Arc<All<S>>);

struct All<S: Service> {
    /// Set when all threads have started, which is before a connection is accepted.
    shards: OnceLock<Vec<Shard<S>>>,
    acceptor: OnceLock<Handle>,
    refused: Arc<AtomicU64>,
    admission: Arc<Mutex<Admission>>,
    started: Epoch,
}

impl<S: Service> Shards<S> {
    /// Starts `count` threads, at least one, and calls `make` on each of them with its number, from 0, and all shards.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started, or has no descriptor left for its reactor.
    pub fn start<F>(count: usize, limits: &Limits, make: F) -> io::Result<Shards<S>>
    where
        F: Fn(usize, &Peers<S>) -> S + Send + Sync + 'static,
    {
        let all = vec![limits.clone(); count.max(1)];
        Shards::start_with(all, move |number, reactor, peers| Ok(reactor.add(make(number, peers))))
    }

    /// Starts a thread for each of `limits`, and calls `make` on each of them with its number, its reactor and all
    /// shards. `make` adds the service, and what the reactor has besides: observers, further services.
    ///
    /// ```
    /// use tidemill::{Limits, Shards, SocketLimits, services::Echo};
    ///
    /// let limits = Limits { connections: 500, ..Limits::default() };
    /// let shards = Shards::start_with(vec![limits; 2], |_, reactor, _| {
    ///     // 1 MiB/s on each shard; see SharedRate for a rate of all.
    ///     let group = reactor.sockets().add_group(1 << 20)?;
    ///     let limits = SocketLimits { group: Some(group), ..Echo::raw().limits() };
    ///     Ok(reactor.add_with(Echo::raw(), limits))
    /// })?;
    /// # shards.shutdown(std::time::Duration::ZERO);
    /// # shards.join()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`start`](Shards::start), and what `make` returns.
    pub fn start_with<F>(limits: Vec<Limits>, make: F) -> io::Result<Shards<S>>
    where
        F: Fn(usize, &mut Reactor, &Peers<S>) -> io::Result<Key<S>> + Send + Sync + 'static,
    {
        let connections = limits.iter().map(|limits| limits.connections).fold(0, usize::saturating_add);
        let peers = Peers(Arc::new(All {
            shards: OnceLock::new(),
            acceptor: OnceLock::new(),
            refused: Arc::default(),
            admission: Arc::new(Mutex::new(Admission::new(AccessPolicy::default(), connections))),
            started: Epoch::from_now(),
        }));
        let make = Arc::new(make);
        let (mut shards, mut threads) = (Vec::new(), Vec::new());
        for (number, limits) in limits.into_iter().enumerate() {
            let (peers, make, (sender, receiver)) = (peers.clone(), make.clone(), channel());
            let run = move || run_shard(limits, &sender, &peers.0, |reactor| make(number, reactor, &peers));
            threads.push(thread::Builder::new().name(format!("shard-{number}")).spawn(run)?);
            shards
                .push(receiver.recv().map_err(|_| io::Error::other("a shard has ended while it started"))??);
        }
        let _ = peers.0.shards.set(shards);
        let (sender, receiver) = channel();
        let all = peers.clone();
        let run = move || run_acceptor(sender, all);
        let acceptor_thread = thread::Builder::new().name("acceptor".into()).spawn(run)?;
        let (handle, acceptor) =
            receiver.recv().map_err(|_| io::Error::other("the acceptor has ended while it started"))??;
        let _ = peers.0.acceptor.set(handle);
        Ok(Shards { peers, threads, acceptor, acceptor_thread })
    }

    /// Listens on an address; port 0 picks a free port. Returns the address. Several can be listened on.
    ///
    /// # Errors
    ///
    /// When the address cannot be looked up or listened on, or a shutdown has begun.
    pub fn listen(&mut self, at: impl ToSocketAddrs) -> io::Result<SocketAddr> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for at in at.to_socket_addrs()? {
            match self.listen_with(&Address::Inet(at), &ListenOptions::default()) {
                Ok(at) => return at.inet().ok_or_else(|| io::ErrorKind::Unsupported.into()),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    /// Listens with options, on TCP or a Unix-domain socket: see [`Reactor::listen_with`]. Returns the address.
    ///
    /// # Errors
    ///
    /// As [`Reactor::listen_with`].
    pub fn listen_with(&mut self, at: &Address, options: &ListenOptions) -> Result<Address, ListenError> {
        listen_first(at.clone(), |at| {
            let failed = |source| ListenError::System { at: at.clone(), source };
            let listener = Adopted::bind(at, options).map_err(failed)?;
            self.adopt(listener, options)
        })
    }

    /// Accepts connections from a listener that exists already: see [`Reactor::adopt`]. Returns its address.
    ///
    /// # Errors
    ///
    /// As [`Reactor::adopt`].
    pub fn adopt(
        &mut self,
        listener: impl Into<Adopted>,
        options: &ListenOptions,
    ) -> Result<Address, ListenError> {
        let listener = listener.into();
        let at = listener.address();
        let failed = |source| ListenError::System { at: at.clone(), source };
        let (socket, address) = listener.into_socket(options).map_err(failed)?;
        let mut queues = Vec::new();
        for shard in self.peers.all() {
            let (sender, receiver) = channel();
            let (at, options, state, key) =
                (address.clone(), options.clone(), shard.state.clone(), shard.key);
            let add = move |sockets: &mut crate::connection::sockets::Sockets<'_>| {
                let queue = HandedOver::default();
                let made = Ok(Adopted::handed(queue.clone(), at.clone()));
                let added = sockets.table().add_listener(&at, key.id(), &options, |_| made);
                // The caller waits for it.
                let _ = sender.send(added.map(|listener| {
                    state.receive(listener, queue.clone());
                    (listener, queue)
                }));
            };
            shard.handle.post_wait(add).map_err(|_| ListenError::ShuttingDown)?;
            queues.push(receiver.recv().map_err(|_| ListenError::ShuttingDown)??);
        }
        let slots = 1 + usize::from(options.reserve_slot);
        let waits = options.overflow == Overflow::Wait;
        let receiving = Receiving { queues, slots, waits, next: Cell::new(0) };
        let (sender, receiver) = channel();
        let add = move |acceptor: &mut Acceptor<S>, sockets: &mut ServiceSockets<'_, Acceptor<S>>| {
            // The caller waits for it.
            let _ = sender.send(acceptor.add(socket, receiving, sockets));
        };
        let acceptor = self.peers.0.acceptor.get().ok_or(ListenError::ShuttingDown)?;
        acceptor.post_to(self.acceptor, add).map_err(|_| ListenError::ShuttingDown)?;
        receiver.recv().map_err(|_| ListenError::ShuttingDown)?.map_err(failed)?;
        Ok(address)
    }

    /// All shards, to post work to them and to see their load.
    pub fn peers(&self) -> &Peers<S> {
        &self.peers
    }

    /// Sets the access policy of the service on all shards together: which addresses are accepted, how many connections
    /// from each, and how fast. Addresses are counted in one place, so these limits hold exactly, on whichever shard a
    /// connection is. [`AccessPolicy::connections`] is for each shard, and set by [`Reactor::set_access_policy`] on it;
    /// here it is not looked at. By default all addresses are accepted.
    pub fn set_access_policy(&self, policy: AccessPolicy) {
        locked(&self.peers.0.admission).policy = policy;
    }

    /// How many connections were refused: by the access policy, or because each shard had as many as it may.
    pub fn refused(&self) -> u64 {
        self.peers.0.refused.load(Ordering::Relaxed)
    }

    /// Stops one shard: it gets no further connections, and those that it has may end within `grace`, as with
    /// [`Reactor::shutdown`]. No connection is lost: what was handed to it before is served.
    pub fn stop(&self, shard: usize, grace: Duration) {
        if let Some(shard) = self.peers.all().get(shard) {
            shard.stop(grace);
        }
    }

    /// Closes the listeners, and stops all shards.
    pub fn shutdown(&self, grace: Duration) {
        self.peers.shutdown(grace);
    }

    /// Waits until all threads have ended, which [`shutdown`](Shards::shutdown) asks for. Returns the counters of each
    /// shard.
    ///
    /// # Errors
    ///
    /// When a reactor failed, or a service has panicked.
    pub fn join(self) -> io::Result<Vec<Stats>> {
        let panicked = |_| io::Error::other("a service has panicked");
        let all: Vec<_> = self.threads.into_iter().map(|thread| thread.join().map_err(panicked)).collect();
        // Without shards there is nothing to accept for.
        self.peers.shutdown(Duration::ZERO);
        self.acceptor_thread.join().map_err(panicked)??;
        all.into_iter().map(|one| one?).collect()
    }
}

impl<S: Service> Peers<S> {
    fn all(&self) -> &[Shard<S>] {
        self.0.shards.get().map_or(&[], |all| all)
    }

    /// The number of connections that were handed to each shard and have not ended.
    pub fn loads(&self) -> Vec<usize> {
        self.all().iter().map(Shard::load).collect()
    }

    /// The rules of the access policy, with how often each has decided.
    pub fn rules(&self) -> Rules {
        locked(&self.0.admission).policy.rules.clone()
    }

    /// Has a shard run `work` with its service. From a callback, this is how one shard tells another something.
    ///
    /// # Errors
    ///
    /// As [`Handle::post_to`]: [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the shard has ended, or there is none of
    /// this number, which is so for all during [`Shards::start`]; [`WouldBlock`](io::ErrorKind::WouldBlock) if it has
    /// [`Limits::posts`] waiting. The error gives `work` back.
    pub fn post<F>(&self, shard: usize, work: F) -> Result<(), PostError<F>>
    where
        F: FnOnce(&mut S, &mut ServiceSockets<'_, S>) + Send + 'static,
    {
        match self.all().get(shard) {
            Some(shard) => shard.handle.post_to(shard.key, work),
            None => Err(PostError::new(work, PostRefusal::Dropped)),
        }
    }

    /// Closes the listeners, and stops all shards: see [`Shards::shutdown`].
    pub fn shutdown(&self, grace: Duration) {
        if let Some(acceptor) = self.0.acceptor.get() {
            // It may have ended already.
            let _ = acceptor.post(|sockets| sockets.stop());
        }
        self.all().iter().for_each(|shard| shard.stop(grace));
    }
}

impl<S: Service> Clone for Peers<S> {
    fn clone(&self) -> Peers<S> {
        Peers(self.0.clone())
    }
}

impl<S: Service> fmt::Debug for Peers<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("loads", &self.loads()).finish()
    }
}

impl<S: Service> fmt::Debug for Shards<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards").field("loads", &self.peers.loads()).finish_non_exhaustive()
    }
}
