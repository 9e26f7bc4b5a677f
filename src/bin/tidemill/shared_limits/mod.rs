//! `--shared-limits`: one `--total-rate`, and `--total-connections`, of several processes through Redis or Valkey.
//!
//! ```text
//!     loops: at most the share, without asking
//!                 ▲ set
//!     Quantity ── SharedLimits ── EVAL: holds, wants ──▶ ┌────────────┐ ◀── other processes
//!                              ◀── share of the total ── │ shares.lua │
//!                                                        └────────────┘
//! ```
//!
//! A process holds a share, and asks for another one four times a second while it uses any. While the broker is away,
//! it keeps its last share.

mod quantity;
#[cfg(all(test, feature = "testing"))]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemill::{
    ClosedInfo, GroupId, Input, Reactor, Service, ServiceId, ServiceSockets, SharedRate, Socket, Sockets,
};

pub use quantity::{Apply, Cap, Count};
use quantity::{Connections, Quantity, Rate};

use crate::backplane::resp::{self, Answer, command, shown};
use crate::backplane::{ANSWER_WITHIN, Backplane, Broker, REFUSED, random_id};

/// How often a process asks while bytes are read, and while none are.
const BUSY: Duration = Duration::from_millis(250);
const QUIET: Duration = Duration::from_secs(1);
/// How long the broker knows a process that does not ask. Its share is for others then.
const KEPT: Duration = Duration::from_secs(10);
/// The part of the total that a process has until it has reached the broker for the first time.
const FIRST: usize = 16;
/// Different reasons that one outage may have in the log.
const REASONS_MAX: usize = 8;

const SHARES: &str = include_str!("shares.lua");

/// What is shared, before there is a loop. Each has a connection to the broker.
#[derive(Default)]
pub struct Pending {
    rate: Option<(Shared, SharedRate)>,
    connections: Option<(Shared, Arc<Cap>)>,
}

/// A total of all processes with this broker and key.
pub struct Shared {
    pub broker: Broker,
    pub key: String,
    pub total: usize,
}

/// How a process uses its shares: on all loops, from the first one.
pub struct Loops {
    pub set_rate: Apply,
    pub set_connections: Apply,
    pub count: Count,
}

impl Pending {
    /// Of so many bytes a second, which this many loops of the process read.
    pub fn share_rate(&mut self, shared: Shared, loops: usize) {
        let rate = SharedRate::new(shared.first().max(1), loops);
        self.rate = Some((shared, rate));
    }

    /// Of so many connections.
    pub fn share_connections(&mut self, shared: Shared) {
        let cap = Arc::new(Cap::new(shared.first()));
        self.connections = Some((shared, cap));
    }

    /// What all loops of the process read together.
    pub fn rate(&self) -> Option<SharedRate> {
        self.rate.as_ref().map(|(_, rate)| rate.clone())
    }

    pub fn cap(&self) -> Option<Arc<Cap>> {
        self.connections.as_ref().map(|(_, cap)| cap.clone())
    }

    /// Adds the group of all connections, if they have a rate together: this one, unless others share it.
    pub fn add_group(&self, reactor: &mut Reactor, own: Option<usize>) -> io::Result<Option<GroupId>> {
        let group = match self.rate() {
            Some(rate) => Some(reactor.sockets().add_shared_group(&rate)),
            None => own.map(|rate| reactor.sockets().add_group(rate)),
        };
        group.transpose()
    }

    /// Adds the services, which dial the broker, to the first loop. Returns them with their name.
    pub fn add(self, reactor: &mut Reactor, loops: Loops) -> Vec<(ServiceId, &'static str)> {
        let add = |service| (reactor.add_with(service, Backplane::limits()).id(), "SharedLimits");
        self.services(loops).map(add).collect()
    }

