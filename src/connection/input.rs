//! What a connection keeps of its input between two deliveries.

use std::io;

use crate::base::reason::CloseReason;
use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::state::Flag;
use crate::parts::inbox::Inbox;

impl Connection {
    /// Bytes of the message at the front that have not been taken.
    pub(crate) fn unread(&self) -> &[u8] {
        self.inbox.as_ref().map_or(&[], |inbox| inbox.unread())
    }

    /// Puts an inbox back in its place, charges what it has grown by since it was charged with `before`, and starts the
    /// message's clocks, or counts what `arrived` as its progress. The caller looks at the memory limit.
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

    /// What is left after a delivery. What the budget has hidden is delivered again, from the back of the line, before
    /// anything else happens to the connection. Else it is the beginning of a message, which may not grow beyond its
    /// limit; a paused service has not been asked yet whether the message is complete.
    pub(crate) fn after_delivery(&mut self, is_cut: bool, cx: &mut Context) {
        if is_cut {
            self.flags.insert(Flag::Redeliver);
        } else if self.unread().len() > cx.limits_of(self.service).message
            && !self.flags.contains(Flag::Paused)
        {
            self.close(CloseReason::TooLong, cx);
        }
    }

    /// Delivers nothing from the next call on.
    pub(crate) fn pause(&mut self, cx: &mut Context) {
        self.hold(Flag::Paused, cx.now);
    }

    /// Delivers again, beginning with what was left. While `data` runs, the inbox is out of its place, and what the
    /// callback leaves is known after it.
    pub(crate) fn resume(&mut self, cx: &mut Context) {
        if self.flags.contains(Flag::Paused) {
            self.flags.insert(Flag::Redeliver);
            if self.bytes_in == 0 && cx.limits_of(self.service).first_byte.is_some() {
                self.optional().overrides().resumed = Some(cx.now);
            }
            self.release(Flag::Paused, cx);
        }
    }

    /// A filter keeps so many bytes of the wire. They are the beginning of a message: they are charged and have its
    /// clocks, as any other.
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

    /// Nothing is there for now, a signal came first, or the connection has failed.
    pub(crate) fn on_read_error(&mut self, error: &io::Error, cx: &mut Context) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.on_read_would_block(),
            io::ErrorKind::Interrupted => {}
            _ => self.close_now(CloseReason::from_io(error), cx),
        }
    }

    /// Bytes kept for it, in and out: what eviction looks at.
    pub(crate) fn buffered(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.charge())
            + self.outbox.as_ref().map_or(0, |outbox| outbox.buffered())
    }
}

/// Drops an inbox that was taken out of its place.
pub(crate) fn discharge(inbox: Option<Box<Inbox>>, cx: &mut Context) {
    if let Some(inbox) = inbox {
        cx.memory -= inbox.charge();
    }
}
