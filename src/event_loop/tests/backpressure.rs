//! Senders that wait for slow receivers.

use super::*;
use crate::config::dial::DialOptions;

/// A room without names: what a member says goes to all others.
fn room(limits: Limits) -> (TestLoop, Rc<RefCell<Vec<ConnId>>>) {
    let members = Rc::new(RefCell::new(Vec::new()));
    let (joining, telling) = (members.clone(), members.clone());
    let test = Setup { limits, ..Setup::default() }.build_with(
        move |socket| joining.borrow_mut().push(socket.id()),
        move |socket, input| {
            let own = socket.id();
            while let Some(line) = input.take_line() {
                for &id in telling.borrow().iter().filter(|&&id| id != own) {
                    if let Some(mut other) = socket.other(id) {
                        // A line of the protocol is longer than what was typed.
                        other.send([line, &[b'.'; 30]].concat());
                    }
                }
            }
        },
    );
    (test, members)
}

fn limits(queue: usize) -> Limits {
    let socket = SocketLimits { queue, high_water: 64 * 1024, low_water: 16 * 1024, ..no_idle() };
    Limits { socket, ..Limits::default() }
}

/// Lets every peer read so many bytes each 10 ms, until nothing has come for a second.
fn read_slowly(test: &mut TestLoop, peers: &[PeerId], each: usize) -> Vec<usize> {
    let mut received = vec![0; peers.len()];
    let mut quiet = 0;
    while quiet < 100 {
        quiet += 1;
        for (peer, received) in peers.iter().zip(&mut received) {
            let n = test.script.received(*peer).len();
            *received += n;
            quiet = if n > 0 { 0 } else { quiet };
            test.script.window(*peer, each);
        }
        test.advance(10 * MS);
    }
    received
}

#[test]
fn a_sender_waits_for_members_on_slow_links_and_none_of_them_is_closed() {
    let (mut test, members) = room(limits(1024 * 1024));
    let peers: Vec<PeerId> = (0..21).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    peers[1..].iter().for_each(|&peer| test.script.window(peer, 10_000));
    // 256 KiB of two-byte lines, which are 4 MiB for each of twenty members.
    test.script.feed(peers[0], &b"x\n".repeat(128 * 1024));
    test.turn();
    assert!(test.script.unread(peers[0]) > 0, "the sender is not read while the others are full");
    let received = read_slowly(&mut test, &peers[1..], 10_000);
    assert!(members.borrow().iter().all(|&id| test.close_reason(id).is_none()));
    assert_eq!(received, [128 * 1024 * 32; 20], "every line reaches every member");
    assert_eq!(test.event_loop.table.cx.memory, 0);
}

#[test]
fn a_member_that_does_not_read_stops_a_sender_for_a_moment_and_is_closed_at_its_limit() {
    let (mut test, members) = room(limits(256 * 1024));
    let peers: Vec<PeerId> = (0..3).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    test.script.window(peers[1], 0);
    test.script.feed(peers[0], &b"x\n".repeat(64 * 1024));
    test.turn_until_quiet();
    let before = test.received(peers[2]).len();
    assert!(before < 64 * 1024 * 32, "it waits for the member that does not read");
    test.advance(12 * SECOND);
    let stalled = members.borrow()[1];
    assert_eq!(test.close_reason(stalled), Some(CloseReason::SlowReader));
    assert_eq!(test.script.released(peers[1]), Some(Released::Reset));
    assert_eq!(before + test.received(peers[2]).len(), 64 * 1024 * 32, "the others get everything");
}

/// A room of two: the first has sent much, and the second reads nothing.
fn room_with_a_full_member() -> (TestLoop, Rc<RefCell<Vec<ConnId>>>, [PeerId; 2]) {
    let (mut test, members) = room(limits(16 * 1024 * 1024));
    let peers = [(); 2].map(|()| test.script.connect());
    test.turn_until_quiet();
    test.script.window(peers[1], 0);
    test.script.feed(peers[0], &b"x\n".repeat(64 * 1024));
    (test, members, peers)
}

#[test]
pub(super) fn a_sender_is_read_again_when_the_receiver_that_it_waits_for_is_gone() {
    let (mut test, members, peers) = room_with_a_full_member();
    test.turn();
    let waiting = test.script.unread(peers[0]);
    assert!(waiting > 0);
    let receiver = members.borrow()[1];
    test.sockets().get(receiver).expect("a member").abort();
    test.advance(SECOND);
    assert_eq!(test.script.unread(peers[0]), 0);
    assert_eq!(test.close_reason(members.borrow()[0]), None);
}

