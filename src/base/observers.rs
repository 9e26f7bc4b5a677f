//! The observers of a loop, and what each of them is told.

use std::fmt;

use crate::base::observer::{Observer, Step};
use crate::base::part::OBSERVERS;

/// The observers of a loop, and what each of them wants.
pub(crate) struct Observers {
    all: Vec<Watching>,
    any_wants_messages: bool,
    /// The first turn of which one of them is told; without observers no turn is the one.
    next_turn: u64,
}

struct Watching {
    observer: Box<dyn Observer>,
    wants_messages: bool,
    /// The next turn of which it is told. 0: of this one, since it was told of something in it.
    next_turn: u64,
}

impl Default for Observers {
    fn default() -> Observers {
        Observers { all: Vec::new(), any_wants_messages: false, next_turn: u64::MAX }
    }
}

impl Observers {
    /// `turn`: the number of the last turn.
    pub(crate) fn add(&mut self, observer: Box<dyn Observer>, turn: u64) {
        OBSERVERS.begin();
        let (wants_messages, next_turn) = (observer.wants_messages(), observer.next_turn(turn));
        self.any_wants_messages |= wants_messages;
        self.next_turn = self.next_turn.min(next_turn);
        self.all.push(Watching { observer, wants_messages, next_turn });
    }

    #[inline(always)]
    pub(crate) fn want_messages(&self) -> bool {
        self.any_wants_messages && OBSERVERS.has_begun()
    }

    /// Whether one of them is to be told of this turn.
    #[inline(always)]
    pub(crate) fn want_turn(&self, turn: u64) -> bool {
        self.next_turn <= turn && OBSERVERS.has_begun()
    }

    /// Gives a step of a connection to all observers. Without one, it is not even made.
    #[inline(always)]
    pub(crate) fn tell<'a>(&mut self, step: impl FnOnce() -> Step<'a>) {
        if !self.all.is_empty() && OBSERVERS.has_begun() {
            self.tell_some(|_| true, step);
        }
    }

    /// Gives a step of a message to those that want it. What every message passes asks `want_messages` before: so it
    /// stores nothing for a step that is not told.
    #[inline(always)]
    pub(crate) fn tell_message<'a>(&mut self, step: impl FnOnce() -> Step<'a>) {
        if self.want_messages() {
            self.tell_some(|one| one.wants_messages, step);
        }
    }

    /// The step is made here, so that the common path has no code for that.
    #[cold]
    #[inline(never)]
    fn tell_some<'a>(&mut self, wants: impl Fn(&Watching) -> bool, step: impl FnOnce() -> Step<'a>) {
        let step = step();
        for one in self.all.iter_mut().filter(|one| wants(one)) {
            one.observer.observe(&step);
            one.next_turn = 0;
        }
        self.next_turn = 0;
    }

    /// Gives the first or the last step of a turn to those that want this turn.
    #[cold]
    #[inline(never)]
    pub(crate) fn tell_turn(&mut self, turn: u64, step: &Step<'_>) {
        let ends = matches!(step, Step::TurnEnd { .. });
        for one in self.all.iter_mut().filter(|one| one.next_turn <= turn) {
            one.observer.observe(step);
            if ends {
                one.next_turn = one.observer.next_turn(turn);
            }
        }
        self.next_turn = self.all.iter().map(|one| one.next_turn).min().unwrap_or(u64::MAX);
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observers({})", self.all.len())
    }
}
