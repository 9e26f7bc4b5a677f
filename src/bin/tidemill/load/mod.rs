//! The load generator: how fast a server is, measured so that the answer is about the server.
//!
//! Every byte of an answer is checked. With a fixed rate a message's latency counts from when it was to be sent, so a
//! server that stalls is charged for all who would have come meanwhile (no coordinated omission). The generator never
//! sleeps, so that its own waking up is no part of the figures, and it measures first how fast it is itself.

mod clients;
mod fan_out;
mod plan;
mod plot;
mod report;

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tidemill::services::{Chat, Echo};
use tidemill::{Address, Limits, Reactor, SocketLimits};

use crate::args::values::Shape;
use crate::args::{CommandError, LoadArgs as Options};
use crate::serve::descriptors;
use clients::{Clients, Load};
use fan_out::{FanOut, Room};
use plan::Plan;
use report::{Report, Results};

/// How long all may take to be connected.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// When nothing has been heard for so long, everybody has been told of everybody who came in.
const QUIET: Duration = Duration::from_millis(300);

pub fn load(options: &Options) -> Result<(), CommandError> {
    let filter = options.tls.client().map_err(CommandError::Run)?;
    let plan = Plan { filter, ..options.plan().map_err(CommandError::Usage)? };
    let ceiling = match plan.shape {
        Shape::Idle => None,
        // A server of our own would need a certificate that the options trust.
        _ if options.no_ceiling || plan.filter.is_some() => None,
        _ => Some(own_ceiling(&plan).map_err(CommandError::Run)?),
    };
    let bar = progress(&plan);
    let results = run(&plan, &bar).map_err(CommandError::Run)?;
    bar.finish_and_clear();
    let report = Report { plan: &plan, results: &results, ceiling };
    let text = if options.json { format!("{:#}\n", report.json()) } else { report.text() };
    // A closed pipe is the reader's decision.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if let Some(path) = &options.plot {
        let title = format!(
            "{} · {:?} · {} connections · {} bytes",
            plan.to, plan.shape, plan.connections, plan.size
        );
        plot::draw(path, &title, &results.latency).map_err(CommandError::Run)?;
    }
    if results.failed > 0 {
        return Err(CommandError::Run(format!(
            "{} connections or answers failed: {}",
            results.failed,
            results.failures.join("; ")
        )));
    }
    Ok(())
}

fn progress(plan: &Plan) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new((plan.warm_up + plan.duration).as_millis() as u64);
    let style = ProgressStyle::with_template("{msg:>10} [{bar:40}] {percent}%");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What this program could reach: measured against a server in another thread of its own, less the time in which it
/// had to wait for it.
fn own_ceiling(plan: &Plan) -> Result<f64, String> {
    let (tell, told) = mpsc::channel();
    let fans_out = plan.shape == Shape::FanOut;
    let serves = move || -> std::io::Result<()> {
        let mut reactor = Reactor::new(Limits::for_descriptors(descriptors()))?;
        let patient = SocketLimits { idle: None, queue: 16 << 20, ..SocketLimits::default() };
        let service = match fans_out {
            true => reactor.add_with(Chat::new(), patient),
            false => reactor.add_with(Echo::raw(), patient),
        };
        let listener = reactor.listen("127.0.0.1:0", service)?;
        // Whoever asked has gone only if the process is ending.
        let _ = tell.send((reactor.local_addr(listener), reactor.handle()));
        reactor.run()
    };
    let server =
        thread::Builder::new().name("ceiling".into()).spawn(serves).map_err(|error| error.to_string())?;
    let (address, handle) =
        told.recv().map_err(|_| "cannot measure the ceiling: no server of our own".to_string())?;
    let own = Plan {
        to: address.unwrap_or(Address::Unnamed),
        connections: plan.connections.min(1_000),
        rate: None,
        warm_up: Duration::from_millis(200),
        duration: Duration::from_secs(1).min(plan.duration),
        ..plan.clone()
    };
    let results = run(&own, &ProgressBar::hidden())?;
    // Its loop may have ended; then it needs no asking.
    let _ = handle.post(|sockets| sockets.stop());
    let _ = server.join();
    match results.failures.first() {
        Some(why) => Err(format!("cannot measure the ceiling: {why}")),
        // What it would have reached if it had never had to wait for that server.
        None => Ok(results.per_second() / (1.0 - results.idle).max(0.01)),
    }
}

/// The limits of a program that is to bring a server to its limits.
fn limitless(plan: &Plan) -> Limits {
    let socket = SocketLimits {
        idle: None,
        half_closed: None,
        min_read_rate: None,
        min_write_rate: None,
        connect: Some(CONNECT_WITHIN),
        queue: usize::MAX,
        message: usize::MAX,
        read_when_full: true,
        ..SocketLimits::default()
    };
    let connections = Limits::connections_within(descriptors()).max(plan.connections + 1);
    Limits {
        connections,
        memory: usize::MAX,
        events_per_turn: 4_096,
        carried_over_budget: 16 << 20,
        socket,
        ..Limits::default()
    }
}

fn run(plan: &Plan, bar: &ProgressBar) -> Result<Results, String> {
    let mut reactor = Reactor::new(limitless(plan)).map_err(|error| error.to_string())?;
    if plan.shape == Shape::FanOut {
        run_fan_out(plan, &mut reactor, bar)
    } else {
        run_clients(plan, &mut reactor, bar)
    }
}

