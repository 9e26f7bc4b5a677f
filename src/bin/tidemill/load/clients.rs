//! Connections that send messages and check every byte of the answers.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Instant;

use tidemill::{Closed, ConnId, Departed, Input, Reactor, Service, ServiceId, Socket, Sockets};

use super::plan::{Pattern, Plan};
use super::report::Tally;
use crate::args::values::Shape;

/// What the service and the loop around it both look at.
pub struct Callers {
    plan: Plan,
    pattern: Pattern,
    pub tally: Tally,
    /// From when on it counts.
    pub counts_from: Option<Instant>,
    pub over: bool,
    callers: Vec<Caller>,
    numbers: HashMap<ConnId, usize>,
    /// How many dials there have been, and how many connections are up.
    dials: usize,
    pub up: usize,
    pub connecting: usize,
}

/// One place among the connections; in a churn, many connections after each other.
#[derive(Default)]
struct Caller {
    id: Option<ConnId>,
    sent: u64,
    heard: u64,
    answered: u64,
    /// When each message under way was sent, or was to be.
    under_way: VecDeque<Instant>,
    /// Its work is done; it may close.
    done: bool,
}

impl Callers {
    pub fn new(plan: &Plan) -> Result<Callers, String> {
        let callers = (0..plan.connections).map(|_| Caller::default()).collect();
        Ok(Callers {
            pattern: Pattern::new(plan)?,
            plan: plan.clone(),
            tally: Tally::new(),
            counts_from: None,
            over: false,
            callers,
            numbers: HashMap::new(),
            dials: 0,
            up: 0,
            connecting: 0,
        })
    }

    /// Whether there are places for which nobody has been dialed, and few enough dials under way: more would only
    /// overflow the server's backlog.
    pub fn wants_more(&self) -> bool {
        self.dials < self.plan.connections && self.connecting < 128
    }

    fn counts(&self, since: Instant) -> bool {
        self.counts_from.is_some_and(|from| since >= from) && !self.over
    }

    /// Sends a message; `meant` is when it was to be sent.
    fn send(&mut self, number: usize, socket: &mut Socket<'_>, meant: Instant) {
        let caller = &mut self.callers[number];
        let mut left = self.pattern.size;
        while left > 0 {
            let piece = self.pattern.at(caller.sent, left);
            socket.send(piece);
            caller.sent += piece.len() as u64;
            left -= piece.len();
        }
        caller.under_way.push_back(meant);
    }

    /// Checks what has come; says how many messages are answered by it.
    fn hear(&mut self, number: usize, bytes: &[u8], now: Instant) -> Result<usize, String> {
        let counts = self.counts(now);
        let caller = &mut self.callers[number];
        if let Some(at) = self.pattern.differs(caller.heard, bytes) {
            let hint = "is that an echo? tidemill echo --raw is";
            return Err(format!(
                "connection {number}: byte {at} of the answer is not what was sent ({hint})"
            ));
        }
        caller.heard += bytes.len() as u64;
        if counts {
            self.tally.bytes += bytes.len() as u64;
        }
        let mut answered = 0;
        while caller.heard >= (caller.answered + 1) * self.pattern.size as u64 {
            caller.answered += 1;
            let Some(meant) = caller.under_way.pop_front() else {
                return Err(format!("connection {number}: an answer to nothing"));
            };
            answered += 1;
            if self.counts_from.is_some_and(|from| meant >= from) && !self.over {
                self.tally.messages += 1;
                self.tally.record(now - meant);
            }
        }
        Ok(answered)
    }
}

/// The service of these connections.
pub struct Load {
    pub shared: Rc<RefCell<Callers>>,
    pub own: Option<ServiceId>,
}

