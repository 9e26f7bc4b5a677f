//! What every process of a measurement does with itself: its processor, its descriptors, its address.

use std::io::Write;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps this process on one processor, where there are two or more.
pub fn pin(processor: usize) {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    if count > processor {
        let mut set = CpuSet::new();
        set.set(processor);
        // Where it is not allowed, figures are wider apart, and still fair.
        let _ = sched_setaffinity(None, &set);
    }
}

/// Tells the parent process where this server listens.
pub fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().expect("somebody waits for it");
}

/// As many descriptors as the process may ever have.
pub fn raise_descriptors() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |max| max as usize)
}
