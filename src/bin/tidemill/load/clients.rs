//! Connections that send messages and check the answers: every shape but the fan-out.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use tidemill::{ClosedInfo, Input, Service, ServiceId, Socket, Sockets};

use super::answer::{Answer, Received, show};
use super::driver::{Driver, Progress};
use super::places::Places;
use super::plan::Plan;
use super::results::{Budget, Kind, Results, Window};
use super::schedule::Schedule;
use crate::args::values::Shape;

/// What the service and the loop around it share.
pub struct Clients {
    plan: Plan,
    results: Results,
    window: Window,
    places: Places,
    clients: Vec<Client>,
    /// Messages may be sent: the connections that should be up are.
    begun: bool,
    schedule: Option<Schedule>,
    /// Connections of an open-loop churn or idle load that are due and have no free place yet.
    due: VecDeque<Instant>,
    /// Places of an open-loop churn that have no connection.
    free: Vec<usize>,
    /// Messages that may still be sent.
    budget: Budget,
    /// Messages that are due and not answered: in flight, or waiting for their connection.
    pending: u64,
}

/// The message stream of one place.
#[derive(Default)]
struct Client {
    /// Connected, and greeted where the server speaks first.
    ready: bool,
    /// Bytes of the stream that were sent, and that are to be sent.
    sent: u64,
    to_send: u64,
    /// Bytes of echo received, and how many messages they complete.
    received: u64,
    answered: u64,
    /// The scheduled (or real) send time of each message in flight.
    in_flight: VecDeque<Instant>,
    /// Messages that were due while there was no connection.
    waiting: VecDeque<Instant>,
    /// It was closed by us after its answer (of a churn), or aborted after a wrong one.
    done: bool,
    aborted: bool,
}

impl Clients {
    pub fn new(plan: &Plan) -> Clients {
        Clients {
            results: Results::new(),
            // The latencies of an idle load are those of connecting, which comes before the span that is measured.
            window: Window { from: (plan.shape == Shape::Idle).then(Instant::now), over: false },
            places: Places::new(plan.connections),
            clients: (0..plan.connections).map(|_| Client::default()).collect(),
            begun: false,
            schedule: None,
            due: VecDeque::new(),
            free: Vec::new(),
            budget: Budget(plan.requests),
            pending: 0,
            plan: plan.clone(),
        }
    }

    /// Whether one more message may be sent; takes it from the budget.
    fn may_send(&mut self) -> bool {
        !self.window.over && self.budget.take()
    }

    /// Puts a message in flight.
    fn send(&mut self, number: usize, socket: &mut Socket<'_>, scheduled: Instant) {
        self.clients[number].in_flight.push_back(scheduled);
        self.clients[number].to_send += self.plan.message.length() as u64;
        self.write(number, socket);
    }

    /// Queues bytes of the stream while the socket takes them: a message may be longer than memory.
    fn write(&mut self, number: usize, socket: &mut Socket<'_>) {
        let client = &mut self.clients[number];
        let before = client.sent;
        while client.to_send > 0 && !socket.is_full() {
            let max = usize::try_from(client.to_send).unwrap_or(usize::MAX);
            let piece = self.plan.message.at(client.sent, max);
            socket.send(piece);
            client.sent += piece.len() as u64;
            client.to_send -= piece.len() as u64;
        }
        if self.window.is_open(socket.now()) {
            self.results.bytes_out += client.sent - before;
        }
    }

    /// Dials for a place; a connection that belongs to a message counts from `scheduled`.
    fn dial(&mut self, number: usize, sockets: &mut Sockets<'_>, own: ServiceId, scheduled: Instant) {
        let waiting = std::mem::take(&mut self.clients[number].waiting);
        self.clients[number] = Client { waiting, ..Client::default() };
        if matches!(self.plan.shape, Shape::Churn | Shape::Idle) {
            self.clients[number].in_flight.push_back(scheduled);
            self.pending += 1;
        }
        if let Err(why) = self.places.dial(number, &self.plan, sockets, own) {
            self.lose(number, sockets.now());
            self.results.failures.add(Kind::Other, why);
        }
    }

    /// The messages in flight on a connection that has failed are lost.
    fn lose(&mut self, number: usize, now: Instant) {
        for scheduled in std::mem::take(&mut self.clients[number].in_flight) {
            self.pending -= 1;
            self.results.lose(now.saturating_duration_since(scheduled), self.window.counts(scheduled));
        }
    }

    /// Dials every place whose turn it is.
    fn dial_due(&mut self, sockets: &mut Sockets<'_>, own: ServiceId, now: Instant) {
        let (churns, open_loop) = (self.plan.shape == Shape::Churn, self.schedule.is_some());
        if open_loop && self.plan.shape != Shape::Echo {
            while let Some(scheduled) = self.due.front().copied().filter(|_| self.places.may_dial()) {
                let free = if churns { self.free.pop() } else { None };
                let Some(number) = free.or_else(|| self.places.next_new()) else { break };
                self.due.pop_front();
                self.pending -= 1;
                self.dial(number, sockets, own, scheduled);
            }
        }
        while let Some(number) = self.places.next_retry(now) {
            if churns && open_loop {
                self.free.push(number);
            } else if !churns || self.may_send() {
                self.dial(number, sockets, own, now);
            }
        }
        while !open_loop || self.plan.shape == Shape::Echo {
            let Some(number) = self.places.next_new() else { break };
            if churns && !self.may_send() {
                break;
            }
            self.dial(number, sockets, own, now);
        }
    }

