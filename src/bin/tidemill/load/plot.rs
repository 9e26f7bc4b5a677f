//! The latencies as a picture: latency over percentile, in which each nine has as much room as the one before.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use plotters::prelude::*;

use super::report::micros;

/// A file that is ready to be written.
pub struct Plot {
    path: PathBuf,
    file: File,
}

impl Plot {
    /// Creates the file: what is wrong with it is to be known before the run.
    pub fn create(path: &Path) -> Result<Plot, String> {
        if path.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("svg")) {
            return Err(format!("--plot draws SVG: give {} a name that ends in .svg", path.display()));
        }
        let file = File::create(path).map_err(|error| cannot(path, &error))?;
        Ok(Plot { path: path.to_path_buf(), file })
    }

    pub fn draw(mut self, title: &str, latency: &Histogram<u64>) -> Result<(), String> {
        let mut svg = String::new();
        draw(&mut svg, title, latency).map_err(|error| cannot(&self.path, &error))?;
        self.file.write_all(svg.as_bytes()).map_err(|error| cannot(&self.path, &error))
    }
}

fn cannot(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot draw {}: {error}", path.display())
}

/// Both axes are logarithmic, the lower one in how rare a value is.
fn draw(svg: &mut String, title: &str, latency: &Histogram<u64>) -> Result<(), String> {
    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    // From one in one to one in as many as there were.
    let rarest = (latency.len().max(10) as f64).log10();
    let points: Vec<(f64, f64)> = (0..=400)
        .map(|step| {
            let rarity = rarest * f64::from(step) / 400.0;
            let quantile = 1.0 - 10_f64.powf(-rarity);
            (rarity, latency.value_at_quantile(quantile) as f64 / 1e3)
        })
        .collect();
    let (least, max) = (latency.min().max(1_000) as f64 / 1e3, latency.max().max(2_000) as f64 / 1e3);
    let root = SVGBackend::with_string(svg, (900, 480)).into_drawing_area();
    root.fill(&WHITE).map_err(text)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 15))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..rarest, (least..max * 1.1).log_scale())
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("latency")
        .y_label_formatter(&|us| micros((us * 1e3) as u64))
        .x_labels(rarest as usize + 2)
        .x_label_formatter(&|rarity| percentile(*rarity))
        .draw()
        .map_err(text)?;
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2))).map_err(text)?;
    root.present().map_err(text)
}

/// 1 is the 90th, 2 the 99th, 3 the 99.9th percentile.
fn percentile(rarity: f64) -> String {
    let share = 100.0 * (1.0 - 10_f64.powf(-rarity));
    let digits = (rarity - 2.0).max(0.0).ceil() as usize;
    format!("{share:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_has_its_label() {
        let labels: Vec<String> = [0.0, 1.0, 2.0, 3.0, 4.0].map(percentile).into();
        assert_eq!(labels, ["0", "90", "99", "99.9", "99.99"]);
    }

    #[test]
    fn a_picture_holds_its_title_and_a_line() {
        let mut latency = Histogram::new(3).expect("a histogram");
        (1..10_000_u64).for_each(|n| latency.record(n * 1_000).expect("it fits"));
        let path = std::env::temp_dir().join(format!("tidemill-plot-{}.svg", std::process::id()));
        Plot::create(&path).and_then(|plot| plot.draw("sixty-four bytes", &latency)).expect("a picture");
        let svg = std::fs::read_to_string(&path).expect("a file");
        assert!(svg.contains("sixty-four bytes") && svg.contains("<polyline") && svg.contains("99.9"));
        assert!(svg.contains("1.0ms"), "the axis has units: {svg}");
        std::fs::remove_file(&path).expect("it is ours");
        assert!(Plot::create(Path::new("x.png")).is_err_and(|error| error.contains("ends in .svg")));
    }
}
