//! The options of TLS: what is shown, who is trusted.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tidemill::FilterConfig;
use tidemill::tls::{
    CertifiedKey, Client, ClientAuth, ClientOptions, RootCerts, Server, ServerOptions, TlsError, TlsVersion,
    Trust,
};

use super::backplane::BACKPLANE;
use super::values::DurationArg;

const TLS: &str = "TLS";

/// TLS of servers.
#[derive(Args, Clone)]
pub struct ServerTlsArgs {
    /// Serve TLS with this certificate chain, in PEM; repeatable: a client gets the first chain that is valid for the
    /// name it asks for (SNI), else the first. SIGHUP reads all files again
    #[arg(long, value_name = "FILE", help_heading = TLS, requires = "tls_key")]
    tls_cert: Vec<PathBuf>,
    /// Private key of the certificate, in PEM; once for each --tls-cert, in the same order
    #[arg(long, value_name = "FILE", help_heading = TLS, requires = "tls_cert")]
    tls_key: Vec<PathBuf>,
    /// Require a client certificate signed by one of these authorities, in PEM
    #[arg(long, value_name = "FILE", help_heading = TLS, requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Also accept clients without a certificate
    #[arg(long, help_heading = TLS, requires = "tls_client_ca")]
    tls_client_optional: bool,
    /// Protocol offered to clients (ALPN); repeatable, in order of preference
    #[arg(long, value_name = "NAME", help_heading = TLS, requires = "tls_cert")]
    tls_alpn: Vec<String>,
    /// Oldest TLS version accepted: 1.2 or 1.3
    #[arg(long, value_name = "VERSION", default_value = "1.2", hide_possible_values = true, help_heading = TLS,
          requires = "tls_cert", value_parser = version())]
    tls_min: TlsVersion,
    /// Close when the handshake takes longer; 0: no limit
    #[arg(long, value_name = "TIME", default_value = "10s", help_heading = TLS, requires = "tls_cert",
          hide_short_help = true)]
    handshake_timeout: DurationArg,
    /// Concurrent handshakes; further ones wait, and the newest of them is served first
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = TLS, requires = "tls_cert",
          hide_short_help = true,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_handshakes: u32,
}

/// Of those who call.
#[derive(Args, Clone)]
pub struct ClientTlsArgs {
    /// Speak TLS, and trust the certificate authorities of the system
    #[arg(long, help_heading = TLS)]
    tls: bool,
    /// Trust only these certificate authorities, in PEM
    #[arg(long, value_name = "FILE", help_heading = TLS, requires = "tls", conflicts_with = "insecure")]
    tls_ca: Option<PathBuf>,
    /// The name that the server's certificate must be for, instead of the host's
    #[arg(long, value_name = "NAME", help_heading = TLS, requires = "tls")]
    tls_name: Option<String>,
    /// Show this certificate if the server asks for one, in PEM
    #[arg(long, value_name = "FILE", help_heading = TLS, requires_all = ["tls", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(long, value_name = "FILE", help_heading = TLS, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Offer this protocol (ALPN); repeatable, the best first
    #[arg(long, value_name = "NAME", help_heading = TLS, requires = "tls")]
    tls_alpn: Vec<String>,
    /// Accept any certificate: the connection can then be read and changed on the way
    #[arg(long, help_heading = TLS, requires = "tls")]
    insecure: bool,
}

