//! Interoperability with other programs: Node, redis-benchmark, wrk.
//!
//! They are ordinary packages (`nodejs`, `redis-server`, `redis-tools`, `wrk`). If one is missing, its tests print that
//! and pass, unless `TIDEMILL_INTEROP=required` is set.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::server::{Process, Server, exclusive, run, shared, until};

/// Whether a program is installed. Fails if it is not and `TIDEMILL_INTEROP=required` is set.
pub fn has(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let there = found.is_ok_and(|status| status.success());
    let required = std::env::var("TIDEMILL_INTEROP").is_ok_and(|how| how == "required");
    assert!(there || !required, "{program} is not installed");
    if !there {
        println!("skipped: {program} is not installed");
    }
    there
}

/// Runs a Node program to its end; returns what it prints.
#[track_caller]
pub fn node(script: &str, words: &[&str]) -> String {
    let mut command = Command::new("node");
    command.arg("-e").arg(format!("{PRELUDE}{script}")).args(words);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = Process(child.expect("node"));
    process.wait_for_exit(Duration::from_secs(60));
    let (mut out, mut err) = (String::new(), String::new());
    process.0.stdout.take().expect("its stdout").read_to_string(&mut out).expect("text");
    process.0.stderr.take().expect("its stderr").read_to_string(&mut err).expect("text");
    assert!(err.is_empty(), "{err}");
    out
}

/// A Node server: its process and its address.
pub fn node_server(script: &str) -> (Process, SocketAddr) {
    node_server_with(script, &[])
}

/// The same with arguments.
pub fn node_server_with(script: &str, words: &[&str]) -> (Process, SocketAddr) {
    let mut command = Command::new("node");
    command.arg("-e").arg(format!("{PRELUDE}{script}")).args(words);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut process = Process(child.expect("node"));
    let mut line = String::new();
    let stdout = process.0.stdout.take().expect("its stdout");
    BufReader::new(stdout).read_line(&mut line).expect("its port");
    let port: u16 = line.trim().parse().expect("a port");
    (process, SocketAddr::from(([127, 0, 0, 1], port)))
}

const PRELUDE: &str = r"
const net = require('net');
const [port, extra] = process.argv.slice(1);
const told = (text) => process.stdout.write(text + '\n');
const listen = (server) => server.listen(0, '127.0.0.1', () => told(String(server.address().port)));
";

#[test]
fn a_node_client_gets_the_same_echo_as_from_a_node_server() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let script = r"
    // Pieces of many sizes, then FIN; the server must echo every byte and then send FIN.
    const sent = Buffer.concat([...Array(200).keys()].map((n) => Buffer.alloc(n * 97, n)));
    const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    const order = [];
    const heard = [];
    socket.on('connect', () => {
        order.push('connect');
        for (let at = 0, n = 1; at < sent.length; at += n, n = (n * 7) % 60013 + 1) {
            socket.write(sent.subarray(at, at + n));
        }
        socket.end();
    });
    socket.on('data', (data) => heard.push(data));
    socket.on('end', () => order.push('end'));
    socket.on('error', (error) => order.push(error.code));
    socket.on('close', (hadError) => told([...order, 'close', hadError, Buffer.concat(heard).equals(sent),
        socket.bytesRead === sent.length, socket.bytesWritten === sent.length].join(' ')));
    ";
    let echo = Server::start("echo --raw");
    let port = echo.address.port().to_string();
    let verdict = "connect end close false true true true\n";
    assert_eq!(node(script, &[&port]), verdict);
    let of_node = "listen(net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)))";
    let (_server, address) = node_server(of_node);
    assert_eq!(node(script, &[&address.port().to_string()]), verdict, "as of Node's own server");
    let proxy = Server::start(&format!("proxy --to {address}"));
    assert_eq!(node(script, &[&proxy.address.port().to_string()]), verdict, "and through the proxy");
}

#[test]
fn a_node_client_gets_fin_when_refused_idle_or_denied_and_a_reset_when_reset() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let script = r"
    const socket = net.connect({ port, host: '127.0.0.1', localAddress: extra });
    const order = [];
    socket.on('connect', () => order.push('connect'));
    socket.on('data', (data) => order.push(JSON.stringify(String(data))));
    socket.on('end', () => order.push('end'));
    socket.on('error', (error) => order.push(error.code));
    socket.on('close', () => told(order.join(' ')));
    ";
    let seen = |options: &str, from: &str| {
        let server = Server::start(&format!("echo --raw {options}"));
        let _inside =
            options.contains("--max-connections").then(|| crate::peer::Peer::connect(server.address));
        node(script, &[&server.address.port().to_string(), from])
    };
    assert_eq!(seen("--max-connections 1", "127.0.0.1"), "connect \"server busy\\n\" end\n");
    assert_eq!(seen("--idle-timeout 300ms", "127.0.0.1"), "connect end\n");
    assert_eq!(seen("--deny 127.0.0.5", "127.0.0.5"), "connect end\n");
    assert_eq!(seen("--deny 127.0.0.5=reply --busy-reply away", "127.0.0.5"), "connect \"away\\n\" end\n");
    // The reset may arrive before Node has seen the connection established.
    let reset = seen("--deny 127.0.0.5=reset", "127.0.0.5");
    assert!(["connect ECONNRESET\n", "ECONNRESET\n"].contains(&reset.as_str()), "{reset}");
}

