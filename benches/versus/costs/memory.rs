//! What an idle connection holds, and an idle pair of them in a proxy.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};

use tidemill::services::Proxy;
use tidemill::{Address, Limits, ListenOptions, Reactor};
use tokio::runtime::Builder;

use super::{Measured, Peer, Process, Server, figure, raise_descriptors, until};
use crate::servers::{Kind, pin};

/// Connections that have come and gone before anything is counted: what the first ones bring along is not the price of
/// one.
const FIRST: usize = 50;

pub(super) fn measure(smoke: bool) -> Measured {
    let allowed = raise_descriptors().saturating_sub(500);
    let (single, pairs) = if smoke { (200, 100) } else { (10_000, 2_000) };
    let (single, pairs) = (single.min(allowed), pairs.min(allowed / 2));
    let echoes = [Kind::Tidemill, Kind::Tokio4, Kind::Tokio64];
    let proxies = [Kind::Tidemill, Kind::Tokio4];
    Ok(vec![
        figure(format!("memory of an idle connection, of {single}"), "bytes", &echoes, |kind| {
            let server = Server::start(&["--serve", kind.name()])?;
            Ok(each(&server.process, single, || {
                let mut peer = Peer::connect(server.address);
                peer.say();
                peer.hear();
                peer
            }))
        })?,
        figure(format!("memory of an idle proxied pair, of {pairs}"), "bytes", &proxies, |kind| {
            let backend = Backend::listen();
            let server =
                Server::start(&["--serve-costs", &format!("{} {}", kind.name(), backend.address())])?;
            Ok(each(&server.process, pairs, || backend.reached_by(Peer::connect(server.address))))
        })?,
    ])
}

/// Bytes that are the server's own, for each of so many of what a client brings about.
fn each<T>(server: &Process, count: usize, client: impl FnMut() -> T) -> f64 {
    let mut client = client;
    let descriptors = server.descriptors();
    drop((0..FIRST).map(|_| client()).collect::<Vec<T>>());
    until("the first have left", || server.descriptors() == descriptors);
    let before = server.memory("Anonymous");
    let held: Vec<T> = (0..count).map(|_| client()).collect();
    let after = server.memory("Anonymous");
    drop(held);
    (after as f64 - before as f64) / count as f64
}

/// What stands behind a proxy: in this process, so that the proxy's holds nothing else.
struct Backend(TcpListener);

impl Backend {
    fn listen() -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("an option");
        Backend(listener)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("its address")
    }

    /// Both ends of a pair, after a message has gone all the way and back.
    fn reached_by(&self, mut client: Peer) -> (Peer, Peer) {
        let mut accepted = None;
        until("a proxy that connects", || {
            accepted = match self.0.accept() {
                Ok((stream, _)) => Some(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) => panic!("no connection of the proxy's: {error}"),
            };
            accepted.is_some()
        });
        let stream = accepted.expect("it has connected");
        stream.set_nonblocking(false).expect("an option");
        let mut backend = Peer::over(stream);
        client.say();
        backend.hear();
        backend.say();
        client.hear();
        (client, backend)
    }
}

/// A proxy: which, and the address of what stands behind it.
pub(super) fn serve(words: &str) {
    pin(0);
    let (name, backend) = words.split_once(' ').expect("a name and an address");
    let backend: SocketAddr = backend.parse().expect("an address");
    if name == Kind::Tidemill.name() { tidemill(backend) } else { tokio(backend) }
}

fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().expect("somebody waits for it");
}

fn tidemill(backend: SocketAddr) {
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let proxy = Proxy::to(vec![Address::from(backend)]);
    let limits = proxy.limits();
    let proxy = reactor.add_with(proxy, limits);
    let options = ListenOptions { dials: true, ..ListenOptions::default() };
    let listener = reactor.listen_with("127.0.0.1:0", proxy, &options).expect("a listener");
    announce(reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address"));
    reactor.run().expect("it runs until it is ended");
}

fn tokio(backend: SocketAddr) {
    let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        announce(listener.local_addr().expect("its address"));
        loop {
            let Ok((mut near, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let Ok(mut far) = tokio::net::TcpStream::connect(backend).await else { return };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
}
