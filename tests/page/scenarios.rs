//! Each scenario shows what its title says.

use tidemill::testing::{Outcome, PeerEnd, SCENARIOS, Scenario};
use tidemill::{CloseReason, Refusal};

pub fn scenario(name: &str) -> Scenario {
    SCENARIOS.iter().find(|named| named.name == name).expect(name).scenario()
}

fn play(name: &str) -> Outcome {
    let outcome = scenario(name).play().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(outcome.stuck, None, "{name}");
    outcome
}

#[test]
fn every_scenario_comes_to_rest_and_explains_itself() {
    assert!(SCENARIOS.len() >= 12);
    for named in SCENARIOS {
        let (scenario, outcome) = (named.scenario(), play(named.name));
        assert!(!scenario.title().is_empty() && !scenario.about().is_empty(), "{}", named.name);
        assert!(outcome.turns < 200, "{}: {} turns", named.name, outcome.turns);
        assert!(named.text.lines().all(|line| line.len() <= 120), "{}", named.name);
    }
}

#[test]
fn what_peers_receive_is_what_the_title_says() {
    let text = |name: &str, peer: usize| play(name).peers[peer].text.clone();
    assert_eq!(text("echo", 0), "hello");
    assert_eq!(text("pieces", 0), "hello\n");
    assert_eq!(text("half-close", 0), "the last words");
    assert_eq!(text("stale-event", 1), "mine");
    assert_eq!(text("happy-eyeballs", 0), "1");
    assert_eq!(text("starttls", 0), "220 ready\nhello\n220 go ahead\nencrypted from here on\nsecret\n");
    assert_eq!(text("flood", 1), "ab");
    assert!(text("chat", 2).contains("hello"));
    assert_eq!(play("missed-edge").received[0].len(), 201);
    assert_eq!(play("slow-reader").received[0].len(), 3 * 1_024);
    assert_eq!(play("pipe").received[0].len(), 3 * 1_024 + 3);
}

#[test]
fn connections_end_as_the_title_says() {
    let closed = |name: &str, peer: usize| play(name).peers[peer].closed;
    assert_eq!(closed("idle", 0), Some(CloseReason::Idle));
    assert_eq!(closed("timers", 0), Some(CloseReason::Unfinished));
    assert_eq!(closed("lingering", 0), Some(CloseReason::Local));
    assert_eq!(play("full-table").peers[2].refused, Some(Refusal::Full));
    assert_eq!((play("full-table").peers[3].text.as_str(), closed("full-table", 3)), ("hi", None));
    assert_eq!(play("descriptors").peers[1].refused, Some(Refusal::NoDescriptor));
    assert_eq!(play("half-close").peers[0].ended, Some(PeerEnd::Fin));
}

#[test]
fn no_seed_and_no_split_changes_what_peers_receive() {
    for name in
        ["echo", "pieces", "missed-edge", "half-close", "slow-reader", "starttls", "flood", "lingering"]
    {
        let text = SCENARIOS.iter().find(|named| named.name == name).expect(name).text;
        let plain = play(name);
        let split = if name == "flood" { "split 50" } else { "split 1" };
        for line in (1..40).map(|seed| format!("seed {seed}")).chain([split.to_string()]) {
            let scenario: Scenario = format!("{line}\n{text}").parse().expect(name);
            let outcome = scenario.play().unwrap_or_else(|error| panic!("{name}, {line}: {error}"));
            assert_eq!(outcome.received, plain.received, "{name}, {line}");
            assert_eq!(outcome.stuck, None, "{name}, {line}");
        }
    }
}

#[test]
fn the_same_seed_takes_the_same_steps() {
    let hash = |seed: u64| {
        let scenario: Scenario =
            format!("seed {seed}\nann connects\nann says 1KiB").parse().expect("a scenario");
        scenario.play().expect("it ends").trace_hash
    };
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}
