//! Descriptors that are not connections: a UDP socket, inotify, a pipe of a child, a signalfd.
//!
//! Read before: `connection/table.rs`. `event_loop/watch.rs` calls `ready`.

#[cfg(not(target_family = "wasm"))]
use std::io;
#[cfg(not(target_family = "wasm"))]
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::base::id::{Interest, WatchId};
#[cfg(not(target_family = "wasm"))]
use crate::base::id::{ServiceId, Token};
#[cfg(not(target_family = "wasm"))]
use crate::connection::sockets::Sockets;
use crate::sys::Watched;

/// All watched descriptors of a reactor, by index. An index is used again; the generation in the id tells.
#[derive(Default)]
pub(crate) struct Watches {
    all: Vec<Option<WatchEntry>>,
    generation: u64,
    /// Those whose event has come in this turn.
    pub(crate) ready: Vec<WatchId>,
}

pub(crate) struct WatchEntry {
    id: WatchId,
    pub(crate) service: u16,
    pub(crate) interest: Interest,
    pub(crate) descriptor: Watched,
}

impl Watches {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.iter().all(Option::is_none)
    }

    pub(crate) fn get(&self, id: WatchId) -> Option<&WatchEntry> {
        self.all.get(id.index as usize)?.as_ref().filter(|watch| watch.id == id)
    }

    fn get_mut(&mut self, id: WatchId) -> Option<&mut WatchEntry> {
        self.all.get_mut(id.index as usize)?.as_mut().filter(|watch| watch.id == id)
    }

    pub(crate) fn take(&mut self, id: WatchId) -> Option<WatchEntry> {
        self.all.get_mut(id.index as usize)?.take_if(|watch| watch.id == id)
    }

    pub(crate) fn on_event(&mut self, index: usize) {
        if let Some(Some(watch)) = self.all.get(index) {
            self.ready.push(watch.id);
        }
    }
}

