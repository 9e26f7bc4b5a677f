//! The arguments, and the limits they make.

mod access;
mod backplane;
pub mod config;
pub mod connect;
mod fault;
pub mod load;
mod message;
pub mod observe;
mod proxy;
mod shards;
mod shared_limits;
#[cfg(feature = "testing")]
pub mod step;
pub mod tls;
pub mod values;
mod version;

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use tidemill::framing::Framing;
use tidemill::{AccessPolicy, KeepAlive, Limits, ListenOptions, Overflow, SocketLimits};

use access::{ACCESS_HEADING, AccessArgs};
pub use backplane::BackplaneArgs;
use config::ConfigArgs;
pub use connect::ConnectArgs;
pub use fault::FaultArg;
use load::LoadArgs;
pub use message::MessageArgs;
use observe::{LogFormat, ObserveArgs};
pub use proxy::{OnReset, ProxyArgs};
use shards::ShardArgs;
use shared_limits::SharedLimitsArgs;
use tls::ServerTlsArgs;
use values::{DurationArg, ListenArg, MinRateArg, OptionalSizeArg, SizeArg, keep_alive, overflow, shell};

#[derive(Parser)]
#[command(
    name = "tidemill",
    version,
    long_version = version::long(),
    about = "TCP services on one small event loop. All of them take the same limits.",
    after_help = "Example: tidemill chat, and in other terminals: tidemill connect 127.0.0.1:9001\n\
                  The log goes to stderr; RUST_LOG=debug shows more of it.",
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Greet, send back every byte, leave on a line 'quit'
    #[command(after_help = "Example: tidemill echo --raw --listen 127.0.0.1:7000 --max-connections 500")]
    Echo {
        /// No greeting, no 'quit': bytes only
        #[arg(long, help_heading = "Echo")]
        raw: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// A chat room: each line is sent to all members; /nick NAME, /who, /help, /quit
    #[command(
        after_help = "Example: tidemill chat --listen [::]:9001 --max-connections 1000 --idle-timeout 2h"
    )]
    Chat {
        #[command(flatten)]
        backplane: Box<BackplaneArgs>,
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        messages: MessageArgs,
    },
    /// Answer each message with its echo, in a frame of the same kind
    #[command(after_help = "Example: tidemill frames --framing u16be --max-message 4KiB --min-rate 4KiB/5s")]
    Frames {
        /// u8, u16be, u16le, u24be, u24le, u32be, u32le, u64be, u64le (with :self: the length counts itself), varint28,
        /// varint32, varint64, line, crlf, fixed:N or raw
        #[arg(long, value_name = "KIND", default_value = "u32be", help_heading = "Frames")]
        framing: Framing,
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        messages: MessageArgs,
    },
    /// Guard another service: pass connections on, within limits
    #[command(
        after_help = "A proxied connection counts twice for --max-connections; its end is a line in the log.\n\
                      SIGHUP reads the TLS files of both sides again. -h lists the common options, --help all.\n\
                      Example: tidemill proxy --listen [::]:5432 --to db1:5432 --to db2:5432,backup --allow 10.0.0.0/8"
    )]
    Proxy {
        #[command(flatten)]
        upstreams: Box<ProxyArgs>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Send stdin to a server, write its answers to stdout
    #[command(
        after_help = "At the end of stdin the sending side is shut down (FIN); the rest of the answer is still read.\n\
                      With a terminal on both sides, lines are edited: Ctrl-D ends stdin, Ctrl-C the program.\n\
                      After the end of the server, the rest of stdin is sent (at a terminal, the program ends).\n\
                      Exit code: 0 after a proper end, 1 if it failed or was cut off, 2 for wrong options.\n\
                      Example: printf 'hello\\n' | tidemill connect localhost:9001"
    )]
    Connect(ConnectArgs),
    /// Measure the throughput and the latencies of a server
    #[command(
        after_help = "Every byte of an answer is checked. A failed connection is counted by kind and dialed again.\n\
                      With --rate, latency is measured from the scheduled send time (no coordinated omission).\n\
                      Messages without an answer at the end are counted with their age in the percentiles.\n\
                      The generator polls without sleeping: it keeps one processor busy.\n\
                      Exit code: 0, 1 after any failure or without any answer, 130 after Ctrl-C, 143 after SIGTERM.\n\
                      Example: tidemill echo --raw, and: tidemill load 127.0.0.1:9001 --connections 50 --plot l.svg\n\
                      Example: tidemill load 127.0.0.1:6379 --protocol redis --send 'SET k v\\r\\n' --rate 1000"
    )]
    Load(Box<LoadArgs>),
    /// Step the event loop on a simulated kernel, phase by phase
    #[cfg(feature = "testing")]
    #[command(
        after_help = "At a terminal, commands go forward and back; h lists them. Without one all steps are printed.\n\
                      Example: tidemill step; tidemill step slow-reader; tidemill step echo --all --state"
    )]
    Step(step::StepArgs),
    /// Print completions for a shell: bash, zsh or fish
    #[command(
        after_help = "Example: tidemill completions bash >/usr/share/bash-completion/completions/tidemill\n\
                      Example: tidemill completions zsh >/usr/local/share/zsh/site-functions/_tidemill\n\
                      Example: tidemill completions fish >~/.config/fish/completions/tidemill.fish"
    )]
    Completions {
        #[arg(value_name = "SHELL", hide_possible_values = true, value_parser = shell())]
        shell: Shell,
    },
    /// Write the man pages, one for each command, into a folder
    #[command(after_help = "Example: tidemill man /usr/local/share/man/man1, and then: man tidemill-proxy")]
    Man {
        /// The folder, which is made if it is not there
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

impl Command {
    /// The options of a server; none for the other commands.
    pub fn server(&self) -> Option<&ServerArgs> {
        match self {
            Command::Echo { server, .. }
            | Command::Chat { server, .. }
            | Command::Frames { server, .. }
            | Command::Proxy { server, .. } => Some(server),
            _ => None,
        }
    }

    /// How the log is written: servers have an option for that.
    pub fn log_format(&self) -> LogFormat {
        self.server().map_or(LogFormat::Text, |server| server.observe.log_format)
    }
}

/// What clap says about wrong options, as one sentence.
pub fn sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.trim_start_matches("error: ").lines().map(str::trim).collect();
    let sentence: Vec<&str> = lines.iter().copied().take_while(|line| !line.is_empty()).collect();
    // The first tip is the similar name, if there is one.
    let tip = lines.iter().find_map(|line| line.strip_prefix("tip: ")).filter(|tip| tip.contains("similar"));
    let tip = tip.map_or(String::new(), |tip| format!("; {tip}"));
    format!("{}{tip}", sentence.join(" "))
}

