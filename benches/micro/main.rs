//! Micro-benchmarks of timers, framings and write queues, compared with other crates.
//!
//! ```sh
//! cargo bench --bench micro                        # all cases, about a minute
//! cargo bench --bench micro -- --smoke             # each case once, briefly
//! cargo bench --bench micro -- --case framing      # rows whose title contains this
//! cargo bench --bench micro -- --json result.json
//! ```
//!
//! Without a harness: criterion and divan time one function after the other, and between two of them the speed of a
//! machine changes by more than the functions differ. Here all candidates of a row run in each round, in random order.
//! Reported are the median of the rounds, and the median of the ratios within a round.

mod messages;
mod queues;
mod wheel;

// The layers under test are compiled into this program once more, because most of them are private to the crate.
// Functions that only the loop calls are unused here, hence `dead_code`. Nothing is exported here, so clippy also
// checks names that it does not check in the crate.
#[allow(dead_code, unused_imports, clippy::enum_variant_names)]
#[path = "../../src/base/mod.rs"]
mod base;
#[allow(dead_code, unused_imports)]
#[path = "../../src/config/mod.rs"]
mod config;
#[allow(dead_code, unused_imports)]
#[path = "../../src/framing/mod.rs"]
mod framing;
#[allow(dead_code, unused_imports)]
#[path = "../../src/parts/mod.rs"]
mod parts;

/// A stub of `Socket`, for the `send` of framings: a real one needs a table and a loop. Only receiving is measured.
mod connection {
    pub mod socket {
        use std::marker::PhantomData;

        pub struct Socket<'a>(PhantomData<&'a ()>);

        impl Socket<'_> {
            pub fn send(&mut self, _: &[u8]) {}
        }
    }
}

use std::time::Instant;

use serde_json::{Value, json};

/// A measured operation: a row of the table.
pub struct Operation {
    pub name: String,
    /// The maximum in nanoseconds for tidemill, and the peer that it must be faster than.
    pub goal: Option<(f64, &'static str)>,
    /// How many bytes one operation moves, if a throughput is to be printed.
    pub bytes: Option<f64>,
}

impl Operation {
    pub fn new(name: impl Into<String>) -> Operation {
        Operation { name: name.into(), goal: None, bytes: None }
    }
}

/// Runs the work once; returns the nanoseconds of each operation.
pub type Runner<'a> = Box<dyn FnMut() -> Vec<f64> + 'a>;

/// Operations that are measured together, and the implementations: tidemill, then the peers.
pub struct Contest<'a> {
    pub title: String,
    pub operations: Vec<Operation>,
    pub own: Runner<'a>,
    pub peers: Vec<(&'static str, Runner<'a>)>,
    pub rounds: usize,
    /// Runs in a row, of which the median counts: the first one finds caches and heap as the run before left them.
    pub repeats: usize,
}

struct Row {
    title: String,
    operation: Operation,
    own: f64,
    peers: Vec<Peer>,
}

struct Peer {
    name: &'static str,
    nanoseconds: f64,
    /// The ratio of tidemill's time to the peer's: median, minimum and maximum of the rounds.
    ratio: (f64, f64, f64),
}

impl Contest<'_> {
    fn holds(&self, wanted: &str) -> bool {
        self.operations.iter().any(|operation| full_title(&self.title, operation).contains(wanted))
    }

    fn run(mut self) -> Vec<Row> {
        let all = 1 + self.peers.len();
        let (mut told, mut order) = (vec![Vec::new(); all], (0..all).collect::<Vec<usize>>());
        let mut random = Random(0);
        for round in 0..=self.rounds {
            random.shuffle(&mut order);
            for &who in &order {
                let runner = if who == 0 { &mut self.own } else { &mut self.peers[who - 1].1 };
                let figures: Vec<Vec<f64>> = (0..self.repeats).map(|_| runner()).collect();
                // The first round is a warm-up.
                if round > 0 {
                    let of = |what: usize| sorted(figures.iter().map(|figures| figures[what]));
                    told[who].push((0..self.operations.len()).map(|what| middle(&of(what))).collect());
                }
            }
        }
        let of = |who: usize, what: usize| told[who].iter().map(move |figures: &Vec<f64>| figures[what]);
        let against = |who: usize, name, what| {
            let ratios = sorted(of(0, what).zip(of(who, what)).map(|(own, peer)| own / peer));
            let ratio = (middle(&ratios), ratios[0], ratios[ratios.len() - 1]);
            Peer { name, nanoseconds: middle(&sorted(of(who, what))), ratio }
        };
        let rows = self.operations.into_iter().zip(0..).map(|(operation, what)| Row {
            title: self.title.clone(),
            operation,
            own: middle(&sorted(of(0, what))),
            peers: self.peers.iter().zip(1..).map(|((name, _), who)| against(who, name, what)).collect(),
        });
        rows.collect()
    }
}

