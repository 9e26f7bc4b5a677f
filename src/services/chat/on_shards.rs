//! One room on the shards of a process.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{Chat, Elsewhere};
use crate::base::id::{ConnId, Key};
use crate::connection::sockets::Sockets;
use crate::parts::timers::TimerId;
use crate::service::ServiceSockets;
use crate::sys::locked;

/// Makes the [`Chat`]s on the shards of a process one room.
///
/// ```text
///     shard 0: Chat ── line ──▶ queue 0→1 ── one post ──▶ shard 1: Chat ─▶ its members
///              Chat ◀── one post ── queue 1→0 ◀── line ── Chat
///     names of all members: one table behind a lock, for /nick and /who
/// ```
///
/// A line is in memory once for the process and is sent to each other shard by one post, which takes what has come
/// meanwhile, too. So the lines of one sender keep their order everywhere; those of two senders on different shards may
/// be seen in different orders. A sender waits while 64 KiB are in the queue to another shard, which is not emptied
/// while a member there is full.
///
/// ```
/// use tidemill::services::{Chat, ShardedRooms};
/// use tidemill::{Limits, Shards};
///
/// let rooms = ShardedRooms::new(2);
/// let mut shards = Shards::start(2, &Limits::default(), move |number, peers| {
///     let peers = peers.clone();
///     let post = move |shard, work| peers.post(shard, work).map_err(|refused| refused.kind());
///     Chat::new().elsewhere(rooms.on_shard(number, post))
/// })?;
/// shards.listen("127.0.0.1:0")?;
/// # shards.shutdown(std::time::Duration::ZERO);
/// # shards.join()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ShardedRooms(Arc<Rooms>);

/// Work for the room on a shard: what [`Peers::post`](crate::Peers::post) takes.
pub type RoomWork = Box<dyn FnOnce(&mut Chat, &mut ServiceSockets<'_, Chat>) + Send>;

type Post = Arc<dyn Fn(usize, RoomWork) -> Result<(), io::ErrorKind> + Send + Sync>;

#[derive(Debug)]
struct Rooms {
    count: usize,
    /// From each shard to each.
    queues: Vec<Mutex<Queue>>,
    names: Mutex<Names>,
}

/// Lines on their way from one shard to another.
#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// Whether a post is under way that takes them.
    is_posted: bool,
    /// Whether the sending room is to be told when there is room again.
    is_awaited: bool,
}

#[derive(Debug, Default)]
struct Names {
    taken: HashSet<String>,
    all: BTreeMap<(usize, ConnId), String>,
}

/// Bytes in a queue from which on senders wait.
const QUEUE_MAX: usize = 64 * 1024;
/// How often lines are sent to a member by one post. The rest follows in the next turn, so a large room does not hold
/// up the loop.
const SENDS_MAX: usize = 16 * 1024;
/// When a shard that had no place for a post is tried again.
const RETRY: Duration = Duration::from_millis(10);

impl ShardedRooms {
    /// For this many shards.
    pub fn new(count: usize) -> ShardedRooms {
        let queues = (0..count * count).map(|_| Mutex::default()).collect();
        ShardedRooms(Arc::new(Rooms { count, queues, names: Mutex::default() }))
    }

    /// What the room on the shard of this number needs. `post` has the room on another shard do some work: it is
    /// [`Peers::post`](crate::Peers::post), with the kind of its error.
    ///
    /// # Panics
    ///
    /// When there is no shard of this number.
    pub fn on_shard<F>(&self, number: usize, post: F) -> impl Elsewhere + use<F>
    where
        F: Fn(usize, RoomWork) -> Result<(), io::ErrorKind> + Send + Sync + 'static,
    {
        assert!(number < self.0.count, "shard {number} of {}", self.0.count);
        OtherShards { number, rooms: self.0.clone(), post: Arc::new(post), own: None, retry: None }
    }
}

