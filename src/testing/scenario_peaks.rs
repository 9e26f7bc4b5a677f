//! The most that the loop has done in one turn: a bound that does not hold shows here, and nowhere else.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::base::id::ConnId;
use crate::base::observer::{Observer, Step};

/// The most of each kind in one turn, as a reader is told of it.
pub(super) type Peaks = BTreeMap<&'static str, usize>;

const ACCEPTED: &str = "connections are accepted in one turn";
const CLOSED: &str = "connections are reaped in one turn";
const READ: &str = "B of one connection are read in one turn";
const SENT: &str = "B are queued in one turn";

/// Counts what happens in each turn, and keeps the most.
#[derive(Default)]
pub(super) struct Meter {
    most: Rc<RefCell<Peaks>>,
    turn: Peaks,
    read: BTreeMap<ConnId, usize>,
}

impl Meter {
    pub(super) fn new(most: Rc<RefCell<Peaks>>) -> Meter {
        Meter { most, ..Meter::default() }
    }
}

impl Observer for Meter {
    fn observe(&mut self, step: &Step<'_>) {
        let (what, n) = match step {
            Step::Accept { .. } => (ACCEPTED, 1),
            Step::Close { service: Some(_), .. } => (CLOSED, 1),
            Step::Send { bytes, .. } => (SENT, *bytes),
            Step::Read { connection, result: Ok(n) } => {
                let of_turn = self.read.entry(*connection).or_default();
                *of_turn += n;
                let most = (*of_turn).max(self.turn.get(READ).copied().unwrap_or(0));
                self.turn.insert(READ, most);
                return;
            }
            Step::TurnEnd { .. } => {
                self.read.clear();
                let mut most = self.most.borrow_mut();
                for (what, n) in std::mem::take(&mut self.turn) {
                    let peak = most.entry(what).or_default();
                    *peak = n.max(*peak);
                }
                return;
            }
            _ => return,
        };
        *self.turn.entry(what).or_default() += n;
    }
}
