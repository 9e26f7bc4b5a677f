//! A listener, and its state between accepts.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::filter::FilterConfig;
use crate::base::id::ListenerId;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::shared::Shared;
use crate::base::tick::Tick;
use crate::config::listen::{ListenOptions, Overflow};

/// One listener, with its options and its state.
pub(crate) struct Listener<L> {
    pub(crate) socket: L,
    pub(crate) id: ListenerId,
    pub(crate) service: u16,
    pub(crate) refuses_excess: bool,
    pub(crate) reserve_slot: bool,
    pub(crate) filter: Option<FilterConfig>,
    pub(crate) busy_reply: Shared,
    pub(crate) address: Address,
    /// The local address of all accepted connections; `None` if it listens on the unspecified address, where each
    /// connection has to be asked.
    pub(crate) local: Option<SocketAddr>,
    /// Whether the backlog may hold a connection. Like the readiness of a connection, it is cleared only when the
    /// kernel says that there is none.
    pub(crate) acceptable: bool,
    paused: Option<AcceptPause>,
}

/// A pause after accept(2) failed for lack of descriptors or memory. It ends by time, because freeing some raises no
/// event.
#[derive(Clone, Copy)]
struct AcceptPause {
    until: Tick,
    pause: Duration,
}

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

impl<L> Listener<L> {
    pub(crate) fn new(
        socket: L,
        id: ListenerId,
        address: Address,
        service: u16,
        options: &ListenOptions,
    ) -> Listener<L> {
        Listener {
            socket,
            id,
            service,
            local: address.inet().filter(|inet| !inet.ip().is_unspecified()),
            address,
            refuses_excess: options.overflow == Overflow::Refuse,
            reserve_slot: options.reserve_slot,
            filter: options.filter.clone(),
            // A client that expects TLS would take a cleartext reply for a broken handshake; it only gets FIN.
            busy_reply: match options.filter {
                Some(_) => Shared::from([].as_slice()),
                None => Shared::from(options.busy_reply.as_slice()),
            },
            acceptable: false,
            paused: None,
        }
    }

    /// How many slots an accepted connection takes: two, if it reserves one to dial.
    pub(crate) fn slots(&self) -> usize {
        1 + usize::from(self.reserve_slot && !seeded(SeededBug::PairTakesOneSlot))
    }

    /// Whether an accept now could return a connection.
    pub(crate) fn may_accept(&self, now: Tick) -> bool {
        self.acceptable && self.paused.is_none_or(|it| it.until <= now || seeded(SeededBug::EmfileSpins))
    }

    /// When a paused listener tries again.
    pub(crate) fn retry_at(&self) -> Option<Tick> {
        self.paused
            .filter(|_| self.acceptable && !seeded(SeededBug::PausedListenerSleeps))
            .map(|paused| paused.until)
    }

    /// Pauses for lack of descriptors or memory: for 10 ms, doubled each time up to 500 ms.
    pub(crate) fn pause_accepts(&mut self, now: Tick) {
        let pause = self.paused.map_or(PAUSE_MIN, |before| (before.pause * 2).min(PAUSE_MAX));
        self.paused = Some(AcceptPause { until: now.after(pause), pause });
    }

    /// Ends the pause: a connection was closed, which frees a descriptor, or an accept succeeded.
    pub(crate) fn resume_accepts(&mut self) {
        self.paused = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::ReactorId;

    fn listener(options: &ListenOptions) -> Listener<()> {
        let id = ListenerId { reactor: ReactorId::next(), index: 0, generation: 1 };
        Listener::new((), id, Address::Unnamed, 1, options)
    }

    #[test]
    fn a_connection_takes_a_second_slot_only_if_one_is_reserved() {
        let slots =
            |reserve_slot| listener(&ListenOptions { reserve_slot, ..ListenOptions::default() }).slots();
        assert_eq!((slots(false), slots(true)), (1, 2));
    }

    #[test]
    fn a_listener_without_a_backlog_has_nothing_to_retry() {
        let mut listener = listener(&ListenOptions::default());
        listener.pause_accepts(Tick(0));
        assert_eq!(listener.retry_at(), None, "no event has said that a connection waits");
    }

    #[test]
    fn a_paused_listener_retries_by_itself_with_backoff() {
        let mut listener = listener(&ListenOptions::default());
        listener.acceptable = true;
        let (mut now, mut pauses) = (Tick(0), Vec::new());
        for _ in 0..8 {
            listener.pause_accepts(now);
            assert!(!listener.may_accept(now));
            let again = listener.retry_at().expect("a paused listener has a time to retry");
            pauses.push(again.0 - now.0);
            now = again;
            assert!(listener.may_accept(now));
        }
        assert_eq!(pauses, [2, 3, 5, 9, 17, 33, 51, 51]);
        listener.pause_accepts(now);
        listener.resume_accepts();
        assert!(listener.may_accept(now), "a closed connection ends the pause");
    }
}
