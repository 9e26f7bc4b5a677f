//! `--metrics`: what a server tells Prometheus.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::interop::has;
use crate::peer::{Peer, free_address};
use crate::server::{Process, Server, run, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// Starts a server with metrics; also returns where they are.
pub fn start(words: &str) -> (Server, SocketAddr) {
    let server = Server::start(&format!("{words} --metrics 127.0.0.1:0"));
    let at = address(&server);
    (server, at)
}

/// Where a server with --metrics says that it serves them.
pub fn address(server: &Server) -> SocketAddr {
    let mut at = None;
    until("the log says where", SOON, || {
        let log = server.log();
        let place =
            log.lines().find_map(|line| line.split_once("metrics at http://")?.1.strip_suffix("/metrics"));
        at = place.map(|place| place.parse().expect("an address"));
        at.is_some()
    });
    at.expect("it was found")
}

/// The answer to a request: its head and its body.
fn ask(at: SocketAddr, request: &str) -> (String, String) {
    let mut peer = Peer::connect(at);
    peer.send(request);
    let answer = String::from_utf8(peer.receive_all()).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.to_string(), body.to_string())
}

pub fn scrape(at: SocketAddr) -> String {
    let (head, body) = ask(at, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    body
}

/// The value of a series; 0 where it is not there yet.
pub fn value(body: &str, series: &str) -> f64 {
    let line = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

const ENDED: &str = r#"tidemill_connections_closed_total{service="Echo",reason="finished"}"#;

#[test]
fn connections_are_counted_by_service_and_reason_and_scrapes_are_not_among_them() {
    let _others = shared();
    let (mut server, at) = start("echo --raw");
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("counted"));
    let body = scrape(at);
    assert_eq!(value(&body, r#"tidemill_connections_accepted_total{service="Echo"}"#), 1.0, "{body}");
    assert_eq!(value(&body, r#"tidemill_connections{service="Echo"}"#), 1.0);
    // The request of the scrape was received, too.
    assert!(value(&body, "tidemill_received_bytes_total") >= 7.0);
    assert_eq!(value(&body, "tidemill_sent_bytes_total"), 7.0);
    assert!(value(&body, "tidemill_turn_duration_seconds_count") >= 1.0);
    assert_eq!(value(&body, ENDED), 0.0);
    drop(peer);
    until("the end is counted", SOON, || value(&scrape(at), ENDED) == 1.0);
    let body = scrape(at);
    assert_eq!(value(&body, r#"tidemill_connections{service="Echo"}"#), 0.0);
    assert!(!body.contains("Scrape"), "{body}");
    server.end();
}

#[test]
fn refusals_and_slow_callbacks_have_their_reasons_as_labels() {
    let _others = shared();
    let (mut server, at) = start("echo --raw --slow 1ns --deny 127.0.0.2");
    drop(Peer::connect_from(2, server.address));
    let refused = r#"tidemill_connections_refused_total{service="Echo",reason="denied"}"#;
    until("the refusal is counted", SOON, || value(&scrape(at), refused) == 1.0);
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("slow"));
    let slow = r#"tidemill_slow_callbacks_total{service="Echo",callback="data"}"#;
    assert_eq!(value(&scrape(at), slow), 1.0);
    server.end();
}

#[test]
fn a_full_server_still_answers_scrapes_and_scrapes_take_none_of_its_connections() {
    let _others = shared();
    let (mut server, at) = start("echo --raw --max-connections 1");
    let mut held: Vec<Peer> = (0..7).map(|_| Peer::connect(at)).collect();
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("the only one"));
    assert_eq!(Peer::connect(server.address).receive_all(), b"server busy\n");
    let body = scrape(at);
    assert_eq!(
        value(&body, r#"tidemill_connections_refused_total{service="Echo",reason="full"}"#),
        1.0,
        "{body}"
    );
    until("a ninth scrape is refused", SOON, || {
        // In each attempt: as long as the scrape above has not left, an eighth is refused itself.
        held.push(Peer::connect(at));
        let mut ninth = Peer::connect(at);
        let mut answer = Vec::new();
        // A refused peer that has sent nothing is not reset.
        ninth.finish();
        ninth.0.read_to_end(&mut answer).is_ok() && answer.starts_with(b"HTTP/1.1 503 ")
    });
    assert!(peer.echoes("still there"));
    server.end();
}

#[test]
fn other_requests_get_an_answer_of_http_and_a_long_one_is_closed() {
    let _others = shared();
    let (mut server, at) = start("echo --raw");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405 "),
        ("\x01\r\n\r\n", "HTTP/1.1 400 "),
        ("GET /metrics?name=x HTTP/1.0\r\n\r\n", "HTTP/1.1 200 "),
    ] {
        let (head, _) = ask(at, request);
        assert!(head.starts_with(status), "{request:?}: {head}");
    }
    let (head, body) = ask(at, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head} {body}");
    let mut peer = Peer::connect(at);
    // It may be reset before all of it is sent.
    let _ = peer.0.write_all(format!("GET /{} HTTP/1.1\r\n", "x".repeat(64 * 1024)).as_bytes());
    let mut rest = Vec::new();
    let _ = peer.0.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    server.end();
}

#[test]
fn an_address_in_use_is_an_error_that_names_the_option() {
    let _others = shared();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = taken.local_addr().expect("its address").to_string();
    let outcome = run(&["echo", "--listen", "127.0.0.1:0", "--metrics", &at], b"");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains(&format!("--metrics: cannot listen on {at}: ")), "{}", outcome.stderr);
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let _others = shared();
    if !has("promtool") {
        return;
    }
    let (mut server, at) = start("echo --raw --slow 1ns");
    let mut peer = Peer::connect(server.address);
    assert!(peer.echoes("counted"));
    drop(peer);
    until("it has ended", SOON, || value(&scrape(at), ENDED) == 1.0);
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool");
    child.stdin.take().expect("its stdin").write_all(scrape(at).as_bytes()).expect("it reads");
    let outcome = child.wait_with_output().expect("its end");
    let said =
        String::from_utf8_lossy(&outcome.stderr).into_owned() + &String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success() && said.is_empty(), "{said}");
    server.end();
}

#[test]
fn a_prometheus_server_scrapes_and_stores_them() {
    let _others = shared();
    if !has("prometheus") {
        return;
    }
    let (mut server, at) = start("echo --raw");
    let folder = std::env::temp_dir().join(format!("tidemill-prometheus-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = folder.join("prometheus.yml");
    let target = format!("[{{targets: ['{at}']}}]");
    let text = format!("scrape_configs: [{{job_name: t, scrape_interval: 1s, static_configs: {target}}}]\n");
    std::fs::write(&config, text).expect("a file");
    // Prometheus does not say which port it got.
    let free = free_address();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    command.arg(format!("--web.listen-address={free}")).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process(command.spawn().expect("prometheus"));
    until("it has stored the number of turns", Duration::from_secs(60), || {
        let Ok(mut stream) = std::net::TcpStream::connect(free) else { return false };
        let request = "GET /api/v1/query?query=tidemill_turns_total HTTP/1.0\r\nHost: x\r\n\r\n";
        let mut answer = String::new();
        let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.contains(r#""__name__":"tidemill_turns_total""#)
    });
    drop(process);
    server.end();
    // It is in the folder for temporary files.
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn each_scrape_looks_at_the_next_64_tcp_connections_of_both_origins() {
    let _others = shared();
    let upstream = Server::start("echo --raw");
    let (mut server, at) = start(&format!("proxy --to {} --max-per-ip 0", upstream.address));
    let mut peers: Vec<Peer> = (0..50).map(|_| Peer::connect(server.address)).collect();
    assert!(peers.iter_mut().all(|peer| peer.echoes("hello")));
    let count = |body: &str, metric: &str, origin: &str| {
        value(body, &format!("tidemill_tcp_{metric}_count{{origin=\"{origin}\"}}"))
    };
    let both = |body: &str| count(body, "rtt_seconds", "accepted") + count(body, "rtt_seconds", "dialed");
    // The connection of the scrape itself may be among the 64, and is not counted.
    let first = scrape(at);
    assert!((63.0..=64.0).contains(&both(&first)), "{first}");
    assert!(count(&first, "rtt_seconds", "dialed") >= 13.0, "{first}");
    let second = scrape(at);
    assert!((126.0..=128.0).contains(&both(&second)), "{second}");
    // The second scrape went on with those that the first had left out.
    assert!(count(&second, "rtt_seconds", "accepted") >= 50.0, "{second}");
    let time = value(&second, r#"tidemill_tcp_rtt_seconds_sum{origin="accepted"}"#);
    assert!(time > 0.0 && time < 64.0, "{second}");
    let retransmits = count(&second, "retransmits", "accepted") + count(&second, "retransmits", "dialed");
    assert_eq!(retransmits, both(&second));
    drop(peers);
    server.end();
}
