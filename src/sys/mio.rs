//! [`System`] on the real kernel, by mio: epoll on Linux, kqueue on the BSDs and macOS (type-checked, not run there).

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::sync::Arc;
use std::time::Duration;

use mio::net::{TcpListener, UnixListener};
use mio::unix::SourceFd;
use mio::{Events, Poll, Registry};
use socket2::SockRef;

use super::handed_over::HandedOver;
use super::splice::KernelPipe;
use super::stream::{self, keepalive_probes, set_user_timeout};
use super::timerfd::DeadlineTimer;
use crate::base::address::{Address, PeerAddress};
use crate::base::id::{Interest, Token};
use crate::base::leaving::Leaving;
use crate::base::tick::Tick;
use crate::config::dial::{DialOptions, SocketOption};
use crate::config::listen::ListenOptions;
use crate::sys::resolver::{LookUp, Resolver};
use crate::sys::{
    AcceptError, Answer, Connecting, Epoch, ListenSocket, Ready, Registrar, Stream, System, Waker, Watched,
};

/// The real kernel.
pub(crate) struct Kernel {
    poll: Poll,
    events: Events,
    timer: Option<DeadlineTimer>,
    epoch: Epoch,
    spare_descriptor: Option<File>,
    wake: Arc<mio::Waker>,
    /// Made by the first look-up.
    resolver: Option<Resolver>,
}

/// A listener made elsewhere: see [`Reactor::adopt`](crate::Reactor::adopt).
#[derive(Debug)]
pub struct Adopted(stream::ListenSocket);

impl From<StdTcpListener> for Adopted {
    fn from(listener: StdTcpListener) -> Adopted {
        Adopted(stream::ListenSocket::Tcp(TcpListener::from_std(listener)))
    }
}

impl From<StdUnixListener> for Adopted {
    /// The file of the socket is not removed: its creator is responsible for it.
    fn from(listener: StdUnixListener) -> Adopted {
        Adopted(stream::ListenSocket::Unix(UnixListener::from_std(listener), None))
    }
}

impl Kernel {
    /// `events`: how many events one poll returns at most.
    pub(crate) fn new(events: usize) -> io::Result<Kernel> {
        let poll = Poll::new()?;
        // mio allows one waker per poll; posts and resolved names share it.
        let wake = Arc::new(mio::Waker::new(poll.registry(), mio_token(Token::WAKE))?);
        let alarm = DeadlineTimer::new(poll.registry(), mio_token(Token::TIMER));
        Ok(Kernel {
            poll,
            events: Events::with_capacity(events.max(1)),
            timer: alarm,
            epoch: Epoch::from_now(),
            spare_descriptor: None,
            wake,
            resolver: None,
        })
    }

    /// Makes the descriptor of the poll readable at a time; at once, if it has passed. Error `Unsupported` without a
    /// timer descriptor.
    pub(crate) fn announce(&mut self, at: Duration) -> io::Result<()> {
        let epoch = self.epoch;
        if at <= epoch.elapsed() {
            return self.wake.wake();
        }
        let timer = self.timer.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        timer.arm_by(Tick::at(at), || epoch.elapsed())
    }

    pub(crate) fn has_timer(&self) -> bool {
        self.timer.is_some()
    }

    /// Replaces the system's resolver.
    pub(crate) fn look_up_with(&mut self, look_up: LookUp) {
        self.resolver().set_look_up(look_up);
    }

    fn resolver(&mut self) -> &mut Resolver {
        let wake = &self.wake;
        self.resolver.get_or_insert_with(|| {
            let wake = wake.clone();
            Resolver::new(Box::new(move || wake.wake()))
        })
    }
}

/// A connected stream made elsewhere: see [`Sockets::adopt_stream`](crate::Sockets::adopt_stream).
#[derive(Debug)]
pub struct AdoptedStream {
    stream: stream::Stream,
    is_client: bool,
}

impl From<StdTcpStream> for AdoptedStream {
    fn from(stream: StdTcpStream) -> AdoptedStream {
        AdoptedStream { stream: stream::Stream::from(OwnedFd::from(stream)), is_client: false }
    }
}

