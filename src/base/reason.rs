//! Why a connection ended, was refused, or could not be established. Log, counters and API use the same words.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::base::address::Address;
use crate::base::id::ConnId;

/// Why a connection ended. [`word`](CloseReason::word) is what log and counters call it.
///
/// # Examples
///
/// ```
/// use tidemill::CloseReason;
///
/// assert_eq!(CloseReason::SlowReader.word(), "slow-reader");
/// assert_eq!(CloseReason::Idle.to_string(), "no byte in either direction for too long");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both ends sent FIN after all their data: everything was delivered.
    Finished,
    /// The service closed the connection.
    Local,
    /// The service aborted the connection; the peer got a reset.
    Aborted,
    /// The peer reset the connection, or had closed it when bytes were written to it.
    Reset,
    /// No byte moved in either direction for [`SocketLimits::idle`](crate::SocketLimits::idle).
    Idle,
    /// The peer sent no byte within [`SocketLimits::first_byte`](crate::SocketLimits::first_byte).
    FirstByte,
    /// A message was incomplete or output was queued, and fewer bytes moved than the minimum rate asks for:
    /// [`SocketLimits::min_read_rate`](crate::SocketLimits::min_read_rate),
    /// [`min_write_rate`](crate::SocketLimits::min_write_rate).
    TooSlow,
    /// A message stayed incomplete for [`SocketLimits::message_timeout`](crate::SocketLimits::message_timeout).
    Unfinished,
    /// One end had sent FIN, and for [`SocketLimits::half_closed`](crate::SocketLimits::half_closed) no byte moved.
    HalfClosed,
    /// The connection was as old as [`SocketLimits::lifetime`](crate::SocketLimits::lifetime) allows.
    Lifetime,
    /// The peer did not read: more than [`SocketLimits::queue`](crate::SocketLimits::queue) bytes were queued for it.
    SlowReader,
    /// All buffers together exceeded [`Limits::memory`](crate::Limits::memory), and this connection held the most.
    Memory,
    /// A message was longer than [`SocketLimits::message`](crate::SocketLimits::message) or the service allows.
    TooLong,
    /// The received bytes are not a message of the service's protocol.
    Malformed,
    /// The host name that was dialed has no address.
    Unresolved,
    /// Dialing failed, with the system's error; after several attempts, with the last one.
    /// [`ClosedInfo::dial_error`](crate::ClosedInfo::dial_error) has the errors of all attempts.
    Unreachable(OsError),
    /// Dialing took longer than [`SocketLimits::connect`](crate::SocketLimits::connect).
    ConnectTimeout,
    /// The TLS handshake failed: the peer does not speak TLS, its certificate is not trusted, it refused ours, or it
    /// closed the connection. [`ClosedInfo::filter_error`](crate::ClosedInfo::filter_error) has the message.
    Handshake,
    /// The TLS handshake took longer than [`SocketLimits::handshake`](crate::SocketLimits::handshake), or gave up its
    /// place to a waiting one: see [`Limits::handshakes`](crate::Limits::handshakes).
    HandshakeTimeout,
    /// After the handshake, a record was invalid, or the peer reported that one of ours was.
    Tls,
    /// The peer sent FIN without TLS's close_notify before it, so data may have been cut off by an attacker.
    Truncated,
    /// The other connection of its [pipe](crate::Socket::pipe) ended in another way than by FIN.
    PipePeerClosed,
    /// The reactor was shut down, and the connection was still open after the grace time.
    Shutdown,
    /// A file to be [sent](crate::Socket::send_file) could not be read, or was shorter than its range (number 0).
    File(OsError),
    /// The system reported an error.
    Error(OsError),
}

/// An error number of the operating system (errno) in one byte. Those of Linux end at 133, and those of the BSDs before
/// that (errno(3)). A larger one, which is a kernel's mistake, becomes 255. Converts to and from [`io::Error`].
///
/// # Examples
///
/// ```
/// let refused = tidemill::OsError::from(std::io::Error::from_raw_os_error(111));
/// assert_eq!(std::io::Error::from(refused).raw_os_error(), Some(111));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OsError(u8);

impl OsError {
    /// Permission denied: 13 on every Unix (errno(3)). Not taken from `libc`, so that this builds for WebAssembly.
    const EACCES: OsError = OsError::of(13);

    /// EAGAIN: 11 on Linux, 35 on the BSDs and macOS (errno(3)).
    pub(crate) const TRY_AGAIN: OsError = OsError::of(if cfg!(target_os = "linux") { 11 } else { 35 });

    pub(crate) const fn of(number: i32) -> OsError {
        OsError(if number < 0 || number > u8::MAX as i32 { u8::MAX } else { number as u8 })
    }
}

