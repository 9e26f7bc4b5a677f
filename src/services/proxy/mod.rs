//! A guard in front of another service: connections are passed on to upstreams, within limits.

mod log;
mod outbound;
mod routes;
#[cfg(feature = "tls")]
mod tls_routes;
mod upstreams;

use std::collections::HashMap;
use std::time::Duration;

use self::log::{Record, RefusedSummary};
use self::outbound::{CHECKS_AT_ONCE, Outbound, OutboundOptions};
use self::routes::Classifier;
pub use self::routes::RouteChoice;
#[cfg(feature = "tls")]
pub use self::tls_routes::{RouteError, RouteMatch};
use self::upstreams::Upstreams;
pub use self::upstreams::{Balance, Upstream};
use crate::base::address::Address;
use crate::base::filter::FilterConfig;
use crate::base::id::{ConnId, ServiceId};
use crate::base::reason::{CloseReason, ClosedInfo, Refused};
use crate::config::dial::KeepAlive;
use crate::config::limits::SocketLimits;
use crate::config::rules::IpRange;
use crate::connection::optional::IdleKind;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::connection::state::Origin;
use crate::framing::proxy_header::{HeaderVersion, ProxyHeader};
use crate::parts::inbox::Input;
use crate::parts::timers::TimerId;
use crate::service::Service;
use ::log::{info, warn};

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
///   unless [`SocketLimits::end_on_reset`] is set.
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
    /// By client.
    records: HashMap<ConnId, Box<Record>>,
    /// Connections to upstreams: attempts, established ones and checks.
    outbound: HashMap<ConnId, Outbound>,
    refused_summary: RefusedSummary,
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
    /// A client.
    Client,
    /// The upstream of this client.
    Upstream(ConnId),
    /// A check of an upstream.
    Check,
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
            records: HashMap::new(),
            outbound: HashMap::new(),
            refused_summary: RefusedSummary::default(),
        }
    }

    /// How an upstream is chosen. Default [`Balance::RoundRobin`].
    pub fn balance(mut self, balance: Balance) -> Proxy {
        self.upstreams.balance = balance;
        self
    }

    /// Has `choose` select one of these upstreams by the bytes that a client has sent so far. Default: no routes.
    ///
    /// The bytes are sent to the upstream unchanged, behind the PROXY header of [`send_header`](Proxy::send_header).
    /// [`filter_upstreams`](Proxy::filter_upstreams) and [`filter_clients`](Proxy::filter_clients) are not for clients
    /// that take a route. A client for which `choose` returns [`RouteChoice::Default`] goes to the upstreams that the
    /// proxy was made with; if there are none, it is closed. A client is closed too if 5 s or 16 KiB have not sufficed
    /// for a choice, so protocols in which the server speaks first cannot share the listener.
    pub fn route(
        mut self,
        upstreams: Vec<Upstream>,
        choose: impl Fn(&[u8]) -> RouteChoice + 'static,
    ) -> Proxy {
        self.upstreams.set_routes(upstreams);
        Proxy { classifier: Some(Classifier::new(choose)), ..self }
    }

    /// Senders that must begin each connection with a PROXY header, which says for which peer it stands. From all other
    /// senders such a header is payload. None by default.
    pub fn accept_header_from(self, trusted: Vec<IpRange>) -> Proxy {
        Proxy { header_sources: trusted, ..self }
    }

    /// Begins each connection to an upstream with a PROXY header. Off by default.
    pub fn send_header(mut self, version: Option<HeaderVersion>) -> Proxy {
        self.outbound_options.header = version;
        self
    }

    /// Starts TLS with clients without a route, behind the PROXY header of those that send one. Where no header is
    /// accepted and there is no route, set [`ListenOptions::filter`](crate::ListenOptions::filter) instead: then a
    /// client costs nothing before its handshake is done. Off by default.
    pub fn filter_clients(self, how: Option<FilterConfig>) -> Proxy {
        Proxy { client_filter: how, ..self }
    }

    /// Starts TLS with upstreams, behind the PROXY header. Off by default.
    pub fn filter_upstreams(mut self, how: Option<FilterConfig>) -> Proxy {
        self.outbound_options.filter = how;
        self
    }

    /// Lets the kernel probe a silent upstream. Off by default. For clients see
    /// [`ListenOptions::keep_alive`](crate::ListenOptions::keep_alive).
    pub fn keep_alive(mut self, probes: Option<KeepAlive>) -> Proxy {
        self.outbound_options.keep_alive = probes;
        self
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

    /// A client takes no route: TLS with it comes next, if that was asked for.
    fn begin_default(&mut self, client: &mut Socket<'_>, destination: Option<Address>) -> Role {
        match &self.client_filter {
            Some(how) => {
                client.start_filter(how.clone());
                Role::Handshaking(destination.map(Box::new))
            }
            None => {
                self.admit(client, destination, None);
                Role::Client
            }
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
            Origin::Dialed { by: Some(client), .. } => Role::Upstream(client),
            Origin::Dialed { by: None, .. } => Role::Check,
            Origin::Accepted | Origin::Adopted if self.is_trusted(&socket.peer_addr()) => {
                socket.set_alarm(Some(HEADER_WITHIN));
                Role::AwaitingHeader
            }
            Origin::Accepted | Origin::Adopted => self.begin(socket, None),
        }
    }

    fn connected(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        let Some(link) = self.outbound.get(&socket.id()).copied() else { return socket.close() };
        let header = match role {
            Role::Upstream(client) => match self.records.get(client) {
                Some(record) => record.header(),
                None => return socket.close(),
            },
            _ => ProxyHeader::Unknown,
        };
        if self.outbound_options.greet(header, self.upstreams.get(link.upstream), socket) {
            return;
        }
        match *role {
            Role::Upstream(client) => self.connect_pair(client, socket),
            _ => self.check_succeeded(socket),
        }
    }

    /// Behind a PROXY header, on either side.
    fn filter_started(&mut self, role: &mut Role, socket: &mut Socket<'_>) {
        match role {
            Role::Handshaking(destination) => {
                let destination = destination.take().map(|destination| *destination);
                *role = Role::Client;
                self.admit(socket, destination, None);
            }
            &mut Role::Upstream(client) => self.connect_pair(client, socket),
            Role::Check => self.check_succeeded(socket),
            Role::AwaitingHeader | Role::AwaitingRoute(_) | Role::Client => {}
        }
    }

    /// Called for clients whose header or route is awaited, and for checks; all other bytes go through the pipe.
    fn data(&mut self, role: &mut Role, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        match role {
            Role::AwaitingHeader => {}
            Role::AwaitingRoute(_) => return self.choose_route(role, socket, input),
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
        if matches!(role, Role::AwaitingRoute(_)) {
            self.choose_route(role, socket, input);
        }
    }

    /// The idle clock of a client does not run while an upstream is dialed for it.
    fn idle(&mut self, _: &mut Role, socket: &mut Socket<'_>, _: IdleKind) {
        let dialing = self.records.get(&socket.id()).is_some_and(|record| record.dialing.is_some());
        if !dialing {
            socket.close();
        }
    }

    fn alarm(&mut self, role: &mut Role, socket: &mut Socket<'_>, _: u64) {
        match role {
            Role::AwaitingHeader => {
                info!("{}: closed: no PROXY header within {HEADER_WITHIN:?}", socket.peer_addr());
                socket.close_as(CloseReason::Unfinished);
            }
            Role::AwaitingRoute(_) => self.on_no_route(socket),
            Role::Client => self.on_client_alarm(socket),
            Role::Handshaking(_) | Role::Upstream(_) | Role::Check => {}
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
        } else if let Some(own) = self.service {
            self.check_next(own, sockets);
        }
    }

    fn closed(&mut self, role: Role, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let link = self.outbound.remove(&gone.id);
        match (role, link) {
            (Role::Client, _) => self.client_ended(gone, sockets),
            (Role::Upstream(client), Some(link)) => self.upstream_ended(client, link, gone, sockets),
            (Role::Check, Some(link)) => {
                self.upstreams.end_check(link.upstream);
                self.note_failure(link, gone, sockets.elapsed());
            }
            // No upstream was dialed, or the attempt was given up.
            _ => {}
        }
    }
}
