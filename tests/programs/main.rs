//! Small programs on the crate, each in a file of its own, and clients of others that use them.
//!
//! The clients are ordinary packages: `curl`, `redis-server`, `mosquitto-clients`, `python3-pymemcache`. If one is
//! missing, its test prints that and passes, unless `TIDEMILL_INTEROP=required` is set.
#![cfg(all(target_os = "linux", feature = "tls"))]

mod files;
mod gateway;
mod memcached;
mod mqtt;
mod pool;
mod socks5;

mod clients;
