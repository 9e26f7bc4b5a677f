//! Scenarios on the simulated kernel, stepped phase by phase.

mod browser;
mod bugs;
mod scenarios;
mod steps;
