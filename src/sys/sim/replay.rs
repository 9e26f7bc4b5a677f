//! Which seeds and tapes a test runs, and how a failure is replayed.

use std::ops::Range;
#[cfg(test)]
use std::thread;

#[cfg(test)]
use super::tape::Tape;

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
    match (number_of("TIDEMILL_SEED"), number_of("TIDEMILL_SEEDS")) {
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
        let at = tape.drawn();
        tell(&format!("seed {seed}, choice {at}; replay with: TIDEMILL_SEED={seed} {command}\n"));
        // The tries print nothing; a failure of another test at the same time prints less, too.
        let hook = take_hook();
        set_hook(Box::new(|_| {}));
        IS_SHRINKING.set(true);
        let message = kind_of(&*cause);
        let fails = |tape: &Tape| {
            catch_unwind(AssertUnwindSafe(|| run(tape))).is_err_and(|other| kind_of(&*other) == message)
        };
        let short = in_hexadecimal(&Tape::shrink(&tape.bytes(), fails));
        IS_SHRINKING.set(false);
        set_hook(hook);
        if short.len() <= PRINTED_MAX {
            tell(&format!("a shorter tape that fails: TIDEMILL_TAPE={short} {command}\n"));
        }
        resume_unwind(cause)
    })
}

/// A tape for `TIDEMILL_TAPE`.
#[cfg(test)]
pub(crate) fn in_hexadecimal(tape: &[u8]) -> String {
    tape.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints on stderr, also from a drop while panicking: there a failed print must not panic, which would abort.
#[cfg(test)]
pub(crate) fn tell(text: &str) {
    // The test fails in any case.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

/// The message of a panic without its numbers: a shorter tape must fail in the same way.
#[cfg(test)]
fn kind_of(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
    text.unwrap_or_default().chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

#[cfg(test)]
thread_local! {
    /// Whether a failing tape is made shorter, or a seeded bug is looked for: many failures print nothing.
    pub(crate) static IS_SHRINKING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The number in a variable of the environment; a text that is none fails the test that asks.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}
