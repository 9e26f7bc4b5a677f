//! Calling out: a name becomes addresses, addresses become attempts, and one of these a connection.

use std::mem;
use std::net::SocketAddr;

use super::Loop;
use crate::base::address::{Address, Peer};
use crate::base::id::ConnId;
use crate::base::reason::{Attempt, Closed, DialError, OsError, plain};
use crate::config::dial::Family;
use crate::config::rules::Verdict;
use crate::connection::{Flag, Stage};
use crate::parts::happy_eyeballs::{Eyeballs, Step};
use crate::parts::lookups::Asked;
use crate::sys::System;

/// The attempts to connect for one dial. All of them are registered under the connection's own token: an event says
/// that something has happened to one of them, and which one is found by asking.
pub(super) struct Race<T> {
    plan: Eyeballs,
    under_way: Vec<(Address, T)>,
    failure: DialError,
}

impl<T> Race<T> {
    fn new(to: Address, plan: Eyeballs) -> Race<T> {
        Race { plan, under_way: Vec::new(), failure: DialError::new(to) }
    }

    /// Attempts beyond the first: descriptors that no slot stands for.
    pub(super) fn overlapping(&self) -> usize {
        self.under_way.len().saturating_sub(1)
    }

    /// What is to be told when it is lost; what is still under way has not answered.
    pub(super) fn lost(mut self) -> DialError {
        for (address, _) in &self.under_way {
            self.failure.add(address.clone(), Attempt::NoAnswer);
        }
        self.failure
    }
}

impl<S: System> Loop<S> {
    /// Connects for a service that dialed. A dial that was cancelled before this never began: nobody is told.
    pub(super) fn call(&mut self, id: ConnId) {
        let Some(slot) = self.table.find(id).filter(|&slot| self.table.at(slot).stage != Stage::Doomed)
        else {
            return;
        };
        let host = usize::from(self.table.at(slot).host);
        self.hosts[host].open(&mut self.table, slot);
        if self.table.at(slot).stage == Stage::Doomed {
            return;
        }
        match self.table.peer(slot) {
            Address::Name { host, port } => self.look_up(slot, &host, port),
            Address::Inet(address) => self.race(slot, vec![address]),
            path => self.knock(slot, path),
        }
    }

    fn look_up(&mut self, slot: u32, host: &str, port: u16) {
        let id = self.table.id(slot);
        let number = match self.lookups.ask(host, port, id, self.table.limits.lookups.max(1)) {
            Asked::New(number) => {
                self.table.stats.lookups += 1;
                self.system.look_up(number, host, port);
                number
            }
            Asked::Joined(number) => number,
            Asked::Full => {
                let most = self.table.limits.lookups;
                let why = format!("{most} names are being looked up already (Limits::lookups)");
                return self.not_found(slot, why);
            }
        };
        self.table.at_mut(slot).dial_mut().lookup = Some(number);
    }

    fn not_found(&mut self, slot: u32, why: String) {
        let mut race = Race::new(self.table.peer(slot), Eyeballs::none());
        race.failure.not_found(why);
        self.races.insert(slot, race);
        self.table.doom(slot, Closed::Unresolved);
    }

    /// Whoever waited for a name that has been looked up may go on. Answers that nobody waits for any more have a
    /// number that means nobody.
    pub(super) fn hear_answers(&mut self) {
        while let Some(answer) = self.system.answer() {
            for id in self.lookups.answered(answer.number) {
                let Some(slot) = self.table.find(id) else { continue };
                if self.table.at(slot).stage != Stage::Connecting {
                    continue;
                }
                self.table.at_mut(slot).dial_mut().lookup = None;
                match &answer.result {
                    Ok(addresses) if addresses.is_empty() => {
                        self.not_found(slot, "the name stands for no address".into());
                    }
                    Ok(addresses) => self.race(slot, addresses.clone()),
                    Err(error) => self.not_found(slot, plain(error)),
                }
            }
        }
    }

    fn race(&mut self, slot: u32, addresses: Vec<SocketAddr>) {
        let to = self.table.peer(slot);
        let mut failure = DialError::new(to.clone());
        let mut candidates = addresses;
        let options = &mut self.table.at_mut(slot).dial_mut().options;
        let stagger = options.stagger;
        candidates.retain(|address| match options.family {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        });
        candidates.retain(|address| {
            let allowed = options.rules.is_empty() || options.rules.decide(address.ip()) == Verdict::Allow;
            if !allowed {
                failure.add(Address::Inet(*address), Attempt::Denied);
            }
            allowed
        });
        if candidates.is_empty() && failure.attempts().is_empty() {
            return self.not_found(slot, "the name stands for no address of the version asked for".into());
        }
        self.races
            .insert(slot, Race { plan: Eyeballs::new(candidates, stagger), under_way: Vec::new(), failure });
        self.next_attempt(slot);
    }

    /// A Unix-domain socket: there is one, and it answers at once or not at all.
    fn knock(&mut self, slot: u32, path: Address) {
        self.races.insert(slot, Race::new(path.clone(), Eyeballs::none()));
        self.begin(slot, path);
        self.next_attempt(slot);
    }

