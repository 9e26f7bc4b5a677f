//! Watching a loop: each step that it takes is given to observers, as the value of one enum.
//!
//! Traces, metrics and drawings of the loop are made from these steps. [`Reactor::observe`](crate::Reactor::observe)
//! adds an observer. Without one, each step costs the loop a comparison and a branch. An observer that counts turns and
//! connections does without the steps of messages ([`Observer::wants_messages`]) and of most turns
//! ([`Observer::next_turn`]).
//!
//! # The order of steps
//!
//! ```text
//!     Phase(Poll)  Woken  Phase(Dispatch) Event*  Phase(RunPosts) …  Phase(Read) …        Phase(Accept) …  TurnEnd
//!                                                                    │
//!                                       one echo:   Read   Call(Data)   Send   Return(Data)     in Read
//!                                                   Write                                       in Write
//! ```
//!
//! - A turn begins with [`Phase::Poll`] and ends with [`Step::TurnEnd`]. [`Step::Woken`] follows the sleep. A turn in
//!   which the system's poll fails ends after `Phase::Poll`.
//! - Every phase is announced in every turn, in the order of [`Phase::ALL`]. `read` interrupts itself to write when the
//!   block of this turn is full: [`Phase::Write`] is announced then, and [`Phase::Read`] again when it goes on. The
//!   phase `accept` ends with such a `write` if connections were added.
//! - After each [`Step::Call`] the next `Call` or `Return` is its [`Step::Return`], because callbacks do not nest. A
//!   callback that the service does not implement is reported too, one that has no session is not.
//! - What a callback does is reported between its `Call` and its `Return`: a [`Step::Send`] there is a send of that
//!   callback. A `Send` outside is of the loop itself (a pipe, a reply to a refused peer), or of the reactor's owner
//!   between two turns.
//! - For each connection, [`Step::Accept`] or [`Step::Dial`] is first, and only the call of `closed` follows
//!   [`Step::Close`]. A refused peer that gets an answer has a connection too: it has no `Accept`, and no service in
//!   its `Close`.
//! - There is a [`Step::Read`] for each of [`Stats::reads`](crate::Stats::reads), and a [`Step::Write`] for each of
//!   [`Stats::writes`](crate::Stats::writes).
//!
//! # Time
//!
//! The loop reads the clock once in a turn, after the sleep: [`Step::Woken`] has that time. An observer that measures
//! how long a step takes reads a clock of its own.
//!
//! # Examples
//!
//! ```
//! use std::time::{Duration, Instant};
//! use tidemill::observer::Step;
//! use tidemill::{Limits, Reactor, services::Echo};
//!
//! let mut reactor = Reactor::new(Limits::default())?;
//! let mut began = Instant::now();
//! reactor.observe(move |step: &Step<'_>| match step {
//!     Step::Call(_) => began = Instant::now(),
//!     Step::Return(call) if began.elapsed() > Duration::from_millis(5) => {
//!         eprintln!("{} took {:?}", call.callback.word(), began.elapsed());
//!     }
//!     _ => {}
//! });
//! reactor.add(Echo::new());
//! reactor.turn(Some(Duration::ZERO))?;
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::id::{ConnId, ListenerId, ServiceId};
use crate::base::reason::{ClosedInfo, Refused};
use crate::base::stats::Stats;

