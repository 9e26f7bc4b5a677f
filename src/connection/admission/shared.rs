//! The access policy of a service, which the reactors of several threads can share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::base::tick::Tick;
use crate::config::access::AccessPolicy;
use crate::config::rules::Rules;
use crate::parts::admission::Admission;
use crate::sys::locked;

/// The access policy of a service with its counts: of one reactor, or of all shards of a process together.
pub(crate) enum ServiceAdmission {
    Own(Box<Admission>),
    Shared(SharedAdmission),
}

pub(crate) struct SharedAdmission {
    pub(crate) admission: Arc<Mutex<Admission>>,
    /// [`AccessPolicy::connections`] of this reactor, which is its share; without a limit `usize::MAX`.
    pub(crate) connections: Arc<AtomicUsize>,
    /// How much later this reactor was made than the first one: the ticks of each count from its own start.
    pub(crate) later: u64,
}

impl ServiceAdmission {
    pub(super) fn with<R>(&mut self, work: impl FnOnce(&mut Admission) -> R) -> R {
        match self {
            ServiceAdmission::Own(admission) => work(admission),
            ServiceAdmission::Shared(shared) => work(&mut locked(&shared.admission)),
        }
    }

    pub(super) fn set(&mut self, policy: AccessPolicy) {
        if let ServiceAdmission::Shared(shared) = self {
            shared.connections.store(policy.connections.unwrap_or(usize::MAX), Ordering::Relaxed);
        }
        self.with(|admission| admission.policy = policy);
    }

    /// The limit of connections of this reactor.
    pub(crate) fn connections(&self) -> Option<usize> {
        match self {
            ServiceAdmission::Own(admission) => admission.policy.connections,
            ServiceAdmission::Shared(shared) => Some(shared.connections.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn is_dry_run(&mut self) -> bool {
        self.with(|admission| admission.policy.dry_run)
    }

    /// The rules; not of a shared policy, which changes while they are looked at.
    pub(crate) fn rules(&self) -> Option<&Rules> {
        match self {
            ServiceAdmission::Own(admission) => Some(&admission.policy.rules),
            ServiceAdmission::Shared(_) => None,
        }
    }

    /// A time of this reactor, as it is counted for the policy.
    pub(super) fn tick(&self, now: Tick) -> Tick {
        match self {
            ServiceAdmission::Own(_) => now,
            ServiceAdmission::Shared(shared) => Tick(now.0 + shared.later),
        }
    }
}
