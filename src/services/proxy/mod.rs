//! A guard in front of another service: what comes in is passed on, both ways, within limits.

mod log;

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use self::log::{Dialing, Record, RefusedSummary, failure_text};
use crate::base::address::Address;
use crate::base::filter::FilterConfig;
use crate::base::id::{ConnId, ServiceId};
use crate::base::reason::{CloseReason, ClosedInfo, Refused};
use crate::config::dial::DialOptions;
use crate::config::limits::SocketLimits;
use crate::config::rules::IpRange;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::state::Origin;
use crate::framing::proxy_header::{HeaderVersion, ProxyHeader};
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::service::Service;
use ::log::{debug, info, warn};

/// Connects each caller to one of several upstreams.
///
/// ```text
///     client ──▶ header? ──▶ dial an upstream ──▶ header ──▶ joined by a pipe ──▶ one line in the log
///                 5 s         │        ▲                      backpressure, half-close, all clocks
///                             └ failed ┘ the next one, within the deadline
/// ```
///
/// - **Choice**: round robin over those that are up. One that could not be connected is down for ten seconds, or
///   until a check finds it up; when all are down, all are tried.
/// - **Deadline**: connecting takes at most [`connect_timeout`](Proxy::connect_timeout), however many upstreams are
///   tried. A client that could not be connected sees a clean end.
/// - **Names** are looked up for each connection, so that a change is seen at once. A literal address spares that.
/// - **Not read before it is connected**: what the client says meanwhile waits in the kernel.
///
/// Listen with [`ListenOptions::reserve_slot`](crate::ListenOptions::reserve_slot), so that everybody who is let in has
/// the second slot that he needs.
///
/// ```
/// use tidemill::{Limits, ListenOptions, Reactor, services::Proxy};
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// let proxy = Proxy::to(vec!["127.0.0.1:5432".parse().unwrap()]);
/// let limits = proxy.limits();
/// let proxy = reactor.add_with(proxy, limits);
/// reactor.listen_with("127.0.0.1:0", proxy, &ListenOptions { reserve_slot: true, ..ListenOptions::default() })?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Proxy {
    upstreams: Vec<Upstream>,
    next: usize,
    service: Option<ServiceId>,
    header_sources: Vec<IpRange>,
    header_out: Option<HeaderVersion>,
    client_filter: Option<FilterConfig>,
    upstream_filter: Option<FilterConfig>,
    connect_timeout: Duration,
    check_every: Option<Duration>,
    /// By client.
    records: HashMap<ConnId, Box<Record>>,
    /// Connections that only find out whether an upstream is up.
    checks: HashMap<ConnId, usize>,
    refused_summary: RefusedSummary,
}

#[derive(Debug)]
struct Upstream {
    to: Address,
    down_until: Option<Duration>,
}

/// One end of a proxied connection.
#[derive(Debug)]
pub enum Role {
    /// A client that has to say first for whom it stands.
    AwaitingHeader,
    /// A client in its handshake, and what it called.
    Handshaking(Option<Box<Address>>),
    /// A client.
    Client,
    /// The upstream of this client.
    Upstream(ConnId),
    /// A check of an upstream.
    Check,
}

/// How long an upstream that could not be connected is passed over.
const DOWN: Duration = Duration::from_secs(10);
/// How often the log says who was turned away.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// How long a trusted sender has for its header; the protocol's text wants at least three seconds.
const HEADER_WITHIN: Duration = Duration::from_secs(5);

impl Proxy {
    /// To these upstreams.
    pub fn to(upstreams: Vec<Address>) -> Proxy {
        Proxy {
            upstreams: upstreams.into_iter().map(|to| Upstream { to, down_until: None }).collect(),
            next: 0,
            service: None,
            header_sources: Vec::new(),
            header_out: None,
            client_filter: None,
            upstream_filter: None,
            connect_timeout: Duration::from_secs(10),
            check_every: Some(Duration::from_secs(5)),
            records: HashMap::new(),
            checks: HashMap::new(),
            refused_summary: RefusedSummary::default(),
        }
    }

