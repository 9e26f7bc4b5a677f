//! The memory of an idle TLS connection.

use std::time::Duration;

use super::{Certificates, TlsPeer};
use crate::server::{Server, exclusive, raise_descriptors, until};

/// Two thousand clients that have exchanged one message and are idle. tokio-rustls holds 13 KiB for each.
#[test]
fn an_idle_connection_over_tls_keeps_no_buffer() {
    let _quiet = exclusive();
    let count = 2_000.min(raise_descriptors() / 2);
    let certificates = Certificates::of("idle");
    let server =
        Server::start(&format!("echo --raw --idle-timeout 10min {}", certificates.server_args("server")));
    let config = certificates.client_config();
    let call = || {
        let mut peer = TlsPeer::connect(&config, server.address).expect("it comes in");
        // Larger than a record, so that bytes were buffered meanwhile.
        assert!(peer.echoes(&[b'x'; 40_000]));
        peer
    };
    let descriptors = server.descriptors();
    drop((0..50).map(|_| call()).collect::<Vec<TlsPeer>>());
    until("the first have left", Duration::from_secs(10), || server.descriptors() == descriptors);
    let before = server.memory();
    let peers: Vec<TlsPeer> = (0..count).map(|_| call()).collect();
    let each = (server.memory() - before) / count;
    println!("{each} bytes for each of {count} idle connections over TLS");
    assert!(each <= 5 * 1024, "{each} bytes for each of {count} idle connections over TLS");
    drop(peers);
}
