//! Options for dialing, and socket options.

#[cfg(not(target_family = "wasm"))]
use std::io;
use std::net::SocketAddr;
#[cfg(not(target_family = "wasm"))]
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::base::filter::FilterConfig;
use crate::config::rules::Rules;

/// How the kernel probes a silent peer (SO_KEEPALIVE). The kernel counts in whole seconds; less than 1 s becomes 1 s.
///
/// # Examples
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
    /// Time without a byte before the first probe.
    pub idle: Duration,
    /// Time between probes. `None`: the system's default, 75 s on Linux.
    pub interval: Option<Duration>,
    /// Unanswered probes after which the connection fails. `None`: the system's default, 9 on Linux.
    pub count: Option<u32>,
}

impl KeepAlive {
    /// The first probe after `idle`; interval and count are the system's defaults.
    pub fn after(idle: Duration) -> KeepAlive {
        KeepAlive { idle, interval: None, count: None }
    }
}

/// A socket option that a service has set, applied by the loop in its next `write` phase.
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

/// Which addresses of a host name to dial.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Family {
    /// IPv6 and IPv4; the first that connects is used.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// The default of `unsent`: two write budgets, so that the kernel has the next one while it sends the last.
pub(crate) const UNSENT: Option<u32> = Some(128 * 1024);

/// Options of a dial.
///
/// # Examples
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
    /// The time for name look-up, connecting and TLS handshake together. `None`, the default:
    /// [`SocketLimits::connect`](crate::SocketLimits::connect) for look-up and connecting, then
    /// [`SocketLimits::handshake`](crate::SocketLimits::handshake).
    pub timeout: Option<Duration>,
    /// The local address to connect from. `None`, the default: the system chooses. With port 0, it chooses the port
    /// only.
    pub local: Option<SocketAddr>,
    /// Which addresses of a host name to dial. Default [`Family::Any`].
    pub family: Family,
    /// How long to wait for one address of a host name before the next one is tried concurrently (RFC 8305, Happy
    /// Eyeballs). Default 250 ms; at least 10 ms.
    pub attempt_delay: Duration,
    /// Send small segments at once (TCP_NODELAY). Default `true`.
    pub nodelay: bool,
    /// Bytes that the kernel queues beyond what it has sent: see
    /// [`ListenOptions::unsent`](crate::ListenOptions::unsent). Default 128 KiB.
    pub unsent: Option<u32>,
    /// Let the kernel probe a silent peer (SO_KEEPALIVE). Off by default.
    pub keep_alive: Option<KeepAlive>,
    /// Addresses that may not be dialed. Every address that a host name resolves to is checked. The default allows all.
    pub rules: Rules,
    /// The filter of the connection, for example a [`tls::Client`](crate::tls::Client).
    /// [`connected`](crate::Service::connected) is called when the handshake is complete; output that is sent before
    /// waits for it. `None` by default.
    pub filter: Option<FilterConfig>,
    /// Dial again when the dial has failed or the connection has ended, until the service closes it itself. Each time
    /// that is a new connection: [`ClosedInfo::redial_in`](crate::ClosedInfo::redial_in) tells when it is dialed, and
    /// [`Origin::Dialed`](crate::Origin::Dialed) after which one. [`Socket::redial`](crate::Socket::redial) asks for it
    /// at once. Off by default.
    pub reconnect: Option<Backoff>,
    /// A number of the program's own, which [`Socket::tag`](crate::Socket::tag) and
    /// [`ClosedInfo::tag`](crate::ClosedInfo::tag) return: which of several upstreams it is, for example. Connections
    /// that are dialed again keep it. Default 0.
    pub tag: u64,
    /// Called with each new socket before it is bound or connected, to set options that the crate does not have
    /// (SO_MARK, SO_BINDTODEVICE). An error fails that attempt. It must not block, and must leave the socket
    /// non-blocking. `None` by default.
    #[cfg(not(target_family = "wasm"))]
    pub prepare: Option<fn(BorrowedFd<'_>) -> io::Result<()>>,
}

impl Default for DialOptions {
    fn default() -> DialOptions {
        DialOptions {
            timeout: None,
            local: None,
            family: Family::Any,
            attempt_delay: Duration::from_millis(250),
            nodelay: true,
            unsent: UNSENT,
            keep_alive: None,
            rules: Rules::default(),
            filter: None,
            reconnect: None,
            tag: 0,
            #[cfg(not(target_family = "wasm"))]
            prepare: None,
        }
    }
}

/// How long to wait before dialing again: exponential backoff with random jitter.
///
/// After `n` failures in a row, the wait is a random time between half of `min(first · 2ⁿ, max)` and the whole of it,
/// so that clients which lost the same server at the same time do not reconnect at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Backoff {
    /// The wait that is doubled with each failure. Default 100 ms.
    pub first: Duration,
    /// The longest wait. Default 30 s.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { first: Duration::from_millis(100), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The wait after a number of failures in a row. `random` is a random number over the whole range of `u64`.
    ///
    /// # Examples
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
    fn the_wait_doubles_up_to_the_maximum_and_is_at_least_half_of_it() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(10) };
        for failures in 0..100 {
            let whole = backoff.first.saturating_mul(1 << failures.min(20)).min(backoff.max);
            let (least, max) = (backoff.wait(failures, 0), backoff.wait(failures, u64::MAX));
            assert_eq!(least, whole / 2, "after {failures}");
            assert!(max > whole * 99 / 100 && max <= whole, "after {failures}: {max:?}");
        }
    }
}
