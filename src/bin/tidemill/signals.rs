//! Signals: SIGTERM and SIGINT drain, SIGHUP reloads, whatever the parent process has left behind.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidemill::tls::{Client, Server};
use tidemill::{Handle, Origin, Sockets};

use crate::args::tls::{ServerTlsArgs, UpstreamTlsArgs};
use crate::systemd;

/// A second signal within this is taken for the same one: `timeout -s INT` sends two, and so does a terminal whose
/// shell passes Ctrl-C on.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// Makes signals arrive as they do when a shell starts the process. Call it before any thread is started, because
/// threads inherit the mask.
///
/// - A mask is inherited through exec(2), and the JVM, .NET and some supervisors leave signals blocked.
/// - As PID 1 a process without a handler does not get SIGINT and SIGTERM at all (pid_namespaces(7)). Commands that
///   install no handler of their own end with the exit code that a shell gives a killed process.
pub fn prepare(has_handlers: bool) -> io::Result<()> {
    let mut usual = SigSet::empty();
    usual.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE]);
    usual.thread_unblock()?;
    if has_handlers || std::process::id() != 1 {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// The first signal drains; a second one ends at once, with the exit code that shells give a process killed by it.
/// A service can end its connections earlier than that: `Service::stopping`.
pub fn drain_on_signal(handle: Handle, drain: Duration) -> io::Result<()> {
    let mut heeded = vec![SIGTERM];
    heeded.extend((!is_ignored(SIGINT)).then_some(SIGINT));
    let mut signals = Signals::new(heeded)?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            match first {
                None => first = Some(Instant::now()),
                Some(at) if at.elapsed() < SAME_SIGNAL => continue,
                Some(_) => {
                    log::info!("second signal: exiting at once");
                    std::process::exit(128 + signal);
                }
            }
            if handle.post(move |sockets| shut_down(sockets, drain)).is_err() {
                return; // The loop has ended already.
            }
        }
    })?;
    Ok(())
}

/// Whether the parent process had a signal ignored: a shell does so with SIGINT for what it starts with `&`, and Ctrl-C
/// in its terminal is not meant for that. Only Linux tells.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Health checks serve no client, so they are not waited for.
fn shut_down(sockets: &mut Sockets<'_>, drain: Duration) {
    let mut left = 0;
    for id in sockets.ids() {
        match sockets.get(id).map(|socket| socket.origin()) {
            Some(Origin::Accepted | Origin::Adopted) => left += 1,
            Some(Origin::Dialed { by: None, .. }) => drop(sockets.cancel_dial(id)),
            Some(Origin::Dialed { .. }) | None => {}
        }
    }
    let connections = if left == 1 { "connection has" } else { "connections have" };
    log::info!("shutting down: listeners closed, {left} {connections} {drain:?} to end");
    sockets.shutdown(drain);
}

/// SIGHUP reads the files of both sides of TLS again, and asks for the access log to be opened again. An error in the
/// new files keeps the previous ones.
pub fn reload_on_hangup(
    server: Option<Server>,
    server_args: ServerTlsArgs,
    upstream: Option<(Client, UpstreamTlsArgs)>,
    reopen: Option<Arc<AtomicBool>>,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    thread::Builder::new().name("reload".into()).spawn(move || {
        for _ in signals.forever() {
            systemd::reloading();
            if let Some(reopen) = &reopen {
                reopen.store(true, Ordering::Relaxed);
                log::info!("SIGHUP: the access log is opened again with its next line");
            } else if server.is_none() && upstream.is_none() {
                log::info!("SIGHUP: there are no TLS files to reload");
            }
            if let Some(server) = &server {
                let read = server_args.read();
                let result = read.and_then(|read| server.replace(read).map_err(|error| error.to_string()));
                log_reload("certificates", result);
            }
            if let Some((client, args)) = &upstream {
                let read = args.read();
                let result = read.and_then(|read| client.replace(read).map_err(|error| error.to_string()));
                log_reload("certificates for upstreams", result);
            }
            systemd::ready();
        }
    })?;
    Ok(())
}

fn log_reload(what: &str, result: Result<(), String>) {
    match result {
        Ok(()) => log::info!("{what} reloaded, in use for new connections"),
        Err(why) => log::error!("{why}; keeping the previous {what}"),
    }
}
