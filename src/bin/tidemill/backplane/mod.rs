//! `chat --backplane`: the rooms of several processes as one, through a stream of Redis or Valkey. With `--shards`, a
//! process has a chat on each loop, and both connections on the first one.
//!
//! ```text
//!     chat ── said ──▶ Outgoing ──▶ writer ── XADD ───────▶ ┌────────┐
//!                      numbered, until acknowledged         │ stream │ ◀──▶ other processes
//!     chat ◀── lines ─ Incoming ◀── reader ── XREAD BLOCK ─ └────────┘
//!                      each line once, gaps noticed
//! ```
//!
//! The broker is never waited for. What it has not acknowledged stays queued; what was not read is still in the stream
//! after a reconnect, which resumes at the last entry that was read.

mod incoming;
mod link;
mod outgoing;
mod publisher;
pub mod resp;
mod status;
#[cfg(all(test, feature = "testing"))]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill::services::Chat;
use tidemill::{
    Address, Backoff, ClosedInfo, DialOptions, FilterConfig, Input, Reactor, Service, ServiceId,
    ServiceSockets, Socket, SocketLimits, Sockets, TimerId,
};

use incoming::Incoming;
pub use incoming::{NAME_MAX, is_name};
pub use link::{ANSWER_WITHIN, REFUSED};
use link::{ENTRIES_MAX, Link, Question};
pub use publisher::Post;
use publisher::{Common, LINE_MAX, Publisher, RETRY, Room};
use status::Status;

use crate::locked::locked;

/// Connections that the reactor needs beside those of the server: one that reads and one that writes.
pub const CONNECTIONS: usize = 2;
/// What an entry has beside its line: names, lengths, ids.
const ENTRY_OVERHEAD: usize = 512;

/// A broker, and what to say to it first.
pub struct Broker {
    pub address: Address,
    /// The user, which may be empty, and the password.
    pub credentials: Option<(String, String)>,
    pub database: u32,
    pub filter: Option<FilterConfig>,
}

impl Broker {
    /// What is asked first on each connection: each command as its words.
    pub fn greeting(&self) -> Vec<Vec<Vec<u8>>> {
        let mut commands: Vec<Vec<&str>> = Vec::new();
        match &self.credentials {
            Some((user, password)) if user.is_empty() => commands.push(vec!["AUTH", password]),
            Some((user, password)) => commands.push(vec!["AUTH", user, password]),
            None => {}
        }
        let database = self.database.to_string();
        if self.database > 0 {
            commands.push(vec!["SELECT", &database]);
        }
        let bytes = |words: Vec<&str>| words.into_iter().map(|word| word.as_bytes().to_vec()).collect();
        commands.into_iter().map(bytes).collect()
    }

    /// A connection that is dialed again when it ends.
    pub fn dial_options(&self, tag: u64) -> DialOptions {
        DialOptions {
            timeout: Some(ANSWER_WITHIN),
            filter: self.filter.clone(),
            reconnect: Some(Backoff { first: Duration::from_millis(250), max: Duration::from_secs(10) }),
            tag,
            ..DialOptions::default()
        }
    }
}

/// A random id of this process: the keys of a hash map are random.
pub fn random_id() -> String {
    format!("{:016x}", RandomState::new().hash_one(0))
}

/// The service whose two connections go to the broker.
pub struct Backplane {
    broker: Broker,
    /// The key of the stream.
    stream: String,
    /// The chat on each loop.
    rooms: Vec<Room>,
    /// The id of this process in the stream, and its name.
    origin: (String, String),
    common: Arc<Mutex<Common>>,
    incoming: Incoming,
    own: Option<ServiceId>,
    /// Set while a loop has had no place for a post.
    retry: Option<TimerId>,
    status: Status,
    /// Refusals in a row, of either connection.
    refusals: u32,
    is_stopping: bool,
}

/// What a connection to the broker is for. It is the tag of its dial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Reader = 0,
    Writer = 1,
}

/// For the chats on this many loops, through this stream. Without a name, a part of its id is the name of the process.
pub fn connect(broker: Broker, stream: String, name: Option<String>, loops: usize) -> (Rooms, Pending) {
    let common = Arc::new(Mutex::new(Common::new(loops)));
    (Rooms(common.clone()), Pending { broker, stream, name, common, loops })
}

/// The chats of a process.
#[derive(Clone)]
pub struct Rooms(Arc<Mutex<Common>>);

impl Rooms {
    /// The chat on a loop, whose lines go to other processes, too. Where there are several, `post` has the chat on
    /// another loop do some work.
    pub fn join(&self, number: usize, chat: Chat, post: Option<Post>) -> Chat {
        locked(&self.0).post = post;
        chat.elsewhere(Publisher(Room { common: self.0.clone(), number }))
    }
}

