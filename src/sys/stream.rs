//! Streams and listeners, for TCP and for Unix-domain sockets.

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::base::address::{Address, PeerAddress};
use crate::base::credentials::{CredentialsError, PeerCredentials};
use crate::base::leaving::Leaving;
use crate::base::reason::OsError;
use crate::config::dial::{DialOptions, KeepAlive};
use crate::config::listen::ListenOptions;
use crate::sys::AcceptError;
use crate::sys::handed_over::HandedOver;

/// The stream of a connection, TCP or Unix-domain.
///
/// Reads, writes and shutdown are the same system calls for both kinds, so a `TcpStream` holds either of them, and the
/// kind is not stored (four bytes per connection instead of eight). Only addresses differ; they are read by a function
/// that handles both kinds.
#[derive(Debug)]
pub(crate) struct Stream(TcpStream);

/// A listener's socket.
#[derive(Debug)]
pub(crate) enum ListenSocket {
    Tcp(TcpListener),
    /// With its socket file, if this process created it.
    Unix(UnixListener, #[expect(dead_code, reason = "it is there to be dropped")] Option<SocketFile>),
    /// Connections that another thread has accepted.
    Handed(HandedOver),
}

impl Stream {
    /// Starts to connect, without blocking.
    pub(super) fn connect(to: &Address, options: &DialOptions) -> io::Result<Stream> {
        let (address, domain, protocol) = socket_address(to)?;
        let socket = new_socket(domain, protocol)?;
        if let Some(prepare) = options.prepare {
            prepare(socket.as_fd())?;
        }
        if protocol.is_some() {
            socket.set_tcp_nodelay(options.nodelay)?;
            limit_unsent(&socket, options.unsent)?;
            if let Some(keep_alive) = options.keep_alive {
                socket.set_tcp_keepalive(&keepalive_probes(keep_alive))?;
            }
            if let Some(local) = options.local {
                // Without SO_REUSEADDR, a local port could not be bound again while an earlier connection from it is in
                // TIME_WAIT (60 s on Linux).
                socket.set_reuse_address(true)?;
                socket.bind(&local.into())?;
            }
        }
        match socket.connect(&address) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            done => done?,
        }
        Ok(Stream(TcpStream::from_std(socket.into())))
    }

    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.take_error()
    }

    /// The remote IP address; `None` for a Unix-domain socket. An error means that it is not connected.
    pub(super) fn peer(&self) -> io::Result<Option<SocketAddr>> {
        SockRef::from(self).peer_addr().map(|address| address.as_socket())
    }

    /// The local IP address; `None` for a Unix-domain socket.
    pub(super) fn local(&self) -> io::Result<Option<SocketAddr>> {
        SockRef::from(self).local_addr().map(|address| address.as_socket())
    }

    pub(super) fn source(&mut self) -> &mut dyn Source {
        &mut self.0
    }

    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(into)
    }

    pub(super) fn write(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match from {
            // One slice: send(2) is cheaper than writev(2).
            [slice] => (&self.0).write(slice),
            slices => (&self.0).write_vectored(slices),
        }
    }

    /// Whether the peer has left. Linux tells of a FIN although bytes before it are unread.
    #[cfg(target_os = "linux")]
    pub(super) fn peer_left(&self) -> Option<Leaving> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let mut asked = [PollFd::new(&self.0, PollFlags::RDHUP)];
        poll(&mut asked, Some(&Timespec::default())).ok()?;
        let seen = asked[0].revents();
        match () {
            () if seen.contains(PollFlags::ERR) => Some(Leaving::Reset),
            () if seen.intersects(PollFlags::RDHUP | PollFlags::HUP) => Some(Leaving::End),
            () => None,
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn peer_left(&self) -> Option<Leaving> {
        match self.0.peek(&mut [0]) {
            Ok(0) => Some(Leaving::End),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Some(Leaving::Reset),
            Ok(_) | Err(_) => None,
        }
    }

    #[cfg(target_os = "linux")]
    pub(super) fn peer_credentials(&self) -> Result<PeerCredentials, CredentialsError> {
        // Of a TCP socket the kernel would say user 2^32 - 1, without an error.
        if self.local().map_err(|error| CredentialsError::System(OsError::from(error)))?.is_some() {
            return Err(CredentialsError::NotUnix);
        }
        let peer = rustix::net::sockopt::socket_peercred(self)
            .map_err(|error| CredentialsError::System(OsError::from(io::Error::from(error))))?;
        let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
        Ok(PeerCredentials { uid: peer.uid.as_raw(), gid: peer.gid.as_raw(), pid })
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn peer_credentials(&self) -> Result<PeerCredentials, CredentialsError> {
        Err(CredentialsError::System(OsError::from(io::Error::from_raw_os_error(libc::EOPNOTSUPP))))
    }

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

impl From<OwnedFd> for Stream {
    fn from(socket: OwnedFd) -> Stream {
        Stream(TcpStream::from_std(StdTcpStream::from(socket)))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ListenSocket {
    pub(crate) fn bind(at: &Address, options: &ListenOptions) -> io::Result<ListenSocket> {
        let (address, domain, protocol) = socket_address(at)?;
        let socket = new_socket(domain, protocol)?;
        let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
        if protocol.is_none() {
            bind_unix(&socket, &address, at)?;
            socket.listen(backlog)?;
            let place = SocketFile::of(at)?;
            return Ok(ListenSocket::Unix(UnixListener::from_std(socket.into()), place));
        }
        // On Unix, SO_REUSEADDR lets a restarted server bind its port while old connections are in TIME_WAIT. It does
        // not let two servers listen on one port.
        socket.set_reuse_address(true)?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if let (Domain::IPV6, Some(only)) = (domain, options.ipv6_only) {
            socket.set_only_v6(only)?;
        }
        socket.bind(&address)?;
        // Not by mio's `bind`, which sets a backlog of its own.
        socket.listen(backlog)?;
        Ok(ListenSocket::Tcp(TcpListener::from_std(socket.into())))
    }

    /// Sets the options that accepted sockets inherit (on Linux and the BSDs). That saves three system calls per
    /// connection.
    pub(crate) fn set_inherited_options(&self, options: &ListenOptions) -> io::Result<()> {
        if let ListenSocket::Tcp(listener) = self {
            let socket = SockRef::from(listener);
            socket.set_tcp_nodelay(options.nodelay)?;
            limit_unsent(&socket, options.unsent)?;
            if let Some(keep_alive) = options.keep_alive {
                socket.set_tcp_keepalive(&keepalive_probes(keep_alive))?;
            }
        }
        Ok(())
    }

    pub(crate) fn accept(&self) -> io::Result<(Stream, PeerAddress)> {
        match self {
            ListenSocket::Tcp(listener) => {
                listener.accept().map(|(stream, peer)| (Stream(stream), PeerAddress::from(peer)))
            }
            ListenSocket::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                Ok((Stream::from(OwnedFd::from(StdUnixStream::from(stream))), PeerAddress::UNIX))
            }
            ListenSocket::Handed(handed) => handed.pop().ok_or_else(|| io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(crate) fn address(&self) -> io::Result<Address> {
        match self {
            ListenSocket::Tcp(listener) => listener.local_addr().map(Address::Inet),
            ListenSocket::Unix(listener, _) => {
                let address = listener.local_addr()?;
                Ok(address.as_pathname().map_or_else(|| abstract_name(&address), Address::from))
            }
            ListenSocket::Handed(_) => Ok(Address::Unnamed),
        }
    }

    /// Another descriptor of the same socket.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        match self {
            ListenSocket::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            ListenSocket::Unix(listener, _) => listener.as_fd().try_clone_to_owned(),
            ListenSocket::Handed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// What the poll watches.
    pub(super) fn source(&mut self) -> Option<&mut dyn Source> {
        match self {
            ListenSocket::Tcp(listener) => Some(listener),
            ListenSocket::Unix(listener, _) => Some(listener),
            ListenSocket::Handed(_) => None,
        }
    }
}

#[cfg(target_os = "linux")]
fn limit_unsent(socket: &Socket, unsent: Option<u32>) -> io::Result<()> {
    unsent.map_or(Ok(()), |bytes| socket.set_tcp_notsent_lowat(bytes))
}

#[cfg(not(target_os = "linux"))]
fn limit_unsent(_: &Socket, _: Option<u32>) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
pub(super) fn set_user_timeout(socket: &SockRef<'_>, span: Option<Duration>) -> io::Result<()> {
    socket.set_tcp_user_timeout(span)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn set_user_timeout(_: &SockRef<'_>, _: Option<Duration>) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has TCP_USER_TIMEOUT"))
}

#[cfg(target_os = "linux")]
fn abstract_name(address: &std::os::unix::net::SocketAddr) -> Address {
    use std::os::linux::net::SocketAddrExt;
    let name = address.as_abstract_name();
    name.map_or(Address::Unnamed, |name| Address::Abstract(String::from_utf8_lossy(name).into()))
}

#[cfg(not(target_os = "linux"))]
fn abstract_name(_: &std::os::unix::net::SocketAddr) -> Address {
    Address::Unnamed
}

/// A socket that is non-blocking and close-on-exec from its creation: that saves two system calls.
#[cfg(target_os = "linux")]
fn new_socket(domain: Domain, protocol: Option<Protocol>) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking(), protocol)
}

#[cfg(not(target_os = "linux"))]
fn new_socket(domain: Domain, protocol: Option<Protocol>) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, protocol)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The address in the form of the system, with the domain and protocol of its socket.
fn socket_address(address: &Address) -> io::Result<(SockAddr, Domain, Option<Protocol>)> {
    let unusable = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{address}: {why}"));
    match address {
        Address::Inet(inet) => Ok(((*inet).into(), Domain::for_address(*inet), Some(Protocol::TCP))),
        Address::Unix(path) => {
            let long = |_| unusable("the path is too long for a Unix-domain socket");
            Ok((SockAddr::unix(path).map_err(long)?, Domain::UNIX, None))
        }
        Address::Abstract(name) if cfg!(target_os = "linux") => {
            let long = |_| unusable("the name is too long");
            Ok((SockAddr::unix(format!("\0{name}")).map_err(long)?, Domain::UNIX, None))
        }
        Address::Abstract(_) => Err(unusable("only Linux has abstract names")),
        Address::Name { .. } => Err(unusable("the name has not been looked up")),
        Address::Unnamed => Err(unusable("a Unix-domain address without a path")),
    }
}

/// The file of a Unix-domain socket that this process listens on. Removed on drop, unless another socket has replaced
/// it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(at: &Address) -> io::Result<Option<SocketFile>> {
        let Address::Unix(path) = at else { return Ok(None) };
        let file = fs::symlink_metadata(path)?;
        // A relative path would mean another file after a change of directory.
        let path = std::path::absolute(path)?;
        Ok(Some(SocketFile { path, device: file.dev(), inode: file.ino() }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| file.dev() == self.device && file.ino() == self.inode);
        if ours {
            // An error means that the file was just removed or may not be removed; neither can be handled here.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds, and first removes a stale socket file: one on which no process listens.
///
/// If two servers start at the same time, both can find the same file stale; then the one that binds later gets the
/// path. There is no lock against that.
fn bind_unix(socket: &Socket, address: &SockAddr, at: &Address) -> io::Result<()> {
    match (socket.bind(address), at) {
        (Err(error), Address::Unix(path)) if error.kind() == io::ErrorKind::AddrInUse => {
            if !is_stale(path, address)? {
                return Err(error);
            }
            log::info!("{at}: replacing a stale socket file");
            fs::remove_file(path)?;
            socket.bind(address)
        }
        (bound, _) => bound,
    }
}

/// Whether no process listens on the socket at a path. A file that is not a socket is an error, and is not removed.
fn is_stale(path: &Path, address: &SockAddr) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is not a socket exists at this path",
        ));
    }
    // Non-blocking: if the backlog of a listener is full, connect fails with EAGAIN, so the file is not stale.
    let probe = new_socket(Domain::UNIX, None)?;
    Ok(probe.connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

pub(super) fn keepalive_probes(keep_alive: KeepAlive) -> TcpKeepalive {
    // The kernel counts in seconds, and does not accept zero.
    let seconds = |span: Duration| Duration::from_secs(span.as_secs().max(1));
    let mut probes = TcpKeepalive::new().with_time(seconds(keep_alive.idle));
    if let Some(interval) = keep_alive.interval {
        probes = probes.with_interval(seconds(interval));
    }
    match keep_alive.count {
        Some(count) => probes.with_retries(count),
        None => probes,
    }
}

impl From<io::Error> for AcceptError {
    fn from(error: io::Error) -> AcceptError {
        if error.kind() == io::ErrorKind::WouldBlock {
            return AcceptError::Empty;
        }
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => AcceptError::NoDescriptor,
            Some(libc::ENOBUFS | libc::ENOMEM) => AcceptError::NoMemory,
            // macOS returns EINVAL for a connection that was reset before it was accepted.
            Some(libc::EINVAL) if cfg!(target_vendor = "apple") => AcceptError::PeerGone,
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EFAULT) => AcceptError::Broken(error),
            _ => AcceptError::PeerGone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_accept_has_one_meaning() {
        let of = |errno| AcceptError::from(io::Error::from_raw_os_error(errno));
        assert!(matches!(of(libc::EAGAIN), AcceptError::Empty));
        for errno in
            [libc::ECONNABORTED, libc::EINTR, libc::EPROTO, libc::ENETDOWN, libc::EPERM, libc::ETIMEDOUT]
        {
            assert!(matches!(of(errno), AcceptError::PeerGone), "errno {errno}");
        }
        for errno in [libc::EMFILE, libc::ENFILE] {
            assert!(matches!(of(errno), AcceptError::NoDescriptor), "errno {errno}");
        }
        for errno in [libc::ENOBUFS, libc::ENOMEM] {
            assert!(matches!(of(errno), AcceptError::NoMemory), "errno {errno}");
        }
        for errno in [libc::EBADF, libc::ENOTSOCK] {
            assert!(matches!(of(errno), AcceptError::Broken(_)), "errno {errno}");
        }
    }
}
