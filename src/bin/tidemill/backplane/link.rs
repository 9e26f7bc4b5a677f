//! The two connections to the broker: what is asked, and what follows from the answers.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tidemill::{Backoff, Socket, Sockets};

use super::incoming::StreamInfo;
use super::resp::{Answer, command, shown};
use super::{Backplane, RETRY, Role};
use crate::locked::locked;

/// How long the broker may take to connect, and to answer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long one XREAD waits for an entry. Its answer, though empty, shows that the broker is there.
const BLOCK: Duration = Duration::from_secs(4);
/// Entries in one answer to XREAD.
pub const ENTRIES_MAX: usize = 64;
/// Entries that the stream keeps, or some more: what a process may miss and still read later.
const KEPT: &str = "100000";
/// How long a broker that refuses (a wrong password, a data set that is being loaded) is left alone.
pub const REFUSED: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// What members are sent when lines of others are lost.
const LOST: &str = "lines from elsewhere are missing here: the broker does not have them any more\n";

/// What the next answer is to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// What [`Broker::greeting`](super::Broker::greeting) asks.
    Greeting,
    Ping,
    Info,
    Read,
    Add,
}

/// A connection to the broker.
#[derive(Debug)]
pub struct Link {
    pub role: Role,
    pub asked: VecDeque<Question>,
    /// The broker has refused something, or has said nonsense: what it says now is not looked at.
    pub has_failed: bool,
}

impl Backplane {
    /// Asks the broker. An answer is due within a time, counted from the oldest question.
    pub fn ask(&self, link: &mut Link, question: Question, words: &[&[u8]], socket: &mut Socket<'_>) {
        socket.send(command(words));
        if link.asked.is_empty() {
            let block = if question == Question::Read { BLOCK } else { Duration::ZERO };
            socket.set_alarm(Some(block + ANSWER_WITHIN));
        }
        link.asked.push_back(question);
    }

    /// Asks for what comes after the last entry that was read, when the room takes more.
    pub fn ask_to_read(&self, link: &mut Link, socket: &mut Socket<'_>) {
        let is_ready = self.status.is_up(Role::Reader) && !link.has_failed && link.asked.is_empty();
        if link.role != Role::Reader || !is_ready || self.is_stopping || !locked(&self.common).is_all_heard()
        {
            return;
        }
        let (count, block) = (ENTRIES_MAX.to_string(), BLOCK.as_millis().to_string());
        let (stream, next) = (self.stream.as_bytes(), self.incoming.next().to_string());
        let words: [&[u8]; 8] = [
            b"XREAD",
            b"COUNT",
            count.as_bytes(),
            b"BLOCK",
            block.as_bytes(),
            b"STREAMS",
            stream,
            next.as_bytes(),
        ];
        self.ask(link, Question::Read, &words, socket);
    }

    /// Sends lines that wait, as many as the connection takes.
    pub fn publish(&mut self, link: &mut Link, socket: &mut Socket<'_>) {
        if link.role != Role::Writer || link.has_failed || !self.status.is_up(Role::Writer) {
            return;
        }
        let common = Arc::clone(&self.common);
        let mut common = locked(&common);
        while !socket.is_full() {
            let Some((number, line)) = common.outgoing.next() else { break };
            let number = number.to_string();
            let (id, name) = (self.origin.0.as_bytes(), self.origin.1.as_bytes());
            let stream = self.stream.as_bytes();
            let to: [&[u8]; 6] = [b"XADD", stream, b"MAXLEN", b"~", KEPT.as_bytes(), b"*"];
            let entry: [&[u8]; 8] = [b"o", id, b"n", number.as_bytes(), b"at", name, b"l", line];
            self.ask(link, Question::Add, &[&to[..], &entry].concat(), socket);
        }
        drop(common);
        if self.is_stopping && self.is_all_published() {
            socket.close();
        }
    }

    /// Whether the broker has all lines, and no loop has further ones.
    pub fn is_all_published(&self) -> bool {
        let common = locked(&self.common);
        common.outgoing.len() == 0 && common.have_others_ended()
    }

    /// The answer to a question.
    ///
    /// # Errors
    ///
    /// If the broker has refused, or the answer is to something else.
    pub fn on_answer(
        &mut self,
        link: &mut Link,
        answer: &Answer,
        socket: &mut Socket<'_>,
    ) -> Result<(), String> {
        let question = link.asked.pop_front().ok_or("an answer without a question")?;
        socket.set_alarm((!link.asked.is_empty()).then_some(ANSWER_WITHIN));
        match (question, answer) {
            (Question::Info, Answer::Error(text)) if text.starts_with("ERR no such key") => {
                self.on_stream(link, &StreamInfo::default(), socket);
            }
            (_, Answer::Error(text)) => return Err(shown(text)),
            (Question::Greeting, _) => {}
            (Question::Ping, _) => {
                self.on_up(Role::Writer);
                self.publish(link, socket);
            }
            (Question::Info, _) => self.on_stream(link, &StreamInfo::parse(answer)?, socket),
            (Question::Read, _) => {
                let lines = self.incoming.read(answer)?;
                self.tell(lines, &mut socket.all());
                self.ask_to_read(link, socket);
            }
            (Question::Add, _) => {
                locked(&self.common).outgoing.acknowledge();
                self.publish(link, socket);
            }
        }
        Ok(())
    }

    /// The state of the stream is known, so reading can begin.
    fn on_stream(&mut self, link: &mut Link, info: &StreamInfo, socket: &mut Socket<'_>) {
        let is_missing = self.incoming.resume(info);
        self.on_up(Role::Reader);
        if is_missing {
            log::warn!("backplane: {}", LOST.trim_end());
            self.tell(vec![LOST.to_string()], &mut socket.all());
        }
        self.ask_to_read(link, socket);
    }

    fn on_up(&mut self, role: Role) {
        self.refusals = 0;
        if self.status.up(role) {
            let (name, waiting) = (&self.origin.1, locked(&self.common).outgoing.len());
            log::info!("backplane: connected to {} as {name}, {waiting} lines wait", self.broker);
        }
    }

    /// Has the members on all loops told what others have said. The stream is read on when all have taken it.
    fn tell(&mut self, lines: Vec<String>, sockets: &mut Sockets<'_>) {
        let lines: Vec<Arc<[u8]>> = lines.into_iter().map(|line| line.into_bytes().into()).collect();
        self.rooms.iter().for_each(|room| room.push(&lines));
        self.ask_rooms(sockets);
    }

    pub fn ask_rooms(&mut self, sockets: &mut Sockets<'_>) {
        let refused = self.rooms.iter().filter(|room| !room.ask(sockets)).count();
        if let (1.., None, Some(own)) = (refused, self.retry, self.own) {
            self.retry = sockets.set_timer(own, RETRY, None).ok();
        }
    }

    pub fn log_unsent(&self) {
        let waiting = locked(&self.common).outgoing.len();
        if waiting > 0 {
            log::warn!(
                "backplane: {waiting} lines were said here only: the broker has not acknowledged them"
            );
        }
    }

    /// Gives up what the broker says on this connection, and tries again later.
    pub fn fail(&mut self, link: &mut Link, why: &str, socket: &mut Socket<'_>) {
        link.has_failed = true;
        self.status.down(link.role, &format!("{}: {why}", self.broker), self.is_stopping);
        let random = RandomState::new().hash_one(self.refusals);
        socket.set_alarm(Some(REFUSED.wait(self.refusals, random)));
        self.refusals = self.refusals.saturating_add(1);
    }
}
