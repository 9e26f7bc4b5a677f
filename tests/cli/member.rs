//! A member of a chat room.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use crate::peer::Peer;
use crate::server::Server;

/// A connection whose lines are read.
pub struct Member(BufReader<TcpStream>);

impl Member {
    pub fn join(server: &Server, name: &str) -> Member {
        let peer = Peer::connect(server.address);
        let mut member = Member(BufReader::new(peer.0));
        member.say(&format!("/nick {name}"));
        member.hears(|line| line.ends_with(&format!(" is now {name}\n")));
        member
    }

    pub fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).expect("it takes what we say");
    }

    /// The next line, with its line feed.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut lines = self.lines_through(|_| true);
        lines.pop().expect("one")
    }

    /// Reads up to the line that is meant, and returns those before it.
    #[track_caller]
    pub fn hears(&mut self, is_meant: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = self.lines_through(is_meant);
        lines.pop();
        lines
    }

    #[track_caller]
    fn lines_through(&mut self, is_last: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line);
            assert!(matches!(read, Ok(1..)), "{read:?} after {lines:?}");
            let ends = is_last(&line);
            lines.push(line);
            if ends {
                return lines;
            }
        }
    }
}
