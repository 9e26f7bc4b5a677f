//! Calling out: a name becomes addresses, addresses become attempts, and one of these a connection.

use std::mem;
use std::net::SocketAddr;

use super::EventLoop;
use crate::base::address::{Address, PeerAddress};
use crate::base::id::ConnId;
use crate::base::reason::{Attempt, CloseReason, DialError, OsError, os_message};
use crate::config::dial::Family;
use crate::config::rules::Action;
use crate::connection::{Flag, Stage};
use crate::parts::happy_eyeballs::{HappyEyeballs, Step};
use crate::parts::lookups::LookupRequest;
use crate::service::Event;
use crate::sys::System;

/// The attempts to connect for one dial. All of them are registered under the connection's own token: an event says
/// that something has happened to one of them, and which one is found by asking.
pub(super) struct Attempts<T> {
    plan: HappyEyeballs,
    in_flight: Vec<(Address, T)>,
    error: DialError,
}

impl<T> Attempts<T> {
    fn new(to: Address, plan: HappyEyeballs) -> Attempts<T> {
        Attempts { plan, in_flight: Vec::new(), error: DialError::new(to) }
    }

    /// Attempts beyond the first: descriptors that no slot stands for.
    pub(super) fn extra(&self) -> usize {
        self.in_flight.len().saturating_sub(1)
    }

    /// What is to be told when it is lost; what is still under way has not answered.
    pub(super) fn into_error(mut self) -> DialError {
        for (address, _) in &self.in_flight {
            self.error.add(address.clone(), Attempt::NoAnswer);
        }
        self.error
    }
}

impl<S: System> EventLoop<S> {
    /// Connects for a service that dialed. A dial that was cancelled before this never began: nobody is told.
    pub(super) fn start_dial(&mut self, id: ConnId) {
        let Some(slot) = self.table.find(id).filter(|&slot| self.table.at(slot).stage != Stage::Dead) else {
            return;
        };
        let service = usize::from(self.table.at(slot).service);
        self.services[service].call(&mut self.table, Event::Open(slot));
        if self.table.at(slot).stage == Stage::Dead {
            return;
        }
        match self.table.peer(slot) {
            Address::Name { host, port } => self.look_up(slot, &host, port),
            Address::Inet(address) => self.start_attempts(slot, vec![address]),
            path => self.connect_unix(slot, path),
        }
    }

    fn look_up(&mut self, slot: u32, host: &str, port: u16) {
        let id = self.table.id(slot);
        let number = match self.lookups.request(host, port, id, self.table.limits.lookups) {
            LookupRequest::New(number) => {
                self.table.stats.lookups += 1;
                self.system.look_up(number, host, port);
                number
            }
            LookupRequest::Joined(number) => number,
            LookupRequest::Full => {
                let max = self.table.limits.lookups;
                let why = format!("{max} names are being looked up already (Limits::lookups)");
                return self.fail_lookup(slot, why);
            }
        };
        self.table.at_mut(slot).dial_mut().lookup = Some(number);
    }

    fn fail_lookup(&mut self, slot: u32, why: String) {
        let mut race = Attempts::new(self.table.peer(slot), HappyEyeballs::none());
        race.error.not_found(why);
        self.attempts.insert(slot, race);
        self.table.close_now(slot, CloseReason::Unresolved);
    }

    /// Whoever waited for a name that has been looked up may go on. Answers that nobody waits for any more have a
    /// number that means nobody.
    pub(super) fn poll_resolver(&mut self) {
        while let Some(answer) = self.system.next_answer() {
            for id in self.lookups.complete(answer.number) {
                let Some(slot) = self.table.find(id) else { continue };
                if self.table.at(slot).stage != Stage::Connecting {
                    continue;
                }
                self.table.at_mut(slot).dial_mut().lookup = None;
                match &answer.result {
                    Ok(addresses) if addresses.is_empty() => {
                        self.fail_lookup(slot, "the name stands for no address".into());
                    }
                    Ok(addresses) => self.start_attempts(slot, addresses.clone()),
                    Err(error) => self.fail_lookup(slot, os_message(error)),
                }
            }
        }
    }

    fn start_attempts(&mut self, slot: u32, addresses: Vec<SocketAddr>) {
        let to = self.table.peer(slot);
        let mut failure = DialError::new(to.clone());
        let mut candidates = addresses;
        let options = &mut self.table.at_mut(slot).dial_mut().options;
        let delay = options.attempt_delay;
        candidates.retain(|address| match options.family {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        });
        candidates.retain(|address| {
            let allowed = options.rules.is_empty() || options.rules.decide(address.ip()) == Action::Allow;
            if !allowed {
                failure.add(Address::Inet(*address), Attempt::Denied);
            }
            allowed
        });
        if candidates.is_empty() && failure.attempts().is_empty() {
            return self.fail_lookup(slot, "the name stands for no address of the version asked for".into());
        }
        self.attempts.insert(
            slot,
            Attempts { plan: HappyEyeballs::new(candidates, delay), in_flight: Vec::new(), error: failure },
        );
        self.next_attempt(slot);
    }

    /// A Unix-domain socket: there is one, and it answers at once or not at all.
    fn connect_unix(&mut self, slot: u32, path: Address) {
        self.attempts.insert(slot, Attempts::new(path.clone(), HappyEyeballs::none()));
        self.start_attempt(slot, path);
        self.next_attempt(slot);
    }

