//! Many concurrent handshakes, and their effect on open connections.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::StreamOwned;
use rustls::client::Resumption;

use super::{Certificates, TlsPeer, client_connection, client_hello};
use crate::server::{Server, exclusive, meanwhile, raise_descriptors, until, within_one_of_three};

const MANY: usize = 1000;
const INSIDE: usize = 20;
const MOST: Duration = Duration::from_millis(50);

/// The round-trip times of messages, on each of these connections in turn, until the flag is set.
fn pings(inside: &mut [TlsPeer], over: &AtomicBool) -> Vec<Duration> {
    let mut times = Vec::new();
    while !over.load(Ordering::Relaxed) {
        for peer in inside.iter_mut() {
            let begun = Instant::now();
            assert!(peer.echoes(b"are you still there?"), "an open connection was dropped");
            times.push(begun.elapsed());
        }
        thread::sleep(Duration::from_millis(1));
    }
    times
}

/// The 99th percentile of round trips while other work runs; the longest time there is if there are too few of them.
fn p99_while(inside: &mut [TlsPeer], goes_on: impl FnOnce()) -> Duration {
    let mut times = Vec::new();
    meanwhile(|over| times = pings(inside, over), goes_on);
    if times.len() < 400 {
        println!("only {} pings", times.len());
        return Duration::MAX;
    }
    times.sort_unstable();
    println!("{} pings, p50 {:?}, max {:?}", times.len(), times[times.len() / 2], times[times.len() - 1]);
    times[times.len() * 99 / 100]
}

fn connected_peers(server: &Server, certificates: &Certificates) -> Vec<TlsPeer> {
    let config = certificates.client_config();
    (0..INSIDE).map(|_| TlsPeer::connect(&config, server.address).expect("a connection")).collect()
}

#[test]
fn a_thousand_stalled_handshakes_disturb_no_connection_and_a_new_one_is_accepted() {
    let _quiet = exclusive();
    raise_descriptors();
    let certificates = Certificates::of("stall");
    let mut echo =
        Server::start(&format!("echo --raw --handshake-timeout 3s {}", certificates.server_args("server")));
    let mut inside = connected_peers(&echo, &certificates);
    let (hello, config) = (client_hello(&certificates), certificates.client_config());
    within_one_of_three("the p99 of round trips with a thousand stalled handshakes", MOST, || {
        p99_while(&mut inside, || {
            let _stalls: Vec<TcpStream> = (0..MANY).map(|_| stalls(&echo, &hello)).collect();
            let begun = Instant::now();
            let mut honest = TlsPeer::connect(&config, echo.address).expect("it comes in");
            assert!(honest.echoes(b"at last"), "{}", echo.log());
            println!("a proper client is served after {:?}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            // All of them must be closed, although they send nothing.
            until("the stalling ones are closed", Duration::from_secs(20), || {
                echo.descriptors() < 2 * INSIDE + 50
            });
        })
    });
    drop(inside);
    let log = echo.end();
    assert!(log.contains(" handshakes-delayed=") && log.contains(" handshake-timeout="), "{log}");
}

/// Connects, sends a ClientHello, and nothing more.
fn stalls(server: &Server, hello: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("a connection");
    stream.write_all(hello).expect("it takes it");
    stream
}

#[test]
fn a_flood_of_stalled_handshakes_disturbs_no_open_connection() {
    let _quiet = exclusive();
    raise_descriptors();
    let certificates = Certificates::of("flood");
    let echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let mut inside = connected_peers(&echo, &certificates);
    let (hello, config) = (client_hello(&certificates), certificates.client_config());
    within_one_of_three("the p99 of round trips in a flood of stalled handshakes", MOST, || {
        let p99 = p99_while(&mut inside, || {
            let (mut here, mut came, begun) = (VecDeque::new(), 0, Instant::now());
            while begun.elapsed() < Duration::from_secs(2) {
                here.push_back(stalls(&echo, &hello));
                here.drain(..here.len().saturating_sub(MANY));
                came += 1;
            }
            println!("{came} connects in {:?}", begun.elapsed());
        });
        // To the server, many of them are open until it has read them.
        let begun = Instant::now();
        until("a proper client is served behind them", Duration::from_secs(10), || {
            TlsPeer::connect(&config, echo.address).is_ok_and(|mut honest| honest.echoes(b"at last"))
        });
        println!("a proper client is served after {:?}", begun.elapsed());
        p99
    });
}

#[test]
fn peers_that_leave_while_queued_for_a_handshake_leave_nothing_behind() {
    let _quiet = exclusive();
    let certificates = Certificates::of("leavers");
    let echo =
        Server::start(&format!("echo --raw --max-handshakes 1 {}", certificates.server_args("server")));
    let (hello, before) = (client_hello(&certificates), echo.descriptors());
    within_one_of_three("the end of those that left", Duration::from_millis(400), || {
        until("nothing is left of an attempt before", Duration::from_secs(10), || {
            echo.descriptors() == before
        });
        // This client has been answered: its handshake has the only place.
        let mut first = stalls(&echo, &hello);
        first.read_exact(&mut [0]).expect("an answer");
        let leave: Vec<TcpStream> = (0..300).map(|_| stalls(&echo, &hello)).collect();
        // On a busy machine the first few may have been given up meanwhile, each after 200 ms.
        until("all are there", Duration::from_secs(10), || echo.descriptors() > before + 280);
        let begun = Instant::now();
        drop(leave);
        until("they have been closed", Duration::from_secs(10), || echo.descriptors() <= before + 1);
        begun.elapsed()
    });
}

#[test]
fn a_thousand_handshakes_complete_while_open_connections_are_served() {
    let _quiet = exclusive();
    let certificates = Certificates::of("storm");
    let echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let mut inside = connected_peers(&echo, &certificates);
    // Each handshake is a full one.
    let mut config = (*certificates.client_config()).clone();
    config.resumption = Resumption::disabled();
    let config = std::sync::Arc::new(config);
    within_one_of_three("the p99 of a ping in a storm of handshakes", MOST, || {
        p99_while(&mut inside, || {
            let (done, begun) = (AtomicUsize::new(0), Instant::now());
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..MANY / 4 {
                            let mut peer = TlsPeer::connect(&config, echo.address).expect("a connection");
                            done.fetch_add(usize::from(peer.echoes(b"x")), Ordering::Relaxed);
                        }
                    });
                }
            });
            let rate = MANY as f64 / begun.elapsed().as_secs_f64();
            println!("{MANY} handshakes, {rate:.0} a second");
            assert_eq!(done.load(Ordering::Relaxed), MANY, "{}", echo.log());
        })
    });
}