    /// Senders that say in a PROXY header for whom they stand, and must. From all others a header is payload.
    pub fn accept_header_from(self, trusted: Vec<IpRange>) -> Proxy {
        Proxy { header_sources: trusted, ..self }
    }

    /// Tells upstreams in a PROXY header for whom a connection stands.
    pub fn send_header(self, version: Option<HeaderVersion>) -> Proxy {
        Proxy { header_out: version, ..self }
    }

    /// Secures callers, behind the PROXY header of those who send one. Where nobody is trusted to send one, a listener
    /// that [secures](crate::ListenOptions::filter) them does it better: then only those come in who are.
    pub fn filter_clients(self, how: Option<FilterConfig>) -> Proxy {
        Proxy { client_filter: how, ..self }
    }

    /// Secures the way to the upstreams. A PROXY header goes before that, as it is.
    pub fn filter_upstreams(self, how: Option<FilterConfig>) -> Proxy {
        Proxy { upstream_filter: how, ..self }
    }

    /// How long connecting to an upstream may take, all attempts together. Default 10 s.
    pub fn connect_timeout(self, within: Duration) -> Proxy {
        Proxy { connect_timeout: within, ..self }
    }

    /// How often each of several upstreams is connected to, to see whether it is up. Default 5 s; none: never.
    pub fn check_every(self, every: Option<Duration>) -> Proxy {
        Proxy { check_every: every, ..self }
    }

    /// Limits for what is passed on: an hour without a byte.
    pub fn limits(&self) -> SocketLimits {
        SocketLimits { idle: Some(Duration::from_secs(3_600)), ..SocketLimits::default() }
    }

    fn is_trusted(&self, peer: &Address) -> bool {
        peer.ip().is_some_and(|ip| self.header_sources.iter().any(|range| range.contains(ip)))
    }

    /// All upstreams in the order in which to try them: those that are up first, each time beginning with another.
    fn order(&mut self, now: Duration) -> Vec<usize> {
        let count = self.upstreams.len();
        let round = (0..count).map(|n| (self.next + n) % count.max(1));
        let is_down = |&index: &usize| self.upstreams[index].down_until.is_some_and(|until| until > now);
        let (down, up): (Vec<usize>, Vec<usize>) = round.partition(is_down);
        self.next = up.first().map_or(self.next, |first| (first + 1) % count);
        up.into_iter().chain(down).collect()
    }

    /// A client is known by its address.
    fn begin(&mut self, client: &mut Socket<'_>, destination: Option<Address>) -> Role {
        match &self.client_filter {
            Some(how) => {
                client.start_filter(how.clone());
                Role::Handshaking(destination.map(Box::new))
            }
            None => {
                self.admit(client, destination);
                Role::Client
            }
        }
    }

    /// A client is known for what it is: it waits, unread, while an upstream is dialed.
    fn admit(&mut self, client: &mut Socket<'_>, destination: Option<Address>) {
        client.pause();
        let mut untried = self.order(client.elapsed());
        untried.reverse();
        let record = Record {
            client: client.peer_addr(),
            started: client.elapsed(),
            upstream: 0,
            dialing: Some(Box::new(Dialing {
                destination: destination.or_else(|| client.local_addr()),
                untried,
            })),
            connected: None,
            client_end: None,
            upstream_end: None,
            upstream_id: None,
        };
        self.records.insert(client.id(), Box::new(record));
        if !self.dial_next(client) {
            client.close_as(CloseReason::Local);
        }
    }

    /// Dials the next upstream of a client that has not been tried; says whether there was one, and time left for it.
    fn dial_next(&mut self, client: &mut Socket<'_>) -> bool {
        let Some(record) = self.records.get_mut(&client.id()) else { return false };
        let left = self.connect_timeout.saturating_sub(client.elapsed() - record.started);
        let Some(dialing) = &mut record.dialing else { return false };
        while let Some(upstream) = dialing.untried.pop() {
            // One that does not answer must leave time for the others.
            let timeout = left / (dialing.untried.len() + 1) as u32;
            if timeout.is_zero() {
                return false;
            }
            let filter = self.upstream_filter.clone().filter(|_| self.header_out.is_none());
            let options = DialOptions { timeout: Some(timeout), filter, ..DialOptions::default() };
            match client.dial_with(&self.upstreams[upstream].to, options) {
                Ok(id) => {
                    (record.upstream, record.upstream_id) = (upstream, Some(id));
                    return true;
                }
                Err(error) => warn!("{}: {error}", record.client),
            }
        }
        false
    }

