//! Connections with a filter, of which TLS is one.

pub(super) mod data;
mod dial;
pub(super) mod handshake;
mod pipe;
pub(super) mod starttls;

use super::test_filter::{client, parse_records, record, server};
use super::*;
use crate::config::dial::{Backoff, DialOptions};

const END: &[u8] = b"E\0\0";

fn tls_setup(limits: SocketLimits) -> Setup {
    let listen = ListenOptions { filter: Some(server()), ..ListenOptions::default() };
    Setup { limits: Limits { socket: limits, ..Limits::default() }, listen, ..Setup::default() }
}

/// Connects a client that completes its handshake.
fn handshaken(test: &mut TestLoop) -> (PeerId, ConnId) {
    let peer = test.script.connect();
    test.script.feed(peer, b"HELLO\nTHANKS\n");
    test.turn_until_quiet();
    let received = test.received(peer);
    assert!(received.starts_with("WELCOME\n"), "{received:?}");
    let id = test.events().iter().rev().find_map(|events| match events {
        Event::Open(id) => Some(*id),
        _ => None,
    });
    (peer, id.expect("it was met"))
}

fn received_data(test: &TestLoop) -> Vec<u8> {
    let events = test.events();
    let data = events.iter().filter_map(|events| match events {
        Event::Data(_, bytes) => Some(bytes.clone()),
        _ => None,
    });
    data.collect::<Vec<_>>().concat()
}

fn dial_tls(test: &mut TestLoop, to: &str, options: DialOptions) -> ConnId {
    let options = DialOptions { filter: Some(client()), ..options };
    let id = test.event_loop.table.dial(test.service, to.parse().unwrap(), options, None).unwrap();
    test.turn_until_quiet();
    id
}
