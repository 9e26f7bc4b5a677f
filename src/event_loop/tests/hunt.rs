//! The hunt: each seeded bug is switched on in turn, and a test has to fail.
//!
//! Most bugs are found by the world, which a seed decides. The others need one situation that it does not have; a
//! directed test sets it up. `docs/seeded-bugs.md` has the table: `TIDEMILL_HUNT=write` writes it anew, and
//! `TIDEMILL_HUNTS` is the number of searches for each bug, 1 by default.

use std::fmt::Write;
use std::panic::catch_unwind;
use std::path::Path;

use super::*;
use crate::base::seeded_bug::SeededBug;
use crate::sys::sim::{IS_SHRINKING, Profile, number_of};

/// A world that a tape decides.
type World = fn(&Tape);

/// The world in each profile of the kernel; they take turns in a search.
pub(super) const WORLDS: [(&str, World); 3] = [
    ("strict", |tape| _ = world::run(tape, Profile::Strict)),
    ("separate", |tape| _ = world::run(tape, Profile::Kqueue)),
    ("contract", |tape| _ = world::run(tape, Profile::Contract)),
];

/// A search gives up after this many turns.
const TURNS_MAX: u64 = 200_000;

/// Where a bug was found, after how many turns, and what failed.
struct Found {
    world: &'static str,
    turns: u64,
    message: String,
}

