//! The smallest echo program: its size, its time to the first answer, and its memory when idle.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Figure, Measured, PATIENCE, Peer, Process};
use crate::process::pin;

/// How often each program is started.
const STARTS: usize = 21;

struct Program {
    title: &'static str,
    path: PathBuf,
}

/// The result of one start.
struct Start {
    took: Duration,
    rss: usize,
    pss: usize,
}

pub(super) fn measure(smoke: bool) -> Measured {
    if smoke {
        return Err("not built in a smoke test".to_string());
    }
    let programs = build()?;
    let mut starts: BTreeMap<usize, Vec<Start>> = BTreeMap::new();
    for _ in 0..STARTS {
        for (which, program) in programs.iter().enumerate() {
            starts.entry(which).or_default().push(start(program)?);
        }
    }
    let figure = |name: &str, unit, value: &dyn Fn(usize) -> f64| Figure {
        name: name.to_string(),
        unit,
        values: programs.iter().enumerate().map(|(n, one)| (one.title.to_string(), value(n))).collect(),
    };
    let middle = |which: usize, value: fn(&Start) -> f64| {
        let mut all: Vec<f64> = starts[&which].iter().map(value).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let size = |which: usize| fs::metadata(&programs[which].path).map_or(0.0, |file| file.len() as f64 / 1e3);
    Ok(vec![
        figure("the smallest program", "kB", &size),
        figure("from exec to the first echo", "µs", &|n| middle(n, |start| start.took.as_secs_f64() * 1e6)),
        figure("idle Rss", "KiB", &|n| middle(n, |start| start.rss as f64 / 1024.0)),
        figure("idle Pss", "KiB", &|n| middle(n, |start| start.pss as f64 / 1024.0)),
    ])
}

/// The examples, and the same in C if a compiler is installed.
fn build() -> Result<Vec<Program>, String> {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = temporary.parent().ok_or("no target folder")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let examples = ["--example", "echo", "--example", "tokio_echo"];
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(folder).args(["build", "--quiet", "--locked", "--profile", "small"]).args(examples);
    run(cargo.arg("--target-dir").arg(target))?;
    let built = |name| target.join("small/examples").join(name);
    let mut programs = vec![
        Program { title: "tidemill", path: built("echo") },
        Program { title: "tokio current_thread", path: built("tokio_echo") },
    ];
    let floor = temporary.join("epoll");
    let source = folder.join("benches/versus/epoll.c");
    match run(Command::new("cc").args(["-O2", "-s", "-o"]).arg(&floor).arg(source)) {
        Ok(()) => programs.push(Program { title: "epoll in C", path: floor }),
        Err(missing) => println!("skipped: epoll in C: {missing}"),
    }
    Ok(programs)
}

fn run(command: &mut Command) -> Result<(), String> {
    let status = command.stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{:?}: {status}", command.get_program())),
        Err(error) => Err(format!("{:?}: {error}", command.get_program())),
    }
}

/// The program and its client run on different processors: otherwise the program may have to wait for a client that
/// connects in a loop.
fn start(program: &Program) -> Result<Start, String> {
    // From another address: a client on the same address could connect to itself before the program listens.
    let free = TcpListener::bind("127.0.0.9:0").and_then(|listener| listener.local_addr());
    let address = free.map_err(|error| error.to_string())?;
    let (began, process, stream) = thread::scope(|scope| {
        let starts = scope.spawn(|| {
            pin(0);
            let mut command = Command::new(&program.path);
            let began = Instant::now();
            (began, Process::start(command.arg(address.to_string()).stdin(Stdio::null())))
        });
        let calls = scope.spawn(|| {
            pin(1);
            first(address)
        });
        let (began, process) = starts.join().expect("a start");
        (began, process, calls.join().expect("a call"))
    });
    let process = process?;
    let mut peer = Peer::over(stream.ok_or_else(|| format!("{} does not listen", program.title))?);
    peer.say();
    peer.hear();
    let took = began.elapsed();
    Ok(Start { took, rss: process.memory("Rss"), pss: process.memory("Pss") })
}

fn first(address: SocketAddr) -> Option<TcpStream> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(stream) = TcpStream::connect(address) {
            return Some(stream);
        }
    }
    None
}
