//! Every limit, its default, and why that number.
//!
//! Nothing in the reactor grows without one of these. Sizes are in bytes, budgets are per turn, and a span of
//! time that is `None` is switched off.

use std::time::Duration;

use crate::base::id::GroupId;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What the whole reactor may hold and do.
///
/// ```
/// use tidemill::Limits;
///
/// let limits = Limits { connections: 500, ..Limits::default() };
/// assert_eq!(limits.memory, 64 * 1024 * 1024);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Connections at once, accepted and dialed together. Default 10,000, as Redis.
    ///
    /// Every connection is a descriptor; see [`for_descriptors`](Limits::for_descriptors).
    pub connections: usize,
    /// Refused peers at once that are still being told so. Default 256.
    ///
    /// A refusal must be heard: its socket stays open until the peer has read it, for at most
    /// [`SocketLimits::linger`]. When so many are being told, further peers wait in the backlog.
    pub refusals: usize,
    /// Refused peers at once that are held in silence: see [`RefuseMode::Tarpit`](crate::RefuseMode::Tarpit). They are
    /// among the [`refusals`](Limits::refusals). Default 64.
    pub tarpitted: usize,
    /// Names at once that are being looked up or wait for it. Default 256; a dial of a further one fails.
    pub lookups: usize,
    /// Attempts to connect at once beyond the first of each dial, where a name stands for several addresses. Default
    /// 64; when so many are under way, a dial goes on with those it has.
    pub extra_attempts: usize,
    /// Connections at once whose input goes to the other end of a [pipe](crate::Socket::pipe) within the kernel,
    /// without being copied (Linux's splice). Default 64, and 0 switches it off; further ones are copied.
    ///
    /// It begins when two reads in a row were full and ends when little comes, and saves half of the processor time of
    /// a bulk transfer. Each such connection costs two descriptors, and up to 1 MiB of the kernel's memory that
    /// [`memory`](Limits::memory) does not count. The kernel raises SIGPIPE where a peer is found gone: a Rust program
    /// ignores that signal from its start, a library in another program has to see to it.
    pub splices: usize,
    /// Callers at once whose TLS handshakes are under way. Default 64.
    ///
    /// A handshake costs as much of the processor as some hundred messages. Further callers wait, unread, and the
    /// newest of them begins first: who has waited long has often given up. At most four begin in one turn, so that
    /// those who are connected are served in between. When all places are taken and somebody waits, whoever has had
    /// his for a second at least loses it, the eldest first; or for 200 ms, when more wait than there are places.
    pub handshakes: usize,
    /// Timers at once that belong to no connection. Default 1,024.
    pub timers: usize,
    /// Bytes in all inboxes and outboxes together. Default 64 MiB.
    ///
    /// A cap per connection bounds nothing by itself: a thousand peers that never read hold a thousand caps.
    /// From four fifths of this, connections with anything queued are not read; past it, the connection that
    /// holds most is closed with [`CloseReason::Memory`](crate::CloseReason::Memory), then the next.
    pub memory: usize,
    /// Connections accepted from one listener in one turn. Default 16: a burst of newcomers must not delay
    /// those who are already inside.
    pub accepts_per_turn: usize,
    /// Bytes read from one connection in one turn. Default 64 KiB, at most 16 calls.
    pub read_budget: usize,
    /// Bytes read in one turn from all those together whom an earlier turn's budget had cut off. Default 1 MiB: a
    /// millisecond or two that others wait, however many there are who send without pause.
    pub carried_over_budget: usize,
    /// Bytes written to one connection in one turn, give or take one call. Default 64 KiB, as Redis.
    pub write_budget: usize,
    /// Deadlines handled in one turn. Default 256; ten thousand that fall together are spread over turns.
    pub expirations_per_turn: usize,
    /// Events taken from the kernel at once. Default 1,024.
    pub events_per_turn: usize,
    /// Requests from other threads that may wait for the loop. Default 65,536; further ones are refused.
    pub posts: usize,
    /// Requests from other threads that run in one turn. Default 1,024.
    pub posts_per_turn: usize,
    /// How long to look for events before sleeping, while events have lately come as soon as that. Off by default.
    ///
    /// Waking up costs more than a small answer does, so this more than halves the latency of a lone conversation, at
    /// the price of a busy processor while it goes on. It stops by itself when events come later than that: at a
    /// thousand a second, fifty microseconds cost nothing. Useful values lie between 20 and 200 µs.
    pub busy_poll: Option<Duration>,
    /// What each connection may hold and do, for services that do not bring their own.
    pub socket: SocketLimits,
}

