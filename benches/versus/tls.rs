//! The same over TLS: both sides with rustls and ring, a P-256 certificate, default versions and cipher suites.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use tidemill::FilterConfig;
use tidemill::tls::{CertifiedKey, Client, ClientOptions, Server, ServerOptions, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, SignatureScheme, StreamOwned,
};

use crate::process::announce;

/// A self-signed certificate, and its key.
fn certified() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate")
}

/// The TLS server configuration of tidemill.
pub fn server() -> FilterConfig {
    let made = certified();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identity = CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes()).expect("an identity");
    let options = ServerOptions { certificates: vec![identity], ..ServerOptions::default() };
    Server::new(options).expect("a server").filter_config()
}

/// Accepts any certificate: the server is a child process.
pub fn client() -> FilterConfig {
    let options = ClientOptions { trust: Trust::DangerAcceptAny, ..ClientOptions::default() };
    Client::new(options).expect("a client").filter_config()
}

/// A certificate and its key as one text, for HAProxy.
pub fn pem() -> String {
    let made = certified();
    made.cert.pem() + &made.signing_key.serialize_pem()
}

/// The TLS server configuration of tokio-rustls, as in its examples, with the same number of tickets as tidemill.
fn acceptor() -> TlsAcceptor {
    let made = certified();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let mut config = builder.with_single_cert(vec![made.cert.der().clone()], key).expect("a configuration");
    config.ticketer = ring::Ticketer::new().expect("a ticketer");
    config.send_tls13_tickets = 1;
    TlsAcceptor::from(Arc::new(config))
}

/// An echo with tokio-rustls.
pub async fn echo<const BUFFER: usize>(listener: TcpListener) {
    let acceptor = acceptor();
    announce(listener.local_addr().expect("its address"));
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut buffer = vec![0; BUFFER];
            loop {
                match stream.read(&mut buffer).await {
                    // Without the flush, encrypted bytes that the kernel did not accept would wait for the next write.
                    Ok(n @ 1..) => {
                        if stream.write_all(&buffer[..n]).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        });
    }
}

/// A proxy that ends TLS.
pub async fn copy(listener: TcpListener, behind: SocketAddr) {
    let acceptor = acceptor();
    announce(listener.local_addr().expect("its address"));
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let _ = client.set_nodelay(true);
            let Ok(mut client) = acceptor.accept(client).await else { return };
            let Ok(mut upstream) = tokio::net::TcpStream::connect(behind).await else { return };
            let _ = upstream.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
        });
    }
}

/// A client that waits for each echo.
pub struct Peer {
    _stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Peer {
    /// Connects, completes the handshake, and gets one echo.
    pub fn connect(to: SocketAddr, config: &Arc<ClientConfig>) -> Peer {
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(config.clone(), name).expect("a session");
        let mut stream = StreamOwned::new(session, TcpStream::connect(to).expect("a server"));
        let mut heard = [0; 64];
        stream.write_all(&[b'x'; 64]).expect("it reads");
        stream.read_exact(&mut heard).expect("it answers");
        Peer { _stream: stream }
    }
}

pub fn config_of_a_client() -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let believes = Arc::new(Believes(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let config = builder.dangerous().with_custom_certificate_verifier(believes).with_no_client_auth();
    Arc::new(config)
}

/// A verifier that accepts any certificate.
#[derive(Debug)]
struct Believes(Arc<CryptoProvider>);

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
