//! The proxy between other programs: HAProxy, nginx, PostgreSQL, Redis, curl, socat, ncat, rsync, scp, WebSocket, gRPC.
//!
//! Each test starts its own instances on free ports of the loopback, with a configuration in a temporary folder. If a
//! program is missing, its tests print that and pass, unless `TIDEMILL_INTEROP=required` is set.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::peer::free_address;
use crate::server::{Process, until};

mod haproxy;
mod nginx;
mod postgres;
mod python;
mod short_questions;
mod tools;

const SOON: Duration = Duration::from_secs(20);

/// A folder that is removed on drop.
pub struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tidemill-peers-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).expect("a file");
        self.path(name)
    }

    /// A certificate for localhost and site.example with its key, which clients trust as it is: `site.pem`, `site.key`,
    /// and both in `both.pem`.
    fn certificate(&self) {
        let names = ["localhost", "127.0.0.1", "site.example"].map(str::to_string).to_vec();
        let params = rcgen::CertificateParams::new(names).expect("names");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let key = key.serialize_pem();
        self.write("site.pem", &certificate);
        self.write("site.key", &key);
        self.write("both.pem", &format!("{certificate}{key}"));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Files that cannot be removed are left in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn free_port() -> u16 {
    free_address().port()
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Starts a program that stays in the foreground, and waits until it listens on this port.
#[track_caller]
fn start(mut command: Command, port: u16) -> Process {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut process = Process(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it"));
    until(&format!("{program} listens"), SOON, || {
        let ended = process.0.try_wait().expect("a child of ours");
        assert!(ended.is_none(), "{program} ended at once: {ended:?}");
        TcpStream::connect(at(port)).is_ok()
    });
    process
}

/// The first that exists of the places where a program may be, outside of PATH too.
fn program(name: &str, folders: &[&str]) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let all = folders.iter().copied().chain(path.split(':'));
    all.map(|folder| Path::new(folder).join(name)).find(|program| program.is_file())
}
