//! Backpressure between connections: a sender is not read while the receivers that it fills have not drained.

use super::table::Table;
use crate::base::id::ConnId;
use crate::base::mark::mark;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::base::tick::Tick;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::Flag;

/// Senders that wait for receivers: connections in whose `data` full connections were sent to.
///
/// ```text
///     member A ── data ──▶ service ── send ──▶ member B   full
///        ▲                                        │
///        └── not read (ReceiverFull) until B has drained
/// ```
///
/// Without this a room would evict the members that read, only because one member writes faster than their links are.
/// The kernel's buffers stop the sender's peer then, as in a pipe.
///
/// A receiver that takes nothing for [`STALL_LIMIT`] is waited for no longer: a member that does not read must not
/// silence a room. Its queue grows to [`SocketLimits::queue`](crate::SocketLimits::queue), and it is closed as a slow
/// reader.
#[derive(Default)]
pub(crate) struct SenderWaits {
    /// The connection whose `data` runs.
    sender: Option<ConnId>,
    /// Counts deliveries: what a receiver was last noted in.
    delivery: u32,
    /// The receivers that this `data` has found full, each once.
    full: Vec<ConnId>,
    waits: Vec<Wait>,
}

struct Wait {
    sender: ConnId,
    receiver: ConnId,
    /// What the receiver had taken when it was last looked at, and when that was.
    bytes_out: u64,
    checked: Tick,
}

/// How long a receiver may take nothing before its senders go on: 5 s, in ticks. The kernel reports room in its send
/// buffer only when a third of it is free, and Linux lets that buffer grow to some megabytes (tcp_wmem): of a peer that
/// reads 300 KB/s nothing is seen for three seconds.
const STALL_LIMIT: u64 = 500;

impl SenderWaits {
    /// `data` of this connection begins.
    #[inline]
    pub(crate) fn begin(&mut self, sender: ConnId) {
        self.sender = Some(sender);
        self.delivery = self.delivery.wrapping_add(1);
    }

    /// `data` is over. Whether it has sent to a full connection.
    #[inline]
    pub(crate) fn end(&mut self) -> bool {
        self.sender = None;
        !self.full.is_empty()
    }

    /// Whether a sender waits.
    pub(crate) fn any(&self) -> bool {
        !self.waits.is_empty()
    }

    /// When the receivers are to be looked at again.
    pub(crate) fn next_check(&self) -> Option<Tick> {
        self.waits.iter().map(|wait| Tick(wait.checked.0 + STALL_LIMIT)).min()
    }
}

impl Connection {
    /// Whether what is sent to it now comes from the `data` of another connection, and it takes what it is sent.
    pub(crate) fn can_hold_sender(&self, cx: &Context) -> bool {
        let stalled = self.outbox.as_ref().is_some_and(|outbox| outbox.is_stalled);
        !stalled && cx.sender_waits.sender.is_some_and(|sender| sender != self.id)
    }

    /// This connection, which is full, was sent to: the one whose `data` runs has to wait for it. `entry` is its entry
    /// in this turn's list of connections with something to write. If it was full before, the delivery ends here: each
    /// of a thousand senders adds a message to its queue, and not a delivery.
    pub(crate) fn hold_sender(&self, entry: usize, was_queued: bool, cx: &mut Context) {
        if !self.can_hold_sender(cx) {
            return;
        }
        let (waits, dirty) = (&mut cx.sender_waits, &mut cx.dirty[entry]);
        if dirty.noted_in != waits.delivery {
            dirty.noted_in = waits.delivery;
            waits.full.push(self.id);
        }
        if was_queued {
            cx.arena.end_delivery();
        }
    }
}

impl Table {
    /// The `data` of a sender is over, and it has sent to full connections.
    #[inline(never)]
    pub(crate) fn wait_for_receivers(&mut self, sender: ConnId) {
        let mut full = std::mem::take(&mut self.cx.sender_waits.full);
        let waits = self.find(sender).is_some_and(|it| it.is_open() && !it.flags.contains(Flag::Piped));
        for receiver in full.drain(..).filter(|_| waits) {
            let Some((connection, cx)) = self.get(receiver) else { continue };
            let (bytes_out, checked) = (connection.bytes_out, cx.now);
            if connection.flags.contains(Flag::Full) {
                mark!("a sender waits for a receiver");
                cx.sender_waits.waits.push(Wait { sender, receiver, bytes_out, checked });
                let (connection, cx) = self.at(sender.slot);
                connection.hold(Flag::ReceiverFull, cx);
            }
        }
        self.cx.sender_waits.full = full;
    }

    /// Ends the waits for receivers that have drained or closed, or that have taken nothing for too long. A sender that
    /// waits for none any more is read again.
    #[inline]
    pub(crate) fn check_receivers(&mut self) {
        if self.cx.sender_waits.any() {
            self.end_waits();
        }
    }

    #[inline(never)]
    fn end_waits(&mut self) {
        let mut waits = std::mem::take(&mut self.cx.sender_waits.waits);
        let mut ended = Vec::new();
        waits.retain_mut(|wait| {
            let goes_on = self.is_awaited(wait);
            if !goes_on && ended.last() != Some(&wait.sender) {
                ended.push(wait.sender);
            }
            goes_on
        });
        for sender in ended {
            let waits_on = waits.iter().any(|wait| wait.sender == sender);
            let Some((connection, cx)) = self.get(sender).filter(|_| !waits_on) else { continue };
            // A pipe has a receiver of its own, and releases it itself.
            if !connection.flags.contains(Flag::Piped) {
                mark!("a sender is released");
                connection.release(Flag::ReceiverFull, cx);
            }
        }
        self.cx.sender_waits.waits = waits;
    }

    /// Whether a sender still has to wait.
    fn is_awaited(&mut self, wait: &mut Wait) -> bool {
        let Some((receiver, cx)) = self.get(wait.receiver) else {
            return seeded(SeededBug::ClosedReceiverAwaited);
        };
        if !receiver.is_live() || !receiver.flags.contains(Flag::Full) {
            return !receiver.is_live() && seeded(SeededBug::ClosedReceiverAwaited);
        }
        // Nothing can be written before it is connected and its handshake complete; both have deadlines. Its time
        // starts after them. One that had passed already would have the loop turn without sleeping.
        if !receiver.has_stream() || receiver.filter.is_handshaking() {
            wait.checked = cx.now;
        }
        if cx.now.0 < wait.checked.0 + STALL_LIMIT {
            return true;
        }
        let reads = receiver.bytes_out > wait.bytes_out;
        (wait.bytes_out, wait.checked) = (receiver.bytes_out, cx.now);
        if let (false, Some(outbox)) = (reads, &mut receiver.outbox) {
            outbox.is_stalled = true;
        }
        reads
    }
}
