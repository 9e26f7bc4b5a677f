//! Runs a service: descriptors, listeners, and the last lines of the log.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidemill::tls::{Client, Server};
use tidemill::{
    AccessPolicy, Action, Address, CloseReason, Handle, Limits, ListenError, ListenOptions, Reactor, Refusal,
    Rules, Service, ServiceId, SocketLimits, Stats,
};

use crate::admin::{self, Loops, Turns};
use crate::args::config::Arguments;
use crate::args::tls::UpstreamTlsArgs;
use crate::args::values::ListenArg;
use crate::args::{CommandError, ServerArgs as Options};
use crate::log_buffer::{self, Collecting};
use crate::observe::{self, Ask, Reopen, Watchers};
use crate::reload::{self, Change, Place, Running, Share};
use crate::self_loop::check_upstreams;
use crate::shared_limits::{self, Cap};
use crate::signals;
use crate::systemd::{self, Passed, PassedListener};

/// What a service needs from its reactor beside the limits of its connections.
pub struct ServeSetup {
    pub access_policy: AccessPolicy,
    /// The addresses that connections may be dialed to. Empty for services that do not dial.
    pub upstreams: Vec<Address>,
    /// The server side of TLS if it was asked for, and whether the listeners use it; otherwise the service does.
    pub tls: Option<Server>,
    pub listeners_filter: bool,
    /// The client side of TLS, and where it was read from.
    pub upstream_tls: Option<(Client, UpstreamTlsArgs)>,
    /// Services that this one needs.
    pub beside: Vec<Beside>,
    /// What a refused peer is sent unless --busy-reply says otherwise.
    pub busy_reply: &'static str,
}

/// A service beside that of the command, with connections of its own.
pub struct Beside {
    pub connections: usize,
    pub add: AddBeside,
}