/// Dials for a place.
pub fn dial(
    shared: &Rc<RefCell<Callers>>,
    sockets: &mut Sockets<'_>,
    own: ServiceId,
    number: usize,
) -> io::Result<()> {
    let mut callers = shared.borrow_mut();
    let options = callers.plan.dial_options(callers.dials);
    let id = sockets.dial_with(&callers.plan.to, own, options)?;
    callers.dials += 1;
    callers.connecting += 1;
    callers.numbers.insert(id, number);
    callers.callers[number] = Caller { id: Some(id), ..Caller::default() };
    Ok(())
}

/// Dials for the next place that has not been dialed for.
pub fn dial_next(shared: &Rc<RefCell<Callers>>, reactor: &mut Reactor, own: ServiceId) -> io::Result<()> {
    let number = shared.borrow().dials;
    dial(shared, &mut reactor.sockets(), own, number)
}

/// Sends the message that was due at this time, on the next connection in turn.
pub fn send_due(shared: &Rc<RefCell<Callers>>, sockets: &mut Sockets<'_>, serial: u64, meant: Instant) {
    let mut callers = shared.borrow_mut();
    let number = (serial % callers.callers.len() as u64) as usize;
    let Some(mut socket) = callers.callers[number].id.and_then(|id| sockets.get(id)) else { return };
    callers.send(number, &mut socket, meant);
}

/// Lets everybody begin who waits for an answer before the next message.
pub fn begin(shared: &Rc<RefCell<Callers>>, sockets: &mut Sockets<'_>) {
    let mut callers = shared.borrow_mut();
    let now = sockets.now();
    for number in 0..callers.callers.len() {
        let Some(mut socket) = callers.callers[number].id.and_then(|id| sockets.get(id)) else { continue };
        for _ in 0..callers.plan.pipeline {
            callers.send(number, &mut socket, now);
        }
    }
}

/// One connection of a caller.
pub struct Call {
    number: usize,
    began: Instant,
    connected: bool,
}

impl Service for Load {
    type Session = Call;

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> Call {
        let number = self.shared.borrow().numbers.get(&socket.id()).copied();
        Call { number: number.unwrap_or(0), began: socket.now(), connected: false }
    }

    fn connected(&mut self, call: &mut Call, socket: &mut Socket<'_>) {
        let mut callers = self.shared.borrow_mut();
        call.connected = true;
        callers.up += 1;
        callers.connecting -= 1;
        match callers.plan.shape {
            Shape::Idle => callers.tally.record(socket.now() - call.began),
            // The whole of a churn's latency counts, the connecting too.
            Shape::Churn => callers.send(call.number, socket, call.began),
            Shape::Echo | Shape::FanOut => {}
        }
    }

    fn data(&mut self, &mut Call { number, .. }: &mut Call, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut callers = self.shared.borrow_mut();
        let now = socket.now();
        match callers.hear(number, input.take_all(), now) {
            Err(why) => {
                callers.tally.fail(why);
                callers.callers[number].done = true;
                socket.abort();
            }
            Ok(0) => {}
            Ok(_) if callers.plan.shape == Shape::Churn => {
                callers.callers[number].done = true;
                socket.close();
            }
            Ok(answered) if callers.plan.rate.is_none() && !callers.over => {
                (0..answered).for_each(|_| callers.send(number, socket, now));
            }
            Ok(_) => {}
        }
    }

    fn closed(&mut self, call: Call, id: ConnId, why: Closed, rest: &mut Sockets<'_>) {
        let mut callers = self.shared.borrow_mut();
        callers.numbers.remove(&id);
        let (number, failure) = (call.number, rest.departed().and_then(Departed::trouble));
        match call.connected {
            false => callers.connecting -= 1,
            true => callers.up -= 1,
        }
        let (over, done, churns) =
            (callers.over, callers.callers[number].done, callers.plan.shape == Shape::Churn);
        if !over && !done {
            callers.tally.fail(failure.unwrap_or_else(|| format!("connection {number}: {why}")));
        }
        drop(callers);
        if let (true, false, Some(own)) = (churns, over, self.own) {
            if let Err(error) = dial(&self.shared, rest, own, number) {
                self.shared.borrow_mut().tally.fail(error.to_string());
            }
        }
    }
}
