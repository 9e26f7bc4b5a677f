//! `--shards`: one server on several threads.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::member::Member;
use crate::metrics::{scrape, start, value};
use crate::peer::{Peer, free_address};
use crate::server::{Server, TIDEMILL, raise_descriptors, run, shared, until, within_one_of_three};

const SOON: Duration = Duration::from_secs(10);

/// An empty folder.
fn temporary(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("tidemill-shards-{}-{name}", std::process::id()));
    // Left by a process with the same number.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

#[test]
fn a_thousand_long_lived_connections_are_spread_within_five_percent_by_the_metrics_of_each_shard() {
    let _others = shared();
    raise_descriptors();
    let (mut server, metrics) = start("echo --raw --shards 2 --max-connections 2000");
    let mut peers: Vec<Peer> = (0..1_000).map(|_| Peer::connect(server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("served")));
    let body = scrape(metrics);
    let open = |shard: usize| value(&body, &format!(r#"tidemill_shard_connections{{shard="{shard}"}}"#));
    assert!((475.0..=525.0).contains(&open(0)) && (475.0..=525.0).contains(&open(1)), "{body}");
    assert_eq!(value(&body, r#"tidemill_connections{service="Echo"}"#), 1_000.0, "and summed");
    assert_eq!(value(&body, r#"tidemill_connections_accepted_total{service="Echo"}"#), 1_000.0);
    let sent = |shard: usize| value(&body, &format!(r#"tidemill_shard_sent_bytes_total{{shard="{shard}"}}"#));
    assert!(sent(0) >= 475.0 * 6.0 && sent(1) >= 475.0 * 6.0, "both have work: {body}");
    drop(peers);
    let log = server.end();
    assert!(log.contains("accepted=1001 ") && log.contains("finished=1000"), "one is the scrape: {log}");
}

#[test]
fn limits_are_those_of_the_whole_server() {
    let _others = shared();
    let mut server = Server::start("echo --raw --shards 3 --max-connections 8 --drain 0");
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("one of eight")));
    assert_eq!(Peer::connect(server.address).receive_all(), b"server busy\n");
    peers.pop();
    until("there is a place again", SOON, || Peer::connect(server.address).echoes("in"));
    server.end();
    let mut server = Server::start("echo --raw --shards 3 --max-per-ip 4 --busy-reply no --drain 0");
    let mut peers: Vec<Peer> = (0..4).map(|_| Peer::connect(server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("one of four")));
    assert_eq!(Peer::connect(server.address).receive_all(), b"no\n");
    let mut from_elsewhere = Peer::connect_from(2, server.address);
    assert!(from_elsewhere.echoes("another address"));
    let log = server.end();
    assert!(log.contains("accepted=5 refused=1 ") && log.contains("refused-per-address=1"), "{log}");
}

#[test]
fn peers_wait_in_the_backlog_while_all_shards_are_full() {
    let _others = shared();
    let mut server = Server::start("echo --raw --shards 2 --max-connections 2 --overflow wait --drain 0");
    let mut peers: Vec<Peer> = (0..2).map(|_| Peer::connect(server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("in")));
    let mut waits = Peer::connect(server.address);
    waits.send("waits");
    waits.0.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
    assert!(std::io::Read::read(&mut waits.0, &mut [0; 5]).is_err(), "it has no answer yet");
    waits.0.set_read_timeout(Some(SOON)).expect("an option");
    drop(peers.pop());
    assert_eq!(waits.receive(5), b"waits");
    let log = server.end();
    assert!(log.contains("accepted=3 refused=0 "), "{log}");
}

#[test]
fn every_line_reaches_the_members_on_all_shards_once_and_in_the_order_of_its_sender() {
    const LINES: usize = 200;
    let _others = shared();
    let mut server = Server::start("chat --shards 3 --rate 0 --drain 0");
    let mut members: Vec<Member> =
        (0..9).map(|number| Member::join(&server, &format!("m{number}"))).collect();
    for (number, member) in members.iter_mut().enumerate().take(3) {
        let lines: Vec<String> = (0..LINES).map(|line| format!("{number} {line}")).collect();
        member.say(&lines.join("\n"));
    }
    for member in &mut members {
        let mut next = HashMap::from([("m0", 0), ("m1", 0), ("m2", 0)]);
        while next.values().any(|next| *next < LINES) {
            let line = member.line();
            let Some((name, text)) = line.trim_end().split_once(": ") else { continue };
            let next = next.get_mut(name).expect("one of the three senders");
            assert_eq!(text, format!("{} {next}", &name[1..]), "once, and in order");
            *next += 1;
        }
    }
    members[1].say("/who");
    let who = members[1].line();
    assert!(who.starts_with("9 here: ") && (0..9).all(|n| who.contains(&format!("m{n}"))), "{who}");
    members[1].say("/nick M0");
    assert_eq!(members[1].line(), "M0 is taken\n", "on another shard");
    drop(members.remove(0));
    assert!(members.iter_mut().all(|member| member.line() == "m0 left\n"));
    members[0].say("/nick M0");
    assert_eq!(members[0].line(), "m1 is now M0\n");
    server.end();
}

#[test]
fn sighup_changes_the_options_of_all_shards_and_sigterm_lets_all_finish() {
    let _others = shared();
    let file = std::env::temp_dir().join(format!("tidemill-shards-{}.toml", std::process::id()));
    fs::write(&file, "max-per-ip = 6").expect("a file");
    let words = format!("echo --raw --shards 2 --config {} --idle-timeout 1h", file.display());
    let mut server = Server::start(&words);
    let mut peers: Vec<Peer> = (0..6).map(|_| Peer::connect(server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("in")));
    assert_eq!(Peer::connect(server.address).receive_all(), b"server busy\n");
    fs::write(&file, "max-per-ip = 20\nfirst-byte-timeout = \"100ms\"").expect("a file");
    server.signal(Signal::HUP);
    until("it was read", SOON, || server.log().contains("changed: first-byte-timeout, max-per-ip"));
    // Two of them are on each shard, and none says anything.
    let silent: Vec<Peer> = (0..4).map(|_| Peer::connect(server.address)).collect();
    for mut peer in silent {
        assert_eq!(peer.receive_all(), b"", "closed by the new timeout, on whichever shard it is");
    }
    server.signal(Signal::TERM);
    until("it drains", SOON, || server.log().contains("have 10s to end"));
    assert!(peers.iter_mut().all(|peer| peer.echoes("still served")));
    for peer in &mut peers {
        peer.finish();
        assert_eq!(peer.receive_all(), b"");
    }
    assert_eq!(server.ended(SOON).code(), Some(0));
    until("its last line", SOON, || server.log().contains("accepted=10 refused=1 "));
    fs::remove_file(&file).expect("a file of ours");
}

#[test]
fn one_sender_gets_the_rate_of_all_shards_and_no_more() {
    let _others = shared();
    let mut server = Server::start("echo --raw --shards 2 --rate 0 --total-rate 256KiB --drain 0");
    let mut peer = Peer::connect(server.address);
    // A bucket has 32 KiB. Half the rate would take 2.2 s.
    within_one_of_three("300 KiB", Duration::from_secs(2), || {
        let begun = Instant::now();
        peer.send("x".repeat(300 * 1024));
        peer.receive(300 * 1024);
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(900), "{took:?}");
        took
    });
    server.end();
}

#[test]
fn the_watchdog_is_not_told_of_a_server_one_shard_of_which_hangs() {
    let _others = shared();
    let folder = temporary("watchdog");
    let (socket, pipe) = (folder.join("notify"), folder.join("log"));
    let manager = UnixDatagram::bind(&socket).expect("a socket");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("it ran").success());
    // Only this test reads it. Once the pipe is full, a shard that writes to it hangs.
    let mut log = OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
    let variables = [("NOTIFY_SOCKET", socket.to_str().expect("text")), ("WATCHDOG_USEC", "200000")];
    let words = format!("echo --raw --shards 2 --access-log {}", pipe.display());
    let server = Server::start_with(&variables, &words);
    let told = |within: Duration| {
        manager.set_read_timeout(Some(within)).expect("an option");
        let mut text = [0; 512];
        manager.recv(&mut text).map(|length| String::from_utf8_lossy(&text[..length]).trim_end().to_string())
    };
    assert_eq!(told(SOON).expect("a message"), "READY=1");
    for _ in 0..3 {
        assert_eq!(told(SOON).expect("a message"), "WATCHDOG=1", "both turn, though they have nothing to do");
    }
    let mut stays = Peer::connect(server.address);
    let mut ends = Peer::connect(server.address);
    assert!(stays.echoes("on the first shard") && ends.echoes("on the second"));
    rustix::fs::fcntl_setfl(&log, rustix::fs::OFlags::NONBLOCK).expect("a flag");
    while std::io::Write::write(&mut log, &[b'x'; 512]).is_ok() {}
    drop(ends);
    until("the watchdog is told no more", SOON, || told(Duration::from_millis(200)).is_err());
    assert!(stays.echoes("the first shard is not the one that hangs"));
    // What it wrote is read: it goes on.
    while matches!(std::io::Read::read(&mut log, &mut [0; 4096]), Ok(1..)) {}
    assert_eq!(told(SOON).expect("a message"), "WATCHDOG=1");
    drop(server);
    fs::remove_dir_all(folder).expect("a folder of ours");
}

#[test]
fn each_shard_writes_its_trace_to_a_file_of_its_own() {
    let _others = shared();
    let folder = temporary("trace");
    let words = format!("echo --raw --shards 2 --trace {}", folder.join("t.json").display());
    let mut server = Server::start(&words);
    let mut peers: Vec<Peer> = (0..2).map(|_| Peer::connect(server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("one on each")));
    drop(peers);
    server.end();
    for name in ["t.0.json", "t.1.json"] {
        let text = fs::read_to_string(folder.join(name)).expect("a trace");
        let whole: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let events = whole["traceEvents"].as_array().expect("a list");
        let reads = events.iter().filter(|event| event["name"].as_str() == Some("Echo.data"));
        assert_eq!(reads.count(), 1, "{name}: the message of one connection");
    }
    fs::remove_dir_all(folder).expect("a folder of ours");
}

#[test]
fn an_upstream_has_as_many_connections_as_it_may_of_all_shards_together() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let mut proxy = Server::start(&format!("proxy --shards 3 --to {},max=4 --drain 0", echo.address));
    let mut peers: Vec<Peer> = (0..4).map(|_| Peer::connect(proxy.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("one of four")));
    for _ in 0..3 {
        assert_eq!(Peer::connect(proxy.address).receive_all(), b"", "on no shard is there a place");
    }
    peers.pop();
    until("there is a place again", SOON, || Peer::connect(proxy.address).echoes("in"));
    let log = proxy.end();
    assert!(!log.contains("is down"), "{log}");
}

#[test]
fn an_upstream_on_demand_is_started_once_and_stopped_when_no_shard_has_a_client() {
    let _others = shared();
    let upstream = free_address();
    let command = format!("exec {TIDEMILL} echo --raw --listen {upstream}");
    let to = upstream.to_string();
    let words = ["proxy", "--shards", "2", "--to", &to, "--on-demand", &command, "--on-demand-idle", "50ms"];
    let mut proxy = Server::start_words(&words);
    let mut clients: Vec<Peer> = (0..2).map(|_| Peer::connect(proxy.address)).collect();
    assert!(clients.iter_mut().all(|client| client.echoes("one on each")));
    clients[0].finish();
    assert_eq!(clients[0].receive_all(), b"");
    until("its shard has noticed", SOON, || proxy.log().contains(" client="));
    // For longer than --on-demand-idle: it is not stopped as long as any shard has a client.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(150) {
        assert!(clients[1].echoes("the other shard has a client"));
    }
    assert!(!proxy.log().contains("no client any more"), "{}", proxy.log());
    drop(clients);
    until("it is stopped", SOON, || proxy.log().contains("no client any more"));
    let log = proxy.end();
    assert_eq!(log.matches("upstream started").count(), 1, "{log}");
}

#[test]
fn what_several_shards_cannot_do_is_refused() {
    let _others = shared();
    for (words, why) in [
        ("echo --shards 4 --max-connections 3", "--max-connections: each shard needs a connection"),
        ("echo --shards 2 --memory 1MiB --max-queued 1MiB", "--memory of 512.0 KiB for each shard"),
        ("echo --shards 0", "1 to 256, or auto"),
    ] {
        let outcome = run(&words.split(' ').collect::<Vec<_>>(), b"");
        assert_eq!(outcome.code, Some(2), "{words}");
        assert!(outcome.stderr.contains(why), "{words}: {}", outcome.stderr);
    }
}
