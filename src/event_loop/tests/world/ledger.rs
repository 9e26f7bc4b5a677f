//! What each connection must have sent and received: the oracles about bytes, and about the life of a connection.
//!
//! ```text
//!     peer ── pattern of its key ──▶ connection ── data ──▶ service      checked in `data`, by offset
//!     peer ◀── the segments ─────── connection ◀── Send ── service       checked when the peer reads
//!               (key, offset, length), in the order in which the loop has queued them
//! ```

use std::collections::HashMap;
use std::time::Duration;

use crate::base::id::ConnId;
use crate::base::leaving::Leaving;
use crate::base::observer::Step;
use crate::base::reason::CloseReason;
use crate::sys::sim::PeerId;

/// The byte of a stream at an offset. Any other stream, and any other offset, has another byte there, but for one time
/// in 256.
pub(super) fn byte(key: u32, at: u64) -> u8 {
    let mixed = (at ^ (u64::from(key) << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}

pub(super) fn pattern(key: u32, at: u64, n: usize) -> Vec<u8> {
    (at..at + n as u64).map(|at| byte(key, at)).collect()
}

/// Whether these are the bytes of a stream from an offset on.
pub(super) fn matches(bytes: &[u8], key: u32, at: u64) -> bool {
    bytes.iter().zip(at..).all(|(&seen, at)| seen == byte(key, at))
}

/// A part of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) key: u32,
    pub(super) at: u64,
    pub(super) length: u64,
}

/// One connection, as its service sees it.
#[derive(Default)]
pub(super) struct Life {
    pub(super) peer: Option<PeerId>,
    /// Bytes that the loop has read, and how many of them were taken or sent on.
    read: u64,
    pub(super) taken: u64,
    /// What was queued for the peer, and how many bytes that is.
    pub(super) out: Vec<Segment>,
    pub(super) queued: u64,
    /// How much of its own pattern the service has sent.
    pub(super) own: u64,
    piped: Option<ConnId>,
    /// Whether it ever had a pipe: then its bytes and its end are not its service's alone.
    pub(super) was_piped: bool,
    /// Whether all that was read went to the other end, or is lost, because that takes nothing more.
    relayed: bool,
    /// Its reads are counted before decryption.
    pub(super) is_filtered: bool,
    /// Its bytes are not followed: it was filtered later than from its beginning, or is piped to one that is filtered.
    pub(super) wild: bool,
    /// Whether the service has ended it, in one direction or both.
    pub(super) finishes: bool,
    /// Whether the service is to be told when the peer leaves, and what it was told.
    pub(super) wants_left: bool,
    pub(super) left: Vec<Leaving>,
    /// When it was opened.
    pub(super) opened: Duration,
    /// When it was first seen to be older than its lifetime.
    pub(super) is_old: Option<Duration>,
    /// Bytes that were read in this turn.
    pub(super) read_now: usize,
    /// Whether it was resumed with unread input: that is to be delivered again.
    pub(super) owes_data: bool,
    pub(super) ended: bool,
    pub(super) closed_by: Option<CloseReason>,
    /// Turns that it has waited in the ready list without being read.
    waited: u32,
}

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) lives: HashMap<ConnId, Life>,
    /// What the service sends just now.
    sending: Option<(u32, u64)>,
    /// What peers have said, and whether they have announced its end.
    pub(super) said: HashMap<PeerId, (u64, bool)>,
}

impl Ledger {
    pub(super) fn open(&mut self, id: ConnId, peer: Option<PeerId>, how: (bool, Duration)) {
        let (is_filtered, opened) = how;
        let before = self.lives.insert(id, Life { peer, is_filtered, opened, ..Life::default() });
        assert!(before.is_none(), "{id}: `open` was called twice");
    }

    pub(super) fn life(&mut self, id: ConnId) -> &mut Life {
        self.lives.get_mut(&id).unwrap_or_else(|| panic!("{id}: a callback before `open`"))
    }

    /// The key of what a service sends to a connection. Those of peers are their numbers.
    pub(super) fn own_key(id: ConnId) -> u32 {
        id.generation.get() | 1 << 31
    }

    /// `data` has these bytes in front.
    pub(super) fn check_input(&mut self, id: ConnId, bytes: &[u8]) {
        let life = self.life(id);
        assert!(!life.ended && life.closed_by.is_none(), "{id}: data after the end");
        life.owes_data = false;
        assert!(!bytes.is_empty(), "{id}: data without any");
        let (Some(key), false) = (life.peer, life.wild) else { return };
        assert!(
            matches(bytes, key as u32, life.taken),
            "{id}: bytes that its peer {key} has not sent at {}",
            life.taken
        );
    }

