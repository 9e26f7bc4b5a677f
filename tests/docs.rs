//! README and docs are true: their words, their links, their commands, and the answers to a reader's questions.

use std::fs;
use std::path::{Path, PathBuf};

const README: &str = "README.md";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// README, CHANGELOG and every page of docs, as paths from the root.
fn pages() -> Vec<String> {
    let entries = fs::read_dir(root().join("docs")).expect("docs");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut pages: Vec<String> =
        names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    pages.extend([README, "CHANGELOG.md"].map(String::from));
    pages.sort();
    assert!(pages.len() >= 8, "only {pages:?} were found");
    pages
}

/// A fenced block: the line it begins at, its language, its text, and the last line before it that is not empty.
struct Block {
    line: usize,
    language: String,
    text: String,
    before: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut found, mut inside, mut before) = (Vec::<Block>::new(), false, String::new());
    for (line, text) in (1..).zip(read(page).lines()) {
        match text.strip_prefix("```") {
            Some(language) if !inside => {
                inside = true;
                let (language, text) = (language.to_string(), String::new());
                found.push(Block { line, language, text, before: before.clone() });
            }
            Some(_) => inside = false,
            None if inside => {
                let block = found.last_mut().expect("a block that has begun");
                block.text += text;
                block.text += "\n";
            }
            None if !text.trim().is_empty() => before = text.trim().to_string(),
            None => {}
        }
    }
    assert!(!inside, "{page}: a block does not end");
    found
}

/// The text below a heading of the second level.
fn section(page: &str, heading: &str) -> String {
    let text = read(page);
    let start = format!("\n## {heading}\n");
    let (_, rest) = text.split_once(&start).unwrap_or_else(|| panic!("{page} has no section {heading:?}"));
    rest.split("\n## ").next().unwrap_or_default().to_string()
}

