//! nginx behind the proxy, and curl in front of it.

use std::process::Command;

use super::{Folder, free_port, start};
use crate::interop::has;
use crate::server::{Process, Server, complete, shared};

/// nginx with these servers, in the foreground, in one process.
pub fn nginx(folder: &Folder, servers: &str, port: u16) -> Process {
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {};\n", folder.path(kind)))
        .collect();
    let config = format!(
        "daemon off; master_process off; pid {pid}; error_log {log};\nevents {{ worker_connections 1000; }}\n\
         http {{ access_log off; {paths} {servers} }}\n",
        pid = folder.path("pid"),
        log = folder.path("error.log"),
    );
    let config = folder.write("nginx.conf", &config);
    let mut command = Command::new("nginx");
    command.args(["-p", &folder.path(""), "-e", &folder.path("error.log"), "-c", &config]);
    start(command, port)
}

/// What curl prints; it must succeed.
#[track_caller]
fn curl(words: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20"]).args(words);
    let outcome = complete(command, b"");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    String::from_utf8(outcome.stdout).expect("text")
}

#[test]
fn nginx_takes_the_client_from_a_proxy_protocol_header_of_either_version() {
    let _others = shared();
    if !has("nginx") || !has("curl") {
        return;
    }
    let (folder, port) = (Folder::new("nginx-header"), free_port());
    let server = format!(
        "server {{ listen 127.0.0.1:{port} proxy_protocol; location / {{ \
         return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port\"; }} }}"
    );
    let _nginx = nginx(&folder, &server, port);
    for version in ["v1", "v2"] {
        let proxy = Server::start(&format!("proxy --proxy-protocol-out {version} --to 127.0.0.1:{port}"));
        let (url, own) = (format!("http://{}/", proxy.address), proxy.address.port());
        let seen = curl(&["--write-out", "\n%{local_port}", &url]);
        let (body, local) = seen.split_once('\n').expect("two lines");
        assert_eq!(body, format!("127.0.0.1 {local} {own}"), "{version}");
    }
}

/// The proxy reads the name that curl asks for, and nginx completes the handshake: HTTP/2 is agreed on by ALPN.
#[test]
fn curl_speaks_http_2_with_nginx_through_a_route_by_server_name() {
    let _others = shared();
    if !has("nginx") || !has("curl") {
        return;
    }
    let (folder, port) = (Folder::new("nginx-h2"), free_port());
    folder.certificate();
    std::fs::write(folder.path("bulk"), vec![b'x'; 1 << 20]).expect("a file");
    let (certificate, key) = (folder.path("site.pem"), folder.path("site.key"));
    let server = format!(
        "server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key}; \
         location / {{ return 200 \"$server_protocol $ssl_server_name\"; }} \
         location /bulk {{ root {root}; }} }}",
        root = folder.path(""),
    );
    let _nginx = nginx(&folder, &server, port);
    let proxy = Server::start(&format!("proxy --route sni=*.example:127.0.0.1:{port}"));
    let own = proxy.address.port();
    let (resolve, site) = (format!("site.example:{own}:127.0.0.1"), format!("https://site.example:{own}"));
    let common = ["--http2", "--cacert", &certificate, "--resolve", &resolve];
    let page = curl(&[&common[..], &[&format!("{site}/")]].concat());
    assert_eq!(page, "HTTP/2.0 site.example", "{}", proxy.log());
    // Ten streams of 1 MiB on one connection.
    let bulk = format!("{site}/bulk?[1-10]");
    let sizes = curl(
        &[
            &common[..],
            &[
                "--parallel",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_version} %{size_download}\n",
                &bulk,
            ],
        ]
        .concat(),
    );
    assert_eq!(sizes, "2 1048576\n".repeat(10));
}
