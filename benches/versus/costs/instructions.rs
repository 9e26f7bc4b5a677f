//! Instructions that a server executes in user space, per message.
//!
//! The server is stopped (SIGSTOP) while messages are sent to it, so that it finds all of them in one wake-up on any
//! machine. A second run has as many rounds, but in half of them no message is sent. The difference is the cost of the
//! messages: start-up and the stops are in both.
//!
//! The output of valgrind stays in `target/tmp`, for `callgrind_annotate`: `callgrind.tidemill.50.200` has 200 rounds
//! of messages on 50 connections more than `callgrind.tidemill.50.0`. To see functions and lines, build with
//! `CARGO_PROFILE_BENCH_DEBUG=true`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Band, Measured, Peer, Server, figure, until};
use crate::case::Kind;

/// For other compilers.
const BAND: Band = Band { percent: 5.0, step: 0.0 };

pub(super) fn measure(smoke: bool) -> Measured {
    let found = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Err("no valgrind here".to_string());
    }
    let rounds = if smoke { 5 } else { 200 };
    let mut figures = Vec::new();
    for connections in [50, 1] {
        let name = format!("instructions per message of 64 B, {connections} at once");
        let each = |kind| {
            let both = instructions(kind, connections, rounds, rounds)?;
            let half = instructions(kind, connections, rounds, 0)?;
            Ok((both as f64 - half as f64) / (rounds * connections) as f64)
        };
        figures.push(figure(name.as_str(), "in user space", BAND, &[Kind::Tidemill, Kind::Tokio4], each)?);
    }
    Ok(figures)
}

/// The instructions of a server from start to end, with `rounds` rounds of messages on all connections, and as many
/// rounds of which only `more` have messages.
fn instructions(kind: Kind, connections: usize, rounds: usize, more: usize) -> Result<u64, String> {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("callgrind.{}.{connections}.{more}", kind.name()));
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind"]).arg(format!("--callgrind-out-file={}", file.display()));
    command.arg(own).args(["--serve", kind.name(), "echo"]).stderr(Stdio::null());
    let mut server = Server::start_as(&mut command)?;
    let mut peers: Vec<Peer> = (0..connections).map(|_| Peer::connect(server.address)).collect();
    for round in 0..2 * rounds {
        let silent = round % 2 == 1 && round / 2 >= more;
        // All answers have arrived, but the server may not have finished its work for them.
        until("a server that waits", || server.process.state() == 'S');
        server.process.signal(Signal::STOP);
        until("a stopped server", || server.process.state() == 'T');
        if !silent {
            peers.iter_mut().for_each(Peer::say);
        }
        server.process.signal(Signal::CONT);
        if !silent {
            peers.iter_mut().for_each(Peer::hear);
        }
    }
    until("a server that waits", || server.process.state() == 'S');
    server.process.end(Signal::TERM);
    total(&file)
}

fn total(file: &Path) -> Result<u64, String> {
    let told = |error| format!("valgrind has written no {}: {error}", file.display());
    let text = fs::read_to_string(file).map_err(told)?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
    line.and_then(|count| count.trim().parse().ok()).ok_or_else(|| format!("no total in {}", file.display()))
}