impl Rooms {
    fn queue(&self, from: usize, to: usize) -> MutexGuard<'_, Queue> {
        locked(&self.queues[from * self.count + to])
    }

    /// Whether no queue from this shard is so full that senders wait.
    fn has_room(&self, from: usize) -> bool {
        (0..self.count).all(|to| self.queue(from, to).bytes <= QUEUE_MAX / 2)
    }

    /// Has shard `to` take what is in the queue. Returns whether that will happen, or nothing is left to be done.
    fn wake(self: &Arc<Rooms>, from: usize, to: usize, post: &Post) -> bool {
        let mut queue = self.queue(from, to);
        if queue.is_posted || queue.lines.is_empty() {
            return true;
        }
        queue.is_posted = true;
        drop(queue);
        let (rooms, again) = (self.clone(), post.clone());
        let work: RoomWork = Box::new(move |room, sockets| rooms.deliver(from, to, &again, room, sockets));
        match post(to, work) {
            Ok(()) => true,
            Err(io::ErrorKind::WouldBlock) => {
                self.queue(from, to).is_posted = false;
                false
            }
            // The shard has ended, and has no members.
            Err(_) => {
                *self.queue(from, to) = Queue::default();
                true
            }
        }
    }

    /// On shard `to`: gives its members what is in the queue, until one of them is full.
    fn deliver(
        self: &Arc<Rooms>,
        from: usize,
        to: usize,
        post: &Post,
        room: &mut Chat,
        sockets: &mut Sockets<'_>,
    ) {
        let mut lines = (SENDS_MAX / room.len().max(1)).max(1);
        let mut takes_more = room.takes_more();
        while takes_more && lines > 0 {
            let mut queue = self.queue(from, to);
            let Some(line) = queue.lines.pop_front() else { break };
            queue.bytes -= line.len();
            drop(queue);
            takes_more = room.hear(line, sockets);
            lines -= 1;
        }
        let mut queue = self.queue(from, to);
        queue.is_posted = false;
        let is_free = queue.is_awaited && queue.bytes <= QUEUE_MAX / 2;
        queue.is_awaited &= !is_free;
        drop(queue);
        if is_free {
            let rooms = self.clone();
            let go_on = move |room: &mut Chat, sockets: &mut ServiceSockets<'_, Chat>| {
                if rooms.has_room(from) {
                    room.go_on(sockets);
                }
            };
            // Without a place for it, the timer of that room finds out.
            let _ = post(from, Box::new(go_on));
        }
        if takes_more {
            // Without a place for it, the next line or the timer of the sending room has it taken.
            self.wake(from, to, post);
        }
    }
}

/// The rooms on the other shards, as that on one shard sees them.
struct OtherShards {
    number: usize,
    rooms: Arc<Rooms>,
    post: Post,
    own: Option<Key<Chat>>,
    /// Set while a shard has had no place for a post, or senders wait.
    retry: Option<TimerId>,
}

impl OtherShards {
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.number;
        (0..self.rooms.count).filter(move |number| *number != own)
    }

    fn retry_later(&mut self, sockets: &mut Sockets<'_>) {
        if let (None, Some(own)) = (self.retry, self.own) {
            self.retry = sockets.set_timer(own, RETRY, None).ok();
        }
    }
}

