//! A service on a simulated kernel, for the tests of services.

use crate::config::limits::{Limits, SocketLimits};
use crate::config::listen::ListenOptions;
use crate::event_loop::Loop;
use crate::service::Service;
use crate::sys::sim::{Peer, Script, Sim, address};

pub(super) struct Trial {
    pub(super) turns: Loop<Sim>,
    pub(super) script: Script,
}

impl Trial {
    pub(super) fn of(service: impl Service, limits: SocketLimits) -> Trial {
        let (sim, script) = Sim::new();
        let house = Limits { accepts: 2_000, ..Limits::default() };
        let mut turns = Loop::new(sim, house).expect("a simulated loop");
        let service = turns.add(service, Some(limits));
        turns.listen(&address().into(), service, &ListenOptions::default()).expect("a simulated listener");
        Trial { turns, script }
    }

    pub(super) fn settle(&mut self) {
        self.turns.turn_until_quiet(&self.script);
    }

    pub(super) fn say(&mut self, peer: Peer, bytes: impl AsRef<[u8]>) {
        self.script.feed(peer, bytes.as_ref());
        self.settle();
    }

    /// What the peer has been sent since it last listened. Text: no test here sends anything else.
    pub(super) fn heard(&self, peer: Peer) -> String {
        String::from_utf8(self.script.heard(peer)).expect("text")
    }
}
