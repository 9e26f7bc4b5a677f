//! Authenticated peers that do what no proper client does.

use std::io::{Read, Write};

use rustls::ClientConnection;
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite};

use super::*;

/// A client that encrypts any records, also invalid ones.
struct Forger {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Forger {
    /// A client whose handshake with `server` is complete.
    fn handshaken(
        authority: &Authority,
        version: &'static SupportedProtocolVersion,
        server: &mut End,
    ) -> Forger {
        let mut config = client::config(authority.client_options(), &[version]).unwrap();
        config.enable_secret_extraction = true;
        let connection = connected(Arc::new(config), server);
        let suite = connection.negotiated_cipher_suite().unwrap();
        #[allow(deprecated)]
        let (sequence, secrets) = connection.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another suite") };
        let encrypter = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
            SupportedCipherSuite::Tls12(suite) => {
                let (implicit, explicit) = iv.as_ref().split_at(4);
                suite.aead_alg.encrypter(key, implicit, explicit)
            }
        };
        Forger { encrypter, sequence }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let payload = OutboundChunks::Single(payload);
        let plain = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let sealed = self.encrypter.encrypt(plain, self.sequence).unwrap();
        self.sequence += 1;
        sealed.encode()
    }
}

/// A client of rustls, connected to a server of this crate.
fn connected(config: Arc<ClientConfig>, server: &mut End) -> ClientConnection {
    let mut client = ClientConnection::new(config, ServerName::try_from("a.example").unwrap()).unwrap();
    loop {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let answer = server.receive(&wire);
        if answer.is_empty() {
            break;
        }
        let mut rest = &answer[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert!(server.last.ready && !client.is_handshaking());
    client
}

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

#[test]
fn a_partial_message_does_not_disturb_other_sessions() {
    let authority = Authority::new();
    let mut server = End::server(&authority.server());
    let mut forger = Forger::handshaken(&authority, &TLS13, &mut server);
    let fragment = forger.record(ContentType::Handshake, &KEY_UPDATE[..3]);
    server.receive(&fragment);
    assert_eq!(server.last.error, None);
    assert!(server.session.buffered() >= fragment.len());
    // rustls indexes into the bytes of an earlier call, also when it is called to encrypt.
    assert!(!server.send(b"meanwhile").is_empty());
    server.receive(&[]);
    assert!(!server.send(b"and again").is_empty());
    assert!(!server.send_end().is_empty());
    let rest = forger.record(ContentType::Handshake, &KEY_UPDATE[3..]);
    server.receive(&rest);
    assert_eq!(server.last.error, None);
    assert_eq!(server.session.buffered(), 0, "the message is complete");
}

#[test]
fn close_notify_within_a_client_hello_does_not_panic() {
    let authority = Authority::new();
    let hello = End::client_with(&authority.config(&TLS13), "a.example").receive(&[]);
    let mut server = End::server(&authority.server());
    // The first bytes of the message, in a record of their own.
    let mut record = vec![22, 3, 1, 0, 20];
    record.extend_from_slice(&hello[5..25]);
    server.receive(&record);
    assert_eq!((server.send_end(), server.session.buffered()), (Vec::new(), record.len()));
    assert!(server.session.seal(b"early", &mut Vec::new()).is_err());
}

#[test]
fn a_message_in_many_tiny_records_is_not_buffered_without_limit() {
    let authority = Authority::new();
    let mut server = End::server(&authority.server());
    // A ClientHello of 65,535 bytes, one byte per record.
    let mut sent = 0;
    for byte in [1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat_n(0, 0xffff)) {
        sent += 1;
        server.receive(&[22, 3, 1, 0, 1, byte]);
        if server.last.error.is_some() {
            break;
        }
    }
    assert_eq!(server.error(), "the peer sent the start of a message that is too long");
    assert!((10_000..12_000).contains(&sent), "after {sent} records");
    assert!(server.max_buffered <= (64 << 10) + 8 * (5 + 256), "{} were kept", server.max_buffered);
    assert_eq!(server.session.buffered(), 0);
}

#[test]
fn a_flood_of_empty_records_ends_the_session() {
    let authority = Authority::new();
    for version in BOTH {
        let mut server = End::server(&authority.server());
        let mut forger = Forger::handshaken(&authority, version, &mut server);
        let mut sent = 0;
        for _ in 0..2000 {
            sent += server.receive(&forger.record(ContentType::ApplicationData, &[])).len();
        }
        assert_eq!(server.error(), "the peer violated the TLS protocol: too many empty fragments");
        assert!(sent < 100, "{sent} bytes were answered");
    }
}

#[test]
fn a_flood_of_warning_alerts_ends_the_session() {
    let authority = Authority::new();
    for version in BOTH {
        let mut server = End::server(&authority.server());
        let mut forger = Forger::handshaken(&authority, version, &mut server);
        let mut wire = Vec::new();
        for _ in 0..2000 {
            // A warning alert: user_canceled, the only one of TLS 1.3.
            wire.extend(forger.record(ContentType::Alert, &[1, 90]));
        }
        let sent = server.receive(&wire);
        assert_eq!(server.error(), "the peer violated the TLS protocol: too many warning alerts received");
        assert!(sent.len() < 100, "{} bytes were answered", sent.len());
    }
}

#[test]
fn a_flood_of_renegotiation_requests_ends_the_session() {
    let authority = Authority::new();
    let mut server = End::server(&authority.server());
    let mut forger = Forger::handshaken(&authority, &TLS12, &mut server);
    let hello = End::client_with(&authority.config(&TLS12), "a.example").receive(&[]);
    let mut sent = 0;
    for _ in 0..1000 {
        sent += server.receive(&forger.record(ContentType::Handshake, &hello[5..])).len();
    }
    assert_eq!(server.error(), "the peer violated the TLS protocol: too many renegotiation requests");
    assert!(sent < 200, "{sent} bytes were answered");
}

#[test]
fn a_flood_of_key_updates_ends_the_session_or_is_answered_once() {
    let authority = Authority::new();
    let mut server = End::server(&authority.server());
    let mut client = connected(authority.config(&TLS13), &mut server);
    let mut sent = 0;
    for round in 0..1000 {
        client.refresh_traffic_keys().unwrap();
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        sent += server.receive(&wire).len();
        if server.last.error.is_some() {
            assert!(round > 8, "a few are allowed");
            break;
        }
    }
    assert_eq!(server.error(), "the peer violated the TLS protocol: too many key update requests");
    assert!(sent < 100, "{sent} bytes were answered");
}

#[test]
fn a_key_update_is_answered_before_the_next_data_and_all_data_can_be_decrypted() {
    let authority = Authority::new();
    let mut server = End::server(&authority.server());
    let mut client = connected(authority.config(&TLS13), &mut server);
    for round in 0..1000 {
        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"question").unwrap();
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.plain.clear();
        assert_eq!(server.receive(&wire), b"", "round {round}");
        assert_eq!((&server.plain[..], server.error()), (&b"question"[..], "not broken"));
        let answer = server.send(b"answer");
        client.read_tls(&mut &answer[..]).unwrap();
        client.process_new_packets().unwrap();
        let mut received = [0; 6];
        client.reader().read_exact(&mut received).unwrap();
        assert_eq!(&received, b"answer");
    }
}
