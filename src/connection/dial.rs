//! Dials as the table sees them: taking a slot, becoming connected, dialing again. And timers, which redials use.
//!
//! Read before: `connection/table.rs`. Next: `event_loop/dial.rs`, which makes the system calls.

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

/// The filter of a dial, the name or address that its certificate is checked against, and its handshake's deadline.
type FilterFirst = (FilterConfig, Address, Option<Tick>);

impl Connection {
    /// One of its attempts is connected. Returns the filter whose handshake comes before `connected`, if there is one.
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
            outbox.progress.since = now; // The minimum write rate starts here: nothing could be written before.
        }
        let dial = self.dial_mut();
        (dial.next_attempt, dial.pending_options) = (None, Vec::new());
        let filter = dial.options.filter.clone().zip(dial.to.clone());
        let deadline = dial.options.timeout.map(|span| created.after(span));
        if filter.is_none() {
            dial.failed_attempts = 0;
        }
        // The rest of the dial is not needed any more. Of a Unix-domain socket it is: `peer` has no room for a path.
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

    /// The redial that follows the end of this connection, if it has [`DialOptions::reconnect`]. None follows if this
    /// side has ended it.
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
    /// Takes a slot for a dial. The connect is made at the end of the turn: the table makes no system calls, and a
    /// callback can still set options or cancel the dial.
    pub(crate) fn dial(
        &mut self,
        service: u16,
        to: Address,
        options: DialOptions,
        dialed_by: Option<ConnId>,
    ) -> io::Result<ConnId> {
        if usize::from(service) >= self.cx.admissions.len() {
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
        // `insert` has armed the deadline with the service's timeout; the dial's own may be earlier.
        connection.rearm(cx);
        cx.stats.dialed += 1;
        self.pending_dials.push(id);
        Ok(id)
    }

    /// Uses the slot that is reserved for the connection that dials, or else a free one.
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

    /// Reserves a second slot for a connection that will dial. Without that, a proxy at capacity would be full of
    /// clients that cannot dial their upstreams.
    pub(crate) fn reserve(&mut self, id: ConnId) {
        let Some((connection, _)) = self.get(id) else { return };
        if !connection.flags.contains(Flag::HoldsReservedSlot) {
            connection.flags.remove(Flag::UsedReservedSlot);
            connection.flags.insert(Flag::HoldsReservedSlot);
            self.reserved += 1;
        }
    }

    /// Sets a timer for a redial. The wait grows with each failure and is random, so that many clients of a server that
    /// restarts do not all come at the same time.
    pub(crate) fn redial_later(&mut self, mut again: Redial) {
        let Some(backoff) = again.options.reconnect else { return };
        let wait = backoff.wait(again.failures, self.next_random());
        again.failures = again.failures.saturating_add(1);
        let due = self.cx.now.after(wait);
        self.timers.set(TimerAction::Redial(Box::new(again)), due, None);
    }

    /// The wait of a redial is over. If no slot is free, it waits again.
    pub(crate) fn redial(&mut self, again: Redial) {
        match self.dial(again.service, again.to.clone(), again.options.clone(), None) {
            Ok(id) => self.at(id.slot).0.dial_mut().failed_attempts = again.failures,
            Err(error) => {
                log::debug!("{error}; trying again later");
                self.redial_later(again);
            }
        }
    }

    /// The next random number, by SplitMix64 (Steele, Lea, Flood 2014). Good enough to spread redials; not for secrets.
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
        if usize::from(service) >= self.cx.admissions.len() {
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
