//! `--admin`: looks into a running server and changes it, by lines of text over a Unix-domain socket.
//!
//! ```text
//! → connections
//! ← #0.1 service=Echo origin=accepted peer=127.0.0.1:41936 age=2.5 bytes_in=64 bytes_out=64 queued=0
//! ← ok
//! → close #0.1
//! ← ok
//! ```
//!
//! It is a service on the loop that it tells of, so what it lists is of one moment. An answer ends with `ok`, or is one
//! line that begins with `error: `.

mod turns;

use std::fmt::{Display, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::Mode;
use tidemill::services::{Proxy, UpstreamMode};
use tidemill::{
    AccessPolicy, Address, ConnId, Input, Key, Origin, Reactor, Service, ServiceSockets, Socket,
    SocketLimits, Sockets, State,
};

use crate::observe::Names;
use crate::reload::{Place, Running, told};
use turns::Turns;

/// Clients at once, beside --max-connections.
pub const CONNECTIONS: usize = 4;
/// The longest line of a client.
const LINE_MAX: usize = 1024;
/// Connections that one answer lists: some 60 KB.
const LISTED: usize = 500;

const HELP: &str = "\
help                          this list
connections [FIRST]           connections, 500 at once; FIRST: how many to leave out
close ID                      close a connection, after what is queued for it
limits                        options that can be set, and their values
set OPTION VALUE              change one until the server ends; SIGHUP does not undo it
upstreams                     the upstreams of a proxy
upstream ADDRESS down|up|auto take one out of use, use it whatever checks say, or go by checks
turns                         the last 64 turns of the loop
";

/// Adds the service and its listener, which only the user of this process, and root, can connect to.
pub fn serve(
    reactor: &mut Reactor,
    at: &Address,
    names: Names,
    (running, place): (Arc<Mutex<Running>>, Place),
    proxy: Option<Key<Proxy>>,
) -> Result<(), String> {
    let (turns, recorder) = turns::new();
    reactor.observe(recorder);
    let limits =
        SocketLimits { message: LINE_MAX, idle: Some(Duration::from_secs(600)), ..SocketLimits::default() };
    let service = reactor.add_with(Admin { names, running, place, proxy, turns }, limits);
    reactor.set_access_policy(
        service,
        AccessPolicy { connections: Some(CONNECTIONS), ..AccessPolicy::default() },
    );
    // The mode from the start, and not a moment later: the process has other threads, but none makes a file meanwhile.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = reactor.listen(at.clone(), service);
    rustix::process::umask(before);
    listener.map_err(|error| format!("--admin: {error}"))?;
    log::info!("admin at {at}");
    Ok(())
}

struct Admin {
    names: Names,
    running: Arc<Mutex<Running>>,
    place: Place,
    /// Set if the server is a proxy.
    proxy: Option<Key<Proxy>>,
    turns: Turns,
}

impl Service for Admin {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    /// The server does not wait for those who look at it.
    fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, Admin>) {
        sockets.for_each(|(), mut socket| socket.close());
    }

    /// One command in a turn: a list of connections takes a millisecond, and others are served between two. After
    /// `pause` the rest waits until the loop has asked the proxy, so answers keep their order.
    fn data(&mut self, (): &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        // A client that has gone gets no answer, so there is nothing to look up.
        if socket.state() == State::ReadOnly {
            input.take_all();
            return;
        }
        let Some(end) = input.bytes().iter().position(|byte| *byte == b'\n') else { return };
        if end > LINE_MAX {
            send(socket, Err(format!("a line has at most {LINE_MAX} bytes")));
            return socket.close();
        }
        let line = String::from_utf8_lossy(&input.take(end + 1)[..end]).trim().to_string();
        self.answer(socket, &line);
        if !socket.is_paused() && !input.is_empty() {
            // Delivers the rest in the next turn.
            socket.pause();
            socket.resume();
        }
    }
}

