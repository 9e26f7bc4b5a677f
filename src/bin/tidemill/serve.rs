//! Runs a service: descriptors, listeners, signals, and the last word in the log.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidemill::tls::Server;
use tidemill::{
    Address, Closed, Guard, Handle, Limits, ListenOptions, Reactor, Refusal, Rules, Service, SocketLimits,
    Stats, Verdict,
};

use crate::args::tls::Shown;
use crate::args::{Failure, Server as Options};

/// What a service wants of its house beside the limits of its connections.
pub struct House {
    pub guard: Guard,
    /// Whom each connection will have dialed for it.
    pub dials_to: Vec<Address>,
    /// What is shown of TLS, where it was read already, and whether the listeners show it: else the service does.
    pub shown: Option<Server>,
    pub secures_door: bool,
}

impl House {
    /// One whose listeners secure those who come, if that was asked for.
    fn plain(options: &Options) -> Result<House, Failure> {
        let shown = options.tls.server().map_err(Failure::Run)?;
        Ok(House { guard: Guard::default(), dials_to: Vec::new(), shown, secures_door: true })
    }
}

/// Serves until a signal comes. `usual` are the limits that the service brings along.
pub fn serve<S: Service>(service: S, usual: SocketLimits, options: &Options) -> Result<(), Failure> {
    let house = House::plain(options)?;
    serve_as(service, usual, house, options)
}

pub fn serve_as<S: Service>(
    service: S,
    usual: SocketLimits,
    house: House,
    options: &Options,
) -> Result<(), Failure> {
    let mut limits = options.socket_limits(usual).map_err(Failure::Usage)?;
    let most = options.limits(descriptors());
    tell_limits(&most);
    let failed = |error: std::io::Error| Failure::Run(error.to_string());
    let mut reactor = Reactor::new(most).map_err(failed)?;
    if let Some(rate) = options.total_rate() {
        limits.group = Some(reactor.sockets().group(rate).map_err(failed)?);
    }
    let service = reactor.add_with(service, limits);
    reactor.guard(service, options.guard(house.guard));
    let secure = house.shown.as_ref().filter(|_| house.secures_door).map(Server::security);
    let listen = ListenOptions { dials: !house.dials_to.is_empty(), secure, ..options.listen_options() };
    // Before anyone can wait for the start line and then send a signal.
    heed_signals(reactor.handle(), options.drain()).map_err(failed)?;
    if let Some(shown) = house.shown {
        heed_reload(shown, options.tls.clone()).map_err(failed)?;
    }
    let mut listening = Vec::new();
    for address in &options.listen {
        let listener = reactor.listen_with(address, service, &listen).map_err(failed)?;
        listening.extend(reactor.local_addr(listener));
    }
    for to in &house.dials_to {
        refuse_self(to, &listening)?;
    }
    listening.iter().for_each(announce);
    reactor.run().map_err(failed)?;
    tell_rules(reactor.rules(service));
    tell_stats(&reactor.stats());
    Ok(())
}

/// A proxy to itself would call itself until the house is full.
fn refuse_self(to: &Address, listening: &[Address]) -> Result<(), Failure> {
    // One that is not found now may be found later, and cannot be us.
    let targets: Vec<SocketAddr> = to.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    let is_ours = |ip: IpAddr| TcpListener::bind((ip, 0)).is_ok();
    let same = listening.iter().find(|own| match own.inet() {
        None => *own == to,
        Some(own) => targets.iter().any(|target| {
            let everywhere = own.ip().is_unspecified() && is_ours(target.ip());
            target.port() == own.port()
                && (target.ip().to_canonical() == own.ip().to_canonical() || everywhere)
        }),
    });
    match same {
        None => Ok(()),
        Some(own) => {
            Err(Failure::Run(format!("cannot proxy to {to}: that is {own}, where this proxy itself listens")))
        }
    }
}

/// How many descriptors the process may open, after asking for as many as it is ever allowed.
pub fn descriptors() -> usize {
    let before = getrlimit(Resource::Nofile);
    // macOS has no limit here but refuses to be told so; then what was there before stays.
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { before };
    now.current.map_or(1 << 20, |most| usize::try_from(most).unwrap_or(usize::MAX).min(1 << 20))
}

fn tell_limits(limits: &Limits) {
    let (connections, memory) = (limits.connections, ByteSize(limits.memory as u64));
    log::info!("at most {connections} connections and {memory} in buffers");
}

/// The one thing that is said on stdout, for people and scripts to wait for. Nobody may be listening to it.
fn announce(address: &Address) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
}

/// The first signal drains, the second ends at once with the exit code that shells give a process killed by it.
fn heed_signals(handle: Handle, drain: Duration) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let waits = thread::Builder::new().name("signals".into());
    waits.spawn(move || {
        let mut draining = false;
        for signal in signals.forever() {
            if draining {
                log::info!("a second signal: ending at once");
                std::process::exit(128 + signal);
            }
            draining = true;
            log::info!("closing the listeners; connections may end within {drain:?}");
            if handle.post(move |sockets| sockets.shutdown(drain)).is_err() {
                return; // The loop has ended already.
            }
        }
    })?;
    Ok(())
}

/// SIGHUP has the certificates read again. What is wrong with the new ones is no reason to lose the old ones.
fn heed_reload(shown: Server, options: Shown) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    let waits = thread::Builder::new().name("reload".into());
    waits.spawn(move || {
        for _ in signals.forever() {
            let read = options.read().and_then(|read| shown.replace(read).map_err(|error| error.to_string()));
            match read {
                Ok(()) => log::info!("the certificates were read again, and are shown to whoever comes now"),
                Err(why) => log::error!("{why}; the certificates of before are still shown"),
            }
        }
    })?;
    Ok(())
}

/// How often each rule of the door has decided.
fn tell_rules(rules: Option<&Rules>) {
    for rule in rules.into_iter().flat_map(Rules::iter) {
        let what = if rule.verdict == Verdict::Allow { "allow" } else { "deny" };
        log::info!("{what} {} decided {} times", rule.range, rule.hits);
    }
}

fn tell_stats(stats: &Stats) {
    let counted = |words: &[&str], counts: &[u64], before: &str| -> String {
        let some = words.iter().zip(counts).filter(|(_, count)| **count > 0);
        some.map(|(word, count)| format!(" {before}{word}={count}")).collect()
    };
    let ends = counted(&Closed::WORDS, &stats.closed, "");
    let refusals = counted(&Refusal::WORDS, &stats.refused_for, "refused-");
    let dry = counted(&Refusal::WORDS, &stats.would_refuse, "would-refuse-");
    let waits = counted(
        &["throttled", "would-throttle", "handshakes", "handshakes-delayed"],
        &[stats.throttled, stats.would_throttle, stats.handshakes, stats.handshakes_delayed],
        "",
    );
    let Stats { accepted, refused, shed, bytes_in, bytes_out, .. } = stats;
    log::info!(
        "accepted={accepted} refused={refused} shed={shed} in={bytes_in} out={bytes_out}{ends}{refusals}{dry}{waits}"
    );
}
