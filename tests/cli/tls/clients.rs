//! The connect command against TLS servers of other programs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

use super::Certificates;
use super::node::TLS;
use crate::interop::{has, node_server_with};
use crate::server::{Outcome, Process, Server, TIDEMILL, complete, run, shared};

/// `openssl s_server` with these arguments, which sends each line back reversed, and its address.
fn s_server(words: &str) -> (Process, SocketAddr) {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-rev"]).args(words.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = Process(command.spawn().expect("openssl"));
    let mut stdout = BufReader::new(process.0.stdout.take().expect("its stdout"));
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert!(stdout.read_line(&mut line).expect("text") > 0, "it listens nowhere");
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.trim().parse().expect("an address");
        }
    };
    // Its further output is not needed, but has to be read.
    thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    (process, address)
}

/// The connect command with these arguments, to this port of localhost.
fn connect(to: SocketAddr, words: &str) -> Outcome {
    let to = format!("localhost:{}", to.port());
    let mut all = vec!["connect", "--tls", &to];
    all.extend(words.split_whitespace());
    run(&all, b"hello\n")
}

/// Asserts that the connect command fails with this message, in one line.
#[track_caller]
fn fails(to: SocketAddr, words: &str, why: &str) {
    let outcome = connect(to, words);
    assert_eq!((outcome.code, outcome.stdout.len()), (Some(1), 0), "{words}: {}", outcome.stderr);
    assert!(outcome.stderr.contains(why), "{words}: {}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{words}: {}", outcome.stderr);
    assert!(outcome.stderr.starts_with("tidemill: "), "{words}: {}", outcome.stderr);
}

#[test]
fn the_connect_command_reports_version_cipher_and_certificates_with_verbose() {
    let _others = shared();
    let certificates = Certificates::of("verbose");
    let server = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let outcome = connect(server.address, "--verbose --insecure");
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"hello\n"[..], Some(0)), "{}", outcome.stderr);
    let line = outcome.stderr.lines().find(|line| line.contains("TLSv1.3"));
    let line = line.unwrap_or_else(|| panic!("{}", outcome.stderr));
    assert!(
        line.starts_with("tidemill: TLSv1.3, TLS_AES_") && line.ends_with(", no ALPN, 1 certificate"),
        "{line}"
    );
}

#[test]
fn the_connect_command_works_with_openssl_in_either_version() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("s-server");
    let shown = format!("-cert {} -key {}", certificates.path("server.pem"), certificates.path("server.key"));
    for version in ["-tls1_2", "-tls1_3"] {
        let (_server, address) = s_server(&format!("{version} {shown}"));
        let outcome = connect(address, &format!("--tls-ca {}", certificates.path("ca.pem")));
        assert_eq!((outcome.text().as_str(), outcome.code), ("olleh\n", Some(0)), "{}", outcome.stderr);
        assert_eq!(outcome.stderr, "", "{version}");
    }
}

#[test]
fn the_connect_command_moves_megabytes_to_and_from_a_node_server_in_either_version() {
    let _others = shared();
    if !has("node") {
        return;
    }
    let certificates = Certificates::of("node-server");
    let server = r"
    const options = { cert: paper('server.pem'), key: paper('server.key'), allowHalfOpen: true, maxVersion: version,
        ALPNProtocols: ['tide'] };
    listen(tls.createServer(options, (socket) => {
        socket.write(`${socket.getProtocol()} ${socket.alpnProtocol} ${socket.servername}\n`);
        socket.pipe(socket);
    }));
    ";
    let sent = crate::peer::Random(7).bytes(4 << 20);
    for version in ["TLSv1.2", "TLSv1.3"] {
        let words = ["0", &certificates.path(""), version];
        let (_server, address) = node_server_with(&format!("{TLS}{server}"), &words);
        let (to, ca) = (format!("localhost:{}", address.port()), certificates.path("ca.pem"));
        let outcome = run(&["connect", "--tls", "--tls-ca", &ca, "--tls-alpn", "tide", &to], &sent);
        assert_eq!((outcome.stderr.as_str(), outcome.code), ("", Some(0)));
        let greeting = format!("{version} tide localhost\n");
        assert_eq!(String::from_utf8_lossy(&outcome.stdout[..greeting.len()]), greeting);
        assert!(outcome.stdout[greeting.len()..] == sent, "{} bytes", outcome.stdout.len());
    }
}

