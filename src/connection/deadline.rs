//! When a connection is due: the earliest of all its clocks.

use std::time::Duration;

use crate::base::tick::Tick;
use crate::config::limits::{MinRate, SocketLimits};
use crate::connection::optional::Overrides;
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
    /// It has failed, and what has arrived cannot be delivered.
    Broken,
    HalfClosed,
    FirstByte,
    Lifetime,
    MessageTimeout,
    MinReadRate,
    MinWriteRate,
    Linger,
}

/// How long input of a connection that has failed waits for a service that does not take it.
const BROKEN_AND_HELD: Duration = Duration::from_secs(1);

impl Connection {
    /// The earliest thing that will be due if nothing happens before, and when.
    pub(crate) fn deadline(&self, limits: &SocketLimits) -> Option<(Tick, Due)> {
        let mut earliest = Earliest(None);
        match self.stage {
            Stage::Connecting => self.consider_connecting(limits, &mut earliest),
            Stage::Lingering => earliest.consider(self.last_activity, Some(limits.linger), Due::Linger),
            Stage::Closing => {
                earliest.consider(self.last_activity, limits.half_closed, Due::HalfClosed);
                // The longest a connection may live, with the queue that it still has.
                let lifetime = limits.lifetime.map(|lifetime| lifetime.saturating_add(limits.linger));
                earliest.consider(self.created, lifetime, Due::Lifetime);
            }
            Stage::Open => self.consider_open(limits, &mut earliest),
            Stage::Dead => {}
        }
        if let (Stage::Open | Stage::Closing, Some(outbox), true) =
            (self.stage, &self.outbox, self.can_write())
        {
            earliest.consider(
                outbox.progress.since,
                limits.min_write_rate.map(|pace| pace.per),
                Due::MinWriteRate,
            );
        }
        earliest.0
    }

    fn consider_connecting(&self, limits: &SocketLimits, earliest: &mut Earliest) {
        let own = self.dial().and_then(|dial| dial.options.timeout);
        earliest.consider(self.created, own.or(limits.connect), Due::Connect);
        earliest.at(self.dial().and_then(|dial| dial.next_attempt), Due::Attempt);
        earliest
            .at(self.overrides().and_then(|overrides| overrides.alarm).map(|alarm| alarm.when), Due::Alarm);
    }

    fn consider_open(&self, limits: &SocketLimits, earliest: &mut Earliest) {
        let idle = match self.overrides() {
            Some(overrides) => {
                self.consider_overrides(overrides, earliest);
                overrides.idle.unwrap_or(limits.idle)
            }
            None => limits.idle,
        };
        if self.flags.contains(Flag::Handshaking) {
            return earliest.at(self.tls().and_then(|tls| tls.deadline), Due::Handshake);
        }
        if self.flags.any(&[Flag::Ended, Flag::Finished]) {
            earliest.consider(self.last_activity, limits.half_closed, Due::HalfClosed);
        }
        if self.flags.contains(Flag::Broken) && !self.wants_input() {
            earliest.consider(self.last_activity, Some(BROKEN_AND_HELD), Due::Broken);
        }
        earliest.consider(self.last_activity, idle, Due::Idle);
        earliest.consider(self.created, limits.lifetime, Due::Lifetime);
        if (self.bytes_in == 0 || self.flags.contains(Flag::NoPlaintextYet))
            && !self.flags.contains(Flag::Dialed)
        {
            earliest.consider(self.created, limits.first_byte, Due::FirstByte);
        }
        if let (Some(inbox), true, false) =
            (&self.inbox, self.wants_input(), self.flags.contains(Flag::Ended))
        {
            earliest.consider(inbox.message_start, limits.message_timeout, Due::MessageTimeout);
            earliest.consider(
                inbox.progress.since,
                limits.min_read_rate.map(|pace| pace.per),
                Due::MinReadRate,
            );
        }
    }

    fn consider_overrides(&self, overrides: &Overrides, earliest: &mut Earliest) {
        for (quiet, due) in [(&overrides.read_idle, Due::ReadIdle), (&overrides.write_idle, Due::WriteIdle)] {
            if let Some(quiet) = quiet {
                earliest.consider(quiet.since, Some(quiet.span), due);
            }
        }
        earliest.at(overrides.alarm.map(|alarm| alarm.when), Due::Alarm);
        if self.flags.contains(Flag::Throttled) {
            earliest.at(overrides.refill, Due::Refill);
        }
    }

    /// Whether a pace that fell due was kept; the next span begins in that case.
    pub(crate) fn met_min_rate(&mut self, due: Due, limits: &SocketLimits, now: Tick) -> bool {
        let (span, pace) = match due {
            Due::MinReadRate => (self.inbox.as_mut().map(|inbox| &mut inbox.progress), limits.min_read_rate),
            _ => (self.outbox.as_mut().map(|outbox| &mut outbox.progress), limits.min_write_rate),
        };
        let (Some(span), Some(MinRate { bytes, .. })) = (span, pace) else { return true };
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
    use crate::base::address::PeerAddress;

    fn connection(stage: Stage) -> Connection {
        Connection::new(NonZeroU32::MIN, 0, stage, PeerAddress::UNIX, Tick(100))
    }

    fn due(connection: &Connection, limits: &SocketLimits) -> Option<Due> {
        connection.deadline(limits).map(|(_, due)| due)
    }

    #[test]
    fn each_stage_has_its_own_deadline() {
        let limits = SocketLimits::default();
        assert_eq!(due(&connection(Stage::Connecting), &limits), Some(Due::Connect));
        assert_eq!(due(&connection(Stage::Open), &limits), Some(Due::Idle));
        assert_eq!(due(&connection(Stage::Closing), &limits), Some(Due::HalfClosed));
        assert_eq!(due(&connection(Stage::Lingering), &limits), Some(Due::Linger));
        assert_eq!(due(&connection(Stage::Dead), &limits), None);
    }

    #[test]
    fn idle_clocks_of_a_message_do_not_run_while_reading_is_held() {
        let limits = SocketLimits { idle: None, ..SocketLimits::default() };
        let mut connection = connection(Stage::Open);
        connection.inbox = Some(Box::default());
        assert_eq!(due(&connection, &limits), Some(Due::MinReadRate));
        connection.flags.insert(Flag::Paused);
        assert_eq!(due(&connection, &limits), None);
        connection.flags.remove(Flag::Paused);
        connection.flags.insert(Flag::Full);
        assert_eq!(due(&connection, &limits), None);
        connection.flags.insert(Flag::ReadWhenFull);
        assert_eq!(due(&connection, &limits), Some(Due::MinReadRate));
    }

    #[test]
    fn the_first_byte_deadline_applies_to_accepted_connections_only() {
        let limits = SocketLimits { first_byte: Some(Duration::from_secs(1)), ..SocketLimits::default() };
        let mut connection = connection(Stage::Open);
        assert_eq!(due(&connection, &limits), Some(Due::FirstByte));
        connection.bytes_in = 1;
        assert_eq!(due(&connection, &limits), Some(Due::Idle));
    }
}