/// Adds the service to a reactor that has the service of the command: the first one. Returns it with its name.
type AddBeside = Box<dyn FnOnce(&mut Reactor) -> (ServiceId, &'static str) + Send>;

impl ServeSetup {
    /// For a service whose listeners start TLS with each peer, if that was asked for.
    pub fn plain(options: &Options) -> Result<ServeSetup, CommandError> {
        Ok(ServeSetup {
            access_policy: AccessPolicy::default(),
            upstreams: Vec::new(),
            tls: options.tls.server().map_err(CommandError::Run)?,
            listeners_filter: true,
            upstream_tls: None,
            beside: Vec::new(),
            busy_reply: "server busy",
        })
    }
}

/// Serves until a signal comes. `usual` are the limits that the service brings along.
pub fn serve<S: Service>(
    service: S,
    usual: SocketLimits,
    mut setup: ServeSetup,
    options: &Options,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let Some(plan) = Plan::new(&usual, &setup, options)? else { return Ok(()) };
    let Plan { passed, limits, max, extra, dials, shared_limits } = plan;
    let connections = max.connections;
    let mut reactor = Reactor::new(Limits { connections: connections + extra, ..max }).map_err(failed)?;
    let group = shared_limits.add_group(&mut reactor, options.total_rate()).map_err(failed)?;
    let service = reactor.add_with(service, SocketLimits { group, ..limits });
    let mut names = HashMap::from([(service.id(), service_name::<S>())]);
    names.extend(setup.beside.drain(..).map(|beside| (beside.add)(&mut reactor)));
    let cap = shared_limits.cap();
    names.extend(shared_limits.add(&mut reactor, shared_limits::on_one_loop(service.id(), group)));
    let watchers = Watchers::new(&options.observe, 1);
    let reopen = watchers.reopen.clone();
    watchers.observe(0, &mut reactor, &names, Vec::new()).map_err(CommandError::Run)?;
    // Scrapes take none of the connections of the server, and the other way round.
    let own = shared_limits::max_connections(cap.as_deref(), connections, extra > 0);
    let policy = options.access_policy(setup.access_policy.clone());
    reactor.set_access_policy(service, AccessPolicy { connections: own, ..policy });
    log_default_action(reactor.rules(service));
    let filter = setup.tls.as_ref().filter(|_| setup.listeners_filter).map(Server::filter_config);
    let listen = ListenOptions { reserve_slot: dials, filter, ..options.listen_options(setup.busy_reply) };
    // Before the start line, because a script may send a signal as soon as it has read that.
    let drain = Arc::new(Mutex::new(options.drain()));
    drain_on_signal(Arc::clone(&drain), reactor.handle()).map_err(failed)?;
    let upstreams = setup.upstreams.clone();
    let place = Place { service: service.id(), name: service_name::<S>(), group, share: Share::WHOLE };
    let running = running(setup, usual, options, arguments, (connections, extra > 0, cap), drain, reopen);
    let running = Arc::new(Mutex::new(running));
    let handle = reactor.handle();
    let apply = move |change: Change, text: String| {
        // It fails when the loop has ended already.
        let _ = handle.post(move |sockets| {
            change.apply(place, sockets);
            log::info!("SIGHUP: {text}");
        });
    };
    reload::on_hangup(Arc::clone(&running), apply).map_err(failed)?;
    if let Some(at) = &options.observe.admin {
        let handle = reactor.handle();
        let ask: Ask = Box::new(move |work| handle.post_to(service, |it, sockets| work(it, sockets)).is_ok());
        let turns = Turns::of(1);
        reactor.observe(turns[0].recorder());
        let loops = Loops { places: Arc::new(Mutex::new(vec![place])), asks: vec![ask], names, turns };
        admin::serve(&mut reactor, at, loops, running).map_err(CommandError::Run)?;
    }
    systemd::notify(&mut reactor, Vec::new());
    let mut listens = ListensHere { reactor: &mut reactor, service: service.id() };
    let listening = listen_at(&mut listens, (&options.listen, passed), &listen)?;
    let handle = reactor.handle();
    // It fails when the loop has ended already.
    let stop = move || drop(handle.post(|sockets| sockets.stop()));
    let self_loop = check_upstreams(&upstreams, &listening, stop)?;
    listening.iter().for_each(announce);
    systemd::ready();
    run(&mut reactor).map_err(failed)?;
    log_rules(reactor.rules(service));
    log_stats(&reactor.stats());
    self_loop.get().map_or(Ok(()), |error| Err(CommandError::Run(error.clone())))
}

pub fn failed(error: io::Error) -> CommandError {
    CommandError::Run(error.to_string())
}

/// What the options come to, before there is a loop.
pub struct Plan {
    pub passed: VecDeque<Passed>,
    pub limits: SocketLimits,
    /// Of the process.
    pub max: Limits,
    /// Connections of the reactor beside those of the server.
    pub extra: usize,
    pub dials: bool,
    /// A rate that other processes share.
    pub shared_limits: shared_limits::Pending,
}

impl Plan {
    /// None after --check, which has its answer then.
    pub fn new(
        usual: &SocketLimits,
        setup: &ServeSetup,
        options: &Options,
    ) -> Result<Option<Plan>, CommandError> {
        let dials = !setup.upstreams.is_empty();
        // Before any thread is started.
        let passed = systemd::passed().map_err(CommandError::Run)?;
        options.check(dials).map_err(CommandError::Usage)?;
        let limits = options.socket_limits(usual.clone()).map_err(CommandError::Usage)?;
        let extra = observe::extra_connections(&options.observe)
            + options.observe.admin.as_ref().map_or(0, |_| admin::CONNECTIONS)
            + setup.beside.iter().map(|beside| beside.connections).sum::<usize>()
            + options.shared_connections();
        let of_shards = options.shards.descriptors();
        let max = options.limits(descriptors().saturating_sub(extra + of_shards));
        room_for_a_pair(dials, &max)?;
        let shared_limits = options.shared_limits()?;
        if options.config.check {
            write_line("the options are right")?;
            return Ok(None);
        }
        log_limits(&max);
        Ok(Some(Plan { passed, limits, max, extra, dials, shared_limits }))
    }
}

/// The first signal shuts the loop down.
fn drain_on_signal(drain: Arc<Mutex<Duration>>, handle: Handle) -> io::Result<()> {
    signals::drain_on_signal(drain, move |drain| {
        let posted = handle.post(move |sockets| {
            signals::log_shutdown(signals::end_checks(sockets), drain);
            sockets.shutdown(drain);
        });
        posted.is_ok()
    })
}

/// What a running server is, for SIGHUP. `connections` are those that it has slots for, and whether it has further ones
/// for another service.
pub fn running(
    setup: ServeSetup,
    usual_limits: SocketLimits,
    options: &Options,
    arguments: &Arguments,
    connections: (usize, bool, Option<Arc<Cap>>),
    drain: Arc<Mutex<Duration>>,
    reopen: Vec<Reopen>,
) -> Running {
    Running {
        started: arguments.clone(),
        arguments: arguments.clone(),
        usual_limits,
        dials: !setup.upstreams.is_empty(),
        usual_policy: setup.access_policy,
        has_group: options.total_rate().is_some() && !options.shared.are_shared(),
        connections: connections.0,
        max_connections: options.max_connections(),
        shares: connections.1,
        cap: connections.2,
        drain,
        tls: setup.tls.map(|tls| (tls, options.tls.clone())),
        upstream_tls: setup.upstream_tls,
        reopen,
    }
}

/// A proxied connection is two.
fn room_for_a_pair(dials: bool, max: &Limits) -> Result<(), CommandError> {
    if !dials || max.connections >= 2 {
        return Ok(());
    }
    let what = "a proxied connection takes two of --max-connections, and only 1 is allowed";
    Err(CommandError::Usage(format!("{what} by it or by the limit of descriptors (ulimit -n)")))
}

/// What connections are accepted with: a reactor, or shards.
pub trait Listens {
    fn listen(&mut self, at: &Address, options: &ListenOptions) -> Result<Address, ListenError>;
    fn adopt(&mut self, socket: PassedListener, options: &ListenOptions) -> Result<Address, ListenError>;
}

/// A reactor that listens for a service.
struct ListensHere<'a> {
    reactor: &'a mut Reactor,
    service: ServiceId,
}

