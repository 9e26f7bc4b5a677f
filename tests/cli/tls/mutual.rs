//! Clients that show a certificate.

use super::{Papers, logs, s_client};
use crate::interop::has;
use crate::server::{Server, among_others};

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];

/// Whether openssl is let in with this certificate, or with none.
fn is_let_in(papers: &Papers, server: &Server, version: &str, shows: &str) -> bool {
    let shown = match shows {
        "" => String::new(),
        name => {
            format!(
                "-cert {} -key {}",
                papers.path(&format!("{name}.pem")),
                papers.path(&format!("{name}.key"))
            )
        }
    };
    let outcome = s_client(papers, server.address, &format!("{version} {shown}"), b"hello\nquit\n");
    let heard = outcome.text().contains("\nhello\n");
    assert_eq!(outcome.code, Some(if heard { 0 } else { 1 }), "{version} {shows}: {}", outcome.stderr);
    heard
}

#[test]
fn only_clients_with_a_certificate_of_ours_come_in_and_the_log_says_why_others_do_not() {
    let _others = among_others();
    if !has("openssl") {
        return;
    }
    let papers = Papers::of("mutual");
    let words = format!("echo --tls-client-ca {} {}", papers.path("ca.pem"), papers.shows("server"));
    for version in VERSIONS {
        let mut echo = Server::start(&words);
        assert!(is_let_in(&papers, &echo, version, "client"), "{version}: {}", echo.log());
        for (shows, why) in [
            ("", "handshake: the peer has shown no certificate, and must"),
            ("stranger", "handshake: the peer's certificate is not trusted: unknown issuer"),
            ("expired", "handshake: the peer's certificate is not trusted: expired "),
        ] {
            assert!(!is_let_in(&papers, &echo, version, shows), "{version} {shows:?}");
            logs(&echo, why);
        }
        let log = echo.end();
        assert!(log.contains(" handshake=3") && log.contains(" handshakes=1"), "{version}: {log}");
    }
}

#[test]
fn a_certificate_that_is_optional_may_be_missing_but_not_be_wrong() {
    let _others = among_others();
    if !has("openssl") {
        return;
    }
    let papers = Papers::of("optional");
    let ca = papers.path("ca.pem");
    let words = format!("--tls-client-ca {ca} --tls-client-optional {}", papers.shows("server"));
    let plain = Server::start("echo");
    let mut proxy = Server::start(&format!("proxy --to {} {words}", plain.address));
    for server in [&Server::start(&format!("echo {words}")), &proxy] {
        for version in VERSIONS {
            assert!(is_let_in(&papers, server, version, ""), "{version}");
            assert!(is_let_in(&papers, server, version, "client"), "{version}");
            assert!(!is_let_in(&papers, server, version, "stranger"), "{version}");
        }
        logs(server, "is not trusted: unknown issuer");
    }
    // Whoever is refused costs no upstream a connection.
    assert_eq!(proxy.end().matches(" -> ").count(), 4, "{}", proxy.log());
}

#[test]
fn a_refused_client_is_told_so_and_a_resumed_one_is_still_the_one_it_was() {
    let _others = among_others();
    if !has("openssl") {
        return;
    }
    let papers = Papers::of("mutual-resumed");
    let words = format!("echo --tls-client-ca {} {}", papers.path("ca.pem"), papers.shows("server"));
    let echo = Server::start(&words);
    let shown = format!("-cert {} -key {}", papers.path("client.pem"), papers.path("client.key"));
    for version in VERSIONS {
        let refused = s_client(&papers, echo.address, version, b"hello\nquit\n");
        assert!(refused.stderr.contains("alert"), "{version}: {}", refused.stderr);
        let session = papers.path(&format!("session{version}"));
        let out = format!("{version} {shown} -sess_out {session}");
        assert!(s_client(&papers, echo.address, &out, b"quit\n").text().contains("New, "));
        let again =
            s_client(&papers, echo.address, &format!("{version} -sess_in {session}"), b"hello\nquit\n");
        assert!(again.text().contains("Reused, ") && again.text().contains("\nhello\n"), "{}", again.text());
    }
}
