//! Attacks on TLS listeners: silent, slow, invalid and damaged handshakes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{Certificates, TlsPeer, client_hello, s_client};
use crate::interop::has;
use crate::peer::{Peer, Random, seed};
use crate::server::{Server, exclusive, shared, until};

const SECOND: Duration = Duration::from_secs(1);

#[track_caller]
fn still_serves(server: &Server, certificates: &Certificates) {
    let mut peer = TlsPeer::connect(&certificates.client_config(), server.address).expect("a connection");
    assert!(peer.echoes(b"still here"), "{}", server.log());
}

/// How long it takes until the server closes this connection, on which these bytes are sent slowly, one at a time.
fn lasts(server: &Server, says: &[u8]) -> Duration {
    let mut peer = Peer::connect(server.address);
    peer.0.set_read_timeout(Some(Duration::from_millis(20))).expect("an option");
    let (begun, mut says) = (Instant::now(), says.iter());
    while begun.elapsed() < 20 * SECOND {
        match peer.0.read(&mut [0; 1000]) {
            Ok(0) => return begun.elapsed(),
            // The alert of the server, if it sends one.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if let Some(byte) = says.next() {
                    // The server may just have closed; then the next read finds it.
                    let _ = peer.0.write_all(&[*byte]);
                }
            }
            // The server had closed before the last byte arrived.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return begun.elapsed(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it lasts for ever: {}", server.log());
}

#[test]
fn silent_and_slow_handshakes_are_closed_at_the_handshake_timeout_and_not_before() {
    let _quiet = exclusive();
    let certificates = Certificates::of("silent");
    let words = certificates.server_args("server");
    let mut echo = Server::start(&format!("echo --raw --handshake-timeout 1s {words}"));
    let plain = Server::start("echo --raw");
    let proxy = Server::start(&format!("proxy --to {} --handshake-timeout 1s {words}", plain.address));
    let hello = client_hello(&certificates);
    for server in [&echo, &proxy] {
        for (who, says) in [("silent", &b""[..]), ("dribbling", &hello[..])] {
            let lasted = lasts(server, says);
            println!("{who}: {lasted:?}");
            assert!(lasted > SECOND * 9 / 10 && lasted < 3 * SECOND, "{who}: {lasted:?}");
        }
        still_serves(server, &certificates);
    }
    assert!(echo.end().contains(" handshake-timeout=2"), "{}", echo.log());
}

#[test]
fn non_tls_bytes_are_logged_and_the_server_serves_on() {
    let _others = shared();
    let certificates = Certificates::of("no-tls");
    let mut echo =
        Server::start_with_debug_log(&format!("echo --raw {}", certificates.server_args("server")));
    let garbage = Random(seed()).bytes(5000);
    // A record with the type of a ClientHello and other content.
    let mut wrong_hello = client_hello(&certificates);
    wrong_hello[5] = 99;
    let long = [&[22, 3, 1, 0xff, 0xff][..], &[1; 3000]].concat();
    for (says, why) in [
        (
            &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
            "the peer does not speak TLS (it sent \"GET / HT\")",
        ),
        (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00", "the peer does not speak TLS (it sent \"\\x80.\\x01"),
        (&[0; 4096], "the peer does not speak TLS (it sent \"\\x00\\x00"),
        (&garbage, "handshake: the peer "),
        (&wrong_hello, "the peer sent an unexpected message"),
        (&long, "handshake: the peer sent a malformed message"),
        (&[0x17, 3, 3, 0, 1, 0], "the peer sent an unexpected message"),
        (&[0x15, 3, 3, 0, 2, 2, 40], "handshake: the peer refused: handshake failure"),
    ] {
        let mut peer = Peer::connect(echo.address);
        let from = peer.0.local_addr().expect("an address");
        peer.send(says);
        // Whatever it answers, FIN follows and no reset.
        let received = peer.receive_all();
        assert!(received.len() <= 7, "an alert at most: {received:?}");
        let begins = format!("{from}: closed: handshake: ");
        until("a line in the log", 10 * SECOND, || echo.log().contains(&begins));
        let log = echo.log();
        let line = log.lines().find(|line| line.contains(&begins)).expect("it is there");
        assert!(line.contains(why), "{why}: {line}");
    }
    still_serves(&echo, &certificates);
    assert!(echo.end().contains(" handshake=8"), "{}", echo.log());
}

/// A relay that passes on the bytes of clients one at a time, each in its own packet.
fn byte_by_byte(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let passes = move |mut client: TcpStream| -> std::io::Result<()> {
        let mut server = TcpStream::connect(to)?;
        server.set_nodelay(true)?;
        let (mut back, mut answers) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || {
            let copied = std::io::copy(&mut answers, &mut back);
            let _ = back.shutdown(Shutdown::Write);
            copied
        });
        let mut byte = [0];
        while client.read(&mut byte)? > 0 {
            server.write_all(&byte)?;
        }
        server.shutdown(Shutdown::Write)
    };
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || passes(client));
        }
    });
    address
}

#[test]
fn a_handshake_that_arrives_byte_by_byte_succeeds() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("bytes");
    let (cert, ca) = (certificates.server_args("server"), certificates.path("ca.pem"));
    let echo = Server::start(&format!("echo {cert} --tls-client-ca {ca} --tls-client-optional"));
    let relay = byte_by_byte(echo.address);
    let shown = format!("-cert {} -key {}", certificates.path("client.pem"), certificates.path("client.key"));
    for version in ["-tls1_2", "-tls1_3"] {
        for shown in ["", &shown] {
            let outcome = s_client(&certificates, relay, &format!("{version} {shown}"), b"hello\nquit\n");
            assert!(outcome.text().contains("\nhello\n"), "{version}: {}{}", outcome.text(), outcome.stderr);
            assert_eq!(outcome.code, Some(0), "{version}: {}", outcome.stderr);
        }
    }
}

#[test]
fn a_peer_that_ends_anywhere_in_its_client_hello_gets_fin() {
    let _others = shared();
    let certificates = Certificates::of("prefixes");
    let mut echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let hello = client_hello(&certificates);
    for length in 0..=hello.len() {
        let mut peer = Peer::connect(echo.address);
        peer.send(&hello[..length]);
        peer.finish();
        let received = peer.receive_all();
        assert!(length == hello.len() || received.len() <= 7, "{length} bytes: {received:?}");
    }
    let descriptors = echo.descriptors();
    still_serves(&echo, &certificates);
    until("nothing stays behind", 10 * SECOND, || echo.descriptors() <= descriptors);
    let log = echo.end();
    assert!(log.contains("handshake: the peer left during the handshake"), "{log}");
    assert!(log.contains(&format!(" handshake={}", hello.len() + 1)), "{log}");
}

#[test]
fn a_session_damaged_in_transit_is_closed_with_reason_tls() {
    let _others = shared();
    let certificates = Certificates::of("damaged");
    let mut echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let mut peer = TlsPeer::connect(&certificates.client_config(), echo.address).expect("a connection");
    assert!(peer.echoes(b"in order"));
    // A record that was not encrypted with the keys of the session.
    peer.0.sock.write_all(&[&[0x17, 3, 3, 0, 40][..], &[7; 40]].concat()).expect("it takes it");
    let sent = peer.0.read(&mut [0; 10]).expect_err("an alert").to_string();
    assert!(sent.contains("BadRecordMac"), "{sent}");
    let log = echo.end();
    assert!(log.contains("closed: tls: a record could not be decrypted") && log.contains(" tls=1"), "{log}");
}
