//! tidemill compared with tokio and others, with the same service on each.
//!
//! ```sh
//! cargo bench --features tls --bench versus             # all cases, a few minutes
//! cargo bench --features tls --bench versus -- --case "64 B x 50"      # cases whose name contains this
//! cargo bench --features tls --bench versus -- --with haproxy,nginx    # also with these, if installed
//! cargo bench --features tls --bench versus -- --docs                  # writes docs/benchmarks.md with its charts
//! ```
//!
//! The method is described in `page.md`, the beginning of that document.

mod bulk;
mod case;
mod chart;
mod costs;
mod driver;
mod fan_out;
mod figure;
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
use report::CaseResult;
use run::Effort;

const HELP: &str = "\
cargo bench --features tls --bench versus -- [OPTIONS]
  --case TEXT     only the cases whose name holds TEXT; none for only the other figures
  --with LIST     also these, where they are installed: epoll, libuv, node, haproxy, haproxy-splice, nginx
  --json FILE     the figures for programs
  --docs          docs/benchmarks.md, its pictures and its data
  --redraw        only the pictures, again from docs/benchmarks.json
  --smoke         everything once, in seconds
";

/// The command-line options.
#[derive(Default)]
struct Options {
    case: Option<String>,
    with: Vec<Kind>,
    json: Option<PathBuf>,
    docs: bool,
    redraw: bool,
    smoke: bool,
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
            print!("{HELP}");
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
            "--docs" => options.docs = true,
            "--redraw" => options.redraw = true,
            "--case" => options.case = Some(value()?.to_string()),
            "--json" => options.json = Some(PathBuf::from(value()?)),
            "--with" => {
                for name in value()?.split(',') {
                    let kind = Kind::named(name).filter(|kind| kind.is_peer());
                    options
                        .with
                        .push(kind.ok_or(format!("--with {name}: there are epoll, node, haproxy, nginx"))?);
                }
            }
            _ => return Err(format!("{word} is not an option\n{HELP}")),
        }
    }
    Ok(Some(options))
}

fn compare(options: &Options) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    if options.redraw {
        return chart::redraw(&folder);
    }
    if options.smoke {
        chart::check(&folder)?;
    }
    let effort = match options.smoke {
        true => Effort { rounds: 1, turns: 1, shorter: 8 },
        false => Effort { rounds: 5, turns: 10, shorter: 1 },
    };
    process::pin(1);
    let wanted = |name: &str| options.case.as_ref().is_none_or(|case| name.contains(case.as_str()));
    let mut results = Vec::new();
    let compared = |case: &&Case| wanted(case.name) && !case.kinds(&options.with).is_empty();
    for &case in CASES.iter().filter(compared) {
        match run::measure(&case, &effort, &options.with) {
            Ok(rounds) => {
                let one = CaseResult { case, rounds };
                print!("{}", one.table());
                results.push(one);
            }
            Err(why) => println!("\n{} is left out: {why}", case.name),
        }
    }
    let mut figures: Vec<Figure> = Vec::new();
    if options.case.as_ref().is_none_or(|case| case == "none") {
        figures.extend(costs::measure(options.smoke));
        figures.push(run::low_rate(&effort));
    }
    figures.iter().for_each(|figure| print!("{}", figure.table()));
    if let Some(path) = &options.json {
        report::write_json(path, &results, &figures)?;
    }
    if options.docs {
        let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
        let command = format!("cargo bench --features tls --bench versus -- {}", words.join(" "));
        report::write_docs(&folder, &results, &figures, &command)?;
    }
    Ok(())
}
