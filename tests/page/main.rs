//! Scenarios on the simulated kernel, stepped phase by phase.

mod bugs;
mod scenarios;
mod steps;
