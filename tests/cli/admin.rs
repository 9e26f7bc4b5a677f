//! `--admin`: looking into a running server, and changing it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::peer::Peer;
use crate::server::{Server, run, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// A server with an admin socket, in a folder that is removed at the end.
struct Watched {
    server: Server,
    folder: PathBuf,
}

impl Watched {
    fn start(name: &str, words: &str) -> Watched {
        let folder = std::env::temp_dir().join(format!("tidemill-admin-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let server = Server::start(&format!("{words} --admin unix:{}", folder.join("admin").display()));
        Watched { server, folder }
    }

    fn admin(&self) -> Admin {
        let stream = UnixStream::connect(self.folder.join("admin")).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("an option");
        Admin(BufReader::new(stream))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

struct Admin(BufReader<UnixStream>);

impl Admin {
    fn send(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).expect("it is open");
    }

    /// The lines of an answer up to `ok`, or its error.
    fn answer(&mut self) -> Result<Vec<String>, String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).expect("an answer"), 0, "closed after {lines:?}");
            match line.trim_end() {
                "ok" => return Ok(lines),
                error if error.starts_with("error: ") => return Err(error["error: ".len()..].to_string()),
                line => lines.push(line.to_string()),
            }
        }
    }

    fn ask(&mut self, line: &str) -> Result<Vec<String>, String> {
        self.send(line);
        self.answer()
    }
}

#[test]
fn connections_are_listed_and_closed_by_their_id() {
    let _others = shared();
    let mut watched = Watched::start("list", "echo --raw");
    let mode = fs::metadata(watched.folder.join("admin")).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only this user");
    let mut peer = Peer::connect(watched.server.address);
    assert!(peer.echoes("hello"));
    let mut admin = watched.admin();
    let lines = admin.ask("connections").expect("a list");
    assert_eq!(lines.len(), 1, "that of the admin is not among them: {lines:?}");
    for field in
        [" service=Echo origin=accepted peer=127.0.0.1:", " age=", " bytes_in=5 bytes_out=5 queued=0"]
    {
        assert!(lines[0].contains(field), "{field}: {lines:?}");
    }
    assert!(peer.echoes("again"));
    let turns = admin.ask("turns").expect("turns");
    assert!(turns.iter().any(|turn| turn.contains(" turns=1 ")), "all since the connect: {turns:?}");
    assert!(turns.iter().any(|turn| turn.contains(" reads=1 bytes_in=5 writes=1 bytes_out=5 ")), "{turns:?}");
    let id = lines[0].split(' ').next().expect("an id");
    assert_eq!(admin.ask("close #99.99"), Err("no connection #99.99".to_string()));
    assert_eq!(admin.ask(&format!("close {id}")), Ok(Vec::new()));
    assert!(peer.receive_all().is_empty());
    until("it has left the list", SOON, || admin.ask("connections") == Ok(Vec::new()));
    let mut turns = Vec::new();
    until("it is reaped", SOON, || {
        turns = admin.ask("turns").expect("turns");
        turns.iter().any(|turn| turn.ends_with(" closes=1"))
    });
    assert!(turns.len() <= 64);
    watched.server.end();
}

#[test]
fn a_limit_that_is_set_holds_at_once_and_over_a_sighup() {
    let _others = shared();
    let mut watched = Watched::start("set", "echo --raw --idle-timeout 1h");
    let mut admin = watched.admin();
    let limits = admin.ask("limits").expect("a list");
    for line in ["idle-timeout 1h", "max-per-ip 0", "high-water 65536", "min-rate 1024/10s", "dry-run false"]
    {
        assert!(limits.iter().any(|limit| limit == line), "{line}: {limits:?}");
    }
    // Each value is one that can be set.
    for limit in &limits {
        assert_eq!(admin.ask(&format!("set {limit}")), Ok(Vec::new()), "{limit}");
    }
    let mut peer = Peer::connect(watched.server.address);
    assert!(peer.echoes("hello"));
    assert_eq!(admin.ask("set idle-timeout 200ms"), Ok(Vec::new()));
    assert!(peer.receive_all().is_empty(), "closed as idle");
    let told = "admin: idle-timeout is set to 200ms; changed: idle-timeout";
    until("the change is logged", SOON, || watched.server.log().contains(told));
    watched.server.signal(Signal::HUP);
    until("SIGHUP is handled", SOON, || watched.server.log().contains("SIGHUP: "));
    assert!(admin.ask("limits").expect("a list").contains(&"idle-timeout 200ms".to_string()));
    for (command, error) in [
        ("set idle-timeout soon", "invalid value 'soon' for '--idle-timeout <TIME>'"),
        ("set high-water 2MiB", "--high-water of 2.0 MiB is more than --max-queued"),
        ("set backlog 5", "backlog cannot be set while the server runs; see limits"),
        ("set total-rate 5", "total-rate cannot be set"),
        ("set deny 10.0.0.1", "deny is a list: change it in the file"),
        ("set max-connections 4000000000", "cannot be more than"),
        ("upstreams", "the server is no proxy"),
    ] {
        let said = admin.ask(command).expect_err(command);
        assert!(said.contains(error), "{command}: {said}");
    }
    watched.server.end();
}

