//! Phase 3: what other threads asked for.

use super::EventLoop;
use crate::connection::sockets::Sockets;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Phase 3: at most a budget of posts; the others wait for the next turn.
    pub(super) fn run_posts(&mut self) {
        // The mailbox has the limit, so what waits must wait there.
        if self.posts.is_empty() {
            self.handle.mailbox().take(&mut self.posts);
        }
        if self.posts.is_empty() {
            return;
        }
        let count = self.posts.len().min(self.table.cx.limits.posts_per_turn);
        self.table.cx.stats.posts += count as u64;
        for post in self.posts.drain(..count) {
            post(&mut Sockets::new(&mut self.table));
        }
    }
}
