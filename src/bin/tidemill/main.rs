//! The `tidemill` command: arguments become limits and a service. It uses nothing but the crate's public API.

mod args;
mod client;
mod load;
mod serve;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tidemill::AccessPolicy;
use tidemill::framing::Framing;
use tidemill::services::{Chat, Echo, Frames, Proxy};

use args::{Cli, Command, CommandError};

/// What the shell is told when options are wrong, as most commands do.
const USAGE: u8 = 2;

/// What the members of a chat are sent at shutdown, before they are closed.
const SHUTTING_DOWN: &str = "the server is shutting down\n";

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
        print_error(&format!("this is a bug in tidemill, please report it{}", place.unwrap_or_default()));
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandError::Usage(text)) => {
            print_error(&text);
            ExitCode::from(USAGE)
        }
        Err(CommandError::Run(text)) => {
            print_error(&text);
            ExitCode::FAILURE
        }
        Err(CommandError::Interrupted(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
    }
}

fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Echo { raw, server } => {
            let echo = if raw { Echo::raw() } else { Echo::new() };
            serve::serve(echo, echo.limits(), &server)
        }
        Command::Chat { server, messages } => {
            let chat = match messages.max_length() {
                Some(bytes) => Chat::new().max_line(bytes),
                None => Chat::new(),
            };
            let limits = chat.limits();
            serve::serve_with_notice(chat, limits, SHUTTING_DOWN, &server)
        }
        Command::Frames { framing, server, messages } => {
            let framing = match (messages.max_length(), framing) {
                (None, framing) => framing,
                (Some(_), Framing::Fixed(_) | Framing::Raw) => {
                    let why = "--max-message is for framings whose messages differ in length, not for fixed:N and raw";
                    return Err(CommandError::Usage(why.to_string()));
                }
                (Some(bytes), framing) => framing.max(bytes),
            };
            let frames = Frames::new(framing);
            let limits = frames.limits();
            serve::serve(frames, limits, &server)
        }
        Command::Proxy { upstreams: options, server } => proxy(&options, &server),
        Command::Load(options) => load::load(&options),
        Command::Connect(options) => client::connect(&options),
    }
}

fn proxy(options: &args::ProxyArgs, server: &args::ServerArgs) -> Result<(), CommandError> {
    let Some(within) = options.connect_timeout.0 else {
        return Err(CommandError::Usage(
            "--connect-timeout cannot be 0: a client would wait for ever".to_string(),
        ));
    };
    let upstream_filter = options.tls.client().map_err(CommandError::Run)?;
    let tls = server.tls.server().map_err(CommandError::Run)?;
    // A PROXY header comes before the handshake, so where one is expected the proxy itself has to see to both.
    let behind_header = !options.proxy_protocol_in.is_empty();
    let client_filter = tls.as_ref().filter(|_| behind_header).map(|tls| tls.filter_config());
    let proxy = Proxy::to(options.to.clone())
        .filter_clients(client_filter)
        .filter_upstreams(upstream_filter)
        .accept_header_from(options.proxy_protocol_in.clone())
        .send_header(options.proxy_protocol_out)
        .connect_timeout(within)
        .check_every(options.check_every.0);
    let exempt = options.proxy_protocol_in.clone();
    let guard = AccessPolicy { per_address: Some(100), exempt, ..AccessPolicy::default() };
    let limits = proxy.limits();
    let setup = serve::ServeSetup {
        access_policy: guard,
        upstreams: options.to.clone(),
        tls,
        listeners_filter: !behind_header,
        shutdown_notice: None,
    };
    serve::serve_as(proxy, limits, setup, server)
}

/// What clap has to say: help as it is, an error as one line.
fn usage_error(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe is the reader's decision, not an error.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(USAGE);
    }
    let text = error.to_string();
    let lines = text.trim_start_matches("error: ").lines().map(str::trim);
    let sentence: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    let asked = std::env::args().nth(1).filter(|word| Cli::command().find_subcommand(word).is_some());
    let help = asked.map_or("tidemill --help".to_string(), |command| format!("tidemill {command} --help"));
    print_error(&format!("{}; see '{help}'", sentence.join(" ")));
    ExitCode::from(USAGE)
}

/// One line on stderr. Nothing can be done about a stderr that is closed.
fn print_error(text: &str) {
    let _ = writeln!(std::io::stderr(), "tidemill: {text}");
}