/// What one connection of a service may hold and do.
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
    /// No byte either way for so long: [`Service::idle`](crate::Service::idle). Default 60 s.
    pub idle: Option<Duration>,
    /// The peer's first byte must come within this. Off by default: people read greetings first.
    pub first_byte: Option<Duration>,
    /// Connecting out must succeed within this. Default 10 s.
    pub connect: Option<Duration>,
    /// A TLS handshake must be done within this, from accept or connect on, however many bytes come meanwhile. Default
    /// 10 s.
    pub handshake: Option<Duration>,
    /// One side has finished; how long without a byte until both must have. Default 60 s.
    pub half_closed: Option<Duration>,
    /// The longest a connection may live. Off by default.
    pub lifetime: Option<Duration>,
    /// After our own end has been sent, unread input is read and thrown away for so long, or for
    /// [`linger_bytes`](SocketLimits::linger_bytes). Default 1 s.
    ///
    /// A close with unread input makes the kernel send a reset, and a reset destroys what the peer has not read
    /// yet: of 3.9 MB already handed to the kernel, 3.8 MB were lost so in a measurement on Linux.
    pub linger: Duration,
    /// See [`linger`](SocketLimits::linger). Default 64 KiB.
    pub linger_bytes: usize,
    /// While a message is incomplete, the peer must send at this pace. Default 1 KiB per 10 s.
    ///
    /// The idle limit alone lets a peer hold a slot for ever with one byte a minute.
    pub min_read_rate: Option<MinRate>,
    /// While bytes are queued, the peer must take them at this pace. Default 1 KiB per 10 s.
    pub min_write_rate: Option<MinRate>,
    /// A message that has begun must be complete within this. Off by default; five minutes suit lines that
    /// people type, in place of a [`read_pace`](SocketLimits::min_read_rate).
    pub message_timeout: Option<Duration>,
    /// Queued bytes from which a socket is full. Default 64 KiB.
    pub high_water: usize,
    /// Queued bytes at which a full socket is no longer so, and [`Service::drained`](crate::Service::drained)
    /// is called. Default 16 KiB.
    pub low_water: usize,
    /// Queued bytes at which a peer that does not read is closed. Default 1 MiB.
    pub queue: usize,
    /// Received bytes that a service may leave untaken, which bounds the length of a message together with
    /// its header. Default 1 MiB and 16 bytes.
    pub message: usize,
    /// Bytes a second that are read from a connection; an eighth of it at once after a silence, and never less than
    /// 1,448. Off by default. See also [`Socket::join_group`](crate::Socket::join_group).
    pub rate: Option<usize>,
    /// The group whose rate they share, beside their own. None by default.
    pub group: Option<GroupId>,
    /// Go on reading from a connection whose own queue is full. Default `false`: a peer that does not read its
    /// answers is not asked for more questions.
    pub read_when_full: bool,
}

/// A least rate: so many bytes in each such span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes that must move in each span.
    pub bytes: usize,
    /// The span.
    pub per: Duration,
}

/// Calls of one kind on one connection in one turn, whatever their size.
pub(crate) const CALLS_MAX: usize = 16;

impl Limits {
    /// The limits for a process that may open `n` descriptors: `min(10_000, n − max(16, n / 16))` connections.
    ///
    /// What is left over is for listeners, the poll itself, logs, refused peers, and whatever else the process opens.
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
            // Some eight of the spare ones are the process's own: standard streams, the poll, a waker, listeners.
            refusals: descriptors_set_aside(n).saturating_sub(12).clamp(2, 256),
            tarpitted: (descriptors_set_aside(n) / 4).clamp(1, 64),
            extra_attempts: (descriptors_set_aside(n) / 4).clamp(1, 64),
            splices: (descriptors_set_aside(n) / 16).min(64),
            ..Limits::default()
        }
    }

    /// How many connections a process may allow itself that may open `n` descriptors: all but a sixteenth of them, and
    /// all but sixteen; at least 1. Only [`for_descriptors`](Limits::for_descriptors) stops at 10,000.
    pub fn connections_within(n: usize) -> usize {
        n.saturating_sub(descriptors_set_aside(n)).max(1)
    }
}

impl Limits {
    /// How many slots to make room for from the start. Room that is not used is no memory yet, but what a vector leaves
    /// behind each time it grows is.
    pub(crate) fn slots(&self) -> usize {
        self.connections.saturating_add(self.refusals).min(64 * 1024)
    }

    /// The same with at least 1 wherever 0 would stop the loop: work that no turn may do is carried over for ever.
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
        self
    }
}

/// How many of `n` descriptors are left for what is no connection.
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
        }
    }
}

impl SocketLimits {
    /// Limits for lines that people type: nobody types a kilobyte in ten seconds, so an unfinished line only has
    /// to end within five minutes, and lines are at most 8 KiB.
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
    fn the_cap_leaves_descriptors_for_the_rest_of_the_process() {
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
    fn the_marks_are_in_order() {
        let limits = SocketLimits::default();
        assert!(limits.low_water < limits.high_water && limits.high_water < limits.queue);
    }
}