#[test]
fn the_connect_command_prints_why_it_does_not_trust_a_server() {
    let _others = shared();
    let certificates = Certificates::of("distrust");
    let (ca, strangers) = (certificates.path("ca.pem"), certificates.path("stranger-ca.pem"));
    let server = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let other = Server::start(&format!("echo --raw {}", certificates.server_args("other")));
    let expired = Server::start(&format!("echo --raw {}", certificates.server_args("expired")));
    let trusts = format!("--tls-ca {ca}");
    fails(
        server.address,
        &format!("--tls-ca {strangers}"),
        "the peer's certificate is not trusted: unknown issuer",
    );
    fails(expired.address, &trusts, "the peer's certificate is not trusted: expired ");
    let wrong = "is not trusted: not valid for localhost (it is for other.example, *.wild.example)";
    fails(other.address, &trusts, wrong);
    fails(
        server.address,
        &format!("{trusts} --tls-name other.example"),
        "not valid for other.example (it is for ",
    );
    for name in ["other.example", "any.wild.example"] {
        let outcome = connect(other.address, &format!("{trusts} --tls-name {name}"));
        assert_eq!((outcome.text().as_str(), outcome.code), ("hello\n", Some(0)), "{}", outcome.stderr);
    }
    // A certificate can be for an IP address too.
    let outcome = run(&["connect", "--tls", "--tls-ca", &ca, &server.address.to_string()], b"hello\n");
    assert_eq!((outcome.text().as_str(), outcome.code), ("hello\n", Some(0)), "{}", outcome.stderr);
    let outcome = run(&["connect", "--tls", "--tls-ca", &ca, &other.address.to_string()], b"hello\n");
    assert!(outcome.stderr.contains("not valid for 127.0.0.1"), "{}", outcome.stderr);
    // With --insecure it accepts any certificate, and prints a warning.
    let outcome = connect(expired.address, "--insecure");
    assert_eq!((outcome.text().as_str(), outcome.code), ("hello\n", Some(0)), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("WARN") && outcome.stderr.contains("can read and change everything"));
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

#[test]
fn the_connect_command_trusts_the_system_roots() {
    let _others = shared();
    let certificates = Certificates::of("system");
    let server = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let to = format!("localhost:{}", server.address.port());
    for (file, code) in [("ca.pem", 0), ("stranger-ca.pem", 1)] {
        let mut command = Command::new(TIDEMILL);
        command.args(["connect", "--tls", &to]);
        command.env("SSL_CERT_FILE", certificates.path(file)).env_remove("SSL_CERT_DIR");
        let outcome = complete(command, b"hello\n");
        assert_eq!(outcome.code, Some(code), "{file}: {}", outcome.stderr);
    }
}

#[test]
fn the_connect_command_sends_its_certificate_to_a_server_that_requests_one() {
    let _others = shared();
    if !has("openssl") {
        return;
    }
    let certificates = Certificates::of("shows");
    let ca = certificates.path("ca.pem");
    let shown = format!("-cert {} -key {}", certificates.path("server.pem"), certificates.path("server.key"));
    for version in ["-tls1_2", "-tls1_3"] {
        let asks = format!("{version} {shown} -CAfile {ca} -Verify 1 -verify_return_error");
        let (_server, address) = s_server(&asks);
        let outcome = connect(address, &format!("--tls-ca {ca} {}", certificates.server_args("client")));
        assert_eq!((outcome.text().as_str(), outcome.code), ("olleh\n", Some(0)), "{}", outcome.stderr);
        let refused = if version == "-tls1_3" { "certificate required" } else { "handshake failure" };
        fails(address, &format!("--tls-ca {ca}"), &format!("the peer refused: {refused}"));
        let stranger = format!("--tls-ca {ca} {}", certificates.server_args("stranger"));
        fails(address, &stranger, "the peer refused: unknown CA");
    }
}

#[test]
fn the_connect_command_prints_that_a_server_does_not_speak_tls() {
    let _others = shared();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let answers: &[&[u8]] = &[b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ready\r\n", b""];
    let serves = thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.read_exact(&mut [0; 100]).expect("a hello");
            stream.write_all(answer).expect("an answer");
            // All bytes are read, so that closing sends FIN and no reset.
            stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    fails(address, "", "the peer does not speak TLS (it sent \"HTTP/1.1\")");
    fails(address, "", "the peer does not speak TLS (it sent \"220 mail\")");
    fails(address, "", "the peer left during the handshake");
    serves.join().expect("it answers");
    let plain = Server::start("echo");
    fails(plain.address, "", "the peer does not speak TLS (it sent \"echo ser\")");
}

#[test]
fn cleartext_to_a_server_that_speaks_tls_is_an_error_that_names_the_option() {
    let _others = shared();
    let certificates = Certificates::of("cleartext");
    let server = Server::start(&format!("echo --raw {}", certificates.server_args("server")));
    let outcome = run(&["connect", &server.address.to_string()], b"hello\n");
    let sentence = "answers with an alert of TLS: it does not understand cleartext; use --tls";
    assert_eq!(outcome.stderr, format!("tidemill: {} {sentence}\n", server.address));
    assert_eq!((outcome.stdout.len(), outcome.code), (7, Some(1)), "the alert itself is not hidden");
}
