//! A million idle connections, both ends on this machine: what each costs, and how long a line to all of them takes
//! while others come and go.
//!
//! `cargo bench --bench million`; `-- --connections N` for another number, `-- --smoke` for 2,000. The server and the
//! clients are a process each, so each needs a descriptor for every connection; where the system does not allow that,
//! it says so and ends. The clients connect from many loopback addresses, 50,000 from each.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidemill::{
    ClosedInfo, ConnId, DialOptions, Input, Key, Limits, ListenOptions, Reactor, Service, Shared, Socket,
    SocketLimits, Sockets,
};

const MILLION: usize = 1_000_000;
const SMOKE: usize = 2_000;
/// Descriptors of a process beside its connections.
const OTHERS: usize = 100;
/// Kernel memory of both ends of a connection, to see beforehand whether there is enough: about 5 KB were measured.
const BYTES_EACH: usize = 8 * 1024;
/// Dials that are under way at once.
const AT_ONCE: usize = 256;
/// Connections beyond the number, of which one after the other leaves.
const REPLACED_AT_ONCE: usize = 16;
const PORTS: usize = 50_000;
const FIRST_PORT: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends each line to all connections.
struct Room;

impl Service for Room {
    type Session = ();

    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let line = Shared::from(input.take_all());
        let mut all = socket.all();
        for id in all.ids() {
            if let Some(mut member) = all.get(id) {
                member.send_shared(&line);
            }
        }
    }
}

/// The other ends. A session is whether the connection stays until the end.
#[derive(Default)]
struct Clients {
    connected: Vec<ConnId>,
    pending: usize,
    failed: usize,
    heard: usize,
    /// Those that are dialed now leave before the end.
    transient: bool,
}

impl Service for Clients {
    type Session = bool;

    fn open(&mut self, _: &mut Socket<'_>) -> bool {
        !self.transient
    }

    fn connected(&mut self, _: &mut bool, socket: &mut Socket<'_>) {
        self.pending -= 1;
        self.connected.push(socket.id());
    }

    fn data(&mut self, stays: &mut bool, _: &mut Socket<'_>, input: &mut Input<'_>) {
        let lines = input.take_all().iter().filter(|byte| **byte == b'\n').count();
        self.heard += lines * usize::from(*stays);
    }

    fn closed(&mut self, _: bool, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        if gone.dial_error.is_some() {
            self.pending -= 1;
            self.failed += 1;
        }
    }
}

/// The clients' process.
struct Driver {
    reactor: Reactor,
    clients: Key<Clients>,
    to: SocketAddr,
    dialed: usize,
}

impl Driver {
    fn state<R>(&mut self, ask: impl FnOnce(&mut Clients) -> R) -> R {
        self.reactor.with(self.clients, |clients, _| ask(clients))
    }

    fn dial(&mut self) {
        let (host, port) = (self.dialed / PORTS, FIRST_PORT + self.dialed % PORTS);
        self.dialed += 1;
        let from = Ipv4Addr::new(127, 1, (host / 250) as u8, (host % 250 + 1) as u8);
        let local = Some(SocketAddr::from((from, port as u16)));
        let options = DialOptions { local, ..DialOptions::default() };
        self.reactor.dial_with(self.to, self.clients, options).expect("a slot");
        self.state(|clients| clients.pending += 1);
    }

