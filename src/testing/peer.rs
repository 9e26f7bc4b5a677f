//! Peers: what they do, and what has become of them.

use std::net::SocketAddr;

use super::Bench;
use super::kernel::parse;
use crate::base::address::Address;
use crate::base::id::{ConnId, TokenKind};
use crate::base::reason::{CloseReason, ClosedInfo, Refusal};
use crate::sys::sim::{PeerId, Released};

/// A remote end that the test plays: a client that has connected, or an upstream that was dialed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Peer(pub(super) PeerId);

/// How a connection has ended for a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum PeerEnd {
    /// It has got FIN behind all bytes; over TLS, behind close_notify.
    Fin,
    /// It has got FIN without the announcement that its filter (TLS) wants, so what it has received may be cut off.
    Truncated,
    /// It was reset.
    Reset,
    /// No service listens at the address.
    Refused,
}

/// Peers.
impl Bench {
    /// A peer connects to the listener that was added first.
    ///
    /// # Panics
    ///
    /// When the bench has had no listener.
    #[track_caller]
    pub fn connect(&mut self) -> Peer {
        let first = self.listening.first().expect("no service listens: see `Bench::serve`");
        let to = first.clone();
        self.connect_address(&to, None)
    }

    /// A peer connects to an address. Where no service listens it is refused, which [`ended`](Bench::ended) tells.
    ///
    /// # Panics
    ///
    /// When `to` is not an address.
    #[track_caller]
    pub fn connect_to(&mut self, to: &str) -> Peer {
        self.connect_address(&parse(to), None)
    }

    /// A peer connects from an IP address and a port, for services with an access policy. Otherwise peers have the
    /// address 10.0.0.1 and ports from 4000 on.
    ///
    /// # Panics
    ///
    /// When `from` is not an IP address with a port, and when `to` is not an address.
    #[track_caller]
    pub fn connect_from(&mut self, from: &str, to: &str) -> Peer {
        let from = from.parse().unwrap_or_else(|_| panic!("{from:?} is not an IP address with a port"));
        self.connect_address(&parse(to), Some(from))
    }

    fn connect_address(&mut self, to: &Address, from: Option<SocketAddr>) -> Peer {
        let from = from.unwrap_or_else(|| self.script.next_address());
        let peer = self.script.connect_to(to, from);
        self.run();
        Peer(peer)
    }

    /// A peer sends bytes, through its filter if it [has one](Bench::start_filter).
    pub fn say(&mut self, peer: Peer, bytes: impl AsRef<[u8]>) {
        match self.filters.get_mut(&peer.0) {
            Some(filter) => filter.say(bytes.as_ref()),
            None => self.script.feed(peer.0, bytes.as_ref()),
        }
        self.run();
    }

    /// What a peer has received since the last call, as text.
    ///
    /// # Panics
    ///
    /// When it is not UTF-8: use [`Bench::heard_bytes`].
    #[track_caller]
    pub fn heard(&mut self, peer: Peer) -> String {
        to_text(self.heard_bytes(peer))
    }

    /// What a peer has received since the last call.
    pub fn heard_bytes(&mut self, peer: Peer) -> Vec<u8> {
        match self.filters.get_mut(&peer.0) {
            Some(filter) => std::mem::take(&mut filter.heard),
            None => self.script.received(peer.0),
        }
    }

    /// What [`Bench::heard`] would return, which is left in place.
    ///
    /// # Panics
    ///
    /// As [`Bench::heard`].
    #[track_caller]
    pub fn peek(&self, peer: Peer) -> String {
        to_text(self.peek_bytes(peer))
    }

    /// What [`Bench::heard_bytes`] would return, which is left in place.
    pub fn peek_bytes(&self, peer: Peer) -> Vec<u8> {
        match self.filters.get(&peer.0) {
            Some(filter) => filter.heard.clone(),
            None => self.script.peek(peer.0),
        }
    }

