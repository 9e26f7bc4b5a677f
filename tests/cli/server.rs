//! A running `tidemill` process, and its log, memory and processor time.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit, setrlimit};

/// The binary under test.
pub const TIDEMILL: &str = env!("CARGO_BIN_EXE_tidemill");

static MACHINE: RwLock<()> = RwLock::new(());

/// A lock for tests that measure time or memory: no other test of this program runs meanwhile.
pub fn exclusive() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// A lock for all other tests.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a condition; fails after a limited time.
#[track_caller]
pub fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < end, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asserts a maximum time. The shortest of three attempts counts, because a busy machine may delay one.
#[track_caller]
pub fn within_one_of_three(what: &str, max: Duration, mut attempt: impl FnMut() -> Duration) {
    let mut times = Vec::new();
    while times.len() < 3 {
        times.push(attempt());
        if times.iter().any(|time| *time <= max) {
            println!("{what}: {times:?}");
            return;
        }
    }
    panic!("{what} takes more than {max:?}: {times:?}");
}

/// Raises the descriptor limit of this process to the hard limit; returns it.
pub fn raise_descriptors() -> usize {
    let max = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: max, maximum: max })
        .expect("the soft limit up to the hard one");
    usize::try_from(max.unwrap_or(1 << 20)).expect("a number of descriptors")
}

/// A child process, killed when it is dropped.
pub struct Process(pub Child);

impl Process {
    /// Waits for the process to exit; fails after this time.
    #[track_caller]
    pub fn wait_for_exit(&mut self, within: Duration) -> ExitStatus {
        let mut status = None;
        until("the end of the process", within, || {
            status = self.0.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `foreground` while `background` runs in another thread. When `foreground` ends, the flag tells `background` to
/// end, also when `foreground` fails: otherwise a failed test would never end.
pub fn meanwhile<T>(background: impl FnOnce(&AtomicBool) + Send, foreground: impl FnOnce() -> T) -> T {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| background(&over));
        let _ends = Ends(&over);
        foreground()
    })
}

pub struct Server {
    process: Process,
    /// The address of its first listener that has an IP address.
    pub address: SocketAddr,
    /// The addresses of all listeners that have an IP address.
    pub addresses: Vec<SocketAddr>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts `tidemill` with these arguments, on a free port if they name none.
    pub fn start(words: &str) -> Server {
        Server::spawn(Command::new(TIDEMILL), words)
    }

    /// The same with log level debug.
    pub fn start_with_debug_log(words: &str) -> Server {
        let mut command = Command::new(TIDEMILL);
        command.env("RUST_LOG", "debug");
        Server::spawn(command, words)
    }

