//! What `--version` tells: for a report of a fault, and to know which fixes of TLS are in the binary.

use std::sync::LazyLock;

/// The versions of all crates, as they were built.
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// The version, the features, the TLS library and the kernel.
pub fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(compose);
    &LONG
}

fn compose() -> String {
    let system = rustix::system::uname();
    let (name, release) = (system.sysname().to_string_lossy(), system.release().to_string_lossy());
    let facts = [
        env!("CARGO_PKG_VERSION").to_string(),
        "features: cli tls".to_string(),
        format!("tls: rustls {} with ring", locked("rustls")),
        format!("poll: mio {} (epoll or kqueue)", locked("mio")),
        format!("system: {name} {release} {}", std::env::consts::ARCH),
    ];
    facts.join("\n")
}

fn locked(name: &str) -> &'static str {
    let entry = LOCK.split(&format!("name = \"{name}\"\nversion = \"")).nth(1);
    entry.and_then(|entry| entry.split('"').next()).unwrap_or("unknown")
}