    /// Begins what is to be begun by now, and notes when to look again.
    pub(super) fn next_attempt(&mut self, slot: u32) {
        let now = self.table.now;
        loop {
            let Some(race) = self.races.get_mut(&slot) else { return };
            let wake = match race.plan.step(race.under_way.len(), now) {
                Step::Try(address) => {
                    if !race.under_way.is_empty() && self.overlapping >= self.table.limits.attempts {
                        race.plan.postpone(now);
                    } else {
                        race.plan.begun(now);
                        self.begin(slot, Address::Inet(address));
                    }
                    continue;
                }
                Step::Wait(when) => Some(when),
                Step::Hope => None,
                Step::GiveUp => {
                    let why = Closed::Unreachable(race.failure.last());
                    return self.table.doom(slot, why);
                }
            };
            self.table.at_mut(slot).dial_mut().next_attempt = wake;
            return self.table.rearm(slot);
        }
    }

    fn begin(&mut self, slot: u32, address: Address) {
        let token = self.table.id(slot).token();
        let Some(dial) = self.table.at(slot).dial() else { return };
        let mut refused = 0;
        let begun = self.system.connect(&address, &dial.options).and_then(|mut stream| {
            for &option in &dial.asked {
                refused += u64::from(self.system.set(&stream, option).is_err());
            }
            self.system.register(&mut stream, token)?;
            Ok(stream)
        });
        self.table.stats.options_refused += refused;
        let Some(race) = self.races.get_mut(&slot) else { return };
        match begun {
            Ok(stream) => {
                let before = race.overlapping();
                race.under_way.push((address, stream));
                self.overlapping += race.overlapping() - before;
            }
            Err(error) => {
                race.plan.failed();
                race.failure.add(address, Attempt::Failed(OsError::from(error)));
            }
        }
    }

    /// Something was reported about a dial: one of its attempts is connected, or never will be, or the report was
    /// spurious.
    pub(super) fn settle_dial(&mut self, slot: u32) {
        self.table.at_mut(slot).flags.lower(Flag::Writable);
        let Some(race) = self.races.get_mut(&slot) else { return };
        let before = race.overlapping();
        let mut winner = None;
        for (address, stream) in mem::take(&mut race.under_way) {
            match self.system.connected(&stream) {
                // One that is too late is dropped, and with that closed.
                Ok(true) if winner.is_none() => winner = Some((address, stream)),
                Ok(true) => {}
                Ok(false) => race.under_way.push((address, stream)),
                Err(error) => {
                    race.plan.failed();
                    race.failure.add(address, Attempt::Failed(OsError::from(error)));
                }
            }
        }
        self.overlapping = self.overlapping - before + race.overlapping();
        match winner {
            Some((address, stream)) => self.won(slot, &address, stream),
            None => self.next_attempt(slot),
        }
    }

    fn won(&mut self, slot: u32, address: &Address, stream: S::Stream) {
        self.end_race(slot);
        let now = self.table.now;
        let local = self.system.local(&stream);
        self.put_stream(slot, stream);
        let connection = self.table.at_mut(slot);
        let born = connection.born;
        connection.stage = Stage::Open;
        connection.flags.raise(Flag::Writable);
        connection.touched = now;
        connection.peer = Peer::from(address);
        if let Some(outbox) = &mut connection.outbox {
            outbox.span.since = now; // Nobody could read what was queued before this.
        }
        let dial = connection.dial_mut();
        (dial.next_attempt, dial.asked) = (None, Vec::new());
        let secure = dial.options.secure.clone().zip(dial.to.clone());
        let by = dial.options.timeout.map(|span| born.after(span));
        if secure.is_none() {
            dial.failures = 0;
        }
        // A path is no address that the connection itself could hold.
        if dial.options.reconnect.is_none() && address.inet().is_some() {
            connection.extra().dial = None;
        }
        if let Some(clocks) = connection.clocks_mut() {
            for quiet in [&mut clocks.reading, &mut clocks.writing].into_iter().flatten() {
                quiet.since = now;
            }
        }
        if let Some(local) = local {
            self.table.note_local(slot, local);
        }
        self.table.push_dirty(slot);
        self.table.rearm(slot);
        log::debug!("{} {address} connected", self.table.id(slot));
        if let Some((how, to)) = secure {
            return self.secure_dialed(slot, how, &to, by);
        }
        let host = usize::from(self.table.at(slot).host);
        self.hosts[host].connected(&mut self.table, slot);
    }

    /// The attempts that are left are dropped, which closes them. What became of all of them is returned.
    pub(super) fn end_race(&mut self, slot: u32) -> Option<DialError> {
        let race = self.races.remove(&slot)?;
        self.overlapping -= race.overlapping();
        Some(race.lost())
    }

    /// A dial has ended while it waited for a name.
    pub(super) fn leave_lookup(&mut self, number: u64, id: ConnId) {
        // One that has begun goes on; whoever asks for the same name meanwhile joins it.
        if self.lookups.leave(number, id) && self.system.forget(number) {
            self.lookups.answered(number);
        }
    }
}
