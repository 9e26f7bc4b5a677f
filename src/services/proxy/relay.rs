//! Pairs whose bytes the proxy passes on itself, because a fault or a mirror is to see them. All others are piped.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use super::Proxy;
use super::fault::plan::Plan;
use super::fault::{Faults, Stop};
use super::mirror::{Mirror, MirrorSummary};
use crate::base::address::Address;
use crate::base::id::ConnId;
use crate::base::reason::{CloseReason, ClosedInfo};
use crate::connection::socket::Socket;
use crate::connection::sockets::Sockets;
use crate::parts::inbox::Input;

/// What is asked for, and the pairs that pass through.
#[derive(Debug, Default)]
pub(super) struct Relays {
    /// Faults of connections to one upstream, or to all that have none of their own.
    pub(super) faults: Vec<(Option<Address>, Faults)>,
    pub(super) seed: u64,
    pub(super) mirror_to: Option<Address>,
    pub(super) mirror_summary: MirrorSummary,
    /// Clients that were admitted so far: the faults of each are drawn by its number.
    pub(super) clients: u64,
    /// By client.
    pairs: HashMap<ConnId, Box<Relay>>,
    /// Bytes that wait in all pairs.
    held: usize,
}

/// A client and its upstream.
///
/// ```text
///     client ─ data ─▶ up: Stream ─ held until due, while not full ─▶ upstream
///            ◀──────── down: Stream ◀─────────────────────── data ─
///                 └──▶ copy: Stream ──▶ the mirror, which is dropped if it does not keep up
/// ```
#[derive(Debug)]
pub(super) struct Relay {
    client: ConnId,
    upstream: ConnId,
    up: Stream,
    down: Stream,
    pub(super) mirror: Mirror,
    /// The fault that ended it: direction, kind, and the position in bytes.
    fired: Option<(bool, Stop, u64)>,
}

/// The bytes of one direction.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// None: nothing is to happen to them.
    plan: Option<Plan>,
    /// Bytes that have come so far.
    position: u64,
    held: VecDeque<Held>,
    pub(super) held_bytes: usize,
    last_due: Duration,
    /// Nothing more gets through.
    is_over: bool,
    /// It is over by a stall: the pair is still to be cut or reset, if that was asked for.
    is_stalled: bool,
    has_ended: bool,
    /// Whether the source is paused, since enough is held.
    is_paused: bool,
    /// Whether a turn has passed in which what was sent before was not written.
    has_waited: bool,
}

#[derive(Debug)]
struct Held {
    due: Duration,
    item: Item,
}

#[derive(Debug)]
enum Item {
    Bytes(Vec<u8>),
    End,
    Stop(Stop),
    /// The source has gone; with a reset, if what it said is incomplete.
    SourceGone {
        incomplete: bool,
        why: CloseReason,
    },
}

/// What a stream waits for.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    /// More bytes.
    Input,
    /// The receiver's queue.
    Drained,
    NextTurn,
    Time(Duration),
    Stopped(Stop),
}

/// Bytes that wait in one direction before its source is paused; with latency 16 times as many, which is 1 MiB: 20 MiB
/// a second at 50 ms.
const HELD_MAX: usize = 64 * 1024;
const HELD_MAX_SLOW: usize = 16 * HELD_MAX;
/// Bytes that wait in all directions together: beyond this, a source is paused as long as any byte of it waits. They
/// are not part of [`Limits::memory`](crate::Limits::memory).
const HELD_MAX_ALL: usize = 64 * 1024 * 1024;
/// How soon it is looked again whether the bytes before a piece or a reset have been written, if a turn was not enough.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The tags of alarms: held bytes are due; a fault of the direction up, or down, is.
const DUE: u64 = 1;
const FAULT_UP: u64 = 2;
const FAULT_DOWN: u64 = 3;

impl Stream {
    fn new(plan: Option<Plan>, now: Duration) -> Stream {
        let mut stream = Stream { plan, ..Stream::default() };
        // A fault after no byte at all comes before the first.
        if let Some((0, stop)) = stream.plan.as_ref().and_then(|plan| plan.at_byte) {
            stream.stop(stop, now);
        }
        stream
    }