    /// The same with a limited number of descriptors.
    pub fn start_with_descriptors(max: usize, words: &str) -> Server {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {max} && exec \"$@\""), "sh", TIDEMILL]);
        Server::spawn(shell, words)
    }

    /// The same under strace, which writes the system calls of each thread to a file: its path, a dot, and the id.
    pub fn start_traced(calls: &Path, words: &str) -> Server {
        let mut strace = Command::new("strace");
        // -D: the tracer is a process of its own, so that signals reach the server.
        strace.args(["-D", "-ff", "-o"]).arg(calls).arg(TIDEMILL);
        Server::spawn(strace, words)
    }

    /// The same with variables in its environment.
    pub fn start_with(variables: &[(&str, &str)], words: &str) -> Server {
        let mut command = Command::new(TIDEMILL);
        command.envs(variables.iter().copied());
        Server::spawn(command, words)
    }

    /// The same with arguments that have spaces.
    pub fn start_words(words: &[&str]) -> Server {
        Server::spawn_words(Command::new(TIDEMILL), words.to_vec())
    }

    fn spawn(command: Command, words: &str) -> Server {
        Server::spawn_words(command, words.split_whitespace().collect())
    }

    fn spawn_words(mut command: Command, mut words: Vec<&str>) -> Server {
        let listeners = words.iter().filter(|word| **word == "--listen").count().max(1);
        if !words.contains(&"--listen") {
            words.extend(["--listen", "127.0.0.1:0"]);
        }
        command.args(&words);
        if command.get_envs().all(|(name, _)| name != "RUST_LOG") {
            command.env("RUST_LOG", "info");
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it");
        let log = Arc::new(Mutex::new(String::new()));
        let (copy, stderr) = (log.clone(), child.stderr.take().expect("its log"));
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut copy = copy.lock().unwrap_or_else(PoisonError::into_inner);
                copy.push_str(&line);
                copy.push('\n');
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("its stdout"));
        let mut addresses = Vec::new();
        for _ in 0..listeners {
            let mut line = String::new();
            stdout.read_line(&mut line).expect("its start line");
            let address = line.trim_end().strip_prefix("listening on ");
            let address = address.unwrap_or_else(|| panic!("{words:?} printed {line:?} and logged {log:?}"));
            if !address.starts_with("unix:") {
                addresses.push(address.parse().expect("an address with the real port"));
            }
        }
        // From here on its stdout is not read; the server must not block on that.
        drop(stdout);
        let address = addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        Server { process: Process(child), address, addresses, log }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process.0)
    }

    pub fn id(&self) -> u32 {
        self.process.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Waits for the process to exit; fails after this time.
    #[track_caller]
    pub fn ended(&mut self, within: Duration) -> ExitStatus {
        self.process.wait_for_exit(within)
    }

    /// Ends the server with SIGTERM; returns its log.
    #[track_caller]
    pub fn end(&mut self) -> String {
        self.signal(Signal::TERM);
        let status = self.ended(Duration::from_secs(20));
        assert_eq!(status.code(), Some(0), "{}", self.log());
        until("its last output", Duration::from_secs(5), || self.log().contains("accepted="));
        self.log()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes its descriptor limit.
    pub fn limit_descriptors(&self, max: u64) {
        let hard = getrlimit(Resource::Nofile).maximum;
        prlimit(Some(self.pid()), Resource::Nofile, Rlimit { current: Some(max), maximum: hard })
            .expect("the limit");
    }

    /// Its private memory, in bytes.
    pub fn memory(&self) -> usize {
        self.status("RssAnon:")
    }

    /// The maximum of its resident memory so far, code included, in bytes.
    pub fn peak(&self) -> usize {
        self.status("VmHWM:")
    }

    /// Its resident memory, code included, in bytes.
    pub fn resident(&self) -> usize {
        self.status("VmRSS:")
    }

    fn status(&self, key: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the key");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("kilobytes") * 1024
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.0.id())).expect("it runs").count()
    }

    /// How often it has called write(2) and the like, send(2) not counted.
    pub fn write_calls(&self) -> usize {
        let counters = fs::read_to_string(format!("/proc/{}/io", self.process.0.id())).expect("it runs");
        let count = counters.lines().find_map(|line| line.strip_prefix("syscw: ")).expect("the counter");
        count.parse().expect("a number")
    }

    /// The processor time it has used.
    pub fn busy(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.0.id())).expect("it runs");
        let spent = tasks.map(|task| {
            let path = task.expect("a thread of it").path().join("schedstat");
            let text = fs::read_to_string(path).expect("its time");
            text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).expect("nanoseconds")
        });
        Duration::from_nanos(spent.sum())
    }
}

/// The output and exit code of a command that ends by itself.
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub code: Option<i32>,
}

/// Runs `tidemill` with these arguments and this stdin until it ends.
pub fn run(words: &[&str], stdin: &[u8]) -> Outcome {
    let mut command = Command::new(TIDEMILL);
    command.args(words);
    complete(command, stdin)
}

/// Runs a command with this stdin until it ends.
#[track_caller]
pub fn complete(command: Command, stdin: &[u8]) -> Outcome {
    complete_within(Duration::from_secs(60), command, stdin)
}

/// The same with a given time limit.
#[track_caller]
pub fn complete_within(max: Duration, mut command: Command, stdin: &[u8]) -> Outcome {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().expect("it"));
    let (mut input, stdin) = (process.0.stdin.take().expect("its stdin"), stdin.to_vec());
    // The command may end before it has read all of its stdin.
    let writer = thread::spawn(move || std::io::Write::write_all(&mut input, &stdin));
    let mut output = process.0.stdout.take().expect("its stdout");
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).map(|_| bytes)
    });
    let status = process.wait_for_exit(max);
    let _ = writer.join().expect("the writer");
    let stdout = reader.join().expect("the reader").expect("its stdout");
    let mut stderr = String::new();
    process.0.stderr.take().expect("its stderr").read_to_string(&mut stderr).expect("text");
    Outcome { stdout, stderr, code: status.code() }
}
