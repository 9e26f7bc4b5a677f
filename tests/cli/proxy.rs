//! `tidemill proxy` in front of another service.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::{Peer, Random, black_hole, free_address, listener, seed};
use crate::server::{Server, exclusive, run, shared, until, within_one_of_three};

const SECOND: Duration = Duration::from_secs(1);

/// An address without a listener.
const CLOSED_PORT: &str = "127.77.0.1:1";

fn accept(listener: &TcpListener) -> Peer {
    let (stream, _) = listener.accept().expect("a connection from the proxy");
    stream.set_read_timeout(Some(30 * SECOND)).expect("an option");
    Peer(stream)
}

/// The last line about a proxied connection.
fn log_line(server: &Server, word: &str) -> String {
    until(word, 10 * SECOND, || server.log().lines().any(|line| line.contains(word)));
    server.log().lines().rfind(|line| line.contains(word)).expect("it is there").to_string()
}

#[test]
fn bytes_pass_unchanged_both_ways_at_once() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let proxy = Server::start(&format!("proxy --to {}", echo.address));
    let mut numbers = Random(seed());
    let all = numbers.bytes(16 << 20);
    let mut peer = Peer::connect(proxy.address);
    let mut writer = peer.0.try_clone().expect("a second handle");
    let sent = all.clone();
    let writes = thread::spawn(move || {
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let n = numbers.size(17).min(rest.len());
            writer.write_all(&rest[..n]).expect("it takes it");
            rest = &rest[n..];
        }
        writer.shutdown(std::net::Shutdown::Write).expect("it is connected");
    });
    assert!(peer.receive_all() == all);
    writes.join().expect("all is sent");
    let line = log_line(&proxy, "client=finished upstream=finished");
    assert!(line.contains(&format!("-> {} in=16777216 out=16777216 duration=", echo.address)), "{line}");
}

#[test]
fn an_end_is_passed_on_in_either_direction_and_ten_megabytes_follow_it() {
    let _others = shared();
    const ANSWER: usize = 10 << 20;
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --to {address}"));
    for client_asks in [true, false] {
        let mut client = Peer::connect(proxy.address);
        let mut server = accept(&listener);
        let (asks, answers) =
            if client_asks { (&mut client, &mut server) } else { (&mut server, &mut client) };
        asks.send("question");
        asks.finish();
        assert_eq!(answers.receive_all(), b"question", "the end arrives while the other direction is open");
        let mut stream = answers.0.try_clone().expect("a second handle");
        let says = thread::spawn(move || {
            stream.write_all(&vec![b'a'; ANSWER]).expect("it takes it");
            stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
        });
        assert_eq!(asks.receive_all().len(), ANSWER);
        says.join().expect("the answer is sent");
    }
}

#[test]
fn an_upstream_that_cannot_be_had_gives_the_client_a_clean_end_in_time() {
    let _quiet = exclusive();
    let hole = black_hole();
    for (to, max) in [
        (CLOSED_PORT.to_string(), SECOND),
        (hole.1.to_string(), 2 * SECOND),
        ("no-such-host.invalid:1".into(), 6 * SECOND),
    ] {
        let proxy = Server::start(&format!("proxy --connect-timeout 1s --to {to}"));
        within_one_of_three(&format!("an end for {to}"), max, || {
            let begun = Instant::now();
            let mut client = Peer::connect(proxy.address);
            client.send("hello?");
            assert_eq!(client.receive_all(), b"", "{to}");
            begun.elapsed()
        });
        let line = log_line(&proxy, " client=");
        assert!(line.contains(" out=0 "), "{line}");
        assert!(line.contains(&format!("cannot connect to {to}: ")), "{line}");
    }
}