    /// Bytes have come.
    pub(super) fn push(&mut self, mut bytes: &[u8], now: Duration) {
        while !bytes.is_empty() && !self.is_over {
            let stop = self.plan.as_ref().and_then(|plan| plan.at_byte);
            let left = stop.map_or(u64::MAX, |(at, _)| at - self.position);
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let n = if n == 0 {
                0
            } else {
                self.plan.as_mut().map_or(n, |plan| plan.next_piece(self.position, n))
            };
            let (piece, rest) = bytes.split_at(n);
            if n > 0 {
                self.hold(Item::Bytes(piece.to_vec()), Duration::ZERO, now);
            }
            (self.position, bytes) = (self.position + n as u64, rest);
            if let Some((_, stop)) = stop.filter(|(at, _)| *at == self.position) {
                self.stop(stop, now);
            }
        }
    }

    /// The source has sent its end.
    pub(super) fn end(&mut self, now: Duration) {
        self.has_ended = true;
        if !self.is_over {
            let extra = self.plan.as_ref().map_or(Duration::ZERO, |plan| plan.slow_close);
            self.hold(Item::End, extra, now);
        }
    }

    fn stop(&mut self, stop: Stop, now: Duration) {
        if !self.is_over || self.is_stalled {
            self.hold(Item::Stop(stop), Duration::ZERO, now);
            (self.is_over, self.is_stalled) = (true, stop == Stop::Stall);
        }
    }

    fn hold(&mut self, item: Item, extra: Duration, now: Duration) {
        let mut due = now + extra;
        if let Some(plan) = &self.plan {
            due += plan.delay(self.position);
            let gap = plan.gap().filter(|_| !self.held.is_empty() || self.last_due > now);
            due = due.max(self.last_due + gap.unwrap_or_default());
        }
        if let Item::Bytes(bytes) = &item {
            self.held_bytes += bytes.len();
        }
        self.last_due = due.max(self.last_due);
        self.held.push_back(Held { due: self.last_due, item });
    }

    /// Sends what is due, as far as the receiver takes it.
    fn release(&mut self, to: &mut Socket<'_>) -> Wait {
        let (now, mut has_sent) = (to.elapsed(), false);
        let apart = self.plan.as_ref().is_some_and(|plan| plan.gap().is_some());
        while let Some(front) = self.held.front() {
            match &front.item {
                _ if front.due > now => return Wait::Time(front.due - now),
                Item::Bytes(_) if to.is_full() => return Wait::Drained,
                // A piece, and a reset, which drops what is queued, come when the bytes before them are written.
                Item::Bytes(_) if !apart => {}
                Item::Bytes(_) | Item::Stop(Stop::Reset) | Item::SourceGone { incomplete: true, .. }
                    if to.queued() > 0 =>
                {
                    let again = std::mem::replace(&mut self.has_waited, !has_sent) && !has_sent;
                    return if again { Wait::Time(LOOK_AGAIN) } else { Wait::NextTurn };
                }
                _ => {}
            }
            match self.held.pop_front().map(|held| held.item) {
                Some(Item::Bytes(bytes)) => {
                    self.held_bytes -= bytes.len();
                    to.send(&bytes);
                    (has_sent, self.has_waited) = (true, false);
                }
                Some(Item::End) => to.finish(),
                Some(Item::Stop(stop)) => return Wait::Stopped(stop),
                Some(Item::SourceGone { incomplete: true, .. }) => to.abort(),
                Some(Item::SourceGone { why, .. }) => to.close_as(why),
                None => {}
            }
        }
        Wait::Input
    }

    /// Drops what is held: it can reach nothing any more.
    pub(super) fn clear(&mut self) {
        (self.held_bytes, self.is_over) = (0, true);
        self.held.clear();
    }

    /// Takes bytes, sends what is due, and has the receiver called again for the rest. Says how the pair is to end.
    pub(super) fn pump(&mut self, bytes: &[u8], to: ConnId, sockets: &mut Sockets<'_>) -> Option<Stop> {
        let Some(mut to) = sockets.get(to) else {
            self.clear();
            return None;
        };
        if self.plan.is_none() && self.held.is_empty() && !self.is_over && !to.is_full() {
            to.send(bytes);
            self.position += bytes.len() as u64;
            return None;
        }
        self.push(bytes, to.elapsed());
        match self.release(&mut to) {
            Wait::Input | Wait::Drained => {}
            Wait::NextTurn => to.poke(),
            Wait::Time(left) => {
                to.set_alarm_for(DUE, Some(left));
            }
            Wait::Stopped(stop) => return Some(stop),
        }
        None
    }

