//! The programs of docs/patterns.md, docs/embedding.md and docs/backplane.md, driven by clients over real sockets. The
//! pages show exactly these files: after a change, `TIDEMILL_DOCS=write cargo test --test guides` copies them there.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{Address, CloseReason, ListenerId, Reactor};

#[path = "guides/calloop_host.rs"]
mod calloop_host;
#[allow(dead_code)]
#[path = "guides/cooperate.rs"]
mod cooperate;
#[path = "guides/poll_host.rs"]
mod poll_host;
#[allow(dead_code)]
#[path = "guides/pool.rs"]
mod pool;
#[allow(dead_code)]
#[path = "guides/rooms.rs"]
mod rooms;
#[allow(dead_code)]
#[path = "guides/shards.rs"]
mod shards;
#[allow(dead_code)]
#[path = "guides/side_connection.rs"]
mod side_connection;
#[allow(dead_code)]
#[path = "guides/stopping.rs"]
mod stopping;
#[allow(dead_code)]
#[path = "guides/timers.rs"]
mod timers;
#[path = "guides/tokio_host.rs"]
mod tokio_host;
#[allow(dead_code)]
#[path = "guides/workers.rs"]
mod workers;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A peer that speaks in lines.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(to: &Address) -> Client {
        Client::connect(to.inet().expect("an internet address"))
    }

    fn connect(to: SocketAddr) -> Client {
        let stream = TcpStream::connect(to).expect("a connection");
        stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
        Client(BufReader::new(stream))
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).expect("it takes what we say");
    }

    /// The next line; empty at the end of the stream.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        line
    }

    fn ask(&mut self, text: &str) -> String {
        self.say(text);
        self.hear()
    }
}

/// Turns while another thread talks to the reactor; returns what that comes to.
fn while_turning<T: Send>(reactor: &mut Reactor, talk: impl FnOnce() -> T + Send) -> T {
    let end = Instant::now() + 2 * TIMEOUT;
    thread::scope(|scope| {
        let talks = scope.spawn(talk);
        while !talks.is_finished() {
            assert!(Instant::now() < end, "the talk does not end");
            reactor.turn(Some(Duration::from_millis(5))).expect("a turn");
        }
        talks.join().expect("a good talk")
    })
}

fn address(reactor: &Reactor, listener: ListenerId) -> Address {
    reactor.local_addr(listener).expect("its address")
}

/// Turns until a condition holds.
fn turn_until(reactor: &mut Reactor, what: &str, holds: impl Fn(&mut Reactor) -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !holds(reactor) {
        assert!(Instant::now() < end, "not in time: {what}");
        reactor.turn(Some(Duration::from_millis(5))).expect("a turn");
    }
}

// -- docs/patterns.md ----------------------------------------------------------------------------------------

#[test]
fn members_of_a_room_hear_each_other_and_nobody_else() {
    let (mut reactor, listener) = rooms::serve("127.0.0.1:0").expect("a server");
    let at = address(&reactor, listener);
    while_turning(&mut reactor, || {
        let mut members = [(); 3].map(|()| Client::new(&at));
        for (member, room) in members.iter_mut().zip(["red\n", "red\n", "blue\n"]) {
            assert_eq!(member.hear(), "which room?\n");
            member.say(room);
        }
        let [ann, bob, eve] = &mut members;
        // The first lines are in order on each connection only, so one of them is repeated until both are members.
        bob.0.get_mut().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut line = String::new();
        while line.is_empty() {
            ann.say("hello\n");
            let _ = bob.0.read_line(&mut line);
        }
        assert_eq!(line, "hello\n");
        eve.say("alone\n");
        drop(members);
    });
    assert_eq!(reactor.stats().accepted, 3);
}

#[test]
fn an_admin_asks_and_changes_another_service_in_the_same_turn() {
    let (mut reactor, [at, admin_at]) = cooperate::serve("127.0.0.1:0", "127.0.0.1:0").expect("a server");
    while_turning(&mut reactor, || {
        let (mut peer, mut admin) = (Client::new(&at), Client::new(&admin_at));
        peer.say("one\ntwo\nthree\n");
        let end = Instant::now() + TIMEOUT;
        while admin.ask("total\n") != "3 lines\n" {
            assert!(Instant::now() < end, "the lines are not counted");
        }
        assert_eq!(admin.ask("reset\n"), "3 lines\n");
        assert_eq!(admin.ask("total\n"), "0 lines\n");
    });
}

