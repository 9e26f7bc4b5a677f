//! A copy of what each client sends, for a second upstream whose answers are dropped.

use std::fmt;

use super::Proxy;
use super::relay::{Relay, Stream};
use crate::base::id::ConnId;
use crate::base::reason::{CloseReason, ClosedInfo};
use crate::config::dial::DialOptions;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::parts::timers::TimerId;

/// The connection of one client to the mirror.
///
/// ```text
///     client ─ data ─▶ the upstream
///                 └──▶ copy, at most 1 MiB ─▶ the mirror ─ data ─▶ dropped
/// ```
///
/// Nothing of it is waited for: bytes go into the queue of the connection only while that is not full, and wait in
/// `copy` otherwise. What does not fit there ends the mirror's connection, and not the client's.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    to: Option<ConnId>,
    copy: Stream,
    dropped: Option<Dropped>,
}

/// Why a mirror did not get all that a client sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dropped {
    /// It did not read, or not fast enough.
    Stalled = 0,
    Unreachable = 1,
    /// It closed the connection before the client did.
    Closed = 2,
    /// There was no connection left for it: see [`Limits::connections`](crate::Limits::connections).
    NoPlace = 3,
}

/// Connections to the mirror that were dropped since the log last told.
#[derive(Debug, Default)]
pub(super) struct MirrorSummary {
    counts: [u64; 4],
    pub(super) timer: Option<TimerId>,
}

/// What [`Socket::tag`] returns of a connection to the mirror.
pub(super) const MIRROR: u64 = u64::MAX;
/// Bytes that wait for a mirror beside those in its queue. More are not worth the memory: it has stalled.
const QUEUE_MAX: usize = 1024 * 1024;
const WORDS: [&str; 4] = ["stalled", "unreachable", "closed", "no-place"];

impl Mirror {
    pub(super) fn is_wanted(&self) -> bool {
        self.to.is_some()
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dropped.map_or(Ok(()), |why| write!(f, " mirror={}", WORDS[why as usize]))
    }
}

impl fmt::Display for MirrorSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dropped by the mirror: {}", self.counts.iter().sum::<u64>())?;
        let mut some = WORDS.iter().zip(self.counts).filter(|(_, count)| *count > 0);
        some.try_for_each(|(word, count)| write!(f, " {word}={count}"))
    }
}

impl Proxy {
    pub(super) fn dial_mirror(&mut self, client: &mut Socket<'_>) -> Mirror {
        let Some(to) = self.relays.mirror_to.clone() else { return Mirror::default() };
        let options =
            DialOptions { tag: MIRROR, timeout: Some(self.connect_timeout), ..DialOptions::default() };
        match client.dial_with(to, options) {
            Ok(id) => Mirror { to: Some(id), ..Mirror::default() },
            Err(error) => {
                log::debug!("{}: no mirror: {error}", client.peer_addr());
                self.count_dropped(Dropped::NoPlace, &mut client.all());
                Mirror::default()
            }
        }
    }

    /// Copies what a client has sent. It is sent by a callback of the mirror's own connection: if a full connection is
    /// sent to in `data`, the sender waits for it.
    pub(super) fn copy_to_mirror(&mut self, client: ConnId, bytes: &[u8], sockets: &mut Sockets<'_>) {
        let Some(Relay { mirror, .. }) = self.relays.get(client) else { return };
        let Some(mut socket) = mirror.to.and_then(|id| sockets.get(id)) else { return };
        mirror.copy.push(bytes, socket.elapsed());
        socket.poke();
        if mirror.copy.held_bytes > QUEUE_MAX {
            socket.abort();
            self.drop_mirror(client, Dropped::Stalled, sockets);
        }
    }

    /// The mirror's connection can be sent what waits for it.
    pub(super) fn send_to_mirror(&mut self, client: ConnId, sockets: &mut Sockets<'_>) {
        let Some(Relay { mirror, .. }) = self.relays.get(client) else { return };
        if let Some(id) = mirror.to {
            mirror.copy.pump(&[], id, sockets);
        }
    }

    /// The client has sent its end.
    pub(super) fn end_mirror(&mut self, client: ConnId, sockets: &mut Sockets<'_>) {
        let Some(Relay { mirror, .. }) = self.relays.get(client) else { return };
        mirror.copy.end(sockets.elapsed());
        self.copy_to_mirror(client, &[], sockets);
    }

    /// The client has gone. What waits for the mirror is dropped with it if that was no proper end.
    pub(super) fn close_mirror(&mut self, client: ConnId, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let mirror = self.relays.get(client).and_then(|relay| relay.mirror.to);
        let Some(mut mirror) = mirror.and_then(|id| sockets.get(id)) else { return };
        match gone.reason {
            CloseReason::Finished => {}
            CloseReason::Shutdown | CloseReason::Local => mirror.close(),
            _ => mirror.abort(),
        }
    }

    /// The mirror's connection has ended.
    pub(super) fn mirror_ended(&mut self, client: ConnId, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let why = match gone.reason {
            CloseReason::Finished | CloseReason::Shutdown => return,
            CloseReason::Local | CloseReason::Aborted => return,
            CloseReason::SlowReader | CloseReason::TooSlow | CloseReason::Memory => Dropped::Stalled,
            _ if gone.dial_error.is_some() => Dropped::Unreachable,
            _ => Dropped::Closed,
        };
        if self.relays.get(client).is_some_and(|relay| relay.mirror.to == Some(gone.id)) {
            self.drop_mirror(client, why, sockets);
        }
    }

    fn drop_mirror(&mut self, client: ConnId, why: Dropped, sockets: &mut Sockets<'_>) {
        if let Some(relay) = self.relays.get(client) {
            (relay.mirror.to, relay.mirror.dropped) = (None, Some(why));
            relay.mirror.copy.clear();
        }
        self.count_dropped(why, sockets);
    }

    /// A mirror that is away must not become a flood of lines: they are counted, and told once a second.
    fn count_dropped(&mut self, why: Dropped, sockets: &mut Sockets<'_>) {
        let summary = &mut self.relays.mirror_summary;
        summary.counts[why as usize] += 1;
        if let (None, Some(own)) = (summary.timer, self.service) {
            summary.timer = sockets.set_timer(own, super::REFUSED_EVERY, None).ok();
        }
    }
}
