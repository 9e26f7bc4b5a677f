//! Bytes on the wire and plaintext, cut anywhere, in both directions.

use proptest::prelude::*;

use super::*;

const WHOLE: Cut = Cut::Every(usize::MAX);

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn both_versions_complete_a_handshake_and_echo() {
    let authority = Authority::new();
    for (version, named) in [(&TLS12, "TLSv1.2"), (&TLS13, "TLSv1.3")] {
        let mut pair = Pair::ready(&authority, version);
        assert_eq!(pair.client_sends(b"hello"), b"hello");
        assert_eq!(pair.server_sends(b"hello to you"), b"hello to you");
        for end in [&pair.client, &pair.server] {
            let secured = end.session.info();
            assert_eq!(secured.version, named);
            assert!(secured.cipher.starts_with("TLS_"), "{}", secured.cipher);
            assert_eq!(secured.server_name.as_deref(), Some("a.example"));
            assert!(!secured.resumed);
            assert_eq!(secured.protocol, None);
            assert_eq!(end.session.buffered(), 0, "what is idle keeps nothing");
        }
        assert_eq!(pair.client.session.info().peer_certificates.len(), 1);
        assert!(pair.server.session.info().peer_certificates.is_empty());
    }
}

#[test]
fn a_handshake_may_arrive_byte_by_byte_or_cut_anywhere() {
    let authority = Authority::new();
    let server = authority.server();
    for version in BOTH {
        let mut longest = 1;
        let mut at = 0;
        while at <= longest {
            let how = if at == 0 { Cut::Every(1) } else { Cut::Once(at) };
            // A configuration of its own, so that no session is resumed.
            let client = End::client_with(&authority.config(version), "a.example");
            let mut pair = Pair::handshaken(client, End::server(&server), how);
            assert!(pair.is_ready(), "{how:?}: {} / {}", pair.client.error(), pair.server.error());
            longest = longest.max(pair.delivered[0]).max(pair.delivered[1]);
            assert_eq!(pair.client_sends(b"ping"), b"ping");
            assert_eq!(pair.server_sends(b"pong"), b"pong");
            assert_eq!((pair.client.session.buffered(), pair.server.session.buffered()), (0, 0));
            at += 1;
        }
        assert!(longest > 500, "only {longest} bytes were cut");
    }
}

#[test]
fn a_mebibyte_arrives_in_pieces_of_any_size() {
    let authority = Authority::new();
    let data = pattern(1 << 20);
    for version in BOTH {
        for size in [1, 1000, 20_000] {
            let mut pair = Pair::ready(&authority, version);
            pair.cut = Cut::Every(size);
            assert!(pair.client_sends(&data) == data, "in pieces of {size}");
            assert!(
                pair.server.max_buffered <= 5 + 256 + (16 << 10),
                "{} were kept",
                pair.server.max_buffered
            );
            assert_eq!(pair.server.session.buffered(), 0);
        }
    }
}

#[test]
fn records_of_one_call_are_decrypted_together_and_in_order() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        let mut wire = Vec::new();
        for word in ["one ", "two ", "", "three"] {
            wire.extend(pair.client.send(word.as_bytes()));
        }
        let tail = pair.client.send(b" four");
        wire.extend_from_slice(&tail[..7]);
        pair.server.receive(&wire);
        assert_eq!(pair.server.plain, b"one two three");
        assert_eq!(pair.server.session.buffered(), 7);
        pair.server.receive(&tail[7..]);
        assert_eq!(pair.server.plain, b"one two three four");
    }
}

#[test]
fn data_in_one_flight_with_the_end_of_the_handshake_is_decrypted() {
    let authority = Authority::new();
    let mut client = End::client_with(&authority.config(&TLS13), "a.example");
    let mut server = End::server(&authority.server());
    let hello = client.receive(&[]);
    let flight = server.receive(&hello);
    assert!(!server.last.ready);
    let mut finished = client.receive(&flight);
    assert!(client.last.ready);
    finished.extend(client.send(b"at once"));
    finished.extend(client.send_end());
    server.receive(&finished);
    assert!(server.last.ready && server.last.peer_ended);
    assert_eq!(server.plain, b"at once");
}

