//! The queue of inbound TLS handshakes: a limited number in progress, the newest started first.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::id::ConnId;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;

/// The inbound connections whose handshakes wait or are in progress.
///
/// ```text
///     waiting       │ oldest ......... newest │ ─ started next     readable, but not read yet
///     in_progress   │ oldest ......... newest │                    have a TLS session
/// ```
///
/// A handshake costs the processor a hundred times what a message does, so only some are in progress at a time. The
/// newest of those waiting is started first: under overload, clients that have waited long have often given up, and
/// serving them first would spend the time on closed connections (valkey #4308). A connection that has sent no byte is
/// in neither list.
///
/// When a connection ends, its id stays in `waiting`: see [`retain_waiting`](HandshakeQueue::retain_waiting).
#[derive(Debug, Default)]
pub(crate) struct HandshakeQueue {
    waiting: Vec<ConnId>,
    in_progress: VecDeque<(ConnId, Tick)>,
}

/// When all places are taken and others wait, a handshake that has been in progress for this long is evicted. That is
/// time for three round trips around the world.
const STALL_LIMIT: Duration = Duration::from_secs(1);
/// The same while more wait than there are places: time for one round trip. In a flood of clients that start a
/// handshake and stall, the places that become free by eviction are all that other clients get.
const STALL_LIMIT_UNDER_LOAD: Duration = Duration::from_millis(200);

impl HandshakeQueue {
    pub(crate) fn push(&mut self, id: ConnId) {
        self.waiting.push(id);
    }

    /// Takes the newest of those waiting.
    pub(crate) fn pop_newest(&mut self) -> Option<ConnId> {
        self.waiting.pop()
    }

    pub(crate) fn start(&mut self, id: ConnId, now: Tick) {
        self.in_progress.push_back((id, now));
    }

    /// Frees the place of a handshake: it is complete, or its connection has ended.
    pub(crate) fn remove(&mut self, id: ConnId) {
        self.in_progress.retain(|&(other, _)| other != id);
    }

    /// Removes ended connections from those waiting. Necessary because the queue is served newest first, so old entries
    /// may never reach its end.
    pub(crate) fn retain_waiting(&mut self, alive: impl Fn(ConnId) -> bool) {
        self.waiting.retain(|&id| alive(id));
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one more handshake may start now: one waits, and a place is free or can be made free.
    pub(crate) fn may_start(&self, max: usize, now: Tick) -> bool {
        !self.waiting.is_empty()
            && (self.in_progress.len() < max
                || self.slowest(max, now).is_some()
                || seeded(SeededBug::HandshakesUnbounded))
    }

    /// The handshake to evict before another one is started; `None` while a place is free.
    pub(crate) fn to_evict(&self, max: usize, now: Tick) -> Option<ConnId> {
        if self.in_progress.len() < max { None } else { self.slowest(max, now) }
    }

    fn slowest(&self, max: usize, now: Tick) -> Option<ConnId> {
        let &(id, since) = self.in_progress.front()?;
        (since.after(self.stall_limit(max)) <= now).then_some(id)
    }

    fn stall_limit(&self, max: usize) -> Duration {
        if self.waiting.len() > max { STALL_LIMIT_UNDER_LOAD } else { STALL_LIMIT }
    }

    /// When the oldest handshake in progress can be evicted; `None` if none waits.
    pub(crate) fn next_check(&self, max: usize) -> Option<Tick> {
        let &(_, since) = self.in_progress.front().filter(|_| !self.waiting.is_empty())?;
        Some(since.after(self.stall_limit(max)))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn id(slot: u32) -> ConnId {
        ConnId { slot, generation: NonZeroU32::MIN }
    }

    #[test]
    fn the_newest_starts_first_and_no_more_than_the_limit_are_in_progress() {
        let mut line = HandshakeQueue::default();
        (0..5).for_each(|slot| line.push(id(slot)));
        let now = Tick(100);
        let mut begun = Vec::new();
        while line.may_start(3, now) {
            let next = line.pop_newest().unwrap();
            line.start(next, now);
            begun.push(next.slot);
        }
        assert_eq!((begun, line.waiting_count()), (vec![4, 3, 2], 2));
        line.remove(id(3));
        assert!(line.may_start(3, now) && line.to_evict(3, now).is_none());
        line.start(id(9), now);
        assert!(!line.may_start(3, now), "one place was free");
    }

    #[test]
    fn the_oldest_is_evicted_after_a_second_and_not_before() {
        let mut line = HandshakeQueue::default();
        line.start(id(0), Tick(0));
        line.start(id(1), Tick(50));
        assert_eq!(line.next_check(2), None, "no handshake waits");
        line.push(id(2));
        let when = line.next_check(2).unwrap();
        assert!(!line.may_start(2, Tick(when.0 - 1)));
        assert!(line.may_start(2, when));
        assert_eq!(line.to_evict(2, when), Some(id(0)));
        assert_eq!(line.to_evict(3, when), None, "a place is free");
    }

    #[test]
    fn under_load_the_oldest_is_evicted_sooner() {
        let mut line = HandshakeQueue::default();
        line.start(id(0), Tick(0));
        line.start(id(1), Tick(0));
        (2..5).for_each(|slot| line.push(id(slot)));
        let when = line.next_check(2).unwrap();
        assert!(when < Tick(0).after(STALL_LIMIT) && line.may_start(2, when));
        line.pop_newest();
        assert!(!line.may_start(2, when), "two wait for two places");
    }

    #[test]
    fn closed_connections_do_not_accumulate_in_the_queue() {
        let mut line = HandshakeQueue::default();
        (0..100).for_each(|slot| line.push(id(slot)));
        line.retain_waiting(|id| id.slot % 10 == 0);
        assert_eq!(line.waiting_count(), 10);
    }
}
