//! Phase 8: let newcomers in, and call out.

use std::mem;
use std::net::SocketAddr;

use super::Loop;
use crate::closed::{Closed, OsError};
use crate::connection::Stage;
use crate::id::ConnId;
use crate::listener::Failure;
use crate::system::System;
use crate::table::DOORMAN;

/// Peers turned away in one go when no descriptor is left to tell them.
const SHED_MAX: usize = 64;

impl<S: System> Loop<S> {
    /// Comes after `reap`: a full house does not refuse a guest while a chair is being vacated. What newcomers are
    /// greeted with is written at once.
    pub(super) fn admit(&mut self) {
        let before = self.table.stats.accepted + self.table.stats.refused;
        for id in mem::take(&mut self.table.newborn) {
            self.call(id);
        }
        for index in 0..self.doors.len() {
            self.admit_at(index);
        }
        if self.table.stats.accepted + self.table.stats.refused > before && !self.table.dirty.is_empty() {
            self.flush();
        }
    }

    /// Connects for a service that dialed. A dial that was cancelled before this never began: nobody is told.
    fn call(&mut self, id: ConnId) {
        let Some(slot) = self.table.find(id).filter(|&slot| self.table.at(slot).stage != Stage::Doomed)
        else {
            return;
        };
        let (host, peer) = (usize::from(self.table.at(slot).host), self.table.at(slot).peer());
        self.hosts[host].open(&mut self.table, slot);
        if self.table.at(slot).stage == Stage::Doomed {
            return;
        }
        let called = self.system.connect(peer).and_then(|stream| self.settle(slot, stream));
        if let Err(error) = called {
            self.table.doom(slot, Closed::Unreachable(OsError::from(error)));
        }
    }

    fn admit_at(&mut self, index: usize) {
        for _ in 0..self.table.limits.accepts.max(1) {
            let Some(Some(door)) = self.doors.get(index) else { return };
            if !self.can_admit(door) {
                return;
            }
            match self.system.accept(&door.listener) {
                Ok((stream, peer)) => self.welcome(index, stream, peer),
                Err(error) => match Failure::of(&error) {
                    Failure::PeerGone => self.table.stats.accept_aborted += 1,
                    Failure::Empty => return self.nobody_waits(index),
                    Failure::NoDescriptor => return self.out_of_descriptors(index),
                    Failure::NoMemory => return self.starve(index, "kernel memory"),
                    Failure::Broken => {
                        log::error!("a listener is broken and was closed: {error}");
                        self.doors[index] = None;
                        return;
                    }
                },
            }
        }
    }

    fn welcome(&mut self, index: usize, stream: S::Stream, peer: SocketAddr) {
        let Some(Some(door)) = self.doors.get_mut(index) else { return };
        door.feed();
        let host = if self.table.has_room() { door.host } else { DOORMAN };
        let busy = door.busy_reply.clone();
        let id = self.table.insert(host, Stage::Open, peer);
        self.table.at_mut(id.slot).flags.writable = true;
        self.table.stats.accepted += u64::from(host != DOORMAN);
        self.table.stats.refused += u64::from(host == DOORMAN);
        if let Err(error) = self.settle(id.slot, stream) {
            // Not watched, and so never to be heard of again: it ends before its service has met it.
            self.table.doom(id.slot, Closed::Error(OsError::from(error)));
        } else if host == DOORMAN {
            self.table.send_to_refused(id.slot, &busy);
        } else {
            log::debug!("{id} {peer} accepted");
            self.hosts[usize::from(host)].open(&mut self.table, id.slot);
        }
    }

    fn nobody_waits(&mut self, index: usize) {
        if let Some(Some(door)) = self.doors.get_mut(index) {
            door.acceptable = false;
            door.feed();
        }
    }

    /// With no descriptor left, the one held in reserve makes room to accept peers and close them, so that they need
    /// not wait for an answer that will not come; those who may wait are left alone. Then the door looks again after
    /// a pause: freeing descriptors raises no event, and neither does an accept that failed for want of one.
    fn out_of_descriptors(&mut self, index: usize) {
        let Some(Some(door)) = self.doors.get(index) else { return };
        if door.refuses && self.system.release_reserve() {
            let mut empty = false;
            for _ in 0..SHED_MAX {
                match self.system.accept(&door.listener) {
                    Ok((stream, _)) => drop(stream),
                    Err(error) => match Failure::of(&error) {
                        Failure::PeerGone => continue,
                        failure => {
                            empty = failure == Failure::Empty;
                            break;
                        }
                    },
                }
                self.table.stats.shed += 1;
            }
            self.system.hold_reserve();
            if empty {
                return self.nobody_waits(index);
            }
        }
        self.starve(index, "descriptors");
    }

    fn starve(&mut self, index: usize, what: &str) {
        let now = self.table.now;
        let Some(Some(door)) = self.doors.get_mut(index) else { return };
        self.table.stats.starved += 1;
        if door.starve(now) {
            log::warn!("cannot accept: out of {what} (raise the limit, or lower Limits::connections)");
        }
    }
}
