//! Runs a service: descriptors, listeners, and the last lines of the log.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidemill::tls::{Client, Server};
use tidemill::{
    AccessPolicy, Action, Address, CloseReason, Handle, Limits, ListenError, ListenOptions, Reactor, Refusal,
    Rules, Service, ServiceId, SocketLimits, Stats,
};

use crate::admin;
use crate::args::config::Arguments;
use crate::args::tls::UpstreamTlsArgs;
use crate::args::values::ListenArg;
use crate::args::{CommandError, ServerArgs as Options};
use crate::log_buffer::{self, Collecting};
use crate::observe;
use crate::reload::{self, Running};
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
    /// A service that this one needs.
    pub beside: Option<Beside>,
    /// What a refused peer is sent unless --busy-reply says otherwise.
    pub busy_reply: &'static str,
}

/// A service beside that of the command, with connections of its own.
pub struct Beside {
    pub connections: usize,
    pub add: AddBeside,
}

/// Adds the service to a reactor that has the service of the command. Returns it with its name.
type AddBeside = Box<dyn FnOnce(&mut Reactor, ServiceId) -> Option<(ServiceId, &'static str)>>;

impl ServeSetup {
    /// For a service whose listeners start TLS with each peer, if that was asked for.
    pub fn plain(options: &Options) -> Result<ServeSetup, CommandError> {
        Ok(ServeSetup {
            access_policy: AccessPolicy::default(),
            upstreams: Vec::new(),
            tls: options.tls.server().map_err(CommandError::Run)?,
            listeners_filter: true,
            upstream_tls: None,
            beside: None,
            busy_reply: "server busy",
        })
    }
}

/// Serves until a signal comes. `usual` are the limits that the service brings along.
pub fn serve<S: Service>(
    service: S,
    usual: SocketLimits,
    options: &Options,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let setup = ServeSetup::plain(options)?;
    serve_as(service, usual, setup, options, arguments)
}

pub fn serve_as<S: Service>(
    service: S,
    mut usual: SocketLimits,
    setup: ServeSetup,
    options: &Options,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let dials = !setup.upstreams.is_empty();
    // Before any thread is started.
    let passed = systemd::passed().map_err(CommandError::Run)?;
    options.check(dials).map_err(CommandError::Usage)?;
    let limits = options.socket_limits(usual.clone()).map_err(CommandError::Usage)?;
    let extra = extra_connections(options, &setup);
    let max = options.limits(descriptors().saturating_sub(extra));
    let connections = max.connections;
    room_for_a_pair(dials, &max)?;
    if options.config.check {
        return write_line("the options are right");
    }
    log_limits(&max);
    let failed = |error: io::Error| CommandError::Run(error.to_string());
    let mut reactor = Reactor::new(Limits { connections: connections + extra, ..max }).map_err(failed)?;
    if let Some(rate) = options.total_rate() {
        usual.group = Some(reactor.sockets().add_group(rate).map_err(failed)?);
    }
    let service = reactor.add_with(service, SocketLimits { group: usual.group, ..limits });
    let mut names = HashMap::from([(service.id(), service_name::<S>())]);
    names.extend(setup.beside.and_then(|beside| (beside.add)(&mut reactor, service.id())));
    let reopen = observe::observe(&mut reactor, &names, &options.observe).map_err(CommandError::Run)?;
    // Scrapes take none of the connections of the server, and the other way round.
    let own = (extra > 0).then_some(connections);
    let policy = options.access_policy(setup.access_policy.clone());
    reactor.set_access_policy(service, AccessPolicy { connections: own, ..policy });
    log_default_action(reactor.rules(service));
    let filter = setup.tls.as_ref().filter(|_| setup.listeners_filter).map(Server::filter_config);
    let listen = ListenOptions { reserve_slot: dials, filter, ..options.listen_options(setup.busy_reply) };
    // Before the start line, because a script may send a signal as soon as it has read that.
    let drain = Arc::new(Mutex::new(options.drain()));
    signals::drain_on_signal(reactor.handle(), Arc::clone(&drain)).map_err(failed)?;
    let running = Running {
        started: arguments.clone(),
        arguments: arguments.clone(),
        service: service.id(),
        usual_limits: usual,
        usual_policy: setup.access_policy,
        connections,
        max_connections: options.max_connections(),
        shares: extra > 0,
        dials,
        drain,
        tls: setup.tls.map(|tls| (tls, options.tls.clone())),
        upstream_tls: setup.upstream_tls,
        reopen,
    };
    let running = Arc::new(Mutex::new(running));
    reload::on_hangup(Arc::clone(&running), reactor.handle()).map_err(failed)?;
    if let Some(at) = &options.observe.admin {
        let proxy = reactor.sockets().key(service.id());
        admin::serve(&mut reactor, at, names, running, proxy).map_err(CommandError::Run)?;
    }
    systemd::notify(&mut reactor);
    let listening = listen_at(&mut reactor, service.id(), (&options.listen, passed), &listen)?;
    let self_loop = check_upstreams(&setup.upstreams, &listening, reactor.handle())?;
    listening.iter().for_each(announce);
    systemd::ready();
    run(&mut reactor).map_err(failed)?;
    log_rules(reactor.rules(service));
    log_stats(&reactor.stats());
    self_loop.get().map_or(Ok(()), |error| Err(CommandError::Run(error.clone())))
}

/// Connections of services beside that of the command, which do not count as its own.
fn extra_connections(options: &Options, setup: &ServeSetup) -> usize {
    observe::extra_connections(&options.observe)
        + options.observe.admin.as_ref().map_or(0, |_| admin::CONNECTIONS)
        + setup.beside.as_ref().map_or(0, |beside| beside.connections)
}

/// A proxied connection is two.
fn room_for_a_pair(dials: bool, max: &Limits) -> Result<(), CommandError> {
    if !dials || max.connections >= 2 {
        return Ok(());
    }
    let what = "a proxied connection takes two of --max-connections, and only 1 is allowed";
    Err(CommandError::Usage(format!("{what} by it or by the limit of descriptors (ulimit -n)")))
}

/// None of the upstreams may be this server itself. Of names that are looked up later, the error is in the cell when
/// the server has stopped.
fn check_upstreams(
    upstreams: &[Address],
    listening: &[Address],
    handle: Handle,
) -> Result<Arc<OnceLock<String>>, CommandError> {
    for to in upstreams {
        refuse_self(to, listening).map_err(CommandError::Run)?;
    }
    let found = check_names(upstreams, listening, handle);
    let found = found.map_err(|error| CommandError::Run(error.to_string()))?;
    match found.get() {
        Some(error) => Err(CommandError::Run(error.clone())),
        None => Ok(found),
    }
}

/// Listens on all addresses that were asked for, and on the sockets that systemd has passed. Returns the addresses.
fn listen_at(
    reactor: &mut Reactor,
    service: ServiceId,
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
        let listener = reactor.listen_with(address, service, &ListenOptions { ipv6_only, ..options.clone() });
        let listener =
            listener.map_err(|error| CommandError::Run(cannot_listen(address, &listening, &error)))?;
        listening.extend(reactor.local_addr(listener));
    }
    // Names first: what they leave is for a `systemd` without one.
    let mut names: Vec<Option<&str>> = wanted.iter().filter_map(ListenArg::passed).collect();
    names.sort_by_key(Option::is_none);
    for name in names {
        let chosen = systemd::take(&mut passed, name).map_err(CommandError::Run)?;
        for one in chosen {
            let failed = |error: ListenError| CommandError::Run(format!("socket {}: {error}", one.name));
            let listener = match one.listener {
                PassedListener::Tcp(socket) => reactor.adopt(socket, service, options),
                PassedListener::Unix(socket) => reactor.adopt(socket, service, options),
            };
            listening.extend(reactor.local_addr(listener.map_err(failed)?));
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
fn service_name<S>() -> &'static str {
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

/// A proxy to itself would dial itself until the reactor is at capacity. Names are left to [`check_names`].
fn refuse_self(to: &Address, listening: &[Address]) -> Result<(), String> {
    match listening.iter().find(|own| is_same(to, own)) {
        None => Ok(()),
        Some(own) => Err(format!("cannot proxy to {to}: that is {own}, where this proxy itself listens")),
    }
}

/// Whether connecting to the one leads to the listener on the other.
fn is_same(to: &Address, own: &Address) -> bool {
    match (to, own) {
        (Address::Unix(to), Address::Unix(own)) => is_same_file(Path::new(to), Path::new(own)),
        _ => match (to.inet(), own.inet()) {
            (Some(to), Some(own)) => {
                to.port() == own.port() && reaches(to.ip().to_canonical(), own.ip().to_canonical())
            }
            (None, None) => to == own,
            _ => false,
        },
    }
}

/// Through symbolic links and `..`: both lead to the same socket file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    one == other || (id(one).is_some() && id(one) == id(other))
}

/// The unspecified address as a destination means this machine (Linux, BSD); as a listener's it means all addresses.
fn reaches(to: IpAddr, own: IpAddr) -> bool {
    let is_ours = |ip: IpAddr| ip.is_loopback() || TcpListener::bind((ip, 0)).is_ok();
    match (to.is_unspecified(), own.is_unspecified()) {
        (false, false) => to == own,
        (true, _) => own.is_unspecified() || own.is_loopback(),
        (false, true) => is_ours(to),
    }
}

/// A name that a hosts file or a cache has is resolved within this; one that takes longer must not delay the start.
const NAMES_WITHIN: Duration = Duration::from_millis(100);

/// Looks up the names of upstreams on a thread of its own, and stops the server if one turns out to be its own address.
/// The error is in the cell, at once or when the server has stopped.
fn check_names(
    upstreams: &[Address],
    listening: &[Address],
    handle: Handle,
) -> io::Result<Arc<OnceLock<String>>> {
    let found = Arc::new(OnceLock::new());
    let names: Vec<Address> =
        upstreams.iter().filter(|to| matches!(to, Address::Name { .. })).cloned().collect();
    if names.is_empty() {
        return Ok(found);
    }
    let (cell, listening) = (found.clone(), listening.to_vec());
    let (done, is_done) = mpsc::channel();
    thread::Builder::new().name("names".into()).spawn(move || {
        for name in &names {
            let is_own = |at| listening.iter().find(|own| is_same(&Address::Inet(at), own));
            let own = name.to_socket_addrs().ok().and_then(|mut all| all.find_map(is_own));
            if let Some(own) = own {
                let error = format!("cannot proxy to {name}: that is {own}, where this proxy itself listens");
                // The first one found is the one that is told.
                let _ = cell.set(error);
                // It fails when the loop has ended already.
                let _ = handle.post(|sockets| sockets.stop());
                break;
            }
        }
        // The receiver may have stopped waiting.
        let _ = done.send(());
    })?;
    // What is not known by then is found out while the server runs.
    let _ = is_done.recv_timeout(NAMES_WITHIN);
    Ok(found)
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
fn announce(address: &Address) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
}

/// What happens to addresses that no rule covers is easily overlooked.
fn log_default_action(rules: Option<&Rules>) {
    if let Some(last) = rules.and_then(|rules| rules.iter().last()) {
        let (what, option) = match last.action {
            Action::Allow => ("refused", "--allow"),
            Action::Deny(_) => ("allowed", "--deny"),
        };
        log::info!("addresses in no rule are {what}: the last rule is {option}");
    }
}

/// How often each access rule has decided.
fn log_rules(rules: Option<&Rules>) {
    for rule in rules.into_iter().flat_map(Rules::iter) {
        let what = if rule.action == Action::Allow { "allow" } else { "deny" };
        let times = if rule.hits == 1 { "time" } else { "times" };
        log::info!("rule {what} {} matched {} {times}", rule.range, rule.hits);
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
    // The reasons count dialed connections too: upstreams, attempts and checks.
    let dialed = if stats.dialed > 0 { format!(" dialed={}", stats.dialed) } else { String::new() };
    log::info!(
        "accepted={accepted}{dialed} refused={refused} shed={shed} in={bytes_in} out={bytes_out}{ends}{refusals}{dry}\
         {waits}"
    );
}
