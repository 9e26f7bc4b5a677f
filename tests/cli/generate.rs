//! `completions` and `man`: made from the options, so they name all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::interop::has;
use crate::server::{complete, run, shared};

/// A folder of a test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("tidemill-generate-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    /// The file with the completions for a shell.
    fn completions(&self, shell: &str) -> PathBuf {
        let outcome = run(&["completions", shell], b"");
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let path = self.0.join(format!("completions.{shell}"));
        fs::write(&path, outcome.stdout).expect("a file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a script prints, which must succeed and say nothing on stderr.
#[track_caller]
fn output(program: &str, words: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(words);
    let outcome = complete(command, b"");
    assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""), "{program} {words:?}");
    String::from_utf8(outcome.stdout).expect("text")
}

/// Each line typed, and some of the words that complete its last one.
const TYPED: &[(&str, &[&str])] = &[
    ("tidemill pro", &["proxy"]),
    ("tidemill ", &["echo", "completions"]),
    ("tidemill echo --max-c", &["--max-connections"]),
    ("tidemill proxy --balance le", &["least-connections"]),
    ("tidemill echo --overflow ", &["refuse", "wait"]),
    ("tidemill completions ", &["bash", "fish", "zsh"]),
];

#[test]
fn bash_completes_commands_options_and_values() {
    let _others = shared();
    let folder = Folder::new("bash");
    let script = r#"
        source "$1"
        COMP_WORDS=($2)
        [[ $2 == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        function=$(complete -p tidemill | sed 's/.*-F \([^ ]*\).*/\1/')
        "$function" tidemill "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let file = folder.completions("bash");
    for (typed, expected) in TYPED {
        let words = output("bash", &["--norc", "-c", script, "bash", &file.display().to_string(), typed]);
        for word in *expected {
            assert!(words.lines().any(|line| line == *word), "{typed:?}: {words}");
        }
    }
}

#[test]
fn fish_completes_commands_options_and_values() {
    let _others = shared();
    if !has("fish") {
        return;
    }
    let folder = Folder::new("fish");
    let file = folder.completions("fish");
    // The script completes options and commands; for arguments without an option fish offers files.
    let typed = TYPED.iter().filter(|(typed, _)| *typed != "tidemill completions ");
    let ask: Vec<String> =
        typed.clone().map(|(typed, _)| format!("complete -C {typed:?}; echo ---")).collect();
    let script = format!("source {}; {}", file.display(), ask.join("; "));
    let said = output("fish", &["--no-config", "-c", &script]);
    for ((typed, expected), words) in typed.zip(said.split("---\n")) {
        for word in *expected {
            assert!(words.lines().any(|line| line.split('\t').next() == Some(word)), "{typed:?}: {words}");
        }
    }
}

#[test]
fn zsh_loads_the_completions_for_the_command() {
    let _others = shared();
    if !has("zsh") {
        return;
    }
    let folder = Folder::new("zsh");
    fs::copy(folder.completions("zsh"), folder.0.join("_tidemill")).expect("a file");
    let script = "fpath=($1 $fpath); autoload -U compinit; compinit -u -d $1/dump; autoload +X _tidemill
        print $_comps[tidemill]; functions _tidemill";
    let said = output("zsh", &["-fc", script, "zsh", &folder.0.display().to_string()]);
    assert!(said.starts_with("_tidemill\n") && said.contains("--max-connections=["), "{said}");
}

/// The long options that the help of a command lists.
fn options(command: &str) -> Vec<String> {
    let help = String::from_utf8(run(&[command, "--help"], b"").stdout).expect("text");
    let options = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let long = line.strip_prefix("-h, ").unwrap_or(line);
        long.starts_with("--").then(|| long.split(' ').next().unwrap_or(long).to_string())
    });
    options.collect()
}

#[test]
fn each_command_has_a_man_page_that_explains_each_option() {
    let _others = shared();
    let folder = Folder::new("man");
    // A folder that is not there is made.
    let pages = folder.0.join("share/man1");
    assert_eq!(output(crate::server::TIDEMILL, &["man", &pages.display().to_string()]), "");
    let all = fs::read_to_string(pages.join("tidemill.1")).expect("the first page");
    let help = String::from_utf8(run(&["--help"], b"").stdout).expect("text");
    let commands =
        help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list");
    let commands: Vec<&str> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 6, "{commands:?}");
    for command in commands.into_iter().filter(|command| *command != "help") {
        assert!(all.contains(&format!("tidemill\\-{command}(1)")), "{command}: {all}");
        check_page(&pages.join(format!("tidemill-{command}.1")), &options(command));
    }
    if has("man") {
        let all = fs::read_dir(&pages).expect("a folder").map(|page| page.expect("a page").path());
        // groff names what it does not understand.
        let mut man = Command::new("man");
        man.env("MANWIDTH", "80").env("LC_ALL", "C.UTF-8").args(["--warnings", "-l"]).args(all);
        let outcome = complete(man, b"");
        assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""));
    }
}

#[track_caller]
fn check_page(path: &Path, options: &[String]) {
    let page = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "NOTES"] {
        assert!(page.contains(&format!(".SH {section}\n")), "{section}: {page}");
    }
    assert!(!options.is_empty());
    for option in options {
        let named = format!("\\fB{}\\fR", option.replace('-', "\\-"));
        let mut lines =
            page.lines().skip_while(|line| !line.contains(&named) || line.starts_with("\\fBtidemill"));
        assert!(lines.next().is_some(), "{option} is not in {}", path.display());
        assert!(
            lines.next().is_some_and(|text| text.len() > 9),
            "{option} has no text in {}",
            path.display()
        );
    }
}

#[test]
fn a_shell_without_completions_and_a_folder_that_cannot_be_made_are_errors() {
    let _others = shared();
    let outcome = run(&["completions", "tcsh"], b"");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("'tcsh' for '<SHELL>'"), "{}", outcome.stderr);
    let outcome = run(&["man", "/proc/none"], b"");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("man page /proc/none: "), "{}", outcome.stderr);
}
