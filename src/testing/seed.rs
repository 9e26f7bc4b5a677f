//! Seeds: which ones a test runs, and what is printed when it fails.

use std::io::{self, Write};
use std::ops::Range;
use std::thread;

use super::Bench;
#[cfg(test)]
use super::Tape;
use crate::base::seeded_bug::{SeededBug, seeded};

/// The seeds for a test that runs with many: `0..count`. With `TIDEMILL_SEED=7` in the environment only that one, to
/// replay a failure; with `TIDEMILL_SEEDS=100000` so many in place of `count`.
///
/// ```
/// use tidemill::services::Echo;
/// use tidemill::testing::{Bench, seeds};
///
/// for seed in seeds(20) {
///     let mut bench = Bench::seeded(seed);
///     bench.serve(Echo::raw());
///     let ann = bench.connect();
///     bench.say(ann, "hello");
///     assert_eq!(bench.heard(ann), "hello");
/// }
/// ```
///
/// # Panics
///
/// When one of the variables is set and is not a number.
pub fn seeds(count: u64) -> Range<u64> {
    match (number("TIDEMILL_SEED"), number("TIDEMILL_SEEDS")) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, count_wanted) => 0..count_wanted.unwrap_or(count),
    }
}

/// Runs a test of the loop with many tapes: those of [`seeds`], or the one whose bytes `TIDEMILL_TAPE` has, in
/// hexadecimal. A failure prints its seed, how many choices were drawn, and the commands that replay it and a shorter
/// tape that fails as well.
#[cfg(test)]
pub(crate) fn each_seed(count: u64, mut run: impl FnMut(&Tape)) {
    match tape_of_environment() {
        Some(tape) => run(&tape),
        None => seeds(count).for_each(|seed| run_seed(seed, &mut run)),
    }
}

/// A longer tape is no help to a reader: its seed replays it as well.
#[cfg(test)]
const PRINTED_MAX: usize = 2_000;

/// The tape in `TIDEMILL_TAPE`.
#[cfg(test)]
pub(crate) fn tape_of_environment() -> Option<Tape> {
    let text = std::env::var("TIDEMILL_TAPE").ok()?;
    let digit = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digit).collect();
    Some(Tape::from_bytes(bytes.expect("TIDEMILL_TAPE has two hexadecimal digits for each byte")))
}

/// Runs a test with one seed, and says how to replay it when it fails.
#[cfg(test)]
pub(crate) fn run_seed<R>(seed: u64, run: &mut impl FnMut(&Tape) -> R) -> R {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
    let tape = Tape::seeded(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&tape)));
    outcome.unwrap_or_else(|cause| {
        let test = thread::current().name().unwrap_or_default().to_string();
        let command = format!("cargo test --all-features --lib -- --exact {test}");
        eprintln!("seed {seed}, choice {}; replay with: TIDEMILL_SEED={seed} {command}", tape.drawn());
        // The tries print nothing; a failure of another test at the same time prints less, too.
        let hook = take_hook();
        set_hook(Box::new(|_| {}));
        IS_SHRINKING.set(true);
        let message = kind_of(&*cause);
        let fails = |tape: &Tape| {
            catch_unwind(AssertUnwindSafe(|| run(tape))).is_err_and(|other| kind_of(&*other) == message)
        };
        let short: String =
            Tape::shrink(&tape.bytes(), fails).iter().map(|byte| format!("{byte:02x}")).collect();
        IS_SHRINKING.set(false);
        set_hook(hook);
        if short.len() <= PRINTED_MAX {
            eprintln!("a shorter tape that fails: TIDEMILL_TAPE={short} {command}");
        }
        resume_unwind(cause)
    })
}

/// The message of a panic without its numbers: a shorter tape must fail in the same way.
#[cfg(test)]
fn kind_of(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
    text.unwrap_or_default().chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

#[cfg(test)]
thread_local! {
    /// Whether a failing tape is made shorter: its many failures print nothing.
    pub(crate) static IS_SHRINKING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

impl Bench {
    /// What a failed test prints: the last steps, the seed, and how to replay it.
    fn report(&self) -> String {
        let (turns, elapsed) = (self.turns(), self.elapsed());
        let steps = self.script.with_trace(|trace| trace.tail());
        let mut text = format!("\nthe bench after {turns} turns and {elapsed:?} of simulated time; {steps}");
        if let Some(link) = &self.page_link {
            let bug = SeededBug::all().find(|&bug| seeded(bug));
            let bug = bug.map_or(String::new(), |bug| format!("&bug={}", bug.name()));
            return text + &format!("watch it in a browser: {link}{bug}\n");
        }
        if let Some(seed) = self.seed {
            let test = match thread::current().name() {
                // libtest gives the thread the name of the test, except with one thread for all.
                Some(name) if name != "main" => format!(" -- --exact {name}"),
                _ => String::new(),
            };
            let package = std::env::var("CARGO_PKG_NAME").map_or(String::new(), |name| format!(" -p {name}"));
            text += &format!("seed {seed}; replay with: TIDEMILL_SEED={seed} cargo test{package}{test}\n");
        }
        text
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if thread::panicking() {
            // A failed print must not panic: in a drop while panicking, that would abort the process.
            let _ = io::stderr().write_all(self.report().as_bytes());
        }
    }
}
