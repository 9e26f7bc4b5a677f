//! Why something could not be set up: listening, and the start of a dial.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::io;

use crate::base::address::{Address, AddressError};
use crate::base::reason::os_message;

/// Why a listener could not be set up. Converts into an [`io::Error`] with the same message and a fitting
/// [`kind`](ListenError::kind), so that `?` works in a `main` that returns `io::Result`.
///
/// # Examples
///
/// ```
/// use std::io::ErrorKind;
/// use tidemill::{Limits, ListenError, Reactor, services::Echo};
///
/// let mut reactor = Reactor::new(Limits::default())?;
/// let echo = reactor.add(Echo::raw());
/// let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
/// match reactor.listen(taken.local_addr()?, echo) {
///     Err(ListenError::System { source, .. }) => assert_eq!(source.kind(), ErrorKind::AddrInUse),
///     other => panic!("{other:?}"),
/// }
/// assert!(matches!(reactor.listen("nine thousand", echo), Err(ListenError::Address(_))));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ListenError {
    /// What was given is not an address.
    Address(AddressError),
    /// The host name could not be looked up, or has no address.
    Unresolved {
        /// The name.
        name: Address,
        /// The error of the system's resolver; none if the name stands for no address.
        source: Option<io::Error>,
    },
    /// A host name was given where a look-up would block the loop: see [`Sockets::listen`](crate::Sockets::listen).
    WouldBlock(Address),
    /// The system refused: the address is in use, is not one of this machine, needs a permission.
    System {
        /// The address; [`Address::Unnamed`] for an adopted socket whose address the system did not tell.
        at: Address,
        /// The error of the system.
        source: io::Error,
    },
    /// The reactor has 255 listeners already.
    TooMany,
    /// The service is of another reactor.
    OtherReactor,
    /// A shutdown has begun.
    ShuttingDown,
}

/// Why a dial was not started. The service is not called then. A dial that was started and fails is reported to
/// [`Service::closed`](crate::Service::closed), with a [`ConnectError`](crate::ConnectError). Converts into an
/// [`io::Error`] with the same message.
///
/// # Examples
///
/// ```
/// use tidemill::{DialError, Limits, Reactor, services::Echo};
///
/// let mut reactor = Reactor::new(Limits { connections: 1, ..Limits::default() })?;
/// let echo = reactor.add(Echo::raw());
/// reactor.dial("127.0.0.1:9001", echo)?;
/// let refused = reactor.dial("127.0.0.1:9001", echo).expect_err("one is the maximum");
/// assert!(matches!(refused, DialError::Full { max: 1, .. }));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError {
    /// What was given is not an address.
    Address(AddressError),
    /// [`Address::Unnamed`] cannot be dialed.
    Unnamed,
    /// All connections are in use.
    Full {
        /// The address that was to be dialed.
        to: Address,
        /// [`Limits::connections`](crate::Limits::connections).
        max: usize,
    },
    /// The service is of another reactor.
    OtherReactor {
        /// The address that was to be dialed.
        to: Address,
    },
}

/// Why a connected stream was not adopted: see [`Sockets::adopt_stream`](crate::Sockets::adopt_stream). The stream has
/// been closed. Converts into an [`io::Error`] with the same message.
#[derive(Debug)]
#[non_exhaustive]
pub enum AdoptError {
    /// All connections are in use.
    Full {
        /// [`Limits::connections`](crate::Limits::connections).
        max: usize,
    },
    /// The service is of another reactor.
    OtherReactor,
    /// The system refused, or the stream is not connected.
    System(io::Error),
}

impl ListenError {
    /// The kind of the [`io::Error`] that it converts into: of the system's error if there is one, else
    /// [`InvalidInput`](io::ErrorKind::InvalidInput), [`NotFound`](io::ErrorKind::NotFound) for a name without an
    /// address, or [`Other`](io::ErrorKind::Other) at a limit and during a shutdown.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            ListenError::System { source, .. } => source.kind(),
            ListenError::Unresolved { .. } => io::ErrorKind::NotFound,
            ListenError::Address(_) | ListenError::WouldBlock(_) | ListenError::OtherReactor => {
                io::ErrorKind::InvalidInput
            }
            ListenError::TooMany | ListenError::ShuttingDown => io::ErrorKind::Other,
        }
    }
}

