//! What runs the programs, and the clients that use them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidemill::tls::{CertifiedKey, Server, ServerOptions};
use tidemill::{Handle, ListenerId, Reactor};

use super::{files, gateway, memcached, mqtt, pool, socks5};

const TIMEOUT: Duration = Duration::from_secs(30);
const ANY: &str = "127.0.0.1:0";

type Built = io::Result<(Reactor, ListenerId)>;

/// A program on a thread of its own, until it is dropped.
struct Running {
    at: SocketAddr,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(build: impl FnOnce() -> Built + Send + 'static) -> Running {
        Running::start_in(build, |mut reactor| reactor.run().expect("its end"))
    }

    fn start_in(build: impl FnOnce() -> Built + Send + 'static, run: fn(Reactor)) -> Running {
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let (reactor, listener) = build().expect("a reactor");
            let at = reactor.local_addr(listener).and_then(|address| address.inet()).expect("its address");
            tell.send((at, reactor.handle())).expect("a test");
            run(reactor);
        });
        let (at, handle) = told.recv().expect("it listens");
        Running { at, handle, thread: Some(thread) }
    }

    fn port(&self) -> String {
        self.at.port().to_string()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).expect("a connection");
        stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.handle.post(|sockets| sockets.stop());
        self.thread.take().expect("a thread").join().expect("an orderly end");
    }
}

/// Whether a command succeeds; if not, the test is skipped, or fails if it is required.
fn has(command: &str) -> bool {
    let found = Command::new("sh").args(["-c", command]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = found.is_ok_and(|status| status.success());
    assert!(there || env::var("TIDEMILL_INTEROP").as_deref() != Ok("required"), "missing: {command}");
    if !there {
        println!("skipped: no success of {command}");
    }
    there
}

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).stdin(Stdio::null()).output().expect("a program")
}

