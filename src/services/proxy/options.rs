//! What a proxy can be told to do.

use std::time::Duration;

use super::hold::Demand;
use super::routes::Classifier;
use super::{Balance, Faults, Proxy, RouteChoice, Upstream, UpstreamCounts};
use crate::base::address::Address;
use crate::base::filter::FilterConfig;
use crate::config::dial::KeepAlive;
use crate::config::limits::SocketLimits;
use crate::config::rules::IpRange;
use crate::framing::proxy_header::HeaderVersion;

/// Options.
impl Proxy {
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

    /// Has connections to the upstream at `to` fail as `faults` says; without an address, those to all upstreams that
    /// have no faults of their own. None by default. Connections in which nothing is to happen are piped as they are
    /// without this.
    pub fn fault(mut self, to: Option<Address>, faults: Faults) -> Proxy {
        self.relays.faults.push((to, faults));
        self
    }

    /// The seed from which faults are drawn, by the number of the client in the order of accepts and by positions in
    /// its stream: the same seed and the same clients give the same faults. Default 0.
    pub fn fault_seed(mut self, seed: u64) -> Proxy {
        self.relays.seed = seed;
        self
    }

    /// Sends a copy of what clients say to this address, too, as it is and without a PROXY header or TLS. What it
    /// answers is dropped. Off by default.
    ///
    /// The mirror is not waited for: when more than 1 MiB waits for it beside its queue, or it cannot be connected, the
    /// copy of that client ends, which is counted and logged. Its connection takes a slot of its own, if there is one.
    pub fn mirror(mut self, to: Option<Address>) -> Proxy {
        self.relays.mirror_to = to;
        self
    }

    /// Holds clients for which no upstream can be connected, for this time at most: an upstream that restarts costs
    /// them a delay. They are not read meanwhile, and are dialed for in the order in which they came. At most 1,024 are
    /// held; further ones are closed. Off by default.
    pub fn hold(mut self, limit: Option<Duration>) -> Proxy {
        self.hold.limit = limit;
        self
    }

    /// Has `control` start the upstream when it is needed, and stop it when there has been no client for `idle`.
    ///
    /// It is called with `true` before upstreams are dialed for a client, also for one that is [held](Proxy::hold) and
    /// tries again: so it is called often, and starts nothing that runs already. It is called with `false` once there
    /// has been no client for that time. It must not block. Off by default.
    pub fn on_demand(mut self, idle: Duration, control: impl FnMut(bool) + 'static) -> Proxy {
        self.hold.demand = Some(Demand { idle, control: Box::new(control) });
        self
    }

    /// How many connections its upstreams have, to be counted together with those of other proxies.
    pub fn counts(&self) -> UpstreamCounts {
        self.upstreams.counts()
    }

    /// Counts the connections of its upstreams together with those of another proxy that has the same upstreams and
    /// routes, on another shard for example: [`Upstream::max_connections`](super::Upstream::max_connections) is then of
    /// all of them, and [`Balance::LeastConnections`](super::Balance) goes by what all have. To be called when
    /// upstreams and routes are set.
    ///
    /// ```
    /// use tidemill::services::{Proxy, Upstream};
    /// use tidemill::{Limits, Shards};
    ///
    /// let to: tidemill::Address = "127.0.0.1:5432".parse().unwrap();
    /// let proxy = move || {
    ///     Proxy::to_upstreams(vec![Upstream { max_connections: Some(20), ..Upstream::from(to.clone()) }])
    /// };
    /// let counts = proxy().counts();
    /// let shards = Shards::start(2, &Limits::default(), move |_, _| proxy().count_with(counts.clone()))?;
    /// # shards.shutdown(std::time::Duration::ZERO);
    /// # shards.join()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn count_with(mut self, counts: UpstreamCounts) -> Proxy {
        self.upstreams.count_with(counts);
        self
    }

    /// Sets [`SocketLimits::end_on_reset`] in [`limits`](Proxy::limits), and does the same where a connection has a
    /// fault or a mirror. Off by default.
    pub fn end_on_reset(self, on: bool) -> Proxy {
        Proxy { ends_on_reset: on, ..self }
    }

    /// Limits for what is passed on: an hour without a byte.
    pub fn limits(&self) -> SocketLimits {
        SocketLimits {
            idle: Some(Duration::from_secs(3_600)),
            end_on_reset: self.ends_on_reset,
            // In a pipe both directions are independent; so they are without one.
            read_when_full: self.relays.is_used(),
            ..SocketLimits::default()
        }
    }
}
