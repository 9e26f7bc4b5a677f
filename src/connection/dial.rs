//! Dials as the table sees them: taking a slot, becoming connected, dialing again. And timers, which redials use.
//!
//! Read before: `connection/table.rs`. Next: `event_loop/dial.rs`, which makes the system calls.

use std::io;
use std::time::Duration;

use super::socket::Socket;
use super::sockets::Sockets;
use super::table::Table;
use crate::base::address::{Address, AddressError, PeerAddress};
use crate::base::filter::FilterConfig;
use crate::base::id::{ConnId, ServiceId};
use crate::base::observer::Step;
use crate::base::part::DIALS;
use crate::base::reason::{Attempt, CloseReason, ConnectError, OsError};
use crate::base::setup_error::DialError;
use crate::base::tick::Tick;
use crate::config::dial::DialOptions;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::optional::{Dial, Dialed};
use crate::connection::state::{Flag, Stage};
use crate::parts::happy_eyeballs::HappyEyeballs;
use crate::parts::timers::{Redial, TimerAction, TimerId};
use crate::sys::Stream;

/// The filter of a dial, the name or address that its certificate is checked against, and its handshake's deadline.
type FilterFirst = (FilterConfig, Address, Option<Tick>);

/// The attempts to connect for one dial. All of them are registered under the token of their connection, so that the
/// one that connects need not be registered again. An event therefore names the dial, and each attempt is asked for its
/// state.
pub(crate) struct Attempts {
    pub(crate) plan: HappyEyeballs,
    pub(crate) in_flight: Vec<(Address, Stream)>,
    /// A Unix-domain socket whose backlog was full, and when to try it again.
    pub(crate) retry: Option<(Tick, Address)>,
    pub(crate) error: ConnectError,
}

impl Attempts {
    pub(crate) fn new(to: Address, plan: HappyEyeballs) -> Attempts {
        Attempts { plan, in_flight: Vec::new(), retry: None, error: ConnectError::new(to) }
    }

    /// The number of attempts beyond the first: descriptors that no slot accounts for.
    pub(crate) fn extra(&self) -> usize {
        self.in_flight.len().saturating_sub(1)
    }

    /// The number of attempts under way.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn count(&self) -> usize {
        self.in_flight.len()
    }

    /// Connecting to one address has failed.
    pub(crate) fn fail(&mut self, id: ConnId, to: Address, error: io::Error, cx: &mut Context) {
        cx.observers.tell(|| Step::AttemptFailed { connection: id, to: &to, error: &error });
        self.plan.failed();
        self.error.add(to, Attempt::Failed(OsError::from(error)));
    }

    /// The error of a dial that has failed: one entry for each address. Attempts that are under way have no answer.
    pub(crate) fn into_error(mut self) -> ConnectError {
        for (address, _) in &self.in_flight {
            self.error.add(address.clone(), Attempt::NoAnswer);
        }
        if let Some((_, path)) = self.retry {
            self.error.add(path, Attempt::Failed(OsError::TRY_AGAIN));
        }
        self.error
    }
}

