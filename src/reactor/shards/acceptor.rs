//! The thread that accepts for all shards.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::base::id::{Key, ServiceId, WatchId};
use crate::base::stats::Stats;
use crate::config::limits::Limits;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::handle::Handle;
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::reactor::Reactor;
use crate::service::{Service, ServiceSockets};

/// Accepts, and hands connections over.
pub(super) struct Acceptor {
    own: Option<ServiceId>,
    pub(super) listeners: Vec<(Option<WatchId>, TcpListener)>,
    hand_over: Box<HandOver>,
}

/// With the address of the peer, and the time.
pub(super) type HandOver = dyn Fn(TcpStream, SocketAddr, Duration);

/// Connections that are accepted in a row before another listener has its turn.
const ACCEPTS: usize = 64;
/// How long no connection is accepted after accept(2) has failed, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

impl Acceptor {
    pub(super) fn own(&self) -> ServiceId {
        self.own.expect("it was started")
    }
}

impl Service for Acceptor {
    type Session = ();

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}

    fn ready(&mut self, watch: WatchId, sockets: &mut ServiceSockets<'_, Acceptor>) {
        let own = self.own();
        let Some((watched, listener)) = self.listeners.iter_mut().find(|(one, _)| *one == Some(watch)) else {
            return;
        };
        for _ in 0..ACCEPTS {
            match listener.accept() {
                Ok((stream, peer)) => {
                    // As listeners of a reactor do. It fails only if the peer has gone already.
                    let _ = stream.set_nodelay(true);
                    (self.hand_over)(stream, peer, sockets.elapsed());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::warn!("no connection is accepted for {PAUSE:?}: {error}");
                    sockets.unwatch(watch);
                    *watched = None;
                    let _ = sockets.set_timer(own, PAUSE, None);
                    return;
                }
            }
        }
    }

    /// A pause is over.
    fn timer(&mut self, _: TimerId, sockets: &mut Sockets<'_>) {
        let own = self.own();
        for (watch, listener) in self.listeners.iter_mut().filter(|(watch, _)| watch.is_none()) {
            let again = listener.try_clone().and_then(|again| sockets.watch(OwnedFd::from(again), own));
            match again {
                Ok(again) => *watch = Some(again),
                Err(_) => drop(sockets.set_timer(own, PAUSE, None)),
            }
        }
    }
}

pub(super) fn run_acceptor(
    started: Sender<io::Result<(Handle, Key<Acceptor>)>>,
    hand_over: Box<HandOver>,
) -> io::Result<Stats> {
    let mut reactor = Reactor::new(Limits { connections: 1, ..Limits::default() })?;
    let key = reactor.add(Acceptor { own: None, listeners: Vec::new(), hand_over });
    // The caller waits for it.
    let _ = started.send(Ok((reactor.handle(), key)));
    while !reactor.is_shutting_down() {
        reactor.turn(None)?;
    }
    reactor.run()?;
    Ok(reactor.stats())
}
