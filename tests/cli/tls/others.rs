//! Interoperability with Python, curl and testssl.sh.

use std::process::Command;
use std::time::Duration;

use super::{Certificates, logs};
use crate::interop::{has, node_server};
use crate::server::{Server, complete, complete_within, shared};

/// Runs a Python program that connects to this port; returns what it prints.
#[track_caller]
fn python(certificates: &Certificates, port: u16, script: &str) -> String {
    let prelude = "
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[2])
raw = socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=30)
tls = context.wrap_socket(raw, server_hostname='localhost', suppress_ragged_eofs=False)
";
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{prelude}{script}"), &port.to_string(), &certificates.path("ca.pem")]);
    let outcome = complete(command, b"");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    outcome.text()
}

const ECHOES: &str = "
tls.sendall(b'hello')
print(tls.recv(5).decode())
";

#[test]
fn python_unwraps_and_receives_close_notify() {
    let _others = shared();
    if !has("python3") {
        return;
    }
    let certificates = Certificates::of("python");
    let mut echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    // `unwrap` raises an error without close_notify, and returns the bare connection with it.
    let unwraps = "
rest = tls.unwrap()
print(rest.recv(1))
";
    let output = python(&certificates, echo.address.port(), &format!("{ECHOES}{unwraps}"));
    assert_eq!(output, "hello\nb''\n");
    let log = echo.end();
    assert!(log.contains(" finished=1") && !log.contains("truncated"), "{log}");
}

#[test]
fn python_receives_close_notify_also_when_the_server_ends_first() {
    let _others = shared();
    if !has("python3") {
        return;
    }
    let certificates = Certificates::of("python-quit");
    let echo = Server::start(&format!("echo {}", certificates.server_args("server")));
    // FIN without close_notify raises an error here.
    let quits = "
tls.sendall(b'quit\\n')
heard = b''
while more := tls.recv(100):
    heard += more
print(heard.decode(), end='')
";
    assert_eq!(
        python(&certificates, echo.address.port(), quits),
        "echo server ready (type quit to exit)\n",
        "{}",
        echo.log()
    );
}

#[test]
fn fin_without_close_notify_is_reported_as_truncated() {
    let _others = shared();
    if !has("python3") {
        return;
    }
    let certificates = Certificates::of("truncated");
    let mut echo = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let plain = Server::start("echo --raw");
    let proxy =
        Server::start(&format!("proxy --to {} {}", plain.address, certificates.server_args("server")));
    for to in [echo.address, proxy.address] {
        assert_eq!(python(&certificates, to.port(), &format!("{ECHOES}\ntls.close()")), "hello\n");
    }
    logs(&proxy, "client=truncated upstream=");
    let log = echo.end();
    assert!(log.contains(" truncated=1"), "{log}");
}

const HTTP: &str = r"
const page = (request) => `${request.method} ${request.url} ` + 'x'.repeat(200000);
const server = require('http').createServer((request, answer) => answer.end(page(request)));
server.listen(0, '127.0.0.1', () => told(String(server.address().port)));
";

#[test]
fn curl_gets_a_page_over_https_from_a_server_that_has_only_http() {
    let _others = shared();
    if !has("curl") || !has("node") {
        return;
    }
    let certificates = Certificates::of("curl");
    let (_http, address) = node_server(HTTP);
    let words = format!("proxy --to {address} --tls-alpn http/1.1 {}", certificates.server_args("server"));
    let proxy = Server::start(&words);
    let curl = |words: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "30"]);
        command.args(words.split_whitespace());
        complete(command, b"")
    };
    let (trust, port) = (format!("--cacert {}", certificates.path("ca.pem")), proxy.address.port());
    for version in ["--tls-max 1.2", "--tlsv1.3"] {
        for host in ["127.0.0.1", "localhost"] {
            let output = curl(&format!("{version} {trust} https://{host}:{port}/page"));
            assert_eq!(output.code, Some(0), "{version} {host}: {}", output.stderr);
            assert_eq!(output.text(), format!("GET /page {}", "x".repeat(200_000)));
        }
    }
    // Two pages over one connection.
    let two = format!("{trust} https://127.0.0.1:{port}/1 https://127.0.0.1:{port}/2");
    let output = curl(&format!("--verbose {two}"));
    assert_eq!(output.stdout.len(), 2 * (200_000 + "GET /1 ".len()), "{}", output.stderr);
    assert!(output.stderr.contains("Re-using existing connection"), "{}", output.stderr);
    assert!(output.stderr.contains("ALPN: server accepted http/1.1"), "{}", output.stderr);
    // curl does verify the certificate.
    let output =
        curl(&format!("--cacert {} https://127.0.0.1:{port}/", certificates.path("stranger-ca.pem")));
    assert_eq!(output.code, Some(60), "{}", output.stderr);
}

/// Checks versions, cipher categories, forward secrecy, and all known attacks. Not the certificate, which is that of
/// the test, and no simulated clients, which take long.
#[test]
fn testssl_finds_no_insecure_version_cipher_or_vulnerability() {
    let _others = shared();
    if !has("testssl") || !has("node") {
        return;
    }
    let certificates = Certificates::of("testssl");
    let (_http, address) = node_server(HTTP);
    // testssl.sh opens connections as fast as it can, and leaves some of them open.
    let words =
        format!("proxy --to {address} --max-per-ip 0 --drain 0 {}", certificates.server_args("server"));
    let mut proxy = Server::start(&words);
    let mut command = Command::new("testssl");
    command.args(["--quiet", "--color", "0", "--warnings", "off", "--ip", "one", "--openssl-timeout", "10"]);
    command.args(["-p", "-s", "-f", "-U", &format!("https://localhost:{}/", proxy.address.port())]);
    let outcome = complete_within(Duration::from_secs(300), command, b"");
    let text = outcome.text();
    for line in text.lines() {
        assert!(!line.contains("NOT ok") && !line.contains("VULNERABLE"), "{line}\n{text}");
    }
    for (what, found) in [
        (" SSLv3 ", "not offered (OK)"),
        (" TLS 1.1 ", "not offered"),
        (" TLS 1.2 ", "offered (OK)"),
        (" TLS 1.3 ", "offered (OK): final"),
        (" NULL ciphers", "not offered (OK)"),
        (" Heartbleed", "not vulnerable (OK)"),
        (" Ticketbleed", "not vulnerable (OK)"),
        (" Secure Client-Initiated Renegotiation", "not vulnerable (OK)"),
        (" LUCKY13", "not vulnerable (OK)"),
    ] {
        let line = text.lines().find(|line| line.starts_with(what));
        let line = line.unwrap_or_else(|| panic!("nothing of {what} in {text}{}", outcome.stderr));
        assert!(line[what.len()..].contains(found), "{line}");
    }
    let log = proxy.end();
    assert!(!log.contains("ERROR") && !log.contains("bug"), "{log}");
}