/// An upstream that answers each line with the same in upper case, but never answers `hang`.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut client = Client(BufReader::new(stream.expect("a connection")));
            thread::spawn(move || {
                let mut line = String::new();
                while client.0.read_line(&mut line).is_ok_and(|n| n > 0) {
                    if line != "hang\n" {
                        let _ = client.0.get_mut().write_all(line.to_uppercase().as_bytes());
                    }
                    line.clear();
                }
            });
        }
    });
    at
}

#[test]
fn a_pool_answers_each_client_and_gives_up_after_a_time() {
    let upstream = upstream();
    let (mut reactor, listener) = pool::serve("127.0.0.1:0", &upstream.to_string(), 2).expect("a server");
    let at = address(&reactor, listener);
    while_turning(&mut reactor, || {
        thread::scope(|scope| {
            for name in 'a'..='h' {
                let at = &at;
                scope.spawn(move || {
                    let mut client = Client::new(at);
                    // Pipelined: the answers come in order, and to the client that has asked.
                    client.say(&(0..50).map(|n| format!("{name} {n}\n")).collect::<String>());
                    for n in 0..50 {
                        assert_eq!(client.hear(), format!("{} {n}\n", name.to_ascii_uppercase()));
                    }
                });
            }
        });
        // Both upstream connections hang, and are dialed again.
        let mut stuck = [Client::new(&at), Client::new(&at)];
        stuck.iter_mut().for_each(|client| client.say("hang\n"));
        stuck
            .iter_mut()
            .for_each(|client| assert_eq!((client.hear(), client.hear()), ("timeout\n".into(), "".into())));
        let end = Instant::now() + TIMEOUT;
        while Client::new(&at).ask("again\n") != "AGAIN\n" {
            assert!(Instant::now() < end, "the upstream is not dialed again");
        }
    });
    assert!(reactor.stats().dialed > 2);
}

#[test]
fn a_server_that_stops_closes_idle_connections_at_once_and_busy_ones_after_their_answer() {
    let (mut reactor, server, listener) = stopping::serve("127.0.0.1:0").expect("a server");
    let at = address(&reactor, listener);
    let (mut idle, mut busy) = (Client::new(&at), Client::new(&at));
    while_turning(&mut reactor, || assert_eq!(idle.ask("one\n"), "done\n"));
    busy.say("two\nthree\n");
    turn_until(&mut reactor, "the request arrives", |reactor| {
        let mut any = false;
        reactor.with(server, |_, sockets| sockets.for_each(|busy, _| any |= *busy));
        any
    });
    reactor.shutdown(Duration::from_secs(20));
    let began = Instant::now();
    while_turning(&mut reactor, || {
        assert_eq!(idle.hear(), "");
        assert_eq!((busy.hear(), busy.hear()), ("done, closing\n".to_string(), String::new()));
        drop((idle, busy));
    });
    reactor.run().expect("it ends");
    assert!(began.elapsed() < Duration::from_secs(10), "it does not wait for the 20 s of the shutdown");
    assert_eq!(reactor.stats().closed_count(CloseReason::Shutdown), 0);
}

#[test]
fn a_session_has_a_deadline_to_log_in_then_a_heartbeat_and_a_limit_of_silence() {
    let beats = timers::Beats { divisor: 25 }; // 400 ms, 1.2 s, 3 s.
    let (mut reactor, listener) = timers::serve("127.0.0.1:0", beats).expect("a server");
    let at = address(&reactor, listener);
    while_turning(&mut reactor, || {
        let mut late = Client::new(&at);
        late.say("no newli");
        assert_eq!((late.hear(), late.hear()), ("too late\n".to_string(), String::new()));
        let mut lively = Client::new(&at);
        assert_eq!(lively.ask("hello\n"), "welcome\n");
        for _ in 0..4 {
            assert_eq!(lively.hear(), "ping\n");
            lively.say("pong\n");
        }
        let mut said = Vec::new();
        while said.last().is_none_or(|line: &String| !line.is_empty()) {
            said.push(lively.hear());
        }
        assert_eq!(said[said.len() - 2..], ["no sign of life\n", ""]);
    });
    turn_until(&mut reactor, "the silent one is gone", |reactor| {
        reactor.stats().closed_count(CloseReason::Idle) == 1
    });
}

