//! The `tidemill` command: arguments become limits and a service. It uses nothing but the crate's public API.

mod admin;
mod args;
mod backplane;
mod client;
mod generate;
mod load;
mod locked;
mod log_buffer;
mod log_filter;
mod observe;
mod on_demand;
mod reload;
mod self_loop;
mod serve;
mod shards;
mod shared_limits;
mod signals;
#[cfg(feature = "testing")]
mod step;
mod systemd;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};
use tidemill::framing::Framing;
use tidemill::services::{Chat, Echo, Frames, Proxy, ShardedRooms};
use tidemill::{AccessPolicy, KeepAlive, Reactor};

use args::config::Arguments;
use args::{Cli, Command, CommandError, OnReset};
use serve::ServeSetup;
use shards::OnShard;

/// The exit code for wrong options, as most commands have it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        log_buffer::flush();
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
        print_error(&format!("this is a bug in tidemill, please report it{}", place.unwrap_or_default()));
    }));
    let arguments = match Arguments::read(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(text) => {
            print_error(&text);
            return ExitCode::from(USAGE);
        }
    };
    let cli = match Cli::try_parse_from(&arguments.words) {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error, &arguments),
    };
    let threads = cli.command.server().is_some_and(|server| server.shards.count() > 1);
    log_filter::init(cli.command.log_format(), threads);
    // The servers install handlers of their own.
    let has_handlers = cli.command.server().is_some();
    if let Err(error) = signals::prepare(has_handlers) {
        log::warn!("signals stay as they were when the process started: {error}");
    }
    match run(cli.command, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandError::Usage(text)) => {
            print_error(&arguments.place(&text));
            ExitCode::from(USAGE)
        }
        Err(CommandError::Run(text)) => {
            print_error(&text);
            ExitCode::FAILURE
        }
        Err(CommandError::Interrupted(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
    }
}

fn run(command: Command, arguments: &Arguments) -> Result<(), CommandError> {
    match command {
        Command::Echo { raw, server } => {
            let echo = if raw { Echo::raw() } else { Echo::new() };
            shards::serve(move |_| echo, echo.limits(), ServeSetup::plain(&server)?, &server, arguments)
        }
        Command::Chat { backplane, server, messages } => {
            let max_line = messages.max_length();
            let chat = move || max_line.map_or(Chat::new(), |bytes| Chat::new().max_line(bytes));
            chat_with(chat, &backplane, &server, arguments)
        }
        Command::Frames { framing, server, messages } => {
            let framing = match (messages.max_length(), framing) {
                (None, framing) => framing,
                (Some(_), Framing::Fixed(_) | Framing::Raw) => {
                    let why = "--max-message is for framings whose messages differ in length, not for fixed:N and raw";
                    return Err(CommandError::Usage(why.to_string()));
                }
                (Some(bytes), framing) if header_max(&framing).is_some_and(|max| bytes > max) => {
                    let max = header_max(&framing).unwrap_or(0);
                    return Err(CommandError::Usage(format!(
                        "--max-message of {bytes} bytes has no effect: the length of this framing is at most {max}"
                    )));
                }
                (Some(bytes), framing) => framing.max(bytes),
            };
            let limits = Frames::new(framing.clone()).limits();
            let make = move |_: OnShard<'_, Frames>| Frames::new(framing.clone());
            shards::serve(make, limits, ServeSetup::plain(&server)?, &server, arguments)
        }
        Command::Proxy { upstreams: options, server } => proxy(Arc::from(options), &server, arguments),
        Command::Load(options) => load::load(&options),
        Command::Connect(options) => client::connect(&options),
        #[cfg(feature = "testing")]
        Command::Step(options) => step::step(&options),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { dir } => generate::man_pages(&dir),
    }
}

/// The longest message that the length field of a framing can state, where it is less than memory allows.
fn header_max(framing: &Framing) -> Option<usize> {
    let name = framing.to_string();
    let (name, own) = name.strip_suffix(":self").map_or((&*name, 0), |name| (name, 1));
    match name {
        "u8" => Some(255 - own),
        "u16be" | "u16le" => Some(65_535 - 2 * own),
        "u24be" | "u24le" => Some(16_777_215 - 3 * own),
        _ => None,
    }
}

fn chat_with(
    chat: impl Fn() -> Chat + Send + Sync + 'static,
    options: &args::BackplaneArgs,
    server: &args::ServerArgs,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let limits = chat().limits();
    let shards = server.shards.count();
    let (mut setup, mut everywhere) = (ServeSetup::plain(server)?, None);
    if let Some((broker, tls)) = options.broker()? {
        let (stream, name) = options.names();
        let (rooms, pending) = backplane::connect(broker, stream, name, shards);
        everywhere = Some(rooms);
        setup.upstream_tls = tls.map(|tls| (tls, options.upstream_tls()));
        let add = |reactor: &mut Reactor| (pending.add(reactor), "Backplane");
        setup.beside.push(serve::Beside { connections: backplane::CONNECTIONS, add: Box::new(add) });
    }
    let sharded = ShardedRooms::new(shards);
    let make = move |shard: OnShard<'_, Chat>| {
        let number = shard.map_or(0, |(number, _)| number);
        let post = shard.map(|(_, peers)| -> backplane::Post {
            let peers = peers.clone();
            Arc::new(move |shard, work| peers.post(shard, work).map_err(|refused| refused.kind()))
        });
        // Lines of other processes come first: each of both has its turn when members have drained.
        let chat = match &everywhere {
            Some(rooms) => rooms.join(number, chat(), post.clone()),
            None => chat(),
        };
        match post {
            Some(post) => chat.elsewhere(sharded.on_shard(number, move |shard, work| post(shard, work))),
            None => chat,
        }
    };
    shards::serve(make, limits, setup, server, arguments)
}

