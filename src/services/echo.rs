//! `Echo`: sends received bytes back.

use crate::config::limits::SocketLimits;
use crate::connection::socket::Socket;
use crate::parts::inbox::Input;
use crate::service::Service;

/// Sends a greeting, sends every received byte back, and closes after a line `quit`. A [raw](Echo::raw) echo has
/// neither greeting nor `quit`.
///
/// # Examples
///
/// ```
/// use tidemill::{Limits, Reactor, services::Echo};
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// let echo = reactor.add_with(Echo::new(), Echo::new().limits());
/// reactor.listen("127.0.0.1:0", echo)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    talks: bool,
}

const GREETING: &[u8] = b"echo server ready (type quit to exit)\n";

/// How the received part of a line compares with `quit`.
#[derive(PartialEq, Eq, Debug)]
enum Line {
    Quit,
    /// It is a beginning of `quit`; the next bytes decide.
    Undecided,
    Other,
}

impl Echo {
    /// An echo with greeting and `quit`, for use by a person.
    pub fn new() -> Echo {
        Echo { talks: true }
    }

    /// An echo of bytes only, for programs. A connection with bulk data is [piped](Socket::pipe) to itself.
    pub fn raw() -> Echo {
        Echo { talks: false }
    }

    /// Suitable limits: [`SocketLimits::interactive`], or the defaults if it is [raw](Echo::raw).
    pub fn limits(&self) -> SocketLimits {
        if self.talks { SocketLimits::interactive() } else { SocketLimits::default() }
    }
}

impl Default for Echo {
    fn default() -> Echo {
        Echo::new()
    }
}

/// Bytes of a full read: one read takes no more. Two full reads in a row of a raw echo make it a flow.
const FULL_READ: usize = 64 * 1024;

impl Service for Echo {
    /// Whether the next byte continues a line; of a raw echo, whether the last read was full.
    type Session = bool;

    fn open(&mut self, socket: &mut Socket<'_>) -> bool {
        if self.talks {
            socket.send(GREETING);
        }
        false
    }

    #[inline]
    fn data(&mut self, within_line: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        if !self.talks {
            return echo_bytes(within_line, socket, input);
        }
        answer_lines(within_line, socket, input);
    }

    fn end(&mut self, _: &mut bool, socket: &mut Socket<'_>) {
        // An undecided beginning such as `qui` is sent back too.
        socket.send_unread();
        socket.finish();
    }
}

/// Sends the bytes back. A flow is piped to itself from now on: then the kernel moves it, and no byte is copied.
#[inline]
fn echo_bytes(last_was_full: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
    let bytes = input.take_all();
    socket.send(bytes);
    let is_full = bytes.len() >= FULL_READ;
    if is_full && *last_was_full {
        socket.pipe(socket.id());
    }
    *last_was_full = is_full;
}

/// Apart from `data`, so that a raw echo has a short way.
#[inline(never)]
fn answer_lines(within_line: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
    while !input.is_empty() {
        if !*within_line {
            match compare(input.bytes()) {
                Line::Quit => return socket.close(),
                // Left untaken, it is delivered again together with the next bytes.
                Line::Undecided => return,
                Line::Other => {}
            }
        }
        let (line, ended) = match input.take_line() {
            Some(line) => (line, true),
            None => (input.take_all(), false),
        };
        *within_line = !ended;
        socket.send(line);
    }
}

fn compare(line: &[u8]) -> Line {
    for quit in [&b"quit\n"[..], b"quit\r\n"] {
        if line.starts_with(quit) {
            return Line::Quit;
        }
        if quit.starts_with(line) {
            return Line::Undecided;
        }
    }
    Line::Other
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::reason::CloseReason;
    use crate::testing::{Bench, Peer, PeerEnd};

    const GREETED: &str = "echo server ready (type quit to exit)\n";

    fn talk() -> (Bench, Peer) {
        let mut bench = Bench::new();
        bench.serve_with(Echo::new(), Echo::new().limits());
        let peer = bench.connect();
        (bench, peer)
    }

    #[test]
    fn quit_closes_wherever_it_is_split() {
        for quit in ["quit\n", "quit\r\n"] {
            let said = format!("a\nquite\n{quit}not echoed\n");
            for at in 0..=said.len() {
                let (mut bench, peer) = talk();
                bench.say(peer, &said[..at]);
                bench.say(peer, &said[at..]);
                assert_eq!(bench.heard(peer), format!("{GREETED}a\nquite\n"), "split at {at}");
                assert_eq!(bench.ended(peer), Some(PeerEnd::Fin));
                bench.end(peer);
                assert_eq!(bench.closed(peer), Some(CloseReason::Local));
            }
        }
    }

    #[test]
    fn an_incomplete_quit_is_sent_back_once_other_bytes_or_fin_follow() {
        for (said, heard) in
            [("qui", "qui"), ("quit", "quit"), ("quid\nqu", "quid\nqu"), ("x quit\n", "x quit\n")]
        {
            let (mut bench, peer) = talk();
            bench.split_every(1);
            bench.say(peer, said);
            bench.end(peer);
            assert_eq!(bench.heard(peer), format!("{GREETED}{heard}"));
            assert_eq!(bench.closed(peer), Some(CloseReason::Finished));
        }
    }

    #[test]
    fn a_raw_echo_sends_back_received_bytes_and_nothing_else() {
        let mut bench = Bench::new();
        bench.serve_with(Echo::raw(), Echo::raw().limits());
        let peer = bench.connect();
        bench.say(peer, "quit\nquit\n");
        assert_eq!(bench.heard(peer), "quit\nquit\n");
    }

    #[test]
    fn the_kernel_moves_a_flow_through_a_raw_echo_and_every_byte_comes_back_in_order() {
        let mut bench = Bench::new();
        bench.serve_with(Echo::raw(), Echo::raw().limits());
        let peer = bench.connect();
        let flow: Vec<u8> = (0..1024 * 1024_u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut heard = Vec::new();
        for part in flow.chunks(1024 * 1024) {
            bench.say(peer, part);
            heard.extend(bench.heard_bytes(peer));
        }
        bench.say(peer, "and a line");
        bench.end(peer);
        heard.extend(bench.heard_bytes(peer));
        assert!(heard == [&flow[..], b"and a line"].concat(), "{} bytes came back", heard.len());
        let spliced = bench.stats().spliced;
        assert!(spliced > 2 * 1024 * 1024, "of 4 MiB the kernel moved {spliced} bytes");
        assert_eq!(bench.closed(peer), Some(CloseReason::Finished));
    }

    #[test]
    fn only_a_complete_line_is_quit() {
        for line in ["quit\n", "quit\r\n", "quit\nmore"] {
            assert_eq!(compare(line.as_bytes()), Line::Quit, "{line:?}");
        }
        for line in ["q", "qui", "quit", "quit\r"] {
            assert_eq!(compare(line.as_bytes()), Line::Undecided, "{line:?}");
        }
        for line in ["quite\n", "Quit\n", " quit\n", "quit \n", "quit\rx", "x"] {
            assert_eq!(compare(line.as_bytes()), Line::Other, "{line:?}");
        }
    }
}
