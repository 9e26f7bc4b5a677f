//! What concerns all connections together.

use super::*;
use crate::connection::Flag;

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
fn posts_run_in_their_order_and_within_their_budget() {
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
fn a_loop_without_progress_is_made_to_sleep() {
    let mut test = Setup::default().build(echo);
    let (_, id) = test.accept();
    for _ in 0..1_100 {
        // As if something had put it in line for nothing, turn after turn.
        test.event_loop.table.at_mut(id.slot).flags.insert(Flag::Ready);
        test.event_loop.table.ready.push(id);
        test.event_loop.finish_turn();
    }
    assert!(test.event_loop.table.stats.livelocks_broken > 0);
    test.event_loop.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(test.script.last_wait(), Some(Some(MS)));
}
