//! The longest message.

use clap::Args;

use super::MUCH;
use super::values::SizeArg;

/// What the commands take that speak in messages.
#[derive(Args)]
pub struct MessageArgs {
    /// The longest message; longer ones close the connection [default: 1MiB, lines: 8KiB]
    #[arg(long, value_name = "SIZE", help_heading = MUCH)]
    max_message: Option<SizeArg>,
}

impl MessageArgs {
    pub fn max_length(&self) -> Option<usize> {
        self.max_message.map(|SizeArg(bytes)| bytes)
    }
}
