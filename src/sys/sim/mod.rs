//! A simulated kernel for tests: [`System`](crate::sys::System) with a clock that moves only when a test advances it,
//! or in a poll.
//!
//! ```text
//!     EventLoop<Sim> ── system calls ──▶ system.rs ──┐
//!                                                    World: sockets, listeners, descriptors, clock
//!     a test ───────────────────────────▶ script.rs ─┤        │
//!                                                    └── network.rs: what is on its way, links, answers to dials
//!                                     tape.rs: choices ──▶ faults.rs: which faults happen      trace.rs: what happened
//! ```
//!
//! Sockets are byte queues. Readiness is edge-triggered, in one of three profiles (readiness.rs); the usual one is as
//! strict as epoll may be: one edge for each arrival, for new space after a refused write, and for an end; never a
//! second one for the same thing. A backlog overflows, as `ListenOptions::backlog` says. Descriptors are counted;
//! accept(2) takes one before it looks at the backlog, as Linux does. With a tape of choices, writes are also short,
//! bytes arrive in pieces, calls return `WouldBlock` (a later edge follows) or are interrupted, and events are late,
//! spurious or out of order.

mod faults;
mod inspect;
mod network;
mod readiness;
mod replay;
mod script;
mod system;
mod tape;
mod trace;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use self::faults::{Fault, Faults};
pub use self::inspect::{KernelListener, KernelSocket, KernelState};
use self::network::{Answers, SimListener};
pub(crate) use self::network::{DialResult, NameResult};
pub(crate) use self::readiness::Profile;
pub use self::replay::seeds;
#[cfg(test)]
pub(crate) use self::replay::{
    IS_SHRINKING, each_seed, in_hexadecimal, number_of, run_seed, tape_of_environment, tell,
};
pub use self::tape::Tape;
use self::trace::Trace;
use crate::base::address::Address;
use crate::base::id::Token;
use crate::config::dial::SocketOption;
use crate::sys::{AcceptError, Answer, Epoch, Ready};

/// The simulated kernel, as the reactor uses it.
pub(crate) struct Sim(Rc<RefCell<World>>);

/// The same simulated kernel, as a test controls it: what peers and kernel do.
#[derive(Clone)]
pub(crate) struct Script(Rc<RefCell<World>>);

/// One descriptor of the reactor.
pub(crate) struct Fd {
    of: Descriptor,
    world: Rc<RefCell<World>>,
}

impl Fd {
    /// Whether it is a stream on a Unix-domain socket.
    pub(crate) fn is_unix(&self) -> bool {
        let Descriptor::Socket(key) = self.of else { return false };
        let socket = &self.world.borrow().sockets[key];
        socket.to.as_ref().map_or(socket.from.is_none(), Address::is_unix)
    }
}

/// What a descriptor stands for, as an index into the lists of the world.
#[derive(Clone, Copy)]
enum Descriptor {
    Socket(usize),
    Listener(usize),
}

/// A simulated kernel pipe.
#[derive(Default)]
pub(crate) struct SimPipe(RefCell<VecDeque<u8>>);

struct World {
    epoch: Epoch,
    now: Duration,
    sockets: Vec<SimSocket>,
    /// Those that are not closed, by index; a poll forgets those that are.
    live: Vec<usize>,
    /// The sockets of dials, in order.
    dialed: Vec<usize>,
    /// The last tokens of closed sockets.
    gone: VecDeque<Token>,
    profile: Profile,
    listeners: Vec<SimListener>,
    open: usize,
    descriptors: usize,
    reserve: bool,
    no_splice: bool,
    accept_errors: VecDeque<AcceptError>,
    register_errors: usize,
    stale: Vec<Ready>,
    faults: Option<Faults>,
    /// The most bytes that arrive, or are written, in one piece.
    split: usize,
    seen: Seen,
    trace: Trace,
    answers: Answers,
    /// Look-ups that are not answered, and answers that the reactor has not taken.
    lookups: Vec<(u64, String)>,
    answers_due: Vec<Answer>,
    /// The address that peers connect from; their ports differ.
    from: Option<IpAddr>,
    /// How much time a poll without events and with a wait of zero takes.
    poll_cost: Duration,
}

/// What the tests of the loop look at.
#[derive(Default)]
struct Seen {
    calls: Calls,
    /// The wait of the last poll; the outer `None`: there was no poll yet.
    last_wait: Option<Option<Duration>>,
}

/// How often each call was made.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Calls {
    pub(crate) polls: usize,
    pub(crate) accepts: usize,
    pub(crate) reads: usize,
    pub(crate) writes: usize,
    pub(crate) splices: usize,
}

