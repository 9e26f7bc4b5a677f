//! The client side: trust, certificate, server name.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};

use super::identity::{CertifiedKey, RootCerts};
use super::session::Session;
use super::{TlsError, TlsVersion, check_protocols, provider, versions};
use crate::base::address::Address;
use crate::base::filter::{Filter, FilterConfig, FilterFactory};

/// The configuration of TLS clients. Cheap to clone; connections of all clones share one cache of sessions to resume.
///
/// # Examples
///
/// ```no_run
/// use tidemill::DialOptions;
/// use tidemill::tls::{Client, ClientOptions};
///
/// let client = Client::new(ClientOptions { alpn: vec![b"h2".to_vec()], ..ClientOptions::default() })?;
/// let options = DialOptions { filter: Some(client.filter_config()), ..DialOptions::default() };
/// # let _ = options;
/// # Ok::<(), tidemill::tls::TlsError>(())
/// ```
#[derive(Clone)]
pub struct Client {
    current: Arc<CurrentConfig>,
    filter: FilterConfig,
}

/// Options of a [`Client`].
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// Which server certificates are trusted. Default [`Trust::System`].
    pub trust: Trust,
    /// The client certificate, sent to a server that requests one. `None` by default.
    pub certificate: Option<CertifiedKey>,
    /// The protocols to offer (ALPN), the preferred one first; a name has 1 to 255 bytes. A server that supports none
    /// of them may refuse the connection, or ignore them: see
    /// [`FilterInfo::protocol`](crate::FilterInfo::protocol). Empty by default: none is offered.
    pub alpn: Vec<Vec<u8>>,
    /// The host name or IP address that the server's certificate must be for. `None`, the default: the host that is
    /// dialed. Required for Unix-domain sockets, which have none.
    pub server_name: Option<String>,
    /// The oldest TLS version to accept. Default [`TlsVersion::V12`].
    pub min_version: TlsVersion,
}

/// Which server certificates a client trusts.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Those signed by a root certificate of the operating system: see [`RootCerts::system`].
    #[default]
    System,
    /// Those signed by one of these root certificates.
    Only(RootCerts),
    /// All, without verification. Any attacker on the path can read and change the data. For tests only.
    DangerAcceptAny,
}

impl Client {
    /// Makes a client configuration.
    ///
    /// # Errors
    ///
    /// When [`server_name`](ClientOptions::server_name) is neither a host name nor an IP address, the name of a
    /// protocol has not 1 to 255 bytes, or the system has no root certificates.
    pub fn new(options: ClientOptions) -> Result<Client, TlsError> {
        let current = Arc::new(CurrentConfig(RwLock::new(client_filters(options)?)));
        Ok(Client { filter: FilterConfig::new(current.clone()), current })
    }

    /// Replaces the configuration for connections that begin from now on, from any thread. Sessions of the previous
    /// configuration are not resumed.
    ///
    /// # Errors
    ///
    /// As [`new`](Client::new); then the previous configuration stays in use.
    pub fn replace(&self, options: ClientOptions) -> Result<(), TlsError> {
        let filters = client_filters(options)?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = filters;
        Ok(())
    }

    /// The filter for [`DialOptions::filter`](crate::DialOptions::filter) or
    /// [`Socket::start_filter`](crate::Socket::start_filter).
    pub fn filter_config(&self) -> FilterConfig {
        self.filter.clone()
    }
}

impl From<Client> for FilterConfig {
    fn from(client: Client) -> FilterConfig {
        client.filter
    }
}

impl From<&Client> for FilterConfig {
    fn from(client: &Client) -> FilterConfig {
        client.filter_config()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

fn parse_server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_string()).map_err(|_| {
        TlsError::new(format!(
            "cannot expect a certificate for {name:?}: it is neither a name nor an IP address"
        ))
    })
}

fn client_filters(options: ClientOptions) -> Result<ClientFilters, TlsError> {
    let name = options.server_name.as_deref().map(parse_server_name).transpose()?;
    let spoken = versions(options.min_version);
    Ok(ClientFilters { config: Arc::new(config(options, spoken)?), name })
}

struct CurrentConfig(RwLock<ClientFilters>);

impl FilterFactory for Arc<CurrentConfig> {
    fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.filter(peer)
    }
}

#[derive(Clone)]
struct ClientFilters {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl ClientFilters {
    fn filter(&self, peer: &Address) -> io::Result<Box<dyn Filter>> {
        let name = self.name.clone().map_or_else(|| server_name_of(peer), Ok)?;
        let session = Session::client(self.config.clone(), name).map_err(io::Error::other)?;
        Ok(Box::new(session))
    }
}

fn server_name_of(peer: &Address) -> io::Result<ServerName<'static>> {
    let cannot =
        |why| io::Error::new(io::ErrorKind::InvalidInput, format!("cannot dial {peer} with TLS: {why}"));
    match peer {
        Address::Inet(address) => Ok(ServerName::IpAddress(address.ip().to_canonical().into())),
        Address::Name { host, .. } => ServerName::try_from(host.to_string())
            .map_err(|_| cannot("no certificate can be for this name (set another server name)")),
        _ => Err(cannot("it has no host name to verify (set a server name)")),
    }
}

pub(super) fn config(
    options: ClientOptions,
    spoken: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, TlsError> {
    check_protocols(&options.alpn)?;
    let cannot = |error: rustls::Error| TlsError::new(format!("cannot dial with TLS: {error}"));
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(spoken).map_err(cannot)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier(options.trust)?);
    let mut config = match options.certificate {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let shown = SingleCertAndKey::from(identity.certified_key().clone());
            builder.with_client_cert_resolver(Arc::new(shown))
        }
    };
    config.alpn_protocols = options.alpn;
    Ok(config)
}

fn verifier(trust: Trust) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let authorities = match trust {
        Trust::System => RootCerts::system()?,
        Trust::Only(authorities) => authorities,
        Trust::DangerAcceptAny => {
            log::warn!(
                "certificates are not verified: an attacker on the path can read and change everything"
            );
            return Ok(Arc::new(AcceptAny(provider().signature_verification_algorithms)));
        }
    };
    let builder = WebPkiServerVerifier::builder_with_provider(authorities.roots().clone(), provider());
    let built = builder.build();
    Ok(built.map_err(|error| TlsError::new(format!("cannot verify servers: {error}")))?)
}

/// Trusts every certificate. The handshake's signature is still verified, so the server has the certificate's key.
#[derive(Debug)]
struct AcceptAny(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