/// What has arrived until the end, and whether that was a reset.
fn receive_until_reset(peer: &mut Peer) -> (Vec<u8>, bool) {
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match peer.0.read(&mut buffer) {
            Ok(0) => return (received, false),
            Ok(n) => received.extend(&buffer[..n]),
            Err(error) => return (received, error.kind() == ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn a_reset_on_one_side_reaches_the_other_as_a_reset_behind_all_data() {
    let _others = shared();
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --to {address}"));
    for upstream_resets in [true, false] {
        let client = Peer::connect(proxy.address);
        let server = accept(&listener);
        let (mut resets, mut other) = if upstream_resets { (server, client) } else { (client, server) };
        resets.send("half an ans");
        assert_eq!(other.receive(11), b"half an ans");
        resets.send("wer");
        socket2::SockRef::from(&resets.0).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(resets);
        assert_eq!(receive_until_reset(&mut other), (b"wer".to_vec(), true));
        let reset = if upstream_resets { "upstream=reset" } else { "client=reset" };
        assert!(log_line(&proxy, reset).contains("=pipe-peer-closed"), "{}", proxy.log());
    }
}

#[test]
fn on_reset_end_ends_the_other_side_as_if_the_stream_were_complete() {
    let _others = shared();
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --on-reset end --to {address}"));
    for upstream_resets in [true, false] {
        let client = Peer::connect(proxy.address);
        let server = accept(&listener);
        let (mut resets, mut other) = if upstream_resets { (server, client) } else { (client, server) };
        resets.send("half an ans");
        assert_eq!(other.receive(11), b"half an ans");
        socket2::SockRef::from(&resets.0).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(resets);
        assert_eq!(receive_until_reset(&mut other), (Vec::new(), false));
    }
}

#[test]
fn clients_of_a_listener_for_both_versions_of_ip_are_written_as_ipv4() {
    let _others = shared();
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --listen [::]:0 --proxy-protocol-out v1 --to {address}"));
    let own = std::net::SocketAddr::from(([127, 0, 0, 1], proxy.address.port()));
    let mut client = Peer::connect(own);
    let from = client.0.local_addr().expect("an address");
    let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", from.port(), own.port());
    let mut server = accept(&listener);
    assert_eq!(String::from_utf8_lossy(&server.receive(header.len())), header);
    server.finish();
    client.finish();
    assert!(log_line(&proxy, " -> ").contains(&format!("] {from} -> {address} ")), "{}", proxy.log());
    let chat = Server::start("chat --listen [::]:0");
    let mut member = Peer::connect(std::net::SocketAddr::from(([127, 0, 0, 1], chat.address.port())));
    let joined = format!("{} joined\n", member.0.local_addr().expect("an address"));
    assert_eq!(String::from_utf8_lossy(&member.receive(joined.len())), joined);
}

#[test]
fn a_slow_client_of_200_mib_costs_no_more_than_the_water_marks() {
    let _others = shared();
    const ALL: usize = 200 << 20;
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --to {address}"));
    let mut client = Peer::connect(proxy.address);
    let mut server = accept(&listener);
    let before = proxy.memory();
    let sends = thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 20];
        (0..200).for_each(|_| server.send(&chunk));
        server.finish();
    });
    let (mut received, mut max, mut buffer) = (0, 0, vec![0; 256 * 1024]);
    loop {
        let n = client.0.read(&mut buffer).expect("more of it");
        if n == 0 {
            break;
        }
        received += n;
        // Slower than the sender could, and at times much slower.
        if received % (4 << 20) < n {
            thread::sleep(Duration::from_millis(20));
            max = max.max(proxy.memory().saturating_sub(before));
        }
    }
    sends.join().expect("all is sent");
    assert_eq!(received, ALL);
    println!("{} KiB more than before", max / 1024);
    // A queue up to its high mark and one read beyond it, in chunks of powers of two; and the arena's block.
    assert!(max <= 1 << 20, "{max} bytes more than before");
}