#[test]
fn an_upstream_that_is_set_down_gets_no_client_until_it_is_set_back() {
    let _others = shared();
    let ups = [Server::start("echo --raw"), Server::start("echo --raw")];
    let words = format!("proxy --to {} --to {},backup", ups[0].address, ups[1].address);
    let mut watched = Watched::start("upstream", &words);
    let mut admin = watched.admin();
    let lines = admin.ask("upstreams").expect("a list");
    assert!(
        lines[0].starts_with(&format!("{} up mode=auto connections=0 weight=1 ", ups[0].address)),
        "{lines:?}"
    );
    assert!(lines[1].contains(" backup=yes "), "{lines:?}");
    // The one that a client is connected to is the one that counts it.
    let served = |admin: &mut Admin, index: usize| {
        let mut peer = Peer::connect(watched.server.address);
        assert!(peer.echoes("through"));
        admin.ask("upstreams").expect("a list")[index].contains(" connections=1 ")
    };
    assert!(served(&mut admin, 0));
    assert_eq!(admin.ask(&format!("upstream {} down", ups[0].address)), Ok(Vec::new()));
    assert!(admin.ask("upstreams").expect("a list")[0].contains(" down mode=down "));
    until("the first client has left", SOON, || !admin.ask("upstreams").expect("a list")[0].contains("=1 w"));
    assert!(served(&mut admin, 1));
    // Answers of the proxy and of others come in the order of the commands.
    let commands = format!("upstreams\nhelp\nupstream {} auto\nnonsense\nupstreams", ups[0].address);
    admin.send(&commands);
    assert_eq!(admin.answer().expect("a list").len(), 2);
    assert!(admin.answer().expect("help")[0].starts_with("help "));
    assert_eq!(admin.answer(), Ok(Vec::new()));
    assert!(admin.answer().is_err());
    assert!(admin.answer().expect("a list")[0].contains(" up mode=auto "));
    assert_eq!(admin.ask("upstream 192.0.2.1:1 down"), Err("no upstream 192.0.2.1:1".to_string()));
    assert!(admin.ask(&format!("upstream {} sideways", ups[0].address)).is_err());
    watched.server.end();
}

#[test]
fn the_connections_and_limits_of_all_shards_are_listed_closed_and_set() {
    let _others = shared();
    let mut watched = Watched::start("shards", "echo --raw --shards 3 --idle-timeout 1h");
    let mut peers: Vec<Peer> = (0..6).map(|_| Peer::connect(watched.server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("hello")));
    let mut admin = watched.admin();
    let lines = admin.ask("connections").expect("a list");
    for shard in ["0", "1", "2"] {
        let of_shard = lines.iter().filter(|line| line.contains(&format!(" shard={shard} service=Echo ")));
        assert_eq!(of_shard.count(), 2, "{lines:?}");
    }
    // The age differs when the clock has gone on meanwhile.
    let ids =
        |lines: &[String]| lines.iter().map(|line| line.split(' ').next().map(str::to_string)).collect();
    let (rest, expected): (Vec<_>, Vec<_>) =
        (ids(&admin.ask("connections 4").expect("a list")), ids(&lines[4..]));
    assert_eq!(rest, expected, "the first four are left out");
    let last = lines[5].split(' ').next().expect("an id");
    let address = peers.iter().map(|peer| peer.0.local_addr().expect("an address").to_string());
    let closed =
        address.clone().position(|at| lines[5].contains(&format!(" peer={at} "))).expect("one of ours");
    assert_eq!(admin.ask(&format!("close {last}")), Ok(Vec::new()));
    assert!(peers[closed].receive_all().is_empty());
    assert_eq!(admin.ask("close #99.99"), Err("no connection #99.99".to_string()));
    for shard in 0..3 {
        assert!(!admin.ask(&format!("turns {shard}")).expect("turns").is_empty(), "of shard {shard}");
    }
    assert_eq!(admin.ask("turns 3"), Err("3 is no shard; there are 3".to_string()));
    peers.remove(closed);
    assert_eq!(admin.ask("set idle-timeout 200ms"), Ok(Vec::new()));
    assert!(peers.iter_mut().all(|peer| peer.receive_all().is_empty()), "closed as idle on each shard");
    watched.server.end();
}