fn full_title(title: &str, operation: &Operation) -> String {
    format!("{title}: {}", operation.name)
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn middle(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// The nanoseconds per operation, for `count` operations.
pub fn nanoseconds_each(count: usize, work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1e9 / count as f64
}

/// A random generator with a fixed seed: the same numbers in every run (SplitMix64, Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

impl Row {
    fn goal_is_held(&self) -> Option<bool> {
        self.operation.goal.map(|(max, ahead_of)| {
            let ahead = self.peers.iter().all(|peer| peer.name != ahead_of || peer.ratio.0 < 1.0);
            self.own <= max && ahead
        })
    }

    /// Megabytes per second.
    fn rate(&self) -> Option<f64> {
        self.operation.bytes.map(|bytes| bytes * 1e3 / self.own)
    }

    fn print(&self) {
        let note = match (self.operation.goal, self.goal_is_held(), self.rate()) {
            (Some((max, _)), Some(true), _) => format!("goal {max}: held"),
            (Some((max, _)), _, _) => format!("goal {max}: MISSED"),
            (None, _, rate) => rate.map_or(String::new(), |rate| format!("{rate:.0} MB/s")),
        };
        let mut line = format!("  {:<30}{:>8.1}   {note:<16}", self.operation.name, self.own);
        for peer in &self.peers {
            let cell = format!("{} {:.1}, {:.2}", peer.name, peer.nanoseconds, peer.ratio.0);
            line += &format!("{cell:<32}");
        }
        println!("{}", line.trim_end());
    }

    fn as_json(&self) -> Value {
        let peers = self.peers.iter().map(|peer| {
            let (median, least, max) = peer.ratio;
            json!({
                "peer": peer.name,
                "ns": peer.nanoseconds,
                "ratio": { "median": median, "least": least, "most": max },
            })
        });
        json!({
            "case": full_title(&self.title, &self.operation),
            "ns": self.own,
            "mb_per_second": self.rate(),
            "goal_ns": self.operation.goal.map(|(max, _)| max),
            "goal_is_held": self.goal_is_held(),
            "peers": peers.collect::<Vec<Value>>(),
        })
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let after = |option: &str| words.iter().position(|word| word == option).and_then(|at| words.get(at + 1));
    let smoke = words.iter().any(|word| word == "--smoke");
    let wanted = after("--case").cloned().unwrap_or_default();
    let runtime = wheel::runtime();
    let _context = runtime.enter();
    let wires = messages::wires();
    let contests = wheel::contests(&runtime, smoke)
        .into_iter()
        .chain(messages::contests(&wires, smoke))
        .chain(queues::contests(smoke));
    println!(
        "nanoseconds of tidemill; of its peers, each with the ratio of tidemill's to them (below 1: it is ahead)"
    );
    let (mut rows, mut title) = (Vec::new(), String::new());
    for contest in contests.filter(|contest| contest.holds(&wanted)) {
        for row in contest.run() {
            if !full_title(&row.title, &row.operation).contains(&wanted) {
                continue;
            }
            if row.title != title {
                title.clone_from(&row.title);
                println!("\n{title}");
            }
            row.print();
            rows.push(row.as_json());
        }
    }
    if let Some(path) = after("--json") {
        let text = format!("{:#}\n", Value::from(rows));
        std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
}