fn proxy(
    options: Arc<args::ProxyArgs>,
    server: &args::ServerArgs,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    options.check(server.tls.is_on()).map_err(CommandError::Usage)?;
    let upstream_tls = options.tls.client().map_err(CommandError::Run)?;
    let tls = server.tls.server().map_err(CommandError::Run)?;
    // A PROXY header comes before the handshake, and a route is chosen by its first message: the proxy handles both.
    let behind_something = !options.proxy_protocol_in.is_empty() || !options.route.is_empty();
    let client_filter = tls.as_ref().filter(|_| behind_something).map(|tls| tls.filter_config());
    let upstream_filter = upstream_tls.as_ref().map(|tls| tls.filter_config());
    let seed = options.fault_seed.unwrap_or_else(draw_seed);
    if !options.fault.is_empty() {
        log::info!("faults of seed {seed}; --fault-seed {seed} repeats them");
    }
    let (made_from, keep_alive) = (options.clone(), server.keep_alive());
    let upstream = options.on_demand.clone().map(on_demand::SharedUpstream::new);
    let counts = make_proxy(&options, keep_alive, seed).counts();
    let make = move |shard: OnShard<'_, Proxy>| {
        let number = shard.map_or(0, |(number, _)| number);
        let mut proxy =
            make_proxy(&made_from, keep_alive, seed.wrapping_add(number as u64)).count_with(counts.clone());
        if let Some(upstream) = upstream.clone() {
            let control = move |is_needed| upstream.control(number, is_needed);
            proxy = proxy.on_demand(made_from.on_demand_idle(), control);
        }
        proxy.filter_clients(client_filter.clone()).filter_upstreams(upstream_filter.clone())
    };
    let limits = make(None).limits();
    let exempt = options.proxy_protocol_in.clone();
    let guard = AccessPolicy { per_address: Some(100), exempt, ..AccessPolicy::default() };
    let upstreams = options.to.iter().chain(options.route.iter().map(|(_, upstream)| upstream));
    let setup = ServeSetup {
        access_policy: guard,
        upstreams: upstreams.map(|upstream| upstream.to.clone()).chain(options.mirror.clone()).collect(),
        tls,
        listeners_filter: !behind_something,
        upstream_tls: upstream_tls.map(|tls| (tls, options.tls.clone())),
        beside: Vec::new(),
        // Text in the middle of another protocol would be read as a part of it.
        busy_reply: "",
    };
    shards::serve(make, limits, setup, server, arguments)
}

fn make_proxy(options: &args::ProxyArgs, keep_alive: Option<KeepAlive>, seed: u64) -> Proxy {
    let mut proxy = Proxy::to_upstreams(options.to.clone())
        .balance(options.balance)
        .keep_alive(keep_alive)
        .accept_header_from(options.proxy_protocol_in.clone())
        .send_header(options.proxy_protocol_out)
        .connect_timeout(options.connect_timeout.0.unwrap_or_default())
        .check_every(options.check_every.0)
        .end_on_reset(options.on_reset == OnReset::End)
        .mirror(options.mirror.clone())
        .hold(options.hold());
    for args::FaultArg { to, faults } in &options.fault {
        proxy = proxy.fault(to.clone(), faults.clone());
    }
    if !options.fault.is_empty() {
        proxy = proxy.fault_seed(seed);
    }
    if !options.route.is_empty() {
        proxy = proxy.route_tls(options.route.clone());
    }
    proxy
}

/// A seed that differs from run to run: the keys of a hash map are random.
fn draw_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Short enough to be typed.
    RandomState::new().hash_one(0) >> 32
}

/// Prints what clap says: help as it is, an error as one line.
fn usage_error(error: &clap::Error, arguments: &Arguments) -> ExitCode {
    if !error.use_stderr() {
        return match error.print() {
            // A closed pipe is the reader's decision, not an error.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                print_error(&format!("cannot write to stdout: {error}"));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        };
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(USAGE);
    }
    let asked = std::env::args_os().nth(1).and_then(|word| word.into_string().ok());
    let asked = asked.filter(|word| Cli::command().find_subcommand(word).is_some());
    let help = asked.map_or("tidemill --help".to_string(), |command| format!("tidemill {command} --help"));
    print_error(&format!("{}; see '{help}'", arguments.place(&args::sentence(error))));
    ExitCode::from(USAGE)
}

/// One line on stderr, which may be closed.
fn print_error(text: &str) {
    let _ = writeln!(std::io::stderr(), "tidemill: {text}");
}