#[test]
fn an_upstream_is_set_down_on_all_shards() {
    let _others = shared();
    let ups = [Server::start("echo --raw"), Server::start("echo --raw")];
    let words = format!("proxy --shards 2 --to {} --to {}", ups[0].address, ups[1].address);
    let mut watched = Watched::start("shard-upstreams", &words);
    let mut admin = watched.admin();
    assert_eq!(admin.ask(&format!("upstream {} down", ups[0].address)), Ok(Vec::new()));
    let mut peers: Vec<Peer> = (0..4).map(|_| Peer::connect(watched.server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("through")));
    let lines = admin.ask("upstreams").expect("a list");
    for (index, (up, state)) in
        [(0, "down mode=down connections=0"), (1, "up mode=auto connections=2")].repeat(2).iter().enumerate()
    {
        let expected = format!("{} shard={} {state} ", ups[*up].address, index / 2);
        assert!(lines[index].starts_with(&expected), "{expected}: {lines:?}");
    }
    assert_eq!(admin.ask("upstream 192.0.2.1:1 down"), Err("no upstream 192.0.2.1:1".to_string()));
    drop(peers);
    watched.server.end();
}

#[test]
fn answers_and_lines_are_bounded_and_clients_do_not_disturb_each_other() {
    let _others = shared();
    let mut watched = Watched::start("bounds", "echo --raw");
    let peers: Vec<Peer> = (0..600).map(|_| Peer::connect(watched.server.address)).collect();
    let (mut one, mut other) = (watched.admin(), watched.admin());
    until("all are accepted", SOON, || {
        let first = one.ask("connections").expect("a list");
        let more = first.last().expect("a line").strip_prefix("more: ").map(str::to_string);
        let rest = more.map(|command| other.ask(&command).expect("a list"));
        first.len() == 501 && rest.is_some_and(|rest| rest.len() == 100)
    });
    // A line that never ends closes its client; a client that reads nothing is not answered without a bound.
    let mut hostile = watched.admin();
    hostile.send(&"x".repeat(64 * 1024));
    let mut rest = Vec::new();
    let end = hostile.0.read_to_end(&mut rest).map_err(|error| error.kind());
    assert!(end.is_ok() || end == Err(ErrorKind::ConnectionReset), "{end:?}");
    assert!(rest.len() < 100, "{rest:?}");
    let before = watched.server.memory();
    let mut deaf = watched.admin();
    deaf.0.get_ref().set_write_timeout(Some(Duration::from_millis(100))).expect("an option");
    let flood = "connections\n".repeat(20_000);
    // The server stops reading, or closes.
    let _ = deaf.0.get_mut().write_all(flood.as_bytes());
    assert!(one.ask("help").is_ok(), "the others are served meanwhile");
    let grown = watched.server.memory().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for a client that does not read");
    drop((hostile, deaf, peers));
    // It does not wait for clients of the admin socket that stay.
    let begun = Instant::now();
    watched.server.end();
    assert!(begun.elapsed() < Duration::from_secs(9), "--drain is 10s");
}

#[test]
fn a_port_is_refused_because_any_user_could_connect_to_it() {
    let _others = shared();
    let outcome = run(&["echo", "--admin", "127.0.0.1:0"], b"");
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("a file is needed, as in unix:/run/tidemill/admin"),
        "{}",
        outcome.stderr
    );
}