#[test]
fn upstreams_take_turns_and_a_down_one_is_skipped_until_it_is_back() {
    let _others = shared();
    let (one, address) = (Server::start("echo --raw --busy-reply one"), free_address());
    let other = TcpListener::bind(address).expect("a reserved port");
    let words = format!("proxy --check-every 200ms --to {} --to {address}", one.address);
    let mut proxy = Server::start(&words);
    other.set_nonblocking(true).expect("an option");
    let mut seen = 0;
    let clients: Vec<Peer> = (0..6).map(|_| Peer::connect(proxy.address)).collect();
    let payload = |listener: &TcpListener| listener.accept().is_ok();
    until("half of them go to the other", 10 * SECOND, || {
        seen += usize::from(payload(&other));
        seen >= 3
    });
    drop(clients);
    drop(other);
    for _ in 0..6 {
        assert!(Peer::connect(proxy.address).echoes("passed on"), "{}", proxy.log());
    }
    until("it is said to be down", 10 * SECOND, || {
        proxy.log().contains(&format!("upstream {} is down", address))
    });
    let back = TcpListener::bind(address).expect("its port");
    until("it is said to be up", 10 * SECOND, || {
        proxy.log().contains(&format!("upstream {} is up again", address))
    });
    let _clients: Vec<Peer> = (0..2).map(|_| Peer::connect(proxy.address)).collect();
    back.set_nonblocking(true).expect("an option");
    until("it has its turn again", 10 * SECOND, || match back.accept() {
        // A check connects and ends; a client stays.
        Ok((stream, _)) => {
            stream.set_read_timeout(Some(Duration::from_millis(300))).expect("an option");
            let kind = (&stream).read(&mut [0]).map_err(|error| error.kind());
            matches!(kind, Err(ErrorKind::WouldBlock))
        }
        Err(_) => false,
    });
    drop(_clients);
    let log = proxy.end();
    assert!(log.contains(" -> "), "{log}");
}

#[test]
fn a_header_is_read_from_trusted_senders_only_and_from_these_always() {
    let _others = shared();
    let (listener, address) = listener();
    let words = format!("proxy --to {address} --proxy-protocol-in 127.0.0.2 --proxy-protocol-out v1");
    let proxy = Server::start(&words);
    let own = proxy.address;
    // From an untrusted sender it is payload.
    let mut untrusted = Peer::connect(own);
    untrusted.send("PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\nhi");
    let from = untrusted.0.local_addr().expect("an address");
    let expected = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nPROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\nhi",
        from.port(),
        own.port()
    );
    assert_eq!(String::from_utf8_lossy(&accept(&listener).receive(expected.len())), expected);
    // From a trusted sender it is read, in both versions, byte by byte.
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x01\0\x02\0";
    for header in [&b"PROXY TCP4 192.0.2.7 192.0.2.1 256 512\r\n"[..], v2] {
        let mut balancer = Peer::connect_from(2, own);
        for byte in header {
            balancer.send([*byte]);
        }
        balancer.send("hi");
        let expected = "PROXY TCP4 192.0.2.7 192.0.2.1 256 512\r\nhi";
        let mut server = accept(&listener);
        assert_eq!(String::from_utf8_lossy(&server.receive(expected.len())), expected);
        server.finish();
        balancer.finish();
        assert!(log_line(&proxy, "192.0.2.7:256 -> ").contains("client="));
    }
    // A trusted sender without a valid header is closed, and no upstream is connected.
    listener.set_nonblocking(true).expect("an option");
    for wrong in ["GET / HTTP/1.0\r\n\r\n", "PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n"] {
        let mut balancer = Peer::connect_from(2, own);
        balancer.send(wrong);
        assert_eq!(balancer.receive_all(), b"");
    }
    let _silent = Peer::connect_from(2, own);
    until("one that says nothing is closed too", 10 * SECOND, || {
        proxy.log().contains("no PROXY header within 5s")
    });
    assert_eq!(listener.accept().expect_err("no connection").kind(), ErrorKind::WouldBlock);
}

