//! The peers of the world: small scripts, drawn from the tape.

use std::collections::VecDeque;

use super::super::*;
use super::ledger::{Ledger, byte, pattern};
use super::wire::Wire;

/// One step of a peer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Say(usize),
    Urgent,
    HalfClose,
    Reset,
    /// Its window is full after so many bytes more.
    Read(usize),
    ReadAll,
    /// Nothing, for so many steps of the world.
    Wait(u64),
    Handshake,
}

/// A script of at most twelve steps.
pub(super) fn draw_script(tape: &Tape, has_filters: bool) -> VecDeque<Op> {
    let one = |_| match tape.below(20) {
        0..=5 => Op::Say(1 + tape.below(60) as usize),
        6 | 7 => Op::Say(1 + tape.below(1_500) as usize),
        8 => Op::Say(1 + tape.below(9_000) as usize),
        9 => Op::HalfClose,
        10 => Op::Reset,
        11 => Op::Read(0),
        12 | 13 => Op::Read(1 + tape.below(2_000) as usize),
        14 | 15 => Op::ReadAll,
        16 => Op::Urgent,
        17 if has_filters => Op::Handshake,
        _ => Op::Wait(tape.below(8)),
    };
    (0..1 + tape.below(12)).map(one).collect()
}

/// A remote end, which follows its script.
pub(super) struct Remote {
    pub(super) peer: PeerId,
    script: VecDeque<Op>,
    wait: u64,
    sent: u64,
    /// How much of what it must receive it has.
    heard: u64,
    segment: usize,
    within: u64,
    has_ended: bool,
    /// Its side of the listener's filter.
    wire: Option<Wire>,
}

impl Remote {
    pub(super) fn new(peer: PeerId, script: VecDeque<Op>, wire: Option<Wire>) -> Remote {
        let (wait, sent, heard, segment, within, has_ended) = (0, 0, 0, 0, 0, false);
        Remote { peer, script, wait, sent, heard, segment, within, has_ended, wire }
    }

    /// Takes the next step of its script; whether there was one.
    pub(super) fn step(&mut self, script: &Script, ledger: &mut Ledger, inet: bool) -> bool {
        if self.wait > 0 {
            self.wait -= 1;
            return true;
        }
        let Some(op) = self.script.pop_front() else { return false };
        match op {
            Op::Wait(steps) => self.wait = steps,
            Op::Read(bytes) => script.window(self.peer, bytes),
            Op::ReadAll => script.window(self.peer, usize::MAX),
            Op::Reset => {
                self.has_ended = true;
                script.reset(self.peer);
            }
            _ if self.has_ended => {}
            Op::Say(n) => self.say(n, script, ledger),
            Op::Handshake => self.shake_hands(script, ledger),
            Op::Urgent if inet => script.urgent(self.peer),
            Op::Urgent => {}
            // After three bytes in four, it announces the end of its stream to the filter.
            Op::HalfClose => self.half_close(!self.sent.is_multiple_of(4), script, ledger),
        }
        true
    }

    fn say(&mut self, n: usize, script: &Script, ledger: &mut Ledger) {
        let plain = pattern(self.peer as u32, self.sent, n);
        self.sent += n as u64;
        ledger.said.entry(self.peer).or_default().0 = self.sent;
        let Some(wire) = &mut self.wire else { return script.feed(self.peer, &plain) };
        let mut bytes = Vec::new();
        wire.say(&plain, &mut bytes);
        wire.receive(&[], &mut bytes); // It may be what begins the handshake.
        script.feed(self.peer, &bytes);
    }

    /// Begins a handshake: in the open, as after STARTTLS, whether the service expects it or not; or, within a filter,
    /// bytes that belong to no record.
    fn shake_hands(&mut self, script: &Script, ledger: &mut Ledger) {
        if let Some(wire) = &mut self.wire {
            wire.has_failed = true;
        } else if let Some(id) = self.conn(script).filter(|id| ledger.lives.contains_key(id)) {
            ledger.set_wild(id);
        } else {
            return;
        }
        script.feed(self.peer, b"HELLO\nTHANKS\n");
    }

