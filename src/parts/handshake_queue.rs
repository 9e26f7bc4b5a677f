//! Who may begin a handshake: few at once, and the newest first.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::id::ConnId;
use crate::base::tick::Tick;

/// The callers whose handshakes wait or are under way.
///
/// ```text
///     waiting   │ eldest ......... newest │ ─ begins next      have said something; nothing of it was read
///     under_way │ eldest ......... newest │                    cost what a handshake costs
/// ```
///
/// A handshake costs the processor a hundred times what a message does. More callers than can be served wait, and under
/// such a load those who have waited long have often given up: serving them first would spend the processor on nobody
/// (valkey #4308). Who never says a word is in neither list.
///
/// Ids stay in the lists when their connections end otherwise; `alive` tells.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    waiting: Vec<ConnId>,
    under_way: VecDeque<(ConnId, Tick)>,
}

/// Whoever has been at it for so long makes room for others, when all places are taken: three round trips around the
/// world.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same while more wait than there are places: one round trip. In a flood of callers who begin and stall, the
/// places that become free in a second are all that others get.
const PATIENCE_IN_A_FLOOD: Duration = Duration::from_millis(200);

impl Handshakes {
    pub(crate) fn wait(&mut self, id: ConnId) {
        self.waiting.push(id);
    }

    /// The newest of those who wait.
    pub(crate) fn next(&mut self) -> Option<ConnId> {
        self.waiting.pop()
    }

    pub(crate) fn begun(&mut self, id: ConnId, now: Tick) {
        self.under_way.push_back((id, now));
    }

    /// One is done, or its connection has gone.
    pub(crate) fn over(&mut self, id: ConnId) {
        self.under_way.retain(|&(other, _)| other != id);
    }

    /// Of those who wait, forgets who has gone: those who never came to the front would stay for ever.
    pub(crate) fn sift(&mut self, alive: impl Fn(ConnId) -> bool) {
        self.waiting.retain(|&id| alive(id));
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one more may begin now.
    pub(crate) fn may_begin(&self, most: usize, now: Tick) -> bool {
        !self.waiting.is_empty() && (self.under_way.len() < most.max(1) || self.slowest(most, now).is_some())
    }

    /// Who has to make room, when there is none.
    pub(crate) fn makes_room(&self, most: usize, now: Tick) -> Option<ConnId> {
        if self.under_way.len() < most.max(1) { None } else { self.slowest(most, now) }
    }

    fn slowest(&self, most: usize, now: Tick) -> Option<ConnId> {
        let &(id, since) = self.under_way.front()?;
        (since.after(self.patience(most)) <= now).then_some(id)
    }

    fn patience(&self, most: usize) -> Duration {
        if self.waiting.len() > most { PATIENCE_IN_A_FLOOD } else { PATIENCE }
    }

    /// When the eldest will have to make room for those who wait.
    pub(crate) fn looks_again(&self, most: usize) -> Option<Tick> {
        let &(_, since) = self.under_way.front().filter(|_| !self.waiting.is_empty())?;
        Some(since.after(self.patience(most)))
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
    fn the_newest_begins_first_and_no_more_than_the_limit_are_under_way() {
        let mut line = Handshakes::default();
        (0..5).for_each(|slot| line.wait(id(slot)));
        let now = Tick(100);
        let mut begun = Vec::new();
        while line.may_begin(3, now) {
            let next = line.next().unwrap();
            line.begun(next, now);
            begun.push(next.slot);
        }
        assert_eq!((begun, line.waiting()), (vec![4, 3, 2], 2));
        line.over(id(3));
        assert!(line.may_begin(3, now) && line.makes_room(3, now).is_none());
    }

    #[test]
    fn the_eldest_makes_room_after_a_second_and_not_before() {
        let mut line = Handshakes::default();
        line.begun(id(0), Tick(0));
        line.begun(id(1), Tick(50));
        assert_eq!(line.looks_again(2), None, "nobody waits");
        line.wait(id(2));
        let when = line.looks_again(2).unwrap();
        assert!(!line.may_begin(2, Tick(when.0 - 1)));
        assert!(line.may_begin(2, when));
        assert_eq!(line.makes_room(2, when), Some(id(0)));
        assert_eq!(line.makes_room(3, when), None, "there is room anyway");
    }

    #[test]
    fn in_a_flood_the_eldest_makes_room_sooner() {
        let mut line = Handshakes::default();
        line.begun(id(0), Tick(0));
        line.begun(id(1), Tick(0));
        (2..5).for_each(|slot| line.wait(id(slot)));
        let when = line.looks_again(2).unwrap();
        assert!(when < Tick(0).after(PATIENCE) && line.may_begin(2, when));
        line.next();
        assert!(!line.may_begin(2, when), "two wait for two places");
    }

    #[test]
    fn those_who_have_gone_do_not_pile_up() {
        let mut line = Handshakes::default();
        (0..100).for_each(|slot| line.wait(id(slot)));
        line.sift(|id| id.slot % 10 == 0);
        assert_eq!(line.waiting(), 10);
    }
}
