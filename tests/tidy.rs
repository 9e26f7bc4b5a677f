//! Checks of the source: layers, names, comments, lengths.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers of the library, the lowest first: folders, and the files of the public layer. A file imports from its own
/// layer and from those before it. The public layer is last, except `service` (the trait that the loop calls) and
/// `handle` (the posts that it runs).
const LIBRARY: &[&str] = &[
    "base",
    "config",
    "parts",
    "sys",
    "connection",
    "service",
    "handle",
    "event_loop",
    "framing",
    "tls",
    "services",
    "testing",
    "reactor",
    "lib",
];

/// The layers of the binary, in the same order. They use the public API of the library.
const BINARY: &[&str] = &[
    "locked",
    "backplane",
    "shared_limits",
    "args",
    "generate",
    "log_buffer",
    "log_filter",
    "systemd",
    "signals",
    "on_demand",
    "observe",
    "reload",
    "admin",
    "self_loop",
    "serve",
    "shards",
    "client",
    "load",
    "step",
    "main",
];

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

/// The list of layers that applies to a file of `src`, and its layer: `event_loop` for all files in `src/event_loop/`.
fn layer(path: &Path) -> (&'static [&'static str], String) {
    let source = root().join("src");
    let (order, inside) = match path.strip_prefix(source.join("bin/tidemill")) {
        Ok(inside) => (BINARY, inside),
        Err(_) => (LIBRARY, path.strip_prefix(&source).expect("a file of src")),
    };
    let first = inside.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    (order, first.trim_end_matches(".rs").to_string())
}

fn is_test(path: &Path) -> bool {
    let inside = path.strip_prefix(root()).expect("a file of the crate");
    inside.components().any(|part| part.as_os_str() == "tests")
}

/// The imports of a file by `crate::`: the first name of each path. Comments and visibilities are left out.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let from = line.split_once("crate::")?.1;
        let is_prose = line.trim_start().starts_with("//");
        (!is_prose && !line.contains("pub(crate::"))
            .then(|| from.split([':', ';', '(', '{', '!']).next().unwrap_or(""))
    })
}

#[test]
fn a_file_imports_only_from_its_own_layer_and_those_below() {
    let mut seen = 0;
    for path in rust_files(&root().join("src")) {
        let (order, name) = layer(&path);
        let place = |layer: &str| order.iter().position(|name| *name == layer);
        let here =
            place(&name).unwrap_or_else(|| panic!("{}: {name} has no place in the order", path.display()));
        for import in imports(&code(&path)) {
            seen += 1;
            let there =
                place(import).unwrap_or_else(|| panic!("{}: crate::{import} has no place", path.display()));
            assert!(there <= here, "{}: {name} imports {import}, which is a higher layer", path.display());
        }
    }
    assert!(seen > 300, "only {seen} imports were recognised");
}

#[test]
fn every_layer_in_the_order_exists() {
    for layer in LIBRARY.iter().chain(BINARY) {
        let found = ["src", "src/bin/tidemill"].iter().any(|folder| {
            let at = root().join(folder).join(layer);
            at.is_dir() || at.with_extension("rs").is_file()
        });
        assert!(found, "{layer} is in the order and not in src");
    }
}

/// The files that one file of a bench names by `crate::`, as file names.
fn bench_imports(path: &Path, folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(path).expect("a source file");
    let mut names: Vec<String> = imports(&text).map(str::to_string).collect();
    // `use crate::{fan_out, tls};` names several.
    for list in text.split("use crate::{").skip(1).filter_map(|rest| rest.split('}').next()) {
        names.extend(list.split(',').map(|name| name.split("::").next().unwrap_or("").trim().to_string()));
    }
    let files = names.iter().flat_map(|name| {
        [folder.join(name).with_extension("rs"), folder.join(name).join("mod.rs")]
            .into_iter()
            .filter(|at| at.is_file())
    });
    files.filter(|found| found != path).collect()
}

