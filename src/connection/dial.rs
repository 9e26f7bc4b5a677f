//! Dialing, timers, and dialing again.

use std::io;
use std::time::Duration;

use super::table::Table;
use crate::base::address::{Address, PeerAddress};
use crate::base::filter::FilterConfig;
use crate::base::id::ConnId;
use crate::base::reason::CloseReason;
use crate::base::tick::Tick;
use crate::config::dial::DialOptions;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::{Flag, Stage};
use crate::parts::timers::{Redial, TimerAction, TimerId};
use crate::sys::Stream;

/// The filter of a dial, the name or address that it is for, and when its handshake must be complete.
type FilterFirst = (FilterConfig, Address, Option<Tick>);

impl Connection {
    /// One of its attempts is connected. Returns the filter whose handshake comes first, if there is one.
    pub(crate) fn on_connected(
        &mut self,
        address: &Address,
        stream: Stream,
        cx: &mut Context,
    ) -> Option<FilterFirst> {
        let (created, now) = (self.created, cx.now);
        self.stream = Some(stream);
        self.stage = Stage::Open;
        self.flags.insert(Flag::Writable);
        self.last_activity = now;
        self.peer = PeerAddress::from(address);
        if let Some(outbox) = &mut self.outbox {
            outbox.progress.since = now; // What was queued could not be read before this.
        }
        let dial = self.dial_mut();
        (dial.next_attempt, dial.pending_options) = (None, Vec::new());
        let filter = dial.options.filter.clone().zip(dial.to.clone());
        let deadline = dial.options.timeout.map(|span| created.after(span));
        if filter.is_none() {
            dial.failed_attempts = 0;
        }
        // A path is no address that the connection itself could hold.
        if dial.options.reconnect.is_none() && address.inet().is_some() {
            self.optional().dial = None;
        }
        if let Some(overrides) = self.overrides_mut() {
            for timer in [&mut overrides.read_idle, &mut overrides.write_idle].into_iter().flatten() {
                timer.since = now;
            }
        }
        self.push_dirty(cx);
        self.rearm(cx);
        let (config, to) = filter?;
        Some((config, to, deadline.or_else(|| cx.handshake_deadline(self.service))))
    }

    /// What a dialed connection that has ended is to be replaced by, if it is to be.
    pub(crate) fn wants_redial(&self, why: CloseReason) -> Option<Redial> {
        if matches!(why, CloseReason::Local | CloseReason::Aborted | CloseReason::Shutdown) {
            return None;
        }
        let dial = self.dial().filter(|dial| dial.options.reconnect.is_some())?;
        let (to, options) = (dial.to.clone()?, dial.options.clone());
        Some(Redial { service: self.service, to, options, failures: dial.failed_attempts, last: self.id })
    }
}

impl Table {
    /// Takes a slot for a dial; the loop connects at the end of the turn.
    pub(crate) fn dial(
        &mut self,
        service: u16,
        to: Address,
        options: DialOptions,
        dialed_by: Option<ConnId>,
    ) -> io::Result<ConnId> {
        if usize::from(service) >= self.admissions.len() {
            return Err(io::Error::other(format!("cannot dial {to}: the service is of another reactor")));
        }
        if to == Address::Unnamed {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "cannot dial a socket that has no name"));
        }
        self.take_slot_for_dial(&to, dialed_by)?;
        let id = self.insert(service, Stage::Connecting, PeerAddress::from(&to));
        let (connection, cx) = self.at(id.slot);
        connection.optional().dialed_by = dialed_by;
        let dial = connection.dial_mut();
        (dial.to, dial.options) = (Some(to), options);
        // Its own timeout was not known before.
        connection.rearm(cx);
        cx.stats.dialed += 1;
        self.pending_dials.push(id);
        Ok(id)
    }

    /// Uses the slot that is reserved for the connection that dials, or a free one.
    fn take_slot_for_dial(&mut self, to: &Address, dialed_by: Option<ConnId>) -> io::Result<()> {
        let holder = dialed_by.and_then(|id| self.get(id)).map(|(connection, _)| connection);
        if let Some(holder) = holder.filter(|holder| holder.flags.contains(Flag::HoldsReservedSlot)) {
            holder.flags.remove(Flag::HoldsReservedSlot);
            holder.flags.insert(Flag::UsedReservedSlot);
            self.reserved -= 1;
        } else if !self.has_room_for(1) {
            let max = self.cx.limits.connections;
            return Err(io::Error::other(format!(
                "cannot dial {to}: all {max} connections are in use (raise Limits::connections)"
            )));
        }
        Ok(())
    }

    /// Keeps a further slot for a connection: it will dial, or has dialed and may have to dial again.
    pub(crate) fn reserve(&mut self, id: ConnId) {
        let Some((connection, _)) = self.get(id) else { return };
        if !connection.flags.contains(Flag::HoldsReservedSlot) {
            connection.flags.remove(Flag::UsedReservedSlot);
            connection.flags.insert(Flag::HoldsReservedSlot);
            self.reserved += 1;
        }
    }

    /// Dials again after a while.
    pub(crate) fn redial_later(&mut self, mut again: Redial) {
        let Some(backoff) = again.options.reconnect else { return };
        let wait = backoff.wait(again.failures, self.next_random());
        again.failures = again.failures.saturating_add(1);
        let due = self.cx.now.after(wait);
        self.timers.set(TimerAction::Redial(Box::new(again)), due, None);
    }

    /// The wait is over. When every slot is taken, another one begins.
    pub(crate) fn redial(&mut self, again: Redial) {
        match self.dial(again.service, again.to.clone(), again.options.clone(), None) {
            Ok(id) => self.at(id.slot).0.dial_mut().failed_attempts = again.failures,
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
        if usize::from(service) >= self.admissions.len() {
            return Err(io::Error::other("cannot set a timer: the service is of another reactor"));
        }
        if self.timers.len() >= self.cx.limits.timers {
            let max = self.cx.limits.timers;
            return Err(io::Error::other(format!(
                "cannot set a timer: there are {max} already (Limits::timers)"
            )));
        }
        Ok(self.timers.set(TimerAction::Notify(service), self.cx.now.after(after), every))
    }
}