/// Descriptors that are not connections.
#[cfg(not(target_family = "wasm"))]
impl Sockets<'_> {
    /// Watches a descriptor: [`Service::ready`](crate::Service::ready) of `service` is called when it can be read, or
    /// has ended or failed. For what a network service has besides connections: a UDP socket, inotify, a pipe of a
    /// child, a signalfd or the reading end of a self-pipe.
    ///
    /// It is level-triggered: `ready` is called in each turn while there is something to read, so a service may read
    /// less than all, and must read something, or [`unwatch`](Sockets::unwatch). Each call costs one system call.
    /// The descriptor must be non-blocking, or be read once for each call. A descriptor of a file on disk is refused by
    /// Linux (EPERM): it can always be read.
    ///
    /// While a descriptor is watched, [`run`](crate::Reactor::run) does not return, until a shutdown has begun.
    ///
    /// ```
    /// use std::net::UdpSocket;
    /// use tidemill::{Input, Limits, Reactor, Service, ServiceId, ServiceSockets, Socket, Sockets, WatchId};
    ///
    /// /// Sends datagrams back.
    /// struct UdpEcho { udp: UdpSocket }
    ///
    /// impl Service for UdpEcho {
    ///     type Session = ();
    ///     fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
    ///         self.udp.set_nonblocking(true).unwrap();
    ///         sockets.watch(self.udp.try_clone().unwrap(), own).unwrap();
    ///     }
    ///     fn ready(&mut self, _: WatchId, _: &mut ServiceSockets<'_, UdpEcho>) {
    ///         let mut datagram = [0; 1_500];
    ///         // One of them: what is left is told again in the next turn.
    ///         if let Ok((length, peer)) = self.udp.recv_from(&mut datagram) {
    ///             let _ = self.udp.send_to(&datagram[..length], peer); // UDP may lose it anywhere.
    ///         }
    ///     }
    ///     fn open(&mut self, _: &mut Socket<'_>) {}
    ///     fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}
    /// }
    ///
    /// let udp = UdpSocket::bind("127.0.0.1:0")?;
    /// let (to, client) = (udp.local_addr()?, UdpSocket::bind("127.0.0.1:0")?);
    /// let mut reactor = Reactor::new(Limits::default())?;
    /// reactor.add(UdpEcho { udp });
    /// client.send_to(b"hello", to)?;
    /// reactor.turn(None)?;
    /// let mut answer = [0; 5];
    /// client.recv(&mut answer)?;
    /// assert_eq!(&answer, b"hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the service is of another reactor, `Other` if
    /// [`Limits::watched`](crate::Limits::watched) are watched already, and what the system says: `PermissionDenied`
    /// for a file on disk, `AlreadyExists` if this descriptor is watched already. It is closed then.
    pub fn watch(
        &mut self,
        descriptor: impl Into<OwnedFd>,
        service: impl Into<ServiceId>,
    ) -> io::Result<WatchId> {
        self.watch_with(descriptor, service, Interest::Readable)
    }

    /// Watches a descriptor for what `interest` says: see [`watch`](Sockets::watch). A descriptor can be written to
    /// nearly always, and [`ready`](crate::Service::ready) would be called in each turn. So ask for that by
    /// [`set_interest`](Sockets::set_interest) when a write would block, and no longer once everything is written.
    /// `ready` does not say which of both it is: a non-blocking read or write does.
    ///
    /// ```
    /// use std::io::{ErrorKind, Write};
    /// use std::process::ChildStdin;
    /// use tidemill::{Input, Interest, Service, ServiceSockets, Socket, WatchId};
    ///
    /// /// Gives what comes from connections to a child, which may read slowly. Its pipe is non-blocking and watched.
    /// struct Recorder { pipe: ChildStdin, watch: WatchId, queued: Vec<u8> }
    ///
    /// impl Service for Recorder {
    ///     type Session = ();
    ///     fn open(&mut self, _: &mut Socket<'_>) {}
    ///     fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         self.queued.extend(input.take_all());
    ///         socket.all().set_interest(self.watch, Interest::Writable).unwrap();
    ///         if self.queued.len() > 1 << 20 {
    ///             socket.close();
    ///         }
    ///     }
    ///     fn ready(&mut self, watch: WatchId, sockets: &mut ServiceSockets<'_, Recorder>) {
    ///         match self.pipe.write(&self.queued) {
    ///             Ok(written) => drop(self.queued.drain(..written)),
    ///             Err(error) if error.kind() == ErrorKind::WouldBlock => {}
    ///             Err(_) => drop(sockets.unwatch(watch)), // Its reader has gone.
    ///         }
    ///         if self.queued.is_empty() {
    ///             let _ = sockets.set_interest(watch, Interest::Readable); // Now only its reader's end is told.
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`watch`](Sockets::watch).
    pub fn watch_with(
        &mut self,
        descriptor: impl Into<OwnedFd>,
        service: impl Into<ServiceId>,
        interest: Interest,
    ) -> io::Result<WatchId> {
        let table = self.table();
        let Some(service) = table.number_of(service.into()) else {
            let why = "cannot watch a descriptor: the service is of another reactor";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        let watched = &mut table.watched;
        let index = watched.all.iter().position(Option::is_none).unwrap_or(watched.all.len());
        if index >= table.cx.limits.watched {
            let why = format!("cannot watch a descriptor: there are {index} already (raise Limits::watched)");
            return Err(io::Error::other(why));
        }
        let descriptor = Watched::Kernel(descriptor.into());
        table.registrar.watch(&descriptor, Token::watch(index), interest, false)?;
        watched.generation += 1;
        let id = WatchId { reactor: table.reactor, index: index as u32, generation: watched.generation };
        let watch = Some(WatchEntry { id, service, interest, descriptor });
        match watched.all.get_mut(index) {
            Some(gap) => *gap = watch,
            None => watched.all.push(watch),
        }
        Ok(id)
    }

    /// Changes what a descriptor is watched for.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if it is no longer watched.
    pub fn set_interest(&mut self, watch: WatchId, interest: Interest) -> io::Result<()> {
        let table = self.table();
        let entry = table.watched.get_mut(watch).ok_or(io::ErrorKind::NotFound)?;
        entry.interest = interest;
        table.registrar.watch(&entry.descriptor, Token::watch(watch.index as usize), interest, true)
    }

    /// The descriptor of a watch, to read from. `None` once it is no longer watched.
    pub fn watched(&self, watch: WatchId) -> Option<BorrowedFd<'_>> {
        let Watched::Kernel(descriptor) = &self.table_ref().watched.get(watch)?.descriptor;
        Some(descriptor.as_fd())
    }

    /// Ends a [`watch`](Sockets::watch), and gives the descriptor back. `None` if it was no longer watched.
    pub fn unwatch(&mut self, watch: WatchId) -> Option<OwnedFd> {
        let table = self.table();
        let Watched::Kernel(descriptor) = table.take_watched(watch)?;
        Some(descriptor)
    }
}

impl super::table::Table {
    /// Ends a watch. Its registration ends, too, because other descriptors of the same file may stay open.
    pub(crate) fn take_watched(&mut self, id: WatchId) -> Option<Watched> {
        let watch = self.watched.take(id)?;
        if let Err(error) = self.registrar.unwatch(&watch.descriptor) {
            log::debug!("{id:?}: {error}");
        }
        Some(watch.descriptor)
    }
}