    fn services(self, loops: Loops) -> impl Iterator<Item = SharedLimits> {
        let Loops { set_rate, set_connections, count } = loops;
        let rate = self.rate.map(|(shared, rate)| {
            shared.service(Rate { rate, apply: set_rate, before: (0, Duration::ZERO) })
        });
        let connections = self.connections.map(|(shared, cap)| {
            shared.service(Connections { cap, apply: set_connections, count, before: 0 })
        });
        rate.into_iter().chain(connections)
    }
}

/// How a process with one loop uses its shares.
pub fn on_one_loop(service: ServiceId, group: Option<GroupId>) -> Loops {
    let set_rate = move |rate, sockets: &mut Sockets<'_>| {
        group.into_iter().for_each(|group| sockets.set_group_rate(group, rate));
    };
    Loops {
        set_rate: Box::new(set_rate),
        set_connections: Box::new(move |max, sockets| sockets.set_max_connections(service, Some(max))),
        count: Box::new(move |sockets| sockets.count(service)),
    }
}

/// The limit of connections of the service at the start: what it has slots for, if it is not alone on its reactor or
/// shares a total.
pub fn max_connections(cap: Option<&Cap>, connections: usize, has_others: bool) -> Option<usize> {
    if let Some(cap) = cap {
        cap.own.store(connections, Ordering::Relaxed);
        return Some(cap.in_force());
    }
    has_others.then_some(connections)
}

impl Shared {
    /// The share of a process that has not reached the broker yet.
    fn first(&self) -> usize {
        self.total / FIRST
    }

    fn service(self, quantity: impl Quantity + 'static) -> SharedLimits {
        SharedLimits {
            share: self.first(),
            broker: self.broker,
            key: self.key,
            total: self.total,
            quantity: Box::new(quantity),
            id: random_id(),
            request: 0,
            wanted: 0,
            is_busy: false,
            refusals: 0,
            is_up: false,
            logged: Vec::new(),
            is_stopping: false,
        }
    }
}

/// The service whose connection goes to the broker.
pub struct SharedLimits {
    broker: Broker,
    key: String,
    id: String,
    /// The number of the last request.
    request: u64,
    total: usize,
    /// What this process may use of it.
    share: usize,
    quantity: Box<dyn Quantity>,
    /// What it wants, and whether it has used any since the request before.
    wanted: u64,
    is_busy: bool,
    /// Refusals in a row.
    refusals: u32,
    is_up: bool,
    /// Reasons of this outage.
    logged: Vec<String>,
    is_stopping: bool,
}

/// The connection to the broker.
#[derive(Debug, Default)]
pub struct Link {
    /// Answers to come to the greeting.
    greetings: usize,
    is_asked: bool,
    /// Whether the last request was only to tell of a smaller share.
    has_given_back: bool,
    /// The broker has refused something, or has said nonsense: what it says now is not looked at.
    has_failed: bool,
}

impl SharedLimits {
    fn send(&self, words: &[&[u8]], socket: &mut Socket<'_>) {
        socket.send(command(words));
        socket.set_alarm(Some(ANSWER_WITHIN));
    }

    /// Asks for what this process wants now.
    fn ask_anew(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        (self.wanted, self.is_busy) = self.quantity.measure(self.share, self.total as u64, &socket.all());
        self.ask(link, socket);
    }

    /// Asks for a share.
    fn ask(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        self.request += 1;
        link.is_asked = true;
        let held = self.quantity.held(self.share, &socket.all()) as u64;
        let numbers = [self.request, held, self.wanted, self.total as u64, KEPT.as_millis() as u64];
        let numbers = numbers.map(|number| number.to_string());
        let mut words: Vec<&[u8]> =
            vec![b"EVAL", SHARES.as_bytes(), b"1", self.key.as_bytes(), self.id.as_bytes()];
        words.extend(numbers.iter().map(|number| number.as_bytes()));
        self.send(&words, socket);
    }