#[test]
fn close_notify_follows_earlier_data_and_bytes_after_it_are_ignored() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        let mut wire = pair.client.send(b"last words");
        wire.extend(pair.client.send_end());
        wire.extend(pattern(300));
        pair.server.receive(&wire);
        assert_eq!(pair.server.plain, b"last words");
        assert!(pair.server.last.peer_ended);
        assert_eq!(pair.server.last.error, None);
        assert_eq!(pair.server.session.buffered(), 0);
        // One direction is closed; the other one is still open.
        pair.server.receive(b"more junk");
        assert!(pair.server.last.peer_ended);
        assert_eq!((pair.server.last.error.clone(), pair.server.session.buffered()), (None, 0));
        assert_eq!(pair.server_sends(b"goodbye"), b"goodbye");
        let end = pair.server.send_end();
        pair.client.receive(&end);
        assert!(pair.client.last.peer_ended);
        assert_eq!(pair.client.last.error, None);
    }
}

#[test]
fn nothing_can_be_encrypted_before_the_handshake_completes() {
    let authority = Authority::new();
    let mut server = End::server(&authority.server());
    assert_eq!(server.send_end(), b"");
    assert!(server.session.seal(b"early", &mut Vec::new()).is_err());
    let mut client = End::client_with(&authority.config(&TLS13), "a.example");
    assert!(!client.receive(&[]).is_empty(), "a client begins");
    assert_eq!(client.send_end(), b"");
}

#[test]
fn a_flipped_bit_fails_the_session_and_earlier_data_counts() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        let mut wire = pair.client.send(b"sound");
        let mut damaged = pair.client.send(b"damaged");
        damaged[12] ^= 1;
        wire.extend(damaged);
        let alert = pair.server.receive(&wire);
        assert_eq!(pair.server.plain, b"sound");
        assert_eq!(pair.server.error(), "a record could not be decrypted");
        assert!(!alert.is_empty(), "the peer gets an alert");
        pair.client.receive(&alert);
        assert_eq!(pair.client.error(), "the peer refused: bad record mac");
        // From then on it returns the same error, delivers nothing, and sends nothing.
        assert_eq!(pair.server.receive(b"anything"), b"");
        assert_eq!(pair.server.error(), "a record could not be decrypted");
        assert_eq!((pair.server.last.plaintext, pair.server.session.buffered()), (0, 0));
        assert!(pair.server.session.seal(b"more", &mut Vec::new()).is_err());
        assert_eq!(pair.server.send_end(), b"");
    }
}

