//! Every limit, with its default and the reason for it.
//!
//! Every resource that grows has one of these limits. Sizes are in bytes, budgets are per turn, and `None` switches a
//! timeout or a rate off.

use std::time::Duration;

use crate::base::id::{GroupId, SLOTS_MAX};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The limits of a whole reactor.
///
/// Where a value of 0 would stop the loop (the budgets per turn, `lookups`, `handshakes`), it counts as 1.
///
/// # Examples
///
/// ```
/// use tidemill::Limits;
///
/// let limits = Limits { connections: 500, ..Limits::default() };
/// assert_eq!(limits.memory, 64 * 1024 * 1024);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Concurrent connections, accepted and dialed together. Default 10,000 (the default of Redis); at most 8,388,096.
    ///
    /// Each connection is one descriptor; see [`for_descriptors`](Limits::for_descriptors).
    pub connections: usize,
    /// Refused peers to which a reply is being sent. Default 256.
    ///
    /// Their sockets stay open until the peer has read the reply, for at most [`SocketLimits::linger`], because a
    /// socket that is closed at once can destroy the reply by a reset. At this limit, further peers wait in the
    /// backlog.
    pub refusals: usize,
    /// Refused peers that are kept open without an answer: see [`RefuseMode::Tarpit`](crate::RefuseMode::Tarpit). They
    /// count among the [`refusals`](Limits::refusals). Default 64.
    pub tarpitted: usize,
    /// Host names that are being looked up, or wait for a resolver thread. Default 256; the dial of a further name
    /// fails.
    pub lookups: usize,
    /// Concurrent attempts to connect beyond the first one of each dial, where a name has several addresses. Default
    /// 64; at this limit, a dial starts no further attempt while one of its own is in progress.
    pub extra_attempts: usize,
    /// Connections whose input goes to the other end of a [pipe](crate::Socket::pipe) inside the kernel, without being
    /// copied (splice(2), Linux). Default 64; 0 switches it off. Input of further connections is copied.
    ///
    /// A connection starts splicing after two full reads in a row, and stops when little arrives. That halves the
    /// processor time of a bulk transfer. Each costs two descriptors and up to 1 MiB of kernel memory, which
    /// [`memory`](Limits::memory) does not count. Splicing to a peer that has closed raises SIGPIPE: every Rust program
    /// ignores that signal; where `main` is written in another language, the program must ignore it.
    pub splices: usize,
    /// Inbound TLS handshakes in progress. Default 64.
    ///
    /// One handshake takes as much processor time as a hundred messages. Further connections wait, without being read.
    /// The newest starts first, because a client that has waited long has often given up. At most four start in one
    /// turn, so that established connections are served in between. When all places are taken and one is waited for,
    /// the oldest handshake that has had its place for 1 s is closed; for 200 ms, if more wait than there are places.
    pub handshakes: usize,
    /// Timers that belong to no connection. Default 1,024.
    pub timers: usize,
    /// Descriptors that are [watched](crate::Sockets::watch) beside the connections. Default 64.
    pub watched: usize,
    /// Bytes in all input buffers and output queues together. Default 64 MiB.
    ///
    /// A limit per connection does not bound the sum: a thousand peers that do not read would hold a thousand full
    /// queues. Above four fifths of this, a connection with queued output is not read. Above it, the connection that
    /// holds most is closed with [`CloseReason::Memory`](crate::CloseReason::Memory), then the next.
    pub memory: usize,
    /// Connections accepted from one listener in one turn. Default 16, so that a burst of connects does not delay
    /// established connections.
    pub accepts_per_turn: usize,
    /// Bytes read from one connection in one turn, with at most 16 system calls. Default 64 KiB.
    pub read_budget: usize,
    /// Bytes read in one turn from all connections together that used up their read budget in an earlier turn. Default
    /// 1 MiB: one or two milliseconds, however many peers send without pause.
    pub carried_over_budget: usize,
    /// Bytes written to one connection in one turn; one system call may exceed it. Default 64 KiB (that of Redis).
    pub write_budget: usize,
    /// Deadlines handled in one turn. Default 256; if ten thousand pass together, they are spread over several turns.
    pub expirations_per_turn: usize,
    /// Events taken from the kernel in one turn. Default 1,024.
    pub events_per_turn: usize,
    /// Posts of other threads that may be queued for the loop. Default 65,536; further ones are refused. As many may be
    /// put off with [`Sockets::later`](crate::Sockets::later).
    pub posts: usize,
    /// Posts of other threads that run in one turn. Default 1,024; as many put off with `later`.
    pub posts_per_turn: usize,
    /// How long to poll for events without sleeping, before the loop goes to sleep. Off by default.
    ///
    /// Waking a thread costs more than a small answer does, so busy polling more than halves the latency of a single
    /// ping-pong connection, at the price of one busy processor core meanwhile. The loop polls only while recent events
    /// came within this time; at a thousand events a second, a value of 50 µs costs nothing. Useful values: 20 to
    /// 200 µs.
    pub busy_poll: Option<Duration>,
    /// The limits of each connection, for services that are added without limits of their own.
    pub socket: SocketLimits,
}

