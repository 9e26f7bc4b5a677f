//! What a callback sends with: `send` and its variants, and `write!`.
//!
//! Read before: `connection/socket.rs`. Next: `connection/output.rs`, which queues.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use crate::base::reason::{CloseReason, OsError};
use crate::base::shared::Shared;
use crate::connection::socket::Socket;
use crate::connection::state::{Flag, Half};
use crate::parts::outbox::FilePart;
use crate::sys::read_file;

/// Files of up to this many bytes are read when they are sent: that takes one system call less than to write them by
/// sendfile, needs no descriptor meanwhile, and the headers before them go in the same packet.
const READ_AT_ONCE: usize = 64 * 1024;

/// Output.
impl Socket<'_> {
    /// Queues bytes: a slice, an array, a `Vec`, text. They are written later in this turn, together with everything
    /// else sent to this socket. `write!` sends formatted text, and [`send_shared`](Socket::send_shared) what many
    /// sockets get.
    ///
    /// A service that can send faster than the peer reads must stop while [`is_full`](Socket::is_full). A connection
    /// with more than [`SocketLimits::queue`](crate::SocketLimits::queue) bytes that the kernel did not accept is
    /// closed with [`CloseReason::SlowReader`].
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

    /// Queues a range of a file, in the order of the sends: what was sent before comes before it. The file is closed
    /// when the range is written.
    ///
    /// On Linux the kernel moves the bytes (sendfile), one [`Limits::write_budget`](crate::Limits::write_budget) in a
    /// turn; with TLS and elsewhere they are read piece by piece. They take no memory while they wait, so they
    /// count neither for [`Limits::memory`](crate::Limits::memory) nor for [`queue`](crate::SocketLimits::queue). They
    /// do count for [`is_full`](Socket::is_full), so that the next request waits. A file of up to 64 KiB is read at
    /// once, and is sent with what is before it in one packet.
    ///
    /// If the file ends before the range does, or cannot be read, the connection is reset, with
    /// [`CloseReason::File`]: half an answer must not look whole. Reading a file blocks the
    /// loop where the disk is slow.
    ///
    /// ```
    /// use std::{fs::File, io::Write};
    /// use tidemill::Socket;
    ///
    /// fn answer(socket: &mut Socket<'_>, page: File) -> std::io::Result<()> {
    ///     let length = page.metadata()?.len();
    ///     write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
    ///     socket.send_file(page, 0..length);
    ///     Ok(())
    /// }
    /// ```
    pub fn send_file(&mut self, file: File, range: Range<u64>) {
        let (connection, cx) = self.parts();
        let length = range.end.saturating_sub(range.start);
        let Ok(length) = usize::try_from(length) else {
            return connection.close_now(CloseReason::File(OsError::of(0)), cx); // On a 32-bit target.
        };
        if length > READ_AT_ONCE {
            let part = FilePart { file: Rc::new(file), start: range.start, length };
            return connection.send_file(part, cx);
        }
        if length == 0 || !connection.is_live() || connection.outgoing != Half::Open {
            cx.stats.sent_too_late += length as u64;
            return;
        }
        let mut bytes = std::mem::take(&mut cx.joined);
        bytes.resize(length, 0);
        match read_file(&file, range.start, &mut bytes) {
            Ok(n) if n == length => connection.send(&bytes, cx),
            Ok(_) => connection.close_now(CloseReason::File(OsError::of(0)), cx),
            Err(error) => connection.close_now(CloseReason::File(OsError::from(error)), cx),
        }
        cx.joined = bytes;
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

    /// Sets how many bytes may be queued for this connection, in place of
    /// [`SocketLimits::queue`](crate::SocketLimits::queue): more for a client that fetches a large answer, less for one
    /// among ten thousand subscribers. `None`: that of its service.
    pub fn set_queue(&mut self, bytes: Option<usize>) {
        let (connection, _) = self.parts();
        connection.optional().overrides().queue = bytes;
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

    /// Joins the pieces of a text, so that it is sent once and not piece by piece.
    fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        let mut joined = std::mem::take(&mut self.parts().1.joined);
        joined.clear();
        let written = joined.write_fmt(text);
        let (connection, cx) = self.parts();
        connection.send(&joined, cx);
        joined.shrink_to(READ_AT_ONCE);
        cx.joined = joined;
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
