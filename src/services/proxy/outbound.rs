//! The connections of a proxy to its upstreams: attempts, checks, and the pair that comes of an attempt.

use std::time::Duration;

use super::hold::DIALS_AT_ONCE;
use super::log::{Dialing, FirstEnd, Held, Line, Micros};
use super::upstreams::{Failure, Target};
use super::{Proxy, Role};
use crate::base::address::Address;
use crate::base::filter::FilterConfig;
use crate::base::id::{ConnId, ServiceId};
use crate::base::reason::{CloseReason, ClosedInfo};
use crate::base::tick::Tick;
use crate::config::dial::{DialOptions, KeepAlive};
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::framing::proxy_header::{HeaderVersion, ProxyHeader};
use ::log::{Level, debug, info};

/// How any connection to an upstream is made, a client's or a check's.
#[derive(Debug, Default)]
pub(super) struct OutboundOptions {
    pub(super) header: Option<HeaderVersion>,
    pub(super) filter: Option<FilterConfig>,
    pub(super) keep_alive: Option<KeepAlive>,
}

/// An attempt of a client to connect to an upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    id: ConnId,
    upstream: usize,
    started: Duration,
}

/// An attempt has this long before another upstream is tried beside it, or its share of the connect timeout if that is
/// less. A lost SYN is repeated after 1 s (RFC 6298, section 2.1).
const ATTEMPT_DELAY_MAX: Duration = Duration::from_secs(1);
/// No two attempts of a client begin within less (RFC 8305, section 8).
const ATTEMPT_DELAY_MIN: Duration = Duration::from_millis(10);
/// An attempt that has taken this long without success is the upstream's fault, when another has overtaken it.
const SLOW: Duration = Duration::from_secs(1);
/// Checks that begin in one turn: more would delay the clients for milliseconds.
pub(super) const CHECKS_AT_ONCE: usize = 64;
/// The dial's own timeout comes first, since it knows what it was waiting for.
const AFTER_TIMEOUT: Duration = Duration::from_millis(50);

/// The upstream of a connection, which is the tag that it was dialed with: so no map from connections to upstreams is
/// needed, which took 60 bytes for each pair.
pub(super) fn upstream_of(tag: u64) -> usize {
    tag as usize
}

impl Proxy {
    /// A client may be connected. It is not read while an upstream is dialed.
    pub(super) fn admit(
        &mut self,
        client: &mut Socket<'_>,
        destination: Option<Address>,
        route: Option<usize>,
    ) -> Role {
        client.pause();
        if route.is_none() && !self.upstreams.has_default() {
            self.refused_summary.no_route += 1;
            self.tell_refused_soon(&mut client.all());
            client.close();
            return Role::AwaitingRoute(None);
        }
        let mut untried = self.upstreams.order(client.elapsed(), route);
        untried.reverse();
        self.demand(client);
        self.relays.clients += 1;
        let share = self.connect_timeout / (untried.len() + 1).min(1_000) as u32;
        let started = client.elapsed();
        let is_full = untried.is_empty();
        let dialing = Dialing {
            client: client.peer_addr(),
            started,
            upstream: untried.last().copied().unwrap_or(0),
            failed: None,
            destination: destination.or_else(|| client.local_addr()),
            untried,
            delay: share.clamp(ATTEMPT_DELAY_MIN, ATTEMPT_DELAY_MAX),
            in_flight: Vec::new(),
            number: self.relays.clients,
            route,
            deadline: started + self.connect_timeout,
            held: Held::Never,
        };
        self.dialing.insert(client.id(), Box::new(dialing));
        self.hold.clients += 1;
        if !self.dial_next(client) && !self.hold_client(client) {
            if is_full {
                self.refused_summary.no_upstream += 1;
                self.tell_refused_soon(&mut client.all());
            }
            client.close_as(CloseReason::Local);
        }
        Role::Client(Micros::of(started))
    }