/// A connection, as seen from the loop's end.
struct SimSocket {
    token: Option<Token>,
    /// Sent by the other end, and not arrived yet: bytes, then an end or a reset.
    transit: VecDeque<u8>,
    transit_end: bool,
    transit_reset: bool,
    inbound: VecDeque<u8>,
    inbound_end: bool,
    outbound: Vec<u8>,
    outbound_end: bool,
    /// Bytes that the kernel still accepts from the reactor.
    window: usize,
    reset: bool,
    /// The error of a reset: ECONNRESET, or another when the network has failed.
    failure: i32,
    /// How many bytes are to be read before the urgent mark.
    urgent: Option<usize>,
    /// The other end, if it is a socket of the loop too.
    link: Option<usize>,
    /// The result of a dial; `None` while it is in progress.
    dialed: DialResult,
    is_dial: bool,
    to: Option<Address>,
    /// The address of the peer that connects; `None` for a Unix-domain socket.
    from: Option<SocketAddr>,
    options: Vec<SocketOption>,
    released: Option<Released>,
    edge: Edge,
    /// Whether a read has said `WouldBlock` since the last event.
    read_armed: bool,
    write_refused: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Edge {
    readable: bool,
    writable: bool,
    end: bool,
    error: bool,
    priority: bool,
}

/// How the reactor closed a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Released {
    /// Closed without unread input: the kernel sends FIN.
    Closed,
    /// Closed with unread input, which makes a kernel send a reset.
    ClosedUnread,
    /// Reset on purpose.
    Reset,
}

/// A remote end.
pub(crate) type PeerId = usize;

const PEER: &str = "10.0.0.1:4000";

/// Bytes in transit between two sockets of the simulation: the window of TCP without scaling (RFC 9293).
const LINK_BUFFER: usize = 64 * 1024;

// Error numbers of Linux (errno(3)), written out because the simulation also builds where there is no libc.
const EMFILE: i32 = 24;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EPIPE: i32 = 32;
const EADDRNOTAVAIL: i32 = 99;
const ECONNRESET: i32 = 104;
const ENOTCONN: i32 = 107;
/// On the BSDs and macOS it is 61.
pub(crate) const ECONNREFUSED: i32 = if cfg!(target_os = "linux") { 111 } else { 61 };

/// An error as Linux reports it. On other systems the number would mean another error, so only the kind is set.
fn error(number: i32, kind: io::ErrorKind) -> io::Error {
    if cfg!(target_os = "linux") { io::Error::from_raw_os_error(number) } else { kind.into() }
}

pub(crate) fn address() -> SocketAddr {
    PEER.parse().expect("a literal address")
}

impl Sim {
    pub(crate) fn new() -> (Sim, Script) {
        let world = World {
            epoch: Epoch::from_now(),
            now: Duration::ZERO,
            sockets: Vec::new(),
            live: Vec::new(),
            dialed: Vec::new(),
            gone: VecDeque::new(),
            profile: Profile::default(),
            listeners: Vec::new(),
            open: 0,
            descriptors: usize::MAX,
            reserve: false,
            no_splice: false,
            accept_errors: VecDeque::new(),
            register_errors: 0,
            stale: Vec::new(),
            faults: None,
            split: usize::MAX,
            seen: Seen::default(),
            trace: Trace::new(),
            answers: Answers::default(),
            lookups: Vec::new(),
            answers_due: Vec::new(),
            from: None,
            poll_cost: Duration::ZERO,
        };
        let world = Rc::new(RefCell::new(world));
        (Sim(world.clone()), Script(world))
    }
}

impl World {
    /// Whether the tape causes this fault now.
    fn draw_fault(&mut self, fault: Fault) -> bool {
        self.faults.as_mut().is_some_and(|faults| faults.draw(fault))
    }

    /// How many of `n` bytes one write takes.
    fn shorten(&mut self, n: usize) -> usize {
        self.part_if(Fault::ShortWrite, n).min(self.split)
    }

    /// A part of `n` if the tape causes this fault now, else all of it.
    fn part_if(&mut self, fault: Fault, n: usize) -> usize {
        match &mut self.faults {
            Some(faults) if n > 0 => {
                if faults.draw(fault) {
                    faults.part(n)
                } else {
                    n
                }
            }
            _ => n,
        }
    }

    fn take_descriptor(&mut self) -> io::Result<()> {
        if self.open >= self.descriptors { Err(error(EMFILE, io::ErrorKind::Other)) } else { Ok(()) }
    }

    fn add_socket(&mut self, socket: SimSocket) -> usize {
        self.sockets.push(socket);
        self.live.push(self.sockets.len() - 1);
        self.sockets.len() - 1
    }

    fn note(&mut self, what: &'static str, of: Option<usize>, n: i64) {
        self.trace.add(self.now, what, of, n);
    }
}

impl SimSocket {
    /// Its pending error.
    fn error(&self) -> Result<(), i32> {
        if self.reset { Err(self.failure) } else { Ok(()) }
    }
}

impl Default for SimSocket {
    fn default() -> SimSocket {
        SimSocket {
            token: None,
            transit: VecDeque::new(),
            transit_end: false,
            transit_reset: false,
            inbound: VecDeque::new(),
            inbound_end: false,
            outbound: Vec::new(),
            outbound_end: false,
            window: usize::MAX,
            reset: false,
            failure: ECONNRESET,
            urgent: None,
            link: None,
            dialed: None,
            is_dial: false,
            to: None,
            from: None,
            options: Vec::new(),
            released: None,
            edge: Edge::default(),
            read_armed: true,
            write_refused: false,
        }
    }
}