    /// # Errors
    ///
    /// If the broker has refused, or the answer is to something else.
    fn on_answer(&mut self, link: &mut Link, answer: &Answer, socket: &mut Socket<'_>) -> Result<(), String> {
        match answer {
            Answer::Error(text) => Err(shown(text)),
            _ if link.greetings > 0 => {
                link.greetings -= 1;
                Ok(())
            }
            Answer::Integer(share) if link.is_asked => {
                let share = usize::try_from(*share).ok().filter(|share| *share <= self.total);
                self.on_share(link, share.ok_or("a share that cannot be")?, socket);
                Ok(())
            }
            _ => Err("no answer to EVAL".to_string()),
        }
    }

    fn on_share(&mut self, link: &mut Link, share: usize, socket: &mut Socket<'_>) {
        link.is_asked = false;
        self.refusals = 0;
        if !self.is_up {
            self.is_up = true;
            self.logged.clear();
            let unit = self.quantity.unit();
            log::info!("shared limits: connected to {}, {share} {unit} for this process", self.broker);
        }
        // The others can have what this process gives back when it has told that it holds less.
        let gives_back = share < self.share && !link.has_given_back;
        if share != self.share {
            self.share = share;
            self.quantity.set(share, &mut socket.all());
        }
        link.has_given_back = gives_back;
        match gives_back {
            true => self.ask(link, socket),
            false => socket.set_alarm(Some(if self.is_busy { BUSY } else { QUIET })),
        }
    }

    fn fail(&mut self, link: &mut Link, why: &str, socket: &mut Socket<'_>) {
        link.has_failed = true;
        self.log_down(&format!("{}: {why}", self.broker));
        let random = RandomState::new().hash_one(self.refusals);
        socket.set_alarm(Some(REFUSED.wait(self.refusals, random)));
        self.refusals = self.refusals.saturating_add(1);
    }

    /// Each reason is logged once in an outage; none while the server stops.
    fn log_down(&mut self, why: &str) {
        self.is_up = false;
        let is_known = self.logged.len() >= REASONS_MAX || self.logged.iter().any(|logged| logged == why);
        if !self.is_stopping && !is_known {
            let (share, unit) = (self.share, self.quantity.unit());
            log::warn!("shared limits: {why}; this process keeps its last share, {share} {unit}");
            self.logged.push(why.to_string());
        }
    }
}

impl Service for SharedLimits {
    type Session = Link;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        let options = self.broker.dial_options(0);
        if let Err(error) = sockets.dial_with(self.broker.address.clone(), own, options) {
            self.log_down(&error.to_string());
        }
    }

    fn open(&mut self, _: &mut Socket<'_>) -> Link {
        Link::default()
    }

    fn connected(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        for words in self.broker.greeting() {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            self.send(&words, socket);
            link.greetings += 1;
        }
        self.ask_anew(link, socket);
    }

    fn data(&mut self, link: &mut Link, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        if !link.has_failed
            && let Err(why) = resp::take_each(input, |answer| self.on_answer(link, answer, socket))
        {
            self.fail(link, &why, socket);
        }
        if link.has_failed {
            input.take_all();
        }
    }

    /// It is time for the next request, or an answer is overdue, or a broker that has refused was left alone for long
    /// enough.
    fn alarm(&mut self, link: &mut Link, socket: &mut Socket<'_>, _: u64) {
        if !link.has_failed && !link.is_asked {
            return self.ask_anew(link, socket);
        }
        if !link.has_failed {
            self.log_down(&format!("{}: no answer within {} s", self.broker, ANSWER_WITHIN.as_secs()));
        }
        link.has_failed = true;
        socket.redial();
    }

    /// Connections that drain keep to the last share.
    fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, SharedLimits>) {
        self.is_stopping = true;
        sockets.for_each(|_, mut socket| socket.close());
    }

    fn closed(&mut self, link: Link, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        if !link.has_failed {
            self.log_down(&gone.error_text().unwrap_or_else(|| format!("{}: {}", self.broker, gone.reason)));
        }
    }
}
