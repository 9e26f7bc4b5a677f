//! A scenario on a bench: which act, clock reading or turn comes next.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::scenario::{Act, Line, Scenario, Serve};
use super::scenario_orders::{Known, Orders};
use super::scenario_peaks::{Meter, Peaks};
use super::scenario_services::{self, StartTls, Worker};
use super::{Bench, NameAnswer, Peer, PeerEnd};
use crate::base::id::{ConnId, ServiceId};
use crate::base::observer::Observer;
use crate::base::reason::{CloseReason, Refusal};
use crate::config::listen::{ListenOptions, Overflow};
use crate::connection::sockets::Sockets;
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
    /// What `serve orders` knows.
    known: Rc<RefCell<Known>>,
    peaks: Rc<RefCell<Peaks>>,
    /// The peer that another thread still posts for, how often, and how many posts the mailbox has taken.
    poster: Option<(Peer, usize)>,
    posted: u64,
}

/// What a reader can know of a peer: bytes received, and how its connection has ended.
pub(super) type Seen = (usize, Option<PeerEnd>, Option<CloseReason>, Option<Refusal>);

/// A peer that has come.
struct Played {
    name: String,
    /// How many acts have brought peers before: an act on a name is for all that came with the last act of that name.
    batch: usize,
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
        let (known, peaks) = (Rc::default(), Rc::default());
        bench.observe(Meter::new(Rc::clone(&peaks)));
        serve(&mut bench, scenario, &known);
        let lines = scenario.lines.clone().into_iter();
        Playback {
            bench,
            lines,
            peers: Vec::new(),
            until: None,
            must_turn: false,
            turns: 0,
            known,
            peaks,
            poster: None,
            posted: 0,
        }
    }

    /// What comes next; an error is an act that cannot happen here, or a loop that does not become quiet.
    pub(super) fn next(&mut self) -> Result<Next, String> {
        self.post();
        if std::mem::take(&mut self.must_turn) || !self.bench.is_quiet() {
            self.learn_ids();
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
            // The kernel wakes the loop for a deadline, and for nothing else at that time.
            self.must_turn = self.bench.event_loop.next_deadline().is_some_and(|deadline| deadline <= at);
            return Ok(Next::ClockMoved);
        }
        self.turns = 0;
        let Some(line) = self.lines.next() else { return Ok(Next::Over) };
        line.acts.iter().try_for_each(|act| self.act(act))?;
        Ok(Next::Acted(line.text))
    }

    /// The peers of a name: those that came with the last act that brought some.
    fn peers_of(&self, name: &str) -> Result<Vec<Peer>, String> {
        let last = self.peers.iter().rev().find(|played| played.name == name);
        let batch = last.ok_or_else(|| format!("{name} is not there yet"))?.batch;
        let all = self.peers.iter().filter(|played| played.name == name && played.batch == batch);
        Ok(all.map(|played| played.peer).collect())
    }

    fn peer(&self, name: &str) -> Result<Peer, String> {
        self.peers_of(name).map(|all| all[0])
    }

    fn add_peer(&mut self, name: &str, batch: usize, peer: Peer) {
        self.peers.push(Played { name: name.to_string(), batch, peer, clear: Vec::new() });
    }

    /// Another thread posts as much as the mailbox takes.
    fn post(&mut self) {
        while let Some((peer, left)) = self.poster.filter(|(_, left)| *left > 0) {
            if self.bench.handle().post(line_for(self.bench.id(peer))).is_err() {
                return;
            }
            self.posted += 1;
            self.poster = Some((peer, left - 1));
        }
        let waiting = (self.posted - self.bench.stats().posts.min(self.posted)) as usize;
        let mut peaks = self.peaks.borrow_mut();
        let most = peaks.entry("posts wait").or_default();
        *most = waiting.max(*most);
    }

    /// What has been accepted is known by its name from the next turn on.
    fn learn_ids(&mut self) {
        for played in &self.peers {
            if let Some(id) = self.bench.id(played.peer) {
                self.known.borrow_mut().ids.insert(played.name.clone(), id);
            }
        }
    }

    fn act(&mut self, act: &Act) -> Result<(), String> {
        match act {
            Act::Connect(name, times) => {
                let batch = self.peers.len();
                for _ in 0..*times {
                    let peer = self.bench.connect();
                    self.add_peer(name, batch, peer);
                }
            }
            Act::Answer(name, to) => {
                let peer = self.bench.next_upstream(to).ok_or_else(|| format!("no dial to {to} waits"))?;
                self.add_peer(name, self.peers.len(), peer);
            }
            Act::Say(name, bytes) => self.each(name, |bench, peer| bench.say(peer, bytes))?,
            Act::End(name) => self.each(name, Bench::end)?,
            Act::Reset(name) => self.each(name, Bench::reset)?,
            Act::CutOff(name) => self.each(name, Bench::truncate)?,
            Act::Read(name, bytes) => self.each(name, |bench, peer| bench.read_at_most(peer, *bytes))?,
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
            Act::Post(name, n) => {
                self.poster = Some((self.peer(name)?, *n));
                self.post();
            }
            Act::PostInBetween(name) => {
                let (handle, work) = (self.bench.handle(), line_for(self.bench.id(self.peer(name)?)));
                crate::handle::between_steps(Box::new(move || _ = handle.post(work)));
            }
            Act::Advance(span) => {
                self.until = Some(self.until.unwrap_or_else(|| self.bench.elapsed()) + *span);
            }
            Act::Shutdown(grace) => self.bench.shutdown(*grace),
        }
        Ok(())
    }

    fn each(&mut self, name: &str, mut act: impl FnMut(&mut Bench, Peer)) -> Result<(), String> {
        self.peers_of(name)?.into_iter().for_each(|peer| act(&mut self.bench, peer));
        Ok(())
    }

    /// What can be known of each peer now.
    pub(super) fn seen(&self) -> Vec<Seen> {
        let bench = &self.bench;
        let seen = |(at, played): (usize, &Played)| {
            let peer = played.peer;
            (self.received(at).len(), bench.ended(peer), bench.closed(peer), bench.refused(peer))
        };
        self.peers.iter().enumerate().map(seen).collect()
    }

    /// The most in one turn, so far.
    pub(super) fn peaks(&self) -> Peaks {
        let mut peaks = self.peaks.borrow().clone();
        peaks.insert("B of memory are in use", self.known.borrow().memory);
        peaks
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

/// A post that sends a line to a connection.
fn line_for(id: Option<ConnId>) -> impl FnOnce(&mut Sockets<'_>) + Send + 'static {
    move |sockets| {
        id.and_then(|id| sockets.get(id)).into_iter().for_each(|mut socket| socket.send("posted\n"));
    }
}

/// Adds the service of a scenario and its listener.
fn serve(bench: &mut Bench, scenario: &Scenario, known: &Rc<RefCell<Known>>) {
    let service: ServiceId = match &scenario.serve {
        Serve::Echo => bench.add(Echo::raw()).into(),
        Serve::Quit => bench.add(Echo::new()).into(),
        Serve::Chat => bench.add(Chat::new()).into(),
        Serve::Frames(framing) => bench.add(Frames::new(framing.clone())).into(),
        Serve::StartTls => bench.add(StartTls).into(),
        Serve::Worker => bench.add(Worker).into(),
        Serve::Orders => bench.add(Orders::new(Rc::clone(known))).into(),
        Serve::Proxy(to) => bench.add(Proxy::to(to.clone())).into(),
    };
    let options = ListenOptions {
        overflow: if scenario.waits { Overflow::Wait } else { Overflow::Refuse },
        reserve_slot: matches!(scenario.serve, Serve::Proxy(_)),
        filter: scenario.filtered.then(scenario_services::server),
        ..ListenOptions::default()
    };
    bench.listen_with("10.0.0.2:9001", service, &options).expect("the address is free");
}