    /// Begins what is to be begun by now, and notes when to look again.
    pub(super) fn next_attempt(&mut self, slot: u32) {
        let now = self.table.now;
        loop {
            let Some(race) = self.attempts.get_mut(&slot) else { return };
            let wake = match race.plan.step(race.in_flight.len(), now) {
                Step::Try(address) => {
                    if !race.in_flight.is_empty() && self.extra_attempts >= self.table.limits.extra_attempts {
                        race.plan.postpone(now);
                    } else {
                        race.plan.started(now);
                        self.start_attempt(slot, Address::Inet(address));
                    }
                    continue;
                }
                Step::Wait(when) => Some(when),
                Step::Pending => None,
                Step::GiveUp => {
                    let why = CloseReason::Unreachable(race.error.last());
                    return self.table.close_now(slot, why);
                }
            };
            self.table.at_mut(slot).dial_mut().next_attempt = wake;
            return self.table.rearm(slot);
        }
    }

    fn start_attempt(&mut self, slot: u32, address: Address) {
        let token = self.table.id(slot).token();
        let Some(dial) = self.table.at(slot).dial() else { return };
        let mut refused = 0;
        let begun = self.system.connect(&address, &dial.options).and_then(|mut stream| {
            for &option in &dial.pending_options {
                refused += u64::from(self.system.set_option(&stream, option).is_err());
            }
            self.system.register(&mut stream, token)?;
            Ok(stream)
        });
        self.table.stats.options_refused += refused;
        let Some(race) = self.attempts.get_mut(&slot) else { return };
        match begun {
            Ok(stream) => {
                let before = race.extra();
                race.in_flight.push((address, stream));
                self.extra_attempts += race.extra() - before;
            }
            Err(error) => {
                race.plan.failed();
                race.error.add(address, Attempt::Failed(OsError::from(error)));
            }
        }
    }

    /// Something was reported about a dial: one of its attempts is connected, or never will be, or the report was
    /// spurious.
    pub(super) fn check_attempts(&mut self, slot: u32) {
        self.table.at_mut(slot).flags.remove(Flag::Writable);
        let Some(race) = self.attempts.get_mut(&slot) else { return };
        let before = race.extra();
        let mut winner = None;
        for (address, stream) in mem::take(&mut race.in_flight) {
            match self.system.check_connected(&stream) {
                // One that is too late is dropped, and with that closed.
                Ok(true) if winner.is_none() => winner = Some((address, stream)),
                Ok(true) => {}
                Ok(false) => race.in_flight.push((address, stream)),
                Err(error) => {
                    race.plan.failed();
                    race.error.add(address, Attempt::Failed(OsError::from(error)));
                }
            }
        }
        self.extra_attempts = self.extra_attempts - before + race.extra();
        match winner {
            Some((address, stream)) => self.on_connected(slot, &address, stream),
            None => self.next_attempt(slot),
        }
    }

    fn on_connected(&mut self, slot: u32, address: &Address, stream: S::Stream) {
        self.end_attempts(slot);
        let now = self.table.now;
        let local = self.system.local_address(&stream);
        self.put_stream(slot, stream);
        let connection = self.table.at_mut(slot);
        let created = connection.created;
        connection.stage = Stage::Open;
        connection.flags.insert(Flag::Writable);
        connection.last_activity = now;
        connection.peer = PeerAddress::from(address);
        if let Some(outbox) = &mut connection.outbox {
            outbox.progress.since = now; // Nobody could read what was queued before this.
        }
        let dial = connection.dial_mut();
        (dial.next_attempt, dial.pending_options) = (None, Vec::new());
        let filter = dial.options.filter.clone().zip(dial.to.clone());
        let by = dial.options.timeout.map(|span| created.after(span));
        if filter.is_none() {
            dial.failed_attempts = 0;
        }
        // A path is no address that the connection itself could hold.
        if dial.options.reconnect.is_none() && address.inet().is_some() {
            connection.optional().dial = None;
        }
        if let Some(overrides) = connection.overrides_mut() {
            for quiet in [&mut overrides.read_idle, &mut overrides.write_idle].into_iter().flatten() {
                quiet.since = now;
            }
        }
        if let Some(local) = local {
            self.table.set_local(slot, local);
        }
        self.table.push_dirty(slot);
        self.table.rearm(slot);
        log::debug!("{} {address} connected", self.table.id(slot));
        if let Some((how, to)) = filter {
            return self.handshake_dialed(slot, how, &to, by);
        }
        let service = usize::from(self.table.at(slot).service);
        self.services[service].call(&mut self.table, Event::Connected(slot));
    }

    /// The attempts that are left are dropped, which closes them. What became of all of them is returned.
    pub(super) fn end_attempts(&mut self, slot: u32) -> Option<DialError> {
        let race = self.attempts.remove(&slot)?;
        self.extra_attempts -= race.extra();
        Some(race.into_error())
    }

    /// A dial has ended while it waited for a name.
    pub(super) fn cancel_lookup(&mut self, number: u64, id: ConnId) {
        // One that has begun goes on; whoever asks for the same name meanwhile joins it.
        if self.lookups.cancel_waiter(number, id) && self.system.cancel_look_up(number) {
            self.lookups.complete(number);
        }
    }
}