    /// Sends, or queues for dialing, what the schedule says is due.
    fn send_due(&mut self, sockets: &mut Sockets<'_>, now: Instant) {
        let Some(mut schedule) = self.schedule.take() else { return };
        while let Some((serial, scheduled)) = schedule.next_due(now) {
            if !self.may_send() {
                break;
            }
            if self.plan.shape != Shape::Echo {
                // An idle load is complete when each place was dialed once.
                if self.plan.shape == Shape::Churn || serial < self.places.len() as u64 {
                    self.due.push_back(scheduled);
                    self.pending += 1;
                }
                continue;
            }
            self.pending += 1;
            let number = (serial % self.clients.len() as u64) as usize;
            let ready = self.clients[number].ready;
            match self.places.id(number).filter(|_| ready).and_then(|id| sockets.get(id)) {
                Some(mut socket) => self.send(number, &mut socket, scheduled),
                None => self.clients[number].waiting.push_back(scheduled),
            }
        }
        self.schedule = Some(schedule);
    }

    /// A connection can be used: sends its first messages.
    fn ready(&mut self, number: usize, socket: &mut Socket<'_>) {
        self.clients[number].ready = true;
        match self.plan.shape {
            Shape::Idle => {
                self.places.succeeded(number);
                self.answered(number, socket.now(), true);
            }
            Shape::Churn => {
                self.clients[number].to_send += self.plan.message.length() as u64;
                self.write(number, socket);
            }
            _ => {
                for scheduled in std::mem::take(&mut self.clients[number].waiting) {
                    self.send(number, socket, scheduled);
                }
                if self.begun && self.plan.rate.is_none() {
                    self.fill_pipeline(number, socket);
                }
            }
        }
    }

    fn fill_pipeline(&mut self, number: usize, socket: &mut Socket<'_>) {
        while self.clients[number].in_flight.len() < self.plan.pipeline && self.may_send() {
            self.pending += 1;
            self.send(number, socket, socket.now());
        }
    }

    /// The oldest message in flight has its answer. False: there was none in flight.
    fn answered(&mut self, number: usize, now: Instant, right: bool) -> bool {
        let Some(scheduled) = self.clients[number].in_flight.pop_front() else { return false };
        self.pending -= 1;
        if self.window.counts(scheduled) {
            self.results.record(now.saturating_duration_since(scheduled));
        }
        if right && self.window.is_open(now) {
            self.results.messages += 1;
        }
        true
    }

    /// Takes the answers out of what has come. An error makes the connection useless.
    fn receive(&mut self, number: usize, input: &mut Input<'_>, now: Instant) -> Result<(), String> {
        let length = input.len();
        let outcome = match &self.plan.answer {
            Answer::Echo => self.receive_echo(number, input.take_all(), now),
            _ => self.receive_answers(number, input, now),
        };
        if self.window.is_open(now) {
            self.results.bytes_in += (length - input.len()) as u64;
        }
        outcome
    }

    fn receive_echo(&mut self, number: usize, bytes: &[u8], now: Instant) -> Result<(), String> {
        let client = &mut self.clients[number];
        let message = &self.plan.message;
        if let Some(at) = message.differs(client.received, bytes) {
            let wrong = &bytes[(at - client.received) as usize..];
            let expected = message.at(at, wrong.len().min(16));
            let hint = if at == 0 { "; is that an echo? tidemill echo --raw is" } else { "" };
            let (got, expected) = (show(wrong), show(expected));
            return Err(format!(
                "byte {at} of the answer is not what was sent: {got} where {expected} was expected{hint}"
            ));
        }
        client.received += bytes.len() as u64;
        let length = message.length() as u64;
        while self.clients[number].received >= (self.clients[number].answered + 1) * length {
            self.clients[number].answered += 1;
            if !self.answered(number, now, true) {
                return Err("more came back than was sent".to_string());
            }
        }
        Ok(())
    }

    fn receive_answers(&mut self, number: usize, input: &mut Input<'_>, now: Instant) -> Result<(), String> {
        let answer = self.plan.answer.clone();
        while !input.is_empty() {
            if self.clients[number].in_flight.is_empty() {
                return Err(format!("an answer to nothing: {}", show(input.bytes())));
            }
            match answer.next(input)? {
                None => return Ok(()),
                Some(Received::Right) => {
                    self.answered(number, now, true);
                }
                Some(Received::Wrong(text)) => {
                    self.answered(number, now, false);
                    if !self.window.over {
                        self.results.failures.add(Kind::WrongAnswer, text);
                    }
                }
            }
        }
        Ok(())
    }

