//! The system calls of a reactor, checked by their effects.
#![cfg(target_os = "linux")]

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use tidemill::services::Echo;
use tidemill::{
    CloseReason, ClosedInfo, DialOptions, Input, KeepAlive, Limits, ListenOptions, Reactor, Service, Socket,
    Sockets,
};

#[test]
fn connections_wait_in_the_backlog_while_the_loop_is_busy() {
    // More than the backlog of 128 that mio's `bind` sets. The limit of the kernel may be lower than the backlog.
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("the kernel's limit");
    let max: usize = somaxconn.trim().parse().expect("a number");
    let wanted = 300.min(max);
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    let listener = reactor.listen("127.0.0.1:0", echo).expect("a listener");
    let address = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
    let peers: Vec<TcpStream> = (0..wanted)
        .map(|_| {
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("a place in the backlog")
        })
        .collect();
    assert_eq!(reactor.stats().accepted, 0);
    while reactor.stats().accepted < peers.len() as u64 {
        let turn = reactor.turn(Some(Duration::from_secs(5))).expect("a turn");
        assert!(turn.events > 0 || reactor.has_work() || reactor.stats().accepted == peers.len() as u64);
    }
}

#[test]
fn no_descriptor_is_inherited_by_a_child() {
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    let options = ListenOptions {
        keep_alive: Some(KeepAlive::after(Duration::from_secs(60))),
        ..ListenOptions::default()
    };
    let listener = reactor.listen_with("127.0.0.1:0", echo, &options).expect("a listener");
    let address = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
    let _caller = TcpStream::connect(address).expect("a connection");
    reactor.dial(address, echo).expect("a slot");
    while reactor.stats().accepted < 2 {
        reactor.turn(Some(Duration::from_secs(5))).expect("a turn");
    }
    let child = Command::new("sh").args(["-c", "ls -l /proc/self/fd"]).output().expect("a child");
    let listing = String::from_utf8_lossy(&child.stdout);
    for kind in ["socket:", "eventpoll", "eventfd"] {
        assert!(!listing.contains(kind), "a child holds a {kind}\n{listing}");
    }
}

#[test]
fn an_address_in_use_is_an_error_that_names_it_and_a_remedy() {
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    let listener = reactor.listen("127.0.0.1:0", echo).expect("a listener");
    let address = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
    let error = reactor.listen(address, echo).expect_err("it is taken");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let expected = format!("cannot listen on {address}: the address is in use");
    assert!(error.to_string().starts_with(&expected), "{error}");
    let error = reactor.listen("no such address", echo).expect_err("it is none");
    let expected = "cannot listen: \"no such address\" is not an address: a port is missing, as in :9001";
    assert_eq!(error.to_string(), expected);
}

/// The echo to a peer that sends everything before the server reads, and reads only after the server has read it all:
/// no later edge can make the server read.
fn echoes(reactor: &mut Reactor, mut stream: impl std::io::Read, bytes: usize) -> Vec<u8> {
    for _ in 0..20 {
        reactor.turn(Some(Duration::from_millis(10))).expect("a turn");
    }
    assert_eq!(reactor.stats().bytes_in, bytes as u64, "bytes are left in the socket");
    let mut answer = vec![0; bytes];
    stream.read_exact(&mut answer).expect("the echo");
    answer
}

#[test]
fn bytes_behind_an_urgent_mark_are_read_without_a_further_edge() {
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    let listener = reactor.listen("127.0.0.1:0", echo).expect("a listener");
    let address = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("an option");
    std::io::Write::write_all(&mut stream, b"before").expect("bytes");
    socket2::SockRef::from(&stream).send_out_of_band(b"!").expect("an urgent byte");
    std::io::Write::write_all(&mut stream, b"behind").expect("bytes");
    assert_eq!(echoes(&mut reactor, &stream, 12), b"beforebehind");
}

