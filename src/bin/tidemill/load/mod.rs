//! The load generator: measures a server so that the figures are about the server.
//!
//! Every byte of an answer is checked. With a fixed rate, latency is measured from the scheduled send time, which
//! avoids coordinated omission: a server that stalls is charged for each message that was due meanwhile. A message
//! without an answer at the end is recorded with its age. The generator polls without sleeping, so that its own wake-up
//! latency is no part of the figures, and it measures its own maximum first.

mod answer;
mod clients;
mod driver;
mod fan_out;
mod json;
mod live;
mod message;
mod places;
mod plan;
mod plot;
mod protocol;
mod report;
mod results;
mod schedule;

use std::cell::RefCell;
use std::io::{ErrorKind, Write};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tidemill::services::{Chat, Echo};
use tidemill::{Address, Limits, Reactor, SocketLimits};

use crate::args::CommandError;
use crate::args::load::LoadArgs;
use crate::args::values::{LocalAddresses, Shape};
use crate::serve::descriptors;
use answer::Answer;
use clients::{ClientService, Clients};
use driver::{CONNECT_WITHIN, Interrupt, Run};
use fan_out::{FanOutService, Room};
use json::Before;
use live::LiveView;
use plan::Plan;
use plot::Plot;
use report::Report;
use results::Results;

/// A connection's queue is filled up to here: enough to keep a fast link busy, little enough to stream long messages.
const HIGH_WATER: usize = 256 << 10;

pub fn load(options: &LoadArgs) -> Result<(), CommandError> {
    let plan = options.plan().map_err(CommandError::Usage)?;
    let plan = Plan { filter: options.tls.client().map_err(CommandError::Run)?, ..plan };
    // What can fail for want of a file fails before the run.
    let before = options.compare.as_deref().map(Before::read).transpose().map_err(CommandError::Run)?;
    let plot = options.plot.as_deref().map(Plot::create).transpose().map_err(CommandError::Run)?;
    let interrupt = Interrupt::install().map_err(|error| CommandError::Run(error.to_string()))?;
    let ceiling = match plan.shape {
        Shape::Idle => None,
        // An own server would need a certificate that the options trust, or speak the protocol.
        _ if options.no_ceiling || plan.filter.is_some() || !matches!(plan.answer, Answer::Echo) => None,
        _ => own_ceiling(&plan, &interrupt).map_err(CommandError::Run)?,
    };
    let results = if interrupt.signal().is_some() {
        let mut nothing = Results::new();
        nothing.cut_short = interrupt.signal();
        nothing
    } else {
        let view = LiveView::new("load");
        let outcome = run(&plan, &view, &interrupt);
        view.clear();
        outcome.map_err(CommandError::Run)?
    };
    let report = Report { plan: &plan, results: &results, ceiling };
    // A program that reads JSON gets it in every case; a person needs no figures of a server that was never reached.
    if options.json || !results.unreachable {
        write_result(&report, options.json, before.as_ref())?;
    }
    if let Some(plot) = plot {
        let (shape, connections, size) = (plan.shape_name(), plan.connections, plan.size);
        let rate = plan.rate.map_or("closed loop".to_string(), |rate| format!("{rate}/s"));
        let title = format!(
            "{} · {shape} · {connections} connections · {size} bytes · {rate} · {}",
            plan.to,
            json::now()
        );
        plot.draw(&title, &results.latency).map_err(CommandError::Run)?;
    }
    match (results.cut_short, report.failure()) {
        (Some(signal), _) => Err(CommandError::Interrupted(signal)),
        (None, Some(failure)) => Err(CommandError::Run(failure)),
        (None, None) => Ok(()),
    }
}

