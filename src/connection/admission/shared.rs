//! The access policy of a service, which the reactors of several threads can share.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::Rejection;
use crate::base::reason::Refusal;
use crate::base::tick::Tick;
use crate::config::access::AccessPolicy;
use crate::config::rules::Rules;
use crate::parts::admission::Admission;
use crate::sys::locked;

/// What the loop asks of the access policy of a service. Behind a pointer that is made with the policy, so that a
/// program without one is linked without the rules and the counts by address: they are 5 KB.
pub(crate) trait Admit {
    /// What the rules say of an address, and whether it is a dry run.
    fn check(&mut self, ip: IpAddr) -> (Result<(), Rejection>, bool);

    /// Counts one more connection for an address, if its limits allow that: whether it was counted, whether it is a dry
    /// run, and the decision.
    fn admit(&mut self, ip: IpAddr, now: Tick) -> (bool, bool, Result<(), Rejection>);

    fn release(&mut self, ip: IpAddr);

    fn set(&mut self, policy: AccessPolicy);

    /// Sets only the limit of connections of this reactor.
    fn set_connections(&mut self, max: Option<usize>);

    /// The limit of connections of this reactor.
    fn connections(&self) -> Option<usize>;

    fn is_dry_run(&mut self) -> bool;

    /// The rules; not of a shared policy, which changes while they are looked at.
    fn rules(&self) -> Option<&Rules>;

    /// The policy, unless it is shared.
    fn into_own(self: Box<Self>) -> Option<AccessPolicy>;
}

/// The access policy of a service with its counts: of one reactor, or of all shards of a process together.
#[expect(clippy::large_enum_variant, reason = "each is behind a pointer of its own")]
pub(crate) enum ServiceAdmission {
    Own(Admission),
    Shared(SharedAdmission),
}

pub(crate) struct SharedAdmission {
    pub(crate) admission: Arc<Mutex<Admission>>,
    /// [`AccessPolicy::connections`] of this reactor, which is its share; without a limit `usize::MAX`.
    pub(crate) connections: Arc<AtomicUsize>,
    /// How much later this reactor was made than the first one: the ticks of each count from its own start.
    pub(crate) later: i64,
}

impl ServiceAdmission {
    fn with<R>(&mut self, work: impl FnOnce(&mut Admission) -> R) -> R {
        match self {
            ServiceAdmission::Own(admission) => work(admission),
            ServiceAdmission::Shared(shared) => work(&mut locked(&shared.admission)),
        }
    }

    /// A time of this reactor, as it is counted for the policy.
    fn tick(&self, now: Tick) -> Tick {
        match self {
            ServiceAdmission::Own(_) => now,
            ServiceAdmission::Shared(shared) => now.moved(shared.later),
        }
    }
}

impl Admit for ServiceAdmission {
    fn check(&mut self, ip: IpAddr) -> (Result<(), Rejection>, bool) {
        self.with(|admission| {
            let decided = admission.allows(ip).map_err(|how| (Refusal::Denied, how));
            (decided, admission.policy.dry_run)
        })
    }

    fn admit(&mut self, ip: IpAddr, now: Tick) -> (bool, bool, Result<(), Rejection>) {
        let now = self.tick(now);
        self.with(|admission| {
            let (counts, dry) = (admission.tracks(ip), admission.policy.dry_run);
            let (too_many, too_fast) = (admission.policy.on_too_many, admission.policy.on_too_fast);
            let entered = admission.admit(ip, now).map_err(|why| match why {
                Refusal::AcceptRate => (why, too_fast),
                _ => (why, too_many),
            });
            (counts, dry, entered)
        })
    }

    fn release(&mut self, ip: IpAddr) {
        self.with(|admission| admission.release(ip));
    }

    fn set(&mut self, policy: AccessPolicy) {
        if let ServiceAdmission::Shared(_) = self {
            self.set_connections(policy.connections);
        }
        self.with(|admission| admission.policy = policy);
    }

    fn set_connections(&mut self, max: Option<usize>) {
        match self {
            ServiceAdmission::Own(admission) => admission.policy.connections = max,
            ServiceAdmission::Shared(shared) => {
                shared.connections.store(max.unwrap_or(usize::MAX), Ordering::Relaxed);
            }
        }
    }

    fn connections(&self) -> Option<usize> {
        match self {
            ServiceAdmission::Own(admission) => admission.policy.connections,
            ServiceAdmission::Shared(shared) => Some(shared.connections.load(Ordering::Relaxed)),
        }
    }

    fn is_dry_run(&mut self) -> bool {
        self.with(|admission| admission.policy.dry_run)
    }

    fn rules(&self) -> Option<&Rules> {
        match self {
            ServiceAdmission::Own(admission) => Some(&admission.policy.rules),
            ServiceAdmission::Shared(_) => None,
        }
    }

    fn into_own(self: Box<Self>) -> Option<AccessPolicy> {
        match *self {
            ServiceAdmission::Own(admission) => Some(admission.policy),
            ServiceAdmission::Shared(_) => None,
        }
    }
}
