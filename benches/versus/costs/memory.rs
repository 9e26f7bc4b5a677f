//! The memory of an idle connection, and of an idle pair in a proxy.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use super::{Band, Measured, Peer, Process, Server, figure, raise_descriptors, until};
use crate::case::Kind;
use crate::tls;

/// Memory is counted in pages of 4 KiB: less than 2 bytes of each.
const BAND: Band = Band { percent: 3.0, step: 0.0 };

/// Connections that are opened and closed before the measurement: the first ones allocate memory that later ones reuse.
const FIRST: usize = 50;

/// A smoke test has as many connections: tables grow in steps, so with fewer the memory of each differs.
pub(super) fn measure(_: bool) -> Measured {
    let allowed = raise_descriptors().saturating_sub(500);
    let (single, pairs) = (10_000.min(allowed), 2_000.min(allowed / 2));
    let echoes = [Kind::Tidemill, Kind::Tokio4, Kind::Tokio64];
    let proxies = [Kind::Tidemill, Kind::TokioCopy];
    let secured = single / 4;
    Ok(vec![
        figure("memory of an idle connection over TLS", "bytes", BAND, &echoes, |kind| {
            let server = Server::start(&["--serve", kind.name(), "tls"])?;
            let config = tls::config_of_a_client();
            Ok(each(&server.process, secured, || tls::Peer::connect(server.address, &config)))
        })?,
        figure("memory of an idle connection", "bytes", BAND, &echoes, |kind| {
            let server = Server::start(&["--serve", kind.name(), "echo"])?;
            Ok(each(&server.process, single, || {
                let mut peer = Peer::connect(server.address);
                peer.say();
                peer.hear();
                peer
            }))
        })?,
        figure("memory of an idle proxied pair", "bytes", BAND, &proxies, |kind| {
            let backend = Backend::listen();
            let server = Server::start(&["--serve", kind.name(), "proxy", &backend.address().to_string()])?;
            Ok(each(&server.process, pairs, || backend.reached_by(Peer::connect(server.address))))
        })?,
    ])
}

/// Private bytes of the server per connection or pair.
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

/// The backend of a proxy: in this process, so that the proxy's process contains only the proxy.
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

    /// Both ends of a pair, after a message and its answer.
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
