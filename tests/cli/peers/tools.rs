//! socat, ncat, rsync, and scp.

use std::process::Command;

use super::{Folder, free_port, start};
use crate::interop::has;
use crate::peer::{Random, seed};
use crate::server::{Server, complete, shared};

#[test]
fn socat_and_ncat_get_their_bytes_back_over_tcp_tls_and_a_unix_socket() {
    let _others = shared();
    if !has("socat") || !has("ncat") {
        return;
    }
    let folder = Folder::new("tools");
    folder.certificate();
    let echo = Server::start("echo --raw");
    let socket = folder.path("front.sock");
    let plain =
        Server::start(&format!("proxy --listen 127.0.0.1:0 --listen unix:{socket} --to {}", echo.address));
    let tls = format!("--tls-cert {} --tls-key {}", folder.path("site.pem"), folder.path("site.key"));
    let encrypted = Server::start(&format!("proxy --to {} {tls}", echo.address));
    let (port, secure) = (plain.address.port().to_string(), encrypted.address.port().to_string());
    let sent = Random(seed()).bytes(1 << 20);
    let (unix, plain) = (format!("UNIX-CONNECT:{socket}"), format!("TCP:127.0.0.1:{port}"));
    let trusted = format!("OPENSSL:localhost:{secure},cafile={}", folder.path("site.pem"));
    for words in [
        // It waits this long for the rest after the end of stdin.
        &["socat", "-t20", "-", &plain][..],
        &["socat", "-t20", "-", &unix],
        &["socat", "-t20", "-", &trusted],
        &["ncat", "127.0.0.1", &port],
        &["ncat", "-U", &socket],
    ] {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let outcome = complete(command, &sent);
        assert_eq!((outcome.code, outcome.stdout == sent), (Some(0), true), "{words:?}: {}", outcome.stderr);
    }
    // Over TLS, ncat ends its side without close_notify, so here the server ends first.
    let talks = Server::start("echo");
    let encrypted = Server::start(&format!("proxy --to {} {tls}", talks.address));
    let mut command = Command::new("ncat");
    command.args(["--ssl", "--no-shutdown", "127.0.0.1", &encrypted.address.port().to_string()]);
    let outcome = complete(command, b"hello\nquit\n");
    assert!(outcome.stdout.ends_with(b"hello\n"), "{}", String::from_utf8_lossy(&outcome.stdout));
}

#[test]
fn rsync_copies_a_tree_to_a_daemon_and_back_through_the_proxy() {
    let _others = shared();
    if !has("rsync") {
        return;
    }
    let (folder, port) = (Folder::new("rsync"), free_port());
    let mut numbers = Random(seed());
    for name in ["from/a", "from/deep/b", "kept/x", "back/x"] {
        let path = folder.0.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("it");
        if name.starts_with("from") {
            std::fs::write(path, numbers.bytes(2 << 20)).expect("a file");
        }
    }
    let config = folder.write(
        "rsyncd.conf",
        &format!("use chroot = no\n[kept]\npath = {}\nread only = no\nuid = root\n", folder.path("kept")),
    );
    let config = match rustix::process::getuid().is_root() {
        true => config,
        false => folder
            .write("rsyncd.conf", &std::fs::read_to_string(config).expect("it").replace("uid = root\n", "")),
    };
    let mut command = Command::new("rsync");
    command.args(["--daemon", "--no-detach", "--address=127.0.0.1", "--log-file=/dev/null"]);
    command.args([&format!("--port={port}"), &format!("--config={config}")]);
    let _daemon = start(command, port);
    let proxy = Server::start(&format!("proxy --to 127.0.0.1:{port}"));
    let module = format!("rsync://{}/kept/", proxy.address);
    for (from, to) in [(folder.path("from/"), module.clone()), (module, folder.path("back/"))] {
        let mut command = Command::new("rsync");
        command.args(["-r", "--delete", &from, &to]);
        let outcome = complete(command, b"");
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
    for name in ["a", "deep/b"] {
        let read = |side: &str| std::fs::read(folder.0.join(side).join(name)).expect("a copy");
        assert!(read("from") == read("back"), "{name}");
    }
}

#[test]
fn scp_copies_a_file_to_an_ssh_server_and_back_through_the_proxy() {
    let _others = shared();
    if !["scp", "ssh-keygen", "/usr/sbin/sshd"].into_iter().all(has) {
        return;
    }
    let (folder, port) = (Folder::new("scp"), free_port());
    let sent = Random(seed()).bytes(8 << 20);
    std::fs::write(folder.0.join("sent"), &sent).expect("a file");
    for key in ["host", "user"] {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f", &folder.path(key)]);
        assert_eq!(complete(command, b"").code, Some(0));
    }
    // sshd refuses to run as root without this folder, which the package makes when its service starts.
    if rustix::process::getuid().is_root() {
        std::fs::create_dir_all("/run/sshd").expect("the folder of sshd");
    }
    let config = folder.write(
        "sshd_config",
        &format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             PermitRootLogin yes\nStrictModes no\nSubsystem sftp internal-sftp\n",
            folder.path("host"),
            folder.path("user.pub")
        ),
    );
    let mut command = Command::new("/usr/sbin/sshd");
    command.args(["-D", "-f", &config]).stderr(std::process::Stdio::null());
    let _server = start(command, port);
    let proxy = Server::start(&format!("proxy --to 127.0.0.1:{port}"));
    let there = |name| format!("scp://127.0.0.1:{}/{}", proxy.address.port(), folder.path(name));
    for (from, to) in [(folder.path("sent"), there("kept")), (there("kept"), folder.path("back"))] {
        let mut command = Command::new("scp");
        command.args(["-q", "-B", "-F", "/dev/null", "-i", &folder.path("user")]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", &from, &to]);
        let outcome = complete(command, b"");
        assert_eq!(outcome.code, Some(0), "{from} to {to}: {}", outcome.stderr);
    }
    assert!(std::fs::read(folder.0.join("back")).expect("a copy") == sent);
}
