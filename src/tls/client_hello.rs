//! Reads what a TLS client asks for without taking part in its handshake.

use std::fmt;
use std::panic::catch_unwind;

use rustls::server::Acceptor;

/// The first message of a TLS client, as far as a choice between servers needs it.
///
/// The bytes stay as they are, so they can be passed on to the server that is chosen. What is parsed is what rustls
/// takes for a ClientHello: that of TLS 1.2 and 1.3. An encrypted one (ECH) has the public name outside.
///
/// # Examples
///
/// ```
/// use tidemill::tls::ClientHello;
///
/// assert_eq!(ClientHello::parse(b"\x16\x03\x01\x02\x00\x01"), Ok(None), "more bytes are needed");
/// assert!(ClientHello::parse(b"GET / HTTP/1.1\r\n").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name (SNI), in lower case. None if the client names no server, or an IP address.
    pub server_name: Option<String>,
    /// The protocols that the client offers (ALPN), the preferred one first.
    pub alpn: Vec<Vec<u8>>,
}

/// The bytes cannot become a ClientHello: another protocol, or a malformed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAClientHello;

impl ClientHello {
    /// Parses the first bytes that a client has sent: `None` while more are needed.
    ///
    /// Each call parses from the start, so that nothing has to be kept for a client between two calls. The caller
    /// bounds the bytes and the time. One call on 16 KiB takes a few microseconds.
    ///
    /// # Errors
    ///
    /// When the bytes are no beginning of a ClientHello.
    pub fn parse(first: &[u8]) -> Result<Option<ClientHello>, NotAClientHello> {
        // A peer must not be able to end the process by a panic of the parser, as in a session.
        catch_unwind(|| parse(first)).unwrap_or(Err(NotAClientHello))
    }
}

fn parse(first: &[u8]) -> Result<Option<ClientHello>, NotAClientHello> {
    let (mut acceptor, mut rest) = (Acceptor::default(), first);
    while !rest.is_empty() {
        // It takes as much as its buffer has room for.
        acceptor.read_tls(&mut rest).map_err(|_| NotAClientHello)?;
        if let Some(accepted) = acceptor.accept().map_err(|_| NotAClientHello)? {
            let hello = accepted.client_hello();
            return Ok(Some(ClientHello {
                server_name: hello.server_name().map(str::to_ascii_lowercase),
                alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
            }));
        }
    }
    Ok(None)
}

impl fmt::Display for NotAClientHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes are no beginning of a TLS ClientHello")
    }
}

impl std::error::Error for NotAClientHello {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What a client of rustls sends first.
    fn first_flight(name: &str, protocols: &[&str]) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(crate::tls::provider());
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_string()).expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("a vector takes it");
        wire
    }

    #[test]
    fn the_name_and_the_protocols_are_read_once_the_message_is_complete() {
        let wire = first_flight("Db1.Example", &["h2", "http/1.1"]);
        for cut in 0..wire.len() {
            assert_eq!(ClientHello::parse(&wire[..cut]), Ok(None), "cut at {cut}");
        }
        let hello = ClientHello::parse(&wire).expect("TLS").expect("a whole one");
        assert_eq!(hello.server_name.as_deref(), Some("db1.example"));
        assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        // Early data may follow.
        let followed = [&wire[..], b"\x17\x03\x03\x00\x02ab"].concat();
        assert_eq!(ClientHello::parse(&followed), Ok(Some(hello)));
    }

    #[test]
    fn a_message_that_is_spread_over_many_records_is_read() {
        let wire = first_flight("a.example", &[]);
        let mut spread = Vec::new();
        for piece in wire[5..].chunks(7) {
            spread.extend([22, 3, 1, 0, piece.len() as u8]);
            spread.extend(piece);
        }
        let hello = ClientHello::parse(&spread).expect("TLS").expect("a whole one");
        assert_eq!((hello.server_name.as_deref(), hello.alpn.len()), (Some("a.example"), 0));
    }

    #[test]
    fn other_protocols_are_told_from_tls_at_the_first_record() {
        for other in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\x17\x03\x03\0\x01a",
        ] {
            assert_eq!(ClientHello::parse(other), Err(NotAClientHello), "{other:?}");
        }
        let mut wrong = first_flight("a.example", &[]);
        wrong[5] = 2; // A ServerHello.
        assert_eq!(ClientHello::parse(&wrong), Err(NotAClientHello));
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic(changes in prop::collection::vec((0..600_usize, any::<u8>()), 1..8)) {
            let mut wire = first_flight("a.example", &["h2"]);
            for (at, byte) in changes {
                let at = at % wire.len();
                wire[at] = byte;
            }
            // The guard of `ClientHello::parse` is left out, so that a panic is seen.
            let _ = parse(&wire);
        }
    }
}