#[test]
fn a_node_client_that_resets_or_never_reads_does_not_affect_others() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let script = r"
    const bystander = net.connect(port, '127.0.0.1');
    const resets = net.connect(port, '127.0.0.1', () => {
        resets.write('x');
        resets.once('data', () => resets.resetAndDestroy());
    });
    const deaf = net.connect(port, '127.0.0.1', () => {
        deaf.pause();
        const push = () => { while (deaf.write(Buffer.alloc(65536))); deaf.once('drain', push); };
        push();
    });
    resets.on('close', () => setTimeout(() => {
        bystander.write('ping');
        bystander.once('data', (data) => { told(String(data)); process.exit(0); });
    }, 300));
    ";
    let mut echo = Server::start("echo --raw");
    assert_eq!(node(script, &[&echo.address.port().to_string()]), "ping\n");
    let log = echo.end();
    assert!(log.contains("reset="), "{log}");
}

#[test]
fn a_node_client_works_with_chat_and_frames() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let chat = Server::start("chat");
    let talk = r"
    const names = ['ann', 'bob'];
    const heard = { ann: '', bob: '' };
    const sockets = {};
    const step = (who, text) => new Promise((done) => {
        const look = () => heard[who].includes(text) ? done() : setTimeout(look, 5);
        look();
    });
    (async () => {
        for (const name of names) {
            sockets[name] = net.connect(port, '127.0.0.1').setEncoding('utf8');
            sockets[name].on('data', (text) => heard[name] += text);
            sockets[name].write(`/nick ${name}\n`);
            await step(name, `is now ${name}\n`);
        }
        sockets.ann.write('gr\u00fc\u00df dich, bob\n');
        await step('bob', 'ann: gr\u00fc\u00df dich, bob\n');
        sockets.bob.end('/quit\n');
        await step('ann', 'bob left\n');
        sockets.ann.destroy();
        told('all of it');
    })();
    ";
    assert_eq!(node(talk, &[&chat.address.port().to_string()]), "all of it\n");
    let frames = Server::start("frames");
    let frame = r"
    const bodies = ['', 'a', 'x'.repeat(70000), 'last'];
    const wire = Buffer.concat(bodies.flatMap((body) => {
        const head = Buffer.alloc(4);
        head.writeUInt32BE(body.length);
        return [head, Buffer.from(body)];
    }));
    const socket = net.connect(port, '127.0.0.1', () => socket.end(wire));
    let heard = Buffer.alloc(0);
    socket.on('data', (data) => heard = Buffer.concat([heard, data]));
    socket.on('close', () => told(String(heard.equals(wire))));
    ";
    assert_eq!(node(frame, &[&frames.address.port().to_string()]), "true\n");
}

#[test]
fn the_connect_command_works_with_a_node_server() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let count = r"
    listen(net.createServer({ allowHalfOpen: true }, (socket) => {
        let all = 0;
        socket.on('data', (data) => all += data.length);
        socket.on('end', () => socket.end(`${all} bytes\n`));
    }));
    ";
    let (_count, address) = node_server(count);
    let to = format!("localhost:{}", address.port());
    let outcome = run(&["connect", &to], &vec![7; 3_000_000]);
    assert_eq!(
        (String::from_utf8_lossy(&outcome.stdout).as_ref(), outcome.code),
        ("3000000 bytes\n", Some(0))
    );
    let frames = r"
    listen(net.createServer({ allowHalfOpen: true }, (socket) => {
        // Answers everything with one frame, whose prefix and body are sent separately.
        socket.once('data', () => { socket.write('\x00'); setTimeout(() => socket.end('\x05hello'), 20); });
    }));
    ";
    let (_frames, address) = node_server(frames);
    let outcome = run(&["connect", "--framing", "u16be", &address.to_string()], b"hi\n");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"hello\n"[..], Some(0)), "{}", outcome.stderr);
    let resets = "listen(net.createServer((socket) => socket.once('data', () => socket.resetAndDestroy())));";
    let (_resets, address) = node_server(resets);
    let outcome = run(&["connect", &address.to_string()], b"hi\n");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("reset by the peer"), "{}", outcome.stderr);
}

