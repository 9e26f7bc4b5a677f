//! The loop, one phase after the other.

use tidemill::observer::Phase;
use tidemill::testing::{BREAKPOINTS, Cause, Moment, SCENARIOS, Scenario, Snapshot, Stepper, phase_source};

use crate::scenarios::scenario;

fn moments(name: &str) -> Vec<Moment> {
    Stepper::new(&scenario(name)).collect()
}

/// The first moment in which a step of this kind happened.
fn at<'a>(moments: &'a [Moment], kind: &str) -> &'a Moment {
    let found = moments.iter().find(|moment| moment.happened.iter().any(|it| it.kind == kind));
    found.unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn eight_phases_one_by_one_are_a_turn() {
    for named in SCENARIOS {
        let outcome = named.scenario().play().expect(named.name);
        let mut stepper = Stepper::new(&named.scenario());
        let phases: Vec<Phase> = stepper
            .by_ref()
            .filter_map(|moment| if let Cause::Phase(phase) = moment.cause { Some(phase) } else { None })
            .collect();
        assert_eq!(stepper.trace_hash(), outcome.trace_hash, "{}", named.name);
        assert_eq!(phases.len() as u64, 8 * outcome.turns, "{}", named.name);
        assert!(phases.chunks(8).all(|turn| turn == Phase::ALL), "{}", named.name);
        assert!(Stepper::new(&named.scenario()).all(|moment| moment.stuck.is_none()), "{}", named.name);
    }
}

#[test]
fn a_snapshot_shows_where_the_bytes_are() {
    let all = moments("echo");
    let sent =
        all.iter().position(|it| it.cause == Cause::Act("ann says \"hello\"".to_string())).expect("it");
    let in_phase = |phase| {
        let found = all[sent..].iter().find(|it| it.cause == Cause::Phase(phase));
        &found.unwrap_or_else(|| panic!("no {phase:?}")).snapshot
    };
    assert_eq!((all[sent].snapshot.sockets[0].unread, in_phase(Phase::Poll).sockets[0].unread), (5, 5));
    assert_eq!(in_phase(Phase::Poll).events, ["#0.1 readable"]);
    assert_eq!(in_phase(Phase::Dispatch).ready.len(), 1);
    assert_eq!(in_phase(Phase::Read).sockets[0].unread, 0);
    assert_eq!(in_phase(Phase::Read).dirty[0].1, 5, "queued in this turn");
    assert_eq!(in_phase(Phase::Write).sockets[0].delivered, 5);
    assert!(in_phase(Phase::Write).dirty.is_empty());
}

#[test]
fn a_snapshot_shows_holds_queues_slots_generations_and_deadlines() {
    let slow = moments("slow-reader");
    let is_full =
        |it: &Moment| it.snapshot.connections.iter().any(|it| it.holds == ["Full"] && it.outbox > 0);
    let full = slow.iter().find(|it| is_full(it)).expect("a full connection");
    assert_eq!((full.snapshot.connections[0].outbox, full.snapshot.sockets[0].window), (2_048, Some(0)));
    let stale = moments("stale-event");
    let snapshot = &at(&stale, "stale event").snapshot;
    assert_eq!(
        (snapshot.stats.stale_events, snapshot.connections[0].generation, snapshot.free_slots),
        (1, 2, 0)
    );
    assert_eq!(snapshot.connections[0].slot, 0, "the slot of the first");
    let pieces = moments("pieces");
    assert_eq!(at(&pieces, "data").snapshot.connections[0].inbox, 3);
    let idle = moments("idle");
    let first = &at(&idle, "accept").snapshot;
    assert!(
        first.connections[0].wheel.is_some_and(|when| when == first.connections[0].deadline.expect("it").0)
    );
    let eyeballs = moments("happy-eyeballs");
    assert!(eyeballs.iter().any(|it| it.snapshot.connections.iter().any(|it| it.attempts == 2)));
    let table = moments("full-table");
    let freed =
        table.iter().position(|it| it.happened.iter().any(|it| it.text.starts_with("close #1"))).expect("it");
    assert_eq!((table[freed].snapshot.free_slots, table[freed + 1].snapshot.free_slots), (1, 0));
}

#[test]
fn every_breakpoint_stops_somewhere() {
    let all: Vec<Moment> = SCENARIOS.iter().flat_map(|named| Stepper::new(&named.scenario())).collect();
    BREAKPOINTS.iter().for_each(|(_, kind)| assert!(at(&all, kind).number > 0));
}

#[test]
fn the_source_of_each_phase_is_its_function() {
    for phase in Phase::ALL {
        let source = phase_source(phase);
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(source.file);
        let file = std::fs::read_to_string(path).expect(source.file);
        let lines: Vec<&str> = file.lines().skip(source.line - 1).collect();
        assert!(
            source.text.lines().zip(lines).all(|(ours, theirs)| ours == theirs),
            "{phase:?}: {}",
            source.line
        );
        assert!(source.text.contains(&format!("self.enter(Phase::{phase:?})")), "{phase:?}");
        assert!(source.text.trim_start().starts_with("///") && source.text.ends_with("\n    }"), "{phase:?}");
    }
}

#[test]
fn a_scenario_that_cannot_go_on_says_why_and_ends() {
    let scenario: Scenario = "serve echo\ndb answers 10.0.0.7:80\ndb connects".parse().expect("it");
    let last = Stepper::new(&scenario).last().expect("a moment");
    assert_eq!(last.cause, Cause::Failed("no dial to 10.0.0.7:80 waits".to_string()));
}

/// What the loop has forgotten is told: a snapshot in which it has, made from one in which it has not.
#[test]
fn what_waits_without_an_event_is_told() {
    let told = |change: &dyn Fn(&mut Snapshot)| {
        let all = moments("echo");
        let accepted = all.iter().position(|it| it.cause == Cause::Act("ann says \"hello\"".to_string()));
        let mut snapshot = all[accepted.expect("it") - 1].snapshot.clone();
        assert_eq!(snapshot.stuck(), None);
        change(&mut snapshot);
        snapshot.stuck().unwrap_or_default()
    };
    assert!(told(&|it| it.sockets[0].unread = 5).contains("5 bytes wait in the kernel"));
    assert!(told(&|it| it.sockets[0].end = true).contains("the peer's end waits"));
    assert!(told(&|it| it.connections[0].outbox = 7).contains("7 bytes are queued"));
    assert!(told(&|it| it.connections[0].outgoing = "ending").contains("FIN is due"));
    assert_eq!(told(&|it| (it.sockets[0].unread, it.connections[0].holds) = (5, vec!["Paused"])), "");
}
