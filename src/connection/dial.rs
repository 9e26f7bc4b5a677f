//! Dialing, timers, and dialing again.

use std::io;
use std::time::Duration;

use super::table::Table;
use crate::base::address::{Address, PeerAddress};
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::config::dial::DialOptions;
use crate::connection::{Flag, Stage};
use crate::parts::timers::{Redial, TimerAction, TimerId};

impl Table {
    /// Takes a slot for a dial; the loop calls out at the end of the turn.
    pub(crate) fn dial(
        &mut self,
        service: u16,
        to: Address,
        options: DialOptions,
        dialed_by: Option<ConnId>,
    ) -> io::Result<ConnId> {
        if usize::from(service) >= self.socket_limits.len() {
            return Err(io::Error::other(format!("cannot dial {to}: the service is of another reactor")));
        }
        if to == Address::Unnamed {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "cannot dial a socket that has no name"));
        }
        // A slot was kept for whoever was let in on the understanding that it would call.
        let holder = dialed_by
            .and_then(|dialed_by| self.find(dialed_by))
            .filter(|&slot| self.at(slot).flags.contains(Flag::HoldsReservedSlot));
        if let Some(holder) = holder {
            let flags = &mut self.at_mut(holder).flags;
            flags.remove(Flag::HoldsReservedSlot);
            flags.insert(Flag::UsedReservedSlot);
            self.reserved -= 1;
        } else if !self.has_room_for(1) {
            let max = self.limits.connections;
            return Err(io::Error::other(format!(
                "cannot dial {to}: all {max} connections are in use (raise Limits::connections)"
            )));
        }
        let id = self.insert(service, Stage::Connecting, PeerAddress::from(&to));
        let connection = self.at_mut(id.slot);
        connection.optional().dialed_by = dialed_by;
        let dial = connection.dial_mut();
        (dial.to, dial.options) = (Some(to), options);
        // Its own timeout was not known before.
        self.rearm(id.slot);
        self.pending_dials.push(id);
        self.stats.dialed += 1;
        Ok(id)
    }

    /// Keeps a further slot for a connection: it will call somebody, or has called and may have to call again.
    pub(crate) fn reserve(&mut self, slot: u32) {
        let flags = &mut self.at_mut(slot).flags;
        if !flags.contains(Flag::HoldsReservedSlot) {
            flags.remove(Flag::UsedReservedSlot);
            flags.insert(Flag::HoldsReservedSlot);
            self.reserved += 1;
        }
    }

    /// What a dialed connection that has ended is to be replaced by, if it is to be.
    pub(crate) fn wants_redial(&mut self, slot: u32, why: CloseReason) -> Option<Redial> {
        let leaving = matches!(why, CloseReason::Local | CloseReason::Aborted | CloseReason::Shutdown)
            || self.stop.is_some();
        let id = self.id(slot);
        let connection = self.at(slot);
        let service = connection.service;
        let dial = connection.dial().filter(|dial| !leaving && dial.options.reconnect.is_some())?;
        let (to, options) = (dial.to.clone()?, dial.options.clone());
        Some(Redial { service, to, options, failures: dial.failed_attempts, last: id })
    }

    /// Dials again after a while.
    pub(crate) fn redial_later(&mut self, mut again: Redial) {
        let Some(backoff) = again.options.reconnect else { return };
        let wait = backoff.wait(again.failures, self.next_random());
        again.failures = again.failures.saturating_add(1);
        let due = self.now.after(wait);
        self.timers.set(TimerAction::Redial(Box::new(again)), due, None);
    }

    /// The wait is over. When the house is full, another one begins.
    pub(crate) fn redial(&mut self, again: Redial) {
        match self.dial(again.service, again.to.clone(), again.options.clone(), None) {
            Ok(id) => self.at_mut(id.slot).dial_mut().failed_attempts = again.failures,
            Err(error) => {
                log::debug!("{error}; trying again later");
                self.redial_later(again);
            }
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next_random(&mut self) -> u64 {
        self.rng_state = self.rng_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.rng_state ^ (self.rng_state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn set_timer(
        &mut self,
        service: u16,
        after: Duration,
        every: Option<Duration>,
    ) -> io::Result<TimerId> {
        if usize::from(service) >= self.socket_limits.len() {
            return Err(io::Error::other("cannot set a timer: the service is of another reactor"));
        }
        if self.timers.len() >= self.limits.timers {
            let max = self.limits.timers;
            return Err(io::Error::other(format!(
                "cannot set a timer: there are {max} already (Limits::timers)"
            )));
        }
        Ok(self.timers.set(TimerAction::Notify(service), self.now.after(after), every))
    }
}
