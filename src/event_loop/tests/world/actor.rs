//! The service of the world: in each callback it does what the tape says.

use std::collections::HashMap;

use super::super::test_filter;
use super::super::*;
use super::ledger::{Ledger, pattern};
use crate::base::id::{GroupId, ServiceId};
use crate::base::leaving::Leaving;
use crate::config::dial::{Backoff, DialOptions};

/// What the world knows of its services.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) ledger: Ledger,
    /// The alarms that are set, and when they are due.
    pub(super) alarms: HashMap<ConnId, Duration>,
    /// The timers that are set, and when they are due.
    pub(super) timers: Vec<(TimerId, Duration)>,
    /// Set at the end, when everything is to come to rest.
    pub(super) is_quiet: bool,
}

impl Shared {
    fn take_timer(&mut self, timer: TimerId) -> Duration {
        let at = self.timers.iter().position(|(set, _)| *set == timer).expect("a timer that is set");
        self.timers.remove(at).1
    }
}

pub(super) struct Actor {
    pub(super) tape: Tape,
    pub(super) script: Script,
    pub(super) shared: Rc<RefCell<Shared>>,
    pub(super) groups: Vec<GroupId>,
    pub(super) dials: &'static [&'static str],
    pub(super) has_filters: bool,
    pub(super) own: Option<ServiceId>,
    /// The connection whose `data` runs.
    pub(super) in_data: Option<ConnId>,
    pub(super) ids: Vec<ConnId>,
}

impl Actor {
    fn below(&self, n: u64) -> usize {
        self.tape.below(n) as usize
    }

    fn is_quiet(&self) -> bool {
        self.shared.borrow().is_quiet
    }

    /// A length: most often short.
    fn length(&self) -> usize {
        match self.below(8) {
            0 => self.below(6_000),
            1..=2 => self.below(700),
            _ => 1 + self.below(40),
        }
    }

    fn span(&self) -> Duration {
        Duration::from_millis(self.tape.below(2_000))
    }

