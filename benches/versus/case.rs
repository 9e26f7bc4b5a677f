//! The cases and the candidates.

use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Tidemill,
    /// tidemill with busy polling.
    TidemillBusyPoll,
    /// As in tokio's examples: one thread, one task per connection with a buffer of 4 KiB.
    Tokio4,
    /// The same with a buffer of 64 KiB.
    Tokio64,
    /// Tokio's multi-threaded runtime with two threads, on one processor.
    TokioThreads,
    /// A fan-out with one channel per receiver.
    TokioMpsc,
    /// A fan-out with one broadcast channel.
    TokioBroadcast,
    /// A proxy with `copy_bidirectional`.
    TokioCopy,
    /// An event loop written by hand on mio, with neither timers nor limits: the cost of the kernel in Rust.
    Mio,
    /// A minimal echo in C on edge-triggered epoll: the cost of the kernel alone.
    Epoll,
    Libuv,
    Node,
    HaProxy,
    HaProxySplice,
    Nginx,
    /// A program of `benches/peers`, as the two below: monoio on io_uring.
    Monoio,
    MonoioEpoll,
    Smol,
}

impl Kind {
    pub const ALL: [Kind; 18] = [
        Kind::Tidemill,
        Kind::TidemillBusyPoll,
        Kind::Tokio4,
        Kind::Tokio64,
        Kind::TokioThreads,
        Kind::TokioMpsc,
        Kind::TokioBroadcast,
        Kind::TokioCopy,
        Kind::Mio,
        Kind::Epoll,
        Kind::Libuv,
        Kind::Node,
        Kind::HaProxy,
        Kind::HaProxySplice,
        Kind::Nginx,
        Kind::Monoio,
        Kind::MonoioEpoll,
        Kind::Smol,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Tidemill => "tidemill",
            Kind::TidemillBusyPoll => "tidemill-busy-poll",
            Kind::Tokio4 => "tokio-4k",
            Kind::Tokio64 => "tokio-64k",
            Kind::TokioThreads => "tokio-threads",
            Kind::TokioMpsc => "tokio-mpsc",
            Kind::TokioBroadcast => "tokio-broadcast",
            Kind::TokioCopy => "tokio-copy",
            Kind::Mio => "mio",
            Kind::Epoll => "epoll",
            Kind::Libuv => "libuv",
            Kind::Node => "node",
            Kind::HaProxy => "haproxy",
            Kind::HaProxySplice => "haproxy-splice",
            Kind::Nginx => "nginx",
            Kind::Monoio => "monoio",
            Kind::MonoioEpoll => "monoio-epoll",
            Kind::Smol => "smol",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Kind::Tidemill => "tidemill",
            Kind::TidemillBusyPoll => "tidemill, busy poll 50 µs",
            Kind::Tokio4 => "tokio current_thread",
            Kind::Tokio64 => "tokio current_thread, 64 KiB",
            Kind::TokioThreads => "tokio multi_thread",
            Kind::TokioMpsc => "tokio, a channel each",
            Kind::TokioBroadcast => "tokio, broadcast",
            Kind::TokioCopy => "tokio copy_bidirectional",
            Kind::Mio => "mio by hand",
            Kind::Epoll => "bare epoll in C",
            Kind::Libuv => "libuv",
            Kind::Node => "Node",
            Kind::HaProxy => "HAProxy",
            Kind::HaProxySplice => "HAProxy, splice-auto",
            Kind::Nginx => "nginx stream",
            Kind::Monoio => "monoio, io_uring",
            Kind::MonoioEpoll => "monoio, epoll",
            Kind::Smol => "smol",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it is another program, measured on request if it is installed.
    pub fn is_peer(self) -> bool {
        self >= Kind::Epoll
    }

    /// Whether it is a server of the package `benches/peers`.
    pub fn is_runtime(self) -> bool {
        self >= Kind::Monoio
    }

    /// The names of all peers.
    pub fn peers() -> String {
        let names: Vec<&str> = Kind::ALL.into_iter().filter(|kind| kind.is_peer()).map(Kind::name).collect();
        names.join(", ")
    }

    /// Which shapes of load a peer supports.
    pub fn does(self, shape: Shape) -> bool {
        let proxies =
            matches!(shape, Shape::Proxy | Shape::ProxyChurn | Shape::Bulk | Shape::Iperf | Shape::Pgbench);
        let echoes = matches!(shape, Shape::Echo | Shape::Churn);
        match self {
            Kind::Epoll | Kind::Libuv | Kind::Node => echoes,
            Kind::HaProxySplice => matches!(shape, Shape::Bulk | Shape::Iperf),
            Kind::HaProxy => proxies || matches!(shape, Shape::TlsProxy | Shape::TlsProxyChurn),
            Kind::Nginx => proxies,
            Kind::Monoio | Kind::MonoioEpoll | Kind::Smol => echoes || proxies,
            _ => false,
        }
    }
}

/// The shape of the load between driver and server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Each connection sends messages and waits for their echo.
    Echo,
    /// The same, over TLS.
    TlsEcho,
    /// One connection per message.
    Churn,
    /// The same over TLS: the cost of a full handshake.
    TlsChurn,
    /// One connection sends lines, all others receive them.
    FanOut,
    /// Echo, through a proxy to the driver's own process.
    Proxy,
    /// Churn, through a proxy.
    ProxyChurn,
    /// Echo, through a proxy that ends TLS, to the driver's own process.
    TlsProxy,
    /// Churn, through a proxy that ends TLS.
    TlsProxyChurn,
    /// Endless streams through a proxy; the driver's process is client and backend.
    Bulk,
    /// One stream of iperf3 through a proxy.
    Iperf,
    /// One client of pgbench through a proxy.
    Pgbench,
}

