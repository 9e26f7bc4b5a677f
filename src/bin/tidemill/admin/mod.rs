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
//! It is a service on the first loop. A command is carried out on each loop in turn, so what it lists of one loop is of
//! one moment. An answer ends with `ok`, or is one line that begins with `error: `.

mod turns;

use std::any::Any;
use std::fmt::{Display, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::Mode;
use tidemill::services::{Proxy, UpstreamMode};
use tidemill::{
    AccessPolicy, Address, ClosedInfo, ConnId, Handle, Input, Key, Origin, Reactor, Service, ServiceId,
    ServiceSockets, Socket, SocketLimits, Sockets, State,
};

use crate::locked::locked;
use crate::observe::{Ask, Names, Work};
use crate::reload::{Place, Running, told};
pub use turns::Turns;

/// Clients at once, beside --max-connections.
pub const CONNECTIONS: usize = 4;
/// The longest line of a client.
const LINE_MAX: usize = 1024;
/// Connections that one answer lists: some 60 KB.
const LISTED: usize = 500;
/// How long the loops have for a command. One that hangs must not make its client wait for ever.
const WITHIN: Duration = Duration::from_secs(5);
const NO_PROXY: &str = "the server is no proxy";

const HELP: &str = "\
help                          this list
connections [FIRST]           connections, 500 at once; FIRST: how many to leave out
close ID                      close a connection, after what is queued for it
limits                        options that can be set, and their values
set OPTION VALUE              change one until the server ends; SIGHUP does not undo it
upstreams                     the upstreams of a proxy
upstream ADDRESS down|up|auto take one out of use, use it whatever checks say, or go by checks
turns [SHARD]                 64 turns of a loop: all since the connect, one in 16 before
";

/// The loops of the server.
pub struct Loops {
    /// In the order of their numbers; complete when the server listens.
    pub places: Arc<Mutex<Vec<Place>>>,
    /// Has each of them do something.
    pub asks: Vec<Ask>,
    /// The services on the first one, which has more than that of the server.
    pub names: Names,
    pub turns: Vec<Turns>,
}

/// Adds the service and its listener, which only the user of this process, and root, can connect to.
pub fn serve(
    reactor: &mut Reactor,
    at: &Address,
    loops: Loops,
    running: Arc<Mutex<Running>>,
) -> Result<(), String> {
    let limits =
        SocketLimits { message: LINE_MAX, idle: Some(Duration::from_secs(600)), ..SocketLimits::default() };
    let service = reactor.add_with(Admin { loops, running, own: None, handle: reactor.handle() }, limits);
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
    loops: Loops,
    running: Arc<Mutex<Running>>,
    own: Option<Key<Admin>>,
    handle: Handle,
}

/// A client: how many walks it has begun. An answer of another than the last one is too late.
#[derive(Default)]
struct Client {
    walks: u64,
}

/// A command that goes from loop to loop, on whose threads it is carried out.
///
/// ```text
///     loop 0: Admin ─▶ post ─▶ loop 0: visit ─▶ post ─▶ Admin ─▶ post ─▶ loop 1: visit ─▶ post ─▶ Admin ─▶ answer
/// ```
struct Walk {
    client: ConnId,
    number: u64,
    visit: Visit,
    /// The loop that is next.
    at: usize,
    text: String,
}

type Visit = Box<dyn FnMut(Place, &mut dyn Any, &mut Sockets<'_>) -> Visited + Send>;

/// What came of a command on one loop.
enum Visited {
    /// Further lines of the answer, which goes on with the next loop.
    Lines(String),
    /// The last lines, or an error.
    Done(Result<String, String>),
}

impl Service for Admin {
    type Session = Client;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        self.own = sockets.key(own);
    }

    fn open(&mut self, _: &mut Socket<'_>) -> Client {
        self.loops.turns[0].clients.fetch_add(1, Ordering::Relaxed);
        Client::default()
    }

    fn closed(&mut self, _: Client, _: &ClosedInfo, _: &mut Sockets<'_>) {
        self.loops.turns[0].clients.fetch_sub(1, Ordering::Relaxed);
    }

    /// The server does not wait for those who look at it.
    fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, Admin>) {
        sockets.for_each(|_, mut socket| socket.close());
    }

    /// One command in a turn: a list of connections takes a millisecond, and others are served between two. After
    /// `pause` the rest waits until the loops have answered, so answers keep their order.
    fn data(&mut self, client: &mut Client, socket: &mut Socket<'_>, input: &mut Input<'_>) {
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
        match self.command(&line) {
            Some(Command::Answer(answer)) => send(socket, answer),
            Some(Command::Walk(visit)) => {
                client.walks += 1;
                socket.pause();
                socket.set_alarm(Some(WITHIN));
                let (client, number) = (socket.id(), client.walks);
                let walk = Walk { client, number, visit, at: 0, text: String::new() };
                if let Err(why) = self.go_on(walk) {
                    finish(socket, Err(why));
                }
            }
            None => {}
        }
        if !socket.is_paused() && !input.is_empty() {
            // Delivers the rest in the next turn.
            socket.pause();
            socket.resume();
        }
    }

    fn alarm(&mut self, client: &mut Client, socket: &mut Socket<'_>, _: u64) {
        client.walks += 1;
        finish(socket, Err(format!("a loop has not answered within {WITHIN:?}")));
    }
}

