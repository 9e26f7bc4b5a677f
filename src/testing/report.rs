//! What is printed when a test with a bench fails.

use std::io::{self, Write};
use std::thread;

use super::Bench;
use crate::base::seeded_bug::{SeededBug, seeded};

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