impl CloseReason {
    /// The number of reasons.
    pub const COUNT: usize = 25;
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
        "file",
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
            CloseReason::File(_) => 24,
        }
    }

    /// Whether it ends with a reset: what was queued is dropped, and after an orderly end the answer would look whole.
    pub(crate) fn drops_queue(self) -> bool {
        matches!(self, Self::Aborted | Self::SlowReader | Self::Memory | Self::File(_))
    }

    /// The reason that follows from a failed read or write.
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
            CloseReason::Finished => "both ends sent FIN",
            CloseReason::Local => "closed by the service",
            CloseReason::Aborted => "aborted by the service",
            CloseReason::Reset => "reset by the peer",
            CloseReason::Idle => "no byte in either direction for too long",
            CloseReason::FirstByte => "the first byte did not arrive in time",
            CloseReason::TooSlow => "slower than the minimum transfer rate",
            CloseReason::Unfinished => "a message was not completed in time",
            CloseReason::HalfClosed => "half-closed for too long",
            CloseReason::Lifetime => "reached the maximum lifetime of a connection",
            CloseReason::SlowReader => "the peer did not read the output queued for it",
            CloseReason::Memory => "held the most memory when the limit on all buffers was exceeded",
            CloseReason::TooLong => "a message exceeded the length limit",
            CloseReason::Malformed => "the received bytes are not a message of this protocol",
            CloseReason::Unresolved => "the host name has no address",
            CloseReason::Handshake => "the TLS handshake failed",
            CloseReason::HandshakeTimeout => "the TLS handshake took too long",
            CloseReason::Tls => "an invalid TLS record was received, or the peer reported one",
            CloseReason::Truncated => "the peer sent FIN without TLS close_notify",
            CloseReason::PipePeerClosed => "the other connection of the pipe was closed",
            CloseReason::Unreachable(error) => return write!(f, "cannot connect: {error}"),
            CloseReason::ConnectTimeout => "connecting took too long",
            CloseReason::Shutdown => "the reactor shut down",
            CloseReason::File(OsError(0)) => "a file to be sent is shorter than its range",
            CloseReason::File(error) => return write!(f, "a file to be sent cannot be read: {error}"),
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
    /// An error that does not come from the operating system has no number; it becomes 0.
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

/// What is known about a connection that has ended: a parameter of [`Service::closed`](crate::Service::closed).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClosedInfo {
    /// Its id; a look-up by it finds nothing any more.
    pub id: ConnId,
    /// Why it ended.
    pub reason: CloseReason,
    /// The remote address; for a dial that failed, the address that was dialed.
    pub peer: Address,
    /// The local address. `None` if it was never connected, and for Unix-domain sockets.
    pub local: Option<Address>,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes written to the kernel.
    pub bytes_out: u64,
    /// Bytes that had arrived and were not delivered, because the connection ended before its service took them.
    pub undelivered: usize,
    /// The time from accept or dial to the end; resolution 10 ms.
    pub duration: Duration,
    /// [`DialOptions::tag`](crate::DialOptions::tag) of a dialed connection, else 0.
    pub tag: u64,
    /// After which time it is dialed again, if it has [`DialOptions::reconnect`](crate::DialOptions::reconnect) and was
    /// not ended by this side. The new connection has another id: its [`Origin::Dialed`](crate::Origin::Dialed) has
    /// this one as `after`. [`Sockets::cancel_dial`](crate::Sockets::cancel_dial) with this id cancels it.
    pub redial_in: Option<Duration>,
    /// Why dialing failed, with the error of each attempt.
    pub dial_error: Option<ConnectError>,
    /// The error message of TLS, with [`CloseReason::Handshake`] and [`CloseReason::Tls`].
    pub filter_error: Option<Box<str>>,
}

impl ClosedInfo {
    /// The message of [`dial_error`](ClosedInfo::dial_error), else of [`filter_error`](ClosedInfo::filter_error).
    pub fn error_text(&self) -> Option<String> {
        let dial_error = self.dial_error.as_ref().map(ToString::to_string);
        dial_error.or_else(|| self.filter_error.as_ref().map(ToString::to_string))
    }
}

/// Why a peer was refused when it was accepted.
///
/// # Examples
///
/// ```
/// use tidemill::Refusal;
///
/// assert_eq!(Refusal::PerAddress.word(), "per-address");
/// assert_eq!(Refusal::Denied.to_string(), "a rule denies its address");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// [`Limits::connections`](crate::Limits::connections) or
    /// [`AccessPolicy::connections`](crate::AccessPolicy::connections) is reached.
    Full,
    /// A rule denies its address.
    Denied,
    /// Its address has [`AccessPolicy::per_address`](crate::AccessPolicy::per_address) connections already.
    PerAddress,
    /// Its address connects more often than [`AccessPolicy::accept_rate`](crate::AccessPolicy::accept_rate) allows.
    AcceptRate,
    /// The process has no descriptor left; the peer was closed at once, without a reply.
    NoDescriptor,
}

