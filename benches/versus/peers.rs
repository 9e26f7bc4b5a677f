//! Other programs with the same service, if they are installed.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::case::{Kind, Shape};
use crate::tls;

/// The files that a peer is started with, removed on drop.
pub struct Files(pub PathBuf);

impl Files {
    /// An empty folder in the temporary directory.
    pub fn new(name: &str) -> Result<Files, String> {
        let folder = std::env::temp_dir().join(format!("tidemill-versus-{name}"));
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Files(folder))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // If it cannot be removed, the folder is left in the temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Starts a peer on the first processor, and waits until it accepts.
pub fn start(
    kind: Kind,
    shape: Shape,
    behind: Option<SocketAddr>,
) -> Result<(Child, SocketAddr, Files), String> {
    let address = free_address()?;
    let files = Files::new(&format!("{}-{}", kind.name(), address.port()))?;
    let mut command = match kind {
        Kind::Epoll => built(&files.0, include_str!("epoll.c"), &[])?,
        Kind::Libuv => built(&files.0, include_str!("libuv.c"), &["-luv"])?,
        Kind::Node => node(&files.0)?,
        Kind::HaProxy if matches!(shape, Shape::TlsProxy | Shape::TlsProxyChurn) => {
            let certificate = write(&files.0, "server.pem", &tls::pem())?;
            haproxy(&files.0, address, behind, &format!(" ssl crt {}", certificate.display()))?
        }
        Kind::HaProxy => haproxy(&files.0, address, behind, "")?,
        Kind::HaProxySplice => haproxy(&files.0, address, behind, "\n  option splice-auto")?,
        _ => nginx(&files.0, address, behind)?,
    };
    if matches!(kind, Kind::Epoll | Kind::Libuv | Kind::Node) {
        command.arg(address.to_string());
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run it: {error}"))?;
    let mut first = CpuSet::new();
    first.set(0);
    // If pinning is not allowed, ranges are wider, but the comparison is still fair.
    let _ = sched_setaffinity(Some(Pid::from_child(&child)), &first);
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("it has ended at once ({status})"));
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err("it does not accept".to_string());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok((child, address, files))
}

/// An address of which the port is free now.
pub fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map_err(|error| error.to_string())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf, String> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

/// A program in C.
fn built(folder: &Path, source: &str, libraries: &[&str]) -> Result<Command, String> {
    let source = write(folder, "echo.c", source)?;
    let program = folder.join("echo");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-o"]).arg(&program).arg(source).args(libraries).stderr(Stdio::null());
    match compiler.status() {
        Ok(status) if status.success() => Ok(Command::new(program)),
        Ok(_) => Err("cc cannot build it (is its library here?)".to_string()),
        Err(error) => Err(format!("cannot run cc: {error}")),
    }
}

/// The program with the servers on other runtimes, built when it is asked for.
pub fn runtimes() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--quiet", "--locked"]).current_dir(package);
    match cargo.env("CARGO_TARGET_DIR", &target).status() {
        Ok(status) if status.success() => Ok(target.join("release/peers")),
        Ok(status) => Err(format!("cargo cannot build benches/peers ({status})")),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}

const NODE: &str = "\
const server = require('net').createServer({ noDelay: true }, socket => {
  socket.on('error', () => {});
  socket.pipe(socket);
});
const [host, port] = process.argv[2].split(':');
server.listen({ host, port: Number(port), backlog: 1024 });
";

fn node(folder: &Path) -> Result<Command, String> {
    let mut command = Command::new("node");
    command.arg(write(folder, "echo.js", NODE)?);
    Ok(command)
}

fn haproxy(
    folder: &Path,
    own: SocketAddr,
    behind: Option<SocketAddr>,
    more: &str,
) -> Result<Command, String> {
    let behind = behind.ok_or("nothing is behind it")?;
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4000\n\
         defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         listen proxy\n  bind {own} backlog 1024{more}\n  server backend {behind}\n"
    );
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(write(folder, "haproxy.cfg", &text)?);
    Ok(command)
}

/// The path in Debian.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

fn nginx(folder: &Path, own: SocketAddr, behind: Option<SocketAddr>) -> Result<Command, String> {
    let behind = behind.ok_or("nothing is behind it")?;
    let module = match Path::new(STREAM_MODULE).exists() {
        true => format!("load_module {STREAM_MODULE};\n"),
        false => String::new(),
    };
    let place = folder.display();
    let text = format!(
        "{module}daemon off;\nmaster_process off;\nworker_processes 1;\nworker_rlimit_nofile 50000;\n\
         pid {place}/pid;\nerror_log {place}/log crit;\n\
         events {{ worker_connections 45000; }}\n\
         stream {{\n  access_log off;\n  server {{ listen {own} backlog=1024; proxy_pass {behind}; }}\n}}\n"
    );
    let path = write(folder, "nginx.conf", &text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(path).args(["-e", "stderr"]);
    Ok(command)
}
