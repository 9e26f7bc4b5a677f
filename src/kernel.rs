//! The real world: [`System`] on mio, which is epoll on Linux and kqueue on the BSDs and macOS.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::id::Token;
use crate::listener::ListenOptions;
use crate::system::{Ready, System, Waker};

/// The kernel, seen through mio.
pub(crate) struct Kernel {
    poll: Poll,
    events: Events,
    started: Instant,
    reserve: Option<File>,
}

impl Kernel {
    /// `events` is how many are taken from the kernel at once.
    pub(crate) fn new(events: usize) -> io::Result<Kernel> {
        let poll = Poll::new()?;
        Ok(Kernel {
            poll,
            events: Events::with_capacity(events.max(1)),
            started: Instant::now(),
            reserve: None,
        })
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}

impl System for Kernel {
    type Listener = TcpListener;
    type Stream = TcpStream;

    fn started(&self) -> Instant {
        self.started
    }

    fn now(&mut self) -> Duration {
        self.started.elapsed()
    }

    fn poll(&mut self, ready: &mut Vec<Ready>, wait: Option<Duration>) -> io::Result<()> {
        // mio rounds up to the next millisecond, so a deadline is never polled for in vain; an hour keeps the
        // number of milliseconds far from where casts to int have overflowed.
        let wait = wait.map(|wait| wait.min(Duration::from_secs(3_600)));
        match self.poll.poll(&mut self.events, wait) {
            Ok(()) => {}
            // A signal was handled. An empty turn is the right answer to it.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        ready.extend(self.events.iter().map(|event| Ready {
            token: Token(event.token().0 as u64),
            readable: event.is_readable(),
            writable: event.is_writable(),
            end: event.is_read_closed() || event.is_write_closed() || event.is_error(),
        }));
        Ok(())
    }

    fn listen(&mut self, at: SocketAddr, options: &ListenOptions, token: Token) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        // On Unix this lets a restarted server have its port back while old connections are in TIME_WAIT, no more.
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit both (on Linux and the BSDs), which saves two calls for each of them.
        socket.set_tcp_nodelay(options.nodelay)?;
        if let Some(idle) = options.keep_alive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        socket.bind(&at.into())?;
        // mio's own bind would set the backlog to 128.
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        let mut listener = TcpListener::from_std(StdListener::from(socket));
        self.poll.registry().register(&mut listener, mio_token(token), Interest::READABLE)?;
        Ok(listener)
    }

    fn local_addr(&self, listener: &TcpListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
        listener.accept()
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn connected(&mut self, stream: &TcpStream) -> io::Result<bool> {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        let peer = match stream.peer_addr() {
            Ok(peer) => peer,
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(error),
        };
        // Dialing a closed port of the ephemeral range can, by TCP's simultaneous open, connect a socket to itself.
        if peer == stream.local_addr()? {
            return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        }
        Ok(true)
    }

    fn register(&mut self, stream: &mut TcpStream, token: Token) -> io::Result<()> {
        self.poll.registry().register(stream, mio_token(token), Interest::READABLE | Interest::WRITABLE)
    }

    fn read(&mut self, mut stream: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        stream.read(into)
    }

    fn write(&mut self, mut stream: &TcpStream, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match from {
            // send(2) is a little cheaper than writev(2) with one slice.
            [slice] => stream.write(slice),
            slices => stream.write_vectored(slices),
        }
    }

    fn finish(&mut self, stream: &TcpStream) -> io::Result<()> {
        stream.shutdown(std::net::Shutdown::Write)
    }

    fn reset(&mut self, stream: TcpStream) {
        // The one use of SO_LINGER: zero means "reset at close". Any other value would block the loop in close(2).
        if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
            log::debug!("cannot ask for a reset, closing instead: {error}");
        }
    }

    fn hold_reserve(&mut self) -> bool {
        if self.reserve.is_none() {
            self.reserve = File::open("/").ok();
        }
        self.reserve.is_some()
    }

    fn release_reserve(&mut self) -> bool {
        self.reserve.take().is_some()
    }

    fn waker(&mut self) -> io::Result<Waker> {
        let waker = Arc::new(mio::Waker::new(self.poll.registry(), mio_token(Token::WAKE))?);
        Ok(Box::new(move || waker.wake()))
    }
}

/// Tokens are 64 bits wide, as mio's are on the machines this crate is for.
fn mio_token(token: Token) -> mio::Token {
    const {
        assert!(
            size_of::<usize>() == 8,
            "tidemill needs a 64-bit machine: a token holds a slot and a generation"
        )
    };
    mio::Token(token.0 as usize)
}