/// Why a command failed.
pub enum CommandError {
    /// The options contradict each other: exit code 2.
    Usage(String),
    /// It failed while it ran: exit code 1.
    Run(String),
    /// A signal ended it early: exit code 128 and the signal's number, as shells report it.
    Interrupted(i32),
}

// Headings of options.
const WHERE: &str = "Where";
const MANY: &str = "Connections";
const LONG: &str = "Timeouts (such as 500ms, 30s, 5min, 1h; 0: no limit)";
const END: &str = "Shutdown (0: at once)";
const MUCH: &str = "Bytes (such as 512, 64KiB, 1MiB)";
const SPEED: &str = "Speed";

/// Options of every server command.
#[derive(Args)]
pub struct ServerArgs {
    /// Address to listen on, as HOST:PORT, unix:/path, or systemd[:NAME] for sockets that systemd passes; repeatable.
    /// Port 0 picks a free port. Without this option the sockets that were passed are used, if there are any
    /// [default: 127.0.0.1:9001]
    #[arg(long, value_name = "ADDR", help_heading = WHERE)]
    pub listen: Vec<ListenArg>,
    /// Connections that the kernel queues before they are accepted
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = WHERE, hide_short_help = true,
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    backlog: u32,

    /// Maximum connections; a proxied one counts twice [default: 10000, or what the descriptors allow]
    #[arg(long, value_name = "N", help_heading = MANY, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,
    /// Maximum connections from one address, IPv6 by /64; 0: no limit [default: 0, proxy: 100]
    #[arg(long, value_name = "N", help_heading = MANY)]
    max_per_ip: Option<u32>,
    /// Maximum connections per second from one address; further ones are reset
    #[arg(long, value_name = "N", help_heading = MANY, value_parser = clap::value_parser!(u32).range(1..))]
    accept_rate: Option<u32>,
    /// What to do at the connection limit: refuse, or wait in the backlog
    #[arg(long, value_name = "HOW", default_value = "refuse", hide_possible_values = true, help_heading = MANY,
          hide_short_help = true, value_parser = overflow())]
    overflow: Overflow,
    /// Text sent to a refused peer, followed by a line end; may be empty [default: "server busy", proxy: empty]
    #[arg(long, value_name = "TEXT", help_heading = MANY, hide_short_help = true)]
    busy_reply: Option<String>,

    #[command(flatten)]
    access: AccessArgs,
    /// Only count and log what --allow, --deny, --max-per-ip, --accept-rate and --rate would refuse
    #[arg(long, help_heading = ACCESS_HEADING)]
    dry_run: bool,

    /// Close when no byte has moved either way for this time [default: 60s, chat: 30min, proxy: 1h]
    #[arg(long, value_name = "TIME", help_heading = LONG)]
    idle_timeout: Option<DurationArg>,
    /// Close when the first byte has not arrived within this time
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = LONG, hide_short_help = true)]
    first_byte_timeout: DurationArg,
    /// Minimum transfer rate while a message is incomplete or output is queued (line protocols: output only)
    #[arg(long, value_name = "SIZE/TIME", default_value = "1KiB/10s", help_heading = LONG, hide_short_help = true)]
    min_rate: MinRateArg,
    /// Close when one side has ended and no byte has moved for this time
    #[arg(long, value_name = "TIME", default_value = "60s", help_heading = LONG, hide_short_help = true)]
    half_closed_timeout: DurationArg,
    /// Close a connection of this age, or up to a tenth earlier, so that those of one moment do not all end at once
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = LONG)]
    max_lifetime: DurationArg,
    /// Let the kernel probe a silent peer after this time (TCP keep-alive), upstreams included; at most 32767s
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = LONG, value_parser = keep_alive)]
    keep_alive: DurationArg,
    /// Time for connections to end after SIGTERM or SIGINT; a second signal ends at once
    #[arg(long, value_name = "TIME", default_value = "10s", help_heading = END)]
    drain: DurationArg,

    /// Read at most this many bytes a second from each connection; 0: no limit [default: 0, chat: 16KiB]
    #[arg(long, value_name = "SIZE", help_heading = MUCH)]
    rate: Option<OptionalSizeArg>,
    /// Maximum bytes per second read from all connections together
    #[arg(long, value_name = "SIZE", help_heading = MUCH)]
    total_rate: Option<SizeArg>,
    #[command(flatten)]
    pub shared: SharedLimitsArgs,
    /// Stop reading from a peer while this many bytes of output are queued for it
    #[arg(long, value_name = "SIZE", default_value = "64KiB", help_heading = MUCH, hide_short_help = true)]
    high_water: SizeArg,
    /// Bytes that the kernel queues for a client beyond what it has sent (Linux); 0: as many as its send buffer holds
    #[arg(long, value_name = "SIZE", default_value = "128KiB", help_heading = MUCH, hide_short_help = true)]
    unsent: OptionalSizeArg,
    /// Close a peer that does not read when this many bytes are queued for it [default: 1MiB, chat: 256KiB]
    #[arg(long, value_name = "SIZE", help_heading = MUCH, hide_short_help = true)]
    max_queued: Option<SizeArg>,
    /// Maximum bytes in all buffers together; beyond it, the connection that holds most is closed
    #[arg(long, value_name = "SIZE", default_value = "64MiB", help_heading = MUCH)]
    memory: SizeArg,

    #[command(flatten)]
    pub tls: ServerTlsArgs,

    #[command(flatten)]
    pub config: ConfigArgs,

    #[command(flatten)]
    pub observe: ObserveArgs,

    #[command(flatten)]
    pub shards: ShardArgs,
    /// Poll this long for the next event before sleeping, while events come that fast: 50us shortens a single client's
    /// round trip and keeps a processor busy meanwhile; 0: never
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = SPEED, hide_short_help = true)]
    busy_poll: DurationArg,
    /// Proxy only: connections at once whose bulk data the kernel moves without copying (splice); 0: none
    /// [default: 64, or as many as the descriptors allow]
    #[arg(long, value_name = "N", help_heading = SPEED, hide_short_help = true)]
    splices: Option<u32>,
}

