//! A guard in front of another service: connections are passed on to upstreams, within limits.

mod fault;
mod hold;
mod log;
mod mirror;
mod options;
mod outbound;
mod relay;
mod routes;
#[cfg(feature = "tls")]
mod tls_routes;
mod upstreams;

use std::collections::HashMap;
use std::time::Duration;

pub use self::fault::{Chance, Fault, FaultAt, Faults, Split};
use self::hold::Hold;
use self::log::{Dialing, FirstEnd, Micros, RefusedSummary};
use self::mirror::MIRROR;
use self::outbound::{CHECKS_AT_ONCE, OutboundOptions, upstream_of};
use self::relay::Relays;
use self::routes::Classifier;
pub use self::routes::RouteChoice;
#[cfg(feature = "tls")]
pub use self::tls_routes::{RouteError, RouteMatch};
use self::upstreams::Upstreams;
pub use self::upstreams::{Balance, Upstream, UpstreamCounts, UpstreamMode, UpstreamStatus};
use crate::base::address::Address;
use crate::base::filter::FilterConfig;
use crate::base::id::{ConnId, ServiceId};
use crate::base::leaving::Leaving;
use crate::base::reason::{CloseReason, ClosedInfo, Refused};
use crate::base::tick::Tick;
use crate::config::rules::IpRange;
use crate::connection::optional::IdleKind;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::state::Origin;
use crate::framing::proxy_header::ProxyHeader;
use crate::parts::inbox::Input;
use crate::parts::log_limit::LogLimit;
use crate::parts::timers::TimerId;
use crate::service::Service;
use ::log::{Level, info, warn};

/// Connects each client to one of several upstreams.
///
/// ```text
///     client ─▶ header? ─▶ route? ─▶ dial an upstream ─▶ header ─▶ TLS? ─▶ joined by a pipe ─▶ one line in the log
///                5 s        5 s       │        ▲                           backpressure, half-close, all clocks
///                                     └ failed ┘ or slow: the next one, beside it
/// ```
///
/// - **Choice**: see [`Balance`]. An upstream that could not be connected is down for ten seconds, or until a check
///   finds it up; when all are down, all are tried. A failure of this process or machine (no descriptors, no ports,
///   EAGAIN) does not make an upstream down.
/// - **Deadline**: connecting takes at most [`connect_timeout`](Proxy::connect_timeout), however many upstreams are
///   tried. Attempts overlap: one that has not succeeded within its share of that time, or within a second, goes on
///   while the next begins, and the first to succeed wins. A client that could not be connected sees a clean end.
/// - **Names** are looked up for each connection, so that a change is seen at once. A literal address saves that.
/// - **A client is not read before it is connected**: what it sends meanwhile waits in the kernel. Its idle and
///   first-byte clocks do not run.
/// - **Routes** ([`route`](Proxy::route)) choose the upstream by the client's first bytes, which are passed on as they
///   are.
/// - **A side that is cut off** (reset, or TLS without close_notify) has the other reset, behind what is queued for it,
///   unless [`Proxy::end_on_reset`] is set.
/// - **Checks** do what a client's connection does: the same header (saying that it stands for no client), the same
///   handshake, the same options.
///
/// Listen with [`ListenOptions::reserve_slot`](crate::ListenOptions::reserve_slot), so that each client that is
/// accepted has the second slot that its upstream needs. An overlapping attempt takes a further slot, if there is one.
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
    upstreams: Upstreams,
    service: Option<ServiceId>,
    header_sources: Vec<IpRange>,
    client_filter: Option<FilterConfig>,
    outbound_options: OutboundOptions,
    connect_timeout: Duration,
    check_every: Option<Duration>,
    /// Set if there are routes.
    classifier: Option<Classifier>,
    /// By client, until its upstream is connected.
    dialing: HashMap<ConnId, Box<Dialing>>,
    /// By client, from the end of one of a pair until that of the other.
    first_ends: HashMap<ConnId, Box<FirstEnd>>,
    refused_summary: RefusedSummary,
    /// Pairs with faults or a mirror.
    relays: Relays,
    ends_on_reset: bool,
    hold: Hold,
    log_limits: LogLimits,
}