/// Writes to stdout. A reader that has closed the pipe is no error: that is how `head` ends.
fn write_result(report: &Report<'_>, as_json: bool, before: Option<&Before>) -> Result<(), CommandError> {
    let text = match as_json {
        true => format!("{:#}\n", report.json(before)),
        false => report.text() + &before.map_or(String::new(), |before| before.text(report)),
    };
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CommandError::Run(format!("cannot write the result to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// The rate that this program could reach: measured against an echo in another thread, less the time in which it had to
/// wait for it. None if a signal ended it.
fn own_ceiling(plan: &Plan, interrupt: &Interrupt) -> Result<Option<f64>, String> {
    let (tell, told) = mpsc::channel();
    let fans_out = plan.shape == Shape::FanOut;
    let serves = move || -> std::io::Result<()> {
        let mut reactor = Reactor::new(Limits::for_descriptors(descriptors()))?;
        let patient = SocketLimits { idle: None, queue: 16 << 20, ..SocketLimits::default() };
        let service = match fans_out {
            true => reactor.add_with(Chat::new(), patient).id(),
            false => reactor.add_with(Echo::raw(), patient).id(),
        };
        let listener = reactor.listen("127.0.0.1:0", service)?;
        // The receiver has gone only if the process is ending.
        let _ = tell.send((reactor.local_addr(listener), reactor.handle()));
        reactor.run()
    };
    let server =
        thread::Builder::new().name("ceiling".into()).spawn(serves).map_err(|error| error.to_string())?;
    let (address, handle) =
        told.recv().map_err(|_| "cannot measure the ceiling: no server of our own".to_string())?;
    // A churn of one second uses up the ephemeral ports of one address.
    let sources: Option<LocalAddresses> =
        "127.0.1.1-127.0.1.50".parse().ok().filter(|_| cfg!(target_os = "linux"));
    let own = Plan {
        to: address.unwrap_or(Address::Unnamed),
        connections: plan.connections.min(1_000),
        rate: None,
        requests: None,
        warm_up: Duration::from_millis(200),
        duration: Some(Duration::from_secs(1).min(plan.duration.unwrap_or(Duration::from_secs(1)))),
        sources: sources.filter(|_| plan.shape == Shape::Churn),
        ..plan.clone()
    };
    let view = LiveView::new("ceiling");
    let outcome = run(&own, &view, interrupt);
    view.clear();
    // Its loop may have ended; then it needs no stopping.
    let _ = handle.post(|sockets| sockets.stop());
    let _ = server.join();
    let results = outcome?;
    match results.failures.first() {
        _ if results.cut_short.is_some() => Ok(None),
        Some(why) => Err(format!("cannot measure the ceiling: {why}")),
        None => Ok(Some(results.per_second() / (1.0 - results.own.idle).max(0.01))),
    }
}

/// The limits of a program that is to bring a server to its limits.
fn limits(plan: &Plan) -> Limits {
    let socket = SocketLimits {
        idle: None,
        half_closed: None,
        min_read_rate: None,
        min_write_rate: None,
        connect: Some(CONNECT_WITHIN),
        high_water: HIGH_WATER,
        low_water: HIGH_WATER / 4,
        queue: usize::MAX,
        message: if matches!(plan.answer, Answer::Echo) {
            usize::MAX
        } else {
            answer::ANSWER_MAX + (1 << 20)
        },
        read_when_full: true,
        ..SocketLimits::default()
    };
    // A closing connection keeps its slot for a moment, in which a churn has dialed the next one.
    let connections = Limits::connections_within(descriptors()).max(2 * plan.connections + 1);
    Limits {
        connections,
        memory: usize::MAX,
        events_per_turn: 4_096,
        carried_over_budget: 16 << 20,
        socket,
        ..Limits::default()
    }
}

fn run(plan: &Plan, view: &LiveView, interrupt: &Interrupt) -> Result<Results, String> {
    let mut reactor = Reactor::new(limits(plan)).map_err(|error| error.to_string())?;
    if plan.shape == Shape::FanOut {
        let shared = Rc::new(RefCell::new(Room::new(plan)));
        let own = reactor.add(FanOutService { shared: shared.clone() });
        Run { plan, reactor: &mut reactor, own: own.id(), driver: shared, interrupt, view }.run()
    } else {
        let shared = Rc::new(RefCell::new(Clients::new(plan)));
        let own = reactor.add(ClientService { shared: shared.clone() });
        Run { plan, reactor: &mut reactor, own: own.id(), driver: shared, interrupt, view }.run()
    }
}
