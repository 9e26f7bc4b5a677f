//! How to listen.

use crate::base::filter::FilterConfig;
use crate::config::dial::KeepAlive;

/// How to listen.
///
/// ```
/// use tidemill::{ListenOptions, Overflow};
///
/// let options = ListenOptions { overflow: Overflow::Wait, ..ListenOptions::default() };
/// assert_eq!(options.backlog, 1_024);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections that the kernel completes and queues for us. Default 1,024; the kernel cuts it to its own limit
    /// (`net.core.somaxconn` on Linux, 4,096 there by default).
    pub backlog: u32,
    /// What happens to a peer who comes when the reactor is at capacity. Default: refuse.
    pub overflow: Overflow,
    /// What a refused peer is told. Default `server busy\n`; when empty, or where those who come are
    /// [secured](ListenOptions::filter), it only sees the end.
    pub busy_reply: Vec<u8>,
    /// Let the kernel probe a silent peer. Off by default.
    pub keep_alive: Option<KeepAlive>,
    /// Send small segments at once (TCP_NODELAY). Default `true`: a turn's answers leave together as it is.
    pub nodelay: bool,
    /// Whether a listener on an address of version 6 leaves version 4 alone (IPV6_V6ONLY). By default the system
    /// decides: on Linux, `[::]:80` takes both unless `net.ipv6.bindv6only` says otherwise.
    pub ipv6_only: Option<bool>,
    /// Let other sockets listen on the same port, this process's or others' of the same user; the kernel spreads
    /// connections over them (SO_REUSEPORT). Default `false`. Whoever then closes one loses what waits in its backlog.
    pub reuse_port: bool,
    /// Each connection is going to dial another: a second slot is kept for it from the beginning. Default `false`. A
    /// proxy without this can fill the reactor with connections that cannot dial.
    pub reserve_slot: bool,
    /// How those who come are secured: by a [`tls::Server`](crate::tls::Server), for example. Their service meets them
    /// when the handshake is done. None by default.
    pub filter: Option<FilterConfig>,
}

/// What happens to a peer who comes when the reactor is at capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overflow {
    /// It is told so and let go. When not even a descriptor is left to tell it, its connection is closed.
    Refuse,
    /// It waits in the backlog until there is room.
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
            ipv6_only: None,
            reuse_port: false,
            reserve_slot: false,
            filter: None,
        }
    }
}
