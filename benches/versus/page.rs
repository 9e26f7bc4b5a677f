//! The page of results in two forms: `docs/benchmarks.md` is made from the data, and `docs/benchmarks.html` from that
//! text, with the pictures in it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use pulldown_cmark::{Event, Options, Parser, Tag, html::push_html};
use serde_json::Value;

use crate::case::{CASES, Kind};
use crate::chart;
use crate::figure;
use crate::report;

const DATA: &str = "benchmarks.json";

/// The data of the page in a folder.
pub fn data(folder: &Path) -> Result<Value, String> {
    let path = folder.join(DATA);
    let text =
        fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Writes the data and all that is made from it.
pub fn write(folder: &Path, data: &Value) -> Result<(), String> {
    report::write_json(&folder.join(DATA), data)?;
    redraw(folder, data)
}

/// Writes what is made from the data.
pub fn redraw(folder: &Path, data: &Value) -> Result<(), String> {
    for (name, text) in files(data) {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Fails if a file in a folder is not what is made from the data beside it.
pub fn check(folder: &Path) -> Result<(), String> {
    let data = data(folder)?;
    let is_outdated =
        |(name, text): &(_, String)| fs::read_to_string(folder.join(name)).unwrap_or_default() != *text;
    files(&data).iter().find(|file| is_outdated(file)).map_or(Ok(()), |(name, _)| {
        Err(format!("docs/{name} does not show docs/{DATA}; --redraw writes it again"))
    })
}

/// The files that are made from the data.
fn files(data: &Value) -> Vec<(&'static str, String)> {
    let mut files = chart::pictures(data);
    let text = markdown(data);
    files.push(("benchmarks.html", html(&text, &files)));
    files.push(("benchmarks.md", text));
    files
}

/// The data of an earlier run in which what a later one has measured is replaced; each of these entries tells when.
pub fn merged(mut before: Value, now: &Value) -> Value {
    let fact = |name| facts(now).find(|(what, _)| *what == name).map_or("", |(_, is)| is);
    let command = now["command"].as_str().unwrap_or_default();
    let options = command.split_once(" -- ").map_or("", |(_, options)| options);
    let measured = format!("{} at commit {}, with the options\n`{options}`", fact("date"), fact("commit"));
    for (group, key) in [("cases", "case"), ("latency", "case"), ("figures", "name")] {
        let mut entries = before[group].as_array().cloned().unwrap_or_default();
        for entry in list(&now[group]) {
            let mut entry = entry.clone();
            entry["measured"] = measured.clone().into();
            match entries.iter_mut().find(|old| old[key] == entry[key]) {
                Some(old) => *old = entry,
                None => entries.push(entry),
            }
        }
        entries.sort_by_key(|entry| CASES.iter().position(|case| entry["case"] == case.name));
        before[group] = entries.into();
    }
    before
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The machine and the versions.
pub fn facts(data: &Value) -> impl Iterator<Item = (&str, &str)> {
    list(&data["machine"]).filter_map(|fact| Some((fact[0].as_str()?, fact[1].as_str()?)))
}

fn title(server: &Value) -> &str {
    let name = server["server"].as_str().unwrap_or_default();
    Kind::named(name).map_or(name, |kind| kind.title())
}

/// The line below a heading, for an entry of another run than that of the page.
fn measured(entry: &Value) -> String {
    entry["measured"].as_str().map_or(String::new(), |when| format!("Measured {when}.\n\n"))
}

fn markdown(data: &Value) -> String {
    let facts: String = facts(data).map(|(what, is)| format!("| {what} | {is} |\n")).collect();
    let all = |group: &str, text: fn(&Value) -> String| list(&data[group]).map(text).collect::<String>();
    // With the names of all peers it would be too long for one line.
    let command = data["command"].as_str().unwrap_or_default().replace(" --with ", " \\\n    --with ");
    include_str!("page.md")
        .replace("{command}", &command)
        .replace("{machine}", facts.trim_end())
        .replace("{cases}", all("cases", case).trim())
        .replace("{latencies}", all("latency", latency).trim())
        .replace("{figures}", all("figures", figure).trim_end())
}

/// For each server its figure, that of tidemill in the same round, and the ratio of the two.
fn case(case: &Value) -> String {
    let (name, unit) = (case["case"].as_str().unwrap_or_default(), case["unit"].as_str().unwrap_or_default());
    let mut text = format!("\n### {name}\n\n{}", measured(case));
    // Writing to a `String` never fails.
    let _ = writeln!(text, "| server | {unit}/s | tidemill's | ratio | CPU ns each | tidemill's | ratio |");
    text.push_str("| --- | ---: | ---: | --- | ---: | ---: | --- |\n");
    for server in list(&case["servers"]) {
        let shown = |value: &str, ratio: &str| {
            let (value, ratio) = (server[value].as_f64().unwrap_or(f64::NAN), &server[ratio]);
            if server["server"] == Kind::Tidemill.name() {
                return format!("{value:.0} |  | ");
            }
            let part = |key: &str| ratio[key].as_f64().unwrap_or(f64::NAN);
            let [own, median, least, most] = ["own", "median", "least", "most"].map(part);
            format!("{value:.0} | {own:.0} | {median:.2} [{least:.2}-{most:.2}]")
        };
        let (rate, cost) =
            (shown("per_second", "tidemill_rate_ratio"), shown("cpu_ns_each", "tidemill_cpu_ratio"));
        let _ = writeln!(text, "| {} | {rate} | {cost} |", title(server));
    }
    text
}

fn latency(latency: &Value) -> String {
    let name = latency["case"].as_str().unwrap_or_default();
    let slowest = Kind::named(latency["slowest"].as_str().unwrap_or_default()).map_or("", Kind::title);
    let rate = latency["slowest_per_second"].as_f64().unwrap_or(f64::NAN);
    let mut text = format!(
        "\n### Latency, {name}: µs at shares of {rate:.0} messages/s, the rate of the slowest ({slowest})\n\n{}",
        measured(latency)
    );
    let mut line = "| --- |".to_string();
    text.push_str("| server |");
    for level in list(&latency["levels"]) {
        for quantile in ["p50", "p99", "p99.9"] {
            let _ = write!(text, " {} %: {quantile} |", level["percent"]);
            line.push_str(" ---: |");
        }
    }
    text = text + "\n" + &line;
    for (place, server) in list(&latency["levels"][0]["servers"]).enumerate() {
        let _ = write!(text, "\n| {} |", title(server));
        for level in list(&latency["levels"]) {
            for key in ["p50_us", "p99_us", "p99_9_us"] {
                let _ = write!(text, " {:.0} |", level["servers"][place][key].as_f64().unwrap_or(f64::NAN));
            }
        }
    }
    text + "\n"
}

fn figure(figure: &Value) -> String {
    let values = list(&figure["values"]).map(|value| {
        let server = value["server"].as_str().unwrap_or_default();
        (server.to_string(), value["value"].as_f64().unwrap_or(f64::NAN))
    });
    let values: Vec<(String, f64)> = values.collect();
    let mut text = String::new();
    for (place, (server, value, ratio)) in figure::lines(&values).into_iter().enumerate() {
        let part = |key: &str| figure[key].as_str().unwrap_or_default();
        let name = if place == 0 { format!("{}, {}", part("name"), part("unit")) } else { String::new() };
        let _ = writeln!(text, "| {name} | {server} | {value} | {ratio} |");
    }
    text
}

/// One file that requests nothing: a section for each heading, and the pictures as addresses that hold their text.
fn html(markdown: &str, pictures: &[(&str, String)]) -> String {
    let mut body = String::new();
    for section in markdown.replace("\n## ", "\u{0}## ").replace("\n### ", "\u{0}### ").split('\u{0}') {
        let class = if section.starts_with("### ") { "case" } else { "text" };
        let events = Parser::new_ext(section, Options::ENABLE_TABLES).map(|event| match event {
            Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
                let svg = pictures.iter().find(|(name, _)| *name == &*dest_url);
                let dest_url = svg.map_or(dest_url, |(_, svg)| address(svg).into());
                Event::Start(Tag::Image { link_type, dest_url, title, id })
            }
            other => other,
        });
        let mut text = String::new();
        push_html(&mut text, events);
        let text =
            text.replace("<table>", "<div class=\"scroll\"><table>").replace("</table>", "</table></div>");
        let text = text.replace("<p><img", "<p class=\"scroll\"><img");
        let _ = writeln!(body, "<section class=\"{class}\">\n{text}</section>");
    }
    include_str!("page.html").replace("{body}", &body)
}

/// A `data:` address of a picture.
fn address(svg: &str) -> String {
    let mut address = "data:image/svg+xml;charset=utf-8,".to_string();
    for byte in svg.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b' '..=b'!' | b'('..=b';' | b'=' | b'@' => {
                address.push(byte.into())
            }
            _ => {
                let _ = write!(address, "%{byte:02X}");
            }
        }
    }
    address
}
