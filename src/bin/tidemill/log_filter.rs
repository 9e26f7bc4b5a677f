//! The log: its filter, from RUST_LOG, and its format. A mistyped level must not silence warnings and errors.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::SystemTime;

use env_logger::Target;
use log::{Level, Record};
use serde_json::json;

use crate::args::observe::LogFormat;
use crate::log_buffer::LogBuffer;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Crates of this binary that log.
const CRATES: [&str; 3] = ["tidemill", "mio", "rustls"];
const USUAL: &str = "info";

/// Starts logging. A filter that cannot mean anything is reported, and the usual one is used. With `threads` each line
/// names the thread that it is of.
pub fn init(format: LogFormat, threads: bool) {
    let given = env::var_os("RUST_LOG").map(|text| text.to_string_lossy().into_owned());
    let filter = given.filter(|text| !text.is_empty()).unwrap_or_else(|| USUAL.to_string());
    let wrong = wrong_directive(&filter);
    let filter = if wrong.is_some() { USUAL } else { &filter };
    let mut logger = env_logger::Builder::new();
    logger.parse_filters(filter).parse_write_style(&style());
    // On a terminal, env_logger chooses colours by itself, and a person waits for each line.
    if !io::stderr().is_terminal() {
        logger.target(Target::Pipe(Box::new(LogBuffer)));
    }
    let is_journal = is_journal();
    if format == LogFormat::Json || is_journal || threads {
        logger.format(move |out, record| {
            let priority = if is_journal { priority(record.level()) } else { "" };
            let current = thread::current();
            let thread = current.name().filter(|_| threads);
            let (target, space) = (record.target(), if threads { " " } else { "" });
            let name = thread.unwrap_or_default();
            match format {
                LogFormat::Json => writeln!(out, "{priority}{}", object(record, thread)),
                // The journal has the time and the level of each line.
                LogFormat::Text if is_journal => {
                    writeln!(out, "{priority}{target}{space}{name}: {}", record.args())
                }
                LogFormat::Text => {
                    let (time, style) = (out.timestamp(), out.default_level_style(record.level()));
                    let level = record.level();
                    writeln!(out, "[{time} {style}{level:<5}{style:#} {target} {name}] {}", record.args())
                }
            }
        });
    }
    logger.init();
    if let Some(directive) = wrong {
        let levels = LEVELS.join(", ");
        let text = format!(
            "tidemill: RUST_LOG: {directive:?} is no level; choose one of {levels}, or tidemill=LEVEL"
        );
        // stderr may be closed.
        let _ = writeln!(std::io::stderr(), "{text}; using {USUAL}");
    }
}

/// Whether stderr is the journal of systemd: then JOURNAL_STREAM has the device and the inode of its socket. A program
/// whose stderr was redirected inherits the variable, so the numbers must be compared: systemd.exec(5).
fn is_journal() -> bool {
    let Ok(given) = env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().and_then(|stderr| File::from(stderr).metadata());
    stderr.is_ok_and(|stderr| given == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// The priority of a line for the journal, which takes it off: sd-daemon(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

fn object(record: &Record<'_>, thread: Option<&str>) -> serde_json::Value {
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let (level, target) = (record.level().as_str(), record.target());
    let message = record.args().to_string();
    match thread {
        None => json!({"time": time, "level": level, "target": target, "message": message}),
        Some(thread) => {
            json!({"time": time, "level": level, "target": target, "thread": thread, "message": message})
        }
    }
}

fn style() -> String {
    env::var("RUST_LOG_STYLE").unwrap_or_else(|_| "auto".to_string())
}

/// The first directive that is neither a level nor about a crate of this binary. Behind a slash stands a pattern.
fn wrong_directive(filter: &str) -> Option<String> {
    let directives = filter.split('/').next().unwrap_or("");
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    let is_module = |text: &str| CRATES.contains(&text.split("::").next().unwrap_or(""));
    let is_right = |text: &str| match text.split_once('=') {
        Some((module, level)) => is_module(module.trim()) && is_level(level.trim()),
        None => is_level(text) || is_module(text),
    };
    directives.split(',').map(str::trim).find(|text| !text.is_empty() && !is_right(text)).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::wrong_directive;

    #[test]
    fn a_typo_is_found_and_what_env_logger_understands_is_not() {
        for right in
            ["info", "DEBUG", "tidemill=trace,warn", "tidemill::services::proxy=debug", "mio,info/up", "off"]
        {
            assert_eq!(wrong_directive(right), None, "{right}");
        }
        for (filter, wrong) in
            [("nonsense", "nonsense"), ("inf", "inf"), ("warn,tidemil=debug", "tidemil=debug")]
        {
            assert_eq!(wrong_directive(filter).as_deref(), Some(wrong));
        }
        assert_eq!(wrong_directive("tidemill=loud").as_deref(), Some("tidemill=loud"));
    }
}