/// What peers can cause as often as they like is one line a second for each kind.
#[derive(Debug, Default)]
struct LogLimits {
    bad_header: LogLimit,
    no_header: LogLimit,
    refused_source: LogLimit,
    no_route: LogLimit,
    dial: LogLimit,
}

/// What a connection of a [`Proxy`] is.
#[derive(Debug)]
pub enum Role {
    /// A client that must send a PROXY header first.
    AwaitingHeader,
    /// A client whose first bytes choose its upstream, and the destination that its header named.
    AwaitingRoute(Option<Box<Address>>),
    /// A client in its TLS handshake, and the destination that its header named.
    Handshaking(Option<Box<Address>>),
    /// A client, and when it was admitted, since the reactor was made.
    Client(Micros),
    /// An attempt to connect an upstream for this client.
    Attempt(ConnId),
    /// The upstream of this client, and how long it took to connect it.
    Upstream(ConnId, Micros),
    /// A check of an upstream.
    Check,
    /// The mirror of what this client sends.
    Mirror(ConnId),
}

/// Every slot of the reactor has room for one.
const _: () = assert!(size_of::<Option<Role>>() <= 16);

impl Role {
    /// The client of the pair that a connection with this id belongs to.
    fn client(&self, own: ConnId) -> Option<ConnId> {
        match self {
            Role::Client(_) => Some(own),
            Role::Attempt(client) | Role::Upstream(client, _) => Some(*client),
            _ => None,
        }
    }
}

/// How often the log tells which peers were refused.
const REFUSED_EVERY: Duration = Duration::from_secs(1);
/// How long a trusted sender has for its header; the protocol's text asks for at least three seconds.
const HEADER_WITHIN: Duration = Duration::from_secs(5);

impl Proxy {
    /// To these upstreams, with equal weights.
    pub fn to(upstreams: Vec<Address>) -> Proxy {
        Proxy::to_upstreams(upstreams.into_iter().map(Upstream::from).collect())
    }

    /// To these upstreams.
    pub fn to_upstreams(upstreams: Vec<Upstream>) -> Proxy {
        Proxy {
            upstreams: Upstreams::new(upstreams),
            service: None,
            header_sources: Vec::new(),
            client_filter: None,
            outbound_options: OutboundOptions::default(),
            connect_timeout: Duration::from_secs(10),
            check_every: Some(Duration::from_secs(5)),
            classifier: None,
            dialing: HashMap::new(),
            first_ends: HashMap::new(),
            refused_summary: RefusedSummary::default(),
            relays: Relays::default(),
            ends_on_reset: false,
            hold: Hold::default(),
            log_limits: LogLimits::default(),
        }
    }

    /// The upstreams as they are at this time of the reactor's clock ([`Sockets::elapsed`]): those of clients without a
    /// route, then those of routes.
    ///
    /// ```
    /// use tidemill::{Limits, Reactor, services::{Proxy, UpstreamMode}};
    ///
    /// let mut reactor = Reactor::new(Limits::default())?;
    /// let to: tidemill::Address = "127.0.0.1:5432".parse().unwrap();
    /// let proxy = reactor.add(Proxy::to(vec![to.clone()]));
    /// reactor.with(proxy, |proxy, sockets| {
    ///     assert_eq!(proxy.set_upstream_mode(&to, UpstreamMode::Down), 1);
    ///     assert!(!proxy.upstreams(sockets.elapsed())[0].is_up);
    /// });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn upstreams(&self, now: Duration) -> Vec<UpstreamStatus> {
        self.upstreams.status(now)
    }

    /// Takes the upstream with this address out of use, or back. Returns how many upstreams have the address.
    pub fn set_upstream_mode(&mut self, to: &Address, mode: UpstreamMode) -> usize {
        self.upstreams.set_mode(to, mode)
    }

    fn is_trusted(&self, peer: &Address) -> bool {
        peer.ip().is_some_and(|ip| self.header_sources.iter().any(|range| range.contains(ip)))
    }

    /// A client takes no route: TLS with it comes next, if that was asked for.
    fn begin_default(&mut self, client: &mut Socket<'_>, destination: Option<Address>) -> Role {
        match &self.client_filter {
            Some(how) => {
                client.start_filter(how.clone());
                Role::Handshaking(destination.map(Box::new))
            }
            None => self.admit(client, destination, None),
        }
    }

    /// A connection can be sent what waits for it.
    fn send_more(&mut self, role: &Role, socket: &mut Socket<'_>) {
        match (role, role.client(socket.id())) {
            (Role::Mirror(client), _) => self.send_to_mirror(*client, &mut socket.all()),
            (_, Some(client)) => self.relay_more(client, socket),
            _ => {}
        }
    }

    fn tell_refused_soon(&mut self, sockets: &mut Sockets<'_>) {
        if let (None, Some(own)) = (self.refused_summary.timer, self.service) {
            self.refused_summary.timer = sockets.set_timer(own, REFUSED_EVERY, None).ok();
        }
    }
}

