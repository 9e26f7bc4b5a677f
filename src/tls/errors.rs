//! Turns errors of rustls into messages for the log.

use rustls::{
    AlertDescription, CertificateError, CipherSuite, Error, InvalidMessage, PeerIncompatible,
    ProtocolVersion, SupportedCipherSuite,
};

use crate::base::text::Escaped;

const DAY: u64 = 24 * 60 * 60;

/// The message for an error that ends a session.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => {
            format!("the peer's certificate is not trusted: {}", distrusted(why))
        }
        Error::NoCertificatesPresented => "the peer sent no certificate, but one is required".into(),
        Error::AlertReceived(AlertDescription::CloseNotify) => {
            "the peer closed the connection during the handshake".into()
        }
        Error::AlertReceived(alert) => format!("the peer refused: {}", spaced(&format!("{alert:?}"))),
        Error::NoApplicationProtocol => "the peer offers no supported protocol (ALPN)".into(),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "the peer supports no enabled TLS version".into(),
        Error::PeerIncompatible(why) => {
            format!("the peer is incompatible: {}", spaced(&format!("{why:?}")))
        }
        Error::PeerMisbehaved(why) => {
            format!("the peer violated the TLS protocol: {}", spaced(&format!("{why:?}")))
        }
        Error::InvalidMessage(why) => {
            format!("the peer sent a malformed message: {}", spaced(&format!("{why:?}")))
        }
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "the peer sent an unexpected message".into()
        }
        Error::DecryptError => "a record could not be decrypted".into(),
        error => Escaped(error.to_string().as_bytes()).to_string(),
    }
}

/// As [`describe`], for an error in the peer's first record, which is often not TLS at all.
pub(super) fn describe_first(error: &Error, first: &[u8]) -> String {
    let is_framing = matches!(
        error,
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload
        )
    );
    if is_framing && !matches!(first, [20..=23, 3, ..]) {
        return format!("the peer does not speak TLS (it sent \"{}\")", Escaped(first));
    }
    describe(error)
}

fn distrusted(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer => "unknown issuer".into(),
        CertificateError::Expired => "expired".into(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("expired {} ago", days(time.as_secs().saturating_sub(not_after.as_secs())))
        }
        CertificateError::NotValidYet => "not valid yet".into(),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("not valid for another {}", days(not_before.as_secs().saturating_sub(time.as_secs())))
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| inner_name(name)).collect();
            let is_for = if names.is_empty() { "no name".into() } else { names.join(", ") };
            format!("not valid for {} (it is for {})", expected.to_str(), Escaped(is_for.as_bytes()))
        }
        CertificateError::InvalidPurposeContext { required, .. } => format!("not meant for {required}"),
        CertificateError::BadEncoding => "malformed".into(),
        CertificateError::BadSignature => "a signature is invalid".into(),
        // An error of webpki without a variant in rustls. Most self-signed certificates cause it.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "it is a CA certificate, which cannot be used by a server or client (issue one signed by it)"
                .into()
        }
        why => Escaped(why.to_string().as_bytes()).to_string(),
    }
}

fn days(seconds: u64) -> String {
    match seconds / DAY {
        0 => "less than a day".into(),
        1 => "1 day".into(),
        days => format!("{days} days"),
    }
}

/// The name in `DnsName("a.example")` or `IpAddress(192.0.2.7)`.
fn inner_name(presented: &str) -> &str {
    let inside = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.unwrap_or(presented).trim_matches('"')
}

/// `UnknownCA` becomes `unknown CA`.
fn spaced(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let begins = |at: usize| {
        let follows_small = at > 0 && !letters[at - 1].is_uppercase();
        let small_follows = letters.get(at + 1).is_some_and(|next| next.is_lowercase());
        letters[at].is_ascii_uppercase()
            && (follows_small || small_follows)
            && letters[at.saturating_sub(1)] != '('
    };
    let mut words = vec![String::new()];
    for (at, letter) in letters.iter().enumerate() {
        if at > 0 && begins(at) {
            words.push(String::new());
        }
        words.last_mut().expect("one is always there").push(*letter);
    }
    let is_shouted = |word: &String| word.len() > 1 && word.chars().all(|letter| letter.is_ascii_uppercase());
    let words = words.iter().map(|word| if is_shouted(word) { word.clone() } else { word.to_lowercase() });
    words.collect::<Vec<_>>().join(" ")
}

pub(super) fn version(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

/// The name in IANA's registry; rustls has other names for those of TLS 1.3.
pub(super) fn cipher(suite: Option<SupportedCipherSuite>) -> &'static str {
    match suite.map(|suite| suite.suite()) {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => {
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
        }
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384) => {
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
        }
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256) => {
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
        }
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256) => {
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rustls_become_words() {
        let pairs = [
            ("UnknownCA", "unknown CA"),
            ("CertificateRequired", "certificate required"),
            ("BadRecordMac", "bad record mac"),
            ("UnknownPSKIdentity", "unknown PSK identity"),
            ("NoKxGroupsInCommon", "no kx groups in common"),
            ("Unknown(200)", "unknown(200)"),
            ("", ""),
        ];
        for (name, words) in pairs {
            assert_eq!(spaced(name), words);
        }
    }

    #[test]
    fn non_tls_bytes_are_shown_escaped() {
        let error = Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert_eq!(describe_first(&error, b"GET / HT"), "the peer does not speak TLS (it sent \"GET / HT\")");
        assert_eq!(describe_first(&error, b"\x1b[2J"), "the peer does not speak TLS (it sent \"\\x1b[2J\")");
    }

    #[test]
    fn an_error_in_a_tls_record_is_not_reported_as_non_tls() {
        let error = Error::InvalidMessage(InvalidMessage::MessageTooLarge);
        let why = describe_first(&error, b"\x16\x03\x01\xff\xff");
        assert_eq!(why, "the peer sent a malformed message: message too large");
    }

    #[test]
    fn every_offered_cipher_suite_has_its_iana_name() {
        for suite in rustls::crypto::ring::ALL_CIPHER_SUITES {
            let ours = cipher(Some(*suite));
            assert_eq!(ours, format!("{:?}", suite.suite()).replace("TLS13_", "TLS_"));
        }
    }
}
