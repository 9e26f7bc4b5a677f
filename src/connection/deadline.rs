//! All timeouts of a connection as one deadline: the earliest of them.
//!
//! Read before: `connection/mod.rs`; `event_loop/expire.rs` acts on what is computed here. A deadline is not stored: it
//! is computed from the time of the last activity and the limits. So activity costs one store, and a changed limit
//! applies at once.

use std::time::Duration;

use crate::base::observer::Due;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;
use crate::config::limits::{MinRate, SocketLimits};
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::optional::{IdleKind, IdleTimer, Overrides};
use crate::connection::state::{Flag, Half, Stage};

/// How long a refused connection is kept open without an answer ([tarpit](crate::config::rules::RefuseMode::Tarpit)).
/// Long enough to slow a scanner down, short enough for the few slots that tarpitted connections have.
const TARPIT_TIME: Duration = Duration::from_secs(30);

/// How long the input of a connection whose socket has failed waits for a service that has paused it or is full. A
/// failed socket raises no further event, so without a deadline it would stay for as long as the service does not read.
const BROKEN_AND_HELD: Duration = Duration::from_secs(1);

impl Connection {
    /// The earliest deadline, and what it is about. Which timeouts apply depends on the stage.
    pub(crate) fn deadline(&self, limits: &SocketLimits) -> Option<(Tick, Due)> {
        let mut earliest = Earliest(None);
        match self.stage {
            Stage::Connecting => self.consider_connecting(limits, &mut earliest),
            Stage::Tarpitted => earliest.consider(self.created.get(), Some(TARPIT_TIME), Due::Lifetime),
            Stage::Lingering => earliest.consider(self.last_activity.get(), Some(limits.linger), Due::Linger),
            Stage::Closing => {
                earliest.consider(self.last_activity.get(), limits.half_closed, Due::HalfClosed);
                // A closing connection has passed its lifetime at most by the time that lingering may take.
                let lifetime = self.lifetime(limits).map(|lifetime| lifetime.saturating_add(limits.linger));
                let lifetime = lifetime.filter(|_| !seeded(SeededBug::ClosingOutlivesLifetime));
                earliest.consider(self.created.get(), lifetime, Due::Lifetime);
            }
            Stage::Open => self.consider_open(limits, &mut earliest),
            Stage::Dead => {}
        }
        // The minimum write rate applies while something is queued that can be written. Bytes that wait for a connect
        // or a handshake are not the peer's fault.
        let (Stage::Open | Stage::Closing, Some(outbox)) = (self.stage, &self.outbox) else {
            return earliest.0;
        };
        if self.can_write() {
            let span = limits.min_write_rate.map(|rate| rate.per);
            earliest.consider(outbox.progress.since, span, Due::MinWriteRate);
        }
        earliest.0
    }

    fn consider_connecting(&self, limits: &SocketLimits, earliest: &mut Earliest) {
        let own = self.dial().and_then(|dial| dial.options.timeout);
        earliest.consider(self.created.get(), own.or(limits.connect), Due::Connect);
        earliest.at(self.dial().and_then(|dial| dial.next_attempt), Due::Attempt);
        earliest.at(self.overrides().and_then(|overrides| overrides.alarms.next()), Due::Alarm);
    }

    fn consider_open(&self, limits: &SocketLimits, earliest: &mut Earliest) {
        let idle = match self.overrides() {
            Some(overrides) => {
                self.consider_overrides(overrides, earliest);
                overrides.idle.unwrap_or(limits.idle)
            }
            None => limits.idle,
        };
        earliest.consider(self.created.get(), self.lifetime(limits), Due::Lifetime);
        // A handshake has a deadline of its own, in the place of the timeouts below.
        if self.filter.is_handshaking() {
            return earliest.at(self.tls().and_then(|tls| tls.deadline), Due::Handshake);
        }
        if self.incoming == Half::Ended || self.outgoing == Half::Ended {
            earliest.consider(self.last_activity.get(), limits.half_closed, Due::HalfClosed);
        }
        // A filter's end of the stream is read before the error behind it, and nothing is read after that.
        if self.flags.contains(Flag::Broken) && (self.incoming == Half::Ended || !self.wants_input()) {
            earliest.consider(self.last_activity.get(), Some(BROKEN_AND_HELD), Due::Broken);
        }
        earliest.consider(self.last_activity.get(), idle, Due::Idle);
        let silent = self.bytes_in == 0 || self.tls().is_some_and(|tls| tls.no_plaintext_yet);
        // While it is paused it is not read, and its first byte may have arrived.
        if silent && !self.flags.any(&[Flag::Dialed, Flag::Paused]) {
            let since =
                self.overrides().and_then(|overrides| overrides.resumed).unwrap_or(self.created.get());
            earliest.consider(since, limits.first_byte, Due::FirstByte);
        }
        let Some(inbox) = self.inbox.as_ref().filter(|_| self.incoming != Half::Ended) else { return };
        // An incomplete message has a time limit only while it is read: otherwise the peer cannot complete it.
        if self.wants_input() {
            earliest.consider(inbox.message_start, limits.message_timeout, Due::MessageTimeout);
            let span = limits.min_read_rate.map(|rate| rate.per);
            earliest.consider(inbox.progress.since, span, Due::MinReadRate);
        }
    }

