//! TLS itself, in a kernel that comes short, early, late and interrupted: a real client on the other side.

use super::*;
use crate::filter::Filter;
use crate::tls::{Client, ClientOptions, Identity, Server, ServerOptions, Trust};

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
    let listen = ListenOptions { secure: Some(server.security()), ..ListenOptions::default() };
    let mut house = Plan { limits, listen, ..Plan::default() }.build(echo);
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
        house.turn();
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
    let stats = house.sockets().stats();
    assert_eq!((stats.handshakes, stats.ended(Closed::Finished)), (4, 4), "seed {seed}");
    assert_eq!((house.turns.table.memory, house.turns.table.connections()), (0, 0), "seed {seed}");
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
    let listen = ListenOptions { secure: Some(server.security()), ..ListenOptions::default() };
    let mut house = Plan { listen, ..socket_limits(no_idle()) }.build(echo);
    let hello = Caller::new(0, &client).waiting;
    for cut in (0..hello.len()).step_by(7) {
        let peer = house.script.connect();
        house.script.feed(peer, &hello[..cut]);
        house.settle();
    }
    assert!(house.turns.table.connections() > 30);
    house.pass(12 * SECOND);
    assert_eq!((house.turns.table.connections(), house.turns.table.memory), (0, 0));
    assert!(house.told().is_empty(), "nobody was met");
}
