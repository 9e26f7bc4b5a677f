//! The options of `load`.

use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use regex::bytes::Regex;
use tidemill::Address;
use tidemill::framing::Framing;

use super::tls::ClientTlsArgs;
use super::values::{DurationArg, LocalAddresses, Shape, SizeArg, Text, address, rate, shape};

const EXCHANGE: &str = "Messages and answers";
const OUTPUT: &str = "Output";

#[derive(Args)]
pub struct LoadArgs {
    /// The server, as HOST:PORT or unix:/path
    #[arg(value_name = "ADDR", value_parser = address)]
    pub to: Address,
    /// echo: messages and their answers; churn: connect, one message, close; idle: connections that are held;
    /// fan-out: one connection sends lines to all others (for chat)
    #[arg(long, value_name = "SHAPE", default_value = "echo", hide_possible_values = true, value_parser = shape())]
    pub shape: Shape,
    /// Concurrent connections (fan-out: receivers, without the sender)
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Bytes of a message
    #[arg(long, value_name = "SIZE", default_value = "64B", conflicts_with_all = ["send", "protocol"])]
    pub size: SizeArg,
    /// Messages in flight on each connection (fan-out: lines in flight)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub pipeline: u32,
    /// Open loop: messages per second in total (churn, idle: connections; fan-out: lines); 0.5 is one in two seconds
    /// [default: closed loop, each message follows an answer]
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Time to measure [default: 5s; with --requests: until all are answered, or 10s without an answer]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<DurationArg>,
    /// Send this many messages (churn: connections, fan-out: lines), then end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Warm-up time, not measured [default: 500ms; with --requests: none]
    #[arg(long, value_name = "TIME")]
    pub warm_up: Option<DurationArg>,
    /// Connect from these local addresses in turn, as in 127.0.1.1-127.0.1.50: each has its own ephemeral ports
    /// [default: the address that the system chooses]
    #[arg(long, visible_alias = "source", value_name = "RANGE")]
    pub source_ports: Option<LocalAddresses>,
    /// Do not measure the generator's own maximum before the run; it is never measured with --tls, --send, --protocol
    #[arg(long)]
    pub no_ceiling: bool,

    /// Protocol of messages and answers: redis (PING), http (GET /), smtp (NOOP). An error reply is a failure
    #[arg(long, value_name = "NAME", hide_possible_values = true, value_parser = protocol(), help_heading = EXCHANGE)]
    pub protocol: Option<Protocol>,
    /// Message: a text with the escapes \r \n \t \0 \xNN \\, or the bytes of a file as @FILE
    #[arg(long, value_name = "TEXT|@FILE", value_parser = message_bytes, help_heading = EXCHANGE)]
    pub send: Option<Text>,
    /// Expected answer: bytes (escapes as for --send), or a regular expression as /RE/. With --until, --framing or
    /// --protocol each answer is compared with it; without them, an answer ends where it matches
    #[arg(long, value_name = "TEXT|/RE/", help_heading = EXCHANGE)]
    pub expect: Option<Expect>,
    /// An answer ends with these bytes (escapes as for --send)
    #[arg(long, value_name = "DELIM", conflicts_with_all = ["framing", "protocol"], help_heading = EXCHANGE)]
    pub until: Option<Text>,
    /// The server sends first: read one answer before the first message, and do not count it
    #[arg(long, help_heading = EXCHANGE)]
    pub greeting: bool,
    /// Send each message as a frame, and read each frame as an answer: u16be, u32be, line, ... (for frames)
    #[arg(long, value_name = "KIND", conflicts_with = "protocol", help_heading = EXCHANGE)]
    pub framing: Option<Framing>,

    /// Write the result as JSON: settings, all percentiles, errors by kind, a time series
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Compare with the result of an earlier run, written with --json
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub compare: Option<std::path::PathBuf>,
    /// Draw the latencies as an SVG picture; the file is created before the run
    #[arg(long, value_name = "FILE.svg", help_heading = OUTPUT)]
    pub plot: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// A protocol whose answers are recognised without further options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Redis,
    Http,
    Smtp,
}

impl Protocol {
    /// Whether a server sends first.
    pub fn greets(self) -> bool {
        self == Protocol::Smtp
    }

    /// The message that is sent without --send.
    pub fn message(self, to: &Address) -> Vec<u8> {
        match self {
            Protocol::Redis => b"PING\r\n".to_vec(),
            Protocol::Smtp => b"NOOP\r\n".to_vec(),
            Protocol::Http => {
                let host = if to.is_unix() { "localhost".to_string() } else { to.to_string() };
                format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
            }
        }
    }
}

fn protocol() -> impl TypedValueParser<Value = Protocol> {
    PossibleValuesParser::new(["redis", "http", "smtp"]).map(|name| match name.as_str() {
        "redis" => Protocol::Redis,
        "http" => Protocol::Http,
        _ => Protocol::Smtp,
    })
}

/// The expected answer.
#[derive(Clone, Debug)]
pub enum Expect {
    Bytes(Vec<u8>),
    Matches(Regex),
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Expect, String> {
        let inner = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        match inner {
            Some(pattern) if !pattern.is_empty() => {
                let regex = Regex::new(pattern).map_err(|error| {
                    let last = error.to_string();
                    let last =
                        last.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
                    format!("no regular expression: {last}")
                })?;
                Ok(Expect::Matches(regex))
            }
            _ => Ok(Expect::Bytes(text.parse::<Text>()?.0)),
        }
    }
}

/// The message: a text, or the bytes of a file.
fn message_bytes(text: &str) -> Result<Text, String> {
    match text.strip_prefix('@') {
        None => text.parse(),
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
            if bytes.is_empty() { Err(format!("{path} is empty")) } else { Ok(Text(bytes)) }
        }
    }
}
