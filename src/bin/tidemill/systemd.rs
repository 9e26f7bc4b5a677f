//! What systemd gives a server and is told by it: sockets, the state, the watchdog.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tidemill::{Input, Reactor, Service, ServiceId, ServiceSockets, Socket, Sockets, TimerId};

/// A listening socket that was passed (sd_listen_fds(3)), with its name.
pub struct Passed {
    /// From FileDescriptorName= of the socket unit, else the name of the unit.
    pub name: String,
    pub listener: PassedListener,
}

pub enum PassedListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The sockets that were passed to this process. Called once, before a thread is started: it takes them out of the
/// environment, so that a child does not take them for its own.
///
/// # Errors
///
/// When one of them is not a listening stream socket.
pub fn passed() -> Result<VecDeque<Passed>, String> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut sockets = ListenFd::from_env();
    let count = sockets.len();
    let take = |index: usize| {
        let name = names.next().unwrap_or_default().to_string();
        let tcp = sockets.take_tcp_listener(index).map(|tcp| tcp.map(PassedListener::Tcp));
        let any =
            tcp.or_else(|_| sockets.take_unix_listener(index).map(|unix| unix.map(PassedListener::Unix)));
        let listener = any.ok().flatten().filter(|listener| match listener {
            PassedListener::Tcp(socket) => is_listening(socket),
            PassedListener::Unix(socket) => is_listening(socket),
        });
        let wrong = || {
            let descriptor = 3 + index;
            format!(
                "descriptor {descriptor} ({name}), passed by systemd, is not a listening stream socket; the socket \
                 unit needs ListenStream= and Accept=no"
            )
        };
        listener.map(|listener| Passed { name: name.clone(), listener }).ok_or_else(wrong)
    };
    (0..count).map(take).collect()
}

/// Whether listen(2) was called on it (SO_ACCEPTCONN). Apple's systems have the name of the option, but not the option:
/// there the first accept(2) reports the error.
#[cfg(not(target_vendor = "apple"))]
fn is_listening(socket: impl AsFd) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
}

#[cfg(target_vendor = "apple")]
fn is_listening(_: impl AsFd) -> bool {
    true
}

/// Takes the sockets with this name, or all.
///
/// # Errors
///
/// When there is none.
pub fn take(passed: &mut VecDeque<Passed>, name: Option<&str>) -> Result<Vec<Passed>, String> {
    let mut taken = Vec::new();
    for one in std::mem::take(passed) {
        let is_meant = name.is_none_or(|name| one.name == name);
        if is_meant { taken.push(one) } else { passed.push_back(one) }
    }
    match name {
        _ if !taken.is_empty() => Ok(taken),
        None => {
            Err("--listen systemd: no socket was passed; start this service by its socket unit".to_string())
        }
        Some(name) => {
            let others: Vec<&str> = passed.iter().map(|one| one.name.as_str()).collect();
            let others = if others.is_empty() { "none".to_string() } else { others.join(", ") };
            Err(format!("--listen systemd:{name}: no socket of this name was passed; left are: {others}"))
        }
    }
}

/// Whether there is a service manager to be told.
fn is_asked() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Tells the service manager; sd_notify(3). It does not matter to the clients whether that works.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("cannot notify the service manager: {error}");
    }
}

/// The server accepts connections, or has reloaded.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The server reads its files again. [`ready`] says that it has.
pub fn reloading() {
    let now = NotifyState::monotonic_usec_now();
    tell(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
}

/// Has the service manager told when the server stops, and, if it has a watchdog, that this loop and the `others` turn.
pub fn notify(reactor: &mut Reactor, others: Vec<AskToTurn>) {
    if !is_asked() {
        return;
    }
    // What a shard has said of itself is known with the next timer, so there are twice as many.
    let part = if others.is_empty() { 2 } else { 4 };
    let every = sd_notify::watchdog_enabled().map(|limit| limit / part);
    let other = |ask| Other { ask, is_asked: false, turns: Arc::new(AtomicBool::new(true)) };
    reactor.add(Notifier { every, others: others.into_iter().map(other).collect() });
}

/// Has another loop set the flag in its next turn; false if it has no place for that.
pub type AskToTurn = Box<dyn Fn(Arc<AtomicBool>) -> bool>;

/// A service without connections. Its timer is due only while the loop turns, so a loop that hangs is noticed; and one
/// of the others that hangs, because it does not set its flag.
struct Notifier {
    every: Option<Duration>,
    others: Vec<Other>,
}

/// Another loop.
struct Other {
    ask: AskToTurn,
    /// Since the service manager was told the last time.
    is_asked: bool,
    turns: Arc<AtomicBool>,
}

impl Service for Notifier {
    type Session = ();

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        let set = self.every.map(|every| sockets.set_timer(own, every, Some(every)));
        if let Some(Err(error)) = set {
            log::warn!("the watchdog of the service manager will expire: {error}");
        }
    }

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}

    fn timer(&mut self, _: TimerId, _: &mut Sockets<'_>) {
        if self.others.iter().all(|other| other.turns.load(Ordering::Relaxed)) {
            tell(&[NotifyState::Watchdog]);
            for other in &mut self.others {
                other.turns.store(false, Ordering::Relaxed);
                other.is_asked = false;
            }
        }
        for other in self.others.iter_mut().filter(|other| !other.is_asked) {
            other.is_asked = (other.ask)(other.turns.clone());
        }
    }

    /// The timer ends with the start of a shutdown, and another one would make the shutdown as long as it may be. So
    /// the watchdog is given the time that the connections have.
    fn stopping(&mut self, grace: Duration, _: &mut ServiceSockets<'_, Notifier>) {
        let mut states = vec![NotifyState::Stopping];
        if let Some(every) = self.every {
            let limit = grace.saturating_add(2 * every);
            states.push(NotifyState::WatchdogUsec(u32::try_from(limit.as_micros()).unwrap_or(u32::MAX)));
            states.push(NotifyState::Watchdog);
        }
        tell(&states);
    }
}
