//! A kernel timer (timerfd) for the next deadline, which is rarely reached.

use std::io;
use std::time::Duration;

use mio::Registry;

use crate::base::tick::Tick;

/// Ends a poll at a given time.
///
/// A poll with a timeout makes the kernel set a timer before it sleeps and cancel it afterwards, although nearly every
/// poll of a server ends by an event. That took 5 % of the time of a ping-pong over one connection. This timer stays
/// set over many polls, because activity does not move entries of the wheel. It is set again when there is an earlier
/// deadline, and after it fires. If its deadline was cancelled meanwhile, that costs one spurious wake-up.
#[derive(Debug)]
pub(super) struct DeadlineTimer {
    timer: TimerFd,
    /// When it fires.
    armed_for: Option<Tick>,
}

impl DeadlineTimer {
    /// `None` if the system has no timerfd, or no descriptor is left; polls have timeouts then.
    pub(super) fn new(registry: &Registry, token: mio::Token) -> Option<DeadlineTimer> {
        match TimerFd::new(registry, token) {
            Ok(timer) => Some(DeadlineTimer { timer, armed_for: None }),
            Err(error) => {
                log::debug!("no timer descriptor, using poll timeouts: {error}");
                None
            }
        }
    }

    /// Makes the timer fire at `at`, or earlier.
    pub(super) fn arm_by(&mut self, at: Tick, now: impl FnOnce() -> Duration) -> io::Result<()> {
        if self.armed_for.is_none_or(|set| at < set) {
            // At least 1 ns: a span of zero would disarm the timer (timerfd_settime(2)).
            let span = at.since_start().saturating_sub(now()).max(Duration::from_nanos(1));
            self.timer.fire_in(span)?;
            self.armed_for = Some(at);
        }
        Ok(())
    }

    /// The timer has fired; it is not armed any more.
    pub(super) fn on_fired(&mut self) {
        self.armed_for = None;
    }
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct TimerFd(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl TimerFd {
    fn new(registry: &Registry, token: mio::Token) -> io::Result<TimerFd> {
        use std::os::fd::AsRawFd;

        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let interest = mio::Interest::READABLE;
        // Edge-triggered: each expiry is an event, so the descriptor never has to be read.
        registry.register(&mut mio::unix::SourceFd(&timer.as_raw_fd()), token, interest)?;
        Ok(TimerFd(timer))
    }

    fn fire_in(&self, span: Duration) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        let once = Timespec::default();
        // At most a century, so that the kernel's arithmetic in nanoseconds does not overflow.
        let span = span.min(Duration::from_secs(100 * 365 * 86_400));
        let it_value = Timespec { tv_sec: span.as_secs() as i64, tv_nsec: i64::from(span.subsec_nanos()) };
        let setting = Itimerspec { it_interval: once, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &setting)?;
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
enum TimerFd {}

#[cfg(not(target_os = "linux"))]
impl TimerFd {
    fn new(_: &Registry, _: mio::Token) -> io::Result<TimerFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn fire_in(&self, _: Duration) -> io::Result<()> {
        match *self {}
    }
}