/// What a line asks for.
enum Command {
    Answer(Result<String, String>),
    Walk(Visit),
}

impl Admin {
    fn command(&self, line: &str) -> Option<Command> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let walk = match words[..] {
            [] => return None,
            ["help"] => return Some(Command::Answer(Ok(HELP.to_string()))),
            ["limits"] => return Some(Command::Answer(self.limits())),
            ["turns"] => return Some(Command::Answer(Ok(self.loops.turns[0].to_string()))),
            ["turns", number] => return Some(Command::Answer(self.turns(number))),
            ["connections"] => Ok(list(self.loops.names.clone(), 0)),
            ["connections", first] => match first.parse() {
                Ok(first) => Ok(list(self.loops.names.clone(), first)),
                Err(_) => Err(format!("{first} is no number")),
            },
            ["close", id] => Ok(close(self.loops.names.clone(), id.to_string())),
            ["set", option, value] => self.set(option, value),
            ["upstreams"] => Ok(upstreams()),
            ["upstream", address, mode] => set_upstream(address, mode),
            [word, ..] => {
                Err(format!("{word:?} with {} words behind it is no command; see help", words.len() - 1))
            }
        };
        Some(walk.map_or_else(|why| Command::Answer(Err(why)), Command::Walk))
    }

    fn turns(&self, number: &str) -> Result<String, String> {
        let turns = number.parse().ok().and_then(|number: usize| self.loops.turns.get(number));
        turns
            .map(Turns::to_string)
            .ok_or(format!("{number} is no shard; there are {}", self.loops.turns.len()))
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

    fn set(&self, option: &str, value: &str) -> Result<Visit, String> {
        let (change, changed) = self.running()?.set(option, value)?;
        let text = format!("admin: {option} is set to {value}; {}", told(&changed, &[]));
        Ok(Box::new(move |place, _, sockets| {
            change.clone().apply(place, sockets);
            if place.share.is_last() {
                log::info!("{text}");
            }
            Visited::Lines(String::new())
        }))
    }

    /// Has the next loop carry the command out.
    fn go_on(&self, mut walk: Walk) -> Result<(), String> {
        let place = locked(&self.loops.places).get(walk.at).copied();
        let (Some(place), Some(own)) = (place, self.own) else {
            return Err("the server is starting; try again".to_string());
        };
        let handle = self.handle.clone();
        let work: Work = Box::new(move |service, sockets| {
            let visited = (walk.visit)(place, service, sockets);
            // It fails when the first loop has ended, and the client with it.
            let _ = handle.post_to(own, move |admin, sockets| admin.on_visited(walk, visited, sockets));
        });
        match self.loops.asks[place.share.number](work) {
            true => Ok(()),
            false => Err(format!("loop {} has too much to do; try again", place.share.number)),
        }
    }

    fn on_visited(&self, mut walk: Walk, visited: Visited, sockets: &mut ServiceSockets<'_, Admin>) {
        let (client, number) = (walk.client, walk.number);
        let result = match visited {
            Visited::Done(result) => Some(result.map(|lines| walk.text + &lines)),
            Visited::Lines(lines) => {
                walk.text += &lines;
                walk.at += 1;
                match walk.at == self.loops.asks.len() {
                    true => Some(Ok(walk.text)),
                    false => self.go_on(walk).err().map(Err),
                }
            }
        };
        let Some(result) = result else { return };
        if let Some((_, mut socket)) = sockets.session(client).filter(|(known, _)| known.walks == number) {
            finish(&mut socket, result);
        }
    }
}

