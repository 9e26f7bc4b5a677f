//! What a server shows, and to whom.

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

/// The side that is called. Cheap to clone; all clones are one, and what it shows can be
/// [replaced](Server::replace) while it is in use, from any thread.
#[derive(Clone)]
pub struct Server {
    current: Arc<CurrentConfig>,
    filter: FilterConfig,
}

/// What a server shows, and whom it asks for what.
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
    /// A client gets the first one whose certificate is for the name it asks for, wildcards included; if there is
    /// none, or it asks for no name, the first. At least one; none by default.
    pub certificates: Vec<CertifiedKey>,
    /// Who may come. Anyone by default.
    pub client_auth: ClientAuth,
    /// The protocols that are spoken here (ALPN), the best first; a name has 1 to 255 bytes. A client that offers some
    /// and none of these is refused; one that offers none is not. None by default, and then nobody is refused.
    pub alpn: Vec<Vec<u8>>,
    /// The oldest version of TLS that is spoken. Default [`TlsVersion::V12`].
    pub min_version: TlsVersion,
}

/// Whether clients show a certificate.
#[derive(Clone, Debug, Default)]
pub enum ClientAuth {
    /// They are not asked for one.
    #[default]
    Any,
    /// They are asked for one. Those without one may come too; one that these have not signed is refused.
    Optional(RootCerts),
    /// They must show one that these have signed.
    Required(RootCerts),
}

impl Server {
    /// One that shows this.
    ///
    /// # Errors
    ///
    /// When there is no identity, or a protocol's name is too short or too long.
    pub fn new(options: ServerOptions) -> Result<Server, TlsError> {
        let shown = Arc::new(CurrentConfig(RwLock::new(Arc::new(config(options)?))));
        let security = FilterConfig::new(ServerFilters(shown.clone()));
        Ok(Server { current: shown, filter: security })
    }

    /// From now on, shows this to those who come. Connections go on as they began, also those in their handshake.
    /// What was agreed on with earlier callers is not resumed: it was agreed on under other rules.
    ///
    /// # Errors
    ///
    /// As [`new`](Server::new); then it shows what it has shown before.
    pub fn replace(&self, options: ServerOptions) -> Result<(), TlsError> {
        let config = Arc::new(config(options)?);
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// To be given to a listener or to a socket.
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
        return Err(TlsError::new("cannot serve TLS without a certificate: give at least one identity"));
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
    // The strongest that both have, whatever a client would like best.
    config.ignore_client_order = true;
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(cannot)?;
    // The client keeps it, here it costs nothing but the bytes: a second one would only serve those who resume two
    // connections before either has brought them a new one.
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn verifier(clients: ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = |authorities: RootCerts| {
        WebPkiClientVerifier::builder_with_provider(authorities.roots().clone(), provider())
    };
    let built = match clients {
        ClientAuth::Any => return Ok(Arc::new(NoClientAuth)),
        ClientAuth::Optional(authorities) => builder(authorities).allow_unauthenticated().build(),
        ClientAuth::Required(authorities) => builder(authorities).build(),
    };
    built.map_err(|error| TlsError::new(format!("cannot check clients: {error}")))
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