/// A line without its inline code.
fn prose(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

fn words(text: &str) -> String {
    let letters: String = text
        .chars()
        .map(|c| if c.is_alphanumeric() || c == '/' { c.to_ascii_lowercase() } else { ' ' })
        .collect();
    format!(" {} ", letters.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Words that comments may use and pages may not: they are for persons, and a page is about connections.
const BANNED_IN_PAGES: &[&str] = &["anyone", "caller", "callers", "he", "thirsty", "who"];

#[test]
fn banned_words_stand_in_no_page() {
    let list = read("tests/banned_words.txt");
    let lines = list.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let phrases =
        lines.map(|line| line.split_once("  ").unwrap_or_else(|| panic!("{line:?} has an advice")).0);
    let banned: Vec<String> = phrases.chain(BANNED_IN_PAGES.iter().copied()).map(words).collect();
    assert!(banned.len() > 30, "only {} words were read", banned.len());
    for page in pages() {
        // In Rust they may be names of the API.
        let mut in_rust = false;
        for (number, line) in (1..).zip(read(&page).lines()) {
            in_rust = if line.starts_with("```") { line.starts_with("```rust") } else { in_rust };
            if in_rust {
                continue;
            }
            let line = words(&prose(line));
            for word in &banned {
                assert!(!line.contains(word.as_str()), "{page}:{number}: {:?} is banned", word.trim());
            }
        }
    }
}

#[test]
fn every_link_and_picture_of_every_page_resolves() {
    let mut links = 0;
    for page in pages() {
        let folder = root().join(&page).parent().expect("a folder").to_path_buf();
        for link in read(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with('#') || link.contains("://") {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = folder.join(path);
            assert!(target.exists(), "{page} links to {link}");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).expect("a page");
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let found = headings
                    .any(|line| words(&line.replace(['`', '\''], "")).trim().replace(' ', "-") == anchor);
                assert!(found, "{page} links to {link}, and there is no such heading");
            }
        }
    }
    assert!(links >= 30, "only {links} links were found");
}

#[test]
fn drawings_have_a_title_a_description_and_colours_for_light_and_dark() {
    for name in ["states", "byte", "token", "wheel", "linger", "versus-rate", "versus-cpu"] {
        let svg = read(&format!("docs/{name}.svg"));
        for part in ["<title", "<desc", "prefers-color-scheme: dark", "viewBox", "role=\"img\""] {
            assert!(svg.contains(part), "docs/{name}.svg has no {part}");
        }
        let shown = pages().iter().any(|page| read(page).contains(&format!("]({name}.svg)")));
        assert!(shown, "no page shows docs/{name}.svg");
    }
}

/// The charts say what they compare, which side is better, when and where it was measured, and leave out no server.
/// `cargo bench --bench versus -- --smoke` checks that they are drawn from docs/benchmarks.json.
#[test]
fn charts_have_axes_date_and_commit_and_a_bar_for_every_server() {
    let data: serde_json::Value = serde_json::from_str(&read("docs/benchmarks.json")).expect("JSON");
    let cases = data["cases"].as_array().expect("cases");
    let servers: usize = cases.iter().map(|case| case["servers"].as_array().map_or(0, Vec::len)).sum();
    let (bars, date) = (servers - cases.len(), data["machine"][2][1].as_str().expect("a date"));
    for (name, axis) in
        [("rate", "right of 1: tidemill handles more per second"), ("cpu", "left of 1: tidemill uses less")]
    {
        let svg = read(&format!("docs/versus-{name}.svg"));
        assert_eq!(svg.matches("class=\"bar\"").count(), bars, "{name}: a bar for each server but tidemill");
        let texts = [axis, "logarithmic", &format!("measured {date} with tidemill "), " at commit "];
        assert!(texts.iter().all(|text| svg.contains(text)), "{name}: {texts:?}");
    }
}

#[test]
fn kqueue_is_never_mentioned_without_saying_that_it_was_not_run() {
    let mut mentions = 0;
    for page in pages() {
        for paragraph in read(&page).split("\n\n") {
            let text = words(paragraph);
            for name in [" kqueue ", " freebsd ", " macos "] {
                if text.contains(name) {
                    mentions += 1;
                    let said = text.contains(" type checked ") && text.contains(" never run ");
                    assert!(said, "{page}: {}: {paragraph}", name.trim());
                }
            }
        }
    }
    assert!(mentions >= 3);
}

#[test]
fn every_page_is_in_the_documentation_of_the_crate() {
    let lib = read("src/lib.rs");
    for page in pages().iter().filter(|page| page.starts_with("docs/")) {
        let found = lib.lines().find(|line| line.contains(&format!("include_str!(\"../{page}\")")));
        assert!(found.is_some(), "{page} is not in the guide");
    }
}

/// Rust is compiled where src/lib.rs includes the page. Everything else names the test that runs it, or says why none
/// does.
#[test]
fn every_block_runs_in_a_test_or_says_why_not() {
    let lib = read("src/lib.rs");
    let mut seen = 0;
    for page in pages() {
        for Block { line, language, before, .. } in blocks(&page) {
            seen += 1;
            let place = format!("{page}:{line}");
            if language.starts_with("rust") {
                assert!(
                    lib.contains(&format!("include_str!(\"../{page}\")")),
                    "{place}: is compiled nowhere"
                );
            } else if language == "js" {
                assert_eq!(page, "docs/from-node.md", "{place}: the programs for Node are there");
            } else if let Some(named) = before.strip_prefix("<!-- runs in: ") {
                let (file, function) = named
                    .trim_end_matches(" -->")
                    .split_once(' ')
                    .unwrap_or_else(|| panic!("{place}: {named}"));
                let (rust, shell) = (format!("fn {function}("), format!("{function}() {{"));
                let text = read(file);
                assert!(text.contains(&rust) || text.contains(&shell), "{place}: {file} has no {function}");
            } else {
                let why = before.strip_prefix("<!-- not run: ").map(|why| why.trim_end_matches(" -->"));
                assert!(why.is_some_and(|why| why.len() > 5), "{place}: neither runs nor says why not");
            }
        }
    }
    assert!(seen >= 20, "only {seen} blocks were found");
}

#[test]
fn tests_that_the_pages_name_exist() {
    let mut folders = vec![root().join("tests"), root().join("src")];
    let mut sources = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                sources += &fs::read_to_string(&path).expect("a source file");
            }
        }
    }
    let table = section("docs/architecture.md", "The five laws");
    let names = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    // A name of four words or more is a test's.
    let names: Vec<&str> = names.filter(|name| name.matches('_').count() > 3).collect();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        assert!(sources.contains(&format!("fn {name}()")), "docs/architecture.md: there is no test {name}");
    }
}

/// The lines of a source file before its unit tests, and how many of them are comments.
fn lines_before_tests(path: &Path) -> (usize, usize) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let comments = code.lines().filter(|line| line.trim_start().starts_with("//"));
    (code.lines().count(), comments.count())
}

const READING_PATH_MAX: usize = 3_000;

/// The share of the reading path that is comments, in percent. Fewer leave the reader with riddles; with more, the code
/// is hard to see between them.
const COMMENTS: std::ops::RangeInclusive<usize> = 20..=27;

