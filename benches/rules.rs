//! Access rules: ten thousand rules cut into spans, compared with a linear search through the list.
//!
//! `cargo bench --bench rules`; with `-- --smoke` once, briefly.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Instant;

use tidemill::{Action, IpRange, RefuseMode, Rules};

const RULES: u32 = 10_000;

/// Networks of all sizes, random and overlapping, alternately allowed and denied (SplitMix64, Steele et al. 2014).
fn networks() -> Vec<(IpRange, bool)> {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    };
    let network = |n: u32| {
        let prefix = 12 + (next() % 21) as u8;
        let mask = u32::MAX << (32 - u32::from(prefix));
        let ip = IpAddr::from(((next() as u32) & mask).to_be_bytes());
        (IpRange::network(ip, prefix).expect("the bits behind the prefix are zero"), n % 2 == 0)
    };
    (0..RULES).map(network).collect()
}

/// Nanoseconds per decision: the median of several rounds over different addresses.
fn nanoseconds(rounds: u32, decisions: u32, mut decide: impl FnMut(IpAddr) -> bool) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|round| {
            let begun = Instant::now();
            let mut allowed = 0_u32;
            for n in 0..decisions {
                let ip = (round * decisions + n).wrapping_mul(2_654_435_761);
                allowed += u32::from(decide(IpAddr::from(ip.to_be_bytes())));
            }
            black_box(allowed);
            begun.elapsed().as_secs_f64() * 1e9 / f64::from(decisions)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let smoke = std::env::args().any(|word| word == "--smoke");
    let (rounds, decisions) = if smoke { (3, 2_000) } else { (15, 200_000) };
    let list = networks();
    let mut rules = Rules::default();
    for &(range, allow) in &list {
        if allow { rules.allow(range) } else { rules.deny(range, RefuseMode::End) }
    }
    let begun = Instant::now();
    rules.decide(IpAddr::from([127, 0, 0, 1]));
    let cutting = begun.elapsed();
    let spans = nanoseconds(rounds, decisions, |ip| rules.decide(black_box(ip)) == Action::Allow);
    let walk = nanoseconds(rounds, decisions.min(2_000), |ip| {
        let found = list.iter().find(|(range, _)| range.contains(black_box(ip)));
        found.is_none_or(|(_, allow)| *allow)
    });
    println!(
        "{RULES} rules: {spans:.0} ns a decision, {:.4} of a walk through the list ({walk:.0} ns)",
        spans / walk
    );
    println!("cutting them into spans takes {cutting:.1?}, once after a change");
}