/// The limits of each connection of one service.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tidemill::SocketLimits;
///
/// let patient = SocketLimits { idle: Some(Duration::from_secs(30 * 60)), ..SocketLimits::default() };
/// assert_eq!(patient.high_water, 64 * 1024);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SocketLimits {
    /// When no byte has moved in either direction for this long, [`Service::idle`](crate::Service::idle) is called; by
    /// default it closes the connection. Default 60 s.
    pub idle: Option<Duration>,
    /// The first byte of an accepted connection must arrive within this. Off by default, because in some protocols the
    /// client first reads a greeting.
    pub first_byte: Option<Duration>,
    /// A dial must be connected within this. Default 10 s.
    pub connect: Option<Duration>,
    /// A TLS handshake must be complete within this, counted from accept or connect, however many bytes arrive
    /// meanwhile. Default 10 s.
    pub handshake: Option<Duration>,
    /// When one end has sent FIN and no byte has moved for this long, the connection is closed. Default 60 s.
    pub half_closed: Option<Duration>,
    /// The maximum age of a connection. Off by default.
    pub lifetime: Option<Duration>,
    /// By how much the lifetime of a connection is shortened at most. Each connection has a random part of this, which
    /// stays the same for its life, so that connections of one moment do not all end, and come again, at once.
    /// Default 0.
    pub lifetime_jitter: Duration,
    /// Lingering close: after a connection is closed and all output is written, input is read and discarded for this
    /// long, or for [`linger_bytes`](SocketLimits::linger_bytes). Default 1 s.
    ///
    /// A close(2) with unread input makes the kernel send a reset, and a reset destroys the output that the peer has
    /// not read yet. Measured on Linux: of 3.9 MB that the kernel had accepted, 3.8 MB were lost. At most 5 % of
    /// [`Limits::connections`], but at least 16, linger at the same time; beyond that the oldest is closed.
    pub linger: Duration,
    /// Bytes that a lingering close discards at most: see [`linger`](SocketLimits::linger). Default 64 KiB.
    pub linger_bytes: usize,
    /// The minimum transfer rate of the peer's data while a message is incomplete. Default 1 KiB per 10 s.
    ///
    /// Without it, a peer could keep a connection for ever by sending one byte before each idle timeout. The clock is
    /// suspended while the connection is not read.
    pub min_read_rate: Option<MinRate>,
    /// The minimum transfer rate of output while output is queued. Default 1 KiB per 10 s.
    pub min_write_rate: Option<MinRate>,
    /// A message must be complete within this after its first byte. Off by default; for typed lines, use this (five
    /// minutes, for example) instead of [`min_read_rate`](SocketLimits::min_read_rate).
    pub message_timeout: Option<Duration>,
    /// Queued bytes from which a connection is full: it is not read then, and
    /// [`Socket::is_full`](crate::Socket::is_full) is true. Default 64 KiB.
    pub high_water: usize,
    /// Queued bytes at which a full connection is no longer full, and [`Service::drained`](crate::Service::drained) is
    /// called. Default 16 KiB.
    pub low_water: usize,
    /// Queued bytes above which a peer that does not read is closed. Default 1 MiB.
    pub queue: usize,
    /// Received bytes that a service may leave untaken. This bounds a message together with its header. Default 1 MiB
    /// and 16 bytes.
    pub message: usize,
    /// Bytes per second that are read from a connection. After a pause, an eighth of that at once, but at least 1,448.
    /// Off by default. See also [`Socket::join_group`](crate::Socket::join_group).
    pub rate: Option<usize>,
    /// The group whose rate the connections of the service share, in addition to their own. `None` by default.
    pub group: Option<GroupId>,
    /// Whether a connection is read while its own output queue is full. Default `false`: a peer that does not read its
    /// answers gets no further requests processed.
    pub read_when_full: bool,
    /// Whether a piped connection whose [pipe peer](crate::Socket::pipe) was cut off (a reset, or TLS without
    /// close_notify) ends with FIN, and over TLS with close_notify. Default `false`: it ends with a reset, because FIN
    /// says that the stream is complete.
    pub end_on_reset: bool,
}