#[test]
fn no_two_files_of_a_bench_import_each_other_in_a_circle() {
    let folder = root().join("benches/versus");
    let mut left: Vec<PathBuf> = rust_files(&folder);
    left.retain(|path| !path.starts_with(folder.join("small")));
    loop {
        let before = left.len();
        let still = left.clone();
        left.retain(|path| bench_imports(path, &folder).iter().any(|import| still.contains(import)));
        if left.is_empty() {
            return;
        }
        assert!(left.len() < before, "these import each other: {left:#?}");
    }
}

/// The files that call the operating system; all others build without one.
const KERNEL: &[&str] =
    &["sys/mio.rs", "sys/stream.rs", "sys/timerfd.rs", "sys/splice.rs", "sys/resolver.rs"];

/// The files in which `Instant` and threads of the user meet the ticks of the loop.
const FACE: &[&str] = &[
    "reactor/mod.rs",
    "reactor/shards/mod.rs",
    "reactor/shards/shard.rs",
    "connection/admission/shared.rs",
    "connection/rate/shared.rs",
    "services/chat/on_shards.rs",
    "sys/handed_over.rs",
    "handle.rs",
    "sys/mod.rs",
    "connection/socket.rs",
    "connection/sockets.rs",
    "testing/report.rs",
    "sys/sim/replay.rs",
];

#[test]
fn instants_threads_libc_and_mio_stay_at_the_edge() {
    let source = root().join("src");
    for path in rust_files(&source).iter().filter(|path| !is_test(path)) {
        let inside = path.strip_prefix(&source).expect("a file of src");
        if inside.starts_with("bin") {
            continue;
        }
        let kernel = KERNEL.iter().any(|file| inside == Path::new(file));
        let face = FACE.iter().any(|file| inside == Path::new(file));
        for line in code(path).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let names = |words: &[&str]| words.iter().any(|word| line.contains(word));
            let system = names(&["libc::", "rustix::", "socket2::"])
                || line.contains("mio::") && !line.contains("sys::mio::");
            assert!(kernel || !system, "{}: this belongs into {KERNEL:?}: {line}", path.display());
            let time_or_threads = names(&["Instant", "SystemTime", "thread::", "Mutex", "Condvar"]);
            assert!(
                kernel || face || !time_or_threads,
                "{}: inside, time is ticks and there is one thread: {line}",
                path.display()
            );
        }
    }
}

