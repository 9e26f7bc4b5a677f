//! `--shared-limits`: a rate of several processes over a real Redis.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::backplane::Redis;
use crate::interop::has;
use crate::peer::Peer;
use crate::server::{Server, run, shared, until};

const SOON: Duration = Duration::from_secs(10);
const RATE: usize = 512 * 1024;

/// A client that sends without pause, and counts what comes back.
struct Flood(Arc<AtomicUsize>);

impl Flood {
    fn start(server: &Server) -> Flood {
        let count = Arc::new(AtomicUsize::new(0));
        let mut stream = Peer::connect(server.address).0;
        let (mut sending, counted) = (stream.try_clone().expect("a descriptor"), count.clone());
        // Both end with the server.
        thread::spawn(move || while sending.write_all(&[b'x'; 8192]).is_ok() {});
        thread::spawn(move || {
            let mut bytes = [0; 8192];
            while let Ok(length @ 1..) = stream.read(&mut bytes) {
                counted.fetch_add(length, Ordering::Relaxed);
            }
        });
        Flood(count)
    }

    fn read(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn two_processes_have_one_rate_which_goes_on_while_redis_is_killed_and_back() {
    let _others = shared();
    if !has("redis-server") {
        return;
    }
    let mut redis = Redis::start(6, &["--requirepass", "secret"]);
    let words = format!("--total-rate {RATE} --shared-limits redis://:secret@{}/2 --drain 0", redis.address);
    let servers =
        [1, 2].map(|shards| Server::start(&format!("echo --raw --rate 0 --shards {shards} {words}")));
    let connected = |times| {
        let is = |server: &Server| server.log().matches("shared limits: connected to ").count() == times;
        until("both are connected", SOON, || servers.iter().all(is));
    };
    connected(1);
    let begun = Instant::now();
    let floods = servers.each_ref().map(Flood::start);
    let read_in = |span: u64| {
        let (before, begun) = (floods.each_ref().map(Flood::read), Instant::now());
        thread::sleep(Duration::from_millis(span));
        let rate = |one: usize| (floods[one].read() - before[one]) as f64 / begun.elapsed().as_secs_f64();
        [rate(0), rate(1)]
    };
    let is_half = |rates: [f64; 2]| rates.iter().all(|rate| (0.3..0.7).contains(&(rate / RATE as f64)));
    until("each has half the rate", SOON, || is_half(read_in(200)));
    redis.kill();
    let away = |server: &Server| server.log().contains("; this process keeps its last share, ");
    until("both notice it", SOON, || servers.iter().all(away));
    until("each has half of it while Redis is away", SOON, || is_half(read_in(400)));
    redis.run();
    connected(2);
    until("each has half of it when it is back", SOON, || is_half(read_in(400)));
    let (sum, most) = (floods[0].read() + floods[1].read(), begun.elapsed().as_secs_f64() * RATE as f64);
    // A bucket of an eighth of a second, a quarter of that lent before, and packets that are not divided.
    assert!(sum as f64 <= most + RATE as f64 * 0.16 + 8.0 * 1448.0, "{sum} bytes, at most {most}");
    for mut server in servers {
        let log = server.end();
        assert!(!log.contains("secret"), "{log}");
    }
}

#[test]
fn two_processes_have_as_many_connections_together_as_they_may() {
    let _others = shared();
    if !has("redis-server") {
        return;
    }
    let redis = Redis::start(8, &[]);
    let words = format!("--total-connections 8 --shared-limits redis://{} --drain 0", redis.address);
    let servers = [1, 2].map(|shards| Server::start(&format!("echo --raw --shards {shards} {words}")));
    let mut open: Vec<Peer> = Vec::new();
    let fill = |open: &mut Vec<Peer>| {
        let accepted = servers.iter().map(|server| Peer::connect(server.address));
        open.extend(accepted.filter_map(|mut peer| peer.echoes("in").then_some(peer)));
        open.len() >= 8
    };
    until("eight are accepted", SOON, || fill(&mut open));
    for _ in 0..6 {
        assert!(fill(&mut open) && open.len() == 8, "{} connections", open.len());
        thread::sleep(Duration::from_millis(50));
    }
    open.drain(..5);
    until("others are accepted for those that have ended", SOON, || fill(&mut open));
    assert_eq!(open.len(), 8);
    assert!(open.iter_mut().all(|peer| peer.echoes("still served")));
}

/// The script, executed by Redis.
struct Shares {
    stream: BufReader<TcpStream>,
    /// How long a process is known.
    kept: &'static str,
}

impl Shares {
    fn execute(&mut self, words: &[&str]) -> String {
        let mut command = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| command += &format!("${}\r\n{word}\r\n", word.len()));
        self.stream.get_mut().write_all(command.as_bytes()).expect("it reads");
        let mut answer = String::new();
        self.stream.read_line(&mut answer).expect("its answer");
        answer.trim_end().to_string()
    }

    /// What a process may hold, by its request of a number, of a total of a million.
    fn ask(&mut self, id: &str, request: u32, held: u32, wanted: u32) -> u32 {
        let script = include_str!("../../src/bin/tidemill/shared_limits/shares.lua");
        let [request, held, wanted] = [request, held, wanted].map(|number| number.to_string());
        let words = ["EVAL", script, "1", "shares", id, &request, &held, &wanted, "1000000", self.kept];
        let answer = self.execute(&words);
        answer.strip_prefix(':').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }
}

#[test]
fn shares_are_never_more_than_the_total_whatever_is_asked_in_which_order() {
    const ALL: u32 = 1_000_000;
    let _others = shared();
    if !has("redis-server") {
        return;
    }
    let redis = Redis::start(7, &[]);
    let stream = BufReader::new(TcpStream::connect(redis.address).expect("it listens"));
    let mut shares = Shares { stream, kept: "10000" };
    assert_eq!(shares.ask("a", 1, 62_500, 0), ALL, "alone");
    assert_eq!(shares.ask("b", 1, 0, ALL), 0, "the other one holds all");
    assert_eq!(shares.ask("a", 2, ALL, 0), 31_250, "it wants nothing");
    assert_eq!(shares.ask("b", 2, 0, ALL), 0, "and has not told yet that it holds less");
    assert_eq!(shares.ask("a", 3, 31_250, 0), 31_250);
    assert_eq!(shares.ask("b", 3, 0, ALL), 968_750);
    assert_eq!(shares.ask("a", 2, ALL, ALL), ALL, "an old request is answered with what it says");
    assert_eq!(shares.ask("b", 4, 968_750, ALL), 968_750, "and changes nothing");
    assert_eq!(shares.ask("a", 4, 31_250, ALL), 31_250);
    assert_eq!(shares.ask("b", 5, 968_750, ALL), 500_000);
    assert_eq!(shares.ask("a", 5, 31_250, ALL), 31_250);
    assert_eq!(shares.ask("b", 6, 500_000, ALL), 500_000);
    assert_eq!(shares.ask("a", 6, 31_250, ALL), 500_000);
    assert_eq!(shares.ask("c", 1, 0, 100_000), 0);
    assert_eq!(shares.ask("a", 7, 500_000, ALL), 450_000, "c wants less than a third");
    shares.ask("a", 8, 450_000, ALL);
    assert_eq!(shares.ask("c", 2, 0, 100_000), 50_000);
    // Its data is lost. No process gets more before all have had time to tell what they hold.
    shares.execute(&["FLUSHALL"]);
    shares.kept = "2000";
    assert_eq!(shares.ask("c", 3, 50_000, ALL), 62_500);
    assert_eq!(shares.ask("b", 7, 500_000, ALL), 500_000);
    // Processes that do not ask are known for that long.
    let mut request = 3;
    until("it has all", SOON, || {
        request += 1;
        shares.ask("c", request, 62_500, ALL) == ALL
    });
}

#[test]
fn wrong_options_of_shared_limits_are_one_line() {
    let _others = shared();
    for (words, said) in [
        ("--shared-limits redis://host", "no effect without --total-rate or --total-connections"),
        ("--total-rate 1MiB --shared-limits-key k", "--shared-limits <URL>"),
        ("--total-connections 7", "--shared-limits <URL>"),
        (
            "--total-rate 1MiB --shared-limits redis://pw@host",
            "the URL of --shared-limits is wrong: before @ is USER:PASSWORD, or :PASSWORD",
        ),
    ] {
        let words: Vec<&str> = format!("echo {words}").leak().split(' ').collect();
        let outcome = run(&words, b"");
        assert_eq!(outcome.code, Some(2), "{words:?}: {}", outcome.stderr);
        let stderr = outcome.stderr;
        assert!(stderr.contains(said) && !stderr.contains("pw"), "{words:?}: {stderr}");
    }
}
