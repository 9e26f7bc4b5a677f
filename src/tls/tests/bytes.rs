//! What goes in and out, however it is cut, and whoever sends it.

use proptest::prelude::*;

use super::*;

const WHOLE: Cut = Cut::Every(usize::MAX);

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn both_versions_shake_hands_and_echo() {
    let authority = Authority::new();
    for (version, named) in [(&TLS12, "TLSv1.2"), (&TLS13, "TLSv1.3")] {
        let mut pair = Pair::ready(&authority, version);
        assert_eq!(pair.ask(b"hello"), b"hello");
        assert_eq!(pair.answer(b"hello to you"), b"hello to you");
        for end in [&pair.client, &pair.server] {
            let secured = end.session.secured();
            assert_eq!(secured.version, named);
            assert!(secured.cipher.starts_with("TLS_"), "{}", secured.cipher);
            assert_eq!(secured.server_name.as_deref(), Some("a.example"));
            assert!(!secured.resumed);
            assert_eq!(secured.protocol, None);
            assert_eq!(end.session.kept(), 0, "what is idle keeps nothing");
        }
        assert_eq!(pair.client.session.secured().peer_certificates.len(), 1);
        assert!(pair.server.session.secured().peer_certificates.is_empty());
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte_or_cut_anywhere() {
    let authority = Authority::new();
    let server = authority.server();
    for version in BOTH {
        let mut longest = 1;
        let mut at = 0;
        while at <= longest {
            let how = if at == 0 { Cut::Every(1) } else { Cut::Once(at) };
            // Its own configuration, so that nothing is resumed.
            let client = End::caller(&authority.config(version), "a.example");
            let mut pair = Pair::shaken(client, End::server(&server), how);
            assert!(pair.is_ready(), "{how:?}: {} / {}", pair.client.broken(), pair.server.broken());
            longest = longest.max(pair.delivered[0]).max(pair.delivered[1]);
            assert_eq!(pair.ask(b"ping"), b"ping");
            assert_eq!(pair.answer(b"pong"), b"pong");
            assert_eq!((pair.client.session.kept(), pair.server.session.kept()), (0, 0));
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
            assert!(pair.ask(&data) == data, "in pieces of {size}");
            assert!(pair.server.most_kept <= 5 + 256 + (16 << 10), "{} were kept", pair.server.most_kept);
            assert_eq!(pair.server.session.kept(), 0);
        }
    }
}

#[test]
fn records_of_one_call_come_out_together_and_in_order() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        let mut wire = Vec::new();
        for word in ["one ", "two ", "", "three"] {
            wire.extend(pair.client.say(word.as_bytes()));
        }
        let tail = pair.client.say(b" four");
        wire.extend_from_slice(&tail[..7]);
        pair.server.hear(&wire);
        assert_eq!(pair.server.plain, b"one two three");
        assert_eq!(pair.server.session.kept(), 7);
        pair.server.hear(&tail[7..]);
        assert_eq!(pair.server.plain, b"one two three four");
    }
}

#[test]
fn data_in_one_flight_with_the_end_of_the_handshake_is_opened() {
    let authority = Authority::new();
    let mut client = End::caller(&authority.config(&TLS13), "a.example");
    let mut server = End::server(&authority.server());
    let hello = client.hear(&[]);
    let flight = server.hear(&hello);
    assert!(!server.last.ready);
    let mut finished = client.hear(&flight);
    assert!(client.last.ready);
    finished.extend(client.say(b"at once"));
    finished.extend(client.say_end());
    server.hear(&finished);
    assert!(server.last.ready && server.last.ended);
    assert_eq!(server.plain, b"at once");
}

#[test]
fn the_end_comes_behind_what_was_sent_before_it_and_junk_behind_it_is_ignored() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        let mut wire = pair.client.say(b"last words");
        wire.extend(pair.client.say_end());
        wire.extend(pattern(300));
        pair.server.hear(&wire);
        assert_eq!(pair.server.plain, b"last words");
        assert!(pair.server.last.ended);
        assert_eq!(pair.server.last.broken, None);
        assert_eq!(pair.server.session.kept(), 0);
        // Half of it is closed; the other half goes on.
        pair.server.hear(b"more junk");
        assert!(pair.server.last.ended);
        assert_eq!((pair.server.last.broken.clone(), pair.server.session.kept()), (None, 0));
        assert_eq!(pair.answer(b"goodbye"), b"goodbye");
        let end = pair.server.say_end();
        pair.client.hear(&end);
        assert!(pair.client.last.ended);
        assert_eq!(pair.client.last.broken, None);
    }
}

#[test]
fn nothing_can_be_said_before_the_handshake_is_over() {
    let authority = Authority::new();
    let mut server = End::server(&authority.server());
    assert_eq!(server.say_end(), b"");
    assert!(server.session.seal(b"early", &mut Vec::new()).is_err());
    let mut client = End::caller(&authority.config(&TLS13), "a.example");
    assert!(!client.hear(&[]).is_empty(), "a client begins");
    assert_eq!(client.say_end(), b"");
}

