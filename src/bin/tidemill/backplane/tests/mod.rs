//! The backplane on the simulated kernel: the test plays the broker, byte by byte.

mod random;
mod shards;

use std::time::Duration;

use tidemill::services::Chat;
use tidemill::testing::{Bench, DialAnswer, Peer, PeerEnd, seeds};
use tidemill::{Key, Limits, SocketLimits};

use super::resp::command;
use super::{Backplane, Broker, Pending, connect, outgoing};

const BROKER: &str = "10.0.0.7:6379";

struct World {
    bench: Bench,
    dials: usize,
}

/// A room with a broker at [`BROKER`], which accepts connections, and no members yet.
fn world(bench: Bench) -> World {
    let (rooms, pending) = connect(broker(), "room".to_string(), Some("web1".to_string()), 1);
    World::new(bench, rooms.join(0, Chat::new(), None), pending).0
}

fn broker() -> Broker {
    Broker {
        address: BROKER.parse().expect("an address"),
        credentials: Some(("app".to_string(), "secret".to_string())),
        database: 3,
        filter: None,
    }
}

fn words(text: &str) -> String {
    let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
    String::from_utf8(command(&words)).expect("text")
}

/// XINFO STREAM of a stream with entries at 10, 20, and so on up to `last`, of which the first ones were removed.
fn info(last: u64, removed: u64) -> String {
    stream_info(last, last / 10, removed * 10 + 10, removed)
}

fn stream_info(last: u64, added: u64, first: u64, removed: u64) -> String {
    format!(
        "*8\r\n$6\r\nlength\r\n:{}\r\n$17\r\nlast-generated-id\r\n${}\r\n{last}-0\r\n\
         $13\r\nentries-added\r\n:{added}\r\n\
         $11\r\nfirst-entry\r\n*2\r\n${}\r\n{first}-0\r\n*0\r\n",
        added - removed,
        last.to_string().len() + 2,
        first.to_string().len() + 2,
    )
}

/// An answer to XREAD with lines of an origin, from entry `id` and number `number` on.
fn entries(id: u64, number: u64, lines: &[&str]) -> String {
    let mut text = format!("*1\r\n*2\r\n$4\r\nroom\r\n*{}\r\n", lines.len());
    for (n, line) in (0..).zip(lines) {
        let (id, number) = (format!("{}-0", id + 10 * n), (number + n).to_string());
        text += &format!("*2\r\n${}\r\n{id}\r\n", id.len());
        text += &words("o origin2 n N at web2 l LINE")
            .replace("$1\r\nN\r\n", &format!("${}\r\n{number}\r\n", number.len()))
            .replace("$4\r\nLINE\r\n", &format!("${}\r\n{line}\r\n", line.len()));
    }
    text
}

impl World {
    /// Also the key of the chat.
    fn new(mut bench: Bench, chat: Chat, pending: Pending) -> (World, Key<Chat>) {
        bench.set_dial(BROKER, DialAnswer::Accept);
        let limits = SocketLimits { rate: None, ..chat.limits() };
        let chat = bench.serve_with(chat, limits);
        bench.add_with(pending.service(), Backplane::limits());
        (World { bench, dials: 0 }, chat)
    }

    fn member(&mut self, name: &str) -> Peer {
        let member = self.bench.connect();
        self.bench.say(member, format!("/nick {name}\n"));
        self.bench.heard(member);
        member
    }

    /// Waits until the broker is dialed again.
    fn dialed(&mut self) -> Peer {
        self.dials += 1;
        for _ in 0..1_000 {
            if self.bench.dialed().len() >= self.dials {
                return self.bench.upstream(BROKER);
            }
            self.bench.advance(Duration::from_millis(100));
        }
        panic!("the broker is not dialed again");
    }

    /// Waits until both connections to the broker were dialed, in any order, and answers what they ask first.
    fn broker(&mut self, info: &str) -> (Peer, Peer) {
        let (one, other) = (self.dialed(), self.dialed());
        let is_writer = self.bench.peek(one).ends_with(&words("PING"));
        let (reader, writer) = if is_writer { (other, one) } else { (one, other) };
        self.answer_reader(reader, info);
        assert_eq!(self.bench.heard(writer), words("AUTH app secret") + &words("SELECT 3") + &words("PING"));
        self.bench.say(writer, "+OK\r\n+OK\r\n+PONG\r\n");
        (reader, writer)
    }

