//! Rules about the state of the loop, between turns and at rest. `event_loop/check.rs` has those that hold in the tests
//! of services too; these ask what a hold, a limit and a clock are for, and not what the loop has noted of them.

use super::*;
use crate::base::leaving::Leaving;
use crate::connection::state::{Flag, Half, Stage};

/// The most that a timer or a deadline may be late: two ticks of the wheel.
const LATE_MAX: Duration = Duration::from_millis(20);

impl World {
    /// What holds after every turn; `before` are the counters before it.
    pub(super) fn check_turn(&mut self, accepted_before: u64) {
        let (table, limits) = (&self.event_loop.table, &self.event_loop.table.cx.limits);
        let accepted = (table.cx.stats.accepted - accepted_before) as usize;
        assert!(accepted <= limits.accepts_per_turn, "{accepted} connections were accepted in one turn");
        assert!(table.cx.memory <= limits.memory, "{} bytes of memory", table.cx.memory);
        // Those of dials are bounded by the limit on connections alone.
        let inbound = |it: &Connection| it.is_open() && !it.flags.contains(Flag::Dialed);
        let shakes = |it: &&Connection| it.filter == FilterStage::Handshaking && inbound(it);
        let handshakes = table.slots.iter().map(|(_, it)| it).filter(shakes).count();
        assert!(handshakes <= limits.handshakes, "{handshakes} handshakes at the same time");
        for (id, life) in &mut self.shared.borrow_mut().ledger.lives {
            let read = std::mem::take(&mut life.read_now);
            assert!(read <= 9 * limits.read_budget, "{id}: {read} bytes were read in one turn");
        }
    }

    /// What holds when neither the loop nor the kernel has anything to do.
    pub(super) fn check_holds(&mut self) {
        let table = &self.event_loop.table;
        for (_, it) in table.slots.iter().filter(|(_, it)| it.is_live()) {
            self.check_hold(it);
            self.check_left(it);
        }
        let now = table.cx.elapsed;
        let overdue = |due: Duration| now > due + LATE_MAX;
        let shared = self.shared.borrow();
        for (id, due) in &shared.alarms {
            let open = table.find(*id).is_some_and(Connection::is_live);
            assert!(!open || !overdue(*due), "{id}: its alarm was due at {due:?}, and it is {now:?}");
        }
        for (timer, due) in &shared.timers {
            assert!(!overdue(*due), "{timer:?} was due at {due:?}, and it is {now:?}");
        }
        drop(shared);
        self.check_lifetimes();
    }

    /// One that is as old as the limit is closed; then it has the time to linger twice, as it may be closing already.
    fn check_lifetimes(&self) {
        let (table, socket) = (&self.event_loop.table, &self.event_loop.table.cx.limits.socket);
        let (Some(lifetime), now) = (socket.lifetime, table.cx.elapsed) else { return };
        for (id, life) in &mut self.shared.borrow_mut().ledger.lives {
            if now >= life.opened + lifetime && table.find(*id).is_some() {
                let noticed = *life.is_old.get_or_insert(now);
                let is_late = now > noticed + 2 * socket.linger + LATE_MAX;
                assert!(!is_late, "{id}: open since {:?}, and at {now:?}", life.opened);
            }
        }
    }

    /// A connection is not read only for as long as what it waits for is so.
    fn check_hold(&self, it: &Connection) {
        let (table, id, flags) = (&self.event_loop.table, it.id, it.flags);
        let is_full = |it: &Connection| it.is_live() && it.flags.contains(Flag::Full);
        assert!(!is_full(it) || it.unsent(&table.cx) > 0, "{id}: full, and its queue has drained");
        let over = it.stage == Stage::Open && (it.incoming, it.outgoing) == (Half::Ended, Half::Ended);
        assert!(!over, "{id}: both of its directions have ended");
        let pipe_peer = table.pipe_peer(id);
        let peer = pipe_peer.and_then(|peer| table.find(peer)).filter(|peer| peer.is_live());
        if flags.contains(Flag::ReceiverFull) {
            let any_full = || table.slots.iter().any(|(_, other)| other.id != id && is_full(other));
            // A pipe peer that is closing, or has failed, takes nothing more.
            let may_wait = |peer: &Connection| is_full(peer) || peer.flags.contains(Flag::Broken);
            let waits = if pipe_peer.is_some() { peer.is_none_or(may_wait) } else { any_full() };
            assert!(waits, "{id}: it waits for a receiver, and none is full");
        }
        if let (Some(peer), Half::Ended) = (peer, it.incoming) {
            assert_ne!(peer.outgoing, Half::Open, "{id}: its end was not relayed to {}", peer.id);
        }
        if flags.contains(Flag::Throttled) {
            let refill = it.overrides().and_then(|overrides| overrides.refill);
            assert!(refill.is_some_and(|refill| refill > table.cx.now), "{id}: throttled, until {refill:?}");
        }
        let may_read = flags.any(&[Flag::Piped, Flag::ReadWhenFull])
            && !flags.any(&[Flag::Paused, Flag::ReceiverFull, Flag::Throttled])
            && it.stage == Stage::Open
            && it.incoming != Half::Ended
            && !it.filter.is_handshaking();
        let readable = it.stream.as_ref().is_some_and(|stream| self.event_loop.system.readiness(stream).0);
        assert!(!may_read || !readable, "{id}: not read, because its own queue is full");
    }

    /// The service was told of a peer that has left, if it wants to be. Where events promise less, nothing says so.
    fn check_left(&self, it: &Connection) {
        let held = it.is_open() && it.incoming != Half::Ended && !it.wants_input();
        let mut shared = self.shared.borrow_mut();
        let Some(life) = shared.ledger.lives.get_mut(&it.id).filter(|_| held) else { return };
        let how = life.peer.and_then(|peer| self.script.has_left(peer));
        if let (Some(how), true) = (how, self.profile != Profile::Contract) {
            let told = life.left.contains(&how) || life.left.contains(&Leaving::Reset);
            assert!(told || !life.wants_left, "{}: its peer has left ({how:?}), untold", it.id);
        }
    }

    /// At rest the loop sleeps: it is not woken again and again for something that it cannot do.
    pub(super) fn check_sleeps(&mut self) {
        for _ in 0..3 {
            self.turn(MS);
            let waited = self.script.last_wait() != Some(Some(Duration::ZERO));
            if waited || self.event_loop.has_work() || !self.script.is_quiet() {
                return;
            }
        }
        panic!("at rest, and the loop does not sleep: {}", self.event_loop.unfinished());
    }
}
