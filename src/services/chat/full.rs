//! Members that do not take lines from elsewhere as fast as they come.
//!
//! The loop has senders wait for members of their own reactor. It knows nothing of senders elsewhere, so the room notes
//! here for which members they have to wait.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::base::id::{ConnId, ServiceId};
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::parts::timers::TimerId;

/// The members whose queue is full.
#[derive(Debug, Default)]
pub(super) struct FullMembers {
    own: Option<ServiceId>,
    /// What each had taken when it was last looked at, and when that changed.
    awaited: HashMap<ConnId, (u64, Duration)>,
    /// Members that have taken nothing for [`STALL_LIMIT`]: they are waited for no longer, until they drain.
    stalled: HashSet<ConnId>,
    timer: Option<TimerId>,
}

/// How long a member may take nothing before senders elsewhere go on: as long as the loop has those of its own reactor
/// wait.
const STALL_LIMIT: Duration = Duration::from_secs(5);
/// How often members are looked at that are waited for.
const CHECK_EVERY: Duration = Duration::from_secs(1);

impl FullMembers {
    pub(super) fn start(&mut self, own: ServiceId) {
        self.own = Some(own);
    }

    /// Whether no member has to be waited for.
    pub(super) fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// A line was sent to this member: notes whether it is full now. [`set_timer`](FullMembers::set_timer) is called
    /// behind the last one.
    pub(super) fn look_at(&mut self, member: &Socket<'_>) {
        if member.is_full() && !self.stalled.contains(&member.id()) {
            self.awaited.entry(member.id()).or_insert((member.bytes_out(), member.elapsed()));
        }
    }

    /// A member has drained or left. Returns whether it was waited for.
    pub(super) fn remove(&mut self, id: ConnId) -> bool {
        self.stalled.remove(&id);
        self.awaited.remove(&id).is_some()
    }

    /// Returns whether it was the timer of this.
    pub(super) fn on_timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) -> bool {
        if self.timer != Some(timer) {
            return false;
        }
        self.timer = None;
        let now = sockets.elapsed();
        self.awaited.retain(|&id, (taken, since)| {
            let Some(member) = sockets.get(id) else { return false };
            if member.bytes_out() > *taken {
                (*taken, *since) = (member.bytes_out(), now);
            }
            let goes_on = now - *since < STALL_LIMIT;
            if !goes_on {
                self.stalled.insert(id);
            }
            goes_on
        });
        self.set_timer(sockets);
        true
    }

    pub(super) fn set_timer(&mut self, sockets: &mut Sockets<'_>) {
        if let (false, None, Some(own)) = (self.awaited.is_empty(), self.timer, self.own) {
            // Without a timer a member that drains or leaves ends the wait, and only one that stalls does not.
            self.timer = sockets.set_timer(own, CHECK_EVERY, None).ok();
        }
    }
}