/// The name of the service of a connection; none of those that this service and that of the metrics have.
fn name(place: Place, names: &Names, socket: &Socket<'_>) -> Option<&'static str> {
    let is_of_server = socket.service() == place.service;
    is_of_server.then_some(place.name).or_else(|| names.get(&socket.service()).copied())
}

/// Which of several loops it is.
fn shard(place: Place) -> String {
    if place.share.count > 1 { format!(" shard={}", place.share.number) } else { String::new() }
}

fn list(names: Names, first: usize) -> Visit {
    // Of all loops: how many connections were seen, and how many of them listed.
    let (mut seen, mut listed) = (0, 0);
    Box::new(move |place, _, sockets| {
        let mut text = String::new();
        for id in sockets.ids() {
            let Some(socket) = sockets.get(id) else { continue };
            let Some(service) = name(place, &names, &socket) else { continue };
            if listed == LISTED {
                let _ = writeln!(text, "more: connections {seen}");
                return Visited::Done(Ok(text));
            }
            seen += 1;
            if seen <= first {
                continue;
            }
            listed += 1;
            let dialed = matches!(socket.origin(), Origin::Dialed { .. });
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{id}{} service={service} origin={} peer={} age={} bytes_in={} bytes_out={} queued={}",
                shard(place),
                if dialed { "dialed" } else { "accepted" },
                socket.peer_addr(),
                socket.age().as_secs_f64(),
                socket.bytes_in(),
                socket.bytes_out(),
                socket.queued(),
            );
        }
        Visited::Lines(text)
    })
}

fn close(names: Names, id: String) -> Visit {
    Box::new(move |place, _, sockets| {
        let found = sockets.ids().into_iter().find(|known| known.to_string() == id);
        let socket = found.and_then(|id| sockets.get(id));
        match socket.filter(|socket| name(place, &names, socket).is_some()) {
            Some(mut socket) => {
                log::info!("admin: closes {id} of {}", socket.peer_addr());
                socket.close();
                Visited::Done(Ok(String::new()))
            }
            None if place.share.is_last() => Visited::Done(Err(format!("no connection {id}"))),
            None => Visited::Lines(String::new()),
        }
    })
}

fn set_upstream(address: &str, mode: &str) -> Result<Visit, String> {
    let mode = match mode {
        "down" => UpstreamMode::Down,
        "up" => UpstreamMode::Up,
        "auto" => UpstreamMode::Auto,
        other => return Err(format!("{other} is none of down, up, auto")),
    };
    let to: Address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    Ok(Box::new(move |place, service, _| {
        match service.downcast_mut::<Proxy>().map(|proxy| proxy.set_upstream_mode(&to, mode)) {
            None => Visited::Done(Err(NO_PROXY.to_string())),
            Some(0) => Visited::Done(Err(format!("no upstream {to}"))),
            Some(_) => {
                if place.share.is_last() {
                    log::info!("admin: upstream {to} is set to {}", word(mode));
                }
                Visited::Lines(String::new())
            }
        }
    }))
}

fn upstreams() -> Visit {
    Box::new(|place, service, sockets| {
        let Some(proxy) = service.downcast_mut::<Proxy>() else {
            return Visited::Done(Err(NO_PROXY.to_string()));
        };
        let mut text = String::new();
        for status in proxy.upstreams(sockets.elapsed()) {
            let max = status.upstream.max_connections.map_or("-".to_string(), |max| max.to_string());
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{}{} {} mode={} connections={} weight={} max={max} backup={} route={}",
                status.upstream.to,
                shard(place),
                if status.is_up { "up" } else { "down" },
                word(status.mode),
                status.connections,
                status.upstream.weight,
                yes(status.upstream.backup),
                yes(status.is_routed),
            );
        }
        Visited::Lines(text)
    })
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

/// Answers a command that the client was paused for.
fn finish(socket: &mut Socket<'_>, answer: Result<String, String>) {
    socket.set_alarm(None);
    send(socket, answer);
    socket.resume();
}

/// An answer: lines and `ok`, or an error as one line.
fn send(socket: &mut Socket<'_>, answer: Result<String, String>) {
    match answer {
        Ok(lines) => socket.send(format!("{lines}ok\n")),
        Err(why) => socket.send(format!("error: {}\n", why.replace(char::is_control, " "))),
    }
}