    /// Its maximum age. The random part comes from its generation: so it takes no memory, and each computation has the
    /// same result. Multiples of 2^32 divided by the golden ratio spread consecutive generations evenly (Fibonacci
    /// hashing); the first generation of a reactor is random.
    fn lifetime(&self, limits: &SocketLimits) -> Option<Duration> {
        let (lifetime, jitter) = (limits.lifetime?, limits.lifetime_jitter);
        if jitter.is_zero() {
            return Some(lifetime);
        }
        let part = self.id.generation.get().wrapping_mul(0x9e37_79b9);
        Some(lifetime.saturating_sub(jitter.saturating_mul(part >> 16) / (1 << 16)))
    }

    fn consider_overrides(&self, overrides: &Overrides, earliest: &mut Earliest) {
        for (timer, due) in [(&overrides.read_idle, Due::ReadIdle), (&overrides.write_idle, Due::WriteIdle)] {
            if let Some(timer) = timer {
                earliest.consider(timer.since, Some(timer.span), due);
            }
        }
        earliest.at(overrides.alarms.next(), Due::Alarm);
        if self.flags.contains(Flag::Throttled) && !seeded(SeededBug::RefillForgotten) {
            earliest.at(overrides.refill, Due::Refill);
        }
    }

    /// Whether enough bytes have moved in the span that has just passed. Starts the next span.
    pub(crate) fn met_min_rate(&mut self, due: Due, limits: &SocketLimits, now: Tick) -> bool {
        let (span, rate) = match due {
            Due::MinReadRate => (self.inbox.as_mut().map(|inbox| &mut inbox.progress), limits.min_read_rate),
            _ => (self.outbox.as_mut().map(|outbox| &mut outbox.progress), limits.min_write_rate),
        };
        let (Some(span), Some(MinRate { bytes, .. })) = (span, rate) else { return true };
        let met = span.moved >= bytes;
        span.since = now;
        span.moved = 0;
        met
    }

    // -- timeouts that a service sets; each starts now -----------------------------------------------------

    pub(crate) fn set_idle(&mut self, idle: Option<Duration>, cx: &mut Context) {
        self.optional().overrides().idle = Some(idle);
        self.last_activity = cx.now.into();
        self.rearm(cx);
    }

    pub(crate) fn set_read_idle(&mut self, idle: Option<Duration>, cx: &mut Context) {
        let since = cx.now;
        self.optional().overrides().read_idle = idle.map(|span| IdleTimer { span, since });
        self.rearm(cx);
    }

    pub(crate) fn set_write_idle(&mut self, idle: Option<Duration>, cx: &mut Context) {
        let since = cx.now;
        self.optional().overrides().write_idle = idle.map(|span| IdleTimer { span, since });
        self.rearm(cx);
    }

    /// An idle timeout has passed: starts it again.
    pub(crate) fn restart_idle(&mut self, which: IdleKind, now: Tick) {
        if which == IdleKind::Both {
            self.last_activity = now.into();
        }
        let Some(overrides) = self.overrides_mut() else { return };
        match which {
            IdleKind::Both => {}
            IdleKind::Reading => overrides.read_idle.iter_mut().for_each(|timer| timer.since = now),
            IdleKind::Writing => overrides.write_idle.iter_mut().for_each(|timer| timer.since = now),
        }
    }
}

/// The earliest of several deadlines. Of two at the same tick, the one that was considered first.
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
    use crate::base::id::ConnId;

    fn connection(stage: Stage) -> Connection {
        let id = ConnId { slot: 0, generation: NonZeroU32::MIN };
        Connection::new(id, 0, stage, PeerAddress::UNIX, Tick(100))
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
        assert_eq!(due(&connection(Stage::Tarpitted), &limits), Some(Due::Lifetime));
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
    fn lifetimes_of_consecutive_connections_are_spread_over_the_jitter() {
        let (lifetime, jitter) = (Duration::from_secs(100), Duration::from_secs(10));
        let limits = SocketLimits {
            lifetime: Some(lifetime),
            lifetime_jitter: jitter,
            idle: None,
            ..SocketLimits::default()
        };
        // The first generation is the seed.
        for seed in [1, 77_777, u32::MAX - 50] {
            let due: Vec<Tick> = (0..100)
                .map(|n: u32| {
                    let mut connection = connection(Stage::Open);
                    connection.id.generation =
                        NonZeroU32::new(seed.wrapping_add(n)).unwrap_or(NonZeroU32::MIN);
                    connection.deadline(&limits).expect("a lifetime").0
                })
                .collect();
            let (first, last) = (Tick(100).after(lifetime - jitter), Tick(100).after(lifetime));
            assert!(due.iter().all(|when| (first..=last).contains(when)), "{seed}: {due:?}");
            for tenth in 0..10 {
                let begin = first.after(jitter / 10 * tenth);
                let within =
                    due.iter().filter(|when| (begin..begin.after(jitter / 10)).contains(when)).count();
                assert!((6..=14).contains(&within), "seed {seed}: {within} of 100 end in tenth {tenth}");
            }
        }
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
