//! One fuzz target under libFuzzer: `TIDEMILL_TARGET` has its name.

#![no_main]

#[path = "../targets.rs"]
mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("TIDEMILL_TARGET").unwrap_or_default();
    match name.as_str() {
        "framings" => targets::framings,
        "proxy_header" => targets::proxy_header,
        "ranges" => targets::ranges,
        "addresses" => targets::addresses,
        "sizes_and_durations" => targets::sizes_and_durations,
        "text" => targets::text,
        "chat" => targets::chat,
        "echo_tape" => targets::echo_tape,
        "proxy_tape" => targets::proxy_tape,
        "tls_bytes" => targets::tls_bytes,
        _ => panic!("TIDEMILL_TARGET={name:?}: not the name of a folder in tests/fuzz/corpus"),
    }
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET(bytes));
