//! A proxy with TLS to its upstreams, and TLS together with PROXY headers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::node::{BULK, TLS};
use super::{Certificates, TlsPeer, logs, ring};
use crate::interop::{has, node, node_server_with};
use crate::peer::{Peer, free_address};
use crate::server::{Server, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// A Node echo server with this certificate.
const ECHO: &str = r"
const shown = { cert: paper(`${process.argv[4]}.pem`), key: paper(`${process.argv[4]}.key`) };
const options = { ...shown, allowHalfOpen: true, maxVersion: version, ALPNProtocols: ['tide'] };
const server = tls.createServer(options, (socket) => socket.pipe(socket).on('error', () => {}));
server.on('tlsClientError', () => {});
listen(server);
";

#[test]
fn ten_megabytes_pass_with_tls_on_the_upstream_side_and_on_both() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let certificates = Certificates::of("both-sides");
    let folder = certificates.path("");
    for version in ["TLSv1.2", "TLSv1.3"] {
        let (_server, address) =
            node_server_with(&format!("{TLS}{ECHO}"), &["0", &folder, version, "server"]);
        let to =
            format!("--to localhost:{} --to-tls --to-tls-ca {}", address.port(), certificates.path("ca.pem"));
        let far = Server::start(&format!("proxy {to} --to-tls-alpn tide"));
        let mut plain = Peer::connect(far.address);
        let sent = crate::peer::Random(9).bytes(10 << 20);
        let mut writer = plain.0.try_clone().expect("a second handle");
        let says = sent.clone();
        let writes = thread::spawn(move || {
            writer.write_all(&says).expect("it takes it");
            writer.shutdown(std::net::Shutdown::Write).expect("it is connected");
        });
        assert!(plain.receive_all() == sent, "{version}: it comes back as it was sent");
        writes.join().expect("all is sent");
        logs(&far, "client=finished upstream=finished");
        assert!(far.log().contains(" in=10485760 out=10485760 "), "{}", far.log());
        let both =
            Server::start(&format!("proxy {to} --tls-alpn tide {}", certificates.server_args("server")));
        let words = [&both.address.port().to_string(), &folder, version];
        let output = node(&format!("{TLS}{BULK}"), &words);
        assert_eq!(output, "secure true true tide server end close false true\n", "{version}");
    }
}

#[test]
fn an_upstream_with_an_untrusted_certificate_is_down_and_the_log_has_the_reason() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let certificates = Certificates::of("wrong-upstream");
    let start =
        |name| node_server_with(&format!("{TLS}{ECHO}"), &["0", &certificates.path(""), "TLSv1.3", name]);
    let trusts = format!("--to-tls --to-tls-ca {} --to-tls-name localhost", certificates.path("ca.pem"));
    for (name, why) in [
        ("stranger", "the peer's certificate is not trusted: unknown issuer"),
        ("expired", "the peer's certificate is not trusted: expired "),
        (
            "other",
            "the peer's certificate is not trusted: not valid for localhost (it is for other.example, ",
        ),
    ] {
        let ((_wrong, wrong), (_good, good)) = (start(name), start("server"));
        let proxy = Server::start(&format!("proxy --check-every 0 --to {wrong} --to {good} {trusts}"));
        for _ in 0..4 {
            assert!(Peer::connect(proxy.address).echoes("passed on"), "{name}: {}", proxy.log());
        }
        logs(&proxy, &format!("upstream {wrong} is down: {why}"));
        // When it is the only upstream, clients get FIN, and the log has the reason.
        let only = Server::start(&format!("proxy --to {wrong} {trusts}"));
        let mut client = Peer::connect(only.address);
        client.send("is there an answer?");
        assert_eq!(client.receive_all(), b"", "{name}");
        logs(&only, &format!("upstream=handshake ({why}"));
    }
}