/// One way to load a server.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub shape: Shape,
    /// Number of connections; in a fan-out, of receivers.
    pub connections: usize,
    pub size: usize,
    /// Messages in flight on each connection; in a fan-out, lines in flight.
    pub pipeline: usize,
    pub turn: Duration,
}

const fn case(
    name: &'static str,
    shape: Shape,
    connections: usize,
    size: usize,
    pipeline: usize,
    millis: u64,
) -> Case {
    Case { name, shape, connections, size, pipeline, turn: Duration::from_millis(millis) }
}

/// Connections from one driver to each of two servers, if a process may open 20,000 descriptors.
const MANY: usize = 9_900;

pub const CASES: &[Case] = &[
    case("64 B x 1", Shape::Echo, 1, 64, 1, 100),
    case("64 B x 50", Shape::Echo, 50, 64, 1, 100),
    case("64 B x 1000", Shape::Echo, 1_000, 64, 1, 400),
    case("64 B x 9900", Shape::Echo, MANY, 64, 1, 800),
    case("64 B x 9900, beside bare epoll", Shape::Echo, MANY, 64, 1, 800),
    case("64 B x 50, pipeline 16", Shape::Echo, 50, 64, 16, 100),
    case("16 KiB x 50", Shape::Echo, 50, 16 << 10, 1, 100),
    case("1 MiB x 4", Shape::Echo, 4, 1 << 20, 1, 100),
    case("churn x 50", Shape::Churn, 50, 64, 1, 100),
    case("fan-out to 100, 1 line", Shape::FanOut, 100, 64, 1, 100),
    case("fan-out to 100, 16 lines", Shape::FanOut, 100, 64, 16, 100),
    case("fan-out to 1000, 1 line", Shape::FanOut, 1_000, 64, 1, 400),
    case("fan-out to 1000, 16 lines", Shape::FanOut, 1_000, 64, 16, 400),
    case("TLS, 64 B x 1", Shape::TlsEcho, 1, 64, 1, 100),
    case("TLS, 64 B x 50", Shape::TlsEcho, 50, 64, 1, 100),
    case("TLS, 16 KiB x 50", Shape::TlsEcho, 50, 16 << 10, 1, 100),
    case("TLS, 1 MiB x 4", Shape::TlsEcho, 4, 1 << 20, 1, 200),
    case("TLS, churn x 50", Shape::TlsChurn, 50, 64, 1, 200),
    case("proxy, 64 B x 1", Shape::Proxy, 1, 64, 1, 100),
    case("proxy, 64 B x 50", Shape::Proxy, 50, 64, 1, 100),
    case("proxy, churn x 50", Shape::ProxyChurn, 50, 64, 1, 100),
    case("proxy, bulk x 4", Shape::Bulk, 4, 0, 0, 100),
    case("TLS proxy, 64 B x 50", Shape::TlsProxy, 50, 64, 1, 100),
    case("TLS proxy, 64 KiB x 50", Shape::TlsProxy, 50, 64 << 10, 1, 100),
    case("TLS proxy, churn x 50", Shape::TlsProxyChurn, 50, 64, 1, 200),
    case("hop, iperf3, 1 stream", Shape::Iperf, 1, 0, 0, 100),
    case("hop, pgbench -S, 1 client", Shape::Pgbench, 1, 0, 0, 100),
];

