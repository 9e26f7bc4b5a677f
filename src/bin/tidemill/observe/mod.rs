//! What watches the loop of a server: the trace, the log of slow callbacks, the access log, and metrics. All are
//! observers of the reactor.

mod access_log;
mod chrome;
mod metrics;
mod sampled;
mod scrape;
mod slow;
mod tcp;
mod text;
mod trace;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use prometheus_client::metrics::family::Family;
use tidemill::observer::Call;
use tidemill::{Address, ConnId, ListenOptions, Reactor, ServiceId};

use crate::args::observe::ObserveArgs;

/// The names of the services of a reactor, for people.
pub type Names = HashMap<ServiceId, &'static str>;

pub use sampled::next_sampled;
pub use scrape::{Ask, Work};

/// Set by SIGHUP: the access log is opened again before its next line.
pub type Reopen = Arc<AtomicBool>;

/// What watches the loops of a server; some of it is of all of them together.
pub struct Watchers {
    options: ObserveArgs,
    loops: usize,
    slow: metrics::ByCallback,
    metrics: Option<metrics::Metrics>,
    /// Of the access log, for each loop: asks for the file to be opened again.
    pub reopen: Vec<Reopen>,
}

impl Watchers {
    pub fn new(options: &ObserveArgs, loops: usize) -> Watchers {
        let slow = Family::default();
        let counted = options.slow().map(|_| slow.clone());
        let metrics = options.metrics.as_ref().map(|_| metrics::Metrics::new(loops, counted));
        let logs = if options.access_log.is_some() { loops } else { 0 };
        let reopen = (0..logs).map(|_| Reopen::default()).collect();
        Watchers { options: options.clone(), loops, slow, metrics, reopen }
    }

    /// Adds the observers that the options ask for to the loop of this number. The first one serves the metrics, and
    /// has the `others` asked for theirs.
    ///
    /// # Errors
    ///
    /// When the file of the trace or of the access log cannot be written, or the address of the metrics cannot be
    /// listened on.
    pub fn observe(
        &self,
        number: usize,
        reactor: &mut Reactor,
        names: &Names,
        others: Vec<scrape::Ask>,
    ) -> Result<(), String> {
        let options = &self.options;
        if let Some(least) = options.slow() {
            reactor.observe(slow::SlowCallbacks::new(least, names.clone(), self.slow.clone()));
        }
        if let (Some(metrics), Some(at)) = (&self.metrics, &options.metrics) {
            reactor.observe(metrics.recorder(number, names));
            if number == 0 {
                serve_metrics(reactor, at, metrics.clone(), others)?;
            }
        }
        if let Some(path) = &options.trace {
            let path = if self.loops > 1 { &numbered(path, number) } else { path };
            let failed = |error| format!("--trace {}: {error}", path.display());
            let file = trace::TraceFile::create(path, names).map_err(failed)?;
            log::info!("each step of the loop is written to {}", path.display());
            reactor.observe(trace::Trace::new(file));
        }
        if let (Some(path), Some(reopen)) = (&options.access_log, self.reopen.get(number)) {
            let log =
                access_log::AccessLog::open(path, options.log_format, names.clone(), Reopen::clone(reopen));
            reactor.observe(log.map_err(|error| format!("--access-log {}: {error}", path.display()))?);
        }
        Ok(())
    }
}

/// The file of one of several loops: `t.json` is `t.0.json` for the first one.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let extension = path.extension().and_then(OsStr::to_str);
    path.with_extension(extension.map_or(number.to_string(), |old| format!("{number}.{old}")))
}

/// Connections that the reactor needs beside those of the server.
pub fn extra_connections(options: &ObserveArgs) -> usize {
    if options.metrics.is_some() { scrape::CONNECTIONS } else { 0 }
}

fn serve_metrics(
    reactor: &mut Reactor,
    at: &Address,
    metrics: metrics::Metrics,
    others: Vec<scrape::Ask>,
) -> Result<(), String> {
    let scrape = scrape::Scrape::new(metrics, reactor.handle(), others);
    let service = reactor.add_with(scrape, scrape::Scrape::limits());
    reactor.set_access_policy(service, scrape::Scrape::policy());
    let listen = ListenOptions { busy_reply: scrape::BUSY.to_vec(), ..ListenOptions::default() };
    let listener =
        reactor.listen_with(at, service, &listen).map_err(|error| format!("--metrics: {error}"))?;
    match reactor.local_addr(listener) {
        Some(at) if !at.is_unix() => log::info!("metrics at http://{at}/metrics"),
        _ => log::info!("metrics at {at}"),
    }
    Ok(())
}

/// The name of a callback, such as `echo.data`.
fn call_name(call: &Call, names: &Names) -> String {
    let service = call.service.map(|service| names.get(&service).copied().unwrap_or("service"));
    service.map_or_else(|| call.callback.word().to_string(), |it| format!("{it}.{}", call.callback.word()))
}

/// A connection as the log names it.
fn on(connection: Option<ConnId>) -> String {
    connection.map_or(String::new(), |id| format!(" of {id}"))
}
