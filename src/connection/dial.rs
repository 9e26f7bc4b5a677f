//! Dialing, timers, and dialing again.

use std::io;
use std::time::Duration;

use super::table::Table;
use crate::base::address::{Address, Peer};
use crate::base::id::ConnId;
use crate::base::reason::Closed;
use crate::config::dial::DialOptions;
use crate::connection::{Flag, Stage};
use crate::parts::timers::{Redial, TimerId, What};

impl Table {
    /// Takes a slot for a dial; the loop calls out at the end of the turn.
    pub(crate) fn dial(
        &mut self,
        host: u16,
        to: Address,
        options: DialOptions,
        by: Option<ConnId>,
    ) -> io::Result<ConnId> {
        if usize::from(host) >= self.socket_limits.len() {
            return Err(io::Error::other(format!("cannot dial {to}: the service is of another reactor")));
        }
        if to == Address::Unnamed {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "cannot dial a socket that has no name"));
        }
        // A slot was kept for whoever was let in on the understanding that it would call.
        let keeper =
            by.and_then(|by| self.find(by)).filter(|&slot| self.at(slot).flags.has(Flag::KeepsSecond));
        if let Some(keeper) = keeper {
            let flags = &mut self.at_mut(keeper).flags;
            flags.lower(Flag::KeepsSecond);
            flags.raise(Flag::UsedSecond);
            self.reserved -= 1;
        } else if !self.has_room_for(1) {
            let most = self.limits.connections;
            return Err(io::Error::other(format!(
                "cannot dial {to}: all {most} connections are in use (raise Limits::connections)"
            )));
        }
        let id = self.insert(host, Stage::Connecting, Peer::from(&to));
        let connection = self.at_mut(id.slot);
        connection.extra().by = by;
        let dial = connection.dial_mut();
        (dial.to, dial.options) = (Some(to), options);
        // Its own timeout was not known before.
        self.rearm(id.slot);
        self.newborn.push(id);
        self.stats.dialed += 1;
        Ok(id)
    }

    /// Keeps a further slot for a connection: it will call somebody, or has called and may have to call again.
    pub(crate) fn reserve(&mut self, slot: u32) {
        let flags = &mut self.at_mut(slot).flags;
        if !flags.has(Flag::KeepsSecond) {
            flags.lower(Flag::UsedSecond);
            flags.raise(Flag::KeepsSecond);
            self.reserved += 1;
        }
    }

    /// What a dialed connection that has ended is to be replaced by, if it is to be.
    pub(crate) fn wants_redial(&mut self, slot: u32, why: Closed) -> Option<Redial> {
        let leaving =
            matches!(why, Closed::Local | Closed::Aborted | Closed::Shutdown) || self.stop.is_some();
        let id = self.id(slot);
        let connection = self.at(slot);
        let host = connection.host;
        let dial = connection.dial().filter(|dial| !leaving && dial.options.reconnect.is_some())?;
        let (to, options) = (dial.to.clone()?, dial.options.clone());
        Some(Redial { host, to, options, failures: dial.failures, last: id })
    }

    /// Dials again after a while.
    pub(crate) fn redial_later(&mut self, mut again: Redial) {
        let Some(backoff) = again.options.reconnect else { return };
        let wait = backoff.wait(again.failures, self.next_random());
        again.failures = again.failures.saturating_add(1);
        let due = self.now.after(wait);
        self.timers.set(What::Redial(Box::new(again)), due, None);
    }

    /// The wait is over. When the house is full, another one begins.
    pub(crate) fn redial(&mut self, again: Redial) {
        match self.dial(again.host, again.to.clone(), again.options.clone(), None) {
            Ok(id) => self.at_mut(id.slot).dial_mut().failures = again.failures,
            Err(error) => {
                log::debug!("{error}; trying again later");
                self.redial_later(again);
            }
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn set_timer(
        &mut self,
        host: u16,
        after: Duration,
        every: Option<Duration>,
    ) -> io::Result<TimerId> {
        if usize::from(host) >= self.socket_limits.len() {
            return Err(io::Error::other("cannot set a timer: the service is of another reactor"));
        }
        if self.timers.len() >= self.limits.timers {
            let most = self.limits.timers;
            return Err(io::Error::other(format!(
                "cannot set a timer: there are {most} already (Limits::timers)"
            )));
        }
        Ok(self.timers.set(What::Tell(host), self.now.after(after), every))
    }
}
