//! A scenario on a bench: which act, clock reading or turn comes next.

use std::time::Duration;

use super::scenario::{Act, Line, Scenario, Serve, framing};
use super::scenario_services::{self, StartTls, Worker};
use super::{Bench, NameAnswer, Peer, PeerEnd};
use crate::base::observer::Observer;
use crate::base::reason::{CloseReason, Refusal};
use crate::services::{Chat, Echo, Frames, Proxy};

/// A scenario that is being played.
///
/// ```text
///     next ─▶ Acted      a line of the script has happened; the loop has not turned yet
///          ─▶ ClockMoved to the next deadline, or to the end of `advance`
///          ─▶ Turn       the loop has something to do: the caller turns it, or runs its phases one by one
///          ─▶ Over
/// ```
pub(super) struct Playback {
    pub(super) bench: Bench,
    lines: std::vec::IntoIter<Line>,
    peers: Vec<Played>,
    /// How far `advance` still moves the clock.
    until: Option<Duration>,
    /// The clock has moved, so the loop turns although no event has come.
    must_turn: bool,
    /// Turns since the last act.
    turns: usize,
}

/// A peer that has come.
struct Played {
    name: String,
    peer: Peer,
    /// What it received before its filter started.
    clear: Vec<u8>,
}

/// What a scenario does next.
pub(super) enum Next {
    Acted(String),
    ClockMoved,
    Turn,
    Over,
}

/// A peer of a scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PeerState {
    /// Its name in the script; the second one of that name is `ann (2)`.
    pub name: String,
    /// The number of its socket in the kernel.
    pub socket: usize,
    /// How many bytes it has received, after its filter.
    pub received: usize,
    /// The last of them, at most 256, as text.
    pub text: String,
    /// How the connection has ended for it.
    pub ended: Option<PeerEnd>,
    /// What the service was told.
    pub closed: Option<CloseReason>,
    /// Why it was refused.
    pub refused: Option<Refusal>,
}

/// Turns after one act. A loop that needs more is not bounded as it should be; the longest scenario needs 300.
const TURNS_MAX: usize = 2_000;
const TEXT_OF_A_PEER: usize = 256;

impl Playback {
    pub(super) fn new(scenario: &Scenario) -> Playback {
        Playback::observed(scenario, None)
    }

