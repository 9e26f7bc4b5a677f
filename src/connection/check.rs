//! The invariants of one connection.

use super::{Connection, NOT_DIRTY};
use crate::connection::context::Context;
use crate::connection::state::{Flag, Stage};

impl Connection {
    /// Asserts what must be true of a connection between two turns. Debug builds and simulations only.
    pub(crate) fn check(&self, cx: &Context) {
        let id = self.id;
        let entry = cx.dirty.get(self.dirty as usize);
        assert!(self.dirty == NOT_DIRTY || entry.is_some_and(|dirty| dirty.id == id), "{id}: not dirty");
        assert!(
            self.stage == Stage::Dead || self.flags.contains(Flag::Ready) || !self.wants_turn(),
            "{id}: a wake-up was lost"
        );
        assert!(self.is_filtered() == self.tls().is_some(), "{id}: a filter without its state");
        assert!(
            self.stage != Stage::Closing || self.close_reason.is_some(),
            "{id}: closing without a reason"
        );
        assert!(
            !self.is_write_failed() || self.outbox.is_none() || self.stage == Stage::Dead,
            "{id}: a queue that cannot be written"
        );
        if let (Some((when, _)), true) =
            (self.deadline(cx.limits_of(self.service)), self.stage != Stage::Dead)
        {
            let armed = cx.wheel.when(id.slot);
            assert!(armed.is_some_and(|armed| armed <= when), "{id}: no alarm for its deadline");
        }
    }

    /// Asserts that nothing is left undone when neither the loop nor the kernel has anything more to do at this time.
    /// What the kernel would accept is asked of the kernel, and not of the flags: a lost event leaves them wrong.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn check_at_rest(&self, readable: bool, writable: bool) {
        use crate::connection::state::Half;
        let id = self.id;
        let state =
            || format!("{:?}, in {:?}, out {:?}, {:?}", self.stage, self.incoming, self.outgoing, self.flags);
        let reads = match self.stage {
            Stage::Open => self.wants_input() && !self.waits_for_handshake(),
            Stage::Closing | Stage::Lingering => true,
            Stage::Connecting | Stage::Tarpitted | Stage::Dead => false,
        };
        let unread = readable && reads && self.incoming != Half::Ended;
        assert!(!unread, "{id}: received bytes, or an end, are left unread: {}", state());
        assert!(!(writable && self.can_write()), "{id}: a queue is left that could be written: {}", state());
        // One that is incomplete ends with a reset, after the linger time.
        let resets = self.stage == Stage::Lingering && self.is_incomplete();
        let may_end = self.has_stream() && !resets && self.queued() == 0 && !self.filter.is_handshaking();
        assert!(!(may_end && self.owes_end()), "{id}: its FIN is left unsent: {}", state());
    }
}
