//! What the simulated kernel holds, as plain data: for `testing::Snapshot`.

use super::{Edge, PeerId, Released, Script, SimSocket};
use crate::base::address::Address;
use crate::base::id::{ConnId, TokenKind};

/// A socket of the simulated kernel.
///
/// ```text
///     peer ── in_transit ──▶ unread ──▶ read    the loop
///     peer ◀───── delivered ─────────── write
///                   window: what the kernel still takes
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KernelSocket {
    /// Its number, in the order in which sockets were made.
    pub number: usize,
    /// The address at the other end.
    pub peer: String,
    /// The connection that its token names. `None` while it waits in a backlog.
    pub connection: Option<ConnId>,
    /// What has become of it.
    pub state: KernelState,
    /// Bytes that the peer has sent and that have not arrived.
    pub in_transit: usize,
    /// Bytes that have arrived and that the loop has not read.
    pub unread: usize,
    /// Whether the peer's FIN has arrived, behind these bytes.
    pub end: bool,
    /// Whether the peer's reset has arrived.
    pub reset: bool,
    /// Bytes that the peer has received and that the script has not looked at.
    pub delivered: usize,
    /// Bytes that the kernel still accepts from the loop; `None`: no limit.
    pub window: Option<usize>,
    /// Whether the loop has sent its FIN.
    pub finished: bool,
    /// The edge that the next poll reports, as words: `readable`, `writable`, `end`, `error`, `urgent`. Empty: no
    /// event comes.
    pub edge: Vec<&'static str>,
}

/// What has become of a socket of the simulated kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum KernelState {
    /// It waits to be accepted.
    Backlog,
    /// A dial without an answer so far.
    Connecting,
    /// A dial that has failed, or a peer that reached no listener.
    Refused,
    /// Both ends have it.
    Open,
    /// The loop has closed it, and the kernel sends FIN.
    Closed,
    /// The loop has reset it, or closed it with input that it had not read.
    Reset,
}

/// A listener of the simulated kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KernelListener {
    /// Where it listens.
    pub address: Address,
    /// Connections that wait to be accepted.
    pub backlog: usize,
    /// Whether the next poll reports it.
    pub edge: bool,
}

impl KernelState {
    /// The state in a word.
    pub fn word(self) -> &'static str {
        match self {
            KernelState::Backlog => "backlog",
            KernelState::Connecting => "connecting",
            KernelState::Refused => "refused",
            KernelState::Open => "open",
            KernelState::Closed => "closed",
            KernelState::Reset => "reset",
        }
    }
}

impl Script {
    /// All sockets, those that are closed included.
    pub(crate) fn kernel_sockets(&self) -> Vec<KernelSocket> {
        self.0.borrow().sockets.iter().enumerate().map(|(number, socket)| socket.inspect(number)).collect()
    }

    /// The listeners that are open.
    pub(crate) fn kernel_listeners(&self) -> Vec<KernelListener> {
        let world = self.0.borrow();
        let open = world.listeners.iter().filter(|listener| listener.is_open);
        let state = open.map(|listener| KernelListener {
            address: listener.address.clone(),
            backlog: listener.backlog.len(),
            edge: listener.edge,
        });
        state.collect()
    }

    /// How many descriptors more the reactor may open; `None`: no limit.
    pub(crate) fn descriptors_left(&self) -> Option<usize> {
        let world = self.0.borrow();
        (world.descriptors != usize::MAX).then(|| world.descriptors.saturating_sub(world.open))
    }

    /// The next poll reports a reset for the token of a peer's connection, whether that has ended or not.
    pub(crate) fn repeat_event(&self, peer: PeerId) {
        let mut world = self.0.borrow_mut();
        let token = world.sockets[peer].token;
        let reset = Edge { end: true, error: true, ..Edge::SPURIOUS };
        world.stale.extend(token.map(|token| reset.ready(token)));
    }
}

impl SimSocket {
    fn inspect(&self, number: usize) -> KernelSocket {
        let dialed = || self.to.as_ref().map(Address::to_string).unwrap_or_default();
        let connection = self.token.and_then(|token| match token.kind()? {
            TokenKind::Connection(id) => Some(id),
            TokenKind::Listener(_) | TokenKind::Watched(_) | TokenKind::Wake => None,
        });
        KernelSocket {
            number,
            peer: self.from.map_or_else(dialed, |from| from.to_string()),
            connection,
            state: self.state(),
            in_transit: self.transit.len(),
            unread: self.inbound.len(),
            end: self.inbound_end,
            reset: self.reset,
            delivered: self.outbound.len(),
            window: (self.window != usize::MAX).then_some(self.window),
            finished: self.outbound_end,
            edge: self.edge.words(),
        }
    }

    fn state(&self) -> KernelState {
        match (self.released, self.dialed) {
            (Some(Released::Closed), _) => KernelState::Closed,
            (Some(Released::ClosedUnread | Released::Reset), _) => KernelState::Reset,
            (None, Some(Err(_))) => KernelState::Refused,
            (None, None) if self.is_dial => KernelState::Connecting,
            (None, None) if self.token.is_none() => KernelState::Backlog,
            (None, _) => KernelState::Open,
        }
    }
}

impl Edge {
    fn words(self) -> Vec<&'static str> {
        let Edge { readable, writable, end, error, priority } = self;
        let all = [
            (readable, "readable"),
            (writable, "writable"),
            (end, "end"),
            (error, "error"),
            (priority, "urgent"),
        ];
        all.iter().filter(|(is_set, _)| *is_set).map(|(_, word)| *word).collect()
    }
}
