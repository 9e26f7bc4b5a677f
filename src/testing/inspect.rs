//! The state of a simulation between two phases, as plain data.

use std::time::Duration;

use super::Bench;
use crate::base::id::{ConnId, Token, TokenKind};
use crate::base::observer::Due;
use crate::base::reason::CloseReason;
use crate::base::stats::Stats;
use crate::base::tick::Tick;
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::connection::table::REFUSED;
use crate::connection::{Connection, NOT_DIRTY};
use crate::sys::Ready;
pub use crate::sys::sim::{KernelListener, KernelSocket, KernelState};

/// The kernel and the loop at one point of time: made by [`Bench::snapshot`].
///
/// ```text
///     sockets, listeners ─▶ events ─▶ connections, ready, dirty, to_reap … ─▶ free_slots
///     the kernel            poll       the loop                                reap
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The number of the turn that is under way, or of the next one.
    pub turn: u64,
    /// The time, since the bench was made.
    pub now: Duration,
    /// The sockets of the kernel, in the order in which they were made.
    pub sockets: Vec<KernelSocket>,
    /// The open listeners.
    pub listeners: Vec<KernelListener>,
    /// How many descriptors more the process may open; `None`: no limit.
    pub descriptors_left: Option<usize>,
    /// What the last poll has returned, a line for each event.
    pub events: Vec<String>,
    /// The connections, by slot.
    pub connections: Vec<ConnectionState>,
    /// The ready list: who is read in the next phase 4.
    pub ready: Vec<ConnId>,
    /// Connections with something to write, and the bytes that this turn has queued for them.
    pub dirty: Vec<(ConnId, usize)>,
    /// Connections that have come below their low-water mark, and whose service is not told yet.
    pub drained: Vec<ConnId>,
    /// How many connections wait for `poked`.
    pub pokes: usize,
    /// Posts and work put off with `later` that wait.
    pub posts: usize,
    /// Dials that phase 8 starts.
    pub pending_dials: Vec<ConnId>,
    /// Connections that have ended and whose slot is freed in phase 7.
    pub to_reap: Vec<ConnId>,
    /// Slots that a connection may have, and that none has.
    pub free_slots: usize,
    /// Slots that are kept for dials of connections.
    pub reserved_slots: usize,
    /// When the loop must turn without an event; `None`: no deadline.
    pub next_deadline: Option<Duration>,
    /// How many timers of services are set.
    pub timers: usize,
    /// Bytes in inboxes and outboxes.
    pub memory: usize,
    /// Whether the next turn does not sleep, because work is left over.
    pub has_work: bool,
    /// The counters.
    pub stats: Stats,
}

/// One connection at one point of time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionState {
    /// The id.
    pub id: ConnId,
    /// The slot, which later connections use again.
    pub slot: u32,
    /// The generation, which no other connection of the reactor has.
    pub generation: u32,
    /// The address of the peer, or what was dialed.
    pub peer: String,
    /// Whether it is a refused peer, which no service sees.
    pub is_refused: bool,
    /// `connecting`, `open`, `tarpitted`, `closing`, `lingering` or `dead`.
    pub stage: &'static str,
    /// The peer's direction: `open`, `ending` (an end is announced) or `ended` (FIN was read).
    pub incoming: &'static str,
    /// Our direction: `open`, `ending` (FIN follows the queue) or `ended`.
    pub outgoing: &'static str,
    /// The progress of its filter: `off`, `asked`, `queued`, `handshaking`, `open` or `ended`.
    pub filter: &'static str,
    /// Its flags that are no holds, such as `Readable`.
    pub flags: Vec<&'static str>,
    /// The reasons for which it is not read now: `Paused`, `Full`, `ReceiverFull`, `Throttled`.
    pub holds: Vec<&'static str>,
    /// Bytes that its service has not taken.
    pub inbox: usize,
    /// Bytes that the kernel has not accepted.
    pub outbox: usize,
    /// Whether phase 6 has it on its list.
    pub is_dirty: bool,
    /// When it is due, and what for.
    pub deadline: Option<(Duration, Due)>,
    /// When its entry in the timer wheel fires: at the deadline or before it.
    pub wheel: Option<Duration>,
    /// Sockets of a dial that are not connected yet.
    pub attempts: usize,
    /// The connection that it is piped with.
    pub pipe_peer: Option<ConnId>,
    /// Why it is closed, once that is known.
    pub close_reason: Option<CloseReason>,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
}