impl Connection {
    /// The attempts of its dial, while it is not connected.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn attempts(&self) -> Option<&Attempts> {
        self.dial()?.attempts.as_deref()
    }

    /// Its local port, if it was dialed and is connected.
    pub(crate) fn local_port(&self) -> Option<u16> {
        match &self.optional.as_ref()?.dialed {
            Dialed::No => None,
            Dialed::Whole(dial) => Some(dial.local_port),
            Dialed::Connected { local_port, .. } => Some(*local_port),
        }
    }

    /// One of its attempts is connected. Returns the filter whose handshake comes before `connected`, if there is one.
    pub(crate) fn on_connected(
        &mut self,
        address: &Address,
        stream: Stream,
        cx: &mut Context,
    ) -> Option<FilterFirst> {
        let (created, now) = (self.created.get(), cx.now);
        self.stream = Some(stream);
        self.stage = Stage::Open;
        self.flags.insert(Flag::Writable);
        self.last_activity = now.into();
        self.peer = PeerAddress::from(address);
        if let Some(outbox) = &mut self.outbox {
            outbox.progress.since = now; // The minimum write rate starts here: nothing could be written before.
        }
        let dial = self.pending_dial();
        (dial.next_attempt, dial.pending_options) = (None, Vec::new());
        let filter = dial.options.filter.clone().zip(dial.to.clone());
        let deadline = dial.options.timeout.map(|span| created.after(span));
        if filter.is_none() {
            dial.failed_attempts = 0;
        }
        // Of a Unix-domain socket all is kept: `peer` has no room for a path.
        if dial.options.reconnect.is_none() && address.inet().is_some() {
            let Dial { by, local_port, .. } = *dial;
            let tag = dial.options.tag;
            self.optional().dialed = Dialed::Connected { by, tag, local_port };
        }
        if let Some(overrides) = self.overrides_mut() {
            for timer in [&mut overrides.read_idle, &mut overrides.write_idle].into_iter().flatten() {
                timer.since = now;
            }
        }
        // The peer may have left already, and what said so came while nothing could be told.
        self.note_leaving(cx);
        self.push_dirty(cx);
        self.rearm(cx);
        let (config, to) = filter?;
        Some((config, to, deadline.or_else(|| cx.handshake_deadline(self.service))))
    }

    /// Ends it and has it dialed again, if it has [`DialOptions::reconnect`]; returns whether it has.
    fn redial(&mut self, cx: &mut Context) -> bool {
        let is_live = self.is_live();
        let Some(dial) = self.dial_mut().filter(|dial| is_live && dial.options.reconnect.is_some()) else {
            return false;
        };
        dial.redial = true;
        self.close_now(CloseReason::Aborted, cx);
        true
    }

    /// The redial that follows the end of this connection, if it has [`DialOptions::reconnect`]. None follows if this
    /// side has ended it, unless it asked for one.
    pub(crate) fn wants_redial(&self, why: CloseReason) -> Option<Redial> {
        let dial = self.dial().filter(|dial| dial.options.reconnect.is_some())?;
        let is_ours = matches!(why, CloseReason::Local | CloseReason::Aborted | CloseReason::Shutdown);
        if is_ours && !dial.redial {
            return None;
        }
        let (to, options) = (dial.to.clone()?, dial.options.clone());
        Some(Redial { service: self.service, to, options, failures: dial.failed_attempts, last: self.id })
    }
}

impl Table {
    /// Dials for a service, as the public methods do.
    pub(crate) fn dial(
        &mut self,
        service: ServiceId,
        to: Address,
        options: DialOptions,
        dialed_by: Option<ConnId>,
    ) -> Result<ConnId, DialError> {
        DIALS.begin();
        self.start_dial(service, to, options, dialed_by)
    }

    /// Takes a slot for a dial or a redial. The connect is made at the end of the turn: the table makes no system
    /// calls, and a callback can still set options or cancel the dial.
    fn start_dial(
        &mut self,
        service: ServiceId,
        to: Address,
        options: DialOptions,
        dialed_by: Option<ConnId>,
    ) -> Result<ConnId, DialError> {
        let Some(number) = self.number_of(service) else { return Err(DialError::OtherReactor { to }) };
        if to == Address::Unnamed {
            return Err(DialError::Unnamed);
        }
        self.take_slot_for_dial(&to, dialed_by)?;
        let id = self.insert(number, Stage::Connecting, PeerAddress::from(&to));
        let (connection, cx) = self.at(id.slot);
        let dial = Dial { by: dialed_by, to: Some(to), options, ..Dial::default() };
        connection.optional().dialed = Dialed::Whole(Box::new(dial));
        // `insert` has armed the deadline with the service's timeout; the dial's own may be earlier.
        connection.rearm(cx);
        cx.stats.dialed += 1;
        cx.observers.tell(|| Step::Dial { connection: id, service, to: connection.peer_address() });
        self.pending_dials.push(id);
        Ok(id)
    }

