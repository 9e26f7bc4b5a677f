//! Clients that wait while no upstream can be connected: it restarts, or is started for them.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::Proxy;
use super::log::Held;
use crate::base::id::ConnId;
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::parts::timers::TimerId;
use ::log::info;

/// Clients without an upstream, and what starts one.
///
/// ```text
///     all attempts failed ──▶ line: c1 c2 c3 …, 1,024 at most; not read, in the order in which they came
///                               │
///     every 100 ms the first one tries again; when it is connected, the others follow, 64 in a turn
/// ```
#[derive(Default)]
pub(super) struct Hold {
    /// How long a client is held at most. None: it is not.
    pub(super) limit: Option<Duration>,
    line: VecDeque<ConnId>,
    pub(super) timer: Option<TimerId>,
    pub(super) demand: Option<Demand>,
    /// Clients that were admitted and are not in the log yet: while there are any, the upstream is not stopped.
    pub(super) clients: usize,
    /// Whether the log has told that clients are held.
    pub(super) told: bool,
    /// When the upstream is stopped, unless a client comes.
    pub(super) demand_timer: Option<TimerId>,
}

/// What starts the upstream for a client, and stops it when there has been none for a time.
pub(super) struct Demand {
    pub(super) idle: Duration,
    pub(super) control: Box<dyn FnMut(bool)>,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("limit", &self.limit).field("line", &self.line).finish_non_exhaustive()
    }
}

/// How often the first held client tries again.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// Clients that are held at once. Each has its connection and the slot for its upstream, and is not read.
const HELD_MAX: usize = 1_024;
/// Held clients that dial in one turn, once one of them was connected.
pub(super) const DIALS_AT_ONCE: usize = 64;

impl Proxy {
    /// No upstream could be connected for a client: it is held, if it may be. Says whether it is.
    pub(super) fn hold_client(&mut self, client: &mut Socket<'_>) -> bool {
        let (now, id) = (client.elapsed(), client.id());
        let (Some(limit), Some(own)) = (self.hold.limit, self.service) else { return false };
        let Some(dialing) = self.dialing.get_mut(&id) else { return false };
        let left = limit.saturating_sub(now - dialing.started);
        let is_full = self.hold.line.len() >= HELD_MAX;
        if left.is_zero() || is_full || client.all().is_shutting_down() {
            return false;
        }
        match std::mem::replace(&mut dialing.held, Held::Now) {
            // Its attempt has failed, and it stays the first.
            Held::Before => self.hold.line.push_front(id),
            Held::Never | Held::Now => self.hold.line.push_back(id),
        }
        client.set_alarm(Some(left));
        // Without this the proxy would dial for a client that has given up.
        client.notice_leaving(true);
        if !std::mem::replace(&mut self.hold.told, true) {
            info!("no upstream can be connected: clients are held for up to {limit:?}");
        }
        if self.hold.timer.is_none() {
            self.hold.timer = client.all().set_timer(own, TRY_EVERY, Some(TRY_EVERY)).ok();
        }
        true
    }

    /// Time for held clients to dial: the first one, or many once it was connected.
    pub(super) fn try_held(&mut self, max: usize, sockets: &mut Sockets<'_>) {
        for _ in 0..max.min(self.hold.line.len()) {
            // It may have left.
            let Some(mut client) = self.hold.line.pop_front().and_then(|id| sockets.get(id)) else {
                continue;
            };
            self.demand(&mut client);
            let (now, within) = (client.elapsed(), self.connect_timeout);
            let Some(dialing) = self.dialing.get_mut(&client.id()) else { continue };
            dialing.held = Held::Before;
            dialing.deadline = now + within;
            dialing.untried = self.upstreams.order(now, dialing.route);
            dialing.untried.reverse();
            if !self.dial_next(&mut client) && !self.hold_client(&mut client) {
                client.close();
            }
        }
        if let Some(timer) = self.hold.timer.take_if(|_| self.hold.line.is_empty()) {
            sockets.cancel_timer(timer);
        }
    }

    /// A client is to be connected.
    pub(super) fn demand(&mut self, client: &mut Socket<'_>) {
        let Some(demand) = &mut self.hold.demand else { return };
        if let Some(timer) = self.hold.demand_timer.take() {
            client.all().cancel_timer(timer);
        }
        (demand.control)(true);
    }

    /// A client has gone: without another the upstream is stopped after a while.
    pub(super) fn stop_soon(&mut self, sockets: &mut Sockets<'_>) {
        let (Some(demand), Some(own)) = (&self.hold.demand, self.service) else { return };
        if self.hold.clients == 0 && self.hold.demand_timer.is_none() {
            self.hold.demand_timer = sockets.set_timer(own, demand.idle, None).ok();
        }
    }

    pub(super) fn stop_if_idle(&mut self) {
        self.hold.demand_timer = None;
        if let Some(demand) = self.hold.demand.as_mut().filter(|_| self.hold.clients == 0) {
            (demand.control)(false);
        }
    }
}
