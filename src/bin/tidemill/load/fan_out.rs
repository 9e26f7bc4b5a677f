//! One sender, many receivers of its lines.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use tidemill::{ClosedInfo, Input, Service, ServiceId, Socket, Sockets};

use super::answer::show;
use super::driver::{Driver, Progress};
use super::places::Places;
use super::plan::Plan;
use super::results::{Budget, Kind, Results, Window};
use super::schedule::Schedule;

/// A line begins here, whatever the server puts in front of it.
const MARK: u8 = b'@';
/// The place of the sender; all others receive.
const SENDER: usize = 0;

/// What the service and the loop around it share.
pub struct Room {
    plan: Plan,
    results: Results,
    window: Window,
    places: Places,
    /// The next line of each receiver that is connected, by its place.
    next: BTreeMap<usize, u64>,
    /// Lines that receivers lack: the number of the first one; when each was due, and how many receivers lack it.
    first: u64,
    lines: VecDeque<Line>,
    /// Lines that were due while the sender was not connected.
    waiting: VecDeque<Instant>,
    begun: bool,
    schedule: Option<Schedule>,
    budget: Budget,
    received_at: Option<Instant>,
}

struct Line {
    due: Instant,
    lacking: u64,
}

impl Room {
    pub fn new(plan: &Plan) -> Room {
        Room {
            results: Results::new(),
            window: Window::default(),
            places: Places::new(plan.connections + 1),
            next: BTreeMap::new(),
            first: 0,
            lines: VecDeque::new(),
            waiting: VecDeque::new(),
            begun: false,
            schedule: None,
            budget: Budget(plan.requests),
            received_at: None,
            plan: plan.clone(),
        }
    }

    /// The bytes of a line behind its mark.
    fn body(&self, number: u64) -> Vec<u8> {
        let mut body = format!("{number:012} ").into_bytes();
        body.resize(self.plan.size.max(body.len()), b'a' + (number % 26) as u8);
        body
    }

    fn may_send(&mut self) -> bool {
        !self.window.over && self.budget.take()
    }

    fn send(&mut self, socket: &mut Socket<'_>, due: Instant) {
        let number = self.first + self.lines.len() as u64;
        let mut line = vec![MARK];
        line.extend(self.body(number));
        line.push(b'\n');
        socket.send(&line);
        if self.window.is_open(socket.now()) {
            self.results.bytes_out += line.len() as u64;
        }
        self.lines.push_back(Line { due, lacking: self.next.len() as u64 });
    }

    /// Sends lines until as many are in flight as asked for.
    fn fill_pipeline(&mut self, socket: &mut Socket<'_>) {
        while !self.next.is_empty() && self.lines.len() < self.plan.pipeline && self.may_send() {
            self.send(socket, socket.now());
        }
    }

    /// One receiver has received one line.
    fn delivered(&mut self, place: usize, body: &[u8], now: Instant) -> Result<(), String> {
        let Some(number) = self.next.get(&place).copied() else { return Ok(()) };
        let expected = self.body(number);
        if body != expected {
            return Err(format!("{} where {} was expected", show(body), show(&expected)));
        }
        let Some(line) = self.lines.get_mut((number - self.first) as usize) else {
            return Err(format!("line {number} came before it was sent"));
        };
        line.lacking -= 1;
        self.next.insert(place, number + 1);
        if self.window.is_open(now) {
            self.results.messages += 1;
        }
        Ok(())
    }

    /// Forgets the lines that all have received. The latency of a line is that of its last receiver.
    fn complete(&mut self, now: Instant) {
        while self.lines.front().is_some_and(|line| line.lacking == 0) {
            let Some(line) = self.lines.pop_front() else { return };
            self.first += 1;
            if self.window.counts(line.due) {
                self.results.record(now.saturating_duration_since(line.due));
            }
        }
    }

    /// A receiver has gone: the lines it lacks will not reach it.
    fn give_up(&mut self, place: usize, now: Instant) {
        let Some(number) = self.next.remove(&place) else { return };
        for line in self.lines.iter_mut().skip((number - self.first) as usize) {
            line.lacking -= 1;
            let counts = self.window.counts(line.due);
            self.results.lose(now.saturating_duration_since(line.due), counts);
        }
        self.complete(now);
    }
}

impl Driver for Rc<RefCell<Room>> {
    fn begin(&mut self, sockets: &mut Sockets<'_>, now: Instant, from: Instant) {
        let mut room = self.borrow_mut();
        room.begun = true;
        room.window.from = Some(from);
        room.schedule = room.plan.rate.map(|rate| Schedule::new(now, rate));
        if room.schedule.is_none() {
            let sender = room.places.id(SENDER);
            if let Some(mut sender) =
                sender.and_then(|id| sockets.get(id)).filter(|socket| !socket.is_connecting())
            {
                room.fill_pipeline(&mut sender);
            }
        }
    }

