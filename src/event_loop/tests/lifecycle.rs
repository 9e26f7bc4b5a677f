//! The loop as a whole: shutdown, livelock, timers, and ids that are used again.

use super::*;
use crate::base::id::ServiceId;
use crate::base::tick::Tick;
use crate::connection::state::Flag;

#[test]
fn shutdown_closes_listeners_at_once_and_connections_after_the_grace_period() {
    let mut test = Setup::default().build(echo);
    let ((leaves, first), (stays, second)) = (test.accept(), test.accept());
    Sockets::new(&mut test.event_loop.table).shutdown(10 * SECOND);
    test.turn_until_quiet();
    assert!(!test.script.is_listening());
    test.script.feed(leaves, b"goodbye");
    test.script.end(leaves);
    test.advance(9 * SECOND);
    assert_eq!(
        (test.received(leaves).as_str(), test.close_reason(first)),
        ("goodbye", Some(CloseReason::Finished))
    );
    assert_eq!((test.close_reason(second), test.event_loop.is_finished()), (None, false));
    test.advance(SECOND + 20 * MS);
    assert_eq!(test.close_reason(second), Some(CloseReason::Shutdown));
    assert!(test.script.released(stays).is_some() && test.event_loop.is_finished());
}

#[test]
pub(super) fn posts_run_in_their_order_and_within_their_budget() {
    let limits = Limits { posts: 10, posts_per_turn: 4, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    let handle = test.event_loop.handle();
    let (sender, receiver) = std::sync::mpsc::channel();
    for i in 0..10 {
        let sender = sender.clone();
        handle.post(move |_| sender.send(i).unwrap()).unwrap();
    }
    assert_eq!(handle.post(|_| {}).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    test.turn();
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(test.event_loop.has_work());
    test.turn_until_quiet();
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
    drop(test);
    assert_eq!(handle.post(|_| {}).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn refused_posts_are_given_back_and_the_thread_of_the_loop_does_not_wait_for_itself() {
    let limits = Limits { posts: 1, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    let handle = test.event_loop.handle();
    let (sender, receiver) = std::sync::mpsc::channel();
    handle.post(|_| {}).unwrap();
    let owned = String::from("a result");
    let refused = handle.post_wait(move |_| sender.send(owned).unwrap()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(refused.to_string(), "cannot post: 1 posts are queued for the loop already (Limits::posts)");
    test.turn();
    handle.post(refused.into_inner()).unwrap();
    test.turn();
    assert_eq!(receiver.try_recv().as_deref(), Ok("a result"));
}

#[test]
fn a_thread_that_waits_to_post_is_refused_when_the_loop_is_dropped() {
    let limits = Limits { posts: 1, ..Limits::default() };
    let test = Setup { limits, ..Setup::default() }.build(echo);
    let handle = test.event_loop.handle();
    handle.post(|_| {}).unwrap();
    let (started, has_started) = std::sync::mpsc::channel();
    let waits = std::thread::spawn(move || {
        started.send(()).unwrap();
        handle.post_wait(|_| {}).map_err(|refused| refused.kind())
    });
    has_started.recv().unwrap();
    drop(test);
    assert_eq!(waits.join().unwrap(), Err(std::io::ErrorKind::BrokenPipe));
}

#[test]
fn a_loop_without_progress_is_made_to_sleep() {
    let mut test = Setup::default().build(echo);
    let (_, id) = test.accept();
    for _ in 0..1_100 {
        // Simulates a bug that adds the connection to the ready list in each turn without a reason.
        test.event_loop.table.at(id.slot).0.flags.insert(Flag::Ready);
        test.event_loop.table.cx.ready.push(id);
        test.event_loop.turn(None).unwrap();
    }
    assert!(test.event_loop.table.cx.stats.livelocks_broken > 0);
    assert_eq!(test.script.last_wait(), Some(Some(MS)));
    test.turn_until_quiet();
    assert_eq!(test.script.last_wait(), Some(Some(Duration::ZERO)), "it sleeps as it did before");
}

#[test]
fn a_deadline_that_is_due_for_ever_does_not_keep_the_loop_from_sleeping() {
    let mut test = Setup::default().build(discard);
    for _ in 0..1_100 {
        // Simulates a deadline that no phase handles: that of a shutdown, with a timer left each time.
        let service = test.service;
        test.sockets().set_timer(service, SECOND, None).unwrap();
        test.event_loop.table.drain_deadline = Some(Tick(0));
        test.event_loop.turn(None).unwrap();
    }
    assert!(test.event_loop.table.cx.stats.livelocks_broken > 0);
    assert_eq!(test.script.last_wait(), Some(Some(MS)));
}

#[test]
fn limits_of_zero_that_would_stop_the_loop_are_read_as_one() {
    let limits = Limits {
        lookups: 0,
        handshakes: 0,
        accepts_per_turn: 0,
        read_budget: 0,
        carried_over_budget: 0,
        write_budget: 0,
        expirations_per_turn: 0,
        posts_per_turn: 0,
        ..Limits::default()
    };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    let (sender, receiver) = std::sync::mpsc::channel();
    test.event_loop.handle().post(move |_| sender.send(()).unwrap()).unwrap();
    let (peer, _) = test.accept();
    test.script.feed(peer, b"hello");
    test.turn_until_quiet();
    assert_eq!((test.script.received(peer), receiver.try_iter().count()), (b"hello".to_vec(), 1));
}

/// A service that sets a timer in each `closed`.
struct SetsTimers(Option<ServiceId>);

impl Service for SetsTimers {
    type Session = ();

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.0 = Some(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, input: &mut Input<'_>) {
        input.take_all();
    }

    fn closed(&mut self, _: (), _: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let _ = sockets.set_timer(self.0.expect("an id"), 3_600 * SECOND, None);
    }
}

#[test]
pub(super) fn a_shutdown_ends_although_closed_sets_a_timer() {
    let (sim, script) = Sim::new();
    let mut event_loop = EventLoop::new(sim, Limits::default()).unwrap();
    let service = event_loop.add(SetsTimers(None), None);
    event_loop.listen(&Address::from(address()), service, &ListenOptions::default()).unwrap();
    script.connect();
    event_loop.turn_until_quiet(&script);
    Sockets::new(&mut event_loop.table).shutdown(SECOND);
    event_loop.turn_until_quiet(&script);
    for _ in 0..20 {
        if !event_loop.is_finished() {
            event_loop.turn(None).unwrap();
        }
    }
    assert!(event_loop.is_finished(), "after twenty turns there is still something to wait for");
}

#[test]
pub(super) fn no_more_posts_wait_than_the_limit() {
    let limits = Limits { posts: 10, posts_per_turn: 1, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(echo);
    let handle = test.event_loop.handle();
    let mut accepted = 0;
    for _ in 0..100 {
        while handle.post(|_| {}).is_ok() {
            accepted += 1;
        }
        test.turn();
    }
    let waiting = accepted - test.event_loop.table.cx.stats.posts;
    assert!(waiting <= 20, "{waiting} posts wait, with Limits::posts at 10 and a batch taken out");
    test.turn_until_quiet();
    assert_eq!(test.event_loop.table.cx.stats.posts, accepted, "every post that was accepted has run");
}

#[test]
pub(super) fn closed_callbacks_of_one_turn_are_bounded() {
    let limits = Limits { accepts_per_turn: 5_000, ..Limits::default() };
    let mut test = Setup { limits, ..Setup::default() }.build(discard);
    let peers: Vec<PeerId> = (0..2_000).map(|_| test.script.connect()).collect();
    test.turn_until_quiet();
    peers.iter().for_each(|&peer| test.script.reset(peer));
    let closed =
        |test: &TestLoop| test.events().iter().filter(|event| matches!(event, Event::Closed(..))).count();
    test.turn();
    let first = closed(&test);
    assert!((1..=1_000).contains(&first), "{first} connections were closed in one turn");
    test.turn_until_quiet();
    assert_eq!(closed(&test), 2_000);
}