#[test]
fn a_non_tls_peer_is_named_in_the_error() {
    let server = Authority::new().server();
    let mut end = End::server(&server);
    let alert = end.receive(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(end.error(), "the peer does not speak TLS (it sent \"GET / HT\")");
    assert_eq!(alert[0], 21, "an alert in the clear");
    let mut slow = End::server(&server);
    for byte in b"GET / HTTP/1.1\r\n\r\n" {
        slow.receive(std::slice::from_ref(byte));
    }
    assert!(slow.error().starts_with("the peer does not speak TLS (it sent \"G"), "{}", slow.error());
    let mut zeroes = End::server(&server);
    zeroes.receive(&[0; 4096]);
    assert!(zeroes.error().contains(r"(it sent "), "{}", zeroes.error());
    let client = Authority::new().config(&TLS13);
    let mut client = End::client_with(&client, "a.example");
    client.receive(&[]);
    client.receive(b"220 mail.example ESMTP\r\n");
    assert_eq!(client.error(), "the peer does not speak TLS (it sent \"220 mail\")");
}

#[test]
fn an_idle_session_is_small() {
    let (server, client) = (
        size_of::<Session<rustls::server::UnbufferedServerConnection>>(),
        size_of::<Session<rustls::client::UnbufferedClientConnection>>(),
    );
    println!("a session has {server} bytes on a server, {client} on a client");
    assert!(server.max(client) < 4096);
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let header = (20..24u8, 0..5u8, 0..600u16).prop_map(|(kind, minor, length)| {
        let [high, low] = length.to_be_bytes();
        vec![kind, 3, minor, high, low]
    });
    let piece = prop_oneof![
        header,
        prop::collection::vec(any::<u8>(), 0..200),
        // The header of a handshake message.
        (0..25u8, 0..300u16).prop_map(|(kind, length)| {
            let [high, low] = length.to_be_bytes();
            vec![kind, 0, high, low]
        }),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn garbage_never_panics_and_is_never_accepted(bytes in garbage(), size in 1..300usize, by_client in any::<bool>()) {
        let authority = &*AUTHORITY;
        let mut end = if by_client {
            End::server(&authority.0)
        } else {
            let mut client = End::client_with(&authority.1, "a.example");
            client.receive(&[]);
            client
        };
        for piece in bytes.chunks(size) {
            end.receive(piece);
            end.send_end();
            prop_assert_eq!(end.last.plaintext, 0);
            prop_assert!(!end.last.ready);
        }
        prop_assert!(bytes.is_empty() || end.last.error.is_some() || end.session.buffered() > 0);
    }

    #[test]
    fn a_stream_damaged_anywhere_fails(at in 3..172usize, bit in 0..8u8, second in any::<bool>()) {
        let authority = &*AUTHORITY;
        let client = End::client_with(&authority.1, "a.example");
        let mut pair = Pair::handshaken(client, End::server(&authority.0), WHOLE);
        let data = pattern(150);
        let mut wire = pair.client.send(&data);
        wire.extend(pair.client.send(&data));
        // The version of an encrypted record means nothing, and rustls ignores it (RFC 8446, 5.2).
        let record = wire.len() / 2;
        prop_assert_eq!(record, 172);
        let at = if second { at + record } else { at };
        wire[at] ^= 1 << bit;
        pair.server.receive(&wire);
        // A greater length waits for more bytes, which then cannot be decrypted.
        pair.server.receive(&[0; 20_000]);
        prop_assert!(pair.server.last.error.is_some());
        prop_assert_eq!(&pair.server.plain[..], if second { &data[..] } else { &[] });
    }
}

static AUTHORITY: std::sync::LazyLock<(Server, Arc<ClientConfig>)> = std::sync::LazyLock::new(|| {
    let authority = Authority::new();
    (authority.server(), authority.config(&TLS13))
});

#[test]
fn damage_after_close_notify_is_detected_too() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        pair.server.send_end();
        let mut damaged = pair.client.send(b"damaged");
        damaged[12] ^= 1;
        pair.server.receive(&damaged);
        assert!(pair.server.last.error.is_some());
        let sound = pair.client.send(b"sound");
        pair.server.receive(&sound);
        assert!(pair.server.last.error.is_some());
        assert_eq!(pair.server.plain, b"");
    }
}

#[test]
fn close_notify_is_sent_once() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        pair.to_client = pair.server.send_end();
        assert!(!pair.to_client.is_empty());
        pair.run_until_quiet();
        assert!(pair.client.last.peer_ended);
        pair.to_server = pair.client.send_end();
        pair.run_until_quiet();
        assert!(pair.server.last.peer_ended);
        assert_eq!((pair.server.send_end(), pair.client.send_end()), (Vec::new(), Vec::new()));
        assert_eq!((pair.server.receive(b"junk"), pair.client.receive(b"junk")), (Vec::new(), Vec::new()));
        assert_eq!((pair.server.error(), pair.client.error()), ("not broken", "not broken"));
    }
}