impl Refusal {
    /// The number of reasons.
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
            Refusal::PerAddress => "its address has the maximum number of connections",
            Refusal::AcceptRate => "its address connects too often",
            Refusal::NoDescriptor => "no descriptor was left",
        })
    }
}

/// A peer that was refused when it was accepted: see [`Service::refused`](crate::Service::refused).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// The address of the peer.
    pub peer: Address,
    /// The address of the listener.
    pub at: Address,
    /// Why it was refused.
    pub reason: Refusal,
}

/// Why a connection could not be established: the error of each attempt.
///
/// ```text
/// cannot connect to db.example:5432: [2001:db8::7]:5432: connection refused; 192.0.2.7:5432: no answer in time
/// ```
///
/// [`ClosedInfo::dial_error`] has it when a dial has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectError {
    to: Address,
    lookup: Option<String>,
    attempts: Vec<(Address, Attempt)>,
}

/// The result of one attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attempt {
    /// The system reported an error.
    Failed(OsError),
    /// There was no answer before the dial was given up.
    NoAnswer,
    /// A rule forbids the address: see [`DialOptions::rules`](crate::DialOptions::rules).
    Denied,
}

impl ConnectError {
    pub(crate) fn new(to: Address) -> ConnectError {
        ConnectError { to, lookup: None, attempts: Vec::new() }
    }

    pub(crate) fn add(&mut self, address: Address, what: Attempt) {
        self.attempts.push((address, what));
    }

    pub(crate) fn not_found(&mut self, why: String) {
        self.lookup = Some(why);
    }

    /// The last error of the system, for [`CloseReason::Unreachable`]; EACCES if all addresses are forbidden by rules.
    pub(crate) fn last(&self) -> OsError {
        let failed = self.attempts.iter().rev().find_map(|(_, what)| match what {
            Attempt::Failed(error) => Some(*error),
            _ => None,
        });
        failed.unwrap_or(OsError::EACCES)
    }

    /// The address that was dialed.
    pub fn to(&self) -> &Address {
        &self.to
    }

    /// Why the host name could not be resolved, if it could not.
    pub fn lookup(&self) -> Option<&str> {
        self.lookup.as_deref()
    }

    /// Each address that was tried, in order, with the result.
    pub fn attempts(&self) -> &[(Address, Attempt)] {
        &self.attempts
    }
}

impl fmt::Display for ConnectError {
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

impl std::error::Error for ConnectError {}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attempt::Failed(error) => f.write_str(&os_message(&io::Error::from(*error))),
            Attempt::NoAnswer => f.write_str("no answer in time"),
            Attempt::Denied => f.write_str("a rule forbids this address"),
        }
    }
}

/// The system's error message without its number and in lower case, to be put into a longer message.
pub(crate) fn os_message(error: &io::Error) -> String {
    let mut text = error.to_string();
    text.truncate(text.find(" (os error").unwrap_or(text.len()));
    text.get_mut(..1).into_iter().for_each(str::make_ascii_lowercase);
    text
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
        assert_eq!(CloseReason::File(OsError::of(5)).index(), CloseReason::COUNT - 1);
    }

    #[test]
    fn a_close_reason_has_two_bytes() {
        assert_eq!(size_of::<CloseReason>(), 2);
        assert_eq!(size_of::<Option<CloseReason>>(), 2);
    }

    #[test]
    fn an_error_number_beyond_a_byte_is_not_told_as_another_error() {
        for number in [256 + libc::EPERM, 524, i32::MAX, -1] {
            let told = std::io::Error::from(OsError::of(number));
            assert_eq!(told.raw_os_error(), Some(255), "{number}");
        }
    }

    #[test]
    fn an_error_lists_every_attempt() {
        let to: Address = "db.example:80".parse().unwrap();
        let mut error = ConnectError::new(to.clone());
        error.add("[::1]:80".parse().unwrap(), Attempt::Failed(OsError::of(libc::ECONNREFUSED)));
        error.add("10.0.0.7:80".parse().unwrap(), Attempt::NoAnswer);
        let text =
            "cannot connect to db.example:80: [::1]:80: connection refused; 10.0.0.7:80: no answer in time";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.last(), OsError::of(libc::ECONNREFUSED));
        let mut error = ConnectError::new(to);
        error.not_found("no such name".into());
        assert_eq!(error.to_string(), "cannot connect to db.example:80: no such name");
        let to: Address = "127.0.0.1:1".parse().unwrap();
        let mut error = ConnectError::new(to.clone());
        error.add(to, Attempt::Failed(OsError::of(libc::ECONNREFUSED)));
        assert_eq!(error.to_string(), "cannot connect to 127.0.0.1:1: connection refused");
    }
}