    fn is_full(&self, all: usize) -> bool {
        let is_slow = self.plan.as_ref().is_some_and(Plan::is_slow);
        let max = if is_slow { HELD_MAX_SLOW } else { HELD_MAX };
        self.held_bytes >= max || (all >= HELD_MAX_ALL && self.held_bytes > 0)
    }
}

impl Relay {
    fn direction(&mut self, up: bool) -> (&mut Stream, ConnId, ConnId) {
        match up {
            true => (&mut self.up, self.client, self.upstream),
            false => (&mut self.down, self.upstream, self.client),
        }
    }

    fn held(&self) -> usize {
        self.up.held_bytes + self.down.held_bytes
    }
}

/// For the line in the log, behind how both sides have ended.
impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((up, stop, at)) = self.fired {
            let direction = if up { "up" } else { "down" };
            write!(f, " fault={direction}:{}@{at}", stop.word())?;
        }
        write!(f, "{}", self.mirror)
    }
}

impl Relays {
    /// Whether some pairs are not piped.
    pub(super) fn is_used(&self) -> bool {
        self.mirror_to.is_some() || self.faults.iter().any(|(_, faults)| *faults != Faults::default())
    }

    pub(super) fn get(&mut self, client: ConnId) -> Option<&mut Relay> {
        self.pairs.get_mut(&client).map(|relay| &mut **relay)
    }

    /// The pair has gone: what the log says of it.
    pub(super) fn remove(&mut self, client: ConnId) -> Option<Box<Relay>> {
        let relay = self.pairs.remove(&client)?;
        self.held -= relay.held();
        Some(relay)
    }

    /// Passes bytes on in one direction, and what is due. The source is read as long as little waits.
    fn pump(&mut self, client: ConnId, up: bool, bytes: &[u8], sockets: &mut Sockets<'_>) {
        let Some(relay) = self.pairs.get_mut(&client) else { return };
        let before = relay.held();
        let (stream, source, sink) = relay.direction(up);
        let stop = stream.pump(bytes, sink, sockets);
        let (position, others) = (stream.position, self.held - before);
        let was_paused = stream.is_paused;
        stream.is_paused = match was_paused {
            true => stream.held_bytes > HELD_MAX / 2,
            false => stream.is_full(others),
        };
        if let Some(mut source) = sockets.get(source).filter(|_| stream.is_paused != was_paused) {
            if was_paused { source.resume() } else { source.pause() }
        }
        self.held = self.held + relay.held() - before;
        let Some(stop) = stop else { return };
        relay.fired = Some((up, stop, position));
        for end in [sink, source] {
            match (sockets.get(end), stop) {
                (None, _) | (_, Stop::Stall) => {}
                (Some(mut end), Stop::Cut) => end.close(),
                (Some(mut end), Stop::Reset) => end.abort(),
            }
        }
    }
}

impl Proxy {
    /// Whether the bytes of a pair have to pass through the proxy, rather than a pipe. `number` is the client's.
    pub(super) fn start_relay(
        &mut self,
        client: &mut Socket<'_>,
        upstream: ConnId,
        to: usize,
        number: u64,
    ) -> bool {
        if !self.relays.is_used() {
            return false;
        }
        let target = self.upstreams.get(to).to;
        let of = |own: bool| {
            self.relays
                .faults
                .iter()
                .find(|(to, _)| if own { to.as_ref() == Some(target) } else { to.is_none() })
        };
        let faults =
            of(true).or_else(|| of(false)).map_or_else(Faults::default, |(_, faults)| faults.clone());
        let seed = self.relays.seed;
        let [up, down] = [(&faults.up, true), (&faults.down, false)]
            .map(|(fault, up)| Plan::draw(fault, seed, number, up));
        // A rate needs no detour.
        if faults.up.rate.is_some() {
            client.set_rate(faults.up.rate);
        }
        if let (Some(rate), Some(mut upstream)) = (faults.down.rate, client.other(upstream)) {
            upstream.set_rate(Some(rate));
        }
        let mirror = self.dial_mirror(client);
        if up.is_none() && down.is_none() && !mirror.is_wanted() {
            return false;
        }
        for (plan, tag) in [(&up, FAULT_UP), (&down, FAULT_DOWN)] {
            if let Some((after, _)) = plan.as_ref().and_then(|plan| plan.at_time) {
                client.set_alarm_for(tag, Some(after));
            }
        }
        let (id, now) = (client.id(), client.elapsed());
        let (up, down) = (Stream::new(up, now), Stream::new(down, now));
        let relay = Relay { client: id, upstream, up, down, mirror, fired: None };
        self.relays.pairs.insert(id, Box::new(relay));
        for up in [true, false] {
            self.relays.pump(id, up, &[], &mut client.all());
        }
        true
    }