#[test]
fn the_reading_path_exists_in_its_order_and_is_short_enough() {
    let table = read("docs/reading-path.md");
    let rows = table.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        Some((cells[0].parse::<usize>().ok()?, cells[1].trim_matches('`').to_string(), cells[2].to_string()))
    });
    let (mut files, mut total, mut comments) = (Vec::new(), 0, 0);
    for (number, file, said) in rows {
        assert_eq!(number, files.len() + 1, "{file} is out of order");
        let (lines, of_comments) = lines_before_tests(&root().join("src").join(&file));
        let said: usize = said.parse().expect("a number of lines");
        assert!(
            said.abs_diff(lines) <= (lines / 10).max(10),
            "{file}: {said} lines are said, {lines} there are"
        );
        total += lines;
        comments += of_comments;
        files.push(file);
    }
    let hint = "move a file of docs/reading-path.md to \"What comes next\", or make one shorter";
    assert!(total <= READING_PATH_MAX, "{total} lines are more than {READING_PATH_MAX}: {hint}");
    let share = comments * 100 / total;
    assert!(
        COMMENTS.contains(&share),
        "{comments} of {total} lines are comments: {share} %, not {COMMENTS:?}"
    );
    // Every phase of a turn is on the path, and `turn` comes first.
    assert_eq!(files.first().map(String::as_str), Some("event_loop/mod.rs"));
    let mut phases = ["poll", "posts", "read", "write", "expire", "reap", "accept"].iter();
    assert!(phases.all(|phase| files.contains(&format!("event_loop/{phase}.rs"))), "{files:?}");
    // What comes next exists, too.
    for named in table.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")) {
        let path = root().join("src").join(named);
        assert!(path.exists() || root().join(named).exists(), "there is no {named}");
    }
}

/// The bodies of the functions of this name in a formatted source file.
fn bodies(text: &str, function: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = (0..lines.len()).filter(|&at| {
        let (_, rest) = lines[at].split_once("fn ").unwrap_or_default();
        let name = rest.strip_prefix(function).is_some_and(|rest| rest.starts_with(['(', '<']));
        name && !lines[at].trim_start().starts_with("//") && !lines[at].ends_with(';')
    });
    starts
        .map(|at| {
            let indent = lines[at].len() - lines[at].trim_start().len();
            let close = format!("{}}}", " ".repeat(indent));
            let end = lines[at..].iter().position(|line| **line == close).map_or(at, |end| at + end);
            lines[at..=end].join("\n")
        })
        .collect()
}

/// How a connection or a session is found by its id or slot.
const LOOK_UPS: &[&str] = &["table.get(", "table.at(", "table.find(", "table.live(", "slots[", "sessions"];

#[test]
fn an_echo_runs_through_the_listed_functions_with_at_most_five_look_ups() {
    let (mut functions, mut look_ups) = (0, Vec::new());
    for row in read("docs/echo-path.md").lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let Ok(number) = cells[1].parse::<usize>() else { continue };
        functions += 1;
        assert_eq!(number, functions, "{row}");
        let (function, file) = (cells[2].trim_matches('`'), cells[3].trim_matches('`'));
        let bodies = bodies(&read(&format!("src/{file}")), function);
        assert!(!bodies.is_empty(), "src/{file} has no function {function}");
        let said = cells[4].split('`').nth(1);
        if let Some(look_up) = said {
            let found = bodies.iter().any(|body| body.contains(look_up));
            assert!(found, "{function} of src/{file} has no {look_up}");
        } else {
            let found = LOOK_UPS.iter().find(|look_up| bodies.iter().all(|body| body.contains(**look_up)));
            assert!(
                found.is_none(),
                "{function} of src/{file} has a {}..) that is not listed",
                found.unwrap()
            );
        }
        if cells[4].starts_with('`') {
            look_ups.push(function.to_string());
        }
    }
    assert!((20..=30).contains(&functions), "{functions} functions are listed");
    assert_eq!(look_ups, ["dispatch", "read_once", "with_session", "parts", "write_connection"]);
}

