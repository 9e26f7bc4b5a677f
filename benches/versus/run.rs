//! Servers, rounds and turns.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::bulk::Bulk;
use crate::case::{Case, Kind, Shape};
use crate::driver::{Driver, Turned};
use crate::figure::{Figure, Rounds, median};
use crate::hop::Hop;
use crate::peers;
use crate::process::raise_descriptors;

/// How much is measured.
pub struct Effort {
    pub rounds: usize,
    pub turns: usize,
    pub shorter: u32,
}

/// A server in a process of its own, killed on drop.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    _files: Option<peers::Files>,
}

impl Server {
    pub fn start(kind: Kind, shape: Shape, behind: Option<SocketAddr>) -> Result<Server, String> {
        if kind.is_peer() && !kind.is_runtime() {
            let (child, address, files) = peers::start(kind, shape, behind)?;
            return Ok(Server { child, address, _files: Some(files) });
        }
        let program = match kind.is_runtime() {
            true => peers::runtimes()?,
            false => std::env::current_exe().expect("this program"),
        };
        let shape = match shape {
            Shape::Echo | Shape::Churn => "echo",
            Shape::TlsEcho | Shape::TlsChurn => "tls",
            Shape::FanOut => "fan-out",
            Shape::TlsProxy | Shape::TlsProxyChurn => "tls-proxy",
            Shape::Proxy | Shape::ProxyChurn | Shape::Bulk | Shape::Iperf | Shape::Pgbench => "proxy",
        };
        let mut child = Command::new(program)
            .args(["--serve", kind.name(), shape])
            .args(behind.map(|address| address.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its stdout");
        BufReader::new(stdout).read_line(&mut line).expect("its address");
        let Ok(address) = line.trim().parse() else {
            let status = child.wait().map_err(|error| error.to_string())?;
            return Err(format!("it has ended at once ({status})"));
        };
        Ok(Server { address, child, _files: None })
    }

    /// The processor time of its threads.
    fn busy(&self) -> Duration {
        let folder = format!("/proc/{}/task", self.child.id());
        let tasks = fs::read_dir(folder).expect("it runs").filter_map(Result::ok);
        let spent = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(spent.sum())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of the three drivers.
enum Load {
    Talk(Box<Driver>),
    Bulk(Bulk),
    Hop(Hop),
}

impl Load {
    fn of(case: &Case) -> Result<Load, String> {
        Ok(match case.shape {
            Shape::Bulk => Load::Bulk(Bulk::new()),
            Shape::Iperf | Shape::Pgbench => Load::Hop(Hop::new(case.shape)?),
            _ => Load::Talk(Box::new(Driver::new(case))),
        })
    }

    fn backend(&self) -> Option<SocketAddr> {
        match self {
            Load::Talk(driver) => driver.backend(),
            Load::Bulk(bulk) => Some(bulk.backend()),
            Load::Hop(hop) => Some(hop.backend()),
        }
    }

    fn connect(&mut self, case: &Case, targets: &[SocketAddr]) {
        match self {
            Load::Talk(driver) => driver.connect(targets),
            Load::Bulk(bulk) => bulk.connect(targets, case.connections),
            Load::Hop(hop) => hop.connect(targets),
        }
    }

    fn turn(&mut self, target: usize, span: Duration, warms_up: bool) -> Turned {
        match self {
            Load::Talk(driver) => driver.turn(target, span),
            Load::Bulk(bulk) => bulk.turn(target, span, warms_up),
            Load::Hop(hop) => hop.turn(target, span),
        }
    }
}

/// Measures all servers of a case, round by round; an error is the reason why nothing can be compared.
pub fn measure(case: &Case, effort: &Effort, peers: &[Kind]) -> Result<Rounds, String> {
    let mut kinds = case.kinds(peers);
    let (driver, server) = case.descriptors(kinds.len());
    let max = raise_descriptors();
    if driver.max(server) > max {
        return Err(format!("it takes {driver} descriptors, and the process may open {max}"));
    }
    let mut result = Rounds::new();
    for round in 0..effort.rounds {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{}: round {} of {} ", case.name, round + 1, effort.rounds);
        }
        let mut load = Load::of(case)?;
        let mut servers = Vec::new();
        kinds.retain(|&kind| match Server::start(kind, case.shape, load.backend()) {
            Ok(server) => {
                servers.push(server);
                true
            }
            Err(why) => {
                println!("{} is left out: {why}", kind.title());
                false
            }
        });
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        load.connect(case, &addresses);
        let mut sums = vec![(Turned::default(), Duration::ZERO); servers.len()];
        for turn in 0..=effort.turns {
            for place in 0..servers.len() {
                // The order changes, so that no server always follows the same one.
                let which = (place + turn + round) % servers.len();
                let before = servers[which].busy();
                let turned = load.turn(which, case.turn / effort.shorter, turn == 0);
                let busy = servers[which].busy() - before;
                // The first turn is a warm-up.
                if turn > 0 {
                    sums[which].0.messages += turned.messages;
                    sums[which].0.span += turned.span;
                    sums[which].1 += busy;
                }
            }
        }
        for (&kind, (turned, busy)) in kinds.iter().zip(sums) {
            let messages = turned.messages.max(1) as f64;
            let figures = (messages / turned.span.as_secs_f64(), busy.as_nanos() as f64 / messages);
            result.entry(kind).or_default().push(figures);
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    Ok(result)
}

/// The cost of busy polling when there are only a thousand events a second.
pub fn low_rate(effort: &Effort) -> Figure {
    let kinds = [Kind::TidemillBusyPoll, Kind::Tidemill];
    let servers = kinds.map(|kind| Server::start(kind, Shape::Echo, None).expect("a server"));
    let mut streams = servers.each_ref().map(|server| {
        let stream = TcpStream::connect(server.address).expect("a server");
        stream.set_nodelay(true).expect("an option");
        stream
    });
    let count = 1_000 / effort.shorter;
    let mut busy = [(); 2].map(|()| Vec::new());
    for _ in 0..effort.rounds {
        for ((server, stream), busy) in servers.iter().zip(&mut streams).zip(&mut busy) {
            let before = server.busy();
            let begun = Instant::now();
            for n in 0..count {
                let due = begun + Duration::from_millis(1) * n;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let mut answer = [0; 64];
                stream.write_all(&[b'x'; 64]).expect("it reads");
                stream.read_exact(&mut answer).expect("it answers");
            }
            busy.push((server.busy() - before).as_nanos() as f64 / f64::from(count));
        }
    }
    let values = kinds.iter().zip(busy).map(|(kind, busy)| (kind.title().to_string(), median(busy)));
    Figure {
        name: "processor time at 1,000 messages a second".to_string(),
        unit: "ns each",
        band: None,
        values: values.collect(),
    }
}