#[test]
fn a_flipped_bit_breaks_it_and_what_came_before_counts() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        let mut wire = pair.client.say(b"sound");
        let mut damaged = pair.client.say(b"damaged");
        damaged[12] ^= 1;
        wire.extend(damaged);
        let alert = pair.server.hear(&wire);
        assert_eq!(pair.server.plain, b"sound");
        assert_eq!(pair.server.broken(), "a record was damaged on its way");
        assert!(!alert.is_empty(), "the peer is told");
        pair.client.hear(&alert);
        assert_eq!(pair.client.broken(), "the peer refused: bad record mac");
        // From then on it says the same, takes nothing, and sends nothing.
        assert_eq!(pair.server.hear(b"anything"), b"");
        assert_eq!(pair.server.broken(), "a record was damaged on its way");
        assert_eq!((pair.server.last.plain, pair.server.session.kept()), (0, 0));
        assert!(pair.server.session.seal(b"more", &mut Vec::new()).is_err());
        assert_eq!(pair.server.say_end(), b"");
    }
}

#[test]
fn what_is_not_tls_is_named() {
    let server = Authority::new().server();
    let mut end = End::server(&server);
    let alert = end.hear(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(end.broken(), "the peer does not speak TLS (it sent \"GET / HT\")");
    assert_eq!(alert[0], 21, "an alert in the clear");
    let mut slow = End::server(&server);
    for byte in b"GET / HTTP/1.1\r\n\r\n" {
        slow.hear(std::slice::from_ref(byte));
    }
    assert!(slow.broken().starts_with("the peer does not speak TLS (it sent \"G"), "{}", slow.broken());
    let mut zeroes = End::server(&server);
    zeroes.hear(&[0; 4096]);
    assert!(zeroes.broken().contains(r"(it sent "), "{}", zeroes.broken());
    let client = Authority::new().config(&TLS13);
    let mut client = End::caller(&client, "a.example");
    client.hear(&[]);
    client.hear(b"220 mail.example ESMTP\r\n");
    assert_eq!(client.broken(), "the peer does not speak TLS (it sent \"220 mail\")");
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
        // The head of a message of the handshake.
        (0..25u8, 0..300u16).prop_map(|(kind, length)| {
            let [high, low] = length.to_be_bytes();
            vec![kind, 0, high, low]
        }),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn garbage_never_panics_and_never_passes(bytes in garbage(), size in 1..300usize, by_client in any::<bool>()) {
        let authority = &*AUTHORITY;
        let mut end = if by_client {
            End::server(&authority.0)
        } else {
            let mut client = End::caller(&authority.1, "a.example");
            client.hear(&[]);
            client
        };
        for piece in bytes.chunks(size) {
            end.hear(piece);
            end.say_end();
            prop_assert_eq!(end.last.plain, 0);
            prop_assert!(!end.last.ready);
        }
        prop_assert!(bytes.is_empty() || end.last.broken.is_some() || end.session.kept() > 0);
    }

    #[test]
    fn a_stream_that_is_damaged_anywhere_breaks(at in 3..172usize, bit in 0..8u8, second in any::<bool>()) {
        let authority = &*AUTHORITY;
        let client = End::caller(&authority.1, "a.example");
        let mut pair = Pair::shaken(client, End::server(&authority.0), WHOLE);
        let data = pattern(150);
        let mut wire = pair.client.say(&data);
        wire.extend(pair.client.say(&data));
        // The type and the version of a sealed record say nothing, and rustls does not look at them (RFC 8446, 5.2).
        let record = wire.len() / 2;
        prop_assert_eq!(record, 172);
        let at = if second { at + record } else { at };
        wire[at] ^= 1 << bit;
        pair.server.hear(&wire);
        // A longer length waits for more, which never opens to anything.
        pair.server.hear(&[0; 20_000]);
        prop_assert!(pair.server.last.broken.is_some());
        prop_assert_eq!(&pair.server.plain[..], if second { &data[..] } else { &[] });
    }
}

static AUTHORITY: std::sync::LazyLock<(Server, Arc<ClientConfig>)> = std::sync::LazyLock::new(|| {
    let authority = Authority::new();
    (authority.server(), authority.config(&TLS13))
});

#[test]
fn what_goes_on_after_the_end_was_said_may_be_damaged_too() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        pair.server.say_end();
        let mut damaged = pair.client.say(b"damaged");
        damaged[12] ^= 1;
        pair.server.hear(&damaged);
        assert!(pair.server.last.broken.is_some());
        let sound = pair.client.say(b"sound");
        pair.server.hear(&sound);
        assert!(pair.server.last.broken.is_some());
        assert_eq!(pair.server.plain, b"");
    }
}

#[test]
fn the_end_is_said_once() {
    let authority = Authority::new();
    for version in BOTH {
        let mut pair = Pair::ready(&authority, version);
        pair.to_client = pair.server.say_end();
        assert!(!pair.to_client.is_empty());
        pair.settle();
        assert!(pair.client.last.ended);
        pair.to_server = pair.client.say_end();
        pair.settle();
        assert!(pair.server.last.ended);
        assert_eq!((pair.server.say_end(), pair.client.say_end()), (Vec::new(), Vec::new()));
        assert_eq!((pair.server.hear(b"junk"), pair.client.hear(b"junk")), (Vec::new(), Vec::new()));
        assert_eq!((pair.server.broken(), pair.client.broken()), ("not broken", "not broken"));
    }
}