#[test]
fn a_thousand_peers_at_once_are_accepted_eight_handshakes_at_a_time() {
    let _quiet = exclusive();
    raise_descriptors();
    let certificates = Certificates::of("at-once");
    let mut echo =
        Server::start(&format!("echo --raw --max-handshakes 8 {}", certificates.server_args("server")));
    let (config, begun) = (certificates.client_config(), Instant::now());
    // All have sent their ClientHello before any of them gets an answer.
    let call = |_| {
        let mut stream = TcpStream::connect(echo.address).expect("a connection");
        let mut conversation = client_connection(&config);
        conversation.write_tls(&mut stream).expect("it takes it");
        stream.set_nonblocking(true).expect("an option");
        (conversation, stream)
    };
    let mut waiting: Vec<_> = (0..MANY).map(call).collect();
    // On a busy machine this thread may pause for longer than the 200 ms after which a handshake is taken for stalled.
    let (mut inside, mut stalled) = (Vec::new(), 0);
    while !waiting.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} still wait: {}", waiting.len(), echo.log());
        for (mut conversation, mut stream) in std::mem::take(&mut waiting) {
            match conversation.complete_io(&mut stream) {
                Ok(_) => inside.push(TlsPeer(StreamOwned::new(conversation, stream))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => waiting.push((conversation, stream)),
                Err(_) => stalled += 1,
            }
        }
    }
    println!("{MANY} are connected after {:?}", begun.elapsed());
    for peer in &mut inside {
        peer.0.sock.set_nonblocking(false).expect("an option");
        stalled += usize::from(!peer.echoes(b"x"));
    }
    drop(inside);
    let log = echo.end();
    let timeouts = log.split(" handshake-timeout=").nth(1).and_then(|rest| rest.split([' ', '\n']).next());
    let timeouts: usize = timeouts.map_or(0, |count| count.parse().expect("a number"));
    // Every client is served but for those, and on a quiet machine there are none.
    assert!(stalled == timeouts && stalled < MANY / 2, "{stalled} are not served: {log}");
    assert!(log.contains(&format!(" handshakes={} handshakes-delayed=", MANY - stalled)), "{log}");
}
