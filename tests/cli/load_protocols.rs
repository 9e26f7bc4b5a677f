//! The load generator at servers of other protocols: Redis, HTTP/1.1, SMTP.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::interop::{has, node_server};
use crate::peer::free_address;
use crate::server::{Process, Server, run, shared, until};

#[track_caller]
fn load(to: SocketAddr, words: &[&str]) -> (Option<i32>, Value) {
    let to = to.to_string();
    let fixed = ["load", &to, "--json", "--warm-up", "0", "--connections", "5", "--duration", "1s"];
    let outcome = run(&[&fixed[..], words].concat(), b"");
    let json = serde_json::from_slice(&outcome.stdout);
    (outcome.code, json.unwrap_or_else(|error| panic!("{error}: {}", outcome.stderr)))
}

/// Asserts that messages were answered and nothing failed.
#[track_caller]
fn fine((code, json): (Option<i32>, Value)) {
    assert_eq!((code, json["failed"].as_u64()), (Some(0), Some(0)), "{json}");
    assert!(json["count"].as_u64() > Some(20), "{json}");
}

fn redis() -> (Process, SocketAddr) {
    let free = free_address();
    let port = free.port().to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let server = Process(command.stdout(Stdio::null()).spawn().expect("redis-server"));
    until("redis answers", Duration::from_secs(20), || TcpStream::connect(free).is_ok());
    (server, free)
}

#[test]
fn redis_is_loaded_with_ping_and_set() {
    let _others = shared();
    if !has("redis-server") {
        return;
    }
    let (_server, to) = redis();
    fine(load(to, &["--protocol", "redis"]));
    fine(load(to, &["--protocol", "redis", "--pipeline", "16"]));
    fine(load(to, &["--protocol", "redis", "--shape", "churn", "--rate", "200"]));
    fine(load(to, &["--send", r"SET key 0123456789\r\n", "--expect", r"+OK\r\n"]));
    fine(load(
        to,
        &["--protocol", "redis", "--send", r"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n", "--expect", "/0123456789/"],
    ));
    // An error reply is a failure, counted and shown; the connection goes on.
    let (code, json) = load(to, &["--protocol", "redis", "--send", r"SET key\r\n"]);
    assert_eq!((code, json["count"].as_u64()), (Some(1), Some(0)), "{json}");
    let failure = &json["failures"][0];
    assert!(
        failure["text"].as_str().is_some_and(|text| text.contains("wrong number of arguments")),
        "{json}"
    );
    assert!(failure["count"].as_u64() > Some(20) && json["lost_in_flight"] == 0, "{json}");
}

#[test]
fn an_http_server_is_loaded_with_keep_alive_and_chunks() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let (_server, to) = node_server(
        r"
        require('http').createServer((request, response) => {
            if (request.url === '/missing') { response.statusCode = 404; response.end('no'); return; }
            if (request.url === '/chunks') { response.write('one'); response.end('two'); return; }
            response.end('hello');
        }).listen(0, '127.0.0.1', function () { told(String(this.address().port)); });
        setInterval(() => {}, 1000);
        ",
    );
    fine(load(to, &["--protocol", "http"]));
    fine(load(to, &["--protocol", "http", "--shape", "churn"]));
    let chunks = r"GET /chunks HTTP/1.1\r\nHost: x\r\n\r\n";
    fine(load(to, &["--protocol", "http", "--send", chunks, "--expect", "/one(.|\r|\n)*two/"]));
    let missing = r"GET /missing HTTP/1.1\r\nHost: x\r\n\r\n";
    let (code, json) = load(to, &["--protocol", "http", "--send", missing]);
    assert_eq!((code, json["count"].as_u64()), (Some(1), Some(0)), "{json}");
    assert!(json["failures"].to_string().contains("404 Not Found"), "{json}");
}

/// A server of the package `python3-aiosmtpd`, of Debian's own Python.
const SMTP: &str = "
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
import sys
Controller(Sink(), hostname='127.0.0.1', port=int(sys.argv[1])).start()
print('ready', flush=True)
sys.stdin.read()
";

#[test]
fn an_smtp_server_speaks_first_and_is_loaded() {
    let _others = shared();
    let python = "/usr/bin/python3";
    let probe = Command::new(python).args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status();
    let there = probe.is_ok_and(|status| status.success());
    let required = std::env::var("TIDEMILL_INTEROP").is_ok_and(|how| how == "required");
    assert!(there || !required, "python3-aiosmtpd is not installed");
    if !there {
        println!("skipped: python3-aiosmtpd is not installed");
        return;
    }
    let to = free_address();
    let mut command = Command::new(python);
    command.args(["-c", SMTP, &to.port().to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Process(command.spawn().expect("python"));
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().expect("its stdout")).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    fine(load(to, &["--protocol", "smtp"]));
    fine(load(to, &["--protocol", "smtp", "--send", r"EHLO client\r\n", "--expect", "/250 HELP/"]));
    fine(load(to, &["--greeting", "--until", r"\r\n", "--send", r"NOOP\r\n", "--expect", "/^250/"]));
    let (code, json) = load(to, &["--protocol", "smtp", "--send", r"BOGUS\r\n"]);
    assert_eq!((code, json["count"].as_u64()), (Some(1), Some(0)), "an error reply is a failure: {json}");
}

#[test]
fn frames_and_delimiters_are_held_against_the_expectation() {
    let _others = shared();
    let frames = Server::start("frames --framing u16be");
    fine(load(frames.address, &["--framing", "u16be", "--send", "hello", "--expect", "hello"]));
    let (code, json) = load(frames.address, &["--framing", "u16be", "--send", "hello", "--expect", "/^x/"]);
    assert_eq!(code, Some(1));
    assert!(json["failures"][0]["text"].as_str() == Some("\"hello\" does not match /^x/"), "{json}");
    let lines = Server::start("echo --raw");
    fine(load(lines.address, &["--send", "one;", "--until", ";", "--expect", "one", "--pipeline", "3"]));
    fine(load(lines.address, &["--send", "abc12", "--expect", "/[0-9]{2}/", "--shape", "churn"]));
}
