//! The rules of a listener: which addresses it accepts, how many connections from each, how fast.

use crate::config::rules::{IpRange, RefuseMode, Rules};

/// Whom a service's listeners let in. By default: everybody.
///
/// It looks at IP addresses; peers of Unix-domain sockets have none and always pass. Addresses of version 4 that come
/// mapped into version 6 are of version 4. Addresses of version 6 count by their first 64 bits: that is what one
/// customer is given, and he may use all 2^64 of them.
///
/// ```
/// use tidemill::{AccessPolicy, RefuseMode};
///
/// let mut policy = AccessPolicy { per_address: Some(100), accept_rate: Some(50), ..AccessPolicy::default() };
/// policy.rules.deny("192.0.2.0/24".parse().unwrap(), RefuseMode::Reset);
/// ```
#[derive(Clone, Debug)]
pub struct AccessPolicy {
    /// Who may come in at all. Looked at before everything else.
    pub rules: Rules,
    /// Connections of this service at once, dialed ones included. Off by default: then only
    /// [`Limits::connections`](crate::Limits::connections) holds, for the whole reactor.
    pub connections: Option<usize>,
    /// Connections at once from one address. Off by default.
    pub per_address: Option<usize>,
    /// Connections a second from one address, and as many at once after a silence. Off by default.
    pub accept_rate: Option<usize>,
    /// How those beyond [`per_address`](AccessPolicy::per_address) are turned away. Default: with the reply.
    pub on_too_many: RefuseMode,
    /// How those beyond [`accept_rate`](AccessPolicy::accept_rate) are turned away. Default: by a reset. Whoever calls
    /// too often should cost little.
    pub on_too_fast: RefuseMode,
    /// Addresses that are not counted, because they stand for others: load balancers that say for whom, for example.
    /// Those they stand for are counted when [`Socket::set_peer_addr`](crate::Socket::set_peer_addr) is told. Empty
    /// by default.
    pub exempt: Vec<IpRange>,
    /// Let everybody in, but count and log whom the rules above would have turned away. The caps on connections still
    /// hold.
    pub dry_run: bool,
}

impl Default for AccessPolicy {
    fn default() -> AccessPolicy {
        AccessPolicy {
            rules: Rules::default(),
            connections: None,
            per_address: None,
            accept_rate: None,
            on_too_many: RefuseMode::Reply,
            on_too_fast: RefuseMode::Reset,
            exempt: Vec::new(),
            dry_run: false,
        }
    }
}