/// TLS from a proxy to its upstreams.
#[derive(Args, Clone)]
pub struct UpstreamTlsArgs {
    /// Use TLS to the upstreams of --to, trusting the system's authorities
    #[arg(long, help_heading = TLS, requires = "to")]
    to_tls: bool,
    /// Trust only these authorities for upstreams, in PEM. SIGHUP reads the file again
    #[arg(long, value_name = "FILE", help_heading = TLS, requires = "to_tls", conflicts_with = "insecure")]
    to_tls_ca: Option<PathBuf>,
    /// Name that an upstream's certificate must be valid for, instead of the host in --to
    #[arg(long, value_name = "NAME", help_heading = TLS, requires = "to_tls")]
    to_tls_name: Option<String>,
    /// Client certificate for upstreams that ask for one, in PEM. SIGHUP reads it again
    #[arg(long, value_name = "FILE", help_heading = TLS, requires_all = ["to_tls", "to_tls_key"])]
    to_tls_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(long, value_name = "FILE", help_heading = TLS, requires = "to_tls_cert")]
    to_tls_key: Option<PathBuf>,
    /// Protocol offered to upstreams (ALPN); repeatable, in order of preference
    #[arg(long, value_name = "NAME", help_heading = TLS, requires = "to_tls")]
    to_tls_alpn: Vec<String>,
    /// Do not verify upstream certificates: an attacker on the path can read and change everything
    #[arg(long, help_heading = TLS, requires = "to_tls")]
    insecure: bool,
}

/// TLS from a chat to the broker of its backplane.
#[derive(Args, Clone)]
pub struct BackplaneTlsArgs {
    /// Trust only these authorities for rediss://, in PEM [default: those of the system]. SIGHUP reads the file again
    #[arg(long, value_name = "FILE", help_heading = BACKPLANE, requires = "backplane", conflicts_with = "insecure",
          hide_short_help = true)]
    backplane_tls_ca: Option<PathBuf>,
    /// Name that the broker's certificate must be valid for, instead of the host in --backplane
    #[arg(long, value_name = "NAME", help_heading = BACKPLANE, requires = "backplane", hide_short_help = true)]
    backplane_tls_name: Option<String>,
    /// Client certificate for the broker, in PEM. SIGHUP reads it again
    #[arg(long, value_name = "FILE", help_heading = BACKPLANE, requires_all = ["backplane", "backplane_tls_key"],
          hide_short_help = true)]
    backplane_tls_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(long, value_name = "FILE", help_heading = BACKPLANE, requires = "backplane_tls_cert", hide_short_help = true)]
    backplane_tls_key: Option<PathBuf>,
    /// Do not verify the broker's certificate: an attacker on the path can read and change everything
    #[arg(long, help_heading = BACKPLANE, requires = "backplane", hide_short_help = true)]
    insecure: bool,
}

fn version() -> impl TypedValueParser<Value = TlsVersion> {
    PossibleValuesParser::new(["1.2", "1.3"]).map(|name| match name.as_str() {
        "1.3" => TlsVersion::V13,
        _ => TlsVersion::V12,
    })
}

impl ServerTlsArgs {
    /// The server side of TLS, if any of it was asked for.
    pub fn server(&self) -> Result<Option<Server>, String> {
        if !self.is_on() {
            return Ok(None);
        }
        let server = self.read().and_then(|options| Server::new(options).map_err(message))?;
        Ok(Some(server))
    }

    pub fn is_on(&self) -> bool {
        !self.tls_cert.is_empty()
    }

    /// Reads the files, which may have changed.
    pub fn read(&self) -> Result<ServerOptions, String> {
        if self.tls_cert.len() != self.tls_key.len() {
            let (certs, keys) = (self.tls_cert.len(), self.tls_key.len());
            return Err(format!(
                "--tls-cert and --tls-key go in pairs: {certs} of the one and {keys} of the other are given"
            ));
        }
        let pairs = self.tls_cert.iter().zip(&self.tls_key);
        let identities = pairs.map(|(cert, key)| CertifiedKey::from_pem_files(cert, key).map_err(message));
        let clients = match (&self.tls_client_ca, self.tls_client_optional) {
            (None, _) => ClientAuth::Any,
            (Some(ca), true) => ClientAuth::Optional(RootCerts::from_pem_file(ca).map_err(message)?),
            (Some(ca), false) => ClientAuth::Required(RootCerts::from_pem_file(ca).map_err(message)?),
        };
        Ok(ServerOptions {
            certificates: identities.collect::<Result<_, _>>()?,
            client_auth: clients,
            alpn: names(&self.tls_alpn),
            min_version: self.tls_min,
        })
    }

