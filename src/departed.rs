//! What is known of a connection that has ended.

use std::time::Duration;

use crate::address::Address;
use crate::id::ConnId;
use crate::options::DialError;

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
    /// What went wrong with TLS, in words: with [`Closed::Handshake`](crate::Closed::Handshake) and
    /// [`Closed::Tls`](crate::Closed::Tls).
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
