//! The peers of the world: small scripts, drawn from the tape.

use std::collections::VecDeque;

use super::super::{test_filter, *};
use super::ledger::{Ledger, byte, pattern};

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

/// A script of at most twelve steps; through a filter, most often after the handshake.
pub(super) fn draw_script(tape: &Tape, has_filters: bool, is_filtered: bool) -> VecDeque<Op> {
    let first = (is_filtered && !tape.one_in(4)).then_some(Op::Handshake);
    let rest = (0..1 + tape.below(12)).map(|_| match tape.below(20) {
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
    });
    first.into_iter().chain(rest).collect()
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
    /// It speaks through a filter, so its bytes are not followed.
    is_filtered: bool,
}

impl Remote {
    pub(super) fn new(peer: PeerId, script: VecDeque<Op>, is_filtered: bool) -> Remote {
        let (wait, sent, heard, segment, within, has_ended) = (0, 0, 0, 0, 0, false);
        Remote { peer, script, wait, sent, heard, segment, within, has_ended, is_filtered }
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
            Op::Say(n) if self.is_filtered => {
                script.feed(self.peer, &test_filter::record(&pattern(0, 0, n.min(999))));
            }
            Op::Say(n) => {
                script.feed(self.peer, &pattern(self.peer as u32, self.sent, n));
                self.sent += n as u64;
            }
            Op::Handshake if self.is_filtered => script.feed(self.peer, b"HELLO\nTHANKS\n"),
            Op::Handshake => {
                if let Some(id) = self.conn(script).filter(|id| ledger.lives.contains_key(id)) {
                    ledger.set_wild(id);
                    script.feed(self.peer, b"HELLO\nTHANKS\n");
                }
            }
            Op::Urgent if inet => script.urgent(self.peer),
            Op::Urgent => {}
            Op::HalfClose => {
                self.has_ended = true;
                script.end(self.peer);
            }
        }
        true
    }

    /// It reads what has arrived, and checks it.
    pub(super) fn read(&mut self, script: &Script, ledger: &Ledger) {
        let received = script.received(self.peer);
        if received.is_empty() || self.is_filtered {
            return;
        }
        let Some(life) = self.conn(script).and_then(|id| ledger.lives.get(&id)) else {
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
        if clean
            && !self.is_filtered
            && !life.wild
            && life.peer == Some(self.peer)
            && !script.is_broken(self.peer)
        {
            assert_eq!(self.heard, life.queued, "peer {}: a clean end before everything was sent", self.peer);
        }
    }

    pub(super) fn is_gone(&self, script: &Script) -> bool {
        script.released(self.peer).is_some()
    }

    /// It reads everything, and ends if it has not.
    pub(super) fn leave(&mut self, script: &Script, resets: bool) {
        script.window(self.peer, usize::MAX);
        match (resets, self.has_ended) {
            (true, _) => script.reset(self.peer),
            (false, false) => script.end(self.peer),
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
