//! Options of a listener.

use crate::base::filter::FilterConfig;
use crate::config::dial::{KeepAlive, UNSENT};

/// Options of a listener: see [`Reactor::listen_with`](crate::Reactor::listen_with).
///
/// # Examples
///
/// ```
/// use tidemill::{ListenOptions, Overflow};
///
/// let options = ListenOptions { overflow: Overflow::Wait, ..ListenOptions::default() };
/// assert_eq!(options.backlog, 1_024);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Established connections that the kernel queues until they are accepted. Default 1,024; the kernel limits it
    /// (`net.core.somaxconn` on Linux, by default 4,096).
    pub backlog: u32,
    /// What to do with further peers while the reactor is at capacity. Default [`Overflow::Refuse`].
    pub overflow: Overflow,
    /// What is sent to a refused peer before it is closed. Default `server busy\n`. Nothing is sent if it is empty, or
    /// if the listener has a [filter](ListenOptions::filter), because the peer expects TLS.
    pub busy_reply: Vec<u8>,
    /// Let the kernel probe a silent peer (SO_KEEPALIVE). Off by default.
    pub keep_alive: Option<KeepAlive>,
    /// Send small segments at once (TCP_NODELAY). Default `true`: the output of one turn is written with one call, so
    /// Nagle's algorithm would only delay it.
    pub nodelay: bool,
    /// Bytes that the kernel queues for a connection beyond what it has sent (TCP_NOTSENT_LOWAT, on Linux; ignored on
    /// other systems and by Unix-domain sockets). Default 128 KiB. `None` leaves it to the system, which has no limit
    /// but that of the send buffer.
    ///
    /// [`Limits::memory`](crate::Limits::memory) counts the bytes in this process. Without this limit the kernel takes
    /// up to 4 MB more for each peer that does not read; with it, fifty such peers hold 8 MB in place of 200 MB. It
    /// costs no rate: what is sent and not acknowledged is not limited.
    pub unsent: Option<u32>,
    /// Whether a listener on an IPv6 address refuses IPv4 (IPV6_V6ONLY). `None`, the default, leaves it to the system:
    /// on Linux, `[::]:80` accepts both unless `net.ipv6.bindv6only` is set.
    pub ipv6_only: Option<bool>,
    /// Let several sockets of the same user listen on one port; the kernel distributes connections among them
    /// (SO_REUSEPORT). Default `false`. When one of them is closed, the connections in its backlog are lost.
    pub reuse_port: bool,
    /// Reserve a second slot for each accepted connection, with which it can dial another one. Default `false`. Without
    /// it, a proxy at capacity would have accepted clients for which it cannot dial.
    pub reserve_slot: bool,
    /// The filter of accepted connections, for example a [`tls::Server`](crate::tls::Server).
    /// [`Service::open`](crate::Service::open) is called when the handshake is complete. `None` by default.
    pub filter: Option<FilterConfig>,
}

/// What to do with further peers while the reactor, or the service, is at capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// Accept it, send [`busy_reply`](ListenOptions::busy_reply) and close it. If the process has no descriptor left,
    /// it is closed without a reply.
    Refuse,
    /// Leave it in the accept backlog until a slot is free.
    Wait,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            backlog: 1_024,
            overflow: Overflow::Refuse,
            busy_reply: b"server busy\n".to_vec(),
            keep_alive: None,
            nodelay: true,
            unsent: UNSENT,
            ipv6_only: None,
            reuse_port: false,
            reserve_slot: false,
            filter: None,
        }
    }
}
