//! A process with a room on two loops, of which the first one has the connections to the broker.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill::services::{Chat, RoomWork, ShardedRooms};
use tidemill::testing::{Bench, DialAnswer, Peer, PeerEnd};
use tidemill::{Key, SocketLimits};

use super::super::{Post, connect, outgoing, publisher::RETRY};
use super::{BROKER, World, broker, entries, info};
use crate::locked::locked;

#[derive(Default)]
struct Posted {
    work: VecDeque<(usize, RoomWork)>,
    /// Whether a post is refused for want of a place.
    is_full: bool,
}

/// What the loops post to each other is run by [`Process::run`].
struct Process {
    first: World,
    second: Bench,
    keys: [Key<Chat>; 2],
    posted: Arc<Mutex<Posted>>,
}

impl Process {
    fn new() -> Process {
        let posted = Arc::new(Mutex::new(Posted::default()));
        let queue = posted.clone();
        let post: Post = Arc::new(move |shard, work| {
            let mut queue = locked(&queue);
            if queue.is_full {
                return Err(io::ErrorKind::WouldBlock);
            }
            queue.work.push_back((shard, work));
            Ok(())
        });
        let (rooms, pending) = connect(broker(), "room".to_string(), None, 2);
        let sharded = ShardedRooms::new(2);
        let chat = |number| {
            let chat = rooms.join(number, Chat::new(), Some(post.clone()));
            let post = post.clone();
            chat.elsewhere(sharded.on_shard(number, move |shard, work| post(shard, work)))
        };
        let (first, key) = World::new(Bench::new(), chat(0), pending);
        let mut second = Bench::new();
        let other = second.serve_with(chat(1), SocketLimits { rate: None, ..Chat::new().limits() });
        Process { first, second, keys: [key, other], posted }
    }

    fn run(&mut self) {
        loop {
            let Some((shard, work)) = locked(&self.posted).work.pop_front() else { return };
            let bench = if shard == 0 { &mut self.first.bench } else { &mut self.second };
            bench.with(self.keys[shard], work);
        }
    }

    /// A member of each loop.
    fn members(&mut self) -> [Peer; 2] {
        let (ada, bob) = (self.first.bench.connect(), self.second.connect());
        self.say([ada, bob], "/nick ada\n", "/nick bob\n");
        self.heard([ada, bob]);
        [ada, bob]
    }

    fn say(&mut self, [ada, bob]: [Peer; 2], first: &str, second: &str) {
        self.first.bench.say(ada, first);
        self.second.say(bob, second);
        self.run();
    }

    /// The broker says something.
    fn answer(&mut self, link: Peer, text: impl AsRef<[u8]>) {
        self.first.bench.say(link, text);
        self.run();
    }

    fn heard(&mut self, [ada, bob]: [Peer; 2]) -> [String; 2] {
        self.run();
        [self.first.bench.heard(ada), self.second.heard(bob)]
    }
}

#[test]
fn lines_of_all_loops_are_published_once_and_lines_of_others_are_told_on_all_loops() {
    let mut process = Process::new();
    let members = process.members();
    let (reader, writer) = process.first.broker(&info(40, 0));
    assert_eq!(process.first.reads_from(reader), "40-0");
    process.say(members, "one\ntwo\n", "three\nfour\n/nick eve\n");
    let published = process.first.published(writer);
    assert_eq!(published, ["1 ada: one", "2 ada: two", "3 bob: three", "4 bob: four"]);
    process.heard(members);
    process.answer(reader, entries(50, 1, &["zoe: hi", "zoe: there"]));
    assert_eq!(process.heard(members), ["zoe@web2: hi\nzoe@web2: there\n"; 2]);
    assert_eq!(process.first.reads_from(reader), "60-0");
    process.say(members, "/who\n", "");
    assert_eq!(process.heard(members)[0], "2 here: ada, eve\n");
    assert!(process.first.published(writer).is_empty(), "nothing comes back from the other loop");
}

