//! Phase 3: run the closures that other threads have posted.
//!
//! Read before: `event_loop/poll.rs`. Next: `connection/state.rs`.

use super::EventLoop;
use crate::base::observer::{Call, Callback, Phase, Step};
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::sockets::Sockets;
use crate::handle::Post;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Calls `ready` of watched descriptors, then runs at most
    /// [`Limits::posts_per_turn`](crate::Limits::posts_per_turn) posts; the others wait for the next turn.
    pub(super) fn run_posts(&mut self) {
        self.enter(Phase::RunPosts);
        if !self.table.watched.ready.is_empty() {
            self.run_watches();
        }
        // Posts are taken only when all earlier ones have run. So those that wait stay in the mailbox, where they count
        // against `Limits::posts` and `Handle::post` reports that it is full.
        if self.posts.is_empty() || seeded(SeededBug::MailboxUnbounded) {
            self.handle.mailbox().take(&mut self.posts);
        }
        if self.posts.is_empty() {
            return;
        }
        let count = self.posts.len().min(self.table.cx.limits.posts_per_turn);
        self.table.cx.stats.posts += count as u64;
        for post in self.posts.drain(..count) {
            let service = match post {
                Post::All(_) => None,
                Post::Service(number, _) => Some(self.table.service_id(number)),
            };
            let call = Call { callback: Callback::Post, service, connection: None };
            self.table.cx.observers.tell_message(|| Step::Call(call));
            match post {
                Post::All(work) => work(&mut Sockets::new(&mut self.table)),
                Post::Service(number, work) => {
                    work(self.services[usize::from(number) - 1].as_any(), &mut self.table)
                }
            }
            self.table.cx.observers.tell_message(|| Step::Return(call));
        }
    }
}
