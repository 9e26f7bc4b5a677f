//! HAProxy in front of the proxy and behind it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use super::{Folder, SOON, at, free_port, start};
use crate::interop::has;
use crate::peer::{Peer, listener};
use crate::server::{Process, Server, shared};

const DEFAULTS: &str = "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  \
                        timeout server 20s\n";

fn haproxy(folder: &Folder, sections: &str, port: u16) -> Process {
    let config = folder.write("haproxy.cfg", &format!("{DEFAULTS}{sections}"));
    let mut command = Command::new("haproxy");
    // In the foreground, without messages.
    command.args(["-db", "-q", "-f", &config]);
    start(command, port)
}

/// The connection that carries a client's bytes. Those that only test whether the port is open are left out.
fn upstream(listener: &TcpListener) -> (TcpStream, String) {
    loop {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("an option");
        let (mut line, mut byte) = (Vec::new(), [0]);
        while !line.ends_with(b"\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
            line.push(byte[0]);
        }
        let line = String::from_utf8(line).expect("a header of version 1");
        let mut question = [0; 8];
        if stream.read_exact(&mut question).is_ok() && &question == b"question" {
            return (stream, line);
        }
    }
}

/// A question and its answer, through a port of HAProxy or of the proxy. Returns the header that the upstream got, and
/// the port that the client had.
fn asked_through(port: u16, listener: &TcpListener) -> (String, u16) {
    let mut client = Peer::connect(at(port));
    let own = client.0.local_addr().expect("an address").port();
    client.send("question");
    let (mut stream, line) = upstream(listener);
    stream.write_all(b"answer").expect("it reads");
    drop(stream);
    assert_eq!(client.receive_all(), b"answer");
    (line, own)
}

#[test]
fn haproxy_in_front_names_the_client_in_version_1_and_2_with_extensions_and_before_tls() {
    let _others = shared();
    if !has("haproxy") {
        return;
    }
    let folder = Folder::new("haproxy-front");
    folder.certificate();
    let (listener, address) = listener();
    let words = format!("proxy --to {address} --proxy-protocol-in 127.0.0.1 --proxy-protocol-out v1");
    let plain = Server::start(&words);
    let tls = format!("--tls-cert {} --tls-key {}", folder.path("site.pem"), folder.path("site.key"));
    let encrypted = Server::start(&format!("{words} {tls}"));
    let extensions = "proxy-v2-options crc32c,unique-id,authority,ssl,cert-cn,ssl-cipher";
    let unique = "unique-id-format %ci:%cp";
    let ports = [(); 4].map(|()| free_port());
    let servers = [
        (plain.address, "send-proxy".to_string()),
        (plain.address, "send-proxy-v2".to_string()),
        (plain.address, format!("send-proxy-v2 {extensions}")),
        (encrypted.address, format!("send-proxy-v2-ssl-cn {extensions} ssl verify none sni str(localhost)")),
    ];
    let sections: String = (0..4)
        .map(|n| {
            let (to, how) = &servers[n];
            let port = ports[n];
            format!("listen l{n}\n  bind 127.0.0.1:{port}\n  {unique}\n  server s {to} {how}\n")
        })
        .collect();
    let _haproxy = haproxy(&folder, &sections, ports[3]);
    for port in ports {
        let (header, own) = asked_through(port, &listener);
        assert_eq!(header, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}\r\n"), "{}", plain.log());
    }
}

#[test]
fn haproxy_behind_takes_the_client_from_headers_of_both_versions_and_before_tls() {
    let _others = shared();
    if !has("haproxy") {
        return;
    }
    let folder = Folder::new("haproxy-back");
    folder.certificate();
    let (listener, address) = listener();
    let (plain, tls) = (free_port(), free_port());
    // It tells the client that it was told about, in a header of its own.
    let both = folder.path("both.pem");
    let _haproxy = haproxy(
        &folder,
        &format!(
            "listen back\n  bind 127.0.0.1:{plain} accept-proxy\n  bind 127.0.0.1:{tls} accept-proxy ssl crt {both}\n  \
             server s {address} send-proxy\n"
        ),
        tls,
    );
    for options in [
        format!("--proxy-protocol-out v1 --to 127.0.0.1:{plain}"),
        format!("--proxy-protocol-out v2 --to 127.0.0.1:{plain}"),
        format!(
            "--proxy-protocol-out v2 --to localhost:{tls} --to-tls --to-tls-ca {}",
            folder.path("site.pem")
        ),
    ] {
        let proxy = Server::start(&format!("proxy {options}"));
        let port = proxy.address.port();
        let (header, own) = asked_through(port, &listener);
        assert_eq!(
            header,
            format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}\r\n"),
            "{options}: {}",
            proxy.log()
        );
    }
}
