//! Three rooms, a broker that fails at random, and a kernel that makes trouble: each line is told once and in order.

use std::time::Duration;

use tidemill::services::Chat;
use tidemill::testing::{Bench, Peer, Tape, seeds};
use tidemill::{ConnId, Input, Service, Socket, SocketLimits};

use super::super::resp::{self, Answer, command};
use super::super::{Backplane, connect};
use super::{BROKER, broker};

/// A stream that is never trimmed, and the connections that wait for an entry. An entry's id is its number.
struct Stream {
    entries: Vec<Vec<Answer>>,
    waiting: Vec<(ConnId, usize)>,
    tape: Tape,
    is_faulty: bool,
}

impl Stream {
    /// Executes a command, and returns its answer if there is one now.
    fn execute(&mut self, words: &[String], fields: &[Answer], id: ConnId) -> Option<String> {
        let last = self.entries.len();
        Some(match words[0].as_str() {
            "XADD" => {
                self.entries.push(fields[6..].to_vec());
                let id = format!("{}-0", last + 1);
                format!("${}\r\n{id}\r\n", id.len())
            }
            "XINFO" if last == 0 => "-ERR no such key\r\n".to_string(),
            "XINFO" => super::stream_info(last as u64, last as u64, 1, 0),
            "XREAD" => {
                let after = words[7].split('-').next().and_then(|id| id.parse().ok()).expect("an id");
                self.waiting.push((id, after));
                return None;
            }
            _ => "+OK\r\n".to_string(),
        })
    }

    /// What a connection that waits for entries after a number gets.
    fn after(&self, number: usize) -> Option<String> {
        let new = self.entries.iter().enumerate().skip(number).take(64);
        let entries: Vec<String> = new
            .map(|(n, fields)| {
                let words: Vec<&[u8]> = fields.iter().map(bytes).collect();
                let id = format!("{}-0", n + 1);
                let fields = String::from_utf8(command(&words)).expect("text");
                format!("*2\r\n${}\r\n{id}\r\n{fields}", id.len())
            })
            .collect();
        let head = format!("*1\r\n*2\r\n$4\r\nroom\r\n*{}\r\n", entries.len());
        (!entries.is_empty()).then(|| head + &entries.concat())
    }

    fn fails(&self, one_in: u64) -> bool {
        self.is_faulty && self.tape.one_in(one_in)
    }
}

fn bytes(answer: &Answer) -> &[u8] {
    match answer {
        Answer::BulkString(text) => text,
        other => panic!("{other:?} is no word of a command"),
    }
}

impl Service for Stream {
    type Session = ();
    fn open(&mut self, _: &mut Socket<'_>) {}

    fn data(&mut self, (): &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        while let Some(Answer::Array(fields)) = resp::take(input).expect("a command") {
            let words: Vec<String> =
                fields.iter().map(|word| String::from_utf8_lossy(bytes(word)).into_owned()).collect();
            if self.fails(20) {
                return socket.abort();
            }
            let answer = self.execute(&words, &fields, socket.id());
            // It was executed, and the answer is lost.
            if self.fails(20) {
                return socket.abort();
            }
            // The answer is lost, and the connection stays.
            if self.fails(50) {
                continue;
            }
            socket.send(answer.unwrap_or_default());
            for (id, number) in std::mem::take(&mut self.waiting) {
                match (self.after(number), socket.all().get(id)) {
                    (Some(answer), Some(mut reader)) => reader.send(answer),
                    (None, Some(_)) => self.waiting.push((id, number)),
                    _ => {}
                }
            }
        }
    }
}

const ROOMS: usize = 3;

/// A member of each room, what it has said, and what it has received.
#[derive(Debug)]
struct Member {
    peer: Peer,
    said: usize,
    received: String,
}

/// The lines of a sender in the order in which a member has received them.
fn numbers_from(member: &Member, shown: &str) -> Vec<usize> {
    let lines = member.received.lines().filter_map(|line| line.strip_prefix(shown)?.parse().ok());
    lines.collect()
}

#[test]
fn each_line_is_told_once_and_in_order_in_every_room_whatever_the_broker_does() {
    let mut twice = 0;
    for seed in seeds(30) {
        let tape = Tape::seeded(seed);
        let mut bench = Bench::on_tape(&tape);
        let stream =
            Stream { entries: Vec::new(), waiting: Vec::new(), tape: tape.clone(), is_faulty: false };
        let stream = bench.add(stream);
        bench.listen(BROKER, stream).expect("a free address");
        let mut members = Vec::new();
        for room in 0..ROOMS {
            let (rooms, pending) = connect(broker(), "room".to_string(), Some(format!("p{room}")), 1);
            let chat = rooms.join(0, Chat::new(), None);
            let limits = SocketLimits { rate: None, ..chat.limits() };
            let (chat, at) = (bench.add_with(chat, limits), format!("10.0.1.{room}:80"));
            bench.listen(&*at, chat).expect("a free address");
            bench.add_with(pending.service(), Backplane::limits());
            let peer = bench.connect_to(&at);
            bench.say(peer, format!("/nick m{room}\n"));
            members.push(Member { peer, said: 0, received: String::new() });
        }
        // Each has reached the broker once: reading begins with that.
        bench.advance(Duration::from_secs(1));
        bench.with(stream, |stream, _| stream.is_faulty = true);
        for _ in 0..60 {
            let room = tape.below(ROOMS as u64) as usize;
            let member = &mut members[room];
            for _ in 0..tape.below(4) {
                bench.say(member.peer, format!("{}\n", member.said));
                member.said += 1;
            }
            bench.advance(Duration::from_millis(tape.below(2_000)));
        }
        bench.with(stream, |stream, _| stream.is_faulty = false);
        bench.advance(Duration::from_secs(90));
        for room in 0..ROOMS {
            members[room].received = bench.heard(members[room].peer);
            for from in 0..ROOMS {
                let shown = if from == room { format!("m{from}: ") } else { format!("m{from}@p{from}: ") };
                let expected: Vec<usize> = (0..members[from].said).collect();
                assert_eq!(
                    numbers_from(&members[room], &shown),
                    expected,
                    "seed {seed}, room {room} of {from}"
                );
            }
        }
        let said: usize = members.iter().map(|member| member.said).sum();
        twice += bench.with(stream, |stream, _| stream.entries.len()) - said;
    }
    assert!(twice > 20, "only {twice} lines were written twice, so the test shows little");
}
