//! A reactor inside another event loop: its descriptor, and what makes that readable.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::Reactor;

impl Reactor {
    /// Makes the [descriptor](Reactor::as_fd) tell everything: from now on it is readable whenever a turn is due, also
    /// for a deadline and for work that is left over, and after each use of the reactor from outside (`sockets`,
    /// `with`, `add`, `dial`). Then another event loop needs the descriptor and nothing else. Off by default, because
    /// it costs a system call in each turn that leaves work over, and one for each use from outside.
    ///
    /// ```
    /// # #[cfg(target_os = "linux")] {
    /// use std::time::Duration;
    /// use rustix::event::{PollFd, PollFlags, poll};
    /// use tidemill::{Input, Limits, Reactor, Service, ServiceId, Socket, Sockets, TimerId};
    ///
    /// struct Clock;
    ///
    /// impl Service for Clock {
    ///     type Session = ();
    ///     fn start(&mut self, own: ServiceId, sockets: &mut Sockets<'_>) {
    ///         sockets.set_timer(own, Duration::from_millis(30), None).expect("a timer");
    ///     }
    ///     fn timer(&mut self, _: TimerId, sockets: &mut Sockets<'_>) { sockets.stop() }
    ///     fn open(&mut self, _: &mut Socket<'_>) {}
    ///     fn data(&mut self, _: &mut (), _: &mut Socket<'_>, _: &mut Input<'_>) {}
    /// }
    ///
    /// let mut reactor = Reactor::new(Limits::default())?;
    /// reactor.set_embedded(true)?;
    /// reactor.add(Clock);
    /// while !reactor.is_shutting_down() {
    ///     // No timeout: the descriptor tells of the timer, too.
    ///     poll(&mut [PollFd::new(&reactor, PollFlags::IN)], None)?;
    ///     reactor.turn(Some(Duration::ZERO))?;
    /// }
    /// # }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unsupported`](io::ErrorKind::Unsupported) where the reactor has no timer descriptor: on other systems than
    /// Linux, and when no descriptor was left for one. Ask [`next_deadline`](Reactor::next_deadline) there.
    pub fn set_embedded(&mut self, on: bool) -> io::Result<()> {
        if on && !self.event_loop.system.has_timer() {
            let why = "there is no timer descriptor here (Linux has timerfd): ask Reactor::next_deadline";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        self.is_embedded = on;
        self.announce()
    }

    /// While embedded: makes the descriptor readable for the next thing that no event announces.
    pub(super) fn announce(&mut self) -> io::Result<()> {
        if !self.is_embedded {
            return Ok(());
        }
        match self.event_loop.next_deadline() {
            Some(at) => self.event_loop.system.announce(at),
            None => Ok(()),
        }
    }

    /// While embedded: has the reactor turned once more, because it is used from outside and may have work after that.
    pub(super) fn announce_use(&mut self) {
        if self.is_embedded {
            if let Err(error) = self.event_loop.system.announce(Duration::ZERO) {
                log::error!("the loop cannot be woken: {error}");
            }
        }
    }
}

impl AsFd for Reactor {
    /// The descriptor of the poll (epoll, kqueue): readable when there are events for [`turn`](Reactor::turn).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_loop.system.as_fd()
    }
}

impl AsRawFd for Reactor {
    /// As [`as_fd`](Reactor::as_fd), for event loops that want a number. It is valid for as long as the reactor.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
