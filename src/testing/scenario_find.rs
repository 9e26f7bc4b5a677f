//! The shortest schedule that shows a bug.

use super::scenario::{Line, Scenario};
use super::scenario_run::Seen;
use super::{Outcome, SeededBug};

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
        self.count_up_to(ACTS_MAX as usize)
    }

    /// How many of them have fewer lines of acts than the script.
    pub fn shorter(&self) -> u64 {
        self.count_up_to(self.base.lines.len().saturating_sub(1))
    }

    /// How many of them have at most so many lines.
    fn count_up_to(&self, most: usize) -> u64 {
        let lines = self.lines.len() as u64;
        (1..=ACTS_MAX).take(most).map(|acts| lines.saturating_pow(acts)).fold(0, u64::saturating_add)
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
        self.differs(&with, &without)
    }

    /// What is other than without the bug, as early as it shows.
    fn differs(&self, with: &Outcome, without: &Outcome) -> Option<String> {
        for ((line, wrong), right) in self.lines.iter().zip(&with.rests).zip(&without.rests) {
            let names = without.peers.iter().map(|peer| &peer.name);
            for ((name, wrong), right) in names.zip(wrong).zip(right) {
                let when = format!("after `{}`", line.text);
                if wrong.0 != right.0 {
                    let (n, of) = (wrong.0, right.0);
                    return Some(format!("{when} {name} has received {n} B, and {of} B without the bug"));
                }
                if wrong != right {
                    let [is, would] = [wrong, right].map(ending);
                    return Some(format!("{when} the connection of {name} {is}; without the bug it {would}"));
                }
            }
        }
        if with.received != without.received {
            return Some("a peer receives other bytes than without the bug".to_string());
        }
        if with.is_finished != without.is_finished {
            let is = if with.is_finished { "ends" } else { "does not end" };
            return Some(format!("the loop {is} at the end, other than without the bug"));
        }
        // On a kernel that makes trouble, other steps make other turns. Backwards, since a count says more than bytes.
        let peaks = with.peaks.iter().rev().filter(|_| self.seed.is_none());
        let beyond = peaks.map(|(what, &n)| (what, n, without.peaks.get(what).copied().unwrap_or(0)));
        let (what, n, of) = beyond.into_iter().find(|(_, n, of)| n > of)?;
        Some(format!("{n} {what}, and at most {of} without the bug"))
    }
}

fn ending((_, ended, closed, refused): &Seen) -> String {
    let told = [
        ended.map(|end| format!("has ended with {end:?}")),
        closed.map(|why| format!("is closed: {}", why.word())),
        refused.map(|why| format!("is refused: {}", why.word())),
    ];
    let told: Vec<String> = told.into_iter().flatten().collect();
    if told.is_empty() { "is open".to_string() } else { told.join(" and ") }
}
