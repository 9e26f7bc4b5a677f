//! At the beginning of phase 3: watched descriptors that are ready.

use std::mem;

use super::EventLoop;
use crate::base::id::Token;
use crate::service::Event;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Calls `ready` for each descriptor whose event has come; [`Limits::watched`](crate::Limits::watched) bounds them.
    /// After the call it is registered again, so that the kernel tells again of what was not read or written
    /// (level-triggered).
    pub(super) fn run_watches(&mut self) {
        let mut line = mem::take(&mut self.table.watched.ready);
        for id in line.drain(..) {
            let Some(watch) = self.table.watched.get(id) else { continue }; // A callback has unwatched it.
            let service = watch.service;
            self.table.cx.stats.watch_events += 1;
            self.call(service, Event::Ready(id));
            let Some(watch) = self.table.watched.get(id) else { continue };
            let token = Token::watch(id.index as usize);
            if let Err(error) = self.table.registrar.watch(&watch.descriptor, token, watch.interest, true) {
                log::error!("{id:?} cannot be watched any more: {error}");
                self.table.take_watched(id);
            }
        }
        self.table.watched.ready = line; // Kept for its memory.
    }
}
