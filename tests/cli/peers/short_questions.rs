//! Clients that end their side right after a short question: each answer arrives whole.

use std::io::{ErrorKind, Read};
use std::process::Command;

use super::nginx::nginx;
use super::{Folder, at, free_port, start};
use crate::interop::has;
use crate::peer::Peer;
use crate::server::{Server, exclusive};

const CALLERS: usize = 500;
const AT_ONCE: usize = 50;

/// 500 clients of a proxy with these options send the question and FIN, and read to the end. The end may be a reset: to
/// a client that half-closes over TLS, nginx sends FIN without close_notify, and the proxy passes that on.
#[track_caller]
fn all_are_answered(options: &str, question: &str, is_whole: impl Fn(&[u8]) -> bool) {
    let proxy = Server::start(&format!("proxy --max-per-ip 0 {options}"));
    for _ in 0..CALLERS / AT_ONCE {
        let mut clients: Vec<Peer> = (0..AT_ONCE).map(|_| Peer::connect(proxy.address)).collect();
        for client in &mut clients {
            client.send(question);
            client.finish();
        }
        for client in &mut clients {
            let mut received = Vec::new();
            let end = client.0.read_to_end(&mut received).map_err(|error| error.kind());
            assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
            assert!(is_whole(&received), "{options}: {:?}", String::from_utf8_lossy(&received));
        }
    }
}

#[test]
fn nginx_answers_500_clients_that_half_close_over_tls_and_in_cleartext() {
    let _quiet = exclusive();
    if !has("nginx") {
        return;
    }
    let (folder, plain, tls) = (Folder::new("nginx-short"), free_port(), free_port());
    folder.certificate();
    let (certificate, key) = (folder.path("site.pem"), folder.path("site.key"));
    let server = format!(
        "server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; ssl_certificate {certificate}; \
         ssl_certificate_key {key}; location / {{ return 200 \"a short answer\\n\"; }} }}"
    );
    let _nginx = nginx(&folder, &server, tls);
    let question = "GET / HTTP/1.0\r\n\r\n";
    let mut direct = Peer::connect(at(plain));
    direct.send(question);
    let page = direct.receive_all();
    // Its date differs, not its length.
    let is_whole = |answer: &[u8]| {
        answer.len() == page.len()
            && answer.starts_with(&page[..15])
            && answer.ends_with(b"\n\r\na short answer\n")
    };
    assert!(is_whole(&page) && page.len() > 120, "{}", String::from_utf8_lossy(&page));
    all_are_answered(&format!("--to 127.0.0.1:{plain}"), question, is_whole);
    let tls = format!("--to localhost:{tls} --to-tls --to-tls-ca {certificate}");
    all_are_answered(&tls, question, is_whole);
}

#[test]
fn redis_answers_500_clients_that_half_close_over_tls_and_in_cleartext() {
    let _quiet = exclusive();
    if !has("redis-server") {
        return;
    }
    let (folder, plain, tls) = (Folder::new("redis-short"), free_port(), free_port());
    folder.certificate();
    let (certificate, key) = (folder.path("site.pem"), folder.path("site.key"));
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", &folder.path("")]);
    command.args(["--port", &plain.to_string(), "--tls-port", &tls.to_string(), "--tls-auth-clients", "no"]);
    command.args([
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
    ]);
    let _redis = start(command, tls);
    let is_whole = |answer: &[u8]| answer == b"+PONG\r\n+OK\r\n";
    let question = "PING\r\nQUIT\r\n";
    all_are_answered(&format!("--to 127.0.0.1:{plain}"), question, is_whole);
    let tls = format!("--to localhost:{tls} --to-tls --to-tls-ca {certificate}");
    all_are_answered(&tls, question, is_whole);
}
