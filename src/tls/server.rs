//! The server side: certificates, choice by server name, client authentication.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoClientAuth, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign;

use super::identity::{CertifiedKey, RootCerts};
use super::session::Session;
use super::{TlsError, TlsVersion, check_protocols, provider, sni, versions};
use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, FilterFactory};

/// The configuration of TLS servers. Cheap to clone; all clones share one configuration, which can be
/// [replaced](Server::replace) while it is in use, from any thread.
///
/// # Examples
///
/// ```no_run
/// use tidemill::tls::{CertifiedKey, Server, ServerOptions};
///
/// let options = || -> Result<ServerOptions, tidemill::tls::TlsError> {
///     let certificates = vec![CertifiedKey::from_pem_files("cert.pem", "key.pem")?];
///     Ok(ServerOptions { certificates, ..ServerOptions::default() })
/// };
/// let server = Server::new(options()?)?;
/// // Later, when the files have changed:
/// server.replace(options()?)?;
/// # Ok::<(), tidemill::tls::TlsError>(())
/// ```
#[derive(Clone)]
pub struct Server {
    current: Arc<CurrentConfig>,
    filter: FilterConfig,
}

/// Options of a [`Server`].
///
/// # Examples
///
/// ```no_run
/// use tidemill::tls::{RootCerts, ClientAuth, CertifiedKey, Server, ServerOptions};
///
/// let server = Server::new(ServerOptions {
///     certificates: vec![CertifiedKey::from_pem_files("cert.pem", "key.pem")?],
///     client_auth: ClientAuth::Required(RootCerts::from_pem_file("clients.pem")?),
///     ..ServerOptions::default()
/// })?;
/// # let _ = server;
/// # Ok::<(), tidemill::tls::TlsError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Certificates with their keys; at least one is required. A client gets the first one that is valid for the server
    /// name it requests (SNI; wildcards count), else the first of the list.
    pub certificates: Vec<CertifiedKey>,
    /// Whether clients must send a certificate. Default [`ClientAuth::Any`].
    pub client_auth: ClientAuth,
    /// The supported protocols (ALPN), the preferred one first; a name has 1 to 255 bytes. A client that offers
    /// protocols, but none of these, is refused; a client that offers none is accepted. Empty by default: all clients
    /// are accepted.
    pub alpn: Vec<Vec<u8>>,
    /// The oldest TLS version to accept. Default [`TlsVersion::V12`].
    pub min_version: TlsVersion,
}

/// Whether clients are authenticated by a certificate.
#[derive(Clone, Debug, Default)]
pub enum ClientAuth {
    /// No certificate is requested.
    #[default]
    Any,
    /// A certificate is requested. A client without one is accepted; one whose certificate is not signed by these root
    /// certificates is refused.
    Optional(RootCerts),
    /// A certificate signed by one of these root certificates is required.
    Required(RootCerts),
}

impl Server {
    /// Makes a server configuration.
    ///
    /// # Errors
    ///
    /// When there is no certificate, or the name of a protocol has not 1 to 255 bytes.
    pub fn new(options: ServerOptions) -> Result<Server, TlsError> {
        let shown = Arc::new(CurrentConfig(RwLock::new(Arc::new(config(options)?))));
        let security = FilterConfig::new(ServerFilters(shown.clone()));
        Ok(Server { current: shown, filter: security })
    }

    /// Replaces the configuration for new connections. Existing connections keep theirs, also during their handshake.
    /// Earlier sessions are not resumed, because they were negotiated with other options.
    ///
    /// # Errors
    ///
    /// As [`new`](Server::new); the previous configuration stays in use.
    pub fn replace(&self, options: ServerOptions) -> Result<(), TlsError> {
        let config = Arc::new(config(options)?);
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// The filter for [`ListenOptions::filter`](crate::ListenOptions::filter) or
    /// [`Socket::start_filter`](crate::Socket::start_filter).
    pub fn filter_config(&self) -> FilterConfig {
        self.filter.clone()
    }
}

impl From<Server> for FilterConfig {
    fn from(server: Server) -> FilterConfig {
        server.filter
    }
}

impl From<&Server> for FilterConfig {
    fn from(server: &Server) -> FilterConfig {
        server.filter_config()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

struct CurrentConfig(RwLock<Arc<ServerConfig>>);

impl CurrentConfig {
    fn get(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct ServerFilters(Arc<CurrentConfig>);

impl FilterFactory for ServerFilters {
    fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
        let session = Session::server(self.0.get()).map_err(io::Error::other)?;
        Ok(Box::new(session))
    }
}

fn config(options: ServerOptions) -> Result<ServerConfig, TlsError> {
    if options.certificates.is_empty() {
        return Err(TlsError::new("cannot serve TLS without a certificate: give at least one"));
    }
    check_protocols(&options.alpn)?;
    let cannot = |error: rustls::Error| TlsError::new(format!("cannot serve TLS: {error}"));
    let builder = ServerConfig::builder_with_provider(provider());
    let mut config = builder
        .with_protocol_versions(versions(options.min_version))
        .map_err(cannot)?
        .with_client_cert_verifier(verifier(options.client_auth)?)
        .with_cert_resolver(Arc::new(ByName(options.certificates)));
    config.alpn_protocols = options.alpn;
    // The server's order: the strongest cipher suite that both support.
    config.ignore_client_order = true;
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(cannot)?;
    // One ticket per connection. A second one would be useful only to clients that resume two connections before
    // either of them has brought a new ticket, and costs its bytes in every handshake.
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// The certificate request of a handshake lists the names of the authorities, with a length of 16 bits (RFC 8446,
/// section 4.2.4). Its other fields take less than 1 KiB.
const AUTHORITY_NAMES_MAX: usize = 64 * 1024 - 1024;

fn verifier(clients: ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let (authorities, optional) = match clients {
        ClientAuth::Any => return Ok(Arc::new(NoClientAuth)),
        ClientAuth::Optional(authorities) => (authorities, true),
        ClientAuth::Required(authorities) => (authorities, false),
    };
    // Each name has a length of two bytes before it.
    let names = authorities.roots().subjects();
    let length: usize = names.iter().map(|name| name.as_ref().len() + 2).sum();
    let mut builder = WebPkiClientVerifier::builder_with_provider(authorities.roots().clone(), provider());
    if length > AUTHORITY_NAMES_MAX {
        log::warn!(
            "clients are not told the names of the {} authorities: their {length} bytes do not fit into a handshake",
            names.len()
        );
        builder = builder.clear_root_hint_subjects();
    }
    if optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| TlsError::new(format!("cannot verify clients: {error}")))
}

#[derive(Debug)]
struct ByName(Vec<CertifiedKey>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<sign::CertifiedKey>> {
        let name = hello.server_name();
        sni::set(name);
        let first = self.0.first()?;
        let named = name.filter(|_| self.0.len() > 1).and_then(|name| self.for_name(name));
        Some(named.unwrap_or(first).certified_key().clone())
    }
}

impl ByName {
    fn for_name(&self, name: &str) -> Option<&CertifiedKey> {
        let name = ServerName::try_from(name).ok()?;
        self.0.iter().find(|identity| {
            let parsed = ParsedCertificate::try_from(identity.certificate());
            parsed.is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
        })
    }
}
