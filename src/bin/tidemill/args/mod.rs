//! The arguments, and the limits they make.

mod access;
pub mod connect;
pub mod load;
pub mod tls;
pub mod values;

use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use tidemill::framing::Framing;
use tidemill::framing::proxy_header::HeaderVersion;
use tidemill::{AccessPolicy, Address, IpRange, KeepAlive, Limits, ListenOptions, Overflow, SocketLimits};

use access::{ACCESS_HEADING, AccessArgs};
pub use connect::ConnectArgs;
use load::LoadArgs;
use tls::{ServerTlsArgs, UpstreamTlsArgs};
use values::{DurationArg, MinRateArg, RateArg, SizeArg, address, overflow, range, version};

#[derive(Parser)]
#[command(
    name = "tidemill",
    version,
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
    /// A room: every line goes to everyone; /nick NAME, /who, /help, /quit
    #[command(
        after_help = "Example: tidemill chat --listen [::]:9001 --max-connections 1000 --idle-timeout 2h"
    )]
    Chat {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        messages: MessageArgs,
    },
    /// Answer each message with its echo, in a frame of the same kind
    #[command(after_help = "Example: tidemill frames --framing u16be --max-message 4KiB --min-rate 4KiB/5s")]
    Frames {
        /// u8, u16be, u16le, u32be, u32le, u64be, u64le, line, crlf, fixed:N or raw
        #[arg(long, value_name = "KIND", default_value = "u32be", help_heading = "Frames")]
        framing: Framing,
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        messages: MessageArgs,
    },
    /// Guard another service: pass connections on, within limits
    #[command(
        after_help = "Each connection is two of --max-connections. One line in the log tells how it ended.\n\
                      Example: tidemill proxy --listen 0.0.0.0:5432 --to db1:5432 --to db2:5432 --allow 10.0.0.0/8"
    )]
    Proxy {
        #[command(flatten)]
        upstreams: ProxyArgs,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Send stdin to a server, write its answers to stdout
    #[command(
        after_help = "At the end of stdin the sending side is shut down (FIN); the rest of the answer is still read.\n\
                      With a terminal on both sides, lines are edited: Ctrl-D ends stdin, Ctrl-C the program.\n\
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
                      Example: tidemill load 127.0.0.1:9001 --connections 50 --size 64 --plot latency.svg\n\
                      Example: tidemill load 127.0.0.1:6379 --protocol redis --send 'SET k v\\r\\n' --rate 1000"
    )]
    Load(Box<LoadArgs>),
}

#[derive(Args)]
pub struct ProxyArgs {
    /// Where to connect clients to; repeatable: they take turns, and one that is down is passed over
    #[arg(long, value_name = "ADDR", required = true, value_parser = address, help_heading = PROXY)]
    pub to: Vec<Address>,
    /// How long connecting may take, all attempts together
    #[arg(long, value_name = "TIME", default_value = "10s", help_heading = PROXY)]
    pub connect_timeout: DurationArg,
    /// Connect to each of several upstreams this often, to see whether it is up; 0: never
    #[arg(long, value_name = "TIME", default_value = "5s", help_heading = PROXY)]
    pub check_every: DurationArg,
    /// Callers from here say in a PROXY header for whom they stand, and must; repeatable
    #[arg(long, value_name = "RANGE", value_parser = range, help_heading = PROXY)]
    pub proxy_protocol_in: Vec<IpRange>,
    /// Say in a PROXY header for whom a connection stands: v1 or v2
    #[arg(long, value_name = "VERSION", hide_possible_values = true, value_parser = version(), help_heading = PROXY)]
    pub proxy_protocol_out: Option<HeaderVersion>,
    #[command(flatten)]
    pub tls: UpstreamTlsArgs,
}

/// Why a command did not do what it was asked to.
pub enum CommandError {
    /// The options contradict each other: exit code 2.
    Usage(String),
    /// It failed while it ran: exit code 1.
    Run(String),
    /// A signal ended it early: exit code 128 and the signal's number, as shells report it.
    Interrupted(i32),
}

// Options stand under these headings.
const PROXY: &str = "Proxy";
const WHERE: &str = "Where";
const MANY: &str = "How many";
const LONG: &str = "How long (0: no limit)";
const END: &str = "At the end (0: at once)";
const MUCH: &str = "How much";
const SPEED: &str = "Speed";