/// A question of a reader, the page and the section that answer it, and what must stand there.
const QUESTIONS: &[(&str, &str, &str, &[&str])] = &[
    (
        "What does a turn do?",
        README,
        "One turn",
        &[
            "eight phases",
            "`poll` sleeps",
            "`dispatch` turns events into flags",
            "`run_posts` runs",
            "`read` reads",
            "calls `data`",
            "`expire` acts on deadlines",
            "`write` writes",
            "`reap` calls `closed`",
            "frees a slot",
            "`accept` starts dials and accepts",
        ],
    ),
    (
        "How do I embed it?",
        README,
        "Embed it",
        &[
            "[dependencies]",
            "impl Service for",
            "Reactor::new",
            "reactor.add",
            "reactor.listen",
            "reactor.run",
            "`Handle`",
            "`AsFd`",
            "next_deadline",
            "turn(Some(Duration::ZERO))",
            "stays on the thread",
        ],
    ),
    (
        "What does each service do?",
        README,
        "Run it",
        &[
            "`tidemill echo`",
            "`tidemill chat`",
            "`tidemill frames`",
            "`tidemill proxy`",
            "`tidemill connect`",
            "`tidemill load`",
        ],
    ),
    ("How does a server end?", README, "Run it", &["SIGTERM", "--drain", "exits with 0", "second signal"]),
    ("Where do errors arrive?", README, "Embed it", &["never fail", "`closed`"]),
    ("What happens when a callback blocks?", README, "Embed it", &["blocks all connections"]),
    ("On what does it run?", README, "What it is not", &["Linux", "type-checked", "never run", "Rust 1.85"]),
    ("What is not encrypted?", README, "What it is not", &["Without TLS, all bytes are cleartext"]),
    ("When is latency measured from?", README, "Measure it", &["scheduled", "coordinated omission"]),
    ("How do I try TLS?", "docs/tls.md", "Try it", &["openssl req", "CA:FALSE", "--tls-cert", "--tls-ca"]),
    (
        "What ends a TLS connection?",
        "docs/tls.md",
        "Ends",
        &["close_notify", "Truncated", "CloseReason::Tls"],
    ),
    (
        "What may a filter of my own return, and what does a bare FIN mean?",
        "docs/tls.md",
        "A filter of your own",
        &[
            "Lengths are verified",
            "`Filter::ends_with_fin`",
            "`FilterFactory::starts_at_once`",
            "`Filter::more`",
        ],
    ),
    (
        "How do two services reach each other?",
        "docs/patterns.md",
        "Two services that cooperate",
        &["`Key`", "later("],
    ),
    (
        "What stays on its thread, and whose ids are whose?",
        "docs/embedding.md",
        "What stays on its thread, and what does not",
        &["`Reactor` is `!Send`", "Ids belong to one reactor", "`ConnId`", "refused"],
    ),
    (
        "Answers beyond the queue, short alarms, refused posts, long jobs, redials: what happens?",
        "docs/patterns.md",
        "Surprises",
        &[
            "longer than `SocketLimits::queue`",
            "On loopback",
            "ticks of 10 ms",
            "not \"now\"",
            "`PostError::into_inner`",
            "still closed by `idle`",
            "within 1 s",
            "`closed` comes before a redial",
            "a new id",
        ],
    ),
    ("Which Rust does it need?", "docs/api.md", "Rust versions", &["Debian stable", "Rust 1.85"]),
    ("When is a socket drained?", "docs/one-turn.md", "4 read", &["short read", "`WouldBlock`", "FIN"]),
    (
        "Which laws hold?",
        "docs/architecture.md",
        "The five laws",
        &[
            "callbacks never nest",
            "Only `reap` frees a slot",
            "`WouldBlock`",
            "bounded",
            "clock is read once",
        ],
    ),
];

#[test]
fn questions_of_a_reader_are_answered_where_this_list_says() {
    for (question, page, heading, parts) in QUESTIONS {
        // Where lines are broken is of no meaning.
        let answer = section(page, heading).split_whitespace().collect::<Vec<_>>().join(" ");
        for part in *parts {
            assert!(answer.contains(part), "{question} {page}, {heading:?} does not say {part:?}");
        }
    }
    let phases = ["poll", "dispatch", "run_posts", "read", "expire", "write", "reap", "accept"];
    let turn = section(README, "One turn");
    let places: Vec<Option<usize>> = phases.iter().map(|phase| turn.find(&format!("`{phase}`"))).collect();
    assert!(
        places.is_sorted() && places.iter().all(Option::is_some),
        "the phases are not in order: {places:?}"
    );
}

/// The rows of README's table of limits, cell by cell.
fn limit_rows() -> Vec<Vec<String>> {
    let section = section(README, "The limits");
    let rows = section.lines().filter_map(|line| line.strip_prefix('|'));
    rows.skip(2).map(|row| row.split('|').map(|cell| cell.trim().to_string()).collect()).collect()
}

