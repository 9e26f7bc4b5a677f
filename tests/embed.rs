//! The crate as a dependency of another program, over real sockets.
#![cfg(target_os = "linux")]

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tidemill::framing::Framing;
use tidemill::services::{Echo, Frames};
use tidemill::{
    CloseReason, ClosedInfo, ConnId, Input, Limits, Reactor, Service, ServiceId, Socket, SocketLimits,
    Sockets, Stats,
};

#[path = "embed/adopt.rs"]
mod adopt;
#[path = "embed/dial.rs"]
mod dial;
#[path = "embed/hosted.rs"]
mod hosted;
#[path = "embed/setup.rs"]
mod setup;
#[path = "embed/watch.rs"]
mod watch;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A service that records its callbacks.
#[derive(Default, Clone)]
struct Recorder {
    received: Rc<RefCell<Vec<u8>>>,
    closed: Rc<RefCell<Vec<CloseReason>>>,
    opened: Rc<RefCell<usize>>,
}

impl Service for Recorder {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {
        *self.opened.borrow_mut() += 1;
    }

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, input: &mut Input<'_>) {
        self.received.borrow_mut().extend_from_slice(input.take_all());
    }

    fn closed(&mut self, _: (), gone: &ClosedInfo, _: &mut Sockets<'_>) {
        self.closed.borrow_mut().push(gone.reason);
    }
}

fn reactor() -> Reactor {
    Reactor::new(Limits::default()).expect("a reactor")
}

fn listen(reactor: &mut Reactor, service: impl Into<ServiceId>) -> SocketAddr {
    let listener = reactor.listen("127.0.0.1:0", service).expect("a listener");
    reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address")
}

/// Turns until a condition holds; fails after a limited time.
#[track_caller]
fn turn_until(reactor: &mut Reactor, what: &str, mut holds: impl FnMut(&mut Reactor) -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !holds(reactor) {
        assert!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        reactor.turn(Some(Duration::from_millis(20))).expect("a turn");
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("a connection");
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    stream
}

fn exchange(stream: &mut TcpStream, sent: &[u8], answer: usize) -> Vec<u8> {
    stream.write_all(sent).expect("it takes what we say");
    let mut received = vec![0; answer];
    stream.read_exact(&mut received).expect("an answer");
    received
}

/// Turns while another thread uses the reactor as a peer; returns the result of that thread.
fn while_turning<T: Send>(reactor: &mut Reactor, talk: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let talks = scope.spawn(talk);
        turn_until(reactor, "the talk is over", |_| talks.is_finished());
        talks.join().expect("a good talk")
    })
}

#[test]
fn two_services_share_one_loop_and_one_has_two_listeners() {
    let mut reactor = reactor();
    let echo = reactor.add_with(Echo::raw(), Echo::raw().limits());
    let frames = Frames::new("u16be".parse::<Framing>().expect("a framing"));
    let limits = frames.limits();
    let frames = reactor.add_with(frames, limits);
    let doors = [listen(&mut reactor, echo), listen(&mut reactor, frames), listen(&mut reactor, frames)];
    while_turning(&mut reactor, || {
        let mut streams = doors.map(connect);
        for _ in 0..10 {
            // To one service this is a stream of bytes, to the other two messages and the beginning of a third.
            assert_eq!(exchange(&mut streams[0], b"\0\x01a\0", 4), b"\0\x01a\0");
            assert_eq!(exchange(&mut streams[1], b"\0\x01a\0", 3), b"\0\x01a");
            assert_eq!(exchange(&mut streams[1], b"\x02bc", 4), b"\0\x02bc");
            assert_eq!(exchange(&mut streams[2], b"\0\0", 2), b"\0\0");
        }
    });
    assert_eq!(reactor.stats().accepted, 3);
}

#[test]
fn the_posts_of_each_thread_run_once_and_in_order() {
    let mut reactor = reactor();
    let (output, all) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for poster in 0..4 {
            let (handle, output) = (reactor.handle(), output.clone());
            scope.spawn(move || {
                for number in 0..5_000 {
                    let output = output.clone();
                    // The queue has a limit; a refused post is tried again.
                    while let Err(error) = handle.post({
                        let output = output.clone();
                        move |_| output.send((poster, number)).expect("a reader")
                    }) {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        thread::yield_now();
                    }
                }
            });
        }
        drop(output);
        let mut next = [0; 4];
        turn_until(&mut reactor, "all have run", |_| {
            for (poster, number) in all.try_iter() {
                assert_eq!(number, next[poster], "out of order");
                next[poster] += 1;
            }
            next == [5_000; 4]
        });
    });
    assert_eq!(reactor.stats().posts, 20_000);
}

