//! The shortest schedule that shows a bug.

use super::SeededBug;
use super::scenario::{Line, Scenario};

/// Looks for the shortest sequence of acts that shows a bug, made of the lines of one script.
///
/// ```
/// use tidemill::testing::{Scenario, Search, SeededBug};
///
/// let script = "serve echo\nann connects\nann stops reading\nann says \"x\"\nann reads again\nann ends";
/// let scenario: Scenario = script.parse().unwrap();
/// let bug = SeededBug::named("FinBeforeQueue").unwrap();
/// let (shortest, why) = Search::new(&scenario).first(bug, 50_000).expect("it is found");
/// assert!(shortest.acts().count() <= 4, "{shortest:?}");
/// assert!(!why.is_empty());
/// ```
#[derive(Debug)]
pub struct Search {
    base: Scenario,
    /// Each line, and each act of a line that has several.
    lines: Vec<Line>,
}

/// The longest schedule that is tried: ten lines to this power are a million schedules.
const ACTS_MAX: u32 = 6;

impl Search {
    /// A search among the lines of a scenario.
    pub fn new(scenario: &Scenario) -> Search {
        let mut lines: Vec<Line> = Vec::new();
        for line in &scenario.lines {
            let texts = line.text.split("; and ").map(str::to_string);
            let single =
                line.acts.iter().zip(texts).map(|(act, text)| Line { text, acts: vec![act.clone()] });
            for line in single.chain([line.clone()]) {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        Search { base: scenario.clone(), lines }
    }

    /// How many schedules there are.
    pub fn count(&self) -> u64 {
        (1..=ACTS_MAX).map(|acts| (self.lines.len() as u64).saturating_pow(acts)).fold(0, u64::saturating_add)
    }

    /// The schedule with a number, the shortest first. `None` if it is not possible (a peer acts that has not
    /// connected), and beyond the last.
    pub fn candidate(&self, number: u64) -> Option<Scenario> {
        let n = self.lines.len() as u64;
        let mut rest = number;
        let acts = (1..=ACTS_MAX).find(|&acts| {
            let all = n.saturating_pow(acts);
            let is_here = rest < all;
            rest -= if is_here { 0 } else { all };
            is_here
        })?;
        let mut lines = Vec::new();
        for place in (0..acts).rev() {
            let digit = rest / n.pow(place) % n;
            lines.push(self.lines[digit as usize].clone());
        }
        let scenario = Scenario { lines, ..self.base.clone() };
        scenario.check_names().is_ok().then_some(scenario)
    }

    /// The first of so many schedules that shows the bug, and what is wrong there.
    pub fn first(&self, bug: SeededBug, max: u64) -> Option<(Scenario, String)> {
        (0..max.min(self.count())).find_map(|number| {
            let candidate = self.candidate(number)?;
            let why = candidate.shows(bug)?;
            Some((candidate, why))
        })
    }
}

impl Scenario {
    /// What goes wrong with a bug switched on: something is stuck at rest, the loop does not become quiet, or a peer
    /// gets something else than without the bug. `None` if nothing does, and if an act is not possible.
    ///
    /// # Panics
    ///
    /// When an invariant of the loop is broken: then the bug shows, too.
    pub fn shows(&self, bug: SeededBug) -> Option<String> {
        let with = {
            let _switched_on = bug.switch_on();
            self.play()
        };
        if let Some(stuck) = with.as_ref().ok().and_then(|outcome| outcome.stuck.clone()) {
            return Some(stuck);
        }
        let without = self.play().ok()?;
        let with = match with {
            Ok(outcome) => outcome,
            Err(why) => return Some(why),
        };
        for (at, (wrong, right)) in with.peers.iter().zip(&without.peers).enumerate() {
            if with.received[at] != without.received[at] {
                let (n, of) = (wrong.received, right.received);
                return Some(format!("{} receives {n} B, and {of} B without the bug", right.name));
            }
            if (wrong.ended, wrong.closed, wrong.refused) != (right.ended, right.closed, right.refused) {
                return Some(format!("the connection of {} ends otherwise than without the bug", right.name));
            }
        }
        None
    }
}
