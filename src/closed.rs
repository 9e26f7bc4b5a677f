//! Why a connection ended: one closed set of reasons, the same words everywhere.

use std::fmt;
use std::io;

/// Why a connection ended. The same word stands in the API, the log, the counters and the tests.
///
/// ```
/// use tidemill::Closed;
///
/// assert_eq!(Closed::SlowReader.word(), "slow-reader");
/// assert_eq!(Closed::Idle.to_string(), "no byte either way for too long");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Closed {
    /// Both ends finished: the peer sent its end, we sent ours, and everything was delivered.
    Finished,
    /// The service closed it.
    Local,
    /// The service aborted it; the peer saw a reset.
    Aborted,
    /// The peer reset the connection, or was gone when we wrote.
    Reset,
    /// No byte moved either way for [`SocketLimits::idle`](crate::SocketLimits::idle).
    Idle,
    /// The peer's first byte did not come within [`SocketLimits::first_byte`](crate::SocketLimits::first_byte).
    FirstByte,
    /// A message or a queue was pending and moved slower than the pace in force.
    TooSlow,
    /// A message stayed incomplete for [`SocketLimits::message_within`](crate::SocketLimits::message_within).
    Unfinished,
    /// One side had finished and the other did not for [`SocketLimits::half_closed`](crate::SocketLimits::half_closed).
    HalfClosed,
    /// It lived for [`SocketLimits::lifetime`](crate::SocketLimits::lifetime).
    Lifetime,
    /// The peer did not read: more than [`SocketLimits::queue`](crate::SocketLimits::queue) waited for it.
    SlowReader,
    /// All buffers together passed [`Limits::memory`](crate::Limits::memory), and this one held the most.
    Memory,
    /// A message was longer than is allowed.
    TooLong,
    /// What arrived was no message of this protocol.
    Malformed,
    /// The name that was dialed stands for no address.
    Unresolved,
    /// Dialing failed, with the system's reason; of several attempts, the last one's.
    /// [`Departed::failure`](crate::Departed::failure) has them all.
    Unreachable(OsError),
    /// Dialing took longer than [`SocketLimits::connect`](crate::SocketLimits::connect).
    ConnectTimeout,
    /// There was no handshake to speak of: the peer did not speak TLS, showed no certificate that is trusted, refused
    /// ours, or left. [`Departed::broken`](crate::Departed::broken) has the words.
    Handshake,
    /// The handshake took longer than [`SocketLimits::handshake`](crate::SocketLimits::handshake), or others waited
    /// for its place.
    HandshakeTimeout,
    /// After the handshake something arrived that TLS does not allow, or the peer said that we had sent it.
    Tls,
    /// The peer's end came without the message that announces it in TLS: somebody may have cut off the rest.
    Truncated,
    /// The other end of its [pipe](crate::Socket::pipe) ended before its time.
    Leg,
    /// The reactor shut down before the connection ended by itself.
    Shutdown,
    /// The system reported an error.
    Error(OsError),
}

/// An error number of the operating system, of which no Unix has more than a few hundred. Small and `Copy`, unlike
/// [`io::Error`], which it turns into.
///
/// ```
/// let refused = tidemill::OsError::from(std::io::Error::from_raw_os_error(111));
/// assert_eq!(std::io::Error::from(refused).raw_os_error(), Some(111));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OsError(u16);

impl OsError {
    pub(crate) const fn of(number: i32) -> OsError {
        OsError(if number < 0 || number > u16::MAX as i32 { 0 } else { number as u16 })
    }
}

impl Closed {
    /// How many reasons there are.
    pub const COUNT: usize = 24;

    /// Every word that [`word`](Closed::word) can return, in the order of [`Stats::closed`](crate::Stats::closed).
    pub const WORDS: [&'static str; Closed::COUNT] = [
        "finished",
        "local",
        "aborted",
        "reset",
        "idle",
        "first-byte",
        "too-slow",
        "unfinished",
        "half-closed",
        "lifetime",
        "slow-reader",
        "memory",
        "too-long",
        "malformed",
        "unresolved",
        "unreachable",
        "connect-timeout",
        "handshake",
        "handshake-timeout",
        "tls",
        "truncated",
        "leg",
        "shutdown",
        "error",
    ];