impl From<StdUnixStream> for AdoptedStream {
    /// One end of [`UnixStream::pair`](StdUnixStream::pair), for example.
    fn from(stream: StdUnixStream) -> AdoptedStream {
        AdoptedStream { stream: stream::Stream::from(OwnedFd::from(stream)), is_client: false }
    }
}

impl AdoptedStream {
    /// Makes this side the client of the connection. It decides which side of TLS
    /// [`start_filter`](crate::Socket::start_filter) is, and [`first_byte`](crate::SocketLimits::first_byte) does not
    /// apply to a client. Without this it is the server.
    pub fn as_client(self) -> AdoptedStream {
        AdoptedStream { is_client: true, ..self }
    }

    /// Makes the stream non-blocking; returns also its peer, its local address, and whether this side is the client.
    pub(crate) fn prepare(self) -> io::Result<(Stream, PeerAddress, Option<SocketAddr>, bool)> {
        let AdoptedStream { stream, is_client } = self;
        let peer = stream.peer()?.map_or(PeerAddress::UNIX, PeerAddress::from);
        SockRef::from(&stream).set_nonblocking(true)?;
        let local = stream.local()?;
        Ok((Stream::Kernel(stream), peer, local, is_client))
    }
}

impl Adopted {
    pub(crate) fn bind(at: &Address, options: &ListenOptions) -> io::Result<Adopted> {
        stream::ListenSocket::bind(at, options).map(Adopted)
    }

    /// A listener without a socket: another thread accepts for it.
    pub(crate) fn handed(over: HandedOver, address: Address) -> (ListenSocket, Address) {
        (ListenSocket::Kernel(stream::ListenSocket::Handed(over)), address)
    }

    /// The socket itself, ready to accept, and its address.
    pub(crate) fn into_socket(self, options: &ListenOptions) -> io::Result<(stream::ListenSocket, Address)> {
        let (socket, address) = self.prepare(options)?;
        match socket {
            ListenSocket::Kernel(socket) => Ok((socket, address)),
            #[cfg(any(test, feature = "testing"))]
            ListenSocket::Simulated(_) => unreachable!("it was made from a kernel's"),
        }
    }

    /// The address of the listener. [`Address::Unnamed`] if the system does not tell it.
    pub(crate) fn address(&self) -> Address {
        self.0.address().unwrap_or(Address::Unnamed)
    }

    /// Makes the listener ready to be registered.
    pub(crate) fn prepare(self, options: &ListenOptions) -> io::Result<(ListenSocket, Address)> {
        let Adopted(listener) = self;
        match &listener {
            stream::ListenSocket::Tcp(listener) => SockRef::from(listener).set_nonblocking(true)?,
            stream::ListenSocket::Unix(listener, _) => SockRef::from(listener).set_nonblocking(true)?,
            stream::ListenSocket::Handed(_) => {}
        }
        bound(listener, options)
    }
}

fn bound(listener: stream::ListenSocket, options: &ListenOptions) -> io::Result<(ListenSocket, Address)> {
    listener.set_inherited_options(options)?;
    let address = listener.address()?;
    Ok((ListenSocket::Kernel(listener), address))
}

/// Another descriptor of the same poll.
struct KernelRegistrar(Registry);

impl Registrar for KernelRegistrar {
    fn bind(&self, at: &Address, options: &ListenOptions) -> io::Result<(ListenSocket, Address)> {
        bound(stream::ListenSocket::bind(at, options)?, options)
    }

    fn register(&self, listener: &mut ListenSocket, token: Token) -> io::Result<()> {
        let source = listener.kernel_mut().source();
        source.map_or(Ok(()), |source| self.0.register(source, mio_token(token), mio::Interest::READABLE))
    }

    fn watch(&self, descriptor: &Watched, token: Token, interest: Interest, again: bool) -> io::Result<()> {
        let Watched::Kernel(descriptor) = descriptor;
        let (descriptor, token) = (descriptor.as_raw_fd(), mio_token(token));
        let interest = match interest {
            Interest::Readable => mio::Interest::READABLE,
            Interest::Writable => mio::Interest::WRITABLE,
            Interest::Both => mio::Interest::READABLE | mio::Interest::WRITABLE,
        };
        match again {
            // mio is edge-triggered. Setting the registration again has the kernel look at the descriptor again.
            true => self.0.reregister(&mut SourceFd(&descriptor), token, interest),
            false => self.0.register(&mut SourceFd(&descriptor), token, interest),
        }
    }