    /// Sends its FIN; through a filter most often behind the end of the stream, else that is cut off.
    fn half_close(&mut self, announces: bool, script: &Script, ledger: &mut Ledger) {
        self.has_ended = true;
        let mut bytes = Vec::new();
        let is_whole = self.wire.as_mut().is_none_or(|wire| announces && wire.end(&mut bytes));
        ledger.said.entry(self.peer).or_default().1 = is_whole;
        script.feed(self.peer, &bytes);
        script.end(self.peer);
    }

    /// It reads what has arrived, and checks it.
    pub(super) fn read(&mut self, script: &Script, ledger: &Ledger) {
        let mut received = script.received(self.peer);
        if received.is_empty() {
            return;
        }
        let life = self.conn(script).and_then(|id| ledger.lives.get(&id));
        if let Some(wire) = &mut self.wire {
            let mut reply = Vec::new();
            received = wire.receive(&received, &mut reply);
            if !self.has_ended {
                script.feed(self.peer, &reply);
            }
        }
        let Some(life) = life else {
            if self.wire.is_some() {
                return; // Refused, or in its handshake.
            }
            let rest = b"server busy\n".get(self.heard as usize..).unwrap_or_default();
            assert!(rest.starts_with(&received), "a refused peer got {received:?}");
            self.heard += received.len() as u64;
            return;
        };
        // Before a dial is told as connected, only a filter's handshake can have sent something.
        let Some(peer) = life.peer.filter(|_| !life.wild) else { return };
        assert_eq!(peer, self.peer, "bytes for another peer");
        let mut left = &received[..];
        while !left.is_empty() {
            let Some(segment) = life.out.get(self.segment) else {
                panic!("peer {}: {} bytes beyond what was sent to it", self.peer, left.len());
            };
            let n = left.len().min((segment.length - self.within) as usize);
            let (now, rest) = left.split_at(n);
            let same =
                now.iter().zip(segment.at + self.within..).all(|(&it, at)| it == byte(segment.key, at));
            assert!(same, "peer {}: other bytes than {segment:?} from {}", self.peer, self.within);
            (left, self.within, self.heard) = (rest, self.within + n as u64, self.heard + n as u64);
            if self.within == segment.length {
                // The last segment may still grow.
                let is_last = self.segment + 1 == life.out.len();
                assert!(!is_last || left.is_empty(), "peer {}: bytes beyond the last segment", self.peer);
                if is_last {
                    break;
                }
                (self.segment, self.within) = (self.segment + 1, 0);
            }
        }
    }

    /// Its connection has gone, or it has its end: a clean one says that everything was sent.
    pub(super) fn check_end(&mut self, script: &Script, ledger: &Ledger) {
        self.read(script, ledger);
        let clean = script.received_end(self.peer) || script.released(self.peer) == Some(Released::Closed);
        let Some(life) = self.conn(script).and_then(|id| ledger.lives.get(&id)) else { return };
        if !clean || life.wild || life.peer != Some(self.peer) || script.is_broken(self.peer) {
            return;
        }
        // What has broken the rules of its filter gets an alert in place of the rest.
        if self.wire.as_ref().is_none_or(|wire| !wire.has_failed) {
            assert_eq!(self.heard, life.queued, "peer {}: a clean end before everything was sent", self.peer);
            // A deadline that ends a closing connection may leave no time for it.
            let whole = self.wire.as_ref().is_none_or(|wire| wire.has_ended);
            assert!(
                whole || life.closed_by != Some(CloseReason::Finished),
                "peer {}: a FIN, and no announcement of the end before it",
                self.peer
            );
        }
    }

    pub(super) fn is_gone(&self, script: &Script) -> bool {
        script.released(self.peer).is_some()
    }

    /// It reads everything, and ends if it has not.
    pub(super) fn leave(&mut self, script: &Script, ledger: &mut Ledger, resets: bool) {
        script.window(self.peer, usize::MAX);
        match (resets, self.has_ended) {
            (true, _) => script.reset(self.peer),
            (false, false) => self.half_close(true, script, ledger),
            (false, true) => {}
        }
        self.has_ended = true;
    }

    fn conn(&self, script: &Script) -> Option<ConnId> {
        match script.token(self.peer)?.kind()? {
            crate::base::id::TokenKind::Connection(id) => Some(id),
            _ => None,
        }
    }
}
