//! Timeouts, alarms and socket options of a connection, as a callback sets them.

use std::time::Duration;

use crate::config::dial::{KeepAlive, SocketOption};
use crate::connection::socket::Socket;

/// Timeouts and alarms of this connection. They are measured in ticks of 10 ms: late by up to one tick, never early.
impl Socket<'_> {
    /// Sets the idle timeout, in place of [`SocketLimits::idle`](crate::SocketLimits::idle); `None` switches it off. It
    /// starts now.
    pub fn set_idle(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_idle(limit, cx);
    }

    /// Sets a timeout after which [`idle`](crate::Service::idle) is called if no byte has arrived, whatever is sent
    /// meanwhile. Off by default; `None` switches it off.
    pub fn set_read_idle(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_read_idle(limit, cx);
    }

    /// Sets a timeout after which [`idle`](crate::Service::idle) is called if the kernel has accepted no byte, whatever
    /// arrives meanwhile; for a keep-alive message, for example. Off by default; `None` switches it off.
    pub fn set_write_idle(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_write_idle(limit, cx);
    }

    /// Sets the alarm with the tag 0, as [`set_alarm_for`](Socket::set_alarm_for) does:
    /// [`alarm`](crate::Service::alarm) is called once, after this time, whatever the connection does meanwhile. An
    /// earlier alarm 0 is replaced, and `None` removes it. A time of zero is not "now" but the next tick.
    pub fn set_alarm(&mut self, after: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_alarm(0, after, None, cx);
    }

    /// Makes the alarm with the tag 0 a repeating one: [`alarm`](crate::Service::alarm) is called after each `span`,
    /// counted from the last call.
    pub fn set_alarm_every(&mut self, span: Duration) {
        let (connection, cx) = self.parts();
        connection.set_alarm(0, Some(span), Some(span), cx);
    }
}

/// Socket options.
///
/// They are set later in this turn, before anything is written; on a connection that is being dialed, before it
/// connects. An option that the system refuses is logged and counted in
/// [`Stats::options_refused`](crate::Stats::options_refused), and the connection goes on. Unix-domain sockets have only
/// the two buffer sizes.
impl Socket<'_> {
    /// Whether small segments are sent at once (TCP_NODELAY). On by default, unless the options of the listener or the
    /// dial switch it off.
    pub fn set_nodelay(&mut self, on: bool) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::NoDelay(on), cx);
    }

    /// Whether and how often the kernel probes a silent peer (SO_KEEPALIVE); `None`: not at all.
    pub fn set_keep_alive(&mut self, probes: Option<KeepAlive>) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::KeepAlive(probes), cx);
    }

    /// How long sent bytes may stay unacknowledged before the kernel ends the connection (TCP_USER_TIMEOUT, Linux
    /// only). `None` is the system's default: about 15 minutes of retries.
    pub fn set_user_timeout(&mut self, limit: Option<Duration>) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::UserTimeout(limit), cx);
    }

    /// The type-of-service byte of its packets (IP_TOS, IPV6_TCLASS): the upper six bits are the DSCP of RFC 2474.
    pub fn set_tos(&mut self, tos: u8) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::Tos(tos), cx);
    }

    /// The size of the kernel's send buffer, in bytes (SO_SNDBUF). Linux doubles the value for its own overhead, and no
    /// longer adjusts the size automatically.
    pub fn set_send_buffer(&mut self, bytes: usize) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::SendBuffer(bytes), cx);
    }

    /// The size of the kernel's receive buffer, in bytes (SO_RCVBUF). As [`set_send_buffer`](Socket::set_send_buffer).
    pub fn set_recv_buffer(&mut self, bytes: usize) {
        let (connection, cx) = self.parts();
        connection.set_option(SocketOption::RecvBuffer(bytes), cx);
    }
}