impl Service for Proxy {
    type Session = Role;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        self.service = Some(own);
        let rounds = self.upstreams.checked().div_ceil(CHECKS_AT_ONCE) as u32;
        if let Some(every) = self.check_every.filter(|_| rounds > 0).map(|every| every / rounds) {
            if let Err(error) = sockets.set_timer(own, every, Some(every)) {
                warn!("upstreams will not be checked: {error}");
            }
        }
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> Role {
        match socket.origin() {
            Origin::Dialed { by: Some(client), .. } if socket.tag() == MIRROR => Role::Mirror(client),
            Origin::Dialed { by: Some(client), .. } => Role::Attempt(client),
            Origin::Dialed { by: None, .. } => Role::Check,
            Origin::Accepted | Origin::Adopted if self.is_trusted(&socket.peer_addr()) => {
                socket.set_alarm(Some(HEADER_WITHIN));
                Role::AwaitingHeader
            }
            Origin::Accepted | Origin::Adopted => self.begin(socket, None),
        }
    }

    fn connected(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        if let Role::Mirror(client) = role {
            return self.send_to_mirror(*client, &mut socket.all());
        }
        let target = self.upstreams.get(upstream_of(socket.tag()));
        let header = match role {
            Role::Attempt(client) => match self.dialing.get(client) {
                Some(dialing) => dialing.header(),
                None => return socket.close(),
            },
            _ => ProxyHeader::Unknown,
        };
        if self.outbound_options.greet(header, target, socket) {
            return;
        }
        match *role {
            Role::Attempt(client) => *role = self.connect_pair(client, socket),
            _ => self.check_succeeded(socket),
        }
    }

    /// Behind a PROXY header, on either side.
    fn filter_started(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        match role {
            Role::Handshaking(destination) => {
                let destination = destination.take().map(|destination| *destination);
                *role = self.admit(socket, destination, None);
            }
            &mut Role::Attempt(client) => *role = self.connect_pair(client, socket),
            Role::Check => self.check_succeeded(socket),
            Role::AwaitingHeader | Role::AwaitingRoute(_) => {}
            Role::Client(_) | Role::Upstream(..) | Role::Mirror(_) => {}
        }
    }

    /// Called for clients whose header or route is awaited, for checks and mirrors, and where a fault or a mirror is.
    /// All other bytes go through the pipe.
    fn data(&mut self, role: &mut Role, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        match role {
            Role::AwaitingHeader => {}
            Role::AwaitingRoute(_) => return self.choose_route(role, socket, input),
            Role::Client(_) => return self.relay_bytes(socket.id(), socket, input),
            &mut Role::Upstream(client, _) => return self.relay_bytes(client, socket, input),
            Role::Handshaking(_) | Role::Attempt(_) => return,
            Role::Check | Role::Mirror(_) => {
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
                let limit = &mut self.log_limits.bad_header;
                let (level, left_out) = limit.level(Level::Info, Tick::at(socket.elapsed()));
                ::log::log!(level, "{peer}: closed: {error}{left_out}");
                return socket.close_as(CloseReason::Malformed);
            }
        };
        socket.set_alarm(None);
        let destination = match header {
            ProxyHeader::Unknown => None,
            ProxyHeader::For { source, destination } => {
                if let Err(why) = socket.set_peer_addr(source) {
                    let limit = &mut self.log_limits.refused_source;
                    let (level, left_out) = limit.level(Level::Info, Tick::at(socket.elapsed()));
                    ::log::log!(level, "{source} through {peer}: closed: {why}{left_out}");
                    return socket.close();
                }
                Some(Address::Inet(destination))
            }
        };
        *role = self.begin(socket, destination);
        if matches!(role, Role::AwaitingRoute(_)) {
            self.choose_route(role, socket, input);
        }
    }

