//! One service on several threads: where connections go, what crosses threads, and how a shard ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidemill::{
    AccessPolicy, ConnId, Input, Limits, Peers, RefuseMode, Rules, Service, ServiceSockets, Shards, Socket,
};

const SECOND: Duration = Duration::from_secs(1);

/// Answers each line with the number of its shard; sends lines that begin with '!' to all members on all shards.
struct Room {
    number: usize,
    peers: Peers<Room>,
    members: Vec<ConnId>,
}

impl Room {
    fn tell(&mut self, line: &[u8], sockets: &mut ServiceSockets<'_, Room>) {
        for &id in &self.members {
            let Some(mut socket) = sockets.get(id) else { continue };
            socket.send([line, b"\n"].concat());
        }
    }
}

impl Service for Room {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        self.members.push(socket.id());
    }

    fn data(&mut self, (): &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(line) = input.take_line().map(<[u8]>::trim_ascii_end) {
            assert!(line != b"panic", "it was asked for");
            if line.starts_with(b"!") {
                for shard in 0..self.peers.loads().len() {
                    let line = line.to_vec();
                    self.peers.post(shard, move |room, sockets| room.tell(&line, sockets)).expect("a place");
                }
            } else {
                socket.send(format!("{}\n", self.number));
            }
        }
    }
}

fn rooms(count: usize, limits: &Limits) -> (Shards<Room>, SocketAddr) {
    let make = |number, peers: &Peers<Room>| Room { number, peers: peers.clone(), members: Vec::new() };
    let mut shards = Shards::start(count, limits, make).expect("threads");
    let at = shards.listen("127.0.0.1:0").expect("a port");
    (shards, at)
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(at: SocketAddr) -> Client {
        let stream = TcpStream::connect(at).expect("it listens");
        stream.set_read_timeout(Some(10 * SECOND)).expect("an option");
        Client(BufReader::new(stream))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_string()
    }

    /// The number of its shard.
    fn shard(&mut self) -> usize {
        self.0.get_mut().write_all(b"which?\n").expect("it takes it");
        self.line().parse().expect("a number")
    }
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + 10 * SECOND;
    while !holds() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn end(shards: Shards<Room>) -> Vec<u64> {
    shards.shutdown(Duration::ZERO);
    shards.join().expect("no shard has failed").iter().map(|stats| stats.accepted).collect()
}

/// Both ends of all connections are in this process.
fn raise_descriptors() {
    let max = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: max, maximum: max })
        .expect("the soft limit up to the hard one");
}

#[test]
fn a_thousand_connections_are_spread_within_five_percent_and_stay_so_when_half_of_them_are_replaced() {
    raise_descriptors();
    let (shards, at) = rooms(4, &Limits::default());
    let mut clients: Vec<Client> = (0..1_000).map(|_| Client::connect(at)).collect();
    let mut counts = [0; 4];
    clients.iter_mut().for_each(|client| counts[client.shard()] += 1);
    assert!(counts.iter().all(|&count| (238..=262).contains(&count)), "{counts:?}");
    // All of one shard go, and a half of the next.
    let mut gone = 0;
    clients.retain_mut(|client| {
        let shard = client.shard();
        gone += usize::from(shard <= 1);
        shard > 1 || (shard == 1 && gone % 2 == 0)
    });
    let left = clients.len();
    until("they have gone", || shards.peers().loads().iter().sum::<usize>() == left);
    clients.extend((left..1_000).map(|_| Client::connect(at)));
    let mut counts = [0; 4];
    clients.iter_mut().for_each(|client| counts[client.shard()] += 1);
    assert!(counts.iter().all(|&count| (238..=262).contains(&count)), "{counts:?}");
    assert_eq!(shards.peers().loads(), counts);
    assert!(end(shards).iter().all(|&accepted| accepted >= 238));
}

#[test]
fn connections_that_end_before_the_next_one_are_spread_too() {
    let (shards, at) = rooms(2, &Limits::default());
    for _ in 0..20 {
        Client::connect(at).shard();
        until("it has gone", || shards.peers().loads() == [0, 0]);
    }
    assert_eq!(end(shards), [10, 10]);
}

