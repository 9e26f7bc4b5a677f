//! TLS over the simulated kernel with injected faults, against a client of rustls.

use std::time::Duration;

use crate::base::address::Address;
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::event_loop::EventLoop;
use crate::event_loop::tests::world::{Filters, run_with};
use crate::parts::inbox::Input;
use crate::service::Service;
use crate::sys::sim::each_seed;
use crate::sys::sim::{Profile, Script, Sim, Tape, address};
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

fn both() -> (Server, Client) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identity = CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    let server = Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() });
    let options = ClientOptions { trust: Trust::DangerAcceptAny, ..ClientOptions::default() };
    (server.unwrap(), Client::new(options).unwrap())
}

/// Both sides of TLS for one world. Each has its own, so that no session of an earlier one is resumed, and signatures
/// of Ed25519, which have one length: else the same tape would not make the same run.
fn filters() -> Filters {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let chain = rcgen::CertificateParams::new(["localhost".to_string()]).unwrap().self_signed(&key).unwrap();
    let identity = CertifiedKey::from_pem(chain.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let server = Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() });
    let options = ClientOptions { trust: Trust::DangerAcceptAny, ..ClientOptions::default() };
    let client = Client::new(options).unwrap();
    Filters { server: server.unwrap().filter_config(), client: client.filter_config() }
}

/// The world of the loop's own tests, with clients of rustls as its peers.
#[test]
fn no_world_breaks_an_oracle_when_its_peers_speak_tls() {
    let run = |tape: &Tape, profile| run_with(tape, profile, Some(filters()));
    for profile in [Profile::Strict, Profile::Contract] {
        each_seed(4, |tape| assert!(run(tape, profile).0 >= 1_500, "it has ended early"));
    }
    let hashes = [0; 2].map(|_| run(&Tape::seeded(0), Profile::Strict).1);
    assert_eq!(hashes[0], hashes[1], "the same tape, and another run");
}

/// A client that stops after any byte of its first or last flight is closed at the deadline, and all its memory is
/// freed.
#[test]
fn a_handshake_that_stops_anywhere_ends_at_its_deadline() {
    let (server, client) = both();
    let mut server = TestServer::new(Limits { socket: no_idle(), ..Limits::default() }, &server);
    let (mut filter, mut hello) =
        (client.filter_config().filter(&"localhost:1".parse().unwrap()).unwrap(), Vec::new());
    filter.open(&mut [], &mut hello);
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
