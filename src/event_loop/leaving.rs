//! In phase 5: peers that have left while their connections are not read.

use super::EventLoop;
use crate::base::leaving::Leaving;
use crate::connection::leaving::LeavingNotice;
use crate::connection::state::Half;
use crate::service::Event;
use crate::sys::System;

impl<S: System> EventLoop<S> {
    /// Calls `left` where the kernel says that the peer has left. It follows `read`: a connection that is read has
    /// learned of the end by itself. The event that announced the end may be older than the pause, so the kernel is
    /// asked, once for each notice.
    pub(super) fn tell_of_leavers(&mut self) {
        if self.table.cx.leavers.is_empty() {
            return;
        }
        let count = self.table.cx.leavers.len().min(self.table.cx.limits.expirations_per_turn);
        for id in self.table.cx.leavers.drain(..count).collect::<Vec<_>>() {
            let Some((connection, _)) = self.table.get(id) else { continue };
            let queued = |notice: &&mut LeavingNotice| **notice == LeavingNotice::Queued;
            let notice = connection.overrides_mut().map(|overrides| &mut overrides.leaving).filter(queued);
            let Some(notice) = notice else { continue }; // It was switched off meanwhile.
            *notice = LeavingNotice::Wanted;
            let is_held =
                connection.is_open() && connection.incoming != Half::Ended && !connection.wants_input();
            let Some(stream) = connection.stream.as_ref().filter(|_| is_held) else { continue };
            let Some(how) = self.system.peer_left(stream) else { continue };
            let (service, overrides) = (connection.service, connection.optional().overrides());
            // A reset may follow a FIN; nothing follows a reset.
            if overrides.left.is_none_or(|told| told != how && told != Leaving::Reset) {
                overrides.left = Some(how);
                self.call(service, Event::Left(id.slot, how));
            }
        }
    }
}