/// What curl prints; it must succeed.
#[track_caller]
fn curl(words: &[&str]) -> String {
    let output = run("curl", &[&["--silent", "--show-error", "--max-time", "20"], words].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks until an answer is as wanted; fails after a limited time.
#[track_caller]
fn until<T: PartialEq + std::fmt::Debug>(wanted: T, mut ask: impl FnMut() -> T) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let got = ask();
        if got == wanted {
            return;
        }
        assert!(Instant::now() < end, "still {got:?} and not {wanted:?} after {TIMEOUT:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A folder that is removed at the end of its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = env::temp_dir().join(format!("tidemill-programs-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child that is killed at the end of its test.
struct Process(Child);

impl Process {
    fn start(program: &str, words: &[&str]) -> Process {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Process(command.spawn().expect("a program"))
    }

    fn lines(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().expect("its output"))
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("a process");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    line
}

// -- memcached -------------------------------------------------------------------------------------------

const PYMEMCACHE: &str = r"
import sys
from pymemcache.client.base import Client
c = Client(('127.0.0.1', int(sys.argv[1])), timeout=20, no_delay=True)
assert c.set('a', b'1', noreply=False) and c.get('a') == b'1' and c.get('none') is None
assert c.incr('a', 41) == 42 and c.decr('a', 100) == 0 and c.incr('none', 1) is None
big = bytes(range(256)) * 4000
assert c.set('big', big, noreply=False) and c.get('big') == big
assert c.get_many(['a', 'none', 'big']) == {'a': b'0', 'big': big}
value, unique = c.gets('a')
assert c.cas('a', b'7', unique) is True and c.cas('a', b'8', unique) is False and c.cas('none', b'', b'1') is None
assert c.add('a', b'', noreply=False) is False and c.replace('none', b'', noreply=False) is False
assert c.append('a', b'>', noreply=False) and c.prepend('a', b'<', noreply=False) and c.get('a') == b'<7>'
assert c.set('old', b'x', expire=-1, noreply=False) and c.get('old') is None
assert c.touch('a', 100, noreply=False) and c.delete('a', noreply=False) and not c.delete('a', noreply=False)
for i in range(1000): c.set('k%d' % i, b'%d' % i, noreply=True)
assert c.get('k999') == b'999'
try: c.set('huge', b'x' * (1 << 20) + b'x', noreply=False); assert False
except Exception as error: assert 'too large' in str(error), error
assert c.flush_all(noreply=False) and c.get('big') is None and c.version() == b'1.6.0-tidemill'
c.quit()
";

#[test]
fn pymemcache_finds_a_memcached() {
    if !has("/usr/bin/python3 -c 'import pymemcache'") {
        return;
    }
    let server = Running::start(|| memcached::server(ANY));
    let output = run("/usr/bin/python3", &["-c", PYMEMCACHE, &server.port()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn memcached_commands_may_be_pipelined_and_split_anywhere() {
    let commands = [
        "set a 5 0 4\r\nab\r\n\r\nget a b\r\nset b 0 0 1 noreply\r\nx\r\ngets b\r\n",
        "verbosity 1\r\nnone\r\nquit\r\n",
    ]
    .concat();
    let wanted =
        ["STORED\r\nVALUE a 5 4\r\nab\r\n\r\nEND\r\nVALUE b 0 1 2\r\nx\r\nEND\r\n", "OK\r\nERROR\r\n"]
            .concat();
    for at in [1, 12, 15, 17, 19, 30, commands.len() - 1] {
        let server = Running::start(|| memcached::server(ANY));
        let mut stream = server.connect();
        stream.set_nodelay(true).expect("an option");
        for part in [&commands[..at], &commands[at..]] {
            stream.write_all(part.as_bytes()).expect("it takes what we say");
            thread::yield_now();
        }
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("answers, and the end after quit");
        assert_eq!(answers, wanted, "split at {at}");
    }
}

// -- Redis behind HTTP -----------------------------------------------------------------------------------

fn redis_server(socket: &str) -> Process {
    let words = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"];
    let process = Process::start("redis-server", &words);
    until(true, || UnixStream::connect(socket).is_ok());
    process
}

#[test]
fn curl_reads_redis_through_the_gateway() {
    if !has("command -v redis-server && command -v curl") {
        return;
    }
    let folder = Folder::new("gateway");
    let (socket, config) = (folder.path("redis.sock"), folder.path("redis.sock"));
    let gateway = Running::start(move || gateway::server(ANY, &format!("unix:{config}")));
    let url = |key: &str| format!("http://{}/{key}", gateway.at);
    let code = |key: &str| curl(&["--output", "/dev/null", "--write-out", "%{http_code}", &url(key)]);
    assert_eq!(code("a"), "503", "no backend is up");

    let redis = redis_server(&socket);
    let mut control = UnixStream::connect(&socket).expect("redis");
    let big = "y".repeat(3_000_000);
    let set = format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n{big}\r\n", big.len());
    let stores = format!("SET Key value\r\nLPUSH list x\r\n{set}");
    control.write_all(stores.as_bytes()).expect("it takes what we say");
    let mut replies = [0; 14];
    control.read_exact(&mut replies).expect("its replies");
    assert_eq!(&replies, b"+OK\r\n:1\r\n+OK\r\n");
    until("200".to_string(), || code("Key"));
    let (a, b, c) = (url("Key"), url("none"), url("list"));
    assert_eq!(curl(&["--write-out", "%{http_code} %{num_connects};", &a, &b, &c]), {
        let wrong = "WRONGTYPE Operation against a key holding the wrong kind of value";
        format!("value200 1;404 0;{wrong}502 0;")
    });
    assert!(curl(&[&url("big")]) == big, "a value of 3 MB comes whole");

    // Redis stands still: the answer is there in time. It goes on: the pool comes back by itself.
    redis.signal(rustix::process::Signal::STOP);
    assert_eq!(code("Key"), "504");
    redis.signal(rustix::process::Signal::CONT);
    until("200".to_string(), || code("Key"));
    drop(redis);
    until("503".to_string(), || code("Key"));
}

// -- files, and a proxy in front of them -----------------------------------------------------------------

fn file_folder(name: &str) -> (Folder, Vec<u8>) {
    let folder = Folder::new(name);
    let big: Vec<u8> = (0..20_000_000usize).map(|at| (at % 65_521 % 251) as u8).collect();
    fs::create_dir_all(folder.path("sub")).expect("a folder");
    fs::write(folder.path("small"), "a small file\n").expect("a file");
    fs::write(folder.path("sub/index.html"), "the index\n").expect("a file");
    fs::write(folder.path("big"), &big).expect("a file");
    (folder, big)
}

/// What any file server must do, as curl sees it.
fn check_files(base: &str, options: &[&str], folder: &Folder, big: &[u8]) {
    let get = |words: &[&str]| curl(&[options, words].concat());
    let url = |path: &str| format!("{base}{path}");
    let (small, index, none) = (url("/small"), url("/sub/?query"), url("/none"));
    let all = get(&["--write-out", "%{http_code} %{num_connects};", &small, &index, &none, &small]);
    assert_eq!(all, "a small file\n200 1;the index\n200 0;404 0;a small file\n200 0;");
    let head = get(&["--head", &url("/big")]);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n"), "{head}");
    let outside = get(&["--path-as-is", "--write-out", "%{http_code}", &url("/sub/../../../etc/passwd")]);
    assert_eq!(outside, "404");
    let copy = folder.path("copy");
    get(&["--limit-rate", "40M", "--output", &copy, &url("/big")]);
    assert!(fs::read(&copy).expect("a copy") == big, "a large file comes whole to a slow reader");
    let post = get(&["--data", "x", "--write-out", "%{http_code}", &small]);
    assert_eq!(post, "400");
}

#[test]
fn curl_gets_files_by_http() {
    if !has("command -v curl") {
        return;
    }
    let (folder, big) = file_folder("http");
    let root = folder.0.clone();
    let server = Running::start(move || files::server(&root, ANY, None));
    check_files(&format!("http://{}", server.at), &[], &folder, &big);
    // Requests in one packet are answered one after the other, and the last one closes.
    let mut stream = server.connect();
    let request = "GET /small HTTP/1.1\r\n\r\n";
    let all = [&request.repeat(50), "GET /big HTTP/1.1\r\n\r\nGET /none HTTP/1.0\r\n\r\n"].concat();
    stream.write_all(all.as_bytes()).expect("it takes what we say");
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).expect("answers, and the end");
    let last = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(answers.ends_with(&[&big[..], last].concat()), "{} bytes", answers.len());
    assert_eq!(answers.windows(13).filter(|part| part == b"a small file\n").count(), 50);
}

#[test]
fn a_shutdown_ends_idle_connections_at_once_and_lets_answers_finish() {
    let (folder, big) = file_folder("stop");
    let root = folder.0.clone();
    let server = Running::start(move || files::server(&root, ANY, None));
    let (mut idle, mut busy) = (server.connect(), server.connect());
    busy.write_all(b"GET /big HTTP/1.1\r\n\r\n").expect("it takes what we say");
    let mut first = [0; 1];
    busy.read_exact(&mut first).expect("an answer begins");
    server.handle.post(|sockets| sockets.shutdown(TIMEOUT)).expect("a place");
    assert_eq!(idle.read(&mut first).expect("an end"), 0);
    let mut answer = Vec::new();
    busy.read_to_end(&mut answer).expect("the rest, and an end");
    assert!(answer.ends_with(&big), "{} bytes", answer.len());
}

#[test]
fn curl_gets_files_by_https() {
    if !has("command -v curl") {
        return;
    }
    let (folder, big) = file_folder("https");
    let issued = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    let (cert, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    fs::write(folder.path("root.pem"), &cert).expect("a file");
    let pair = CertifiedKey::from_pem(cert.as_bytes(), key.as_bytes()).expect("a pair");
    let options = ServerOptions { certificates: vec![pair], ..ServerOptions::default() };
    let tls = Server::new(options).expect("a TLS server");
    let root = folder.0.clone();
    let server = Running::start(move || files::server(&root, ANY, Some(&tls)));
    let base = format!("https://localhost:{}", server.port());
    check_files(&base, &["--http1.1", "--ipv4", "--cacert", &folder.path("root.pem")], &folder, &big);
}

#[test]
fn curl_gets_files_through_the_socks_proxy() {
    if !has("command -v curl") {
        return;
    }
    let (folder, big) = file_folder("socks");
    let root = folder.0.clone();
    let (server, proxy) =
        (Running::start(move || files::server(&root, ANY, None)), Running::start(|| socks5::server(ANY)));
    let at = proxy.at.to_string();
    check_files(&format!("http://{}", server.at), &["--socks5", &at], &folder, &big);
    let name = format!("http://localhost:{}/small", server.port());
    assert_eq!(curl(&["--socks5-hostname", &at, &name]), "a small file\n");
    let free = TcpListener::bind(ANY).and_then(|free| free.local_addr()).expect("a free port");
    let refused = run("curl", &["--silent", "--show-error", "--socks5", &at, &format!("http://{free}/")]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    // RFC 1928, 6: 5 is "connection refused".
    assert!(error.contains("(5)"), "{error}");
}

// -- MQTT ------------------------------------------------------------------------------------------------

#[test]
fn mosquitto_clients_meet_at_the_broker() {
    if !has("command -v mosquitto_sub && command -v mosquitto_pub") {
        return;
    }
    let broker = Running::start(|| mqtt::server(ANY));
    let port = broker.port();
    let to = ["-h", "127.0.0.1", "-p", &port];
    let publish = |words: &[&str]| {
        let output = run("mosquitto_pub", &[&to[..], words].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let subscribe = |words: &[&str]| Process::start("mosquitto_sub", &[&to[..], &["-v"], words].concat());
    // A retained message comes first, so its line says that the subscription holds.
    publish(&["-t", "room/ready", "-m", "yes", "-r"]);
    let mut both: Vec<_> = ["0", "1"].map(|qos| subscribe(&["-t", "room/#", "-q", qos])).into();
    let mut lines: Vec<_> = both.iter_mut().map(Process::lines).collect();
    for lines in &mut lines {
        assert_eq!(line(lines), "room/ready yes\n");
    }
    publish(&["-t", "room/a/b", "-m", "at most once"]);
    publish(&["-t", "other", "-m", "not for the room"]);
    publish(&["-t", "room/c", "-m", "at least once", "-q", "1"]);
    let big = "z".repeat(100_000);
    publish(&["-t", "room/big", "-m", &big]);
    // A client that is killed leaves its will.
    let mut killed = subscribe(&["-t", "room/ready", "--will-topic", "room/will", "--will-payload", "gone"]);
    assert_eq!(line(&mut killed.lines()), "room/ready yes\n");
    killed.signal(rustix::process::Signal::KILL);
    for lines in &mut lines {
        assert_eq!(line(lines), "room/a/b at most once\n");
        assert_eq!(line(lines), "room/c at least once\n");
        assert_eq!(line(lines), format!("room/big {big}\n"));
        assert_eq!(line(lines), "room/will gone\n");
    }
    // The same name again: the earlier connection is closed.
    let mut first = subscribe(&["-i", "one", "-t", "room/ready"]);
    let mut first_lines = first.lines();
    assert_eq!(line(&mut first_lines), "room/ready yes\n");
    let mut second = subscribe(&["-i", "one", "-t", "room/ready", "-C", "1"]);
    assert_eq!(line(&mut second.lines()), "room/ready yes\n");
}

// -- a thread pool in a loop of another ------------------------------------------------------------------

/// The job `late` ends only when `early`, which came after it, has ended.
fn work(line: &str) -> String {
    static EARLY_IS_DONE: AtomicBool = AtomicBool::new(false);
    match line {
        "early" => EARLY_IS_DONE.store(true, Ordering::Release),
        "late" => until(true, || EARLY_IS_DONE.load(Ordering::Acquire)),
        _ => {}
    }
    format!("{line} is done\n")
}

/// A loop around poll(2), as GLib and others have one: the reactor is a descriptor and a deadline in it.
fn poll_loop(mut reactor: Reactor) {
    while !reactor.is_shutting_down() {
        let wait = reactor.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let wait = wait.map(|wait| Timespec::try_from(wait).expect("a short time"));
        let mut set = [PollFd::new(&reactor, PollFlags::IN)];
        poll(&mut set, wait.as_ref()).expect("a poll");
        reactor.turn(Some(Duration::ZERO)).expect("a turn");
    }
}

#[test]
fn jobs_end_in_any_order_and_their_answers_come_in_order() {
    for host in [|mut reactor: Reactor| reactor.run().expect("its end"), poll_loop as fn(Reactor)] {
        let server = Running::start_in(|| pool::server(ANY, 2, work), host);
        let mut stream = server.connect();
        let jobs: Vec<String> =
            ["late", "early"].into_iter().map(String::from).chain((0..500).map(|n| n.to_string())).collect();
        let sent: String = jobs.iter().map(|job| format!("{job}\n")).collect();
        stream.write_all(sent.as_bytes()).expect("it takes what we say");
        stream.shutdown(std::net::Shutdown::Write).expect("an end");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("answers, and the end after the last one");
        let wanted: String = jobs.iter().map(|job| format!("{job} is done\n")).collect();
        assert_eq!(answers, wanted);
    }
}

#[test]
fn no_program_shares_state_or_polls() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    // Code lines of the same programs on tokio, times 1.5; of the others, what they had before.
    for (name, max) in
        [("memcached", 364), ("gateway", 159), ("socks5", 106), ("files", 196), ("mqtt", 299), ("pool", 100)]
    {
        let text = fs::read_to_string(folder.join(format!("{name}.rs"))).expect("a program");
        let code = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
        let lines = code.clone().count();
        assert!(lines <= max, "{name} has {lines} lines of code, more than {max}");
        for word in ["Rc<", "RefCell", "HashMap<ConnId", "set_timer", "thread_local"] {
            assert!(code.clone().all(|line| !line.contains(word)), "{name} uses {word}");
        }
    }
}