impl Case {
    /// The unit of the counter.
    pub fn unit(&self) -> &'static str {
        match self.shape {
            Shape::Echo | Shape::TlsEcho | Shape::Proxy | Shape::TlsProxy => "messages",
            Shape::Churn | Shape::TlsChurn | Shape::ProxyChurn | Shape::TlsProxyChurn => "connections",
            Shape::FanOut => "deliveries",
            Shape::Bulk | Shape::Iperf => "KiB",
            Shape::Pgbench => "queries",
        }
    }

    /// Whether each message has its own connection.
    pub fn churns(&self) -> bool {
        matches!(self.shape, Shape::Churn | Shape::TlsChurn | Shape::ProxyChurn | Shape::TlsProxyChurn)
    }

    pub fn is_secured(&self) -> bool {
        matches!(self.shape, Shape::TlsEcho | Shape::TlsChurn | Shape::TlsProxy | Shape::TlsProxyChurn)
    }

    /// Whether the driver's process is also the backend of a proxy.
    pub fn is_proxied(&self) -> bool {
        matches!(self.shape, Shape::Proxy | Shape::ProxyChurn | Shape::TlsProxy | Shape::TlsProxyChurn)
    }

    /// The compared servers, tidemill first. `peers` are those requested in addition to the usual ones.
    pub fn kinds(&self, peers: &[Kind]) -> Vec<Kind> {
        let mut kinds = match self.shape {
            Shape::Echo if self.connections == 1 => {
                vec![
                    Kind::Tidemill,
                    Kind::Tokio4,
                    Kind::Tokio64,
                    Kind::TokioThreads,
                    Kind::Mio,
                    Kind::TidemillBusyPoll,
                ]
            }
            Shape::Echo if self.connections == MANY => {
                let epoll = self.name.ends_with("epoll");
                let other = if epoll {
                    peers.iter().copied().find(|&peer| peer == Kind::Epoll)
                } else {
                    Some(Kind::Tokio4)
                };
                return [Kind::Tidemill].into_iter().filter(|_| other.is_some()).chain(other).collect();
            }
            Shape::Echo | Shape::Churn => {
                vec![Kind::Tidemill, Kind::Tokio4, Kind::Tokio64, Kind::TokioThreads, Kind::Mio]
            }
            Shape::TlsEcho | Shape::TlsChurn => vec![Kind::Tidemill, Kind::Tokio4, Kind::Tokio64],
            Shape::FanOut => vec![Kind::Tidemill, Kind::TokioMpsc, Kind::TokioBroadcast],
            Shape::Proxy
            | Shape::ProxyChurn
            | Shape::TlsProxy
            | Shape::TlsProxyChurn
            | Shape::Bulk
            | Shape::Iperf
            | Shape::Pgbench => vec![Kind::Tidemill, Kind::TokioCopy],
        };
        kinds.extend(peers.iter().filter(|peer| peer.does(self.shape)));
        kinds
    }

    /// The number of descriptors that the driver needs, and the most that a server needs.
    pub fn descriptors(&self, kinds: usize) -> (usize, usize) {
        let behind = if self.is_proxied() || self.shape == Shape::Bulk { 2 } else { 1 };
        (self.connections * kinds * behind + 60, self.connections * 2 + 60)
    }
}
