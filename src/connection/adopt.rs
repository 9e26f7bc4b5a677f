//! Connected streams that were made elsewhere.
//!
//! Read before: `connection/table.rs`. `event_loop/accept.rs` registers them and calls `open`.

#[cfg(not(target_family = "wasm"))]
use crate::base::address::PeerAddress;
#[cfg(not(target_family = "wasm"))]
use crate::base::id::{ConnId, ServiceId};
#[cfg(not(target_family = "wasm"))]
use crate::base::setup_error::AdoptError;
#[cfg(not(target_family = "wasm"))]
use crate::connection::sockets::Sockets;
#[cfg(not(target_family = "wasm"))]
use crate::connection::state::{Flag, Stage};
#[cfg(not(target_family = "wasm"))]
use crate::sys::mio::AdoptedStream;

/// The [place](super::Connection::place) of an adopted connection.
pub(crate) const ADOPTED: u8 = u8::MAX - 1;

#[cfg(not(target_family = "wasm"))]
impl Sockets<'_> {
    /// Adopts a connected stream, TCP or Unix-domain: a connection that was accepted by another thread or process, the
    /// standard input of a service that inetd or systemd (`Accept=yes`) has started, one end of a socket pair.
    /// [`Service::open`](crate::Service::open) is called at the end of this turn; from then on it is as any other
    /// connection, with [`Origin::Adopted`](crate::Origin::Adopted). Bytes can be sent to it at once.
    ///
    /// The stream is made non-blocking, which concerns all descriptors of the same socket. Its other options stay as
    /// they are. The access policy of the service is not asked. It counts among
    /// [`Limits::connections`](crate::Limits::connections) and in [`Stats::adopted`](crate::Stats::adopted).
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::os::unix::net::UnixStream;
    /// use tidemill::{Limits, Reactor, services::Echo};
    ///
    /// let mut reactor = Reactor::new(Limits::default())?;
    /// let echo = reactor.add(Echo::raw());
    /// let (ours, mut theirs) = UnixStream::pair()?;
    /// reactor.adopt_stream(ours, echo)?;
    /// theirs.write_all(b"hello")?;
    /// while reactor.stats().bytes_out < 5 {
    ///     reactor.turn(None)?;
    /// }
    /// let mut answer = [0; 5];
    /// theirs.read_exact(&mut answer)?;
    /// assert_eq!(&answer, b"hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the reactor is at its limit of connections, the service is of another reactor, or the stream is not
    /// connected. The stream is closed then. If the system later refuses to watch it, for lack of kernel memory, it is
    /// closed before `open`, and counted in [`Stats::closed`](crate::Stats::closed).
    pub fn adopt_stream(
        &mut self,
        stream: impl Into<AdoptedStream>,
        service: impl Into<ServiceId>,
    ) -> Result<ConnId, AdoptError> {
        let table = self.table();
        let service = table.number_of(service.into()).ok_or(AdoptError::OtherReactor)?;
        if !table.has_room_for(1) {
            return Err(AdoptError::Full { max: table.cx.limits.connections });
        }
        let (stream, peer, local, is_client) = stream.into().prepare().map_err(AdoptError::System)?;
        let id = table.insert(service, Stage::Open, peer);
        let (connection, cx) = table.at(id.slot);
        cx.stats.adopted += 1;
        connection.stream = Some(stream);
        connection.place = ADOPTED;
        connection.flags.set(Flag::Dialed, is_client);
        if let Some(local) = local {
            connection.optional().overrides().local = Some(PeerAddress::from(local));
        }
        table.pending_adoptions.push(id);
        Ok(id)
    }
}