fn run_clients(plan: &Plan, reactor: &mut Reactor, bar: &ProgressBar) -> Result<Results, String> {
    let failed = |error: std::io::Error| error.to_string();
    let shared = Rc::new(RefCell::new(Clients::new(plan)?));
    let own = reactor.add(Load { shared: shared.clone(), own: None });
    let deadline = Instant::now() + CONNECT_WITHIN;
    bar.set_message("connecting");
    // A churn begins with its first connection; the others when all are there.
    while shared.borrow().up < plan.connections
        && (plan.shape != Shape::Churn || shared.borrow().wants_more())
    {
        while shared.borrow().wants_more() {
            clients::dial_next(&shared, reactor, own).map_err(failed)?;
        }
        reactor.turn(Some(Duration::from_millis(1))).map_err(failed)?;
        let clients = shared.borrow();
        if clients.results.failed > 0 || Instant::now() > deadline {
            return Err(not_all_up(plan, &clients.results, clients.up));
        }
    }
    if plan.shape == Shape::Echo && plan.rate.is_none() {
        clients::begin(&shared, &mut reactor.sockets());
    }
    let (begun, mut serial) = (reactor.sockets().now(), 0_u64);
    let mut turns = Turns::beginning(begun);
    let counts_from = begun + plan.warm_up;
    shared.borrow_mut().counts_from = Some(counts_from);
    let end = counts_from + plan.duration;
    while turns.last < end && shared.borrow().results.failed == 0 {
        if let (Some(rate), Shape::Echo) = (plan.rate, plan.shape) {
            let mut sockets = reactor.sockets();
            while let Some(due) = due(begun, serial, rate).filter(|due| *due <= turns.last) {
                clients::send_due(&shared, &mut sockets, serial, due);
                serial += 1;
            }
        }
        turns.turn(reactor, plan.shape != Shape::Idle, bar).map_err(failed)?;
    }
    let mut clients = shared.borrow_mut();
    clients.over = true;
    let connections = clients.up;
    let mut results = std::mem::replace(&mut clients.results, Results::new());
    (results.span, results.connections, results.idle) = (turns.since(counts_from), connections, turns.idle());
    Ok(results)
}

/// Why it cannot begin.
fn not_all_up(plan: &Plan, results: &Results, up: usize) -> String {
    let why = results.failures.first().cloned();
    let why = why.unwrap_or_else(|| format!("only {up} were connected in time"));
    format!("cannot load {}: {why}", plan.to)
}

/// When the message with this number is to be sent.
fn due(begun: Instant, serial: u64, rate: u32) -> Option<Instant> {
    begun.checked_add(Duration::from_secs_f64(serial as f64 / f64::from(rate)))
}

fn run_fan_out(plan: &Plan, reactor: &mut Reactor, bar: &ProgressBar) -> Result<Results, String> {
    let failed = |error: std::io::Error| error.to_string();
    let shared = Rc::new(RefCell::new(Room::new(plan)));
    let own = reactor.add(FanOut { shared: shared.clone() });
    let deadline = Instant::now() + CONNECT_WITHIN;
    bar.set_message("connecting");
    let (mut dialed, all) = (0, plan.connections + 1);
    loop {
        let mut room = shared.borrow_mut();
        let quiet = room.heard_at.is_some_and(|heard| heard.elapsed() > QUIET);
        if room.up == all && quiet {
            break;
        }
        if room.results.failed > 0 || Instant::now() > deadline {
            return Err(not_all_up(plan, &room.results, room.up));
        }
        while dialed < all && room.connecting < 128 {
            let options = plan.dial_options(dialed);
            let id = reactor.dial_with(&plan.to, own, options).map_err(failed)?;
            room.sender.get_or_insert(id);
            room.connecting += 1;
            dialed += 1;
        }
        drop(room);
        reactor.turn(Some(Duration::from_millis(1))).map_err(failed)?;
    }
    fan_out::begin(&shared, &mut reactor.sockets());
    let begun = reactor.sockets().now();
    let counts_from = begun + plan.warm_up;
    shared.borrow_mut().counts_from = Some(counts_from);
    let mut turns = Turns::beginning(begun);
    while turns.last < counts_from + plan.duration && shared.borrow().results.failed == 0 {
        turns.turn(reactor, true, bar).map_err(failed)?;
    }
    let mut room = shared.borrow_mut();
    room.over = true;
    let mut results = std::mem::replace(&mut room.results, Results::new());
    (results.span, results.connections, results.idle) = (turns.since(counts_from), room.up, turns.idle());
    Ok(results)
}

/// Turns of the generator's loop, and how much of their time went by with nothing to do.
struct Turns {
    begun: Instant,
    last: Instant,
    idle: Duration,
    count: u64,
}

impl Turns {
    fn beginning(now: Instant) -> Turns {
        Turns { begun: now, last: now, idle: Duration::ZERO, count: 0 }
    }

    fn turn(&mut self, reactor: &mut Reactor, spins: bool, bar: &ProgressBar) -> std::io::Result<()> {
        let wait = if spins { Duration::ZERO } else { Duration::from_millis(10) };
        let turn = reactor.turn(Some(wait))?;
        let now = reactor.sockets().now();
        if turn.events == 0 && !turn.carried_over {
            self.idle += now - self.last;
        }
        self.last = now;
        self.count += 1;
        if self.count % 4_096 == 0 || !spins {
            bar.set_message("measuring");
            bar.set_position((now - self.begun).as_millis() as u64);
        }
        Ok(())
    }

    fn since(&self, moment: Instant) -> Duration {
        self.last.saturating_duration_since(moment)
    }

    /// The share of the time.
    fn idle(&self) -> f64 {
        self.idle.as_secs_f64() / (self.last - self.begun).as_secs_f64().max(f64::MIN_POSITIVE)
    }
}