/// A minimum transfer rate: a number of bytes in each span of time.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tidemill::{MinRate, SocketLimits};
///
/// let strict = MinRate { bytes: 64 * 1024, per: Duration::from_secs(5) };
/// let limits = SocketLimits { min_read_rate: Some(strict), min_write_rate: None, ..SocketLimits::default() };
/// assert_eq!(SocketLimits::default().min_read_rate, Some(MinRate { bytes: 1024, per: Duration::from_secs(10) }));
/// # let _ = limits;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes that must move in each span.
    pub bytes: usize,
    /// The span.
    pub per: Duration,
}

/// System calls of one kind on one connection in one turn, however few bytes each of them moves.
pub(crate) const CALLS_MAX: usize = 16;

impl Limits {
    /// The limits for a process that may open `n` descriptors: `min(10_000, n − max(16, n / 16))` connections.
    ///
    /// The other descriptors are for listeners, the poll, log files, refused peers, extra attempts to connect, splices,
    /// and files of the program itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use tidemill::Limits;
    ///
    /// assert_eq!(Limits::for_descriptors(1_024).connections, 960);
    /// assert_eq!(Limits::for_descriptors(64).connections, 48);
    /// ```
    pub fn for_descriptors(n: usize) -> Limits {
        Limits {
            connections: Limits::connections_within(n).min(10_000),
            // Fourteen of these descriptors are left for the standard streams, the poll, its timer and its waker, the
            // reserve, listeners and the pipes of signals.
            refusals: descriptors_set_aside(n).saturating_sub(14).clamp(2, 256),
            tarpitted: (descriptors_set_aside(n) / 4).clamp(1, 64),
            extra_attempts: (descriptors_set_aside(n) / 4).clamp(1, 64),
            splices: (descriptors_set_aside(n) / 16).min(64),
            ..Limits::default()
        }
    }

    /// The number of connections for a process that may open `n` descriptors: `n − max(16, n / 16)`, and at least 1.
    /// Unlike [`for_descriptors`](Limits::for_descriptors), not capped at 10,000.
    pub fn connections_within(n: usize) -> usize {
        n.saturating_sub(descriptors_set_aside(n)).max(1)
    }
}

impl Limits {
    /// The number of slots to reserve at the start. Reserved memory that is never touched costs nothing, while a vector
    /// that grows leaves freed blocks behind.
    pub(crate) fn slots(&self) -> usize {
        self.connections.saturating_add(self.refusals).min(64 * 1024)
    }