impl Admin {
    fn answer(&self, socket: &mut Socket<'_>, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            [] => return,
            ["help"] => Ok(HELP.to_string()),
            ["connections"] => Ok(self.connections(&mut socket.all(), 0)),
            ["connections", first] => match first.parse() {
                Ok(first) => Ok(self.connections(&mut socket.all(), first)),
                Err(_) => Err(format!("{first} is no number")),
            },
            ["close", id] => self.close(&mut socket.all(), id),
            ["limits"] => self.limits(),
            ["set", option, value] => self.set(&mut socket.all(), option, value),
            ["turns"] => Ok(self.turns.borrow().to_string()),
            ["upstreams"] => return self.ask_proxy(socket, upstreams),
            ["upstream", address, mode] => return self.set_upstream(socket, address, mode),
            [word, ..] => {
                Err(format!("{word:?} with {} words behind it is no command; see help", words.len() - 1))
            }
        };
        send(socket, answer);
    }

    fn connections(&self, sockets: &mut Sockets<'_>, first: usize) -> String {
        let mut text = String::new();
        let mut listed = 0;
        let ids = sockets.ids();
        for (place, id) in ids.iter().enumerate().skip(first) {
            if listed == LISTED {
                let _ = writeln!(text, "more: connections {place}");
                break;
            }
            let Some(socket) = sockets.get(*id) else { continue };
            let Some(service) = self.names.get(&socket.service()) else { continue };
            listed += 1;
            let dialed = matches!(socket.origin(), Origin::Dialed { .. });
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{id} service={service} origin={} peer={} age={} bytes_in={} bytes_out={} queued={}",
                if dialed { "dialed" } else { "accepted" },
                socket.peer_addr(),
                socket.age().as_secs_f64(),
                socket.bytes_in(),
                socket.bytes_out(),
                socket.queued(),
            );
        }
        text
    }

    fn close(&self, sockets: &mut Sockets<'_>, id: &str) -> Result<String, String> {
        let found = sockets.ids().into_iter().find(|known| known.to_string() == id);
        let socket = found.and_then(|id| sockets.get(id));
        let socket = socket.filter(|socket| self.names.contains_key(&socket.service()));
        let mut socket = socket.ok_or(format!("no connection {id}"))?;
        log::info!("admin: closes {id} of {}", socket.peer_addr());
        socket.close();
        Ok(String::new())
    }

    /// SIGHUP reads files meanwhile, which the loop does not wait for.
    fn running(&self) -> Result<std::sync::MutexGuard<'_, Running>, String> {
        self.running.try_lock().map_err(|_| "the options are being read; try again".to_string())
    }

    fn limits(&self) -> Result<String, String> {
        let limits = self.running()?.in_force()?;
        let lines = limits.into_iter().map(|(name, value)| format!("{name} {value}\n"));
        Ok(lines.collect())
    }

    fn set(&self, sockets: &mut Sockets<'_>, option: &str, value: &str) -> Result<String, String> {
        let (change, changed) = self.running()?.set(option, value)?;
        change.apply(self.place, sockets);
        log::info!("admin: {option} is set to {value}; {}", told(&changed, &[]));
        Ok(String::new())
    }

    fn set_upstream(&self, socket: &mut Socket<'_>, address: &str, mode: &str) {
        let mode = match mode {
            "down" => UpstreamMode::Down,
            "up" => UpstreamMode::Up,
            "auto" => UpstreamMode::Auto,
            other => return send(socket, Err(format!("{other} is none of down, up, auto"))),
        };
        let to: Address = match address.parse() {
            Ok(to) => to,
            Err(error) => return send(socket, Err(format!("{address}: {error}"))),
        };
        self.ask_proxy(socket, move |proxy, _| match proxy.set_upstream_mode(&to, mode) {
            0 => Err(format!("no upstream {to}")),
            _ => {
                log::info!("admin: upstream {to} is set to {}", word(mode));
                Ok(String::new())
            }
        });
    }

    /// Has the proxy answer, when the loop is between callbacks.
    fn ask_proxy<F>(&self, socket: &mut Socket<'_>, ask: F)
    where
        F: FnOnce(&mut Proxy, Duration) -> Result<String, String> + 'static,
    {
        let Some(proxy) = self.proxy else { return send(socket, Err("the server is no proxy".to_string())) };
        let client: ConnId = socket.id();
        socket.pause();
        let asked = socket.all().later(proxy, move |proxy, sockets| {
            let answer = ask(proxy, sockets.elapsed());
            if let Some(mut socket) = sockets.get(client) {
                send(&mut socket, answer);
                socket.resume();
            }
        });
        if asked.is_err() {
            send(socket, Err("the loop has too much to do; try again".to_string()));
            socket.resume();
        }
    }
}

fn upstreams(proxy: &mut Proxy, now: Duration) -> Result<String, String> {
    let mut text = String::new();
    for status in proxy.upstreams(now) {
        let max = status.upstream.max_connections.map_or("-".to_string(), |max| max.to_string());
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{} {} mode={} connections={} weight={} max={max} backup={} route={}",
            status.upstream.to,
            if status.is_up { "up" } else { "down" },
            word(status.mode),
            status.connections,
            status.upstream.weight,
            yes(status.upstream.backup),
            yes(status.is_routed),
        );
    }
    Ok(text)
}

fn word(mode: UpstreamMode) -> &'static str {
    match mode {
        UpstreamMode::Auto => "auto",
        UpstreamMode::Up => "up",
        UpstreamMode::Down => "down",
    }
}

fn yes(is: bool) -> impl Display {
    if is { "yes" } else { "no" }
}

/// An answer: lines and `ok`, or an error as one line.
fn send(socket: &mut Socket<'_>, answer: Result<String, String>) {
    match answer {
        Ok(lines) => socket.send(format!("{lines}ok\n")),
        Err(why) => socket.send(format!("error: {}\n", why.replace(char::is_control, " "))),
    }
}
