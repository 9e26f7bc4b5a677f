//! What a proxy does with its connections to upstreams: attempts, checks, clocks, and failures that are not theirs.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::interop::has;
use crate::peer::{Peer, black_hole, listener};
use crate::server::{Process, Server, TIDEMILL, exclusive, run, shared, until};

const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);

/// Whether the kernel will probe the connections to this remote port: timer 2 of /proc/net/tcp.
fn has_keep_alive(remote_port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let remote = fields.get(2).and_then(|address| address.rsplit(':').next());
        remote == Some(&format!("{remote_port:04X}"))
            && fields.get(3) == Some(&"01")
            && fields.get(5).is_some_and(|timer| timer.starts_with("02:"))
    })
}

/// Waits for this time; the client must not be closed or receive anything meanwhile.
#[track_caller]
fn not_closed_within(client: &mut Peer, time: Duration) {
    let before = client.0.read_timeout().expect("an option");
    client.0.set_read_timeout(Some(time)).expect("an option");
    let result = client.0.read(&mut [0]);
    assert_eq!(result.expect_err("closed, or a byte").kind(), ErrorKind::WouldBlock);
    client.0.set_read_timeout(before).expect("an option");
}

#[test]
fn a_check_completes_header_and_handshake_so_an_upstream_that_fails_in_it_stays_down() {
    let _others = shared();
    let (bad, echo) = (listener(), Server::start("echo --raw"));
    let folder = std::env::temp_dir().join(format!("tidemill-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (certificate, key) = (folder.join("site.pem"), folder.join("site.key"));
    let signed = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    std::fs::write(&certificate, signed.cert.pem()).expect("a file");
    std::fs::write(&key, signed.signing_key.serialize_pem()).expect("a file");
    let good = Server::start(&format!(
        "proxy --to {} --proxy-protocol-in 127.0.0.1 --tls-cert {} --tls-key {}",
        echo.address,
        certificate.display(),
        key.display()
    ));
    // It takes the header, and answers the first message of the handshake with something else.
    let checks = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = checks.clone();
    std::thread::spawn(move || {
        for mut stream in bad.0.incoming().map_while(Result::ok) {
            let mut first = [0; 17];
            if stream.read_exact(&mut first).is_ok() && first[16] == 22 {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            let _ = stream.write_all(b"this is no TLS");
        }
    });
    let words =
        format!("proxy --check-every 50ms --proxy-protocol-out v2 --to-tls --insecure --to {}", bad.1);
    let proxy = Server::start(&format!("{words} --to {}", good.address));
    until("it is down", SOON, || proxy.log().contains(&format!("upstream {} is down", bad.1)));
    let seen = checks.load(std::sync::atomic::Ordering::Relaxed);
    until("it is checked ten times more", SOON, || {
        checks.load(std::sync::atomic::Ordering::Relaxed) >= seen + 10
    });
    assert!(Peer::connect(proxy.address).echoes("by the other"), "{}", proxy.log());
    assert!(!proxy.log().contains("is up again"), "{}", proxy.log());
    std::fs::remove_dir_all(&folder).expect("our folder");
}

#[test]
fn keep_alive_probes_upstreams_as_well_as_clients() {
    let _others = shared();
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --keep-alive 30s --to {address}"));
    let client = Peer::connect(proxy.address);
    let _server = listener.accept().expect("the proxy");
    let client_port = client.0.local_addr().expect("its address").port();
    until("the upstream is probed", SOON, || has_keep_alive(address.port()));
    until("the client is probed", SOON, || has_keep_alive(client_port));
}

#[test]
fn a_check_sends_the_header_for_no_client_that_an_upstream_expects() {
    let _others = shared();
    let local: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for (version, header) in [("v2", local), ("v1", b"PROXY UNKNOWN\r\n")] {
        let (one, other) = (listener(), listener());
        let words = format!("proxy --proxy-protocol-out {version} --check-every 50ms --to {}", one.1);
        let _proxy = Server::start(&format!("{words} --to {}", other.1));
        let mut check = one.0.accept().expect("a check").0;
        let mut said = Vec::new();
        check.set_read_timeout(Some(SOON)).expect("an option");
        check.read_to_end(&mut said).expect("a clean end");
        assert_eq!(said, header, "{version}");
    }
}

#[test]
fn sigterm_does_not_wait_for_checks() {
    let _others = shared();
    let (one, other) = (black_hole(), black_hole());
    let words = format!("--connect-timeout 20s --drain 1h --to {} --to {}", one.1, other.1);
    // A server that checks nothing: the checks of the other may begin before its descriptors can be counted.
    let without = Server::start(&format!("proxy --check-every 0 {words}")).descriptors();
    let mut proxy = Server::start(&format!("proxy --check-every 50ms {words}"));
    until("two checks are under way", SOON, || proxy.descriptors() >= without + 2);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.ended(SOON).code(), Some(0), "{}", proxy.log());
    until("it says so", SOON, || proxy.log().contains("0 connections have"));
}

#[test]
fn a_slow_upstream_is_overtaken_and_not_abandoned() {
    let _quiet = exclusive();
    let (hole, echo) = (black_hole(), Server::start("echo --raw"));
    let words = format!("proxy --check-every 0 --connect-timeout 6s --to {} --to {}", hole.1, echo.address);
    let proxy = Server::start(&words);
    let begun = Instant::now();
    assert!(Peer::connect(proxy.address).echoes("passed on"), "{}", proxy.log());
    let took = begun.elapsed();
    assert!(took >= SECOND && took < 3 * SECOND, "the second is tried after a second: {took:?}");
    let told = format!("upstream {} is down: connecting took too long", hole.1);
    until("the first is said to be down", SOON, || proxy.log().contains(&told));
    // The only one that is left is given all the time there is: here it accepts after 1.5 s.
    let slow = black_hole();
    let proxy = Server::start(&format!("proxy --check-every 0 --connect-timeout 9s --to {}", slow.1));
    let mut client = Peer::connect(proxy.address);
    not_closed_within(&mut client, Duration::from_millis(1_500));
    let accepts = std::thread::spawn(move || {
        loop {
            let (stream, _) = slow.0.accept().expect("an attempt");
            let mut stream = TcpStream::from(stream);
            if stream.write_all(b"at last").is_ok()
                && slow.2.iter().all(|fill| fill.local_addr().ok() != stream.peer_addr().ok())
            {
                return stream;
            }
        }
    });
    assert_eq!(client.receive(7), b"at last", "{}", proxy.log());
    drop(accepts.join().expect("the upstream"));
}

#[test]
fn a_full_backlog_of_a_unix_socket_is_waited_for_and_is_not_down() {
    let _others = shared();
    let path = std::env::temp_dir().join(format!("tidemill-backlog-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&socket2::SockAddr::unix(&path).expect("a path")).expect("the path is free");
    socket.listen(1).expect("a listener");
    let listener = UnixListener::from(std::os::fd::OwnedFd::from(socket));
    let proxy =
        Server::start_with_debug_log(&format!("proxy --connect-timeout 20s --to unix:{}", path.display()));
    let mut clients: Vec<Peer> = (0..12).map(|_| Peer::connect(proxy.address)).collect();
    clients.iter_mut().for_each(|client| client.send("hello"));
    let mut served: Vec<UnixStream> = Vec::new();
    for _ in 0..12 {
        let mut stream = listener.accept().expect("the next").0;
        stream.write_all(b"welcome").expect("it reads");
        served.push(stream);
    }
    assert!(clients.iter_mut().all(|client| client.receive(7) == b"welcome"), "{}", proxy.log());
    assert!(!proxy.log().contains("is down"), "{}", proxy.log());
    std::fs::remove_file(&path).expect("the path");
}

#[test]
fn the_clocks_of_a_client_do_not_run_while_an_upstream_is_dialed() {
    let _quiet = exclusive();
    for clock in ["--first-byte-timeout 1s", "--idle-timeout 1s"] {
        let hole = black_hole();
        let proxy = Server::start(&format!("proxy {clock} --to {}", hole.1));
        let mut client = Peer::connect(proxy.address);
        client.send("question");
        // Twice as long as the clock.
        not_closed_within(&mut client, 2 * SECOND);
        let fill: Vec<_> = hole.2.iter().filter_map(|fill| fill.local_addr().ok()).collect();
        let mut stream = loop {
            let (stream, _) = hole.0.accept().expect("an attempt");
            let stream = TcpStream::from(stream);
            if !fill.contains(&stream.peer_addr().expect("its address")) {
                break stream;
            }
        };
        let mut question = [0; 8];
        stream.read_exact(&mut question).expect("the question");
        stream.write_all(b"answer").expect("it reads");
        assert_eq!(
            (&question, client.receive(6)),
            (b"question", b"answer".to_vec()),
            "{clock}: {}",
            proxy.log()
        );
    }
}

#[test]
fn the_first_byte_clock_begins_when_the_upstream_is_connected() {
    let _others = shared();
    let (_listener, address) = listener();
    let proxy = Server::start(&format!("proxy --first-byte-timeout 300ms --to {address}"));
    let mut silent = Peer::connect(proxy.address);
    assert_eq!(silent.receive_all(), b"");
    until("the reason", SOON, || proxy.log().contains("client=first-byte"));
}

#[test]
fn a_refused_client_hears_nothing_of_another_protocol() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let proxy = Server::start(&format!("proxy --max-per-ip 1 --to {}", echo.address));
    let mut first = Peer::connect(proxy.address);
    assert!(first.echoes("in"));
    assert_eq!(Peer::connect(proxy.address).receive_all(), b"");
    let told = Server::start(&format!("proxy --max-per-ip 1 --busy-reply full --to {}", echo.address));
    let mut first = Peer::connect(told.address);
    assert!(first.echoes("in"));
    assert_eq!(Peer::connect(told.address).receive_all(), b"full\n");
}

#[test]
fn a_proxy_to_itself_is_recognised_by_where_an_address_leads() {
    let _others = shared();
    // Below the ports that the system gives away by itself; each test has a range of its own.
    let port = 15_000 + std::process::id() % 5_000;
    let folder = std::env::temp_dir().join(format!("tidemill-self-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("sub")).expect("a folder");
    let socket = folder.join("s");
    std::os::unix::fs::symlink(&socket, folder.join("link")).expect("a link");
    let folder_name = folder.display();
    for (listen, to) in [
        (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")),
        (format!("127.0.0.1:{port}"), format!("[::]:{port}")),
        (format!("127.0.0.1:{port}"), format!("[::ffff:127.0.0.1]:{port}")),
        (format!("0.0.0.0:{port}"), format!("localhost:{port}")),
        (format!("unix:{folder_name}/s"), format!("unix:{folder_name}/sub/../s")),
        (format!("unix:{folder_name}/s"), format!("unix:{folder_name}/link")),
    ] {
        let outcome = run(&["proxy", "--listen", &listen, "--to", &to], b"");
        assert_eq!((outcome.code, outcome.stdout.len()), (Some(1), 0), "{listen} {to}: {}", outcome.stderr);
        // A mapped address is written as IPv4.
        let to = to.replace("[::ffff:127.0.0.1]", "127.0.0.1");
        let sentence = format!("cannot proxy to {to}: that is {listen}");
        assert!(outcome.stderr.contains(&sentence), "{}", outcome.stderr);
    }
    std::fs::remove_dir_all(&folder).expect("the folder");
}

#[test]
fn a_proxy_with_room_for_half_a_connection_does_not_start() {
    let _others = shared();
    let outcome = run(&["proxy", "--max-connections", "1", "--to", "127.0.0.1:1"], b"");
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("a proxied connection takes two of --max-connections"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn weights_backup_and_caps_of_upstreams_are_kept() {
    let _others = shared();
    let (heavy, light, spare) = (listener(), listener(), listener());
    let words = format!("proxy --check-every 0 --to {},weight=3,max=6 --to {},max=2", heavy.1, light.1);
    let proxy = Server::start(&format!("{words} --to {},backup,max=1", spare.1));
    let mut counts = [0; 3];
    let listeners = [&heavy.0, &light.0, &spare.0];
    listeners.iter().for_each(|listener| listener.set_nonblocking(true).expect("an option"));
    let mut streams = Vec::new();
    let mut clients = Vec::new();
    for total in 1..=9 {
        clients.push(Peer::connect(proxy.address));
        until("the next is passed on", SOON, || {
            for (count, listener) in counts.iter_mut().zip(listeners) {
                if let Ok((stream, _)) = listener.accept() {
                    *count += 1;
                    streams.push(stream);
                }
            }
            counts.iter().sum::<i32>() == total
        });
        if total == 4 {
            assert_eq!(counts, [3, 1, 0]);
        }
    }
    assert_eq!(counts, [6, 2, 1], "the backup is used when the others are full");
    assert_eq!(Peer::connect(proxy.address).receive_all(), b"");
    until("it is told", SOON, || proxy.log().contains("all-upstreams-full=1"));
}

/// In a namespace whose name server takes each question and answers none.
#[test]
fn names_without_an_answer_delay_neither_the_start_nor_a_caller_of_another_upstream_nor_sigterm() {
    let _others = shared();
    if !has("socat") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("tidemill-names-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let resolver = folder.join("resolv.conf");
    std::fs::write(&resolver, "nameserver 127.0.0.1\n").expect("a file");
    // The client is in the namespace too, and writes what it has received to a file.
    let received = folder.join("received");
    let script = "ip link set lo up && mount --bind \"$1\" /etc/resolv.conf || exit 7
        timeout 9 socat -u UDP4-RECV:53 OPEN:/dev/null &
        until grep -q ':0035 ' /proc/net/udp; do sleep 0.01; done
        timeout 9 socat TCP4-LISTEN:7000,fork EXEC:cat &
        printf through | timeout 9 socat -t9 - TCP4:127.0.0.1:7001,retry=90,interval=0.1 >\"$2\" 2>/dev/null &
        shift 2
        exec \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount", "sh", "-c", script, "sh"]).arg(&resolver).arg(&received).arg(TIDEMILL);
    unshare.args(["proxy", "--listen", "127.0.0.1:7001", "--check-every", "200ms"]);
    unshare.args(["--to", "127.0.0.1:7000", "--to", "dead1.example:1", "--to", "dead2.example:1"]);
    let begun = Instant::now();
    let mut process =
        Process(unshare.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("unshare(1)"));
    let mut line = String::new();
    let mut stdout = BufReader::new(process.0.stdout.take().expect("its stdout"));
    stdout.read_line(&mut line).expect("its start line");
    if line.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "CI must be allowed to make namespaces");
        eprintln!("SKIPPED: making namespaces is not permitted here");
        return;
    }
    assert!(begun.elapsed() < 4 * SECOND, "it started after {:?}", begun.elapsed());
    until("a caller gets its answer", SOON, || {
        std::fs::read(&received).is_ok_and(|bytes| bytes == b"through")
    });
    let ends = Instant::now();
    kill_process(Pid::from_child(&process.0), Signal::TERM).expect("it runs");
    assert_eq!(process.wait_for_exit(SOON).code(), Some(0));
    assert!(ends.elapsed() < 3 * SECOND, "it ended after {:?}", ends.elapsed());
    std::fs::remove_dir_all(&folder).expect("our folder");
}