#[test]
fn bytes_behind_a_descriptor_are_read_without_a_further_edge() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    let folder = std::env::temp_dir().join(format!("tidemill-descriptor-{}", std::process::id()));
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let echo = reactor.add(Echo::raw());
    reactor.listen(folder.as_path(), echo).expect("a listener");
    let mut stream = std::os::unix::net::UnixStream::connect(&folder).expect("a connection");
    let descriptors = [stream.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(&stream, &[IoSlice::new(b"with")], &mut ancillary, SendFlags::empty()).expect("a descriptor");
    std::io::Write::write_all(&mut stream, b"behind").expect("bytes");
    assert_eq!(echoes(&mut reactor, &stream, 10), b"withbehind");
}

/// A service that records why a dial ended.
struct CloseRecorder(std::rc::Rc<std::cell::RefCell<Option<(CloseReason, String)>>>);

impl Service for CloseRecorder {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}

    fn closed(&mut self, _: (), gone: &ClosedInfo, _: &mut Sockets<'_>) {
        *self.0.borrow_mut() = Some((gone.reason, gone.error_text().unwrap_or_default()));
    }
}

/// By TCP's simultaneous open, a socket can connect to itself: when a dial to a closed port of the ephemeral range gets
/// that port as its local one (after some six thousand attempts in a loop), or, as here, by binding it.
#[test]
fn a_socket_connected_to_itself_is_reported_as_refused() {
    let mut reactor = Reactor::new(Limits::default()).expect("a reactor");
    let recorder = std::rc::Rc::default();
    let service = reactor.add(CloseRecorder(std::rc::Rc::clone(&recorder)));
    let free =
        std::net::TcpListener::bind("127.0.0.8:0").and_then(|free| free.local_addr()).expect("a free port");
    let options = DialOptions { local: Some(free), ..DialOptions::default() };
    reactor.dial_with(free, service, options).expect("a slot");
    reactor.run().expect("it ends when the dial has");
    let (why, failure) = recorder.take().expect("a call of closed");
    assert!(matches!(why, CloseReason::Unreachable(_)), "{why}");
    assert_eq!(failure, format!("cannot connect to {free}: connection refused"));
}

/// Answers one byte with `bytes` in one send, and closes.
struct BigAnswer {
    bytes: usize,
}

impl Service for BigAnswer {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        input.take_all();
        socket.send(vec![7; self.bytes]);
        socket.close();
    }

    fn closed(&mut self, _: (), _: &ClosedInfo, _: &mut Sockets<'_>) {}
}

/// Serves one peer that reads without pause; returns how many bytes it got before FIN.
fn big_answer(bytes: usize) -> u64 {
    let mut reactor = Reactor::new(Limits { memory: 128 << 20, ..Limits::default() }).expect("a reactor");
    let service = reactor.add(BigAnswer { bytes });
    let listener = reactor.listen("127.0.0.1:0", service).expect("a listener");
    let address = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
    let reader = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).expect("a connection");
        std::io::Write::write_all(&mut stream, b"?").expect("a byte");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("no reset")
    });
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !reader.is_finished() && std::time::Instant::now() < end {
        reactor.turn(Some(Duration::from_millis(20))).expect("a turn");
    }
    drop(reactor);
    reader.join().expect("the reader")
}

