//! Connections that send messages and check every byte of the answers.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Instant;

use tidemill::{ClosedInfo, ConnId, Input, Reactor, Service, ServiceId, Socket, Sockets};

use super::plan::{Pattern, Plan};
use super::report::Results;
use crate::args::values::Shape;

/// What the service and the loop around it both look at.
pub struct Clients {
    plan: Plan,
    pattern: Pattern,
    pub results: Results,
    /// From when on it counts.
    pub counts_from: Option<Instant>,
    pub over: bool,
    clients: Vec<Client>,
    numbers: HashMap<ConnId, usize>,
    /// How many dials there have been, and how many connections are up.
    dials: usize,
    pub up: usize,
    pub connecting: usize,
}

/// One place among the connections; in a churn, many connections after each other.
#[derive(Default)]
struct Client {
    id: Option<ConnId>,
    sent: u64,
    heard: u64,
    answered: u64,
    /// When each message under way was sent, or was to be.
    under_way: VecDeque<Instant>,
    /// Its work is done; it may close.
    done: bool,
}

impl Clients {
    pub fn new(plan: &Plan) -> Result<Clients, String> {
        let clients = (0..plan.connections).map(|_| Client::default()).collect();
        Ok(Clients {
            pattern: Pattern::new(plan)?,
            plan: plan.clone(),
            results: Results::new(),
            counts_from: None,
            over: false,
            clients,
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
        let client = &mut self.clients[number];
        let mut left = self.pattern.size;
        while left > 0 {
            let piece = self.pattern.at(client.sent, left);
            socket.send(piece);
            client.sent += piece.len() as u64;
            left -= piece.len();
        }
        client.under_way.push_back(meant);
    }

    /// Checks what has come; says how many messages are answered by it.
    fn hear(&mut self, number: usize, bytes: &[u8], now: Instant) -> Result<usize, String> {
        let counts = self.counts(now);
        let client = &mut self.clients[number];
        if let Some(at) = self.pattern.differs(client.heard, bytes) {
            let hint = "is that an echo? tidemill echo --raw is";
            return Err(format!(
                "connection {number}: byte {at} of the answer is not what was sent ({hint})"
            ));
        }
        client.heard += bytes.len() as u64;
        if counts {
            self.results.bytes += bytes.len() as u64;
        }
        let mut answered = 0;
        while client.heard >= (client.answered + 1) * self.pattern.size as u64 {
            client.answered += 1;
            let Some(meant) = client.under_way.pop_front() else {
                return Err(format!("connection {number}: an answer to nothing"));
            };
            answered += 1;
            if self.counts_from.is_some_and(|from| meant >= from) && !self.over {
                self.results.messages += 1;
                self.results.record(now - meant);
            }
        }
        Ok(answered)
    }
}

/// The service of these connections.
pub struct Load {
    pub shared: Rc<RefCell<Clients>>,
    pub own: Option<ServiceId>,
}

/// Dials for a place.
pub fn dial(
    shared: &Rc<RefCell<Clients>>,
    sockets: &mut Sockets<'_>,
    own: ServiceId,
    number: usize,
) -> io::Result<()> {
    let mut clients = shared.borrow_mut();
    let options = clients.plan.dial_options(clients.dials);
    let id = sockets.dial_with(&clients.plan.to, own, options)?;
    clients.dials += 1;
    clients.connecting += 1;
    clients.numbers.insert(id, number);
    clients.clients[number] = Client { id: Some(id), ..Client::default() };
    Ok(())
}

/// Dials for the next place that has not been dialed for.
pub fn dial_next(shared: &Rc<RefCell<Clients>>, reactor: &mut Reactor, own: ServiceId) -> io::Result<()> {
    let number = shared.borrow().dials;
    dial(shared, &mut reactor.sockets(), own, number)
}

/// Sends the message that was due at this time, on the next connection in turn.
pub fn send_due(shared: &Rc<RefCell<Clients>>, sockets: &mut Sockets<'_>, serial: u64, meant: Instant) {
    let mut clients = shared.borrow_mut();
    let number = (serial % clients.clients.len() as u64) as usize;
    let Some(mut socket) = clients.clients[number].id.and_then(|id| sockets.get(id)) else { return };
    clients.send(number, &mut socket, meant);
}

/// Lets everybody begin who waits for an answer before the next message.
pub fn begin(shared: &Rc<RefCell<Clients>>, sockets: &mut Sockets<'_>) {
    let mut clients = shared.borrow_mut();
    let now = sockets.now();
    for number in 0..clients.clients.len() {
        let Some(mut socket) = clients.clients[number].id.and_then(|id| sockets.get(id)) else { continue };
        for _ in 0..clients.plan.pipeline {
            clients.send(number, &mut socket, now);
        }
    }
}

/// One connection of a caller.
pub struct Connection {
    number: usize,
    began: Instant,
    connected: bool,
}

impl Service for Load {
    type Session = Connection;

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> Connection {
        let number = self.shared.borrow().numbers.get(&socket.id()).copied();
        Connection { number: number.unwrap_or(0), began: socket.now(), connected: false }
    }

    fn connected(&mut self, connection: &mut Connection, socket: &mut Socket<'_>) {
        let mut clients = self.shared.borrow_mut();
        connection.connected = true;
        clients.up += 1;
        clients.connecting -= 1;
        match clients.plan.shape {
            Shape::Idle => clients.results.record(socket.now() - connection.began),
            // The whole of a churn's latency counts, the connecting too.
            Shape::Churn => clients.send(connection.number, socket, connection.began),
            Shape::Echo | Shape::FanOut => {}
        }
    }

    fn data(
        &mut self,
        &mut Connection { number, .. }: &mut Connection,
        socket: &mut Socket<'_>,
        input: &mut Input<'_>,
    ) {
        let mut clients = self.shared.borrow_mut();
        let now = socket.now();
        match clients.hear(number, input.take_all(), now) {
            Err(why) => {
                clients.results.fail(why);
                clients.clients[number].done = true;
                socket.abort();
            }
            Ok(0) => {}
            Ok(_) if clients.plan.shape == Shape::Churn => {
                clients.clients[number].done = true;
                socket.close();
            }
            Ok(answered) if clients.plan.rate.is_none() && !clients.over => {
                (0..answered).for_each(|_| clients.send(number, socket, now));
            }
            Ok(_) => {}
        }
    }

    fn closed(&mut self, connection: Connection, gone: &ClosedInfo, rest: &mut Sockets<'_>) {
        let mut clients = self.shared.borrow_mut();
        clients.numbers.remove(&gone.id);
        let (number, why) = (connection.number, gone.reason);
        match connection.connected {
            false => clients.connecting -= 1,
            true => clients.up -= 1,
        }
        let (over, done, churns) =
            (clients.over, clients.clients[number].done, clients.plan.shape == Shape::Churn);
        if !over && !done {
            clients.results.fail(gone.error_text().unwrap_or_else(|| format!("connection {number}: {why}")));
        }
        drop(clients);
        if let (true, false, Some(own)) = (churns, over, self.own) {
            if let Err(error) = dial(&self.shared, rest, own, number) {
                self.shared.borrow_mut().results.fail(error.to_string());
            }
        }
    }
}
