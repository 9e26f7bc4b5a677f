//! Options for watching the loop of a server.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tidemill::Address;

use super::values::{DurationArg, address};

pub const OBSERVE: &str = "Watching";

#[derive(Args, Clone)]
pub struct ObserveArgs {
    /// Write each step of the loop to a file of at most 64 MiB, which is replaced: for Perfetto or chrome://tracing if
    /// the name ends in .json, else as text
    #[arg(long, value_name = "FILE", help_heading = OBSERVE, hide_short_help = true)]
    pub trace: Option<PathBuf>,
    /// Log callbacks that take at least this time, by name, one line a second for each; 0: none
    #[arg(long, value_name = "TIME", default_value = "0", help_heading = OBSERVE, hide_short_help = true)]
    slow: DurationArg,
    /// Append a line for each ended connection to a file, which SIGHUP opens again; -: stdout
    #[arg(long, value_name = "FILE", help_heading = OBSERVE)]
    pub access_log: Option<PathBuf>,
    /// Format of the log on stderr and of the access log: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true, help_heading = OBSERVE,
          hide_short_help = true)]
    pub log_format: LogFormat,
    /// Serve metrics for Prometheus at http://ADDR/metrics; 8 connections at once, beside --max-connections
    #[arg(long, value_name = "ADDR", value_parser = address, help_heading = OBSERVE)]
    pub metrics: Option<Address>,
    /// Let the user of this process look into the server and change it, by lines of text: see help there. A file that
    /// only this user can connect to, as unix:/path; 4 connections at once, beside --max-connections
    #[arg(long, value_name = "unix:PATH", value_parser = unix_address, help_heading = OBSERVE)]
    pub admin: Option<Address>,
}

/// An address with permissions: any user of the machine can connect to a port.
fn unix_address(text: &str) -> Result<Address, String> {
    let address = address(text)?;
    if address.is_unix() {
        Ok(address)
    } else {
        Err("a file is needed, as in unix:/run/tidemill/admin".to_string())
    }
}

/// How lines of the logs are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum LogFormat {
    Text,
    /// An object on each line.
    Json,
}

impl ObserveArgs {
    /// From how long on a callback is slow.
    pub fn slow(&self) -> Option<Duration> {
        self.slow.0
    }
}