/// Runs one test of this program again, in a network namespace with the MTU of Ethernet. The send buffer of a new
/// connection depends on the MTU: plain loopback (MTU 65,536) takes 2.5 MB at once and hides what a real network shows.
fn in_a_namespace(test: &str) {
    let program = std::env::current_exe().expect("this program");
    for options in ["--net", "-rn"] {
        let script = "ip link set dev lo mtu 1500 up && exec \"$0\" --exact \"$1\" --nocapture";
        let mut unshare = Command::new("unshare");
        unshare.args([options, "sh", "-c", script]).arg(&program).arg(test).env("IN_A_NAMESPACE", "1");
        let Ok(output) = unshare.output() else { break };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.contains("running 1 test") {
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
    }
    assert!(std::env::var_os("TIDEMILL_INTEROP").is_none(), "no network namespace can be made here");
    println!("skipped: no network namespace can be made here");
}

#[test]
fn one_send_of_64_mebibytes_reaches_a_reader_at_an_mtu_of_1500() {
    if std::env::var_os("IN_A_NAMESPACE").is_none() {
        in_a_namespace("one_send_of_64_mebibytes_reaches_a_reader_at_an_mtu_of_1500");
        return;
    }
    for mebibytes in [1, 2, 8, 64] {
        assert_eq!(big_answer(mebibytes << 20), (mebibytes as u64) << 20);
    }
}

// -- what the simulated kernel takes for granted --------------------------------------------------------------

/// Both ends of a connection over loopback, of which one is registered with an edge-triggered poll.
struct Edges {
    poll: mio::Poll,
    events: mio::Events,
    near: mio::net::TcpStream,
    far: TcpStream,
}

impl Edges {
    fn new() -> Edges {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let far = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        far.set_nodelay(true).expect("an option");
        let (near, _) = listener.accept().expect("its other end");
        near.set_nonblocking(true).expect("an option");
        let (poll, mut near) = (mio::Poll::new().expect("a poll"), mio::net::TcpStream::from_std(near));
        poll.registry().register(&mut near, mio::Token(0), Edges::BOTH).expect("a registration");
        let mut edges = Edges { poll, events: mio::Events::with_capacity(8), near, far };
        assert_eq!(
            edges.next(),
            Some((false, true, false)),
            "registering raises an edge for the current state"
        );
        edges
    }

    const BOTH: mio::Interest = mio::Interest::READABLE.add(mio::Interest::WRITABLE);

    fn say(&mut self, bytes: &[u8]) {
        std::io::Write::write_all(&mut self.far, bytes).expect("bytes");
    }

    /// How many bytes one read returns; `None`: it would block.
    fn read(&mut self, max: usize) -> Option<usize> {
        std::io::Read::read(&mut self.near, &mut vec![0; max]).ok()
    }

    /// The next event: whether it says readable, writable and that the peer has ended. Loopback delivers at once.
    fn next(&mut self) -> Option<(bool, bool, bool)> {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).expect("events");
        let all: Vec<_> = self.events.iter().collect();
        assert!(all.len() <= 1, "events of one socket are merged");
        all.first().map(|event| (event.is_readable(), event.is_writable(), event.is_read_closed()))
    }

    fn is_readable(&mut self) -> bool {
        self.next().is_some_and(|(readable, ..)| readable)
    }
}

#[test]
fn several_writes_before_a_poll_are_one_edge_and_each_later_arrival_is_another() {
    let mut edges = Edges::new();
    edges.say(b"one");
    edges.say(b"two");
    assert!(edges.is_readable());
    assert_eq!(edges.next(), None, "nothing new has arrived");
    edges.say(b"three");
    assert!(edges.is_readable(), "an arrival is an edge, although the bytes before it are unread");
    assert_eq!(edges.read(100), Some(11));
}

/// An edge is for arrivals. What a budget leaves in the socket has to be remembered, or asked for by registering again.
#[test]
fn a_partial_read_raises_no_edge_and_registering_again_does() {
    let mut edges = Edges::new();
    edges.say(b"hello");
    assert!(edges.is_readable());
    assert_eq!(edges.read(2), Some(2));
    assert_eq!(edges.next(), None);
    let Edges { poll, near, .. } = &mut edges;
    poll.registry().reregister(near, mio::Token(0), Edges::BOTH).expect("a registration");
    assert!(edges.is_readable());
    assert_eq!(edges.read(2), Some(2));
    edges.say(b"!");
    assert!(edges.is_readable(), "an arrival after a partial read");
}

#[test]
fn an_arrival_after_a_short_read_is_an_edge_although_no_read_has_said_would_block() {
    let mut edges = Edges::new();
    for _ in 0..3 {
        edges.say(b"hello");
        assert!(edges.is_readable());
        assert_eq!(edges.read(100), Some(5));
    }
    assert_eq!((edges.next(), edges.read(100)), (None, None));
}

