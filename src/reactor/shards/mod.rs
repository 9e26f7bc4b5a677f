//! `Shards`: several reactors, each on a thread of its own, that share the work of one listener.

mod acceptor;
mod permit;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use self::acceptor::{Acceptor, run_acceptor};
use self::permit::{AddressPermit, ClearAtEnd, Permit, Permits, ask, locked};
use super::Reactor;
use crate::base::id::Key;
use crate::base::observer::Step;
use crate::base::stats::Stats;
use crate::base::tick::Tick;
use crate::config::access::AccessPolicy;
use crate::config::limits::Limits;
use crate::config::listen::ListenOptions;
use crate::config::rules::RefuseMode;
#[cfg(doc)]
use crate::connection::socket::Socket;
use crate::handle::Handle;
use crate::parts::admission::Admission;
use crate::service::{Service, ServiceSockets};
use crate::sys::stream::{reset_on_close, set_backlog};

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
/// Connections are [`Origin::Adopted`](crate::Origin::Adopted): a listener's filter is not there (call
/// [`Socket::start_filter`] in `open`). [`Limits`] are those of each shard. A connection beyond
/// [`Limits::connections`] of all shards is closed, and counted by [`refused`](Shards::refused). An
/// [access policy](Shards::set_access_policy) holds for all shards together.
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
/// let accepted: u64 = shards.join()?.iter().map(|stats| stats.adopted).sum();
/// assert_eq!(accepted, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Shards<S: Service> {
    peers: Peers<S>,
    threads: Vec<JoinHandle<io::Result<Stats>>>,
    acceptor: Handle,
    acceptor_key: Key<Acceptor>,
    acceptor_thread: JoinHandle<io::Result<Stats>>,
}

/// All shards, for the services on them and for other threads. A clone is the same.
pub struct Peers<S: Service>(Arc<All<S>>);

struct All<S: Service> {
    /// Set when all threads have started, which is before a connection is accepted.
    shards: OnceLock<Vec<Shard<S>>>,
    refused: AtomicU64,
    admission: Arc<Mutex<Option<Admission>>>,
}

struct Shard<S: Service> {
    handle: Handle,
    key: Key<S>,
    load: Arc<AtomicUsize>,
    /// Of the connections that it has.
    permits: Permits,
    max: usize,
    /// Whether connections are handed to it. Held while one is: those that were posted come before a shutdown.
    is_open: Mutex<bool>,
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
        let peers = Peers(Arc::new(All {
            shards: OnceLock::new(),
            refused: AtomicU64::new(0),
            admission: Arc::default(),
        }));
        let make = Arc::new(make);
        let (mut shards, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count.max(1) {
            let (peers, make, limits) = (peers.clone(), make.clone(), limits.clone());
            let (sender, receiver) = channel();
            let run = move || run_shard(limits, sender, || make(number, &peers));
            threads.push(thread::Builder::new().name(format!("shard-{number}")).spawn(run)?);
            shards
                .push(receiver.recv().map_err(|_| io::Error::other("a shard has ended while it started"))??);
        }
        let _ = peers.0.shards.set(shards);
        let (sender, receiver) = channel();
        let hand_over = peers.clone();
        let run = move || {
            run_acceptor(sender, Box::new(move |stream, peer, now| hand_over.admit(stream, peer, now)))
        };
        let acceptor_thread = thread::Builder::new().name("acceptor".into()).spawn(run)?;
        let (acceptor, acceptor_key) =
            receiver.recv().map_err(|_| io::Error::other("the acceptor has ended while it started"))??;
        Ok(Shards { peers, threads, acceptor, acceptor_key, acceptor_thread })
    }

