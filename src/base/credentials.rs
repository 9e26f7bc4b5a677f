//! The process at the other end of a Unix-domain socket.

use std::error::Error;
use std::fmt;
use std::io;

use crate::base::reason::{OsError, os_message};

/// The process at the other end of a Unix-domain socket, when it connected (SO_PEERCRED, unix(7)): see
/// [`Socket::peer_credentials`](crate::Socket::peer_credentials). The kernel vouches for it, so a service can trust it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct PeerCredentials {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process. For the log and not for decisions: when that process has ended, another may have its number.
    pub pid: u32,
}

/// Why [`Socket::peer_credentials`](crate::Socket::peer_credentials) has none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A dial that is not connected yet.
    NotConnected,
    /// It is not a Unix-domain socket: TCP has no such thing.
    NotUnix,
    /// What the system says. [`Unsupported`](io::ErrorKind::Unsupported) elsewhere than on Linux.
    System(OsError),
}

impl fmt::Display for CredentialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no credentials of the peer: ")?;
        match self {
            CredentialsError::NotConnected => f.write_str("it is not connected yet"),
            CredentialsError::NotUnix => f.write_str("only a Unix-domain socket has them"),
            CredentialsError::System(error) => f.write_str(&os_message(&io::Error::from(*error))),
        }
    }
}

impl Error for CredentialsError {}