impl fmt::Debug for OtherShards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtherShards").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Elsewhere for OtherShards {
    fn start(&mut self, own: Key<Chat>, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn tell(&mut self, line: &str, sender: Option<ConnId>, sockets: &mut Sockets<'_>) -> bool {
        let line: Arc<[u8]> = line.as_bytes().into();
        let (mut has_room, mut is_posted) = (true, true);
        for to in self.others() {
            let mut queue = self.rooms.queue(self.number, to);
            queue.bytes += line.len();
            queue.lines.push_back(line.clone());
            if queue.bytes > QUEUE_MAX && sender.is_some() {
                queue.is_awaited = true;
                has_room = false;
            }
            drop(queue);
            is_posted &= self.rooms.wake(self.number, to, &self.post);
        }
        if !is_posted || !has_room {
            self.retry_later(sockets);
        }
        has_room
    }

    fn name(&mut self, member: ConnId, name: Option<&str>) -> bool {
        let mut names = locked(&self.rooms.names);
        if let Some(name) = name {
            if !names.taken.insert(name.to_lowercase()) {
                return false;
            }
        }
        let place = (self.number, member);
        let before = match name {
            Some(name) => names.all.insert(place, name.to_string()),
            None => names.all.remove(&place),
        };
        if let Some(before) = before {
            names.taken.remove(&before.to_lowercase());
        }
        true
    }

    /// The ids of connections on different shards are the same.
    fn suffix(&self) -> String {
        format!("@{}", self.number)
    }

    fn members(&self, max: usize) -> (usize, Vec<String>) {
        let names = locked(&self.rooms.names);
        let others = || names.all.iter().filter(|((shard, _), _)| *shard != self.number);
        (others().count(), others().take(max).map(|(_, name)| name.clone()).collect())
    }

    fn drained(&mut self, room: &mut Chat, sockets: &mut Sockets<'_>) {
        for from in self.others() {
            self.rooms.deliver(from, self.number, &self.post, room, sockets);
        }
    }

    fn timer(&mut self, timer: TimerId, room: &mut Chat, sockets: &mut Sockets<'_>) {
        if self.retry != Some(timer) {
            return;
        }
        self.retry = None;
        let is_posted =
            self.others().filter(|to| !self.rooms.wake(self.number, *to, &self.post)).count() == 0;
        let has_room = self.rooms.has_room(self.number);
        if has_room {
            room.go_on(sockets);
        }
        if !is_posted || !has_room {
            self.retry_later(sockets);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits::SocketLimits;
    use crate::testing::{Bench, Peer};

    /// Two shards on one thread: what they post to each other is run by [`Two::run`].
    struct Two {
        benches: [Bench; 2],
        keys: Vec<Key<Chat>>,
        posted: Arc<Mutex<VecDeque<(usize, RoomWork)>>>,
        /// Whether a post is refused for want of a place.
        is_full: Arc<Mutex<bool>>,
        rooms: ShardedRooms,
    }

    impl Two {
        fn new() -> Two {
            let (rooms, posted, is_full) = (ShardedRooms::new(2), Arc::default(), Arc::default());
            let mut two = Two { benches: [Bench::new(), Bench::new()], keys: vec![], posted, is_full, rooms };
            for (number, bench) in two.benches.iter_mut().enumerate() {
                let (posted, is_full) = (two.posted.clone(), two.is_full.clone());
                let post = move |shard, work| match *locked(&is_full) {
                    true => Err(io::ErrorKind::WouldBlock),
                    false => {
                        locked(&posted).push_back((shard, work));
                        Ok(())
                    }
                };
                let chat = Chat::new().elsewhere(two.rooms.on_shard(number, post));
                let limits = SocketLimits { rate: None, ..chat.limits() };
                two.keys.push(bench.serve_with(chat, limits));
            }
            two
        }

        fn run(&mut self) {
            loop {
                let Some((shard, work)) = locked(&self.posted).pop_front() else { return };
                self.benches[shard].with(self.keys[shard], work);
                self.benches[shard].run();
            }
        }

        fn join(&mut self, shard: usize, name: &str) -> Peer {
            let peer = self.benches[shard].connect();
            self.say(shard, peer, format!("/nick {name}\n"));
            peer
        }

        fn say(&mut self, shard: usize, peer: Peer, text: impl AsRef<[u8]>) {
            self.benches[shard].say(peer, text);
            self.run();
        }

        fn heard(&mut self, shard: usize, peer: Peer) -> String {
            self.benches[shard].heard(peer)
        }
    }

    #[test]
    fn a_sender_waits_for_a_full_member_on_another_shard_and_no_line_is_lost() {
        let mut two = Two::new();
        let (ada, bob) = (two.join(0, "ada"), two.join(1, "bob"));
        two.heard(0, ada);
        two.heard(1, bob);
        two.benches[1].stop_reading(bob);
        let lines: String = (0..400).map(|number| format!("{number:03} {}\n", "x".repeat(996))).collect();
        two.say(0, ada, &lines);
        let before = two.heard(0, ada).lines().count();
        assert!(
            (100..250).contains(&before),
            "{before} lines fill bob's queue of 64 KiB and that between the shards"
        );
        let (mut received, mut rounds) = (String::new(), 0);
        while received.lines().count() < 400 {
            two.benches[1].read_at_most(bob, 20_000);
            received += &two.heard(1, bob);
            two.run();
            rounds += 1;
            assert!(rounds < 100, "{} lines came", received.lines().count());
        }
        let wanted: String = lines.lines().map(|line| format!("ada: {line}\n")).collect();
        assert!(received == wanted, "each once, and in order");
        assert_eq!(two.benches[1].stats().closed.iter().sum::<u64>(), 0);
    }

    #[test]
    fn a_line_that_had_no_place_among_the_posts_is_tried_again() {
        let mut two = Two::new();
        let (ada, bob) = (two.join(0, "ada"), two.join(1, "bob"));
        two.heard(0, ada);
        two.heard(1, bob);
        *locked(&two.is_full) = true;
        two.say(0, ada, "one\ntwo\n");
        *locked(&two.is_full) = false;
        two.run();
        assert_eq!(two.heard(1, bob), "", "there was no place");
        two.benches[0].advance(2 * RETRY);
        two.run();
        assert_eq!(two.heard(1, bob), "ada: one\nada: two\n");
    }

    #[test]
    fn a_name_is_taken_on_all_shards_and_who_lists_all() {
        let mut two = Two::new();
        let (ada, bob) = (two.join(0, "ada"), two.join(1, "bob"));
        two.heard(1, bob);
        two.say(1, bob, "/nick Ada\n/who\n");
        assert_eq!(two.heard(1, bob), "Ada is taken\n2 here: bob, ada\n");
        two.benches[0].end(ada);
        two.run();
        two.say(1, bob, "/nick Ada\n");
        assert_eq!(two.heard(1, bob), "ada left\nbob is now Ada\n");
    }
}