    /// Bytes of one side have come.
    pub(super) fn relay_bytes(&mut self, client: ConnId, source: &mut Socket<'_>, input: &mut Input<'_>) {
        let up = source.id() == client;
        if self.relays.get(client).is_none() {
            return;
        }
        let bytes = input.take_all();
        if up {
            self.copy_to_mirror(client, bytes, &mut source.all());
        }
        self.relays.pump(client, up, bytes, &mut source.all());
    }

    /// One side has ended: its end is passed on behind its bytes. Says whether it is one of a pair.
    pub(super) fn pass_end_on(&mut self, client: ConnId, source: &mut Socket<'_>) -> bool {
        let (now, up) = (source.elapsed(), source.id() == client);
        let Some(relay) = self.relays.get(client) else { return false };
        relay.direction(up).0.end(now);
        if up {
            self.end_mirror(client, &mut source.all());
        }
        self.relays.pump(client, up, &[], &mut source.all());
        true
    }

    /// A side of a pair can be sent to: its queue is short again, a turn has passed, or bytes for it are due.
    pub(super) fn relay_more(&mut self, client: ConnId, sink: &mut Socket<'_>) {
        let up = sink.id() != client;
        self.relays.pump(client, up, &[], &mut sink.all());
    }

    /// An alarm of a side of a pair.
    pub(super) fn relay_alarm(&mut self, client: ConnId, socket: &mut Socket<'_>, tag: u64) {
        let up = match tag {
            FAULT_UP => true,
            FAULT_DOWN => false,
            _ => return self.relay_more(client, socket),
        };
        let now = socket.elapsed();
        let Some(relay) = self.relays.get(client) else { return };
        let (stream, ..) = relay.direction(up);
        if let Some((_, stop)) = stream.plan.as_ref().and_then(|plan| plan.at_time) {
            stream.stop(stop, now);
        }
        self.relays.pump(client, up, &[], &mut socket.all());
    }

    /// One side of a pair has gone. As with a pipe, a clean end leaves the other direction running, and any other
    /// reason closes the other side, behind what is on its way to it.
    pub(super) fn relay_closed(&mut self, client: ConnId, gone: &ClosedInfo, sockets: &mut Sockets<'_>) {
        let (now, up) = (sockets.elapsed(), gone.id == client);
        if up {
            self.close_mirror(client, gone, sockets);
        }
        let Some(relay) = self.relays.get(client) else { return };
        if gone.reason != CloseReason::Finished {
            let (stream, ..) = relay.direction(up);
            let incomplete = !self.ends_on_reset && is_cut_off(gone.reason, stream.has_ended);
            let why =
                if gone.reason == CloseReason::Shutdown { gone.reason } else { CloseReason::PipePeerClosed };
            stream.is_over = true;
            stream.hold(Item::SourceGone { incomplete, why }, Duration::ZERO, now);
        }
        self.relays.pump(client, up, &[], sockets);
    }
}

/// Whether more may have been on its way from a connection when it closed, as for a pipe.
fn is_cut_off(why: CloseReason, has_ended: bool) -> bool {
    use CloseReason::{Aborted, Error, Memory, Reset, SlowReader, Tls, TooSlow, Truncated};
    match why {
        Truncated => true,
        Reset | Aborted | Tls | TooSlow | SlowReader | Memory | Error(_) => !has_ended,
        _ => false,
    }
}