    /// Sends bytes of the service's own stream.
    fn send_own(&self, socket: &mut Socket<'_>, n: usize, how: impl FnOnce(&mut Socket<'_>, Vec<u8>)) {
        let (id, key) = (socket.id(), Ledger::own_key(socket.id()));
        let at = self.shared.borrow_mut().ledger.life(id).own;
        self.shared.borrow_mut().ledger.begin_send(key, at);
        how(socket, pattern(key, at, n));
        let ledger = &mut self.shared.borrow_mut().ledger;
        if ledger.end_send() {
            ledger.life(id).own += n as u64;
        }
    }

    /// Takes input, and sends it back.
    fn echo(&self, socket: &mut Socket<'_>, input: &mut Input<'_>, n: usize) {
        let peer = self.shared.borrow_mut().ledger.life(socket.id()).peer.unwrap_or(0);
        let at = self.shared.borrow_mut().ledger.life(socket.id()).taken;
        self.shared.borrow_mut().ledger.begin_send(peer as u32, at);
        socket.send(input.take(n));
        self.shared.borrow_mut().ledger.end_send();
    }

    fn act(&mut self, socket: &mut Socket<'_>) {
        for _ in 0..self.below(3) {
            if !self.is_quiet() {
                self.act_once(socket);
            }
        }
    }

    fn act_once(&mut self, socket: &mut Socket<'_>) {
        let other = self.ids.get(self.below(self.ids.len() as u64)).copied().unwrap_or(socket.id());
        let yes = self.below(2) == 0;
        let what = self.below(32);
        self.script.note("act", Some(socket.id().slot as usize), what as i64);
        match what {
            0..=5 => self.send_own(socket, self.length(), |socket, bytes| socket.send(bytes)),
            6 => self.send_own(socket, self.length(), |socket, bytes| {
                socket.send_shared(&crate::base::shared::Shared::from(bytes));
            }),
            7 | 8 => socket.pause(),
            9..=11 => self.resume(socket),
            12 => self.finish(socket),
            13 => socket.close(),
            14 if yes => socket.abort(),
            15 | 16 => self.pipe(socket, other),
            17 => {
                if socket.unpipe().is_some() {
                    self.shared.borrow_mut().ledger.unpipe(socket.id());
                }
            }
            18 => socket.set_rate(yes.then(|| 1 + self.below(9_000))),
            19 => socket.join_group(self.groups.get(self.below(3)).copied()),
            20 => socket.set_idle(Some(self.span())),
            21 => socket.set_read_idle(yes.then(|| self.span())),
            22 => socket.set_write_idle(yes.then(|| self.span())),
            23 => self.set_alarm(socket, yes),
            24 if self.has_filters && yes => {
                self.shared.borrow_mut().ledger.set_wild(socket.id());
                socket.start_filter(test_filter::server());
            }
            25 if yes => socket.poke(),
            25 => socket.set_nodelay(yes),
            26 => self.dial(socket),
            27 => socket.set_queue(yes.then(|| 1 + self.below(9_000))),
            28 if yes => self.set_timer(&mut socket.all()),
            28 => self.cancel_timer(&mut socket.all()),
            29 => {
                self.shared.borrow_mut().ledger.life(socket.id()).wants_left = true;
                socket.notice_leaving(true);
            }
            _ => self.act_on(socket, other),
        }
    }

    fn act_on(&mut self, socket: &mut Socket<'_>, other: ConnId) {
        let Some(mut other) = socket.other(other) else { return };
        match self.below(6) {
            0 => self.resume(&mut other),
            1 => other.close(),
            2 => other.pause(),
            3 => other.poke(),
            _ => self.send_own(&mut other, self.length(), |other, bytes| other.send(bytes)),
        }
    }

    /// What it has left untaken while it was paused is delivered again; in its own `data`, with the next bytes.
    fn resume(&self, socket: &mut Socket<'_>) {
        let waits = socket.is_paused() && !socket.unread().is_empty() && self.in_data != Some(socket.id());
        self.shared.borrow_mut().ledger.life(socket.id()).owes_data |= waits;
        socket.resume();
    }

    fn pipe(&mut self, socket: &mut Socket<'_>, other: ConnId) {
        // Both must be connected: before that, it is not known whose bytes arrive.
        let lives = [socket.id(), other].map(|id| self.shared.borrow_mut().ledger.life(id).peer.is_some());
        let own = socket.id();
        let mut live = |id| socket.all().get(id).is_some();
        if lives != [true, true] || ![own, other].into_iter().all(&mut live) {
            return;
        }
        self.shared.borrow_mut().ledger.pipe(socket.id(), other);
        let id = socket.id();
        assert!(socket.pipe(other), "{id} and {other} are live");
        let ledger = &mut self.shared.borrow_mut().ledger;
        for end in [id, other].into_iter().filter(|&end| self.in_data != Some(end)) {
            ledger.relay(end);
        }
    }

    fn set_alarm(&mut self, socket: &mut Socket<'_>, on: bool) {
        let span = self.span();
        socket.set_alarm(on.then_some(span));
        let alarms = &mut self.shared.borrow_mut().alarms;
        match on {
            true => alarms.insert(socket.id(), socket.elapsed() + span),
            false => alarms.remove(&socket.id()),
        };
    }

    fn finish(&self, socket: &mut Socket<'_>) {
        self.shared.borrow_mut().ledger.life(socket.id()).finishes = true;
        socket.finish();
    }

    /// A timer, most often of some seconds, else of up to some years.
    fn set_timer(&self, sockets: &mut Sockets<'_>) {
        let Some(own) = self.own else { return };
        let span = match self.below(4) {
            0 => Duration::from_secs(self.tape.below(100_000)),
            1 if self.below(8) == 0 => Duration::from_secs(self.tape.below(1 << 30)),
            _ => self.span(),
        };
        if let Ok(timer) = sockets.set_timer(own, span, None) {
            self.shared.borrow_mut().timers.push((timer, sockets.elapsed() + span));
        }
    }

    fn cancel_timer(&self, sockets: &mut Sockets<'_>) {
        let some = self.below(8);
        let timers = &mut self.shared.borrow_mut().timers;
        if some < timers.len() {
            let (timer, _) = timers.remove(some);
            assert!(sockets.cancel_timer(timer), "{timer:?} is set");
        }
    }

    fn dial(&mut self, socket: &mut Socket<'_>) {
        let to = self.dials[self.below(self.dials.len() as u64)];
        let backoff = Backoff { first: 50 * MS, max: 400 * MS };
        let options = DialOptions {
            reconnect: (self.below(6) == 0).then_some(backoff),
            timeout: (self.below(3) == 0).then(|| self.span()),
            ..DialOptions::default()
        };
        if let Ok(id) = socket.dial_with(to, options) {
            if self.below(8) == 0 {
                socket.other(id).into_iter().for_each(|mut fresh| fresh.close());
            }
        }
    }
}

impl Service for Actor {
    type Session = ConnId;

    fn start(&mut self, own: ServiceId, _: &mut Sockets<'_>) {
        self.own = Some(own);
    }

    fn open(&mut self, socket: &mut Socket<'_>) -> ConnId {
        let id = socket.id();
        let peer = self.script.peer_of(id.token());
        let life = (socket.filter_info().is_some(), socket.elapsed());
        self.shared.borrow_mut().ledger.open(id, peer, life);
        self.ids.push(id);
        self.act(socket);
        id
    }

