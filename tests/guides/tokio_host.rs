use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tidemill::Reactor;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Runs a reactor on a tokio runtime until it has shut down. A `Reactor` is not `Send`, and so is this future:
/// `block_on` takes it, and `LocalSet::spawn_local`; `tokio::spawn` does not.
pub async fn run(mut reactor: Reactor) -> io::Result<()> {
    reactor.set_embedded(true)?;
    // A duplicate, which `AsyncFd` owns: the reactor itself stays free to be turned. tokio deprecates the safe
    // function, because a type may lie about its descriptor; an `OwnedFd` does not.
    #[allow(deprecated)]
    let descriptor = AsyncFd::with_interest(reactor.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    while !(reactor.is_shutting_down() && reactor.sockets().is_empty()) {
        let mut ready = descriptor.readable().await?;
        // tokio watches edges, so the reactor is turned until no event is left, as a socket is read until
        // `WouldBlock`.
        if reactor.turn(Some(Duration::ZERO))?.events == 0 {
            ready.clear_ready();
        }
    }
    Ok(())
}
