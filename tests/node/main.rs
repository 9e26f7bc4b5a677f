//! What the tests of Node's `net` module check, asked of tidemill: 98 scenarios in the groups in which Node's own 175
//! test files fall. Over real sockets, in one process, turn by turn; nothing here sleeps and hopes.
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