#[test]
fn upstreams_are_checked_by_a_handshake_and_come_back_with_a_trusted_certificate() {
    let _others = shared();
    let certificates = Certificates::of("checked");
    let one = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let address = free_address();
    let strange = certificates.server_args("stranger");
    let mut other = Server::start(&format!("echo --raw --listen {address} {strange}"));
    let trusts = format!("--to-tls --to-tls-ca {}", certificates.path("ca.pem"));
    let words = format!("proxy --check-every 200ms --to {} --to {} {trusts}", one.address, other.address);
    let proxy = Server::start(&words);
    until("it is down", SOON, || {
        proxy.log().contains(&format!("upstream {} is down: ", other.address))
            && proxy.log().contains("unknown issuer")
    });
    other.end();
    let listen = format!("--drain 0 --listen {address}");
    let _again = Server::start(&format!("echo --raw {listen} {}", certificates.server_args("server")));
    logs(&proxy, &format!("upstream {} is up again", other.address));
    assert!((0..4).all(|_| Peer::connect(proxy.address).echoes("passed on")), "{}", proxy.log());
}

/// Reads a line of text, and not a byte more.
fn line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a line");
        line.extend(byte);
    }
    String::from_utf8(line).expect("text")
}

/// The configuration of an upstream that the test plays itself.
fn upstream_config(certificates: &Certificates) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .expect("both versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificates.certificate("server")], certificates.key("server"));
    Arc::new(config.expect("a server"))
}

#[test]
fn the_header_is_sent_in_cleartext_before_the_handshake_with_an_upstream() {
    let _others = shared();
    let certificates = Certificates::of("header-out");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let config = upstream_config(&certificates);
    let trusts = format!("--to-tls --to-tls-ca {}", certificates.path("ca.pem"));
    let proxy = Server::start(&format!("proxy --to {address} --proxy-protocol-out v1 {trusts}"));
    let mut client = Peer::connect(proxy.address);
    let from = client.0.local_addr().expect("an address").port();
    client.send("encrypted text");
    let (mut stream, _) = listener.accept().expect("the proxy calls");
    stream.set_read_timeout(Some(SOON)).expect("an option");
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {}\r\n", proxy.address.port());
    assert_eq!(line(&mut stream), expected);
    let mut secure = StreamOwned::new(ServerConnection::new(config).expect("a server"), stream);
    let mut received = [0; 14];
    secure.read_exact(&mut received).expect("the data of the client");
    assert_eq!(&received, b"encrypted text");
    secure.write_all(b"and back").expect("it takes it");
    secure.conn.send_close_notify();
    secure.flush().expect("it takes it");
    assert_eq!(client.receive_all(), b"and back");
}

