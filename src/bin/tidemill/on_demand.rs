//! The upstream of `proxy --on-demand`: a command that runs while there are clients.

use std::collections::HashSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::locked::locked;

/// A command that is started and stopped.
struct Upstream {
    command: String,
    child: Option<Child>,
    /// Waits for the end of one that was told to stop. Until then its port may be taken, so no other is started.
    stopping: Option<JoinHandle<()>>,
    started: Option<Instant>,
}

/// A command that several loops need, each by itself: it runs while one of them does.
#[derive(Clone)]
pub struct SharedUpstream(Arc<Mutex<(Upstream, HashSet<usize>)>>);

impl SharedUpstream {
    pub fn new(command: String) -> SharedUpstream {
        SharedUpstream(Arc::new(Mutex::new((Upstream::new(command), HashSet::new()))))
    }

    /// What the loop of this number needs, see [`Upstream::control`].
    pub fn control(&self, number: usize, is_needed: bool) {
        let (upstream, needed_by) = &mut *locked(&self.0);
        if is_needed {
            needed_by.insert(number);
        } else {
            needed_by.remove(&number);
        }
        upstream.control(!needed_by.is_empty());
    }
}

/// A command that ends at once is not started more often than this.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// After SIGTERM the command has this long; then it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether the command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Upstream {
    fn new(command: String) -> Upstream {
        Upstream { command, child: None, stopping: None, started: None }
    }

    /// Starts the command if it is needed and does not run, or has it stopped. Does not block.
    fn control(&mut self, is_needed: bool) {
        if !is_needed {
            return self.stop();
        }
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => return,
                Ok(Some(status)) => log::warn!("the upstream ended: {status}"),
                Err(error) => log::warn!("the upstream cannot be waited for: {error}"),
            }
            self.child = None;
        }
        let is_early = self.started.is_some_and(|at| at.elapsed() < RESTART_AFTER);
        if is_early || self.stopping.as_ref().is_some_and(|waits| !waits.is_finished()) {
            return;
        }
        self.started = Some(Instant::now());
        match self.start() {
            Ok(child) => {
                log::info!("upstream started, process {}: {}", child.id(), self.command);
                self.child = Some(child);
            }
            Err(error) => log::error!("cannot start the upstream: {error}"),
        }
    }

    /// In a process group of its own, so that Ctrl-C does not reach it before its clients have ended. Its stdout is our
    /// stderr: ours is for the lines that scripts wait for. What systemd has told this process is not for it.
    fn start(&self) -> io::Result<Child> {
        let mut shell = Command::new("/bin/sh");
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDNAMES"] {
            shell.env_remove(variable);
        }
        shell.arg("-c").arg(&self.command).process_group(0);
        shell.stdin(Stdio::null()).stdout(io::stderr()).spawn()
    }

    fn stop(&mut self) {
        let Some(child) = self.child.take() else { return };
        log::info!("no client any more: the upstream, process {}, is stopped", child.id());
        let thread = thread::Builder::new().name("on-demand".into());
        match thread.spawn(move || end(child)) {
            Ok(waits) => self.stopping = Some(waits),
            Err(error) => log::error!("cannot wait for the end of the upstream: {error}"),
        }
        // It may be needed again at once.
        self.started = None;
    }
}

/// The last thing that a server does: its clients have ended.
impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
        if let Some(waits) = self.stopping.take() {
            // It cannot panic, and there is nothing left to do.
            let _ = waits.join();
        }
    }
}

/// Asks a command and what it has started to end, waits, and kills what is left.
fn end(mut child: Child) {
    let group = Pid::from_child(&child);
    for (signal, within) in [(Signal::TERM, STOP_WITHIN), (Signal::KILL, STOP_WITHIN)] {
        // It may have ended already.
        let _ = kill_process_group(group, signal);
        let begun = Instant::now();
        while begun.elapsed() < within {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
        log::warn!("the upstream, process {}, has not ended {within:?} after {signal:?}", child.id());
    }
}