#[test]
fn threads_that_may_block_wait_for_a_place_among_the_posts() {
    let mut reactor = Reactor::new(Limits { posts: 3, ..Limits::default() }).expect("a reactor");
    let (output, all) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for poster in 0..4 {
            let (handle, output) = (reactor.handle(), output.clone());
            scope.spawn(move || {
                for number in 0..500 {
                    let output = output.clone();
                    handle
                        .post_wait(move |_| output.send((poster, number)).expect("a reader"))
                        .expect("it waits until there is a place");
                }
            });
        }
        let mut next = [0; 4];
        turn_until(&mut reactor, "all have run", |_| {
            for (poster, number) in all.try_iter() {
                assert_eq!(number, next[poster], "out of order");
                next[poster] += 1;
            }
            next == [500; 4]
        });
    });
}

#[test]
fn a_post_wakes_a_loop_that_sleeps_without_a_deadline() {
    let mut reactor = reactor();
    let handle = reactor.handle();
    let posts = thread::spawn(move || handle.post(|sockets| sockets.stop()));
    // Nothing else would wake the loop.
    reactor.turn(None).expect("a turn");
    posts.join().expect("a thread").expect("a place in the mailbox");
    reactor.run().expect("its end");
    assert!(reactor.is_shutting_down());
}

/// Inside another event loop, a reactor is turned when its descriptor is readable or its deadline has passed.
#[test]
fn another_loop_can_drive_a_reactor_without_spurious_wake_ups() {
    let mut reactor = reactor();
    let limits = SocketLimits { idle: Some(Duration::from_secs(1)), ..SocketLimits::default() };
    let echo = reactor.add_with(Echo::raw(), limits);
    let to = listen(&mut reactor, echo);
    let (mut poll, mut events) = (Poll::new().expect("a poller"), Events::with_capacity(8));
    let descriptor = reactor.as_fd().as_raw_fd();
    poll.registry().register(&mut SourceFd(&descriptor), Token(0), Interest::READABLE).expect("a place");
    let talk = thread::spawn(move || {
        let mut stream = connect(to);
        // More than a budget, so that work is carried over for which there is no event.
        let sent = vec![7; 1024 * 1024];
        let mut half = stream.try_clone().expect("a second handle");
        let sends = thread::spawn(move || half.write_all(&sent));
        let mut received = vec![0; 1024 * 1024];
        stream.read_exact(&mut received).expect("an answer");
        sends.join().expect("a thread").expect("it takes what we say");
        assert_eq!(received, vec![7; 1024 * 1024]);
        // Nothing more is sent: the deadline ends the connection.
        assert_eq!(stream.read(&mut [0]).expect("an end"), 0);
    });
    let end = Instant::now() + TIMEOUT;
    let mut empty = 0;
    while reactor.stats().closed_count(CloseReason::Idle) == 0 {
        assert!(Instant::now() < end, "the idle peer is still there");
        let wait = reactor.next_deadline().map_or(TIMEOUT, |at| at.saturating_duration_since(Instant::now()));
        poll.poll(&mut events, Some(wait)).expect("a poll");
        let before: Stats = reactor.stats();
        reactor.turn(Some(Duration::ZERO)).expect("a turn");
        let after = reactor.stats();
        empty += usize::from(
            after.reads + after.writes + after.accepted == before.reads + before.writes + before.accepted,
        );
    }
    talk.join().expect("a good talk");
    assert!(empty < 50, "it was turned {empty} times for nothing");
}

#[test]
#[should_panic(expected = "a bug of the service")]
fn a_panic_in_a_callback_unwinds_out_of_the_turn() {
    struct Bug;
    impl Service for Bug {
        type Session = ();
        fn open(&mut self, _: &mut Socket<'_>) {
            panic!("a bug of the service");
        }
        fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}
    }
    let mut reactor = reactor();
    let bug = reactor.add(Bug);
    let _caller = connect(listen(&mut reactor, bug));
    turn_until(&mut reactor, "it panics", |_| false);
}

