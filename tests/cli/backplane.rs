//! `chat --backplane`: processes of one room over a real Redis, which is killed and comes back.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::interop::has;
use crate::member::Member;
use crate::metrics::{address, scrape, value};
use crate::server::{Process, Server, shared, until};

const SOON: Duration = Duration::from_secs(20);
/// Redis with TLS only, by the certificate in its folder.
const TLS: &[&str] = &[
    "--port",
    "0",
    "--tls-port",
    "6379",
    "--tls-auth-clients",
    "no",
    "--tls-cert-file",
    "site.pem",
    "--tls-key-file",
    "site.key",
];
const LOST: &str = "lines from elsewhere are missing here: the broker does not have them any more\n";

/// A Redis with a folder of its own, in which there is a certificate for site.example, at an address of the loopback
/// that no other test uses: it can be given up and bound again.
pub struct Redis {
    process: Option<Process>,
    folder: PathBuf,
    pub address: SocketAddr,
    options: &'static [&'static str],
}

impl Redis {
    pub fn start(test: u8, options: &'static [&'static str]) -> Redis {
        let id = std::process::id();
        let folder = std::env::temp_dir().join(format!("tidemill-backplane-{id}-{test}"));
        fs::create_dir_all(&folder).expect("a folder");
        let (certificate, key) = certificate();
        fs::write(folder.join("site.pem"), certificate).expect("a file");
        fs::write(folder.join("site.key"), key).expect("a file");
        let address = SocketAddr::from(([127, 77, (id % 250) as u8 + 1, test], 6379));
        let mut redis = Redis { process: None, folder, address, options };
        redis.run();
        redis
    }

    pub fn run(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", &self.address.ip().to_string(), "--protected-mode", "no", "--save", ""]);
        command.args(self.options).current_dir(&self.folder);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("redis-server");
        self.process = Some(Process(process));
        until("redis answers", SOON, || TcpStream::connect(self.address).is_ok());
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// A number from its INFO.
    fn info(&self, password: &str, name: &str) -> u64 {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        write!(stream, "AUTH {password}\r\nINFO stats\r\nQUIT\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("its answers");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().expect("a number")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        // Files that cannot be removed are left in the temporary folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A certificate for site.example, and its key.
fn certificate() -> (String, String) {
    let params = rcgen::CertificateParams::new(vec!["site.example".to_string()]).expect("a name");
    let key = rcgen::KeyPair::generate().expect("a key");
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

/// A chat of the room behind this URL, when it is connected to the broker.
fn chat(url: &str, name: &str) -> Server {
    let server =
        Server::start(&format!("chat --rate 0 --drain 2s --backplane {url} --backplane-name {name}"));
    until("it is connected", SOON, || server.log().contains(&format!(" as {name}, ")));
    server
}

/// Processes whose members say 300 lines each. The broker is killed behind the first third, comes back behind the
/// second, and has kept its stream. A line that it had, and whose answer was lost, is sent to it twice.
fn each_line_is_told_once_and_in_order(test: u8, processes: &[&str], shards: usize) {
    if !has("redis-server") {
        return;
    }
    let mut redis = Redis::start(test, &["--appendonly", "yes", "--requirepass", "secret"]);
    let url = format!("redis://:secret@{}/2 --shards {shards}", redis.address);
    let servers: Vec<Server> = processes.iter().map(|name| chat(&url, name)).collect();
    // A member on each shard, by its name and the process.
    let mut names: Vec<(String, &str)> = Vec::new();
    let mut members = Vec::new();
    for (server, process) in servers.iter().zip(processes) {
        for shard in 0..shards {
            names.push((format!("{process}{shard}"), process));
            members.push(Member::join(server, &format!("{process}{shard}")));
        }
    }
    for third in 0..3 {
        for n in third * 100..third * 100 + 100 {
            members.iter_mut().for_each(|member| member.say(&n.to_string()));
        }
        match third {
            0 => redis.kill(),
            1 => redis.run(),
            _ => {}
        }
    }
    for ((own, room), member) in names.iter().zip(&mut members) {
        let mut next = vec![0; names.len()];
        while next.iter().any(|next| *next < 300) {
            let line = member.line();
            // Of other members of its process it is told that they join.
            let Some((shown, number)) = line.trim_end().split_once(": ") else { continue };
            let from = names.iter().position(|(name, process)| match process == room {
                true => shown == name,
                false => shown == format!("{name}@{process}"),
            });
            let from = from.unwrap_or_else(|| panic!("to {own}: {line:?}"));
            assert_eq!(number, next[from].to_string(), "to {own} after {next:?}: {line:?}");
            next[from] += 1;
        }
    }
    // A member that is there is given a second to read its last line.
    drop(members);
    for mut server in servers {
        let log = server.end();
        assert!(log.contains("the room goes on here"), "{log}");
        assert_eq!(log.matches("backplane: connected to ").count(), 2, "{log}");
        assert!(!log.contains("secret"), "{log}");
    }
}

#[test]
fn three_processes_tell_each_line_once_and_in_order_although_the_broker_is_killed() {
    let _others = shared();
    each_line_is_told_once_and_in_order(1, &["a", "b", "c"], 1);
}

#[test]
fn two_processes_of_two_shards_tell_each_line_once_and_in_order_although_the_broker_is_killed() {
    let _others = shared();
    each_line_is_told_once_and_in_order(5, &["a", "b"], 2);
}

#[test]
fn a_broker_that_comes_back_empty_is_told_as_a_gap() {
    let _others = shared();
    if !has("redis-server") {
        return;
    }
    let mut redis = Redis::start(2, &["--appendonly", "no"]);
    let url = format!("redis://{}", redis.address);
    let (first, second) = (chat(&format!("{url} --metrics 127.0.0.1:0"), "first"), chat(&url, "second"));
    let metrics = address(&first);
    let links = || value(&scrape(metrics), "tidemill_connections{service=\"Backplane\"}");
    assert_eq!(links(), 2.0);
    let (mut ada, mut bob) = (Member::join(&first, "ada"), Member::join(&second, "bob"));
    ada.say("before");
    assert_eq!(bob.hears(|line| line == "ada@first: before\n"), Vec::<String>::new());
    // Both have read of the stream then; one that has read nothing misses nothing.
    bob.say("seen");
    bob.hears(|line| line == "bob: seen\n");
    assert_eq!(ada.hears(|line| line == "bob@second: seen\n"), ["ada: before\n"]);
    redis.kill();
    until("the metrics tell that it is away", SOON, || links() == 0.0);
    redis.run();
    assert_eq!(bob.hears(|line| line == LOST), Vec::<String>::new());
    assert_eq!(ada.hears(|line| line == LOST), Vec::<String>::new());
    ada.say("after");
    assert_eq!(bob.hears(|line| line == "ada@first: after\n"), Vec::<String>::new());
}

#[test]
fn a_broker_that_says_nothing_delays_no_line_and_no_end() {
    let _others = shared();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("its address");
    let mut server = Server::start(&format!("chat --drain 1h --backplane redis://{at}"));
    let (mut ada, mut bob) = (Member::join(&server, "ada"), Member::join(&server, "bob"));
    for n in 0..100 {
        ada.say(&n.to_string());
        bob.hears(|line| line == format!("ada: {n}\n"));
    }
    let log = server.end();
    assert!(log.contains("100 lines were said here only"), "{log}");
}

#[test]
fn a_wrong_password_is_one_sentence_in_the_log_and_the_room_goes_on() {
    let _others = shared();
    if !has("redis-server") {
        return;
    }
    let redis = Redis::start(3, &["--requirepass", "right"]);
    let mut server = Server::start(&format!("chat --backplane redis://:wrong@{}", redis.address));
    // Each connection has two errors of each try: to AUTH, and to what it asks behind it.
    until("both connections have tried again", SOON, || redis.info("right", "total_error_replies") >= 8);
    let mut ada = Member::join(&server, "ada");
    ada.say("hello");
    ada.hears(|line| line == "ada: hello\n");
    drop(ada);
    let log = server.end();
    let said = format!("backplane: {}: WRONGPASS", redis.address);
    assert_eq!(log.matches(&said).count(), 1, "{log}");
    assert_eq!(log.matches("backplane: ").count(), 2, "and one at the end: {log}");
    assert!(!log.contains(":wrong"), "{log}");
}

#[test]
fn tls_to_the_broker_is_verified() {
    let _others = shared();
    if !has("redis-server") {
        return;
    }
    let redis = Redis::start(4, TLS);
    let ca = redis.folder.join("site.pem").display().to_string();
    let url = format!("rediss://{}", redis.address);
    let trusting = format!("{url} --backplane-tls-ca {ca} --backplane-tls-name site.example");
    // It trusts another certificate, until the file is replaced.
    let later = redis.folder.join("later.pem");
    fs::write(&later, certificate().0).expect("a file");
    let name = "--backplane-name late --backplane-tls-name site.example";
    let mut late =
        Server::start(&format!("chat --backplane {url} --backplane-tls-ca {} {name}", later.display()));
    // Without the name, the certificate is for another host.
    let strict = Server::start(&format!("chat --backplane {url} --backplane-tls-ca {ca}"));
    let (first, second) = (chat(&trusting, "first"), chat(&trusting, "second"));
    let (mut ada, mut bob) = (Member::join(&first, "ada"), Member::join(&second, "bob"));
    ada.say("hello");
    bob.hears(|line| line == "ada@first: hello\n");
    for refusing in [&late, &strict] {
        until("it says so", SOON, || refusing.log().contains("certificate"));
        assert!(!refusing.log().contains("backplane: connected to "), "{}", refusing.log());
    }
    fs::copy(&ca, &later).expect("a file");
    late.signal(Signal::HUP);
    until("it is connected", SOON, || late.log().contains(" as late, "));
    let log = late.end();
    assert!(log.contains("certificates for upstreams reloaded"), "{log}");
}

#[test]
fn wrong_options_of_the_backplane_are_one_line() {
    let _others = shared();
    for (words, said) in [
        (
            "--backplane http://:pw@host",
            "the URL of --backplane is wrong: it begins with redis:// or rediss://",
        ),
        (
            "--backplane redis://pw@host",
            "the URL of --backplane is wrong: before @ is USER:PASSWORD, or :PASSWORD",
        ),
        (
            "--backplane redis://host --insecure",
            "the TLS options of --backplane have no effect without rediss://",
        ),
        (
            "--backplane redis://host --backplane-name a@b",
            "a name has 1 to 24 letters, digits, '-', '_' and '.'",
        ),
        ("--backplane-stream room", "--backplane <URL>"),
    ] {
        let words: Vec<&str> = format!("chat {words}").leak().split(' ').collect();
        let outcome = crate::server::run(&words, b"");
        assert_eq!(outcome.code, Some(2), "{words:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(said) && !outcome.stderr.contains("pw"),
            "{words:?}: {}",
            outcome.stderr
        );
    }
}