/// A test by its name.
pub(super) type Test = (&'static str, fn());

macro_rules! named {
    ($($path:ident)::+) => {
        (concat!($("::", stringify!($path)),+), $($path)::+ as fn())
    };
}
pub(super) use named;

/// The directed tests, for the bugs that the world does not find.
const DIRECTED: &[(SeededBug, Test)] = &[
    (SeededBug::PlaintextForgotten, named!(filters::a_compression_bomb_takes_many_turns_and_little_memory)),
    (
        SeededBug::CallbackUnbounded,
        named!(memory::a_burst_of_short_lines_to_a_room_is_spread_over_turns_and_arrives_whole),
    ),
    (
        SeededBug::HiddenInputForgotten,
        named!(memory::a_burst_of_short_lines_to_a_room_is_spread_over_turns_and_arrives_whole),
    ),
    (
        SeededBug::ResumeForgetsInput,
        named!(input::a_paused_socket_is_not_read_and_gets_what_was_left_when_it_resumes),
    ),
    (
        SeededBug::ClosedReceiverAwaited,
        named!(backpressure::a_sender_is_read_again_when_the_receiver_that_it_waits_for_is_gone),
    ),
    (SeededBug::FullListenerSpins, named!(accept::a_paused_listener_without_a_free_slot_lets_the_loop_sleep)),
    (
        SeededBug::FailedWriteDropsInput,
        named!(readiness::input_that_came_before_a_reset_is_delivered_although_a_write_fails_first),
    ),
    (
        SeededBug::SlowReaderKept,
        named!(output::a_further_send_to_a_queue_beyond_the_cap_closes_the_slow_reader_with_a_reset),
    ),
    (
        SeededBug::MemoryUnbounded,
        named!(memory::past_the_memory_the_largest_queue_goes_first_and_only_until_it_fits),
    ),
    (SeededBug::EvictedAfterAll, named!(memory::inboxes_that_grow_in_one_turn_keep_to_the_memory_limit)),
    (SeededBug::MessageUnbounded, named!(input::a_message_of_the_limit_is_kept_and_one_byte_more_closes)),
    (SeededBug::ReapUnbounded, named!(lifecycle::closed_callbacks_of_one_turn_are_bounded)),
    (
        SeededBug::PipePeerClosesAtOnce,
        named!(pipe::when_one_end_is_reset_the_other_gets_its_data_and_then_a_reset),
    ),
    (SeededBug::UnpipeKeepsHold, named!(unpiped_while_the_other_end_is_full_it_is_read_again)),
    (SeededBug::UsedPipeKept, named!(splice::bytes_of_one_pair_never_reach_another)),
    (SeededBug::FarDeadlineForgotten, named!(a_timer_of_thirty_years_fires)),
    (SeededBug::DribbleRenewsMessage, named!(a_message_that_comes_a_byte_a_second_is_closed)),
    (SeededBug::HoldRenewsMessage, named!(deadlines::a_rate_does_not_restart_the_clocks_of_a_message)),
    (SeededBug::ClosingOutlivesLifetime, named!(deadlines::a_lifetime_ends_a_connection_that_is_closing_too)),
    (SeededBug::TimersOutliveShutdown, named!(lifecycle::a_shutdown_ends_although_closed_sets_a_timer)),
    (SeededBug::OldRateWaitedFor, named!(rate::a_raised_group_rate_reaches_throttled_members)),
    (SeededBug::DiscardSpendsRate, named!(rate::input_discarded_while_closing_spends_no_rate_of_its_group)),
    (SeededBug::LostAttemptsCounted, named!(lookups::extra_attempts_are_bounded_in_the_whole_reactor)),
    (SeededBug::SplitNeedleMissed, named!(a_delimiter_that_is_split_over_two_reads_is_found)),
    (
        SeededBug::EarlyRecordLost,
        named!(tls::starttls::after_starttls_bytes_behind_the_request_are_not_plaintext),
    ),
    (SeededBug::WakeUpLost, named!(crate::handle::tests::no_post_is_lost_in_any_order_of_steps)),
    (SeededBug::MailboxUnbounded, named!(lifecycle::no_more_posts_wait_than_the_limit)),
];

fn directed(bug: SeededBug) -> Option<Test> {
    DIRECTED.iter().find(|(of, _)| *of == bug).map(|(_, test)| *test)
}

// -- directed tests that are about a seeded bug only ---------------------------------------------------------

fn unpiped_while_the_other_end_is_full_it_is_read_again() {
    let limits = SocketLimits { high_water: 1_000, low_water: 100, ..no_idle() };
    let mut test = socket_limits(limits).build(discard);
    let [(a, id), (b, other)] = [0; 2].map(|_| test.accept());
    assert!(test.sockets().get(id).expect("a connection").pipe(other));
    test.script.window(b, 0);
    test.script.feed(a, &[b'x'; 5_000]);
    test.turn_until_quiet();
    test.sockets().get(id).expect("a connection").unpipe();
    test.script.feed(a, b"for the service");
    test.turn_until_quiet();
    assert_eq!(test.script.unread(a), 0);
}

fn a_timer_of_thirty_years_fires() {
    let mut test = Setup::default().build(discard);
    let (service, year) = (test.service, 365 * 24 * 3_600 * SECOND);
    test.sockets().set_timer(service, 30 * year, None).expect("room for a timer");
    for (wait, fired) in [(29 * year, false), (2 * year, true)] {
        test.script.advance(wait);
        test.turn_until_quiet();
        assert_eq!(test.events().contains(&Event::Timer), fired, "after {wait:?} more");
    }
}

fn a_message_that_comes_a_byte_a_second_is_closed() {
    let limits = SocketLimits { message_timeout: Some(10 * SECOND), min_read_rate: None, ..no_idle() };
    let mut test = socket_limits(limits).build(|_, _| {});
    let (peer, id) = test.accept();
    for _ in 0..15 {
        test.script.feed(peer, b"x");
        test.advance(SECOND);
    }
    assert_eq!(test.close_reason(id), Some(CloseReason::Unfinished));
}

fn a_delimiter_that_is_split_over_two_reads_is_found() {
    let mut test = Setup::default().build(|socket, input| {
        if let Some(at) = input.find(b"\r\n", 100) {
            socket.send(input.take(at));
        }
    });
    let (peer, _) = test.accept();
    for piece in ["hello\r", "\n"] {
        test.script.feed(peer, piece.as_bytes());
        test.turn_until_quiet();
    }
    assert_eq!(test.received(peer), "hello");
}

#[test]
fn the_directed_tests_pass_without_a_bug() {
    unpiped_while_the_other_end_is_full_it_is_read_again();
    a_timer_of_thirty_years_fires();
    a_message_that_comes_a_byte_a_second_is_closed();
    a_delimiter_that_is_split_over_two_reads_is_found();
}

// -- the hunt ------------------------------------------------------------------------------------------------

/// Searches with seeds that begin at another place for each `search`. Its many failures print nothing.
fn search(bug: SeededBug, search: u64) -> Option<Found> {
    IS_SHRINKING.set(true);
    let found = search_world(bug, search);
    IS_SHRINKING.set(false);
    found
}

fn search_world(bug: SeededBug, search: u64) -> Option<Found> {
    let _on = bug.switch_on();
    let before = TURNS.get();
    for seed in search * 1_000_000.. {
        for (world, run) in WORLDS {
            let outcome = catch_unwind(|| run(&Tape::seeded(seed)));
            let turns = TURNS.get() - before;
            if let Err(why) = outcome {
                return Some(Found { world, turns, message: message(&*why) });
            }
            if turns > TURNS_MAX {
                return None;
            }
        }
    }
    None
}

fn search_directed(bug: SeededBug, (world, run): Test) -> Option<Found> {
    let _on = bug.switch_on();
    let before = TURNS.get();
    let why = catch_unwind(run).err()?;
    Some(Found { world, turns: TURNS.get() - before, message: message(&*why) })
}

/// The first line of what a test has said.
fn message(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().map(String::as_str).or(why.downcast_ref::<&str>().copied());
    // As much as a table can show.
    text.unwrap_or("a panic").lines().next().unwrap_or_default().chars().take(80).collect()
}

/// What the table says of a bug without figures.
fn beginning(bug: SeededBug) -> String {
    let how = directed(bug).map_or("random".to_string(), |(name, _)| format!("`{}`", last(name)));
    format!("| `{}` | {} | {} | {how} |", bug.name(), bug.fault(), bug.seen_in())
}

fn last(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

fn row(bug: SeededBug, all: &[Found]) -> String {
    let mut turns: Vec<u64> = all.iter().map(|found| found.turns).collect();
    turns.sort_unstable();
    // The nearest rank.
    let (median, p95) = (turns[turns.len() / 2], turns[(turns.len() * 95).div_ceil(100) - 1]);
    let first = &all[0];
    let world = if directed(bug).is_some() { "" } else { first.world };
    let message = first.message.replace('|', "\\|").replace('`', "'");
    format!("{} {world} | {median} | {p95} | `{message}` |\n", beginning(bug))
}

#[test]
fn every_seeded_bug_is_found() {
    let searches = number_of("TIDEMILL_HUNTS").unwrap_or(1);
    let (mut rows, mut missed) = (String::new(), Vec::new());
    for bug in SeededBug::all() {
        let all: Option<Vec<Found>> = match directed(bug) {
            Some(test) => search_directed(bug, test).map(|found| vec![found]),
            None => (0..searches).map(|start| search(bug, start)).collect(),
        };
        match all {
            Some(all) => rows += &row(bug, &all),
            None => missed.push(bug.name()),
        }
    }
    println!("{rows}");
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
    if std::env::var("TIDEMILL_HUNT").is_ok_and(|how| how == "write") {
        write_table(&rows, searches);
    }
}

const BEGIN: &str = "<!-- the table -->\n";
const END: &str = "<!-- /the table -->\n";

fn page() -> (std::path::PathBuf, String) {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/seeded-bugs.md");
    let text = std::fs::read_to_string(&at).expect("docs/seeded-bugs.md");
    (at, text)
}

fn write_table(rows: &str, searches: u64) {
    let (at, text) = page();
    let (before, rest) = text.split_once(BEGIN).expect("the begin of the table");
    let (_, after) = rest.split_once(END).expect("the end of the table");
    let (count, random) =
        (rows.lines().count(), rows.lines().filter(|row| row.contains("| random |")).count());
    let mut table = String::new();
    let _ = writeln!(
        table,
        "{count} of {count} bugs are found: {random} by random search, with {searches} searches each, and {} by a \
         directed test.\n",
        count - random
    );
    table += "| bug | what goes wrong | seen in | found by | world | turns: median | 95 % | what fails |\n";
    table += "| --- | --- | --- | --- | --- | ---: | ---: | --- |\n";
    std::fs::write(at, format!("{before}{BEGIN}\n{table}{rows}\n{END}{after}")).expect("a page to write");
}

#[test]
fn the_page_lists_every_seeded_bug_as_it_is() {
    let (_, text) = page();
    let stale = SeededBug::all().filter(|&bug| !text.contains(&beginning(bug))).map(SeededBug::name);
    let stale: Vec<String> = stale.collect();
    let table = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).expect("the table").0;
    let rows = table.lines().filter(|line| line.starts_with("| `")).count();
    assert!(
        stale.is_empty() && rows == SeededBug::all().count(),
        "docs/seeded-bugs.md is stale: {stale:?}; `TIDEMILL_HUNT=write cargo test --all-features --lib hunt` writes it"
    );
}
