//! Two processes on one simulated kernel, and a broker that the test plays. That of the script in `shares.lua` is what
//! tests/cli/shared_limits.rs has a real Redis execute.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill::testing::{Bench, Peer};
use tidemill::{Input, Key, Service, Socket, SocketLimits};

use super::*;

const BROKER: &str = "10.0.0.7:6379";
/// Of both processes together.
const RATE: usize = 1_000_000;
/// What may be read at once: a bucket, and what was lent before; packets and ticks are not divided.
const AT_ONCE: usize = RATE / 8 + RATE / 32 + 4 * 1_448 + RATE / 100;

/// What the played broker does with a request.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Answers,
    Ends,
    Waits,
    Says(&'static str),
}

/// Divides the total as the script does, with two processes at most.
struct Played {
    /// Of each process: what it holds at most, and what it wants.
    known: BTreeMap<String, (usize, usize)>,
    mode: Mode,
}

impl Played {
    fn share(&mut self, id: &str, [request, held, wanted, total]: [usize; 4]) -> usize {
        let is_lost = request > 1 && !self.known.contains_key(id);
        let others = self.known.iter().find(|(other, _)| *other != id).map(|(_, known)| *known);
        let (has, wants) = others.unwrap_or((0, 0));
        let least = if others.is_some() { total / 32 } else { 0 };
        let (wanted, wants) = (wanted.max(least), wants.max(least));
        let share = match (wanted + wants <= total, wanted <= total / 2) {
            (true, _) => wanted + (total - wanted - wants) / (1 + usize::from(others.is_some())),
            (false, true) => wanted,
            (false, false) => (total - wants).max(total / 2),
        };
        let share = share.min(total.saturating_sub(has));
        let share = if is_lost { share.min(held) } else { share };
        self.known.insert(id.to_string(), (share.max(held), wanted));
        share
    }
}

impl Service for Played {
    type Session = ();
    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(Answer::Array(words)) = resp::take(input).expect("a command") {
            let word = |n: usize| match &words[n] {
                Answer::BulkString(text) => String::from_utf8_lossy(text).into_owned(),
                other => panic!("{other:?} is no word of a command"),
            };
            assert_eq!((word(0), word(1) == SHARES, word(3)), ("EVAL".into(), true, "limits".into()));
            let numbers = [5, 6, 7, 8].map(|n| word(n).parse().expect("a number"));
            match self.mode {
                Mode::Answers => {
                    let share = self.share(&word(4), numbers);
                    socket.send(format!(":{share}\r\n"));
                }
                Mode::Ends => socket.abort(),
                Mode::Waits => {}
                Mode::Says(text) => socket.send(text),
            }
        }
    }
}

/// Reads and discards.
#[derive(Default)]
struct Sink(usize);

impl Service for Sink {
    type Session = ();
    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), _: &mut Socket<'_>, input: &mut Input<'_>) {
        self.0 += input.take_all().len();
    }
}

fn shared(total: usize) -> Shared {
    let address = BROKER.parse().expect("an address");
    let broker = Broker { address, credentials: None, database: 0, filter: None };
    Shared { broker, key: "limits".to_string(), total }
}

struct World {
    bench: Bench,
    broker: Key<Played>,
    sinks: [Key<Sink>; 2],
    peers: [Peer; 2],
    /// What was read of both, each tenth of a second.
    read: Vec<[usize; 2]>,
}

impl World {
    fn new(mode: Mode) -> World {
        let mut bench = Bench::new();
        let broker = bench.add(Played { known: BTreeMap::new(), mode });
        bench.listen(BROKER, broker).expect("a free address");
        let made = [1, 2].map(|number| {
            let mut pending = Pending::default();
            pending.share_rate(shared(RATE), 1);
            let rate = pending.rate().expect("it is shared");
            let group = bench.sockets().add_shared_group(&rate).expect("a group");
            let limits = SocketLimits { group: Some(group), idle: None, ..SocketLimits::default() };
            let sink = bench.add_with(Sink::default(), limits);
            pending
                .services(on_one_loop(sink.id(), Some(group)))
                .for_each(|it| _ = bench.add_with(it, Backplane::limits()));
            let at = format!("10.0.1.{number}:80");
            bench.listen(&*at, sink).expect("a free address");
            (sink, bench.connect_to(&at))
        });
        let [(first, ada), (second, bob)] = made;
        World { bench, broker, sinks: [first, second], peers: [ada, bob], read: vec![[0; 2]] }
    }

    fn broker(&mut self, work: impl FnOnce(&mut Played)) {
        self.bench.with(self.broker, |broker, _| work(broker));
    }

    /// A peer of a process sends more than is read.
    fn stuff(&mut self, process: usize) {
        self.bench.say(self.peers[process], vec![b'x'; 20 * RATE]);
    }

    /// Returns how much each process reads a second meanwhile.
    fn advance(&mut self, seconds: usize) -> [usize; 2] {
        let before = self.read[self.read.len() - 1];
        for _ in 0..10 * seconds {
            self.bench.advance(Duration::from_millis(100));
            let read = self.sinks.map(|sink| self.bench.with(sink, |sink, _| sink.0));
            self.read.push(read);
        }
        let read = self.read[self.read.len() - 1];
        [0, 1].map(|process| (read[process] - before[process]) / seconds)
    }

    /// In any span, both have read no more than the rate and what may be read at once.
    #[track_caller]
    fn assert_within_the_rate(&self) {
        for (from, before) in self.read.iter().enumerate() {
            for (span, after) in self.read[from..].iter().enumerate() {
                let read = after[0] + after[1] - before[0] - before[1];
                let most = span * RATE / 10 + AT_ONCE;
                assert!(
                    read <= most,
                    "{read} bytes in {span} tenths of a second from {from} on, at most {most}"
                );
            }
        }
    }
}

