//! TLS over the simulated kernel with injected faults, against a client of rustls.

use std::time::Duration;

use crate::base::address::Address;
use crate::base::filter::Filter;
use crate::base::reason::CloseReason;
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::event_loop::EventLoop;
use crate::parts::inbox::Input;
use crate::service::Service;
use crate::sys::sim::each_seed;
use crate::sys::sim::{PeerId, Script, Sim, Tape, address};
use crate::tls::{CertifiedKey, Client, ClientOptions, Server, ServerOptions, Trust};

struct Echo;

impl Service for Echo {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        socket.send(input.take_all());
    }
}

/// An echo over TLS.
struct TestServer {
    turns: EventLoop<Sim>,
    script: Script,
}

impl TestServer {
    fn new(limits: Limits, server: &Server) -> TestServer {
        let (sim, script) = Sim::new();
        let mut turns = EventLoop::new(sim, limits).unwrap();
        let echo = turns.add(Echo, None);
        let options = ListenOptions { filter: Some(server.filter_config()), ..ListenOptions::default() };
        turns.listen(&Address::from(address()), echo, &options).unwrap();
        TestServer { turns, script }
    }

    fn turn_until_quiet(&mut self) {
        self.turns.turn_until_quiet(&self.script);
    }

    fn is_empty(&self) -> bool {
        (self.turns.table.connections(), self.turns.table.cx.memory) == (0, 0)
    }
}

const MS: Duration = Duration::from_millis(1);

fn no_idle() -> SocketLimits {
    SocketLimits { idle: None, ..SocketLimits::default() }
}

/// A peer: a client session, and the plaintext it has received.
struct TestClient {
    peer: PeerId,
    session: Box<dyn Filter>,
    ready: bool,
    ended: bool,
    /// Bytes in transit to the reactor.
    waiting: Vec<u8>,
    to_seal: Vec<u8>,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl TestClient {
    fn new(peer: PeerId, client: &Client) -> TestClient {
        let session = client.filter_config().filter(&"localhost:1".parse().unwrap()).unwrap();
        let (waiting, to_seal, sent, received) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut client =
            TestClient { peer, session, ready: false, ended: false, waiting, to_seal, sent, received };
        client.receive(&[]);
        client
    }

    fn receive(&mut self, bytes: &[u8]) {
        let mut wire = vec![0; self.session.buffered()];
        wire.extend_from_slice(bytes);
        let opened = self.session.open(&mut wire, &mut self.waiting);
        assert_eq!(opened.error, None);
        self.received.extend_from_slice(&wire[..opened.plaintext]);
        (self.ready, self.ended) = (opened.ready, opened.peer_ended);
        if self.ready && !self.to_seal.is_empty() {
            let plain = std::mem::take(&mut self.to_seal);
            self.session.seal(&plain, &mut self.waiting).unwrap();
        }
    }

    fn send(&mut self, plain: &[u8]) {
        self.sent.extend_from_slice(plain);
        self.to_seal.extend_from_slice(plain);
        self.receive(&[]);
    }
}

fn both() -> (Server, Client) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identity = CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    let server = Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() });
    let options = ClientOptions { trust: Trust::DangerAcceptAny, ..ClientOptions::default() };
    (server.unwrap(), Client::new(options).unwrap())
}

fn run_with_faults(tape: &Tape, server: &Server, client: &Client) {
    let limits = Limits {
        read_budget: 100 + tape.below(70_000) as usize,
        write_budget: 100 + tape.below(70_000) as usize,
        handshakes: 1 + tape.below(3) as usize,
        socket: SocketLimits { handshake: None, ..no_idle() },
        ..Limits::default()
    };
    let mut server = TestServer::new(limits, server);
    server.script.inject_faults(tape);
    let mut clients: Vec<TestClient> =
        (0..4).map(|_| TestClient::new(server.script.connect(), client)).collect();
    for _ in 0..400 {
        let one = tape.below(clients.len() as u64) as usize;
        let client = &mut clients[one];
        match tape.below(5) {
            0 => {
                let plain: Vec<u8> = (0..tape.below(40_000)).map(|i| (i % 251) as u8).collect();
                client.send(&plain);
            }
            1 | 2 => {
                let n = (tape.below(60_000) as usize).min(client.waiting.len());
                server.script.feed(client.peer, &client.waiting.drain(..n).collect::<Vec<_>>());
            }
            3 => server.script.window(client.peer, tape.below(50_000) as usize),
            _ => client.receive(&server.script.received(client.peer)),
        }
        server.turns.turn(Some(Duration::ZERO)).unwrap();
        server.script.advance(MS);
    }
    server.script.stop_faults();
    for client in &mut clients {
        server.script.window(client.peer, usize::MAX);
        // While either side has bytes for the other one.
        while !(client.ready && client.waiting.is_empty() && client.received == client.sent) {
            server.script.feed(client.peer, &std::mem::take(&mut client.waiting));
            server.turn_until_quiet();
            let received = server.script.received(client.peer);
            assert!(!received.is_empty() || !client.waiting.is_empty(), "no side makes progress");
            client.receive(&received);
        }
        client.session.seal_end(&mut client.waiting);
        server.script.feed(client.peer, &client.waiting);
        server.turn_until_quiet();
        client.receive(&server.script.received(client.peer));
        assert!(client.ended, "the end is announced");
    }
    let stats = Sockets::new(&mut server.turns.table).stats();
    assert_eq!((stats.handshakes, stats.closed_count(CloseReason::Finished)), (4, 4));
    assert!(server.is_empty());
}

#[test]
fn tls_is_exact_under_injected_faults() {
    let (server, client) = both();
    each_seed(60, |tape| run_with_faults(tape, &server, &client));
}

/// A client that stops after any byte of its first or last flight is closed at the deadline, and all its memory is
/// freed.
#[test]
fn a_handshake_that_stops_anywhere_ends_at_its_deadline() {
    let (server, client) = both();
    let mut server = TestServer::new(Limits { socket: no_idle(), ..Limits::default() }, &server);
    let hello = TestClient::new(0, &client).waiting;
    for cut in (0..hello.len()).step_by(7) {
        let peer = server.script.connect();
        server.script.feed(peer, &hello[..cut]);
        server.turn_until_quiet();
    }
    assert!(server.turns.table.connections() > 30);
    for _ in 0..1_200 {
        server.script.advance(10 * MS);
        server.turn_until_quiet();
    }
    assert!(server.is_empty());
    let stats = Sockets::new(&mut server.turns.table).stats();
    assert_eq!((stats.handshakes, stats.closed_total()), (0, stats.accepted), "open was not called");
}
