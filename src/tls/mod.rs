//! TLS for listeners, dials and open connections (STARTTLS), with rustls.
//!
//! # An echo server
//!
//! ```no_run
//! use tidemill::tls::{CertifiedKey, Server, ServerOptions};
//! use tidemill::{Input, Limits, ListenOptions, Reactor, Service, Socket};
//!
//! struct Echo;
//!
//! impl Service for Echo {
//!     type Session = ();
//!     fn open(&mut self, _: &mut Socket<'_>) {}
//!     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
//!         socket.send(input.take_all());
//!     }
//! }
//!
//! let identity = CertifiedKey::from_pem_files("cert.pem", "key.pem")?;
//! let server = Server::new(ServerOptions { certificates: vec![identity], ..ServerOptions::default() })?;
//!
//! let mut reactor = Reactor::new(Limits::default())?;
//! let echo = reactor.add(Echo);
//! let options = ListenOptions { filter: Some(server.filter_config()), ..ListenOptions::default() };
//! reactor.listen_with("127.0.0.1:9443", echo, &options)?;
//! reactor.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # A client
//!
//! ```no_run
//! use tidemill::services::Echo;
//! use tidemill::tls::{RootCerts, Client, ClientOptions, Trust};
//! use tidemill::{DialOptions, Limits, Reactor};
//!
//! // The default is `Trust::System`: the certificates that the operating system trusts.
//! let trust = Trust::Only(RootCerts::from_pem_file("ca.pem")?);
//! let client = Client::new(ClientOptions { trust, ..ClientOptions::default() })?;
//!
//! let mut reactor = Reactor::new(Limits::default())?;
//! let service = reactor.add(Echo::default());
//! let options = DialOptions { filter: Some(client.filter_config()), ..DialOptions::default() };
//! reactor.dial_with("a.example:9443", service, options)?;
//! reactor.run()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Versions and algorithms
//!
//! TLS 1.2 and 1.3, with the default cipher suites of rustls and the cryptography of ring, also when the process has
//! installed another default provider. Sessions are resumed. There is no 0-RTT data, because it can be replayed.
//!
//! # Surprises
//!
//! - **A client may get its certificate refused after `connected`.** In TLS 1.3 a server verifies the client's
//!   certificate after the client has completed its handshake: the refusal arrives later, as an error of the
//!   connection ([`CloseReason::Tls`](crate::CloseReason::Tls)).
//! - **Revocation is not checked**, neither with CRLs nor with OCSP.
//! - **A client that offers no protocols (ALPN) is accepted.** A server refuses only clients that offer some, none of
//!   which it has.
//! - **A server name (SNI) that no certificate is for gets the first certificate**, which the client will not accept.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;

mod client;
mod client_hello;
mod errors;
mod identity;
mod server;
mod session;
mod sni;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientOptions, Trust};
pub use client_hello::{ClientHello, NotAClientHello};
pub use identity::{CertifiedKey, RootCerts};
pub use server::{ClientAuth, Server, ServerOptions};

/// A version of TLS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V12,
    /// TLS 1.3 (RFC 8446).
    V13,
}

/// Why TLS cannot be set up with these options. The message names the file or option and what is wrong with it.
///
/// ```text
/// cannot use the key in key.pem: it does not belong to the certificate in cert.pem
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl TlsError {
    fn new(text: impl Into<String>) -> TlsError {
        TlsError(text.into())
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for TlsError {}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Passed explicitly, because rustls would use the default provider of the process, which may be another one or none.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The newest first.
static VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

fn versions(oldest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match oldest {
        TlsVersion::V12 => &VERSIONS,
        TlsVersion::V13 => &VERSIONS[..1],
    }
}

/// Checks the names of protocols: on the wire, their length has one byte.
fn check_protocols(protocols: &[Vec<u8>]) -> Result<(), TlsError> {
    let wrong = protocols.iter().find(|name| name.is_empty() || name.len() > 255);
    wrong.map_or(Ok(()), |name| {
        let length = name.len();
        Err(TlsError::new(format!("cannot offer a protocol with a name of {length} bytes: use 1 to 255")))
    })
}
