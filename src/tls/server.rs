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
use rustls::sign::CertifiedKey;

use super::identity::{Authorities, Identity};
use super::session::Session;
use super::{TlsError, Version, check_protocols, provider, sni, versions};
use crate::base::address::Address;
use crate::base::filter::{Filter, Secure, Security};

/// The side that is called. Cheap to clone; all clones are one, and what it shows can be
/// [replaced](Server::replace) while it is in use, from any thread.
#[derive(Clone)]
pub struct Server {
    shown: Arc<Shown>,
    security: Security,
}

/// What a server shows, and whom it asks for what.
///
/// ```no_run
/// use tidemill::tls::{Authorities, Clients, Identity, Server, ServerOptions};
///
/// let server = Server::new(ServerOptions {
///     identities: vec![Identity::from_pem_files("cert.pem", "key.pem")?],
///     clients: Clients::Required(Authorities::from_pem_file("clients.pem")?),
///     ..ServerOptions::default()
/// })?;
/// # let _ = server;
/// # Ok::<(), tidemill::tls::TlsError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// A client gets the first one whose certificate is for the name it asks for, wildcards included; if there is
    /// none, or it asks for no name, the first. At least one; none by default.
    pub identities: Vec<Identity>,
    /// Who may come. Anyone by default.
    pub clients: Clients,
    /// The protocols that are spoken here (ALPN), the best first; a name has 1 to 255 bytes. A client that offers some
    /// and none of these is refused; one that offers none is not. None by default, and then nobody is refused.
    pub protocols: Vec<Vec<u8>>,
    /// The oldest version of TLS that is spoken. Default [`Version::V12`].
    pub oldest: Version,
}

/// Whether clients show a certificate.
#[derive(Clone, Debug, Default)]
pub enum Clients {
    /// They are not asked for one.
    #[default]
    Any,
    /// They are asked for one. Those without one may come too; one that these have not signed is refused.
    Optional(Authorities),
    /// They must show one that these have signed.
    Required(Authorities),
}

impl Server {
    /// One that shows this.
    ///
    /// # Errors
    ///
    /// When there is no identity, or a protocol's name is too short or too long.
    pub fn new(options: ServerOptions) -> Result<Server, TlsError> {
        let shown = Arc::new(Shown(RwLock::new(Arc::new(config(options)?))));
        let security = Security::new(Shared(shown.clone()));
        Ok(Server { shown, security })
    }

    /// From now on, shows this to those who come. Connections go on as they began, also those in their handshake.
    /// What was agreed on with earlier callers is not resumed: it was agreed on under other rules.
    ///
    /// # Errors
    ///
    /// As [`new`](Server::new); then it shows what it has shown before.
    pub fn replace(&self, options: ServerOptions) -> Result<(), TlsError> {
        let config = Arc::new(config(options)?);
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// To be given to a listener or to a socket.
    pub fn security(&self) -> Security {
        self.security.clone()
    }
}

impl From<Server> for Security {
    fn from(server: Server) -> Security {
        server.security
    }
}

impl From<&Server> for Security {
    fn from(server: &Server) -> Security {
        server.security()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

struct Shown(RwLock<Arc<ServerConfig>>);

impl Shown {
    fn now(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Shared(Arc<Shown>);

impl Secure for Shared {
    fn filter(&self, _: &Address) -> io::Result<Box<dyn Filter>> {
        let session = Session::server(self.0.now()).map_err(io::Error::other)?;
        Ok(Box::new(session))
    }
}

fn config(options: ServerOptions) -> Result<ServerConfig, TlsError> {
    if options.identities.is_empty() {
        return Err(TlsError::new("cannot serve TLS without a certificate: give at least one identity"));
    }
    check_protocols(&options.protocols)?;
    let cannot = |error: rustls::Error| TlsError::new(format!("cannot serve TLS: {error}"));
    let builder = ServerConfig::builder_with_provider(provider());
    let mut config = builder
        .with_protocol_versions(versions(options.oldest))
        .map_err(cannot)?
        .with_client_cert_verifier(verifier(options.clients)?)
        .with_cert_resolver(Arc::new(ByName(options.identities)));
    config.alpn_protocols = options.protocols;
    // The strongest that both have, whatever a client would like best.
    config.ignore_client_order = true;
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(cannot)?;
    // The client keeps it, here it costs nothing but the bytes: a second one would only serve those who resume two
    // connections before either has brought them a new one.
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn verifier(clients: Clients) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = |authorities: Authorities| {
        WebPkiClientVerifier::builder_with_provider(authorities.roots().clone(), provider())
    };
    let built = match clients {
        Clients::Any => return Ok(Arc::new(NoClientAuth)),
        Clients::Optional(authorities) => builder(authorities).allow_unauthenticated().build(),
        Clients::Required(authorities) => builder(authorities).build(),
    };
    built.map_err(|error| TlsError::new(format!("cannot check clients: {error}")))
}

#[derive(Debug)]
struct ByName(Vec<Identity>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        sni::note(name);
        let first = self.0.first()?;
        let named = name.filter(|_| self.0.len() > 1).and_then(|name| self.of(name));
        Some(named.unwrap_or(first).certified_key().clone())
    }
}

impl ByName {
    fn of(&self, name: &str) -> Option<&Identity> {
        let name = ServerName::try_from(name).ok()?;
        self.0.iter().find(|identity| {
            let parsed = ParsedCertificate::try_from(identity.certificate());
            parsed.is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
        })
    }
}