    /// Dials the next upstream of a client that has not been tried, beside those under way; says whether any is.
    pub(super) fn dial_next(&mut self, client: &mut Socket<'_>) -> bool {
        let now = client.elapsed();
        let Some(dialing) = self.dialing.get_mut(&client.id()) else { return false };
        let left = dialing.deadline.saturating_sub(now);
        while let Some(upstream) = dialing.untried.pop().filter(|_| !left.is_zero()) {
            if !self.upstreams.begin(upstream) {
                continue;
            }
            let target = self.upstreams.get(upstream);
            match client.dial_with(target.to, self.outbound_options.dial(target, upstream, left)) {
                Ok(id) => {
                    dialing.in_flight.push(Attempt { id, upstream, started: now });
                    dialing.upstream = upstream;
                    break;
                }
                // No slot for an attempt beside another: it must wait for that one.
                Err(error) if !dialing.in_flight.is_empty() => {
                    self.upstreams.end(upstream);
                    debug!("{}: {error}", dialing.client);
                    dialing.untried.push(upstream);
                    break;
                }
                Err(error) => {
                    self.upstreams.end(upstream);
                    let (level, left_out) = self.log_limits.dial.level(Level::Warn, Tick::at(now));
                    ::log::log!(level, "{}: {error}{left_out}", dialing.client);
                }
            }
        }
        let next = if dialing.untried.is_empty() { left + AFTER_TIMEOUT } else { dialing.delay };
        client.set_alarm(Some(next.min(left + AFTER_TIMEOUT)));
        !dialing.in_flight.is_empty()
    }

    /// A client has waited for as long as one attempt, or all of them, may take.
    pub(super) fn on_client_alarm(&mut self, client: &mut Socket<'_>) {
        let Some(dialing) = self.dialing.get(&client.id()) else { return };
        if dialing.held == Held::Now {
            return client.close_as(CloseReason::ConnectTimeout);
        }
        if client.elapsed() < dialing.deadline {
            self.dial_next(client);
            return;
        }
        // Its dials have a timeout of their own; what is left is a handshake behind a PROXY header.
        self.give_up_attempts(client.id(), &mut client.all(), None);
        if !self.hold_client(client) {
            client.close_as(CloseReason::ConnectTimeout);
        }
    }

    /// Ends the attempts of a client that are under way. Those that took long are the upstream's fault.
    pub(super) fn give_up_attempts(
        &mut self,
        client: ConnId,
        sockets: &mut Sockets<'_>,
        winner: Option<ConnId>,
    ) {
        let now = sockets.elapsed();
        let slow = SLOW.min(self.connect_timeout);
        let Some(dialing) = self.dialing.get_mut(&client) else { return };
        for attempt in std::mem::take(&mut dialing.in_flight) {
            if Some(attempt.id) == winner {
                continue;
            }
            sockets.cancel_dial(attempt.id);
            if now - attempt.started >= slow {
                self.upstreams.mark_down(attempt.upstream, &CloseReason::ConnectTimeout, now);
            }
        }
    }

    /// The first attempt of a client has succeeded.
    pub(super) fn connect_pair(&mut self, client: ConnId, upstream: &mut Socket<'_>) -> Role {
        let (id, now) = (upstream.id(), upstream.elapsed());
        self.give_up_attempts(client, &mut upstream.all(), Some(id));
        let Some(dialing) = self.dialing.remove(&client) else {
            upstream.close();
            return Role::Attempt(client);
        };
        let role = Role::Upstream(client, Micros::of(now - dialing.started));
        let to = upstream_of(upstream.tag());
        self.upstreams.mark_up(to);
        let Some(mut socket) = upstream.other(client) else {
            upstream.close();
            return role;
        };
        socket.set_alarm(None);
        socket.resume();
        socket.notice_leaving(false);
        if !self.start_relay(&mut socket, id, to, dialing.number) {
            upstream.pipe(client);
        }
        self.hold.told = false;
        self.try_held(DIALS_AT_ONCE, &mut upstream.all());
        role
    }

    /// An attempt has ended. If it has failed, the next upstream is tried.
    pub(super) fn attempt_ended(&mut self, client: ConnId, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let upstream = upstream_of(gone.tag);
        self.upstreams.end(upstream);
        let Some(dialing) = self.dialing.get_mut(&client) else { return };
        let before = dialing.in_flight.len();
        dialing.in_flight.retain(|attempt| attempt.id != gone.id);
        if dialing.in_flight.len() == before {
            return; // It was given up.
        }
        (dialing.upstream, dialing.failed) = (upstream, Some(gone.clone()));
        self.note_failure(gone, sockets.elapsed());
        let Some(mut client) = sockets.get(client) else { return };
        let is_over = gone.reason == CloseReason::Shutdown;
        if is_over || !(self.dial_next(&mut client) || self.hold_client(&mut client)) {
            client.close_as(gone.reason);
        }
    }

