//! One connection: what is known about it between two turns, and when it is due.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::address::Peer;
use crate::closed::Closed;
use crate::extra::{Clocks, Dial, Extra, Seal};
use crate::flags::{Flag, Flags};
use crate::inbox::Inbox;
use crate::limits::{Pace, SocketLimits};
use crate::outbox::Outbox;
use crate::time::Tick;

/// The state of one connection.
///
/// ```text
///                   connected                close            queue empty: FIN sent
///     Connecting ────────────▶ Open ────────────────▶ Closing ────────────▶ Lingering
///         │                     │                        │    (throw input away until   │
///         │ failed              │ both ends finished,    │     the peer's end, 1 s or   │
///         ▼                     ▼ reset, abort           ▼     64 KiB)                  ▼
///     Doomed ◀─────────────────────────────────────────────────────────────────────── Doomed ──▶ reaped
/// ```
///
/// An idle one is this and nothing else: no buffer, no box. Readiness is remembered here, because the kernel
/// reports it once (edge-triggered): only `WouldBlock`, or a short read with no end announced, clears it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) generation: NonZeroU32,
    /// The service it belongs to.
    pub(crate) host: u16,
    pub(crate) stage: Stage,
    /// Where its entry in this turn's list of connections with something to write is, or [`NOT_DIRTY`].
    pub(crate) dirty: u32,
    pub(crate) flags: Flags,
    pub(crate) peer: Peer,
    /// Its own address, as an index into the table's list of them, or [`NO_LOCAL`].
    pub(crate) local: u8,
    pub(crate) extra: Option<Box<Extra>>,
    pub(crate) why: Option<Closed>,
    pub(crate) inbox: Option<Box<Inbox>>,
    pub(crate) outbox: Option<Box<Outbox>>,
    pub(crate) born: Tick,
    /// The last activity. Refreshing a timeout is this one store; see the wheel.
    pub(crate) touched: Tick,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// Ten thousand idle connections are ten thousand of these; see "What an idle connection costs" in the docs.
const _: () = assert!(size_of::<Connection>() <= 96);

