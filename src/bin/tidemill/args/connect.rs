//! The options of `connect`.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use tidemill::Address;
use tidemill::framing::Framing;

use super::tls::ClientTlsArgs;
use super::values::{DurationArg, address};

#[derive(Args)]
pub struct ConnectArgs {
    /// The server, as HOST:PORT or unix:/path
    #[arg(value_name = "ADDR", value_parser = address)]
    pub to: Address,
    /// Listen on ADDR instead, and accept one connection
    #[arg(short, long, conflicts_with_all = ["tls", "source", "only_connect"])]
    pub listen: bool,
    /// Connect from this local address, as IP or IP:PORT [default: the system chooses]
    #[arg(long, value_name = "IP[:PORT]", value_parser = source)]
    pub source: Option<SocketAddr>,
    /// Time limit for name resolution, connecting and the TLS handshake; 0: no limit
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub timeout: DurationArg,
    /// Close when no byte was transferred in either direction for this long; 0: never
    #[arg(long, value_name = "TIME", default_value = "0")]
    pub wait: DurationArg,
    /// Only connect: exit code 0 if the server accepts, 1 if not
    #[arg(short = 'z', long = "only-connect")]
    pub only_connect: bool,
    /// Do not shut down the sending side at the end of stdin: some servers take that for a client that has left. Ends
    /// when the server closes, or with --wait
    #[arg(short = 'N', long)]
    pub no_shutdown: bool,
    /// Report on stderr: addresses, TLS version, cipher and ALPN, which side ended first and why
    #[arg(short, long)]
    pub verbose: bool,
    /// Send each line of stdin as a frame, write each frame as a line: u16be, u32be, line, ...
    #[arg(long, value_name = "KIND")]
    pub framing: Option<Framing>,
    /// Send line ends as \r\n
    #[arg(long, conflicts_with = "framing")]
    pub crlf: bool,
    /// Write received bytes in hexadecimal
    #[arg(long, conflicts_with = "raw")]
    pub hex: bool,
    /// Write received bytes unchanged, even to a terminal: control characters then take effect. No line editing
    #[arg(long)]
    pub raw: bool,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// A local address; port 0 lets the system choose the port.
fn source(text: &str) -> Result<SocketAddr, String> {
    let ip =
        text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
    ip.or_else(|_| text.parse())
        .map_err(|_| "write a local IP address, or IP:PORT, as in 127.0.0.2:4000".to_string())
}