impl Listens for ListensHere<'_> {
    fn listen(&mut self, at: &Address, options: &ListenOptions) -> Result<Address, ListenError> {
        let listener = self.reactor.listen_with(at, self.service, options)?;
        Ok(self.reactor.local_addr(listener).unwrap_or_else(|| at.clone()))
    }

    fn adopt(&mut self, socket: PassedListener, options: &ListenOptions) -> Result<Address, ListenError> {
        let listener = match socket {
            PassedListener::Tcp(socket) => self.reactor.adopt(socket, self.service, options),
            PassedListener::Unix(socket) => self.reactor.adopt(socket, self.service, options),
        }?;
        Ok(self.reactor.local_addr(listener).unwrap_or(Address::Unnamed))
    }
}

/// Listens on all addresses that were asked for, and on the sockets that systemd has passed. Returns the addresses.
pub fn listen_at(
    listens: &mut impl Listens,
    (wanted, mut passed): (&[ListenArg], VecDeque<Passed>),
    options: &ListenOptions,
) -> Result<Vec<Address>, CommandError> {
    let usual = match passed.is_empty() {
        true => ListenArg::At(Address::Inet(SocketAddr::from(([127, 0, 0, 1], 9001)))),
        false => ListenArg::Systemd(None),
    };
    let wanted = if wanted.is_empty() { std::slice::from_ref(&usual) } else { wanted };
    let at = |one: &ListenArg| if let ListenArg::At(address) = one { Some(address.clone()) } else { None };
    let addresses: Vec<Address> = wanted.iter().filter_map(at).collect();
    let mut listening = Vec::new();
    for address in &addresses {
        let ipv6_only = leaves_ipv4(address, &addresses).then_some(true);
        let listener = listens.listen(address, &ListenOptions { ipv6_only, ..options.clone() });
        let listener =
            listener.map_err(|error| CommandError::Run(cannot_listen(address, &listening, &error)))?;
        listening.push(listener);
    }
    // Names first: what they leave is for a `systemd` without one.
    let mut names: Vec<Option<&str>> = wanted.iter().filter_map(ListenArg::passed).collect();
    names.sort_by_key(Option::is_none);
    for name in names {
        let chosen = systemd::take(&mut passed, name).map_err(CommandError::Run)?;
        for one in chosen {
            let failed = |error: ListenError| CommandError::Run(format!("socket {}: {error}", one.name));
            listening.push(listens.adopt(one.listener, options).map_err(failed)?);
        }
    }
    for one in passed {
        log::warn!(
            "the socket {} that systemd has passed is not used: no --listen systemd names it",
            one.name
        );
    }
    Ok(listening)
}