/// So a short read proves that nothing is left only if the event has not announced an end.
#[test]
fn bytes_and_a_fin_are_one_edge_and_a_short_read_raises_no_other() {
    let mut edges = Edges::new();
    edges.say(b"hello");
    edges.far.shutdown(std::net::Shutdown::Write).expect("FIN");
    assert_eq!(edges.next(), Some((true, true, true)));
    assert_eq!(edges.read(100), Some(5));
    assert_eq!(edges.next(), None);
    assert_eq!(edges.read(100), Some(0));
}

#[test]
fn a_fin_behind_bytes_that_were_read_is_an_edge_of_its_own() {
    let mut edges = Edges::new();
    edges.say(b"hello");
    assert_eq!(edges.next(), Some((true, true, false)));
    assert_eq!(edges.read(100), Some(5));
    edges.far.shutdown(std::net::Shutdown::Write).expect("FIN");
    assert_eq!(edges.next(), Some((true, true, true)));
}

#[test]
fn room_after_a_refused_write_is_an_edge() {
    let mut edges = Edges::new();
    let block = [0; 65_536];
    while std::io::Write::write(&mut edges.near, &block).is_ok() {}
    assert_eq!(edges.next(), None, "the socket is full");
    let mut sink = vec![0; 1 << 20];
    let writable = (0..64).any(|_| {
        std::io::Read::read(&mut edges.far, &mut sink).expect("bytes");
        edges.next().is_some_and(|(_, writable, _)| writable)
    });
    assert!(writable);
}

/// So an answer is followed by a FIN and a bounded drain, and never by a bare close.
#[test]
fn a_close_over_unread_bytes_loses_what_the_kernel_had_accepted() {
    for (unread, whole) in [(false, true), (true, false)] {
        let mut edges = Edges::new();
        if unread {
            edges.say(&[1; 1_000]);
        }
        let mut accepted = 0;
        while let Ok(n) = std::io::Write::write(&mut edges.near, &[0; 65_536]) {
            accepted += n;
        }
        drop(edges.near);
        let mut got = Vec::new();
        let end = std::io::Read::read_to_end(&mut edges.far, &mut got);
        assert_eq!((got.len() == accepted, end.is_ok()), (whole, whole), "{} of {accepted} bytes", got.len());
    }
}

/// Run by the test below in a process of its own, which may open few descriptors.
#[test]
#[ignore = "it needs a limit of descriptors"]
fn accepts_without_a_descriptor() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.set_nonblocking(true).expect("an option");
    let address = listener.local_addr().expect("its address");
    let mut poll = mio::Poll::new().expect("a poll");
    let mut events = mio::Events::with_capacity(8);
    let mut listener = mio::net::TcpListener::from_std(listener);
    poll.registry().register(&mut listener, mio::Token(0), mio::Interest::READABLE).expect("a registration");
    let _peer = TcpStream::connect(address).expect("a connection");
    let mut edge = || {
        poll.poll(&mut events, Some(Duration::ZERO)).expect("events");
        !events.is_empty()
    };
    assert!(edge());
    let mut files: Vec<std::fs::File> = std::iter::from_fn(|| std::fs::File::open("/").ok()).collect();
    let errno =
        |listener: &mio::net::TcpListener| listener.accept().err().and_then(|error| error.raw_os_error());
    assert_eq!(errno(&listener), Some(libc::EMFILE));
    files.truncate(files.len() - 1);
    assert!(!edge(), "a freed descriptor raises no edge, and a peer is waiting");
    let accepted = listener.accept().expect("the peer");
    assert_eq!(
        errno(&listener),
        Some(libc::EMFILE),
        "the backlog is empty, and that is not what accept says"
    );
    drop((accepted, files));
    assert_eq!(errno(&listener), Some(libc::EAGAIN));
}

#[test]
fn accept_reports_no_descriptor_before_an_empty_backlog_and_a_freed_one_raises_no_edge() {
    let script =
        "ulimit -n 32 && exec \"$0\" --exact accepts_without_a_descriptor --ignored --test-threads=1";
    let program = std::env::current_exe().expect("this program");
    let output = Command::new("sh").args(["-c", script]).arg(program).output().expect("a process");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
