//! When a connection is due: the earliest of all its clocks.

use std::time::Duration;

use crate::base::tick::Tick;
use crate::config::limits::{Pace, SocketLimits};
use crate::connection::optional::Clocks;
use crate::connection::{Connection, Flag, Stage};

/// What a deadline is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    Connect,
    /// The next address of a name is to be tried.
    Attempt,
    Handshake,
    Idle,
    ReadIdle,
    WriteIdle,
    Alarm,
    Refill,
    HalfClosed,
    FirstByte,
    Lifetime,
    Unfinished,
    ReadPace,
    WritePace,
    Linger,
}

impl Connection {
    /// The earliest thing that will be due if nothing happens before, and when.
    pub(crate) fn deadline(&self, limits: &SocketLimits) -> Option<(Tick, Due)> {
        let mut earliest = Earliest(None);
        match self.stage {
            Stage::Connecting => self.consider_connecting(limits, &mut earliest),
            Stage::Lingering => earliest.consider(self.touched, Some(limits.linger), Due::Linger),
            Stage::Closing => earliest.consider(self.touched, limits.half_closed, Due::HalfClosed),
            Stage::Open => self.consider_open(limits, &mut earliest),
            Stage::Doomed => {}
        }
        if let (Stage::Open | Stage::Closing, Some(outbox), true) =
            (self.stage, &self.outbox, self.can_write())
        {
            earliest.consider(outbox.span.since, limits.write_pace.map(|pace| pace.per), Due::WritePace);
        }
        earliest.0
    }

    fn consider_connecting(&self, limits: &SocketLimits, earliest: &mut Earliest) {
        let own = self.dial().and_then(|dial| dial.options.timeout);
        earliest.consider(self.born, own.or(limits.connect), Due::Connect);
        earliest.at(self.dial().and_then(|dial| dial.next_attempt), Due::Attempt);
        earliest.at(self.clocks().and_then(|clocks| clocks.alarm).map(|alarm| alarm.when), Due::Alarm);
    }

    fn consider_open(&self, limits: &SocketLimits, earliest: &mut Earliest) {
        let idle = match self.clocks() {
            Some(clocks) => {
                self.consider_clocks(clocks, earliest);
                clocks.idle.unwrap_or(limits.idle)
            }
            None => limits.idle,
        };
        if self.flags.has(Flag::Securing) {
            return earliest.at(self.seal().and_then(|seal| seal.by), Due::Handshake);
        }
        if self.flags.any(&[Flag::Ended, Flag::Finished]) {
            earliest.consider(self.touched, limits.half_closed, Due::HalfClosed);
        }
        earliest.consider(self.touched, idle, Due::Idle);
        earliest.consider(self.born, limits.lifetime, Due::Lifetime);
        if (self.bytes_in == 0 || self.flags.has(Flag::Mute)) && !self.flags.has(Flag::Dialed) {
            earliest.consider(self.born, limits.first_byte, Due::FirstByte);
        }
        if let (Some(inbox), true, false) = (&self.inbox, self.is_willing(), self.flags.has(Flag::Ended)) {
            earliest.consider(inbox.began, limits.message_within, Due::Unfinished);
            earliest.consider(inbox.span.since, limits.read_pace.map(|pace| pace.per), Due::ReadPace);
        }
    }

    fn consider_clocks(&self, clocks: &Clocks, earliest: &mut Earliest) {
        for (quiet, due) in [(&clocks.reading, Due::ReadIdle), (&clocks.writing, Due::WriteIdle)] {
            if let Some(quiet) = quiet {
                earliest.consider(quiet.since, Some(quiet.span), due);
            }
        }
        earliest.at(clocks.alarm.map(|alarm| alarm.when), Due::Alarm);
        if self.flags.has(Flag::Thirsty) {
            earliest.at(clocks.refill, Due::Refill);
        }
    }

    /// Whether a pace that fell due was kept; the next span begins in that case.
    pub(crate) fn kept_pace(&mut self, due: Due, limits: &SocketLimits, now: Tick) -> bool {
        let (span, pace) = match due {
            Due::ReadPace => (self.inbox.as_mut().map(|inbox| &mut inbox.span), limits.read_pace),
            _ => (self.outbox.as_mut().map(|outbox| &mut outbox.span), limits.write_pace),
        };
        let (Some(span), Some(Pace { bytes, .. })) = (span, pace) else { return true };
        let kept = span.moved >= bytes;
        span.since = now;
        span.moved = 0;
        kept
    }
}

/// The least of several deadlines.
struct Earliest(Option<(Tick, Due)>);

impl Earliest {
    fn consider(&mut self, since: Tick, span: Option<Duration>, due: Due) {
        self.at(span.map(|span| since.after(span)), due);
    }

    fn at(&mut self, when: Option<Tick>, due: Due) {
        let Some(when) = when else { return };
        if self.0.is_none_or(|(earliest, _)| when < earliest) {
            self.0 = Some((when, due));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::base::address::Peer;

    fn connection(stage: Stage) -> Connection {
        Connection::new(NonZeroU32::MIN, 0, stage, Peer::UNIX, Tick(100))
    }

    fn due(connection: &Connection, limits: &SocketLimits) -> Option<Due> {
        connection.deadline(limits).map(|(_, due)| due)
    }

    #[test]
    fn each_stage_waits_for_something_of_its_own() {
        let limits = SocketLimits::default();
        assert_eq!(due(&connection(Stage::Connecting), &limits), Some(Due::Connect));
        assert_eq!(due(&connection(Stage::Open), &limits), Some(Due::Idle));
        assert_eq!(due(&connection(Stage::Closing), &limits), Some(Due::HalfClosed));
        assert_eq!(due(&connection(Stage::Lingering), &limits), Some(Due::Linger));
        assert_eq!(due(&connection(Stage::Doomed), &limits), None);
    }

    #[test]
    fn a_peer_is_not_blamed_for_silence_while_nobody_reads() {
        let limits = SocketLimits { idle: None, ..SocketLimits::default() };
        let mut connection = connection(Stage::Open);
        connection.inbox = Some(Box::default());
        assert_eq!(due(&connection, &limits), Some(Due::ReadPace));
        connection.flags.raise(Flag::Paused);
        assert_eq!(due(&connection, &limits), None);
        connection.flags.lower(Flag::Paused);
        connection.flags.raise(Flag::Full);
        assert_eq!(due(&connection, &limits), None);
        connection.flags.raise(Flag::ReadFull);
        assert_eq!(due(&connection, &limits), Some(Due::ReadPace));
    }

    #[test]
    fn the_first_byte_is_asked_of_those_who_came_and_not_of_those_we_called() {
        let limits = SocketLimits { first_byte: Some(Duration::from_secs(1)), ..SocketLimits::default() };
        let mut connection = connection(Stage::Open);
        assert_eq!(due(&connection, &limits), Some(Due::FirstByte));
        connection.bytes_in = 1;
        assert_eq!(due(&connection, &limits), Some(Due::Idle));
    }
}