    pub fn handshake(&self) -> Option<Duration> {
        self.handshake_timeout.0
    }

    pub fn max_handshakes(&self) -> usize {
        self.max_handshakes as usize
    }
}

impl ClientTlsArgs {
    pub fn client(&self) -> Result<Option<FilterConfig>, String> {
        if !self.tls {
            return Ok(None);
        }
        Ok(Some(Client::new(self.read()?).map_err(message)?.filter_config()))
    }

    fn read(&self) -> Result<ClientOptions, String> {
        Ok(ClientOptions {
            trust: trust(self.tls_ca.as_ref(), self.insecure)?,
            certificate: identity(self.tls_cert.as_ref(), self.tls_key.as_ref())?,
            alpn: names(&self.tls_alpn),
            server_name: self.tls_name.clone(),
            ..ClientOptions::default()
        })
    }
}

impl BackplaneTlsArgs {
    /// Whether any of them is given.
    pub fn is_given(&self) -> bool {
        let files = [&self.backplane_tls_ca, &self.backplane_tls_cert];
        self.insecure || self.backplane_tls_name.is_some() || files.iter().any(|file| file.is_some())
    }
}

impl From<&BackplaneTlsArgs> for UpstreamTlsArgs {
    fn from(args: &BackplaneTlsArgs) -> UpstreamTlsArgs {
        UpstreamTlsArgs {
            to_tls: true,
            to_tls_ca: args.backplane_tls_ca.clone(),
            to_tls_name: args.backplane_tls_name.clone(),
            to_tls_cert: args.backplane_tls_cert.clone(),
            to_tls_key: args.backplane_tls_key.clone(),
            to_tls_alpn: Vec::new(),
            insecure: args.insecure,
        }
    }
}

impl UpstreamTlsArgs {
    /// TLS that trusts the authorities of the system.
    pub fn system_roots() -> UpstreamTlsArgs {
        UpstreamTlsArgs {
            to_tls: true,
            to_tls_ca: None,
            to_tls_name: None,
            to_tls_cert: None,
            to_tls_key: None,
            to_tls_alpn: Vec::new(),
            insecure: false,
        }
    }

    /// The client side of TLS, if it was asked for.
    pub fn client(&self) -> Result<Option<Client>, String> {
        if !self.to_tls {
            return Ok(None);
        }
        Client::new(self.read()?).map(Some).map_err(message)
    }

    /// Reads the files, which may have changed.
    pub fn read(&self) -> Result<ClientOptions, String> {
        let client_args = ClientTlsArgs {
            tls: self.to_tls,
            tls_ca: self.to_tls_ca.clone(),
            tls_name: self.to_tls_name.clone(),
            tls_cert: self.to_tls_cert.clone(),
            tls_key: self.to_tls_key.clone(),
            tls_alpn: self.to_tls_alpn.clone(),
            insecure: self.insecure,
        };
        client_args.read()
    }
}

fn message(error: TlsError) -> String {
    error.to_string()
}

fn trust(ca: Option<&PathBuf>, insecure: bool) -> Result<Trust, String> {
    match ca {
        _ if insecure => Ok(Trust::DangerAcceptAny),
        Some(ca) => Ok(Trust::Only(RootCerts::from_pem_file(ca).map_err(message)?)),
        None => Ok(Trust::System),
    }
}

fn identity(cert: Option<&PathBuf>, key: Option<&PathBuf>) -> Result<Option<CertifiedKey>, String> {
    cert.zip(key).map(|(cert, key)| CertifiedKey::from_pem_files(cert, key).map_err(message)).transpose()
}

fn names(given: &[String]) -> Vec<Vec<u8>> {
    given.iter().map(|name| name.clone().into_bytes()).collect()
}
