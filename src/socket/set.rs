//! What can be set for one connection: its clocks, and what the system does with it.

use std::time::Duration;

use super::Socket;
use crate::extra::Silent;
use crate::options::{KeepAlive, SocketOption};

/// Clocks.
impl Socket<'_> {
    /// Its idle limit from now on, in place of [`SocketLimits::idle`](crate::SocketLimits::idle); none switches it off.
    /// The span begins now.
    pub fn set_idle(&mut self, limit: Option<Duration>) {
        self.table.set_idle(self.slot, limit);
    }

    /// Calls [`idle`](crate::Service::idle) when no byte has arrived for so long, whatever is sent meanwhile. Off by
    /// default.
    pub fn set_read_idle(&mut self, limit: Option<Duration>) {
        self.table.set_read_idle(self.slot, limit);
    }

    /// Calls [`idle`](crate::Service::idle) when the kernel has taken no byte for so long, whatever arrives meanwhile:
    /// time to send a sign of life, for example. Off by default.
    pub fn set_write_idle(&mut self, limit: Option<Duration>) {
        self.table.set_write_idle(self.slot, limit);
    }

    /// In [`idle`](crate::Service::idle): which clock has run out.
    pub fn silent(&self) -> Silent {
        self.table.at(self.slot).clocks().map_or(Silent::Both, |clocks| clocks.silent)
    }

    /// Calls [`alarm`](crate::Service::alarm) once, after so long, whatever the connection does meanwhile. It has one
    /// alarm: an earlier one is replaced, and none takes it away.
    pub fn set_alarm(&mut self, after: Option<Duration>) {
        self.table.set_alarm(self.slot, after, None);
    }

    /// Calls [`alarm`](crate::Service::alarm) again and again, each time so long after the last.
    pub fn set_alarm_every(&mut self, span: Duration) {
        self.table.set_alarm(self.slot, Some(span), Some(span));
    }
}

/// What the system does with it.
///
/// These are carried out at the end of the turn, before anything is written; on a socket that is being dialed, before
/// it connects. One that the system refuses is logged and counted in
/// [`Stats::options_refused`](crate::Stats::options_refused). Unix-domain sockets have only buffers.
impl Socket<'_> {
    /// Whether small segments are sent at once (TCP_NODELAY). They are, unless the listener or the dial said otherwise.
    pub fn set_nodelay(&mut self, on: bool) {
        self.table.ask(self.slot, SocketOption::NoDelay(on));
    }

    /// Whether and how the kernel probes a silent peer (SO_KEEPALIVE).
    pub fn set_keep_alive(&mut self, probes: Option<KeepAlive>) {
        self.table.ask(self.slot, SocketOption::KeepAlive(probes));
    }

    /// How long sent bytes may stay unacknowledged before the kernel ends the connection (TCP_USER_TIMEOUT, Linux
    /// only). None is the system's way: some fifteen minutes of retries.
    pub fn set_user_timeout(&mut self, limit: Option<Duration>) {
        self.table.ask(self.slot, SocketOption::UserTimeout(limit));
    }

    /// The type-of-service byte of its packets (IP_TOS, IPV6_TCLASS): the upper six bits are the DSCP of RFC 2474.
    pub fn set_tos(&mut self, tos: u8) {
        self.table.ask(self.slot, SocketOption::Tos(tos));
    }

    /// The size of the kernel's send buffer, in bytes (SO_SNDBUF). Linux doubles it for its own book-keeping, and stops
    /// adjusting it.
    pub fn set_send_buffer(&mut self, bytes: usize) {
        self.table.ask(self.slot, SocketOption::SendBuffer(bytes));
    }

    /// The size of the kernel's receive buffer, in bytes (SO_RCVBUF). As [`set_send_buffer`](Socket::set_send_buffer).
    pub fn set_recv_buffer(&mut self, bytes: usize) {
        self.table.ask(self.slot, SocketOption::RecvBuffer(bytes));
    }
}
