//! Runs a service on the simulated kernel, for tests of services.

use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::event_loop::EventLoop;
use crate::service::Service;
use crate::sys::sim::{PeerId, Script, Sim, address};

pub(super) struct TestServer {
    pub(super) event_loop: EventLoop<Sim>,
    pub(super) script: Script,
}

impl TestServer {
    pub(super) fn new(service: impl Service, limits: SocketLimits) -> TestServer {
        let (sim, script) = Sim::new();
        let reactor_limits = Limits { accepts_per_turn: 2_000, ..Limits::default() };
        let mut event_loop = EventLoop::new(sim, reactor_limits).expect("a simulated loop");
        let service = event_loop.add(service, Some(limits));
        event_loop
            .listen(&address().into(), service, &ListenOptions::default())
            .expect("a simulated listener");
        TestServer { event_loop, script }
    }

    pub(super) fn turn_until_quiet(&mut self) {
        self.event_loop.turn_until_quiet(&self.script);
    }

    pub(super) fn send(&mut self, peer: PeerId, bytes: impl AsRef<[u8]>) {
        self.script.feed(peer, bytes.as_ref());
        self.turn_until_quiet();
    }

    /// What the peer has received since the last call, which must be UTF-8.
    pub(super) fn received(&self, peer: PeerId) -> String {
        String::from_utf8(self.script.received(peer)).expect("text")
    }
}