    /// The service is about to send these bytes of a stream.
    pub(super) fn begin_send(&mut self, key: u32, at: u64) {
        self.sending = Some((key, at));
    }

    /// It has sent. Whether the loop has taken it.
    pub(super) fn end_send(&mut self) -> bool {
        self.sending.take().is_none()
    }

    pub(super) fn pipe(&mut self, a: ConnId, b: ConnId) {
        self.unpipe(a);
        self.unpipe(b);
        let wild = [a, b].iter().any(|&id| self.life(id).wild || self.life(id).is_filtered);
        for (from, to) in [(a, b), (b, a)] {
            let life = self.life(from);
            (life.piped, life.relayed, life.wild, life.was_piped) = (Some(to), false, wild, true);
        }
    }

    /// From here on, what arrives goes to the service.
    pub(super) fn unpipe(&mut self, id: ConnId) {
        let Some(other) = self.life(id).piped else { return };
        for id in [id, other] {
            let life = self.life(id);
            if life.piped.take().is_some() && life.relayed {
                life.taken = life.read;
            }
        }
    }

    /// The unread input of a pipe's end goes to the other one: at once, and of one whose `data` runs after that.
    pub(super) fn relay(&mut self, id: ConnId) {
        let life = self.life(id);
        life.relayed |= life.piped.is_some();
    }

    pub(super) fn set_wild(&mut self, id: ConnId) {
        self.life(id).wild = true;
        if let Some(other) = self.life(id).piped {
            self.life(other).wild = true;
        }
    }

    pub(super) fn close(&mut self, id: ConnId, why: CloseReason) {
        self.unpipe(id);
        let life = self.life(id);
        assert!(life.closed_by.replace(why).is_none(), "{id}: closed twice");
    }

    /// The peer's end was delivered: it must have sent one, and everything before it must have been delivered.
    pub(super) fn end(&mut self, id: ConnId, unread: usize) {
        let life = self.life(id);
        assert!(!std::mem::replace(&mut life.ended, true), "{id}: `end` came twice");
        let (Some(peer), false, false) = (life.peer, life.wild, life.was_piped) else { return };
        let delivered = life.taken + unread as u64;
        let (said, has_ended) = self.said.get(&peer).copied().unwrap_or_default();
        assert!(has_ended, "{id}: an end that its peer {peer} has not announced");
        assert_eq!(delivered, said, "{id}: bytes that were delivered before the end of its peer {peer}");
    }

    /// Follows the loop. A splice is told as a read.
    pub(super) fn look(&mut self, step: &Step<'_>, is_splice: bool) {
        match *step {
            Step::Send { connection, bytes } => self.on_send(connection, bytes as u64),
            Step::Read { connection, result: Ok(n) } => {
                let Some(life) = self.lives.get_mut(&connection) else { return };
                (life.waited, life.read_now) = (0, life.read_now + n * usize::from(!is_splice));
                if life.piped.is_some() {
                    life.taken = life.read; // What the other end could not be sent is lost.
                    life.relayed = true;
                }
                life.read += n as u64;
                if let (true, Some(sink)) = (is_splice, life.piped) {
                    self.on_send(sink, n as u64); // It is on its way within the kernel.
                }
            }
            Step::Read { connection, .. } => self.reset_wait(connection),
            Step::Call(call) => call.connection.into_iter().for_each(|id| self.reset_wait(id)),
            _ => {}
        }
    }

    fn reset_wait(&mut self, id: ConnId) {
        if let Some(life) = self.lives.get_mut(&id) {
            life.waited = 0;
        }
    }

    /// These connections are left in the ready list after a turn: each must get its turn in time.
    pub(super) fn check_fairness(&mut self, ready: &[ConnId], max: u32) {
        for id in ready {
            let Some(life) = self.lives.get_mut(id) else { continue };
            life.waited += 1;
            assert!(life.waited <= max, "{id}: readable for {} turns, and not read", life.waited);
        }
    }

    /// The loop has queued bytes: what the service sends, or what it relays through a pipe.
    fn on_send(&mut self, id: ConnId, length: u64) {
        let Some(life) = self.lives.get(&id) else { return };
        if life.wild || length == 0 {
            self.sending = None;
            return;
        }
        let (key, at) = match (self.sending.take(), life.piped) {
            (Some(sent), _) => sent,
            (None, Some(source)) => {
                let source = self.life(source);
                let at = source.taken;
                source.taken += length;
                (source.peer.expect("a pipe's source is connected") as u32, at)
            }
            (None, None) => panic!("{id}: {length} bytes were queued that nothing has sent"),
        };
        let life = self.life(id);
        life.queued += length;
        match life.out.last_mut() {
            Some(last) if last.key == key && last.at + last.length == at => last.length += length,
            _ => life.out.push(Segment { key, at, length }),
        }
    }
}
