//! The source keeps its own rules.

use std::fs;
use std::path::{Path, PathBuf};

/// The order of the book: a file imports from files that stand before it. See docs/architecture.md.
const ORDER: &[&str] = &[
    // nouns
    "id",
    "address",
    "closed",
    "limits",
    "time",
    "rules",
    "filter",
    "options",
    "departed",
    "shared", //
    // parts
    "inbox",
    "outbox",
    "arena",
    "wheel",
    "timers",
    "bucket",
    "guard",
    "stats",
    "eyeballs",
    "lookups",
    "handshakes",
    "eager", //
    // one connection; all of them
    "flags",
    "extra",
    "connection",
    "table", //
    // what a user holds
    "socket",
    "service", //
    // the world
    "listener",
    "system",
    "resolver",
    "kernel",
    "sim", //
    // the loop
    "handle",
    "turn",
    "reactor", //
    // the shelf
    "text",
    "framing",
    "proxy_header",
    "tls",
    "services",
];

/// Files of the binary, in the same order. They see the crate as everyone does, from outside.
const BINARY: &[&str] =
    &["plan", "values", "who", "secure", "cli", "serve", "wire", "connect", "load", "main"];

const LINES_OF_A_FUNCTION: usize = 70;
const LINES_OF_TURN: usize = 30;
const LINES_OF_A_FILE: usize = 450;
const COLUMNS: usize = 120;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(under).expect("a folder of the crate") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn rust_files(under: &Path) -> Vec<PathBuf> {
    let mut found = files(under);
    found.retain(|path| path.extension().is_some_and(|ending| ending == "rs"));
    found
}

/// The part of a file before its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_string()
}

/// The module of the crate that a file belongs to: `turn` for everything in `src/turn/`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).expect("a file of src");
    let first = inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_string()
}

fn is_test(path: &Path) -> bool {
    let inside = path.strip_prefix(root()).expect("a file of the crate");
    inside.components().any(|part| part.as_os_str() == "tests")
        || ["src/services/trial.rs", "src/sim.rs"].iter().any(|file| inside == Path::new(file))
}

fn place(module: &str, order: &[&str]) -> Option<usize> {
    order.iter().position(|name| *name == module)
}

#[test]
fn every_file_imports_only_from_what_stands_before_it() {
    for path in rust_files(&root().join("src")) {
        let name = module(&path);
        if name == "lib" {
            continue;
        }
        let text = code(&path);
        let imports = text.lines().filter_map(|line| {
            let from = line.split_once("crate::")?.1;
            let is_prose = line.trim_start().starts_with("//");
            (!is_prose && !line.contains("pub(crate::"))
                .then(|| from.split([':', ';', '(', '{', '!']).next().unwrap_or(""))
        });
        for import in imports {
            let order = if BINARY.contains(&name.as_str()) { BINARY } else { ORDER };
            let (here, there) = (place(&name, order), place(import, order));
            let here = here.unwrap_or_else(|| panic!("{}: give it a place in ORDER", path.display()));
            let there = there.unwrap_or_else(|| panic!("{}: crate::{import} has no place", path.display()));
            assert!(there <= here, "{}: {name} imports {import}, which stands below it", path.display());
        }
    }
}

#[test]
fn every_file_has_its_place() {
    for path in rust_files(&root().join("src")) {
        let name = module(&path);
        let known = name == "lib" || ORDER.contains(&name.as_str()) || BINARY.contains(&name.as_str());
        assert!(known, "{}: neither in ORDER nor in BINARY", path.display());
    }
}

#[test]
fn only_the_kernel_knows_mio_and_reads_the_clock() {
    for path in rust_files(&root().join("src")).iter().filter(|path| !is_test(path)) {
        let (name, text) = (module(path), code(path));
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let names_mio = line.contains("mio::") && name != "kernel";
            assert!(!names_mio, "{}: mio belongs into kernel.rs: {line}", path.display());
            let reads_clock =
                ["Instant::now", "SystemTime", ".elapsed()"].iter().any(|call| line.contains(call));
            let may_read = name == "kernel" || BINARY.contains(&name.as_str());
            assert!(!reads_clock || may_read, "{}: the clock is read in kernel.rs: {line}", path.display());
            let prints = ["println!", "eprintln!", "dbg!"].iter().any(|call| line.contains(call));
            assert!(!prints, "{}: a library does not print, and a print can panic: {line}", path.display());
        }
    }
}

/// Where each function of a formatted file begins and how long it is.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let start = line.trim_start();
        let words: Vec<&str> = start.split_whitespace().collect();
        let declares = words.iter().take(4).any(|word| *word == "fn") && !start.starts_with("//");
        if !declares || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let close = format!("{}}}", " ".repeat(line.len() - start.len()));
        let length = lines[at..].iter().position(|line| **line == close).map_or(0, |end| end + 1);
        found.push((start.to_string(), length));
    }
    found
}

#[test]
fn functions_fit_a_screen_and_the_turn_fits_less() {
    let mut seen = 0;
    for path in rust_files(&root().join("src")) {
        for (name, length) in functions(&fs::read_to_string(&path).expect("a source file")) {
            seen += 1;
            let is_turn = name.starts_with("pub(crate) fn turn(");
            let most = if is_turn { LINES_OF_TURN } else { LINES_OF_A_FUNCTION };
            assert!(length <= most, "{}: {length} lines are more than {most}: {name}", path.display());
        }
    }
    assert!(seen > 200, "only {seen} functions were recognised");
}

#[test]
fn files_can_be_read_in_one_sitting() {
    for path in rust_files(&root().join("src")).iter().filter(|path| !is_test(path)) {
        let length = code(path).lines().count();
        assert!(length <= LINES_OF_A_FILE, "{}: {length} lines before its tests", path.display());
    }
}

#[test]
fn lines_fit_the_page() {
    let folders = ["src", "tests", "docs", "benches", "examples"].map(|folder| root().join(folder));
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        // Pictures and data are not for reading.
        let is_page =
            |path: &PathBuf| !path.extension().is_some_and(|ending| ending == "svg" || ending == "json");
        for path in files(folder).into_iter().filter(is_page) {
            let text = fs::read_to_string(&path).expect("a text file");
            for (number, line) in (1..).zip(text.lines()) {
                let tables = path.extension().is_some_and(|ending| ending == "md") && line.starts_with('|');
                let width = line.chars().count();
                assert!(width <= COLUMNS || tables, "{}:{number}: {width} columns", path.display());
            }
        }
    }
}

#[test]
fn pages_link_to_what_is_there() {
    let mut links = 0;
    for page in ["README.md", "CHANGELOG.md", "docs/architecture.md", "docs/one-turn.md", "docs/from-node.md"]
    {
        let text = fs::read_to_string(root().join(page)).expect("a page");
        let folder = root().join(page).parent().expect("a folder").to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with('#') || link.contains("://") {
                continue;
            }
            links += 1;
            assert!(folder.join(link.split('#').next().unwrap_or("")).exists(), "{page} links to {link}");
        }
    }
    assert!(links >= 3);
}

#[test]
fn the_code_map_names_every_file() {
    let map = fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    for name in ORDER {
        assert!(
            map.contains(&format!("`{name}`")) || map.contains(&format!("`{name}/*`")),
            "{name} is not on the map"
        );
    }
}