/// What every server command takes.
#[derive(Args)]
pub struct ServerArgs {
    /// Where to listen, as HOST:PORT or unix:/path; repeatable. Port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001", value_parser = address,
          help_heading = WHERE)]
    pub listen: Vec<Address>,
    /// Callers that the kernel queues for us
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = WHERE,
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    backlog: u32,

    /// Connections at once [default: 10000, or what the descriptors allow]
    #[arg(long, value_name = "N", help_heading = MANY, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,
    /// Connections at once from one address, IPv6 by /64; 0: no limit [default: 0, proxy: 100]
    #[arg(long, value_name = "N", help_heading = MANY)]
    max_per_ip: Option<u32>,
    /// Connects a second from one address; those beyond are reset
    #[arg(long, value_name = "N", help_heading = MANY, value_parser = clap::value_parser!(u32).range(1..))]
    accept_rate: Option<u32>,
    /// Those beyond: told so and let go (refuse), or left in the backlog (wait)
    #[arg(long, value_name = "HOW", default_value = "refuse", hide_possible_values = true, help_heading = MANY,
          value_parser = overflow())]
    overflow: Overflow,
    /// What they are told, followed by a line end; may be empty
    #[arg(long, value_name = "TEXT", default_value = "server busy", help_heading = MANY)]
    busy_reply: String,

    #[command(flatten)]
    access: AccessArgs,
    /// Refuse nobody for --allow, --deny, --max-per-ip, --accept-rate and --rate: count and log only
    #[arg(long, help_heading = ACCESS_HEADING)]
    dry_run: bool,

    /// Close when no byte has moved either way for so long [default: 60s, chat: 30min, proxy: 1h]
    #[arg(long, value_name = "TIME", help_heading = LONG)]
    idle_timeout: Option<DurationArg>,
    /// The first byte must come within this
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = LONG)]
    first_byte_timeout: DurationArg,
    /// So much must move while a message or a queue is pending; of typed lines only the queue counts
    #[arg(long, value_name = "SIZE/TIME", default_value = "1KiB/10s", help_heading = LONG)]
    min_rate: MinRateArg,
    /// Close when one side has ended and no byte has moved for so long
    #[arg(long, value_name = "TIME", default_value = "60s", help_heading = LONG)]
    half_closed_timeout: DurationArg,
    /// The longest a connection may live
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = LONG)]
    max_lifetime: DurationArg,
    /// Let the kernel probe a silent peer after so long
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = LONG)]
    keep_alive: DurationArg,
    /// After SIGTERM or SIGINT, let connections end by themselves for so long; a second signal ends at once
    #[arg(long, value_name = "TIME", default_value = "10s", help_heading = END)]
    drain: DurationArg,

    /// Read at most this many bytes a second from each connection; 0: no limit [default: 0, chat: 16KiB]
    #[arg(long, value_name = "SIZE", help_heading = MUCH)]
    rate: Option<RateArg>,
    /// Bytes a second that are read from all connections together
    #[arg(long, value_name = "SIZE", help_heading = MUCH)]
    total_rate: Option<SizeArg>,
    /// Queued bytes from which a peer is not read until it reads
    #[arg(long, value_name = "SIZE", default_value = "64KiB", help_heading = MUCH)]
    high_water: SizeArg,
    /// Queued bytes at which a peer that does not read is closed [default: 1MiB, chat: 256KiB]
    #[arg(long, value_name = "SIZE", help_heading = MUCH)]
    max_queued: Option<SizeArg>,
    /// Bytes in all buffers together; beyond it, whoever holds most is closed
    #[arg(long, value_name = "SIZE", default_value = "64MiB", help_heading = MUCH)]
    memory: SizeArg,

    #[command(flatten)]
    pub tls: ServerTlsArgs,

    /// Look for events for so long before sleeping, while they come as soon as that: 50us halves a lone caller's
    /// latency and keeps a processor busy meanwhile; 0: never
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = SPEED)]
    busy_poll: DurationArg,
    /// Proxied connections at once whose bulk goes through the kernel without being copied, where it can; 0: none
    /// [default: 64, or as many as the descriptors allow]
    #[arg(long, value_name = "N", help_heading = SPEED)]
    splices: Option<u32>,
}

/// What the commands take that speak in messages.
#[derive(Args)]
pub struct MessageArgs {
    /// The longest message; longer ones close the connection [default: 1MiB, lines: 8KiB]
    #[arg(long, value_name = "SIZE", help_heading = MUCH)]
    max_message: Option<SizeArg>,
}

impl MessageArgs {
    pub fn max_length(&self) -> Option<usize> {
        self.max_message.map(|SizeArg(bytes)| bytes)
    }
}

impl ServerArgs {
    /// How long connections may go on after a first signal.
    pub fn drain(&self) -> Duration {
        self.drain.0.unwrap_or(Duration::ZERO)
    }

    /// The limits of one connection: what the service brings along, changed by what was asked for.
    /// A service for people who type has no read pace, and then none is asked for.
    pub fn socket_limits(&self, base: SocketLimits) -> Result<SocketLimits, String> {
        let queue = self.max_queued.map_or(base.queue, |SizeArg(bytes)| bytes);
        let (high, memory) = (self.high_water.0, self.memory.0);
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
                "--max-queued of {queue} is more than --memory of {memory}: not even one such queue would fit into it"
            ));
        }
        if base.message > memory {
            let (message, memory) = (size(base.message), size(memory));
            return Err(format!(
                "a message may be {message}, which does not fit into --memory of {memory}; lower --max-message"
            ));
        }
        Ok(SocketLimits {
            idle: self.idle_timeout.map_or(base.idle, |span| span.0),
            first_byte: self.first_byte_timeout.0,
            half_closed: self.half_closed_timeout.0,
            handshake: self.tls.handshake(),
            lifetime: self.max_lifetime.0,
            min_read_rate: base.min_read_rate.and(self.min_rate.0),
            min_write_rate: self.min_rate.0,
            high_water: high,
            low_water: high / 4,
            queue,
            rate: self.rate.map_or(base.rate, |RateArg(rate)| rate),
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

    pub fn listen_options(&self) -> ListenOptions {
        let mut busy_reply = self.busy_reply.clone().into_bytes();
        if !busy_reply.is_empty() {
            busy_reply.push(b'\n');
        }
        ListenOptions {
            backlog: self.backlog,
            overflow: self.overflow,
            busy_reply,
            keep_alive: self.keep_alive.0.map(KeepAlive::after),
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

    /// Bytes a second that all connections may send together.
    pub fn total_rate(&self) -> Option<usize> {
        self.total_rate.map(|SizeArg(bytes)| bytes)
    }
}
