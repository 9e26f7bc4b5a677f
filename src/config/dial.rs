//! What can be asked of the system for one socket, and how to dial.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::filter::FilterConfig;
use crate::config::rules::Rules;

/// How the kernel probes a peer that is silent (SO_KEEPALIVE).
///
/// ```
/// use std::time::Duration;
/// use tidemill::KeepAlive;
///
/// let probes = KeepAlive { count: Some(3), ..KeepAlive::after(Duration::from_secs(30)) };
/// assert_eq!(probes.interval, None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeepAlive {
    /// Silence before the first probe. The kernel counts in whole seconds, at least one.
    pub idle: Duration,
    /// Time between probes; by default the system's, 75 s on Linux.
    pub interval: Option<Duration>,
    /// Unanswered probes after which the connection is dead; by default the system's, 9 on Linux.
    pub count: Option<u32>,
}

impl KeepAlive {
    /// Probes after so much silence, and the rest as the system does it.
    pub fn after(idle: Duration) -> KeepAlive {
        KeepAlive { idle, interval: None, count: None }
    }
}

/// One thing that a service has asked of the system for one socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SocketOption {
    NoDelay(bool),
    KeepAlive(Option<KeepAlive>),
    /// `TCP_USER_TIMEOUT`.
    UserTimeout(Option<Duration>),
    Tos(u8),
    SendBuffer(usize),
    RecvBuffer(usize),
}

/// Which version of IP to use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Family {
    /// Whichever connects first.
    #[default]
    Any,
    /// Version 4 only.
    V4,
    /// Version 6 only.
    V6,
}

/// How to dial.
///
/// ```
/// use std::time::Duration;
/// use tidemill::{Backoff, DialOptions};
///
/// let options = DialOptions {
///     timeout: Some(Duration::from_secs(3)),
///     reconnect: Some(Backoff::default()),
///     ..DialOptions::default()
/// };
/// assert_eq!(options.attempt_delay, Duration::from_millis(250));
/// ```
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// How long looking up the name, connecting and the handshake of TLS may take together; by default
    /// [`SocketLimits::connect`](crate::SocketLimits::connect), and then
    /// [`SocketLimits::handshake`](crate::SocketLimits::handshake).
    pub timeout: Option<Duration>,
    /// The local address to call from; by default the system chooses. With port 0 it chooses only the port.
    pub local: Option<SocketAddr>,
    /// Which version of IP to use, where a name stands for addresses of both.
    pub family: Family,
    /// After so long without success, the next address of a name is tried beside the one under way (RFC 8305). Default
    /// 250 ms, at least 10 ms.
    pub attempt_delay: Duration,
    /// Send small segments at once (TCP_NODELAY). Default `true`.
    pub nodelay: bool,
    /// Let the kernel probe a silent peer. Off by default.
    pub keep_alive: Option<KeepAlive>,
    /// Addresses that must not be connected to; every address of a name is held against them. Empty by default.
    pub rules: Rules,
    /// How the connection is secured: by a [`tls::Client`](crate::tls::Client), for example.
    /// [`connected`](crate::Service::connected) comes when the handshake is done; what is sent before waits for that.
    /// None by default.
    pub filter: Option<FilterConfig>,
    /// Dial again when it has failed or ended, until the service itself closes it. Off by default.
    pub reconnect: Option<Backoff>,
}

impl Default for DialOptions {
    fn default() -> DialOptions {
        DialOptions {
            timeout: None,
            local: None,
            family: Family::Any,
            attempt_delay: Duration::from_millis(250),
            nodelay: true,
            keep_alive: None,
            rules: Rules::default(),
            filter: None,
            reconnect: None,
        }
    }
}

/// How long to wait before dialing again: longer each time, up to a cap, and never for exactly as long as others do.
///
/// The wait before the `n`-th repetition lies between half of `first · 2ⁿ` and the whole of it. Clients that lost one
/// server together do not come back together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Backoff {
    /// The first wait. Default 100 ms.
    pub first: Duration,
    /// The longest. Default 30 s.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { first: Duration::from_millis(100), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The wait after so many failures in a row, for a random number.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidemill::Backoff;
    ///
    /// let wait = Backoff::default().wait(3, 0x8000_0000_0000_0000);
    /// assert_eq!(wait, Duration::from_millis(600));
    /// ```
    pub fn wait(&self, failures: u32, random: u64) -> Duration {
        let doubled = 1_u32.checked_shl(failures).map_or(self.max, |times| self.first.saturating_mul(times));
        let half = doubled.min(self.max) / 2;
        half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_doubles_is_capped_and_differs() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(10) };
        for failures in 0..100 {
            let whole = backoff.first.saturating_mul(1 << failures.min(20)).min(backoff.max);
            let (least, max) = (backoff.wait(failures, 0), backoff.wait(failures, u64::MAX));
            assert_eq!(least, whole / 2, "after {failures}");
            assert!(max > whole * 99 / 100 && max <= whole, "after {failures}: {max:?}");
        }
    }
}