#[test]
fn a_sender_is_read_again_in_the_turn_in_which_a_write_to_the_receiver_fails() {
    let (mut test, members, peers) = room_with_a_full_member();
    test.turn_until_quiet();
    assert!(test.script.unread(peers[0]) > 0, "it waits");
    // It is not read, so only a write finds that the peer has gone; then it waits to be read, with no queue.
    let receiver = members.borrow()[1];
    test.sockets().get(receiver).expect("a member").pause();
    test.turn_until_quiet();
    test.script.reset(peers[1]);
    test.turn_until_quiet();
    assert!(test.event_loop.table.find(receiver).is_some_and(|it| it.is_live()), "it is held");
    assert_eq!(test.script.unread(peers[0]), 0, "without a deadline");
}

#[test]
pub(super) fn what_one_callback_makes_is_bounded_by_the_memory_limit() {
    let limits = Limits { memory: 1024 * 1024, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(|socket, input| {
        input.take_all();
        for _ in 0..1_000 {
            socket.send([b'x'; 10_000]);
        }
    });
    let (peer, id) = test.accept();
    test.script.feed(peer, b"go");
    test.turn_until_quiet();
    assert_eq!(test.close_reason(id), Some(CloseReason::Memory));
    assert_eq!(test.script.released(peer), Some(Released::Reset), "a cut answer does not look whole");
}

/// Its connections abort another one when their queue has drained.
struct AbortsWhenDrained(ConnId);

impl Service for AbortsWhenDrained {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, input: &mut Input<'_>) {
        input.take_all();
    }

    fn drained(&mut self, _: &mut (), socket: &mut Socket<'_>) {
        socket.other(self.0).expect("it is open").abort();
    }
}

#[test]
fn a_sender_is_read_again_when_a_drained_callback_aborts_the_receiver_that_it_waits_for() {
    let (mut test, members, peers) = room_with_a_full_member();
    test.turn_until_quiet();
    let service = test.event_loop.add(AbortsWhenDrained(members.borrow()[1]), None);
    let table = &mut test.event_loop.table;
    let third = table.dial(service, address().into(), DialOptions::default(), None).expect("a dial");
    test.turn_until_quiet();
    let third_peer = test.script.dialed()[0];
    test.script.finish_dial(third_peer, Ok(()));
    test.script.window(third_peer, 0);
    test.turn_until_quiet();
    test.sockets().get(third).expect("it is open").send(vec![b'x'; 256 * 1024]);
    test.turn_until_quiet();
    assert!(test.script.unread(peers[0]) > 0, "the sender waits for the second member");
    // Nothing happens after the turn in which the queue of the third drains.
    test.script.window(third_peer, 1024 * 1024);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(members.borrow()[1]), Some(CloseReason::Aborted));
    assert_eq!(test.script.unread(peers[0]), 0);
}

/// A dial may take longer than a receiver may take nothing, and so may a handshake.
#[test]
fn a_sender_waits_for_a_receiver_that_is_being_connected_and_the_loop_sleeps_meanwhile() {
    let socket = SocketLimits { connect: Some(60 * SECOND), ..limits(16 * 1024 * 1024).socket };
    let (mut test, members) = room(Limits { socket, ..Limits::default() });
    let peer = test.script.connect();
    test.turn_until_quiet();
    let table = &mut test.event_loop.table;
    let dialed = table.dial(test.service, address().into(), DialOptions::default(), None).expect("a dial");
    test.turn_until_quiet();
    test.script.feed(peer, &b"x\n".repeat(64 * 1024));
    test.turn_until_quiet();
    assert!(test.script.unread(peer) > 0 && members.borrow().contains(&dialed), "it waits");
    test.advance(20 * SECOND);
    test.turn_until_quiet();
    let sleep = test.event_loop.next_deadline().expect("a deadline") - test.event_loop.table.cx.elapsed;
    assert!(sleep > SECOND, "it wakes up after {sleep:?}");
    assert!(test.script.unread(peer) > 0, "nothing can be written yet, so it waits on");
    // From now on the receiver takes nothing, although it could.
    test.script.window(test.script.dialed()[0], 0);
    test.script.finish_dial(test.script.dialed()[0], Ok(()));
    test.advance(4 * SECOND);
    assert!(test.script.unread(peer) > 0);
    test.advance(6 * SECOND);
    assert_eq!(test.script.unread(peer), 0, "a receiver that takes nothing is not waited for any longer");
}

#[test]
fn many_senders_add_a_message_each_to_a_full_member_that_reads_and_do_not_close_it() {
    let (mut test, members) = room(limits(256 * 1024));
    let peers: Vec<PeerId> = (0..101).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    test.script.window(peers[0], 10_000);
    // A hundred members write 32 KiB of two-byte lines each: 50 MB for the member on the slow link.
    peers[1..].iter().for_each(|&peer| test.script.feed(peer, &b"x\n".repeat(16 * 1024)));
    let slow = members.borrow()[0];
    for _ in 0..100 {
        test.turn();
        assert!(test.queued(slow) < 3 * 1024 * 1024, "{} bytes are queued", test.queued(slow));
        test.script.window(peers[0], 10_000);
    }
    assert_eq!(test.close_reason(slow), None);
}
