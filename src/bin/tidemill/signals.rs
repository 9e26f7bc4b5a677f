//! Signals: SIGTERM and SIGINT drain, whatever the parent process has left behind. SIGHUP is in `reload.rs`.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidemill::{Origin, Sockets};

use crate::locked::locked;

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
/// `drain` can change meanwhile. `shut_down` returns whether there was something left to shut down.
pub fn drain_on_signal(
    drain: Arc<Mutex<Duration>>,
    shut_down: impl Fn(Duration) -> bool + Send + 'static,
) -> io::Result<()> {
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
            let drain = *locked(&drain);
            if !shut_down(drain) {
                return;
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

/// Ends the health checks, which serve no client, so they are not waited for. Returns how many clients there are.
pub fn end_checks(sockets: &mut Sockets<'_>) -> usize {
    let mut left = 0;
    for id in sockets.ids() {
        match sockets.get(id).map(|socket| socket.origin()) {
            Some(Origin::Accepted | Origin::Adopted) => left += 1,
            Some(Origin::Dialed { by: None, .. }) => drop(sockets.cancel_dial(id)),
            Some(Origin::Dialed { .. }) | None => {}
        }
    }
    left
}

pub fn log_shutdown(left: usize, drain: Duration) {
    let connections = if left == 1 { "connection has" } else { "connections have" };
    log::info!("shutting down: listeners closed, {left} {connections} {drain:?} to end");
}
