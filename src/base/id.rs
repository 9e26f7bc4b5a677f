//! Ids of connections, services and listeners, and the tokens that the kernel returns with events.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::base::seeded_bug::{SeededBug, seeded};

/// The id of one connection. It may be kept for any time: once the connection has ended, a look-up finds nothing.
///
/// ```text
///      63            32 31             0
///     ┌────────────────┬────────────────┐
///     │   generation   │      slot      │   = the token the kernel hands back with each event
///     └────────────────┴────────────────┘
/// ```
///
/// Slots are used again, so two things must never reach a newer connection in the same slot. A *stale event*, reported
/// by the kernel before its connection ended, cannot: slots are freed in one phase of the turn only, after all events
/// are handled. A *stale id*, kept by a service or another thread, cannot: the newer connection has another generation.
///
/// Generations are counted per reactor, over all slots, from a random number on, and wrap after 2³² − 1 connections
/// (half a day at 100,000 per second). An id kept for longer than that finds another connection only if the same slot
/// got the same generation. In another reactor an id finds nothing, unless both have by chance counted over the same
/// numbers and used the same slot: one pair of reactors in 1,000 can have such an id when each has had two million
/// connections.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    pub(crate) slot: u32,
    pub(crate) generation: NonZeroU32,
}

/// The id of a service that was added to a reactor. Every other reactor refuses it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceId {
    pub(crate) number: u16,
    pub(crate) reactor: ReactorId,
}

/// The id of a service, with the type of the service: [`Reactor::add`](crate::Reactor::add) returns it. With it the
/// service can be reached again, together with its sessions. It converts into a [`ServiceId`], and methods that need
/// only that take either.
///
/// A key is refused by every reactor but its own.
pub struct Key<S> {
    pub(crate) id: ServiceId,
    service: PhantomData<fn() -> S>,
}

/// The number of a reactor within the process. Ids of services, listeners, groups and watches contain it, because their
/// other numbers are small in each reactor. Those of connections and timers have no room for it: their generations
/// start at a random number in each reactor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ReactorId(u32);

impl ReactorId {
    /// A number that no reactor of this process has had.
    pub(crate) fn next() -> ReactorId {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ReactorId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl<S> Key<S> {
    pub(crate) fn new(id: ServiceId) -> Key<S> {
        Key { id, service: PhantomData }
    }

    /// The id without the type.
    pub fn id(self) -> ServiceId {
        self.id
    }
}

// Derived, these would ask the same of the service.
impl<S> Clone for Key<S> {
    fn clone(&self) -> Key<S> {
        *self
    }
}

impl<S> Copy for Key<S> {}

impl<S> PartialEq for Key<S> {
    fn eq(&self, other: &Key<S>) -> bool {
        self.id == other.id
    }
}

impl<S> Eq for Key<S> {}

impl<S> fmt::Debug for Key<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id.number)
    }
}

impl<S> From<Key<S>> for ServiceId {
    fn from(key: Key<S>) -> ServiceId {
        key.id
    }
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceId({})", self.number)
    }
}

/// The id of a listener of a reactor. It may be kept for any time: a later listener has another id, and no other
/// reactor finds it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenerId {
    pub(crate) reactor: ReactorId,
    pub(crate) index: u32,
    pub(crate) generation: u64,
}

impl fmt::Debug for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ListenerId({}.{})", self.index, self.generation)
    }
}

/// What a descriptor is [watched](crate::Sockets::watch_with) for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Interest {
    /// That it can be read.
    #[default]
    Readable,
    /// That it can be written to.
    Writable,
    /// That it can be read or written to.
    Both,
}

/// The id of a descriptor that is [watched](crate::Sockets::watch). It may be kept for any time: a later one has
/// another id, and no other reactor finds it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchId {
    pub(crate) reactor: ReactorId,
    pub(crate) index: u32,
    pub(crate) generation: u64,
}

impl fmt::Debug for WatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WatchId({}.{})", self.index, self.generation)
    }
}

/// The id of a rate limit that several connections share: see [`Sockets::add_group`](crate::Sockets::add_group). Every
/// other reactor refuses it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId {
    pub(crate) index: u16,
    pub(crate) reactor: ReactorId,
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupId({})", self.index)
    }
}

