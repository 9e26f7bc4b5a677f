//! The options of `proxy`.

use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tidemill::framing::proxy_header::HeaderVersion;
use tidemill::services::{Balance, RouteMatch, Upstream};
use tidemill::{Address, IpRange};

use super::fault::FaultArg;
use super::tls::UpstreamTlsArgs;
use super::values::{DurationArg, address, balance, range, upstream, version};

const PROXY: &str = "Proxy";
const FAULTS: &str = "Testing others";

#[derive(Args)]
pub struct ProxyArgs {
    /// Upstream, as ADDR[,weight=N][,max=N][,backup]; repeatable. One that cannot be connected is skipped for 10s.
    /// max: connections at once; backup: used while no other is up
    #[arg(long, value_name = "ADDR", required_unless_present = "route", value_parser = upstream,
          help_heading = PROXY)]
    pub to: Vec<Upstream>,
    /// Pass TLS clients on to this upstream without decrypting, as sni=NAME:ADDR[,max=N], sni=*.NAME:ADDR or
    /// alpn=PROTOCOL:ADDR; repeatable, the first route that matches decides. All others go to --to, or are closed
    /// without one. A client has 5s and 16KiB for its ClientHello
    #[arg(long, value_name = "MATCH:ADDR", value_parser = route, help_heading = PROXY)]
    pub route: Vec<(RouteMatch, Upstream)>,
    /// Choice of the upstream: round-robin, or least-connections in proportion to the weights
    #[arg(long, value_name = "HOW", default_value = "round-robin", hide_possible_values = true, requires = "to",
          value_parser = balance(), help_heading = PROXY)]
    pub balance: Balance,
    /// Time to connect, all attempts together
    #[arg(long, value_name = "TIME", default_value = "10s", help_heading = PROXY)]
    pub connect_timeout: DurationArg,
    /// Interval of health checks, if there are several upstreams; 0: none
    #[arg(long, value_name = "TIME", default_value = "5s", requires = "to", help_heading = PROXY)]
    pub check_every: DurationArg,
    /// When one side is cut off (reset, or TLS without close_notify): pass a reset on to the other side, or end it as
    /// if the stream were complete
    #[arg(long, value_name = "HOW", default_value = "pass", hide_possible_values = true, value_parser = on_reset(),
          help_heading = PROXY, hide_short_help = true)]
    pub on_reset: OnReset,
    /// Require a PROXY protocol header, version 1 or 2, from these addresses; repeatable
    #[arg(long, value_name = "RANGE", value_parser = range, help_heading = PROXY)]
    pub proxy_protocol_in: Vec<IpRange>,
    /// Send a PROXY protocol header to upstreams: v1 or v2
    #[arg(long, value_name = "VERSION", hide_possible_values = true, value_parser = version(), help_heading = PROXY)]
    pub proxy_protocol_out: Option<HeaderVersion>,
    /// Hold clients for up to this time while no upstream can be connected, instead of closing them: an upstream
    /// restarts. At most 1024 at once
    #[arg(long, value_name = "TIME", help_heading = PROXY, hide_short_help = true)]
    hold: Option<DurationArg>,
    /// Start the upstream by this command of the shell for the first client, and stop it by SIGTERM when there has been
    /// no client for --on-demand-idle. Clients are held meanwhile [default of --hold: 10s]
    #[arg(long, value_name = "COMMAND", help_heading = PROXY, hide_short_help = true)]
    pub on_demand: Option<String>,
    /// Time without a client after which the command of --on-demand is stopped
    #[arg(long, value_name = "TIME", default_value = "5min", requires = "on_demand", help_heading = PROXY,
          hide_short_help = true)]
    on_demand_idle: DurationArg,
    /// Faults of connections, as [up:|down:]ITEM,ITEM...; repeatable with to=ADDR for one upstream. latency=50ms±10ms:
    /// delay; rate=1MiB: bytes a second; split=100±50: pieces of so many bytes, gap=20ms apart; slow-close=1s: delay of
    /// the end. cut=0.1%, reset=1%@4KiB, stall=100%@5s: share of the connections that is ended, is reset, or gets
    /// nothing more through, at a random place or after so many bytes or so long
    #[arg(long, value_name = "ITEMS", help_heading = FAULTS, hide_short_help = true)]
    pub fault: Vec<FaultArg>,
    /// Repeat the faults that a run with this seed had. Without it one is drawn and logged
    #[arg(long, value_name = "N", requires = "fault", help_heading = FAULTS, hide_short_help = true)]
    pub fault_seed: Option<u64>,
    /// Send a copy of what clients say to this address, too, and drop what it answers. It is never waited for
    #[arg(long, value_name = "ADDR", value_parser = address, help_heading = FAULTS, hide_short_help = true)]
    pub mirror: Option<Address>,
    #[command(flatten)]
    pub tls: UpstreamTlsArgs,
}

