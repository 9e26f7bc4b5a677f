//! `--shared-limits`: one `--total-rate` of several processes, through Redis or Valkey.
//!
//! ```text
//!     group ─ reads ─▶ SharedRate: at most the share, without asking
//!                          ▲ set_group_rate
//!     SharedLimits ── EVAL: holds, wants ──▶ ┌───────────┐ ◀── other processes
//!                  ◀── share of the total ── │ shares.lua│
//!                                            └───────────┘
//! ```
//!
//! A process holds a share of the rate, and asks for another one four times a second while bytes are read. While the
//! broker is away, it keeps its last share.

#[cfg(all(test, feature = "testing"))]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tidemill::{ClosedInfo, Input, Reactor, Service, ServiceId, ServiceSockets, SharedRate, Socket, Sockets};

use crate::backplane::resp::{self, Answer, command, shown};
use crate::backplane::{ANSWER_WITHIN, Backplane, Broker, REFUSED, random_id};

/// Connections that the reactor needs beside those of the server.
pub const CONNECTIONS: usize = 1;
/// How often a process asks while bytes are read, and while none are.
const BUSY: Duration = Duration::from_millis(250);
const QUIET: Duration = Duration::from_secs(1);
/// How long the broker knows a process that does not ask. Its share is for others then.
const KEPT: Duration = Duration::from_secs(10);
/// What a process wants is a multiple of this part of the total, so that its share does not change with each request.
const STEPS: u64 = 32;
/// The part of the total that a process has until it has reached the broker for the first time.
const FIRST: usize = 16;
/// Different reasons that one outage may have in the log.
const REASONS_MAX: usize = 8;

const SHARES: &str = include_str!("shares.lua");

/// Sets the rate of the group on each loop.
pub type Apply = Box<dyn Fn(usize, &mut Sockets<'_>) + Send>;

/// What is shared, and through which broker, before there is a loop.
pub struct Pending {
    broker: Broker,
    key: String,
    total: usize,
    /// What all loops of the process read together: its share.
    pub rate: SharedRate,
}

impl Pending {
    /// `total` is that of all processes with this broker and key, in bytes per second.
    pub fn new(broker: Broker, key: String, total: usize, loops: usize) -> Pending {
        Pending { broker, key, total, rate: SharedRate::new(first_share(total), loops) }
    }

    /// Adds the service, which dials the broker, to the first loop. Returns it with its name.
    pub fn add(self, reactor: &mut Reactor, apply: Apply) -> (ServiceId, &'static str) {
        let service = self.service(apply);
        (reactor.add_with(service, Backplane::limits()).id(), "SharedLimits")
    }

    fn service(self, apply: Apply) -> SharedLimits {
        let Pending { broker, key, total, rate } = self;
        let share = first_share(total);
        SharedLimits {
            id: random_id(),
            request: 0,
            refusals: 0,
            before: (0, Duration::ZERO),
            wanted: 0,
            is_busy: false,
            is_up: false,
            logged: Vec::new(),
            is_stopping: false,
            broker,
            key,
            total,
            share,
            rate,
            apply,
        }
    }
}

fn first_share(total: usize) -> usize {
    (total / FIRST).max(1)
}

/// The service whose connection goes to the broker.
pub struct SharedLimits {
    broker: Broker,
    key: String,
    id: String,
    /// The number of the last request.
    request: u64,
    total: usize,
    /// What this process may read a second.
    share: usize,
    rate: SharedRate,
    apply: Apply,
    /// The bytes that were lent by the last request, and when that was.
    before: (u64, Duration),
    /// What it wants to read a second, and whether it has read anything.
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

    /// Finds out what this process wants, by what it has used since the last time.
    fn measure(&mut self, now: Duration) {
        let (lent, since) = std::mem::replace(&mut self.before, (self.rate.lent(), now));
        let (bytes, total) = (self.before.0.saturating_sub(lent), self.total as u64);
        let used = u128::from(bytes) * 1_000_000 / now.saturating_sub(since).as_micros().max(1);
        let used = u64::try_from(used).unwrap_or(u64::MAX).min(total);
        let step = (total / STEPS).max(1);
        self.is_busy = bytes > 0;
        self.wanted = match used * 4 >= self.share as u64 * 3 {
            true => total,
            false => (used * 3 / 2).div_ceil(step) * step,
        };
    }

    /// Asks for a share.
    fn ask(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        self.request += 1;
        link.is_asked = true;
        let numbers =
            [self.request, self.share as u64, self.wanted, self.total as u64, KEPT.as_millis() as u64];
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
                self.on_share(link, share.ok_or("a share that cannot be")?.max(1), socket);
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
            log::info!("shared limits: connected to {}, {share} bytes/s for this process", self.broker);
        }
        // The others can have what this process gives back when it has told that it holds less.
        let gives_back = share < self.share && !link.has_given_back;
        if share != self.share {
            self.share = share;
            (self.apply)(share, &mut socket.all());
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
            let share = self.share;
            log::warn!("shared limits: {why}; this process keeps its last share, {share} bytes/s");
            self.logged.push(why.to_string());
        }
    }
}

impl Service for SharedLimits {
    type Session = Link;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        let options = self.broker.dial_options(0);
        if let Err(error) = sockets.dial_with(self.broker.address.clone(), own, options) {
            log::error!("shared limits: {error}; this process keeps its first share, {} bytes/s", self.share);
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
        self.measure(socket.elapsed());
        self.ask(link, socket);
    }

    fn data(&mut self, link: &mut Link, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while !link.has_failed {
            let result = match resp::take(input) {
                Ok(Some(answer)) => self.on_answer(link, &answer, socket),
                Ok(None) => return,
                Err(why) => Err(why),
            };
            if let Err(why) = result {
                self.fail(link, &why, socket);
            }
        }
        input.take_all();
    }

    /// It is time for the next request, or an answer is overdue, or a broker that has refused was left alone for long
    /// enough.
    fn alarm(&mut self, link: &mut Link, socket: &mut Socket<'_>, _: u64) {
        if !link.has_failed && !link.is_asked {
            self.measure(socket.elapsed());
            return self.ask(link, socket);
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