impl Bench {
    /// The state of the kernel and of the loop as plain data.
    ///
    /// ```
    /// use tidemill::services::Echo;
    /// use tidemill::testing::Bench;
    ///
    /// let mut bench = Bench::new();
    /// bench.serve(Echo::raw());
    /// let ann = bench.connect();
    /// bench.together(|bench| {
    ///     bench.say(ann, "hello");
    ///     let before = bench.snapshot();
    ///     assert_eq!((before.sockets[0].unread, before.connections[0].stage), (5, "open"));
    ///     assert_eq!(before.sockets[0].edge, ["readable"]);
    /// });
    /// assert_eq!(bench.snapshot().sockets[0].delivered, 5);
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        let (event_loop, table) = (&self.event_loop, &self.event_loop.table);
        let cx = &table.cx;
        let used = table.connections() + table.reserved;
        Snapshot {
            turn: cx.stats.turns + 1,
            now: self.elapsed(),
            sockets: self.script.kernel_sockets(),
            listeners: self.script.kernel_listeners(),
            descriptors_left: self.script.descriptors_left(),
            events: event_loop.polled().iter().map(event_line).collect(),
            connections: table.slots.iter().map(|(_, connection)| self.state_of(connection)).collect(),
            ready: cx.ready.clone(),
            dirty: cx.dirty.iter().map(|dirty| (dirty.id, dirty.segments.len())).collect(),
            drained: cx.drained.clone(),
            pokes: cx.pokes.len(),
            posts: event_loop.posts_waiting() + table.later.len(),
            pending_dials: table.pending_dials.clone(),
            to_reap: cx.to_reap.clone(),
            free_slots: cx.limits.connections.saturating_sub(used),
            reserved_slots: table.reserved,
            next_deadline: event_loop.next_deadline(),
            timers: table.timers.len(),
            memory: cx.memory,
            has_work: event_loop.has_work(),
            stats: cx.stats.clone(),
        }
    }

    fn state_of(&self, connection: &Connection) -> ConnectionState {
        let cx = &self.event_loop.table.cx;
        let (id, flags) = (connection.id, connection.flags);
        let names = |all: &[Flag]| {
            all.iter().filter(|&&flag| flags.contains(flag)).map(|&flag| flag_word(flag)).collect()
        };
        ConnectionState {
            id,
            slot: id.slot,
            generation: id.generation.get(),
            peer: connection.peer_address().to_string(),
            is_refused: connection.service == REFUSED,
            stage: stage_word(connection.stage),
            incoming: half_word(connection.incoming),
            outgoing: half_word(connection.outgoing),
            filter: filter_word(connection.filter),
            flags: names(&FLAGS),
            holds: names(&HOLDS),
            inbox: connection.inbox.as_ref().map_or(0, |inbox| inbox.unread().len()),
            outbox: connection.outbox.as_ref().map_or(0, |outbox| outbox.queued()),
            is_dirty: connection.dirty != NOT_DIRTY,
            deadline: connection
                .deadline(cx.limits_of(connection.service))
                .map(|(when, due)| (when.since_start(), due)),
            wheel: cx.wheel.when(id.slot).map(Tick::since_start),
            attempts: self.event_loop.attempts_of(id),
            pipe_peer: self.event_loop.table.pipe_peer(id),
            close_reason: connection.close_reason,
            bytes_in: connection.bytes_in,
            bytes_out: connection.bytes_out,
        }
    }
}

const FLAGS: [Flag; 12] = [
    Flag::Readable,
    Flag::Writable,
    Flag::Ready,
    Flag::Redeliver,
    Flag::Dialed,
    Flag::Counted,
    Flag::Broken,
    Flag::Piped,
    Flag::Spliced,
    Flag::HoldsReservedSlot,
    Flag::UsedReservedSlot,
    Flag::ReadWhenFull,
];

const HOLDS: [Flag; 4] = [Flag::Paused, Flag::Full, Flag::ReceiverFull, Flag::Throttled];

fn flag_word(flag: Flag) -> &'static str {
    match flag {
        Flag::Readable => "Readable",
        Flag::Writable => "Writable",
        Flag::Ready => "Ready",
        Flag::Redeliver => "Redeliver",
        Flag::Dialed => "Dialed",
        Flag::Counted => "Counted",
        Flag::Broken => "Broken",
        Flag::Piped => "Piped",
        Flag::Spliced => "Spliced",
        Flag::HoldsReservedSlot => "HoldsReservedSlot",
        Flag::UsedReservedSlot => "UsedReservedSlot",
        Flag::ReadWhenFull => "ReadWhenFull",
        Flag::Paused => "Paused",
        Flag::Full => "Full",
        Flag::ReceiverFull => "ReceiverFull",
        Flag::Throttled => "Throttled",
    }
}

fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Connecting => "connecting",
        Stage::Open => "open",
        Stage::Tarpitted => "tarpitted",
        Stage::Closing => "closing",
        Stage::Lingering => "lingering",
        Stage::Dead => "dead",
    }
}

fn half_word(half: Half) -> &'static str {
    match half {
        Half::Open => "open",
        Half::Ending => "ending",
        Half::Ended => "ended",
    }
}

fn filter_word(stage: FilterStage) -> &'static str {
    match stage {
        FilterStage::Off => "off",
        FilterStage::Asked => "asked",
        FilterStage::Queued => "queued",
        FilterStage::Handshaking => "handshaking",
        FilterStage::Open => "open",
        FilterStage::Ended => "ended",
    }
}

/// An event of the kernel as a line, such as `#0.1 readable writable`.
fn event_line(ready: &Ready) -> String {
    let mut line = token_name(ready.token);
    let all = [
        (ready.readable, " readable"),
        (ready.writable, " writable"),
        (ready.end, " end"),
        (ready.error, " error"),
        (ready.priority, " priority"),
    ];
    all.iter().filter(|(is_set, _)| *is_set).for_each(|(_, word)| line += word);
    line
}

fn token_name(token: Token) -> String {
    match token.kind() {
        Some(TokenKind::Connection(id)) => id.to_string(),
        Some(TokenKind::Listener(index)) => format!("listener {index}"),
        Some(TokenKind::Watched(index)) => format!("descriptor {index}"),
        Some(TokenKind::Wake) => "waker".to_string(),
        None => "unknown token".to_string(),
    }
}