#[test]
fn ten_megabytes_and_a_half_close_pass_the_proxy_between_two_nodes() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let server = r"
    listen(net.createServer({ allowHalfOpen: true }, (socket) => {
        let all = 0;
        socket.on('data', (data) => all += data.length);
        socket.on('end', () => {
            for (let n = 0; n < 160; n++) socket.write(Buffer.alloc(65536, n));
            socket.end(String(all));
        });
    }));
    ";
    let (_server, address) = node_server(server);
    let proxy = Server::start(&format!("proxy --to {address}"));
    let client = r"
    const options = { port, host: '127.0.0.1', allowHalfOpen: true };
    const socket = net.connect(options, () => socket.end(Buffer.alloc(5000000)));
    let heard = [];
    socket.on('data', (data) => heard.push(data));
    socket.on('end', () => {
        heard = Buffer.concat(heard);
        let right = heard.length === 160 * 65536 + 7 && heard.subarray(160 * 65536).toString() === '5000000';
        for (let n = 0; n < 160; n++) right &&= heard[n * 65536] === n && heard[n * 65536 + 65535] === n;
        told(String(right));
    });
    ";
    assert_eq!(node(client, &[&proxy.address.port().to_string()]), "true\n");
}

/// Checks only that `redis-benchmark --csv` has a line for each test and that none failed.
#[test]
fn redis_benchmark_succeeds_through_the_proxy() {
    let _quiet = exclusive();
    if !has("redis-server") || !has("redis-benchmark") {
        return;
    }
    let direct = crate::peer::free_address();
    let port = direct.port();
    let words = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let redis = Command::new("redis-server").args(words).stdout(Stdio::null()).spawn();
    let _redis = Process(redis.expect("a server"));
    until("redis listens", Duration::from_secs(20), || std::net::TcpStream::connect(direct).is_ok());
    let proxy = Server::start(&format!("proxy --max-per-ip 0 --to {direct}"));
    let tests = |port: u16| {
        let port = port.to_string();
        let words = [
            "-p",
            &port,
            "-n",
            "20000",
            "-c",
            "50",
            "-P",
            "4",
            "-t",
            "ping,set,get,incr,lpush,lrange_100",
            "--csv",
        ];
        let output = Command::new("redis-benchmark").args(words).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().skip(1).map(|line| line.split(',').next().unwrap_or("").to_string()).collect::<Vec<_>>()
    };
    let without = tests(port);
    assert!(without.len() >= 7, "{without:?}");
    assert_eq!(tests(proxy.address.port()), without);
    // A key written through the proxy can be read directly, and the other way round.
    let mut through = crate::peer::Peer::connect(proxy.address);
    through.send("SET tide mill\r\n");
    assert_eq!(through.receive(5), b"+OK\r\n");
    let mut direct = crate::peer::Peer::connect(direct);
    direct.send("GET tide\r\n");
    assert_eq!(direct.receive(10), b"$4\r\nmill\r\n");
}

#[test]
fn wrk_runs_through_the_proxy_without_an_error() {
    let _quiet = exclusive();
    if !has("wrk") || !has("node") {
        return;
    }
    let http = r"
    const server = require('http').createServer((_, answer) => answer.end('x'.repeat(1000)));
    server.listen(0, '127.0.0.1', () => told(String(server.address().port)));
    ";
    let (_http, address) = node_server(http);
    let proxy = Server::start(&format!("proxy --max-per-ip 0 --to {address}"));
    for to in [address, proxy.address] {
        let output = Command::new("wrk").args(["-t1", "-c50", "-d2s", &format!("http://{to}/")]).output();
        let text = String::from_utf8(output.expect("it runs").stdout).expect("text");
        assert!(text.contains("requests in"), "{text}");
        assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    }
}

/// The traffic of a database client: a short query and a long answer in several packets, many times on one connection,
/// then a quit message.
#[test]
fn queries_and_answers_on_one_connection_pass_the_proxy_byte_for_byte() {
    let _others = shared();
    let frames = Server::start("frames");
    let proxy = Server::start(&format!("proxy --to {}", frames.address));
    let mut client = crate::peer::Peer::connect(proxy.address);
    let mut numbers = crate::peer::Random(crate::peer::seed());
    for _ in 0..500 {
        let length = 5 + (numbers.next() % 40_000) as usize;
        let body = numbers.bytes(length);
        let mut message = u32::try_from(body.len()).expect("a length").to_be_bytes().to_vec();
        message.extend(&body);
        client.send(&message);
        assert!(client.receive(message.len()) == message);
    }
    client.finish();
    assert!(client.receive_all().is_empty());
}