/// Slots of one reactor: so many links of the timer wheel fit into three bytes. `Limits` are clamped to it.
pub(crate) const SLOTS_MAX: usize = (1 << 24) - 1_024;

/// Slot numbers from here on are used in tokens of listeners, of the waker and of the timer.
const RESERVED: u32 = u32::MAX - 255;
/// Listeners that one reactor can have.
pub(crate) const LISTENERS_MAX: usize = 255;

/// The number that the kernel returns with an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token(pub(crate) u64);

/// What a token stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TokenKind {
    Connection(ConnId),
    Listener(usize),
    Watched(usize),
    Wake,
}

impl Token {
    pub(crate) const WAKE: Token = Token(u32::MAX as u64);
    /// The token of the timer descriptor. `sys::mio` handles its event itself; it only ends a sleep.
    pub(crate) const TIMER: Token = Token(u32::MAX as u64 | 1 << 32);

    pub(crate) fn listener(index: usize) -> Token {
        assert!(index < LISTENERS_MAX, "a listener's index is checked before it is registered");
        Token(u64::from(RESERVED) + index as u64)
    }

    /// The token of a watched descriptor. Unlike that of a listener, it has something in the place of the generation.
    pub(crate) fn watch(index: usize) -> Token {
        Token(u64::from(RESERVED) | (index as u64 + 1) << 32)
    }

    pub(crate) fn kind(self) -> Option<TokenKind> {
        let slot = self.0 as u32;
        if slot < RESERVED {
            let generation = NonZeroU32::new((self.0 >> 32) as u32)?;
            return Some(TokenKind::Connection(ConnId { slot, generation }));
        }
        if self == Token::WAKE {
            return Some(TokenKind::Wake);
        }
        if slot == RESERVED && self.0 >> 32 != 0 {
            return Some(TokenKind::Watched((self.0 >> 32) as usize - 1));
        }
        Some(TokenKind::Listener((slot - RESERVED) as usize))
    }
}

impl ConnId {
    pub(crate) fn token(self) -> Token {
        Token(u64::from(self.generation.get()) << 32 | u64::from(self.slot))
    }
}

/// Counts the connections of a reactor; each takes its generation from here.
#[derive(Debug)]
pub(crate) struct GenerationCounter(NonZeroU32);

impl GenerationCounter {
    /// Starts at `first`, so that a test can reach the wrap.
    pub(crate) fn starting_at(first: NonZeroU32) -> GenerationCounter {
        GenerationCounter(first)
    }

    pub(crate) fn next(&mut self) -> NonZeroU32 {
        let generation = self.0;
        self.0 = generation
            .checked_add(u32::from(!seeded(SeededBug::GenerationStands)))
            .unwrap_or(NonZeroU32::MIN);
        generation
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.slot, self.generation)
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({}.{})", self.slot, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_back_the_id_that_made_it() {
        for slot in [0, 1, 9_999, RESERVED - 1] {
            for generation in [1, 2, u32::MAX] {
                let id = ConnId { slot, generation: NonZeroU32::new(generation).unwrap() };
                assert_eq!(id.token().kind(), Some(TokenKind::Connection(id)));
            }
        }
    }

    #[test]
    fn tokens_distinguish_listeners_the_waker_and_connections() {
        assert_eq!(Token::WAKE.kind(), Some(TokenKind::Wake));
        for index in [0, 1, LISTENERS_MAX - 1] {
            assert_eq!(Token::listener(index).kind(), Some(TokenKind::Listener(index)));
            assert_eq!(Token::watch(index).kind(), Some(TokenKind::Watched(index)));
        }
    }

    #[test]
    fn generations_wrap_and_skip_zero() {
        let mut generations = GenerationCounter::starting_at(NonZeroU32::MAX);
        assert_eq!(generations.next(), NonZeroU32::MAX);
        assert_eq!(generations.next(), NonZeroU32::MIN);
        assert_eq!(Token(7).kind(), None, "generation 0 names no connection");
    }

    #[test]
    fn an_optional_id_needs_no_extra_space() {
        assert_eq!(size_of::<Option<ConnId>>(), 8);
    }
}