    /// Dials until so many are connected. A port that another program has is left out.
    fn connect(&mut self, count: usize) {
        let begun = Instant::now();
        loop {
            let (connected, pending) = self.state(|clients| (clients.connected.len(), clients.pending));
            if connected >= count {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{connected} of {count} connections within {PATIENCE:?}");
            for _ in pending..AT_ONCE.min(count - connected) {
                self.dial();
            }
            self.reactor.turn(Some(Duration::from_millis(10))).expect("a turn");
        }
    }

    /// Has a line sent to all; returns how long it took until the last of those that stay has it, and how many
    /// connections were replaced meanwhile.
    fn line_to_all(&mut self, count: usize) -> (Duration, usize) {
        let begun = Instant::now();
        let first = self.state(|clients| {
            clients.transient = true;
            clients.connected[0]
        });
        self.reactor
            .sockets()
            .get(first)
            .expect("it is connected")
            .send([b"x".repeat(63), vec![b'\n']].concat());
        let mut replaced = 0;
        while self.state(|clients| clients.heard) < count {
            assert!(begun.elapsed() < PATIENCE, "not all have the line within {PATIENCE:?}");
            let leaves =
                self.state(|clients| clients.connected.split_off(count.min(clients.connected.len())));
            for id in leaves {
                if let Some(mut socket) = self.reactor.sockets().get(id) {
                    socket.close();
                    replaced += 1;
                }
            }
            // Those that have closed have a slot until the server has, too.
            if self.reactor.sockets().len() < count + REPLACED_AT_ONCE {
                self.dial();
            }
            self.reactor.turn(Some(Duration::from_millis(10))).expect("a turn");
        }
        (begun.elapsed(), replaced)
    }
}

fn reactor(connections: usize) -> Reactor {
    let limits = Limits { connections: connections + OTHERS / 2, accepts_per_turn: 256, ..Limits::default() };
    Reactor::new(Limits { memory: 1 << 30, ..limits }).expect("a reactor")
}

/// With a timeout, so that each connection has an entry in the timer wheel.
fn limits() -> SocketLimits {
    SocketLimits { idle: Some(Duration::from_secs(3_600)), ..SocketLimits::default() }
}

fn serve(connections: usize) {
    let mut reactor = reactor(connections);
    let room = reactor.add_with(Room, limits());
    let options = ListenOptions { backlog: 4_096, ..ListenOptions::default() };
    let listener = reactor.listen_with("127.0.0.1:0", room, &options).expect("a port");
    println!("{}", reactor.local_addr(listener).expect("it listens"));
    std::io::stdout().flush().expect("the parent process reads it");
    reactor.run().expect("turns");
}

/// The server's process, ended when it is dropped.
struct Server(Child);

impl Server {
    fn start(connections: usize) -> (Server, SocketAddr) {
        let own = std::env::current_exe().expect("a path");
        let mut command = Command::new(own);
        command.args(["--serve", &connections.to_string()]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("an address");
        (Server(child), line.trim().parse().expect("an address"))
    }

    /// Its own memory in bytes: what it holds now, or the most that was resident, code included.
    fn memory(&self, key: &str) -> usize {
        kilobytes(&format!("/proc/{}/status", self.0.id()), key) * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kilobytes(file: &str, key: &str) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Why a number of connections cannot be had here.
fn obstacle(connections: usize) -> Option<String> {
    let needed = connections + OTHERS;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |max| max as usize);
    if descriptors < needed {
        return Some(format!(
            "{needed} descriptors for each of two processes, of which {descriptors} are allowed (RLIMIT_NOFILE, \
             fs.nr_open)"
        ));
    }
    let (free, needed) =
        (kilobytes("/proc/meminfo", "MemAvailable:") / 1024, (connections * BYTES_EACH) >> 20);
    (free < needed).then(|| format!("{needed} MiB of memory, of which {free} are free"))
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1).and_then(|number| number.parse::<usize>().ok())
    };
    if let Some(connections) = after("--serve") {
        obstacle(connections);
        return serve(connections);
    }
    let smoke = words.iter().any(|word| word == "--smoke").then_some(SMOKE);
    let count = after("--connections").or(smoke).unwrap_or(MILLION);
    if let Some(why) = obstacle(count) {
        return println!("skipped: {count} connections take {why}; -- --connections N takes fewer");
    }
    let (server, to) = Server::start(count);
    let mut reactor = reactor(count);
    let clients = reactor.add_with(Clients::default(), limits());
    let mut driver = Driver { reactor, clients, to, dialed: 0 };
    // The first ones have memory allocated that later ones use, too.
    driver.connect(count / 100);
    let (before, slab, begun) =
        (server.memory("RssAnon:"), kilobytes("/proc/meminfo", "Slab:"), Instant::now());
    driver.connect(count);
    let (took, more) = (begun.elapsed(), count - count / 100);
    println!(
        "{count} connections; the last {more} came in {took:.1?}, {:.0} a second",
        more as f64 / took.as_secs_f64()
    );
    let user = server.memory("RssAnon:").saturating_sub(before) as f64 / more as f64;
    let kernel = kilobytes("/proc/meminfo", "Slab:").saturating_sub(slab) as f64 * 1024.0 / more as f64;
    println!(
        "{user:.0} bytes each in the server; {kernel:.0} in the kernel for both ends (the machine's growth)"
    );
    let (took, replaced) = driver.line_to_all(count);
    println!("a line of 64 bytes to all of them: {took:.2?}; meanwhile {replaced} others came and left");
    println!("the most memory the server has had: {} MiB", server.memory("VmHWM:") >> 20);
    println!("dials that failed, most often for a port in use: {}", driver.state(|clients| clients.failed));
}