    /// Uses the slot that is reserved for the connection that dials, or else a free one.
    fn take_slot_for_dial(&mut self, to: &Address, dialed_by: Option<ConnId>) -> Result<(), DialError> {
        let holder = dialed_by.and_then(|id| self.get(id)).map(|(connection, _)| connection);
        if let Some(holder) = holder.filter(|holder| holder.flags.contains(Flag::HoldsReservedSlot)) {
            holder.flags.remove(Flag::HoldsReservedSlot);
            holder.flags.insert(Flag::UsedReservedSlot);
            self.reserved -= 1;
        } else if !self.has_room_for(1) {
            return Err(DialError::Full { to: to.clone(), max: self.cx.limits.connections });
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
    /// Returns the wait.
    pub(crate) fn redial_later(&mut self, mut again: Redial) -> Option<Duration> {
        let backoff = again.options.reconnect?;
        let wait = backoff.wait(again.failures, self.rng.next());
        again.failures = again.failures.saturating_add(1);
        let due = self.cx.now.after(wait);
        self.timers.set(TimerAction::Redial(Box::new(again)), due, None);
        Some(wait)
    }

    /// The wait of a redial is over. If no slot is free, it waits again.
    pub(crate) fn redial(&mut self, again: Redial) {
        if !DIALS.has_begun() {
            return;
        }
        let service = self.service_id(again.service);
        match self.start_dial(service, again.to.clone(), again.options.clone(), None) {
            Ok(id) => {
                let dial = self.at(id.slot).0.pending_dial();
                (dial.after, dial.failed_attempts) = (Some(again.last), again.failures);
            }
            Err(error) => {
                log::debug!("{error}; trying again later");
                self.redial_later(again);
            }
        }
    }

    pub(crate) fn set_timer(
        &mut self,
        service: ServiceId,
        after: Duration,
        every: Option<Duration>,
    ) -> io::Result<TimerId> {
        let Some(service) = self.number_of(service) else {
            return Err(io::Error::other("cannot set a timer: the service is of another reactor"));
        };
        if self.timers.len() >= self.cx.limits.timers {
            let max = self.cx.limits.timers;
            return Err(io::Error::other(format!(
                "cannot set a timer: there are {max} already (Limits::timers)"
            )));
        }
        Ok(self.timers.set(TimerAction::Notify(service), self.cx.now.after(after), every))
    }
}

/// Dialing.
impl Socket<'_> {
    /// Dials: opens a connection to an address, a `HOST:PORT` or a `unix:/path`. It belongs to the same service. Bytes
    /// can be sent to it from now on; [`open`](crate::Service::open) is called at the end of this turn, and
    /// [`connected`](crate::Service::connected) when it is connected. If that fails, [`closed`](crate::Service::closed)
    /// is called with the reason.
    ///
    /// A name is looked up by the system's resolver on another thread. If it has several addresses, they are tried with
    /// overlapping attempts as RFC 8305 describes, and the first that connects is used.
    ///
    /// # Errors
    ///
    /// If the reactor is at [`Limits::connections`](crate::Limits::connections), or `to` is not an [`Address`].
    pub fn dial<A>(&mut self, to: A) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.dial_with(to, DialOptions::default())
    }

