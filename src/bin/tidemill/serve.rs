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
    AccessPolicy, Action, Address, CloseReason, Handle, Limits, ListenOptions, Reactor, Refusal, Rules,
    Service, SocketLimits, Sockets, Stats,
};

use crate::args::tls::ServerTlsArgs;
use crate::args::{CommandError, ServerArgs as Options};

/// What a service needs from its reactor beside the limits of its connections.
pub struct ServeSetup {
    pub access_policy: AccessPolicy,
    /// Whom each connection will have dialed for it.
    pub upstreams: Vec<Address>,
    /// What is shown of TLS, where it was read already, and whether the listeners show it: else the service does.
    pub tls: Option<Server>,
    pub listeners_filter: bool,
    /// Sent to each connection at shutdown, before it is closed. None: it may go on for as long as --drain.
    pub shutdown_notice: Option<&'static str>,
}

impl ServeSetup {
    /// One whose listeners secure those who come, if that was asked for.
    fn plain(options: &Options) -> Result<ServeSetup, CommandError> {
        let shown = options.tls.server().map_err(CommandError::Run)?;
        Ok(ServeSetup {
            access_policy: AccessPolicy::default(),
            upstreams: Vec::new(),
            tls: shown,
            listeners_filter: true,
            shutdown_notice: None,
        })
    }
}

/// Serves until a signal comes. `usual` are the limits that the service brings along.
pub fn serve<S: Service>(service: S, usual: SocketLimits, options: &Options) -> Result<(), CommandError> {
    let setup = ServeSetup::plain(options)?;
    serve_as(service, usual, setup, options)
}

/// Serves until a signal comes; then each connection is sent the notice and closed.
pub fn serve_with_notice<S: Service>(
    service: S,
    usual: SocketLimits,
    notice: &'static str,
    options: &Options,
) -> Result<(), CommandError> {
    let setup = ServeSetup { shutdown_notice: Some(notice), ..ServeSetup::plain(options)? };
    serve_as(service, usual, setup, options)
}

pub fn serve_as<S: Service>(
    service: S,
    usual: SocketLimits,
    setup: ServeSetup,
    options: &Options,
) -> Result<(), CommandError> {
    let mut limits = options.socket_limits(usual).map_err(CommandError::Usage)?;
    let max = options.limits(descriptors());
    log_limits(&max);
    let failed = |error: std::io::Error| CommandError::Run(error.to_string());
    let mut reactor = Reactor::new(max).map_err(failed)?;
    if let Some(rate) = options.total_rate() {
        limits.group = Some(reactor.sockets().add_group(rate).map_err(failed)?);
    }
    let service = reactor.add_with(service, limits);
    reactor.set_access_policy(service, options.access_policy(setup.access_policy));
    let filter = setup.tls.as_ref().filter(|_| setup.listeners_filter).map(Server::filter_config);
    let listen =
        ListenOptions { reserve_slot: !setup.upstreams.is_empty(), filter, ..options.listen_options() };
    // Before anyone can wait for the start line and then send a signal.
    handle_signals(reactor.handle(), options.drain(), setup.shutdown_notice).map_err(failed)?;
    if let Some(shown) = setup.tls {
        handle_reload(shown, options.tls.clone()).map_err(failed)?;
    }
    let mut listening = Vec::new();
    for address in &options.listen {
        let listener = reactor.listen_with(address, service, &listen).map_err(failed)?;
        listening.extend(reactor.local_addr(listener));
    }
    for to in &setup.upstreams {
        refuse_self(to, &listening)?;
    }
    listening.iter().for_each(announce);
    reactor.run().map_err(failed)?;
    log_rules(reactor.rules(service));
    log_stats(&reactor.stats());
    Ok(())
}

/// A proxy to itself would call itself until the reactor is at capacity.
fn refuse_self(to: &Address, listening: &[Address]) -> Result<(), CommandError> {
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
        Some(own) => Err(CommandError::Run(format!(
            "cannot proxy to {to}: that is {own}, where this proxy itself listens"
        ))),
    }
}

/// How many descriptors the process may open, after asking for as many as it is ever allowed.
pub fn descriptors() -> usize {
    let before = getrlimit(Resource::Nofile);
    // macOS has no limit here but refuses to be told so; then what was there before stays.
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { before };
    now.current.map_or(1 << 20, |max| usize::try_from(max).unwrap_or(usize::MAX).min(1 << 20))
}

fn log_limits(limits: &Limits) {
    let (connections, memory) = (limits.connections, ByteSize(limits.memory as u64));
    log::info!("at most {connections} connections and {memory} in buffers");
}

/// The one thing that is said on stdout, for people and scripts to wait for. Nobody may be listening to it.
fn announce(address: &Address) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
}

/// The first signal drains, the second ends at once with the exit code that shells give a process killed by it.
fn handle_signals(
    handle: Handle,
    drain: Duration,
    shutdown_notice: Option<&'static str>,
) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let waits = thread::Builder::new().name("signals".into());
    waits.spawn(move || {
        let mut draining = false;
        for signal in signals.forever() {
            if draining {
                log::info!("second signal: exiting at once");
                std::process::exit(128 + signal);
            }
            draining = true;
            log::info!("shutting down: listeners closed, connections have {drain:?} to end");
            let stop = move |sockets: &mut Sockets<'_>| {
                if let Some(notice) = shutdown_notice {
                    send_shutdown_notice(sockets, notice);
                }
                sockets.shutdown(drain);
            };
            if handle.post(stop).is_err() {
                return; // The loop has ended already.
            }
        }
    })?;
    Ok(())
}

fn send_shutdown_notice(sockets: &mut Sockets<'_>, notice: &str) {
    for id in sockets.ids() {
        if let Some(mut socket) = sockets.get(id) {
            socket.send(notice.as_bytes());
            socket.close();
        }
    }
}

/// SIGHUP has the certificates read again. What is wrong with the new ones is no reason to lose the old ones.
fn handle_reload(shown: Server, options: ServerTlsArgs) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    let waits = thread::Builder::new().name("reload".into());
    waits.spawn(move || {
        for _ in signals.forever() {
            let read = options.read().and_then(|read| shown.replace(read).map_err(|error| error.to_string()));
            match read {
                Ok(()) => log::info!("certificates reloaded, in use for new connections"),
                Err(why) => log::error!("{why}; keeping the previous certificates"),
            }
        }
    })?;
    Ok(())
}

/// How often each access rule has decided.
fn log_rules(rules: Option<&Rules>) {
    for rule in rules.into_iter().flat_map(Rules::iter) {
        let what = if rule.action == Action::Allow { "allow" } else { "deny" };
        log::info!("rule {what} {} matched {} times", rule.range, rule.hits);
    }
}

fn log_stats(stats: &Stats) {
    let counted = |words: &[&str], counts: &[u64], before: &str| -> String {
        let some = words.iter().zip(counts).filter(|(_, count)| **count > 0);
        some.map(|(word, count)| format!(" {before}{word}={count}")).collect()
    };
    let ends = counted(&CloseReason::WORDS, &stats.closed, "");
    let refusals = counted(&Refusal::WORDS, &stats.refused_by_reason, "refused-");
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
