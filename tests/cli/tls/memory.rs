//! What a secured connection may cost.

use std::time::Duration;

use super::{Caller, Papers};
use crate::server::{Server, alone, raise_descriptors, until};

/// Two thousand callers who have said a word and are silent now. tokio-rustls holds 13 KiB for each.
#[test]
fn an_idle_connection_over_tls_keeps_no_buffer() {
    let _quiet = alone();
    let count = 2_000.min(raise_descriptors() / 2);
    let papers = Papers::of("idle");
    let server = Server::start(&format!("echo --raw --idle-timeout 10min {}", papers.shows("server")));
    let config = papers.trusting();
    let call = || {
        let mut caller = Caller::connect(&config, server.address).expect("it comes in");
        // Larger than a record, so that something was kept meanwhile.
        assert!(caller.echoes(&[b'x'; 40_000]));
        caller
    };
    let descriptors = server.descriptors();
    drop((0..50).map(|_| call()).collect::<Vec<Caller>>());
    until("the first have left", Duration::from_secs(10), || server.descriptors() == descriptors);
    let before = server.memory();
    let callers: Vec<Caller> = (0..count).map(|_| call()).collect();
    let each = (server.memory() - before) / count;
    println!("{each} bytes for each of {count} idle connections over TLS");
    assert!(each <= 5 * 1024, "{each} bytes for each of {count} idle connections over TLS");
    drop(callers);
}
