//! The behaviour that Node tests of its `net` module, tested here: 98 scenarios in the groups of Node's 175 test files.
//! Over real sockets, in one process, turn by turn, and without sleeps.
#![cfg(target_os = "linux")]

mod fixture;

mod addresses;
mod connecting;
mod counters;
mod errors;
mod half_close;
mod listening;
mod liveness;
mod names;
mod options;
mod reading;
mod resets;
mod rules;
mod serving;
mod timeouts;
mod unix;
mod writing;
