//! The thread that accepts for all shards.

use std::io;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::Peers;
use super::shard::Receiving;
use crate::base::id::{Key, ServiceId, WatchId};
use crate::config::limits::Limits;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::handle::Handle;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::reactor::Reactor;
use crate::service::{Service, ServiceSockets};
use crate::sys::AcceptError;
use crate::sys::stream::ListenSocket;

/// Accepts, and hands connections over.
pub(super) struct Acceptor<S: Service> {
    own: Option<ServiceId>,
    peers: Peers<S>,
    listeners: Vec<Accepting>,
}

/// A listener.
struct Accepting {
    /// None during a pause.
    watch: Option<WatchId>,
    socket: ListenSocket,
    receiving: Receiving,
}

/// Connections that are accepted in a row before another listener has its turn.
const ACCEPTS: usize = 64;
/// How long no connection is accepted after accept(2) has failed, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);
/// How long no connection is accepted when all shards are full and peers are to wait.
const PAUSE_WHEN_FULL: Duration = Duration::from_millis(10);

impl<S: Service> Acceptor<S> {
    /// Accepts from one more listener.
    pub(super) fn add(
        &mut self,
        socket: ListenSocket,
        receiving: Receiving,
        sockets: &mut Sockets<'_>,
    ) -> io::Result<()> {
        let own = self.own.ok_or(io::ErrorKind::NotConnected)?;
        let watch = Some(sockets.watch(socket.descriptor()?, own)?);
        self.listeners.push(Accepting { watch, socket, receiving });
        Ok(())
    }

    /// Accepts from a listener; returns how long it pauses then, if it does.
    fn accept_from(&self, listener: &Accepting) -> Option<Duration> {
        for _ in 0..ACCEPTS {
            if listener.receiving.waits && !listener.receiving.has_room(&self.peers) {
                return Some(PAUSE_WHEN_FULL);
            }
            match listener.socket.accept().map_err(AcceptError::from) {
                Ok((stream, peer)) => listener.receiving.hand_over(&self.peers, stream, peer),
                Err(AcceptError::Empty) => return None,
                Err(AcceptError::PeerGone) => {}
                Err(AcceptError::NoDescriptor) => return Some(pause("no descriptor is left")),
                Err(AcceptError::NoMemory) => return Some(pause("the kernel has no memory left")),
                Err(AcceptError::Broken(error)) => return Some(pause(&error.to_string())),
            }
        }
        None
    }
}

fn pause(why: &str) -> Duration {
    log::warn!("no connection is accepted for {PAUSE:?}: {why}");
    PAUSE
}

impl<S: Service> Service for Acceptor<S> {
    type Session = ();

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}

    fn ready(&mut self, watch: WatchId, sockets: &mut ServiceSockets<'_, Acceptor<S>>) {
        let Some(index) = self.listeners.iter().position(|one| one.watch == Some(watch)) else { return };
        let pause = self.accept_from(&self.listeners[index]);
        if let (Some(pause), Some(own)) = (pause, self.own) {
            sockets.unwatch(watch);
            self.listeners[index].watch = None;
            // There is a timer for each listener, and far fewer than the reactor may have.
            let _ = sockets.set_timer(own, pause, None);
        }
    }

    /// A pause is over.
    fn timer(&mut self, _: TimerId, sockets: &mut Sockets<'_>) {
        let Some(own) = self.own else { return };
        for listener in self.listeners.iter_mut().filter(|listener| listener.watch.is_none()) {
            match listener.socket.descriptor().and_then(|again| sockets.watch(again, own)) {
                Ok(again) => listener.watch = Some(again),
                Err(_) => drop(sockets.set_timer(own, PAUSE, None)),
            }
        }
    }
}

/// The thread. It turns until it is stopped: it may have no listener yet, so `run` would return at once.
pub(super) fn run_acceptor<S: Service>(
    started: Sender<io::Result<(Handle, Key<Acceptor<S>>)>>,
    peers: Peers<S>,
) -> io::Result<()> {
    let mut reactor = Reactor::new(Limits { connections: 1, ..Limits::default() })?;
    let key = reactor.add(Acceptor { own: None, peers, listeners: Vec::new() });
    // The caller waits for it.
    let _ = started.send(Ok((reactor.handle(), key)));
    while !reactor.is_shutting_down() {
        reactor.turn(None)?;
    }
    reactor.run()
}
