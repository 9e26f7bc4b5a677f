//! The guide for users of Node's `net` names every entry of the list of its API, and only paths that exist in this
//! crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LIST: &str = "docs/node-net.txt";
const GUIDE: &str = "docs/from-node.md";

/// The minimum number of entries in the list.
const ENTRIES_MIN: usize = 150;

/// The second column of an entry without an equivalent in this crate.
const NOTHING: &str = "–";

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn entries() -> Vec<String> {
    let text = read(LIST);
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_string).collect()
}

/// A row of one of the guide's tables.
struct Row {
    line: usize,
    node: String,
    here: String,
    remark: String,
}

/// All rows of all tables, without the table heads.
fn rows() -> Vec<Row> {
    let (mut rows, mut in_code, mut heads) = (Vec::new(), false, 0);
    for (line, text) in (1..).zip(read(GUIDE).lines()) {
        in_code ^= text.starts_with("```");
        let Some(text) = text.strip_prefix('|').filter(|_| !in_code) else { continue };
        let cells: Vec<&str> = text.split('|').map(str::trim).collect();
        let [node, here, remark, ""] = cells[..] else {
            panic!("{GUIDE}:{line}: a row has three columns: {text}");
        };
        match node {
            "Node" => heads += 1,
            _ if node.starts_with("---") => {}
            _ => rows.push(Row { line, node: node.into(), here: here.into(), remark: remark.into() }),
        }
    }
    assert!(heads > 0 && rows.len() > heads, "{GUIDE}: no tables were recognised");
    rows
}

/// All texts in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Every entry named in a first column, with the line numbers of its rows.
fn named() -> BTreeMap<String, Vec<usize>> {
    let mut named = BTreeMap::<String, Vec<usize>>::new();
    for row in rows() {
        for entry in quoted(&row.node) {
            named.entry(entry.to_string()).or_default().push(row.line);
        }
    }
    named
}

#[test]
fn the_list_is_long_and_has_no_duplicates() {
    let entries = entries();
    assert!(entries.len() >= ENTRIES_MIN, "{LIST}: only {} entries", entries.len());
    let mut seen = BTreeSet::new();
    for entry in &entries {
        assert!(seen.insert(entry), "{LIST}: {entry} is there twice");
    }
}

#[test]
fn every_entry_of_the_list_is_in_exactly_one_row_of_the_guide() {
    let named = named();
    for entry in entries() {
        let lines = named.get(&entry).map_or(&[][..], Vec::as_slice);
        assert!(!lines.is_empty(), "{GUIDE}: no row is about `{entry}`");
        assert!(lines.len() == 1, "{GUIDE}: `{entry}` is in more than one row: lines {lines:?}");
    }
}

#[test]
fn no_row_names_what_is_not_in_the_list() {
    let entries: BTreeSet<String> = entries().into_iter().collect();
    for (entry, lines) in named() {
        assert!(entries.contains(&entry), "{GUIDE}:{}: `{entry}` is not in {LIST}", lines[0]);
    }
    for Row { line, node, .. } in rows() {
        assert!(quoted(&node).next().is_some(), "{GUIDE}:{line}: names nothing in backticks: {node}");
        let outside: String = node.split('`').step_by(2).collect();
        let only_commas = outside.chars().all(|c| c == ',' || c == ' ');
        assert!(only_commas, "{GUIDE}:{line}: text outside of backticks: {node}");
    }
}

#[test]
fn a_row_names_an_equivalent_or_the_reason_why_there_is_none() {
    for Row { line, node, here, remark } in rows() {
        if here == NOTHING {
            assert!(!remark.is_empty(), "{GUIDE}:{line}: does not say why there is no {node}");
        } else {
            assert!(quoted(&here).next().is_some(), "{GUIDE}:{line}: names no equivalent of {node}");
        }
    }
}

/// The names of each public type: its public methods, its public fields, its variants.
type Types = BTreeMap<String, BTreeSet<String>>;

