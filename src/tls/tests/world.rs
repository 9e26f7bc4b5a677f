//! TLS itself, in a kernel that comes short, early, late and interrupted: a real client on the other side.

use std::time::Duration;

use crate::base::address::Address;
use crate::base::filter::Filter;
use crate::base::reason::Closed;
use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::event_loop::Loop;
use crate::parts::inbox::Input;
use crate::service::Service;
use crate::sys::sim::{Peer, Rng, Script, Sim, address};
use crate::tls::{Client, ClientOptions, Identity, Server, ServerOptions, Trust};

struct Echo;

impl Service for Echo {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        socket.send(input.take_all());
    }
}

/// An echo over TLS.
struct House {
    turns: Loop<Sim>,
    script: Script,
}

impl House {
    fn new(limits: Limits, server: &Server) -> House {
        let (sim, script) = Sim::new();
        let mut turns = Loop::new(sim, limits).unwrap();
        let echo = turns.add(Echo, None);
        let options = ListenOptions { secure: Some(server.security()), ..ListenOptions::default() };
        turns.listen(&Address::from(address()), echo, &options).unwrap();
        House { turns, script }
    }

    fn settle(&mut self) {
        self.turns.turn_until_quiet(&self.script);
    }

    fn is_empty(&self) -> bool {
        (self.turns.table.connections(), self.turns.table.memory) == (0, 0)
    }
}

const MS: Duration = Duration::from_millis(1);

fn no_idle() -> SocketLimits {
    SocketLimits { idle: None, ..SocketLimits::default() }
}

/// A caller: what a client's session says, and what it has been told.
struct Caller {
    peer: Peer,
    session: Box<dyn Filter>,
    ready: bool,
    ended: bool,
    /// On its way to the reactor.
    waiting: Vec<u8>,
    to_seal: Vec<u8>,
    sent: Vec<u8>,
    heard: Vec<u8>,
}

impl Caller {
    fn new(peer: Peer, client: &Client) -> Caller {
        let session = client.security().filter(&"localhost:1".parse().unwrap()).unwrap();
        let (waiting, to_seal, sent, heard) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut caller = Caller { peer, session, ready: false, ended: false, waiting, to_seal, sent, heard };
        caller.hear(&[]);
        caller
    }

    fn hear(&mut self, bytes: &[u8]) {
        let mut wire = vec![0; self.session.kept()];
        wire.extend_from_slice(bytes);
        let opened = self.session.open(&mut wire, &mut self.waiting);
        assert_eq!(opened.broken, None);
        self.heard.extend_from_slice(&wire[..opened.plain]);
        (self.ready, self.ended) = (opened.ready, opened.ended);
        if self.ready && !self.to_seal.is_empty() {
            let plain = std::mem::take(&mut self.to_seal);
            self.session.seal(&plain, &mut self.waiting).unwrap();
        }
    }

    fn say(&mut self, plain: &[u8]) {
        self.sent.extend_from_slice(plain);
        self.to_seal.extend_from_slice(plain);
        self.hear(&[]);
    }
}

fn both() -> (Server, Client) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identity = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    let server = Server::new(ServerOptions { identities: vec![identity], ..ServerOptions::default() });
    let options = ClientOptions { trust: Trust::AnyoneInsecurely, ..ClientOptions::default() };
    (server.unwrap(), Client::new(options).unwrap())
}

fn misbehaving_world(seed: u64, server: &Server, client: &Client) {
    let mut rng = Rng(seed);
    let limits = Limits {
        read_budget: 100 + rng.below(70_000) as usize,
        write_budget: 100 + rng.below(70_000) as usize,
        handshakes: 1 + rng.below(3) as usize,
        socket: SocketLimits { handshake: None, ..no_idle() },
        ..Limits::default()
    };
    let mut house = House::new(limits, server);
    house.script.misbehave(seed);
    let mut callers: Vec<Caller> = (0..4).map(|_| Caller::new(house.script.connect(), client)).collect();
    for _ in 0..400 {
        let one = rng.below(callers.len() as u64) as usize;
        let caller = &mut callers[one];
        match rng.below(5) {
            0 => {
                let plain: Vec<u8> = (0..rng.below(40_000)).map(|i| (i % 251) as u8).collect();
                caller.say(&plain);
            }
            1 | 2 => {
                let n = (rng.below(60_000) as usize).min(caller.waiting.len());
                house.script.feed(caller.peer, &caller.waiting.drain(..n).collect::<Vec<_>>());
            }
            3 => house.script.window(caller.peer, rng.below(50_000) as usize),
            _ => caller.hear(&house.script.heard(caller.peer)),
        }
        house.turns.turn(Some(Duration::ZERO)).unwrap();
        house.script.advance(MS);
    }
    house.script.calm();
    for caller in &mut callers {
        house.script.window(caller.peer, usize::MAX);
        // As long as either has something to say to the other.
        while !(caller.ready && caller.waiting.is_empty() && caller.heard == caller.sent) {
            house.script.feed(caller.peer, &std::mem::take(&mut caller.waiting));
            house.settle();
            let heard = house.script.heard(caller.peer);
            assert!(!heard.is_empty() || !caller.waiting.is_empty(), "seed {seed}: nobody goes on");
            caller.hear(&heard);
        }
        caller.session.seal_end(&mut caller.waiting);
        house.script.feed(caller.peer, &caller.waiting);
        house.settle();
        caller.hear(&house.script.heard(caller.peer));
        assert!(caller.ended, "seed {seed}: the end is announced");
    }
    let stats = Sockets::new(&mut house.turns.table).stats();
    assert_eq!((stats.handshakes, stats.ended(Closed::Finished)), (4, 4), "seed {seed}");
    assert!(house.is_empty(), "seed {seed}");
}

#[test]
fn tls_is_exact_in_a_world_that_misbehaves() {
    let (server, client) = both();
    let one = std::env::var("TIDEMILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..60, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| misbehaving_world(seed, &server, &client));
        assert!(std::panic::catch_unwind(run).is_ok(), "replay with TIDEMILL_SEED={seed}");
    }
}

/// Whoever stops after any byte of his first words, or of the last ones of his handshake, leaves nothing behind.
#[test]
fn a_handshake_that_stops_anywhere_ends_at_its_deadline() {
    let (server, client) = both();
    let mut house = House::new(Limits { socket: no_idle(), ..Limits::default() }, &server);
    let hello = Caller::new(0, &client).waiting;
    for cut in (0..hello.len()).step_by(7) {
        let peer = house.script.connect();
        house.script.feed(peer, &hello[..cut]);
        house.settle();
    }
    assert!(house.turns.table.connections() > 30);
    for _ in 0..1_200 {
        house.script.advance(10 * MS);
        house.settle();
    }
    assert!(house.is_empty());
    let stats = Sockets::new(&mut house.turns.table).stats();
    assert_eq!((stats.handshakes, stats.ended_in_all()), (0, stats.accepted), "nobody was met");
}
