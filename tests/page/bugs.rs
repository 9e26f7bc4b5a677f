//! Bugs that are switched on show in a scenario, and the shortest schedule is found.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tidemill::testing::{NamedScenario, SCENARIOS, Scenario, Search, SeededBug};

/// What goes wrong with the bug; a broken invariant of the loop panics.
fn wrong(scenario: &Scenario, bug: SeededBug) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| scenario.shows(bug)))
        .unwrap_or_else(|_| Some("an invariant is broken".to_string()))
}

/// The bugs and the scenarios that name them: all that the page offers.
pub fn shown() -> Vec<(SeededBug, NamedScenario)> {
    let bugs_of = |named: &NamedScenario| named.scenario().bugs().collect::<Vec<_>>();
    SCENARIOS.iter().flat_map(|named| bugs_of(named).into_iter().map(|bug| (bug, *named))).collect()
}

#[test]
fn each_bug_shows_in_the_scenarios_that_name_it_and_only_when_it_is_switched_on() {
    let mut missing: Vec<String> = Vec::new();
    for (bug, named) in shown() {
        match wrong(&named.scenario(), bug) {
            Some(why) => println!("{bug:?} in {}: {why}", named.name),
            None => missing.push(format!("{bug:?} in {}: {}", named.name, named.scenario().page_link())),
        }
    }
    assert!(missing.is_empty(), "these do not show:\n{}", missing.join("\n"));
}

#[test]
fn every_bug_has_a_scenario_and_every_scenario_names_bugs_that_exist() {
    let shown = shown();
    let without = SeededBug::all().filter(|bug| !shown.iter().any(|(named, _)| named == bug));
    let without: Vec<String> = without.map(SeededBug::name).collect();
    assert!(without.is_empty(), "no scenario has these in its comment `Shows: …`: {}", without.join(", "));
    let words =
        SCENARIOS.iter().flat_map(|named| named.text.lines().filter_map(|it| it.strip_prefix("# Shows: ")));
    let names: usize = words.map(|line| line.split(", ").count()).sum();
    assert_eq!(names, shown.len(), "a comment names a bug that does not exist");
}

#[test]
fn the_shortest_schedule_has_only_the_acts_that_it_needs() {
    let acts = |bug: &str, name: &str| -> Vec<String> {
        let search = Search::new(&crate::scenarios::scenario(name));
        let bug = SeededBug::named(bug).expect(bug);
        let (found, why) =
            search.first(bug, 10_000).unwrap_or_else(|| panic!("{bug:?} is not found in {name}"));
        assert!(!why.is_empty());
        found.acts().map(str::to_string).collect()
    };
    assert_eq!(
        acts("ShortReadDrains", "half-close"),
        ["ann connects", "ann says \"the last words\"; and ann ends"]
    );
    assert_eq!(acts("ResumeForgetsInput", "worker").len(), 4);
}

/// Panics, when the next test runs it.
#[test]
fn an_invariant_breaks_in_the_test_below() {
    if std::env::var_os("TIDEMILL_BREAK").is_some() {
        let bug = SeededBug::named("BudgetForgetsInput").expect("it is in the list");
        crate::scenarios::scenario("missed-edge").shows(bug);
    }
}

#[test]
fn a_scenario_that_fails_prints_the_address_of_the_page_that_plays_it() {
    let test = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(test)
        .args(["--exact", "bugs::an_invariant_breaks_in_the_test_below", "--nocapture"])
        .env("TIDEMILL_BREAK", "1")
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let link = "docs/page/index.html#script=serve%20echo%0Alimit%20read-budget%2064B%0A";
    assert!(told.contains(link) && told.contains("&bug=BudgetForgetsInput"), "{told}");
}