pub(crate) const NOT_DIRTY: u32 = u32::MAX;
pub(crate) const NO_LOCAL: u8 = u8::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Connecting,
    Open,
    Closing,
    Lingering,
    Doomed,
}

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
    pub(crate) fn new(generation: NonZeroU32, host: u16, stage: Stage, peer: Peer, now: Tick) -> Connection {
        Connection {
            generation,
            host,
            stage,
            dirty: NOT_DIRTY,
            flags: Flags::default(),
            peer,
            local: NO_LOCAL,
            extra: None,
            why: None,
            inbox: None,
            outbox: None,
            born: now,
            touched: now,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    pub(crate) fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(crate) fn dial(&self) -> Option<&Dial> {
        self.extra.as_ref()?.dial.as_deref()
    }

    pub(crate) fn dial_mut(&mut self) -> &mut Dial {
        self.extra().dial.get_or_insert_default()
    }

    pub(crate) fn clocks(&self) -> Option<&Clocks> {
        self.extra.as_ref()?.clocks.as_deref()
    }

    pub(crate) fn seal(&self) -> Option<&Seal> {
        self.extra.as_ref()?.seal.as_deref()
    }

    pub(crate) fn seal_mut(&mut self) -> Option<&mut Seal> {
        self.extra.as_mut()?.seal.as_deref_mut()
    }

    pub(crate) fn clocks_mut(&mut self) -> Option<&mut Clocks> {
        self.extra.as_mut()?.clocks.as_deref_mut()
    }

    /// Whether a user may still find it: closing connections are gone already, for those who would send to them.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Open)
    }

    /// Whether it has called and its handshake is not done: its service has not met it.
    pub(crate) fn is_stranger(&self) -> bool {
        self.flags.has(Flag::Unmet) && !self.flags.has(Flag::Dialed)
    }

    /// Whether there is a stream that bytes can be written to.
    pub(crate) fn has_stream(&self) -> bool {
        !matches!(self.stage, Stage::Connecting | Stage::Doomed)
    }

    /// Whether its service, or the other end of its pipe, is willing to take input now. While it is not, the peer
    /// cannot be blamed for silence. The two directions of a pipe do not wait for each other: whether a piped
    /// connection is full itself is of no concern to what arrives at it.
    pub(crate) fn is_willing(&self) -> bool {
        let flags = &self.flags;
        if flags.has(Flag::Securing) {
            return !flags.has(Flag::Thirsty); // A handshake is nobody's input.
        }
        let taken = match flags.has(Flag::Piped) {
            true => !flags.has(Flag::Blocked),
            false => !flags.has(Flag::Full) || flags.has(Flag::ReadFull),
        };
        taken && !flags.any(&[Flag::Paused, Flag::Thirsty])
    }

    /// Whether a turn should spend a read on it.
    pub(crate) fn wants_read(&self) -> bool {
        self.flags.has(Flag::Readable)
            && !self.flags.has(Flag::Ended)
            && match self.stage {
                Stage::Open => self.is_willing() && !self.flags.has(Flag::Waiting),
                Stage::Closing | Stage::Lingering => true,
                Stage::Connecting | Stage::Doomed => false,
            }
    }

    /// Whether a turn should look at it at all.
    #[inline]
    pub(crate) fn wants_serving(&self) -> bool {
        match self.stage {
            Stage::Connecting => self.flags.has(Flag::Writable),
            Stage::Open => {
                let more = || self.flags.any(&[Flag::Redeliver, Flag::Securing]) && self.wants_more();
                self.wants_read() || more()
            }
            Stage::Closing | Stage::Lingering => self.wants_read(),
            Stage::Doomed => false,
        }
    }

    /// Whether it has something to do without a read: deliver again, or begin a handshake.
    #[inline(never)]
    fn wants_more(&self) -> bool {
        (self.flags.has(Flag::Redeliver) && self.is_willing()) || self.may_begin_handshake()
    }

    /// Whether there is something to begin a handshake with: what arrived before it was asked for, or, on our side, no
    /// need of anything.
    fn may_begin_handshake(&self) -> bool {
        let flags = &self.flags;
        flags.has(Flag::Securing)
            && !flags.has(Flag::Waiting)
            && self.seal().is_some_and(|seal| seal.how.is_some())
            && (flags.has(Flag::Dialed) || self.inbox.is_some())
    }

    /// Whether our end is to be sent as soon as nothing is queued.
    pub(crate) fn owes_end(&self) -> bool {
        (self.flags.has(Flag::Finishing) || self.stage == Stage::Closing) && !self.flags.has(Flag::Finished)
    }

    /// So many bytes have arrived.
    pub(crate) fn heard(&mut self, n: usize, now: Tick) {
        self.bytes_in += n as u64;
        if self.stage == Stage::Open {
            self.touched = now;
        }
        if let Some(quiet) = self.clocks_mut().and_then(|clocks| clocks.reading.as_mut()) {
            quiet.since = now;
        }
    }

    /// The kernel says that nothing more has arrived.
    pub(crate) fn run_dry(&mut self) {
        self.flags.lower(Flag::Readable);
        // The announcement was early or spurious; the end itself will raise a new edge.
        self.flags.lower(Flag::EndAnnounced);
    }

    /// The kernel has taken so many bytes.
    pub(crate) fn wrote(&mut self, n: usize, now: Tick) {
        self.bytes_out += n as u64;
        self.touched = now;
        if let Some(quiet) = self.clocks_mut().and_then(|clocks| clocks.writing.as_mut()) {
            quiet.since = now;
        }
    }

    /// Queued bytes that go as they are, although it is secured: they were sent before.
    pub(crate) fn bare(&self) -> usize {
        self.seal().map_or(0, |seal| seal.bare)
    }

    /// Whether what is queued has a way out: not before it is connected, nor, secured, before the handshake is done.
    pub(crate) fn can_write(&self) -> bool {
        let open = !self.flags.has(Flag::Securing) || self.flags.has(Flag::SealedEnd) || self.bare() > 0;
        self.has_stream() && (open || self.outbox.as_ref().is_some_and(|outbox| outbox.has_sealed()))
    }

    pub(crate) fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.queued())
    }

    /// Bytes kept for it, in and out: what eviction looks at.
    pub(crate) fn held(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.charge())
            + self.outbox.as_ref().map_or(0, |outbox| outbox.held())
    }

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
    use super::*;

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
