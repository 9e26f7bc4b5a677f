//! Bugs that are switched on show in a scenario, and the shortest schedule is found.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tidemill::testing::{SCENARIOS, Scenario, Search, SeededBug};

/// Where each bug shows. One that is missing here shows in none so far: it needs a second thread, or a scenario.
pub const SHOWN: &[(&str, &str)] = &[
    ("ShortReadDrains", "half-close"),
    ("AnyReadDrains", "missed-edge"),
    ("BudgetForgetsInput", "flood"),
    ("WriteEdgeMissed", "slow-reader"),
    ("EndSeenOnlyByRead", "worker"),
    ("GenerationUnchecked", "stale-event"),
    ("ResumeForgetsInput", "worker"),
    ("AcceptStopsAfterOne", "chat"),
    ("EmfileSpins", "descriptors"),
    ("FinBeforeQueue", "last-bytes"),
    ("PipePeerClosesAtOnce", "cut-upstream"),
    ("TimerNotRearmed", "idle"),
];

/// What goes wrong with the bug; a broken invariant of the loop panics.
fn wrong(scenario: &Scenario, bug: SeededBug) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| scenario.shows(bug)))
        .unwrap_or_else(|_| Some("an invariant is broken".to_string()))
}

#[test]
fn each_bug_shows_in_its_scenario_and_only_when_it_is_switched_on() {
    for (bug, name) in SHOWN {
        let scenario = crate::scenarios::scenario(name);
        let bug = SeededBug::named(bug).unwrap_or_else(|| panic!("there is no bug {bug}"));
        assert!(wrong(&scenario, bug).is_some(), "{bug:?} does not show in {name}: {}", scenario.page_link());
        assert_eq!(scenario.play().expect(name).stuck, None, "{name}");
    }
    for bug in SeededBug::all().filter(|bug| !SHOWN.iter().any(|(name, _)| *name == bug.name())) {
        let shows = SCENARIOS.iter().find(|named| wrong(&named.scenario(), bug).is_some());
        println!("{bug:?}: {}", shows.map_or("shows in no scenario", |named| named.name));
    }
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
