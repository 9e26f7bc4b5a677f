//! Instructions that a server executes itself, without the kernel's, for each message.
//!
//! A server stands still while messages are sent to it, so that it finds all of them at once, on a fast machine and on
//! a slow one. Another run has as many rounds, but in half of them nothing is sent; what the first one has more is the
//! price of the messages. The way to the first connection and the round's own disturbance are in both.
//!
//! What valgrind has written stays in `target/tmp`, for `callgrind_annotate`: `callgrind.tidemill.50.200` holds 200
//! rounds of messages on 50 connections more than `callgrind.tidemill.50.0`. To see functions and lines, build with
//! `CARGO_PROFILE_BENCH_DEBUG=true`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::{Measured, Peer, Server, figure, until};
use crate::case::Kind;

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
        figures.push(figure(name, "in user space", &[Kind::Tidemill, Kind::Tokio4], each)?);
    }
    Ok(figures)
}

/// Of a whole life of a server: so many rounds of messages on all connections, and as many that are silent but for
/// `more` of them.
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
        // It has heard all, but not everything is done for it then.
        until("a server that waits", || server.process.state() == 'S');
        server.process.signal(Signal::STOP);
        until("a server that stands still", || server.process.state() == 'T');
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