#[test]
fn threads_answer_in_order_and_a_client_with_many_lines_is_made_to_wait() {
    let (mut reactor, listener) = workers::serve("127.0.0.1:0", 3).expect("a server");
    let at = address(&reactor, listener);
    while_turning(&mut reactor, || {
        thread::scope(|scope| {
            for _ in 0..20 {
                let at = &at;
                scope.spawn(move || {
                    let mut client = Client::new(at);
                    client.say(&(0..500).map(|n| format!("job {n}\n")).collect::<String>());
                    for n in 0..500 {
                        let line = format!("job {n}\n");
                        assert_eq!(client.hear(), format!("{} {line}", line.len()));
                    }
                });
            }
        });
    });
    assert_eq!(reactor.stats().posts, 10_000);
}

// -- docs/embedding.md ---------------------------------------------------------------------------------------

/// What a host is tested with: an echo that is closed as idle after a time, a bulk of bytes that leaves work over,
/// and posts. In the end it is shut down.
mod host {
    use super::*;
    use tidemill::services::Echo;
    use tidemill::{Limits, SocketLimits};

    pub fn reactor() -> (Reactor, SocketAddr) {
        // One event a turn: the others are announced by no new edge.
        let mut reactor =
            Reactor::new(Limits { events_per_turn: 1, ..Limits::default() }).expect("a reactor");
        let limits = SocketLimits { idle: Some(Duration::from_secs(1)), ..SocketLimits::default() };
        let echo = reactor.add_with(Echo::raw(), limits);
        let listener = reactor.listen("127.0.0.1:0", echo).expect("a listener");
        let at = reactor.local_addr(listener).and_then(|at| at.inet()).expect("its address");
        (reactor, at)
    }

    pub fn talk(at: SocketAddr, handle: tidemill::Handle) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let mut stream = Client::connect(at).0.into_inner();
                        let mut half = stream.try_clone().expect("a second handle");
                        let sends = thread::spawn(move || half.write_all(&[7; 1 << 20]));
                        let mut received = vec![0; 1 << 20];
                        stream.read_exact(&mut received).expect("an answer");
                        sends.join().expect("a thread").expect("it takes what we say");
                        // Nothing more is sent: only a deadline ends the connection.
                        assert_eq!(stream.read(&mut [0]).expect("an end"), 0);
                    });
                }
            });
            let (tell, told) = std::sync::mpsc::channel();
            for n in 0..100 {
                let tell = tell.clone();
                handle.post_wait(move |_| tell.send(n).expect("a reader")).expect("a place");
            }
            assert!((0..100).all(|n| told.recv_timeout(TIMEOUT) == Ok(n)));
            handle.post_wait(|sockets| sockets.shutdown(Duration::ZERO)).expect("a place");
        })
    }
}

#[test]
fn tokio_runs_a_reactor_beside_its_own_tasks() {
    let (reactor, at) = host::reactor();
    let talk = host::talk(at, reactor.handle());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ticks = std::rc::Rc::new(std::cell::Cell::new(0));
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let ticked = ticks.clone();
        let other = tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                ticked.set(ticked.get() + 1);
            }
        });
        tokio::time::timeout(2 * TIMEOUT, tokio_host::run(reactor)).await.expect("an end").expect("no error");
        other.abort();
    });
    talk.join().expect("a good talk");
    assert!(ticks.get() > 10, "{} ticks of the other task", ticks.get());
}

#[test]
fn calloop_runs_a_reactor_beside_its_own_sources() {
    use calloop::timer::{TimeoutAction, Timer};
    let (reactor, at) = host::reactor();
    let talk = host::talk(at, reactor.handle());
    let mut host = calloop::EventLoop::try_new().expect("a loop");
    let mut shared = calloop_host::Shared { reactor };
    let ticks = std::rc::Rc::new(std::cell::Cell::new(0));
    let ticked = ticks.clone();
    let timer = Timer::from_duration(Duration::from_millis(5));
    let added = host.handle().insert_source(timer, move |_, _, _| {
        ticked.set(ticked.get() + 1);
        TimeoutAction::ToDuration(Duration::from_millis(5))
    });
    added.expect("a source");
    calloop_host::run(&mut host, &mut shared).expect("no error");
    talk.join().expect("a good talk");
    assert!(ticks.get() > 10, "{} ticks of the other source", ticks.get());
}

