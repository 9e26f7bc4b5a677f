//! Client certificates.

use rcgen::{BasicConstraints, IsCa, KeyPair};

use super::{Certificates, logs, params, s_client};
use crate::interop::has;
use crate::server::{Server, shared};

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

/// Whether openssl is accepted with this certificate, or with none.
fn is_accepted(certificates: &Certificates, server: &Server, version: &str, shows: &str) -> bool {
    let shown = match shows {
        "" => String::new(),
        name => {
            format!(
                "-cert {} -key {}",
                certificates.path(&format!("{name}.pem")),
                certificates.path(&format!("{name}.key"))
            )
        }
    };
    let outcome = s_client(certificates, server.address, &format!("{version} {shown}"), b"hello\nquit\n");
    let received = outcome.text().contains("\nhello\n");
    assert_eq!(outcome.code, Some(if received { 0 } else { 1 }), "{version} {shows}: {}", outcome.stderr);
    received
}

#[test]
fn only_clients_with_a_trusted_certificate_are_accepted_and_the_log_has_the_reason_for_others() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("mutual");
    let words = format!(
        "echo --tls-client-ca {} {}",
        certificates.path("ca.pem"),
        certificates.server_args("server")
    );
    for version in VERSIONS {
        let mut echo = Server::start_with_debug_log(&words);
        assert!(is_accepted(&certificates, &echo, version, "client"), "{version}: {}", echo.log());
        for (shows, why) in [
            ("", "handshake: the peer sent no certificate, but one is required"),
            ("stranger", "handshake: the peer's certificate is not trusted: unknown issuer"),
            ("expired", "handshake: the peer's certificate is not trusted: expired "),
        ] {
            assert!(!is_accepted(&certificates, &echo, version, shows), "{version} {shows:?}");
            logs(&echo, why);
        }
        let log = echo.end();
        assert!(log.contains(" handshake=3") && log.contains(" handshakes=1"), "{version}: {log}");
    }
}

#[test]
fn an_optional_certificate_may_be_missing_but_must_be_trusted() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("optional");
    let ca = certificates.path("ca.pem");
    let words = format!("--tls-client-ca {ca} --tls-client-optional {}", certificates.server_args("server"));
    let plain = Server::start("echo");
    let mut proxy = Server::start(&format!("proxy --to {} {words}", plain.address));
    for server in [&Server::start(&format!("echo {words}")), &proxy] {
        for version in VERSIONS {
            assert!(is_accepted(&certificates, server, version, ""), "{version}");
            assert!(is_accepted(&certificates, server, version, "client"), "{version}");
            assert!(!is_accepted(&certificates, server, version, "stranger"), "{version}");
        }
        logs(server, "is not trusted: unknown issuer");
    }
    // No upstream is dialed for a refused client.
    assert_eq!(proxy.end().matches(" -> ").count(), 4, "{}", proxy.log());
}

#[test]
fn a_refused_client_gets_an_alert_and_a_resumed_one_keeps_its_certificate() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("mutual-resumed");
    let words = format!(
        "echo --tls-client-ca {} {}",
        certificates.path("ca.pem"),
        certificates.server_args("server")
    );
    let echo = Server::start(&words);
    let shown = format!("-cert {} -key {}", certificates.path("client.pem"), certificates.path("client.key"));
    for version in VERSIONS {
        let refused = s_client(&certificates, echo.address, version, b"hello\nquit\n");
        assert!(refused.stderr.contains("alert"), "{version}: {}", refused.stderr);
        let session = certificates.path(&format!("session{version}"));
        let out = format!("{version} {shown} -sess_out {session}");
        assert!(s_client(&certificates, echo.address, &out, b"quit\n").text().contains("New, "));
        let again =
            s_client(&certificates, echo.address, &format!("{version} -sess_in {session}"), b"hello\nquit\n");
        assert!(again.text().contains("Reused, ") && again.text().contains("\nhello\n"), "{}", again.text());
    }
}

/// The list of their names is sent in one message, whose length has 16 bits.
#[test]
fn more_authorities_than_fit_into_a_handshake_are_trusted_and_not_named() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("authorities");
    let key = KeyPair::generate().expect("a key");
    let mut bundle = certificates.text("ca.pem");
    for n in 0..420 {
        let mut params = params(&format!("{n} {}", "a long name ".repeat(12)), &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        bundle.push_str(&params.self_signed(&key).expect("an authority").pem());
    }
    certificates.write("many.pem", bundle);
    let words = format!("echo --tls-client-ca {}", certificates.path("many.pem"));
    let echo = Server::start(&format!("{words} {}", certificates.server_args("server")));
    logs(&echo, "clients are not told the names of the 421 authorities");
    for version in VERSIONS {
        assert!(is_accepted(&certificates, &echo, version, "client"), "{version}: {}", echo.log());
    }
}
