//! Costs other than throughput: memory, system calls, instructions, size on disk, and the time to the first answer.
//!
//! Only the last of these is a time. The others are valid on a busy machine too, except how often a server waits.

mod calls;
mod instructions;
mod memory;
mod size;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::bands::Band;
use crate::case::Kind;
use crate::figure::Figure;
use crate::process::raise_descriptors;

/// Some of the figures, or why they could not be measured.
type Measured = Result<Vec<Figure>, String>;

/// The longest time to wait for an answer or an end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The size of a message in bytes.
const MESSAGE: usize = 64;

/// All figures for which this machine has the tools; for the others it prints which tool is missing. In a smoke test
/// with few connections and messages, and without building the examples.
pub fn measure(smoke: bool) -> Vec<Figure> {
    let parts = [
        ("memory", memory::measure as fn(bool) -> Measured),
        ("system calls", calls::measure),
        ("instructions", instructions::measure),
        ("size and start", size::measure),
    ];
    let mut figures = Vec::new();
    for (part, measure) in parts {
        match measure(smoke) {
            Ok(more) => figures.extend(more),
            Err(missing) => println!("skipped: {part}: {missing}"),
        }
    }
    figures
}

/// One figure per server.
fn figure(
    name: impl Into<String>,
    unit: &'static str,
    band: Band,
    kinds: &[Kind],
    mut value: impl FnMut(Kind) -> Result<f64, String>,
) -> Result<Figure, String> {
    let values = kinds.iter().map(|&kind| Ok((kind.title().to_string(), value(kind)?)));
    Ok(Figure { name: name.into(), unit, band: Some(band), values: values.collect::<Result<_, String>>()? })
}

/// A child process, killed when it is dropped.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Process, String> {
        let child = command.spawn();
        child.map(Process).map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))
    }

    fn signal(&self, signal: Signal) {
        // If the process has ended already, the next wait reports it.
        let _ = kill_process(Pid::from_child(&self.0), signal);
    }

    /// Sends SIGTERM, and waits for the exit.
    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        until("the end of a process", || self.0.try_wait().is_ok_and(|status| status.is_some()));
    }

    /// The state of the process: `S`, `T` and so on (proc(5)).
    fn state(&self) -> char {
        let text = self.told("stat");
        // The name, in parentheses, may contain any character.
        text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?')
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).map_or(0, Iterator::count)
    }

    /// A value of `smaps_rollup`, in bytes.
    fn memory(&self, key: &str) -> usize {
        let text = self.told("smaps_rollup");
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        let kilobytes = line.trim_start_matches(':').trim().trim_end_matches(" kB");
        kilobytes.parse::<usize>().unwrap_or_else(|_| panic!("no {key} in {text:?}")) * 1024
    }

    fn told(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that first prints its address.
struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    /// Starts this program with these arguments.
    fn start(words: &[&str]) -> Result<Server, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        Server::start_as(Command::new(own).args(words))
    }

    fn start_as(command: &mut Command) -> Result<Server, String> {
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let stdout = process.0.stdout.take().ok_or("no stdout")?;
        let (send, told) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            // An error means that the receiver has given up waiting.
            let _ = send.send(line);
        });
        let line = told.recv_timeout(PATIENCE).unwrap_or_default();
        let address = line.trim().parse();
        Ok(Server { address: address.map_err(|_| format!("{command:?} printed {line:?}"))?, process })
    }
}

/// A client connection.
struct Peer(TcpStream);

impl Peer {
    fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
        Peer::over(stream)
    }

    fn over(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        Peer(stream)
    }

    fn say(&mut self) {
        self.0.write_all(&[b'x'; MESSAGE]).expect("a server that listens");
    }

    fn hear(&mut self) {
        let mut heard = [0; MESSAGE];
        self.0.read_exact(&mut heard).expect("a server that answers");
        assert!(heard == [b'x'; MESSAGE], "a server has answered with other bytes");
    }
}

/// Waits for a condition; fails after a limited time.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}