    /// A client has its upstream.
    fn connect_pair(&mut self, client: ConnId, upstream: &mut Socket<'_>) {
        let Some(record) = self.records.get_mut(&client) else { return upstream.close() };
        record.connected = Some(upstream.elapsed() - record.started);
        record.dialing = None;
        let index = record.upstream;
        self.mark_up(index);
        match upstream.other(client) {
            Some(mut client) => client.resume(),
            None => return upstream.close(),
        }
        upstream.pipe(client);
    }

    fn mark_up(&mut self, index: usize) {
        let upstream = &mut self.upstreams[index];
        if upstream.down_until.take().is_some() {
            info!("upstream {} is up again", upstream.to);
        }
    }

    fn mark_down(&mut self, index: usize, why: &dyn fmt::Display, now: Duration) {
        let upstream = &mut self.upstreams[index];
        if upstream.down_until.is_none() {
            warn!("upstream {} is down: {why}", upstream.to);
        }
        upstream.down_until = Some(now + DOWN);
    }

    /// An upstream has ended. If it was never connected, the next one is tried.
    fn upstream_ended(&mut self, client: ConnId, why: CloseReason, info: ClosedInfo, rest: &mut Sockets<'_>) {
        let Some(record) = self.records.get_mut(&client) else { return };
        let (upstream, connected) = (record.upstream, record.connected.is_some());
        record.upstream_id = None;
        if let Some(failure) = failure_text(why, &info).filter(|_| !connected) {
            self.mark_down(upstream, &failure, rest.elapsed());
        }
        let Some(record) = self.records.get_mut(&client) else { return };
        record.upstream_end = Some(Box::new((why, info)));
        if !connected {
            if let Some(mut client) = rest.get(client) {
                if why == CloseReason::Shutdown || !self.dial_next(&mut client) {
                    client.close_as(why);
                }
                return;
            }
        }
        self.log_closed(client);
    }

    /// One line for one connection, when both its ends have gone.
    fn log_closed(&mut self, client: ConnId) {
        let is_over = |record: &Record| record.client_end.is_some() && record.upstream_id.is_none();
        if !self.records.get(&client).is_some_and(|record| is_over(record)) {
            return;
        }
        if let Some(record) = self.records.remove(&client) {
            let to = &self.upstreams[record.upstream].to;
            info!("{} -> {to} {record}", record.client);
        }
    }
}

impl Service for Proxy {
    type Session = Role;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        self.service = Some(own);
        if let Some(every) = self.check_every.filter(|_| self.upstreams.len() > 1) {
            if let Err(error) = sockets.set_timer(own, every, Some(every)) {
                warn!("upstreams will not be checked: {error}");
            }
        }
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> Role {
        match socket.origin() {
            Origin::Dialed { by: Some(client) } => Role::Upstream(client),
            Origin::Dialed { by: None } => Role::Check,
            Origin::Accepted if self.is_trusted(&socket.peer_addr()) => {
                socket.set_alarm(Some(HEADER_WITHIN));
                Role::AwaitingHeader
            }
            Origin::Accepted => self.begin(socket, None),
        }
    }

    fn connected(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        let &mut Role::Upstream(client) = role else {
            if let Some(index) = self.checks.get(&socket.id()).copied() {
                self.mark_up(index);
            }
            return socket.close();
        };
        let Some(record) = self.records.get_mut(&client) else { return socket.close() };
        if let Some(version) = self.header_out {
            let mut header = Vec::new();
            record.header().encode(version, &mut header);
            socket.send(&header);
            if let Some(how) = &self.upstream_filter {
                return socket.start_filter(how.for_peer(self.upstreams[record.upstream].to.clone()));
            }
        }
        self.connect_pair(client, socket);
    }

