//! What a proxy does to the bytes that it passes on, to test the programs on both sides of it.

pub(super) mod plan;

use std::time::Duration;

/// The faults of a connection through a [`Proxy`](crate::services::Proxy), by direction.
///
/// They act on the bytes of the two programs: behind a PROXY header, and inside of TLS.
///
/// ```
/// use std::time::Duration;
/// use tidemill::services::{Chance, Fault, FaultAt, Faults, Proxy};
///
/// let slow = Fault { latency: Duration::from_millis(50), jitter: Duration::from_millis(10), ..Fault::default() };
/// let cut = Chance { percent: 1.0, at: FaultAt::Bytes(1_000) };
/// let faults = Faults { up: slow.clone(), down: Fault { cut: Some(cut), ..slow } };
/// let proxy = Proxy::to(vec!["127.0.0.1:5432".parse().unwrap()]).fault(None, faults).fault_seed(7);
/// # let _ = proxy;
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Faults {
    /// From the client to the upstream.
    pub up: Fault,
    /// From the upstream to the client.
    pub down: Fault,
}

/// What happens to the bytes of one direction. The default is nothing: such a direction is passed on as by a proxy
/// without faults.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Fault {
    /// How long each byte, and the end, is delayed. The resolution is that of all timers: up to 10 ms more.
    pub latency: Duration,
    /// By how much the delay of each KiB differs from `latency` at most, up or down. Bytes stay in order.
    pub jitter: Duration,
    /// Bytes per second that are read at most, in place of [`SocketLimits::rate`](crate::SocketLimits::rate).
    pub rate: Option<usize>,
    /// Bytes leave in pieces. None by default.
    pub split: Option<Split>,
    /// How long the end (FIN) is delayed in addition to `latency`.
    pub slow_close: Duration,
    /// Some connections are ended with a FIN on both sides, in the middle of what they say.
    pub cut: Option<Chance>,
    /// Some connections are reset on both sides.
    pub reset: Option<Chance>,
    /// In some connections nothing more gets through in this direction: bytes are read and dropped, and the end is not
    /// passed on. The connections stay open, until one of their timeouts or a peer ends them.
    pub stall: Option<Chance>,
}

/// How bytes are cut into pieces. Each piece is written in a turn of its own, so it is a segment of its own unless the
/// kernel of the receiver joins it with the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// Bytes of a piece, at least 1.
    pub size: usize,
    /// By how much the size of each piece differs from `size` at most, up or down.
    pub spread: usize,
    /// The time between two pieces. Zero: the next turn.
    pub gap: Duration,
}

/// Which connections have a fault, and where.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Chance {
    /// The share of the connections, from 0 (none) to 100 (each).
    pub percent: f64,
    /// Where in the connection.
    pub at: FaultAt,
}

/// Where a fault happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultAt {
    /// After a number of bytes that is drawn for each connection, from 1 B to 2 MiB, in half of them below 1 KiB.
    Random,
    /// After this many bytes of this direction.
    Bytes(u64),
    /// This long after the upstream was connected.
    Time(Duration),
}

/// How a connection is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    Cut,
    Reset,
    Stall,
}

impl Stop {
    /// For the log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Stop::Cut => "cut",
            Stop::Reset => "reset",
            Stop::Stall => "stall",
        }
    }
}