    fn unwatch(&self, descriptor: &Watched) -> io::Result<()> {
        let Watched::Kernel(descriptor) = descriptor;
        self.0.deregister(&mut SourceFd(&descriptor.as_raw_fd()))
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}

impl System for Kernel {
    type KernelPipe = KernelPipe;

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn now(&mut self) -> Duration {
        self.epoch.elapsed()
    }

    fn poll(
        &mut self,
        ready: &mut Vec<Ready>,
        wait: Option<Duration>,
        until: Option<Tick>,
    ) -> io::Result<()> {
        let epoch = self.epoch;
        let wait = match (&mut self.timer, until) {
            (Some(alarm), Some(until)) if wait != Some(Duration::ZERO) => {
                alarm.arm_by(until, || epoch.elapsed())?;
                wait
            }
            (None, Some(until)) => {
                let left = until.since_start().saturating_sub(epoch.elapsed());
                Some(wait.unwrap_or(Duration::MAX).min(left))
            }
            _ => wait,
        };
        // mio rounds up to the next millisecond, so a poll never ends just before its deadline. At most an hour,
        // because the kernel takes the milliseconds as a C int.
        let wait = wait.map(|wait| wait.min(Duration::from_secs(3_600)));
        match self.poll.poll(&mut self.events, wait) {
            Ok(()) => {}
            // A signal was handled: return without events.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in &self.events {
            let token = Token(event.token().0 as u64);
            if let (Token::TIMER, Some(alarm)) = (token, &mut self.timer) {
                alarm.on_fired();
                continue;
            }
            ready.push(Ready {
                token,
                readable: event.is_readable(),
                writable: event.is_writable(),
                end: event.is_read_closed() || event.is_write_closed() || event.is_error(),
                error: event.is_error(),
                priority: event.is_priority(),
            });
        }
        Ok(())
    }

    fn registrar(&self) -> io::Result<Box<dyn Registrar>> {
        Ok(Box::new(KernelRegistrar(self.poll.registry().try_clone()?)))
    }

    fn accept(&mut self, listener: &ListenSocket) -> Result<(Stream, PeerAddress), AcceptError> {
        let (stream, peer) = listener.kernel().accept()?;
        Ok((Stream::Kernel(stream), peer))
    }

    fn connect(&mut self, to: &Address, options: &DialOptions) -> io::Result<Stream> {
        stream::Stream::connect(to, options).map(Stream::Kernel)
    }

    fn check_connected(&mut self, stream: &Stream) -> io::Result<Connecting> {
        let stream = stream.kernel();
        let peer = match stream.peer() {
            Ok(peer) => peer,
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                return stream.take_error()?.map_or(Ok(Connecting::InProgress), Err);
            }
            Err(error) => return Err(error),
        };
        let local = stream.local()?;
        // A dial of a local port in the ephemeral range can, by TCP's simultaneous open, connect a socket to itself.
        // That counts as refused: no server listens there.
        if peer.is_some() && peer == local {
            return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        }
        Ok(Connecting::Connected { local })
    }

    fn local_address(&self, stream: &Stream) -> Option<SocketAddr> {
        stream.kernel().local().ok().flatten()
    }

    fn peer_left(&mut self, stream: &Stream) -> Option<Leaving> {
        stream.kernel().peer_left()
    }

    fn set_option(&mut self, stream: &Stream, option: SocketOption) -> io::Result<()> {
        let stream = stream.kernel();
        let socket = SockRef::from(stream);
        let Some(local) = stream.local()? else {
            return match option {
                SocketOption::SendBuffer(bytes) => socket.set_send_buffer_size(bytes),
                SocketOption::RecvBuffer(bytes) => socket.set_recv_buffer_size(bytes),
                // The other options are for TCP only; ignored on a Unix-domain socket.
                _ => Ok(()),
            };
        };
        match option {
            SocketOption::SendBuffer(bytes) => socket.set_send_buffer_size(bytes),
            SocketOption::RecvBuffer(bytes) => socket.set_recv_buffer_size(bytes),
            SocketOption::NoDelay(on) => socket.set_tcp_nodelay(on),
            SocketOption::KeepAlive(Some(keep_alive)) => {
                socket.set_tcp_keepalive(&keepalive_probes(keep_alive))
            }
            SocketOption::KeepAlive(None) => socket.set_keepalive(false),
            SocketOption::UserTimeout(span) => set_user_timeout(&socket, span),
            SocketOption::Tos(tos) if local.is_ipv4() => socket.set_tos_v4(u32::from(tos)),
            SocketOption::Tos(tos) => socket.set_tclass_v6(u32::from(tos)),
        }
    }