impl ServerArgs {
    /// How long connections may go on after a first signal.
    pub fn drain(&self) -> Duration {
        self.drain.0.unwrap_or(Duration::ZERO)
    }

    /// Options that have no effect, or contradict each other, are errors: a limit that is believed to hold and does not
    /// is worse than none. `dials` says whether the service connects to upstreams.
    pub fn check(&self, dials: bool) -> Result<(), String> {
        self.access.check()?;
        self.check_shards()?;
        if !dials && self.splices.is_some() {
            return Err(
                "--splices has no effect here: only proxy moves bytes between connections".to_string()
            );
        }
        if let (Some(first), Some(Some(idle))) =
            (self.first_byte_timeout.0, self.idle_timeout.map(|idle| idle.0))
        {
            if first > idle {
                let (first, idle) = (humantime::format_duration(first), humantime::format_duration(idle));
                return Err(format!(
                    "--first-byte-timeout {first} has no effect: --idle-timeout {idle} ends the connection before"
                ));
            }
        }
        let limited = self.max_per_ip.is_some() || self.accept_rate.is_some() || self.rate.is_some();
        // A proxy has a limit for each address by default.
        if self.dry_run && !limited && !dials && self.access.rules.is_empty() {
            return Err(
                "--dry-run has no effect without --allow, --deny, --max-per-ip, --accept-rate or --rate"
                    .to_string(),
            );
        }
        Ok(())
    }

