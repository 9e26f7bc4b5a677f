//! Timers that belong to no connection.

use std::num::NonZeroU32;
use std::time::Duration;

use slab::Slab;

use crate::base::address::Address;
use crate::base::id::{ConnId, GenerationCounter};
use crate::base::tick::Tick;
use crate::config::dial::DialOptions;
use crate::parts::wheel::Wheel;

/// The id of a timer: see [`Sockets::set_timer`](crate::Sockets::set_timer). It may be kept for any time: a later timer
/// has another id, and so has a timer of another reactor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TimerId {
    index: u32,
    generation: NonZeroU32,
}

/// All timers that belong to no connection, with a timer wheel of their own: a timer's index is its slot there.
pub(crate) struct Timers {
    all: Slab<Timer>,
    wheel: Wheel,
    generations: GenerationCounter,
}

struct Timer {
    generation: NonZeroU32,
    due: Tick,
    every: Option<Duration>,
    action: TimerAction,
}

/// What to do when a timer expires.
pub(crate) enum TimerAction {
    /// Call `Service::timer` of this service.
    Notify(u16),
    /// Dial again.
    Redial(Box<Redial>),
}

/// A dial that is to be repeated.
#[derive(Debug)]
pub(crate) struct Redial {
    pub(crate) service: u16,
    pub(crate) to: Address,
    pub(crate) options: DialOptions,
    pub(crate) failures: u32,
    /// The connection that has ended; the redial can be cancelled by its id.
    pub(crate) last: ConnId,
}

/// A timer that has expired.
pub(crate) enum Expired {
    Notify(u16, TimerId),
    Redial(Box<Redial>),
}

