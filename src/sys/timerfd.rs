//! A timer of the kernel's own, for deadlines that are rarely reached.

use std::io;
use std::time::Duration;

use mio::Registry;

/// Ends a sleep at a given moment.
///
/// A sleep with a timeout sets a timer before it and cancels it after it, and nearly every sleep of a server ends with
/// an event long before: that was a twentieth of what one connection's ping-pong costs. This timer stays set over many
/// sleeps, because activity does not move the wheel's entries. It is set again when something is due earlier than it
/// says, and when it has fired: which it does in vain when what it was set for is gone, once.
#[derive(Debug)]
pub(super) struct DeadlineTimer {
    timer: TimerFd,
    /// When it fires, measured from the reactor's start.
    armed_for: Option<Duration>,
}

impl DeadlineTimer {
    /// None where there is no such timer, or no descriptor for it.
    pub(super) fn new(registry: &Registry, token: mio::Token) -> Option<DeadlineTimer> {
        match TimerFd::new(registry, token) {
            Ok(timer) => Some(DeadlineTimer { timer, armed_for: None }),
            Err(error) => {
                log::debug!("no timer descriptor, using poll timeouts: {error}");
                None
            }
        }
    }

    /// Has it fire at this moment or before.
    pub(super) fn arm_by(&mut self, at: Duration, now: impl FnOnce() -> Duration) -> io::Result<()> {
        if self.armed_for.is_none_or(|set| at < set) {
            // Nothing at all would switch it off.
            let span = at.saturating_sub(now()).max(Duration::from_nanos(1));
            self.timer.fire_in(span)?;
            self.armed_for = Some(at);
        }
        Ok(())
    }

    /// It has fired.
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
        // Edge-triggered: each time it fires is an event, read or not.
        registry.register(&mut mio::unix::SourceFd(&timer.as_raw_fd()), token, interest)?;
        Ok(TimerFd(timer))
    }

    fn fire_in(&self, span: Duration) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        let once = Timespec::default();
        // A century is as good as for ever, and far from where the kernel's own arithmetic ends.
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