/// Gets every step of a loop. A closure that takes a `&Step<'_>` is one.
///
/// It runs on the loop's thread, so it must not block, and what it takes is added to the turn. It cannot call the
/// reactor, which is borrowed meanwhile. A panic in it unwinds out of [`turn`](crate::Reactor::turn), like that of a
/// callback.
pub trait Observer {
    /// Called for each step, in the order in which they happen.
    fn observe(&mut self, step: &Step<'_>);

    /// Whether it gets the steps of each message, too: phases, events, callbacks, reads, sends, writes, FINs. Without
    /// these it costs the loop little: two steps in a turn ([`Step::Woken`] and [`Step::TurnEnd`], which has all
    /// counters), and those of connections and their deadlines. Asked once, when the observer is added. Default `true`.
    fn wants_messages(&self) -> bool {
        true
    }

    /// The number of the next turn of which it gets [`Step::Woken`] and [`Step::TurnEnd`]; `u64::MAX`: of none. Asked
    /// with the number of the last turn when it is added, and of this turn after each `TurnEnd` that it gets. Whatever
    /// it says, it gets the `TurnEnd` that follows any other step that it gets. So an observer that counts
    /// connections, or measures one turn in sixteen, costs nothing in the other turns. Default: `turn + 1`.
    fn next_turn(&self, turn: u64) -> u64 {
        turn.saturating_add(1)
    }
}

impl<F: FnMut(&Step<'_>)> Observer for F {
    fn observe(&mut self, step: &Step<'_>) {
        self(step);
    }
}

/// One step of a loop. The module says in which order they come.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Step<'a> {
    /// A phase begins, or goes on after a `write` in the middle of it; the one before has ended.
    Phase(Phase),
    /// The sleep is over, and the clock was read.
    Woken {
        /// The number of this turn, from 1.
        turn: u64,
        /// The time of this turn, since the reactor was made.
        now: Duration,
        /// Events that the kernel has reported.
        events: usize,
    },
    /// An event of the kernel.
    Event {
        /// What it is for.
        source: Source,
        /// There may be bytes to read, or connections to accept.
        readable: bool,
        /// There may be room for bytes to write, or an attempt to connect has an answer.
        writable: bool,
        /// The peer has ended its direction.
        end: bool,
        /// The socket has failed.
        error: bool,
    },
    /// A callback begins. Posts and work that was put off for later are callbacks here.
    Call(Call),
    /// The callback has returned.
    Return(Call),
    /// A read from a connection.
    Read {
        /// The connection.
        connection: ConnId,
        /// The number of bytes: 0 is the peer's FIN, or, of a splice, nothing. `WouldBlock`: nothing is left.
        result: Result<usize, &'a io::Error>,
    },
    /// Bytes were queued for a connection.
    Send {
        /// The connection that they are for.
        connection: ConnId,
        /// Their number, before encryption.
        bytes: usize,
    },
    /// A write to a connection.
    Write {
        /// The connection.
        connection: ConnId,
        /// The number of bytes that the kernel has accepted. `WouldBlock`: it has no room.
        result: Result<usize, &'a io::Error>,
    },
    /// Our FIN was sent, behind all output.
    Fin {
        /// The connection.
        connection: ConnId,
        /// An error of shutdown(2): the connection has failed.
        result: Result<(), &'a io::Error>,
    },
    /// The entry of a connection in the timer wheel has fired.
    Deadline {
        /// The connection.
        connection: ConnId,
        /// What is due. `None` if there was activity since the entry was set: it is set again.
        due: Option<Due>,
    },
    /// A connection was accepted. With TLS, `open` is called only after the handshake.
    Accept {
        /// The connection.
        connection: ConnId,
        /// Its service.
        service: ServiceId,
        /// Where it was accepted.
        listener: ListenerId,
        /// The address of the peer.
        peer: Address,
    },
    /// A peer was refused.
    Refuse {
        /// The service of the listener.
        service: ServiceId,
        /// The peer, the listener's address and the reason.
        refused: &'a Refused,
    },
    /// A service dials. The connect is made in phase 8.
    Dial {
        /// The connection.
        connection: ConnId,
        /// Its service.
        service: ServiceId,
        /// What was dialed: a name, or an address.
        to: Address,
    },
    /// An attempt to connect to one address starts.
    Attempt {
        /// The dial.
        connection: ConnId,
        /// The address.
        to: &'a Address,
    },
    /// An attempt to connect has failed.
    AttemptFailed {
        /// The dial.
        connection: ConnId,
        /// The address.
        to: &'a Address,
        /// The reason.
        error: &'a io::Error,
    },
    /// A dial is connected. With TLS, `connected` is called only after the handshake.
    Connected {
        /// The connection.
        connection: ConnId,
        /// The address of the attempt that has connected.
        to: &'a Address,
    },
    /// A connection has ended: its slot is free. `closed` is called next.
    Close {
        /// Its service. `None` if it was a refused peer, which no service has seen.
        service: Option<ServiceId>,
        /// The id, the reason and the counters.
        gone: &'a ClosedInfo,
    },
    /// The turn has ended.
    TurnEnd {
        /// Its number, as in [`Woken`](Step::Woken).
        turn: u64,
        /// Whether work is left over, so that the next turn does not sleep.
        carried_over: bool,
        /// The counters, as of now.
        stats: &'a Stats,
    },
}

/// The eight phases of a turn: see `docs/one-turn.md`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// Sleeps, then reads the clock.
    Poll,
    /// Turns events into flags.
    Dispatch,
    /// Runs what other threads posted.
    RunPosts,
    /// Reads and delivers.
    Read,
    /// Acts on deadlines, then on pokes.
    Expire,
    /// Writes what is queued.
    Write,
    /// Ends connections and frees slots.
    Reap,
    /// Starts dials and accepts.
    Accept,
}

