//! What changes while a server runs: SIGHUP reads the options and the TLS files again, and has the access log opened
//! again.
//!
//! ```text
//! SIGHUP ─▶ thread: read the file ─▶ clap ─▶ limits, rules ─▶ post ─▶ loop: set them
//! ```

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;
use tidemill::tls::{Client, Server};
use tidemill::{AccessPolicy, GroupId, MinRate, ServiceId, SocketLimits, Sockets};

use crate::args::config::{Arguments, RULES};
use crate::args::tls::{ServerTlsArgs, UpstreamTlsArgs};
use crate::args::{self, Cli, Command, ServerArgs};
use crate::locked::locked;
use crate::observe::Reopen;
use crate::shared_limits::Cap;
use crate::systemd;

/// Options that change while a server runs. Those of TLS do, too, where TLS was on from the start.
const LIVE: &[&str] = &[
    "accept-rate",
    "allow",
    "deny",
    "drain",
    "dry-run",
    "first-byte-timeout",
    "half-closed-timeout",
    "handshake-timeout",
    "high-water",
    "idle-timeout",
    "max-connections",
    "max-lifetime",
    "max-per-ip",
    "max-queued",
    "min-rate",
    "rate",
    "total-rate",
];

/// A running server: what it was started with, and what of that is in force now.
pub struct Running {
    /// The arguments at the start, and those in force.
    pub started: Arguments,
    pub arguments: Arguments,
    /// What the service brings along, changed by no option.
    pub usual_limits: SocketLimits,
    pub usual_policy: AccessPolicy,
    /// Whether the connections are in a group whose rate can change: one that other processes share cannot.
    pub has_group: bool,
    /// The connections for which the reactor has slots, and whether it has further ones for another service.
    pub connections: usize,
    /// --max-connections at the start, which may have been cut to what the descriptors allow.
    pub max_connections: Option<usize>,
    pub shares: bool,
    /// Set if the connections are limited together with those of other processes.
    pub cap: Option<Arc<Cap>>,
    /// Whether the service connects to upstreams.
    pub dials: bool,
    pub drain: Arc<Mutex<Duration>>,
    /// The server side of TLS, and where it is read from.
    pub tls: Option<(Server, ServerTlsArgs)>,
    /// The same of the client side.
    pub upstream_tls: Option<(Client, UpstreamTlsArgs)>,
    /// Of the access log, for each loop.
    pub reopen: Vec<Reopen>,
}

/// A loop of the server, and its share of what all of them have.
#[derive(Clone, Copy)]
pub struct Place {
    pub service: ServiceId,
    /// Of the service, for people.
    pub name: &'static str,
    pub group: Option<GroupId>,
    pub share: Share,
}

/// Which loop it is of how many.
#[derive(Clone, Copy)]
pub struct Share {
    pub number: usize,
    pub count: usize,
    /// Connections that belong together: two for a proxy.
    pub together: usize,
}

impl Share {
    /// All, where there is one loop.
    pub const WHOLE: Share = Share { number: 0, count: 1, together: 1 };

    /// Whether it is the last loop.
    pub fn is_last(self) -> bool {
        self.number + 1 == self.count
    }

    /// The shares of all loops are the whole, if that can be divided.
    pub fn connections(self, all: usize) -> usize {
        let units = all / self.together;
        (units / self.count + usize::from(self.number < units % self.count)) * self.together
    }
}

/// What the loops are to use from now on.
#[derive(Clone)]
pub struct Change {
    limits: SocketLimits,
    policy: AccessPolicy,
    cap: Option<Arc<Cap>>,
    total_rate: Option<usize>,
    /// Set if connections that are open get another rate.
    rate: Option<Option<usize>>,
}

impl Change {
    pub fn apply(self, place: Place, sockets: &mut Sockets<'_>) {
        sockets.set_limits(place.service, SocketLimits { group: place.group, ..self.limits });
        let all = self.cap.as_deref().map(Cap::in_force).or(self.policy.connections);
        let connections = all.map(|all| place.share.connections(all));
        sockets.set_access_policy(place.service, AccessPolicy { connections, ..self.policy });
        if let Some((group, rate)) = place.group.zip(self.total_rate) {
            sockets.set_group_rate(group, rate);
        }
        let Some(rate) = self.rate else { return };
        for id in sockets.ids() {
            if let Some(mut socket) = sockets.get(id).filter(|socket| socket.service() == place.service) {
                socket.set_rate(rate);
            }
        }
    }
}

