//! `--slow`: callbacks that hold up the loop, named in the log.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidemill::observer::{Call, Callback, Observer, Step};

use super::metrics::ByCallback;
use super::{Names, call_name, on};

/// For each kind of callback: when a line was last logged, and how many were left out since.
#[derive(Default)]
struct Limit {
    next: Duration,
    left_out: u64,
}

/// Logs a callback that takes too long. Of each kind at most one line a second is logged: a service that is slow is
/// slow for every message, and writing a line takes time too.
pub struct SlowCallbacks {
    least: Duration,
    names: Names,
    clock: Instant,
    began: Duration,
    told: HashMap<Callback, Limit>,
    /// How often, for the metrics.
    counts: ByCallback,
}

impl SlowCallbacks {
    pub fn new(least: Duration, names: Names, counts: ByCallback) -> SlowCallbacks {
        let (clock, began) = (Instant::now(), Duration::ZERO);
        SlowCallbacks { least, names, clock, began, told: HashMap::new(), counts }
    }

    /// The line for a callback that has taken so long, if there is to be one.
    fn line(&mut self, call: &Call, took: Duration, now: Duration) -> Option<String> {
        if took < self.least {
            return None;
        }
        if let Some(service) = call.service.and_then(|service| self.names.get(&service)) {
            self.counts.get_or_create(&[("service", *service), ("callback", call.callback.word())]).inc();
        }
        let told = self.told.entry(call.callback).or_default();
        if now < told.next {
            told.left_out += 1;
            return None;
        }
        let more = match std::mem::take(&mut told.left_out) {
            0 => String::new(),
            n => format!(" (and {n} more like it)"),
        };
        told.next = now + Duration::from_secs(1);
        let name = call_name(call, &self.names);
        Some(format!("slow callback: {name}{} took {took:?}{more}", on(call.connection)))
    }
}

impl Observer for SlowCallbacks {
    fn observe(&mut self, step: &Step<'_>) {
        match step {
            Step::Call(_) => self.began = self.clock.elapsed(),
            Step::Return(call) => {
                let now = self.clock.elapsed();
                if let Some(line) = self.line(call, now - self.began, now) {
                    log::warn!("{line}");
                }
            }
            _ => {}
        }
    }
}

impl Drop for SlowCallbacks {
    fn drop(&mut self) {
        for (callback, told) in self.told.iter().filter(|(_, told)| told.left_out > 0) {
            log::warn!("slow callbacks: {} more of {} were not logged", told.left_out, callback.word());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tidemill::{Limits, Reactor, services::Echo};

    use super::*;

    /// A call as a loop reports it: that of `start`.
    fn a_call() -> Call {
        let seen = Rc::new(RefCell::new(None));
        let own = Rc::clone(&seen);
        let mut reactor = Reactor::new(Limits::default()).expect("descriptors");
        reactor.observe(move |step: &Step<'_>| {
            if let Step::Call(call) = step {
                *own.borrow_mut() = Some(*call);
            }
        });
        reactor.add(Echo::raw());
        seen.take().expect("`start` was called")
    }

    #[test]
    fn only_callbacks_from_the_threshold_on_are_named_and_one_in_a_second() {
        let (call, ms) = (a_call(), Duration::from_millis);
        let names = Names::from([(call.service.expect("a service"), "Echo")]);
        let mut slow = SlowCallbacks::new(ms(5), names, ByCallback::default());
        assert_eq!(slow.line(&call, ms(4), ms(0)), None);
        let line = slow.line(&call, ms(5), ms(10)).expect("it is slow");
        assert_eq!(line, "slow callback: Echo.start took 5ms");
        assert_eq!(slow.line(&call, ms(9), ms(20)), None, "within the same second");
        assert_eq!(slow.line(&call, ms(9), ms(1_009)), None);
        let line = slow.line(&call, ms(7), ms(1_010)).expect("a second later");
        assert_eq!(line, "slow callback: Echo.start took 7ms (and 2 more like it)");
    }
}