impl Phase {
    /// All phases, in their order within a turn.
    pub const ALL: [Phase; 8] = [
        Phase::Poll,
        Phase::Dispatch,
        Phase::RunPosts,
        Phase::Read,
        Phase::Expire,
        Phase::Write,
        Phase::Reap,
        Phase::Accept,
    ];

    /// The name of the phase in code and documentation, such as `run_posts`.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Poll => "poll",
            Phase::Dispatch => "dispatch",
            Phase::RunPosts => "run_posts",
            Phase::Read => "read",
            Phase::Expire => "expire",
            Phase::Write => "write",
            Phase::Reap => "reap",
            Phase::Accept => "accept",
        }
    }
}

/// What an event of the kernel is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Source {
    /// A connection.
    Connection(ConnId),
    /// A listener.
    Listener(ListenerId),
    /// Another thread has posted.
    Waker,
    /// A connection or listener that has ended already: the event is dropped.
    Stale,
}

/// A call of user code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Call {
    /// Which callback.
    pub callback: Callback,
    /// The service. `None` for a post that is for no service.
    pub service: Option<ServiceId>,
    /// The connection, if the callback is about one.
    pub connection: Option<ConnId>,
}

impl Call {
    pub(crate) fn new(callback: Callback, service: ServiceId, connection: Option<ConnId>) -> Call {
        Call { callback, service: Some(service), connection }
    }
}

/// The callbacks: the methods of [`Service`](crate::Service), and work that is run with a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Callback {
    /// [`Service::start`](crate::Service::start)
    Start,
    /// [`Service::open`](crate::Service::open)
    Open,
    /// [`Service::connected`](crate::Service::connected)
    Connected,
    /// [`Service::filter_started`](crate::Service::filter_started)
    FilterStarted,
    /// [`Service::data`](crate::Service::data)
    Data,
    /// [`Service::end`](crate::Service::end)
    End,
    /// [`Service::drained`](crate::Service::drained)
    Drained,
    /// [`Service::idle`](crate::Service::idle)
    Idle,
    /// [`Service::alarm`](crate::Service::alarm)
    Alarm,
    /// [`Service::left`](crate::Service::left)
    Left,
    /// [`Service::poked`](crate::Service::poked)
    Poked,
    /// [`Service::ready`](crate::Service::ready)
    Ready,
    /// [`Service::timer`](crate::Service::timer)
    Timer,
    /// [`Service::refused`](crate::Service::refused)
    Refused,
    /// [`Service::stopping`](crate::Service::stopping)
    Stopping,
    /// [`Service::closed`](crate::Service::closed)
    Closed,
    /// [`Handle::post`](crate::Handle::post), or [`Handle::post_to`](crate::Handle::post_to)
    Post,
    /// [`Sockets::later`](crate::Sockets::later)
    Later,
}

impl Callback {
    /// The name of the method, such as `filter_started`.
    pub fn word(self) -> &'static str {
        match self {
            Callback::Start => "start",
            Callback::Open => "open",
            Callback::Connected => "connected",
            Callback::FilterStarted => "filter_started",
            Callback::Data => "data",
            Callback::End => "end",
            Callback::Drained => "drained",
            Callback::Idle => "idle",
            Callback::Alarm => "alarm",
            Callback::Left => "left",
            Callback::Poked => "poked",
            Callback::Ready => "ready",
            Callback::Timer => "timer",
            Callback::Refused => "refused",
            Callback::Stopping => "stopping",
            Callback::Closed => "closed",
            Callback::Post => "post",
            Callback::Later => "later",
        }
    }
}

/// What happens when a deadline of a connection passes. Two things that are due at the same tick are acted on one after
/// the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Due {
    /// The dial takes too long.
    Connect,
    /// The next address of a name is tried.
    Attempt,
    /// The TLS handshake takes too long.
    Handshake,
    /// No byte has moved for too long.
    Idle,
    /// No byte was read for too long.
    ReadIdle,
    /// No byte was written for too long.
    WriteIdle,
    /// An alarm of the service.
    Alarm,
    /// The rate allows reading again.
    Refill,
    /// The socket has failed, and the service does not take the input that arrived before.
    Broken,
    /// One side has ended, and no byte has moved for too long.
    HalfClosed,
    /// The first byte has not arrived in time.
    FirstByte,
    /// The connection has reached its maximum age.
    Lifetime,
    /// A message was not complete in time.
    MessageTimeout,
    /// The minimum rate of an incomplete message is checked.
    MinReadRate,
    /// The minimum rate of queued output is checked.
    MinWriteRate,
    /// The peer of a closed connection has not ended in time.
    Linger,
}
