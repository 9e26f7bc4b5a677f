//! Dialing: a name becomes addresses, addresses become attempts, and the first attempt that connects is used.
//!
//! Read before: `connection/dial.rs`. `parts/happy_eyeballs.rs` decides which address is tried when, `parts/lookups.rs`
//! shares lookups of equal names.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use super::EventLoop;
use crate::base::address::Address;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::observer::Step as Observed;
use crate::base::part::DIALS;
use crate::base::reason::{Attempt, CloseReason, ConnectError, OsError, os_message};
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::config::dial::Family;
use crate::config::rules::Action;
use crate::connection::dial::Attempts;
use crate::connection::state::{Flag, Stage};
use crate::parts::happy_eyeballs::{HappyEyeballs, Step};
use crate::parts::lookups::LookupRequest;
use crate::service::Event;
use crate::sys::{Connecting, Stream, System};

/// A listener on a Unix-domain socket whose backlog is full answers connect(2) with EAGAIN, and there is no event when
/// it has room again; a TCP handshake would be repeated by the kernel instead. So the loop tries again this often.
const BACKLOG_RETRY: Duration = Duration::from_millis(20);

impl<S: System> EventLoop<S> {
    /// Starts a dial: calls `open`, then looks the name up or connects. If the dial was cancelled in the turn in which
    /// it was made, `open` is not called, and so `closed` is not either.
    pub(super) fn start_dial(&mut self, id: ConnId) {
        if !DIALS.has_begun() {
            return;
        }
        let Some((connection, _)) = self.table.get(id).filter(|(connection, _)| connection.is_live()) else {
            return;
        };
        let service = connection.service;
        self.call(service, Event::Open(id.slot));
        let (connection, _) = self.table.at(id.slot);
        if connection.stage == Stage::Dead {
            return;
        }
        match connection.peer_address() {
            Address::Name { host, port } => self.look_up(id, &host, port),
            Address::Inet(address) => self.start_attempts(id, vec![address]),
            path => self.connect_unix(id, path),
        }
    }

    fn look_up(&mut self, id: ConnId, host: &str, port: u16) {
        let max = self.table.cx.limits.lookups;
        let number = match self.lookups.request(host, port, id, max) {
            LookupRequest::New(number) => {
                self.table.cx.stats.lookups += 1;
                self.system.look_up(number, host, port);
                number
            }
            LookupRequest::Joined(number) => number,
            LookupRequest::Full => {
                mark!("too many lookups");
                let why = format!("{max} names are being looked up already (Limits::lookups)");
                // Our own limit, and no fault of the name: "try again".
                return self.fail_lookup(id, why, CloseReason::Unreachable(OsError::TRY_AGAIN));
            }
        };
        self.table.at(id.slot).0.pending_dial().lookup = Some(number);
    }

    fn fail_lookup(&mut self, id: ConnId, why: String, reason: CloseReason) {
        let (connection, cx) = self.table.at(id.slot);
        let mut attempts = Attempts::new(connection.peer_address(), HappyEyeballs::none());
        attempts.error.not_found(why);
        connection.close_now(reason, cx);
        connection.pending_dial().attempts = Some(Box::new(attempts));
    }

    /// Takes the answers of the resolver, and continues the dials that waited for them. A lookup that no dial waits for
    /// any more completes with an empty list.
    pub(super) fn poll_resolver(&mut self) {
        while let Some(answer) = self.system.next_answer().filter(|_| DIALS.has_begun()) {
            for id in self.lookups.complete(answer.number) {
                let Some((connection, _)) = self.table.get(id) else { continue };
                if connection.stage != Stage::Connecting {
                    continue;
                }
                connection.pending_dial().lookup = None;
                match &answer.result {
                    Ok(addresses) if addresses.is_empty() => {
                        self.fail_lookup(
                            id,
                            "the name stands for no address".into(),
                            CloseReason::Unresolved,
                        );
                    }
                    Ok(addresses) => self.start_attempts(id, addresses.clone()),
                    Err(error) => self.fail_lookup(id, os_message(error), CloseReason::Unresolved),
                }
            }
        }
    }

    fn start_attempts(&mut self, id: ConnId, addresses: Vec<SocketAddr>) {
        let (connection, _) = self.table.at(id.slot);
        let mut error = ConnectError::new(connection.peer_address());
        let mut candidates = addresses;
        let options = &mut connection.pending_dial().options;
        let delay = options.attempt_delay;
        candidates.retain(|address| match options.family {
            Family::Any => true,
            Family::V4 => address.is_ipv4(),
            Family::V6 => address.is_ipv6(),
        });
        candidates.retain(|address| {
            let allowed = options.rules.is_empty() || options.rules.decide(address.ip()) == Action::Allow;
            if !allowed {
                error.add(Address::Inet(*address), Attempt::Denied);
            }
            allowed
        });
        if candidates.is_empty() && error.attempts().is_empty() {
            return self.fail_lookup(
                id,
                "the name stands for no address of the version asked for".into(),
                CloseReason::Unresolved,
            );
        }
        let plan = HappyEyeballs::new(candidates, delay);
        self.table.at(id.slot).0.pending_dial().attempts =
            Some(Box::new(Attempts { plan, in_flight: Vec::new(), retry: None, error }));
        self.next_attempt(id);
    }

    /// Connects to a Unix-domain socket. There is one address. connect(2) succeeds or fails at once, except that it is
    /// tried again while the listener's backlog is full.
    fn connect_unix(&mut self, id: ConnId, path: Address) {
        let attempts = Attempts::new(path.clone(), HappyEyeballs::none());
        self.table.at(id.slot).0.pending_dial().attempts = Some(Box::new(attempts));
        self.start_attempt(id, path);
        self.next_attempt(id);
    }

