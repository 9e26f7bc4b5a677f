//! The memory limit, which all inboxes and outboxes share.

use super::*;

#[test]
fn a_line_to_a_thousand_members_is_held_once() {
    let members: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let (joining, telling) = (members.clone(), members.clone());
    let mut test =
        Setup { limits: Limits { accepts_per_turn: 1_001, ..Limits::default() }, ..Setup::default() }
            .build_with(
                move |socket| joining.borrow_mut().push(socket.id()),
                move |socket, input| {
                    let line = Shared::from(input.take_all());
                    for &id in telling.borrow().iter() {
                        socket.other(id).expect("a member").send_shared(&line);
                    }
                },
            );
    let peers: Vec<PeerId> = (0..1_001).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    peers.iter().for_each(|&peer| test.script.window(peer, 0));
    test.script.feed(peers[0], &[b'x'; 8_000]);
    test.turn_until_quiet();
    assert_eq!(test.queued(members.borrow()[5]), 8_000);
    let each = (test.event_loop.table.cx.memory - 8_000) / 1_001;
    assert!(each < 100, "each further member costs {each} bytes");
    peers.iter().for_each(|&peer| test.script.window(peer, usize::MAX));
    test.turn_until_quiet();
    assert_eq!(test.event_loop.table.cx.memory, 0);
    assert!(peers.iter().all(|&peer| test.script.received(peer).len() == 8_000));
}

#[test]
fn a_line_queued_in_two_loops_of_one_thread_is_charged_to_each() {
    let line: Rc<RefCell<Option<Shared>>> = Rc::default();
    let [mut one, mut two] = [(); 2].map(|()| {
        let line = line.clone();
        Setup::default().build(move |socket, input| {
            let bytes = input.take_all();
            socket.send_shared(line.borrow_mut().get_or_insert_with(|| Shared::from(bytes)));
        })
    });
    let mut peers = Vec::new();
    for test in [&mut one, &mut two] {
        let (peer, _) = test.accept();
        test.script.window(peer, 0);
        test.script.feed(peer, &[b'x'; 8_000]);
        test.turn_until_quiet();
        assert!(test.event_loop.table.cx.memory >= 8_000);
        peers.push(peer);
    }
    for (test, peer) in [(&mut one, peers[0]), (&mut two, peers[1])] {
        test.script.window(peer, usize::MAX);
        test.turn_until_quiet();
        assert_eq!((test.script.received(peer).len(), test.event_loop.table.cx.memory), (8_000, 0));
    }
}

