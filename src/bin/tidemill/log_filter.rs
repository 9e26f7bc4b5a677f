//! The log's filter, from RUST_LOG. A mistyped level must not silence warnings and errors.

use std::env;
use std::io::Write;
use std::time::SystemTime;

use serde_json::json;

use crate::args::observe::LogFormat;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Crates of this binary that log.
const CRATES: [&str; 3] = ["tidemill", "mio", "rustls"];
const USUAL: &str = "info";

/// Starts logging. A filter that cannot mean anything is reported, and the usual one is used.
pub fn init(format: LogFormat) {
    let given = env::var_os("RUST_LOG").map(|text| text.to_string_lossy().into_owned());
    let filter = given.filter(|text| !text.is_empty()).unwrap_or_else(|| USUAL.to_string());
    let wrong = wrong_directive(&filter);
    let filter = if wrong.is_some() { USUAL } else { &filter };
    let mut logger = env_logger::Builder::new();
    logger.parse_filters(filter).parse_write_style(&style());
    if format == LogFormat::Json {
        logger.format(|out, record| {
            let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            let (level, target) = (record.level().as_str(), record.target());
            let message = record.args().to_string();
            writeln!(out, "{}", json!({"time": time, "level": level, "target": target, "message": message}))
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