    /// The reason as one word, for logs and counters.
    pub fn word(&self) -> &'static str {
        Closed::WORDS[self.index()]
    }

    pub(crate) fn index(&self) -> usize {
        match self {
            Closed::Finished => 0,
            Closed::Local => 1,
            Closed::Aborted => 2,
            Closed::Reset => 3,
            Closed::Idle => 4,
            Closed::FirstByte => 5,
            Closed::TooSlow => 6,
            Closed::Unfinished => 7,
            Closed::HalfClosed => 8,
            Closed::Lifetime => 9,
            Closed::SlowReader => 10,
            Closed::Memory => 11,
            Closed::TooLong => 12,
            Closed::Malformed => 13,
            Closed::Unresolved => 14,
            Closed::Unreachable(_) => 15,
            Closed::ConnectTimeout => 16,
            Closed::Handshake => 17,
            Closed::HandshakeTimeout => 18,
            Closed::Tls => 19,
            Closed::Truncated => 20,
            Closed::Leg => 21,
            Closed::Shutdown => 22,
            Closed::Error(_) => 23,
        }
    }

    /// What a failed read or write says about the connection.
    pub(crate) fn from_io(error: &io::Error) -> Closed {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match error.kind() {
            ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected => Closed::Reset,
            _ => Closed::Error(OsError::from(error)),
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = match self {
            Closed::Finished => "both ends finished",
            Closed::Local => "closed by the service",
            Closed::Aborted => "aborted by the service",
            Closed::Reset => "reset by the peer",
            Closed::Idle => "no byte either way for too long",
            Closed::FirstByte => "the first byte did not come in time",
            Closed::TooSlow => "slower than the least rate allowed",
            Closed::Unfinished => "a message was not completed in time",
            Closed::HalfClosed => "half-closed for too long",
            Closed::Lifetime => "lived as long as a connection may",
            Closed::SlowReader => "the peer did not read what was queued for it",
            Closed::Memory => "held the most when the buffers' memory ran out",
            Closed::TooLong => "a message was longer than is allowed",
            Closed::Malformed => "what arrived was no message of this protocol",
            Closed::Unresolved => "the name stands for no address",
            Closed::Handshake => "the TLS handshake failed",
            Closed::HandshakeTimeout => "the TLS handshake took too long",
            Closed::Tls => "what arrived was no TLS, or the peer said so of ours",
            Closed::Truncated => "the peer's end came without its announcement in TLS",
            Closed::Leg => "the other end of its pipe has gone",
            Closed::Unreachable(error) => return write!(f, "cannot connect: {error}"),
            Closed::ConnectTimeout => "connecting took too long",
            Closed::Shutdown => "the reactor shut down",
            Closed::Error(error) => return write!(f, "{error}"),
        };
        f.write_str(sentence)
    }
}

impl From<OsError> for io::Error {
    fn from(error: OsError) -> io::Error {
        io::Error::from_raw_os_error(i32::from(error.0))
    }
}

impl From<&io::Error> for OsError {
    /// Errors that did not come from the operating system have no number and become 0.
    fn from(error: &io::Error) -> OsError {
        OsError::of(error.raw_os_error().unwrap_or(0))
    }
}

impl From<io::Error> for OsError {
    fn from(error: io::Error) -> OsError {
        OsError::from(&error)
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word() {
        let mut words = Closed::WORDS.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Closed::COUNT);
        assert_eq!(Closed::Error(OsError::of(5)).index(), Closed::COUNT - 1);
    }

    #[test]
    fn a_reason_is_half_as_large_as_a_pointer() {
        assert_eq!(size_of::<Closed>(), 4);
        assert_eq!(size_of::<Option<Closed>>(), 4);
    }
}
