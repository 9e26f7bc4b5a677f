use std::os::fd::AsFd;
use std::time::Duration;

use calloop::generic::Generic;
use calloop::{EventLoop, Interest, Mode, PostAction};
use tidemill::Reactor;

/// What all sources of the host's loop share: calloop lends it to every callback.
pub struct Shared {
    pub reactor: Reactor,
    // … and what the rest of the program needs.
}

/// Runs a calloop loop in which a reactor is one source among others, until the reactor has shut down.
pub fn run(host: &mut EventLoop<'_, Shared>, shared: &mut Shared) -> calloop::Result<()> {
    shared.reactor.set_embedded(true)?;
    // A duplicate, because calloop owns what it watches.
    let source = Generic::new(shared.reactor.as_fd().try_clone_to_owned()?, Interest::READ, Mode::Level);
    let token = host.handle().insert_source(source, |_, _, shared| {
        shared.reactor.turn(Some(Duration::ZERO))?;
        Ok(PostAction::Continue)
    })?;
    while !(shared.reactor.is_shutting_down() && shared.reactor.sockets().is_empty()) {
        host.dispatch(None, shared)?;
    }
    host.handle().remove(token);
    Ok(())
}
