//! What is measured.

use std::time::Duration;

use crate::servers::Kind;

/// What passes between the driver and a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Each connection sends messages and waits for them to come back.
    Echo,
    /// The same, over TLS.
    TlsEcho,
    /// A connection for each message.
    Churn,
    /// The same, over TLS: what a whole handshake costs.
    TlsChurn,
    /// One connection sends lines, all others get them.
    FanOut,
    /// Echo, through a proxy to the driver's own process.
    Proxy,
    /// Churn, through a proxy.
    ProxyChurn,
    /// Bytes without end, through a proxy, from the driver's process to the driver's process.
    Bulk,
}

/// One way to load a server.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub shape: Shape,
    /// Of a fan-out, how many receive.
    pub connections: usize,
    pub size: usize,
    /// Messages in flight on each connection; lines of a fan-out.
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

/// As many as two servers can have at once from one driver where a process may open 20,000 descriptors.
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
];

impl Case {
    /// What is counted.
    pub fn unit(&self) -> &'static str {
        match self.shape {
            Shape::Echo | Shape::TlsEcho | Shape::Proxy => "messages",
            Shape::Churn | Shape::TlsChurn | Shape::ProxyChurn => "connections",
            Shape::FanOut => "deliveries",
            Shape::Bulk => "KiB",
        }
    }

    /// Whether each message has a connection of its own.
    pub fn churns(&self) -> bool {
        matches!(self.shape, Shape::Churn | Shape::TlsChurn | Shape::ProxyChurn)
    }

    pub fn is_secured(&self) -> bool {
        matches!(self.shape, Shape::TlsEcho | Shape::TlsChurn)
    }

    /// Whether the driver's process has to carry what is behind a proxy.
    pub fn is_proxied(&self) -> bool {
        matches!(self.shape, Shape::Proxy | Shape::ProxyChurn)
    }

    /// Who is compared; tidemill first. `peers` are those that were asked for beside the usual ones.
    pub fn kinds(&self, peers: &[Kind]) -> Vec<Kind> {
        let mut kinds = match self.shape {
            Shape::Echo if self.connections == 1 => {
                vec![Kind::Tidemill, Kind::Tokio4, Kind::Tokio64, Kind::TokioThreads, Kind::TidemillSpin]
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
                vec![Kind::Tidemill, Kind::Tokio4, Kind::Tokio64, Kind::TokioThreads]
            }
            Shape::TlsEcho | Shape::TlsChurn => vec![Kind::Tidemill, Kind::Tokio4, Kind::Tokio64],
            Shape::FanOut => vec![Kind::Tidemill, Kind::TokioMpsc, Kind::TokioBroadcast],
            Shape::Proxy | Shape::ProxyChurn | Shape::Bulk => vec![Kind::Tidemill, Kind::TokioCopy],
        };
        kinds.extend(peers.iter().filter(|peer| peer.does(self.shape)));
        kinds
    }

    /// Descriptors that the driver needs, and a server at most.
    pub fn descriptors(&self, kinds: usize) -> (usize, usize) {
        let behind = if self.is_proxied() || self.shape == Shape::Bulk { 2 } else { 1 };
        (self.connections * kinds * behind + 60, self.connections * 2 + 60)
    }
}
