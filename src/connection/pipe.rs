//! Pipes: bytes that arrive at one connection are sent to another.
//!
//! Read before: `connection/table.rs`. Next: `event_loop/pipe.rs`, which moves the bytes.

use super::Connection;
use super::table::Table;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::part::PIPES;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::input::discharge;
use crate::connection::state::{Flag, Half};

/// One end of a pipe. The table has a list of them by slot, which reaches up to the highest slot that was ever piped:
/// so a connection that is not piped does not pay for it.
#[derive(Clone, Copy, Default)]
pub(crate) struct PipeEnd {
    /// Valid while the connection in this slot has `Flag::Piped`.
    peer: Option<ConnId>,
    /// How many reads in a row were full: enough of them make the loop splice.
    pub(crate) full_reads: u8,
}

/// A proxied pair has two of them.
const _: () = assert!(size_of::<PipeEnd>() == 12);

impl Table {
    /// Pipes two connections. Their unread input is sent first, so that no byte is lost or overtaken.
    pub(crate) fn pipe(&mut self, a: ConnId, b: ConnId) {
        PIPES.begin();
        self.unpipe(a);
        self.unpipe(b);
        for (from, to) in [(a, b), (b, a)] {
            let Some((connection, _)) = self.get(from) else { return };
            connection.flags.insert(Flag::Piped);
            *self.pipe_end(from) = PipeEnd { peer: Some(to), full_reads: 0 };
        }
        for (from, to) in [(a, b), (b, a)] {
            self.relay_unread(from, to);
            self.update_receiver_full(from, to);
            if let Some((connection, cx)) = self.get(from) {
                connection.on_released(cx);
            }
        }
    }

    /// Sends what waits in the inbox of the one, and its end if that has been read, to the other.
    fn relay_unread(&mut self, from: ConnId, to: ConnId) {
        let Some((connection, _)) = self.get(from) else { return };
        let ended = connection.incoming == Half::Ended;
        let inbox = connection.inbox.take();
        if let (Some(inbox), Some((sink, cx))) = (&inbox, self.get(to)) {
            mark!("unread input is relayed");
            sink.send(inbox.unread(), cx);
        }
        let undecrypted = inbox.as_ref().map_or(0, |inbox| inbox.undecrypted);
        discharge(inbox, &mut self.cx);
        if let Some((connection, cx)) = self.get(from) {
            connection.set_undecrypted(undecrypted, 0, cx);
        }
        if let (true, Some((sink, cx))) = (ended, self.get(to)) {
            sink.finish(cx);
        }
    }

    /// Undoes a pipe: bytes that arrive from now on go to the services. Returns the pipe peer.
    pub(crate) fn unpipe(&mut self, id: ConnId) -> Option<ConnId> {
        let pipe_peer = self.unlink(id)?;
        if pipe_peer != id {
            self.unlink(pipe_peer);
        }
        Some(pipe_peer)
    }

    fn unlink(&mut self, id: ConnId) -> Option<ConnId> {
        let pipe_peer = self.pipe_peer(id);
        let (connection, cx) = self.get(id)?;
        cx.unpiped = true;
        connection.flags.remove(Flag::Piped);
        connection.flags.remove(Flag::Spliced);
        connection.flags.remove_if(Flag::ReceiverFull, !seeded(SeededBug::UnpipeKeepsHold));
        connection.on_released(cx);
        pipe_peer
    }

    /// The state of this end of a pipe.
    pub(crate) fn pipe_end(&mut self, id: ConnId) -> &mut PipeEnd {
        let slot = id.slot as usize;
        if self.pipe_ends.len() <= slot {
            self.pipe_ends.resize(slot + 1, PipeEnd::default());
        }
        &mut self.pipe_ends[slot]
    }

    /// The connection that this one is piped with.
    pub(crate) fn pipe_peer(&self, id: ConnId) -> Option<ConnId> {
        self.pipe_peer_of(self.find(id)?)
    }

    /// The same of a connection that may have left its slot, which no other has taken yet.
    #[inline(always)]
    pub(crate) fn pipe_peer_of(&self, connection: &Connection) -> Option<ConnId> {
        let is_piped = connection.flags.contains(Flag::Piped) && PIPES.has_begun();
        self.pipe_ends.get(connection.id.slot as usize).filter(|_| is_piped)?.peer
    }

    /// The pipe peer, if bytes can still be sent to it.
    #[inline(always)]
    pub(crate) fn live_pipe_peer(&self, id: ConnId) -> Option<ConnId> {
        self.live(self.pipe_peer(id)?)
    }

    /// Holds or releases one end of a pipe: it is not read while the other end is full.
    pub(crate) fn update_receiver_full(&mut self, from: ConnId, to: ConnId) {
        let full = self.find(to).is_some_and(|sink| sink.flags.contains(Flag::Full));
        let Some((connection, cx)) = self.get(from) else { return };
        if full {
            connection.hold(Flag::ReceiverFull, cx);
        } else {
            connection.release(Flag::ReceiverFull, cx);
        }
    }
}
