//! Connections that have ended leave no memory and no descriptors behind.

use std::thread;
use std::time::Duration;

use crate::peer::Peer;
use crate::server::{Server, exclusive, until};

const PEERS: u8 = 8;

/// Each client thread has its own address: one address has 28,000 ephemeral ports, and a closed connection occupies one
/// for a minute (TIME_WAIT, RFC 9293 3.3.2).
fn calls(server: &Server, each: usize) {
    let to = server.address;
    let peers: Vec<_> = (0..PEERS)
        .map(|number| {
            thread::spawn(move || {
                for call in 0..each {
                    let mut peer = Peer::connect_from(number + 2, to);
                    assert!(peer.echoes(&format!("peer {number}, connection {call}")));
                }
            })
        })
        .collect();
    for peer in peers {
        peer.join().expect("all its calls are answered");
    }
}

#[test]
fn a_hundred_thousand_connections_leave_nothing_behind() {
    let _quiet = exclusive();
    let mut server = Server::start("echo --raw");
    let descriptors = server.descriptors();
    calls(&server, 1_250);
    until("all have left", Duration::from_secs(20), || server.descriptors() == descriptors);
    let before = server.memory();
    calls(&server, 11_250);
    until("all have left", Duration::from_secs(20), || server.descriptors() == descriptors);
    let grown = server.memory().saturating_sub(before);
    assert!(grown <= 64 * 1024, "{grown} bytes stay behind");
    let log = server.end();
    assert!(log.contains("accepted=100000 refused=0 shed=0 "), "{log}");
    assert!(log.contains(" finished=100000"), "{log}");
}
