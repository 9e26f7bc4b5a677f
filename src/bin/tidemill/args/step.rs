//! The options of `step`.

use clap::Args;

#[derive(Args)]
pub struct StepArgs {
    /// The name of a scenario, or a file with one; without it, the scenarios are listed
    #[arg(value_name = "SCENARIO")]
    pub scenario: Option<String>,
    /// Print every step and end; so it is without a terminal
    #[arg(long)]
    pub all: bool,
    /// Print the state in full after every step, and not only what happened
    #[arg(long)]
    pub state: bool,
    /// Let the kernel make trouble, as this seed decides
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Print where the page is that shows the same in a browser
    #[arg(long, conflicts_with_all = ["all", "state"])]
    pub page: bool,
}
