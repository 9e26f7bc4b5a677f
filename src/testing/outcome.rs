//! What a whole scenario comes to, and what must be true of it at its end.

use super::inspect::{ConnectionState, KernelSocket, KernelState, Snapshot};
use super::scenario::Scenario;
use super::scenario_peaks::Peaks;
use super::scenario_run::{Next, PeerState, Playback, Seen};

/// The end of a scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The peers, with what they have received last.
    pub peers: Vec<PeerState>,
    /// All that each of them has received.
    pub received: Vec<Vec<u8>>,
    /// The turns that the loop took.
    pub turns: u64,
    /// A hash of all that happened: see [`Bench::trace_hash`](super::Bench::trace_hash).
    pub trace_hash: u64,
    /// What is wrong, if something is: see [`Snapshot::stuck`]. It is looked for after each act.
    pub stuck: Option<String>,
    /// What could be known of each peer after each act.
    pub(super) rests: Vec<Vec<Seen>>,
    /// The most that was done in one turn.
    pub(super) peaks: Peaks,
    /// Whether nothing is left to serve or to wait for.
    pub(super) is_finished: bool,
}

impl Scenario {
    /// Plays the scenario to its end, turn by turn.
    ///
    /// ```
    /// use tidemill::testing::Scenario;
    ///
    /// let scenario: Scenario = "serve echo\nann connects\nann says \"hello\"".parse().unwrap();
    /// let outcome = scenario.play().unwrap();
    /// assert_eq!((outcome.peers[0].text.as_str(), outcome.stuck), ("hello", None));
    /// ```
    ///
    /// # Errors
    ///
    /// When an act is not possible where it stands, such as a peer that answers a dial that was not made, and when the
    /// loop does not become quiet.
    ///
    /// # Panics
    ///
    /// When an invariant of the loop is broken, as in every [`Bench`](super::Bench).
    pub fn play(&self) -> Result<Outcome, String> {
        let mut play = Playback::new(self);
        let (mut stuck, mut rests) = (None, Vec::new());
        loop {
            match play.next()? {
                Next::Over => break,
                Next::Acted(_) => {
                    rests.push(Vec::new());
                    continue;
                }
                Next::ClockMoved => {}
                Next::Turn => drop(play.bench.turn()),
            }
            if play.bench.is_quiet() {
                stuck = stuck.or_else(|| play.bench.snapshot().stuck());
                rests.last_mut().into_iter().for_each(|rest| *rest = play.seen());
            }
        }
        let peers = play.peers();
        Ok(Outcome {
            received: (0..peers.len()).map(|at| play.received(at)).collect(),
            peers,
            turns: play.bench.turns(),
            trace_hash: play.bench.trace_hash(),
            stuck,
            rests,
            peaks: play.peaks(),
            is_finished: play.bench.is_finished(),
        })
    }
}

impl Snapshot {
    /// What waits although no event and no deadline will come for it, while the loop is at rest: a wake-up that was
    /// lost. `None` if nothing does. Meant for a time at which the kernel has no event and the loop has no work left.
    pub fn stuck(&self) -> Option<String> {
        let of_socket =
            self.sockets.iter().filter(|socket| socket.state == KernelState::Open).find_map(|socket| {
                let connection = self.connections.iter().find(|it| Some(it.id) == socket.connection)?;
                connection.forgotten(socket)
            });
        let has_place =
            self.free_slots > 0 && self.descriptors_left != Some(0) && self.next_deadline.is_none();
        let waits =
            self.listeners.iter().find(|listener| listener.backlog > 0 && !listener.edge && has_place);
        let posts = (self.posts > 0 && !self.has_work).then(|| "posts wait, and no event comes".to_string());
        of_socket.or(posts).or_else(|| {
            waits.map(|at| format!("{} connections wait at {}, and no event comes", at.backlog, at.address))
        })
    }
}

impl ConnectionState {
    /// What the loop has forgotten of a connection that is at rest.
    fn forgotten(&self, socket: &KernelSocket) -> Option<String> {
        let id = self.id;
        let waits_for_handshake = matches!(self.filter, "asked" | "queued");
        let is_read = match self.stage {
            "open" => !waits_for_handshake && !self.is_held(),
            "closing" | "lingering" => true,
            _ => false,
        };
        let no_event = socket.edge.is_empty();
        let ended = self.incoming == "ended";
        if is_read && no_event && !ended && socket.unread > 0 {
            return Some(format!("{id}: {} bytes wait in the kernel, and no event comes", socket.unread));
        }
        if is_read && no_event && !ended && (socket.end || socket.reset) {
            return Some(format!("{id}: the peer's end waits in the kernel, and no event comes"));
        }
        let writes = matches!(self.stage, "open" | "closing") && !socket.reset && self.outgoing != "ended";
        if writes && no_event && self.outbox > 0 && socket.window != Some(0) {
            return Some(format!(
                "{id}: {} bytes are queued, the kernel has room, and no event comes",
                self.outbox
            ));
        }
        let owes_end = writes && self.outgoing == "ending" && self.outbox == 0 && !self.filter_is_busy();
        owes_end.then(|| format!("{id}: FIN is due and is not sent"))
    }

    fn filter_is_busy(&self) -> bool {
        matches!(self.filter, "asked" | "queued" | "handshaking")
    }

    /// `Full` does not hold a connection that is piped, or that is read when full.
    fn is_held(&self) -> bool {
        let not_full = ["Piped", "ReadWhenFull"].iter().any(|flag| self.flags.contains(flag));
        self.holds.iter().any(|hold| *hold != "Full" || !not_full)
    }
}
