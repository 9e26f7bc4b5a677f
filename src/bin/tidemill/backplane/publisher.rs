//! What the chat on each loop has of the backplane, and what all of them share with the two connections.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tidemill::services::{Chat, Elsewhere, RoomWork};
use tidemill::{ConnId, Key, ServiceSockets, Sockets, TimerId};

use super::incoming::is_said;
use super::outgoing::Outgoing;
use crate::locked::locked;

/// The longest line that is published, with its name.
pub const LINE_MAX: usize = 64 * 1024;
/// How often lines are sent to a member in one callback: as with lines of other shards.
const SENDS_MAX: usize = 16 * 1024;
/// When a loop that had no place for a post is tried again.
pub const RETRY: Duration = Duration::from_millis(10);

/// What a sender is sent whose line stays in its own process.
const TOO_MANY: &str = "only members here got this: too many lines wait for the broker\n";
const TOO_LONG: &str = "only members here got this: it is longer than 64 KiB\n";

/// Has the chat on another loop do some work: the kind of error is that of [`tidemill::Peers::post`].
pub type Post = Arc<dyn Fn(usize, RoomWork) -> Result<(), io::ErrorKind> + Send + Sync>;

/// What the chats of a process and the two connections share. The connections are on the first loop.
///
/// ```text
///     chat on loop 0 ─┐                               ┌─▶ lines of loop 0 ─▶ chat there
///     chat on loop 1 ─┴─▶ outgoing ─▶ writer   reader ┴─▶ lines of loop 1 ─▶ chat there
/// ```
pub struct Common {
    pub outgoing: Outgoing,
    /// None where there is one loop.
    pub post: Option<Post>,
    /// The connections, by role, while they are there.
    pub connections: [Option<ConnId>; 2],
    rooms: Vec<RoomState>,
    /// Whether a post is under way that has the connections called.
    is_waking: bool,
}

/// The chat on a loop.
#[derive(Debug, Default)]
struct RoomState {
    key: Option<Key<Chat>>,
    /// Lines of others on their way to its members.
    lines: VecDeque<Arc<[u8]>>,
    /// Whether work is under way that takes them.
    is_posted: bool,
    /// Set when a loop had no place for a post.
    retry: Option<TimerId>,
    has_ended: bool,
}

impl Common {
    pub fn new(loops: usize) -> Common {
        let rooms = (0..loops).map(|_| RoomState::default()).collect();
        let outgoing = Outgoing::default();
        Common { outgoing, post: None, connections: [None; 2], rooms, is_waking: false }
    }

    /// Whether all lines of others have reached the members.
    pub fn is_all_heard(&self) -> bool {
        self.rooms.iter().all(|room| room.lines.is_empty())
    }

    /// Whether no line can come from other loops than the first one any more.
    pub fn have_others_ended(&self) -> bool {
        self.rooms.iter().skip(1).all(|room| room.has_ended)
    }

    /// Has the connections called that are there: `Service::poked`.
    fn poke(&mut self, sockets: &mut Sockets<'_>) {
        self.is_waking = false;
        for id in self.connections.iter().flatten() {
            if let Some(mut socket) = sockets.get(*id) {
                socket.poke();
            }
        }
    }
}

/// The chat on a loop, for the loops of a process.
#[derive(Clone)]
pub struct Room {
    pub common: Arc<Mutex<Common>>,
    pub number: usize,
}

impl Room {
    fn with<R>(&self, work: impl FnOnce(&mut RoomState) -> R) -> R {
        work(&mut self.lock().rooms[self.number])
    }