impl DialError {
    /// The kind of the [`io::Error`] that it converts into: [`Other`](io::ErrorKind::Other) at the limit, else
    /// [`InvalidInput`](io::ErrorKind::InvalidInput).
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            DialError::Full { .. } => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidInput,
        }
    }
}

impl AdoptError {
    /// The kind of the [`io::Error`] that it converts into: of the system's error if there is one,
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a service of another reactor, and
    /// [`Other`](io::ErrorKind::Other) at the limit.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            AdoptError::Full { .. } => io::ErrorKind::Other,
            AdoptError::OtherReactor => io::ErrorKind::InvalidInput,
            AdoptError::System(error) => error.kind(),
        }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenError::Address(error) => write!(f, "cannot listen: {error}"),
            ListenError::Unresolved { name, source: Some(error) } => {
                write!(f, "cannot listen on {name}: {}", os_message(error))
            }
            ListenError::Unresolved { name, source: None } => {
                write!(f, "cannot listen on {name}: it has no address")
            }
            ListenError::WouldBlock(name) => {
                write!(
                    f,
                    "cannot listen on {name}: looking a name up would block the loop; give an IP address"
                )
            }
            ListenError::System { at, source } => {
                write!(f, "cannot listen on {at}: {}", system_message(at, source))
            }
            ListenError::TooMany => f.write_str("cannot listen: a reactor has 255 listeners at most"),
            ListenError::OtherReactor => f.write_str("cannot listen: the service is of another reactor"),
            ListenError::ShuttingDown => f.write_str("cannot listen: the reactor is shutting down"),
        }
    }
}

/// What the system said, and where possible a remedy.
fn system_message(at: &Address, error: &io::Error) -> String {
    let low_port = at.port().is_some_and(|port| port < 1_024);
    match error.kind() {
        io::ErrorKind::AddrInUse if at.is_unix() => "another process listens there".to_string(),
        io::ErrorKind::AddrInUse => {
            "the address is in use (another process listens there; port 0 picks a free one)".to_string()
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_string(),
        io::ErrorKind::NotFound if at.is_unix() => "the directory does not exist".to_string(),
        io::ErrorKind::PermissionDenied if low_port => {
            "permission denied (ports below 1024 need root or the capability CAP_NET_BIND_SERVICE)"
                .to_string()
        }
        _ => os_message(error),
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::Address(error) => write!(f, "cannot dial: {error}"),
            DialError::Unnamed => f.write_str("cannot dial a socket that has no name"),
            DialError::Full { to, max } => {
                write!(f, "cannot dial {to}: all {max} connections are in use (raise Limits::connections)")
            }
            DialError::OtherReactor { to } => {
                write!(f, "cannot dial {to}: the service is of another reactor")
            }
        }
    }
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot adopt a connection: ")?;
        match self {
            AdoptError::Full { max } => {
                write!(f, "all {max} connections are in use (raise Limits::connections)")
            }
            AdoptError::OtherReactor => f.write_str("the service is of another reactor"),
            AdoptError::System(error) if error.kind() == io::ErrorKind::NotConnected => {
                f.write_str("its socket is not connected")
            }
            AdoptError::System(error) => f.write_str(&os_message(error)),
        }
    }
}

impl Error for AdoptError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            AdoptError::System(error) => Some(error),
            _ => None,
        }
    }
}

impl From<AdoptError> for io::Error {
    fn from(error: AdoptError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

impl Error for ListenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ListenError::Address(error) => Some(error),
            ListenError::Unresolved { source: Some(error), .. } => Some(error),
            ListenError::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            DialError::Address(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ListenError> for io::Error {
    fn from(error: ListenError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

impl From<DialError> for io::Error {
    fn from(error: DialError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

impl From<AddressError> for ListenError {
    fn from(error: AddressError) -> ListenError {
        ListenError::Address(error)
    }
}

impl From<AddressError> for DialError {
    fn from(error: AddressError) -> DialError {
        DialError::Address(error)
    }
}

/// What needs no parsing is an address already. With this, `listen` and `dial` take both kinds.
impl From<Infallible> for AddressError {
    fn from(never: Infallible) -> AddressError {
        match never {}
    }
}
