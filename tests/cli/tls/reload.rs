//! Replacing certificates while the server runs (SIGHUP).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::{Certificates, TlsPeer};
use crate::peer::Peer;
use crate::server::{Server, meanwhile, shared, until};

const SOON: Duration = Duration::from_secs(10);

/// Makes the server read its files again, and waits for the line in its log.
#[track_caller]
fn reload(server: &Server, says: &str) {
    let before = server.log().matches(says).count();
    server.signal(Signal::HUP);
    until(says, SOON, || server.log().matches(says).count() > before);
}

#[test]
fn new_certificates_are_used_for_new_connections_and_none_is_dropped() {
    let _others = shared();
    let certificates = Certificates::of("reload");
    let mut echo =
        Server::start(&format!("echo --raw {} --max-handshakes 4", certificates.server_args("server")));
    let (address, config) = (echo.address, certificates.client_config());
    let mut held: Vec<TlsPeer> =
        (0..10).map(|_| TlsPeer::connect(&config, address).expect("a connection")).collect();
    let (came, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let goes_on = |over: &std::sync::atomic::AtomicBool| {
        thread::scope(|scope| {
            scope.spawn(|| {
                // Sessions are resumed, as by most clients; these clients must get the new certificate too.
                while !over.load(Ordering::Relaxed) {
                    let mut peer = TlsPeer::connect(&config, address).expect("no client is refused");
                    assert!(peer.echoes(b"in and out"), "a connection was dropped");
                    came.fetch_add(1, Ordering::Relaxed);
                }
            });
            while !over.load(Ordering::Relaxed) {
                assert!(held.iter_mut().all(|peer| peer.echoes(b"still here")), "one was dropped");
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
    };
    let mut seen = Vec::new();
    meanwhile(goes_on, || {
        for n in 0..5 {
            let before = (came.load(Ordering::Relaxed), rounds.load(Ordering::Relaxed));
            until("some come and go", SOON, || {
                came.load(Ordering::Relaxed) > before.0 + 3 && rounds.load(Ordering::Relaxed) > before.1 + 3
            });
            certificates.issue("server", &format!("renewed-{n}"), &["localhost"]);
            reload(&echo, "certificates reloaded");
            let peer = TlsPeer::connect(&config, address).expect("a connection");
            assert!(peer.certificate() == certificates.certificate("server"), "round {n}: not the new one");
            seen.push(peer.certificate());
        }
    });
    drop(held);
    seen.dedup();
    assert_eq!(seen.len(), 5, "each is another one");
    println!("{came:?} short connections, {rounds:?} rounds on the others");
    let log = echo.end();
    assert!(!log.contains("ERROR") && !log.contains("handshake-timeout"), "{log}");
}

#[test]
fn invalid_files_leave_the_old_certificates_in_use_and_log_an_error() {
    let _others = shared();
    let certificates = Certificates::of("reload-broken");
    let words =
        format!("{} --tls-client-ca {}", certificates.server_args("server"), certificates.path("ca.pem"));
    let echo = Server::start(&format!("echo --raw --tls-client-optional {words}"));
    let (config, good) = (certificates.client_config(), certificates.certificate("server"));
    let (cert, key, ca) =
        (certificates.text("server.pem"), certificates.text("server.key"), certificates.text("ca.pem"));
    let breaks: [(&str, &dyn Fn()); 4] = [
        ("server.pem: there is none", &|| certificates.write("server.pem", "")),
        ("it does not belong to", &|| certificates.write("server.pem", certificates.text("other.pem"))),
        ("server.key: no such file", &|| certificates.remove("server.key")),
        ("ca.pem: there is none", &|| certificates.write("ca.pem", "gone")),
    ];
    for (why, breaks) in breaks {
        breaks();
        reload(&echo, "; keeping the previous certificates");
        let log = echo.log();
        let sent = log.lines().rfind(|line| line.contains("ERROR")).expect("an error");
        assert!(sent.contains(why), "{why}: {sent}");
        let mut peer = TlsPeer::connect(&config, echo.address).expect("a connection");
        assert!(peer.echoes(b"as before") && peer.certificate() == good, "{why}");
        certificates.write("server.pem", &cert);
        certificates.write("server.key", &key);
        certificates.write("ca.pem", &ca);
    }
    certificates.issue("server", "repaired", &["localhost"]);
    reload(&echo, "certificates reloaded");
    let peer = TlsPeer::connect(&config, echo.address).expect("a connection");
    assert!(peer.certificate() == certificates.certificate("server"));
}

#[test]
fn a_proxy_reads_its_certificates_again_too_also_behind_a_header() {
    let _others = shared();
    let certificates = Certificates::of("reload-proxy");
    let plain = Server::start("echo --raw");
    for words in ["", "--proxy-protocol-in 127.0.0.2"] {
        let shown = certificates.server_args("server");
        let proxy = Server::start(&format!("proxy --to {} {words} {shown}", plain.address));
        let config = certificates.client_config();
        let first = TlsPeer::connect(&config, proxy.address).expect("a connection");
        assert!(first.certificate() == certificates.certificate("server"));
        certificates.issue("server", "renewed", &["localhost"]);
        reload(&proxy, "certificates reloaded");
        let second = TlsPeer::connect(&config, proxy.address).expect("a connection");
        assert!(
            second.certificate() == certificates.certificate("server")
                && first.certificate() != second.certificate()
        );
    }
}

#[test]
fn a_proxy_reads_the_authority_and_the_certificate_for_upstreams_again() {
    let _others = shared();
    let certificates = Certificates::of("reload-upstream");
    let asks = format!("--tls-client-ca {}", certificates.path("ca.pem"));
    let upstream = Server::start(&format!("echo --raw {asks} {}", certificates.server_args("server")));
    let copy = |from: &str, to: &str| certificates.write(to, certificates.text(from));
    copy("stranger-ca.pem", "trusted.pem");
    copy("stranger.pem", "shown.pem");
    copy("stranger.key", "shown.key");
    let path = |file: &str| certificates.path(file);
    let trust = format!("--to-tls --to-tls-ca {}", path("trusted.pem"));
    let shown = format!("--to-tls-cert {} --to-tls-key {}", path("shown.pem"), path("shown.key"));
    let proxy = Server::start(&format!("proxy --to localhost:{} {trust} {shown}", upstream.address.port()));
    assert!(!Peer::connect(proxy.address).echoes("untrusted"));
    until("the upstream is not trusted", SOON, || proxy.log().contains("unknown issuer"));
    copy("ca.pem", "trusted.pem");
    reload(&proxy, "certificates for upstreams reloaded");
    assert!(!Peer::connect(proxy.address).echoes("not accepted"));
    until("the proxy is not trusted", SOON, || proxy.log().contains("the peer refused: unknown CA"));
    copy("client.pem", "shown.pem");
    copy("client.key", "shown.key");
    reload(&proxy, "certificates for upstreams reloaded");
    assert!(Peer::connect(proxy.address).echoes("accepted"), "{}", proxy.log());
}

#[test]
fn connections_of_every_shard_are_over_tls_and_get_new_certificates_after_a_reload() {
    let _others = shared();
    let certificates = Certificates::of("shards");
    let log = std::env::temp_dir().join(format!("tidemill-shards-access-{}", std::process::id()));
    let words = certificates.server_args("server");
    let mut echo = Server::start(&format!("echo --raw --shards 2 --access-log {} {words}", log.display()));
    let config = certificates.client_config();
    // Neighbours are on different shards.
    let connect = || -> Vec<TlsPeer> {
        (0..4).map(|_| TlsPeer::connect(&config, echo.address).expect("a connection")).collect()
    };
    let mut former = connect();
    certificates.issue("server", "renewed", &["localhost"]);
    reload(&echo, "certificates reloaded");
    let mut new = connect();
    assert!(new.iter().all(|peer| peer.certificate() == certificates.certificate("server")), "on each shard");
    assert!(former.iter_mut().chain(&mut new).all(|peer| peer.echoes(b"over TLS")));
    former.iter_mut().chain(&mut new).for_each(TlsPeer::finish);
    until("each shard writes to the access log", SOON, || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 8)
    });
    let _ = std::fs::remove_file(&log);
    echo.end();
}