/// What each limit means: every field that bounds something has a row, with the default that it really has.
#[test]
fn every_limit_has_a_row_with_its_true_default() {
    let (limits, socket) = (tidemill::Limits::default(), tidemill::SocketLimits::default());
    let size = |bytes: usize| match bytes {
        0x10_0010 => "1 MiB and 16 bytes".to_string(),
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    };
    let number = |n: usize| if n < 1_000 { n.to_string() } else { format!("{},{:03}", n / 1_000, n % 1_000) };
    let time =
        |span: Option<std::time::Duration>| span.map_or("off".into(), |span| format!("{} s", span.as_secs()));
    let rate = |rate: Option<tidemill::MinRate>| {
        rate.map_or("off".into(), |rate| format!("{} in {} s", size(rate.bytes), rate.per.as_secs()))
    };
    let off = || "off".to_string();
    let expected = [
        ("Limits::connections", number(limits.connections)),
        ("Limits::refusals", number(limits.refusals)),
        ("Limits::tarpitted", number(limits.tarpitted)),
        ("Limits::lookups", number(limits.lookups)),
        ("Limits::extra_attempts", number(limits.extra_attempts)),
        ("Limits::splices", number(limits.splices)),
        ("Limits::handshakes", number(limits.handshakes)),
        ("Limits::timers", number(limits.timers)),
        ("Limits::watched", number(limits.watched)),
        ("Limits::memory", size(limits.memory)),
        ("Limits::accepts_per_turn", number(limits.accepts_per_turn)),
        ("Limits::read_budget", size(limits.read_budget)),
        ("Limits::carried_over_budget", size(limits.carried_over_budget)),
        ("Limits::write_budget", size(limits.write_budget)),
        ("Limits::expirations_per_turn", number(limits.expirations_per_turn)),
        ("Limits::events_per_turn", number(limits.events_per_turn)),
        ("Limits::posts", number(limits.posts)),
        ("Limits::posts_per_turn", number(limits.posts_per_turn)),
        ("Limits::busy_poll", limits.busy_poll.map_or(off(), |_| "on".into())),
        ("idle", time(socket.idle)),
        ("first_byte", time(socket.first_byte)),
        ("connect", time(socket.connect)),
        ("handshake", time(socket.handshake)),
        ("half_closed", time(socket.half_closed)),
        ("lifetime", time(socket.lifetime)),
        ("lifetime_jitter", time(Some(socket.lifetime_jitter))),
        ("linger", time(Some(socket.linger))),
        ("linger_bytes", size(socket.linger_bytes)),
        ("min_read_rate", rate(socket.min_read_rate)),
        ("min_write_rate", rate(socket.min_write_rate)),
        ("message_timeout", time(socket.message_timeout)),
        ("high_water", size(socket.high_water)),
        ("low_water", size(socket.low_water)),
        ("queue", size(socket.queue)),
        ("message", size(socket.message)),
        ("rate", socket.rate.map_or(off(), size)),
        ("group", socket.group.map_or(off(), |_| "on".into())),
        ("end_on_reset", if socket.end_on_reset { "on".into() } else { off() }),
        ("read_when_full", if socket.read_when_full { "on".into() } else { off() }),
    ];
    let rows = limit_rows();
    for (field, default) in &expected {
        let row = rows.iter().find(|row| row[4] == format!("`{field}`"));
        let row = row.unwrap_or_else(|| panic!("README's table has no row of {field}"));
        assert!(
            row[1].starts_with(default.as_str()),
            "{field} is {default} by default; README says {:?}",
            row[1]
        );
        assert!(row[2].len() > 10, "{field}: README does not say what happens at the limit");
    }
    let closed: Vec<&str> =
        rows.iter().filter_map(|row| row[2].split_once("closed as `")?.1.split('`').next()).collect();
    assert!(closed.len() >= 10, "only {closed:?}");
    for word in closed {
        assert!(tidemill::CloseReason::WORDS.contains(&word), "README: there is no close reason {word}");
    }
    // A field that is new is in the list above, or this fails.
    let source = read("src/config/limits.rs");
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    for line in source.lines().filter_map(|line| line.strip_prefix("    pub ")) {
        let Some((field, _)) = line.split_once(": ").filter(|(name, _)| !name.contains('(')) else {
            continue;
        };
        let known = expected.iter().any(|(name, _)| name.trim_start_matches("Limits::") == field);
        assert!(known || ["socket", "bytes", "per"].contains(&field), "no row of README is about {field}");
    }
}

/// The prose of the page that a program writes is the prose of its template.
#[test]
fn the_page_of_benchmarks_has_the_text_of_its_template() {
    let (template, page) = (read("benches/versus/page.md"), read("docs/benchmarks.md"));
    for part in template.split("\n\n").filter(|part| !part.contains('{')) {
        assert!(page.contains(part), "docs/benchmarks.md lacks: {part}");
    }
}

/// The same page for a browser is one file, which requests nothing, and has each case and each table of the other.
#[test]
fn the_benchmarks_for_a_browser_are_one_file_with_every_case() {
    let (page, html) = (read("docs/benchmarks.md"), read("docs/benchmarks.html"));
    for request in ["src=\"http", "href=\"http", "url(", "@import", "fetch(", "<link", "src=\"/"] {
        assert!(!html.contains(request), "docs/benchmarks.html has {request}");
    }
    let cases = page.matches("\n### ").count();
    assert!(cases > 20, "{cases} cases");
    assert_eq!(html.matches("<section class=\"case\">\n<h3>").count(), cases);
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).count();
    assert_eq!(html.matches("<tr>").count(), rows, "a row for each line of a table");
    assert_eq!(html.matches("<img src=\"data:image/svg+xml").count(), 2, "the charts are in the file");
    assert!(html.contains("prefers-color-scheme: dark") && html.contains("name=\"viewport\""));
}

