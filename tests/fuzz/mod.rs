//! Fuzz targets on stable Rust: each is a function from bytes, in `targets.rs`.
//!
//! A target runs on every file of its folder in `tests/fuzz/corpus`, then on mutations of them, which a seed decides: a
//! few hundred in an ordinary test run, or for so many seconds as `TIDEMILL_FUZZ` says. An input that fails is written
//! to a file; put into the corpus, it is tried first in every run from then on.

mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Mutations of one target in an ordinary test run.
const MUTATIONS: u64 = 200;
/// Inputs grow to at most this many bytes.
const LENGTH_MAX: usize = 4 * 1024;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Bytes at which parsers turn.
const INTERESTING: [&[u8]; 12] = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\r\n",
    b"\n",
    b"PROXY ",
    b"::",
    b"/",
    b"\xff\xff\xff\xff",
    b"%",
    b"\x1b[",
];

/// One input, changed in one to four places.
fn mutate(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[rng.below(corpus.len())].clone();
    for _ in 0..=rng.below(4) {
        let at = rng.below(input.len() + 1);
        let end = (at + 1 + rng.below(16)).min(input.len());
        match rng.below(8) {
            0 if !input.is_empty() => {
                let at = at.min(input.len() - 1);
                input[at] ^= 1 << rng.below(8);
            }
            1 if !input.is_empty() => {
                let at = at.min(input.len() - 1);
                input[at] = rng.next() as u8;
            }
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..at, INTERESTING[rng.below(INTERESTING.len())].iter().copied())),
            4 => {
                let piece = input[at..end].to_vec();
                let times = 1 + rng.below(40);
                drop(input.splice(at..at, piece.repeat(times)));
            }
            5 => {
                let other = &corpus[rng.below(corpus.len())];
                let from = rng.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => drop(input.splice(at..at, [rng.next() as u8])),
            _ => input.truncate(at),
        }
    }
    input.truncate(LENGTH_MAX);
    input
}

fn corpus(of: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(of);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no file", folder.display());
    files.into_iter().map(|file| (file.clone(), fs::read(&file).expect("a file of the corpus"))).collect()
}

fn fuzz(name: &str, target: fn(&[u8])) {
    let seeds = corpus(name);
    for (file, input) in &seeds {
        let outcome = catch_unwind(|| target(input));
        assert!(outcome.is_ok(), "{name} fails for {}", file.display());
    }
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, input)| input).collect();
    let seconds = std::env::var("TIDEMILL_FUZZ").ok();
    let seconds = seconds.map(|text| text.parse::<u64>().expect("TIDEMILL_FUZZ is a number of seconds"));
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    // With a time, other inputs in every run; without, the same in each.
    let first = if seconds.is_some() { std::process::id().into() } else { 0 };
    let (mut rng, mut count) = (Rng(first), 0);
    while end.map_or(count < MUTATIONS, |end| Instant::now() < end) {
        let input = mutate(&mut rng, &seeds);
        count += 1;
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let at = std::env::temp_dir().join(format!("tidemill-fuzz-{name}-{count}"));
            fs::write(&at, &input).expect("a file for the input");
            panic!("{name} fails for {}: move it to tests/fuzz/corpus/{name} to try it first", at.display());
        }
    }
    println!("{name}: {count} mutations");
}

macro_rules! fuzz {
    ($($(#[$mark:meta])* $name:ident),* $(,)?) => {
        $($(#[$mark])* #[test] fn $name() { fuzz(stringify!($name), targets::$name); })*
    };
}

fuzz! {
    framings,
    proxy_header,
    ranges,
    addresses,
    #[cfg(feature = "cli")] sizes_and_durations,
    text,
    chat,
    echo_tape,
    proxy_tape,
    #[cfg(feature = "tls")] tls_bytes,
}