    fn register(&mut self, stream: &mut Stream, token: Token) -> io::Result<()> {
        self.poll.registry().register(stream.kernel_mut().source(), mio_token(token), interests())
    }

    fn read(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<usize> {
        stream.kernel().read(into)
    }

    fn write(&mut self, stream: &Stream, from: &[IoSlice<'_>]) -> io::Result<usize> {
        stream.kernel().write(from)
    }

    #[cfg(target_os = "linux")]
    fn send_file(&mut self, file: &File, start: u64, to: &Stream, max: usize) -> io::Result<usize> {
        super::splice::send_file(file, start, to.kernel(), max)
    }

    fn new_pipe(&mut self) -> io::Result<KernelPipe> {
        KernelPipe::new()
    }

    fn splice_in(&mut self, from: &Stream, pipe: &KernelPipe, max: usize) -> io::Result<usize> {
        pipe.splice_in(from.kernel(), max)
    }

    fn splice_out(&mut self, pipe: &KernelPipe, to: &Stream, max: usize) -> io::Result<usize> {
        pipe.splice_out(to.kernel(), max)
    }

    fn read_pipe(&mut self, pipe: &KernelPipe, into: &mut [u8]) -> io::Result<usize> {
        pipe.read(into)
    }

    fn shutdown_write(&mut self, stream: &Stream) -> io::Result<()> {
        stream.kernel().shutdown_write()
    }

    fn reset(&mut self, stream: Stream) {
        // SO_LINGER with zero makes close(2) send a reset. Any other value could block the loop in close(2).
        if let Err(error) = SockRef::from(stream.kernel()).set_linger(Some(Duration::ZERO)) {
            log::debug!("cannot ask for a reset, closing instead: {error}");
        }
    }

    fn reserve_descriptor(&mut self) -> bool {
        if self.spare_descriptor.is_none() {
            self.spare_descriptor = File::open("/").ok();
        }
        self.spare_descriptor.is_some()
    }

    fn release_descriptor(&mut self) -> bool {
        self.spare_descriptor.take().is_some()
    }

    fn look_up(&mut self, number: u64, host: &str, port: u16) {
        self.resolver().look_up(number, host, port);
    }

    fn cancel_look_up(&mut self, number: u64) -> bool {
        self.resolver.as_mut().is_some_and(|resolver| resolver.cancel(number))
    }

    fn next_answer(&mut self) -> Option<Answer> {
        self.resolver.as_mut()?.next_answer()
    }

    fn seed(&mut self) -> u64 {
        // The keys of `RandomState` are the only randomness that the standard library offers.
        RandomState::new().hash_one(0)
    }

    fn waker(&mut self) -> io::Result<Waker> {
        let wake = self.wake.clone();
        Ok(Box::new(move || wake.wake()))
    }
}

/// The events that a stream is registered for. Urgent data is among them, because a read ends at the urgent mark.
#[cfg(target_os = "linux")]
fn interests() -> mio::Interest {
    mio::Interest::READABLE | mio::Interest::WRITABLE | mio::Interest::PRIORITY
}

#[cfg(not(target_os = "linux"))]
fn interests() -> mio::Interest {
    mio::Interest::READABLE | mio::Interest::WRITABLE
}

/// Tokens have 64 bits; those of mio are of type `usize`.
fn mio_token(token: Token) -> mio::Token {
    const {
        assert!(
            size_of::<usize>() == 8,
            "tidemill needs a 64-bit target: a token holds a slot and a generation"
        )
    };
    mio::Token(token.0 as usize)
}
