//! The alarms of a connection.
//!
//! Read before: `connection/deadline.rs`, which takes the earliest of them for the connection's deadline.

use std::time::Duration;

use crate::base::tick::Tick;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::socket::Socket;

/// The alarms of one connection, the earliest last: then the next deadline is one look, and firing is one `pop`.
///
/// ```text
///     [ tag 7, tick 900 │ tag 3, tick 410 │ tag 0, tick 120 ]
///                                            next ─┘
/// ```
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Alarms(Vec<Alarm>);

#[derive(Clone, Copy, PartialEq, Debug)]
struct Alarm {
    tag: u64,
    when: Tick,
    every: Option<Duration>,
}

/// Alarms of one connection. Setting one moves those that are later, so the number is bounded.
const ALARMS_MAX: usize = 1_024;

impl Alarms {
    pub(crate) fn next(&self) -> Option<Tick> {
        self.0.last().map(|alarm| alarm.when)
    }

    /// Sets an alarm, in place of one with the same tag. Of two at the same tick, the one that was set first fires
    /// first. Returns whether there was room.
    fn set(&mut self, alarm: Alarm) -> bool {
        self.cancel(alarm.tag);
        let has_room = self.0.len() < ALARMS_MAX;
        if has_room {
            let at = self.0.partition_point(|other| other.when > alarm.when);
            self.0.insert(at, alarm);
        }
        has_room
    }

    fn cancel(&mut self, tag: u64) {
        if let Some(at) = self.0.iter().position(|alarm| alarm.tag == tag) {
            self.0.remove(at);
        }
    }

    /// Takes one that is due. A repeating one is set again.
    fn pop_due(&mut self, now: Tick) -> Option<u64> {
        self.next().filter(|&when| when <= now)?;
        let alarm = self.0.pop()?;
        if let Some(every) = alarm.every {
            self.set(Alarm { when: now.after(every), ..alarm });
        }
        Some(alarm.tag)
    }
}

impl Connection {
    pub(crate) fn set_alarm(
        &mut self,
        tag: u64,
        after: Option<Duration>,
        every: Option<Duration>,
        cx: &mut Context,
    ) -> bool {
        let Some(after) = after else {
            if let Some(overrides) = self.overrides_mut() {
                overrides.alarms.cancel(tag);
            }
            self.drop_empty_optional();
            return true;
        };
        let alarms = &mut self.optional().overrides().alarms;
        let is_set = alarms.set(Alarm { tag, when: cx.now.after(after), every });
        self.rearm(cx);
        is_set
    }

    /// Takes an alarm that is due: its tag.
    pub(crate) fn pop_alarm(&mut self, now: Tick) -> Option<u64> {
        self.overrides_mut()?.alarms.pop_due(now)
    }
}

impl Socket<'_> {
    /// Sets an alarm with a tag: [`alarm`](crate::Service::alarm) is called once with the tag, after this time,
    /// whatever the connection does meanwhile. So each of several requests in flight can have a deadline. An alarm with
    /// the same tag is replaced, and `None` removes it. The alarm of [`set_alarm`](Socket::set_alarm) has the tag 0.
    ///
    /// The resolution is 10 ms: an alarm is never early, and late by up to one tick and the length of a turn. A time of
    /// zero is not "now" but the next tick; to be called in this turn, [`poke`](Socket::poke).
    ///
    /// Returns whether it is set: a connection has 1,024 alarms at most.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidemill::{Input, Service, Socket};
    ///
    /// /// Each line is a request; what has no answer after 5 s is told so. The session counts requests.
    /// struct Deadlines;
    ///
    /// impl Service for Deadlines {
    ///     type Session = u64;
    ///     fn open(&mut self, _: &mut Socket<'_>) -> u64 { 0 }
    ///     fn data(&mut self, requests: &mut u64, socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         while let Some(_request) = input.take_line() {
    ///             *requests += 1;
    ///             if !socket.set_alarm_for(*requests, Some(Duration::from_secs(5))) { return socket.close() }
    ///         }
    ///     }
    ///     fn alarm(&mut self, _: &mut u64, socket: &mut Socket<'_>, tag: u64) {
    ///         socket.send(format!("request {tag} took too long\n"));
    ///     }
    /// }
    /// ```
    pub fn set_alarm_for(&mut self, tag: u64, after: Option<Duration>) -> bool {
        let (connection, cx) = self.parts();
        connection.set_alarm(tag, after, None, cx)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::base::address::PeerAddress;
    use crate::base::id::ConnId;
    use crate::connection::state::Stage;

    #[test]
    fn alarms_fire_in_the_order_of_their_ticks_and_then_of_their_setting() {
        let mut alarms = Alarms::default();
        for (tag, when) in [(1, 30), (2, 10), (3, 20), (4, 10), (2, 20)] {
            assert!(alarms.set(Alarm { tag, when: Tick(when), every: None }));
        }
        assert_eq!((alarms.next(), alarms.pop_due(Tick(9))), (Some(Tick(10)), None));
        let fired: Vec<u64> = std::iter::from_fn(|| alarms.pop_due(Tick(30))).collect();
        assert_eq!(fired, [4, 3, 2, 1], "tag 2 was set again, for a later tick");
    }

    #[test]
    fn the_last_alarm_that_is_removed_frees_its_memory_and_no_setting_is_lost() {
        let (limits, epoch) = (crate::Limits::default(), crate::sys::Epoch::from_now());
        let mut cx = Context::new(limits, epoch);
        cx.socket_limits.push(crate::SocketLimits::default());
        let id = ConnId { slot: 0, generation: NonZeroU32::MIN };
        let mut connection = Connection::new(id, 0, Stage::Open, PeerAddress::UNIX, Tick(0));
        let mut set =
            |connection: &mut Connection, tag, after| connection.set_alarm(tag, after, None, &mut cx);
        set(&mut connection, 1, Some(Duration::from_secs(1)));
        set(&mut connection, 2, Some(Duration::from_secs(2)));
        set(&mut connection, 1, None);
        assert!(connection.overrides().is_some_and(|overrides| overrides.alarms.next().is_some()));
        set(&mut connection, 2, None);
        assert!(connection.overrides().is_none());
        connection.optional().overrides().queue = Some(1);
        set(&mut connection, 1, Some(Duration::from_secs(1)));
        set(&mut connection, 1, None);
        assert_eq!(connection.overrides().and_then(|overrides| overrides.queue), Some(1));
    }

    #[test]
    fn one_connection_has_1024_alarms_at_most() {
        let mut alarms = Alarms::default();
        let alarm = |tag| Alarm { tag, when: Tick(tag), every: None };
        assert!((0..1_024).all(|tag| alarms.set(alarm(tag))));
        assert!(!alarms.set(alarm(1_024)) && alarms.set(alarm(1_023)), "one with its tag is replaced");
        alarms.cancel(5);
        assert!(alarms.set(alarm(1_024)));
    }
}
