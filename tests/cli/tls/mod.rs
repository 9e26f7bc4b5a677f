//! TLS in every command. On the other side are openssl, curl, Python, Node and rustls.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::server::{Outcome, Server, complete, until};

mod attacks;
mod clients;
mod memory;
mod mutual;
mod node;
mod openssl;
mod options;
mod others;
mod reload;
mod routes;
mod storm;
mod upstreams;

/// The certificates of one test, in a folder that is removed on drop. `name.pem` is a certificate, `name.key` its key.
///
/// - `ca` has signed `server` (for localhost and 127.0.0.1), `other` (for other.example and *.wild.example), `client`
///   and `expired` (for localhost, until 2020).
/// - `stranger-ca` has signed `stranger` (for localhost).
struct Certificates {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn of(test: &str) -> Certificates {
        let folder = std::env::temp_dir().join(format!("tidemill-tls-{}-{test}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let certificates = Certificates { folder, authority: authority("tidemill's tests") };
        certificates.write("ca.pem", certificates.authority.pem());
        let local = ["localhost", "127.0.0.1"];
        certificates.issue("server", "server", &local);
        certificates.issue("other", "other", &["other.example", "*.wild.example"]);
        certificates.issue("client", "client", &["client.example"]);
        let mut expired = params("expired", &local);
        expired.not_before = date_time_ymd(2019, 1, 1);
        expired.not_after = date_time_ymd(2020, 1, 1);
        certificates.sign("expired", &expired, &certificates.authority);
        let strangers = authority("somebody else's");
        certificates.write("stranger-ca.pem", strangers.pem());
        certificates.sign("stranger", &params("stranger", &local), &strangers);
        certificates
    }

    /// Signs a certificate for these names with the CA, and writes it and its key to these files; replaces existing
    /// ones.
    fn issue(&self, file: &str, common_name: &str, names: &[&str]) {
        self.sign(file, &params(common_name, names), &self.authority);
    }

    fn sign(&self, file: &str, params: &CertificateParams, by: &CertifiedIssuer<'static, KeyPair>) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, by).expect("a certificate");
        self.write(&format!("{file}.pem"), certificate.pem());
        self.write(&format!("{file}.key"), key.serialize_pem());
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        fs::write(self.folder.join(file), text).expect("a file");
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).expect("a file of ours")
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.folder.join(file)).expect("a file of ours");
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    /// The arguments with which a server uses this certificate.
    fn server_args(&self, name: &str) -> String {
        let (cert, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        format!("--tls-cert {cert} --tls-key {key}")
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).expect("a certificate of ours")
    }

    fn key(&self, name: &str) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).expect("a key of ours")
    }

    /// A client configuration of rustls that trusts the CA. Its connections resume each other's sessions.
    fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca")).expect("our authority");
        let config = ClientConfig::builder_with_provider(ring())
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // Files that cannot be removed are left in the temporary folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn authority(common_name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = params(common_name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

const TIMEOUT: Duration = Duration::from_secs(30);

/// A client that uses rustls.
struct TlsPeer(StreamOwned<ClientConnection, TcpStream>);

impl TlsPeer {
    /// Connects to localhost and completes the handshake.
    fn connect(config: &Arc<ClientConfig>, to: SocketAddr) -> std::io::Result<TlsPeer> {
        let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        TlsPeer::over(config, stream)
    }

    /// The same on an open connection.
    fn over(config: &Arc<ClientConfig>, stream: TcpStream) -> std::io::Result<TlsPeer> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut peer = TlsPeer(StreamOwned::new(client_connection(config), stream));
        peer.0.conn.complete_io(&mut peer.0.sock)?;
        Ok(peer)
    }

    /// Whether a message is echoed.
    fn echoes(&mut self, word: &[u8]) -> bool {
        let mut received = vec![0; word.len()];
        self.0.write_all(word).and_then(|()| self.0.read_exact(&mut received)).is_ok() && received == word
    }

    fn finish(&mut self) {
        self.0.conn.send_close_notify();
        self.0.conn.complete_io(&mut self.0.sock).expect("it takes our end");
    }

    /// Reads all bytes to the end; fails without close_notify.
    fn receive_all(&mut self) -> Vec<u8> {
        let mut received = Vec::new();
        self.0.read_to_end(&mut received).expect("an end");
        received
    }

    fn certificate(&self) -> CertificateDer<'static> {
        let shown = self.0.conn.peer_certificates().expect("the server has shown some");
        shown.first().expect("its own").clone().into_owned()
    }
}

fn client_connection(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(config.clone(), name).expect("a client")
}

/// The ClientHello of a client.
fn client_hello(certificates: &Certificates) -> Vec<u8> {
    let mut hello = Vec::new();
    client_connection(&certificates.client_config()).write_tls(&mut hello).expect("memory");
    hello
}

/// `openssl s_client` with these arguments, which sends this text and then reads until the server ends.
fn s_client(certificates: &Certificates, to: SocketAddr, words: &str, says: &[u8]) -> Outcome {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &to.to_string(), "-CAfile", &certificates.path("ca.pem")]);
    command.args(["-verify_return_error", "-ign_eof"]).args(words.split_whitespace());
    complete(command, says)
}

/// Waits for a line in the log, which may be written a little after the event.
#[track_caller]
fn logs(server: &Server, words: &str) {
    until(&format!("{words:?} in the log"), TIMEOUT, || server.log().contains(words));
}

impl Outcome {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}