impl Timers {
    /// `first`: the first generation; random, so that the ids of two reactors differ.
    pub(crate) fn new(first: NonZeroU32) -> Timers {
        Timers { all: Slab::new(), wheel: Wheel::new(), generations: GenerationCounter::starting_at(first) }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn set(&mut self, what: TimerAction, due: Tick, every: Option<Duration>) -> TimerId {
        let generation = self.generations.next();
        let index = self.all.insert(Timer { generation, due, every, action: what }) as u32;
        self.wheel.arm(index, due);
        TimerId { index, generation }
    }

    /// Removes a timer; returns whether it existed.
    pub(crate) fn cancel(&mut self, id: TimerId) -> bool {
        let there = self.all.get(id.index as usize).is_some_and(|timer| timer.generation == id.generation);
        if there {
            self.wheel.cancel(id.index);
            self.all.remove(id.index as usize);
        }
        there
    }

    /// Cancels the redial that was to replace a connection; returns whether there was one.
    pub(crate) fn cancel_redial(&mut self, of: ConnId) -> bool {
        let found = self.all.iter().find(|(_, timer)| match &timer.action {
            TimerAction::Redial(again) => again.last == of,
            TimerAction::Notify(_) => false,
        });
        let id = found.map(|(index, timer)| TimerId { index: index as u32, generation: timer.generation });
        id.is_some_and(|id| self.cancel(id))
    }

    pub(crate) fn clear(&mut self) {
        for (index, _) in &self.all {
            self.wheel.cancel(index as u32);
        }
        self.all.clear();
    }

    /// Takes one timer that is due. A repeating timer is set again, for a whole number of its intervals after the time
    /// at which it was due: so it does not drift, and intervals that a late turn has missed are skipped.
    pub(crate) fn pop_due(&mut self, now: Tick) -> Option<Expired> {
        let index = self.wheel.pop_due(now)?;
        let timer = &mut self.all[index as usize];
        let id = TimerId { index, generation: timer.generation };
        if let (TimerAction::Notify(service), Some(every)) = (&timer.action, timer.every) {
            let service = *service;
            // `after` adds one tick because "now" is rounded down; between two due times that would be drift. At least
            // one tick, or a timer with an interval of zero would be due for ever.
            let span = Tick(0).after(every).0.saturating_sub(1).max(1);
            let missed = (now.0 - timer.due.0) / span;
            timer.due = Tick(timer.due.0.saturating_add(span.saturating_mul(missed + 1)));
            self.wheel.arm(index, timer.due);
            return Some(Expired::Notify(service, id));
        }
        Some(match self.all.remove(index as usize).action {
            TimerAction::Notify(service) => Expired::Notify(service, id),
            TimerAction::Redial(again) => Expired::Redial(again),
        })
    }

    pub(crate) fn next(&self) -> Option<Tick> {
        self.wheel.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(timers: &mut Timers, now: u64) -> Vec<TimerId> {
        let mut told = Vec::new();
        while let Some(Expired::Notify(_, id)) = timers.pop_due(Tick(now)) {
            told.push(id);
        }
        told
    }

    #[test]
    fn a_repeating_timer_does_not_drift_and_skips_missed_intervals() {
        let mut timers = Timers::new(NonZeroU32::MIN);
        let id = timers.set(TimerAction::Notify(1), Tick(10), Some(Duration::from_millis(100)));
        assert_eq!(told(&mut timers, 9), []);
        assert_eq!(told(&mut timers, 13), [id]);
        assert_eq!(told(&mut timers, 19), []);
        assert_eq!(told(&mut timers, 20), [id]);
        assert_eq!(told(&mut timers, 1_005), [id], "a hundred were missed");
        assert_eq!(told(&mut timers, 1_009), []);
        assert_eq!(told(&mut timers, 1_010), [id]);
    }

    #[test]
    fn a_cancelled_timer_never_fires_and_its_id_is_not_reused() {
        let mut timers = Timers::new(NonZeroU32::MIN);
        let first = timers.set(TimerAction::Notify(1), Tick(10), None);
        assert!(timers.cancel(first) && !timers.cancel(first));
        let second = timers.set(TimerAction::Notify(1), Tick(10), None);
        assert!(!timers.cancel(first), "its index is now used by another timer");
        assert_eq!(told(&mut timers, 10), [second]);
        assert_eq!((timers.len(), timers.next()), (0, None));
        assert!(!timers.cancel(second), "it has expired");
    }

    #[test]
    fn the_next_time_follows_the_timers_that_are_set() {
        let mut timers = Timers::new(NonZeroU32::MIN);
        assert_eq!((timers.len(), timers.next()), (0, None));
        for due in [20, 10, 30] {
            timers.set(TimerAction::Notify(1), Tick(due), None);
        }
        assert_eq!((timers.len(), timers.next()), (3, Some(Tick(10))));
        assert_eq!(told(&mut timers, 9), []);
        assert_eq!(told(&mut timers, 10).len(), 1);
        assert_eq!((timers.len(), timers.next()), (2, Some(Tick(20))));
        timers.clear();
        assert_eq!((timers.len(), timers.next()), (0, None));
        assert_eq!(told(&mut timers, 100), []);
    }

    #[test]
    fn a_redial_is_cancelled_by_the_connection_that_it_replaces() {
        let id = |slot| ConnId { slot, generation: NonZeroU32::MIN };
        let redial = |last| {
            let (to, options) = (Address::Unnamed, DialOptions::default());
            TimerAction::Redial(Box::new(Redial { service: 1, to, options, failures: 0, last }))
        };
        let mut timers = Timers::new(NonZeroU32::MIN);
        timers.set(TimerAction::Notify(1), Tick(10), None);
        for last in [id(1), id(2)] {
            timers.set(redial(last), Tick(10), None);
        }
        assert!(!timers.cancel_redial(id(3)), "it was never dialed again");
        assert!(timers.cancel_redial(id(2)) && !timers.cancel_redial(id(2)));
        assert_eq!(timers.len(), 2);
        assert!(timers.cancel_redial(id(1)), "the other one is left");
    }
}
