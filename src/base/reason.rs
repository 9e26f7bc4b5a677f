//! Why a connection ended, was refused, or was never connected: closed sets of reasons, the same words everywhere.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::id::ConnId;

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
    /// Permission denied: 13 on every Unix (errno(3)). The number is written out so that this builds without a kernel.
    const EACCES: OsError = OsError::of(13);

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

/// What is known of a connection that has ended: see [`Sockets::departed`](crate::Sockets::departed).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Departed {
    /// Its name, which finds nobody any more.
    pub id: ConnId,
    /// The remote end; for a dial that failed, what was dialed.
    pub peer: Address,
    /// The local end. None where it never had one, and for Unix-domain sockets.
    pub local: Option<Address>,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes that the kernel took.
    pub bytes_out: u64,
    /// How long it lived, from accept or dial on, in steps of 10 ms.
    pub lived: Duration,
    /// Why dialing failed, attempt by attempt.
    pub failure: Option<DialError>,
    /// What went wrong with TLS, in words: with [`Closed::Handshake`] and
    /// [`Closed::Tls`].
    pub broken: Option<Box<str>>,
}

impl Departed {
    /// What went wrong, in words, if it is known: why it was never connected, else what was wrong with TLS.
    pub fn trouble(&self) -> Option<String> {
        self.failure
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| self.broken.as_ref().map(ToString::to_string))
    }
}

/// Why somebody was turned away at the door.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// All [`Limits::connections`](crate::Limits::connections) or [`Guard::connections`](crate::Guard::connections) are
    /// in use.
    Full,
    /// A rule denies its address.
    Denied,
    /// Its address has as many connections as [`Guard::per_address`](crate::Guard::per_address) allows.
    PerAddress,
    /// Its address connects more often than [`Guard::accept_rate`](crate::Guard::accept_rate) allows.
    AcceptRate,
    /// No descriptor was left to tell it anything.
    NoDescriptor,
}

impl Refusal {
    /// How many reasons there are.
    pub const COUNT: usize = 5;

    /// Every word that [`word`](Refusal::word) can return, in the order of
    /// [`Stats::refused_for`](crate::Stats::refused_for).
    pub const WORDS: [&'static str; Refusal::COUNT] =
        ["full", "denied", "per-address", "accept-rate", "no-descriptor"];

    /// The reason as one word, for logs and counters.
    pub fn word(self) -> &'static str {
        Refusal::WORDS[self as usize]
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Full => "all connections are in use",
            Refusal::Denied => "a rule denies its address",
            Refusal::PerAddress => "its address has as many connections as it may",
            Refusal::AcceptRate => "its address connects too often",
            Refusal::NoDescriptor => "no descriptor was left",
        })
    }
}

/// Somebody who was turned away at the door: see [`Service::refused`](crate::Service::refused).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// Who.
    pub peer: Address,
    /// Where it wanted to come in.
    pub at: Address,
    /// Why not.
    pub why: Refusal,
}

/// Why a dial failed: every attempt, with what became of it.
///
/// ```text
/// cannot connect to db.example:5432: [2001:db8::7]:5432: connection refused; 192.0.2.7:5432: no answer in time
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialError {
    to: Address,
    lookup: Option<String>,
    attempts: Vec<(Address, Attempt)>,
}

/// What became of one attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attempt {
    /// The system said no.
    Failed(OsError),
    /// Nothing had come back when time was up.
    NoAnswer,
    /// A rule forbids the address: see [`DialOptions::rules`](crate::DialOptions::rules).
    Denied,
}

impl DialError {
    pub(crate) fn new(to: Address) -> DialError {
        DialError { to, lookup: None, attempts: Vec::new() }
    }

    pub(crate) fn add(&mut self, address: Address, what: Attempt) {
        self.attempts.push((address, what));
    }

    pub(crate) fn not_found(&mut self, why: String) {
        self.lookup = Some(why);
    }

    /// The last error of the system, as a reason to close.
    pub(crate) fn last(&self) -> OsError {
        let failed = self.attempts.iter().rev().find_map(|(_, what)| match what {
            Attempt::Failed(error) => Some(*error),
            _ => None,
        });
        failed.unwrap_or(OsError::EACCES)
    }

    /// What was dialed.
    pub fn to(&self) -> &Address {
        &self.to
    }

    /// Why the name stands for no address, if that was the trouble.
    pub fn lookup(&self) -> Option<&str> {
        self.lookup.as_deref()
    }

    /// Each address that was tried, in order, and what became of it.
    pub fn attempts(&self) -> &[(Address, Attempt)] {
        &self.attempts
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot connect to {}", self.to)?;
        if let Some(why) = &self.lookup {
            return write!(f, ": {why}");
        }
        if let [(address, what)] = &self.attempts[..] {
            if *address == self.to {
                return write!(f, ": {what}");
            }
        }
        for (n, (address, what)) in self.attempts.iter().enumerate() {
            write!(f, "{} {address}: {what}", if n == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for DialError {}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attempt::Failed(error) => f.write_str(&plain(&io::Error::from(*error))),
            Attempt::NoAnswer => f.write_str("no answer in time"),
            Attempt::Denied => f.write_str("a rule forbids this address"),
        }
    }
}

/// The system's sentence without its number, and uncapitalised, for the middle of ours.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
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

    #[test]
    fn an_error_lists_every_attempt() {
        let to: Address = "db.example:80".parse().unwrap();
        let mut error = DialError::new(to.clone());
        error.add("[::1]:80".parse().unwrap(), Attempt::Failed(OsError::of(libc::ECONNREFUSED)));
        error.add("10.0.0.7:80".parse().unwrap(), Attempt::NoAnswer);
        let text =
            "cannot connect to db.example:80: [::1]:80: connection refused; 10.0.0.7:80: no answer in time";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.last(), OsError::of(libc::ECONNREFUSED));
        let mut error = DialError::new(to);
        error.not_found("no such name".into());
        assert_eq!(error.to_string(), "cannot connect to db.example:80: no such name");
        let to: Address = "127.0.0.1:1".parse().unwrap();
        let mut error = DialError::new(to.clone());
        error.add(to, Attempt::Failed(OsError::of(libc::ECONNREFUSED)));
        assert_eq!(error.to_string(), "cannot connect to 127.0.0.1:1: connection refused");
    }
}