impl Running {
    /// Reads the options again, and gives one of them a new value. Returns what is to be set on the loop, the names of
    /// the options that have changed, and those that need a restart.
    ///
    /// # Errors
    ///
    /// One line for a person; then everything is as before.
    pub fn read_again(
        &mut self,
        set: Option<(&str, &str)>,
    ) -> Result<(Change, Vec<String>, Vec<String>), String> {
        let new = self.arguments.read_again(set)?;
        let placed = |text: String| new.place(&text);
        let cli = Cli::try_parse_from(&new.words).map_err(|error| placed(args::sentence(&error)))?;
        let options = cli.command.server().ok_or("the command is no server")?;
        options.check(self.dials).map_err(placed)?;
        let (limits, policy) = self.limits(options).map_err(placed)?;
        let is_live = |name: &String| self.is_live(name, options);
        let changed: Vec<String> = new.changed_since(&self.arguments).into_iter().filter(is_live).collect();
        let (_, fixed): (Vec<String>, Vec<String>) =
            new.changed_since(&self.started).into_iter().partition(is_live);
        let total_rate = options.total_rate().filter(|_| self.has_group);
        let rate = changed.iter().any(|name| name == "rate").then_some(limits.rate);
        *locked(&self.drain) = options.drain();
        if let Some((_, args)) = self.tls.as_mut().filter(|_| options.tls.is_on()) {
            *args = options.tls.clone();
        }
        match (&mut self.upstream_tls, &cli.command) {
            (Some((_, args)), Command::Proxy { upstreams, .. }) => *args = upstreams.tls.clone(),
            (Some((_, args)), Command::Chat { backplane, .. }) => *args = backplane.upstream_tls(),
            _ => {}
        }
        self.arguments = new;
        Ok((Change { limits, policy, cap: self.cap.clone(), total_rate, rate }, changed, fixed))
    }