    /// Raises 0 to 1 wherever 0 would stop the loop: with a budget of 0, work would be carried over for ever. Lowers
    /// counts to what the slots can number.
    pub(crate) fn able_to_progress(mut self) -> Limits {
        let counts = [
            &mut self.lookups,
            &mut self.handshakes,
            &mut self.accepts_per_turn,
            &mut self.read_budget,
            &mut self.carried_over_budget,
            &mut self.write_budget,
            &mut self.expirations_per_turn,
            &mut self.posts_per_turn,
        ];
        for count in counts {
            *count = (*count).max(1);
        }
        // Connections and refused peers share the slots; timers have a wheel of their own.
        self.connections = self.connections.min(SLOTS_MAX / 2);
        self.refusals = self.refusals.min(SLOTS_MAX / 2);
        self.timers = self.timers.min(SLOTS_MAX);
        self
    }
}

/// How many of `n` descriptors are set aside for other things than connections.
fn descriptors_set_aside(n: usize) -> usize {
    (n / 16).max(16)
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            refusals: 256,
            tarpitted: 64,
            lookups: 256,
            extra_attempts: 64,
            splices: 64,
            handshakes: 64,
            timers: 1_024,
            watched: 64,
            memory: 64 * MIB,
            accepts_per_turn: 16,
            read_budget: 64 * KIB,
            carried_over_budget: MIB,
            write_budget: 64 * KIB,
            expirations_per_turn: 256,
            events_per_turn: 1_024,
            posts: 65_536,
            posts_per_turn: 1_024,
            busy_poll: None,
            socket: SocketLimits::default(),
        }
    }
}

impl Default for SocketLimits {
    fn default() -> SocketLimits {
        let pace = MinRate { bytes: KIB, per: Duration::from_secs(10) };
        SocketLimits {
            idle: Some(Duration::from_secs(60)),
            first_byte: None,
            connect: Some(Duration::from_secs(10)),
            handshake: Some(Duration::from_secs(10)),
            half_closed: Some(Duration::from_secs(60)),
            lifetime: None,
            lifetime_jitter: Duration::ZERO,
            linger: Duration::from_secs(1),
            linger_bytes: 64 * KIB,
            min_read_rate: Some(pace),
            min_write_rate: Some(pace),
            message_timeout: None,
            high_water: 64 * KIB,
            low_water: 16 * KIB,
            queue: MIB,
            message: MIB + 16,
            rate: None,
            group: None,
            read_when_full: false,
            end_on_reset: false,
        }
    }
}

impl SocketLimits {
    /// Limits for lines typed by a person: no minimum read rate, but five minutes to complete a line, and lines of at
    /// most 8 KiB. All other limits are the defaults.
    ///
    /// # Examples
    ///
    /// ```
    /// let typed = tidemill::SocketLimits::interactive();
    /// assert_eq!(typed.min_read_rate, None);
    /// ```
    pub fn interactive() -> SocketLimits {
        SocketLimits {
            min_read_rate: None,
            message_timeout: Some(Duration::from_secs(5 * 60)),
            message: 8 * KIB + 2,
            ..SocketLimits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_limit_leaves_descriptors_for_the_rest_of_the_process() {
        for (n, cap) in
            [(20_000, 10_000), (10_667, 10_000), (1_024, 960), (256, 240), (64, 48), (17, 1), (0, 1)]
        {
            let limits = Limits::for_descriptors(n);
            assert_eq!(limits.connections, cap, "{n} descriptors");
            assert!(
                n < 64 || limits.connections + limits.refusals + 8 <= n,
                "{n} descriptors are not enough"
            );
        }
    }

    #[test]
    fn the_default_low_water_is_below_high_water_and_that_below_the_queue_limit() {
        let limits = SocketLimits::default();
        assert!(limits.low_water < limits.high_water && limits.high_water < limits.queue);
    }
}
