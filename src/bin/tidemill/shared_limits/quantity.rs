//! What processes share: a rate, or a number of connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidemill::{SharedRate, Sockets};

/// Gives a share to each loop.
pub type Apply = Box<dyn Fn(usize, &mut Sockets<'_>) + Send>;
/// Counts the connections on all loops.
pub type Count = Box<dyn Fn(&Sockets<'_>) -> usize + Send>;

/// What a process wants is a multiple of this part of the total, so that its share does not change with each request.
const STEPS: u64 = 32;

/// Something of which a process has a share.
pub trait Quantity {
    fn unit(&self) -> &'static str;

    /// What the process holds with this share: more, if it had a larger one before and cannot give it back yet.
    fn held(&self, share: usize, sockets: &Sockets<'_>) -> usize;

    /// What it wants by what it has used since the last time, and whether that was anything.
    fn measure(&mut self, share: usize, total: u64, sockets: &Sockets<'_>) -> (u64, bool);

    fn set(&mut self, share: usize, sockets: &mut Sockets<'_>);
}

fn whole_steps(amount: u64, total: u64) -> u64 {
    let step = (total / STEPS).max(1);
    amount.div_ceil(step) * step
}

/// Bytes a second.
pub struct Rate {
    pub rate: SharedRate,
    pub apply: Apply,
    /// The bytes that were lent by the last request, and when that was.
    pub before: (u64, Duration),
}

impl Quantity for Rate {
    fn unit(&self) -> &'static str {
        "bytes/s"
    }

    fn held(&self, share: usize, _: &Sockets<'_>) -> usize {
        share
    }

    fn measure(&mut self, share: usize, total: u64, sockets: &Sockets<'_>) -> (u64, bool) {
        let now = sockets.elapsed();
        let (lent, since) = std::mem::replace(&mut self.before, (self.rate.lent(), now));
        let bytes = self.before.0.saturating_sub(lent);
        let used = u128::from(bytes) * 1_000_000 / now.saturating_sub(since).as_micros().max(1);
        let used = u64::try_from(used).unwrap_or(u64::MAX).min(total);
        let is_short = bytes > 0 && used * 4 >= share as u64 * 3;
        (if is_short { total } else { whole_steps(used * 3 / 2, total) }, bytes > 0)
    }

    fn set(&mut self, share: usize, sockets: &mut Sockets<'_>) {
        (self.apply)(share.max(1), sockets);
    }
}

/// Connections that a process may have: by its own limit, and by its share of what all processes may have.
#[derive(Debug)]
pub struct Cap {
    pub own: AtomicUsize,
    share: AtomicUsize,
}

impl Cap {
    pub fn new(share: usize) -> Cap {
        Cap { own: AtomicUsize::new(usize::MAX), share: AtomicUsize::new(share) }
    }

    pub fn in_force(&self) -> usize {
        self.own.load(Ordering::Relaxed).min(self.share.load(Ordering::Relaxed))
    }
}

/// Connections.
pub struct Connections {
    pub cap: Arc<Cap>,
    pub apply: Apply,
    pub count: Count,
    /// How many there were by the last request.
    pub before: usize,
}

impl Quantity for Connections {
    fn unit(&self) -> &'static str {
        "connections"
    }

    fn held(&self, share: usize, sockets: &Sockets<'_>) -> usize {
        share.max((self.count)(sockets))
    }

    fn measure(&mut self, _: usize, total: u64, sockets: &Sockets<'_>) -> (u64, bool) {
        let count = (self.count)(sockets);
        let has_changed = std::mem::replace(&mut self.before, count) != count;
        // Room for a quarter more, so that few peers are refused before the next request.
        (whole_steps(count as u64 * 5 / 4 + 1, total).min(total), has_changed)
    }

    fn set(&mut self, share: usize, sockets: &mut Sockets<'_>) {
        self.cap.share.store(share, Ordering::Relaxed);
        (self.apply)(self.cap.in_force(), sockets);
    }
}
