//! Set-up of each process of a measurement: its processor, its descriptors, its address.

use std::io::Write;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Pins this process to one processor, if there are two or more.
pub fn pin(processor: usize) {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    if count > processor {
        let mut set = CpuSet::new();
        set.set(processor);
        // If pinning is not allowed, ranges are wider, but the comparison is still fair.
        let _ = sched_setaffinity(None, &set);
    }
}

/// Prints the address of this server, for the parent process.
pub fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().expect("the parent process reads it");
}

/// Raises the descriptor limit to the hard limit; returns it.
pub fn raise_descriptors() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |max| max as usize)
}