#[test]
pub(super) fn past_the_memory_the_largest_queue_goes_first_and_only_until_it_fits() {
    let limits = Limits { memory: 300_000, socket: no_idle(), ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(|socket, input| {
        let n = input.take_all().len();
        socket.send(vec![b'x'; n * 1_000]);
    });
    let peers: Vec<_> = [50, 100, 60].map(|n| (n, test.accept())).to_vec();
    for &(n, (peer, _)) in &peers {
        test.script.window(peer, 0);
        test.script.feed(peer, &vec![b'x'; n]);
        test.turn_until_quiet();
    }
    let (peer, last) = test.accept();
    test.script.window(peer, 0);
    test.script.feed(peer, &[b'x'; 62]);
    test.turn_until_quiet();
    assert_eq!(test.close_reason(peers[1].1.1), Some(CloseReason::Memory));
    assert!([peers[0].1.1, peers[2].1.1, last].iter().all(|&id| test.close_reason(id).is_none()));
    assert!(test.event_loop.table.cx.memory <= 300_000);
}

#[test]
fn near_the_memory_limit_a_connection_with_a_queue_is_not_read() {
    let limits = Limits { memory: 100_000, socket: no_idle(), ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    let ((hog, _), (peer, _)) = (test.accept(), test.accept());
    test.script.window(hog, 0);
    test.script.feed(hog, &[b'x'; 65_536]);
    test.turn_until_quiet();
    test.script.window(peer, 0);
    test.script.feed(peer, &[b'x'; 16_000]);
    test.turn_until_quiet();
    test.script.feed(peer, &[b'x'; 1_000]);
    test.turn_until_quiet();
    assert_eq!(test.script.unread(peer), 1_000, "16,000 bytes are below every mark, but memory is tight");
    test.script.window(hog, usize::MAX);
    test.script.window(peer, usize::MAX);
    test.turn_until_quiet();
    assert_eq!((test.script.unread(peer), test.event_loop.table.cx.memory), (0, 0));
}

#[test]
pub(super) fn inboxes_that_grow_in_one_turn_keep_to_the_memory_limit() {
    let seen = Rc::new(RefCell::new(0_usize));
    let max = seen.clone();
    let limits = Limits { memory: 1 << 20, accepts_per_turn: 1_000, socket: no_idle(), ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(move |socket, _| {
        let memory = socket.all().memory();
        let mut seen = seen.borrow_mut();
        *seen = memory.max(*seen);
    });
    let peers: Vec<PeerId> = (0..500).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    for &peer in &peers {
        test.script.feed(peer, &vec![b'x'; 60_000]);
    }
    test.turn();
    let max = *max.borrow();
    assert!(max <= (1 << 20) + (64 << 10), "{} KiB in inboxes, at a limit of 1,024 KiB", max >> 10);
}

/// A chat room of a hundred members: each line is sent to all of them.
fn room_of_a_hundred() -> (TestLoop, Vec<PeerId>) {
    let members: Rc<RefCell<Vec<ConnId>>> = Rc::default();
    let (joining, room) = (members.clone(), members.clone());
    let limits = Limits { accepts_per_turn: 1_000, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build_with(
        move |socket| joining.borrow_mut().push(socket.id()),
        move |socket, input| {
            while let Some(line) = input.take_line() {
                let line = Shared::from(line);
                for &id in room.borrow().iter() {
                    socket.other(id).expect("a member").send_shared(&line);
                }
            }
        },
    );
    let peers = (0..100).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    (test, peers)
}

#[test]
pub(super) fn a_burst_of_short_lines_to_a_room_is_spread_over_turns_and_arrives_whole() {
    const LINES: usize = 8 * 1024;
    let (mut test, peers) = room_of_a_hundred();
    test.script.feed(peers[0], &b"x\n".repeat(LINES));
    test.script.end(peers[0]);
    test.turn();
    let mut received = test.script.received(peers[3]);
    let first = received.len();
    assert!((1..=64 * 1024).contains(&first), "{first} bytes for one member in one turn");
    // Another member is read although the burst is not over.
    test.script.feed(peers[2], b"hello\n");
    for _ in 0..3 {
        test.turn();
        received.extend(test.script.received(peers[3]));
    }
    assert!(String::from_utf8(received.clone()).unwrap().contains("hello\n"));
    test.turn_until_quiet();
    received.extend(test.script.received(peers[3]));
    assert_eq!(received.len(), 2 * LINES + "hello\n".len());
    assert!(test.events().iter().any(|event| matches!(event, Event::End(_, rest) if rest.is_empty())));
}

#[test]
fn a_closing_connection_that_is_evicted_gets_a_reset() {
    let limits = Limits { memory: 300_000, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(|socket, input| {
        input.take_all();
        socket.send([b'x'; 200_000]);
        socket.close();
    });
    let (peers, ids): (Vec<_>, Vec<_>) = (0..2).map(|_| test.accept()).unzip();
    for &peer in &peers {
        test.script.window(peer, 1_000);
        test.script.feed(peer, b"1");
        test.turn_until_quiet();
    }
    let evicted = ids.iter().position(|&id| test.close_reason(id) == Some(CloseReason::Memory)).expect("one");
    assert_eq!(
        test.script.released(peers[evicted]),
        Some(Released::Reset),
        "half an answer must not look whole"
    );
}