    /// What follows an answer: the next message, or in a churn the end of the connection.
    fn go_on(&mut self, number: usize, socket: &mut Socket<'_>) {
        match self.plan.shape {
            Shape::Churn if self.clients[number].ready && self.clients[number].in_flight.is_empty() => {
                self.places.succeeded(number);
                self.clients[number].done = true;
                socket.close();
            }
            Shape::Echo if self.begun && self.plan.rate.is_none() => self.fill_pipeline(number, socket),
            _ => {}
        }
    }
}

impl Driver for Rc<RefCell<Clients>> {
    fn begin(&mut self, sockets: &mut Sockets<'_>, now: Instant, from: Instant) {
        let mut clients = self.borrow_mut();
        clients.begun = true;
        clients.window.from = Some(from);
        clients.schedule = clients.plan.rate.map(|rate| Schedule::new(now, rate));
        if clients.plan.shape != Shape::Echo || clients.plan.rate.is_some() {
            return;
        }
        for number in 0..clients.clients.len() {
            let ready = clients.clients[number].ready;
            let id = clients.places.id(number).filter(|_| ready);
            if let Some(mut socket) = id.and_then(|id| sockets.get(id)) {
                clients.fill_pipeline(number, &mut socket);
            }
        }
    }

    fn step(&mut self, sockets: &mut Sockets<'_>, own: ServiceId, now: Instant) {
        let mut clients = self.borrow_mut();
        clients.send_due(sockets, now);
        clients.dial_due(sockets, own, now);
    }

    fn progress(&self) -> Progress {
        let clients = self.borrow();
        Progress {
            up: clients.places.up,
            ever_up: clients.places.ever_up,
            settled: clients.places.all_settled(),
            quiet_since: None,
            complete: clients.budget.is_used_up() && clients.pending == 0,
            pending: clients.pending,
        }
    }

    fn end(&mut self) {
        self.borrow_mut().window.over = true;
    }

    fn charge_unanswered(&mut self, now: Instant) {
        let clients = &mut *self.borrow_mut();
        let all = clients.clients.iter().flat_map(|client| client.in_flight.iter().chain(&client.waiting));
        for scheduled in all.chain(&clients.due) {
            clients.results.leave_unanswered(now.saturating_duration_since(*scheduled), 1);
        }
    }

    fn results<R>(&mut self, look: impl FnOnce(&mut Results) -> R) -> R {
        look(&mut self.borrow_mut().results)
    }
}

/// The service of these connections.
pub struct ClientService {
    pub shared: Rc<RefCell<Clients>>,
}

/// One connection.
pub struct Session {
    number: usize,
    connected: bool,
}

impl Service for ClientService {
    type Session = Session;

    fn open(&mut self, socket: &mut Socket<'_>) -> Session {
        let number = self.shared.borrow().places.number(socket.id());
        Session { number: number.unwrap_or(0), connected: false }
    }

    fn connected(&mut self, session: &mut Session, socket: &mut Socket<'_>) {
        let mut clients = self.shared.borrow_mut();
        session.connected = true;
        clients.places.connected(session.number);
        if !clients.plan.greeting {
            clients.ready(session.number, socket);
        }
    }

    fn data(&mut self, session: &mut Session, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut clients = self.shared.borrow_mut();
        let (number, now) = (session.number, socket.now());
        let mut outcome = Ok(());
        if !clients.clients[number].ready {
            outcome = match clients.plan.answer.skip_greeting(input) {
                Ok(true) => {
                    clients.ready(number, socket);
                    Ok(())
                }
                Ok(false) => return,
                Err(why) => Err(why),
            };
        }
        match outcome.and_then(|()| clients.receive(number, input, now)) {
            Ok(()) => clients.go_on(number, socket),
            Err(why) => {
                if !clients.window.over {
                    clients.results.failures.add(Kind::WrongAnswer, why);
                    clients.lose(number, now);
                    clients.places.failed(number, now);
                }
                clients.clients[number].aborted = true;
                socket.abort();
            }
        }
    }

    fn drained(&mut self, session: &mut Session, socket: &mut Socket<'_>) {
        self.shared.borrow_mut().write(session.number, socket);
    }

    fn closed(&mut self, session: Session, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let mut clients = self.shared.borrow_mut();
        let (number, now) = (session.number, sockets.now());
        clients.places.ended(gone.id, session.connected);
        clients.clients[number].ready = false;
        if clients.window.over || clients.clients[number].aborted {
            return; // What is still in flight stays so, and is charged as unanswered.
        }
        if !clients.clients[number].done {
            let (kind, text) = Kind::of(gone);
            clients.results.failures.add(kind, text);
            clients.lose(number, now);
            clients.places.failed(number, now);
        } else {
            clients.churn_next(number, now);
        }
    }
}

impl Clients {
    /// The connection of a churn's place is over: another one may take the place at once.
    fn churn_next(&mut self, number: usize, now: Instant) {
        if self.schedule.is_some() { self.free.push(number) } else { self.places.again(number, now) }
    }
}
