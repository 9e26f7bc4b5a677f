//! temporary
use crate::time::Tick;
use std::collections::{BTreeSet, HashMap};
#[derive(Default, Debug)]
pub(crate) struct Wheel {
    set: BTreeSet<(Tick, u32)>,
    by: HashMap<u32, Tick>,
}
impl Wheel {
    pub(crate) fn new() -> Wheel {
        Wheel::default()
    }
    pub(crate) fn arm(&mut self, slot: u32, when: Tick) {
        self.cancel(slot);
        self.set.insert((when, slot));
        self.by.insert(slot, when);
    }
    pub(crate) fn cancel(&mut self, slot: u32) {
        if let Some(w) = self.by.remove(&slot) {
            self.set.remove(&(w, slot));
        }
    }
    pub(crate) fn when(&self, slot: u32) -> Option<Tick> {
        self.by.get(&slot).copied()
    }
    pub(crate) fn pop_due(&mut self, now: Tick) -> Option<u32> {
        let &(w, s) = self.set.first()?;
        if w <= now {
            self.cancel(s);
            Some(s)
        } else {
            None
        }
    }
    pub(crate) fn next(&self) -> Option<Tick> {
        self.set.first().map(|e| e.0)
    }
}