    /// Sets one option until the server ends. Returns what is to be set on the loop, and the names of what has changed.
    ///
    /// # Errors
    ///
    /// If it needs a restart, or has no such value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(Change, Vec<String>), String> {
        let needs_group = name == "total-rate" && !self.has_group;
        if RULES.contains(&name) {
            return Err(format!("{name} is a list: change it in the file, and send SIGHUP"));
        }
        if !LIVE.contains(&name) || needs_group {
            return Err(format!("{name} cannot be set while the server runs; see limits"));
        }
        let (change, changed, _) = self.read_again(Some((name, value)))?;
        Ok((change, changed))
    }

    /// The options that can be set, with their values, in the form in which they are given.
    pub fn in_force(&self) -> Result<Vec<(&'static str, String)>, String> {
        let cli = Cli::try_parse_from(&self.arguments.words).map_err(|error| args::sentence(&error))?;
        let options = cli.command.server().ok_or("the command is no server")?;
        let (limits, policy) = self.limits(options)?;
        let number = |max: Option<usize>| max.unwrap_or(0).to_string();
        let time = |span: Option<Duration>| {
            span.map_or("0".to_string(), |span| humantime::format_duration(span).to_string().replace(' ', ""))
        };
        let rate = |rate: Option<MinRate>| {
            rate.map_or("0".to_string(), |rate| format!("{}/{}", rate.bytes, time(Some(rate.per))))
        };
        let mut all = vec![
            ("drain", time(Some(options.drain()).filter(|drain| !drain.is_zero()))),
            ("dry-run", policy.dry_run.to_string()),
            ("first-byte-timeout", time(limits.first_byte)),
            ("half-closed-timeout", time(limits.half_closed)),
            ("high-water", limits.high_water.to_string()),
            ("idle-timeout", time(limits.idle)),
            ("max-connections", policy.connections.unwrap_or(self.connections).to_string()),
            ("max-lifetime", time(limits.lifetime)),
            ("max-per-ip", number(policy.per_address)),
            ("max-queued", limits.queue.to_string()),
            ("min-rate", rate(limits.min_write_rate)),
            ("rate", number(limits.rate)),
        ];
        // These two have no value for "no limit".
        all.extend(policy.accept_rate.map(|max| ("accept-rate", max.to_string())));
        all.extend(options.total_rate().map(|rate| ("total-rate", rate.to_string())));
        Ok(all)
    }

    fn limits(&self, options: &ServerArgs) -> Result<(SocketLimits, AccessPolicy), String> {
        let limits = options.socket_limits(self.usual_limits.clone())?;
        let policy = options.access_policy(self.usual_policy.clone());
        let asked = options.max_connections().unwrap_or(self.connections);
        if asked > self.connections && Some(asked) != self.max_connections {
            return Err(format!(
                "--max-connections cannot be more than {} without a restart: so many slots were made",
                self.connections
            ));
        }
        if let Some(cap) = &self.cap {
            cap.own.store(asked.min(self.connections), Ordering::Relaxed);
        }
        let connections = (self.shares || asked < self.connections).then_some(asked);
        Ok((limits, AccessPolicy { connections, ..policy }))
    }

    fn is_live(&self, name: &String, options: &ServerArgs) -> bool {
        match &**name {
            "total-rate" => self.has_group && options.total_rate().is_some(),
            "handshake-timeout" => self.tls.is_some(),
            "max-handshakes" => false,
            "insecure" => self.upstream_tls.is_some(),
            name if name.starts_with("to-tls") => self.upstream_tls.is_some() && name != "to-tls",
            name if name.starts_with("backplane-tls-") => self.upstream_tls.is_some(),
            name if name.starts_with("tls-") => self.tls.is_some() && options.tls.is_on(),
            name => LIVE.contains(&name),
        }
    }

    /// What SIGHUP asks for. Returns what is to be set on the loop, and logged then.
    fn handle_hangup(&mut self) -> Option<(Change, String)> {
        self.reopen.iter().for_each(|reopen| reopen.store(true, Ordering::Relaxed));
        if !self.reopen.is_empty() {
            log::info!("SIGHUP: the access log is opened again with its next line");
        }
        let path = self.arguments.path.clone();
        let change = path.map(|path| (path, self.read_again(None)));
        if change.is_none() && self.tls.is_none() && self.upstream_tls.is_none() && self.reopen.is_empty() {
            log::info!("SIGHUP: there are no TLS files to reload");
        }
        let change = change.and_then(|(path, result)| match result {
            Ok((change, changed, fixed)) => {
                Some((change, format!("{} was read again; {}", path.display(), told(&changed, &fixed))))
            }
            Err(why) => {
                log::error!("SIGHUP: {why}; keeping the previous options");
                None
            }
        });
        self.reload_certificates();
        change
    }

    /// Reads the files of both sides of TLS again. An error in the new files keeps the previous ones.
    fn reload_certificates(&self) {
        if let Some((server, args)) = &self.tls {
            let read = args.read();
            let result = read.and_then(|read| server.replace(read).map_err(|error| error.to_string()));
            log_reload("certificates", result);
        }
        if let Some((client, args)) = &self.upstream_tls {
            let read = args.read();
            let result = read.and_then(|read| client.replace(read).map_err(|error| error.to_string()));
            log_reload("certificates for upstreams", result);
        }
    }
}

/// What has changed, for people.
pub fn told(changed: &[String], fixed: &[String]) -> String {
    let changed = match changed {
        [] => "no option has changed".to_string(),
        names => format!("changed: {}", names.join(", ")),
    };
    match fixed {
        [] => changed,
        names => format!("{changed}; these need a restart: {}", names.join(", ")),
    }
}

/// `apply` has the loops use a change; the text is for the log.
pub fn on_hangup(
    running: Arc<Mutex<Running>>,
    apply: impl Fn(Change, String) + Send + 'static,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    thread::Builder::new().name("reload".into()).spawn(move || {
        for _ in signals.forever() {
            systemd::reloading();
            let change = locked(&running).handle_hangup();
            systemd::ready();
            if let Some((change, text)) = change {
                apply(change, text);
            }
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