/// The JavaScript of the guide is at least well-formed. Its Rust programs are compiled as documentation tests.
#[test]
fn the_programs_for_node_parse() {
    let required = std::env::var("TIDEMILL_INTEROP").is_ok_and(|value| value == "required");
    if std::process::Command::new("node").arg("--version").output().is_err() {
        assert!(!required, "node is not installed");
        eprintln!("node is not installed: not tried");
        return;
    }
    let programs: Vec<Block> =
        blocks("docs/from-node.md").into_iter().filter(|block| block.language == "js").collect();
    assert_eq!(programs.len(), 5);
    for (number, program) in programs.iter().enumerate() {
        let path = std::env::temp_dir().join(format!("tidemill-docs-{}-{number}.js", std::process::id()));
        fs::write(&path, &program.text).expect("a file");
        let checked = std::process::Command::new("node").arg("--check").arg(&path).output().expect("node");
        fs::remove_file(&path).expect("our file");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "docs/from-node.md:{}: {said}", program.line);
    }
}

/// The commands of the pages, run with other ports.
#[cfg(all(feature = "cli", target_os = "linux"))]
mod commands {
    use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
    use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Duration;

    use super::{README, blocks};

    const TIDEMILL: &str = env!("CARGO_BIN_EXE_tidemill");
    const WITHIN: Duration = Duration::from_secs(20);

    /// The blocks of a page that run in the given test.
    fn block_of(page: &str, test: &str) -> Vec<String> {
        let marker = format!("<!-- runs in: tests/docs.rs {test} -->");
        let found: Vec<String> =
            blocks(page).into_iter().filter(|block| block.before == marker).map(|block| block.text).collect();
        assert!(!found.is_empty(), "{page} has no block that run in {test}");
        found
    }

    /// A command of a page. What it writes to stdout and stderr arrives line by line.
    struct Running {
        child: Child,
        lines: Receiver<String>,
    }

    impl Running {
        fn start(folder: &Path, words: &str) -> Running {
            let mut command = Command::new(TIDEMILL);
            command.args(words.split_whitespace()).current_dir(folder).env("RUST_LOG", "info");
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("it starts");
            let (tell, lines) = channel();
            let streams: [Box<dyn Read + Send>; 2] = [
                Box::new(child.stdout.take().expect("stdout")),
                Box::new(child.stderr.take().expect("stderr")),
            ];
            for stream in streams {
                let tell = tell.clone();
                thread::spawn(move || {
                    for line in BufReader::new(stream).lines().map_while(Result::ok) {
                        if tell.send(line).is_err() {
                            return;
                        }
                    }
                });
            }
            Running { child, lines }
        }

