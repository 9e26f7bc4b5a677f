//! A client and a server in memory, for the tests of TLS.

mod bytes;
mod floods;
mod simulated;
mod trust;

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};

use super::session::Session;
use super::{CertifiedKey, Client, ClientOptions, RootCerts, Server, ServerOptions, Trust, client};
use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, Opened};

const BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A certificate authority (CA), and the certificates that it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        // Each CA has its own name: with equal names, the error would be about a signature and not about the issuer.
        params.distinguished_name.push(DnType::CommonName, format!("{:?}", key.public_key_raw()));
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn root_certs(&self) -> RootCerts {
        RootCerts::from_pem(self.0.pem().as_bytes()).unwrap()
    }

    fn certificate(&self, names: &[&str]) -> CertifiedKey {
        self.certificate_but(names, |_| {})
    }

    fn certificate_but(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> CertifiedKey {
        let (certificate, key) = self.pem_but(names, change);
        CertifiedKey::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    fn pem(&self, names: &[&str]) -> (String, String) {
        self.pem_but(names, |_| {})
    }

    fn pem_but(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server for `a.example`.
    fn server(&self) -> Server {
        Server::new(self.server_options()).unwrap()
    }

    fn server_options(&self) -> ServerOptions {
        ServerOptions { certificates: vec![self.certificate(&["a.example"])], ..ServerOptions::default() }
    }

    fn client_options(&self) -> ClientOptions {
        ClientOptions { trust: Trust::Only(self.root_certs()), ..ClientOptions::default() }
    }

    /// The configuration of a client, for one TLS version.
    fn config(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        config(self.client_options(), version)
    }
}

fn config(options: ClientOptions, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    Arc::new(client::config(options, &[version]).unwrap())
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// One side of a session, with its results.
struct End {
    session: Box<dyn Filter>,
    plain: Vec<u8>,
    last: Opened,
    max_buffered: usize,
}

impl End {
    fn new(session: Box<dyn Filter>) -> End {
        End { session, plain: Vec::new(), last: Opened::default(), max_buffered: 0 }
    }

    fn of(filter: &FilterConfig, peer: &str) -> End {
        End::new(filter.filter(&address(peer)).unwrap())
    }

    fn server(server: &Server) -> End {
        End::of(&server.filter_config(), "192.0.2.7:4444")
    }

    fn client(client: &Client, to: &str) -> End {
        End::of(&client.filter_config(), to)
    }

    fn client_with(config: &Arc<ClientConfig>, name: &'static str) -> End {
        let name = ServerName::try_from(name).unwrap();
        End::new(Box::new(Session::client(config.clone(), name).unwrap()))
    }

    /// Processes received bytes; returns the bytes to send.
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        let kept = self.session.buffered();
        let mut wire = vec![0xee; kept];
        wire.extend_from_slice(bytes);
        let mut out = Vec::new();
        self.last = self.session.open(&mut wire, &mut out);
        self.plain.extend_from_slice(&wire[..self.last.plaintext]);
        self.max_buffered = self.max_buffered.max(self.session.buffered());
        out
    }

    fn send(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.session.seal(plain, &mut out).unwrap();
        out
    }

    fn send_end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.session.seal_end(&mut out);
        out
    }

    fn error(&self) -> &str {
        self.last.error.as_deref().unwrap_or("not broken")
    }
}

/// How the bytes on the wire are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Every(usize),
    /// Once in each direction, after this many bytes.
    Once(usize),
}

/// Both sides, and the bytes in transit between them.
struct Pair {
    client: End,
    server: End,
    to_client: Vec<u8>,
    to_server: Vec<u8>,
    delivered: [usize; 2],
    cut: Cut,
}

impl Pair {
    fn new(client: End, server: End, cut: Cut) -> Pair {
        let (to_client, to_server) = (Vec::new(), Vec::new());
        Pair { client, server, to_client, to_server, delivered: [0; 2], cut }
    }

    /// A pair whose handshake has ended, with success or not.
    fn handshaken(client: End, server: End, cut: Cut) -> Pair {
        let mut pair = Pair::new(client, server, cut);
        pair.to_server = pair.client.receive(&[]);
        pair.to_client = pair.server.receive(&[]);
        pair.run_until_quiet();
        pair
    }

    /// A pair whose handshake is complete.
    fn ready(authority: &Authority, version: &'static SupportedProtocolVersion) -> Pair {
        let (client, server) = (authority.config(version), authority.server());
        let pair = Pair::handshaken(
            End::client_with(&client, "a.example"),
            End::server(&server),
            Cut::Every(usize::MAX),
        );
        assert!(pair.is_ready(), "{} / {}", pair.client.error(), pair.server.error());
        pair
    }

    fn is_ready(&self) -> bool {
        let ends = [&self.client, &self.server];
        ends.iter().all(|end| end.last.ready && end.last.error.is_none())
    }

    /// Delivers bytes until neither side has any to send.
    fn run_until_quiet(&mut self) {
        while !self.to_client.is_empty() || !self.to_server.is_empty() {
            let (to_server, to_client) =
                (std::mem::take(&mut self.to_server), std::mem::take(&mut self.to_client));
            for piece in cut(&to_server, self.cut, &mut self.delivered[0]) {
                self.to_client.extend(self.server.receive(piece));
            }
            for piece in cut(&to_client, self.cut, &mut self.delivered[1]) {
                self.to_server.extend(self.client.receive(piece));
            }
        }
    }

    /// Sends plaintext from client to server; returns what the server has decrypted.
    fn client_sends(&mut self, plain: &[u8]) -> Vec<u8> {
        self.server.plain.clear();
        self.to_server = self.client.send(plain);
        self.run_until_quiet();
        std::mem::take(&mut self.server.plain)
    }

    fn server_sends(&mut self, plain: &[u8]) -> Vec<u8> {
        self.client.plain.clear();
        self.to_client = self.server.send(plain);
        self.run_until_quiet();
        std::mem::take(&mut self.client.plain)
    }
}

fn cut<'a>(bytes: &'a [u8], how: Cut, delivered: &mut usize) -> Vec<&'a [u8]> {
    let from = *delivered;
    *delivered += bytes.len();
    match how {
        Cut::Every(size) => bytes.chunks(size).collect(),
        Cut::Once(at) if from < at && at < *delivered => {
            let (one, other) = bytes.split_at(at - from);
            vec![one, other]
        }
        Cut::Once(_) if bytes.is_empty() => Vec::new(),
        Cut::Once(_) => vec![bytes],
    }
}
