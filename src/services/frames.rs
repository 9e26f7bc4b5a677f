//! Sends back each message it is sent, framed.

use crate::framing::Framing;
use crate::inbox::Input;
use crate::limits::SocketLimits;
use crate::service::Service;
use crate::socket::Socket;

/// Answers each message with its echo in a frame of the same kind. A frame that is too long, or no frame at all,
/// closes the connection; the answers given before still arrive.
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
}

impl Frames {
    /// Messages framed so.
    pub fn new(framing: Framing) -> Frames {
        Frames { framing }
    }

    /// The usual limits, with room for the longest message of this framing.
    pub fn limits(&self) -> SocketLimits {
        SocketLimits { message: self.framing.inbox_limit(), ..SocketLimits::default() }
    }
}

impl Service for Frames {
    /// Messages answered.
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
                log::info!(
                    "{} {}: closed after {answered} messages: {error}",
                    socket.id(),
                    socket.peer_addr()
                );
                return socket.close_as(error.into());
            }
            *answered += 1;
        }
    }
}
