//! The binary over real sockets, used by people, by scripts and by attackers.
//!
//! Each server here is a process of its own on a free port of the loopback address, and is ended by the test that
//! started it. Tests that measure run alone ([`server::alone`]).
#![cfg(all(feature = "cli", target_os = "linux"))]

mod access_log;
mod activation;
mod admin;
mod backplane;
mod calls;
mod chat;
mod config;
mod connect;
mod endurance;
mod fairness;
mod fault;
mod generate;
mod interop;
mod limits;
mod load;
mod load_failures;
mod load_output;
mod load_protocols;
mod member;
mod memory;
mod metrics;
mod observe;
mod options;
mod packaging;
mod peer;
mod peers;
mod process;
mod proxy;
mod proxy_legs;
mod room;
mod server;
mod shards;
mod shared_limits;
mod signals;
mod step;
mod terminal;
mod tls;
mod traffic;
