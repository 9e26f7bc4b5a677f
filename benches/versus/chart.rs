//! The pictures of the page, drawn from its data: a bar for each case and peer.

use std::fmt::Write;

use serde_json::Value;

use crate::case::Kind;

const WIDTH: f64 = 1_080.0;
/// Where the bars begin and end. Names are on their left, figures on their right.
const LEFT: f64 = 400.0;
const RIGHT: f64 = 920.0;
const TOP: f64 = 92.0;
const ROW: f64 = 18.0;

const STYLE: &str = "\
    .bg { fill: #ffffff } .band { fill: #f3f5f8 }
    text { font-family: system-ui, \"DejaVu Sans\", sans-serif; font-size: 13px; fill: #1f2328 }
    .head { font-weight: 600; font-size: 17px } .small { fill: #57606a }
    .grid { stroke: #d0d7de } .one { stroke: #b4540a; stroke-width: 2 }
    .bar { fill: #1f5fbf; fill-opacity: 0.55 } .range { stroke: #1f2328; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      .bg { fill: #0d1117 } .band { fill: #161b22 } text { fill: #e6edf3 } .small { fill: #a9b4bf }
      .grid { stroke: #30363d } .one { stroke: #f0a060 } .bar { fill: #79b0ff } .range { stroke: #e6edf3 }
    }
";

/// One picture: a ratio of tidemill's figure to that of each peer.
struct Picture {
    file: &'static str,
    /// The key of the ratio in the data.
    key: &'static str,
    title: &'static str,
    axis: &'static str,
}

const PICTURES: [Picture; 2] = [
    Picture {
        file: "versus-rate.svg",
        key: "tidemill_rate_ratio",
        title: "Rate: tidemill's divided by the other server's",
        axis: "ratio of rates, logarithmic; right of 1: tidemill handles more per second",
    },
    Picture {
        file: "versus-cpu.svg",
        key: "tidemill_cpu_ratio",
        title: "Processor time per message: tidemill's divided by the other server's",
        axis: "ratio of processor time, logarithmic; left of 1: tidemill uses less",
    },
];

/// One bar.
struct Bar {
    /// The case, for its first bar.
    case: String,
    peer: &'static str,
    median: f64,
    least: f64,
    max: f64,
}

/// The pictures and the names of their files.
pub fn pictures(data: &Value) -> Vec<(&'static str, String)> {
    PICTURES.iter().map(|picture| (picture.file, picture.svg(data))).collect()
}

impl Picture {
    fn bars(&self, data: &Value) -> Vec<Bar> {
        let mut bars = Vec::new();
        for case in data["cases"].as_array().into_iter().flatten() {
            let mut name = case["case"].as_str().unwrap_or_default();
            let servers = case["servers"].as_array().into_iter().flatten();
            for server in servers {
                let kind = server["server"].as_str().and_then(Kind::named);
                let Some(kind) = kind.filter(|kind| *kind != Kind::Tidemill) else { continue };
                let figure = |key: &str| server[self.key][key].as_f64().unwrap_or(1.0);
                bars.push(Bar {
                    case: std::mem::take(&mut name).to_string(),
                    peer: kind.title(),
                    median: figure("median"),
                    least: figure("least"),
                    max: figure("most"),
                });
            }
        }
        bars
    }

    fn svg(&self, data: &Value) -> String {
        let bars = self.bars(data);
        let least = bars.iter().fold(0.8_f64, |least, bar| least.min(bar.least)) / 1.05;
        let max = bars.iter().fold(1.25_f64, |max, bar| max.max(bar.max)) * 1.05;
        let x = |ratio: f64| LEFT + (RIGHT - LEFT) * (ratio / least).ln() / (max / least).ln();
        let bottom = TOP + ROW * bars.len() as f64;
        let mut svg = self.frame(data, bottom);
        let ticks = (-6..=8).map(|power| 2_f64.powi(power)).filter(|tick| (least..max).contains(tick));
        // Writing to a `String` never fails.
        for tick in ticks {
            let (at, line) = (x(tick), if tick == 1.0 { "one" } else { "grid" });
            let _ = writeln!(
                svg,
                "  <line class=\"{line}\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>"
            );
            for y in [TOP - 6.0, bottom + 16.0] {
                let _ = writeln!(
                    svg,
                    "  <text class=\"small\" x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{tick}</text>"
                );
            }
        }
        for (row, bar) in bars.iter().enumerate() {
            bar.write(&mut svg, TOP + ROW * row as f64, x);
        }
        svg + "</svg>\n"
    }

    /// Everything around the bars.
    fn frame(&self, data: &Value, bottom: f64) -> String {
        let height = bottom + 52.0;
        let fact = |name: &str| {
            let mut facts = data["machine"].as_array().into_iter().flatten();
            let found = facts.find(|fact| fact[0] == name).and_then(|fact| fact[1].as_str());
            escape(found.unwrap_or("unknown"))
        };
        let (date, commit, version) = (fact("date"), fact("commit"), fact("tidemill"));
        let measured =
            format!("measured {date} with tidemill {version} at commit {commit} on {}", fact("processor"));
        let (title, axis) = (self.title, self.axis);
        let middle = (LEFT + RIGHT) / 2.0;
        let last = bottom + 38.0;
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"
     height="{height}" role="img" aria-labelledby="title desc">
  <title id="title">{title}</title>
  <desc id="desc">A bar for each case and server, from 1 (equal) to the median of the rounds, with a line for the range;
  {axis}; {measured}. The tables of the page have the same figures.</desc>
  <style>
{STYLE}  </style>
  <rect class="bg" width="{WIDTH}" height="{height}"/>
  <text class="head" x="12" y="28">{title}</text>
  <text class="small" x="12" y="50">{measured}</text>
  <text class="small" x="12" y="{label}">case</text>
  <text class="small" x="{peers}" y="{label}" text-anchor="end">other server</text>
  <text class="small" x="{figures}" y="{label}">median [range]</text>
  <text x="{middle}" y="{last}" text-anchor="middle">{axis}</text>
"#,
            label = TOP - 6.0,
            peers = LEFT - 8.0,
            figures = RIGHT + 10.0,
        )
    }
}

impl Bar {
    fn write(&self, svg: &mut String, y: f64, x: impl Fn(f64) -> f64) {
        let Bar { case, peer, median, least, max } = self;
        let (middle, text) = (y + ROW / 2.0, y + 13.0);
        let (from, to) = (x(median.min(1.0)), x(median.max(1.0)));
        // A line above the first bar of a case.
        if !case.is_empty() {
            let _ = writeln!(
                svg,
                "  <line class=\"grid\" x1=\"12\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\"/>",
                WIDTH - 12.0
            );
            let _ = writeln!(svg, "  <text x=\"12\" y=\"{text}\">{}</text>", escape(case));
        }
        let _ = writeln!(
            svg,
            "  <text class=\"small\" x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\n  \
             <rect class=\"bar\" x=\"{from:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>\n  \
             <line class=\"range\" x1=\"{:.1}\" y1=\"{middle}\" x2=\"{:.1}\" y2=\"{middle}\"/>\n  \
             <text x=\"{}\" y=\"{text}\">{median:.2} [{least:.2}-{max:.2}]</text>",
            LEFT - 8.0,
            escape(peer),
            y + 3.0,
            to - from,
            ROW - 6.0,
            x(*least),
            x(*max),
            RIGHT + 10.0,
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
