//! Descriptors that are not connections.

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use tidemill::{Interest, ServiceSockets, WatchId};

use super::*;

/// Reads at most four bytes for each call from what it watches, and unwatches at the end of it.
#[derive(Clone, Default)]
struct Watcher {
    read: Rc<RefCell<Vec<u8>>>,
    calls: Rc<RefCell<Vec<WatchId>>>,
    returned: Rc<RefCell<Vec<OwnedFd>>>,
}

impl Service for Watcher {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}

    fn ready(&mut self, watch: WatchId, sockets: &mut ServiceSockets<'_, Watcher>) {
        self.calls.borrow_mut().push(watch);
        let mut bytes = [0; 4];
        let descriptor = sockets.watched(watch).expect("it is watched");
        match rustix::io::read(descriptor, &mut bytes).expect("it can be read") {
            0 => self.returned.borrow_mut().extend(sockets.unwatch(watch)),
            length => self.read.borrow_mut().extend_from_slice(&bytes[..length]),
        }
    }
}

#[test]
fn the_output_of_a_child_is_read_bit_by_bit_until_its_end() {
    let mut reactor = reactor();
    let watcher = Watcher::default();
    let service = reactor.add(watcher.clone());
    let mut child = Command::new("echo").arg("from a child").stdout(Stdio::piped()).spawn().expect("a child");
    let watch = reactor.watch(child.stdout.take().expect("a pipe"), service).expect("it is watched");
    // `run` returns when nothing is watched any more.
    reactor.run().expect("its end");
    assert_eq!(*watcher.read.borrow(), b"from a child\n");
    assert!(watcher.calls.borrow().iter().all(|&id| id == watch));
    assert_eq!(watcher.returned.borrow().len(), 1, "the descriptor is given back");
    assert_eq!(reactor.stats().watch_events as usize, watcher.calls.borrow().len());
    assert!(reactor.sockets().watched(watch).is_none() && reactor.unwatch(watch).is_none());
    child.wait().expect("its end");
}

#[test]
fn what_is_left_unread_is_told_again_without_a_new_datagram() {
    let mut reactor = reactor();
    let watcher = Watcher::default();
    let service = reactor.add(watcher.clone());
    let [ours, theirs] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"));
    let watch = reactor.watch(ours.try_clone().expect("a second handle"), service).expect("it is watched");
    for word in [b"one.", b"two.", b"six."] {
        theirs.send_to(word, ours.local_addr().expect("its address")).expect("it is sent");
    }
    turn_until(&mut reactor, "all have come", |_| watcher.read.borrow().len() == 12);
    assert_eq!(*watcher.read.borrow(), b"one.two.six.");
    assert_eq!(watcher.calls.borrow().len(), 3, "one datagram for each call");
    // Nothing more to read: the loop sleeps.
    let before = reactor.stats().turns;
    let end = Instant::now() + Duration::from_millis(50);
    while Instant::now() < end {
        reactor.turn(Some(Duration::from_millis(50))).expect("a turn");
    }
    assert!(reactor.stats().turns - before < 5);
    // After unwatching, a datagram on the same socket raises no event here.
    drop(reactor.unwatch(watch).expect("it was watched"));
    theirs.send_to(b"more", ours.local_addr().expect("its address")).expect("it is sent");
    reactor.turn(Some(Duration::from_millis(20))).expect("a turn");
    assert_eq!((watcher.calls.borrow().len(), reactor.stats().stale_events), (3, 0));
}

#[test]
fn watches_are_bounded_refused_for_other_reactors_and_end_with_a_shutdown() {
    let mut reactor = Reactor::new(Limits { watched: 1, ..Limits::default() }).expect("a reactor");
    let watcher = Watcher::default();
    let service = reactor.add(watcher.clone());
    let foreign = self::reactor().add(Watcher::default());
    let (one, other) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
    let again = || one.try_clone().expect("a second handle");
    assert_eq!(
        reactor.watch(again(), foreign).expect_err("another reactor's").kind(),
        ErrorKind::InvalidInput
    );
    let file = std::fs::File::open("/etc/passwd").expect("a file");
    assert_eq!(reactor.watch(file, service).expect_err("a file on disk").kind(), ErrorKind::PermissionDenied);
    let watch = reactor.watch(again(), service).expect("it is watched");
    let error = reactor.watch(again(), service).expect_err("one is the maximum");
    assert_eq!(error.to_string(), "cannot watch a descriptor: there are 1 already (raise Limits::watched)");
    other.send(b"self").expect("room");
    turn_until(&mut reactor, "it is read", |_| watcher.read.borrow().len() == 4);
    drop(reactor.unwatch(watch));
    let later = reactor.watch(again(), service).expect("there is room again");
    assert_ne!(watch, later);
    assert!(reactor.sockets().watched(watch).is_none(), "an old id finds no later watch");
    assert!(reactor.sockets().watched(later).is_some_and(|descriptor| descriptor.as_fd().as_raw_fd() >= 0));
    reactor.shutdown(Duration::ZERO);
    reactor.run().expect("a shutdown does not wait for it");
}

/// Writes to a pipe whenever it can be written to, and counts the calls.
#[derive(Clone, Default)]
struct Filler {
    calls: Rc<RefCell<usize>>,
    written: Rc<RefCell<usize>>,
}

impl Service for Filler {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}

    fn ready(&mut self, watch: WatchId, sockets: &mut ServiceSockets<'_, Filler>) {
        *self.calls.borrow_mut() += 1;
        let pipe = sockets.watched(watch).expect("it is watched");
        while let Ok(length) = rustix::io::write(pipe, &[7; 4096]) {
            *self.written.borrow_mut() += length;
        }
    }
}

#[test]
fn a_full_pipe_is_told_of_once_it_was_drained_and_not_before() {
    let mut reactor = reactor();
    let filler = Filler::default();
    let service = reactor.add(filler.clone());
    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
    let watch = reactor.watch_with(writer, service, Interest::Writable).expect("it is watched");
    turn_until(&mut reactor, "it is filled", |_| *filler.written.borrow() > 0);
    let (capacity, calls) = (*filler.written.borrow(), *filler.calls.borrow());
    let turns = |reactor: &mut Reactor| {
        (0..3).for_each(|_| _ = reactor.turn(Some(Duration::from_millis(10))).expect("a turn"));
    };
    turns(&mut reactor);
    assert_eq!(*filler.calls.borrow(), calls, "a full pipe is not ready");
    assert_eq!(rustix::io::read(&reader, &mut vec![0; capacity]).expect("it is full"), capacity);
    turn_until(&mut reactor, "it is filled again", |_| *filler.written.borrow() == 2 * capacity);
    // Drained once more, but only its other end's end is asked for.
    reactor.sockets().set_interest(watch, Interest::Readable).expect("it is watched");
    assert_eq!(rustix::io::read(&reader, &mut vec![0; capacity]).expect("it is full"), capacity);
    let calls = *filler.calls.borrow();
    turns(&mut reactor);
    assert_eq!(*filler.calls.borrow(), calls, "writability is no longer asked for");
    reactor.sockets().set_interest(watch, Interest::Both).expect("it is watched");
    turn_until(&mut reactor, "it is told again", |_| *filler.written.borrow() == 3 * capacity);
    drop(reactor.unwatch(watch));
    let error = reactor.sockets().set_interest(watch, Interest::Both).expect_err("it is not watched");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
