//! What watches the loop of a server: the trace, the log of slow callbacks, the access log, and metrics. All are
//! observers of the reactor.

mod access_log;
mod chrome;
mod metrics;
mod scrape;
mod slow;
mod tcp;
mod text;
mod trace;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use prometheus_client::metrics::family::Family;
use tidemill::observer::Call;
use tidemill::{ConnId, ListenOptions, Reactor, ServiceId};

use crate::args::observe::ObserveArgs;

/// The names of the services of a reactor, for people.
pub type Names = HashMap<ServiceId, &'static str>;

/// Set by SIGHUP: the access log is opened again before its next line.
pub type Reopen = Arc<AtomicBool>;

/// Adds the observers that the options ask for. Returns what asks for the access log to be opened again, if there is
/// one.
///
/// # Errors
///
/// When the file of the trace or of the access log cannot be written, or the address of the metrics cannot be listened
/// on.
pub fn observe(
    reactor: &mut Reactor,
    names: &Names,
    options: &ObserveArgs,
) -> Result<Option<Reopen>, String> {
    let slow = Family::default();
    if let Some(least) = options.slow() {
        reactor.observe(slow::SlowCallbacks::new(least, names.clone(), slow.clone()));
    }
    serve_metrics(reactor, names, options, options.slow().map(|_| slow))?;
    if let Some(path) = &options.trace {
        let failed = |error| format!("--trace {}: {error}", path.display());
        let file = trace::TraceFile::create(path, names).map_err(failed)?;
        log::info!("each step of the loop is written to {}", path.display());
        reactor.observe(trace::Trace::new(file));
    }
    let Some(path) = &options.access_log else { return Ok(None) };
    let reopen = Reopen::default();
    let log = access_log::AccessLog::open(path, options.log_format, names.clone(), Reopen::clone(&reopen));
    reactor.observe(log.map_err(|error| format!("--access-log {}: {error}", path.display()))?);
    Ok(Some(reopen))
}

/// Connections that the reactor needs beside those of the server.
pub fn extra_connections(options: &ObserveArgs) -> usize {
    if options.metrics.is_some() { scrape::CONNECTIONS } else { 0 }
}

fn serve_metrics(
    reactor: &mut Reactor,
    names: &Names,
    options: &ObserveArgs,
    slow: Option<metrics::ByCallback>,
) -> Result<(), String> {
    let Some(at) = &options.metrics else { return Ok(()) };
    let (metrics, recorder) = metrics::Metrics::new(names.clone(), slow);
    reactor.observe(recorder);
    let service = reactor.add_with(scrape::Scrape::new(metrics), scrape::Scrape::limits());
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