    /// Waits until the connection that reads was dialed again.
    fn reader(&mut self, info: &str) -> Peer {
        let reader = self.dialed();
        self.answer_reader(reader, info);
        reader
    }

    fn answer_reader(&mut self, reader: Peer, info: &str) {
        let asked = self.bench.heard(reader);
        assert_eq!(asked, words("AUTH app secret") + &words("SELECT 3") + &words("XINFO STREAM room"));
        self.bench.say(reader, format!("+OK\r\n+OK\r\n{info}"));
    }

    /// Waits until the connection that writes was dialed again.
    fn writer(&mut self) -> Peer {
        let writer = self.dialed();
        assert!(self.bench.heard(writer).ends_with(&words("PING")));
        self.bench.say(writer, "+OK\r\n+OK\r\n+PONG\r\n");
        writer
    }

    /// From where the reader reads on.
    fn reads_from(&mut self, reader: Peer) -> String {
        let asked = self.bench.heard(reader);
        let start = words("XREAD COUNT 64 BLOCK 4000 STREAMS room ID");
        let start = &start[..start.len() - "$2\r\nID\r\n".len()];
        let id = asked.strip_prefix(start).unwrap_or_else(|| panic!("{asked:?} is no XREAD"));
        id.lines().nth(1).unwrap_or_default().to_string()
    }

    /// The lines that the writer has published, with their numbers.
    fn published(&mut self, writer: Peer) -> Vec<String> {
        let text = self.bench.heard(writer);
        let lines: Vec<&str> = text.lines().collect();
        let after = |at: &[&str], name: &str| {
            let found = at.iter().position(|line| *line == name).expect(name);
            at[found + 2].to_string()
        };
        let starts = lines.iter().enumerate().filter(|(_, line)| **line == "XADD").map(|(n, _)| &lines[n..]);
        starts.map(|at| format!("{} {}", after(at, "n"), after(at, "l"))).collect()
    }
}

#[test]
fn what_members_say_is_published_and_what_others_say_is_told() {
    let mut world = world(Bench::new());
    let (ada, bob) = (world.member("ada"), world.member("bob"));
    world.bench.heard(ada);
    let (reader, writer) = world.broker("-ERR no such key\r\n");
    assert_eq!(world.reads_from(reader), "0-0");
    world.bench.say(ada, "hello\n/nick eve\n");
    let entry = world.bench.peek(writer);
    assert!(
        entry.starts_with(&words("XADD room MAXLEN ~ 100000 *")[5..]) || entry.contains("MAXLEN"),
        "{entry}"
    );
    assert_eq!(world.published(writer), ["1 ada: hello"], "and nothing of names");
    world.bench.say(reader, entries(10, 1, &["zoe: hi", "zoe: there"]));
    let said = "ada: hello\nada is now eve\nzoe@web2: hi\nzoe@web2: there\n";
    assert_eq!((world.bench.heard(ada), world.bench.heard(bob)), (said.to_string(), said.to_string()));
    assert_eq!(world.reads_from(reader), "20-0");
    // Nothing came within the time that XREAD blocks.
    world.bench.say(reader, "*-1\r\n");
    assert_eq!(world.reads_from(reader), "20-0");
}

#[test]
fn answers_that_arrive_byte_by_byte_or_in_any_pieces_are_the_same_lines() {
    let play = |mut world: World| {
        let ada = world.member("ada");
        let (reader, writer) = world.broker(&info(40, 0));
        assert_eq!(world.reads_from(reader), "40-0");
        world.bench.say(ada, "hello\n");
        assert_eq!(world.published(writer), ["1 ada: hello"]);
        world.bench.say(writer, "$4\r\n50-0\r\n");
        world.bench.say(reader, entries(50, 7, &["zoe: one", "zoe: two\u{1f30a}", "zoe: three"]));
        let said = "ada: hello\nzoe@web2: one\nzoe@web2: two\u{1f30a}\nzoe@web2: three\n";
        assert_eq!(world.bench.heard(ada), said);
        assert_eq!(world.reads_from(reader), "70-0");
    };
    let mut split = Bench::new();
    split.split_every(1);
    play(world(split));
    for seed in seeds(20) {
        play(world(Bench::seeded(seed)));
    }
}

