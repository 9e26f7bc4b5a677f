//! One sender, many receivers of its lines.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use tidemill::{ClosedInfo, ConnId, Input, Service, Socket, Sockets};

use super::plan::Plan;
use super::report::Results;

/// What the service and the loop around it both look at.
pub struct Room {
    plan: Plan,
    pub results: Results,
    pub counts_from: Option<Instant>,
    pub over: bool,
    pub sender: Option<ConnId>,
    /// The line that each receiver is to hear next.
    next: HashMap<ConnId, u64>,
    /// Lines that somebody is still to hear: the first one's number, and when each was sent and how many lack it.
    first: u64,
    lines: VecDeque<(Instant, usize)>,
    pub up: usize,
    pub connecting: usize,
    /// When anything was last heard: before it begins, who came in is told to everybody.
    pub heard_at: Option<Instant>,
}

/// Where a line of ours begins, whatever a server puts in front of it.
const MARK: u8 = b'@';

impl Room {
    pub fn new(plan: &Plan) -> Room {
        Room {
            plan: plan.clone(),
            results: Results::new(),
            counts_from: None,
            over: false,
            sender: None,
            next: HashMap::new(),
            first: 0,
            lines: VecDeque::new(),
            up: 0,
            connecting: 0,
            heard_at: None,
        }
    }

    /// What stands behind the mark in a line.
    fn body(&self, number: u64) -> Vec<u8> {
        let mut body = format!("{number:012} ").into_bytes();
        body.resize(self.plan.size.max(body.len()), b'a' + (number % 26) as u8);
        body
    }

    fn send(&mut self, socket: &mut Socket<'_>) {
        let number = self.first + self.lines.len() as u64;
        let mut line = vec![MARK];
        line.extend(self.body(number));
        line.push(b'\n');
        socket.send(&line);
        self.lines.push_back((socket.now(), self.next.len()));
    }

    /// One receiver has heard one line.
    fn delivered(&mut self, id: ConnId, body: &[u8], now: Instant) -> Result<(), String> {
        let Some(number) = self.next.get(&id).copied() else { return Ok(()) };
        if body != self.body(number) {
            return Err(format!("{id}: line {number} was expected and not heard"));
        }
        self.next.insert(id, number + 1);
        if self.counts_from.is_some_and(|from| now >= from) && !self.over {
            self.results.messages += 1;
            self.results.bytes += body.len() as u64;
        }
        let Some((_, lacking)) = self.lines.get_mut((number - self.first) as usize) else {
            return Err(format!("{id}: line {number} was heard before it was sent"));
        };
        *lacking -= 1;
        Ok(())
    }

    /// Lines that all have heard; as many more may be sent.
    fn completed(&mut self, now: Instant) -> usize {
        let mut completed = 0;
        while let Some(&(sent, 0)) = self.lines.front() {
            self.lines.pop_front();
            self.first += 1;
            completed += 1;
            if self.counts_from.is_some_and(|from| sent >= from) && !self.over {
                self.results.record(now - sent);
            }
        }
        completed
    }
}

/// Sends the first lines.
pub fn begin(shared: &Rc<RefCell<Room>>, sockets: &mut Sockets<'_>) {
    let mut room = shared.borrow_mut();
    let Some(mut sender) = room.sender.and_then(|id| sockets.get(id)) else { return };
    for _ in 0..room.plan.pipeline {
        room.send(&mut sender);
    }
}

pub struct FanOut {
    pub shared: Rc<RefCell<Room>>,
}

impl Service for FanOut {
    /// Whether it is connected.
    type Session = bool;

    fn open(&mut self, _: &mut Socket<'_>) -> bool {
        false
    }

    fn connected(&mut self, connected: &mut bool, socket: &mut Socket<'_>) {
        *connected = true;
        let mut room = self.shared.borrow_mut();
        room.up += 1;
        room.connecting -= 1;
        room.heard_at = Some(socket.now());
        if room.sender != Some(socket.id()) {
            room.next.insert(socket.id(), 0);
        }
    }

    fn data(&mut self, _: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let mut room = self.shared.borrow_mut();
        let now = socket.now();
        room.heard_at = Some(now);
        while let Some(line) = input.take_line() {
            let Some(at) = line.iter().position(|&byte| byte == MARK) else { continue };
            let body = line[at + 1..].strip_suffix(b"\n").unwrap_or_default();
            if let Err(why) = room.delivered(socket.id(), body, now) {
                room.results.fail(why);
                return socket.abort();
            }
        }
        let completed = room.completed(now);
        if completed == 0 || room.over {
            return;
        }
        let Some(mut sender) = room.sender.and_then(|id| socket.other(id)) else { return };
        (0..completed).for_each(|_| room.send(&mut sender));
    }

    fn closed(&mut self, connected: bool, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        let mut room = self.shared.borrow_mut();
        match connected {
            false => room.connecting -= 1,
            true => room.up -= 1,
        }
        if !room.over {
            let (id, why) = (gone.id, gone.reason);
            room.results.fail(gone.error_text().unwrap_or_else(|| format!("{id}: {why}")));
        }
    }
}
