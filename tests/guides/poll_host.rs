use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tidemill::Reactor;

/// Watches a reactor and a descriptor of the host with poll(2) until the reactor has shut down. `own` is called when
/// the host's descriptor is readable.
pub fn run(reactor: &mut Reactor, host: &OwnedFd, mut own: impl FnMut(&mut Reactor)) -> io::Result<()> {
    reactor.set_embedded(true)?;
    while !(reactor.is_shutting_down() && reactor.sockets().is_empty()) {
        let mut descriptors = [PollFd::new(&*reactor, PollFlags::IN), PollFd::new(host, PollFlags::IN)];
        poll(&mut descriptors, None)?; // No timeout: the descriptor tells of deadlines, too.
        let [turns, reads] = descriptors.map(|descriptor| descriptor.revents().contains(PollFlags::IN));
        if turns {
            reactor.turn(Some(Duration::ZERO))?;
        }
        if reads {
            own(reactor); // May use the reactor: that makes its descriptor readable.
        }
    }
    Ok(())
}
