//! `Frames`: sends each received frame back.

use log::Level;

use crate::base::tick::Tick;
use crate::config::limits::SocketLimits;
use crate::connection::socket::Socket;
use crate::framing::Framing;
use crate::parts::inbox::Input;
use crate::parts::log_limit::LogLimit;
use crate::service::Service;

/// Answers each frame with a frame of the same content. An invalid or too long frame closes the connection, after the
/// answers to all frames before it.
///
/// # Examples
///
/// ```
/// use tidemill::{Limits, Reactor, framing::Framing, services::Frames};
///
/// let frames = Frames::new("u16be".parse::<Framing>().expect("a known framing"));
/// let mut reactor = Reactor::new(Limits::default())?;
/// let limits = frames.limits();
/// let frames = reactor.add_with(frames, limits);
/// reactor.listen("127.0.0.1:0", frames)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Frames {
    framing: Framing,
    log_limit: LogLimit,
}

impl Frames {
    /// A service for this framing.
    pub fn new(framing: Framing) -> Frames {
        Frames { framing, log_limit: LogLimit::default() }
    }

    /// Suitable limits: [`SocketLimits::interactive`] for lines, else the defaults; with room for the longest frame.
    pub fn limits(&self) -> SocketLimits {
        let usual = match self.framing {
            Framing::Lines(_) => SocketLimits::interactive(),
            _ => SocketLimits::default(),
        };
        SocketLimits { message: self.framing.inbox_limit(), ..usual }
    }
}

impl Service for Frames {
    /// The number of frames answered.
    type Session = u64;

    fn open(&mut self, _: &mut Socket<'_>) -> u64 {
        0
    }

    fn data(&mut self, answered: &mut u64, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        loop {
            let answer = match self.framing.next(input) {
                Ok(Some(body)) => self.framing.send(socket, body),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = answer {
                let (id, peer) = (socket.id(), socket.peer_addr());
                let (level, left_out) = self.log_limit.level(Level::Info, Tick::at(socket.elapsed()));
                log::log!(level, "{id} {peer}: closed after {answered} messages: {error}{left_out}");
                return socket.close_as(error.into());
            }
            *answered += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::reason::CloseReason;
    use crate::testing::{Bench, Peer, PeerEnd};

    fn frames(name: &str) -> (Bench, Peer) {
        let framing: Framing = name.parse().expect("a framing's name");
        let frames = Frames::new(framing.max(1_000));
        let limits = frames.limits();
        let mut bench = Bench::new();
        bench.serve_with(frames, limits);
        let peer = bench.connect();
        (bench, peer)
    }

    #[test]
    fn each_frame_is_answered_wherever_it_is_split() {
        let wire = b"\0\0\0\x05hello\0\0\0\0\0\0\0\x01!";
        for at in 0..=wire.len() {
            let (mut bench, peer) = frames("u32be");
            bench.say(peer, &wire[..at]);
            bench.say(peer, &wire[at..]);
            assert_eq!(bench.heard_bytes(peer), wire, "split at {at}");
        }
    }

    #[test]
    fn a_length_above_the_limit_closes_at_once_after_the_answers_before_it() {
        let (mut bench, peer) = frames("u32be");
        bench.say(peer, b"\0\0\0\x02ok\xff\xff\xff\xff");
        assert_eq!(bench.heard_bytes(peer), b"\0\0\0\x02ok");
        assert_eq!((bench.ended(peer), bench.sockets().memory()), (Some(PeerEnd::Fin), 0));
        bench.end(peer);
        assert_eq!(bench.closed(peer), Some(CloseReason::TooLong));
    }

    #[test]
    fn a_lone_line_feed_where_lines_are_strict_is_malformed() {
        let (mut bench, peer) = frames("crlf");
        bench.say(peer, "one\r\ntwo\nthree\r\n");
        assert_eq!(bench.heard(peer), "one\r\n");
        bench.end(peer);
        assert_eq!(bench.closed(peer), Some(CloseReason::Malformed));
    }
}