/// A backplane that is on no reactor yet.
pub struct Pending {
    broker: Broker,
    stream: String,
    name: Option<String>,
    common: Arc<Mutex<Common>>,
    loops: usize,
}

impl Pending {
    /// Adds the service, which dials the broker, to the first loop. The chat was added there before, so its members
    /// are closed first at a shutdown.
    pub fn add(self, reactor: &mut Reactor) -> ServiceId {
        let limits = Backplane::limits();
        reactor.add_with(self.service(), limits).id()
    }

    fn service(self) -> Backplane {
        let id = random_id();
        let name = self.name.unwrap_or_else(|| id[..4].to_string());
        let room = |number| Room { common: self.common.clone(), number };
        Backplane {
            rooms: (0..self.loops).map(room).collect(),
            own: None,
            retry: None,
            incoming: Incoming::new(id.clone()),
            origin: (id, name),
            common: self.common,
            status: Status::default(),
            refusals: 0,
            is_stopping: false,
            broker: self.broker,
            stream: self.stream,
        }
    }
}

impl Backplane {
    /// The deadlines of a connection are its alarms.
    pub fn limits() -> SocketLimits {
        SocketLimits {
            idle: None,
            first_byte: None,
            min_read_rate: None,
            min_write_rate: None,
            // A line that is sent may be as long as this, behind a queue that is almost full.
            queue: 4 * LINE_MAX,
            message: ENTRIES_MAX * (LINE_MAX + ENTRY_OVERHEAD),
            ..SocketLimits::default()
        }
    }

    fn dial(&self, role: Role, sockets: &mut Sockets<'_>, own: ServiceId) {
        let options = self.broker.dial_options(role as u64);
        if let Err(error) = sockets.dial_with(self.broker.address.clone(), own, options) {
            log::error!("backplane: {error}; lines stay in this process");
        }
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)
    }
}

impl Service for Backplane {
    type Session = Link;

    fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
        self.own = Some(own);
        self.dial(Role::Reader, sockets, own);
        self.dial(Role::Writer, sockets, own);
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> Link {
        let role = if socket.tag() == Role::Reader as u64 { Role::Reader } else { Role::Writer };
        locked(&self.common).connections[role as usize] = Some(socket.id());
        Link { role, asked: VecDeque::new(), has_failed: false }
    }

    fn connected(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        for words in self.broker.greeting() {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            self.ask(link, Question::Greeting, &words, socket);
        }
        let stream = self.stream.as_bytes();
        match link.role {
            Role::Reader => self.ask(link, Question::Info, &[b"XINFO", b"STREAM", stream], socket),
            Role::Writer => self.ask(link, Question::Ping, &[b"PING"], socket),
        }
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

    fn drained(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        self.publish(link, socket);
    }

    /// The room has said something, or takes more.
    fn poked(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        self.publish(link, socket);
        self.ask_to_read(link, socket);
    }

    /// An answer is overdue, or the time is over for which a broker that has refused was left alone.
    fn alarm(&mut self, link: &mut Link, socket: &mut Socket<'_>, _: u64) {
        if !link.has_failed {
            let within = ANSWER_WITHIN.as_secs();
            let why = format!("{}: no answer within {within} s", self.broker);
            self.status.down(link.role, &why, self.is_stopping);
        }
        link.has_failed = true;
        socket.redial();
    }

    /// A loop has had no place for lines of others.
    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        if self.retry == Some(timer) {
            self.retry = None;
            self.ask_rooms(sockets);
        }
    }

    /// The chat here has closed its members, and those on other loops do so now. Lines that wait are sent if the broker
    /// answers.
    fn stopping(&mut self, _: Duration, sockets: &mut ServiceSockets<'_, Backplane>) {
        self.is_stopping = true;
        let is_done = self.is_all_published() || !self.status.is_up(Role::Writer);
        let has_no_writer = locked(&self.common).connections[Role::Writer as usize].is_none();
        if has_no_writer {
            self.log_unsent();
        }
        sockets.for_each(|link, mut socket| {
            if link.role == Role::Reader || is_done {
                socket.close();
            }
        });
    }

    fn closed(&mut self, link: Link, gone: &ClosedInfo, _: &mut Sockets<'_>) {
        if !link.has_failed {
            let why = gone.error_text().unwrap_or_else(|| format!("{}: {}", self.broker, gone.reason));
            self.status.down(link.role, &why, self.is_stopping);
        }
        locked(&self.common).connections[link.role as usize] = None;
        if link.role == Role::Writer {
            locked(&self.common).outgoing.rewind();
            if self.is_stopping {
                self.log_unsent();
            }
        }
    }
}
