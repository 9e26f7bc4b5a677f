//! The rare branches of the loop have marks, and each of them is reached: by the worlds that a seed decides, or by the
//! directed test that is named for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::hunt::named;
use super::*;
use crate::base::mark::take_reached;

/// The marks in the source below a folder.
fn marks(under: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(under).expect("a folder of the crate") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            marks(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for what in code.filter_map(|line| line.split_once("mark!(\"")?.1.split_once("\");")) {
                assert!(found.insert(what.0.to_string()), "two marks are called {:?}", what.0);
            }
        }
    }
}

/// Marks that need a situation which the random worlds do not have, and the directed test that reaches each.
const DIRECTED: [(&str, hunt::Test); 17] = [
    (
        "a delivery was cut",
        named!(memory::a_burst_of_short_lines_to_a_room_is_spread_over_turns_and_arrives_whole),
    ),
    (
        "a filter broke its contract",
        named!(filters::contract::a_filter_that_promises_more_plaintext_and_returns_none_ends_its_connection),
    ),
    (
        "a listener pauses",
        named!(accept::without_descriptors_waiting_connections_are_served_when_some_are_freed),
    ),
    (
        "a lookup is cancelled",
        named!(lookups::closing_or_aborting_a_dial_in_any_state_gives_one_closed_callback_and_leaves_nothing_open),
    ),
    (
        "a send would exceed the memory",
        named!(backpressure::what_one_callback_makes_is_bounded_by_the_memory_limit),
    ),
    (
        "a slot is reserved again",
        named!(admission::a_connection_that_reserves_a_slot_is_accepted_only_with_room_for_both),
    ),
    (
        "a slow reader",
        named!(output::a_further_send_to_a_queue_beyond_the_cap_closes_the_slow_reader_with_a_reset),
    ),
    (
        "a stalled handshake gives up its place",
        named!(tls::handshake::a_handshake_stalled_for_a_second_gives_up_its_place),
    ),
    ("a stream was not registered", named!(accept::a_stream_that_cannot_be_registered_is_closed_alone)),
    ("an attempt is postponed", named!(lookups::extra_attempts_are_bounded_in_the_whole_reactor)),
    (
        "evicted at the memory limit",
        named!(memory::past_the_memory_the_largest_queue_goes_first_and_only_until_it_fits),
    ),
    (
        "plaintext is left in the filter",
        named!(filters::a_compression_bomb_takes_many_turns_and_little_memory),
    ),
    (
        "plaintext for a paused connection",
        named!(tls::data::a_connection_paused_in_open_gets_no_data_until_resumed),
    ),
    ("poked before open", named!(deferred::a_poke_of_a_dial_waits_until_open_has_been_called)),
    (
        "shed with the spare descriptor",
        named!(accept::without_descriptors_excess_connections_are_closed_with_the_spare_descriptor),
    ),
    ("too many lookups", named!(lookups::pending_lookups_are_bounded)),
    (
        "a sender waits for a receiver",
        named!(backpressure::a_sender_is_read_again_when_the_receiver_that_it_waits_for_is_gone),
    ),
];

/// Seeds of the world in each of its profiles.
const SEEDS: u64 = 20;

#[test]
fn the_random_worlds_and_directed_tests_reach_every_mark() {
    let mut there = BTreeSet::new();
    for folder in ["event_loop", "connection"] {
        marks(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder), &mut there);
    }
    assert!(there.len() >= 50, "only {} marks were recognised", there.len());
    take_reached();
    for (_, run) in hunt::WORLDS {
        (0..SEEDS).for_each(|seed| run(&Tape::seeded(seed)));
    }
    let mut reached = take_reached();
    println!("{} marks, {} of them reached by the random worlds: {reached:#?}", there.len(), reached.len());
    for (what, (name, run)) in DIRECTED {
        run();
        assert!(take_reached().contains_key(what), "{name} does not reach the mark {what:?}");
        reached.insert(what, 1);
    }
    let missed: Vec<&String> = there.iter().filter(|what| !reached.contains_key(what.as_str())).collect();
    assert!(missed.is_empty(), "nothing reaches the marks {missed:#?}");
}
