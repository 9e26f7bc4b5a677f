//! One run: connect, warm up, measure, wait for what is in flight, and charge what is left.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use signal_hook::consts::{SIGINT, SIGTERM};
use tidemill::{Reactor, ServiceId, Sockets};

use super::live::LiveView;
use super::plan::Plan;
use super::results::{Kind, OwnLoad, Results};
use crate::args::values::Shape;

/// The longest time that connecting may take.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// A chat announces each new member to all others. The fan-out begins when nothing was received for this long.
const QUIET: Duration = Duration::from_millis(300);
/// How long answers are waited for after the end. An answer that comes within it has its full latency recorded;
/// without the wait each message in flight would be recorded too short.
const GRACE: Duration = Duration::from_secs(1);
/// With --requests and without --duration, the run ends when no answer came for this long.
const STALLED: Duration = Duration::from_secs(10);
/// A turn without work that took longer than this was not spent polling, which takes a microsecond: the thread was
/// descheduled, and the time is not idle.
const PAUSE: Duration = Duration::from_micros(100);

/// The connections of a run, as its loop sees them.
pub trait Driver {
    /// Begins to send; messages scheduled from `from` on are recorded.
    fn begin(&mut self, sockets: &mut Sockets<'_>, now: Instant, from: Instant);
    /// Dials and sends what is due.
    fn step(&mut self, sockets: &mut Sockets<'_>, own: ServiceId, now: Instant);
    fn progress(&self) -> Progress;
    /// Sends nothing more.
    fn end(&mut self);
    /// Records what has no answer with its age.
    fn charge_unanswered(&mut self, now: Instant);
    fn results<R>(&mut self, look: impl FnOnce(&mut Results) -> R) -> R;
}

pub struct Progress {
    pub up: usize,
    pub ever_up: bool,
    /// Each place was dialed, and has succeeded or failed once.
    pub settled: bool,
    /// Of a fan-out: when anything was last received.
    pub quiet_since: Option<Instant>,
    /// All of --requests are answered or lost.
    pub complete: bool,
    /// Messages that are due and have no answer.
    pub pending: u64,
}

/// Ctrl-C and SIGTERM end the run; a second one ends the process.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    pub fn install() -> std::io::Result<Interrupt> {
        let (signal, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        for number in [SIGINT, SIGTERM] {
            // The order matters: the first signal finds `again` unset and sets it.
            signal_hook::flag::register_conditional_shutdown(number, 128 + number, again.clone())?;
            signal_hook::flag::register(number, again.clone())?;
            signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
        }
        Ok(Interrupt(signal))
    }

    /// The signal that came.
    pub fn signal(&self) -> Option<i32> {
        let signal = self.0.load(Ordering::Relaxed);
        (signal > 0).then_some(signal as i32)
    }
}

/// A run in progress.
pub struct Run<'a, D> {
    pub plan: &'a Plan,
    pub reactor: &'a mut Reactor,
    pub own: ServiceId,
    pub driver: D,
    pub interrupt: &'a Interrupt,
    pub view: &'a LiveView,
}

