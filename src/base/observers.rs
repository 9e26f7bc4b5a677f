//! The observers of a loop, and what each of them is told.

use std::fmt;

use crate::base::observer::{Observer, Step};

/// The observers of a loop, and which of them want the steps of messages.
#[derive(Default)]
pub(crate) struct Observers {
    all: Vec<(Box<dyn Observer>, bool)>,
    any_wants_messages: bool,
}

impl Observers {
    pub(crate) fn add(&mut self, observer: Box<dyn Observer>) {
        let wants_messages = observer.wants_messages();
        self.any_wants_messages |= wants_messages;
        self.all.push((observer, wants_messages));
    }

    #[inline(always)]
    pub(crate) fn want_messages(&self) -> bool {
        self.any_wants_messages
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Gives a step of a turn or of a connection to all observers. Without one, it is not even made.
    #[inline(always)]
    pub(crate) fn tell<'a>(&mut self, step: impl FnOnce() -> Step<'a>) {
        if !self.all.is_empty() {
            self.tell_all(step);
        }
    }

    /// The same for a step of a message, for those that want it.
    #[inline(always)]
    pub(crate) fn tell_message<'a>(&mut self, step: impl FnOnce() -> Step<'a>) {
        if self.any_wants_messages {
            self.tell_some(step);
        }
    }

    /// The step is made here, so that the common path has no code for that.
    #[cold]
    #[inline(never)]
    fn tell_all<'a>(&mut self, step: impl FnOnce() -> Step<'a>) {
        let step = step();
        self.all.iter_mut().for_each(|(observer, _)| observer.observe(&step));
    }

    #[cold]
    #[inline(never)]
    fn tell_some<'a>(&mut self, step: impl FnOnce() -> Step<'a>) {
        let step = step();
        let some = self.all.iter_mut().filter(|(_, wants_messages)| *wants_messages);
        some.for_each(|(observer, _)| observer.observe(&step));
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observers({})", self.all.len())
    }
}
