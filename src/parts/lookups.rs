//! Who waits for which name.

use std::collections::HashMap;

use crate::base::id::ConnId;

/// The names that are being looked up. Those who ask for the same one wait for one lookup.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    by_name: HashMap<(Box<str>, u16), u64>,
    by_number: HashMap<u64, Lookup>,
    last: u64,
}

#[derive(Debug)]
struct Lookup {
    name: (Box<str>, u16),
    waiting: Vec<ConnId>,
}

/// What asking for a name came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// It is to be looked up, under this number.
    New(u64),
    /// Somebody has asked for it already.
    Joined(u64),
    /// Too many are waiting.
    Full,
}

impl Lookups {
    pub(crate) fn ask(&mut self, host: &str, port: u16, who: ConnId, most: usize) -> Asked {
        let name = (Box::from(host), port);
        if let Some(&number) = self.by_name.get(&name) {
            if let Some(lookup) = self.by_number.get_mut(&number) {
                lookup.waiting.push(who);
            }
            return Asked::Joined(number);
        }
        if self.by_number.len() >= most {
            return Asked::Full;
        }
        self.last += 1;
        self.by_name.insert(name.clone(), self.last);
        self.by_number.insert(self.last, Lookup { name, waiting: vec![who] });
        Asked::New(self.last)
    }

    /// It has been answered: who waits for it. Nobody does when the lookup was dropped.
    pub(crate) fn answered(&mut self, number: u64) -> Vec<ConnId> {
        let Some(lookup) = self.by_number.remove(&number) else { return Vec::new() };
        self.by_name.remove(&lookup.name);
        lookup.waiting
    }

    /// One waits no longer; says whether nobody does now.
    pub(crate) fn leave(&mut self, number: u64, who: ConnId) -> bool {
        let Some(lookup) = self.by_number.get_mut(&number) else { return false };
        lookup.waiting.retain(|&waiting| waiting != who);
        lookup.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn who(slot: u32) -> ConnId {
        ConnId { slot, generation: NonZeroU32::MIN }
    }

    #[test]
    fn equal_names_are_looked_up_once_and_the_names_are_bounded() {
        let mut lookups = Lookups::default();
        assert_eq!(lookups.ask("a", 1, who(0), 2), Asked::New(1));
        assert_eq!(lookups.ask("a", 1, who(1), 2), Asked::Joined(1));
        assert_eq!(lookups.ask("a", 2, who(2), 2), Asked::New(2));
        assert_eq!(lookups.ask("b", 1, who(3), 2), Asked::Full);
        assert_eq!(lookups.ask("a", 1, who(3), 2), Asked::Joined(1), "joining takes no room");
        assert!(!lookups.leave(1, who(0)));
        assert_eq!(lookups.answered(1), [who(1), who(3)]);
        assert_eq!(lookups.answered(1), [], "a second answer is nobody's");
        assert_eq!(lookups.ask("b", 1, who(4), 2), Asked::New(3));
    }

    #[test]
    fn the_last_to_leave_is_known() {
        let mut lookups = Lookups::default();
        lookups.ask("a", 1, who(0), 9);
        lookups.ask("a", 1, who(1), 9);
        assert!(!lookups.leave(1, who(0)) && lookups.leave(1, who(1)) && !lookups.leave(2, who(1)));
        assert_eq!((lookups.answered(1), lookups.by_name.len(), lookups.by_number.len()), (vec![], 0, 0));
    }
}
