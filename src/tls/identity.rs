//! Certificates with keys, and root certificates.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign;

use super::{TlsError, provider};
use crate::base::reason::os_message;

/// A certificate chain with its private key. Cheap to clone.
///
/// # Examples
///
/// ```
/// use tidemill::tls::CertifiedKey;
///
/// let error = CertifiedKey::from_pem(b"", b"").unwrap_err().to_string();
/// assert!(error.starts_with("cannot use the certificate: there is none"), "{error}");
/// ```
#[derive(Clone)]
pub struct CertifiedKey(Arc<sign::CertifiedKey>);

impl CertifiedKey {
    /// From PEM text: the chain, with the own certificate first, and the private key (PKCS #8, PKCS #1 or SEC 1). Other
    /// content of `chain` and all keys after the first are ignored, so that both arguments may be the same text.
    ///
    /// # Errors
    ///
    /// When there is no certificate or no key, one of them is malformed or of an unsupported kind, the key is
    /// encrypted, or the key does not belong to the certificate.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
        identity(chain, "the certificate", key, "the key")
    }

    /// From two PEM files, or from one that contains both. Blocks while it reads them. After the files have changed,
    /// call it again and pass the result to [`Server::replace`](super::Server::replace).
    ///
    /// # Errors
    ///
    /// As [`from_pem`](CertifiedKey::from_pem), and when a file cannot be read. The error names the file.
    pub fn from_pem_files(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<CertifiedKey, TlsError> {
        let (chain, key) = (chain.as_ref(), key.as_ref());
        let chain_named = format!("the certificate in {}", chain.display());
        let key_named = format!("the key in {}", key.display());
        identity(&read(chain, &chain_named)?, &chain_named, &read(key, &key_named)?, &key_named)
    }

    pub(super) fn certified_key(&self) -> &Arc<sign::CertifiedKey> {
        &self.0
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        // Not empty: checked by `identity`.
        &self.0.cert[0]
    }
}

fn read(path: &Path, named: &str) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::new(format!("cannot read {named}: {}", os_message(&error))))
}

/// `chain_named` and `key_named` are what error messages call the two.
fn identity(chain: &[u8], chain_named: &str, key: &[u8], key_named: &str) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(chain, chain_named)?;
    let key = private_key(key, key_named)?;
    let cannot = |what: &str, why: &str| TlsError::new(format!("cannot use {what}: {why}"));
    match sign::CertifiedKey::from_der(chain, key, &provider()) {
        Ok(certified) => Ok(CertifiedKey(Arc::new(certified))),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(cannot(key_named, &format!("it does not belong to {chain_named}")))
        }
        Err(rustls::Error::InvalidCertificate(_)) => Err(cannot(chain_named, "it is malformed")),
        Err(_) => Err(cannot(
            key_named,
            "it is malformed, or of a kind that is not supported \
             (use RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384, or Ed25519)",
        )),
    }
}

fn certificates(pem: &[u8], named: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::new(format!("cannot use {named}: {}", malformed(&error))))?;
    if all.is_empty() {
        return Err(TlsError::new(format!(
            "cannot use {named}: there is none (it is PEM, and begins with -----BEGIN CERTIFICATE-----)"
        )));
    }
    Ok(all)
}

fn private_key(pem: &[u8], named: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        // An encrypted key has a label of its own or, in the traditional format of OpenSSL, a header line.
        let is_encrypted = memchr::memmem::find(pem, b"ENCRYPTED").is_some();
        let why = match error {
            _ if is_encrypted => "it is encrypted (decrypt it first: openssl pkey -in ... -out ...)".into(),
            PemError::NoItemsFound => {
                "there is none (it is PEM, and begins with -----BEGIN PRIVATE KEY----- or the like)".into()
            }
            error => malformed(&error),
        };
        TlsError::new(format!("cannot use {named}: {why}"))
    })
}

fn malformed(error: &PemError) -> String {
    match error {
        PemError::MissingSectionEnd { .. } => "its -----END line is missing".into(),
        PemError::IllegalSectionStart { .. } => "its -----BEGIN line is malformed".into(),
        error => format!("it is malformed: {error}"),
    }
}

impl fmt::Debug for CertifiedKey {
    /// Prints no part of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertifiedKey")
    }
}

/// Root certificates: those whose signature on other certificates is trusted. At least one. Cheap to clone.
///
/// # Examples
///
/// ```no_run
/// use tidemill::tls::{ClientOptions, RootCerts, Trust};
///
/// let trust = Trust::Only(RootCerts::from_pem_file("ca.pem")?);
/// let options = ClientOptions { trust, ..ClientOptions::default() };
/// # let _ = options;
/// # Ok::<(), tidemill::tls::TlsError>(())
/// ```
#[derive(Clone)]
pub struct RootCerts(Arc<RootCertStore>);

impl RootCerts {
    /// All certificates in a PEM text.
    ///
    /// # Errors
    ///
    /// When there is none, or one is malformed.
    pub fn from_pem(certificates: &[u8]) -> Result<RootCerts, TlsError> {
        authorities(certificates, "the root certificate")
    }

    /// All certificates in a PEM file. Blocks while it reads the file.
    ///
    /// # Errors
    ///
    /// As [`from_pem`](RootCerts::from_pem), and when the file cannot be read.
    pub fn from_pem_file(path: impl AsRef<Path>) -> Result<RootCerts, TlsError> {
        let path = path.as_ref();
        let named = format!("the root certificate in {}", path.display());
        authorities(&read(path, &named)?, &named)
    }

    /// The root certificates of the operating system: those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, else those
    /// in the system's usual place. Blocks while it reads a few hundred kilobytes. Malformed ones are ignored.
    ///
    /// # Errors
    ///
    /// When none is found.
    pub fn system() -> Result<RootCerts, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
            return Err(TlsError::new(format!(
                "cannot find the system's root certificates, neither by SSL_CERT_FILE and SSL_CERT_DIR nor where \
                 OpenSSL looks{why} (install ca-certificates, or name a file)"
            )));
        }
        Ok(RootCerts(Arc::new(roots)))
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.0
    }
}

fn authorities(pem: &[u8], named: &str) -> Result<RootCerts, TlsError> {
    let mut roots = RootCertStore::empty();
    for (n, certificate) in (1..).zip(certificates(pem, named)?) {
        let added = roots.add(certificate);
        added.map_err(|_| TlsError::new(format!("cannot use {named}: number {n} is malformed")))?;
    }
    Ok(RootCerts(Arc::new(roots)))
}

impl fmt::Debug for RootCerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootCerts({})", self.0.len())
    }
}
