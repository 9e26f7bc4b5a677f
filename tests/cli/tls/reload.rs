//! New certificates, while everything goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::{Caller, Papers};
use crate::server::{Server, among_others, meanwhile, until};

const SOON: Duration = Duration::from_secs(10);

/// Has the server read its files again, and waits until it says so.
#[track_caller]
fn reload(server: &Server, says: &str) {
    let before = server.log().matches(says).count();
    server.signal(Signal::HUP);
    until(says, SOON, || server.log().matches(says).count() > before);
}

#[test]
fn new_certificates_are_shown_to_whoever_comes_next_and_nobody_is_dropped() {
    let _others = among_others();
    let papers = Papers::of("reload");
    let mut echo = Server::start(&format!("echo --raw {} --max-handshakes 4", papers.shows("server")));
    let (address, config) = (echo.address, papers.trusting());
    let mut held: Vec<Caller> =
        (0..10).map(|_| Caller::connect(&config, address).expect("a connection")).collect();
    let (came, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let goes_on = |over: &std::sync::atomic::AtomicBool| {
        thread::scope(|scope| {
            scope.spawn(|| {
                // Sessions are resumed, as most clients do it: also these must see what is new.
                while !over.load(Ordering::Relaxed) {
                    let mut caller = Caller::connect(&config, address).expect("nobody is turned away");
                    assert!(caller.echoes(b"in and out"), "somebody was dropped");
                    came.fetch_add(1, Ordering::Relaxed);
                }
            });
            while !over.load(Ordering::Relaxed) {
                assert!(held.iter_mut().all(|caller| caller.echoes(b"still here")), "one was dropped");
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
            papers.issue("server", &format!("renewed-{n}"), &["localhost"]);
            reload(&echo, "the certificates were read again");
            let caller = Caller::connect(&config, address).expect("a connection");
            assert!(caller.certificate() == papers.certificate("server"), "round {n}: not the new one");
            seen.push(caller.certificate());
        }
    });
    drop(held);
    seen.dedup();
    assert_eq!(seen.len(), 5, "each is another one");
    println!("{came:?} came and went, {rounds:?} rounds of those who stayed");
    let log = echo.end();
    assert!(!log.contains("ERROR") && !log.contains("handshake-timeout"), "{log}");
}

#[test]
fn files_that_are_broken_leave_the_old_certificates_in_use_and_an_error_in_the_log() {
    let _others = among_others();
    let papers = Papers::of("reload-broken");
    let words = format!("{} --tls-client-ca {}", papers.shows("server"), papers.path("ca.pem"));
    let echo = Server::start(&format!("echo --raw --tls-client-optional {words}"));
    let (config, good) = (papers.trusting(), papers.certificate("server"));
    let (cert, key, ca) = (papers.text("server.pem"), papers.text("server.key"), papers.text("ca.pem"));
    let breaks: [(&str, &dyn Fn()); 4] = [
        ("server.pem: there is none", &|| papers.write("server.pem", "")),
        ("it does not belong to", &|| papers.write("server.pem", papers.text("other.pem"))),
        ("server.key: no such file", &|| papers.remove("server.key")),
        ("ca.pem: there is none", &|| papers.write("ca.pem", "gone")),
    ];
    for (why, breaks) in breaks {
        breaks();
        reload(&echo, "; the certificates of before are still shown");
        let log = echo.log();
        let said = log.lines().rfind(|line| line.contains("ERROR")).expect("an error");
        assert!(said.contains(why), "{why}: {said}");
        let mut caller = Caller::connect(&config, echo.address).expect("a connection");
        assert!(caller.echoes(b"as before") && caller.certificate() == good, "{why}");
        papers.write("server.pem", &cert);
        papers.write("server.key", &key);
        papers.write("ca.pem", &ca);
    }
    papers.issue("server", "repaired", &["localhost"]);
    reload(&echo, "the certificates were read again");
    let caller = Caller::connect(&config, echo.address).expect("a connection");
    assert!(caller.certificate() == papers.certificate("server"));
}

#[test]
fn a_proxy_reads_its_certificates_again_too_also_behind_a_header() {
    let _others = among_others();
    let papers = Papers::of("reload-proxy");
    let plain = Server::start("echo --raw");
    for words in ["", "--proxy-protocol-in 127.0.0.2"] {
        let shown = papers.shows("server");
        let proxy = Server::start(&format!("proxy --to {} {words} {shown}", plain.address));
        let config = papers.trusting();
        let first = Caller::connect(&config, proxy.address).expect("a connection");
        assert!(first.certificate() == papers.certificate("server"));
        papers.issue("server", "renewed", &["localhost"]);
        reload(&proxy, "the certificates were read again");
        let second = Caller::connect(&config, proxy.address).expect("a connection");
        assert!(
            second.certificate() == papers.certificate("server")
                && first.certificate() != second.certificate()
        );
    }
}
