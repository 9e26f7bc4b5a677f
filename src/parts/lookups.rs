//! Which connections wait for which name.

use crate::base::id::ConnId;

/// The names that are being looked up. Connections that need the same name share one lookup. A list and not a map:
/// there are at most [`Limits::lookups`](crate::Limits::lookups), and a lookup takes longer than a search of them.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    pending: Vec<Lookup>,
    last: u64,
}

#[derive(Debug)]
struct Lookup {
    number: u64,
    host: Box<str>,
    port: u16,
    waiters: Vec<ConnId>,
}

/// The result of a request for a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LookupRequest {
    /// The name is to be looked up, under this number.
    New(u64),
    /// The name is being looked up already, under this number.
    Joined(u64),
    /// Too many names are being looked up.
    Full,
}

impl Lookups {
    pub(crate) fn request(&mut self, host: &str, port: u16, waiter: ConnId, max: usize) -> LookupRequest {
        let same = |lookup: &&mut Lookup| *lookup.host == *host && lookup.port == port;
        if let Some(lookup) = self.pending.iter_mut().find(same) {
            lookup.waiters.push(waiter);
            return LookupRequest::Joined(lookup.number);
        }
        if self.pending.len() >= max {
            return LookupRequest::Full;
        }
        self.last += 1;
        self.pending.push(Lookup { number: self.last, host: host.into(), port, waiters: vec![waiter] });
        LookupRequest::New(self.last)
    }

    /// The lookup has ended: returns the connections that wait for it. There are none if the lookup was dropped.
    pub(crate) fn complete(&mut self, number: u64) -> Vec<ConnId> {
        let place = self.pending.iter().position(|lookup| lookup.number == number);
        place.map_or(Vec::new(), |place| self.pending.swap_remove(place).waiters)
    }

    /// A connection waits no longer; says whether it was the last one.
    pub(crate) fn cancel_waiter(&mut self, number: u64, waiter: ConnId) -> bool {
        let Some(lookup) = self.pending.iter_mut().find(|lookup| lookup.number == number) else {
            return false;
        };
        lookup.waiters.retain(|&waiting| waiting != waiter);
        lookup.waiters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn waiter(slot: u32) -> ConnId {
        ConnId { slot, generation: NonZeroU32::MIN }
    }

    #[test]
    fn equal_names_are_looked_up_once_and_the_names_are_bounded() {
        let mut lookups = Lookups::default();
        assert_eq!(lookups.request("a", 1, waiter(0), 2), LookupRequest::New(1));
        assert_eq!(lookups.request("a", 1, waiter(1), 2), LookupRequest::Joined(1));
        assert_eq!(lookups.request("a", 2, waiter(2), 2), LookupRequest::New(2));
        assert_eq!(lookups.request("b", 1, waiter(3), 2), LookupRequest::Full);
        assert_eq!(
            lookups.request("a", 1, waiter(3), 2),
            LookupRequest::Joined(1),
            "joining a lookup does not count"
        );
        assert!(!lookups.cancel_waiter(1, waiter(0)));
        assert_eq!(lookups.complete(1), [waiter(1), waiter(3)]);
        assert_eq!(lookups.complete(1), [], "a second answer has no waiter");
        assert_eq!(lookups.request("b", 1, waiter(4), 2), LookupRequest::New(3));
    }

    #[test]
    fn cancelling_the_last_waiter_is_reported() {
        let mut lookups = Lookups::default();
        lookups.request("a", 1, waiter(0), 9);
        lookups.request("a", 1, waiter(1), 9);
        assert!(
            !lookups.cancel_waiter(1, waiter(0))
                && lookups.cancel_waiter(1, waiter(1))
                && !lookups.cancel_waiter(2, waiter(1))
        );
        assert_eq!((lookups.complete(1), lookups.pending.len()), (vec![], 0));
    }
}
