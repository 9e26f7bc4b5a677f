//! Routes by server name and protocol: TLS clients are passed on without decrypting.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::{Certificates, TIMEOUT, TlsPeer, logs};
use crate::peer::{Peer, listener};
use crate::server::{Server, shared};

fn client(certificates: &Certificates, name: &str, protocols: &[&str]) -> ClientConnection {
    let mut config = ClientConfig::clone(&certificates.client_config());
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_string()).expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}

/// Connects, and completes the handshake for this name.
fn connect(certificates: &Certificates, to: SocketAddr, name: &str, protocols: &[&str]) -> TlsPeer {
    let stream = TcpStream::connect(to).expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    let mut peer = TlsPeer(StreamOwned::new(client(certificates, name, protocols), stream));
    peer.0.conn.complete_io(&mut peer.0.sock).unwrap_or_else(|error| panic!("{name}: {error}"));
    peer
}

fn hello(certificates: &Certificates, name: &str) -> Vec<u8> {
    let mut hello = Vec::new();
    client(certificates, name, &[]).write_tls(&mut hello).expect("memory");
    hello
}

fn accept(listener: &TcpListener) -> Peer {
    let (stream, _) = listener.accept().expect("a connection from the proxy");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    Peer(stream)
}

#[test]
fn clients_are_routed_by_name_or_protocol_on_one_port_beside_those_that_are_decrypted() {
    let _others = shared();
    let certificates = Certificates::of("routes");
    let served = [("other", "other.example"), ("wild", "db1.wild.example"), ("h2", "h2.example")];
    let upstreams = served.map(|(file, name)| {
        certificates.issue(file, file, &[name]);
        Server::start(&format!("echo --raw {} --tls-alpn h2 --tls-alpn x", certificates.server_args(file)))
    });
    let plain = Server::start("echo --raw");
    let words = format!("proxy --to {} {}", plain.address, certificates.server_args("server"));
    let [name, wild, protocol] = upstreams.each_ref().map(|upstream| upstream.address);
    let proxy = Server::start(&format!(
        "{words} --route sni=OTHER.example:{name} --route sni=*.wild.example:{wild} --route alpn=h2:{protocol}"
    ));
    for (file, name) in served {
        let mut peer = connect(&certificates, proxy.address, name, &["h2"]);
        assert_eq!(peer.certificate(), certificates.certificate(file), "{name}");
        assert!(peer.echoes(b"routed"), "{name}: {}", proxy.log());
    }
    // No route: the proxy's own certificate.
    for protocols in [&[][..], &["x"]] {
        let mut peer = connect(&certificates, proxy.address, "localhost", protocols);
        assert_eq!(peer.certificate(), certificates.certificate("server"));
        assert!(peer.echoes(b"decrypted"), "{}", proxy.log());
        peer.finish();
        assert_eq!(peer.receive_all(), b"");
    }
    logs(&proxy, &format!("-> {} in=", plain.address));
}

#[test]
fn a_client_hello_may_come_in_pieces_and_reaches_the_upstream_unchanged_with_all_that_follows() {
    let _others = shared();
    let certificates = Certificates::of("route-pieces");
    let (listener, address) = listener();
    // TLS to upstreams and the header are options of the proxy as a whole: only the header is for routes too.
    let proxy = Server::start(&format!(
        "proxy --route sni=a.example:{address} --to {address} --to-tls --insecure --proxy-protocol-out v1 \
         --proxy-protocol-in 127.0.0.2"
    ));
    let header = "PROXY TCP4 192.0.2.7 192.0.2.1 256 512\r\n";
    let wire =
        [header.as_bytes(), &hello(&certificates, "a.example"), b"early data", &vec![7; 100_000]].concat();
    for piece in [1, 7, wire.len()] {
        let mut client = Peer::connect_from(2, proxy.address);
        client.0.set_nodelay(true).expect("an option");
        // The first 400 bytes in pieces: the header and the message.
        let (first, rest) = wire.split_at(400);
        first.chunks(piece).for_each(|piece| client.send(piece));
        client.send(rest);
        client.finish();
        let mut upstream = accept(&listener);
        assert!(upstream.receive_all() == wire, "in pieces of {piece}");
        upstream.send("an answer after the end");
        upstream.finish();
        assert_eq!(client.receive_all(), b"an answer after the end");
    }
}

#[test]
fn without_another_upstream_clients_of_no_route_are_closed_and_counted() {
    let _others = shared();
    let certificates = Certificates::of("no-route");
    let (listener, address) = listener();
    listener.set_nonblocking(true).expect("an option");
    let proxy = Server::start(&format!("proxy --route sni=a.example:{address}"));
    for first in
        [hello(&certificates, "b.example"), b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0x16, 3, 1, 0, 1, 99]]
    {
        let mut client = Peer::connect(proxy.address);
        client.send(&first);
        assert_eq!(client.receive_all(), b"", "{first:?}");
    }
    logs(&proxy, " no-route=");
    assert!(listener.accept().is_err(), "the upstream was connected");
}

#[test]
fn a_client_hello_is_awaited_for_5_seconds_and_16_kib() {
    let _others = shared();
    let (listener, address) = listener();
    listener.set_nonblocking(true).expect("an option");
    let proxy = Server::start(&format!("proxy --route sni=a.example:{address} --to {address}"));
    let begun = Instant::now();
    let mut silent = Peer::connect(proxy.address);
    let mut half = Peer::connect(proxy.address);
    // The start of a message of 64 KiB, in records of 1 KiB.
    let endless: Vec<u8> = [&[22, 3, 1, 4, 0, 1, 0, 0xff, 0xff][..], &[0; 1_020]].concat();
    half.send(&endless[..100]);
    let mut flood = Peer::connect(proxy.address);
    flood.send(&endless);
    let record = [&[22, 3, 1, 4, 0][..], &[0; 1_024]].concat();
    let mut sent = endless.len();
    // It may be closed while it sends.
    while flood.0.write_all(&record).is_ok() && sent < 1 << 20 {
        sent += record.len();
    }
    let _ = flood.0.shutdown(Shutdown::Write);
    let _ = flood.0.read_to_end(&mut Vec::new());
    logs(&proxy, "closed: no route after ");
    assert!(begun.elapsed() < Duration::from_secs(4), "it waited for the deadline");
    assert_eq!((silent.receive_all(), half.receive_all()), (Vec::new(), Vec::new()));
    assert!(begun.elapsed() >= Duration::from_millis(4_900), "after {:?}", begun.elapsed());
    logs(&proxy, "closed: no route within 5s");
    assert!(listener.accept().is_err(), "the upstream was connected");
}