    fn connected(&mut self, session: &mut ConnId, socket: &mut Socket<'_>) {
        let peer = self.script.peer_of(session.token());
        assert!(peer.is_some(), "{session}: connected, and no peer has accepted");
        self.shared.borrow_mut().ledger.life(*session).peer = peer;
        self.shared.borrow_mut().ledger.life(*session).opened = socket.elapsed();
        self.act(socket);
    }

    fn data(&mut self, session: &mut ConnId, socket: &mut Socket<'_>, input: &mut Input<'_>) {
        assert_eq!(*session, socket.id(), "the session of another connection");
        assert!(!socket.is_paused(), "{session}: data while it is paused");
        self.shared.borrow_mut().ledger.check_input(*session, input.bytes());
        let n = match self.below(8) {
            _ if self.is_quiet() => input.len(),
            0 => self.below(input.len() as u64 + 1),
            1 => 0,
            _ => input.len(),
        };
        match self.below(2) {
            0 => self.echo(socket, input, n),
            _ => drop(input.take(n)),
        }
        self.shared.borrow_mut().ledger.life(*session).taken += n as u64;
        self.in_data = Some(*session);
        self.act(socket);
        self.in_data = None;
        self.shared.borrow_mut().ledger.relay(*session);
    }

    fn end(&mut self, session: &mut ConnId, socket: &mut Socket<'_>) {
        self.shared.borrow_mut().ledger.end(*session, socket.unread().len());
        self.act(socket);
        if self.below(2) == 0 || self.is_quiet() {
            self.finish(socket);
        }
    }

    fn drained(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.act(socket);
    }

    fn poked(&mut self, _: &mut ConnId, socket: &mut Socket<'_>) {
        self.act(socket);
    }

    fn alarm(&mut self, session: &mut ConnId, socket: &mut Socket<'_>, _: u64) {
        let due = self.shared.borrow_mut().alarms.remove(session);
        assert!(due.is_some_and(|due| due <= socket.elapsed()), "{session}: an alarm before {due:?}");
        self.act(socket);
    }

    fn idle(&mut self, _: &mut ConnId, socket: &mut Socket<'_>, _: IdleKind) {
        self.act(socket);
        if self.below(2) == 0 || self.is_quiet() {
            socket.close();
        }
    }

    fn left(&mut self, session: &mut ConnId, socket: &mut Socket<'_>, how: Leaving) {
        assert!(socket.id() == *session, "{session}: the session of another connection");
        let peer = {
            let ledger = &mut self.shared.borrow_mut().ledger;
            let life = ledger.life(*session);
            assert!(life.wants_left && !life.ended, "{session}: told that its peer left, after its end");
            let once = !life.left.contains(&how) && !life.left.contains(&Leaving::Reset);
            assert!(once, "{session}: told {how:?} after {:?}", life.left);
            life.left.push(how);
            life.peer
        };
        let is = peer.and_then(|peer| self.script.has_left(peer));
        assert_eq!(is, Some(how), "{session}: its peer has not left in this way");
        self.act(socket);
    }

    fn timer(&mut self, timer: TimerId, sockets: &mut Sockets<'_>) {
        let due = self.shared.borrow_mut().take_timer(timer);
        assert!(due <= sockets.elapsed(), "a timer before {due:?}");
        let some = self.ids.get(self.below(self.ids.len() as u64)).copied();
        if let Some(mut socket) = some.and_then(|id| sockets.get(id)) {
            self.act(&mut socket);
        }
    }

    fn closed(&mut self, session: ConnId, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        assert_eq!(session, gone.id);
        let mut guard = self.shared.borrow_mut();
        let shared = &mut *guard;
        let peer = shared.ledger.life(session).peer;
        shared.ledger.close(session, gone.reason);
        shared.alarms.remove(&session);
        self.ids.retain(|&id| id != session);
        // The peer has reset it, or the network has failed; or it was never registered.
        let failed = matches!(gone.reason, CloseReason::Reset | CloseReason::Error(_));
        let justified = peer.is_none_or(|peer| self.script.is_broken(peer));
        assert!(!failed || justified, "{session}: {:?}, and its peer is there", gone.reason);
        let life = shared.ledger.life(session);
        let finishes = life.finishes || life.was_piped || peer.is_none_or(|peer| self.script.is_broken(peer));
        let finished = gone.reason == CloseReason::Finished;
        assert!(!finished || finishes, "{session}: finished, and its service has not");
        let again = !shared.is_quiet && self.below(16) == 0;
        drop(guard);
        if again {
            self.set_timer(sockets);
        }
    }
}