#[test]
fn a_sender_on_another_loop_is_told_at_once_that_too_many_lines_wait() {
    let mut process = Process::new();
    process.first.bench.set_dial(BROKER, DialAnswer::Refuse);
    let members = process.members();
    process.say(members, &"x\n".repeat(outgoing::LINES_MAX / 2), "");
    process.say(members, "", &"y\n".repeat(outgoing::LINES_MAX / 2 + 2));
    let [adas, bobs] = process.heard(members);
    let refused = "only members here got this: too many lines wait for the broker\n";
    assert_eq!((adas.matches(refused).count(), bobs.matches(refused).count()), (0, 2));
    assert_eq!(adas.matches("bob: y\n").count(), outgoing::LINES_MAX / 2 + 2, "the room is not delayed");
}

#[test]
fn the_stream_is_not_read_while_a_member_of_another_loop_does_not_read() {
    let mut process = Process::new();
    let members = process.members();
    let (reader, _writer) = process.first.broker(&info(40, 0));
    process.second.stop_reading(members[1]);
    let line = format!("zoe: {}", "x".repeat(4_000));
    let (mut count, mut told) = (0, [String::new(), String::new()]);
    while !process.first.bench.heard(reader).is_empty() {
        process.answer(reader, entries(50 + 10 * count, 1 + count, &[line.as_str(); 4]));
        count += 4;
        assert!(count < 80, "320 kB are more than the queue of a member may hold");
    }
    told[0] += &process.heard(members)[0];
    assert_eq!(told[0].lines().count() as u64, count, "it delays no member of the first loop");
    while told[1].len() < told[0].len() {
        process.second.read_at_most(members[1], 20_000);
        let more = process.heard(members);
        assert!(!more[1].is_empty(), "{} of {} bytes were told", told[1].len(), told[0].len());
        told[1] += &more[1];
    }
    assert!(told[0] == told[1], "each once, and in order");
    assert_eq!(process.first.reads_from(reader), format!("{}-0", 40 + 10 * count));
}

#[test]
fn a_gap_is_told_on_all_loops_once() {
    let mut process = Process::new();
    let members = process.members();
    let (reader, _writer) = process.first.broker(&info(40, 0));
    process.first.bench.end(reader);
    let reader = process.first.reader(&info(90, 7));
    process.run();
    process.answer(reader, entries(80, 5, &["zoe: five"]));
    let lost = "lines from elsewhere are missing here: the broker does not have them any more\n";
    assert_eq!(process.heard(members), [0, 1].map(|_| format!("{lost}zoe@web2: five\n")));
}

#[test]
fn what_had_no_place_among_the_posts_of_a_loop_is_tried_again() {
    let mut process = Process::new();
    let members = process.members();
    let (reader, writer) = process.first.broker(&info(40, 0));
    process.first.reads_from(reader);
    locked(&process.posted).is_full = true;
    process.answer(reader, entries(50, 1, &["zoe: hi"]));
    process.say(members, "", "hello\n");
    locked(&process.posted).is_full = false;
    assert_eq!(process.heard(members), ["zoe@web2: hi\n", "bob: hello\n"]);
    assert_eq!(process.first.bench.heard(reader), "", "the other loop has not taken it");
    assert!(process.first.published(writer).is_empty());
    process.first.bench.advance(2 * RETRY);
    process.second.advance(2 * RETRY);
    assert_eq!(process.heard(members), ["bob: hello\n", "zoe@web2: hi\n"]);
    assert_eq!(process.first.reads_from(reader), "50-0");
    assert_eq!(process.first.published(writer), ["1 bob: hello"]);
    locked(&process.posted).is_full = true;
    process.say(members, "", "bye\n");
    locked(&process.posted).is_full = false;
    assert!(process.first.published(writer).is_empty());
    process.second.advance(2 * RETRY);
    process.run();
    assert_eq!(process.first.published(writer), ["2 bob: bye"]);
}

#[test]
fn at_a_shutdown_the_lines_of_a_loop_that_ends_last_are_published() {
    let mut process = Process::new();
    let members = process.members();
    let (_reader, writer) = process.first.broker(&info(40, 0));
    process.first.bench.shutdown(Duration::from_secs(10));
    process.say(members, "", "bye\n");
    assert_eq!(process.first.published(writer), ["1 bob: bye"]);
    process.answer(writer, "$4\r\n50-0\r\n");
    assert_eq!(process.first.bench.ended(writer), None, "the other loop may have more to say");
    process.second.shutdown(Duration::from_secs(10));
    process.second = Bench::new();
    process.run();
    assert_eq!(process.first.bench.ended(writer), Some(PeerEnd::Fin));
}