    fn step(&mut self, sockets: &mut Sockets<'_>, own: ServiceId, now: Instant) {
        let room = &mut *self.borrow_mut();
        if let Some(mut schedule) = room.schedule.take() {
            while let Some((_, due)) = schedule.next_due(now) {
                if !room.may_send() {
                    break;
                }
                let sender = room.places.id(SENDER).and_then(|id| sockets.get(id));
                match sender.filter(|socket| !socket.is_connecting()) {
                    Some(mut sender) => room.send(&mut sender, due),
                    None => room.waiting.push_back(due),
                }
            }
            room.schedule = Some(schedule);
        }
        while let Some(number) = room.places.next_retry(now).or_else(|| room.places.next_new()) {
            if let Err(why) = room.places.dial(number, &room.plan, sockets, own) {
                room.results.failures.add(Kind::Other, why);
                break;
            }
        }
        // Without a receiver there is nothing that a line could wait for.
        if room.next.is_empty() {
            room.complete(now);
        }
    }

    fn progress(&self) -> Progress {
        let room = self.borrow();
        let pending = room.lines.iter().map(|line| line.lacking).sum::<u64>() + room.waiting.len() as u64;
        Progress {
            up: room.places.up,
            ever_up: room.places.ever_up,
            settled: room.places.all_settled(),
            quiet_since: room.received_at,
            complete: room.budget.is_used_up() && pending == 0,
            pending,
        }
    }

    fn end(&mut self) {
        self.borrow_mut().window.over = true;
    }

    fn charge_unanswered(&mut self, now: Instant) {
        let room = &mut *self.borrow_mut();
        let left = room.lines.iter().map(|line| (line.due, line.lacking));
        for (due, lacking) in
            left.chain(room.waiting.iter().map(|due| (*due, 1))).filter(|(_, lacking)| *lacking > 0)
        {
            room.results.leave_unanswered(now.saturating_duration_since(due), lacking);
        }
    }

    fn results<R>(&mut self, look: impl FnOnce(&mut Results) -> R) -> R {
        look(&mut self.borrow_mut().results)
    }
}

pub struct FanOutService {
    pub shared: Rc<RefCell<Room>>,
}

/// One connection.
pub struct Session {
    place: usize,
    connected: bool,
    aborted: bool,
}

impl Service for FanOutService {
    type Session = Session;

    fn open(&mut self, socket: &mut Socket<'_>) -> Session {
        let place = self.shared.borrow().places.number(socket.id()).unwrap_or(SENDER);
        Session { place, connected: false, aborted: false }
    }

    fn connected(&mut self, session: &mut Session, socket: &mut Socket<'_>) {
        session.connected = true;
        let mut room = self.shared.borrow_mut();
        room.places.connected(session.place);
        room.received_at = Some(socket.now());
        if session.place != SENDER {
            let next = room.first + room.lines.len() as u64;
            room.next.insert(session.place, next);
            return;
        }
        for due in std::mem::take(&mut room.waiting) {
            room.send(socket, due);
        }
        if room.begun && room.schedule.is_none() {
            room.fill_pipeline(socket);
        }
    }

    fn data(&mut self, session: &mut Session, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut room = self.shared.borrow_mut();
        let now = socket.now();
        room.received_at = Some(now);
        while let Some(line) = input.take_line() {
            if room.window.is_open(now) {
                room.results.bytes_in += line.len() as u64;
            }
            let Some(at) = line.iter().position(|&byte| byte == MARK) else { continue };
            let body = line[at + 1..].strip_suffix(b"\n").unwrap_or_default();
            if let Err(why) = room.delivered(session.place, body, now) {
                session.aborted = true;
                if !room.window.over {
                    room.results.failures.add(Kind::WrongAnswer, why);
                    room.give_up(session.place, now);
                    room.places.failed(session.place, now);
                }
                return socket.abort();
            }
            room.places.succeeded(session.place);
        }
        room.complete(now);
        if !room.begun || room.schedule.is_some() || room.lines.len() >= room.plan.pipeline {
            return;
        }
        let sender = room.places.id(SENDER);
        if session.place == SENDER {
            room.fill_pipeline(socket);
        } else if let Some(mut sender) = sender.and_then(|id| socket.other(id)) {
            room.fill_pipeline(&mut sender);
        }
    }

    fn closed(&mut self, session: Session, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let mut room = self.shared.borrow_mut();
        room.places.ended(gone.id, session.connected);
        if room.window.over || session.aborted {
            return;
        }
        let (kind, text) = Kind::of(gone);
        let now = sockets.now();
        room.results.failures.add(kind, text);
        room.give_up(session.place, now);
        room.places.failed(session.place, now);
    }
}