#[test]
fn data_sent_before_a_dial_has_connected_arrives() {
    let mut reactor = reactor();
    let recorder = Recorder::default();
    let service = reactor.add(recorder.clone());
    let there = TcpListener::bind("127.0.0.1:0").expect("a port");
    let id = reactor.dial(there.local_addr().expect("its address"), service).expect("a slot");
    let mut sockets = reactor.sockets();
    let mut socket = sockets.get(id).expect("it is being dialed");
    assert!(socket.is_connecting());
    socket.send(b"first words");
    while_turning(&mut reactor, || {
        let (mut stream, _) = there.accept().expect("a peer");
        let mut received = [0; 11];
        stream.read_exact(&mut received).expect("its words");
        assert_eq!(&received, b"first words");
        stream.write_all(b"an answer").expect("it takes what we say");
    });
    turn_until(&mut reactor, "it has ended", |_| !recorder.closed.borrow().is_empty());
    assert_eq!(*recorder.received.borrow(), b"an answer");
    assert_eq!(*recorder.closed.borrow(), [CloseReason::Finished]);
    assert_eq!(*recorder.opened.borrow(), 1);
}

#[test]
fn a_refused_dial_ends_with_the_error_of_the_system() {
    let mut reactor = reactor();
    let recorder = Recorder::default();
    let service = reactor.add(recorder.clone());
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    reactor.dial(free, service).expect("a slot");
    turn_until(&mut reactor, "it has failed", |_| !recorder.closed.borrow().is_empty());
    let why = recorder.closed.borrow()[0];
    assert_eq!(why.word(), "unreachable");
    assert!(why.to_string().to_lowercase().contains("connection refused"), "{why}");
}

#[test]
fn a_reset_connection_is_reported_as_a_reset() {
    let mut reactor = reactor();
    let recorder = Recorder::default();
    let service = reactor.add(recorder.clone());
    let stream = connect(listen(&mut reactor, service));
    turn_until(&mut reactor, "it is accepted", |_| *recorder.opened.borrow() == 1);
    // SO_LINGER of zero: closing sends a reset (RFC 9293, 3.10.4 ABORT).
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    drop(stream);
    turn_until(&mut reactor, "it has ended", |_| !recorder.closed.borrow().is_empty());
    assert_eq!(*recorder.closed.borrow(), [CloseReason::Reset]);
}

/// A read does not clear the event of urgent data: a loop that acts on every event would spin.
#[test]
fn urgent_bytes_neither_spin_the_loop_nor_disturb_the_stream() {
    let mut reactor = reactor();
    let echo = reactor.add(Echo::raw());
    let mut stream = connect(listen(&mut reactor, echo));
    turn_until(&mut reactor, "it is accepted", |reactor| reactor.stats().accepted == 1);
    socket2::SockRef::from(&stream).send_out_of_band(b"!").expect("an urgent byte");
    let end = Instant::now() + Duration::from_millis(200);
    let before = reactor.stats().turns;
    while Instant::now() < end {
        reactor.turn(Some(Duration::from_millis(50))).expect("a turn");
    }
    let turns = reactor.stats().turns - before;
    assert!(turns < 20, "{turns} turns for one urgent byte");
    let answer = while_turning(&mut reactor, move || exchange(&mut stream, b"hello", 5));
    assert_eq!(answer, b"hello");
}

/// Adds up the lines of all connections; `total` is asked for by one of them and told to all.
struct Sum {
    members: Vec<ConnId>,
    total: u64,
}

impl Service for Sum {
    type Session = u64;

    fn open(&mut self, socket: &mut Socket<'_>) -> u64 {
        self.members.push(socket.id());
        0
    }

    fn data(&mut self, own: &mut u64, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(line) = input.take_line() {
            if let Ok(number) = String::from_utf8_lossy(line).trim().parse::<u64>() {
                (*own, self.total) = (*own + number, self.total + number);
                continue;
            }
            for &id in &self.members {
                if let Some(mut member) = socket.other(id) {
                    member.poke();
                }
            }
        }
    }

    fn poked(&mut self, own: &mut u64, socket: &mut Socket<'_>) {
        socket.send(format!("{own} of {}\n", self.total).as_bytes());
    }
}

