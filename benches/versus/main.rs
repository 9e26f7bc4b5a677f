//! tidemill compared with tokio and others, with the same service on each.
//!
//! ```sh
//! cargo bench --features cli --bench versus             # all cases, a few minutes
//! cargo bench --features cli --bench versus -- --case "64 B x 50"      # cases whose name contains this
//! cargo bench --features cli --bench versus -- --with haproxy,nginx    # also with these, if installed
//! cargo bench --features cli --bench versus -- --quick                 # two minutes, wider ranges
//! cargo bench --features cli --bench versus -- --docs                  # writes docs/benchmarks.md with its charts
//! ```
//!
//! The method is described in `page.md`, the beginning of that document.

mod bands;
mod bulk;
mod case;
mod chart;
mod costs;
mod driver;
mod fan_out;
mod figure;
mod hop;
mod latency;
mod mio_echo;
mod page;
mod peers;
mod process;
mod report;
mod run;
mod servers;
mod tls;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use case::{CASES, Case, Kind};
use figure::Figure;
use latency::Latency;
use report::{CaseResult, Measured};
use run::Effort;

const HELP: &str = "\
cargo bench --features cli --bench versus -- [OPTIONS]
  --case TEXT     only the cases whose name holds TEXT, latency for the latencies of all, none for the other figures
  --with LIST     also these, where they are installed: {peers}
  --json FILE     the figures for programs
  --docs          docs/benchmarks.md and .html, the pictures and the data; with --case, only these cases are replaced
  --redraw        measure nothing; write these files again from docs/benchmarks.json
  --check         compare all figures with benches/versus/bands.json; exit 1 if one is worse than its band
  --write-bands   put what was measured into that file, with --redraw the ratios of docs/benchmarks.json
  --quick         a fourth of the measurements, in two minutes; the ranges are wider
  --rounds N      so many rounds instead of 5
  --smoke         everything once, in a minute; compares the counts with their bands, and no times
";

fn help() -> String {
    HELP.replace("{peers}", &Kind::peers())
}

/// The command-line options.
#[derive(Default)]
struct Options {
    case: Option<String>,
    with: Vec<Kind>,
    json: Option<PathBuf>,
    docs: bool,
    redraw: bool,
    check: bool,
    write_bands: bool,
    smoke: bool,
    quick: bool,
    rounds: Option<usize>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["--serve", name, shape, ref behind @ ..] = texts[..] {
        servers::serve(name, shape, behind.first().copied());
        return ExitCode::SUCCESS;
    }
    let done = options(&texts).and_then(|options| match options {
        Some(options) => compare(&options),
        None => {
            print!("{}", help());
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// `None` if help was requested.
fn options(words: &[&str]) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        let mut value = || words.next().copied().ok_or(format!("{word} needs a value"));
        match word {
            // Cargo passes this to every bench.
            "--bench" => {}
            "--help" => return Ok(None),
            "--smoke" => options.smoke = true,
            "--quick" => options.quick = true,
            "--rounds" => {
                let count = value()?.parse().ok().filter(|count| *count > 0);
                options.rounds = Some(count.ok_or("--rounds is the number of rounds, at least 1")?);
            }
            "--docs" => options.docs = true,
            "--redraw" => options.redraw = true,
            "--check" => options.check = true,
            "--write-bands" => options.write_bands = true,
            "--case" => options.case = Some(value()?.to_string()),
            "--json" => options.json = Some(PathBuf::from(value()?)),
            "--with" => {
                for name in value()?.split(',') {
                    let kind = Kind::named(name).filter(|kind| kind.is_peer());
                    options.with.push(kind.ok_or(format!("--with {name}: there are {}", Kind::peers()))?);
                }
            }
            _ => return Err(format!("{word} is not an option\n{}", help())),
        }
    }
    Ok(Some(options))
}

fn compare(options: &Options) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let bands = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/versus/bands.json");
    if options.redraw {
        let data = page::data(&folder)?;
        page::redraw(&folder, &data)?;
        return if options.write_bands { bands::write(&bands, &data, false) } else { Ok(()) };
    }
    if options.smoke {
        page::check(&folder)?;
    }
    let effort = options.effort();
    process::pin(1);
    let measured = Measured {
        cases: rates(options, &effort),
        latencies: latencies(options, &effort),
        figures: figures(options, &effort),
    };
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words =
        words.iter().map(|word| if word.contains(' ') { format!("\"{word}\"") } else { word.clone() });
    let words: Vec<String> = words.collect();
    let command = format!("cargo bench --features cli --bench versus -- {}", words.join(" "));
    let data = report::data(&measured, &command);
    if let Some(path) = &options.json {
        report::write_json(path, &data)?;
    }
    if options.docs {
        match options.case {
            Some(_) => page::write(&folder, &page::merged(page::data(&folder)?, &data))?,
            None => page::write(&folder, &data)?,
        }
    }
    if options.write_bands {
        bands::write(&bands, &data, options.smoke)?;
    }
    if options.check || options.smoke {
        bands::check(&bands, &data, options.smoke, options.case.is_none())?;
    }
    Ok(())
}

impl Options {
    fn effort(&self) -> Effort {
        let (rounds, turns, shorter) = match (self.smoke, self.quick) {
            (true, _) => (1, 1, 8),
            (_, true) => (3, 4, 2),
            _ => (5, 10, 1),
        };
        Effort { rounds: self.rounds.unwrap_or(rounds), turns, shorter }
    }

    /// Whether a case or a group of figures is asked for.
    fn asks_for(&self, name: &str) -> bool {
        self.case.as_ref().is_none_or(|case| name.contains(case.as_str()))
    }
}

fn rates(options: &Options, effort: &Effort) -> Vec<CaseResult> {
    let wanted = |case: &&Case| options.asks_for(case.name) && !case.kinds(&options.with).is_empty();
    let measure = |case: &Case| {
        run::measure(case, effort, &options.with).map(|rounds| CaseResult { case: *case, rounds })
    };
    of_cases(CASES.iter().filter(wanted), "", measure, CaseResult::table)
}

fn latencies(options: &Options, effort: &Effort) -> Vec<Latency> {
    let all = options.asks_for("latency");
    let wanted = CASES.iter().filter(|case| all && latency::is_for(case));
    of_cases(wanted, "the latency of ", |case| latency::measure(case, effort, &options.with), Latency::table)
}

/// Measures cases and prints each as soon as it is measured, or why it cannot be.
fn of_cases<R>(
    cases: impl Iterator<Item = &'static Case>,
    what: &str,
    measure: impl Fn(&Case) -> Result<R, String>,
    table: impl Fn(&R) -> String,
) -> Vec<R> {
    let mut results = Vec::new();
    for case in cases {
        match measure(case) {
            Ok(result) => {
                print!("{}", table(&result));
                results.push(result);
            }
            Err(why) => println!("\n{what}{} is left out: {why}", case.name),
        }
    }
    results
}

fn figures(options: &Options, effort: &Effort) -> Vec<Figure> {
    let mut figures = Vec::new();
    if options.asks_for("none") {
        figures.extend(costs::measure(options.smoke));
        figures.push(run::low_rate(effort));
    }
    figures.iter().for_each(|figure| print!("{}", figure.table()));
    figures
}