#[test]
fn the_binary_header_is_sent_when_asked_for() {
    let _others = shared();
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --to {address} --proxy-protocol-out v2"));
    let client = Peer::connect(proxy.address);
    let received = accept(&listener).receive(28);
    assert_eq!(received[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
    let port = client.0.local_addr().expect("an address").port();
    assert_eq!(
        (&received[16..24], &received[24..26]),
        (&[127, 0, 0, 1, 127, 0, 0, 1][..], &port.to_be_bytes()[..])
    );
}

#[test]
fn a_denied_peer_costs_no_upstream_byte_and_a_dry_run_only_counts_it() {
    let _others = shared();
    let (listener, address) = listener();
    listener.set_nonblocking(true).expect("an option");
    let rules = "--deny 127.0.0.3=reset --allow 127.0.0.0/28 --deny 127.0.0.0/8=reply --busy-reply no";
    let mut proxy = Server::start(&format!("proxy --to {address} {rules}"));
    let mut reset = Peer::connect_from(3, proxy.address);
    assert!(reset.0.read(&mut [0]).is_err(), "it is reset");
    assert_eq!(Peer::connect_from(99, proxy.address).receive_all(), b"no\n");
    assert_eq!(listener.accept().expect_err("no connection").kind(), ErrorKind::WouldBlock);
    let line = log_line(&proxy, "refused 2: denied=2, last 127.0.0.99:");
    assert!(line.contains("INFO"), "{line}");
    let _allowed = Peer::connect_from(4, proxy.address);
    until("the upstream is called", 10 * SECOND, || listener.accept().is_ok());
    let log = proxy.end();
    for sent in [
        "rule deny 127.0.0.3 matched 1 time",
        "rule allow 127.0.0.0/28 matched 1 time",
        "rule deny 127.0.0.0/8 matched 1 time",
        "refused-denied=2",
    ] {
        assert!(log.contains(sent), "{sent} is not in {log}");
    }
    let mut proxy = Server::start(&format!("proxy --dry-run --max-per-ip 1 --to {address} {rules}"));
    let _both = [Peer::connect_from(99, proxy.address), Peer::connect_from(99, proxy.address)];
    let mut called = 0;
    until("both are let in", 10 * SECOND, || {
        called += usize::from(listener.accept().is_ok());
        called == 2
    });
    drop(_both);
    let log = proxy.end();
    assert!(log.contains("would-refuse-denied=2 would-refuse-per-address=1"), "{log}");
    assert!(log.contains("127.0.0.99 would have been refused: a rule denies its address (dry run)"), "{log}");
}

#[test]
fn the_cap_for_one_address_is_exact_and_its_rate_of_connects_too() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let proxy = Server::start(&format!("proxy --to {} --max-per-ip 7", echo.address));
    let mut peers: Vec<Peer> = (0..20).map(|_| Peer::connect(proxy.address)).collect();
    let served = peers.iter_mut().filter_map(|peer| peer.echoes("x").then_some(())).count();
    assert_eq!(served, 7);
    assert!(Peer::connect_from(2, proxy.address).echoes("another address"));
    peers.remove(0);
    until("the place is free again", 10 * SECOND, || Peer::connect(proxy.address).echoes("x"));
    let too_fast = Server::start(&format!("proxy --to {} --accept-rate 5", echo.address));
    let begun = Instant::now();
    let served = (0..50)
        .filter(|_| TcpStream::connect(too_fast.address).is_ok_and(|stream| Peer(stream).echoes("x")))
        .count();
    let max = 5 + 5 * (begun.elapsed().as_secs() as usize + 1);
    assert!((5..=max).contains(&served), "{served} of 50 in {:?}", begun.elapsed());
}

#[test]
fn a_rate_of_one_mib_a_second_is_held_within_a_twentieth_over_ten_seconds() {
    let _others = shared();
    let (listener, address) = listener();
    let proxy = Server::start(&format!("proxy --to {address} --rate 1MiB"));
    // A busy machine may make it slower, never faster.
    within_one_of_three("10 MiB", SECOND * 21 / 2, || {
        let mut client = Peer::connect(proxy.address);
        let mut server = accept(&listener);
        let begun = Instant::now();
        let sends = thread::spawn(move || client.send(vec![b'x'; 10 << 20]));
        server.receive(10 << 20);
        let took = begun.elapsed();
        sends.join().expect("all is sent");
        assert!(took >= SECOND * 19 / 2, "it took {took:?}");
        took
    });
}

#[test]
fn a_proxied_connection_takes_two_slots_and_is_accepted_only_with_room_for_both() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let proxy = Server::start(&format!("proxy --to {} --max-connections 11 --busy-reply full", echo.address));
    let before = proxy.descriptors();
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(proxy.address)).collect();
    for (n, peer) in peers.iter_mut().enumerate() {
        match n {
            0..5 => assert!(peer.echoes("in"), "client {n}"),
            _ => assert_eq!(peer.receive_all(), b"full\n", "client {n}"),
        }
    }
    assert!(proxy.descriptors() >= before + 10);
    drop(peers);
    until("both descriptors of each are closed", 10 * SECOND, || proxy.descriptors() == before);
}