/// What happens to the other side when one side of a connection is cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnReset {
    Pass,
    End,
}

fn on_reset() -> impl TypedValueParser<Value = OnReset> {
    PossibleValuesParser::new(["pass", "end"]).map(|how| match how.as_str() {
        "end" => OnReset::End,
        _ => OnReset::Pass,
    })
}

fn route(text: &str) -> Result<(RouteMatch, Upstream), String> {
    let (condition, to) =
        text.split_once(':').ok_or("an upstream is missing, as in sni=a.example:10.0.0.7:443")?;
    let condition = condition.parse().map_err(|error: tidemill::services::RouteError| error.to_string())?;
    let to = upstream(to)?;
    if to.weight != 1 || to.backup {
        return Err("a route has one upstream, so weight and backup have no effect".to_string());
    }
    Ok((condition, to))
}

impl ProxyArgs {
    /// How long clients are held while no upstream can be connected.
    pub fn hold(&self) -> Option<Duration> {
        let usual = self.on_demand.as_ref().map(|_| Duration::from_secs(10));
        self.hold.map_or(usual, |hold| hold.0)
    }

    /// After which time without a client an upstream that was started is stopped; it may be at once.
    pub fn on_demand_idle(&self) -> Duration {
        self.on_demand_idle.0.unwrap_or_default()
    }

    /// A route that can never decide is a mistake, and so is TLS for clients that no option leads anywhere.
    /// `decrypts` says whether clients without a route are served TLS.
    pub fn check(&self, decrypts: bool) -> Result<(), String> {
        for (n, (condition, to)) in self.route.iter().enumerate() {
            if let Some((first, _)) = self.route[..n].iter().find(|(first, _)| first.covers(condition)) {
                return Err(format!(
                    "--route {condition}:{} has no effect: {first} before it matches the same clients, and the first \
                     match decides",
                    to.to
                ));
            }
        }
        if decrypts && self.to.is_empty() {
            return Err(
                "--tls-cert has no effect without --to: clients of a --route are not decrypted".to_string()
            );
        }
        let mut faults = self.fault.iter().enumerate();
        if let Some((n, fault)) =
            faults.find(|(n, fault)| self.fault[..*n].iter().any(|one| one.to == fault.to))
        {
            let to = fault.to.as_ref().map_or("all upstreams".to_string(), |to| format!("to={to}"));
            return Err(format!(
                "--fault number {} is for {to}, as one before it is: write them as one",
                n + 1
            ));
        }
        let upstreams = || self.to.iter().chain(self.route.iter().map(|(_, upstream)| upstream));
        let unknown = |to: &&Address| upstreams().all(|upstream| upstream.to != **to);
        if let Some(to) = self.fault.iter().filter_map(|fault| fault.to.as_ref()).find(unknown) {
            return Err(format!("--fault to={to} has no effect: no --to or --route has this address"));
        }
        if self.on_demand.is_some() && self.hold().is_none() {
            return Err(
                "--on-demand needs --hold: its first client waits while the upstream starts".to_string()
            );
        }
        if self.connect_timeout.0.is_none() {
            return Err("--connect-timeout cannot be 0: a client would wait for ever".to_string());
        }
        Ok(())
    }
}
