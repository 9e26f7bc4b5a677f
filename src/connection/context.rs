//! What all connections share: the clock, the limits, the memory account, and the queues of the turn.
//!
//! Read before: `connection/state.rs`. Next: `connection/mod.rs`, whose methods get a `Context`.

use std::collections::VecDeque;
use std::time::Duration;

use super::backpressure::SenderWaits;
use super::deferred::Pokes;
use super::rate::Group;
use crate::base::id::ConnId;
use crate::base::observers::Observers;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::stats::Stats;
use crate::base::tick::Tick;
use crate::config::dial::SocketOption;
use crate::config::limits::{Limits, SocketLimits};
use crate::connection::admission::shared::Admit;
use crate::parts::arena::{Arena, SegmentList};
use crate::parts::handshake_queue::HandshakeQueue;
use crate::parts::inbox::SpareInboxes;
use crate::parts::log_limit::LogLimit;
use crate::parts::wheel::Wheel;
use crate::sys::Epoch;

/// Everything that a method of one [`Connection`](super::Connection) needs beside the connection itself. It cannot
/// reach another connection: what is to happen later, or to another one, is queued here as an id, and a phase does it.
///
/// ```text
///     ready     has readable bytes and a service that wants them      ─▶ phase 4, read
///     dirty     has something to write, with what it sends this turn  ─▶ phase 6, write
///     pokes     its service has asked for `poked`                     ─▶ end of phase 5, expire
///     drained   has come below its low-water mark                     ─▶ phase 6, after all writes
///     to_reap   has ended                                             ─▶ phase 7, reap
/// ```
///
/// A connection is in a queue at most once; its own state says whether it is (`Flag::Ready`, `dirty`, `Flag::Full`,
/// `Stage::Dead`). The queues hold ids and not slots, because a slot may be freed and used again before a queue is
/// read.
pub(crate) struct Context {
    // -- time: read once per turn -----------------------------------------------------------------------
    pub(crate) now: Tick,
    /// When the loop was created, and the time from then to this turn.
    pub(crate) epoch: Epoch,
    pub(crate) elapsed: Duration,
    pub(crate) wheel: Wheel,
    // -- bounds ------------------------------------------------------------------------------------------
    pub(crate) limits: Limits,
    /// By service; the first entry is that of refused peers.
    pub(crate) socket_limits: Vec<SocketLimits>,
    /// Bytes in inboxes and outboxes.
    pub(crate) memory: usize,
    /// Four fifths of the memory limit. Above it every queue counts as full, so that reading stops before connections
    /// have to be evicted.
    memory_pressure: usize,
    /// Rates that several connections share.
    pub(crate) groups: Vec<Group>,
    /// By service: the addresses that it admits, and what they have open.
    pub(crate) admissions: Vec<Option<Box<dyn Admit>>>,
    pub(crate) handshakes: HandshakeQueue,
    pub(crate) sender_waits: SenderWaits,
    // -- queues of the turn ------------------------------------------------------------------------------
    pub(crate) arena: Arena,
    /// A buffer in which the segments of one TLS record are joined, because a filter encrypts one slice at a time, and
    /// into which a small file is read.
    pub(crate) joined: Vec<u8>,
    pub(crate) spare_inboxes: SpareInboxes,
    pub(crate) ready: Vec<ConnId>,
    pub(crate) dirty: Vec<Dirty>,
    pub(crate) drained: Vec<ConnId>,
    pub(crate) pokes: Pokes,
    /// Connections whose peer may have left while they are not read, and whose service wants to know.
    pub(crate) leavers: Vec<ConnId>,
    pub(crate) to_reap: Vec<ConnId>,
    /// Socket options that services have set on connections that have a stream.
    pub(crate) pending_options: Vec<(ConnId, SocketOption)>,
    pub(crate) lingering: Lingering,
    /// Whether a pipe was undone since the last write phase.
    pub(crate) unpiped: bool,
    // -- counters and log --------------------------------------------------------------------------------
    pub(crate) stats: Stats,
    pub(crate) log_limits: LogLimits,
    pub(crate) observers: Observers,
}

/// A connection to write, and what was sent to it in this turn. An entry without segments is there for its outbox or
/// its FIN.
#[derive(Clone, Copy)]
pub(crate) struct Dirty {
    pub(crate) id: ConnId,
    pub(crate) segments: SegmentList,
    /// The delivery in which its sender was last told that it is full.
    pub(crate) noted_in: u32,
}

/// Lingering connections, oldest first. The line may contain some that have ended since, because taking one out of its
/// middle would cost a search; `count` is the number of those that still linger.
#[derive(Default)]
pub(crate) struct Lingering {
    pub(crate) line: VecDeque<ConnId>,
    pub(crate) count: usize,
}

/// Messages that peers can cause at the default log level. Each is logged at most once per second, so that peers cannot
/// fill the log.
#[derive(Default)]
pub(crate) struct LogLimits {
    pub(crate) tls_failed: LogLimit,
    pub(crate) evicted: LogLimit,
    pub(crate) dry_run: LogLimit,
    pub(crate) accepts_paused: LogLimit,
}

impl Context {
    pub(crate) fn new(limits: Limits, epoch: Epoch) -> Context {
        Context {
            now: Tick(0),
            epoch,
            elapsed: Duration::ZERO,
            wheel: Wheel::for_slots(limits.slots()),
            memory_pressure: limits.memory / 5 * 4,
            limits,
            socket_limits: Vec::new(),
            memory: 0,
            groups: Vec::new(),
            admissions: Vec::new(),
            handshakes: HandshakeQueue::default(),
            sender_waits: SenderWaits::default(),
            arena: Arena::new(),
            joined: Vec::new(),
            spare_inboxes: SpareInboxes::default(),
            ready: Vec::new(),
            dirty: Vec::new(),
            drained: Vec::new(),
            pokes: Pokes::default(),
            leavers: Vec::new(),
            to_reap: Vec::new(),
            pending_options: Vec::new(),
            lingering: Lingering::default(),
            unpiped: false,
            stats: Stats::default(),
            log_limits: LogLimits::default(),
            observers: Observers::default(),
        }
    }

    #[inline]
    pub(crate) fn limits_of(&self, service: u16) -> &SocketLimits {
        &self.socket_limits[usize::from(service)]
    }

    pub(crate) fn is_under_pressure(&self) -> bool {
        self.memory > self.memory_pressure
    }

    /// Whether the memory limit is exceeded, so that a connection must be [evicted](super::table::Table::evict).
    pub(crate) fn is_over_memory(&self) -> bool {
        self.memory > self.limits.memory && !seeded(SeededBug::MemoryUnbounded)
    }

    /// Whether this turn's arena, with so many bytes more, would alone exceed the memory limit. Such a send closes its
    /// receiver: there is no place for what is sent to it. What is in queues and inboxes is bounded by eviction.
    pub(crate) fn would_exceed_memory(&self, length: usize) -> bool {
        self.arena.composed() + length > self.limits.memory
    }

    /// The queue length from which a connection is full. Under memory pressure that is one byte. It is never zero,
    /// because an empty queue that counts as full would never drain.
    pub(crate) fn high_water(&self, service: u16) -> usize {
        if self.is_under_pressure() { 1 } else { self.limits_of(service).high_water.max(1) }
    }

    /// The deadline of a handshake that is asked for now.
    pub(crate) fn handshake_deadline(&self, service: u16) -> Option<Tick> {
        self.limits_of(service).handshake.map(|span| self.now.after(span))
    }
}
