//! What the page calls: scenarios in, moments out, as JSON.
//!
//! ```text
//!     page.js ── input(n), writes n bytes ──▶ load / play / shows / next ──▶ output(), length ── reads ──▶ page.js
//! ```
//!
//! A call returns the length of its answer, which `output` points to until the next call. A broken invariant of the
//! loop is a panic, which traps: the message stays readable (`panicked`), and the page makes a new instance.

mod json;

use std::cell::RefCell;

use json::Json;
use tidemill::observer::Phase;
use tidemill::testing::{
    BREAKPOINTS, SCENARIOS, Scenario, Search, SeededBug, Stepper, SwitchedOn, phase_source,
};

#[derive(Default)]
struct Page {
    input: Vec<u8>,
    output: Vec<u8>,
    stepper: Option<Stepper>,
    search: Option<(Search, SeededBug)>,
}

thread_local! {
    static PAGE: RefCell<Page> = RefCell::default();
    static BUG: RefCell<Option<SwitchedOn>> = const { RefCell::new(None) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The answer of a call: its length.
fn answer(text: String) -> usize {
    PAGE.with_borrow_mut(|page| {
        page.output = text.into_bytes();
        page.output.len()
    })
}

fn answer_json(write: impl FnOnce(&mut Json)) -> usize {
    let mut json = Json::default();
    write(&mut json);
    answer(json.into_text())
}

fn input_text() -> String {
    PAGE.with_borrow(|page| String::from_utf8_lossy(&page.input).into_owned())
}

/// The scenario in the input; an error is the answer.
fn scenario() -> Result<Scenario, usize> {
    input_text().parse::<Scenario>().map_err(|error| {
        answer_json(|json| json.object(|json| json.text("error", &error.to_string())));
        0
    })
}

/// Makes room for the input; returns where it is.
#[unsafe(no_mangle)]
pub extern "C" fn input(length: usize) -> *mut u8 {
    std::panic::set_hook(Box::new(|panic| {
        PANIC.with_borrow_mut(|text| *text = panic.to_string());
    }));
    PAGE.with_borrow_mut(|page| {
        page.input.clear();
        page.input.resize(length, 0);
        page.input.as_mut_ptr()
    })
}

/// Where the last answer is.
#[unsafe(no_mangle)]
pub extern "C" fn output() -> *const u8 {
    PAGE.with_borrow(|page| page.output.as_ptr())
}

/// The length of the answer that says what is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn output_length() -> usize {
    PAGE.with_borrow(|page| page.output.len())
}

/// After a trap: what has panicked.
#[unsafe(no_mangle)]
pub extern "C" fn panicked() -> usize {
    // The page may be borrowed by the call that has trapped, so it gets a new one.
    let text = PANIC.with_borrow(String::clone);
    PAGE.with(|page| match page.try_borrow_mut() {
        Ok(mut page) => {
            page.output = text.into_bytes();
            page.output.len()
        }
        Err(_) => 0,
    })
}

/// What never changes: scenarios, bugs, breakpoints and the source of the phases.
#[unsafe(no_mangle)]
pub extern "C" fn contents() -> usize {
    answer_json(|json| {
        json.object(|json| {
            json.list("scenarios", SCENARIOS, |json, named| {
                json.object(|json| {
                    json.text("name", named.name);
                    let scenario = named.scenario();
                    json.text("title", scenario.title());
                    json.text("text", named.text);
                    json.strings("bugs", &scenario.bugs().map(SeededBug::name).collect::<Vec<_>>());
                });
            });
            json.list("bugs", &SeededBug::all().collect::<Vec<_>>(), |json, bug| {
                json.object(|json| {
                    json.text("name", &bug.name());
                    json.text("fault", bug.fault());
                    json.text("seen", bug.seen_in());
                });
            });
            json.list("breakpoints", BREAKPOINTS, |json, (what, kind)| {
                json.object(|json| {
                    json.text("what", what);
                    json.text("kind", kind);
                });
            });
            json.list("sources", &Phase::ALL, |json, &phase| {
                let source = phase_source(phase);
                json.object(|json| {
                    json.text("phase", phase.word());
                    json.text("file", source.file);
                    json.number("line", source.line as f64);
                    json.text("text", source.text);
                });
            });
        });
    })
}

/// Switches the bug with this name in the input on, and every other off; no name: all off. Returns whether it exists.
#[unsafe(no_mangle)]
pub extern "C" fn bug() -> u32 {
    BUG.with_borrow_mut(|on| *on = None);
    let name = input_text();
    let found = SeededBug::named(&name);
    BUG.with_borrow_mut(|on| *on = found.map(SeededBug::switch_on));
    u32::from(name.is_empty() || found.is_some())
}

/// Begins the scenario in the input. Returns 1, or 0 and the answer is an error.
#[unsafe(no_mangle)]
pub extern "C" fn load() -> u32 {
    match scenario() {
        Ok(scenario) => {
            PAGE.with_borrow_mut(|page| page.stepper = Some(Stepper::new(&scenario)));
            1
        }
        Err(_) => 0,
    }
}

/// The next moment; 0 after the last one.
#[unsafe(no_mangle)]
pub extern "C" fn next() -> usize {
    let Some(mut stepper) = PAGE.with_borrow_mut(|page| page.stepper.take()) else { return 0 };
    let moment = stepper.next();
    PAGE.with_borrow_mut(|page| page.stepper = Some(stepper));
    moment.map_or(0, |moment| answer_json(|json| json::moment(json, &moment)))
}

/// Plays the scenario in the input to its end: its hash, and what is stuck.
#[unsafe(no_mangle)]
pub extern "C" fn play() -> usize {
    let scenario = match scenario() {
        Ok(scenario) => scenario,
        Err(_) => return output_length(),
    };
    match scenario.play() {
        Ok(outcome) => answer_json(|json| {
            json.object(|json| {
                json.text("hash", &format!("{:016x}", outcome.trace_hash));
                json.number("turns", outcome.turns as f64);
                json.text("stuck", &outcome.stuck.unwrap_or_default());
            });
        }),
        Err(error) => answer_json(|json| json.object(|json| json.text("error", &error))),
    }
}

/// Begins a search in the scenario of the input for what shows a bug: first line the bug, then the scenario. Returns
/// the number of schedules.
#[unsafe(no_mangle)]
pub extern "C" fn search() -> u32 {
    let text = input_text();
    let (name, script) = text.split_once('\n').unwrap_or_default();
    let found = SeededBug::named(name).zip(script.parse::<Scenario>().ok());
    let search = found.map(|(bug, scenario)| (Search::new(&scenario), bug));
    let count = search.as_ref().map_or(0, |(search, _)| search.count());
    PAGE.with_borrow_mut(|page| page.search = search);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// How many schedules of the search have fewer lines than its script.
#[unsafe(no_mangle)]
pub extern "C" fn shorter() -> u32 {
    let count = PAGE.with_borrow(|page| page.search.as_ref().map_or(0, |(search, _)| search.shorter()));
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Tries so many schedules from a number on. The answer is the first that shows the bug, or 0.
#[unsafe(no_mangle)]
pub extern "C" fn find(from: u32, count: u32) -> usize {
    let Some((search, bug)) = PAGE.with_borrow_mut(|page| page.search.take()) else { return 0 };
    let found = (from..from.saturating_add(count)).find_map(|number| {
        let candidate = search.candidate(u64::from(number))?;
        let why = candidate.shows(bug)?;
        Some((number, candidate.script(), why))
    });
    PAGE.with_borrow_mut(|page| page.search = Some((search, bug)));
    found.map_or(0, |(number, script, why)| {
        answer_json(|json| {
            json.object(|json| {
                json.number("number", f64::from(number));
                json.text("script", &script);
                json.text("why", &why);
            });
        })
    })
}

/// The script of a schedule; 0 if it is not possible.
#[unsafe(no_mangle)]
pub extern "C" fn candidate(number: u32) -> usize {
    let Some((search, bug)) = PAGE.with_borrow_mut(|page| page.search.take()) else { return 0 };
    let script = search.candidate(u64::from(number)).map(|candidate| candidate.script());
    PAGE.with_borrow_mut(|page| page.search = Some((search, bug)));
    script.map_or(0, answer)
}

/// Whether the scenario in the input (behind a line with the bug's name) shows the bug as it stands: why, or 0.
#[unsafe(no_mangle)]
pub extern "C" fn shows() -> usize {
    let text = input_text();
    let (name, script) = text.split_once('\n').unwrap_or_default();
    let found = SeededBug::named(name).zip(script.parse::<Scenario>().ok());
    found.and_then(|(bug, scenario)| scenario.shows(bug)).map_or(0, answer)
}
