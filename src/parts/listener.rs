//! The door, and what it remembers.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::filter::Security;
use crate::base::id::ListenerId;
use crate::base::shared::Shared;
use crate::base::tick::Tick;
use crate::config::listen::{ListenOptions, Overflow};

/// One listener and what the loop remembers of it.
pub(crate) struct Door<L> {
    pub(crate) listener: L,
    pub(crate) id: ListenerId,
    pub(crate) host: u16,
    pub(crate) refuses: bool,
    pub(crate) dials: bool,
    pub(crate) secure: Option<Security>,
    pub(crate) busy_reply: Shared,
    pub(crate) address: Address,
    /// The local end of all who come, unless it listens on every address of the machine.
    pub(crate) local: Option<SocketAddr>,
    /// Someone may be waiting. Like a connection's readiness, only an empty backlog clears it.
    pub(crate) acceptable: bool,
    starved: Option<Starved>,
}

/// A listener without descriptors or memory: freeing some raises no event, so it looks again by itself.
#[derive(Clone, Copy)]
struct Starved {
    until: Tick,
    pause: Duration,
}

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

impl<L> Door<L> {
    pub(crate) fn new(
        listener: L,
        id: ListenerId,
        address: Address,
        host: u16,
        options: &ListenOptions,
    ) -> Door<L> {
        Door {
            listener,
            id,
            host,
            local: address.inet().filter(|inet| !inet.ip().is_unspecified()),
            address,
            refuses: options.overflow == Overflow::Refuse,
            dials: options.dials,
            secure: options.secure.clone(),
            // Words in the clear would be a broken handshake to a caller who expects TLS; an end is an end.
            busy_reply: match options.secure {
                Some(_) => Shared::from([].as_slice()),
                None => Shared::from(options.busy_reply.as_slice()),
            },
            acceptable: false,
            starved: None,
        }
    }

    /// How many slots one who comes needs.
    pub(crate) fn slots(&self) -> usize {
        1 + usize::from(self.dials)
    }

    /// Whether accepting now could bring anyone in.
    pub(crate) fn is_worth_a_try(&self, now: Tick) -> bool {
        self.acceptable && self.starved.is_none_or(|starved| starved.until <= now)
    }

    /// When a starved one looks again.
    pub(crate) fn looks_again(&self) -> Option<Tick> {
        self.starved.filter(|_| self.acceptable).map(|starved| starved.until)
    }

    /// Descriptors or memory have run out: ten milliseconds of pause, doubling to half a second. Says whether this
    /// is the beginning of it.
    pub(crate) fn starve(&mut self, now: Tick) -> bool {
        let pause = self.starved.map_or(PAUSE_MIN, |before| (before.pause * 2).min(PAUSE_MAX));
        let begins = self.starved.is_none();
        self.starved = Some(Starved { until: now.after(pause), pause });
        begins
    }

    /// One of our own descriptors was closed, or an accept succeeded.
    pub(crate) fn feed(&mut self) {
        self.starved = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_starved_door_looks_again_by_itself_and_less_and_less_often() {
        let mut door =
            Door::new((), ListenerId { index: 0, birth: 1 }, Address::Unnamed, 1, &ListenOptions::default());
        door.acceptable = true;
        let (mut now, mut pauses) = (Tick(0), Vec::new());
        for _ in 0..8 {
            door.starve(now);
            assert!(!door.is_worth_a_try(now));
            let again = door.looks_again().expect("a starved door has a time to look again");
            pauses.push(again.0 - now.0);
            now = again;
            assert!(door.is_worth_a_try(now));
        }
        assert_eq!(pauses, [2, 3, 5, 9, 17, 33, 51, 51]);
        door.starve(now);
        door.feed();
        assert!(door.is_worth_a_try(now), "an own close is a reason to look at once");
    }
}