#[test]
fn nothing_prints_by_a_macro_that_panics() {
    for path in rust_files(&root().join("src")).iter().filter(|path| !is_test(path)) {
        for line in code(path).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let prints = ["println!", "eprintln!", "dbg!"].iter().any(|call| line.contains(call));
            assert!(!prints, "{}: where stdout is closed, a print panics: {line}", path.display());
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

/// The code of a file without comments and strings. Relies on formatted source, and on the fact that no string of this
/// project contains an unescaped quote.
fn without_prose(text: &str) -> String {
    let (mut kept, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['/', '"', '\'']) {
        let (before, found) = rest.split_at(at);
        kept.push_str(before);
        rest = &found[piece_length(found)..];
    }
    kept + rest
}

/// The length of the comment, string or character literal that a text begins with; 1 if it begins with none.
fn piece_length(text: &str) -> usize {
    match text.as_bytes() {
        [b'/', b'/', ..] => text.find('\n').unwrap_or(text.len()),
        [b'"', ..] => closing(text, '"'),
        // A character, and not a lifetime.
        [b'\'', b'\\', ..] => closing(text, '\''),
        [b'\'', ..] => {
            let after = text.chars().nth(2).filter(|&third| third == '\'');
            after.map_or(1, |_| 2 + text.chars().nth(1).map_or(0, char::len_utf8))
        }
        _ => 1,
    }
}

/// The length of a literal that begins with this quote.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn identifiers(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

#[test]
fn identifiers_that_were_retired_do_not_come_back() {
    let list = fs::read_to_string(root().join("tests/retired_identifiers.txt")).expect("the list");
    let lines = list.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let retired: HashMap<&str, &str> = lines
        .map(|line| line.split_once(' ').unwrap_or_else(|| panic!("{line:?} has an old name and a new one")))
        .collect();
    assert!(retired.len() > 200, "only {} names were read", retired.len());
    for folder in ["src", "tests", "benches"] {
        for path in rust_files(&root().join(folder)) {
            let code = without_prose(&fs::read_to_string(&path).expect("a source file"));
            for word in identifiers(&code) {
                if let Some(now) = retired.get(word) {
                    panic!("{}: {word} was retired; it is {} now", path.display(), now.trim());
                }
            }
        }
    }
}

/// The comments of a formatted file: blocks of consecutive comment lines, each with the number of its first line. Text
/// in backticks and code blocks is left out.
fn comments(text: &str) -> Vec<(usize, String)> {
    let (mut blocks, mut in_code) = (Vec::<(usize, String)>::new(), false);
    let (mut rest, mut line, mut last_line) = (text, 1, 0);
    while let Some(at) = rest.find(['/', '"', '\'', '\n']) {
        let (piece, after) = rest[at..].split_at(piece_length(&rest[at..]));
        if piece.starts_with("//") {
            let comment = piece.trim_start_matches(['/', '!']).trim();
            if blocks.is_empty() || line != last_line + 1 {
                blocks.push((line, String::new()));
                in_code = false;
            }
            last_line = line;
            in_code ^= comment.starts_with("```");
            if let (false, Some((_, block))) = (in_code, blocks.last_mut()) {
                comment.split('`').step_by(2).for_each(|plain| block.push_str(&format!("{plain} ")));
            }
        }
        line += piece.matches('\n').count();
        rest = after;
    }
    blocks
}

/// Whether a phrase occurs in a sequence of words.
fn contains_phrase(words: &[String], phrase: &str) -> bool {
    let phrase: Vec<&str> = phrase.split(' ').collect();
    words.windows(phrase.len()).any(|window| window == phrase)
}

fn lower_case_words(text: &str) -> Vec<String> {
    identifiers(text).map(str::to_lowercase).collect()
}

/// The string literals of formatted code, each with its line number: error messages, log lines, names.
fn strings(code: &str) -> Vec<(usize, String)> {
    let (mut found, mut rest, mut line) = (Vec::new(), code, 1);
    while let Some(at) = rest.find(['/', '"', '\'', '\n']) {
        let (piece, after) = rest[at..].split_at(piece_length(&rest[at..]));
        if piece.starts_with('"') {
            found.push((line, piece.to_string()));
        }
        line += piece.matches('\n').count();
        rest = after;
    }
    found
}

#[test]
fn comments_and_strings_are_found_in_source() {
    let source =
        "//! one\n// `no` two\n\nlet a = \"http://b\"; // three\n/// ```\n/// no\n/// ```\nlet c = '\"';\n";
    let found: Vec<(usize, Vec<String>)> =
        comments(source).into_iter().map(|(line, text)| (line, lower_case_words(&text))).collect();
    assert_eq!(found, [(1, vec!["one".into(), "two".into()]), (4, vec!["three".into()])]);
    assert_eq!(strings(source), [(4, "\"http://b\"".to_string())]);
}

#[test]
fn comments_and_messages_have_none_of_the_banned_words() {
    let list = fs::read_to_string(root().join("tests/banned_words.txt")).expect("the list");
    let lines = list.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let banned: Vec<(&str, &str)> = lines
        .map(|line| line.split_once("  ").unwrap_or_else(|| panic!("{line:?} has a phrase and an advice")))
        .collect();
    let all = ["src", "tests", "benches"].into_iter().flat_map(|folder| rust_files(&root().join(folder)));
    let (mut seen, mut found) = (0, Vec::new());
    for path in all {
        let inside = path.strip_prefix(root()).expect("a file of the crate");
        let mut texts = comments(&fs::read_to_string(&path).expect("a source file"));
        if inside.starts_with("src") && !is_test(&path) {
            texts.extend(strings(&code(&path)));
        }
        for (line, text) in texts {
            let words = lower_case_words(&text);
            seen += words.len();
            let bad = banned.iter().filter(|(phrase, _)| contains_phrase(&words, phrase));
            found.extend(bad.map(|(phrase, instead)| {
                format!("{}:{line}: not {phrase:?} but: {}", inside.display(), instead.trim())
            }));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(seen > 15_000, "only {seen} words were read");
}

/// The names that a file declares: functions, types, constants, and fields. Methods of a trait that is implemented
/// belong to the trait, and modules are named by their files.
fn declared(code: &str) -> Vec<String> {
    let (mut names, mut of_a_trait, mut is_test) = (Vec::new(), false, false);
    for line in code.lines() {
        if line.starts_with("impl") {
            of_a_trait = line.contains(" for ");
        } else if line.starts_with('}') {
            of_a_trait = false;
        }
        let mut words = identifiers(line)
            .skip_while(|word| ["pub", "crate", "super", "const", "async", "unsafe", "in"].contains(word));
        match words.next() {
            Some("fn") if !of_a_trait && !is_test => names.extend(words.next().map(str::to_string)),
            Some("struct" | "enum" | "trait" | "static") => names.extend(words.next().map(str::to_string)),
            Some(field) if line.starts_with("    pub") && line.contains(&format!("{field}: ")) => {
                names.push(field.to_string());
            }
            _ => {}
        }
        // An attribute such as `should_panic` may stand between `test` and the function.
        is_test = line.trim() == "#[test]" || is_test && line.trim().starts_with("#[");
    }
    names
}

/// The compiler finds unused private names. A public name must be used by a test, a bench, an example or a page:
/// otherwise nothing shows that it works.
#[test]
fn every_name_is_used_somewhere() {
    let folders = ["src", "tests", "benches", "docs"].map(|folder| root().join(folder));
    let texts: Vec<(PathBuf, String)> = folders
        .iter()
        .flat_map(|folder| files(folder))
        .chain([root().join("README.md")])
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs" || ending == "md"))
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("a text file")))
        .collect();
    let mut counts = HashMap::<&str, usize>::new();
    for (_, text) in &texts {
        identifiers(text).for_each(|word| *counts.entry(word).or_default() += 1);
    }
    // For `cfg(doctest)` only: they contain the pages whose programs are compiled.
    let pages = ["Readme", "FromNode"];
    let (mut seen, source) = (0, root().join("src"));
    for (path, text) in texts.iter().filter(|(path, _)| path.starts_with(&source)) {
        for name in declared(&without_prose(text)) {
            seen += 1;
            let used = counts.get(name.as_str()).is_some_and(|&count| count > 1);
            assert!(used || pages.contains(&name.as_str()), "{}: nothing uses {name}", path.display());
        }
    }
    assert!(seen > 1_000, "only {seen} names were recognised");
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
    let folders = ["src", "tests", "docs", "benches"].map(|folder| root().join(folder));
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        // Pictures, data and what is built are not read by people. The list of public items has one a line, for `diff`.
        let is_page = |path: &PathBuf| {
            let is_data = path.extension().is_some_and(|ending| ending == "svg" || ending == "json")
                || path.components().any(|part| part.as_os_str() == "corpus");
            let built = ["docs/api.txt", "docs/benchmarks.html", "docs/page/index.html"];
            !is_data && !built.iter().any(|built| path.ends_with(built))
        };
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
fn links_in_the_pages_resolve() {
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
fn the_code_map_names_every_layer() {
    let map = fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    for layer in LIBRARY.iter().chain(BINARY) {
        assert!(map.contains(&format!("`{layer}`")), "{layer} is not on the map");
    }
}