#[test]
fn few_descriptors_are_divided_before_any_connection_is_accepted() {
    let _others = shared();
    let echo = Server::start("echo --raw");
    let mut proxy = Server::start_with_descriptors(64, &format!("proxy --to {}", echo.address));
    let mut peers: Vec<Peer> = (0..30).map(|_| Peer::connect(proxy.address)).collect();
    let served = peers.iter_mut().filter_map(|peer| peer.echoes("in").then_some(())).count();
    // Fourteen descriptors are set aside, and those that the tests themselves were started with.
    log_line(&proxy, "at most ");
    let log = proxy.log();
    let most =
        log.split_once("at most ").and_then(|(_, rest)| rest.split_once(' ')).map(|(most, _)| most.parse());
    let most: usize = most.expect("a line about limits").expect("a number");
    assert!((40..=50).contains(&most), "{log}");
    assert_eq!(served, most / 2, "a client is two connections; {log}");
    drop(peers);
    assert!(!proxy.end().contains("cannot accept"), "it never ran out");
}

#[test]
fn a_proxy_to_itself_is_refused_at_the_start() {
    let _others = shared();
    // Below the ports that the system gives away by itself, so that no other test has just been given it.
    let port = 25_000 + std::process::id() % 5_000;
    for (listen, to) in [
        (format!("127.0.0.1:{port}"), format!("127.0.0.1:{port}")),
        (format!("0.0.0.0:{port}"), format!("localhost:{port}")),
        (format!("0.0.0.0:{port}"), format!("127.0.0.9:{port}")),
        ("unix:@tidemill-self".to_string(), "unix:@tidemill-self".to_string()),
    ] {
        let outcome = run(&["proxy", "--listen", &listen, "--to", &to], b"");
        assert_eq!((outcome.code, outcome.stdout.len()), (Some(1), 0), "{listen} {to}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(&format!("cannot proxy to {to}: that is {listen}")),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn unix_domain_sockets_are_as_good_on_either_side() {
    let _others = shared();
    let folder = std::env::temp_dir().join(format!("tidemill-proxy-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (front, back) = (folder.join("front.sock"), folder.join("back.sock"));
    let listener = UnixListener::bind(&back).expect("a listener");
    let words = format!("proxy --listen unix:{} --to unix:{}", front.display(), back.display());
    let mut proxy = Server::start(&words);
    let mut client = UnixStream::connect(&front).expect("a connection");
    let (mut server, _) = listener.accept().expect("the proxy calls");
    client.write_all(b"through two files").expect("it takes it");
    let mut received = [0; 17];
    server.read_exact(&mut received).expect("it arrives");
    assert_eq!(&received, b"through two files");
    drop((client, server));
    proxy.end();
    assert!(!front.exists() && back.exists(), "it removes what it has made");
    std::fs::remove_dir_all(&folder).expect("it is ours");
}