#[test]
fn poll_runs_a_reactor_beside_another_descriptor() {
    let (mut reactor, at) = host::reactor();
    let talk = host::talk(at, reactor.handle());
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let writes = thread::spawn(move || {
        for _ in 0..20 {
            rustix::io::write(&write, b"x").expect("room");
        }
        write // Kept open: its end would be readable for ever.
    });
    let mut received = 0;
    poll_host::run(&mut reactor, &read, |_| {
        received += rustix::io::read(&read, &mut [0; 64][..]).expect("bytes");
    })
    .expect("no error");
    talk.join().expect("a good talk");
    writes.join().expect("a thread");
    assert_eq!(received, 20);
}

#[test]
fn two_shards_answer_for_each_other_over_one_port() {
    let at = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a free port");
    let all = shards::start(&at.to_string(), 2).expect("two shards");
    let end = Instant::now() + TIMEOUT;
    while TcpStream::connect(at).is_err() {
        assert!(Instant::now() < end, "no shard listens");
    }
    let mut clients: Vec<Client> = (0..16).map(|_| Client::connect(at)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.ask(&format!("set key{n} {n}\n")), "\n");
    }
    // Whichever shard a client is at, it sees what all others have set.
    for client in &mut clients {
        client.say(&(0..16).map(|n| format!("get key{n}\n")).collect::<String>());
        for n in 0..16 {
            assert_eq!(client.hear(), format!("{n}\n"));
        }
    }
    let owners = ["where a\n", "where b\n"].map(|line| clients[0].ask(line));
    assert_ne!(owners[0], owners[1]);
    for (handle, _) in all {
        handle.post_wait(|sockets| sockets.shutdown(Duration::ZERO)).expect("a place");
    }
}

/// The broker takes the first of three events, answers half of the second, and leaves.
#[test]
fn what_a_broker_has_not_acknowledged_is_sent_to_it_again() {
    let broker = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = Address::from(broker.local_addr().expect("its address"));
    let (mut reactor, listener) = side_connection::serve("127.0.0.1:0", to).expect("a listener");
    let at = reactor.local_addr(listener).expect("its address");
    let talk = thread::spawn(move || {
        let mut client = Client::new(&at);
        client.say("one\ntwo\nthree\n");
        (0..3).for_each(|_| assert_eq!(client.hear(), "noted\n", "the broker is not waited for"));
        let accept = || Client(BufReader::new(broker.accept().expect("a connection").0));
        let sent = |event: &str| format!("RPUSH events {event:?}\r\n");
        let mut link = accept();
        assert_eq!([link.hear(), link.hear(), link.hear()], ["one", "two", "three"].map(sent));
        link.say(":1\r\n:");
        drop(link);
        let mut link = accept();
        assert_eq!([link.hear(), link.hear()], ["two", "three"].map(sent));
    });
    while !talk.is_finished() {
        reactor.turn(Some(Duration::from_millis(10))).expect("a turn");
    }
    talk.join().expect("a good talk");
}

// -- the pages -----------------------------------------------------------------------------------------------

/// Each program stands in its page as it is here, and has less than 80 lines that are neither blank nor comments.
#[test]
fn the_pages_show_these_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut shown = 0;
    for page in ["docs/patterns.md", "docs/embedding.md", "docs/backplane.md"] {
        let text = std::fs::read_to_string(root.join(page)).expect("a page");
        let mut fresh = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("<!-- program: ") {
            let (name, after) = after.split_once(" -->\n").expect("the end of the mark");
            let (fence, after) = after.split_once('\n').expect("a fence");
            let (_, after) = after.split_once("```\n").expect("its end");
            let program =
                std::fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            let lines =
                program.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
            assert!(lines.count() < 80, "{name} is too long");
            fresh += &format!("{before}<!-- program: {name} -->\n{fence}\n{program}```\n");
            rest = after;
            shown += 1;
        }
        fresh += rest;
        if std::env::var("TIDEMILL_DOCS").is_ok_and(|what| what == "write") {
            std::fs::write(root.join(page), &fresh).expect("the page can be written");
        }
        let now = std::fs::read_to_string(root.join(page)).expect("a page");
        assert!(now == fresh, "{page} shows other programs: TIDEMILL_DOCS=write cargo test --test guides");
    }
    assert_eq!(shown, 11);
}
