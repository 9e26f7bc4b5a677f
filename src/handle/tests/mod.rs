//! The mailbox in every order of the steps of its threads: no post is lost between `post` and the loop's sleep.

pub(crate) mod stepped;

use super::*;
use crate::sys::Waker;
use stepped::{Event, Threads, explore};

/// The handle of a loop that sleeps on an event.
fn handle(max: usize) -> (Handle, Arc<Event>) {
    let event = Arc::new(Event::default());
    let own = Arc::clone(&event);
    let wake: Waker = Box::new(move || {
        own.set();
        Ok(())
    });
    (Handle::new(max, wake, ReactorId::next()), event)
}

/// A loop that takes posts until it has so many, and sleeps as `poll` does: not while the mailbox says that there are
/// posts, or posts of the last turn are left.
fn turn_until(handle: Handle, event: Arc<Event>, count: usize) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        let mut taken = Vec::new();
        while taken.len() < count {
            if !handle.mailbox().has_posts() {
                event.wait();
            }
            handle.mailbox().take(&mut taken);
        }
    })
}

fn poster(handle: Handle, posts: usize, may_wait: bool) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        for _ in 0..posts {
            let posted =
                if may_wait { handle.post_wait(|_| {}).is_ok() } else { handle.post(|_| {}).is_ok() };
            assert!(posted, "there is room");
        }
    })
}

#[test]
pub(crate) fn no_post_is_lost_in_any_order_of_steps() {
    let once = explore(usize::MAX, || {
        let (handle, event) = handle(8);
        vec![turn_until(handle.clone(), event, 1), poster(handle, 1, false)]
    });
    let twice = explore(3, || {
        let (handle, event) = handle(8);
        vec![turn_until(handle.clone(), event, 2), poster(handle, 2, false)]
    });
    let two = explore(2, || {
        let (handle, event) = handle(8);
        let posters = [0; 2].map(|_| poster(handle.clone(), 1, false));
        [turn_until(handle.clone(), event, 2)].into_iter().chain(posters).collect::<Threads>()
    });
    println!("{once} orders of one post, {twice} of two, {two} of two threads");
    assert!(once.min(twice).min(two) > 50, "{once}, {twice} and {two} orders");
}

#[test]
fn a_thread_that_waits_for_room_is_woken_in_every_order_of_steps() {
    let orders = explore(2, || {
        let (handle, event) = handle(1);
        vec![turn_until(handle.clone(), event, 3), poster(handle, 3, true)]
    });
    assert!(orders > 100, "{orders} orders");
}

#[test]
fn a_thread_that_waits_for_room_is_refused_when_the_loop_ends_in_every_order_of_steps() {
    let orders = explore(usize::MAX, || {
        let (handle, _) = handle(1);
        let own = handle.clone();
        let ends: Box<dyn FnOnce() + Send> = Box::new(move || {
            own.mailbox().close();
            assert!(own.post(|_| {}).is_err(), "nothing would run it");
        });
        let posts: Box<dyn FnOnce() + Send> = Box::new(move || {
            let posted = [0; 2].map(|_| handle.post_wait(|_| {}).is_ok());
            assert!(!posted[1], "there is no room for a second post, and no loop that makes some");
        });
        vec![ends, posts]
    });
    assert!(orders > 20, "{orders} orders");
}