    /// Starts the attempts that are due, and stores when the next one is. The loop ends: each step starts an attempt,
    /// and the addresses are finite, or it returns.
    pub(super) fn next_attempt(&mut self, id: ConnId) {
        if !DIALS.has_begun() {
            return;
        }
        let now = self.table.cx.now;
        loop {
            let (connection, cx) = self.table.at(id.slot);
            let dial = connection.pending_dial();
            let Some(attempts) = &mut dial.attempts else { return };
            if let Some((_, path)) = attempts.retry.take_if(|(due, _)| *due <= now) {
                self.start_attempt(id, path);
                continue;
            }
            if let Some((due, _)) = attempts.retry {
                dial.next_attempt = Some(due);
                return connection.rearm(cx);
            }
            let wake = match attempts.plan.step(attempts.in_flight.len(), now) {
                Step::Try(address) => {
                    let is_first = attempts.in_flight.is_empty();
                    if !is_first && self.extra_attempts >= cx.limits.extra_attempts {
                        mark!("an attempt is postponed");
                        attempts.plan.postpone(now);
                    } else {
                        attempts.plan.started(now);
                        self.start_attempt(id, Address::Inet(address));
                    }
                    continue;
                }
                Step::Wait(when) => Some(when),
                Step::Pending => None,
                Step::GiveUp => {
                    let last = attempts.error.last();
                    return connection.close_now(CloseReason::Unreachable(last), cx);
                }
            };
            dial.next_attempt = wake;
            return connection.rearm(cx);
        }
    }

    fn start_attempt(&mut self, id: ConnId, address: Address) {
        let (connection, cx) = self.table.at(id.slot);
        let dial = connection.pending_dial();
        cx.observers.tell(|| Observed::Attempt { connection: id, to: &address });
        let mut refused = 0;
        let started = self.system.connect(&address, &dial.options).and_then(|mut stream| {
            for &option in &dial.pending_options {
                refused += u64::from(self.system.set_option(&stream, option).is_err());
            }
            self.system.register(&mut stream, id.token())?;
            Ok(stream)
        });
        cx.stats.options_refused += refused;
        let Some(attempts) = &mut dial.attempts else { return };
        match started {
            Ok(stream) => {
                let before = attempts.extra();
                attempts.in_flight.push((address, stream));
                self.extra_attempts += attempts.extra() - before;
            }
            Err(error) if address.inet().is_none() && error.kind() == io::ErrorKind::WouldBlock => {
                attempts.retry = Some((cx.now.after(BACKLOG_RETRY), address));
            }
            Err(error) => attempts.fail(id, address, error, cx),
        }
    }

    /// An event came for a dial: one of its attempts has connected or failed, or the event is spurious. The event does
    /// not say which, so all are checked.
    pub(super) fn check_attempts(&mut self, id: ConnId) {
        if !DIALS.has_begun() {
            return;
        }
        let (connection, cx) = self.table.at(id.slot);
        connection.flags.remove(Flag::Writable);
        let Some(attempts) = &mut connection.pending_dial().attempts else { return };
        let before = attempts.extra();
        let mut winner = None;
        for (address, stream) in mem::take(&mut attempts.in_flight) {
            match self.system.check_connected(&stream) {
                // A second one that has connected is dropped, which closes it.
                Ok(Connecting::Connected { local }) if winner.is_none() => {
                    winner = Some((address, stream, local));
                }
                Ok(Connecting::Connected { .. }) => {}
                Ok(Connecting::InProgress) if seeded(SeededBug::WritableMeansConnected) => {
                    winner = Some((address, stream, None));
                }
                Ok(Connecting::InProgress) => attempts.in_flight.push((address, stream)),
                Err(error) => attempts.fail(id, address, error, cx),
            }
        }
        self.extra_attempts = self.extra_attempts - before + attempts.extra();
        match winner {
            Some((address, stream, local)) => self.on_connected(id, &address, stream, local),
            None => self.next_attempt(id),
        }
    }

    fn on_connected(&mut self, id: ConnId, address: &Address, stream: Stream, local: Option<SocketAddr>) {
        self.end_attempts(id);
        if let Some(local) = local {
            self.table.set_local(id, local);
        }
        let (connection, cx) = self.table.at(id.slot);
        log::debug!("{id} {address} connected");
        cx.observers.tell(|| Observed::Connected { connection: id, to: address });
        let service = connection.service;
        match connection.on_connected(address, stream, cx) {
            // The handshake comes first, within the timeout of the dial.
            Some((filter, to, deadline)) => {
                connection.start_filter_first(filter, deadline, cx);
                self.start_handshake(id, &to);
            }
            None => self.call(service, Event::Connected(id.slot)),
        }
    }

    /// Drops the attempts that are left, which closes them. Returns the results of all.
    pub(super) fn end_attempts(&mut self, id: ConnId) -> Option<ConnectError> {
        let attempts = self.table.at(id.slot).0.dial_mut()?.attempts.take()?;
        self.extra_attempts -= attempts.extra() * usize::from(!seeded(SeededBug::LostAttemptsCounted));
        mark!("attempts end");
        Some(attempts.into_error())
    }

    /// A dial has ended while it waited for a lookup.
    pub(super) fn cancel_lookup(&mut self, number: u64, id: ConnId) {
        // A lookup that has begun cannot be stopped. It may hang, so a later dial of the same name must not join it.
        if self.lookups.cancel_waiter(number, id) {
            mark!("a lookup is cancelled");
            self.system.cancel_look_up(number);
            self.lookups.complete(number);
        }
    }
}
