//! `--shards`, and what it does to other options.

use std::thread::available_parallelism;

use clap::Args;

use super::{SPEED, ServerArgs};

/// More than machines have processors for.
const SHARDS_MAX: usize = 256;

#[derive(Args)]
pub struct ShardArgs {
    /// Threads with a reactor each; a connection goes to the one with the fewest. Limits are those of all together.
    /// auto: one for each processor
    #[arg(long, value_name = "N", default_value = "1", help_heading = SPEED, value_parser = count)]
    shards: usize,
}

fn count(text: &str) -> Result<usize, String> {
    let count = match text {
        "auto" => available_parallelism().map_or(1, usize::from),
        number => number.parse().map_err(|_| "a number is needed, or auto".to_string())?,
    };
    match count {
        1..=SHARDS_MAX => Ok(count),
        _ => Err(format!("1 to {SHARDS_MAX}, or auto")),
    }
}

impl ShardArgs {
    pub fn count(&self) -> usize {
        self.shards
    }

    /// The descriptors that shards take beside those of one loop: five for each reactor, and its part of the acceptor.
    pub fn descriptors(&self) -> usize {
        if self.shards == 1 { 0 } else { 6 * self.shards + 8 }
    }

    /// What one shard may have of what all have together.
    pub fn share(&self, all: usize) -> usize {
        (all / self.shards).max(1)
    }
}

impl ServerArgs {
    /// What several shards cannot do.
    pub fn check_shards(&self) -> Result<(), String> {
        let shards = self.shards.count();
        match self.max_connections() {
            Some(max) if shards > 1 && max < shards => Err(format!(
                "--shards {shards} cannot be used with --max-connections: each shard needs a connection at least"
            )),
            _ => Ok(()),
        }
    }
}