    pub(super) fn note_failure(&mut self, gone: &ClosedInfo, now: Duration) {
        match Failure::of(gone) {
            Some(Failure::Upstream(why)) => self.upstreams.mark_down(upstream_of(gone.tag), &why, now),
            Some(Failure::Local(why)) => debug!("not the upstream's fault: {why}"),
            None => {}
        }
    }

    pub(super) fn client_ended(&mut self, gone: &ClosedInfo, started: Duration, sockets: &mut Sockets<'_>) {
        self.give_up_attempts(gone.id, sockets, None);
        let duration = sockets.elapsed() - started;
        if let Some(dialing) = self.dialing.remove(&gone.id) {
            let line = Line { client: gone, duration, connected: None, upstream: dialing.failed.as_ref() };
            return self.log_closed(line, dialing.upstream, sockets);
        }
        match self.first_ends.remove(&gone.id).as_deref() {
            Some(FirstEnd::Upstream(upstream, connected)) => {
                let connected = Some(*connected);
                let line = Line { client: gone, duration, connected, upstream: Some(upstream) };
                self.log_closed(line, upstream_of(upstream.tag), sockets);
            }
            // The upstream is closed by the pipe, behind what it is still to get.
            _ => {
                self.first_ends.insert(gone.id, Box::new(FirstEnd::Client(gone.clone(), duration)));
            }
        }
    }

    /// An upstream that was connected has ended.
    pub(super) fn upstream_ended(
        &mut self,
        client: ConnId,
        gone: &ClosedInfo,
        connected: Duration,
        sockets: &mut Sockets<'_>,
    ) {
        self.upstreams.end(upstream_of(gone.tag));
        match self.first_ends.remove(&client).as_deref() {
            Some(&FirstEnd::Client(ref client, duration)) => {
                let line = Line { client, duration, connected: Some(connected), upstream: Some(gone) };
                self.log_closed(line, upstream_of(gone.tag), sockets);
            }
            _ => {
                self.first_ends.insert(client, Box::new(FirstEnd::Upstream(gone.clone(), connected)));
            }
        }
    }

    /// One line for one client, when it has gone and so has its upstream.
    fn log_closed(&mut self, line: Line<'_>, upstream: usize, sockets: &mut Sockets<'_>) {
        let (to, client) = (self.upstreams.get(upstream).to, &line.client.peer);
        match self.relays.remove(line.client.id) {
            Some(relay) => info!("{client} -> {to} {line}{relay}"),
            None => info!("{client} -> {to} {line}"),
        }
        self.hold.clients -= 1;
        self.stop_soon(sockets);
    }

    /// Begins to check the next upstreams, those whose last check has ended.
    pub(super) fn check_next(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        for upstream in self.upstreams.next_to_check(CHECKS_AT_ONCE) {
            let target = self.upstreams.get(upstream);
            let options = self.outbound_options.dial(target, upstream, self.connect_timeout);
            if let Err(error) = sockets.dial_with(target.to, own, options) {
                self.upstreams.end_check(upstream);
                debug!("cannot check an upstream: {error}");
            }
        }
    }

    /// A check has come as far as a client's connection must.
    pub(super) fn check_succeeded(&mut self, socket: &mut Socket<'_>) {
        self.upstreams.mark_up(upstream_of(socket.tag()));
        socket.close();
    }
}

impl OutboundOptions {
    /// How to dial an upstream. TLS behind a header is started later, by [`OutboundOptions::greet`].
    pub(super) fn dial(&self, target: Target<'_>, upstream: usize, timeout: Duration) -> DialOptions {
        let filter = self.filter.clone().filter(|_| self.header.is_none() && !target.is_routed);
        DialOptions {
            tag: upstream as u64,
            timeout: Some(timeout),
            filter,
            keep_alive: self.keep_alive,
            ..DialOptions::default()
        }
    }

    /// Sends what comes before the payload; says whether a handshake must be waited for.
    pub(super) fn greet(&self, header: ProxyHeader, target: Target<'_>, socket: &mut Socket<'_>) -> bool {
        let Some(version) = self.header else { return false };
        let mut bytes = Vec::new();
        header.encode(version, &mut bytes);
        socket.send(&bytes);
        match self.filter.as_ref().filter(|_| !target.is_routed) {
            Some(how) => {
                socket.start_filter(how.for_peer(target.to.clone()));
                true
            }
            None => false,
        }
    }
}
