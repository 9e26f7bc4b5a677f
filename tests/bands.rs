//! The regression file of `cargo bench --bench versus`: a bench has no tests of its own.

use std::path::Path;

use serde_json::{Map, Value, json};

use bands::{compare, found, read, updated};

#[expect(dead_code, reason = "the bench reads and writes the file")]
#[path = "../benches/versus/bands.rs"]
mod bands;

/// A run with one case and one count.
fn run(rate: f64, cpu: f64, count: f64) -> Value {
    let ratio = |median: f64| json!({ "median": median });
    let server = |name: &str| {
        let (rate, cpu) = (ratio(rate), ratio(cpu));
        json!({ "server": name, "tidemill_rate_ratio": rate, "tidemill_cpu_ratio": cpu })
    };
    let values = json!([{ "server": "tidemill", "value": count }, { "server": "tokio", "value": 9_000.0 }]);
    let band = json!({ "percent": 5.0, "step": 0.0 });
    json!({
        "cases": [{ "case": "64 B", "servers": [server("tidemill"), server("tokio-4k")] }],
        "figures": [
            { "name": "instructions", "band": band, "values": values },
            { "name": "start", "band": null, "values": values },
        ],
    })
}

fn written(of: &Value) -> Value {
    serde_json::from_str(&updated(json!({}), of, false)).expect("JSON")
}

#[test]
fn a_figure_worse_than_its_band_is_told_with_what_was_wanted_and_measured() {
    let bands = written(&run(1.0, 1.0, 700.0));
    assert_eq!(compare(&bands, &run(0.76, 1.24, 734.0), false).within, 3);
    let compared = compare(&bands, &run(0.74, 1.26, 736.0), false);
    assert_eq!(
        compared.worse,
        [
            "rate ratio: 64 B, tokio-4k: wanted 1.00 (0.75 to 1.25), measured 0.74",
            "CPU ratio: 64 B, tokio-4k: wanted 1.00 (0.75 to 1.25), measured 1.26",
            "count: instructions, tidemill: wanted 700.00 (665.00 to 735.00), measured 736.00",
        ]
    );
    assert_eq!(compare(&bands, &run(0.74, 1.26, 736.0), true).worse.len(), 1, "only the count");
}

#[test]
fn a_figure_better_than_its_band_is_no_error() {
    let compared = compare(&written(&run(1.0, 1.0, 700.0)), &run(1.3, 0.7, 600.0), false);
    assert_eq!((compared.worse.len(), compared.better.len()), (0, 3), "{compared:?}");
}

#[test]
fn a_count_that_was_not_measured_is_missing_and_a_figure_that_is_no_number_is_worse() {
    let bands = written(&run(1.0, 1.0, 700.0));
    let compared = compare(&bands, &json!({}), false);
    assert_eq!(compared.missing, ["count: instructions, tidemill"]);
    let none = compare(&json!({}), &run(1.0, 1.0, 700.0), false);
    assert_eq!((none.without_a_band, none.within, none.worse.len()), (3, 0, 0), "{none:?}");
    let unreadable = json!({ "count": { "instructions": { "tidemill": { "wanted": "seven" } } } });
    assert_eq!(compare(&unreadable, &run(1.0, 1.0, 700.0), true).worse.len(), 1);
}

#[test]
fn writing_replaces_what_was_measured_and_keeps_the_rest_on_a_line_for_each_figure() {
    let first = updated(json!({}), &run(1.0, 1.0, 700.0), false);
    let of_counts = updated(serde_json::from_str(&first).expect("JSON"), &run(2.0, 2.0, 600.0), true);
    assert!(of_counts.contains("\"tidemill\": { \"least\": 570.0, \"most\": 630.0, \"wanted\": 600.0 }\n"));
    assert!(of_counts.contains("\"tokio-4k\": { \"least\": 0.75, \"most\": 1.25, \"wanted\": 1.0 }\n"));
}

/// The committed file has a band for each ratio of the committed results, and the counts that `--smoke` compares.
#[test]
fn the_committed_file_has_a_band_for_every_figure_of_the_results() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bands = read(&root.join("benches/versus/bands.json")).expect("bands");
    let data = read(&root.join("docs/benchmarks.json")).expect("results");
    for (group, case, server) in found(&data).into_keys() {
        let entry = &bands[&group][&case][&server];
        let order = ["least", "wanted", "most"].map(|key| entry[key].as_f64().unwrap_or(f64::NAN));
        assert!(order.is_sorted(), "{group}: {case}, {server}: {entry}");
    }
    let counts = bands["count"].as_object().map_or(0, Map::len);
    assert!(counts >= 8, "only {counts} counts");
}
