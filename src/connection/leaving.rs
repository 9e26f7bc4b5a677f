//! A peer that leaves while its connection is not read.
//!
//! Read before: `connection/mod.rs`. `event_loop/leaving.rs` asks the kernel and calls `left`.

use crate::connection::Connection;
use crate::connection::context::Context;
use crate::connection::socket::Socket;

/// Whether a service is to be told of a peer that leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum LeavingNotice {
    #[default]
    Off,
    Wanted,
    /// It may have left: the id is in `Context::leavers`.
    Queued,
}

impl Connection {
    pub(crate) fn notice_leaving(&mut self, on: bool, cx: &mut Context) {
        if on {
            self.optional().overrides().leaving = LeavingNotice::Wanted;
        } else if let Some(overrides) = self.overrides_mut() {
            overrides.leaving = LeavingNotice::Off;
            self.drop_empty_optional();
        }
        self.note_leaving(cx); // It may have left already: that event does not come again.
    }

    /// To be called when the peer may have left, or when the connection is no longer read.
    pub(crate) fn note_leaving(&mut self, cx: &mut Context) {
        let Some(overrides) = self.overrides_mut() else { return };
        if overrides.leaving == LeavingNotice::Wanted {
            overrides.leaving = LeavingNotice::Queued;
            cx.leavers.push(self.id);
        }
    }
}

impl Socket<'_> {
    /// Whether [`Service::left`](crate::Service::left) is called when the peer leaves while this connection is not
    /// read. Off by default. For a service that pauses a connection while its answer is prepared: otherwise it works on
    /// for a peer that is gone. It is called at most twice: for a FIN, and for a reset, which may follow one.
    ///
    /// A peer whose network has failed without a packet is not noticed: [`set_keep_alive`](Socket::set_keep_alive) is
    /// for that. On other systems than Linux, a FIN is noticed only when no received bytes are unread before it.
    ///
    /// ```
    /// use tidemill::{Input, Leaving, Service, Socket};
    ///
    /// /// Answers each request after some work elsewhere, and stops the work when its result is not read.
    /// struct Slow;
    ///
    /// impl Service for Slow {
    ///     type Session = bool;
    ///     fn open(&mut self, _: &mut Socket<'_>) -> bool { false }
    ///     fn data(&mut self, works: &mut bool, socket: &mut Socket<'_>, input: &mut Input<'_>) {
    ///         if input.take_line().is_none() { return }
    ///         *works = true; // A thread begins.
    ///         socket.pause();
    ///         socket.notice_leaving(true);
    ///     }
    ///     fn left(&mut self, works: &mut bool, socket: &mut Socket<'_>, how: Leaving) {
    ///         // After a FIN it may only have finished sending, and wait for the answer.
    ///         if how == Leaving::Reset { *works = false; socket.abort() }
    ///     }
    /// }
    /// ```
    pub fn notice_leaving(&mut self, on: bool) {
        let (connection, cx) = self.parts();
        connection.notice_leaving(on, cx);
    }
}
