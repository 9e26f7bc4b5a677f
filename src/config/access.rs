//! The access policy of a service: which addresses it accepts, how many connections from each, and how fast.

use crate::config::rules::{IpRange, RefuseMode, Rules};

/// Which peers the listeners of a service accept. The default accepts all.
///
/// It looks at IP addresses; peers on Unix-domain sockets have none and are always accepted. An IPv4 address that is
/// mapped into IPv6 counts as IPv4. IPv6 addresses are counted by their first 64 bits, because a provider assigns at
/// least so much to one customer, who may use all 2^64 addresses.
///
/// # Examples
///
/// ```
/// use tidemill::{AccessPolicy, RefuseMode};
///
/// let mut policy = AccessPolicy { per_address: Some(100), accept_rate: Some(50), ..AccessPolicy::default() };
/// policy.rules.deny("192.0.2.0/24".parse().unwrap(), RefuseMode::Reset);
/// ```
#[derive(Clone, Debug)]
pub struct AccessPolicy {
    /// Which addresses are accepted and which are denied. Checked before everything else, also before capacity.
    pub rules: Rules,
    /// Concurrent connections of this service, dialed ones included. Off by default: only
    /// [`Limits::connections`](crate::Limits::connections) applies, which is for the whole reactor.
    pub connections: Option<usize>,
    /// Concurrent connections from one address. Off by default.
    pub per_address: Option<usize>,
    /// New connections per second from one address; after a pause, as many at once. Off by default.
    pub accept_rate: Option<usize>,
    /// How peers beyond [`per_address`](AccessPolicy::per_address) are refused. Default [`RefuseMode::Reply`].
    pub on_too_many: RefuseMode,
    /// How peers beyond [`accept_rate`](AccessPolicy::accept_rate) are refused. Default [`RefuseMode::Reset`], the
    /// cheapest: an address that connects too often must cost little.
    pub on_too_fast: RefuseMode,
    /// Addresses that are not counted, for example those of load balancers that send a PROXY header. The address in
    /// the header is counted when [`Socket::set_peer_addr`](crate::Socket::set_peer_addr) is called with it. Empty by
    /// default.
    pub exempt: Vec<IpRange>,
    /// Accept all peers, but count and log those that the settings above would have refused. The limits on the number
    /// of connections (`connections`, [`Limits::connections`](crate::Limits::connections)) still apply. Default
    /// `false`.
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