/// As [`Reactor::run`], but writes what was logged in a turn with one call.
fn run(reactor: &mut Reactor) -> io::Result<()> {
    let _collecting = Collecting::start();
    while !reactor.is_finished() {
        reactor.turn(None)?;
        log_buffer::flush();
    }
    Ok(())
}

/// The name of a service for people, such as `Echo`: that of its type.
pub fn service_name<S>() -> &'static str {
    std::any::type_name::<S>().rsplit("::").next().unwrap_or("service")
}

/// Whether a listener on all addresses, `[::]:P`, leaves IPv4 to another of this server: to `0.0.0.0:P`, for example.
/// Without IPV6_V6ONLY it would take the port of IPv4 too.
fn leaves_ipv4(address: &Address, all: &[Address]) -> bool {
    let ipv4 =
        |other: &Address, port| other.inet().is_some_and(|other| other.is_ipv4() && other.port() == port);
    address.inet().is_some_and(|address| {
        let port = address.port();
        address.is_ipv6()
            && address.ip().is_unspecified()
            && port != 0
            && all.iter().any(|other| ipv4(other, port))
    })
}

/// An address that this process itself has taken is not taken by "another process".
fn cannot_listen(at: &Address, listening: &[Address], error: &ListenError) -> String {
    let taken = |own: &&Address| {
        let (Some(at), Some(own)) = (at.inet(), own.inet()) else { return at == *own };
        // A listener on [::] also takes the port of IPv4, unless net.ipv6.bindv6only is set.
        at.port() == own.port()
            && (at.ip() == own.ip() || own.ip().is_unspecified() || at.ip().is_unspecified())
    };
    match listening.iter().find(taken).filter(|_| error.kind() == io::ErrorKind::AddrInUse) {
        Some(own) if own == at => format!("cannot listen on {at}: --listen names it twice"),
        Some(own) => {
            format!("cannot listen on {at}: this server listens on {own} already, which includes it")
        }
        None => error.to_string(),
    }
}

/// How many descriptors the process may open beside those it was started with, after asking for as many as it is ever
/// allowed.
pub fn descriptors() -> usize {
    // The three standard streams are among those that `Limits::for_descriptors` sets aside; the folder itself is open.
    let inherited = std::fs::read_dir("/dev/fd").map_or(0, |open| open.count().saturating_sub(4));
    let before = getrlimit(Resource::Nofile);
    // macOS reports no limit but refuses to set it; then the limit stays as it was.
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { before };
    let max = now.current.map_or(1 << 20, |max| usize::try_from(max).unwrap_or(usize::MAX).min(1 << 20));
    max.saturating_sub(inherited)
}

fn log_limits(limits: &Limits) {
    let (connections, memory) = (limits.connections, ByteSize(limits.memory as u64));
    let plural = if connections == 1 { "" } else { "s" };
    log::info!("at most {connections} connection{plural} and {memory} in buffers");
}

/// The answer of --check.
fn write_line(text: &str) -> Result<(), CommandError> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    written.map_err(|error| CommandError::Run(format!("cannot write to stdout: {error}")))
}

/// The only line on stdout, for scripts to wait for. stdout may be closed.
pub fn announce(address: &Address) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
}

/// What happens to addresses that no rule covers is easily overlooked.
pub fn log_default_action(rules: Option<&Rules>) {
    if let Some(last) = rules.and_then(|rules| rules.iter().last()) {
        let (what, option) = match last.action {
            Action::Allow => ("refused", "--allow"),
            Action::Deny(_) => ("allowed", "--deny"),
        };
        log::info!("addresses in no rule are {what}: the last rule is {option}");
    }
}

/// How often each access rule has decided.
pub fn log_rules(rules: Option<&Rules>) {
    for rule in rules.into_iter().flat_map(Rules::iter) {
        let what = if rule.action == Action::Allow { "allow" } else { "deny" };
        let times = if rule.hits == 1 { "time" } else { "times" };
        log::info!("rule {what} {} matched {} {times}", rule.range, rule.hits);
    }
}

pub fn log_stats(stats: &Stats) {
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
    // The reasons count dialed connections too: upstreams, attempts and checks.
    let dialed = if stats.dialed > 0 { format!(" dialed={}", stats.dialed) } else { String::new() };
    log::info!(
        "accepted={accepted}{dialed} refused={refused} shed={shed} in={bytes_in} out={bytes_out}{ends}{refusals}{dry}\
         {waits}"
    );
}
