//! `tidemill step`: the loop phase by phase, at a terminal and as text.
#![cfg(feature = "testing")]

use std::process::Command;

use crate::server::{TIDEMILL, shared};
use crate::terminal::Terminal;

fn printed(words: &[&str]) -> String {
    let output = Command::new(TIDEMILL).args(words).output().expect("it runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn without_a_terminal_all_steps_are_printed_and_each_scenario_is_listed() {
    let _others = shared();
    let list = printed(&["step"]);
    assert!(list.lines().count() > 12 && list.contains("slow-reader"), "{list}");
    let text = printed(&["step", "echo", "--all", "--state"]);
    for line in
        ["turn 2  dispatch", "event: #0.1 readable", "send #0.1: 5 B queued", "write #0.1: 5 B", "unread 5 B"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    let steps = text.lines().filter(|line| line.starts_with(' '));
    assert!(steps.clone().count() > 100 && steps.clone().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn a_file_can_be_played_and_a_mistake_in_it_has_its_line() {
    let _others = shared();
    let file = std::env::temp_dir().join(format!("tidemill-step-{}", std::process::id()));
    std::fs::write(&file, "serve echo\nann connects\nann says \"x\"\n").expect("a file");
    let name = file.to_str().expect("text");
    assert!(printed(&["step", name]).contains("write #0.1: 1 B"));
    std::fs::write(&file, "serve echo\nann dances\n").expect("a file");
    let output = Command::new(TIDEMILL).args(["step", name]).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && told.contains("line 2: \"ann dances\" is no act"), "{told}");
    std::fs::remove_file(&file).expect("it is ours");
}

#[test]
fn at_a_terminal_it_steps_forward_and_back_and_stops_at_a_breakpoint() {
    let _others = shared();
    for columns in [80, 200] {
        let mut terminal = Terminal::start(columns, &["step", "full-table"]);
        terminal.shows("full-table 1> ");
        terminal.types("n\n");
        terminal.shows("── ann connects ──");
        terminal.types("until close\n");
        terminal.shows("slot 1 is free");
        terminal.types("s\n");
        terminal.shows("src/event_loop/reap.rs:");
        terminal.shows("pub(super) fn reap(&mut self)");
        terminal.types("g 2\n");
        terminal.shows("full-table 2> ");
        terminal.types("b\n");
        terminal.shows("full-table 1> ");
        let widest = terminal.screens().concat().iter().map(|row| row.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= usize::from(columns)), "{widest:?}");
        terminal.types("q\n");
        assert!(terminal.process.0.wait().expect("it ends").success());
    }
}