#[test]
fn a_line_whose_answer_was_lost_is_sent_again_with_its_number_and_one_with_an_answer_is_not() {
    let mut world = world(Bench::new());
    let ada = world.member("ada");
    let (_reader, writer) = world.broker(&info(40, 0));
    world.bench.say(ada, "one\ntwo\nthree\n");
    assert_eq!(world.published(writer).len(), 3);
    world.bench.say(writer, "$4\r\n50-0\r\n$4\r\n60");
    world.bench.reset(writer);
    world.bench.say(ada, "four\n");
    let writer = world.writer();
    assert_eq!(world.published(writer), ["2 ada: two", "3 ada: three", "4 ada: four"]);
}

#[test]
fn a_line_that_another_process_has_written_twice_is_told_once_and_half_an_answer_is_read_again() {
    let mut world = world(Bench::new());
    let ada = world.member("ada");
    let (reader, _writer) = world.broker(&info(40, 0));
    world.bench.heard(reader);
    let answer = entries(50, 1, &["zoe: one", "zoe: two"]);
    world.bench.say(reader, &answer[..answer.len() - 5]);
    world.bench.end(reader);
    assert_eq!(world.bench.heard(ada), "", "half an answer is none");
    let reader = world.reader(&info(60, 0));
    assert_eq!(world.reads_from(reader), "40-0");
    world.bench.say(reader, answer);
    world.bench.say(reader, entries(70, 2, &["zoe: two", "zoe: three"]));
    assert_eq!(world.bench.heard(ada), "zoe@web2: one\nzoe@web2: two\nzoe@web2: three\n");
}

#[test]
fn lines_wait_within_a_bound_while_the_broker_is_away_and_a_sender_beyond_it_is_told() {
    let mut world = world(Bench::new());
    world.bench.set_dial(BROKER, DialAnswer::Refuse);
    let (reader, writer) = (world.dialed(), world.dialed());
    world.bench.reset(reader);
    world.bench.reset(writer);
    let (ada, bob) = (world.member("ada"), world.member("bob"));
    world.bench.heard(ada);
    world.bench.say(ada, "x\n".repeat(outgoing::LINES_MAX + 2));
    assert_eq!(world.bench.heard(bob), "ada: x\n".repeat(outgoing::LINES_MAX + 2), "the room is not delayed");
    let own = world.bench.heard(ada);
    assert_eq!(own.matches("only members here got this: too many lines wait for the broker\n").count(), 2);
    world.bench.set_dial(BROKER, DialAnswer::Accept);
    world.dials = world.bench.dialed().len();
    let (_, writer) = world.broker("-ERR no such key\r\n");
    let mut published = world.published(writer);
    while published.len() < outgoing::LINES_MAX {
        let before = published.len();
        world.bench.say(writer, "$4\r\n50-0\r\n".repeat(100));
        published.extend(world.published(writer));
        assert!(published.len() > before, "{before} lines were published");
    }
    assert_eq!(published.last(), Some(&format!("{} ada: x", outgoing::LINES_MAX)));
}

#[test]
fn a_broker_that_does_not_answer_delays_no_line_and_is_dialed_again_after_five_seconds() {
    let mut world = world(Bench::new());
    let (ada, bob) = (world.member("ada"), world.member("bob"));
    let (reader, writer) = (world.dialed(), world.dialed());
    world.bench.say(ada, "hello\n");
    assert_eq!(world.bench.heard(bob), "ada: hello\n");
    world.bench.advance(Duration::from_millis(4_900));
    assert_eq!((world.bench.ended(reader), world.bench.ended(writer)), (None, None));
    world.bench.advance(Duration::from_millis(200));
    assert_eq!(world.bench.ended(reader), Some(PeerEnd::Reset));
    assert_eq!(world.bench.ended(writer), Some(PeerEnd::Reset));
    let (reader, writer) = world.broker(&info(40, 0));
    assert_eq!(world.published(writer), ["1 ada: hello"]);
    // The answer to an XADD is due within the same time, and one to XREAD that much after it has blocked.
    world.bench.advance(Duration::from_millis(5_100));
    assert_eq!((world.bench.ended(reader), world.bench.ended(writer)), (None, Some(PeerEnd::Reset)));
    world.bench.advance(Duration::from_millis(4_000));
    assert_eq!(world.bench.ended(reader), Some(PeerEnd::Reset));
}

