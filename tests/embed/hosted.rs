//! A reactor inside another event loop: what its descriptor and its next deadline tell.

use std::os::fd::AsRawFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidemill::{Handle, Key};

use super::*;

/// Takes nothing while it is paused; pauses at `p`.
#[derive(Clone, Default)]
struct Pauses(Rc<RefCell<Vec<ConnId>>>);

impl Service for Pauses {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        self.0.borrow_mut().push(socket.id());
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        if input.bytes().contains(&b'p') && !socket.is_paused() {
            input.take(1);
            return socket.pause();
        }
        let taken = input.take_all();
        socket.send(taken);
    }
}

/// A reactor with one connection, which is paused with one byte unread, and which has nothing to do.
fn at_rest() -> (Reactor, Key<Pauses>, ConnId, TcpStream) {
    let mut reactor = reactor();
    let pauses = Pauses::default();
    let limits = SocketLimits { idle: None, ..SocketLimits::default() };
    let service = reactor.add_with(pauses.clone(), limits);
    let mut stream = connect(listen(&mut reactor, service));
    stream.write_all(b"pq").expect("room");
    turn_until(&mut reactor, "it is paused", |reactor| {
        let id = pauses.0.borrow().first().copied();
        id.is_some_and(|id| reactor.sockets().get(id).is_some_and(|socket| socket.is_paused()))
    });
    turn_until(&mut reactor, "it has nothing to do", |reactor| reactor.next_deadline().is_none());
    let id = pauses.0.borrow()[0];
    (reactor, service, id, stream)
}

type Change = fn(&mut Reactor, Key<Pauses>, ConnId);

/// Each change that a host can make between turns.
const CHANGES: &[(&str, Change)] = &[
    ("send", |reactor, _, id| reactor.sockets().get(id).unwrap().send(b"x")),
    ("resume", |reactor, _, id| reactor.sockets().get(id).unwrap().resume()),
    ("poke", |reactor, _, id| reactor.sockets().get(id).unwrap().poke()),
    ("close", |reactor, _, id| reactor.sockets().get(id).unwrap().close()),
    ("abort", |reactor, _, id| reactor.sockets().get(id).unwrap().abort()),
    ("dial", |reactor, service, _| {
        reactor.dial("127.0.0.1:9", service).unwrap();
    }),
    ("adopt", |reactor, service, _| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        reactor.adopt_stream(ours, service).unwrap();
        drop(theirs);
    }),
    ("shutdown", |reactor, _, _| reactor.shutdown(TIMEOUT)),
    ("stop", |reactor, _, _| reactor.sockets().stop()),
    ("later", |reactor, service, _| reactor.sockets().later(service, |_, _| ()).unwrap()),
    ("with", |reactor, service, id| {
        reactor.with(service, |_, sockets| sockets.session(id).unwrap().1.send(b"x"));
    }),
    ("post", |reactor, _, _| reactor.handle().post(|_| ()).unwrap()),
    ("post from a thread", |reactor, service, _| {
        let handle: Handle = reactor.handle();
        thread::spawn(move || handle.post_to(service, |_, _| ()).unwrap()).join().unwrap();
    }),
];

#[test]
fn the_next_deadline_is_right_after_each_change_from_outside() {
    for (what, change) in CHANGES {
        let (mut reactor, service, id, _stream) = at_rest();
        change(&mut reactor, service, id);
        assert!(reactor.next_deadline().is_some_and(|at| at <= Instant::now()), "after {what}");
    }
    let (mut reactor, service, _, _stream) = at_rest();
    let before = Instant::now();
    reactor.sockets().set_timer(service, Duration::from_secs(5), None).expect("a timer");
    let wait = reactor.next_deadline().expect("the timer's") - before;
    // Far deadlines are looked at earlier, to place them exactly: never later.
    assert!((Duration::from_secs(3)..Duration::from_millis(5_050)).contains(&wait), "{wait:?}");
}

/// Whether the descriptor is readable within a time.
fn is_readable(reactor: &Reactor, within: Duration) -> bool {
    let wait = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
    poll(&mut [PollFd::new(reactor, PollFlags::IN)], Some(&wait)).expect("a poll") == 1
}

#[test]
fn an_embedded_reactor_is_readable_after_each_change_from_outside() {
    for (what, change) in CHANGES {
        let (mut reactor, service, id, _stream) = at_rest();
        reactor.set_embedded(true).expect("Linux has timerfd");
        reactor.turn(Some(Duration::ZERO)).expect("a turn");
        turn_until(&mut reactor, "it is quiet", |reactor| !is_readable(reactor, Duration::ZERO));
        change(&mut reactor, service, id);
        assert!(is_readable(&reactor, Duration::ZERO), "after {what}");
    }
}

/// The host has the descriptor and nothing else: no deadline, no timeout but that of the test.
#[test]
fn the_descriptor_of_an_embedded_reactor_tells_of_deadlines_and_of_work_left_over() {
    let limits = SocketLimits { idle: Some(Duration::from_secs(1)), ..SocketLimits::default() };
    let mut reactor = Reactor::new(Limits { read_budget: 1_000, ..Limits::default() }).expect("a reactor");
    let echo = reactor.add_with(Echo::raw(), limits);
    let to = listen(&mut reactor, echo);
    reactor.set_embedded(true).expect("Linux has timerfd");
    assert_eq!(reactor.as_raw_fd(), reactor.as_fd().as_raw_fd());
    let talk = thread::spawn(move || {
        let mut stream = connect(to);
        // A hundred budgets, of which the kernel announces one.
        let answer = exchange(&mut stream, &[7; 100_000], 100_000);
        assert_eq!(answer, [7; 100_000]);
        // Nothing more is sent: the deadline ends the connection.
        assert_eq!(stream.read(&mut [0]).expect("an end"), 0);
    });
    let mut turns = 0;
    while reactor.stats().closed_count(CloseReason::Idle) == 0 {
        assert!(is_readable(&reactor, TIMEOUT), "a deadline or work was not told");
        reactor.turn(Some(Duration::ZERO)).expect("a turn");
        turns += 1;
        assert!(turns < 1_000, "it is readable all the time");
    }
    talk.join().expect("a good talk");
    reactor.set_embedded(false).expect("it can be switched off");
}