impl<D: Driver> Run<'_, D> {
    /// Does all of it. An error is one of the generator's own loop; a server that cannot be reached is a result.
    pub fn run(mut self) -> Result<Results, String> {
        self.connect()?;
        let begun = self.reactor.sockets().now();
        let from = begun + self.plan.warm_up;
        let mut turns = Turns::beginning(begun);
        let end = if self.is_unreachable() {
            from
        } else {
            self.driver.begin(&mut self.reactor.sockets(), begun, from);
            self.measure(&mut turns, from)?
        };
        // A generator without a processor at the end has not sent all that was due before it: that is sent and counted.
        if self.plan.rate.is_some() && self.interrupt.signal().is_none() {
            self.driver.step(&mut self.reactor.sockets(), self.own, end - Duration::from_nanos(1));
        }
        self.driver.end();
        let unreachable = self.is_unreachable();
        if self.interrupt.signal().is_none() && !unreachable {
            self.wait_for_answers(&mut turns, end)?;
        }
        self.driver.charge_unanswered(turns.last);
        let (signal, up) = (self.interrupt.signal(), self.driver.progress().up);
        Ok(self.driver.results(|results| {
            results.unreachable = unreachable;
            results.sample(from, end);
            results.span = end.saturating_duration_since(from);
            results.cut_short = signal;
            results.connections = up;
            results.own = turns.own_load();
            std::mem::replace(results, Results::new())
        }))
    }

    /// Establishes the connections before anything is measured, where the shape wants them.
    fn connect(&mut self) -> Result<(), String> {
        let open_loop_idle = self.plan.shape == Shape::Idle && self.plan.rate.is_some();
        if self.plan.shape == Shape::Churn || open_loop_idle {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let now = self.reactor.sockets().now();
            self.driver.step(&mut self.reactor.sockets(), self.own, now);
            self.reactor.turn(Some(Duration::from_millis(1))).map_err(|error| error.to_string())?;
            let progress = self.driver.progress();
            let quiet = progress.quiet_since.is_none_or(|since| since.elapsed() > QUIET);
            if (progress.settled && quiet) || self.interrupt.signal().is_some() {
                break;
            }
            if begun.elapsed() > CONNECT_WITHIN {
                if !progress.ever_up {
                    let why = format!("no connection within {CONNECT_WITHIN:?}");
                    self.driver.results(|results| results.failures.add(Kind::TimedOut, why));
                }
                break;
            }
            self.view.connecting(progress.up, self.plan.connections);
        }
        Ok(())
    }

    /// Whether no connection was ever established, and not for want of time.
    fn is_unreachable(&mut self) -> bool {
        let failed = self.driver.results(|results| results.failures.total) > 0;
        failed && !self.driver.progress().ever_up && self.interrupt.signal().is_none()
    }

    /// Gives the end of the measured span.
    fn measure(&mut self, turns: &mut Turns, from: Instant) -> Result<Instant, String> {
        let end = self.plan.duration.map(|duration| from + duration);
        let interval = match self.plan.duration {
            Some(duration) if duration <= Duration::from_secs(10) => Duration::from_millis(100),
            Some(duration) if duration > Duration::from_secs(600) => Duration::from_secs(10),
            _ => Duration::from_secs(1),
        };
        let mut next_sample = from + interval;
        let mut answered = (0, turns.last);
        loop {
            self.driver.step(&mut self.reactor.sockets(), self.own, turns.last);
            turns.turn(self.reactor, self.plan.shape != Shape::Idle)?;
            let (now, progress) = (turns.last, self.driver.progress());
            if end.is_some_and(|end| now >= end) || self.interrupt.signal().is_some() || progress.complete {
                return Ok(end.map_or(now, |end| end.min(now)));
            }
            if now >= next_sample {
                self.driver.results(|results| results.sample(from, now));
                next_sample += interval;
            }
            if turns.count % 64 != 0 {
                continue;
            }
            if !progress.ever_up
                && self.driver.results(|results| results.failures.total) >= self.enough_failures()
            {
                return Ok(now);
            }
            let messages = self.driver.results(|results| results.latency.len());
            if messages != answered.0 || self.plan.requests.is_none() || progress.pending == 0 {
                answered = (messages, now);
            }
            if self.plan.duration.is_none() && now - answered.1 > STALLED {
                return Ok(now);
            }
            self.show(now, from);
        }
    }

    /// Failures after which a server that was never reached is given up.
    fn enough_failures(&self) -> u64 {
        self.plan.connections.min(10) as u64
    }

    /// Waits for what is in flight.
    fn wait_for_answers(&mut self, turns: &mut Turns, end: Instant) -> Result<(), String> {
        let spins = self.plan.shape != Shape::Idle;
        while self.driver.progress().pending > 0
            && turns.last < end + GRACE
            && self.interrupt.signal().is_none()
        {
            turns.turn(self.reactor, spins)?;
        }
        Ok(())
    }

    fn show(&mut self, now: Instant, from: Instant) {
        if self.view.is_due(now) {
            let (plan, view) = (self.plan, self.view);
            self.driver.results(|results| view.show(plan, results, now, from));
        }
    }
}

/// Turns of the generator's loop, and how their time was spent.
struct Turns {
    begun: Instant,
    last: Instant,
    idle: Duration,
    longest_pause: Duration,
    count: u64,
    spins: bool,
    processor: Cell<Duration>,
}

impl Turns {
    fn beginning(now: Instant) -> Turns {
        Turns {
            begun: now,
            last: now,
            idle: Duration::ZERO,
            longest_pause: Duration::ZERO,
            count: 0,
            spins: true,
            processor: Cell::new(processor_time()),
        }
    }

    fn turn(&mut self, reactor: &mut Reactor, spins: bool) -> Result<(), String> {
        // The generator does not sleep: its own wake-up latency would be part of each figure.
        let wait = if spins { Duration::ZERO } else { Duration::from_millis(10) };
        let turn = reactor.turn(Some(wait)).map_err(|error| error.to_string())?;
        let now = reactor.sockets().now();
        let span = now - self.last;
        if turn.events == 0 && !reactor.has_work() {
            if span < PAUSE || !spins {
                self.idle += span;
            } else {
                self.longest_pause = self.longest_pause.max(span);
            }
        }
        self.spins = spins;
        self.last = now;
        self.count += 1;
        Ok(())
    }

    fn own_load(&self) -> OwnLoad {
        let wall = (self.last - self.begun).as_secs_f64().max(f64::MIN_POSITIVE);
        let used = processor_time().saturating_sub(self.processor.get()).as_secs_f64();
        // A thread that never sleeps has either a processor, or none although it could use one.
        let descheduled = if self.spins { (1.0 - used / wall).clamp(0.0, 1.0) } else { 0.0 };
        OwnLoad { idle: self.idle.as_secs_f64() / wall, descheduled, longest_pause: self.longest_pause }
    }
}

/// The processor time that this thread has used.
fn processor_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}
