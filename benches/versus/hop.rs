//! One hop between programs that exist: iperf3 sends one stream through the proxy, or one client of pgbench asks
//! PostgreSQL. Both ends run on the driver's processor, the proxy on the other.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::Value;

use crate::case::Shape;
use crate::driver::Turned;
use crate::peers::{Files, free_address};

const PATIENCE: Duration = Duration::from_secs(30);
/// What one stream and one client come to on a slow machine: a turn has so much work that it takes about its span.
const MIB_PER_SECOND: u64 = 2_000;
const QUERIES_PER_SECOND: u64 = 8_000;
/// PostgreSQL refuses to run as root. This is `nobody`.
const UNPRIVILEGED: u32 = 65_534;

pub struct Hop {
    shape: Shape,
    backend: SocketAddr,
    proxies: Vec<SocketAddr>,
    /// Dropped before its files.
    _server: Backend,
    _files: Files,
}

/// The server behind the proxies, ended on drop.
struct Backend(Child);

impl Drop for Backend {
    fn drop(&mut self) {
        // Of PostgreSQL, the signal that ends it with its children. It may have ended already.
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

impl Hop {
    /// Starts the server behind the proxies; an error says which program is missing.
    pub fn new(shape: Shape) -> Result<Hop, String> {
        let backend = free_address()?;
        let files = Files::new(&format!("hop-{}", backend.port()))?;
        let mut command = match shape {
            Shape::Pgbench => postgres(&files, backend)?,
            _ => {
                let mut command = Command::new("iperf3");
                command.args(["-s", "-B", "127.0.0.1", "-p"]).arg(backend.port().to_string());
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Backend(child.map_err(|error| format!("{:?}: {error}", command.get_program()))?);
        let hop = Hop { shape, backend, proxies: Vec::new(), _server: server, _files: files };
        let end = Instant::now() + PATIENCE;
        while !hop.is_ready() {
            if Instant::now() > end {
                return Err(format!("{:?} does not accept", command.get_program()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        if shape == Shape::Pgbench {
            succeed(pgbench(backend).args(["-i", "-q", "-s", "1"]))?;
        }
        Ok(hop)
    }

    fn is_ready(&self) -> bool {
        match self.shape {
            // It accepts before it answers.
            Shape::Pgbench => succeed(
                Command::new("pg_isready")
                    .args(["-q", "-h", "127.0.0.1"])
                    .args(["-p", &self.backend.port().to_string()]),
            )
            .is_ok(),
            _ => TcpStream::connect(self.backend).is_ok(),
        }
    }

    pub fn backend(&self) -> SocketAddr {
        self.backend
    }

    pub fn connect(&mut self, proxies: &[SocketAddr]) {
        self.proxies = proxies.to_vec();
    }

    /// Runs the client once through one proxy.
    pub fn turn(&self, proxy: usize, span: Duration) -> Turned {
        let (to, millis) = (self.proxies[proxy], span.as_millis() as u64);
        match self.shape {
            Shape::Pgbench => queries(to, (QUERIES_PER_SECOND * millis / 1_000).max(100)),
            _ => stream(to, (MIB_PER_SECOND * millis / 1_000).max(16)),
        }
    }
}

/// Runs iperf3 until so many MiB were sent. A message is one KiB.
fn stream(to: SocketAddr, mib: u64) -> Turned {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut command = Command::new("iperf3");
        command.args(["-c", "127.0.0.1", "-J", "-p", &to.port().to_string(), "-n", &format!("{mib}M")]);
        let output = command.stdin(Stdio::null()).output().expect("iperf3");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let sum = &told["end"]["sum_received"];
        if let (Some(bytes), Some(seconds)) = (sum["bytes"].as_u64(), sum["seconds"].as_f64()) {
            return Turned { messages: bytes / 1_024, span: Duration::from_secs_f64(seconds) };
        }
        // Its server takes one client at a time, and the check whether the proxy accepts was one.
        assert!(Instant::now() < end, "iperf3: {}", told["error"]);
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs pgbench for so many queries over one connection.
fn queries(to: SocketAddr, count: u64) -> Turned {
    let told = succeed(pgbench(to).args(["-S", "-n", "-c", "1", "-t", &count.to_string()])).expect("queries");
    let after = |key: &str| told.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
    let done = after("number of transactions actually processed:");
    assert_eq!(done, format!("{count}/{count}"), "{told}");
    let rate = after("tps =").split(' ').next().and_then(|rate| rate.parse().ok());
    let rate: f64 = rate.unwrap_or_else(|| panic!("no rate in {told}"));
    Turned { messages: count, span: Duration::from_secs_f64(count as f64 / rate) }
}

fn pgbench(to: SocketAddr) -> Command {
    let mut command = Command::new("pgbench");
    command.args(["-h", "127.0.0.1", "-p", &to.port().to_string()]);
    command.env("PGSSLMODE", "disable").env("PGUSER", "tide").env("PGDATABASE", "postgres");
    command
}

/// The standard output of a command that must succeed.
fn succeed(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{:?}: {}: {}", command.get_program(), output.status, text.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A server with an empty database. Nothing is synchronised: what is read is in memory.
fn postgres(files: &Files, address: SocketAddr) -> Result<Command, String> {
    let (initdb, postgres) = (tool("initdb")?, tool("postgres")?);
    succeed(Command::new("pgbench").arg("--version"))?;
    let all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&files.0, all).map_err(|error| format!("{}: {error}", files.0.display()))?;
    let data = files.0.join("data");
    let unprivileged = |program: &PathBuf| {
        let mut command = Command::new(program);
        if getuid().is_root() {
            command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        command.arg("-D").arg(&data);
        command
    };
    let words = ["-U", "tide", "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8"];
    succeed(unprivileged(&initdb).args(words))?;
    let mut command = unprivileged(&postgres);
    command.args(["-p", &address.port().to_string(), "-h", "127.0.0.1", "-k", "", "-F"]);
    Ok(command)
}

/// A program of the newest PostgreSQL. Debian keeps those of the server outside of PATH.
fn tool(name: &str) -> Result<PathBuf, String> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.sort();
    found.retain(|path| path.is_file());
    found.pop().ok_or(format!("{name} of PostgreSQL is not installed"))
}
