//! The smallest echo program: its size, its time to the first answer, and its memory when idle; and the size of a
//! program that does more. What a plain server does not use must not be linked into it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Band, Figure, Measured, PATIENCE, Peer, Process};
use crate::figure::median;
use crate::process::pin;

/// For other compilers.
const SIZE: Band = Band { percent: 3.0, step: 0.0 };

/// How often each program is started.
const STARTS: usize = 21;

/// What makes a program smaller beside the profile: no tables for unwinding, and relocations in the format of glibc
/// 2.36. docs/embedding.md tells what each takes.
const FLAGS: [&str; 3] =
    ["-Clink-arg=-Wl,--no-eh-frame-hdr", "-Clink-arg=-Wl,-z,pack-relative-relocs", "-Clink-arg=-Wl,-T,"];

/// The same for a static program, with the linker that every Rust toolchain has: GNU ld refuses, because the object
/// files with which musl starts a program refer to these tables.
const STATIC_FLAGS: [&str; 4] =
    ["-Clinker=rust-lld", "-Clink-arg=--no-eh-frame-hdr", "-Crelocation-model=static", "-Clink-arg=-T"];

/// Where a static program is built for.
const STATIC: &str = "x86_64-unknown-linux-musl";

struct Program {
    title: &'static str,
    /// An echo server, not the memcached program of the tests.
    is_plain: bool,
    path: PathBuf,
}

/// The result of one start.
struct Start {
    took: Duration,
    rss: usize,
    pss: usize,
}

pub(super) fn measure(smoke: bool) -> Measured {
    let programs = build(smoke)?;
    let size = |path: &Path| fs::metadata(path).map_or(0.0, |file| file.len() as f64 / 1e3);
    let [plain, memcached] = ["the smallest program", "a memcached program"].map(|name| {
        let of = programs.iter().filter(|one| one.is_plain == (name == "the smallest program"));
        let values = of.map(|one| (one.title.to_string(), size(&one.path)));
        Figure { name: name.to_string(), unit: "kB", band: Some(SIZE), values: values.collect() }
    });
    if smoke {
        return Ok(vec![plain, memcached]);
    }
    let programs: Vec<&Program> = programs.iter().filter(|program| program.is_plain).collect();
    let mut starts: BTreeMap<usize, Vec<Start>> = BTreeMap::new();
    for _ in 0..STARTS {
        for (which, program) in programs.iter().enumerate() {
            starts.entry(which).or_default().push(start(program)?);
        }
    }
    let figure = |name: &str, unit, value: fn(&Start) -> f64| Figure {
        name: name.to_string(),
        unit,
        band: None,
        values: programs
            .iter()
            .enumerate()
            .map(|(which, one)| (one.title.to_string(), median(starts[&which].iter().map(value))))
            .collect(),
    };
    Ok(vec![
        plain,
        memcached,
        figure("from exec to the first echo", "µs", |start| start.took.as_secs_f64() * 1e6),
        figure("idle Rss", "KiB", |start| start.rss as f64 / 1024.0),
        figure("idle Pss", "KiB", |start| start.pss as f64 / 1024.0),
    ])
}

/// The programs with the profile `small`, as a package of their own: in this one, its development dependencies would be
/// built with that profile too. Also the same in C if a compiler is installed. tokio's and the static ones are left out
/// of a smoke test, because they take long to build.
fn build(smoke: bool) -> Result<Vec<Program>, String> {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = temporary.join("small");
    let wrong = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(wrong)?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).map_err(wrong)?;
    fs::write(folder.join("Cargo.toml"), manifest(root)).map_err(wrong)?;
    let memcached = "fn main() -> std::io::Result<()> { memcached::server(\"127.0.0.1:11211\")?.0.run() }";
    let module = root.join("tests/programs/memcached.rs");
    let program = format!("#[path = {module:?}]\nmod memcached;\n{memcached}\n");
    fs::write(folder.join("memcached.rs"), program).map_err(wrong)?;
    let cargo = |flags: &[&str], more: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        // Separated by a byte that no path has. The last option lacks the linker script.
        let script = root.join("benches/versus/small/without_unwinding.ld");
        let flags = format!("{}{}", flags.join("\x1f"), script.display());
        cargo.current_dir(&folder).env("CARGO_ENCODED_RUSTFLAGS", flags);
        // The target folder of the package, also where the variable names that of this one.
        cargo.env_remove("CARGO_TARGET_DIR").args(["build", "--quiet", "--profile", "small"]).args(more);
        run(&mut cargo)
    };
    cargo(&FLAGS, if smoke { &[] } else { &["--features", "tokio"] })?;
    let built = |name| folder.join("target/small").join(name);
    let mut programs = vec![
        Program { title: "tidemill", is_plain: true, path: built("echo") },
        Program { title: "tidemill", is_plain: false, path: built("memcached") },
    ];
    let floor = temporary.join("epoll");
    let source = root.join("benches/versus/epoll.c");
    let cc = |arguments: &[&str], to: &Path| {
        run(Command::new("cc").args(arguments).arg("-o").arg(to).arg(&source))
    };
    match cc(&["-O2", "-s"], &floor) {
        Ok(()) => programs.push(Program { title: "epoll in C", is_plain: true, path: floor }),
        Err(missing) => println!("skipped: epoll in C: {missing}"),
    }
    if smoke {
        return Ok(programs);
    }
    programs.push(Program { title: "tokio current_thread", is_plain: true, path: built("tokio_echo") });
    match cargo(&STATIC_FLAGS, &["--target", STATIC, "--bin", "echo"]) {
        Ok(()) => {
            let path = folder.join("target").join(STATIC).join("small/echo");
            programs.push(Program { title: "tidemill, static (musl)", is_plain: true, path });
        }
        Err(missing) => {
            println!("skipped: tidemill, static; `rustup target add {STATIC}` may help: {missing}")
        }
    }
    let floor = temporary.join("epoll-static");
    match cc(&["-O2", "-s", "-static"], &floor) {
        Ok(()) => programs.push(Program { title: "epoll in C, static (glibc)", is_plain: true, path: floor }),
        Err(missing) => println!("skipped: epoll in C, static: {missing}"),
    }
    Ok(programs)
}

/// With the profiles of this package.
fn manifest(root: &Path) -> String {
    let own = include_str!("../../../Cargo.toml");
    let profile = |name: &str| {
        let from = own.find(&format!("[profile.{name}]")).map_or("", |at| &own[at..]);
        from.split("\n\n").next().unwrap_or_default().to_string()
    };
    let (release, small) = (profile("release"), profile("small"));
    let sources = root.join("benches/versus/small");
    let (echo, tokio) = (sources.join("echo.rs"), sources.join("tokio_echo.rs"));
    format!(
        r#"[package]
name = "small"
edition = "2024"

[workspace]

[features]
tokio = ["dep:tokio"]

[dependencies]
tidemill = {{ path = {root:?} }}
tokio = {{ version = "1", default-features = false, features = ["rt", "net", "io-util", "macros"], optional = true }}

[[bin]]
name = "echo"
path = {echo:?}

[[bin]]
name = "memcached"
path = "memcached.rs"

[[bin]]
name = "tokio_echo"
path = {tokio:?}
required-features = ["tokio"]

{release}

{small}
"#
    )
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