    /// The observer gets every step of the loop from its beginning.
    pub(super) fn observed(scenario: &Scenario, observer: Option<Box<dyn Observer>>) -> Playback {
        let limits = scenario.limits.clone();
        let mut bench = match scenario.seed {
            Some(seed) => Bench::seeded_with(seed, limits),
            None => Bench::new_with(limits),
        };
        bench.is_held = true;
        bench.page_link = Some(scenario.page_link());
        if let Some(mut observer) = observer {
            bench.observe(move |step: &crate::base::observer::Step<'_>| observer.observe(step));
        }
        if let Some(bytes) = scenario.split {
            bench.split_every(bytes);
        }
        match &scenario.serve {
            Serve::Echo => drop(bench.serve(Echo::raw())),
            Serve::Quit => drop(bench.serve(Echo::new())),
            Serve::Chat => drop(bench.serve(Chat::new())),
            Serve::Frames => drop(bench.serve(Frames::new(framing()))),
            Serve::StartTls => drop(bench.serve(StartTls)),
            Serve::Worker => drop(bench.serve(Worker)),
            Serve::Proxy(to) => drop(bench.serve(Proxy::to(to.clone()))),
        }
        let lines = scenario.lines.clone().into_iter();
        Playback { bench, lines, peers: Vec::new(), until: None, must_turn: false, turns: 0 }
    }

    /// What comes next; an error is an act that cannot happen here, or a loop that does not become quiet.
    pub(super) fn next(&mut self) -> Result<Next, String> {
        if std::mem::take(&mut self.must_turn) || !self.bench.is_quiet() {
            self.turns += 1;
            if self.turns > TURNS_MAX {
                let left = self.bench.unfinished();
                return Err(format!("after {TURNS_MAX} turns there is still something to do: {left}"));
            }
            return Ok(Next::Turn);
        }
        if let Some(end) = self.until {
            let at = self.bench.move_clock(end);
            self.until = Some(end).filter(|&end| at < end);
            self.must_turn = true;
            return Ok(Next::ClockMoved);
        }
        self.turns = 0;
        let Some(line) = self.lines.next() else { return Ok(Next::Over) };
        line.acts.iter().try_for_each(|act| self.act(act))?;
        Ok(Next::Acted(line.text))
    }

    fn peer(&self, name: &str) -> Result<Peer, String> {
        let found = self.peers.iter().rev().find(|played| played.name == name);
        found.map(|played| played.peer).ok_or_else(|| format!("{name} is not there yet"))
    }

    fn act(&mut self, act: &Act) -> Result<(), String> {
        match act {
            Act::Connect(name) => {
                let peer = self.bench.connect();
                self.peers.push(Played { name: name.clone(), peer, clear: Vec::new() });
            }
            Act::Answer(name, to) => {
                let peer = self.bench.next_upstream(to).ok_or_else(|| format!("no dial to {to} waits"))?;
                self.peers.push(Played { name: name.clone(), peer, clear: Vec::new() });
            }
            Act::Say(name, bytes) => self.bench.say(self.peer(name)?, bytes),
            Act::End(name) => self.bench.end(self.peer(name)?),
            Act::Reset(name) => self.bench.reset(self.peer(name)?),
            Act::Read(name, bytes) => self.bench.read_at_most(self.peer(name)?, *bytes),
            Act::StartFilter(name) => {
                let peer = self.peer(name)?;
                let clear = self.bench.heard_bytes(peer);
                let played = self.peers.iter_mut().find(|played| played.peer == peer);
                played.into_iter().for_each(|played| played.clear.extend_from_slice(&clear));
                self.bench.start_filter(peer, &scenario_services::client(), "mail.example:25");
            }
            Act::StaleEvent(name) => self.bench.script.repeat_event(self.peer(name)?.0),
            Act::NoDescriptors => {
                let open = self.bench.script.open_descriptors();
                self.bench.script.descriptors(open.saturating_sub(1));
            }
            Act::Descriptors(left) => self.bench.set_descriptors_left(*left),
            Act::Name(host, ips) => self.bench.set_name(host, NameAnswer::Addresses(ips.clone())),
            Act::Dial(to, answer) => self.bench.set_dial(to, *answer),
            Act::Advance(span) => {
                self.until = Some(self.until.unwrap_or_else(|| self.bench.elapsed()) + *span);
            }
            Act::Shutdown(grace) => self.bench.shutdown(*grace),
        }
        Ok(())
    }

    /// What has become of the peers.
    pub(super) fn peers(&self) -> Vec<PeerState> {
        let mut states: Vec<PeerState> = Vec::new();
        for (at, Played { name, peer, .. }) in self.peers.iter().enumerate() {
            let nth = 1 + self.peers[..at].iter().filter(|other| other.name == *name).count();
            let received = self.received(at);
            let last = &received[received.len().saturating_sub(TEXT_OF_A_PEER)..];
            states.push(PeerState {
                name: if nth == 1 { name.clone() } else { format!("{name} ({nth})") },
                socket: peer.0,
                received: received.len(),
                text: String::from_utf8_lossy(last).into_owned(),
                ended: self.bench.ended(*peer),
                closed: self.bench.closed(*peer),
                refused: self.bench.refused(*peer),
            });
        }
        states
    }

    /// All bytes that a peer has received.
    pub(super) fn received(&self, at: usize) -> Vec<u8> {
        let Played { peer, clear, .. } = &self.peers[at];
        [clear.as_slice(), &self.bench.peek_bytes(*peer)].concat()
    }
}
