//! What other threads post: each of two threads posts numbers, which must run in its order, once, and in time.

use std::sync::{Arc, Mutex};

use super::*;
use crate::handle::Handle;

/// Posts and threads that the world takes steps for: what is posted between two turns is posted by threads.
pub(super) struct Posts {
    handle: Handle,
    /// The next number of each thread, and the next that is to run.
    next: [u64; 2],
    run: Arc<Mutex<[u64; 2]>>,
}

impl Posts {
    pub(super) fn new(handle: Handle) -> Posts {
        Posts { handle, next: [0; 2], run: Arc::default() }
    }

    /// One thread posts some times. Each post pokes a connection, if there is one.
    pub(super) fn step(&mut self, tape: &Tape, table: &Table) {
        let thread = tape.below(2) as usize;
        for _ in 0..1 + tape.below(4) {
            let some = tape.below(8) as usize;
            let (poked, number) = (table.slots.iter().nth(some).map(|(_, it)| it.id), self.next[thread]);
            let run = Arc::clone(&self.run);
            let posted = self.handle.post(move |sockets| {
                let mut run = run.lock().expect("no post has failed");
                assert_eq!(run[thread], number, "thread {thread}: a post out of its order");
                run[thread] += 1;
                poked.and_then(|id| sockets.get(id)).into_iter().for_each(|mut socket| socket.poke());
            });
            let max = table.cx.limits.posts;
            assert!(posted.is_ok() || self.waiting() >= max as u64, "refused, and there is room");
            self.next[thread] += u64::from(posted.is_ok());
            // As many in the mailbox as the limit says, and as many taken out of it.
            assert!(self.waiting() <= 2 * max as u64, "{} posts wait, with a limit of {max}", self.waiting());
        }
    }

    /// Posts that have not run.
    pub(super) fn waiting(&self) -> u64 {
        let run = self.run.lock().expect("no post has failed");
        self.next.iter().sum::<u64>() - run.iter().sum::<u64>()
    }
}
