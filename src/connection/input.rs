//! Input that a connection keeps between two deliveries.
//!
//! Read before: `parts/inbox.rs` and `event_loop/read.rs`.

use std::io;

use crate::base::mark::mark;
use crate::base::reason::CloseReason;
use crate::base::seeded_bug::{SeededBug, seeded};
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::{FilterStage, Flag, Half, Stage};
use crate::parts::arena::READ_MAX;
use crate::parts::inbox::Inbox;

/// Unread input of at most this length is copied in front of the next read, so that the service gets both as one slice
/// of the block, and an echo of it needs no further copy. Longer unread input stays in the inbox, and the read is
/// appended to it: copying 4 KiB for each read is cheap, copying a megabyte for each read is not.
const PREFIX_MAX: usize = 4 * 1024;

impl Connection {
    /// Whether it is to be read, and nothing else is to be done with it. True of nearly all that are read, and one
    /// comparison for all flags together; if it is false, [`wants_turn`](Connection::wants_turn) decides.
    #[inline]
    pub(crate) fn is_plainly_readable(&self) -> bool {
        use Flag::{Full, Paused, ReceiverFull, Redeliver, Spliced, Throttled};
        self.flags.contains(Flag::Readable)
            && !self.flags.any(&[Redeliver, Spliced, Paused, Full, ReceiverFull, Throttled])
            && self.stage == Stage::Open
            && self.incoming != Half::Ended
            && self.filter == FilterStage::Off
    }

    /// How much room to leave in front of a read, for the unread input.
    pub(crate) fn prefix(&self) -> usize {
        let unread = self.unread().len();
        if unread <= PREFIX_MAX.min(READ_MAX / 2) { unread } else { 0 }
    }

    /// The received bytes that the service has not taken.
    pub(crate) fn unread(&self) -> &[u8] {
        self.inbox.as_ref().map_or(&[], |inbox| inbox.unread())
    }

    /// Sends back what the service has not taken. Bytes of an incomplete record that a filter holds stay.
    pub(crate) fn send_unread(&mut self, cx: &mut Context) {
        let Some(inbox) = self.inbox.take() else { return };
        self.send(inbox.unread(), cx);
        let undecrypted = inbox.undecrypted;
        discharge(Some(inbox), cx);
        self.set_undecrypted(undecrypted, 0, cx);
    }

    /// Puts an inbox back after a delivery, and charges its growth since it was charged with `before`. If a message
    /// `begins`, its clocks start; otherwise the bytes that `arrived` count as its progress. The caller checks the
    /// memory limit.
    pub(crate) fn put_inbox(
        &mut self,
        mut inbox: Box<Inbox>,
        before: usize,
        arrived: usize,
        begins: bool,
        cx: &mut Context,
    ) {
        cx.memory = cx.memory - before + inbox.charge();
        if begins {
            inbox.restart_clocks(cx.now);
        } else {
            inbox.progress.moved += arrived;
        }
        self.inbox = Some(inbox);
        self.update_message_clocks(cx.now);
        if begins {
            self.rearm(cx);
        }
    }

    pub(crate) fn drop_inbox(&mut self, cx: &mut Context) {
        let inbox = self.inbox.take();
        discharge(inbox, cx);
    }

    /// Decides about the bytes left after a delivery. Bytes that the budget has hidden are delivered again in the next
    /// turn. Otherwise they are an incomplete message, which is limited to `SocketLimits::message`. A service that has
    /// paused may have left complete messages, so the limit does not apply then.
    pub(crate) fn after_delivery(&mut self, is_cut: bool, cx: &mut Context) {
        if is_cut {
            mark!("a delivery was cut");
            self.flags.insert_if(Flag::Redeliver, !seeded(SeededBug::HiddenInputForgotten));
        } else if self.unread().len() > cx.limits_of(self.service).message
            && !self.flags.contains(Flag::Paused)
            && !seeded(SeededBug::MessageUnbounded)
        {
            mark!("a message is too long");
            self.close(CloseReason::TooLong, cx);
        }
    }

    /// Stops delivery after the current call of `data`.
    pub(crate) fn pause(&mut self, cx: &mut Context) {
        self.hold(Flag::Paused, cx);
    }

    /// Continues delivery, with the bytes that were left first. The flag is set even if there seem to be none: during
    /// `data` the inbox is out of the connection, and the callback may still leave bytes.
    pub(crate) fn resume(&mut self, cx: &mut Context) {
        if self.flags.contains(Flag::Paused) {
            mark!("resumed");
            self.flags.insert_if(Flag::Redeliver, !seeded(SeededBug::ResumeForgetsInput));
            if self.bytes_in == 0 && cx.limits_of(self.service).first_byte.is_some() {
                self.optional().overrides().resumed = Some(cx.now);
            }
            self.release(Flag::Paused, cx);
        }
    }

    /// A filter keeps this many bytes of an incomplete record. They are charged, and have the clocks of an incomplete
    /// message: otherwise a peer could hold memory for free by never completing a record.
    pub(crate) fn set_undecrypted(&mut self, undecrypted: usize, arrived: usize, cx: &mut Context) {
        if undecrypted == 0 && self.inbox.is_none() {
            return;
        }
        let mut inbox = self.inbox.take().unwrap_or_default();
        let (before, begins) = (inbox.charge(), inbox.is_empty());
        inbox.undecrypted = undecrypted;
        if inbox.is_empty() {
            cx.memory -= before;
        } else {
            self.put_inbox(inbox, before, arrived, begins, cx);
        }
    }

    /// A read has failed: nothing is left, a signal interrupted it, or the connection has failed.
    pub(crate) fn on_read_error(&mut self, error: &io::Error, cx: &mut Context) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.on_read_would_block(),
            io::ErrorKind::Interrupted if !seeded(SeededBug::InterruptCloses) => {}
            _ => self.close_now(CloseReason::from_io(error), cx),
        }
    }

    /// The memory of its inbox and outbox, by which eviction chooses.
    pub(crate) fn buffered(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.charge())
            + self.outbox.as_ref().map_or(0, |outbox| outbox.buffered())
    }
}

/// Drops an inbox that was taken out of its connection.
pub(crate) fn discharge(inbox: Option<Box<Inbox>>, cx: &mut Context) {
    if let Some(inbox) = inbox {
        cx.memory -= inbox.charge();
    }
}
