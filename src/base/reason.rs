//! Why a connection ended, was refused, or was never connected: closed sets of reasons, the same words everywhere.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::id::ConnId;

/// Why a connection ended. The same word stands in the API, the log, the counters and the tests.
///
/// ```
/// use tidemill::CloseReason;
///
/// assert_eq!(CloseReason::SlowReader.word(), "slow-reader");
/// assert_eq!(CloseReason::Idle.to_string(), "no byte either way for too long");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CloseReason {
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
    /// A message stayed incomplete for [`SocketLimits::message_timeout`](crate::SocketLimits::message_timeout).
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
    /// [`ClosedInfo::dial_error`](crate::ClosedInfo::dial_error) has them all.
    Unreachable(OsError),
    /// Dialing took longer than [`SocketLimits::connect`](crate::SocketLimits::connect).
    ConnectTimeout,
    /// There was no handshake to speak of: the peer did not speak TLS, showed no certificate that is trusted, refused
    /// ours, or left. [`ClosedInfo::filter_error`](crate::ClosedInfo::filter_error) has the words.
    Handshake,
    /// The handshake took longer than [`SocketLimits::handshake`](crate::SocketLimits::handshake), or others waited
    /// for its place.
    HandshakeTimeout,
    /// After the handshake something arrived that TLS does not allow, or the peer said that we had sent it.
    Tls,
    /// The peer's end came without the message that announces it in TLS: somebody may have cut off the rest.
    Truncated,
    /// The other end of its [pipe](crate::Socket::pipe) ended before its time.
    PipePeerClosed,
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

impl CloseReason {
    /// How many reasons there are.
    pub const COUNT: usize = 24;

    /// Every word that [`word`](CloseReason::word) can return, in the order of [`Stats::closed`](crate::Stats::closed).
    pub const WORDS: [&'static str; CloseReason::COUNT] = [
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
        "pipe-peer-closed",
        "shutdown",
        "error",
    ];