    /// Listens on an address; port 0 picks a free port. Returns the address. Several can be listened on.
    ///
    /// # Errors
    ///
    /// When the address cannot be looked up or listened on, or a shutdown has begun.
    pub fn listen(&mut self, at: impl ToSocketAddrs) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(at)?;
        // std listens with a backlog of 128; listening again changes it.
        set_backlog(&listener, ListenOptions::default().backlog)?;
        let at = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let watched = OwnedFd::from(listener.try_clone()?);
        let (sender, receiver) = channel();
        let watch = move |acceptor: &mut Acceptor, sockets: &mut ServiceSockets<'_, Acceptor>| {
            let watch = sockets.watch(watched, acceptor.own());
            // The caller waits for it.
            let _ = sender.send(watch.map(|watch| acceptor.listeners.push((Some(watch), listener))));
        };
        self.acceptor.post_to(self.acceptor_key, watch).map_err(|error| io::Error::from(error.kind()))?;
        receiver.recv().map_err(|_| io::Error::other("a shutdown has begun"))??;
        Ok(at)
    }

    /// All shards, to post work to them and to see their load.
    pub fn peers(&self) -> &Peers<S> {
        &self.peers
    }

    /// Sets the access policy of all shards together: which addresses are accepted, how many connections from each, and
    /// how fast. They are counted where connections are accepted, so the limits hold exactly, on whichever shard a
    /// connection is. [`AccessPolicy::connections`] is not looked at, and a refused peer is reset
    /// ([`RefuseMode::Reset`]) or closed without a reply (any other mode). By default all addresses are accepted.
    pub fn set_access_policy(&self, policy: AccessPolicy) {
        let connections = self.peers.all().iter().map(|shard| shard.max).fold(0, usize::saturating_add);
        match &mut *locked(&self.peers.0.admission) {
            Some(admission) => admission.policy = policy,
            none => *none = Some(Admission::new(policy, connections)),
        }
    }

    /// How many connections were closed: by the access policy, or because each shard had as many as it may.
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
        // It may have ended already.
        let _ = self.acceptor.post(|sockets| sockets.stop());
        self.peers.all().iter().for_each(|shard| shard.stop(grace));
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
        self.all().iter().map(|shard| shard.load.load(Ordering::Relaxed)).collect()
    }

    /// Has a shard run `work` with its service. From a callback, this is how one shard tells another something. Returns
    /// whether it will run: not if the shard has ended, or has [`Limits::posts`] waiting; and not during
    /// [`Shards::start`].
    pub fn post<F>(&self, shard: usize, work: F) -> bool
    where
        F: FnOnce(&mut S, &mut ServiceSockets<'_, S>) + Send + 'static,
    {
        self.all().get(shard).is_some_and(|shard| shard.handle.post_to(shard.key, work).is_ok())
    }

    /// A connection was accepted: the access policy is asked, then it is handed over. `now` counts from any moment.
    fn admit(&self, stream: TcpStream, peer: SocketAddr, now: Duration) {
        let ip = peer.ip().to_canonical();
        let asked = match &mut *locked(&self.0.admission) {
            Some(admission) => ask(admission, ip, Tick::at(now)),
            None => Ok(false),
        };
        match asked {
            Ok(counted) => {
                let admission = self.0.admission.clone();
                self.hand_over(stream, counted.then_some(AddressPermit { ip, admission }));
            }
            Err(how) => {
                self.0.refused.fetch_add(1, Ordering::Relaxed);
                if how == RefuseMode::Reset {
                    reset_on_close(&stream);
                }
            }
        }
    }

    /// Hands a connected stream to the shard with the fewest connections, without asking the access policy. Without a
    /// place it is closed.
    pub fn adopt(&self, stream: TcpStream) {
        self.hand_over(stream, None);
    }

    fn hand_over(&self, stream: TcpStream, address: Option<AddressPermit>) {
        let mut given = (stream, address);
        loop {
            let load = |shard: &&Shard<S>| shard.load.load(Ordering::Relaxed);
            let open = self.all().iter().filter(|shard| shard.is_open() && load(shard) < shard.max);
            let Some(shard) = open.min_by_key(load) else {
                self.0.refused.fetch_add(1, Ordering::Relaxed);
                return;
            };
            match shard.adopt(given) {
                Ok(()) => return,
                // It has stopped meanwhile: another.
                Err(back) => given = back,
            }
        }
    }
}

/// A stream on its way to a shard.
type Given = (TcpStream, Option<AddressPermit>);

impl<S: Service> Shard<S> {
    fn is_open(&self) -> bool {
        *locked(&self.is_open)
    }

    /// Hands it a stream; gives it back if the shard has stopped.
    fn adopt(&self, given: Given) -> Result<(), Given> {
        let mut is_open = locked(&self.is_open);
        if !*is_open {
            return Err(given);
        }
        let (service, permits, load) = (self.key.id(), self.permits.clone(), self.load.clone());
        load.fetch_add(1, Ordering::Relaxed);
        // A post that fails gives its closure back, and not what is in it.
        let given = Arc::new(Mutex::new(Some(given)));
        let taken = given.clone();
        let posted = self.handle.post_wait(move |sockets| {
            let Some((stream, address)) = locked(&taken).take() else { return };
            let permit = Permit { load, address };
            match sockets.adopt_stream(stream, service) {
                Ok(id) => drop(locked(&permits).insert(id, permit)),
                Err(error) => log::warn!("a connection that was handed over is closed: {error}"),
            }
        });
        if posted.is_err() {
            // Its service has panicked.
            *is_open = false;
            let given = locked(&given).take();
            return given.map_or(Ok(()), Err);
        }
        Ok(())
    }

    fn stop(&self, grace: Duration) {
        let mut is_open = locked(&self.is_open);
        *is_open = false;
        // It may have ended already.
        let _ = self.handle.post_wait(move |sockets| sockets.shutdown(grace));
    }
}

/// The thread of a shard. It turns until it is stopped: it has no listener, so `run` would return at once.
fn run_shard<S: Service>(
    limits: Limits,
    started: Sender<io::Result<Shard<S>>>,
    make: impl FnOnce() -> S,
) -> io::Result<Stats> {
    let max = limits.connections;
    let mut reactor = match Reactor::new(limits) {
        Ok(reactor) => reactor,
        Err(error) => {
            let again = io::Error::new(error.kind(), error.to_string());
            // The caller waits for it.
            let _ = started.send(Err(error));
            return Err(again);
        }
    };
    let permits = ClearAtEnd(Permits::default());
    let ended = permits.0.clone();
    reactor.observe(move |step: &Step<'_>| {
        if let Step::Close { gone, .. } = step {
            drop(locked(&ended).remove(&gone.id));
        }
    });
    let key = reactor.add(make());
    let shard = Shard {
        handle: reactor.handle(),
        key,
        load: Arc::default(),
        permits: permits.0.clone(),
        max,
        is_open: Mutex::new(true),
    };
    // The caller waits for it.
    let _ = started.send(Ok(shard));
    while !reactor.is_shutting_down() {
        reactor.turn(None)?;
    }
    reactor.run()?;
    Ok(reactor.stats())
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