    /// Dials with options.
    ///
    /// # Errors
    ///
    /// As [`dial`](Socket::dial).
    pub fn dial_with<A>(&mut self, to: A, options: DialOptions) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.dial_for(to, self.service(), options)
    }

    /// Dials for another service: a pool of upstreams that is a service of its own, for example. Its
    /// [`Origin::Dialed`](crate::Origin::Dialed) has this connection as `by`.
    ///
    /// # Errors
    ///
    /// As [`dial`](Socket::dial), and if the service is of another reactor.
    pub fn dial_for<A>(
        &mut self,
        to: A,
        service: impl Into<ServiceId>,
        options: DialOptions,
    ) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        let by = self.id();
        self.table_mut().dial(service.into(), to.try_into().map_err(Into::into)?, options, Some(by))
    }

    /// Drops the link and dials again, by [`DialOptions::reconnect`]: for a request that had no answer in time, after
    /// which the answers on this connection would be one off. What is queued is dropped, and the peer gets a reset;
    /// [`closed`](crate::Service::closed) is called with [`Aborted`](CloseReason::Aborted) and
    /// [`redial_in`](crate::ClosedInfo::redial_in). Returns `false`, and does nothing, if it was dialed without
    /// `reconnect`, was not dialed, or is closing. See also [`cancel_dial`](Sockets::cancel_dial).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidemill::{Backoff, ClosedInfo, DialOptions, Input, Origin, Service, ServiceId, Socket, Sockets};
    ///
    /// /// Asks upstream 7 each second, and drops a link that has not answered before the next time.
    /// struct Probe;
    ///
    /// impl Service for Probe {
    ///     type Session = bool;
    ///     fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
    ///         let options = DialOptions { tag: 7, reconnect: Some(Backoff::default()), ..DialOptions::default() };
    ///         sockets.dial_with("127.0.0.1:9", own, options).expect("a slot");
    ///     }
    ///     fn open(&mut self, socket: &mut Socket<'_>) -> bool {
    ///         if let Origin::Dialed { after: Some(before), .. } = socket.origin() {
    ///             println!("{before} is {} now", socket.id());
    ///         }
    ///         true
    ///     }
    ///     fn connected(&mut self, _: &mut bool, socket: &mut Socket<'_>) {
    ///         socket.set_alarm_every(Duration::from_secs(1));
    ///     }
    ///     fn alarm(&mut self, answered: &mut bool, socket: &mut Socket<'_>, _: u64) {
    ///         if !std::mem::take(answered) { socket.redial(); } else { socket.send(b"ping\n") }
    ///     }
    ///     fn data(&mut self, answered: &mut bool, _: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         *answered |= input.take_line().is_some();
    ///     }
    ///     fn closed(&mut self, _: bool, gone: &ClosedInfo, _: &mut Sockets<'_>) {
    ///         println!("upstream {}: {}, dialing again in {:?}", gone.tag, gone.reason, gone.redial_in);
    ///     }
    /// }
    /// # let mut reactor = tidemill::Reactor::new(tidemill::Limits::default()).unwrap();
    /// # reactor.add(Probe);
    /// ```
    pub fn redial(&mut self) -> bool {
        let (connection, cx) = self.parts();
        connection.redial(cx)
    }

    /// [`DialOptions::tag`] of a dialed connection, else 0.
    pub fn tag(&self) -> u64 {
        self.connection().tag()
    }
}

/// Dialing.
impl Sockets<'_> {
    /// Dials for a service of this reactor: see [`Socket::dial`].
    ///
    /// # Errors
    ///
    /// If the reactor is at [`Limits::connections`](crate::Limits::connections), if `to` is not an [`Address`], or if
    /// the service belongs to another reactor.
    pub fn dial<A>(&mut self, to: A, service: impl Into<ServiceId>) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.dial_with(to, service, DialOptions::default())
    }

    /// Dials with options.
    ///
    /// # Errors
    ///
    /// As [`dial`](Sockets::dial).
    pub fn dial_with<A>(
        &mut self,
        to: A,
        service: impl Into<ServiceId>,
        options: DialOptions,
    ) -> Result<ConnId, DialError>
    where
        A: TryInto<Address, Error: Into<AddressError>>,
    {
        self.table().dial(service.into(), to.try_into().map_err(Into::into)?, options, None)
    }

    /// Cancels a dial: closes the connection if it exists, or cancels the next attempt to
    /// [reconnect](DialOptions::reconnect). Returns whether there was either.
    pub fn cancel_dial(&mut self, id: ConnId) -> bool {
        match self.get(id) {
            Some(mut socket) => {
                socket.close();
                true
            }
            None => self.table().timers.cancel_redial(id),
        }
    }
}
