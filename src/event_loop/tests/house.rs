//! What concerns all connections together.

use super::*;
use crate::connection::Flag;

#[test]
fn a_shutdown_closes_the_door_at_once_and_ends_the_rest_when_the_grace_is_over() {
    let mut house = Plan::default().build(echo);
    let ((leaves, first), (stays, second)) = (house.guest(), house.guest());
    Sockets::new(&mut house.turns.table).shutdown(10 * SECOND);
    house.settle();
    assert!(!house.script.is_listening());
    house.script.feed(leaves, b"goodbye");
    house.script.end(leaves);
    house.pass(9 * SECOND);
    assert_eq!((house.heard(leaves).as_str(), house.farewell(first)), ("goodbye", Some(Closed::Finished)));
    assert_eq!((house.farewell(second), house.turns.is_finished()), (None, false));
    house.pass(SECOND + 20 * MS);
    assert_eq!(house.farewell(second), Some(Closed::Shutdown));
    assert!(house.script.gone(stays).is_some() && house.turns.is_finished());
}

#[test]
fn posts_run_in_their_order_and_within_their_budget() {
    let limits = Limits { posts: 10, posts_per_turn: 4, ..Limits::default() };
    let mut house = Plan { limits, ..Plan::default() }.build(echo);
    let handle = house.turns.handle();
    let (sender, receiver) = std::sync::mpsc::channel();
    for i in 0..10 {
        let sender = sender.clone();
        handle.post(move |_| sender.send(i).unwrap()).unwrap();
    }
    assert_eq!(handle.post(|_| {}).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    house.turn();
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(house.turns.has_work());
    house.settle();
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
    drop(house);
    assert_eq!(handle.post(|_| {}).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_loop_that_cannot_get_on_is_made_to_sleep() {
    let mut house = Plan::default().build(echo);
    let (_, id) = house.guest();
    for _ in 0..1_100 {
        // As if something had put it in line for nothing, turn after turn.
        house.turns.table.at_mut(id.slot).flags.raise(Flag::Ready);
        house.turns.table.ready.push(id);
        house.turns.tally(0);
    }
    assert!(house.turns.table.stats.spins_broken > 0);
    house.turns.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(house.script.asked_to_wait(), Some(Some(MS)));
}