    /// A peer ends its direction with FIN, behind what it has sent. It goes on reading. Over a filter the announcement
    /// of the end (close_notify) comes first; [`truncate`](Bench::truncate) leaves it out.
    pub fn end(&mut self, peer: Peer) {
        match self.filters.get_mut(&peer.0) {
            Some(filter) => filter.end(),
            None => self.script.end(peer.0),
        }
        self.run();
    }

    /// A peer ends its direction with FIN, without what its filter would send before.
    pub fn truncate(&mut self, peer: Peer) {
        self.script.end(peer.0);
        self.run();
    }

    /// A peer resets the connection, behind what it has sent.
    pub fn reset(&mut self, peer: Peer) {
        self.script.reset(peer.0);
        self.run();
    }

    /// A peer stops reading: its window is full, so the kernel accepts no further byte for it.
    pub fn stop_reading(&mut self, peer: Peer) {
        self.read_at_most(peer, 0);
    }

    /// A peer reads so many bytes more, and then stops.
    pub fn read_at_most(&mut self, peer: Peer, bytes: usize) {
        self.script.window(peer.0, bytes);
        self.run();
    }

    /// A peer reads again, without limit.
    pub fn read_again(&mut self, peer: Peer) {
        self.read_at_most(peer, usize::MAX);
    }

    /// How many bytes a peer has sent that the loop has not read, because the service has paused it for example.
    pub fn unread(&self, peer: Peer) -> usize {
        self.script.unread(peer.0)
    }

    /// The id that the connection of a peer has for its service. `None` before it was accepted, and if it was refused.
    pub fn id(&self, peer: Peer) -> Option<ConnId> {
        match self.script.token(peer.0)?.kind()? {
            TokenKind::Connection(id) => Some(id),
            TokenKind::Listener(_) | TokenKind::Watched(_) | TokenKind::Wake => None,
        }
    }

    /// Why the connection of a peer has ended, as its service was told. `None` while it has not, and for a peer that no
    /// service has seen: see [`refused`](Bench::refused).
    pub fn closed(&self, peer: Peer) -> Option<CloseReason> {
        self.closed_info(peer).map(|gone| gone.reason)
    }

    /// As [`closed`](Bench::closed), with all that the service was told.
    pub fn closed_info(&self, peer: Peer) -> Option<ClosedInfo> {
        let id = self.id(peer)?;
        self.record.borrow().closed.iter().find(|gone| gone.id == id).cloned()
    }

    /// Why a peer was refused: by the access policy, at a limit, or for want of a descriptor.
    pub fn refused(&self, peer: Peer) -> Option<Refusal> {
        let from = self.script.address(peer.0)?;
        let all = &self.record.borrow().refused;
        all.iter().find(|refused| refused.peer == Address::Inet(from)).map(|refused| refused.reason)
    }

    /// How the connection has ended for the peer, whether it has read everything before or not. `None` while the
    /// service has not ended its direction.
    pub fn ended(&self, peer: Peer) -> Option<PeerEnd> {
        if !self.script.is_reached(peer.0) {
            return Some(PeerEnd::Refused);
        }
        let is_announced = self.filters.get(&peer.0).is_none_or(|filter| filter.accepts_end());
        let fin = Some(if is_announced { PeerEnd::Fin } else { PeerEnd::Truncated });
        match self.script.released(peer.0) {
            Some(Released::Reset | Released::ClosedUnread) => Some(PeerEnd::Reset),
            Some(Released::Closed) => fin,
            None => fin.filter(|_| self.script.received_end(peer.0)),
        }
    }
}

#[track_caller]
fn to_text(bytes: Vec<u8>) -> String {
    let text = String::from_utf8(bytes);
    text.unwrap_or_else(|error| {
        panic!("\"{}\" is not UTF-8: use `heard_bytes`", error.as_bytes().escape_ascii())
    })
}
