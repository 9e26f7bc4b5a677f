//! What a callback sends with: `send` and its variants, and `write!`.
//!
//! Read before: `connection/socket.rs`. Next: `connection/output.rs`, which queues.

use std::io;

use crate::base::shared::Shared;
use crate::connection::socket::Socket;
use crate::connection::state::Flag;

/// Output.
impl Socket<'_> {
    /// Queues bytes: a slice, an array, a `Vec`, text. They are written later in this turn, together with everything
    /// else sent to this socket. `write!` sends formatted text, and [`send_shared`](Socket::send_shared) what many
    /// sockets get.
    ///
    /// A service that can send faster than the peer reads must stop while [`is_full`](Socket::is_full). A connection
    /// with more than [`SocketLimits::queue`](crate::SocketLimits::queue) bytes that the kernel did not accept is
    /// closed with [`CloseReason::SlowReader`](crate::CloseReason::SlowReader).
    #[inline]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let (connection, cx) = self.parts();
        connection.send(bytes.as_ref(), cx);
    }

    /// Queues bytes without copying them, however many sockets they are sent to. [`send`](Socket::send), which would
    /// copy them, does not take a [`Shared`].
    pub fn send_shared(&mut self, shared: &Shared) {
        let (connection, cx) = self.parts();
        connection.send_shared(shared, cx);
    }

    /// Sends the [unread](Socket::unread) bytes and takes them: in [`Service::end`](crate::Service::end), an incomplete
    /// message that is to be sent back as it is. Does nothing during `data`, whose `input` has the bytes.
    pub fn send_unread(&mut self) {
        let (connection, cx) = self.parts();
        connection.send_unread(cx);
    }

    /// The number of bytes that were sent and that the kernel has not accepted yet.
    pub fn queued(&self) -> usize {
        self.connection().unsent(&self.table.cx)
    }

    /// Whether the queue has reached [`SocketLimits::high_water`](crate::SocketLimits::high_water) and has not come
    /// down to [`SocketLimits::low_water`](crate::SocketLimits::low_water) since. While it is full, the peer is not
    /// read, unless [`SocketLimits::read_when_full`](crate::SocketLimits::read_when_full) is set. When it is no longer
    /// full, [`Service::drained`](crate::Service::drained) is called: in this turn, if the kernel accepts everything at
    /// once.
    pub fn is_full(&self) -> bool {
        self.connection().flags.contains(Flag::Full)
    }

    /// Sends a FIN after everything that is queued (a half-close). The peer can go on sending, and its bytes are
    /// delivered.
    pub fn finish(&mut self) {
        let (connection, cx) = self.parts();
        connection.finish(cx);
    }
}

/// Sends formatted text, without a buffer of the caller's: `write!(socket, "VALUE {key} {length}\r\n")`.
///
/// Writing never fails and takes all bytes, as [`send`](Socket::send) does, so the result can be ignored. `flush` does
/// nothing: output leaves at the end of the turn.
///
/// ```
/// use std::io::Write;
/// use tidemill::{Input, Service, Socket};
///
/// /// Answers each line with its number and its length.
/// struct Count;
///
/// impl Service for Count {
///     type Session = u64;
///     fn open(&mut self, _: &mut Socket<'_>) -> u64 { 0 }
///     fn data(&mut self, lines: &mut u64, socket: &mut Socket<'_>, input: &mut Input<'_>) {
///         while let Some(line) = input.take_line() {
///             *lines += 1;
///             let _ = writeln!(socket, "line {lines} has {} bytes", line.len());
///         }
///     }
/// }
/// ```
impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes);
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