#[test]
fn a_line_reaches_the_members_on_every_shard() {
    let (shards, at) = rooms(3, &Limits::default());
    let mut clients: Vec<Client> = (0..9).map(|_| Client::connect(at)).collect();
    for client in &mut clients {
        client.shard();
    }
    clients[4].0.get_mut().write_all(b"!hello\n").expect("it takes it");
    assert!(clients.iter_mut().all(|client| client.line() == "!hello"));
    assert_eq!(end(shards), [3, 3, 3]);
}

#[test]
fn a_shard_that_stops_loses_no_connection_and_gets_no_further_one() {
    let (shards, at) = rooms(2, &Limits::default());
    let mut old: Vec<Client> = (0..10).map(|_| Client::connect(at)).collect();
    for client in &mut old {
        client.shard();
    }
    let asks =
        std::thread::spawn(move || -> Vec<usize> { (0..600).map(|_| Client::connect(at).shard()).collect() });
    until("it is used", || shards.peers().loads().iter().sum::<usize>() > 10);
    shards.stop(0, 30 * SECOND);
    let answers = asks.join().expect("each connection has its answer");
    assert_eq!(answers.len(), 600);
    assert!(old.iter_mut().all(|client| client.shard() < 2), "those that it has are served within the grace");
    assert!((0..50).all(|_| Client::connect(at).shard() == 1));
    end(shards);
}

#[test]
fn a_connection_beyond_the_limit_of_all_shards_is_told_so_and_counted() {
    let (shards, at) = rooms(2, &Limits { connections: 3, ..Limits::default() });
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(at)).collect();
    for client in &mut clients {
        client.shard();
    }
    let mut beyond = Client::connect(at);
    let mut rest = Vec::new();
    beyond.0.read_to_end(&mut rest).expect("an end");
    assert_eq!(rest, b"server busy\n", "as a listener of one reactor says it");
    assert_eq!(shards.refused(), 1);
    drop(clients.pop());
    until("there is a place", || shards.peers().loads().iter().sum::<usize>() == 5);
    Client::connect(at).shard();
    assert_eq!(end(shards).iter().sum::<u64>(), 7);
}

#[test]
fn the_limits_of_an_address_hold_across_all_shards() {
    let (shards, at) = rooms(4, &Limits::default());
    let policy = AccessPolicy { per_address: Some(10), ..AccessPolicy::default() };
    shards.set_access_policy(policy.clone());
    let is_served = |client: &mut Client| {
        let _ = client.0.get_mut().write_all(b"which?\n");
        let mut line = String::new();
        client.0.read_line(&mut line).is_ok_and(|_| line.trim().parse::<usize>().is_ok())
    };
    for round in 1..=3 {
        let mut clients: Vec<Client> = (0..14).map(|_| Client::connect(at)).collect();
        let served = clients.iter_mut().filter_map(|client| is_served(client).then_some(())).count();
        assert_eq!((served, shards.refused()), (10, 4 * round), "none more, and none less");
        drop(clients);
        until("all have gone", || shards.peers().loads().iter().sum::<usize>() == 0);
    }
    let mut rules = Rules::default();
    rules.deny("127.0.0.1".parse().expect("an address"), RefuseMode::Reset);
    shards.set_access_policy(AccessPolicy { rules, ..policy });
    assert!(!is_served(&mut Client::connect(at)));
    assert_eq!(end(shards).iter().sum::<u64>(), 30);
}

#[test]
fn a_service_that_panics_ends_its_shard_and_not_the_others() {
    let (shards, at) = rooms(2, &Limits::default());
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(at)).collect();
    let broken = clients[0].shard();
    clients[0].0.get_mut().write_all(b"panic\n").expect("it takes it");
    let mut rest = Vec::new();
    // A reset, or an end: what was open is closed by the end of the thread.
    let _ = clients[0].0.read_to_end(&mut rest);
    for _ in 0..20 {
        let mut client = Client::connect(at);
        assert_eq!(client.shard(), 1 - broken);
    }
    shards.shutdown(Duration::ZERO);
    assert_eq!(shards.join().expect_err("it has panicked").to_string(), "a service has panicked");
}
