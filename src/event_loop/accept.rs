//! Phase 8: let newcomers in, and call out.

use std::mem;
use std::time::Duration;

use super::Loop;
use crate::base::address::{Address, Peer};
use crate::base::reason::{Closed, OsError, Refusal, Refused};
use crate::config::limits::SocketLimits;
use crate::config::rules::Refuse;
use crate::connection::admission::TurnedAway;
use crate::connection::socket::Socket;
use crate::connection::table::DOORMAN;
use crate::connection::{Flag, Stage};
use crate::parts::inbox::Input;
use crate::service::Service;
use crate::sys::{AcceptError, System};

/// Peers turned away in one go when no descriptor is left to tell them.
const SHED_MAX: usize = 64;

impl<S: System> Loop<S> {
    /// Comes after `reap`: a full house does not refuse a guest while a chair is being vacated. What newcomers are
    /// greeted with is written at once.
    pub(super) fn admit(&mut self) {
        let before = self.table.stats.accepted + self.table.stats.refused;
        self.hear_answers();
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

    fn admit_at(&mut self, index: usize) {
        for _ in 0..self.table.limits.accepts.max(1) {
            let Some(Some(door)) = self.doors.get(index) else { return };
            if !self.can_admit(door) {
                return;
            }
            match self.system.accept(&door.listener) {
                Ok((stream, peer)) => self.welcome(index, stream, peer),
                Err(error) => match error {
                    AcceptError::PeerGone => self.table.stats.accept_aborted += 1,
                    AcceptError::Empty => return self.nobody_waits(index),
                    AcceptError::NoDescriptor => return self.out_of_descriptors(index),
                    AcceptError::NoMemory => return self.starve(index, "kernel memory"),
                    AcceptError::Broken(error) => {
                        log::error!("a listener is broken and was closed: {error}");
                        self.doors[index] = None;
                        return;
                    }
                },
            }
        }
    }

    /// Somebody stands in the door: the rules are asked first, then whether there is room, then whether its address has
    /// had its share.
    fn welcome(&mut self, index: usize, stream: S::Stream, peer: Peer) {
        let Some(Some(door)) = self.doors.get_mut(index) else { return };
        door.feed();
        let (host, slots) = (door.host, door.slots());
        let ip = peer.ip();
        let full = Err((Refusal::Full, Refuse::Reply));
        let judged = self.table.check_rules(host, ip).and_then(|()| {
            let room = self.table.has_room_at(host, slots);
            if room { self.table.check_address(host, ip) } else { full }
        });
        match judged {
            Ok(counted) => self.let_in(index, stream, peer, counted),
            Err(refusal) => self.turn_away(index, stream, peer, refusal),
        }
    }

    fn let_in(&mut self, index: usize, stream: S::Stream, peer: Peer, counted: bool) {
        let Some(Some(door)) = self.doors.get(index) else { return };
        let (host, dials, secure) = (door.host, door.dials, door.secure.clone());
        let local = door.local.or_else(|| self.system.local(&stream));
        let id = self.table.insert(host, Stage::Open, peer);
        let flags = &mut self.table.at_mut(id.slot).flags;
        flags.raise(Flag::Writable);
        flags.set(Flag::Counted, counted);
        if let Some(local) = local {
            self.table.note_local(id.slot, local);
        }
        if dials {
            self.table.reserve(id.slot);
        }
        self.table.stats.accepted += 1;
        if let Err(error) = self.settle(id.slot, stream) {
            // Not watched, and so never to be heard of again: it ends before its service has met it.
            return self.table.doom(id.slot, Closed::Error(OsError::from(error)));
        }
        log::debug!("{id} {} accepted", Address::from(peer));
        if let Some(how) = secure {
            return self.meet_later(id.slot, how);
        }
        self.hosts[usize::from(host)].open(&mut self.table, id.slot);
    }

    fn turn_away(&mut self, index: usize, stream: S::Stream, peer: Peer, (why, how): TurnedAway) {
        self.table.stats.refused += 1;
        self.tell_refused(index, peer, why);
        let Some(Some(door)) = self.doors.get(index) else { return };
        let busy = door.busy_reply.clone();
        let can_hold = self.table.held < self.table.limits.held;
        match how {
            Refuse::Reset => self.system.reset(stream),
            // Whom there is no room to tell sees at least that it is over.
            _ if !self.table.can_refuse() => drop(stream),
            Refuse::Hold if !can_hold => self.system.reset(stream),
            Refuse::Hold | Refuse::End | Refuse::Reply => {
                let id = self.table.insert(DOORMAN, Stage::Open, peer);
                self.table.at_mut(id.slot).flags.raise(Flag::Writable);
                if let Err(error) = self.settle(id.slot, stream) {
                    return self.table.doom(id.slot, Closed::Error(OsError::from(error)));
                }
                match how {
                    Refuse::Hold => self.table.hold(id.slot),
                    Refuse::Reply => self.table.send_to_refused(id.slot, Some(&busy)),
                    _ => self.table.send_to_refused(id.slot, None),
                }
            }
        }
    }

    fn tell_refused(&mut self, index: usize, peer: Peer, why: Refusal) {
        self.table.stats.refused_for[why as usize] += 1;
        let Some(Some(door)) = self.doors.get(index) else { return };
        let refused = Refused { peer: Address::from(peer), at: door.address.clone(), why };
        log::debug!("{} was turned away: {}", refused.peer, why.word());
        self.hosts[usize::from(door.host)].refused(&mut self.table, &refused);
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
                let Some(Some(door)) = self.doors.get(index) else { break };
                match self.system.accept(&door.listener) {
                    Ok((stream, peer)) => {
                        drop(stream);
                        self.tell_refused(index, peer, Refusal::NoDescriptor);
                    }
                    Err(AcceptError::PeerGone) => continue,
                    Err(error) => {
                        empty = matches!(error, AcceptError::Empty);
                        break;
                    }
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

/// The service of peers that are refused. What they are told is sent for it; what they say is thrown away.
pub(super) struct Doorman;

/// How long somebody is [held](crate::config::rules::Refuse::Hold).
const HOLD: Duration = Duration::from_secs(30);

impl Doorman {
    pub(super) fn limits() -> SocketLimits {
        SocketLimits { idle: None, lifetime: Some(HOLD), ..SocketLimits::default() }
    }
}

impl Service for Doorman {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), _: &mut Socket<'_>, input: &mut Input<'_>) {
        input.take_all();
    }
}
