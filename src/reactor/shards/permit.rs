//! The places that connections take: on a shard, and of their address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::id::ConnId;
use crate::base::reason::Refusal;
use crate::base::tick::Tick;
use crate::config::access::AccessPolicy;
use crate::config::rules::RefuseMode;
use crate::parts::admission::Admission;

pub(super) type Permits = Arc<Mutex<HashMap<ConnId, Permit>>>;

/// A place of a connection: on its shard, and of its address. Both are free when it is dropped, whatever has become of
/// the connection.
pub(super) struct Permit {
    pub(super) load: Arc<AtomicUsize>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(super) address: Option<AddressPermit>,
}

/// That an address counts for a connection.
pub(super) struct AddressPermit {
    pub(super) ip: IpAddr,
    pub(super) admission: Arc<Mutex<Option<Admission>>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        if let Some(admission) = &mut *locked(&self.admission) {
            admission.release(self.ip);
        }
    }
}

/// A thread that panics while it has the lock leaves the value whole: each is changed by one step.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the places of a shard when its thread ends, by a panic too.
pub(super) struct ClearAtEnd(pub(super) Permits);

impl Drop for ClearAtEnd {
    fn drop(&mut self) {
        // Dropped behind the lock: each takes another one.
        let permits = std::mem::take(&mut *locked(&self.0));
        drop(permits);
    }
}

/// Whether a connection from this address is accepted, and counts for it; the error is how it is refused.
pub(super) fn ask(admission: &mut Admission, ip: IpAddr, now: Tick) -> Result<bool, RefuseMode> {
    let AccessPolicy { dry_run, on_too_many, on_too_fast, .. } = admission.policy;
    let allowed = admission.allows(ip);
    if !dry_run {
        allowed?;
    }
    match admission.admit(ip, now) {
        Err(why) if !dry_run => Err(if why == Refusal::AcceptRate { on_too_fast } else { on_too_many }),
        _ => Ok(admission.tracks(ip)),
    }
}
