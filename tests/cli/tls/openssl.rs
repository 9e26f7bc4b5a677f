//! openssl's client: versions, names, protocols, sessions.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::{Certificates, logs, s_client};
use crate::interop::has;
use crate::server::{Process, Server, shared};

const VERSIONS: [(&str, &str); 2] = [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")];

#[test]
fn openssl_gets_its_echo_in_either_version_also_through_a_tls_terminating_proxy() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("greeted");
    let echo = Server::start(&format!("echo {}", certificates.server_args("server")));
    let plain = Server::start("echo");
    let proxy =
        Server::start(&format!("proxy --to {} {}", plain.address, certificates.server_args("server")));
    for to in [echo.address, proxy.address] {
        for (option, version) in VERSIONS {
            let words = format!("{option} -servername localhost -verify_hostname localhost");
            let outcome = s_client(&certificates, to, &words, b"hello\nquit\n");
            let text = outcome.text();
            assert_eq!(outcome.code, Some(0), "{version}: {text}{}", outcome.stderr);
            for part in [
                "echo server ready (type quit to exit)\n",
                "\nhello\n",
                &format!("New, {version}, Cipher is "),
                "Verified peername: localhost",
            ] {
                assert!(text.contains(part), "{version}: {part:?} is not in {text}");
            }
            // openssl reports an end without close_notify.
            assert!(!outcome.stderr.contains("unexpected eof"), "{version}: {}", outcome.stderr);
        }
    }
}

#[test]
fn the_requested_server_name_selects_the_certificate_wildcards_included() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("names");
    let words = format!("echo {} {}", certificates.server_args("server"), certificates.server_args("other"));
    let echo = Server::start(&words);
    for (asked, gets) in [
        ("-servername localhost", "localhost"),
        ("-servername other.example", "other.example"),
        ("-servername OTHER.example", "other.example"),
        ("-servername a.wild.example", "a.wild.example"),
        // The first certificate, if no name is requested or no certificate is for it.
        ("-noservername", "localhost"),
        ("-servername nobody.example", "localhost"),
        ("-servername a.b.wild.example", "localhost"),
    ] {
        for (option, _) in VERSIONS {
            let words = format!("{option} {asked} -verify_hostname {gets}");
            let outcome = s_client(&certificates, echo.address, &words, b"quit\n");
            assert_eq!(outcome.code, Some(0), "{words}: {}{}", outcome.text(), outcome.stderr);
            assert!(outcome.text().contains("Verification: OK"), "{words}: {}", outcome.text());
        }
    }
    // Shows that the check can fail: this name has the first certificate.
    let outcome =
        s_client(&certificates, echo.address, "-servername x.example -verify_hostname x.example", b"");
    assert_eq!(outcome.code, Some(1), "{}", outcome.text());
}

#[test]
fn alpn_is_the_servers_first_choice_and_clients_offering_only_others_are_refused() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("alpn");
    let words = format!("echo {} --tls-alpn tide/2 --tls-alpn tide/1", certificates.server_args("server"));
    let mut echo = Server::start(&words);
    for (option, _) in VERSIONS {
        for (offers, agreed) in [
            ("-alpn tide/1,tide/2", "ALPN protocol: tide/2"),
            ("-alpn other,tide/1", "ALPN protocol: tide/1"),
            ("", "No ALPN negotiated"),
        ] {
            let words = format!("{option} {offers}");
            let outcome = s_client(&certificates, echo.address, &words, b"quit\n");
            assert!(outcome.text().contains(agreed), "{words}: {}{}", outcome.text(), outcome.stderr);
        }
        let outcome = s_client(&certificates, echo.address, &format!("{option} -alpn http/1.1"), b"quit\n");
        assert_eq!(outcome.code, Some(1), "{}", outcome.text());
    }
    let log = echo.end();
    assert!(log.contains("handshake: the peer offers no supported protocol (ALPN)"), "{log}");
    assert!(log.contains(" handshake=2") && log.contains(" handshakes=6"), "{log}");
}

#[test]
fn too_old_versions_are_refused_and_logged() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("versions");
    let newest = Server::start(&format!("echo --tls-min 1.3 {}", certificates.server_args("server")));
    let usual = Server::start(&format!("echo {}", certificates.server_args("server")));
    let unspoken = "handshake: the peer supports no enabled TLS version";
    // openssl offers the old version only at security level 0, with a ClientHello that lacks more than the version.
    let old = "-tls1_1 -cipher DEFAULT:@SECLEVEL=0";
    for (server, refused, why) in [(&newest, "-tls1_2", unspoken), (&usual, old, "handshake: the peer ")] {
        let outcome = s_client(&certificates, server.address, refused, b"quit\n");
        assert_eq!(outcome.code, Some(1), "{refused}: {}", outcome.text());
        logs(server, why);
        let outcome = s_client(&certificates, server.address, "-tls1_3", b"quit\n");
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
}

#[test]
fn a_second_connection_resumes_the_session_of_the_first() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("resumed");
    let echo = Server::start(&format!("echo {}", certificates.server_args("server")));
    for (option, version) in VERSIONS {
        let session = certificates.path(&format!("session{option}"));
        let first =
            s_client(&certificates, echo.address, &format!("{option} -sess_out {session}"), b"quit\n");
        assert!(first.text().contains(&format!("New, {version}, ")), "{}", first.text());
        let words = format!("{option} -sess_in {session}");
        let second = s_client(&certificates, echo.address, &words, b"hello\nquit\n");
        assert!(second.text().contains(&format!("Reused, {version}, ")), "{}", second.text());
        assert!(second.text().contains("\nhello\n"), "{}", second.text());
    }
    // Another server process has other ticket keys, so the session is not resumed.
    let other = Server::start(&format!("echo {}", certificates.server_args("server")));
    let words = format!("-tls1_3 -sess_in {}", certificates.path("session-tls1_3"));
    let third = s_client(&certificates, other.address, &words, b"hello\nquit\n");
    assert!(
        third.text().contains("New, TLSv1.3, ") && third.text().contains("\nhello\n"),
        "{}",
        third.text()
    );
}

#[test]
fn openssl_sends_a_frame_and_gets_it_back() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("frame");
    let frames = Server::start(&format!("frames {}", certificates.server_args("server")));
    for (option, _) in VERSIONS {
        // openssl ends at the end of its stdin, and does not wait for answers.
        let mut command = Command::new("timeout");
        command.args(["30", "openssl", "s_client", "-quiet", "-no_ign_eof", "-verify_return_error", option]);
        command.args(["-connect", &frames.address.to_string(), "-CAfile", &certificates.path("ca.pem")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Process(command.spawn().expect("openssl"));
        let mut stdin = process.0.stdin.take().expect("its stdin");
        stdin.write_all(b"\0\0\0\x06framed").expect("it takes it");
        let mut received = [0; 10];
        process.0.stdout.take().expect("its stdout").read_exact(&mut received).expect("a frame");
        assert_eq!(&received, b"\0\0\0\x06framed");
    }
}