    fn end(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        if role.client(socket.id()).is_none_or(|client| !self.pass_end_on(client, socket)) {
            socket.finish();
        }
    }

    fn drained(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        self.send_more(role, socket);
    }

    fn poked(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        self.send_more(role, socket);
    }

    /// A held client has left.
    fn left(&mut self, _: &mut Role, socket: &mut Socket<'_>, _: Leaving) {
        socket.close();
    }

    /// The idle clock of a client does not run while an upstream is dialed for it.
    fn idle(&mut self, _: &mut Role, socket: &mut Socket<'_>, _: IdleKind) {
        if !self.dialing.contains_key(&socket.id()) {
            socket.close();
        }
    }

    fn alarm(&mut self, role: &mut Role, socket: &mut Socket<'_>, tag: u64) {
        if let (1.., Some(client)) = (tag, role.client(socket.id())) {
            return self.relay_alarm(client, socket, tag);
        }
        match role {
            Role::AwaitingHeader => {
                let limit = &mut self.log_limits.no_header;
                let (level, left_out) = limit.level(Level::Info, Tick::at(socket.elapsed()));
                let peer = socket.peer_addr();
                ::log::log!(level, "{peer}: closed: no PROXY header within {HEADER_WITHIN:?}{left_out}");
                socket.close_as(CloseReason::Unfinished);
            }
            Role::AwaitingRoute(_) => self.on_no_route(socket),
            Role::Client(_) => self.on_client_alarm(socket),
            Role::Handshaking(_) | Role::Attempt(_) | Role::Upstream(..) => {}
            Role::Check | Role::Mirror(_) => {}
        }
    }

    fn refused(&mut self, refused: &Refused, sockets: &mut Sockets<'_>) {
        self.refused_summary.counts[refused.reason as usize] += 1;
        self.refused_summary.last = Some(refused.clone());
        self.tell_refused_soon(sockets);
    }

    /// Time to tell which peers were refused, or to check upstreams.
    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        if self.refused_summary.timer == Some(timer) {
            info!("{}", std::mem::take(&mut self.refused_summary));
        } else if self.relays.mirror_summary.timer == Some(timer) {
            warn!("{}", std::mem::take(&mut self.relays.mirror_summary));
        } else if self.hold.timer == Some(timer) {
            self.try_held(1, sockets);
        } else if self.hold.demand_timer == Some(timer) {
            self.stop_if_idle();
        } else if let Some(own) = self.service {
            self.check_next(own, sockets);
        }
    }

    fn closed(&mut self, role: Role, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        if let Some(client) = role.client(gone.id) {
            self.relay_closed(client, gone, sockets);
        }
        match role {
            Role::Client(started) => self.client_ended(gone, started.into(), sockets),
            Role::Attempt(client) => self.attempt_ended(client, gone, sockets),
            Role::Upstream(client, connected) => {
                self.upstream_ended(client, gone, connected.into(), sockets);
            }
            Role::Mirror(client) => self.mirror_ended(client, gone, sockets),
            Role::Check => {
                self.upstreams.end_check(upstream_of(gone.tag));
                self.note_failure(gone, sockets.elapsed());
            }
            // No upstream was dialed.
            Role::AwaitingHeader | Role::AwaitingRoute(_) | Role::Handshaking(_) => {}
        }
    }
}
