//! The places of the connections: when each is dialed, and again after a failure.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use tidemill::{ConnId, ServiceId, Sockets};

use super::plan::Plan;

/// Dials under way at once: more would only overflow the server's backlog, which is 128 by default on older systems.
const DIALS_MAX: usize = 128;
/// A failed place is dialed again after this, doubled with each failure in a row up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Each place has at most one connection at a time.
pub struct Places {
    ids: Vec<Option<ConnId>>,
    numbers: HashMap<ConnId, usize>,
    /// Failures in a row.
    failures: Vec<u32>,
    redials: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Places from this one on were never dialed.
    undialed: usize,
    /// Places whose first dial has succeeded or failed, and how many they are.
    settled: Vec<bool>,
    settled_count: usize,
    dials: usize,
    pub up: usize,
    pub connecting: usize,
    /// Whether any connection was ever established.
    pub ever_up: bool,
}

impl Places {
    pub fn new(count: usize) -> Places {
        Places {
            ids: vec![None; count],
            numbers: HashMap::new(),
            failures: vec![0; count],
            redials: BinaryHeap::new(),
            undialed: 0,
            settled: vec![false; count],
            settled_count: 0,
            dials: 0,
            up: 0,
            connecting: 0,
            ever_up: false,
        }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn id(&self, number: usize) -> Option<ConnId> {
        self.ids[number]
    }

    pub fn number(&self, id: ConnId) -> Option<usize> {
        self.numbers.get(&id).copied()
    }

    /// Whether each place has been dialed once and has succeeded or failed.
    pub fn all_settled(&self) -> bool {
        self.settled_count == self.ids.len()
    }

    pub fn may_dial(&self) -> bool {
        self.connecting < DIALS_MAX
    }

    /// The next place that was never dialed.
    pub fn next_new(&mut self) -> Option<usize> {
        let number = (self.may_dial() && self.undialed < self.ids.len()).then_some(self.undialed)?;
        self.undialed += 1;
        Some(number)
    }

    /// A place whose wait after a failure is over.
    pub fn next_retry(&mut self, now: Instant) -> Option<usize> {
        let Reverse((at, _)) = self.redials.peek()?;
        if *at > now || !self.may_dial() {
            return None;
        }
        self.redials.pop().map(|Reverse((_, number))| number)
    }

    /// Dials for a place. An error is the generator's own: it has too many connections.
    pub fn dial(
        &mut self,
        number: usize,
        plan: &Plan,
        sockets: &mut Sockets<'_>,
        own: ServiceId,
    ) -> Result<(), String> {
        let options = plan.dial_options(self.dials);
        self.dials += 1;
        let dialed = sockets.dial_with(&plan.to, own, options);
        match dialed {
            Ok(id) => {
                self.connecting += 1;
                self.numbers.insert(id, number);
                self.ids[number] = Some(id);
                Ok(())
            }
            Err(error) => {
                self.settle(number);
                self.failed(number, sockets.now());
                Err(error.to_string())
            }
        }
    }

    pub fn connected(&mut self, number: usize) {
        self.connecting -= 1;
        self.up += 1;
        self.ever_up = true;
        self.settle(number);
    }

    /// An answer has come: the next failure is the first in a row.
    pub fn succeeded(&mut self, number: usize) {
        self.failures[number] = 0;
    }

    /// The connection of a place has ended.
    pub fn ended(&mut self, id: ConnId, was_connected: bool) {
        if was_connected {
            self.up -= 1;
        } else {
            self.connecting -= 1;
        }
        if let Some(number) = self.numbers.remove(&id) {
            self.ids[number] = None;
            self.settle(number);
        }
    }

    /// Has a place dialed again after a wait.
    pub fn failed(&mut self, number: usize, now: Instant) {
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures[number].min(10)).min(RETRY_MAX);
        self.failures[number] += 1;
        self.redials.push(Reverse((now + wait, number)));
    }

    /// Has a place dialed again at once.
    pub fn again(&mut self, number: usize, now: Instant) {
        self.redials.push(Reverse((now, number)));
    }

    fn settle(&mut self, number: usize) {
        self.settled_count += usize::from(!std::mem::replace(&mut self.settled[number], true));
    }
}
