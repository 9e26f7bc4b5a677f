//! The page `docs/page/index.html` in headless Chromium, driven by `browser.py`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidemill::testing::{SCENARIOS, Scenario};

use crate::bugs::shown;

const SEEDS: usize = 1_000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The page that is tested: another one than the committed one with `TIDEMILL_PAGE`.
fn page() -> PathBuf {
    std::env::var_os("TIDEMILL_PAGE").map_or_else(|| root().join("docs/page/index.html"), PathBuf::from)
}

/// Whether Chromium can be started; without it the test is left out, or fails where nothing may be left out.
fn has_chromium() -> bool {
    let found =
        Command::new("sh").args(["-c", "command -v chromium || command -v chromium-browser"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("TIDEMILL_INTEROP").is_none_or(|how| how != "required"), "no chromium");
    if !found {
        eprintln!("skipped: there is no chromium");
    }
    found
}

/// A line for each seed: the hash of a scenario on the kernel of that seed, and its text as JSON.
///
/// One scenario is left out: it fills the budget of a delivery with small sends. Their cost is what they take in
/// memory, which is less with the 32 bits of WebAssembly.
fn hashes() -> String {
    let mut lines = String::new();
    let all: Vec<_> = SCENARIOS.iter().filter(|named| named.name != "burst").collect();
    for seed in 0..SEEDS {
        let named = all[seed % all.len()];
        let text = format!("{}\nseed {seed}\n", named.text);
        let scenario: Scenario = text.parse().expect(named.name);
        let hash = match scenario.play() {
            Ok(outcome) => format!("{:016x}", outcome.trace_hash),
            Err(why) => why.replace(' ', "_"),
        };
        writeln!(lines, "{hash} {}", serde_json::json!(text)).expect("memory");
    }
    lines
}

#[test]
#[ignore = "starts a browser for a minute or two: .ci/run does it as a step of its own"]
fn the_page_runs_the_same_loop_in_chromium_and_finds_every_bug() {
    if !has_chromium() {
        return;
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&out).expect("a folder");
    std::fs::write(out.join("hashes"), hashes()).expect("a file");
    let program = root().join("tests/page/browser.py");
    let mut command = Command::new("python3");
    command.arg(program).arg(page()).arg(out.join("hashes")).arg(&out);
    let status = command.args(shown().iter().map(|(bug, _)| bug.name())).status();
    assert!(status.expect("python3").success(), "see above; the pictures are in {}", out.display());
}

#[test]
#[ignore = "the page is built at the end of a change: .ci/run asks for it"]
fn the_committed_page_was_built_from_these_sources() {
    let status = Command::new(root().join("docs/page/build")).arg("--check").status();
    assert!(status.expect("bash").success(), "run docs/page/build");
}