        /// The next line, or none when it has ended.
        #[track_caller]
        fn line(&self) -> Option<String> {
            match self.lines.recv_timeout(WITHIN) {
                Ok(line) => Some(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
                Err(error) => panic!("no line came: {error}"),
            }
        }

        /// The rest of the first line that begins so.
        #[track_caller]
        fn after(&self, start: &str) -> String {
            let mut seen = Vec::new();
            while let Some(line) = self.line() {
                if let Some(rest) = line.strip_prefix(start) {
                    return rest.to_string();
                }
                seen.push(line);
            }
            panic!("it ended without {start:?}: {seen:?}");
        }

        #[track_caller]
        fn address(&self) -> SocketAddr {
            self.after("listening on ").parse().expect("an address")
        }

        fn type_line(&mut self, line: &str) {
            let stdin = self.child.stdin.as_mut().expect("stdin");
            writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("it reads");
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            // It may have ended by itself.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// The words behind `tidemill` in a line of a block, with another port.
    fn words<'a>(line: &'a str, from: &str, to: &str) -> String {
        let words = line.trim_start_matches("$ ").trim_end_matches(" &");
        let words: &'a str = words.split_once("tidemill ").map_or(words, |(_, words)| words);
        words.replace(from, to)
    }

    /// A line without what differs from run to run: the prefix of the log, numbers, times.
    fn shape(line: &str) -> String {
        let line = line.split_once("] ").map_or(line, |(_, text)| text);
        let fields = line.split(' ').map(|field| match field.split_once('=') {
            Some((name @ ("duration" | "connected"), _)) => format!("{name}=TIME"),
            Some((name, value)) => format!("{name}={value}"),
            None => {
                let digits = field.chars().map(|c| if c.is_ascii_digit() { '0' } else { c });
                let mut text: String = digits.collect();
                while text.contains("00") {
                    text = text.replace("00", "0");
                }
                text
            }
        });
        fields.collect::<Vec<_>>().join(" ")
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tidemill-docs-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn the_first_command_starts_a_chat() {
        let block = block_of(README, "the_first_command_starts_a_chat").remove(0);
        let (cargo, service) = block.trim().split_once(" -- ").expect("what cargo is to run");
        assert_eq!(cargo, "cargo run --release --features cli", "the binary of this test has these features");
        let help = Command::new(TIDEMILL).args([service, "--help"]).output().expect("help");
        assert!(String::from_utf8_lossy(&help.stdout).contains("[default: 127.0.0.1:9001]"));
        let chat = Running::start(&std::env::temp_dir(), &format!("{service} --listen 127.0.0.1:0"));
        let mut member = TcpStream::connect(chat.address()).expect("it listens");
        member.write_all(b"/who\n").expect("it reads");
        let lines: Vec<String> = BufReader::new(&member).lines().take(2).map_while(Result::ok).collect();
        assert!(lines[0].ends_with(" joined") && lines[1].starts_with("1 here: "), "{lines:?}");
    }

    #[test]
    fn options_in_the_table_of_limits_exist() {
        let help = |command: &str| {
            let output = Command::new(TIDEMILL).args([command, "--help"]).output().expect("help");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let all: String = ["chat", "proxy", "connect"].map(help).concat();
        let mut seen = 0;
        for row in super::limit_rows() {
            for option in row[3].split('`').filter(|word| word.starts_with("--")) {
                seen += 1;
                let name = option.split([' ', '=']).next().unwrap_or(option);
                assert!(all.contains(&format!(" {name} <")), "README's table names {option}");
            }
        }
        assert!(seen >= 20, "only {seen} options were found");
    }

    #[test]
    fn the_chat_session_is_what_connect_prints() {
        let mut blocks = block_of(README, "the_chat_session_is_what_connect_prints");
        let (session, command) = (blocks.remove(1), blocks.remove(0));
        let here = std::env::temp_dir();
        let chat = Running::start(&here, "chat --listen 127.0.0.1:0");
        let address = chat.address();
        let mut ann = Running::start(&here, &words(command.trim(), "127.0.0.1:9001", &address.to_string()));
        let mut bob = None::<TcpStream>;
        let mut compared = 0;
        for line in session.lines() {
            if line.starts_with("$ ") {
                assert_eq!(line, format!("$ {}", command.trim()));
                continue;
            }
            if let Some((typed, _)) = line.split_once("◀ typed") {
                ann.type_line(typed.trim_end());
                continue;
            }
            let heard = ann.line().unwrap_or_else(|| panic!("connect ended before {line:?}"));
            assert_eq!(shape(&heard), shape(line));
            compared += 1;
            // What Bob does when Ann has read this.
            match (line, bob.as_mut()) {
                (line, None) if line.ends_with("is now ann") => {
                    bob = Some(TcpStream::connect(address).expect("the chat"));
                }
                (line, Some(bob)) if line.ends_with(" joined") => {
                    bob.write_all(b"/nick bob\ngood morning\n").expect("the chat");
                }
                (line, Some(bob)) if line.starts_with("2 here") => {
                    bob.write_all(b"this is \x1b[31mred\x1b[0m\n").expect("the chat");
                }
                (line, Some(bob)) if line.starts_with("bob: this is") => {
                    bob.shutdown(Shutdown::Write).expect("the chat");
                }
                _ => {}
            }
        }
        assert_eq!(compared, 9, "the session has nine lines of the server");
        // A pipe is sent to its end; at a terminal, the end of the server ends connect.
        drop(ann.child.stdin.take());
        assert_eq!(ann.line(), None, "/quit ends connect");
        assert_eq!(ann.child.wait().expect("it has ended").code(), Some(0));
    }

    #[test]
    fn the_proxy_session_is_what_the_log_says() {
        let block = block_of(README, "the_proxy_session_is_what_the_log_says").remove(0);
        let block = block.replace("\\\n", "");
        let (command, session) = block.split_once('\n').expect("a command");
        let here = std::env::temp_dir();
        let upstream = Running::start(&here, "echo --raw --listen 127.0.0.1:0");
        let closed =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let words = words(command, "127.0.0.1:9002", "127.0.0.1:0")
            .replace("127.0.0.1:9003", &upstream.address().to_string())
            .replace("127.0.0.1:9004", &closed.to_string());
        let proxy = Running::start(&here, &words);
        // The log and stdout are two streams, whose lines may change places.
        let (mut seen, mut address) = (Vec::new(), None);
        while seen.len() < 2 || address.is_none() {
            let line = proxy.line().expect("it runs");
            address = address
                .or(line.strip_prefix("listening on ").map(|at| at.parse::<SocketAddr>().expect("one")));
            seen.push(shape(&line));
        }
        let address = address.expect("the start line");
        // Upstreams take turns: one of two connections meets the one that is down.
        for _ in 0..2 {
            let mut client = TcpStream::connect(address).expect("the proxy");
            client.write_all(b"hello").expect("the proxy");
            client.shutdown(Shutdown::Write).expect("the proxy");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("an answer");
            assert_eq!(answer, "hello");
        }
        while seen.iter().filter(|line| line.contains("in=5 out=5")).count() < 2 {
            seen.push(shape(&proxy.line().expect("it runs")));
        }
        for line in session.lines() {
            assert!(seen.contains(&shape(line)), "{line:?} is not in {seen:#?}");
        }
        let denied =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        denied.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).expect("an address of loopback");
        denied.connect(&address.into()).expect("the kernel accepts it");
        let mut denied = TcpStream::from(denied);
        denied.set_read_timeout(Some(WITHIN)).expect("a timeout");
        let error = denied.read(&mut [0; 8]).expect_err("a reset, as the rule says");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    /// Runs the two commands of a block in a folder with a certificate, with this on the client's stdin.
    fn echo_over_tls(folder: &Path, block: &str) -> std::process::Output {
        let (server, client) = block.trim().split_once('\n').expect("two commands");
        let server = Running::start(folder, &words(server, ":9443", ":0"));
        let port = format!(":{}", server.address().port());
        let mut connect = Command::new(TIDEMILL);
        connect.args(words(client, ":9443", &port).split_whitespace()).current_dir(folder);
        connect.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut connect = connect.spawn().expect("it starts");
        // A client that was refused reads nothing.
        let _ = connect.stdin.take().expect("stdin").write_all(b"secret\n");
        connect.wait_with_output().expect("it ends")
    }

    #[test]
    fn the_tls_commands_reach_an_echo() {
        let folder = folder("readme");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).expect("a certificate");
        std::fs::write(folder.join("site.pem"), made.cert.pem()).expect("a file");
        std::fs::write(folder.join("site.key"), made.signing_key.serialize_pem()).expect("a file");
        let block = block_of(README, "the_tls_commands_reach_an_echo").remove(0);
        let output = echo_over_tls(&folder, &block);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "secret\n", "{output:?}");
        std::fs::remove_dir_all(&folder).expect("our folder");
    }

    #[test]
    fn the_certificate_of_the_tls_page_works() {
        let required = std::env::var("TIDEMILL_INTEROP").is_ok_and(|value| value == "required");
        if Command::new("openssl").arg("version").output().is_err() {
            assert!(!required, "openssl is not installed");
            eprintln!("openssl is not installed: not tried");
            return;
        }
        let folder = folder("openssl");
        let mut blocks = block_of("docs/tls.md", "the_certificate_of_the_tls_page_works");
        let (commands, recipe) = (blocks.remove(1), blocks.remove(0));
        let make = |recipe: &str| {
            let made =
                Command::new("sh").args(["-ec", recipe]).current_dir(&folder).output().expect("a shell");
            assert!(made.status.success(), "{made:?}");
        };
        make(&recipe);
        let output = echo_over_tls(&folder, &commands);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "secret\n", "{output:?}");
        // Without the last extension it is an authority, and refused, as the page says.
        make(&recipe.replace(" -addext basicConstraints=critical,CA:FALSE", ""));
        let output = echo_over_tls(&folder, &commands);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
        std::fs::remove_dir_all(&folder).expect("our folder");
    }

    #[test]
    fn the_load_session_prints_these_lines() {
        let block = block_of(README, "the_load_session_prints_these_lines").remove(0);
        let (mut commands, mut expected) = (Vec::new(), Vec::new());
        for line in block.lines() {
            if line.starts_with("$ ") { commands.push(line) } else { expected.push(line) }
        }
        let here = std::env::temp_dir();
        let server = Running::start(&here, &words(commands[0], "127.0.0.1:9005", "127.0.0.1:0"));
        let load = words(commands[1], "127.0.0.1:9005", &server.address().to_string());
        let output = Command::new(TIDEMILL)
            .args(load.split_whitespace().chain(["--duration", "300ms", "--warm-up", "50ms"]))
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.lines().count() >= expected.len(), "{printed}");
        let parts = |line: &str| -> Vec<String> {
            let kept = line.split_whitespace().filter(|word| !word.starts_with(|c: char| c.is_ascii_digit()));
            kept.map(str::to_string).collect()
        };
        // The histogram behind these lines is as long as the latencies are spread.
        for (line, like) in printed.lines().zip(&expected) {
            assert_eq!(parts(line), parts(like), "{printed}");
        }
    }
}