#[test]
fn a_broker_that_refuses_or_says_nonsense_is_left_alone_for_a_while() {
    for said in [
        "-WRONGPASS invalid\r\n-NOAUTH\r\n-NOAUTH\r\n",
        "HTTP/1.1 400 Bad Request\r\n",
        "+OK\r\n+OK\r\n:7\r\n+MORE\r\n",
    ] {
        let mut world = world(Bench::new());
        let (ada, bob) = (world.member("ada"), world.member("bob"));
        let (reader, _) = (world.dialed(), world.writer());
        world.bench.say(reader, said);
        world.bench.say(ada, "hello\n");
        assert_eq!(world.bench.heard(bob), "ada: hello\n", "{said:?}");
        // A wait of at least half a second, and the first one of a redial.
        world.bench.advance(Duration::from_millis(700));
        assert_eq!(world.bench.dialed().len(), 2, "{said:?}");
        let reader = world.reader(&info(40, 0));
        assert_eq!(world.reads_from(reader), "40-0", "{said:?}");
    }
}

#[test]
fn an_answer_without_bounds_ends_the_connection_and_takes_no_memory() {
    let mut world = world(Bench::new_with(Limits { memory: 16 << 20, ..Limits::default() }));
    let ada = world.member("ada");
    let (reader, _writer) = world.broker(&info(40, 0));
    world.bench.say(reader, format!("$99999999\r\n{}", "x".repeat(8 << 20)));
    assert!(world.bench.ended(reader).is_some(), "it is not read to its end");
    assert!(world.bench.sockets().memory() < 1 << 20);
    let reader = world.reader(&info(40, 0));
    world.bench.say(reader, entries(50, 1, &["zoe: hi"]));
    assert_eq!(world.bench.heard(ada), "zoe@web2: hi\n");
}

#[test]
fn members_are_told_once_of_lines_that_the_broker_has_lost() {
    let mut world = world(Bench::new());
    let ada = world.member("ada");
    let (reader, _writer) = world.broker(&info(40, 0));
    world.bench.say(reader, entries(50, 1, &["zoe: one"]));
    world.bench.end(reader);
    // Entries up to 50 were removed, which was read.
    let reader = world.reader(&info(70, 5));
    assert_eq!(world.bench.heard(ada), "zoe@web2: one\n");
    world.bench.end(reader);
    let reader = world.reader(&info(90, 7));
    world.bench.say(reader, entries(80, 5, &["zoe: five"]));
    let lost = "lines from elsewhere are missing here: the broker does not have them any more\n";
    assert_eq!(world.bench.heard(ada), format!("{lost}zoe@web2: five\n"));
    world.bench.end(reader);
    world.reader(&info(90, 7));
    assert_eq!(world.bench.heard(ada), "");
}

#[test]
fn while_a_member_does_not_read_the_stream_is_not_read_either() {
    let mut world = world(Bench::new());
    let (ada, bob) = (world.member("ada"), world.member("bob"));
    world.bench.heard(ada);
    let (mut reader, _writer) = world.broker(&info(40, 0));
    world.bench.stop_reading(bob);
    let line = format!("zoe: {}", "x".repeat(4_000));
    let (mut batches, mut told) = (0, String::new());
    while !world.bench.heard(reader).is_empty() {
        let (id, number) = (50 + 40 * batches, 1 + 4 * batches);
        world.bench.say(reader, entries(id, number, &[line.as_str(); 4]));
        batches += 1;
        assert!(batches < 20, "320 kB are more than bob's queue may hold");
    }
    told += &world.bench.heard(ada);
    let all = 4 * batches as usize;
    assert!((all - 3..=all).contains(&told.lines().count()), "what is left of the last answer waits, too");
    // A reconnect meanwhile reads no more.
    world.bench.end(reader);
    reader = world.reader(&info(10_000, 0));
    assert_eq!(world.bench.heard(reader), "");
    world.bench.read_again(bob);
    assert_eq!(world.reads_from(reader), format!("{}-0", 40 + 40 * batches));
    told += &world.bench.heard(ada);
    assert_eq!((told.lines().count(), world.bench.heard(bob).lines().count()), (all, all));
    assert_eq!(world.bench.stats().closed_total(), 1, "only the connection to the broker was closed");
}

#[test]
fn at_a_shutdown_lines_that_wait_are_published_first() {
    let mut world = world(Bench::new());
    let ada = world.member("ada");
    let (reader, writer) = world.broker(&info(40, 0));
    world.bench.say(ada, "bye\n");
    world.bench.shutdown(Duration::from_secs(10));
    assert_eq!(world.published(writer), ["1 ada: bye"]);
    assert_eq!((world.bench.ended(reader), world.bench.ended(writer)), (Some(PeerEnd::Fin), None));
    world.bench.say(writer, "$4\r\n50-0\r\n");
    assert_eq!(world.bench.ended(writer), Some(PeerEnd::Fin));
}
