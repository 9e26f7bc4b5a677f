//! What the kernel knows about TCP connections: the round-trip times and retransmissions of a sample.

use std::os::fd::BorrowedFd;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tidemill::{Origin, Sockets};

use super::Names;

/// Connections that one scrape looks at, each by one system call of about a microsecond.
const SAMPLE: usize = 64;

type ByOrigin = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// The sample of all scrapes so far. A clone adds to the same, of the connections of another loop.
#[derive(Clone)]
pub struct Sample {
    rtt: ByOrigin,
    retransmits: ByOrigin,
    /// How many connections were looked at: the next scrape goes on behind them.
    seen: usize,
}

impl Sample {
    pub fn new(registry: &mut Registry) -> Sample {
        // From 50 µs to 3.3 s: the loopback has 20 to 100 µs, another continent 300 ms.
        let rtt: ByOrigin =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(50e-6, 4.0, 9)));
        let retransmits: ByOrigin =
            Family::new_with_constructor(|| Histogram::new([0.0, 1.0, 4.0, 16.0, 64.0, 256.0]));
        let help = "Smoothed round-trip times of TCP connections: of 64 at each scrape, in turn";
        registry.register("tcp_rtt_seconds", help, rtt.clone());
        let help = "Segments that a TCP connection has sent again so far: of 64 at each scrape, in turn";
        registry.register("tcp_retransmits", help, retransmits.clone());
        Sample { rtt, retransmits, seen: 0 }
    }

    /// Adds the next connections, those that answer scrapes left out.
    pub fn take(&mut self, sockets: &mut Sockets<'_>, names: &Names) {
        let ids = sockets.ids();
        for index in 0..ids.len().min(SAMPLE) {
            let Some(socket) = sockets.get(ids[(self.seen + index) % ids.len()]) else { continue };
            if !names.contains_key(&socket.service()) || socket.is_connecting() {
                continue;
            }
            let Some((rtt, retransmits)) = socket.descriptor().and_then(tcp_info) else { continue };
            let dialed = matches!(socket.origin(), Origin::Dialed { .. });
            let origin = [("origin", if dialed { "dialed" } else { "accepted" })];
            self.rtt.get_or_create(&origin).observe(rtt);
            self.retransmits.get_or_create(&origin).observe(f64::from(retransmits));
        }
        self.seen = self.seen.wrapping_add(SAMPLE);
    }
}

/// The smoothed round-trip time in seconds and the number of segments sent again; `None` for what is no TCP socket.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn tcp_info(socket: BorrowedFd<'_>) -> Option<(f64, u32)> {
    use nix::sys::socket::sockopt::GetStruct;

    // nix has no type for this option, but it exports the macro by which it makes its own.
    #[derive(Clone, Copy)]
    struct TcpInfo;
    nix::getsockopt_impl!(
        TcpInfo,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        libc::tcp_info,
        GetStruct<libc::tcp_info>
    );
    let info = nix::sys::socket::getsockopt(&socket, TcpInfo).ok()?;
    Some((f64::from(info.tcpi_rtt) / 1e6, info.tcpi_total_retrans))
}

/// Elsewhere the structure is another one, or longer than that of an older kernel.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tcp_info(_: BorrowedFd<'_>) -> Option<(f64, u32)> {
    None
}