fn sources(under: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(under).expect("a folder of the crate") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

/// The identifier at the beginning of a text.
fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The kind of block that a line at the left margin begins, and its type.
fn block(line: &str) -> Option<(&'static str, String)> {
    for kind in ["struct", "enum", "trait"] {
        if let Some(rest) = line.strip_prefix("pub ").and_then(|rest| rest.strip_prefix(kind)) {
            return Some((kind, name(rest.trim_start())));
        }
    }
    let rest = line.strip_prefix("impl")?;
    // The type is behind the parameters, and if a trait is implemented, behind `for`.
    let rest = if rest.starts_with('<') { rest.split_once("> ")?.1 } else { rest.trim_start() };
    let whose = rest.split_once(" for ").map_or(rest, |(_, whose)| whose);
    Some(("impl", name(whose)))
}

/// The public name that a line directly within a block adds to its type.
fn member(kind: &str, line: &str) -> Option<String> {
    let public = line.strip_prefix("pub ");
    let found = match kind {
        "enum" => Some(line).filter(|line| line.starts_with(char::is_uppercase)),
        "trait" => line.strip_prefix("fn "),
        "struct" => public,
        _ => public.and_then(|rest| rest.strip_prefix("fn ").or(rest.strip_prefix("const "))),
    };
    found.map(name)
}

/// Finds the public types and their public names. Relies on formatted source: a block begins and ends at the left
/// margin, and its items are indented by four spaces.
fn types() -> Types {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let (mut types, mut declared) = (Types::new(), BTreeSet::new());
    for path in files {
        let text = fs::read_to_string(&path).expect("a source file");
        let mut within: Option<(&str, String)> = None;
        for line in text.lines().filter(|line| !line.is_empty()) {
            if !line.starts_with([' ', '}', ')']) {
                within = block(line);
                declared.extend(
                    within.iter().filter(|(kind, _)| *kind != "impl").map(|(_, whose)| whose.clone()),
                );
                continue;
            }
            let Some((kind, whose)) = &within else { continue };
            let directly = line.strip_prefix("    ").filter(|inside| !inside.starts_with(' '));
            let member = directly.and_then(|inside| member(kind, inside));
            types.entry(whose.clone()).or_default().extend(member);
        }
    }
    types.retain(|whose, _| declared.contains(whose));
    for whose in declared {
        types.entry(whose).or_default();
    }
    types
}

/// The error in a path such as `Socket::pause`, if there is one.
fn wrong(path: &str, types: &Types) -> Option<String> {
    let (whose, member) = path.split_once("::").map_or((path, None), |(whose, member)| (whose, Some(member)));
    match (types.get(whose), member) {
        (None, _) => Some(format!("there is no public type {whose}")),
        (Some(members), Some(member)) if !members.contains(member) => {
            Some(format!("{whose} has no {member}"))
        }
        _ => None,
    }
}

#[test]
fn every_path_in_the_second_column_exists_in_the_source() {
    let (types, mut seen) = (types(), 0);
    for Row { line, node, here, .. } in rows() {
        for path in quoted(&here).filter(|path| !path.starts_with("std::") && !path.starts_with("str::")) {
            seen += 1;
            let wrong = wrong(path, &types);
            assert_eq!(wrong, None, "{GUIDE}:{line}: {node}: `{path}` is not in the source");
        }
    }
    assert!(seen > 100, "only {seen} paths were recognised");
}

/// In remarks, only paths are checked: they also quote system options, values and texts.
#[test]
fn every_path_in_a_remark_exists_in_the_source() {
    let (types, mut seen) = (types(), 0);
    for Row { line, node, remark, .. } in rows() {
        let ours = |path: &&str| path.starts_with(char::is_uppercase) && path.contains("::");
        for path in quoted(&remark).filter(ours) {
            seen += 1;
            let wrong = wrong(path, &types);
            assert_eq!(wrong, None, "{GUIDE}:{line}: {node}: `{path}` is not in the source");
        }
    }
    assert!(seen > 50, "only {seen} paths were recognised");
}