    /// The reason as one word, for logs and counters.
    pub fn word(&self) -> &'static str {
        CloseReason::WORDS[self.index()]
    }

    pub(crate) fn index(&self) -> usize {
        match self {
            CloseReason::Finished => 0,
            CloseReason::Local => 1,
            CloseReason::Aborted => 2,
            CloseReason::Reset => 3,
            CloseReason::Idle => 4,
            CloseReason::FirstByte => 5,
            CloseReason::TooSlow => 6,
            CloseReason::Unfinished => 7,
            CloseReason::HalfClosed => 8,
            CloseReason::Lifetime => 9,
            CloseReason::SlowReader => 10,
            CloseReason::Memory => 11,
            CloseReason::TooLong => 12,
            CloseReason::Malformed => 13,
            CloseReason::Unresolved => 14,
            CloseReason::Unreachable(_) => 15,
            CloseReason::ConnectTimeout => 16,
            CloseReason::Handshake => 17,
            CloseReason::HandshakeTimeout => 18,
            CloseReason::Tls => 19,
            CloseReason::Truncated => 20,
            CloseReason::PipePeerClosed => 21,
            CloseReason::Shutdown => 22,
            CloseReason::Error(_) => 23,
        }
    }

    /// What a failed read or write says about the connection.
    pub(crate) fn from_io(error: &io::Error) -> CloseReason {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match error.kind() {
            ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected => CloseReason::Reset,
            _ => CloseReason::Error(OsError::from(error)),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = match self {
            CloseReason::Finished => "both ends finished",
            CloseReason::Local => "closed by the service",
            CloseReason::Aborted => "aborted by the service",
            CloseReason::Reset => "reset by the peer",
            CloseReason::Idle => "no byte either way for too long",
            CloseReason::FirstByte => "the first byte did not come in time",
            CloseReason::TooSlow => "slower than the least rate allowed",
            CloseReason::Unfinished => "a message was not completed in time",
            CloseReason::HalfClosed => "half-closed for too long",
            CloseReason::Lifetime => "lived as long as a connection may",
            CloseReason::SlowReader => "the peer did not read what was queued for it",
            CloseReason::Memory => "held the most when the buffers' memory ran out",
            CloseReason::TooLong => "a message was longer than is allowed",
            CloseReason::Malformed => "what arrived was no message of this protocol",
            CloseReason::Unresolved => "the name stands for no address",
            CloseReason::Handshake => "the TLS handshake failed",
            CloseReason::HandshakeTimeout => "the TLS handshake took too long",
            CloseReason::Tls => "what arrived was no TLS, or the peer said so of ours",
            CloseReason::Truncated => "the peer's end came without its announcement in TLS",
            CloseReason::PipePeerClosed => "the other end of its pipe has gone",
            CloseReason::Unreachable(error) => return write!(f, "cannot connect: {error}"),
            CloseReason::ConnectTimeout => "connecting took too long",
            CloseReason::Shutdown => "the reactor shut down",
            CloseReason::Error(error) => return write!(f, "{error}"),
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

/// What is known of a connection that has ended: a parameter of [`Service::closed`](crate::Service::closed).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClosedInfo {
    /// Its name, which finds nobody any more.
    pub id: ConnId,
    /// Why it ended.
    pub reason: CloseReason,
    /// The remote end; for a dial that failed, what was dialed.
    pub peer: Address,
    /// The local end. None where it never had one, and for Unix-domain sockets.
    pub local: Option<Address>,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes that the kernel took.
    pub bytes_out: u64,
    /// How long it lived, from accept or dial on, in steps of 10 ms.
    pub duration: Duration,
    /// Why dialing failed, attempt by attempt.
    pub dial_error: Option<DialError>,
    /// What went wrong with TLS, in words: with [`CloseReason::Handshake`] and
    /// [`CloseReason::Tls`].
    pub filter_error: Option<Box<str>>,
}

impl ClosedInfo {
    /// What went wrong, in words, if it is known: why it was never connected, else what was wrong with TLS.
    pub fn error_text(&self) -> Option<String> {
        self.dial_error
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| self.filter_error.as_ref().map(ToString::to_string))
    }
}

/// Why a peer was refused when it was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// All [`Limits::connections`](crate::Limits::connections) or
    /// [`AccessPolicy::connections`](crate::AccessPolicy::connections) are in use.
    Full,
    /// A rule denies its address.
    Denied,
    /// Its address has as many connections as [`AccessPolicy::per_address`](crate::AccessPolicy::per_address) allows.
    PerAddress,
    /// Its address connects more often than [`AccessPolicy::accept_rate`](crate::AccessPolicy::accept_rate) allows.
    AcceptRate,
    /// No descriptor was left to tell it anything.
    NoDescriptor,
}

impl Refusal {
    /// How many reasons there are.
    pub const COUNT: usize = 5;

    /// Every word that [`word`](Refusal::word) can return, in the order of
    /// [`Stats::refused_by_reason`](crate::Stats::refused_by_reason).
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

/// A peer that was refused when it was accepted: see [`Service::refused`](crate::Service::refused).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// Who.
    pub peer: Address,
    /// Where it wanted to come in.
    pub at: Address,
    /// Why not.
    pub reason: Refusal,
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
            Attempt::Failed(error) => f.write_str(&os_message(&io::Error::from(*error))),
            Attempt::NoAnswer => f.write_str("no answer in time"),
            Attempt::Denied => f.write_str("a rule forbids this address"),
        }
    }
}

/// The system's sentence without its number, and uncapitalised, for the middle of ours.
pub(crate) fn os_message(error: &io::Error) -> String {
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
        let mut words = CloseReason::WORDS.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), CloseReason::COUNT);
        assert_eq!(CloseReason::Error(OsError::of(5)).index(), CloseReason::COUNT - 1);
    }

    #[test]
    fn a_reason_is_half_as_large_as_a_pointer() {
        assert_eq!(size_of::<CloseReason>(), 4);
        assert_eq!(size_of::<Option<CloseReason>>(), 4);
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