    fn lock(&self) -> MutexGuard<'_, Common> {
        locked(&self.common)
    }

    fn post(&self, number: usize, work: RoomWork) -> Result<(), io::ErrorKind> {
        let post = self.lock().post.clone();
        post.map_or(Err(io::ErrorKind::NotConnected), |post| post(number, work))
    }

    /// Queues lines for its members. The connections are called when they were taken.
    pub fn push(&self, lines: &[Arc<[u8]>]) {
        self.with(|room| {
            if !room.has_ended {
                room.lines.extend(lines.iter().cloned());
            }
        });
    }

    /// Has the chat take the lines. Returns whether that will happen, or nothing is left to be done. Called on the
    /// first loop or on that of the chat.
    pub fn ask(&self, sockets: &mut Sockets<'_>) -> bool {
        let key = self.with(|room| {
            let is_asked = room.is_posted || room.lines.is_empty();
            room.is_posted |= !is_asked;
            room.key.filter(|_| !is_asked)
        });
        let Some(key) = key else { return true };
        let this = self.clone();
        let work: RoomWork = Box::new(move |chat, sockets| this.deliver(chat, sockets));
        let asked = match self.number {
            0 => sockets.later(key, work).map_err(|refused| refused.kind()),
            number => self.post(number, work),
        };
        if asked.is_err() {
            self.with(|room| room.is_posted = false);
        }
        match asked {
            Err(io::ErrorKind::WouldBlock) => false,
            // The loop has not started yet or has ended: it has no members.
            Err(_) => {
                self.with(|room| room.lines.clear());
                true
            }
            Ok(()) => true,
        }
    }

    /// On the loop of the chat: gives its members what is queued, until one of them is full.
    fn deliver(&self, chat: &mut Chat, sockets: &mut Sockets<'_>) {
        self.with(|room| room.is_posted = false);
        let mut takes_more = true;
        for _ in 0..(SENDS_MAX / chat.len().max(1)).max(1) {
            let Some(line) = self.with(|room| room.lines.pop_front()) else { break };
            takes_more = chat.hear(line, sockets);
            if !takes_more {
                break;
            }
        }
        // The rest follows in the next turn, or when the member has drained.
        if takes_more && !self.ask(sockets) {
            self.retry_later(sockets);
        }
        if self.lock().is_all_heard() {
            self.wake(sockets);
        }
    }

    /// Has the connections called.
    fn wake(&self, sockets: &mut Sockets<'_>) {
        if self.number == 0 {
            self.lock().poke(sockets);
        } else if !self.post_wake() {
            self.retry_later(sockets);
        }
    }

    fn retry_later(&self, sockets: &mut Sockets<'_>) {
        self.with(|room| {
            if let (None, Some(key)) = (room.retry, room.key) {
                room.retry = sockets.set_timer(key, RETRY, None).ok();
            }
        });
    }

    /// Returns whether that will happen, or nothing is left to be done.
    fn post_wake(&self) -> bool {
        if std::mem::replace(&mut self.lock().is_waking, true) {
            return true;
        }
        let common = self.common.clone();
        let poke = move |_: &mut Chat, sockets: &mut ServiceSockets<'_, Chat>| locked(&common).poke(sockets);
        let posted = self.post(0, Box::new(poke));
        self.lock().is_waking &= posted.is_ok();
        posted != Err(io::ErrorKind::WouldBlock)
    }
}

/// Where the lines of a chat go.
pub struct Publisher(pub Room);

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("number", &self.0.number).finish_non_exhaustive()
    }
}

impl Elsewhere for Publisher {
    fn start(&mut self, own: Key<Chat>, _: &mut Sockets<'_>) {
        self.0.with(|room| room.key = Some(own));
    }

    /// Takes what a member has said. That one joins or leaves is told in its own process only: a process that is cut
    /// off could not tell the others that its members have gone. A sender never waits for the broker.
    fn tell(&mut self, line: &str, sender: Option<ConnId>, sockets: &mut Sockets<'_>) -> bool {
        let Some((sender, line)) = sender.filter(|_| is_said(line)).zip(line.strip_suffix('\n')) else {
            return true;
        };
        let refusal = match line.len() > LINE_MAX {
            true => Some(TOO_LONG),
            false if !self.0.lock().outgoing.push(line.as_bytes()) => Some(TOO_MANY),
            false => None,
        };
        match refusal {
            None => self.0.wake(sockets),
            Some(refusal) => {
                if let Some(mut sender) = sockets.get(sender) {
                    sender.send(refusal);
                }
            }
        }
        true
    }

    /// Members that did not read have drained, or are waited for no longer.
    fn drained(&mut self, room: &mut Chat, sockets: &mut Sockets<'_>) {
        self.0.deliver(room, sockets);
    }

    fn timer(&mut self, timer: TimerId, _: &mut Chat, sockets: &mut Sockets<'_>) {
        let is_own = self.0.with(|room| room.retry.take_if(|retry| *retry == timer).is_some());
        if is_own && !self.0.ask(sockets) {
            self.0.retry_later(sockets);
        }
        if is_own {
            self.0.wake(sockets);
        }
    }
}

impl Drop for Publisher {
    /// Its loop has ended. At a shutdown the connections wait for that.
    fn drop(&mut self) {
        self.0.with(|room| {
            room.has_ended = true;
            room.lines.clear();
        });
        if self.0.number > 0 {
            // Without a place for it, the connections are closed when the time for the shutdown is over.
            self.0.post_wake();
        }
    }
}
