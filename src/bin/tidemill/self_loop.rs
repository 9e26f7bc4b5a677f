//! A proxy must not be its own upstream.

use std::io;
use std::net::{IpAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use tidemill::Address;

use crate::args::CommandError;

/// None of the upstreams may be this server itself. Of names that are looked up later, the error is in the cell when
/// the server has stopped.
pub fn check_upstreams(
    upstreams: &[Address],
    listening: &[Address],
    stop: impl FnOnce() + Send + 'static,
) -> Result<Arc<OnceLock<String>>, CommandError> {
    for to in upstreams {
        refuse_self(to, listening).map_err(CommandError::Run)?;
    }
    let found = check_names(upstreams, listening, stop);
    let found = found.map_err(|error| CommandError::Run(error.to_string()))?;
    match found.get() {
        Some(error) => Err(CommandError::Run(error.clone())),
        None => Ok(found),
    }
}

/// A proxy to itself would dial itself until the reactor is at capacity. Names are left to [`check_names`].
fn refuse_self(to: &Address, listening: &[Address]) -> Result<(), String> {
    match listening.iter().find(|own| is_same(to, own)) {
        None => Ok(()),
        Some(own) => Err(format!("cannot proxy to {to}: that is {own}, where this proxy itself listens")),
    }
}

/// Whether connecting to the one leads to the listener on the other.
fn is_same(to: &Address, own: &Address) -> bool {
    match (to, own) {
        (Address::Unix(to), Address::Unix(own)) => is_same_file(Path::new(to), Path::new(own)),
        _ => match (to.inet(), own.inet()) {
            (Some(to), Some(own)) => {
                to.port() == own.port() && reaches(to.ip().to_canonical(), own.ip().to_canonical())
            }
            (None, None) => to == own,
            _ => false,
        },
    }
}

/// Through symbolic links and `..`: both lead to the same socket file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    one == other || (id(one).is_some() && id(one) == id(other))
}

/// The unspecified address as a destination means this machine (Linux, BSD); as a listener's it means all addresses.
fn reaches(to: IpAddr, own: IpAddr) -> bool {
    let is_ours = |ip: IpAddr| ip.is_loopback() || TcpListener::bind((ip, 0)).is_ok();
    match (to.is_unspecified(), own.is_unspecified()) {
        (false, false) => to == own,
        (true, _) => own.is_unspecified() || own.is_loopback(),
        (false, true) => is_ours(to),
    }
}

/// A name that a hosts file or a cache has is resolved within this; one that takes longer must not delay the start.
const NAMES_WITHIN: Duration = Duration::from_millis(100);

/// Looks up the names of upstreams on a thread of its own, and stops the server if one turns out to be its own address.
/// The error is in the cell, at once or when the server has stopped.
fn check_names(
    upstreams: &[Address],
    listening: &[Address],
    stop: impl FnOnce() + Send + 'static,
) -> io::Result<Arc<OnceLock<String>>> {
    let found = Arc::new(OnceLock::new());
    let names: Vec<Address> =
        upstreams.iter().filter(|to| matches!(to, Address::Name { .. })).cloned().collect();
    if names.is_empty() {
        return Ok(found);
    }
    let (cell, listening) = (found.clone(), listening.to_vec());
    let (done, is_done) = mpsc::channel();
    thread::Builder::new().name("names".into()).spawn(move || {
        for name in &names {
            let is_own = |at| listening.iter().find(|own| is_same(&Address::Inet(at), own));
            let own = name.to_socket_addrs().ok().and_then(|mut all| all.find_map(is_own));
            if let Some(own) = own {
                let error = format!("cannot proxy to {name}: that is {own}, where this proxy itself listens");
                // The first one found is the one that is told.
                let _ = cell.set(error);
                stop();
                break;
            }
        }
        // The receiver may have stopped waiting.
        let _ = done.send(());
    })?;
    // What is not known by then is found out while the server runs.
    let _ = is_done.recv_timeout(NAMES_WITHIN);
    Ok(found)
}