#[test]
fn one_process_gets_almost_the_whole_rate_and_two_get_halves_and_no_more_together() {
    let mut world = World::new(Mode::Answers);
    world.stuff(0);
    world.advance(2);
    let [alone, _] = world.advance(3);
    assert!(alone > RATE * 9 / 10, "{alone} bytes/s, while the other process has nothing to read");
    world.stuff(1);
    world.advance(2);
    let both = world.advance(4);
    assert!(both.iter().all(|read| (RATE * 9 / 20..RATE * 11 / 20).contains(read)), "{both:?}");
    world.assert_within_the_rate();
}

#[test]
fn while_the_broker_is_away_each_process_keeps_its_share_and_after_a_loss_of_data_none_gets_more_than_the_rate()
 {
    for mode in [Mode::Ends, Mode::Waits] {
        let mut world = World::new(Mode::Answers);
        (0..2).for_each(|process| world.stuff(process));
        world.advance(3);
        world.broker(|broker| broker.mode = mode);
        let away = world.advance(12);
        assert!(away.iter().all(|read| (RATE * 9 / 20..RATE * 11 / 20).contains(read)), "{away:?}");
        world.broker(|broker| {
            broker.known.clear();
            broker.mode = Mode::Answers;
        });
        let back = world.advance(12);
        assert!(back.iter().all(|read| (RATE * 8 / 20..RATE * 11 / 20).contains(read)), "{back:?}");
        world.assert_within_the_rate();
    }
}

#[test]
fn a_broker_that_says_nonsense_changes_no_share_and_is_asked_again_later() {
    for said in [
        "+OK\r\n",
        ":-5\r\n",
        ":99999999999\r\n",
        "-NOPERM not allowed\r\n",
        "HTTP/1.1 400 Bad Request\r\n",
        "*1\r\n:7\r\n",
        ":500000\r\n:1\r\n",
    ] {
        let mut world = World::new(Mode::Answers);
        (0..2).for_each(|process| world.stuff(process));
        world.advance(3);
        world.broker(|broker| broker.mode = Mode::Says(said));
        let meanwhile = world.advance(5);
        assert!(
            meanwhile.iter().all(|read| (RATE * 9 / 20..RATE * 11 / 20).contains(read)),
            "{said:?} {meanwhile:?}"
        );
        world.broker(|broker| broker.mode = Mode::Answers);
        world.advance(30);
        world.broker(|broker| assert_eq!(broker.known.len(), 2));
        let requests: usize = world.bench.stats().dialed as usize;
        assert!((4..40).contains(&requests), "{said:?}: dialed {requests} times");
        world.assert_within_the_rate();
    }
}

#[test]
fn a_process_that_has_not_reached_the_broker_yet_has_a_sixteenth() {
    let mut world = World::new(Mode::Ends);
    world.stuff(1);
    world.advance(1);
    let [_, alone] = world.advance(4);
    assert!((RATE / 18..RATE / 14).contains(&alone), "{alone} bytes/s");
    world.broker(|broker| broker.mode = Mode::Answers);
    world.advance(12);
    let [_, alone] = world.advance(2);
    assert!(alone > RATE * 9 / 10, "{alone} bytes/s");
    world.assert_within_the_rate();
}

#[test]
fn two_processes_never_have_more_connections_together_than_the_total_and_each_gets_what_is_free() {
    const TOTAL: usize = 100;
    let mut bench = Bench::new();
    let broker = bench.add(Played { known: BTreeMap::new(), mode: Mode::Answers });
    bench.listen(BROKER, broker).expect("a free address");
    let addresses = ["10.0.1.1:80", "10.0.1.2:80"];
    let sinks = addresses.map(|at| {
        let mut pending = Pending::default();
        pending.share_connections(shared(TOTAL));
        let sink = bench.add(Sink::default());
        bench.sockets().set_max_connections(sink, pending.cap().map(|cap| cap.in_force()));
        pending
            .services(on_one_loop(sink.id(), None))
            .for_each(|it| _ = bench.add_with(it, Backplane::limits()));
        bench.listen(at, sink).expect("a free address");
        sink
    });
    // So many peers connect to a process within three seconds. Returns how many it has then.
    let connect = |bench: &mut Bench, process: usize, peers: &mut Vec<Peer>, count: usize| {
        for _ in 0..count {
            peers.push(bench.connect_to(addresses[process]));
            let all: usize = sinks.iter().map(|sink| bench.sockets().count(*sink)).sum();
            assert!(all <= TOTAL, "{all} connections");
            bench.advance(Duration::from_millis(3_000 / count as u64));
        }
        peers.retain(|peer| bench.ended(*peer).is_none());
        bench.sockets().count(sinks[process])
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    bench.advance(Duration::from_secs(1));
    connect(&mut bench, 0, &mut first, 150);
    let has = connect(&mut bench, 0, &mut first, 50);
    assert!((90..=97).contains(&has), "{has} of {TOTAL}: the other one has room for a few");
    let has = connect(&mut bench, 1, &mut second, 50);
    assert!((3..=10).contains(&has), "{has}: they are not taken from the other one");
    first.drain(..60).for_each(|peer| bench.reset(peer));
    bench.advance(Duration::from_secs(2));
    let has = connect(&mut bench, 1, &mut second, 90);
    assert!((45..=64).contains(&has), "{has} of those that have become free");
    bench.with(broker, |broker, _| broker.mode = Mode::Ends);
    let before = [0, 1].map(|process| bench.sockets().count(sinks[process]));
    let after = [connect(&mut bench, 0, &mut first, 50), connect(&mut bench, 1, &mut second, 50)];
    assert!(after[0] >= before[0] && after[1] >= before[1], "{before:?} {after:?}: none is closed");
}