#[test]
fn a_poked_connection_answers_with_its_own_session() {
    let mut reactor = reactor();
    let sum = reactor.add(Sum { members: Vec::new(), total: 0 });
    let to = listen(&mut reactor, sum);
    while_turning(&mut reactor, || {
        let (mut first, mut second) = (connect(to), connect(to));
        assert_eq!(exchange(&mut first, b"1\n2\ntotal\n", 7), b"3 of 3\n");
        // Whether the second one was accepted before is not known; the answer to its own words is.
        second.write_all(b"4\ntotal\n").expect("it takes what we say");
        assert_eq!(exchange(&mut first, b"", 7), b"3 of 7\n");
        let mut answers = String::new();
        while !answers.ends_with("4 of 7\n") {
            let mut received = [0; 7];
            second.read_exact(&mut received).expect("an answer");
            answers += &String::from_utf8_lossy(&received);
        }
    });
    assert!(reactor.stats().pokes >= 3);
}

/// Client and server of every connection in one loop.
#[test]
fn a_reactor_can_dial_itself() {
    let mut reactor = reactor();
    let echo = reactor.add(Echo::raw());
    let to = listen(&mut reactor, echo);
    let recorder = Recorder::default();
    let peer = reactor.add(recorder.clone());
    let calls: Vec<ConnId> = (0..100).map(|_| reactor.dial(to, peer).expect("a slot")).collect();
    for &id in &calls {
        let mut sockets = reactor.sockets();
        let mut socket = sockets.get(id).expect("it is being dialed");
        socket.send(b"hello");
        socket.finish();
    }
    turn_until(&mut reactor, "all have ended", |_| recorder.closed.borrow().len() == 100);
    assert_eq!(recorder.received.borrow().len(), 500);
    assert!(recorder.closed.borrow().iter().all(|&why| why == CloseReason::Finished));
    turn_until(&mut reactor, "the other side too", |reactor| {
        reactor.stats().closed_count(CloseReason::Finished) == 200
    });
}

/// Answers a line with whether the process at the other end is this one, as the system knows it.
struct WhoAsks;

impl Service for WhoAsks {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        input.take_all();
        let descriptor = socket.descriptor().expect("it is connected");
        let mss = socket2::SockRef::from(&descriptor).tcp_mss().map_err(|error| error.kind());
        let peer = socket.peer_credentials();
        let own =
            (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw(), std::process::id());
        let is_own = peer.map(|peer| (peer.uid, peer.gid, peer.pid) == own);
        let _ = write!(socket, "{is_own:?} {mss:?}");
        socket.close();
    }
}

fn ask(mut stream: impl Read + Write) -> String {
    stream.write_all(b"?").expect("it takes what we say");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_process_at_the_other_end_of_a_unix_socket_is_known_and_a_descriptor_is_lent_to_ask_for_more() {
    let path = std::env::temp_dir().join(format!("tidemill-embed-{}.sock", std::process::id()));
    let mut reactor = reactor();
    let service = reactor.add(WhoAsks);
    reactor.listen(path.as_path(), service).expect("a listener");
    let answer = while_turning(&mut reactor, || {
        ask(std::os::unix::net::UnixStream::connect(&path).expect("a connection"))
    });
    // The maximum segment size of TCP is an error there, so the descriptor is that of this very socket.
    assert_eq!(answer, "Ok(true) Err(Unsupported)");
}

#[test]
fn a_tcp_peer_and_a_dial_that_is_not_connected_have_no_credentials_and_the_error_says_why() {
    let mut reactor = reactor();
    let service = reactor.add(WhoAsks);
    let listener = reactor.listen("127.0.0.1:0", service).expect("a listener");
    let at = reactor.local_addr(listener).and_then(|at| at.inet()).expect("its address");
    let answer = while_turning(&mut reactor, || ask(TcpStream::connect(at).expect("a connection")));
    assert!(answer.starts_with("Err(NotUnix) Ok("), "{answer}");
    let dial = reactor.dial(at, service).expect("a slot");
    let error = reactor.sockets().get(dial).expect("it is dialed").peer_credentials().expect_err("not yet");
    assert_eq!(error.to_string(), "no credentials of the peer: it is not connected yet");
}