    /// Behind a PROXY header, on either side.
    fn filter_started(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        match role {
            Role::Handshaking(destination) => {
                let destination = destination.take().map(|destination| *destination);
                *role = Role::Client;
                self.admit(socket, destination);
            }
            &mut Role::Upstream(client) => self.connect_pair(client, socket),
            Role::AwaitingHeader | Role::Client | Role::Check => {}
        }
    }

    /// Only a client that has to announce itself is heard here; all else goes through the pipe.
    fn data(&mut self, role: &mut Role, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        match role {
            Role::AwaitingHeader => {}
            Role::Client | Role::Handshaking(_) | Role::Upstream(_) => return,
            Role::Check => {
                input.take_all();
                return;
            }
        }
        let peer = socket.peer_addr();
        let header = match ProxyHeader::parse(input.bytes()) {
            Ok(None) => return,
            Ok(Some((header, length))) => {
                input.take(length);
                header
            }
            Err(error) => {
                info!("{peer}: closed: {error}");
                return socket.close_as(CloseReason::Malformed);
            }
        };
        socket.set_alarm(None);
        let destination = match header {
            ProxyHeader::Unknown => None,
            ProxyHeader::For { source, destination } => {
                if let Err(why) = socket.set_peer_addr(source) {
                    info!("{source} through {peer}: closed: {why}");
                    return socket.close();
                }
                Some(Address::Inet(destination))
            }
        };
        *role = self.begin(socket, destination);
    }

    fn alarm(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        if let Role::AwaitingHeader = role {
            info!("{}: closed: no PROXY header within {HEADER_WITHIN:?}", socket.peer_addr());
            socket.close_as(CloseReason::Unfinished);
        }
    }

    fn refused(&mut self, refused: &Refused, sockets: &mut Sockets<'_>) {
        self.refused_summary.counts[refused.reason as usize] += 1;
        self.refused_summary.last = Some(refused.clone());
        if let (None, Some(own)) = (self.refused_summary.timer, self.service) {
            self.refused_summary.timer = sockets.set_timer(own, TELL_AFTER, None).ok();
        }
    }

    /// Time to say who was turned away, or to see who is up.
    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        if self.refused_summary.timer == Some(timer) {
            info!("{}", std::mem::take(&mut self.refused_summary));
            return;
        }
        let Some(own) = self.service else { return };
        for (index, upstream) in self.upstreams.iter().enumerate() {
            if self.checks.values().any(|&checked| checked == index) {
                continue; // The last one is still under way.
            }
            let filter = self.upstream_filter.clone().filter(|_| self.header_out.is_none());
            let options =
                DialOptions { timeout: Some(self.connect_timeout), filter, ..DialOptions::default() };
            match sockets.dial_with(&upstream.to, own, options) {
                Ok(id) => drop(self.checks.insert(id, index)),
                Err(error) => debug!("cannot check an upstream: {error}"),
            }
        }
    }

    fn closed(&mut self, role: Role, gone: &ClosedInfo, rest: &mut Sockets<'_>) {
        let (id, why, info) = (gone.id, gone.reason, gone.clone());
        match role {
            Role::AwaitingHeader | Role::Handshaking(_) => {}
            Role::Check => {
                let index = self.checks.remove(&id);
                if let (Some(index), Some(failure)) = (index, failure_text(why, &info)) {
                    self.mark_down(index, &failure, rest.elapsed());
                }
            }
            Role::Upstream(client) => self.upstream_ended(client, why, info, rest),
            Role::Client => {
                if let Some(record) = self.records.get_mut(&id) {
                    record.client_end = Some(Box::new((why, info, rest.elapsed() - record.started)));
                    // One that is connected is closed by the pipe, behind what it is still to get.
                    if let (Some(upstream), None) = (record.upstream_id, record.connected) {
                        rest.cancel_dial(upstream);
                    }
                    self.log_closed(id);
                }
            }
        }
    }
}
