//! Runs a service: descriptors, listeners, signals, and the last word in the log.

use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidemill::{Closed, Handle, Limits, Reactor, Service, SocketLimits, Stats};

use crate::cli::{Failure, Server};

/// Serves until a signal comes. `usual` are the limits that the service brings along.
pub fn serve<S: Service>(service: S, usual: SocketLimits, options: &Server) -> Result<(), Failure> {
    let limits = options.socket_limits(usual).map_err(Failure::Usage)?;
    let house = options.limits(descriptors());
    tell_limits(&house);
    let failed = |error: std::io::Error| Failure::Run(error.to_string());
    let mut reactor = Reactor::new(house).map_err(failed)?;
    let service = reactor.add_with(service, limits);
    let listen = options.listen_options();
    // Before anyone can wait for the start line and then send a signal.
    heed_signals(reactor.handle(), options.drain()).map_err(failed)?;
    for address in &options.listen {
        let listener = reactor.listen_with(address.as_str(), service, &listen).map_err(failed)?;
        if let Some(address) = reactor.local_addr(listener) {
            announce(address);
        }
    }
    reactor.run().map_err(failed)?;
    tell_stats(&reactor.stats());
    Ok(())
}

/// How many descriptors the process may open, after asking for as many as it is ever allowed.
fn descriptors() -> usize {
    let before = getrlimit(Resource::Nofile);
    // macOS has no limit here but refuses to be told so; then what was there before stays.
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { before };
    now.current.map_or(1 << 20, |most| usize::try_from(most).unwrap_or(usize::MAX).min(1 << 20))
}

fn tell_limits(limits: &Limits) {
    let (connections, memory) = (limits.connections, ByteSize(limits.memory as u64));
    log::info!("at most {connections} connections and {memory} in buffers");
}

/// The one thing that is said on stdout, for people and scripts to wait for. Nobody may be listening to it.
fn announce(address: SocketAddr) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
}

/// The first signal drains, the second ends at once with the exit code that shells give a process killed by it.
fn heed_signals(handle: Handle, drain: Duration) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let waits = thread::Builder::new().name("signals".into());
    waits.spawn(move || {
        let mut draining = false;
        for signal in signals.forever() {
            if draining {
                log::info!("a second signal: ending at once");
                std::process::exit(128 + signal);
            }
            draining = true;
            log::info!("closing the listeners; connections may end within {drain:?}");
            if handle.post(move |sockets| sockets.shutdown(drain)).is_err() {
                return; // The loop has ended already.
            }
        }
    })?;
    Ok(())
}

fn tell_stats(stats: &Stats) {
    let ends = Closed::WORDS.iter().zip(stats.closed).filter(|(_, count)| *count > 0);
    let ends: String = ends.map(|(word, count)| format!(" {word}={count}")).collect();
    let Stats { accepted, refused, shed, bytes_in, bytes_out, .. } = stats;
    log::info!("accepted={accepted} refused={refused} shed={shed} in={bytes_in} out={bytes_out}{ends}");
}