    /// How the kernel probes silent peers, on either side of a proxy.
    pub fn keep_alive(&self) -> Option<KeepAlive> {
        self.keep_alive.0.map(KeepAlive::after)
    }

    /// The limits of one connection: what the service brings along, changed by what was asked for.
    /// An interactive service has no minimum rate for reading, so --min-rate sets none there.
    pub fn socket_limits(&self, base: SocketLimits) -> Result<SocketLimits, String> {
        let queue = self.max_queued.map_or(base.queue, |SizeArg(bytes)| bytes);
        let (high, memory) = (self.high_water.0, self.shards.share(self.memory.0));
        let each = if self.shards.count() > 1 { " for each shard" } else { "" };
        let size = |bytes: usize| ByteSize(bytes as u64);
        if high > queue {
            let (high, queue) = (size(high), size(queue));
            return Err(format!(
                "--high-water of {high} is more than --max-queued of {queue}: a queue would be closed before it is full"
            ));
        }
        if queue > memory {
            let (queue, memory) = (size(queue), size(memory));
            return Err(format!(
                "--max-queued of {queue} is more than --memory of {memory}{each}: not even one such queue would fit"
            ));
        }
        if base.message > memory {
            let (message, memory) = (size(base.message), size(memory));
            return Err(format!(
                "a message may be {message}, which does not fit into --memory of {memory}{each}; raise --memory"
            ));
        }
        Ok(SocketLimits {
            idle: self.idle_timeout.map_or(base.idle, |span| span.0),
            first_byte: self.first_byte_timeout.0,
            half_closed: self.half_closed_timeout.0,
            handshake: self.tls.handshake(),
            lifetime: self.max_lifetime.0,
            lifetime_jitter: self.max_lifetime.0.unwrap_or_default() / 10,
            min_read_rate: base.min_read_rate.and(self.min_rate.0),
            min_write_rate: self.min_rate.0,
            high_water: high,
            low_water: high / 4,
            queue,
            rate: self.rate.map_or(base.rate, |OptionalSizeArg(rate)| rate),
            ..base
        })
    }

    /// The limits of the reactor. `descriptors` is how many the process may open.
    pub fn limits(&self, descriptors: usize) -> Limits {
        let allowed = Limits::for_descriptors(descriptors);
        let max = Limits::connections_within(descriptors);
        let connections = match self.max_connections {
            None => allowed.connections,
            Some(asked) if asked as usize <= max => asked as usize,
            Some(asked) => {
                log::warn!(
                    "--max-connections {asked} is cut to {max}: the process may open {descriptors} descriptors"
                );
                max
            }
        };
        let splices = self.splices.map_or(allowed.splices, |max| max as usize);
        let handshakes = self.tls.max_handshakes();
        Limits {
            connections,
            memory: self.memory.0,
            busy_poll: self.busy_poll.0,
            splices,
            handshakes,
            ..allowed
        }
    }

    pub fn listen_options(&self, usual_reply: &str) -> ListenOptions {
        let mut busy_reply = self.busy_reply.as_deref().unwrap_or(usual_reply).as_bytes().to_vec();
        if !busy_reply.is_empty() {
            busy_reply.push(b'\n');
        }
        ListenOptions {
            backlog: self.backlog,
            overflow: self.overflow,
            busy_reply,
            keep_alive: self.keep_alive(),
            unsent: self.unsent.0.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)),
            ..ListenOptions::default()
        }
    }

    /// Who may come in; `usual` is what the service brings along.
    pub fn access_policy(&self, usual: AccessPolicy) -> AccessPolicy {
        let per_address = self.max_per_ip.map_or(usual.per_address, |max| Some(max as usize));
        AccessPolicy {
            rules: self.access.rules.clone(),
            per_address: per_address.filter(|&max| max > 0),
            accept_rate: self.accept_rate.map(|max| max as usize),
            dry_run: self.dry_run,
            ..usual
        }
    }

    pub fn max_connections(&self) -> Option<usize> {
        self.max_connections.map(|max| max as usize)
    }

    /// Bytes a second that all connections may send together.
    pub fn total_rate(&self) -> Option<usize> {
        self.total_rate.map(|SizeArg(bytes)| bytes)
    }
}