#[test]
fn a_trusted_sender_sends_its_header_before_the_handshake_and_others_start_with_the_handshake() {
    let _others = shared();
    let certificates = Certificates::of("header-in");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let words = format!(
        "--proxy-protocol-in 127.0.0.2 --proxy-protocol-out v1 {}",
        certificates.server_args("server")
    );
    let proxy = Server::start(&format!("proxy --to {address} {words} --handshake-timeout 1s"));
    let config = certificates.client_config();
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 256 512\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc0\0\x02\x01\x01\0\x02\0";
    for header in [&header[..], v2] {
        let mut balancer = Peer::connect_from(2, proxy.address);
        balancer.send(header);
        let mut peer = TlsPeer::over(&config, balancer.0).expect("a handshake");
        peer.0.write_all(b"hi").expect("it takes it");
        let (mut upstream, _) = listener.accept().expect("the proxy calls");
        assert_eq!(line(&mut upstream), "PROXY TCP4 192.0.2.7 192.0.2.1 256 512\r\n");
        let mut received = [0; 2];
        upstream.read_exact(&mut received).expect("the data of the client");
        assert_eq!(&received, b"hi");
        upstream.write_all(b"ho").expect("it takes it");
        drop(upstream);
        assert_eq!(peer.receive_all(), b"ho");
        peer.finish();
    }
    until("their lines", SOON, || proxy.log().matches("192.0.2.7:256 -> ").count() == 2);
    // An untrusted sender starts with the handshake; a header from it is not accepted.
    let mut stranger = TlsPeer::connect(&config, proxy.address).expect("a handshake");
    stranger.0.write_all(header).expect("it takes it");
    let (mut upstream, _) = listener.accept().expect("the proxy calls");
    assert!(line(&mut upstream).starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "));
    assert_eq!(line(&mut upstream).as_bytes(), header);
    let mut lies = Peer::connect(proxy.address);
    lies.send(header);
    assert!(lies.receive_all().len() <= 7, "an alert at most");
    logs(&proxy, "the peer does not speak TLS (it sent \"PROXY TC\")");
    // Behind a header, a handshake must complete in time too.
    let mut silent = Peer::connect_from(2, proxy.address);
    silent.send(header);
    assert!(silent.receive_all().len() <= 7, "an alert at most");
}

#[test]
fn a_header_and_a_client_hello_may_arrive_in_one_packet_or_byte_by_byte() {
    let _others = shared();
    let certificates = Certificates::of("one-packet");
    let plain = Server::start("echo --raw");
    let words = format!("--proxy-protocol-in 127.0.0.1 {}", certificates.server_args("server"));
    let proxy = Server::start(&format!("proxy --to {} {words}", plain.address));
    let config = certificates.client_config();
    for piece in [usize::MAX, 1, 7] {
        let stream = TcpStream::connect(proxy.address).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(SOON)).expect("an option");
        let mut conversation = super::client_connection(&config);
        let mut first = b"PROXY TCP4 192.0.2.7 192.0.2.1 256 512\r\n".to_vec();
        conversation.write_tls(&mut first).expect("memory");
        for part in first.chunks(piece.min(first.len())) {
            (&stream).write_all(part).expect("it takes it");
        }
        let mut peer = TlsPeer(StreamOwned::new(conversation, stream));
        assert!(peer.echoes(b"behind it"), "pieces of {piece}: {}", proxy.log());
    }
}

#[test]
fn an_upstream_that_requests_a_certificate_gets_that_of_the_proxy() {
    let _others = shared();
    let certificates = Certificates::of("upstream-asks");
    let ca = certificates.path("ca.pem");
    let echo =
        Server::start(&format!("echo --raw --tls-client-ca {ca} {}", certificates.server_args("server")));
    let trusts = format!("--to {} --to-tls --to-tls-ca {ca}", echo.address);
    let (cert, key) = (certificates.path("client.pem"), certificates.path("client.key"));
    let shows = Server::start(&format!("proxy {trusts} --to-tls-cert {cert} --to-tls-key {key}"));
    assert!(Peer::connect(shows.address).echoes("accepted"), "{}", shows.log());
    let mute = Server::start(&format!("proxy {trusts}"));
    let mut client = Peer::connect(mute.address);
    assert_eq!(client.receive_all(), b"");
    drop(client);
    logs(&mute, "(the peer refused: certificate required)");
    logs(&echo, "the peer sent no certificate, but one is required");
}

#[test]
fn an_upstream_whose_tls_is_cut_off_is_not_passed_on_as_a_proper_end() {
    let _others = shared();
    let certificates = Certificates::of("cut-off");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let config = upstream_config(&certificates);
    let sides = format!("--to-tls --insecure {}", certificates.server_args("server"));
    for (options, is_proper) in [("", false), ("--on-reset end", true)] {
        let proxy = Server::start(&format!("proxy --to {address} {sides} {options}"));
        let mut client = TlsPeer::connect(&certificates.client_config(), proxy.address).expect("a handshake");
        let (stream, _) = listener.accept().expect("the proxy calls");
        let mut upstream = StreamOwned::new(ServerConnection::new(config.clone()).expect("a server"), stream);
        upstream.write_all(b"half an answer").expect("it reads");
        // FIN without close_notify.
        drop(upstream);
        let mut received = Vec::new();
        let end = client.0.read_to_end(&mut received);
        assert_eq!((received.as_slice(), end.is_ok()), (&b"half an answer"[..], is_proper), "{end:?}");
        logs(&proxy, "upstream=truncated");
    }
}
